//! Numbers of the machine that no cgroup holds: file systems, process ids, boot time, memory, identity.
//!
//! Blocks; a file system over a network may block for long, so whoever asks does so on a blocking thread.

use super::files::{Reader, number, words};
use super::summary::{FsStats, RlimitStats};
use jiff::Timestamp;
use std::path::Path;

/// The file system that `path` is on: what it holds, what is free, what is used of it by whoever.
///
/// # Errors
/// `path` is not there, or its file system does not answer.
pub fn file_system(path: &Path) -> std::io::Result<FsStats> {
    let fs = rustix::fs::statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(fs.f_frsize);
    // A file system without a fixed number of inodes (btrfs) tells none at all.
    let inodes = (fs.f_files > 0).then_some((fs.f_files, fs.f_ffree));
    Ok(FsStats {
        time: Timestamp::now(),
        available_bytes: Some(bytes(fs.f_bavail)),
        capacity_bytes: Some(bytes(fs.f_blocks)),
        used_bytes: Some(bytes(fs.f_blocks.saturating_sub(fs.f_bfree))),
        inodes_free: inodes.map(|(_, free)| free),
        inodes: inodes.map(|(all, _)| all),
        inodes_used: inodes.map(|(all, free)| all.saturating_sub(free)),
    })
}

/// How many tasks there are and can be. Two or three small files of `/proc`.
pub fn processes(reader: &mut Reader) -> RlimitStats {
    let kernel = Path::new("/proc/sys/kernel");
    let mut limit = |file| reader.read_path(&kernel.join(file)).and_then(number);
    let max_pid = [limit("pid_max"), limit("threads-max")].into_iter().flatten().min();
    // `0.20 0.18 0.12 1/80 11206`: the number behind the slash is of all tasks.
    let load = reader.read_path(Path::new("/proc/loadavg")).unwrap_or_default();
    let all = words(load).nth(3).and_then(|w| number(w.split(|b| *b == b'/').nth(1)?));
    RlimitStats { time: Timestamp::now(), max_pid, current: all }
}

/// `MemTotal`, bytes.
pub fn memory_capacity(reader: &mut Reader) -> Option<u64> {
    let text = reader.read_path(Path::new("/proc/meminfo"))?;
    let kib = super::files::pairs(text).find_map(|(key, n)| (key == b"MemTotal:").then_some(n))?;
    Some(kib.saturating_mul(1024))
}

/// When the machine was booted.
pub fn boot_time(reader: &mut Reader) -> Option<Timestamp> {
    let text = reader.read_path(Path::new("/proc/stat"))?;
    let seconds = super::files::pairs(text).find_map(|(key, n)| (key == b"btime").then_some(n))?;
    Timestamp::from_second(i64::try_from(seconds).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_memory_tasks_and_a_past() {
        let mut reader = Reader::default();
        let tasks = processes(&mut reader);
        assert!(tasks.current.unwrap() > 1 && tasks.current < tasks.max_pid, "{tasks:?}");
        assert!(memory_capacity(&mut reader).unwrap() > 1 << 20);
        let boot = boot_time(&mut reader).unwrap();
        assert!(boot < Timestamp::now() && boot.as_second() > 0, "{boot}");
    }

    #[test]
    fn a_file_system_adds_up_and_a_missing_path_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let fs = file_system(dir.path()).unwrap();
        assert!(fs.capacity_bytes >= fs.used_bytes && fs.capacity_bytes >= fs.available_bytes, "{fs:?}");
        assert!(fs.capacity_bytes > Some(0), "{fs:?}");
        assert_eq!(fs.inodes.map(|n| n - fs.inodes_free.unwrap()), fs.inodes_used);
        assert!(file_system(&dir.path().join("none")).is_err());
    }
}
