//! What eviction is given of the other rooms: the pods that may go, what they and the node use, and how room is won without
//! ending one.

use crate::api::{PodRef, PodUid};
use crate::cgroup::Lookup;
use crate::evict::{
    Active, ContainerUse, Detail, DiskUse, Layout, Left, Measure, MemoryCgroup, Observations, PodUse,
    Reclaim, Signal,
};
use crate::image::Images;
use crate::pod::dead::Count;
use crate::pod::translate;
use crate::stats::{FsStats, PodStats, Stats};
use crate::status::{self, Statuses};
use crate::world::Directory;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Every pod of the node that has not ended and of which something has run: others have nothing that could be won back.
pub(super) fn active(directory: &Directory, statuses: &Statuses) -> Vec<Active> {
    let pods = directory.all().into_iter().filter_map(|pod| {
        let who = PodRef::of(&pod);
        let status = statuses.get(&who.uid)?;
        if status::is_final(&status) || !has_run(&status) {
            return None;
        }
        let asked = translate::pod_resources(&pod);
        let amount = |list: &translate::ResourceList, name| list.get(name).map(|q| q.value());
        Some(Active {
            memory: amount(&asked.requests, "memory").unwrap_or(0),
            storage: amount(&asked.requests, STORAGE).unwrap_or(0),
            storage_limit: amount(&asked.limits, STORAGE).filter(|limit| *limit > 0),
            who,
            pod,
        })
    });
    pods.collect()
}

const STORAGE: &str = "ephemeral-storage";

fn has_run(status: &PodStatus) -> bool {
    let lists =
        [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    let ran = |s: &ContainerStatus| {
        let states = [&s.state, &s.last_state];
        states.into_iter().flatten().any(|s| s.running.is_some() || s.terminated.is_some())
    };
    lists.into_iter().flatten().flatten().any(ran)
}

/// How long the removal of ended containers is waited for.
const REMOVALS: Duration = Duration::from_secs(30);

/// Removes unused images and ended containers.
#[derive(Debug)]
pub(super) struct Unused {
    pub images: Images,
    pub dead: Count,
}

impl Reclaim for Unused {
    fn images(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.images.remove_unused())
    }

    fn containers(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            let done = tokio::time::timeout(REMOVALS, self.dead.purge()).await;
            done.map_err(|_| "some ended containers are still there".to_owned())
        })
    }
}

/// The pod of that UID, for whoever found a trace of it.
pub(super) fn pod(directory: &Directory, uid: &PodUid) -> Option<PodRef> {
    directory.all().iter().map(|pod| PodRef::of(pod)).find(|pod| pod.uid == *uid)
}

/// The cgroup whose memory the kernel is asked to watch.
pub(super) fn memory_cgroup(lookup: &Lookup) -> Option<MemoryCgroup> {
    let dir = lookup.dir("memory", &lookup.node()?)?;
    Some(if lookup.is_v2() { MemoryCgroup::V2(dir) } else { MemoryCgroup::V1(dir) })
}

/// The numbers eviction goes by, taken from `stats`.
#[derive(Debug)]
pub(super) struct Numbers {
    pub stats: Stats,
    pub runtime: cri::Client,
    pub root_dir: PathBuf,
}

/// How long the runtime may take to say where its file systems are.
const RUNTIME: Duration = Duration::from_secs(2);

fn whole(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn left(available: Option<u64>, capacity: Option<u64>) -> Option<Left> {
    Some(Left { available: whole(available?), capacity: whole(capacity?) })
}

/// Space and inodes of a file system, as far as it tells.
fn file_system(into: &mut Observations, fs: std::io::Result<FsStats>, space: Signal, inodes: Signal) {
    match fs {
        Ok(fs) => {
            into.extend(left(fs.available_bytes, fs.capacity_bytes).map(|left| (space, left)));
            // One that has no inodes to run out of says 0 of 0.
            let counted = fs.inodes.filter(|all| *all > 0);
            into.extend(left(fs.inodes_free, counted).map(|left| (inodes, left)));
        }
        Err(error) => tracing::debug!(signal = %space, %error, "cannot be measured"),
    }
}

impl Measure for Numbers {
    fn memory(&self) -> BoxFuture<'_, Observations> {
        Box::pin(async {
            let (node, pods) = tokio::join!(self.stats.node_memory(), self.stats.allocatable_memory());
            let both = [(Signal::Memory, node), (Signal::AllocatableMemory, pods)];
            let seen = both.into_iter().filter_map(|(signal, memory)| {
                let memory = memory?;
                Some((signal, left(Some(memory.available()), Some(memory.capacity))?))
            });
            seen.collect()
        })
    }

    fn node(&self) -> BoxFuture<'_, Observations> {
        Box::pin(async {
            let mut seen = self.memory().await;
            let stats = &self.stats;
            file_system(&mut seen, stats.node_fs().await, Signal::NodeFs, Signal::NodeFsInodes);
            file_system(&mut seen, stats.image_fs().await, Signal::ImageFs, Signal::ImageFsInodes);
            file_system(
                &mut seen,
                stats.container_fs().await,
                Signal::ContainerFs,
                Signal::ContainerFsInodes,
            );
            let tasks = self.stats.processes();
            let free = tasks.max_pid.zip(tasks.current).map(|(max, current)| max.saturating_sub(current));
            seen.extend(left(free, tasks.max_pid).map(|left| (Signal::Pid, left)));
            seen
        })
    }

    fn pods(&self, detail: Detail) -> BoxFuture<'_, HashMap<PodUid, PodUse>> {
        Box::pin(async move {
            match detail {
                Detail::Memory => by_uid(&self.stats.cpu_and_memory(Duration::ZERO).await.pods),
                Detail::Processes | Detail::Disks => by_uid(&self.stats.pods(Duration::ZERO).await),
            }
        })
    }

    fn layout(&self) -> BoxFuture<'_, Option<Layout>> {
        Box::pin(async {
            let info = tokio::time::timeout(RUNTIME, self.runtime.image_fs_info()).await.ok()?.ok()?;
            let place = |list: Vec<cri::v1::FilesystemUsage>| {
                let mountpoint = list.into_iter().find_map(|fs| fs.fs_id).map(|id| id.mountpoint);
                mountpoint.filter(|m| !m.is_empty()).map(PathBuf::from)
            };
            let images = place(info.image_filesystems)?;
            let layers = place(info.container_filesystems).unwrap_or_else(|| images.clone());
            let root_dir = self.root_dir.clone();
            let layout = tokio::task::spawn_blocking(move || layout_of(&root_dir, &images, &layers));
            layout
                .await
                .ok()?
                .inspect_err(|error| tracing::debug!(%error, "cannot tell file systems apart"))
                .ok()
        })
    }
}

/// Which of the three are one file system.
fn layout_of(root_dir: &Path, images: &Path, layers: &Path) -> std::io::Result<Layout> {
    let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev());
    let (root, images, layers) = (device(root_dir)?, device(images)?, device(layers)?);
    Ok(match (images == root, layers == root) {
        (true, _) => Layout::One,
        (false, true) => Layout::OfImages,
        (false, false) => Layout::OfRuntime,
    })
}

fn by_uid(pods: &[PodStats]) -> HashMap<PodUid, PodUse> {
    pods.iter().map(|p| (p.pod.uid.clone(), uses(p))).collect()
}

fn uses(p: &PodStats) -> PodUse {
    // Not every file system has inodes.
    let disk = |fs: &FsStats| Some(DiskUse { bytes: fs.used_bytes?, inodes: fs.inodes_used.unwrap_or(0) });
    let containers = p.containers.iter().map(|c| ContainerUse {
        name: c.name.clone(),
        memory: c.memory.as_ref().and_then(|m| m.working_set_bytes),
        rootfs: c.rootfs.as_ref().and_then(disk),
        logs: c.logs.as_ref().and_then(disk),
    });
    PodUse {
        memory: p.memory.as_ref().and_then(|m| m.working_set_bytes),
        processes: p.process_stats.as_ref().and_then(|s| s.count),
        ephemeral: p.ephemeral_storage.as_ref().and_then(|fs| fs.used_bytes),
        containers: containers.collect(),
        volumes: p.volume.iter().filter_map(|v| Some((v.name.clone(), disk(&v.fs)?))).collect(),
    }
}
