//! What the replay of recorded cases and the tests of single rooms share.
//!
//! `golden` (the binary) and this crate's tests call it. The replay knows the agent from outside only: it starts it as
//! `assemble` does, feeds it pods, and takes down what comes out.
//!
//! ```text
//!   case ──▶ script ──▶ fake runtime ◀── agent ◀── replay (API server, clock, containers' ends)
//!     │                      │ calls      │ statuses, events      node (directories, cgroups)
//!     └──▶ normal ◀──────────┴────────────┘
//!             └──▶ compare ──▶ Verdict
//! ```

pub mod case;
pub mod compare;
mod deeds;
mod disks;
mod ephemeral;
pub mod node;
pub mod normal;
mod probes;
pub mod protojson;
pub mod replay;
mod resizes;
pub mod script;
mod wants;

use anyhow::{Context as _, Result};
use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Mutex;

/// The names of the cases that agree: `agree.txt`.
pub fn listed() -> BTreeSet<&'static str> {
    include_str!("../agree.txt").lines().filter(|l| !l.is_empty() && !l.starts_with('#')).collect()
}

/// What became of one case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing differs.
    Agree,
    /// Something differs: a line each.
    Differ(Vec<String>),
    /// It was not replayed, for want of this.
    Skip(String),
}

/// Replays one case and judges it, on a thread and a runtime of its own. `show` prints the calls and statuses too.
pub fn run(golden: &Path, name: &str, show: bool) -> Result<Verdict> {
    let case = case::Case::read(golden, name)?;
    if let Some(want) = wants::before(&case) {
        return Ok(Verdict::Skip(want));
    }
    let node = node::Node::new()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
    let outcome = runtime.block_on(replay::replay(&case, &node));
    // Tasks of the agent end before its directories go.
    drop(runtime);
    let outcome = outcome.with_context(|| name.to_owned())?;
    if let Some(want) = wants::after(&outcome) {
        return Ok(Verdict::Skip(want));
    }
    if show {
        print_outcome(&case, &outcome, &node)?;
    }
    let found = compare::compare(&case, &outcome, &node)?;
    Ok(if found.is_empty() { Verdict::Agree } else { Verdict::Differ(found) })
}

/// Replays cases on a few threads, each case with a node, a runtime and a clock of its own; the verdicts come in the order
/// of the names.
pub fn run_all(golden: &Path, names: &[String], show: bool) -> Result<Vec<(String, Verdict)>> {
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

/// Why cgroup values cannot be compared on this machine; `None` when they are.
pub fn no_cgroups() -> Result<Option<String>> {
    Ok(node::Node::new()?.no_cgroups().map(str::to_owned))
}

#[expect(clippy::print_stdout, reason = "it is what the option is for")]
fn print_outcome(case: &case::Case, outcome: &replay::Outcome, node: &node::Node) -> Result<()> {
    let print = |title: &str, calls: &[normal::NormalCall]| {
        println!("{title}");
        for c in calls {
            println!("  {} {}{}", c.method, c.request, if c.failed { " (failed)" } else { "" });
        }
    };
    print("recorded calls", &normal::recorded_calls(case));
    print("our calls", &normal::our_calls(outcome, node)?);
    for pod in &case.pods {
        let ours = normal::of(outcome, pod)?;
        println!("recorded statuses of {}", pod.name);
        for s in normal::recorded_statuses(pod) {
            println!("  ({:.1} s) {}", s.stood, s.status);
        }
        println!("our statuses of {}", pod.name);
        for s in normal::our_statuses(ours, outcome, node)? {
            println!("  {}", s.status);
        }
        println!("recorded events\n  {:?}", normal::recorded_events(pod));
        println!("our events\n  {:?}", normal::our_events(ours, outcome, node));
    }
    Ok(())
}
