//! What a command leaves behind that is killed at its timeout: runtimes kill its first process only (containerd and runc),
//! and children that ignore signals would pile up, one family for each run, and hold the call open.
//!
//! A command that is about to time out is found while its first process still runs: it is of a session of its own (which it
//! leads with runc; with crun the leader was a helper that is gone), in the container's cgroup, with a parent outside of
//! it, with exactly the command's words, and younger than the call. When the call has timed out, what still is of that
//! session and that cgroup is killed. The kernel gives nobody a session's number while it has members, so this cannot hit
//! others; what a command put into a session of its own, as a daemon would, stays. Where anything is in doubt nothing is
//! killed.

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// A tick of the times in `/proc/PID/stat`: the same on all of Linux's platforms.
const TICK: Duration = Duration::from_millis(10);
/// Passes over what is left, for what it forks meanwhile.
const PASSES: usize = 5;

/// Finds and kills. Cloning is cheap; one look at `/proc` runs at a time.
#[derive(Clone, Debug)]
pub struct Hunter {
    proc: Arc<Path>,
    turn: Arc<Semaphore>,
}

/// The session of one command in one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    id: i32,
    instance: String,
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    pid: i32,
    parent: i32,
    session: i32,
    started: u64,
    zombie: bool,
}

impl Hunter {
    /// `proc` is `/proc`.
    pub fn new(proc: PathBuf) -> Self {
        Self { proc: proc.into(), turn: Arc::new(Semaphore::new(1)) }
    }

    /// The session of `command`, which was begun in the container `instance` so long `ago`.
    pub async fn find(&self, instance: &str, command: &[String], ago: Duration) -> Option<Session> {
        let (proc, instance, command) = (self.proc.clone(), instance.to_owned(), command.to_vec());
        self.blocking(move || find(&proc, &instance, &command, ago)).await.flatten()
    }

    /// Kills what is left of it.
    pub async fn kill(&self, session: Session) {
        let proc = self.proc.clone();
        let killed = self.blocking(move || kill(&proc, &session)).await.unwrap_or(0);
        if killed > 0 {
            tracing::info!(killed, "ended what a probe's command had left behind at its timeout");
        }
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let _turn = self.turn.acquire().await.ok()?;
        tokio::task::spawn_blocking(work).await.ok()
    }
}

fn find(proc: &Path, instance: &str, command: &[String], ago: Duration) -> Option<Session> {
    let uptime = std::fs::read_to_string(proc.join("uptime")).ok()?;
    let uptime = Duration::from_secs_f64(uptime.split(' ').next()?.parse().ok()?);
    let since = u64::try_from(uptime.checked_sub(ago)?.as_nanos() / TICK.as_nanos()).ok()?;
    let wanted: Vec<u8> = command.iter().flat_map(|word| word.bytes().chain([0])).collect();
    let mut found = processes(proc).filter(|s| {
        (s.session == s.pid || stat(proc, s.session).is_none())
            && s.started >= since
            && is_in(proc, s.pid, instance)
            && !is_in(proc, s.parent, instance)
            && std::fs::read(proc.join(s.pid.to_string()).join("cmdline")).is_ok_and(|c| c == wanted)
    });
    let first = found.next()?;
    found.next().is_none().then(|| Session { id: first.session, instance: instance.to_owned() })
}

fn kill(proc: &Path, session: &Session) -> usize {
    let mut killed = 0;
    for _ in 0..PASSES {
        let members = processes(proc)
            .filter(|s| s.session == session.id && !s.zombie && is_in(proc, s.pid, &session.instance));
        let before = killed;
        for member in members {
            let Some(fd) = Pid::from_raw(member.pid).and_then(|p| pidfd_open(p, PidfdFlags::empty()).ok())
            else {
                continue;
            };
            // The number may have been given to another since it was read; what the handle holds is looked at again.
            let same = stat(proc, member.pid).is_some_and(|s| s == Stat { parent: s.parent, ..member });
            if same && pidfd_send_signal(&fd, Signal::KILL).is_ok() {
                killed += 1;
            }
        }
        if killed == before {
            break;
        }
    }
    killed
}

fn processes(proc: &Path) -> impl Iterator<Item = Stat> {
    let names = std::fs::read_dir(proc).into_iter().flatten().flatten();
    names.filter_map(|e| stat(proc, e.file_name().to_str()?.parse().ok()?))
}

fn stat(proc: &Path, pid: i32) -> Option<Stat> {
    let text = std::fs::read_to_string(proc.join(pid.to_string()).join("stat")).ok()?;
    // The name before it may have spaces and brackets.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(Stat {
        pid,
        zombie: *fields.first()? == "Z",
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

/// Whether a process is in the container's cgroup: its name is the container's id, as it is or within a scope's name.
fn is_in(proc: &Path, pid: i32, instance: &str) -> bool {
    let Ok(text) = std::fs::read_to_string(proc.join(pid.to_string()).join("cgroup")) else { return false };
    let of = |part: &str| {
        part == instance || part.strip_suffix(".scope").is_some_and(|p| p.ends_with(&format!("-{instance}")))
    };
    !instance.is_empty() && text.lines().any(|line| line.split('/').any(of))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef";

    /// A process in a made-up `/proc`: pid, parent, session, start in ticks, cgroup, words.
    fn process(
        proc: &Path,
        (pid, parent, session, started): (i32, i32, i32, u64),
        cgroup: &str,
        words: &[&str],
    ) {
        let dir = proc.join(pid.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        let stat = format!("{pid} (a) b) S {parent} 1 {session} {}{started} 0 0\n", "0 ".repeat(15));
        std::fs::write(dir.join("stat"), stat).unwrap();
        std::fs::write(dir.join("cgroup"), format!("3:cpu,cpuacct:{cgroup}\n0::/\n")).unwrap();
        let line: Vec<u8> = words.iter().flat_map(|w| w.bytes().chain([0])).collect();
        std::fs::write(dir.join("cmdline"), line).unwrap();
    }

    #[test]
    fn only_the_very_command_is_found_and_nothing_where_there_is_doubt() {
        let dir = tempfile::tempdir().unwrap();
        let proc = dir.path();
        std::fs::write(proc.join("uptime"), "100.00 50.00\n").unwrap();
        let (inside, command) = (format!("/kubepods/podu/{ID}"), ["sh", "-c", "hang"]);
        let words = command.map(str::to_owned);
        let look = || find(proc, ID, &words, Duration::from_secs(5)).map(|s| s.id);
        process(proc, (10, 1, 10, 100), "/", &["shim"]);
        process(proc, (20, 10, 20, 200), &inside, &command); // the container itself
        process(proc, (30, 20, 30, 9600), &inside, &command); // a daemon of the container
        process(proc, (40, 10, 40, 9600), &inside, &["sh"]); // somebody's shell
        process(proc, (50, 10, 50, 9600), "/kubepods/podu/other", &command);
        process(proc, (60, 10, 10, 9600), &inside, &command); // in the session of another
        assert_eq!(look(), None);
        process(proc, (70, 10, 70, 9500), &inside, &command);
        assert_eq!(look(), Some(70));
        process(proc, (80, 10, 80, 9600), &format!("/kubepods.slice/cri-containerd-{ID}.scope"), &command);
        assert_eq!(look(), None, "two of them");
        for pid in ["70", "80"] {
            std::fs::remove_dir_all(proc.join(pid)).unwrap();
        }
        process(proc, (91, 10, 90, 9600), &inside, &command);
        assert_eq!(look(), Some(90), "its session's leader is gone");
    }

    #[test]
    fn what_runs_is_read_as_the_kernel_writes_it() {
        use std::io::Read as _;
        use std::process::{Command, Stdio};
        // A session of its own: that of the test may have its leader in an outer PID namespace, where it reads 0.
        let mut child = Command::new("setsid")
            .args(["sh", "-c", "echo up; read end"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0; 2]).unwrap();
        let pid = child.id().cast_signed();
        let seen = stat(Path::new("/proc"), pid).unwrap();
        assert_eq!((seen.pid, seen.parent, seen.session), (pid, std::process::id().cast_signed(), pid));
        assert!(seen.started > 0 && !seen.zombie);
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
