//! Daemons that outlive `up`: found again by a later run, replaced only when something changed.
//!
//! Called for containerd and for the agent. A daemon is known by its program's name and by the path of
//! its configuration among its arguments; that is true whatever was written down or lost, so a run that
//! was cut short between the start and the pid file is mended by the next one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};

use crate::proc::{self, ProcId};
use crate::tree;

/// One daemon of the node.
#[derive(Debug, Clone)]
pub(super) struct Daemon {
    /// The file name of its program.
    pub program: &'static str,
    /// A path that is in its arguments and in no other program's.
    pub config: PathBuf,
    /// Where its identity and the fingerprint of its start are kept.
    pub run: PathBuf,
    /// What it prints.
    pub log: PathBuf,
}

impl Daemon {
    /// Every running instance; more than one only after an interrupted run.
    pub(super) fn running(&self) -> Vec<ProcId> {
        let config = self.config.display().to_string();
        proc::all()
            .into_iter()
            .filter(|process| {
                let exe = process.exe().unwrap_or_default();
                // The kernel appends " (deleted)" when the program was replaced since.
                let name = exe.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                name.trim_end_matches(" (deleted)") == self.program
                    && proc::arguments(*process).iter().any(|argument| argument.ends_with(&config))
            })
            .collect()
    }

    /// Whether one runs that was started with this fingerprint.
    pub(super) fn is_current(&self, fingerprint: &str) -> bool {
        let recorded = fs::read_to_string(self.fingerprint_file()).unwrap_or_default();
        self.running().len() == 1 && recorded == fingerprint
    }

    /// Starts it in a session of its own, its output appended to its log, and records who it is.
    pub(super) fn start(&self, program: &Path, arguments: &[String], fingerprint: &str) -> Result<Child> {
        for file in [&self.log, &self.run] {
            if let Some(dir) = file.parent() {
                fs::create_dir_all(dir)?;
            }
        }
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new("setsid");
        command.arg(program).args(arguments).env_remove("NOTIFY_SOCKET").current_dir("/");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("start {}", program.display()))?;
        self.record(&child, fingerprint)?;
        Ok(child)
    }

    /// Writes down who runs and what it was started with.
    pub(super) fn record(&self, child: &Child, fingerprint: &str) -> Result<()> {
        let id = ProcId::of(child.id() as i32).with_context(|| format!("{} ended at once", self.program))?;
        fs::create_dir_all(&self.run)?;
        tree::write_atomic(
            &self.run.join(format!("{}.pid", self.program)),
            format!("{}\n", id.pid).as_bytes(),
        )?;
        tree::write_atomic(&self.fingerprint_file(), fingerprint.as_bytes())
    }

    /// Ends every instance; returns false when one would not go. Blocking.
    pub(super) fn stop(&self, grace: Duration) -> bool {
        let mut gone = true;
        for process in self.running() {
            gone &= process.terminate(grace);
        }
        for file in [self.fingerprint_file(), self.run.join(format!("{}.pid", self.program))] {
            let _absent = fs::remove_file(file);
        }
        gone
    }

    fn fingerprint_file(&self) -> PathBuf {
        self.run.join(format!("{}.fingerprint", self.program))
    }
}

/// What a start depends on, as one word.
pub(super) fn fingerprint(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Installs a program: a copy under a temporary name, then a rename, so that a running one is not hurt.
pub(super) fn install_program(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    if fs::read(to).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    let beside = to.with_extension("new");
    tree::write_atomic(&beside, &bytes)?;
    fs::set_permissions(&beside, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::rename(&beside, to).with_context(|| format!("install {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_found_again_by_its_configuration_alone() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("busybox");
        if fs::copy("/bin/busybox", &program).is_err() {
            eprintln!("SKIP a_daemon_is_found_again_by_its_configuration_alone: no busybox on this machine");
            return;
        }
        let make = |config: &str| Daemon {
            program: "busybox",
            config: dir.path().join(config),
            run: dir.path().join("run"),
            log: dir.path().join("log"),
        };
        let daemon = make("a.conf");
        let script = "while :; do sleep 1000; done".to_owned();
        let arguments = ["sh".into(), "-c".into(), script, daemon.config.display().to_string()];
        let mut child = daemon.start(&program, &arguments, "f").unwrap();
        // setsid turns into the program a moment after the spawn, and is nobody while it does.
        while !daemon.is_current("f") {
            assert!(child.try_wait().unwrap().is_none(), "the daemon ended");
            std::thread::yield_now();
        }
        assert!(!daemon.is_current("g"));
        assert!(make("b.conf").running().is_empty());
        let below = proc::descendants(&daemon.running());
        let waiter = std::thread::spawn(move || child.wait());
        assert!(daemon.stop(Duration::from_millis(200)));
        proc::kill_all(&below);
        waiter.join().unwrap().unwrap();
        assert!(daemon.running().is_empty() && !daemon.is_current("f"));
    }
}
