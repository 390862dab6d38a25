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
    /// systemd could not be asked, or refused.
    #[error("cannot {what} systemd unit {unit}: {cause}")]
    Systemd {
        /// Such as `start`.
        what: &'static str,
        /// The unit, such as `kubepods.slice`.
        unit: String,
        /// Why, in systemd's or the connection's words.
        cause: String,
    },
    /// The runtime makes containers' cgroups with another driver than the agent makes pods'.
    #[error(
        "the runtime's cgroup driver is {runtime}, the agent's is {agent}: pods would be in two hierarchies"
    )]
    RuntimeDriver {
        /// What the runtime announced.
        runtime: &'static str,
        /// What the agent started with.
        agent: &'static str,
    },
    /// `cgroupRoot` is no absolute, normal path.
    #[error("cgroupRoot: {value:?} must be an absolute path without empty, . or .. parts")]
    CgroupRoot {
        /// As configured.
        value: String,
    },
    /// `cgroupRoot` has a part that cannot be in the name of a systemd slice.
    #[error(
        "cgroupRoot: {value:?} cannot be a systemd slice: parts may hold letters, digits, '-', '_', '.' and ':', and \
         the names of slices made of them at most 255 characters"
    )]
    SliceRoot {
        /// As configured.
        value: String,
    },
    /// A reservation is to be enforced on something that is no cgroup's name.
    #[error("{field}: {cgroup:?} can name no cgroup")]
    ReservedName {
        /// Such as `kubeReservedCgroup`.
        field: &'static str,
        /// As configured.
        cgroup: String,
    },
    /// A reservation is to be enforced on a cgroup that is not there.
    #[error("{field}: {cgroup:?}: there is no cgroup {dir}")]
    NoReserved {
        /// Such as `kubeReservedCgroup`.
        field: &'static str,
        /// As configured.
        cgroup: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// A reservation is below what is used already.
    #[error("{field}: {cgroup:?} uses {used} bytes of memory, more than the {limit} reserved for it")]
    ReservedInUse {
        /// Such as `kubeReservedCgroup`.
        field: &'static str,
        /// As configured.
        cgroup: String,
        /// Bytes that cannot be taken back.
        used: i64,
        /// Bytes.
        limit: i64,
    },
    /// A UID that cannot be part of a directory name.
    #[error("pod uid {uid:?} cannot name a cgroup")]
    Uid {
        /// As the source gave it.
        uid: String,
    },
    /// The kernel's list of CPUs cannot be read.
    #[error("{list:?} is no list of CPUs")]
    CpuList {
        /// As read.
        list: String,
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
    /// A mistake of this room's own.
    #[error("work on cgroups panicked: {text}")]
    Panicked {
        /// In the words of the panic.
        text: String,
    },
}
