//! Cgroups: the node's, the QoS classes' and the pods' (containers' belong to the runtime), on v1, hybrid and v2, made
//! directly (`cgroupfs`) or as slices of systemd (`systemd`).
//!
//! `assemble` calls [`Cgroups::detect`], [`Cgroups::setup_node`] and [`Cgroups::enforce_reserved`] once and runs
//! [`Cgroups::keep_classes`]; pod actors call [`Cgroups::pod_parent`], [`Cgroups::create_pod`] and
//! [`Cgroups::remove_pod`]; `world` calls [`Cgroups::update_qos`]; the clean-up after a restart calls
//! [`Cgroups::list_pods`]. The room never touches a cgroup outside `<cgroupRoot>/kubepods` (but for enabling v2
//! controllers on the way there, and reservations), never moves a process, and remembers nothing that it could not find
//! again in the file system or is told again.
//!
//! | | waits for |
//! | --- | --- |
//! | making with `cgroupfs` | nothing: a few dozen system calls on an in-memory file system (figures: `docs/cgroups.md`) |
//! | making with `systemd` | the end of the unit's job, over D-Bus |
//! | removing | processes it had to kill, on a blocking thread; with `systemd` the end of the unit's job before |
//!
//! Why not `cgroups-rs`: it finds hierarchies only at `/sys/fs/cgroup` of its own process, answers a failed read with
//! "no hierarchies", unwraps on missing files, and has no notion of a cgroup whose processes belong to others. Its
//! detection is the yardstick of a test here; files are written directly.

mod classes;
mod error;
mod files;
mod hierarchy;
pub mod layout;
mod lookup;
mod now;
mod reserved;
pub mod systemd;
pub mod values;

pub use error::Error;
pub use hierarchy::{Hierarchy, Version};
pub use lookup::Lookup;
pub use now::Now;
pub use reserved::Reserved;
pub use values::{HugetlbLimit, MemoryReserve, NodeValues, PodValues, Protection, Requested};

use crate::api::{PodUid, Qos};
use layout::Layout;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use systemd::Systemd;
use tokio::sync::watch;

/// `cgroupDriver`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// This room writes the file system itself.
    #[default]
    Cgroupfs,
    /// systemd makes cgroups for its units; this room asks it to.
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
    /// `cgroupDriver`, where it was given: the runtime may have no other. Where not, the runtime's is taken, and
    /// cgroupfs where it does not say.
    pub driver: Option<Driver>,
    /// The address of the bus where systemd answers.
    pub bus: String,
    /// Reservations to enforce at start.
    pub reserved: Vec<Reserved>,
}

impl CgroupConfig {
    /// The machine's own hierarchy, with the runtime's driver.
    pub fn host(cgroup_root: &str, per_qos: bool) -> Self {
        Self {
            fs_root: "/sys/fs/cgroup".into(),
            mount_table: crate::mountinfo::SELF.into(),
            cgroup_root: cgroup_root.to_owned(),
            per_qos,
            driver: None,
            bus: systemd::system_bus(),
            reserved: Vec::new(),
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
    layout: Layout,
    per_qos: bool,
    systemd: Option<Systemd>,
    /// Sizes of huge pages the kernel limits, known once the node's cgroup exists.
    huge_pages: OnceLock<Vec<String>>,
    /// What the cgroup of all pods shall hold.
    node: Mutex<NodeValues>,
    /// What the admitted pods request.
    requested: watch::Sender<classes::Asked>,
    /// The runtime came back with another driver.
    runtime_differs: AtomicBool,
}

impl Inner {
    fn is_v2(&self) -> bool {
        matches!(self.version, Version::V2 { .. })
    }
}

/// v2 controllers enabled for pods, where the kernel has them.
const DELEGATED: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

impl Cgroups {
    /// Finds the hierarchies; changes nothing, and connects to nobody.
    pub fn detect(config: CgroupConfig) -> Result<Self, Error> {
        let driver = config.driver.unwrap_or_default();
        let layout = Layout::new(driver, &config.cgroup_root)?;
        let version = hierarchy::detect(&config.fs_root, &config.mount_table)?;
        Ok(Self {
            inner: Arc::new(Inner {
                fs_root: config.fs_root,
                version,
                layout,
                per_qos: config.per_qos,
                systemd: (driver == Driver::Systemd).then(|| Systemd::new(config.bus)),
                huge_pages: OnceLock::new(),
                node: Mutex::default(),
                requested: watch::Sender::new(classes::Asked::default()),
                runtime_differs: AtomicBool::new(false),
            }),
        })
    }

    /// What was found.
    pub fn version(&self) -> &Version {
        &self.inner.version
    }

    /// The driver in use.
    pub fn driver(&self) -> Driver {
        self.inner.layout.driver()
    }

    /// The driver that the runtime says it uses. While it is another, no pod's cgroup is made.
    pub fn runtime_uses(&self, driver: Driver) {
        let differs = driver != self.driver();
        if self.inner.runtime_differs.swap(differs, Ordering::Relaxed) != differs && differs {
            let error = self.check_runtime().err().map(|e| e.to_string()).unwrap_or_default();
            tracing::error!(error, "no pods are started");
        }
    }

    /// Refuses while the runtime's driver is another than this one.
    pub fn check_runtime(&self) -> Result<(), Error> {
        if !self.inner.runtime_differs.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(match self.driver() {
            Driver::Cgroupfs => Error::RuntimeDriver { runtime: "systemd", agent: "cgroupfs" },
            Driver::Systemd => Error::RuntimeDriver { runtime: "cgroupfs", agent: "systemd" },
        })
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

    /// CRI's `cgroup_parent` of the pod's sandbox; empty without `cgroupsPerQOS`.
    pub fn pod_parent(&self, qos: Qos, uid: &PodUid) -> String {
        if self.inner.per_qos { self.inner.layout.pod(qos, uid) } else { String::new() }
    }

    /// Makes the pod's cgroup in every hierarchy and writes `values`. Idempotent: on a cgroup that is there it writes
    /// the values again.
    pub async fn create_pod(&self, qos: Qos, uid: &PodUid, values: &PodValues) -> Result<(), Error> {
        if !self.inner.per_qos {
            return Ok(());
        }
        self.check_runtime()?;
        self.inner.layout.check_uid(uid)?;
        if self.dirs(&self.inner.layout.class(qos)).iter().any(|dir| !dir.is_dir()) {
            self.make_classes().await?;
        }
        let hugetlb = values::hugetlb_of_pod(&values.hugetlb, self.huge_pages()?);
        let mut values = PodValues { hugetlb, ..values.clone() };
        let path = self.inner.layout.pod(qos, uid);
        self.withdraw(&path, &mut values);
        self.ensure(&path, &values, Walk::Missing).await
    }

    /// Whether the pod's cgroup is in every hierarchy, as far as there is to be one.
    pub fn has_pod(&self, qos: Qos, uid: &PodUid) -> bool {
        !self.inner.per_qos || self.dirs(&self.inner.layout.pod(qos, uid)).iter().all(|dir| dir.is_dir())
    }

    /// Removes the pod's cgroup from every hierarchy, killing what still runs in it. Idempotent. Takes up to 63 ms
    /// more when something had to be killed, then answers [`Error::Busy`] with what is left; call again.
    pub async fn remove_pod(&self, qos: Qos, uid: &PodUid) -> Result<(), Error> {
        // A UID that names no cgroup has none.
        if !self.inner.per_qos || self.inner.layout.check_uid(uid).is_err() {
            return Ok(());
        }
        self.remove(&self.inner.layout.pod(qos, uid)).await
    }

    /// Removes what a runtime left of the cgroup of a container or sandbox that it no longer has: an OCI runtime that
    /// is interrupted while it makes a container forgets it. Idempotent; waits like [`Cgroups::remove_pod`].
    pub async fn remove_leftover(&self, qos: Qos, uid: &PodUid, id: &str) -> Result<(), Error> {
        let layout = &self.inner.layout;
        // An id or a UID that is no name of a directory cannot have made one.
        let named =
            !id.is_empty() && !id.contains('/') && !id.starts_with('.') && layout.check_uid(uid).is_ok();
        if !self.inner.per_qos || !named {
            return Ok(());
        }
        let pod = layout.pod(qos, uid);
        for name in layout.names_of(id) {
            self.remove(&format!("{pod}/{name}")).await?;
        }
        Ok(())
    }

    /// Every pod with a cgroup in any hierarchy, made by this or an earlier incarnation.
    pub fn list_pods(&self) -> Result<Vec<(Qos, PodUid)>, Error> {
        let (mut found, layout) = (BTreeSet::new(), &self.inner.layout);
        if self.inner.per_qos {
            for qos in layout::CLASSES {
                for dir in self.dirs(&layout.class(qos)) {
                    for child in files::children(&dir)? {
                        let name = child.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                        found.extend(layout.uid_of(qos, name).map(|uid| (qos, uid)));
                    }
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// `path` in every hierarchy.
    fn dirs(&self, path: &str) -> Vec<PathBuf> {
        self.inner.version.roots(&self.inner.fs_root).into_iter().map(|root| below(root, path)).collect()
    }

    /// Makes the cgroup `path` with what stands above it, and gives it `values`.
    async fn ensure(&self, path: &str, values: &PodValues, walk: Walk) -> Result<(), Error> {
        let writes = self.prepare(path, values, walk).await?;
        self.write(path, writes)
    }

    /// Makes the cgroup `path` with what stands above it. Answers those of `values` that are still to be written.
    async fn prepare(&self, path: &str, values: &PodValues, walk: Walk) -> Result<Vec<values::Write>, Error> {
        let inner = &*self.inner;
        let spelled = match inner.version {
            Version::V1 { .. } => values::v1(values),
            Version::V2 { .. } => values::v2(values),
        };
        // systemd would say nothing of it.
        for w in &spelled {
            if inner.version.root_of(&inner.fs_root, w.controller).is_none() {
                let (controller, file, value) = (w.controller, w.file.clone(), w.value.clone());
                self.make_path(path, walk)?;
                return Err(Error::NoController { controller, file, value });
            }
        }
        match &inner.systemd {
            None => {
                self.make_path(path, walk)?;
                Ok(spelled)
            }
            Some(systemd) => {
                let (properties, files) = match inner.version {
                    Version::V1 { .. } => systemd::properties::v1(values),
                    Version::V2 { .. } => systemd::properties::v2(values)?,
                };
                let dirs = self.dirs(path);
                let there = || dirs.iter().any(|dir| dir.is_dir());
                systemd.ensure(layout::unit_of(path), &properties, &there).await?;
                // It makes them in the hierarchies it manages, and enables the controllers it thinks are needed.
                self.make_path(path, Walk::All)?;
                Ok(files)
            }
        }
    }

    /// Writes into the cgroup `path` all that it takes; the first error is told.
    fn write(&self, path: &str, writes: Vec<values::Write>) -> Result<(), Error> {
        let inner = &*self.inner;
        let mut all = Ok(());
        for w in writes {
            if let Some(root) = inner.version.root_of(&inner.fs_root, w.controller) {
                all = all.and(files::write(below(root, path).join(&w.file), &w.value));
            }
        }
        all
    }

    /// Removes the cgroup `path` and what is in it.
    async fn remove(&self, path: &str) -> Result<(), Error> {
        let dirs = self.dirs(path);
        if dirs.iter().all(|dir| !dir.exists()) {
            return Ok(());
        }
        if let Some(systemd) = &self.inner.systemd {
            // It would ask them to end, and wait for 90 s.
            let killed = dirs.clone();
            blocking(move || files::kill(&killed)).await?;
            systemd.stop(layout::unit_of(path)).await?;
        }
        blocking(move || files::remove(&dirs)).await
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

    /// Sizes of huge pages, from the names of the files in the node's cgroup.
    fn huge_pages(&self) -> Result<&[String], Error> {
        let inner = &*self.inner;
        if let Some(sizes) = inner.huge_pages.get() {
            return Ok(sizes);
        }
        let Some(root) = inner.version.root_of(&inner.fs_root, "hugetlb") else { return Ok(&[]) };
        let dir = below(root, &inner.layout.class(Qos::Guaranteed));
        let entries = std::fs::read_dir(&dir).map_err(|cause| Error::Read { path: dir.clone(), cause })?;
        let sizes = entries
            .filter_map(|e| huge_page_size(e.ok()?.file_name().to_str()?))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        Ok(inner.huge_pages.get_or_init(|| sizes))
    }
}

/// Runs what may wait on a thread for that.
async fn blocking(work: impl FnOnce() -> Result<(), Error> + Send + 'static) -> Result<(), Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(Error::Panicked { text: e.to_string() }))
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
mod fault_tests;
#[cfg(test)]
mod tests;
