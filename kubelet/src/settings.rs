//! Flags and configuration, read against the machine, become the [`Settings`] that `assemble` starts from.
//!
//! Called once by `main`. It reads the machine (addresses, capacity, resolv.conf) and decides nothing that outlives it.

use crate::assemble::Settings;
use crate::cgroup::{CgroupConfig, Driver};
use crate::clock::Clock;
use crate::config::duration::GoDuration;
use crate::config::{KubeletConfiguration, Loaded};
use crate::evict::{self, EvictConfig};
use crate::image::credential::{ProvidersConfig, SearchPlaces, provider};
use crate::image::{
    Allowlist, CredentialConfig, GcConfig, ImageConfig, PullConfig, RecordConfig, VerificationPolicy,
};
use crate::log::{self, RotationConfig};
use crate::node::{self, Capacity};
use crate::pleg;
use crate::pod::backoff;
use crate::pod::dead::DeadConfig;
use crate::pod::translate::memory::Swap;
use crate::pod::translate::{self, NodeFacts, ResolvConf};
use crate::quantity;
use crate::trace::Tracer;
use crate::userns;
use crate::world::admit;
use crate::world::affinity::NodeLabels;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

mod reserved;

/// Why no settings can be made: the machine does not fit what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The node's name.
    #[error(transparent)]
    Name(#[from] node::NameError),
    /// The node's addresses.
    #[error(transparent)]
    Address(#[from] node::AddressError),
    /// What the machine has.
    #[error(transparent)]
    Capacity(#[from] node::CapacityError),
    /// `resolvConf` cannot be read.
    #[error("resolvConf: cannot read {path}: {source}")]
    ResolvConf {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `resolvConf` is not in order.
    #[error("resolvConf: {path}: {source}")]
    ResolvConfSyntax {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: translate::dns::ResolvConfError,
    },
    /// The root directory.
    #[error("--root-dir: cannot make {path}: {source}")]
    RootDir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Exec credential providers.
    #[error(transparent)]
    CredentialProvider(#[from] provider::ProviderConfigError),
    /// Eviction thresholds.
    #[error(transparent)]
    Threshold(#[from] evict::ThresholdError),
    /// User namespaces.
    #[error(transparent)]
    UserIds(#[from] userns::PoolError),
    /// Reservations leave nothing.
    #[error("{field}: {reserved} reserved of {capacity}: nothing would be left for pods")]
    Reserved {
        /// What is reserved too much of.
        field: &'static str,
        /// How much.
        reserved: i64,
        /// Of how much.
        capacity: i64,
    },
    /// Nothing is reserved, and that is to be enforced.
    #[error("enforceNodeAllocatable: {option:?} needs {field}, which reserves nothing")]
    NothingReserved {
        /// Such as `kube-reserved`.
        option: String,
        /// Such as `kubeReserved`.
        field: &'static str,
    },
}

impl Settings {
    /// Reads the machine as far as `loaded` needs it.
    ///
    /// # Errors
    /// The machine does not fit; the message names field and value.
    pub fn from_loaded(loaded: &Loaded) -> Result<Self, SettingsError> {
        let (flags, config) = (&loaded.flags, &loaded.config);
        let root_dir = PathBuf::from(&flags.root_dir);
        std::fs::create_dir_all(&root_dir)
            .map_err(|source| SettingsError::RootDir { path: root_dir.clone(), source })?;
        let hostname = node::hostname();
        let capacity = Capacity::read(Path::new("/proc"), Path::new("/sys"), &root_dir)?;
        let allocatable = reserved::allocatable(loaded, &capacity)?;
        let cgroup_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let override_name = Some(flags.hostname_override.as_str()).filter(|n| !n.is_empty());
        let facts = NodeFacts {
            node_name: node::node_name(override_name, &hostname)?,
            hostname,
            node_ips: node::node_addresses(&flags.node_ip)?,
            cluster_domain: config.cluster_domain.clone(),
            cluster_dns: config.cluster_dns.iter().filter_map(|ip| ip.parse().ok()).collect(),
            resolv_conf: resolv_conf(&config.resolv_conf)?,
            root_dir: root_dir.clone(),
            pod_logs_dir: PathBuf::from(&config.pod_logs_dir),
            cpu_cfs_quota: config.cpu_cfs_quota,
            cfs_period_us: config.cpu_cfs_quota_period.as_nanos() / 1000,
            pod_pids_limit: config.pod_pids_limit,
            seccomp_default: config.seccomp_default,
            single_process_oom_kill: config.single_process_oom_kill.unwrap_or(false),
            container_stop_signals: loaded.gates.enabled("ContainerStopSignals"),
            allocatable,
            capacity_memory: capacity.memory,
            hugepage_sizes: capacity.huge_pages.iter().map(|h| h.size).collect(),
            cgroup_v2,
            swap_accounting: swap_accounting(Path::new("/sys/fs/cgroup"), Path::new("/proc/swaps")),
            swap: match config.memory_swap.swap_behavior.as_str() {
                "LimitedSwap" => Swap::Limited { capacity: capacity.swap },
                _ => Swap::None,
            },
            memory_qos: reserved::memory_qos(loaded, &capacity).filter(|_| cgroup_v2),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            thermal_throttle_paths: thermal_throttle_paths(),
            runtime: Default::default(),
        };
        let pods = max_pods(config.max_pods, config.pods_per_core, capacity.cpu_milli);
        let cap = config.crash_loop_back_off.max_container_restart_period;
        Ok(Self {
            cert_dir: PathBuf::from(&flags.cert_dir),
            log_links_dir: PathBuf::from(log::CONTAINER_LOGS_DIR),
            host_hosts_file: PathBuf::from("/etc/hosts"),
            mount_table: PathBuf::from("/proc/self/mountinfo"),
            node: admit::Node {
                cpu_milli: allocatable.cpu_milli,
                memory: allocatable.memory_bytes,
                ephemeral_storage: allocatable.ephemeral_bytes,
                pods,
                unsafe_sysctls: config.allowed_unsafe_sysctls.clone(),
                apparmor: apparmor(),
                labels: NodeLabels::own(&facts.node_name, &facts.hostname),
            },
            cgroup: CgroupConfig {
                driver: loaded.cgroup_driver_given.then_some(match config.cgroup_driver.as_str() {
                    "systemd" => Driver::Systemd,
                    _ => Driver::Cgroupfs,
                }),
                reserved: reserved::enforced(loaded, cgroup_v2)?,
                ..CgroupConfig::host(&config.cgroup_root, config.cgroups_per_qos)
            },
            node_cgroup: reserved::node_cgroup(loaded, &capacity, &allocatable, cgroup_v2),
            backoff_cap: cap.map_or(backoff::DEFAULT_CAP, |c| c.to_std()),
            dead: DeadConfig {
                on_node: usize::try_from(flags.maximum_dead_containers).ok(),
                per_container: usize::try_from(flags.maximum_dead_containers_per_container).ok(),
                min_age: flags.minimum_container_ttl_duration.to_std(),
            },
            clock: Clock::System,
            user_ids: user_ids(&loaded.config, pods)?,
            images: images(loaded, &root_dir)?,
            evict: eviction(config)?,
            measure: None,
            kernel_log: Some(PathBuf::from(evict::oom::KMSG)),
            prober: None,
            // `process` starts one where it is asked for.
            tracer: Tracer::default(),
            // Upstream's switch: less than nothing is never.
            volume_stats_period: (config.volume_stats_agg_period.as_nanos() >= 0)
                .then(|| config.volume_stats_agg_period.to_std()),
            log_rotation: log_rotation(config),
            pleg: pleg::Config::default(),
            manifests: (!config.static_pod_path.is_empty())
                .then(|| (PathBuf::from(&config.static_pod_path), config.file_check_frequency.to_std())),
            pods: (!flags.standalone_pods.is_empty())
                .then(|| (PathBuf::from(&flags.standalone_pods), config.file_check_frequency.to_std())),
            objects: (!flags.standalone_objects.is_empty())
                .then(|| (PathBuf::from(&flags.standalone_objects), config.file_check_frequency.to_std())),
            other_sources: HashSet::new(),
            root_dir,
            facts,
        })
    }
}

/// `eviction*`, as checked when the configuration was read.
fn eviction(config: &KubeletConfiguration) -> Result<EvictConfig, evict::ThresholdError> {
    let grace = config.eviction_soft_grace_period.iter();
    let grace = grace.filter_map(|(k, text)| Some((k.clone(), text.parse::<GoDuration>().ok()?.to_std())));
    let thresholds = evict::parse(&evict::Texts {
        hard: &config.eviction_hard,
        soft: &config.eviction_soft,
        grace: &grace.collect(),
        min_reclaim: &config.eviction_minimum_reclaim,
        pods_enforced: config.cgroups_per_qos && config.enforce_node_allocatable.iter().any(|e| e == "pods"),
    })?;
    Ok(EvictConfig {
        thresholds,
        transition: config.eviction_pressure_transition_period.to_std(),
        max_grace: crate::api::grace(config.eviction_max_pod_grace_period.into()),
        local_limits: config.local_storage_capacity_isolation,
        ..EvictConfig::default()
    })
}

fn images(loaded: &Loaded, root_dir: &Path) -> Result<ImageConfig, SettingsError> {
    let (flags, config) = (&loaded.flags, &loaded.config);
    let home = std::env::var_os("HOME").filter(|h| !h.is_empty()).map(PathBuf::from);
    let plugins = (&flags.image_credential_provider_config, &flags.image_credential_provider_bin_dir);
    let providers = match plugins {
        (file, dir) if file.is_empty() && dir.is_empty() => ProvidersConfig::default(),
        (file, dir) => ProvidersConfig::read(Path::new(file), Path::new(dir))?,
    };
    Ok(ImageConfig {
        pulls: PullConfig {
            serialize: config.serialize_image_pulls,
            max_parallel: config.max_parallel_image_pulls.and_then(|n| usize::try_from(n).ok()),
            registry_qps: config.registry_pull_qps.unsigned_abs(),
            registry_burst: config.registry_burst.unsigned_abs(),
        },
        credentials: CredentialConfig {
            places: SearchPlaces::of_node(root_dir, std::env::current_dir().ok(), home),
            providers,
        },
        gc: Some(GcConfig {
            high_percent: percent(config.image_gc_high_threshold_percent),
            low_percent: percent(config.image_gc_low_threshold_percent),
            min_age: config.image_minimum_gc_age.to_std(),
            max_age: config.image_maximum_gc_age.to_std(),
            ..GcConfig::default()
        }),
        records: loaded.gates.enabled("KubeletEnsureSecretPulledImages").then(|| RecordConfig {
            dir: root_dir.join("image_manager"),
            policy: verification(config),
            clock: Clock::System,
        }),
    })
}

/// Which policies there are was checked when the configuration was read, and so was the list.
fn verification(config: &KubeletConfiguration) -> VerificationPolicy {
    match config.image_pull_credentials_verification_policy.as_str() {
        "NeverVerify" => VerificationPolicy::NeverVerify,
        "NeverVerifyPreloadedImages" => VerificationPolicy::NeverVerifyPreloadedImages,
        "NeverVerifyAllowlistedImages" => VerificationPolicy::NeverVerifyAllowlistedImages(
            Allowlist::parse(&config.preloaded_images_verification_allowlist).unwrap_or_default(),
        ),
        // The strictest, should there ever be another.
        _ => VerificationPolicy::AlwaysVerify,
    }
}

/// `containerLog*`, as checked when the configuration was read.
fn log_rotation(config: &KubeletConfiguration) -> RotationConfig {
    let count = |n: i32| usize::try_from(n).unwrap_or(0);
    let size = quantity::parse(&config.container_log_max_size).map_or(0, quantity::Nano::value);
    RotationConfig {
        // Upstream takes a negative size for "never".
        max_size: u64::try_from(size).ok(),
        max_files: count(config.container_log_max_files),
        workers: count(config.container_log_max_workers),
        interval: config.container_log_monitor_interval.to_std(),
    }
}

/// Values out of range were refused when the configuration was read.
fn percent(value: i32) -> u8 {
    u8::try_from(value).unwrap_or(100).min(100)
}

/// Where ids for user namespaces come from.
fn user_ids(config: &KubeletConfiguration, pods: i64) -> Result<userns::Pool, userns::PoolError> {
    let asked = config.user_namespaces.as_ref().and_then(|u| u.ids_per_pod);
    let per_pod = asked.and_then(|n| u32::try_from(n).ok()).unwrap_or(userns::IDS_PER_POD);
    userns::Pool::read(per_pod, pods, Path::new("/etc/subuid"), Path::new("/etc/subgid"))
}

fn max_pods(max: i32, per_core: i32, cpu_milli: i64) -> i64 {
    let max = i64::from(max);
    if per_core > 0 { max.min(i64::from(per_core) * (cpu_milli / 1000)) } else { max }
}

/// What is wrong with the file from the start is told at the start; it is read again for each pod.
fn resolv_conf(path: &str) -> Result<Option<PathBuf>, SettingsError> {
    if path.is_empty() {
        return Ok(None);
    }
    let path = PathBuf::from(path);
    let text =
        std::fs::read(&path).map_err(|source| SettingsError::ResolvConf { path: path.clone(), source })?;
    match ResolvConf::parse(&String::from_utf8_lossy(&text)) {
        Ok(_) => Ok(Some(path)),
        Err(source) => Err(SettingsError::ResolvConfSyntax { path, source }),
    }
}

fn apparmor() -> bool {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    enabled.is_ok_and(|text| text.starts_with('Y'))
}

/// The files of swap are there only where the kernel accounts for it; on v2 not in the root. Where there is no other
/// cgroup to tell by, a kernel that has `swaps` does, as all that are not told otherwise.
fn swap_accounting(fs_root: &Path, swaps: &Path) -> bool {
    if !fs_root.join("cgroup.controllers").exists() {
        return fs_root.join("memory/memory.memsw.limit_in_bytes").exists();
    }
    let children = std::fs::read_dir(fs_root).into_iter().flatten().flatten().map(|child| child.path());
    let limited: Vec<PathBuf> = children.filter(|dir| dir.join("memory.max").exists()).collect();
    match limited.is_empty() {
        true => swaps.exists(),
        false => limited.iter().any(|dir| dir.join("memory.swap.max").exists()),
    }
}

fn thermal_throttle_paths() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/devices/system/cpu") else { return Vec::new() };
    let mut paths: Vec<String> = entries
        .filter_map(|e| {
            let path = e.ok()?.path().join("thermal_throttle");
            path.exists().then(|| path.to_string_lossy().into_owned())
        })
        .collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_accounted_for_where_some_cgroup_can_limit_it() {
        let dir = tempfile::tempdir().unwrap();
        for file in [
            "v1/memory/memory.memsw.limit_in_bytes",
            "v1-none/memory/memory.limit_in_bytes",
            "v2/cgroup.controllers",
            "v2/system.slice/memory.max",
            "v2/system.slice/memory.swap.max",
            "v2-none/cgroup.controllers",
            "v2-none/system.slice/memory.max",
            "v2-alone/cgroup.controllers",
        ] {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let accounted = |tree: &str, swaps: &str| swap_accounting(&dir.path().join(tree), Path::new(swaps));
        for (tree, want) in [("v1", true), ("v1-none", false), ("v2", true), ("v2-none", false)] {
            assert_eq!(accounted(tree, "/"), want, "{tree}");
        }
        assert!(accounted("v2-alone", "/") && !accounted("v2-alone", "/absent"));
    }
}
