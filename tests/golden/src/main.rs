//! `golden [--show] [CASE…]`: replays recorded cases through the agent, a line each, and a sum.

#![expect(clippy::print_stdout, reason = "the table is what it is for")]

use anyhow::{Result, bail};
use golden::{Verdict, case, no_cgroups, run};
use std::collections::VecDeque;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;

fn main() -> Result<ExitCode> {
    let (options, mut wanted): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|a| a.starts_with('-'));
    let show = options.iter().any(|o| o == "--show");
    if let Some(unknown) = options.iter().find(|o| *o != "--show") {
        bail!("unknown option {unknown}; usage: golden [--show] [CASE…]");
    }
    let golden = match case::golden_dir() {
        Ok(dir) => dir,
        Err(e) => {
            println!("skip: everything: {e}");
            println!("golden: 0 agree, 0 differ, 0 skipped");
            return Ok(ExitCode::SUCCESS);
        }
    };
    if wanted.is_empty() {
        wanted = case::names(&golden)?;
    }
    if let Some(why) = no_cgroups()? {
        println!("cgroup values are not compared: {why}");
    }
    let (mut agree, mut differ, mut skipped) = (0, 0, 0);
    let width = wanted.iter().map(String::len).max().unwrap_or(0);
    for (name, verdict) in replay_all(&golden, &wanted, show)? {
        match verdict {
            Verdict::Agree => {
                agree += 1;
                println!("{name:width$}  agree");
            }
            Verdict::Differ(found) => {
                differ += 1;
                println!("{name:width$}  differ: {}", found.join("\n  "));
            }
            Verdict::Skip(want) => {
                skipped += 1;
                println!("{name:width$}  skip: for want of {want}");
            }
        }
    }
    println!("golden: {agree} agree, {differ} differ, {skipped} skipped");
    Ok(if differ == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Replays cases on a few threads: each has a node, a runtime and a clock of its own.
fn replay_all(golden: &Path, names: &[String], show: bool) -> Result<Vec<(String, Verdict)>> {
    let threads = if show { 1 } else { std::thread::available_parallelism().map_or(1, |n| n.get()) };
    let queue = Mutex::new(names.iter().cloned().collect::<VecDeque<_>>());
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().ok().and_then(|mut q| q.pop_front());
                    let Some(name) = next else { return };
                    let verdict = run(golden, &name, show);
                    if let Ok(mut done) = done.lock() {
                        done.push((name, verdict));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().map_err(|_| anyhow::anyhow!("a replay panicked"))?;
    done.sort_by(|a, b| a.0.cmp(&b.0));
    done.into_iter().map(|(name, verdict)| Ok((name, verdict?))).collect()
}
