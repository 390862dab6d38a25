//! Nodes with a kernel of their own, for real: what goes in, what comes back, and that nothing of them is left.
//!
//! Skipped aloud where there is no kernel for them, or no root file system and no way to build one.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use xtask::proc::{self, ProcId};
use xtask::tree;
use xtask::vm::{self, Node, Outcome, Spec};

/// More than a boot takes on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(120);

/// A node that runs this script; `None` when the test is to be skipped, which has been said.
fn node(name: &str, script: &str) -> Option<Spec> {
    if let Err(error) = vm::ready() {
        eprintln!("SKIP {}: {error:#}", std::thread::current().name().unwrap_or(name));
        return None;
    }
    let mut spec = Spec::new(name);
    spec.command = ["bash", "-c", script].map(str::to_owned).to_vec();
    spec.limit = LIMIT;
    Some(spec)
}

/// Runs it to its end.
fn run(spec: &Spec) -> (Outcome, String) {
    let mut output = tempfile::tempfile().unwrap();
    let outcome = Node::boot(spec, output.try_clone().unwrap().into()).unwrap().wait().unwrap();
    let mut text = String::new();
    std::io::Seek::rewind(&mut output).unwrap();
    std::io::Read::read_to_string(&mut output, &mut text).unwrap();
    (outcome, text)
}

#[test]
fn a_command_runs_as_root_under_systemd_on_cgroup_v2_and_its_output_and_status_come_back() {
    let script = "id -u; cat /proc/1/comm; stat -fc %T /sys/fs/cgroup; cat /proc/self/cgroup; echo \"$WORD\"; pwd\n\
                  seq 100000; echo to standard error >&2; exit 7";
    let Some(mut spec) = node("command", script) else { return };
    spec.environment.push(("WORD".to_owned(), "it's here".to_owned()));
    let (outcome, text) = run(&spec);
    assert_eq!(outcome, Outcome::Ended(7), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    let root = tree::root().display().to_string();
    let expected =
        ["0", "systemd", "cgroup2fs", "0::/system.slice/stevedore-node.service", "it's here", &root];
    assert_eq!(lines[..6], expected);
    // All of it, to the last line, though the node powers off at once.
    let numbers: Vec<String> = (1..=100_000).map(|n| n.to_string()).collect();
    assert_eq!(lines[6..100_006], numbers);
    assert_eq!(lines[100_006..], ["to standard error"]);
}

#[test]
fn what_a_node_writes_into_the_tree_stays_in_the_node() {
    let script = "set -e; head -1 hack/vm; echo changed >hack/vm; rm README.md; mkdir hack/fresh; cat hack/vm; ls hack/fresh";
    let Some(spec) = node("writes", script) else { return };
    let (outcome, text) = run(&spec);
    assert_eq!((outcome, text.as_str()), (Outcome::Ended(0), "#!/bin/bash\nchanged\n"));
    assert!(tree::root().join("README.md").exists() && !tree::root().join("hack/fresh").exists());
    assert!(fs::read_to_string(tree::root().join("hack/vm")).unwrap().starts_with("#!/bin/bash\n"));
}

#[test]
fn a_node_that_hangs_is_stopped_at_its_limit_and_nothing_of_it_is_left() {
    let Some(mut spec) = node("hangs", "echo up; sleep 100000 & exec sleep 100000") else { return };
    let mut hanging = Node::boot(&spec, Stdio::piped()).unwrap();
    let mut lines = BufReader::new(hanging.output().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "up");
    let told = Told::of(i32::try_from(std::process::id()).unwrap(), &spec.name);
    assert!(told.folder.exists());
    drop(hanging);
    told.nothing_is_left();
    assert!(!told.folder.exists(), "{}", told.folder.display());
    spec.limit = Duration::from_secs(1);
    let (outcome, _) = run(&spec);
    assert_eq!(outcome, Outcome::TimedOut(spec.limit));
}

#[test]
fn a_node_that_powers_off_before_its_command_ended_has_not_succeeded() {
    let Some(spec) = node("powers-off", "echo begun; poweroff --force --force; sleep 100000") else { return };
    let (outcome, _) = run(&spec);
    assert!(matches!(outcome, Outcome::Died(_)), "{outcome:?}");
}

#[test]
fn a_node_dies_with_the_process_that_started_it_and_the_next_one_removes_its_folder() {
    let Some(spec) = node("orphan", "true") else { return };
    let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
    xtask.args(["vm", "run", "--", "bash", "-c", "echo up; sleep 100000 & exec sleep 100000"]);
    let mut xtask = xtask.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(xtask.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "up");
    let told = Told::of(i32::try_from(xtask.id()).unwrap(), "node");
    assert!(told.folder.exists() && !told.folder.join("disk").exists());
    xtask.kill().unwrap();
    xtask.wait().unwrap();
    told.nothing_is_left();
    assert_eq!(run(&spec).0, Outcome::Ended(0));
    assert!(!told.folder.exists(), "{}", told.folder.display());
}

/// What a running node is on this machine.
struct Told {
    processes: Vec<ProcId>,
    folder: PathBuf,
}

impl Told {
    /// The kernel called `name` among the descendants of a process, and all that it runs.
    fn of(parent: i32, name: &str) -> Self {
        let folder = |process: &ProcId| {
            let arguments = proc::arguments(*process);
            let named = arguments.iter().any(|a| a.strip_prefix("umid=") == Some(name));
            let folder = arguments.iter().find_map(|a| a.strip_prefix("stevedore.share="));
            folder.filter(|_| named).map(|folder| (*process, PathBuf::from(folder)))
        };
        let below = proc::descendants(&[ProcId::of(parent).unwrap()]);
        let (kernel, folder) = below.iter().find_map(folder).expect("its kernel runs");
        let mut processes = proc::descendants(&[kernel]);
        assert!(processes.len() > 3, "each program of a node is a process here: {processes:?}");
        processes.push(kernel);
        Self { processes, folder }
    }

    fn nothing_is_left(&self) {
        let gone = |process: &&ProcId| process.wait_gone(Duration::from_secs(10));
        let left: Vec<&ProcId> = self.processes.iter().filter(|p| !gone(p)).collect();
        assert!(left.is_empty(), "processes of a node that was killed: {left:?}");
        assert!(!self.folder.join("disk").exists());
    }
}
