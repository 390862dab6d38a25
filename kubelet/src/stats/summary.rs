//! The Summary API (`stats.k8s.io`-less `v1alpha1`): what `/stats/summary` shows and `evict` ranks by. Types only.
//!
//! Names, order and units of the JSON are upstream's. A field is `None`, and left out of the JSON, where the kernel or
//! the runtime does not tell; nothing unknown is shown as zero. `time` is when the numbers beside it were read.

use crate::api::PodRef;
use jiff::Timestamp;
use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};

/// The node and its pods.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The node.
    pub node: NodeStats,
    /// Pods with a sandbox, in no order.
    pub pods: Vec<PodStats>,
}

/// The node as a whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStats {
    /// The node's name.
    pub node_name: String,
    /// `pods`: everything below `<cgroupRoot>/kubepods`; `kubelet`: the agent, where it has a cgroup of its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub system_containers: Vec<ContainerStats>,
    /// When the machine was booted.
    #[serde(serialize_with = "seconds")]
    pub start_time: Timestamp,
    /// Of the root cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Of the root cgroup; `availableBytes` is the machine's memory less the working set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Of the root cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<Io>,
    /// The node's interfaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// The file system of `--root-dir`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fs: Option<FsStats>,
    /// What the runtime keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeStats>,
    /// Process ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rlimit: Option<RlimitStats>,
    /// Of the root cgroup; the limit is the machine's swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<Swap>,
}

/// Where the runtime keeps images and writable layers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeStats {
    /// The image store: capacity and what is free are the file system's, used is what the images take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_fs: Option<FsStats>,
    /// The same of writable layers; equal to `imageFs` unless the runtime splits them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_fs: Option<FsStats>,
}

/// Process ids of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RlimitStats {
    /// When this was read.
    #[serde(serialize_with = "seconds")]
    pub time: Timestamp,
    /// How many tasks there can be: the smaller of `kernel.pid_max` and `kernel.threads-max`.
    #[serde(rename = "maxpid", skip_serializing_if = "Option::is_none")]
    pub max_pid: Option<u64>,
    /// How many tasks there are (`/proc/loadavg`).
    #[serde(rename = "curproc", skip_serializing_if = "Option::is_none")]
    pub current: Option<u64>,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PodStats {
    /// Whose. Pods are told apart by its UID.
    #[serde(rename = "podRef", serialize_with = "pod_ref")]
    pub pod: PodRef,
    /// When its sandbox was made.
    #[serde(rename = "startTime", serialize_with = "seconds")]
    pub start_time: Timestamp,
    /// Its running containers.
    pub containers: Vec<ContainerStats>,
    /// Of the pod's cgroup, the sandbox included; without one the sum of its containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// As `cpu`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// As `cpu`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<Io>,
    /// What the pod's network namespace counted; the node's for a pod on its network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Volumes that can be measured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volume: Vec<VolumeStats>,
    /// Writable layers, logs, volumes on the node's disk and `/etc/hosts`; what is free is `--root-dir`'s file system.
    #[serde(rename = "ephemeral-storage", skip_serializing_if = "Option::is_none")]
    pub ephemeral_storage: Option<FsStats>,
    /// How many processes it runs.
    #[serde(rename = "process_stats", skip_serializing_if = "Option::is_none")]
    pub process_stats: Option<ProcessStats>,
    /// As `cpu`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<Swap>,
}

/// How many processes there are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ProcessStats {
    /// Processes, each counted once however many threads it has.
    #[serde(rename = "process_count", skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

/// One container, or a part of the node.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerStats {
    /// The container's name in its pod.
    pub name: String,
    /// When it was made.
    #[serde(serialize_with = "seconds")]
    pub start_time: Timestamp,
    /// Of its cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Of its cgroup; `availableBytes` is the limit less the working set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Of its cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<Io>,
    /// Its writable layer, as the runtime tells; what is free is the file system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<FsStats>,
    /// Its log files, rotated ones included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logs: Option<FsStats>,
    /// Of its cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<Swap>,
}

/// CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// When this was read.
    #[serde(serialize_with = "seconds")]
    pub time: Timestamp,
    /// Thousand millionths of a core in use on average since the reading before, at least a second earlier. `None` at the
    /// first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_nano_cores: Option<u64>,
    /// CPU time used, nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_core_nano_seconds: Option<u64>,
    /// Tasks that waited for a CPU (KEP-4205); on cgroup v2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// Memory, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// When this was read.
    #[serde(serialize_with = "seconds")]
    pub time: Timestamp,
    /// The limit less the working set; `None` without a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// All that is charged, caches included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_bytes: Option<u64>,
    /// Usage less inactive file cache: what cannot be taken back at once. Never below zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_set_bytes: Option<u64>,
    /// Anonymous memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rss_bytes: Option<u64>,
    /// Minor page faults since the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page_faults: Option<u64>,
    /// Major page faults since the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_page_faults: Option<u64>,
    /// Tasks that waited for memory; on cgroup v2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// Swap, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Swap {
    /// When this was read.
    #[serde(serialize_with = "seconds")]
    pub time: Timestamp,
    /// The limit less what is used; `None` without a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_available_bytes: Option<u64>,
    /// What is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_usage_bytes: Option<u64>,
}

/// Input and output.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Io {
    /// When this was read.
    #[serde(serialize_with = "seconds")]
    pub time: Timestamp,
    /// Tasks that waited for a disk; on cgroup v2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// Pressure stall information of one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Psi {
    /// All tasks waited at once.
    pub full: PsiData,
    /// Some task waited.
    pub some: PsiData,
}

/// One line of a pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PsiData {
    /// Microseconds.
    pub total: u64,
    /// Percent of the last ten seconds.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last five minutes.
    pub avg300: f64,
}

/// The interfaces of one network namespace, loopback and `veth…` left out as upstream does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Network {
    /// When this was read.
    #[serde(serialize_with = "seconds")]
    pub time: Timestamp,
    /// `eth0`, upstream's default interface, where there is one of that name.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub default: Option<Interface>,
    /// All of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
}

/// One interface's counters since it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name in its namespace.
    pub name: String,
    /// Received.
    pub rx_bytes: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Sent.
    pub tx_bytes: u64,
    /// Send errors.
    pub tx_errors: u64,
    /// Received; in the metrics alone.
    #[serde(skip)]
    pub rx_packets: u64,
    /// Dropped on receipt; in the metrics alone.
    #[serde(skip)]
    pub rx_dropped: u64,
    /// Sent; in the metrics alone.
    #[serde(skip)]
    pub tx_packets: u64,
    /// Dropped when sending; in the metrics alone.
    #[serde(skip)]
    pub tx_dropped: u64,
}

/// A file system, and what somebody uses of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FsStats {
    /// When this was read; of a sum, its newest part.
    #[serde(serialize_with = "seconds")]
    pub time: Timestamp,
    /// Bytes that are free to a user without privileges.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// Bytes of the whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
    /// Bytes in use: of the whole file system where it stands for one, otherwise by what is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// Free inodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes_free: Option<u64>,
    /// Inodes of the whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
    /// As `usedBytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes_used: Option<u64>,
}

/// One volume of a pod.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStats {
    /// The file system, and what the volume takes of it.
    #[serde(flatten)]
    pub fs: FsStats,
    /// Its name in the pod's spec.
    pub name: String,
    /// The claim that it comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pvc_ref: Option<PvcRef>,
    /// Whether it counts as the pod's ephemeral storage: `emptyDir` on disk and `configMap`. Not part of the API.
    #[serde(skip)]
    pub ephemeral: bool,
}

/// A claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PvcRef {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

/// The API's times are whole seconds.
fn seconds<S: Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    let whole = Timestamp::from_second(time.as_second()).unwrap_or_default();
    to.collect_str(&whole)
}

fn pod_ref<S: Serializer>(pod: &PodRef, to: S) -> Result<S::Ok, S::Error> {
    let mut out = to.serialize_struct("PodReference", 3)?;
    out.serialize_field("name", &*pod.name)?;
    out.serialize_field("namespace", &*pod.namespace)?;
    out.serialize_field("uid", pod.uid.as_str())?;
    out.end()
}
