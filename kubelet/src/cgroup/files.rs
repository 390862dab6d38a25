//! The system calls: directories and files of one cgroup. Called only by the room's handle; knows no pods.
//!
//! Everything here blocks, but for a few microseconds a call: cgroup file systems are memory. Only [`remove`] may
//! sleep, when processes had to be killed first, and says how long.

use super::Error;
use super::values::Write;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Waits between attempts at a directory whose killed processes are still dying: 63 ms in all.
const DYING: [u64; 6] = [1, 2, 4, 8, 16, 32];

/// Makes `dir`; `true` when it was not there. The parent must exist.
pub fn make(dir: &Path) -> Result<bool, Error> {
    match std::fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(cause) => Err(Error::Create { path: dir.to_owned(), cause }),
    }
}

/// Writes `value` to a file of a cgroup.
pub fn write(path: PathBuf, value: &str) -> Result<(), Error> {
    std::fs::write(&path, value).map_err(|cause| {
        // A cgroup file system refuses to create files, which hides that the file is not there.
        let cause = match cause.kind() {
            io::ErrorKind::PermissionDenied if !path.exists() => io::ErrorKind::NotFound.into(),
            _ => cause,
        };
        Error::Write { path, value: value.to_owned(), cause }
    })
}

/// Reads a file of a cgroup without the final newline.
pub fn read(path: PathBuf) -> Result<String, Error> {
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(cause) => Err(Error::Read { path, cause }),
    }
}

/// Gives a v1 cpuset its parent's CPUs and memory nodes: an empty one takes no process. One that was there already
/// keeps what it has, unless an earlier incarnation died before it got here.
pub fn inherit_cpuset(dir: &Path, new: bool) -> Result<(), Error> {
    let parent = dir.parent().unwrap_or(dir);
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if new || read(dir.join(file))?.is_empty() {
            write(dir.join(file), &read(parent.join(file))?)?;
        }
    }
    Ok(())
}

/// Enables every one of `controllers` for the children of the v2 cgroup `dir`.
pub fn delegate(dir: &Path, controllers: &[String]) -> Result<(), Error> {
    let path = dir.join("cgroup.subtree_control");
    let enabled = read(path.clone())?;
    let missing: Vec<String> = controllers
        .iter()
        .filter(|c| !enabled.split(' ').any(|e| e == c.as_str()))
        .map(|c| format!("+{c}"))
        .collect();
    if missing.is_empty() { Ok(()) } else { write(path, &missing.join(" ")) }
}

/// The directories in `dir`; empty when it is not there.
pub fn children(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let fail = |cause| Error::Read { path: dir.to_owned(), cause };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if gone(&e) => return Ok(Vec::new()),
        Err(cause) => return Err(fail(cause)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(fail)?;
        if entry.file_type().map_err(fail)?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// The file at `path` holds another value than `wanted`, or cannot be read. The kernel keeps memory in whole pages.
pub fn differs(path: PathBuf, wanted: &Write) -> bool {
    let kept = match wanted.value.parse::<u64>() {
        Ok(bytes) if wanted.controller == "memory" => (bytes - bytes % page_size()).to_string(),
        _ => wanted.value.clone(),
    };
    read(path).map_or(true, |now| now != wanted.value && now != kept)
}

fn page_size() -> u64 {
    u64::try_from(rustix::param::page_size()).unwrap_or(4096)
}

/// Removes the cgroup `dirs` (one pod's, one per hierarchy) with everything below them, killing what runs there.
///
/// An empty cgroup costs one system call a hierarchy. When processes had to be killed it waits for them up to 63 ms,
/// then gives up with [`Error::Busy`]; the next call goes on from there.
pub fn remove(dirs: &[PathBuf]) -> Result<(), Error> {
    let mut left = Vec::new();
    for dir in dirs {
        if !rmdir(dir)? {
            left.push(dir);
        }
    }
    let mut waits = DYING.iter();
    while !left.is_empty() {
        for dir in &left {
            kill_all(dir)?;
        }
        let mut still = Vec::new();
        for dir in left {
            if !remove_tree(dir)? {
                still.push(dir);
            }
        }
        left = still;
        let Some(dir) = left.first() else { break };
        match waits.next() {
            Some(ms) => std::thread::sleep(Duration::from_millis(*ms)),
            None => {
                return Err(Error::Busy {
                    path: (*dir).clone(),
                    pids: pids_below(dir)?.into_iter().collect(),
                });
            }
        }
    }
    Ok(())
}

/// Kills every process in the cgroup `dirs` and below, and does not wait for their ends.
pub fn kill(dirs: &[PathBuf]) -> Result<(), Error> {
    dirs.iter().filter(|dir| dir.exists()).try_for_each(|dir| kill_all(dir))
}

/// Removes a cgroup and those below it, deepest first; `false` when one of them is busy.
fn remove_tree(dir: &Path) -> Result<bool, Error> {
    let mut clear = true;
    for child in children(dir)? {
        clear &= remove_tree(&child)?;
    }
    Ok(clear && rmdir(dir)?)
}

/// `false` when the directory is in use; one that is not there counts as removed.
fn rmdir(dir: &Path) -> Result<bool, Error> {
    match rustix::fs::rmdir(dir) {
        Ok(()) | Err(Errno::NOENT | Errno::NODEV) => Ok(true),
        Err(Errno::BUSY | Errno::NOTEMPTY) => Ok(false),
        Err(e) => Err(Error::Remove { path: dir.to_owned(), cause: e.into() }),
    }
}

/// Sends KILL to every process in `dir` and below.
fn kill_all(dir: &Path) -> Result<(), Error> {
    // Kernel 5.14 and later, v2 only: atomic against forks.
    let kill = dir.join("cgroup.kill");
    if kill.exists() {
        return match write(kill, "1") {
            Err(Error::Write { cause, .. }) if gone(&cause) => Ok(()),
            other => other,
        };
    }
    thaw(dir)?;
    for pid in pids_below(dir)? {
        kill_one(pid, dir);
    }
    Ok(())
}

/// Kills `pid` if it is still a member of a cgroup whose path ends as `dir`'s does: the handle is opened first and the
/// membership read afterwards, so that a reused number is never hit.
fn kill_one(pid: i32, dir: &Path) {
    let Some(handle) = Pid::from_raw(pid) else { return };
    let Ok(fd) = pidfd_open(handle, PidfdFlags::empty()) else { return };
    let member = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let Some(name) = dir.file_name().and_then(|n| n.to_str()) else { return };
    let inside =
        member.lines().filter_map(|l| l.splitn(3, ':').nth(2)).any(|p| p.split('/').any(|part| part == name));
    if inside {
        // It may have died meanwhile: nothing to do then.
        let _ = pidfd_send_signal(fd, Signal::KILL);
    }
}

/// A frozen v1 cgroup delivers no signals.
fn thaw(dir: &Path) -> Result<(), Error> {
    for child in children(dir)? {
        thaw(&child)?;
    }
    let state = dir.join("freezer.state");
    match std::fs::read_to_string(&state) {
        Ok(text) if text.trim_end() != "THAWED" => write(state, "THAWED"),
        _ => Ok(()),
    }
}

/// Every process of `dir` and below that this PID namespace can name.
fn pids_below(dir: &Path) -> Result<BTreeSet<i32>, Error> {
    let mut pids = BTreeSet::new();
    for child in children(dir)? {
        pids.append(&mut pids_below(&child)?);
    }
    let path = dir.join("cgroup.procs");
    match std::fs::read_to_string(&path) {
        Ok(text) => pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 0)),
        Err(e) if gone(&e) => {}
        Err(cause) => return Err(Error::Read { path, cause }),
    }
    Ok(pids)
}

/// The cgroup went away between two calls.
fn gone(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}
