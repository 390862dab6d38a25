//! Errors of the `volume` room: what an event or a waiting container will say, and what blocks a teardown.

use crate::objects::Known;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A file system call that failed, with its object.
#[derive(Debug, thiserror::Error)]
#[error("{call} {}: {cause}", path.display())]
pub struct IoError {
    /// The call, as in `mkdir`.
    pub call: &'static str,
    /// What it was about.
    pub path: PathBuf,
    /// Why it failed.
    pub cause: io::Error,
}

impl IoError {
    /// For `map_err`.
    pub fn at<E: Into<io::Error>>(call: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |e| Self { call, path: path.to_owned(), cause: e.into() }
    }
}

/// A volume that could not be set up. The pod waits and the set-up is tried again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct VolumeError {
    /// The volume's name; empty when it is about the pod's own directories.
    pub volume: String,
    /// The event's reason: `FailedMount`, or `FailedToMakePodDataDirectories`.
    pub reason: &'static str,
    /// The event's message, as upstream words it.
    pub message: String,
    /// The pod's other volumes that failed in the same pass; each is an event of its own.
    pub others: Vec<VolumeError>,
    /// What was found of the objects it is made from, where they are what is wrong: once one of them changes it is worth
    /// another try.
    pub waits_for: Vec<Known>,
}

impl VolumeError {
    /// Reason of the event for a volume that could not be set up.
    pub const FAILED_MOUNT: &'static str = "FailedMount";

    /// `MountVolume.SetUp failed for volume "v" : why`
    pub fn setup(volume: &str, why: impl fmt::Display) -> Self {
        Self {
            volume: volume.to_owned(),
            reason: Self::FAILED_MOUNT,
            message: format!("MountVolume.SetUp failed for volume {volume:?} : {why}"),
            others: Vec::new(),
            waits_for: Vec::new(),
        }
    }

    /// All failures of a pass as one, the first in front.
    pub fn of(failures: Vec<VolumeError>) -> Option<Self> {
        let mut failures = failures.into_iter();
        let first = failures.next()?;
        Some(Self { others: failures.collect(), ..first })
    }

    /// This failure and the others.
    pub fn all(&self) -> impl Iterator<Item = &VolumeError> {
        std::iter::once(self).chain(&self.others)
    }
}

/// A container whose mounts cannot be made: it waits with reason `CreateContainerConfigError` and this message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct MountError {
    /// Upstream's message.
    pub message: String,
}

impl MountError {
    /// Of any text.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// Why a pod's directory is still there.
#[derive(Debug, thiserror::Error)]
pub enum TeardownError {
    /// Something is mounted there that this room did not mount. Nothing was touched.
    #[error("{} is a mount of {fs_type} that the agent did not make: not removing {}", point.display(), pod_dir.display())]
    ForeignMount {
        /// Where.
        point: PathBuf,
        /// Of which file system.
        fs_type: String,
        /// The directory that was to be removed.
        pod_dir: PathBuf,
    },
    /// A volume is in use, or could not be unmounted for another reason.
    #[error("cannot unmount {}: {cause}", point.display())]
    Unmount {
        /// Where it is mounted.
        point: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Some of the tree could not be removed; the rest is gone.
    #[error("cannot remove {}: {first}{}", pod_dir.display(), more(*further))]
    Tree {
        /// The directory that was to be removed.
        pod_dir: PathBuf,
        /// The first thing that would not go.
        first: IoError,
        /// How many more there were.
        further: usize,
    },
    /// The mount table could not be read, or the directory not be opened.
    #[error(transparent)]
    Io(#[from] IoError),
}

fn more(further: usize) -> String {
    if further == 0 { String::new() } else { format!(" (and {further} more)") }
}
