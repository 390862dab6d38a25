//! Looks at disks: file systems by `statfs`, directories by counts, writable layers and images by the runtime.
//!
//! The runtime is asked with a deadline, each question on its own; where it lets one pass, what it said last stands
//! (`answer`).

use super::answer::Answer;
use super::disk::{Disk, PodDisk};
use super::node::file_system;
use super::subject::Subject;
use super::summary::{FsStats, VolumeStats};
use super::usage::{Counted, Root, Usage, What};
use super::{Config, RUNTIME_DEADLINE, Runtime, Stores, blocking, build};
use crate::api::{PodUid, Volume, spec};
use cri::v1;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a look waits for counts that are due.
const PATIENCE: Duration = Duration::from_millis(200);

/// Looks. One at a time: see [`super::fresh`].
pub struct Disks {
    config: Config,
    runtime: Arc<dyn Runtime>,
    usage: Usage,
    stores: Answer<v1::ImageFsInfoResponse>,
    layers: Answer<Vec<v1::ContainerStats>>,
}

/// What the runtime told.
struct Told {
    image: Option<v1::FilesystemUsage>,
    container: Option<v1::FilesystemUsage>,
    layers: Option<Arc<Vec<v1::ContainerStats>>>,
}

impl Disks {
    /// Counts nothing yet; must be called inside tokio.
    pub fn new(config: Config, runtime: Arc<dyn Runtime>) -> Self {
        let (stores, layers) = (Answer::new(RUNTIME_DEADLINE), Answer::new(RUNTIME_DEADLINE));
        Self { config, runtime, usage: Usage::spawn(), stores, layers }
    }

    /// What all of it takes now; counted directories as of their last count. Also where the runtime keeps things, if it
    /// told.
    pub async fn look(&self, subjects: Vec<Subject>) -> (Disk, Option<Stores>) {
        let period = self.config.volume_period;
        let plans: Vec<Plan> = subjects.iter().map(|s| Plan::of(s, &self.config, period.is_some())).collect();
        let roots = plans.iter().flat_map(Plan::roots).collect();
        let counts = self.usage.look(roots, period.unwrap_or(UNMEASURED), PATIENCE);
        let (told, counts) = tokio::join!(self.ask(), counts);
        let stores = told.image.as_ref().and_then(place).map(|image| Stores {
            container: told.container.as_ref().and_then(place).unwrap_or_else(|| image.clone()),
            image,
        });
        let root_dir = self.config.root_dir.clone();
        let disk = blocking(move || put_together(&root_dir, &told, &plans, &counts)).await;
        (disk.unwrap_or_default(), stores)
    }

    async fn ask(&self) -> Told {
        let (of_stores, of_layers) = (self.runtime.clone(), self.runtime.clone());
        let (info, layers) = tokio::join!(
            self.stores.get(|| async move { of_stores.image_fs().await }),
            self.layers.get(|| async move { of_layers.container_stats().await }),
        );
        let first = |of: fn(&v1::ImageFsInfoResponse) -> &[v1::FilesystemUsage]| {
            info.as_deref().and_then(|info| of(info).first().cloned())
        };
        Told {
            image: first(|info| &info.image_filesystems),
            container: first(|info| &info.container_filesystems),
            layers,
        }
    }
}

/// Logs are counted even where volumes are not: upstream's default period.
const UNMEASURED: Duration = Duration::from_secs(60);

fn place(fs: &v1::FilesystemUsage) -> Option<PathBuf> {
    fs.fs_id.as_ref().map(|id| &id.mountpoint).filter(|m| !m.is_empty()).map(PathBuf::from)
}

/// What is looked at for one pod.
struct Plan {
    uid: PodUid,
    /// Container id and name, and the directory of its logs.
    containers: Vec<(String, String, Root)>,
    volumes: Vec<Measure>,
    /// Logs of the pod itself, its `/etc/hosts`.
    other: Vec<Root>,
}

/// One volume.
struct Measure {
    name: String,
    root: Root,
    /// In memory: the file system tells.
    memory: bool,
    ephemeral: bool,
}

impl Plan {
    fn of(subject: &Subject, config: &Config, volumes: bool) -> Self {
        let (id, pod_spec) = (&subject.id, spec(&subject.pod));
        let pod_dir = config.root_dir.join("pods").join(id.uid.as_str());
        let logs = config.pod_logs_dir.join(format!("{}_{}_{}", id.namespace, id.name, id.uid));
        let files = |path: PathBuf| Root { path, what: What::Files };
        let container = |c: &super::Unit| (c.id.clone(), c.name.clone(), files(logs.join(&c.name)));
        let volumes = pod_spec.volumes.iter().flatten().filter(|_| volumes);
        let mut other = vec![files(logs.clone())];
        if !subject.host_network() {
            other.push(Root { path: pod_dir.join("etc-hosts"), what: What::File });
        }
        Self {
            uid: id.uid.clone(),
            containers: subject.containers.iter().map(container).collect(),
            volumes: volumes.filter_map(|v| measure(v, &pod_dir)).collect(),
            other,
        }
    }

    fn roots(&self) -> impl Iterator<Item = Root> + '_ {
        let volumes = self.volumes.iter().filter(|v| !v.memory).map(|v| &v.root);
        self.containers.iter().map(|(_, _, logs)| logs).chain(volumes).chain(&self.other).cloned()
    }
}

/// How a volume is measured; `None` for those that are not the pod's own, as with upstream: `hostPath`, images.
/// Ephemeral storage is what upstream counts as such.
fn measure(volume: &Volume, pod_dir: &Path) -> Option<Measure> {
    let memory = volume.empty_dir.as_ref().and_then(|e| e.medium.as_deref()) == Some("Memory");
    let (plugin, ephemeral) = if volume.empty_dir.is_some() {
        ("kubernetes.io~empty-dir", !memory)
    } else if volume.config_map.is_some() {
        ("kubernetes.io~configmap", true)
    } else if volume.secret.is_some() {
        ("kubernetes.io~secret", false)
    } else if volume.downward_api.is_some() {
        ("kubernetes.io~downward-api", false)
    } else if volume.projected.is_some() {
        ("kubernetes.io~projected", false)
    } else {
        return None;
    };
    let path = pod_dir.join("volumes").join(plugin).join(&volume.name);
    Some(Measure { name: volume.name.clone(), root: Root { path, what: What::Tree }, memory, ephemeral })
}

/// Blocks: a `statfs` for each file system and volume.
fn put_together(root_dir: &Path, told: &Told, plans: &[Plan], counts: &HashMap<Root, Counted>) -> Disk {
    let node = file_system(root_dir).ok();
    let image = told.image.as_ref().and_then(store);
    let container = told.container.as_ref().and_then(store).or(image);
    let mut layers = told.layers.as_deref().map(|told| layers(told)).unwrap_or_default();
    let pods = plans.iter().map(|plan| (plan.uid.clone(), pod(plan, node, &mut layers, counts))).collect();
    Disk { node, image, container, pods }
}

fn pod(
    plan: &Plan,
    node: Option<FsStats>,
    layers: &mut HashMap<String, FsStats>,
    counts: &HashMap<Root, Counted>,
) -> PodDisk {
    let counted = |root: &Root, on: Option<FsStats>| Some(used(on?, counts.get(root)?));
    let mut disk = PodDisk::default();
    for (id, name, logs) in &plan.containers {
        disk.rootfs.extend(layers.remove_entry(id));
        disk.logs.extend(counted(logs, node).map(|fs| (name.clone(), fs)));
    }
    for volume in &plan.volumes {
        let Ok(on) = file_system(&volume.root.path) else { continue };
        let fs = if volume.memory { Some(on) } else { counted(&volume.root, Some(on)) };
        let Some(fs) = fs else { continue };
        disk.volumes.push(VolumeStats {
            fs,
            name: volume.name.clone(),
            pvc_ref: None,
            ephemeral: volume.ephemeral,
        });
    }
    disk.other = plan.other.iter().filter_map(|root| counted(root, node)).collect();
    disk
}

/// The file system `on`, and what a count says of it.
fn used(on: FsStats, counted: &Counted) -> FsStats {
    FsStats {
        time: counted.at,
        used_bytes: Some(counted.used.bytes),
        inodes_used: Some(counted.used.inodes),
        ..on
    }
}

/// The file system of the runtime's, and what it says it takes of it.
fn store(fs: &v1::FilesystemUsage) -> Option<FsStats> {
    let on = file_system(&place(fs)?).ok()?;
    Some(told_of(on, fs))
}

fn told_of(on: FsStats, fs: &v1::FilesystemUsage) -> FsStats {
    FsStats {
        time: build::nanos(fs.timestamp),
        used_bytes: fs.used_bytes.as_ref().map(|n| n.value),
        inodes_used: fs.inodes_used.as_ref().map(|n| n.value),
        ..on
    }
}

/// Writable layers by container id. All are on one or two file systems, each asked once.
fn layers(stats: &[v1::ContainerStats]) -> HashMap<String, FsStats> {
    let mut systems: HashMap<PathBuf, Option<FsStats>> = HashMap::new();
    let mut layer = |stats: &v1::ContainerStats| {
        let (attributes, fs) = (stats.attributes.as_ref()?, stats.writable_layer.as_ref()?);
        let path = place(fs)?;
        let on = systems.entry(path).or_insert_with_key(|path| file_system(path).ok());
        Some((attributes.id.clone(), told_of((*on)?, fs)))
    };
    stats.iter().filter_map(&mut layer).collect()
}
