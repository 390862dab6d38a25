//! Where a node keeps its memory, its disk and its orders while it runs.
//!
//! One folder for each node, in memory where there is enough. Its name is the identity of the process that it belongs to, so
//! that the next node removes what a killed process left.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

use crate::proc::ProcId;

/// What every folder's name begins with; `PID-STARTTIME-RANDOM` follows.
const PREFIX: &str = "stevedore-node-";
/// A file system in memory: a node's own memory is a file, and its disk is written at every fsync.
const IN_MEMORY: &str = "/dev/shm";
/// What the writes of a node to its disk may come to, in MiB.
const DISK_MIB: u64 = 2048;

/// A fresh folder for a node with that much memory, after removing those whose processes are gone.
pub(super) fn create(memory_mib: u32) -> Result<TempDir> {
    let on_disk = super::cache()?;
    for parent in [Path::new(IN_MEMORY), &on_disk] {
        sweep(parent);
    }
    let enough = free_mib(IN_MEMORY).is_some_and(|free| free > u64::from(memory_mib) + DISK_MIB);
    let parent = if enough { PathBuf::from(IN_MEMORY) } else { on_disk };
    let owner = ProcId::current()?;
    tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{}-{}-", owner.pid, owner.start))
        .tempdir_in(&parent)
        .with_context(|| format!("create a folder in {}", parent.display()))
}

fn free_mib(path: &str) -> Option<u64> {
    let stat = statvfs(path).ok()?;
    Some((stat.blocks_available() * stat.fragment_size()) >> 20)
}

/// Removes the folders in `parent` that belong to no living process. What cannot be removed is for the next time.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if owner(&name.to_string_lossy()).is_some_and(|owner| !owner.alive()) {
            let _next_time = fs::remove_dir_all(entry.path());
        }
    }
}

/// Whose folder that is, if it is a node's.
fn owner(name: &str) -> Option<ProcId> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    Some(ProcId { pid: parts.next()?.parse().ok()?, start: parts.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_dead_processes_are_swept() {
        let parent = tempfile::tempdir().unwrap();
        let me = ProcId::current().unwrap();
        let [living, dead, other] = [
            format!("{PREFIX}{}-{}-a", me.pid, me.start),
            format!("{PREFIX}{}-{}-b", me.pid, me.start + 1),
            "stevedore-node-mine".to_owned(),
        ];
        for name in [&living, &dead, &other] {
            fs::create_dir(parent.path().join(name)).unwrap();
        }
        fs::write(parent.path().join(&dead).join("disk"), "x").unwrap();
        sweep(parent.path());
        assert!(parent.path().join(&living).exists() && parent.path().join(&other).exists());
        assert!(!parent.path().join(&dead).exists());
    }
}
