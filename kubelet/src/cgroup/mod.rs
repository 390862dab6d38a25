//! Cgroups: the node's, the QoS classes' and the pods' (containers' belong to the runtime), on v1, hybrid and v2.
//!
//! `assemble` calls [`Cgroups::detect`] and [`Cgroups::setup_node`] once; pod actors call [`Cgroups::pod_parent`],
//! [`Cgroups::create_pod`] and [`Cgroups::remove_pod`]; who sums requests calls [`Cgroups::update_qos`]; the clean-up
//! after a restart calls [`Cgroups::list_pods`]. The room never touches a cgroup outside `<cgroupRoot>/kubepods`
//! (but for enabling v2 controllers on the way there), never moves a process, and remembers nothing that it could not
//! find again in the file system.
//!
//! Everything is synchronous. Making a pod's cgroup is a few dozen system calls on an in-memory file system (see
//! `docs/cgroups.md` for figures); removing one may wait for processes it had to kill, so removal goes to
//! `spawn_blocking`.
//!
//! Why not `cgroups-rs`: it finds hierarchies only at `/sys/fs/cgroup` of its own process, answers a failed read with
//! "no hierarchies", unwraps on missing files, and has no notion of a cgroup whose processes belong to others. Its
//! detection is the yardstick of a test here; files are written directly.

mod error;
mod files;
mod hierarchy;
pub mod layout;
mod lookup;
pub mod values;

pub use error::Error;
pub use hierarchy::{Hierarchy, Version};
pub use lookup::{Lookup, container_of_dir};
pub use values::{HugetlbLimit, NodeValues, PodValues};

use crate::api::{PodUid, Qos};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// `cgroupDriver`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// This room writes the file system itself.
    #[default]
    Cgroupfs,
    /// Refused for now.
    Systemd,
}

/// What the room must be told.
#[derive(Clone, Debug)]
pub struct CgroupConfig {
    /// `/sys/fs/cgroup`, or a tempdir.
    pub fs_root: PathBuf,
    /// `/proc/self/mountinfo`, or a file that says what the tempdir shall be.
    pub mount_table: PathBuf,
    /// `cgroupRoot`: empty, or `/golden`. Made if it is not there.
    pub cgroup_root: String,
    /// `cgroupsPerQOS`. Without it there are no pod cgroups: `cgroup_parent` is empty and nothing is made or removed.
    pub per_qos: bool,
    /// `cgroupDriver`
    pub driver: Driver,
}

impl CgroupConfig {
    /// The machine's own hierarchy, cgroupfs driver.
    pub fn host(cgroup_root: &str, per_qos: bool) -> Self {
        Self {
            fs_root: "/sys/fs/cgroup".into(),
            mount_table: crate::mountinfo::SELF.into(),
            cgroup_root: cgroup_root.to_owned(),
            per_qos,
            driver: Driver::Cgroupfs,
        }
    }
}

/// The room's handle. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Cgroups {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    fs_root: PathBuf,
    version: Version,
    root: String,
    per_qos: bool,
    /// Sizes of huge pages the kernel limits, known once the node's cgroup exists.
    huge_pages: OnceLock<Vec<String>>,
    /// `cpu.shares` last written to the burstable class; 0 before the first.
    burstable_shares: AtomicU64,
}

/// v2 controllers enabled for pods, where the kernel has them.
const DELEGATED: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

impl Cgroups {
    /// Finds the hierarchies; changes nothing.
    pub fn detect(config: CgroupConfig) -> Result<Self, Error> {
        if config.driver == Driver::Systemd {
            return Err(Error::SystemdDriver);
        }
        let root = layout::normal_root(&config.cgroup_root)?;
        let version = hierarchy::detect(&config.fs_root, &config.mount_table)?;
        Ok(Self {
            inner: Arc::new(Inner {
                fs_root: config.fs_root,
                version,
                root,
                per_qos: config.per_qos,
                huge_pages: OnceLock::new(),
                burstable_shares: AtomicU64::new(0),
            }),
        })
    }

    /// What was found.
    pub fn version(&self) -> &Version {
        &self.inner.version
    }

    /// Controllers that pods cannot do without and that are not there; the node is unfit while this is not empty.
    pub fn missing_controllers(&self) -> Vec<&'static str> {
        let needed: &[&str] = match self.inner.version {
            Version::V1 { .. } => &["cpu", "cpuacct", "cpuset", "memory"],
            Version::V2 { .. } => &["cpu", "cpuset", "memory"],
        };
        needed
            .iter()
            .copied()
            .filter(|c| self.inner.version.root_of(&self.inner.fs_root, c).is_none())
            .collect()
    }

    /// Makes `<cgroupRoot>/kubepods` with `values` and the QoS classes in it. Idempotent; leaves pods alone.
    pub fn setup_node(&self, values: &NodeValues) -> Result<(), Error> {
        let inner = &*self.inner;
        if !inner.per_qos {
            return Ok(());
        }
        for qos in layout::CLASSES {
            self.make_path(&layout::class_path(&inner.root, qos), Walk::All)?;
        }
        let node = layout::class_path(&inner.root, Qos::Guaranteed);
        self.narrow_cpuset(&node)?;
        self.apply(&node, &PodValues::from(values))?;
        let least = PodValues { cpu_shares: Some(values::MIN_SHARES), ..PodValues::default() };
        self.apply(&layout::class_path(&inner.root, Qos::BestEffort), &least)?;
        self.huge_pages()?;
        Ok(())
    }

    /// CRI's `cgroup_parent` of the pod's sandbox; empty without `cgroupsPerQOS`.
    pub fn pod_parent(&self, qos: Qos, uid: &PodUid) -> String {
        if self.inner.per_qos { layout::pod_path(&self.inner.root, qos, uid) } else { String::new() }
    }

    /// Makes the pod's cgroup in every hierarchy and writes `values`. Idempotent: on a cgroup that is there it writes
    /// the values again. Quick enough to be called directly.
    pub fn create_pod(&self, qos: Qos, uid: &PodUid, values: &PodValues) -> Result<(), Error> {
        if !self.inner.per_qos {
            return Ok(());
        }
        layout::check_uid(uid)?;
        let path = layout::pod_path(&self.inner.root, qos, uid);
        self.make_path(&path, Walk::Missing)?;
        let hugetlb = values::hugetlb_of_pod(&values.hugetlb, self.huge_pages()?);
        self.apply(&path, &PodValues { hugetlb, ..values.clone() })
    }

    /// Removes the pod's cgroup from every hierarchy, killing what still runs in it. Idempotent. Blocks up to 63 ms
    /// when something had to be killed, then answers [`Error::Busy`] with what is left; call again.
    pub fn remove_pod(&self, qos: Qos, uid: &PodUid) -> Result<(), Error> {
        // A UID that names no cgroup has none.
        if !self.inner.per_qos || layout::check_uid(uid).is_err() {
            return Ok(());
        }
        let dirs = self.dirs(&layout::pod_path(&self.inner.root, qos, uid));
        files::remove(&dirs)
    }

    /// Removes what a runtime left of the cgroup of a container or sandbox that it no longer has: an OCI runtime that
    /// is interrupted while it makes a container forgets it. Idempotent; blocks like [`Cgroups::remove_pod`].
    pub fn remove_leftover(&self, qos: Qos, uid: &PodUid, id: &str) -> Result<(), Error> {
        // An id or a UID that is no name of a directory cannot have made one.
        let named =
            !id.is_empty() && !id.contains('/') && !id.starts_with('.') && layout::check_uid(uid).is_ok();
        if !self.inner.per_qos || !named {
            return Ok(());
        }
        let pod = layout::pod_path(&self.inner.root, qos, uid);
        // containerd names it by the id alone, CRI-O with a prefix.
        for name in [id.to_owned(), format!("crio-{id}")] {
            files::remove(&self.dirs(&format!("{pod}/{name}")))?;
        }
        Ok(())
    }

    /// Every pod with a cgroup in any hierarchy, made by this or an earlier incarnation.
    pub fn list_pods(&self) -> Result<Vec<(Qos, PodUid)>, Error> {
        let mut found = BTreeSet::new();
        if self.inner.per_qos {
            for qos in layout::CLASSES {
                for dir in self.dirs(&layout::class_path(&self.inner.root, qos)) {
                    for child in files::children(&dir)? {
                        let name = child.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                        found.extend(layout::uid_of_dir(name).map(|uid| (qos, uid)));
                    }
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// Gives the burstable class the shares of the sum of its pods' CPU requests (thousandths of a core). Writes only
    /// what changed.
    pub fn update_qos(&self, burstable_milli_requests: u64) -> Result<(), Error> {
        let inner = &*self.inner;
        let shares = values::shares_of_milli(burstable_milli_requests);
        if !inner.per_qos || inner.burstable_shares.load(Ordering::Relaxed) == shares {
            return Ok(());
        }
        let wanted = PodValues { cpu_shares: Some(shares), ..PodValues::default() };
        self.apply(&layout::class_path(&inner.root, Qos::Burstable), &wanted)?;
        inner.burstable_shares.store(shares, Ordering::Relaxed);
        Ok(())
    }

    /// `path` in every hierarchy.
    fn dirs(&self, path: &str) -> Vec<PathBuf> {
        self.inner.version.roots(&self.inner.fs_root).into_iter().map(|root| below(root, path)).collect()
    }

    /// Makes `path` and, where they are missing, its ancestors, in every hierarchy.
    fn make_path(&self, path: &str, walk: Walk) -> Result<(), Error> {
        match &self.inner.version {
            Version::V1 { hierarchies } => {
                for h in hierarchies {
                    let cpuset = h.controllers.iter().any(|c| c == "cpuset");
                    make_with_parents(&h.path, path, walk, &|dir, new| {
                        if cpuset { files::inherit_cpuset(dir, new) } else { Ok(()) }
                    })?;
                }
                Ok(())
            }
            Version::V2 { controllers } => {
                let wanted: Vec<String> =
                    controllers.iter().filter(|c| DELEGATED.contains(&c.as_str())).cloned().collect();
                make_with_parents(&self.inner.fs_root, path, walk, &|dir, _| match dir.parent() {
                    Some(parent) => files::delegate(parent, &wanted),
                    None => Ok(()),
                })
            }
        }
    }

    /// On v2 the node's cgroup names its CPUs, those its parent has in effect, as the stock agent's does.
    fn narrow_cpuset(&self, node: &str) -> Result<(), Error> {
        let inner = &*self.inner;
        if !matches!(inner.version, Version::V2 { .. }) {
            return Ok(());
        }
        let Some(root) = inner.version.root_of(&inner.fs_root, "cpuset") else { return Ok(()) };
        let dir = below(root, node);
        let parent = dir.parent().unwrap_or(root);
        let cpus = files::read(parent.join("cpuset.cpus.effective"))?;
        files::write(dir.join("cpuset.cpus"), &cpus)
    }

    /// Writes `values` into the cgroup `path`, each into its controller's hierarchy.
    fn apply(&self, path: &str, values: &PodValues) -> Result<(), Error> {
        let inner = &*self.inner;
        let writes = match inner.version {
            Version::V1 { .. } => values::v1(values),
            Version::V2 { .. } => values::v2(values),
        };
        for w in writes {
            let Some(root) = inner.version.root_of(&inner.fs_root, w.controller) else {
                return Err(Error::NoController { controller: w.controller, file: w.file, value: w.value });
            };
            files::write(below(root, path).join(&w.file), &w.value)?;
        }
        Ok(())
    }

    /// Sizes of huge pages, from the names of the files in the node's cgroup.
    fn huge_pages(&self) -> Result<&[String], Error> {
        let inner = &*self.inner;
        if let Some(sizes) = inner.huge_pages.get() {
            return Ok(sizes);
        }
        let Some(root) = inner.version.root_of(&inner.fs_root, "hugetlb") else { return Ok(&[]) };
        let dir = below(root, &layout::class_path(&inner.root, Qos::Guaranteed));
        let entries = std::fs::read_dir(&dir).map_err(|cause| Error::Read { path: dir.clone(), cause })?;
        let sizes = entries
            .filter_map(|e| huge_page_size(e.ok()?.file_name().to_str()?))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        Ok(inner.huge_pages.get_or_init(|| sizes))
    }
}

/// `hugetlb.2MB.limit_in_bytes` or `hugetlb.2MB.max`: `2MB`.
fn huge_page_size(file: &str) -> Option<String> {
    let size = file.strip_prefix("hugetlb.")?;
    let size = size.strip_suffix(".limit_in_bytes").or_else(|| size.strip_suffix(".max"))?;
    (!size.contains('.')).then(|| size.to_owned())
}

/// The cgroup `path` (absolute within the hierarchy) under the hierarchy's mount.
fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Which ancestors of a cgroup are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Walk {
    /// All, from the root on: they may be there without what pods need of them.
    All,
    /// None unless the parent is missing: for pods, once the node is set up.
    Missing,
}

/// Makes `path` under `root` with its ancestors, outermost first. `finish` gets each directory made or met on the way
/// and whether it is new.
fn make_with_parents(
    root: &Path,
    path: &str,
    walk: Walk,
    finish: &dyn Fn(&Path, bool) -> Result<(), Error>,
) -> Result<(), Error> {
    if walk == Walk::Missing {
        let dir = below(root, path);
        match files::make(&dir) {
            Ok(new) => return finish(&dir, new),
            Err(Error::Create { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    let mut at = root.to_owned();
    for part in path.split('/').filter(|p| !p.is_empty()) {
        at.push(part);
        let new = files::make(&at)?;
        finish(&at, new)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
