//! The node of the recordings, rebuilt for one replay: settings made by hand, directories and cgroups of its own.
//!
//! Dropping a [`Node`] unmounts and removes whatever a replay left behind, and says so.

use crate::case::NODE;
use anyhow::{Context as _, Result};
use kubelet::api::Origin;
use kubelet::assemble::Settings;
use kubelet::cgroup::{CgroupConfig, Cgroups, NodeValues, Version};
use kubelet::clock::Clock;
use kubelet::evict::EvictConfig;
use kubelet::image::{ImageConfig, RecordConfig, VerificationPolicy};
use kubelet::log::RotationConfig;
use kubelet::pleg;
use kubelet::pod::backoff;
use kubelet::pod::dead::DeadConfig;
use kubelet::pod::translate::{Allocatable, NodeFacts};
use kubelet::trace::Tracer;
use kubelet::world::admit;
use kubelet::world::affinity::NodeLabels;
use std::collections::{BTreeMap, HashSet};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const RESOLV_CONF: &str = "nameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch corp.example.test lab.example.test\n\
                           options ndots:1 timeout:2\n";
const CAPACITY_MEMORY: i64 = 24_684_096 << 10;
/// `evictionHard: memory.available` of the recorded node is not for pods.
const ALLOCATABLE: Allocatable = Allocatable {
    cpu_milli: 2000,
    memory_bytes: CAPACITY_MEMORY - (100 << 20),
    ephemeral_bytes: 267_847_642_337,
};

/// One replay's node.
#[derive(Debug)]
pub struct Node {
    dir: tempfile::TempDir,
    /// Real hierarchies, or the reason why this part of the comparison is left out.
    cgroups: Result<Version, String>,
    cgroup_root: String,
}

impl Node {
    /// Makes its directories. Cgroups come with the agent.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let cgroup_root =
            format!("/stevedore-golden-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new().prefix("stevedore-golden-").tempdir()?;
        let node = Self { dir, cgroups: real_cgroups(&cgroup_root), cgroup_root };
        std::fs::write(node.path("resolv.conf"), RESOLV_CONF)?;
        std::fs::write(node.path("hosts"), format!("127.0.0.1 localhost\n192.0.2.10 {NODE}\n"))?;
        node.make_host_paths()?;
        std::fs::create_dir(node.path("objects"))?;
        if node.cgroups.is_err() {
            node.make_cgroup_tree()?;
        }
        Ok(node)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What `/HOSTPATH_TESTDIR` held when the cases were recorded.
    fn make_host_paths(&self) -> Result<()> {
        let dir = self.path("hostpath");
        std::fs::create_dir_all(dir.join("dir"))?;
        std::fs::write(dir.join("file"), "text")?;
        UnixListener::bind(dir.join("sock")).context("the socket of the hostPath cases")?;
        Ok(())
    }

    /// A tree of plain directories that the agent takes for cgroup v1, where there is none it may use.
    fn make_cgroup_tree(&self) -> Result<()> {
        let mut table = String::new();
        for (i, controller) in ["cpu", "cpuacct", "cpuset", "memory", "pids"].into_iter().enumerate() {
            let dir = self.path("cgroup").join(controller);
            std::fs::create_dir_all(&dir)?;
            for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|_| controller == "cpuset") {
                std::fs::write(dir.join(file), "0\n")?;
            }
            let (id, dir) = (30 + i, dir.display());
            table += &format!("{id} 29 0:{id} / {dir} rw - cgroup cgroup rw,{controller}\n");
        }
        std::fs::write(self.path("mountinfo"), table)?;
        Ok(())
    }

    /// Settings for [`kubelet::assemble::Agent::start`].
    pub fn settings(&self, clock: Clock) -> Result<Settings> {
        let cgroup = CgroupConfig::host(&self.cgroup_root, true);
        let cgroup = match &self.cgroups {
            Ok(_) => cgroup,
            Err(_) => {
                CgroupConfig { fs_root: self.path("cgroup"), mount_table: self.path("mountinfo"), ..cgroup }
            }
        };
        Ok(Settings {
            root_dir: self.path("root"),
            cert_dir: self.path("pki"),
            log_links_dir: self.path("containers"),
            host_hosts_file: self.path("hosts"),
            mount_table: "/proc/self/mountinfo".into(),
            facts: self.facts()?,
            node: admit::Node {
                cpu_milli: ALLOCATABLE.cpu_milli,
                memory: ALLOCATABLE.memory_bytes,
                ephemeral_storage: ALLOCATABLE.ephemeral_bytes,
                pods: 110,
                unsafe_sysctls: Vec::new(),
                apparmor: false,
                labels: NodeLabels::own(NODE, NODE),
            },
            cgroup,
            node_cgroup: NodeValues {
                cpu_shares: Some(2048),
                memory_limit: Some(CAPACITY_MEMORY),
                pids_limit: Some(32_768),
                ..NodeValues::default()
            },
            backoff_cap: backoff::DEFAULT_CAP,
            dead: DeadConfig::default(),
            clock,
            user_ids: kubelet::userns::Pool::default(),
            images: ImageConfig {
                records: Some(RecordConfig {
                    dir: self.path("root").join("image_manager"),
                    policy: VerificationPolicy::default(),
                    clock,
                }),
                ..ImageConfig::default()
            },
            evict: EvictConfig::default(),
            measure: None,
            kernel_log: None,
            prober: None,
            tracer: Tracer::default(),
            // The runtime in memory writes no logs: what is never there must not be asked for.
            volume_stats_period: None,
            log_rotation: RotationConfig { max_size: None, ..RotationConfig::default() },
            pleg: pleg::Config::default(),
            manifests: None,
            pods: None,
            objects: Some((self.path("objects"), Duration::ZERO)),
            other_sources: HashSet::from([Origin::Api]),
        })
    }

    fn facts(&self) -> Result<NodeFacts> {
        Ok(NodeFacts {
            node_name: NODE.into(),
            hostname: NODE.into(),
            node_ips: vec!["192.0.2.10".parse()?],
            cluster_domain: "cluster.local".into(),
            cluster_dns: vec!["10.96.0.10".parse()?],
            resolv_conf: Some(self.path("resolv.conf")),
            root_dir: self.path("root"),
            pod_logs_dir: self.path("pods"),
            cpu_cfs_quota: true,
            cfs_period_us: 100_000,
            pod_pids_limit: -1,
            allocatable: ALLOCATABLE,
            capacity_memory: CAPACITY_MEMORY,
            hugepage_sizes: vec![2 << 20, 1 << 30],
            swap_accounting: true,
            ..NodeFacts::default()
        })
    }

    /// Gives the node an object to begin with.
    pub fn put_object(&self, name: &str, object: &serde_json::Value) -> Result<()> {
        Ok(std::fs::write(self.path("objects").join(name), object.to_string())?)
    }

    /// Texts of this node and what the recordings have in their place.
    pub fn names(&self) -> Vec<(String, String)> {
        let path = |name: &str| self.path(name).to_string_lossy().into_owned();
        vec![
            (path("root"), "/var/lib/kubelet".to_owned()),
            (path("pods"), "/var/log/pods".to_owned()),
            (path("hostpath"), "/HOSTPATH_TESTDIR".to_owned()),
            (self.cgroup_root.clone(), "/golden".to_owned()),
        ]
    }

    /// Where a path of the recordings is here.
    pub fn here(&self, text: &str) -> String {
        text.replace("/HOSTPATH_TESTDIR", &self.path("hostpath").to_string_lossy())
    }

    /// Why cgroup values are not compared, if they are not.
    pub fn no_cgroups(&self) -> Option<&str> {
        self.cgroups.as_ref().err().map(String::as_str)
    }

    /// Values of the cgroup that a sandbox is in, and of the class above it: what the kernel holds.
    pub fn cgroup_values(&self, cgroup_parent: &str) -> Option<CgroupValues> {
        let Ok(version) = &self.cgroups else { return None };
        let class = Path::new(cgroup_parent).parent()?.to_string_lossy().into_owned();
        let read = |path: &str| -> BTreeMap<String, String> {
            let values = FILES.iter().filter_map(|(controller, file)| {
                let root = version.root_of(Path::new(""), controller)?;
                let text =
                    std::fs::read_to_string(root.join(path.trim_start_matches('/')).join(file)).ok()?;
                Some(((*file).to_owned(), text.trim().to_owned()))
            });
            values.collect()
        };
        Some(CgroupValues { pod: read(cgroup_parent), class: read(&class) })
    }
}

/// The files of cgroup v1 that the agent writes for pods and classes.
const FILES: [(&str, &str); 5] = [
    ("cpu", "cpu.shares"),
    ("cpu", "cpu.cfs_period_us"),
    ("cpu", "cpu.cfs_quota_us"),
    ("memory", "memory.limit_in_bytes"),
    ("pids", "pids.max"),
];

/// Cgroup values by file name.
#[derive(Clone, Debug, Default)]
pub struct CgroupValues {
    /// The pod's.
    pub pod: BTreeMap<String, String>,
    /// Those of its QoS class.
    pub class: BTreeMap<String, String>,
}

/// The machine's cgroup v1 hierarchies, if this process may make cgroups there.
fn real_cgroups(root: &str) -> Result<Version, String> {
    let cgroups = Cgroups::detect(CgroupConfig::host(root, true)).map_err(|e| e.to_string())?;
    let missing = cgroups.missing_controllers();
    match cgroups.version() {
        Version::V2 { .. } => Err("the machine has cgroup v2, the recordings are of v1".to_owned()),
        _ if !missing.is_empty() => Err(format!("cgroup v1 without {}", missing.join(", "))),
        version => {
            let Some(cpu) = version.root_of(Path::new(""), "cpu") else { return Err("no cpu".to_owned()) };
            let own = cpu.join(root.trim_start_matches('/'));
            std::fs::create_dir(&own).map_err(|e| format!("cannot make {}: {e}", own.display()))?;
            Ok(version.clone())
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        unmount_below(self.dir.path());
        if let Ok(version) = &self.cgroups {
            for root in version.roots(Path::new("")) {
                remove_cgroups(&root.join(self.cgroup_root.trim_start_matches('/')));
            }
        }
    }
}

/// Removes a cgroup and all below it. There is no process in any: nothing runs on a fake runtime.
fn remove_cgroups(dir: &Path) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).for_each(|e| remove_cgroups(&e.path()));
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            eprintln!("left behind: {}: {e}", dir.display());
        }
        _ => {}
    }
}

/// Unmounts what an agent that was cut off left mounted.
fn unmount_below(dir: &Path) {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|l| l.split(' ').nth(4)).map(PathBuf::from);
    // Later mounts may stand on earlier ones.
    let points: Vec<_> = points.filter(|p| p.starts_with(dir)).collect();
    for point in points.iter().rev() {
        if let Err(e) = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH) {
            eprintln!("left behind: {}: {e}", point.display());
        }
    }
}
