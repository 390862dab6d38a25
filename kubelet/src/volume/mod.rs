//! Volumes: the pod's directories on the node, `emptyDir`, `hostPath`, `image`, the files of `configMap`, `secret`,
//! `downwardAPI` and `projected`, and what of them a container sees.
//!
//! Pod actors call [`Volumes::prepare_pod_dirs`] and [`Volumes::setup`] before the sandbox, [`Volumes::keep`] from then
//! on, [`Volumes::mounts`] and [`Volumes::termination_log`] before each container, [`Volumes::teardown`] once no
//! container is left; the clean-up after a restart calls [`Volumes::pods_on_disk`]. All of it is idempotent and remembers
//! nothing: what is on disk and mounted is looked at afresh. Volumes of other kinds are refused by plugin name.
//!
//! The room never trusts a path inside a volume (`subpath`, `teardown`), never removes through a mount, never touches
//! what a `hostPath` shows.

mod dirs;
mod empty_dir;
mod error;
mod files;
mod host_path;
mod keeper;
mod payload;
pub mod policy;
mod subpath;
mod teardown;
mod writer;

pub use error::{IoError, MountError, TeardownError, VolumeError};
pub use keeper::Keeper;
pub use payload::Values;

use crate::api::{Container, Pod, PodRef, PodUid, Volume, spec};
use crate::event::Recorder;
use crate::objects::{self, Found, Key, Objects};
use cri::v1::{ImageSpec, Mount};
use payload::{Inputs, Payload};
use policy::{Kind, MemoryBounds, Place, Planned};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// What the room must be told.
#[derive(Clone, Debug)]
pub struct VolumeConfig {
    /// `--root-dir`, such as `/var/lib/kubelet`; made (0750) if it is not there.
    pub root_dir: PathBuf,
    /// `/proc/self/mountinfo`.
    pub mount_table: PathBuf,
    /// The node's allocatable memory in bytes: the size of memory volumes nothing else bounds.
    pub allocatable_memory: Option<i64>,
    /// ConfigMaps and Secrets.
    pub objects: Objects,
    /// Fields of pods.
    pub values: Arc<dyn Values>,
}

/// The room's handle. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Volumes {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// `<root>/pods` as configured.
    pods: PathBuf,
    mount_table: PathBuf,
    allocatable_memory: Option<i64>,
    objects: Objects,
    values: Arc<dyn Values>,
    /// Of what works on a pod's volumes on blocking threads one at a time, also when whoever asked for the one before has
    /// given it up: that goes on.
    locks: Mutex<HashMap<PodUid, Weak<Mutex<()>>>>,
}

impl Inner {
    fn lock_of(&self, uid: &PodUid) -> Arc<Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(uid).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(Mutex::new(()));
        locks.insert(uid.clone(), Arc::downgrade(&lock));
        lock
    }
}

/// Where a pod's volumes are on the node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mounted {
    by_name: BTreeMap<String, PathBuf>,
    /// Those that containers may only read.
    read_only: BTreeSet<String>,
    images: BTreeMap<String, ImageSpec>,
}

impl Mounted {
    /// With what image volumes show, as far as it is here.
    #[must_use]
    pub fn with_images(mut self, images: BTreeMap<String, ImageSpec>) -> Self {
        self.images = images;
        self
    }

    /// The volume's place on the node.
    pub fn path(&self, volume: &str) -> Option<&Path> {
        self.by_name.get(volume).map(PathBuf::as_path)
    }

    /// Reads a regular file of a volume, however links in it lead, as long as they stay inside. Blocks on the disk.
    ///
    /// # Errors
    /// It is not there or not readable, is no file, or has more than `limit` bytes.
    pub fn read(&self, volume: &str, path: &str, limit: u64) -> std::io::Result<Vec<u8>> {
        let place = self.path(volume).ok_or(std::io::ErrorKind::NotFound)?;
        subpath::read(place, path, limit)
    }
}

impl Volumes {
    /// Opens or makes `<root>/pods`.
    pub fn new(config: VolumeConfig) -> Result<Self, IoError> {
        let pods = config.root_dir.join("pods");
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o750).create(&pods);
        made.map_err(IoError::at("mkdir", &pods))?;
        Ok(Self {
            inner: Arc::new(Inner {
                pods,
                mount_table: config.mount_table,
                allocatable_memory: config.allocatable_memory,
                objects: config.objects,
                values: config.values,
                locks: Mutex::default(),
            }),
        })
    }

    /// `<root>/pods/<uid>`. The UID must have passed [`Volumes::prepare_pod_dirs`] or come from
    /// [`Volumes::pods_on_disk`].
    pub fn pod_dir(&self, uid: &PodUid) -> PathBuf {
        self.inner.pods.join(uid.as_str())
    }

    /// Makes the pod's directory with `plugins` and `volumes` in it, modes 0750. A few system calls; call it directly.
    pub fn prepare_pod_dirs(&self, uid: &PodUid) -> Result<PathBuf, VolumeError> {
        let failed = |why: String| VolumeError {
            volume: String::new(),
            reason: "FailedToMakePodDataDirectories",
            message: format!("error making pod data directories: {why}"),
            others: Vec::new(),
            waits_for: Vec::new(),
        };
        if !policy::is_file_name(uid.as_str()) {
            return Err(failed(format!("pod uid {uid:?} cannot name a directory")));
        }
        let dir = self.pod_dir(uid);
        dirs::make(&dir, 0o750)
            .and_then(|_| dirs::make(&dir.join("volumes"), 0o750))
            .and_then(|_| dirs::make(&dir.join("plugins"), 0o750))
            .map_err(|e| failed(e.to_string()))?;
        Ok(dir)
    }

    /// Makes `containers/<container>` and in it a new, empty file (0666) for the container's termination message;
    /// answers the file's path. A few system calls; call it directly.
    pub fn termination_log(&self, uid: &PodUid, container: &str) -> Result<PathBuf, IoError> {
        let dir = self.pod_dir(uid);
        if !policy::is_file_name(container) {
            return Err(IoError::at("mkdir", &dir.join(container))(rustix::io::Errno::INVAL));
        }
        dirs::termination_log(&dir, container)
    }

    /// Sets up every volume of the pod. Idempotent; goes on past a volume that fails, so that the error names them
    /// all. `memory_limit` is the one of the pod's cgroup in bytes, which bounds memory volumes.
    ///
    /// The pod's directories must be there. It waits until it is known what objects there are. Directories are made on
    /// the spot; checks of host paths, files and mounts go to a blocking thread. Cancelling it leaves volumes that the next
    /// call, or the teardown, finds.
    pub async fn setup(&self, pod: &Pod, memory_limit: Option<i64>) -> Result<Mounted, VolumeError> {
        let who = PodRef::of(pod);
        let bounds = MemoryBounds { pod: memory_limit, node: self.inner.allocatable_memory };
        let mut failures = Vec::new();
        let mut wanted = Vec::new();
        for volume in spec(pod).volumes.iter().flatten() {
            let job = match policy::kind(&who, volume, bounds) {
                Ok(kind @ Kind::Files { .. }) => self.files_of(pod, volume).await.map(|files| (kind, files)),
                other => other.map(|kind| (kind, Payload::new())),
            };
            match job {
                Ok((kind, files)) => wanted.push(Job { name: volume.name.clone(), kind, files }),
                Err(e) => failures.push(e),
            }
        }
        let fs_group = spec(pod).security_context.as_ref().and_then(|s| s.fs_group);
        let quick = wanted.iter().all(|job| match &job.kind {
            Kind::EmptyDir | Kind::Image => true,
            Kind::HostPath { type_, .. } => type_.is_empty(),
            Kind::Memory { .. } | Kind::Files { .. } => false,
        });
        let (mounted, mut more) = if quick {
            set_up_all(&self.pod_dir(&who.uid), wanted, fs_group)
        } else {
            let work = self.blocking(&who.uid, move |pod_dir| set_up_all(pod_dir, wanted, fs_group));
            work.await.map_err(|e| VolumeError::setup("", e))?
        };
        failures.append(&mut more);
        VolumeError::of(failures).map_or(Ok(mounted), Err)
    }

    /// What is to be in a volume of files.
    async fn files_of(&self, pod: &Pod, volume: &Volume) -> Result<Payload, VolumeError> {
        let found = self.find(pod, volume).await;
        let inputs = Inputs { pod, found: &found, values: &*self.inner.values };
        payload::collect(volume, &inputs).map_err(|why| VolumeError {
            waits_for: objects::known(&found),
            ..VolumeError::setup(&volume.name, why)
        })
    }

    /// The objects `volume` is made from, once it is known which there are.
    async fn find(&self, pod: &Pod, volume: &Volume) -> BTreeMap<Key, Found> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        self.inner.objects.find(payload::keys(namespace, volume)).await
    }

    /// From now on the pod's files follow the objects they show, and the pod itself, until the answer is dropped; `None`
    /// when it has no such volumes. What cannot be shown is told to `recorder`.
    pub fn keep(&self, pod: &Pod, recorder: &Recorder) -> Option<Keeper> {
        Keeper::start(self, pod, recorder)
    }

    /// Runs `f` on a blocking thread with the pod's directory to itself.
    fn blocking<T: Send + 'static>(
        &self,
        uid: &PodUid,
        f: impl FnOnce(&Path) -> T + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        let (lock, pod_dir) = (self.inner.lock_of(uid), self.pod_dir(uid));
        tokio::task::spawn_blocking(move || {
            let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
            f(&pod_dir)
        })
    }

    /// The `volumeMounts` of `container` as CRI mounts, in order; `/etc/hosts` and the termination log are the
    /// caller's. `expand` replaces `$(VAR)` in `subPathExpr` and answers the message of a failure
    /// (`missing value for X`); `rro` is whether the pod's runtime handler has recursive read-only mounts. Sub paths
    /// are bound below the pod's directory on a blocking thread; without any it answers at once.
    pub async fn mounts(
        &self,
        pod: &Pod,
        container: &Container,
        mounted: &Mounted,
        rro: bool,
        expand: &(dyn Fn(&str) -> Result<String, String> + Sync),
    ) -> Result<Vec<Mount>, MountError> {
        let place = |volume: &str| match mounted.images.get(volume) {
            Some(image) => Some(Place::Image(image.clone())),
            None => mounted.path(volume).map(|path| Place::Path {
                path: path.to_owned(),
                read_only: mounted.read_only.contains(volume),
            }),
        };
        let planned = policy::plan(pod, container, &place, rro, expand)?;
        if planned.iter().all(|p| p.sub_path.is_none()) {
            return Ok(planned.into_iter().map(|p| p.mount).collect());
        }
        let pod_dir = self.pod_dir(&PodRef::of(pod).uid);
        let name = container.name.clone();
        let work = tokio::task::spawn_blocking(move || bind_sub_paths(&pod_dir, &name, planned));
        work.await.map_err(|e| MountError::new(e.to_string()))?
    }

    /// Unmounts and removes the pod's volumes; the rest of its directory stays. Idempotent. To be called when no container
    /// of the pod is left.
    pub async fn release(&self, uid: &PodUid) -> Result<(), TeardownError> {
        self.tear(uid, teardown::volumes).await
    }

    /// Unmounts the pod's volumes and removes its directory. Idempotent. To be called when no container of the pod is
    /// left; a volume still in use is an error that says which.
    pub async fn teardown(&self, uid: &PodUid) -> Result<(), TeardownError> {
        self.tear(uid, teardown::teardown).await
    }

    async fn tear(
        &self,
        uid: &PodUid,
        what: fn(&Path, &Path) -> Result<(), TeardownError>,
    ) -> Result<(), TeardownError> {
        // A UID that cannot name a directory has none.
        if !policy::is_file_name(uid.as_str()) {
            return Ok(());
        }
        let (inner, name) = (self.inner.clone(), uid.to_string());
        let work = self.blocking(uid, move |_| {
            // Without links, as the mount table spells it.
            let pods = inner.pods.canonicalize().map_err(IoError::at("resolve", &inner.pods))?;
            what(&pods.join(name), &inner.mount_table)
        });
        work.await.map_err(|e| IoError::at("remove", &self.pod_dir(uid))(std::io::Error::other(e)))?
    }

    /// Every pod with a directory, made by this or an earlier incarnation. Reads one directory; blocking.
    pub fn pods_on_disk(&self) -> Result<Vec<PodUid>, IoError> {
        let pods = &self.inner.pods;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(pods).map_err(IoError::at("read", pods))? {
            let entry = entry.map_err(IoError::at("read", pods))?;
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                found.extend(entry.file_name().to_str().map(PodUid::new));
            }
        }
        found.sort();
        Ok(found)
    }
}

/// A volume to set up.
struct Job {
    name: String,
    kind: Kind,
    /// Of [`Kind::Files`].
    files: Payload,
}

/// Blocks. The volumes that could be set up, and the failures.
fn set_up_all(pod_dir: &Path, wanted: Vec<Job>, fs_group: Option<i64>) -> (Mounted, Vec<VolumeError>) {
    let mut mounted = Mounted::default();
    let mut failures = Vec::new();
    for Job { name, kind, files } in wanted {
        let place = empty_dir::Place::of(&name);
        let done = match kind {
            Kind::EmptyDir => empty_dir::setup(pod_dir, &place, None, fs_group).map_err(|e| e.to_string()),
            Kind::Memory { size } => {
                empty_dir::setup(pod_dir, &place, Some(size), fs_group).map_err(|e| e.to_string())
            }
            Kind::Files { plugin, size } => {
                mounted.read_only.insert(name.clone());
                files::setup(pod_dir, &name, plugin, size, &files, fs_group).map_err(|e| e.to_string())
            }
            Kind::HostPath { path, type_ } => host_path::check(&path, &type_).map(|()| path),
            Kind::Image => continue,
        };
        match done {
            Ok(path) => drop(mounted.by_name.insert(name, path)),
            Err(why) => failures.push(VolumeError::setup(&name, why)),
        }
    }
    (mounted, failures)
}

/// Blocks. Binds the sub paths of `container` and points its mounts at them.
fn bind_sub_paths(pod_dir: &Path, container: &str, planned: Vec<Planned>) -> Result<Vec<Mount>, MountError> {
    let mut mounts = Vec::with_capacity(planned.len());
    for Planned { mut mount, volume, sub_path, index } in planned {
        if let Some(sub_path) = sub_path {
            let failed = |what: &str, why: &IoError| {
                tracing::warn!(container, volume, sub_path, %why, "subPath cannot be mounted");
                MountError::new(format!(
                    "failed to {what} for volumeMount {volume:?} of container {container:?}"
                ))
            };
            let parent = dirs::make_below(pod_dir, &["volume-subpaths", &volume, container], 0o750)
                .map_err(|why| failed("prepare subPath", &why))?;
            let target = parent.join(index.to_string());
            subpath::bind(Path::new(&mount.host_path), &sub_path, &target).map_err(|e| match e {
                subpath::Failure::Create(why) => failed("create subPath directory", &why),
                subpath::Failure::Prepare(why) => failed("prepare subPath", &why),
            })?;
            mount.host_path = target.to_string_lossy().into_owned();
        }
        mounts.push(mount);
    }
    Ok(mounts)
}

#[cfg(test)]
mod tests;
