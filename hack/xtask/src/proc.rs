//! Processes, told apart for certain and waited for by event.
//!
//! Called by the private containerd, `up` and `down`. A pid alone never decides anything here: pids
//! are reused, so an identity is the pid together with its start time.

use std::fmt;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcId {
    /// The pid in this namespace.
    pub pid: i32,
    /// Start time in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start: u64,
}

impl ProcId {
    /// The identity of `pid`, `None` when there is no such process or it is a zombie.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = Stat::read(pid)?;
        (stat.state != 'Z' && stat.state != 'X').then_some(Self { pid, start: stat.start })
    }

    /// This process.
    pub fn current() -> Result<Self> {
        let pid = i32::try_from(std::process::id()).context("a pid fits an i32")?;
        Self::of(pid).context("/proc has no entry for this process: is /proc mounted?")
    }

    /// Whether this very process still runs.
    pub fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Its executable, when readable.
    pub fn exe(self) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/exe", self.pid)).ok()
    }

    /// A pidfd that certainly refers to this process.
    fn fd(self) -> Option<OwnedFd> {
        let fd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Opened by pid, so checked again: now the descriptor pins whatever it refers to.
        self.alive().then_some(fd)
    }

    /// Sends a signal; nothing happens when the process is gone.
    pub fn signal(self, signal: Signal) {
        if let Some(fd) = self.fd() {
            let _gone_meanwhile = pidfd_send_signal(fd, signal);
        }
    }

    /// Blocks until the process is gone or `limit` has passed; true when it is gone.
    pub fn wait_gone(self, limit: Duration) -> bool {
        let Some(fd) = self.fd() else { return true };
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return !self.alive(),
                Ok(_) => return true,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return !self.alive(),
            }
        }
    }

    /// Asks with SIGTERM, insists with SIGKILL after `grace`; true when it is gone.
    pub fn terminate(self, grace: Duration) -> bool {
        self.signal(Signal::TERM);
        if self.wait_gone(grace) {
            return true;
        }
        self.signal(Signal::KILL);
        self.wait_gone(Duration::from_secs(10))
    }
}

impl fmt::Display for ProcId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, self.start)
    }
}

impl FromStr for ProcId {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (pid, start) = text.trim().split_once(' ').context("expected `PID STARTTIME`")?;
        Ok(Self { pid: pid.parse()?, start: start.parse()? })
    }
}

struct Stat {
    state: char,
    parent: i32,
    start: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The command name may hold spaces and brackets, so fields are counted from the last `)`.
    fn parse(text: &str) -> Option<Self> {
        let after = &text[text.rfind(')')? + 1..];
        let fields: Vec<&str> = after.split_whitespace().collect();
        Some(Self {
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
        })
    }
}

/// Every process that /proc shows.
pub fn all() -> Vec<ProcId> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(ProcId::of)
        .collect()
}

/// The children, grandchildren and so on of `roots`, without the roots.
pub fn descendants(roots: &[ProcId]) -> Vec<ProcId> {
    let parents: Vec<(ProcId, i32)> =
        all().into_iter().filter_map(|p| Some((p, Stat::read(p.pid)?.parent))).collect();
    let mut found: Vec<ProcId> = Vec::new();
    let mut frontier: Vec<i32> = roots.iter().map(|p| p.pid).collect();
    while let Some(parent) = frontier.pop() {
        for (child, _) in parents.iter().filter(|(_, of)| *of == parent) {
            if !found.contains(child) && !roots.contains(child) {
                found.push(*child);
                frontier.push(child.pid);
            }
        }
    }
    found
}

/// The arguments of a process; empty when it is gone or a kernel thread.
pub fn arguments(process: ProcId) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
    bytes
        .split(|b| *b == 0)
        .filter(|a| !a.is_empty())
        .map(|a| String::from_utf8_lossy(a).into_owned())
        .collect()
}

/// Kills all of them and waits until each is gone; returns those that would not go.
pub fn kill_all(processes: &[ProcId]) -> Vec<ProcId> {
    for process in processes {
        process.signal(Signal::KILL);
    }
    processes.iter().copied().filter(|p| !p.wait_gone(Duration::from_secs(10))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_command_name_with_brackets_does_not_shift_the_fields() {
        let stat = Stat::parse("7 (a) b) S 3 7 7 0 -1 4 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1").unwrap();
        assert_eq!((stat.state, stat.parent, stat.start), ('S', 3, 12345));
    }

    #[test]
    fn an_identity_survives_text_and_tells_a_reused_pid_apart() {
        let me = ProcId::current().unwrap();
        assert_eq!(me.to_string().parse::<ProcId>().unwrap(), me);
        assert!(me.alive());
        assert!(!ProcId { start: me.start + 1, ..me }.alive());
    }

    #[test]
    fn a_child_is_found_below_its_parent_and_is_gone_after_the_kill() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let id = ProcId::of(child.id() as i32).unwrap();
        assert!(descendants(&[ProcId::current().unwrap()]).contains(&id));
        assert!(kill_all(&[id]).is_empty());
        assert!(!id.alive());
        child.wait().unwrap();
    }
}
