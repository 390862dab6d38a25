//! Removes what a private containerd left on the machine: processes, mounts, shim sockets, cgroups,
//! links and folders. It works from what it finds, so it mends after a crash as well as after a stop.
//!
//! Called when a private containerd stops or is dropped, before one starts (for those whose owner
//! died), and by `xtask clean` and `xtask down`. It must only ever touch what carries one of the
//! folders it was given, or a name made from them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};

use super::private::{OWNER_FILE, TestDir};
use crate::proc::{self, ProcId};

/// What one private containerd may have made, by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Traces {
    /// Folders: processes that run from them and mounts below them go, and at last they themselves.
    pub folders: Vec<PathBuf>,
    /// Cgroups, relative to each hierarchy, with everything in and below them.
    pub cgroups: Vec<String>,
    /// Network links.
    pub links: Vec<String>,
    /// Our plugin binary and the network configuration that it shall purge from the host.
    pub network: Option<(PathBuf, PathBuf)>,
}

/// Removes all of it and returns what could not be removed, one message each. Blocking.
pub(crate) fn sweep_traces(traces: &Traces) -> Vec<String> {
    let mut problems = Vec::new();
    let folders = &traces.folders;
    // The daemon goes first, so that it starts nothing new; shims are stopped before their children go,
    // so that they neither report nor clean up halfway.
    let mut ours: Vec<ProcId> = proc::all().into_iter().filter(|p| belongs(*p, folders)).collect();
    for process in &ours {
        process.signal(rustix::process::Signal::STOP);
    }
    let mut cgroups = BTreeSet::new();
    for below in proc::descendants(&ours) {
        // A task whose parent is the shim; whatever runs in the host's own root cgroup stays out.
        cgroups.extend(container_cgroups(below));
        ours.push(below);
    }
    for cgroup in &traces.cgroups {
        for dir in hierarchies().iter().map(|root| root.join(cgroup.trim_start_matches('/'))) {
            ours.extend(members(&dir));
        }
    }
    problems.extend(proc::kill_all(&ours).iter().map(|p| format!("process {} would not die", p.pid)));
    let sockets = shim_sockets(folders);
    for folder in folders {
        problems.extend(unmount_below(folder));
    }
    for socket in sockets {
        let _gone = fs::remove_file(socket);
    }
    for cgroup in &traces.cgroups {
        problems.extend(stop_slice(cgroup));
        for root in hierarchies() {
            problems.extend(remove_cgroup(&root.join(cgroup.trim_start_matches('/'))));
        }
    }
    problems.extend(cgroups.iter().flat_map(|dir| remove_cgroup(dir)));
    if let Some((binary, conflist)) =
        traces.network.as_ref().filter(|(binary, conf)| binary.exists() && conf.exists())
    {
        let purged = crate::cmd::run(std::process::Command::new(binary).arg("purge").arg(conflist));
        problems.extend(purged.err().map(|e| format!("{e:#}")));
    }
    for link in &traces.links {
        problems.extend(super::private::delete_link(link).err().map(|e| format!("{e:#}")));
    }
    for folder in folders {
        // Never through a mount: what is mounted there may be somebody's data.
        if let Some(point) = mounts_below(folder).first() {
            problems.push(format!("{} is kept: {} is still mounted", folder.display(), point.display()));
            continue;
        }
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                problems.push(format!("remove {}: {error}", folder.display()));
            }
            _ => {}
        }
    }
    problems
}

/// Removes everything a private containerd with this test folder made. Blocking.
pub fn sweep(base: &Path) -> Vec<String> {
    match TestDir::at(base) {
        Some(dir) => sweep_traces(&dir.traces()),
        None => vec![format!("{} is not a folder of a test's containerd", base.display())],
    }
}

/// Sweeps every test folder whose owner no longer runs; with `all`, those of living owners too.
/// Returns the folders swept and the problems met. Blocking.
pub fn sweep_dead(all: bool) -> Result<(Vec<PathBuf>, Vec<String>)> {
    let _alone = TestDir::lock()?;
    let (mut swept, mut problems) = (Vec::new(), Vec::new());
    let base = Path::new(super::TEST_BASE);
    for entry in fs::read_dir(base).with_context(|| format!("read {}", base.display()))? {
        let Some(dir) = TestDir::at(&entry?.path()) else { continue };
        let owner = fs::read_to_string(dir.base.join(OWNER_FILE)).ok();
        let alive = owner.and_then(|text| text.parse::<ProcId>().ok()).is_some_and(ProcId::alive);
        if all || !alive {
            problems.extend(sweep_traces(&dir.traces()));
            swept.push(dir.base);
        }
    }
    Ok((swept, problems))
}

/// containerd and its shims name their folder in their arguments; a container whose shim died is known
/// by a root file system whose upper directory lies in it.
fn belongs(process: ProcId, folders: &[PathBuf]) -> bool {
    let exe = process.exe().unwrap_or_default();
    let name = exe.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if name == "containerd" || name.starts_with("containerd-shim") {
        let arguments = proc::arguments(process);
        return arguments.iter().any(|argument| folders.iter().any(|f| Path::new(argument).starts_with(f)));
    }
    let Ok(mounts) = fs::read_to_string(format!("/proc/{}/mountinfo", process.pid)) else { return false };
    mounts
        .lines()
        .filter(|line| mount_point(line) == Some("/".into()))
        .any(|root| folders.iter().any(|f| root.contains(&format!("upperdir={}/", f.display()))))
}

/// The fifth field of a mountinfo line (proc(5)), unescaped.
fn mount_point(line: &str) -> Option<PathBuf> {
    let field = line.split(' ').nth(4)?;
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let [first, tail @ ..] = rest {
        // Space, tab, newline and backslash are written as a backslash and three octal digits.
        let escaped = (*first == b'\\').then(|| tail.get(..3)).flatten();
        let value = escaped.and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match value {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    Some(PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(bytes)))
}

/// Unmounts everything below `folder`, the newest first; lazily where it is busy.
fn unmount_below(folder: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    for point in mounts_below(folder).iter().rev() {
        let flags = MntFlags::UMOUNT_NOFOLLOW;
        let result = umount2(point, flags).or_else(|_busy| umount2(point, flags | MntFlags::MNT_DETACH));
        if let Err(errno) = result {
            problems.push(format!("unmount {}: {errno}", point.display()));
        }
    }
    problems
}

/// The mount points at and below `folder`, in the order of mounting.
fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().filter_map(mount_point).filter(|point| point.starts_with(folder)).collect()
}

/// Every task's folder holds the address of its shim's socket, which lies in a folder shared by all
/// containerds of the machine.
fn shim_sockets(folders: &[PathBuf]) -> Vec<PathBuf> {
    let mut sockets = Vec::new();
    for folder in folders {
        for state in ["state", "containerd"].map(|part| folder.join(part)) {
            let tasks = state.join("io.containerd.runtime.v2.task/k8s.io");
            for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
                let task = task.path();
                // 1.6 and 1.7 write the bare address, 2.x a JSON object with it.
                let plain = fs::read_to_string(task.join("address")).ok();
                let json = fs::read(task.join("bootstrap.json")).ok();
                let json = json.and_then(|b| serde_json::from_slice::<serde_json::Value>(&b).ok());
                let json = json.and_then(|v| Some(v.get("address")?.as_str()?.to_owned()));
                let address = plain.or(json).unwrap_or_default();
                if let Some(path) = address.trim().strip_prefix("unix://") {
                    sockets.push(PathBuf::from(path));
                }
            }
        }
    }
    sockets
}

/// Where the cgroup hierarchies of this machine are mounted.
pub(crate) fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let is_cgroup = |line: &&str| {
        line.split_once(" - ")
            .is_some_and(|(_, rest)| rest.starts_with("cgroup ") || rest.starts_with("cgroup2 "))
    };
    mounts.lines().filter(is_cgroup).filter_map(mount_point).collect()
}

/// The folders of the cgroups of a container's process whose last name is a container id, which nothing
/// else on a machine is called.
fn container_cgroups(process: ProcId) -> Vec<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap_or_default();
    let paths: BTreeSet<&str> = text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).collect();
    let is_id = |path: &&str| {
        let last = path.rsplit('/').next().unwrap_or_default();
        last.len() == 64 && last.bytes().all(|b| b.is_ascii_hexdigit())
    };
    let ids: Vec<&str> = paths.into_iter().filter(is_id).collect();
    hierarchies()
        .iter()
        .flat_map(|root| ids.iter().map(|path| root.join(path.trim_start_matches('/'))))
        .filter(|dir| dir.is_dir())
        .collect()
}

/// Has systemd forget the slice that a cgroup is, and the units in it; they would stay after their cgroups.
fn stop_slice(cgroup: &str) -> Option<String> {
    let name = cgroup.trim_start_matches('/');
    let there = name.ends_with(".slice") && hierarchies().iter().any(|root| root.join(name).exists());
    let stopped =
        there.then(|| crate::cmd::run(std::process::Command::new("systemctl").args(["stop", name])))?;
    stopped.err().map(|error| format!("{error:#}"))
}

/// The processes in a cgroup and below it.
fn members(dir: &Path) -> Vec<ProcId> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<ProcId> = fs::read_to_string(dir.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| ProcId::of(line.parse().ok()?))
        .collect();
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        found.extend(members(&entry.path()));
    }
    found
}

/// Removes a cgroup and those below it, deepest first. A killed process leaves its cgroup a moment after
/// it is gone from /proc, so a busy one is tried again for a second.
pub(crate) fn remove_cgroup(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut problems = Vec::new();
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        problems.extend(remove_cgroup(&entry.path()));
    }
    for attempt in 0.. {
        match fs::remove_dir(dir) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && attempt < 100 => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            Err(error) => {
                problems.push(format!("remove cgroup {}: {error}", dir.display()));
                break;
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_spaces_are_unescaped() {
        let line = r"36 35 98:0 / /a\040b\134c rw,noatime - ext4 /dev/root rw";
        assert_eq!(mount_point(line), Some("/a b\\c".into()));
        assert_eq!(mount_point("36 35"), None);
    }

    #[test]
    fn a_shell_that_mentions_the_folder_is_not_taken_for_its_containerd() {
        let me = ProcId::current().unwrap();
        assert!(!belongs(me, &[PathBuf::from("/"), PathBuf::from("/proc")]));
    }
}
