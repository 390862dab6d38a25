//! `hack/test`: everything that must hold before a change lands, in order, with one closing line.
//!
//! Cheap checks come first. The end-to-end tests run once for each pair of containerd and OCI runtime, and in nodes of their
//! own kernels on cgroup v2, two of these lanes at a time: they wait for containers more than they compute.

mod tally;

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::tally::{Tally, of_cargo_test, of_golden};
use crate::runtime::{self, CgroupDriver, Flavour, Oci};
use crate::vm::suite::Suite;
use crate::vm::{self, Outcome};
use crate::{cmd, tree};

/// One run of the end-to-end tests.
#[derive(Debug, Clone, Copy)]
enum Lane {
    /// On this machine, with this containerd and this OCI runtime.
    Here(Flavour, Oci),
    /// In a node with cgroup v2 and systemd, with this driver: these test programs, all where none is named.
    Node(CgroupDriver, &'static [&'static str]),
}

/// Every release of containerd that is supported, each with both OCI runtimes; and a node, which comes first because it takes
/// longest: the whole suite would be half an hour there, and is for `hack/vm test` by hand.
const LANES: [Lane; 7] = [
    Lane::Node(CgroupDriver::Systemd, &["kubelet", "basic", "security", "kills"]),
    Lane::Here(Flavour::Debian, Oci::Runc),
    Lane::Here(Flavour::V2, Oci::Runc),
    Lane::Here(Flavour::Debian, Oci::Crun),
    Lane::Here(Flavour::V2, Oci::Crun),
    Lane::Here(Flavour::V1_7, Oci::Runc),
    Lane::Here(Flavour::V1_7, Oci::Crun),
];
/// How many end-to-end lanes run at once.
const AT_ONCE: usize = 2;
/// A node that hangs is killed then; its tests take a third of it where the machine is busy.
const NODE_LIMIT: Duration = Duration::from_secs(1200);

/// Runs everything; the error is the closing line's when something failed.
pub fn test() -> Result<()> {
    let logs = tree::cache("test")?;
    eprintln!("logs: {}", logs.display());
    // Fetched and unpacked while the compiler works; the lane asks again, and says what went wrong.
    std::thread::spawn(vm::ready);
    let mut total = Tally::default();
    total += check("format", cargo(&["fmt", "--all", "--check"]))?;
    total += check("clippy", cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    total += deny()?;
    total += tests("unit", &["--workspace", "--exclude", "node-e2e"], &[])?;
    total += end_to_end()?;
    total += lane("golden", cargo(&["run", "--package", "golden"]), of_golden)?;
    report(&total)
}

fn report(total: &Tally) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for (name, reason) in &total.skipped {
        writeln!(out, "SKIP {name}: {reason}")?;
    }
    for name in &total.failed {
        writeln!(out, "FAIL {name}")?;
    }
    writeln!(out, "{total}")?;
    out.flush()?;
    // The closing line must stay the last one: no message follows it.
    if !total.failed.is_empty() {
        std::process::exit(1);
    }
    Ok(())
}

/// Bans, licences and sources. Advisories need a database from the network and are for `cargo deny check`
/// by hand.
fn deny() -> Result<Tally> {
    if cmd::run(&mut cargo(&["deny", "--version"])).is_err() {
        let skip = Tally::one_skipped("cargo deny", "cargo-deny is not on this machine");
        eprintln!("{:<28} {skip}", "deny");
        return Ok(skip);
    }
    check("deny", cargo(&["deny", "check", "bans", "licenses", "sources"]))
}

fn end_to_end() -> Result<Tally> {
    let package = ["--package", "node-e2e"];
    if std::env::var_os("CRI_SOCKET").is_some() {
        return tests("end-to-end (CRI_SOCKET)", &package, &[]);
    }
    // Compiled, fetched and unpacked once, before lanes run side by side.
    let built = check("end-to-end build", cargo(&["test", "--no-run", "--package", "node-e2e"]))?;
    if !built.failed.is_empty() {
        return Ok(built);
    }
    let queue = Mutex::new(LANES.into_iter());
    let total = Mutex::new(Tally::default());
    let worker = || -> Result<()> {
        loop {
            let next = queue.lock().map_err(|_| anyhow::anyhow!("another lane panicked"))?.next();
            let tally = match next {
                None => return Ok(()),
                Some(Lane::Here(flavour, oci)) => here(flavour, oci)?,
                Some(Lane::Node(driver, programs)) => in_a_node(driver, programs)?,
            };
            *total.lock().map_err(|_| anyhow::anyhow!("another lane panicked"))? += tally;
        }
    };
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
        lanes.into_iter().try_for_each(|lane| lane.join().unwrap_or_else(|_| bail!("a lane panicked")))
    })?;
    total.into_inner().map_err(|_| anyhow::anyhow!("another lane panicked"))
}

fn here(flavour: Flavour, oci: Oci) -> Result<Tally> {
    let name = format!("end-to-end ({flavour}, {oci})");
    let found = runtime::find(flavour).and_then(|_| runtime::find_oci(oci, flavour));
    if let Err(error) = found {
        return Ok(skipped(&name, &error));
    }
    let (flavour, oci) = (flavour.to_string(), oci.to_string());
    let environment = [("STEVEDORE_CONTAINERD", flavour.as_str()), ("STEVEDORE_OCI", &oci)];
    tests(&name, &["--package", "node-e2e"], &environment)
}

fn in_a_node(driver: CgroupDriver, programs: &[&str]) -> Result<Tally> {
    let name = format!("end-to-end (v2, {driver})");
    let flavour = Flavour::V2;
    if let Err(error) = vm::ready().and_then(|()| runtime::find(flavour).map(drop)) {
        return Ok(skipped(&name, &error));
    }
    let prepared = vm::suite::prepare(flavour)?;
    let programs = programs.iter().map(|p| (*p).to_owned()).collect();
    // Each lane on a core of its own, which it shares with what runs outside.
    let core = driver as usize;
    let suite = Suite { driver, flavour, oci: Oci::Runc, programs, core, limit: NODE_LIMIT };
    let run = |log: fs::File| {
        let outcome = suite.run(&prepared, log.try_clone()?.into())?;
        let success = outcome == Outcome::Ended(0);
        if !success {
            writeln!(&log, "{outcome}")?;
        }
        Ok(success)
    };
    record(&name, &format!("hack/vm test --driver {driver}"), run, |output, success| {
        of_cargo_test(&name, output, success)
    })
}

fn skipped(name: &str, reason: &anyhow::Error) -> Tally {
    let tally = Tally::one_skipped(name, &format!("{reason:#}"));
    eprintln!("{name:<28} {tally}");
    tally
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(tree::root());
    command
}

/// A command that passes or fails as one.
fn check(name: &str, command: Command) -> Result<Tally> {
    lane(name, command, |_, success| if success { Tally::one_passed() } else { Tally::one_failed(name) })
}

/// `cargo test` for some packages.
fn tests(name: &str, packages: &[&str], environment: &[(&str, &str)]) -> Result<Tally> {
    let mut command = cargo(&["test", "--no-fail-fast"]);
    command.args(packages).args(["--", "--show-output"]).envs(environment.iter().copied());
    lane(name, command, |output, success| of_cargo_test(name, output, success))
}

/// Runs one command with its output in a log, and says in one line what came of it.
fn lane(name: &str, mut command: Command, read: impl Fn(&str, bool) -> Tally) -> Result<Tally> {
    let line = cmd::line_of(&command);
    let run = |log: fs::File| {
        let status = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).status();
        Ok(status.with_context(|| format!("start `{}`", cmd::line_of(&command)))?.success())
    };
    record(name, &line, run, read)
}

/// Runs something that writes to a log and tells whether it succeeded, and says in one line what came of it. `line` is how a
/// person would run it.
fn record(
    name: &str,
    line: &str,
    run: impl FnOnce(fs::File) -> Result<bool>,
    read: impl Fn(&str, bool) -> Tally,
) -> Result<Tally> {
    let file = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let path = tree::cache("test")?.join(format!("{}.log", file.trim_matches('-')));
    let log = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let since = Instant::now();
    let success = run(log)?;
    let output = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
    let tally = read(&output, success);
    eprintln!("{name:<28} {tally} ({:.0} s)", since.elapsed().as_secs_f32());
    if !tally.failed.is_empty() {
        eprintln!("---- {name}: `{line}`, the end of {}", path.display());
        let shown = tally::failures(&output);
        // Nothing failed by name: a compile error or a crash, which is at the end.
        let shown = if shown.is_empty() { cmd::last_lines(&output, 40) } else { shown };
        for line in shown {
            eprintln!("    {line}");
        }
    }
    Ok(tally)
}
