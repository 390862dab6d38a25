//! What eviction must know of the node and its pods, as the room wants it: a seam between the task and whoever measures.
//!
//! What cannot be measured is left out. Nobody may take what is missing for zero: a signal that is unknown is not low.

use super::signal::Signal;
use super::threshold::Layout;
use crate::api::PodUid;
use futures::future::BoxFuture;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// How much there is of what a signal looks at, and how much of that is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// Bytes, inodes or processes that are still to be had.
    pub available: i64,
    /// All of them.
    pub capacity: i64,
}

/// Every signal that could be measured.
pub type Observations = BTreeMap<Signal, Left>;

/// Bytes and inodes used on a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Bytes.
    pub bytes: u64,
    /// Files, directories and all else that has an inode.
    pub inodes: u64,
}

/// What one container uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerUse {
    /// Its name in the pod.
    pub name: String,
    /// Working set in bytes.
    pub memory: Option<u64>,
    /// What it wrote to its own layer.
    pub rootfs: Option<DiskUse>,
    /// Its logs.
    pub logs: Option<DiskUse>,
}

/// What one pod uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodUse {
    /// Working set in bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u64>,
    /// Bytes on local storage that count against its limits: layers, logs and local volumes.
    pub ephemeral: Option<u64>,
    /// Its containers.
    pub containers: Vec<ContainerUse>,
    /// Its volumes by name.
    pub volumes: BTreeMap<String, DiskUse>,
}

/// What of pods is wanted; the rest may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Their memory: quick.
    Memory,
    /// Their processes.
    Processes,
    /// What they have on disks.
    Disks,
}

/// Measures. Everything is as of when it is asked for.
pub trait Measure: fmt::Debug + Send + Sync {
    /// The signals of memory alone, the node's and the pods': quick enough to be asked many times a second.
    fn memory(&self) -> BoxFuture<'_, Observations>;
    /// Every signal.
    fn node(&self) -> BoxFuture<'_, Observations>;
    /// Every pod that could be measured.
    fn pods(&self, detail: Detail) -> BoxFuture<'_, HashMap<PodUid, PodUse>>;
    /// How file systems are laid out; `None` as long as the runtime has not told.
    fn layout(&self) -> BoxFuture<'_, Option<Layout>>;
}
