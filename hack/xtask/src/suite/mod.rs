//! `hack/test`: everything that must hold before a change lands, in order, with one closing line.
//!
//! Cheap checks come first. The end-to-end tests run once for each pair of containerd and OCI runtime,
//! two pairs at a time: they wait for containers more than they compute.

mod tally;

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use self::tally::{Tally, of_cargo_test, of_golden};
use crate::runtime::{self, Flavour, Oci};
use crate::{cmd, tree};

/// The runtimes that end-to-end tests run on: every release that is supported, each with both OCI runtimes.
const MATRIX: [(Flavour, Oci); 6] = [
    (Flavour::Debian, Oci::Runc),
    (Flavour::V2, Oci::Runc),
    (Flavour::Debian, Oci::Crun),
    (Flavour::V2, Oci::Crun),
    (Flavour::V1_7, Oci::Runc),
    (Flavour::V1_7, Oci::Crun),
];
/// How many end-to-end lanes run at once.
const AT_ONCE: usize = 2;

/// Runs everything; the error is the closing line's when something failed.
pub fn test() -> Result<()> {
    let logs = tree::cache("test")?;
    eprintln!("logs: {}", logs.display());
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
    let queue = Mutex::new(MATRIX.into_iter());
    let total = Mutex::new(Tally::default());
    let worker = || -> Result<()> {
        loop {
            let next = queue.lock().map_err(|_| anyhow::anyhow!("another lane panicked"))?.next();
            let Some((flavour, oci)) = next else { return Ok(()) };
            let name = format!("end-to-end ({flavour}, {oci})");
            let found = runtime::find(flavour).and_then(|_| runtime::find_oci(oci, flavour));
            let tally = match found {
                Err(error) => Tally::one_skipped(&name, &format!("{error:#}")),
                Ok(_) => {
                    let (flavour, oci) = (flavour.to_string(), oci.to_string());
                    tests(&name, &package, &[("STEVEDORE_CONTAINERD", &flavour), ("STEVEDORE_OCI", &oci)])?
                }
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
    let file = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let path = tree::cache("test")?.join(format!("{}.log", file.trim_matches('-')));
    let log = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let since = Instant::now();
    let line = cmd::line_of(&command);
    let status = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).status();
    let status = status.with_context(|| format!("start `{line}`"))?;
    let output = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
    let tally = read(&output, status.success());
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
