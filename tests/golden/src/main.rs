//! `golden [--show] [CASE…]`: replays recorded cases through the agent, a line each, and a sum. Fails when a case differs that
//! is on the list of those that agree.

#![expect(clippy::print_stdout, reason = "the table is what it is for")]

use anyhow::{Result, bail};
use golden::{Verdict, case, listed, no_cgroups, run_all};
use std::process::ExitCode;

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
    let listed = listed();
    let (mut agree, mut differ, mut skipped, mut wrong) = (0, 0, 0, false);
    let width = wanted.iter().map(String::len).max().unwrap_or(0);
    for (name, verdict) in run_all(&golden, &wanted, show)? {
        match verdict {
            Verdict::Agree => {
                agree += 1;
                println!("{name:width$}  agree");
            }
            Verdict::Differ(found) => {
                differ += 1;
                wrong |= listed.contains(name.as_str());
                println!("{name:width$}  differ: {}", found.join("\n  "));
            }
            Verdict::Skip(want) => {
                skipped += 1;
                println!("{name:width$}  skip: for want of {want}");
            }
        }
    }
    println!("golden: {agree} agree, {differ} differ, {skipped} skipped");
    Ok(if wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
