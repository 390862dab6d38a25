//! What can go wrong with a cgroup, each naming the file or directory, the value and the kernel's reason.

use std::io;
use std::path::PathBuf;

/// An error of the `cgroup` room.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mount table could not be read.
    #[error("cannot read the mount table {path}: {cause}")]
    MountTable {
        /// The table's path.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Neither a cgroup v2 mount at the root nor a v1 hierarchy below it.
    #[error("no cgroup file system is mounted at or below {fs_root}")]
    NoHierarchy {
        /// `CgroupConfig::fs_root`
        fs_root: PathBuf,
    },
    /// A value was asked for whose controller is not there.
    #[error("cgroup controller {controller} is not available, needed for {file}={value}")]
    NoController {
        /// Such as `memory`.
        controller: &'static str,
        /// The file that would hold the value.
        file: String,
        /// The value that was to be set.
        value: String,
    },
    /// `cgroupDriver: systemd`.
    #[error("cgroupDriver: systemd is not supported yet, use cgroupfs")]
    SystemdDriver,
    /// `cgroupRoot` is no absolute, normal path.
    #[error("cgroupRoot: {value:?} must be an absolute path without empty, . or .. parts")]
    CgroupRoot {
        /// As configured.
        value: String,
    },
    /// A UID that cannot be part of a directory name.
    #[error("pod uid {uid:?} cannot name a cgroup")]
    Uid {
        /// As the source gave it.
        uid: String,
    },
    /// A directory could not be made.
    #[error("cannot create cgroup {path}: {cause}")]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file could not be read.
    #[error("cannot read cgroup file {path}: {cause}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file refused a value.
    #[error("cannot write {value:?} to cgroup file {path}: {cause}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Why.
        cause: io::Error,
    },
    /// A directory could not be removed, for another reason than processes in it.
    #[error("cannot remove cgroup {path}: {cause}")]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Processes were killed and are still there.
    #[error("cannot remove cgroup {path}: busy, holds processes {pids:?}")]
    Busy {
        /// The directory.
        path: PathBuf,
        /// What `cgroup.procs` of it and of its children list; empty when only dying ones hold it.
        pids: Vec<i32>,
    },
}
