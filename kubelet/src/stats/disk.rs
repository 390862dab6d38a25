//! What is used of disks: by the node, the image store, and each pod's layers, logs and volumes. Types only.

use super::summary::{FsStats, VolumeStats};
use crate::api::PodUid;
use std::collections::HashMap;

/// One look at all of it. What was not measured (yet) is not there.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// The file system of `--root-dir`.
    pub node: Option<FsStats>,
    /// The image store.
    pub image: Option<FsStats>,
    /// Writable layers.
    pub container: Option<FsStats>,
    /// By pod.
    pub pods: HashMap<PodUid, PodDisk>,
}

/// One pod's.
#[derive(Clone, Debug, Default)]
pub struct PodDisk {
    /// Writable layers by container id.
    pub rootfs: HashMap<String, FsStats>,
    /// Log files by container name.
    pub logs: HashMap<String, FsStats>,
    /// Volumes that can be measured.
    pub volumes: Vec<VolumeStats>,
    /// What counts as ephemeral storage and is shown nowhere else: logs of the pod itself and its `/etc/hosts`.
    pub other: Vec<FsStats>,
}
