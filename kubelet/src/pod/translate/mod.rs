//! From a pod and facts about the node to CRI messages: what the stock kubelet puts into `RunPodSandbox` and
//! `CreateContainer`, into `/etc/hosts` and into the pod's cgroup.
//!
//! The pod actor calls it with a pod that the source room has defaulted and validated; the cgroup room and admission
//! use its sums. Everything here is a pure function: it must never read a file, a clock or the network. What has to be
//! read (the host's `resolv.conf` and `/etc/hosts`, ConfigMaps, env files) is handed in as text or behind
//! [`EnvSources`].
//!
//! | question | module |
//! | --- | --- |
//! | hostname, FQDN | [`hostname`] |
//! | resolv.conf, the four DNS policies, their limits | [`dns`] |
//! | the managed `/etc/hosts` | [`hosts`] |
//! | `$(VAR)` | [`expand`] |
//! | environment | [`env`], [`fields`], [`envfile`] |
//! | requests and limits of the whole pod, QoS class | [`resources`] |
//! | shares, quotas, OOM scores, the pod's cgroup | [`limits`] |
//! | protected, throttled and swapped memory | [`memory`] |
//! | security contexts | [`security`] |
//! | annotations and the hash on containers | [`annotations`], [`hash`] |
//! | the messages | [`sandbox`], [`container`] |

pub mod annotations;
pub mod container;
pub mod dns;
pub mod env;
pub mod envfile;
pub mod expand;
pub mod fields;
mod gojson;
pub mod hash;
pub mod hostname;
pub mod hosts;
pub mod limits;
pub mod memory;
pub mod resources;
pub mod sandbox;
pub mod security;
#[cfg(test)]
mod testing;

pub use crate::api::as_container;
pub use crate::image::ImageUser;
pub use container::{ContainerConfigError, ContainerInput, container_config};
pub use dns::{PodDns, ResolvConf, pod_dns};
pub use env::{EnvSources, EnvVar, NoSources, SourceError, environment};
pub use hash::container_hash;
pub use hostname::{PodHostname, pod_hostname};
pub use hosts::etc_hosts;
pub use limits::{cpu_quota, cpu_shares, hugepage_name, oom_score_adj, pod_cgroup_resources};
pub use resources::{PodResources, ResourceList, pod_resources, qos_class};
pub use sandbox::{SandboxConfig, TranslateError, sandbox_config};

use std::net::IpAddr;
use std::path::PathBuf;

/// What the translation must know of the node, its configuration and its runtime. `assemble` fills it once.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    /// The Node object's name.
    pub node_name: String,
    /// The machine's hostname.
    pub hostname: String,
    /// The node's addresses, the primary one first; at most one of each family.
    pub node_ips: Vec<IpAddr>,
    /// `clusterDomain`; empty: pods get no cluster search paths.
    pub cluster_domain: String,
    /// `clusterDNS`; empty: `ClusterFirst` falls back to `Default`.
    pub cluster_dns: Vec<IpAddr>,
    /// `resolvConf`, read for each sandbox; `None` when the setting is empty, which gives pods no host DNS.
    pub resolv_conf: Option<PathBuf>,
    /// `--root-dir`, such as `/var/lib/kubelet`.
    pub root_dir: PathBuf,
    /// `podLogsDir`, such as `/var/log/pods`.
    pub pod_logs_dir: PathBuf,
    /// `cpuCFSQuota`: whether CPU limits become quotas.
    pub cpu_cfs_quota: bool,
    /// `cpuCFSQuotaPeriod` in microseconds.
    pub cfs_period_us: i64,
    /// `podPidsLimit`; zero or less: no limit.
    pub pod_pids_limit: i64,
    /// `seccompDefault`: containers that ask for no profile get the runtime's.
    pub seccomp_default: bool,
    /// `singleProcessOOMKill`: on cgroup v2 the kernel kills one process instead of the whole container.
    pub single_process_oom_kill: bool,
    /// Feature gate `ContainerStopSignals`: `lifecycle.stopSignal` reaches the runtime.
    pub container_stop_signals: bool,
    /// The Node's `status.allocatable`, what limits default to in `resourceFieldRef`.
    pub allocatable: Allocatable,
    /// The machine's memory in bytes, what OOM scores are relative to.
    pub capacity_memory: i64,
    /// Sizes in bytes of the huge pages the kernel offers, in any order.
    pub hugepage_sizes: Vec<i64>,
    /// The node runs on cgroup v2.
    pub cgroup_v2: bool,
    /// The kernel accounts swap per cgroup, so that containers can be denied it.
    pub swap_accounting: bool,
    /// Swap for containers.
    pub swap: memory::Swap,
    /// Protected and throttled memory.
    pub memory_qos: Option<memory::MemoryQos>,
    /// The kernel enforces SELinux or tells of it: what the agent manages is labelled for its containers.
    pub selinux: bool,
    /// The machine's `/sys/devices/system/cpu/cpu*/thermal_throttle` directories, masked like the other default paths.
    pub thermal_throttle_paths: Vec<String>,
    /// What the runtime announced.
    pub runtime: RuntimeFeatures,
}

/// Allocatable resources of the node, as far as pods can see them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocatable {
    /// Thousandths of a CPU.
    pub cpu_milli: i64,
    /// Bytes of memory.
    pub memory_bytes: i64,
    /// Bytes of local ephemeral storage.
    pub ephemeral_bytes: i64,
}

/// Features of the runtime (and of the runtime handler in question) that decide what may be asked of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuntimeFeatures {
    /// `StatusResponse.features.supplemental_groups_policy`
    pub supplemental_groups_policy: bool,
    /// The handler's `features.user_namespaces`
    pub user_namespaces: bool,
}

/// Something to tell the pod's owner in an event, though the pod runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Upstream's event reason.
    pub reason: &'static str,
    /// Upstream's message.
    pub message: String,
}
