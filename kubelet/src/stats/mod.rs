//! Numbers: what the node, its pods and their containers use, for `/stats/summary`, `/metrics/cadvisor`,
//! `/metrics/resource` and for eviction.
//!
//! `assemble` makes one [`Stats`] and tells it the pods through [`Population`]; `server` shows what it gives, `evict`
//! decides by it. Nothing is read unless somebody asks. What was read is shared among all who ask for as long as it is
//! fresh enough for them, so the cost is bounded by how often it may be refreshed, not by who asks:
//!
//! ```text
//!  cgroup files, /proc/<pid>/net/dev ──▶ Sample ──┬──▶ Summary, PodStats
//!  statfs, quotas, walks, ListContainerStats ──▶ Disk ─┘
//! ```
//!
//! The room changes nothing, follows no link, waits for no runtime beyond a deadline, and shows nothing it does not know.
//! Files are read on blocking threads.

mod answer;
mod build;
mod counters;
mod disk;
mod disks;
mod files;
mod fresh;
mod machine;
mod network;
mod node;
mod page;
mod processes;
pub mod reading;
mod runtime;
mod sample;
mod subject;
pub mod summary;
mod usage;

pub use runtime::Runtime;
pub use subject::{Population, Subject, Unit};
pub use summary::{FsStats, PodStats, RlimitStats, Summary};

use crate::cgroup::Lookup;
use build::Machine;
use bytes::Bytes;
use counters::Open;
use disk::Disk;
use disks::Disks;
use files::Reader;
use fresh::Fresh;
use futures::FutureExt;
use jiff::Timestamp;
use sample::{Sample, Sampler};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What the room must be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name.
    pub node_name: String,
    /// `--root-dir`
    pub root_dir: PathBuf,
    /// `podLogsDir`
    pub pod_logs_dir: PathBuf,
    /// `/proc/self/mountinfo`
    pub mount_table: PathBuf,
    /// `volumeStatsAggPeriod`: how old what volumes take may be; `None`: volumes are not measured.
    pub volume_period: Option<Duration>,
}

/// The room's handle. Cloning is cheap.
#[derive(Clone)]
pub struct Stats {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    machine: Machine,
    identity: machine::Identity,
    lookup: Lookup,
    runtime: Arc<dyn Runtime>,
    samples: Fresh<Sample>,
    disks: Fresh<Disk>,
    /// Where the runtime keeps images and layers, as it told last.
    stores: Arc<Mutex<Option<Stores>>>,
}

impl std::fmt::Debug for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stats").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

/// Where the runtime keeps things.
#[derive(Clone, Debug)]
struct Stores {
    image: PathBuf,
    container: PathBuf,
}

/// The numbers `memory.available` is made of, bytes, read when asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeMemory {
    /// When they were read.
    pub time: Timestamp,
    /// All there is: the machine's memory, or the limit of the pods' cgroup.
    pub capacity: u64,
    /// What is charged to the cgroup; on v2 the root's anonymous memory and file cache.
    pub usage: u64,
    /// File cache that was not used lately: it can be taken back at once.
    pub inactive_file: u64,
    /// Usage less inactive file cache, never below zero.
    pub working_set: u64,
}

impl NodeMemory {
    /// `memory.available` (or `allocatableMemory.available`): capacity less working set.
    pub fn available(&self) -> u64 {
        self.capacity.saturating_sub(self.working_set)
    }
}

/// How long the runtime may take to answer; then the answer goes without its part.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(2);

impl Stats {
    /// The room of this machine. Reads a few small files; must be called inside tokio.
    pub fn new(
        config: Config,
        lookup: Lookup,
        population: Arc<dyn Population>,
        runtime: Arc<dyn Runtime>,
    ) -> Self {
        let mut reader = Reader::default();
        let machine = Machine {
            node_name: config.node_name.clone(),
            booted: node::boot_time(&mut reader).unwrap_or_default(),
            memory: node::memory_capacity(&mut reader),
        };
        let sampler = Sampler::new(lookup.clone(), population.clone(), config.mount_table.clone());
        let sampler = Arc::new(Mutex::new(sampler));
        let samples = Fresh::spawn(move || {
            let sampler = sampler.clone();
            let take = move || sampler.lock().unwrap_or_else(PoisonError::into_inner).take();
            async move { blocking(take).await.unwrap_or_default() }.boxed()
        });
        let looks = Arc::new(Disks::new(config.clone(), runtime.clone()));
        let stores = Arc::new(Mutex::new(None));
        let newest = stores.clone();
        let disks = Fresh::spawn(move || {
            let (looks, population, newest) = (looks.clone(), population.clone(), newest.clone());
            async move {
                let (disk, told) = looks.look(population.subjects()).await;
                if told.is_some() {
                    *newest.lock().unwrap_or_else(PoisonError::into_inner) = told;
                }
                disk
            }
            .boxed()
        });
        let identity = machine::identity();
        Self { inner: Arc::new(Inner { config, machine, identity, lookup, runtime, samples, disks, stores }) }
    }

    /// Everything `/stats/summary` shows. Cgroup and network counters, file systems and what the runtime tells are at most
    /// `max_age` old. Directories (volumes, logs) are counted again once `volumeStatsAggPeriod` has passed, large ones
    /// later; the `time` beside them tells. Never fails: what cannot be read is not in it.
    pub async fn summary(&self, max_age: Duration) -> Arc<Summary> {
        let (sample, disk) = tokio::join!(self.inner.samples.get(max_age), self.inner.disks.get(max_age));
        Arc::new(self.build(&sample, &disk))
    }

    /// CPU, memory and swap alone, of cgroups; neither disks nor the runtime are asked.
    pub async fn cpu_and_memory(&self, max_age: Duration) -> Arc<Summary> {
        let sample = self.inner.samples.get(max_age).await;
        Arc::new(build::only_cpu_and_memory(self.build(&sample, &Disk::default())))
    }

    /// Puts a summary together; reads three small files of `/proc` for it.
    fn build(&self, sample: &Sample, disk: &Disk) -> Summary {
        let mut reader = Reader::default();
        let (swap, _) = counters::swap_of_machine(&mut reader);
        build::summary(&self.inner.machine, swap, node::processes(&mut reader), sample, disk)
    }

    /// The page of `/metrics/cadvisor`, in pieces that are made when they are taken.
    pub async fn cadvisor(&self, max_age: Duration) -> impl Iterator<Item = Bytes> + Send + use<> {
        let sample = self.inner.samples.get(max_age).await;
        let (swap, _) = counters::swap_of_machine(&mut Reader::default());
        let machine = page::Machine {
            identity: self.inner.identity.clone(),
            memory: self.inner.machine.memory.unwrap_or(0),
            swap,
            booted: self.inner.machine.booted.as_second(),
        };
        page::cadvisor(sample, Arc::new(machine))
    }

    /// The page of `/metrics/resource`.
    pub async fn resource(&self, max_age: Duration) -> Bytes {
        let whole = self.cpu_and_memory(max_age).await;
        page::resource(&whole)
    }

    /// Each pod: memory and CPU, ephemeral storage as a whole and by container and volume, processes. As `summary`.
    pub async fn pods(&self, max_age: Duration) -> Arc<Vec<PodStats>> {
        let (sample, disk) = tokio::join!(self.inner.samples.get(max_age), self.inner.disks.get(max_age));
        Arc::new(build::pods(&sample, &disk))
    }

    /// What `memory.available` is derived from, read now from the root cgroup and `/proc/meminfo`: two or three small
    /// files. `None` where the kernel does not tell.
    pub async fn node_memory(&self) -> Option<NodeMemory> {
        let (lookup, capacity) = (self.inner.lookup.clone(), self.inner.machine.memory?);
        blocking(move || memory(&lookup, "/", Some(capacity))).await?
    }

    /// The same of the cgroup that holds every pod, out of its limit: `allocatableMemory.available`. `None` also where it
    /// has no limit.
    pub async fn allocatable_memory(&self) -> Option<NodeMemory> {
        let (lookup, path) = (self.inner.lookup.clone(), self.inner.lookup.node()?);
        blocking(move || memory(&lookup, &path, None)).await?
    }

    /// The file system of `--root-dir`, now.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn node_fs(&self) -> std::io::Result<FsStats> {
        file_system(self.inner.config.root_dir.clone()).await
    }

    /// The file system of the image store, now: all of it, whoever uses it.
    ///
    /// # Errors
    /// The runtime does not tell where it is, or it does not answer.
    pub async fn image_fs(&self) -> std::io::Result<FsStats> {
        file_system(self.stores().await?.image).await
    }

    /// The file system of writable layers, now; that of images where the runtime does not split them.
    ///
    /// # Errors
    /// The runtime does not tell where it is, or it does not answer.
    pub async fn container_fs(&self) -> std::io::Result<FsStats> {
        file_system(self.stores().await?.container).await
    }

    /// How many tasks there are on the machine and how many there can be, now. Three small files of `/proc`; may be
    /// called anywhere.
    pub fn processes(&self) -> RlimitStats {
        node::processes(&mut Reader::default())
    }

    /// Where images and layers are. A runtime that told once is not asked again: it does not move them while it runs,
    /// and a restarted one answers the next [`Stats::summary`].
    async fn stores(&self) -> std::io::Result<Stores> {
        let known = self.inner.stores.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known {
            return Ok(known);
        }
        let asked = tokio::time::timeout(RUNTIME_DEADLINE, self.inner.runtime.image_fs()).await;
        let info = asked
            .unwrap_or_else(|_| Err("ImageFsInfo: no answer in time".to_owned()))
            .map_err(std::io::Error::other)?;
        let place = |list: Vec<cri::v1::FilesystemUsage>| {
            let mountpoint = list.into_iter().find_map(|fs| fs.fs_id).map(|id| id.mountpoint);
            mountpoint.filter(|m| !m.is_empty()).map(PathBuf::from)
        };
        let image = place(info.image_filesystems)
            .ok_or_else(|| std::io::Error::other("ImageFsInfo: the runtime tells no image file system"))?;
        let container = place(info.container_filesystems).unwrap_or_else(|| image.clone());
        let stores = Stores { image, container };
        *self.inner.stores.lock().unwrap_or_else(PoisonError::into_inner) = Some(stores.clone());
        Ok(stores)
    }
}

fn memory(lookup: &Lookup, path: &str, capacity: Option<u64>) -> Option<NodeMemory> {
    let mut reader = Reader::default();
    let open = Open::new(lookup, path)?;
    let m = open.memory(&mut reader)?;
    let capacity = match capacity {
        Some(capacity) => capacity,
        None => open.limits(&mut reader).memory?,
    };
    Some(NodeMemory {
        time: Timestamp::now(),
        capacity,
        usage: m.usage,
        inactive_file: m.inactive_file,
        working_set: m.working_set,
    })
}

async fn file_system(path: PathBuf) -> std::io::Result<FsStats> {
    match blocking(move || node::file_system(&path)).await {
        Some(fs) => fs,
        None => Err(std::io::ErrorKind::Interrupted.into()),
    }
}

/// Runs `work` on a blocking thread; `None` if it panicked or tokio is shutting down.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Some(done),
        Err(error) => {
            tracing::error!(%error, "numbers could not be read");
            None
        }
    }
}

#[cfg(test)]
mod disk_tests;
#[cfg(test)]
mod kernel_tests;
#[cfg(test)]
pub(crate) mod tests;
