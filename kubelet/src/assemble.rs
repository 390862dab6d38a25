//! Puts the agent together: the only module that knows every room.
//!
//! Start-up order is in the types. [`Agent::start`] takes a runtime that has answered (its [`Capabilities`]), makes the
//! node's cgroups and directories, starts pleg, world, sources and server, and returns at once; pods are taken on as
//! soon as pleg has the first full picture. Nothing that was running is touched by any of this.
//!
//! | task | takes | gives |
//! | --- | --- | --- |
//! | pleg | runtime events, look requests | `watch<Arc<Observed>>` per pod, one `Picture` |
//! | world | `SourceEvent`s, the `Picture` | `watch<Desired>` per pod, the `Directory` |
//! | a pod's actor | `Desired`, `Observed` | calls to the runtime, statuses, events |
//! | probes | targets from actors | `watch<Arc<Readiness>>` per pod, events, a file per pod |
//! | log rotation | what runs, by pleg; inotify | renamed logs, `ReopenContainerLog` |
//! | ended containers | what is seen, by pleg; a full disk | `watch` of those condemned, to actors |
//! | eviction | measurements, the kernel's notifications | orders to world, `watch<Pressure>`, events |
//! | the kernel's log | `/dev/kmsg` | events |
//! | allocations (one task each for allocated and actuated) | what pods were given | `allocated_pods_state`, `actuated_pods_state` |
//! | file source | inotify | `SourceEvent`s |
//! | objects | inotify | `watch<State>` per ConfigMap and Secret |
//! | keeper of a pod's volumes | objects, the pod | files, events |
//! | server | HTTP | what the [`View`] shows |

mod eviction;
mod measured;

use crate::allocation::{self, Store};
use crate::api::{Origin, Pod, PodRef};
use crate::cgroup::{CgroupConfig, Cgroups, Driver, NodeValues, Reserved, Version};
use crate::clock::Clock;
use crate::event::{Event, Kind, Recorder};
use crate::evict::{self, EvictConfig, Measure, Pressure};
use crate::image::{ImageConfig, Images};
use crate::log::{Rotation, RotationConfig, RunningLog};
use crate::metrics::Metrics;
use crate::network::Network;
use crate::objects::{self, Objects};
use crate::pleg::observed::State;
use crate::pleg::{self, Pleg};
use crate::pod::Rooms;
use crate::pod::dead::{self, DeadConfig};
use crate::pod::translate::NodeFacts;
use crate::pod::translate::fields::FileValues;
use crate::probe::{Live, Prober, Probes};
use crate::source::{self, References, SourceEvent};
use crate::stats::{self, Stats};
use crate::status::{NodeIdentity, Statuses};
use crate::trace::Tracer;
use crate::userns::{Pool, UserNamespaces};
use crate::volume::{VolumeConfig, Volumes};
use crate::world::{self, Directory, World, admit};
use cri::Capabilities;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Everything the agent is told; `settings` makes it from flags and configuration, tests by hand.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `--root-dir`
    pub root_dir: PathBuf,
    /// `--cert-dir`
    pub cert_dir: PathBuf,
    /// Where the links to containers' log files go.
    pub log_links_dir: PathBuf,
    /// The node's `/etc/hosts`.
    pub host_hosts_file: PathBuf,
    /// `/proc/self/mountinfo`
    pub mount_table: PathBuf,
    /// What goes into CRI messages; what the runtime announced is filled in at start.
    pub facts: NodeFacts,
    /// What pods may have of the node.
    pub node: admit::Node,
    /// The node's cgroups.
    pub cgroup: CgroupConfig,
    /// Values of the cgroup that holds all pods.
    pub node_cgroup: NodeValues,
    /// `crashLoopBackOff.maxContainerRestartPeriod`
    pub backoff_cap: Duration,
    /// Which ended containers are kept.
    pub dead: DeadConfig,
    /// The wall clock.
    pub clock: Clock,
    /// User and group ids for pods with a user namespace of their own.
    pub user_ids: Pool,
    /// How images are pulled and with what.
    pub images: ImageConfig,
    /// When pods are evicted.
    pub evict: EvictConfig,
    /// Who measures for that; `None`: the agent itself.
    pub measure: Option<Arc<dyn Measure>>,
    /// The kernel's log; `None`: it is not read.
    pub kernel_log: Option<PathBuf>,
    /// How containers are probed; `None`: over the runtime and the network.
    pub prober: Option<Arc<dyn Prober>>,
    /// Where the spans of starts go.
    pub tracer: Tracer,
    /// `volumeStatsAggPeriod`; `None`: volumes are not measured.
    pub volume_stats_period: Option<Duration>,
    /// When containers' logs are rotated.
    pub log_rotation: RotationConfig,
    /// How often pleg looks when nothing tells it to.
    pub pleg: pleg::Config,
    /// The manifest directory and the interval of its net (`staticPodPath`, `fileCheckFrequency`).
    pub manifests: Option<(PathBuf, Duration)>,
    /// The directory of pods as an API server would have them and the interval of its net (`--standalone-pods`,
    /// `fileCheckFrequency`).
    pub pods: Option<(PathBuf, Duration)>,
    /// The directory of ConfigMaps and Secrets and the interval of its net (`--standalone-objects`,
    /// `fileCheckFrequency`).
    pub objects: Option<(PathBuf, Duration)>,
    /// Another source will feed [`Agent::sources`] and tell when it is synced.
    pub other_sources: HashSet<Origin>,
}

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The node's cgroups.
    #[error("cannot set up the node's cgroups: {0}")]
    Cgroup(#[from] crate::cgroup::Error),
    /// A reservation.
    #[error("cannot enforce a reservation: {0}")]
    Reserved(crate::cgroup::Error),
    /// The cgroup hierarchy lacks what pods need.
    #[error("cgroup controllers {0:?} are not available")]
    Controllers(Vec<&'static str>),
    /// A directory.
    #[error("cannot set up the agent's directories: {0}")]
    Volume(#[from] crate::volume::IoError),
    /// Another directory.
    #[error("cannot make {path}: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Growing logs cannot be watched.
    #[error("cannot watch containers' logs: {0}")]
    Logs(std::io::Error),
    /// Manifests cannot be watched.
    #[error("staticPodPath: cannot watch it: {0}")]
    Watch(std::io::Error),
    /// Pods cannot be watched.
    #[error("--standalone-pods: cannot watch it: {0}")]
    WatchPods(std::io::Error),
    /// Objects cannot be watched.
    #[error("--standalone-objects: cannot watch it: {0}")]
    WatchObjects(std::io::Error),
    /// The agent's cgroup driver is not the runtime's.
    #[error(
        "cgroupDriver: the runtime uses {runtime}, the agent is configured for {agent}: pods would be in two \
         hierarchies; leave cgroupDriver out to take the runtime's"
    )]
    Driver {
        /// What the runtime announced.
        runtime: &'static str,
        /// What is configured.
        agent: &'static str,
    },
}

/// The running agent. Dropping it ends its tasks and leaves every pod running.
#[derive(Debug)]
pub struct Agent {
    /// Feeds pods to `world`, beside the file source.
    pub sources: mpsc::Sender<SourceEvent>,
    /// The pods' statuses.
    pub statuses: Statuses,
    /// The pods.
    pub directory: Directory,
    /// Events.
    pub recorder: Recorder,
    /// Measurements.
    pub metrics: Metrics,
    /// Looks at the runtime.
    pub pleg: Pleg,
    /// What the node and its pods use.
    pub stats: Stats,
    /// What the node is short of.
    pub pressure: watch::Receiver<Pressure>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Agent {
    /// Starts everything on `runtime`, which announced `capabilities`.
    ///
    /// # Errors
    /// What the node must have and has not; see [`StartError`].
    pub async fn start(
        settings: Settings,
        runtime: cri::Client,
        capabilities: &Capabilities,
        metrics: Metrics,
    ) -> Result<Self, StartError> {
        let driver = choose_driver(settings.cgroup.driver, capabilities.cgroup_driver)?;
        tracing::info!(driver = driver.as_str(), "cgroup driver");
        let reserved = settings.cgroup.reserved.clone();
        let cgroups = Cgroups::detect(CgroupConfig { driver: Some(driver), ..settings.cgroup })?;
        let missing = cgroups.missing_controllers();
        if !missing.is_empty() {
            return Err(StartError::Controllers(missing));
        }
        metrics.cgroup_version.set(if matches!(cgroups.version(), Version::V2 { .. }) { 2.0 } else { 1.0 });
        cgroups.setup_node(&settings.node_cgroup).await?;
        let recorder = Recorder::new(1024);
        for reserved in &reserved {
            enforce(&cgroups, reserved, &recorder).await?;
        }
        let mut tasks = vec![
            tokio::spawn(cgroups.clone().keep_classes(tell_of_node(&cgroups, recorder.clone()))),
            tokio::spawn(watch_driver(cgroups.clone(), runtime.connection())),
        ];
        // Before any pod: what they refer to must be known when they ask.
        let (objects, references) = objects(settings.objects, &mut tasks)?;
        let mut facts = settings.facts;
        let handler = capabilities.handlers.get("").cloned().unwrap_or_default();
        facts.runtime.supplemental_groups_policy = capabilities.features.supplemental_groups_policy;
        facts.runtime.user_namespaces = handler.user_namespaces;
        let facts = Arc::new(facts);
        let volumes = Volumes::new(VolumeConfig {
            root_dir: settings.root_dir.clone(),
            mount_table: settings.mount_table.clone(),
            allocatable_memory: Some(facts.allocatable.memory_bytes),
            objects: objects.clone(),
            values: Arc::new(FileValues(facts.clone())),
        })?;
        for dir in [&facts.pod_logs_dir, &settings.log_links_dir] {
            std::fs::create_dir_all(dir)
                .map_err(|source| StartError::Directory { path: dir.clone(), source })?;
        }
        let (allocated, keep_allocated) = Store::open(&settings.root_dir, allocation::ALLOCATED);
        let (actuated, keep_actuated) = Store::open(&settings.root_dir, allocation::ACTUATED);
        tasks.extend([tokio::spawn(keep_allocated), tokio::spawn(keep_actuated)]);
        let rotated = rotation(settings.log_rotation, &runtime, settings.clock, &mut tasks)?;
        let (on_change, dead, condemned) = counted(settings.dead, settings.clock, rotated, &mut tasks);
        let (pleg, picture, strays) = Pleg::spawn(runtime.clone(), settings.pleg, metrics.clone(), on_change);
        let statuses = Statuses::default();
        let directory = Directory::default();
        let stats = Stats::new(
            stats::Config {
                node_name: facts.node_name.clone(),
                root_dir: settings.root_dir.clone(),
                pod_logs_dir: facts.pod_logs_dir.clone(),
                mount_table: settings.mount_table,
                volume_period: settings.volume_stats_period,
            },
            cgroups.lookup(),
            Arc::new(measured::Measured { directory: directory.clone(), pleg: pleg.clone() }),
            Arc::new(runtime.clone()),
        );
        let prober = settings.prober.unwrap_or_else(|| Arc::new(Live::new(runtime.clone())));
        let rooms = Arc::new(Rooms {
            images: Images::new(
                Arc::new(runtime.clone()),
                settings.images,
                recorder.clone(),
                metrics.clone(),
            ),
            network: Network::new(runtime.clone()),
            runtime,
            pleg: pleg.clone(),
            probes: Probes::spawn(prober.clone(), recorder.clone(), metrics.clone(), settings.clock),
            prober,
            user_namespaces: UserNamespaces::open(settings.user_ids, &settings.root_dir.join("pods")),
            volumes,
            objects,
            cgroups,
            allocated,
            actuated,
            log_links_dir: settings.log_links_dir,
            identity: NodeIdentity {
                ips: facts.node_ips.clone(),
                runtime_name: capabilities.runtime_name.clone(),
                recursive_read_only: handler.recursive_read_only_mounts,
                stop_signals: facts.container_stop_signals,
            },
            facts,
            statuses: statuses.clone(),
            recorder: recorder.clone(),
            metrics: metrics.clone(),
            tracer: settings.tracer,
            host_hosts_file: settings.host_hosts_file,
            recursive_read_only: handler.recursive_read_only_mounts,
            clock: settings.clock,
            backoff_cap: settings.backoff_cap,
            dead: settings.dead,
            condemned,
        });
        let measure = settings.measure.unwrap_or_else(|| {
            let (stats, root_dir) = (stats.clone(), settings.root_dir.clone());
            Arc::new(eviction::Numbers { stats, runtime: rooms.runtime.clone(), root_dir })
        });
        let (sources, events) = mpsc::channel(256);
        let mut expected = settings.other_sources;
        if let Some((dir, net)) = settings.pods {
            expected.insert(Origin::Api);
            let (node, events) = (&rooms.facts.node_name, sources.clone());
            let pods = source::file::spawn_objects(dir, node, references, net, events, recorder.clone());
            tasks.push(pods.map_err(StartError::WatchPods)?.task);
        }
        if let Some((dir, net)) = settings.manifests {
            expected.insert(Origin::File);
            let (node, events) = (&rooms.facts.node_name, sources.clone());
            let file = source::file::spawn(dir, node, references, net, events, recorder.clone());
            tasks.push(file.map_err(StartError::Watch)?.task);
        }
        let (evictions, pressure) = evict(settings.evict, measure, &rooms, &directory, dead, &mut tasks);
        if let Some(log) = settings.kernel_log {
            let (recorder, of) = (recorder.clone(), directory.clone());
            tasks.push(tokio::spawn(async move {
                evict::oom::watch(&log, recorder, |uid| eviction::pod(&of, uid)).await;
            }));
        }
        let config =
            world::Config { node: settings.node, sources: expected, evictions, pressure: pressure.clone() };
        tasks.push(tokio::spawn(rooms.images.clone().collect_garbage()));
        let world = World::new(rooms, config, directory.clone());
        tasks.push(tokio::spawn(world.run(events, picture, strays)));
        Ok(Self { sources, statuses, directory, recorder, metrics, pleg, stats, pressure, tasks })
    }

    /// Every pod of the node with its present status.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.directory.sources().iter().map(|pod| self.with_status(pod)).collect()
    }

    /// The pod of that namespace and name with its present status.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.directory.named(namespace, name).map(|pod| self.with_status(&pod))
    }

    /// Whether the loops make progress: the runtime has been seen whole, and lately.
    ///
    /// # Errors
    /// What is wrong, for whoever asks for health.
    pub fn healthy(&self) -> Result<(), String> {
        let health = self.pleg.health();
        match (health.last_full, health.error) {
            (None, None) => Err("the container runtime has not been seen whole yet".to_owned()),
            (_, Some(error)) => Err(format!("the container runtime cannot be seen: {error}")),
            (Some(_), None) => Ok(()),
        }
    }

    fn with_status(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        match self.statuses.get(&PodRef::of(pod).uid) {
            Some(status) => Arc::new(Pod { status: Some((*status).clone()), ..(**pod).clone() }),
            None => pod.clone(),
        }
    }
}

/// The objects of the node, and which of them static pods may refer to.
fn objects(
    dir: Option<(PathBuf, Duration)>,
    tasks: &mut Vec<JoinHandle<()>>,
) -> Result<(Objects, References), StartError> {
    let Some((dir, net)) = dir else { return Ok((Objects::none(), References::None)) };
    let (source, watched) = objects::file::spawn(dir, net).map_err(StartError::WatchObjects)?;
    tasks.push(watched.task);
    Ok((Objects::new(source), References::Objects))
}

/// Starts eviction: what comes back is for `world`.
fn evict(
    config: EvictConfig,
    measure: Arc<dyn Measure>,
    rooms: &Arc<Rooms>,
    directory: &Directory,
    dead: dead::Count,
    tasks: &mut Vec<JoinHandle<()>>,
) -> (mpsc::Receiver<evict::Order>, watch::Receiver<Pressure>) {
    let (directory, statuses, volumes) = (directory.clone(), rooms.statuses.clone(), rooms.volumes.clone());
    let rooms = evict::Rooms {
        measure,
        reclaim: Arc::new(eviction::Unused { images: rooms.images.clone(), dead }),
        pods: Arc::new(move || eviction::active(&directory, &statuses)),
        pod_dir: Arc::new(move |uid| volumes.pod_dir(uid)),
        cgroup: eviction::memory_cgroup(&rooms.cgroups.lookup()),
        recorder: rooms.recorder.clone(),
        metrics: rooms.metrics.clone(),
        node_name: rooms.facts.node_name.clone(),
    };
    let (orders, pressure, task) = evict::spawn(config, rooms);
    tasks.push(task);
    (orders, pressure)
}

/// Starts log rotation, unless it is switched off; what comes back tells it which containers run.
fn rotation(
    config: RotationConfig,
    runtime: &cri::Client,
    clock: Clock,
    tasks: &mut Vec<JoinHandle<()>>,
) -> Result<pleg::OnChange, StartError> {
    if config.max_size.is_none() {
        return Ok(Box::new(|_, _| ()));
    }
    let (rotation, task) =
        Rotation::spawn(config, Arc::new(runtime.clone()), clock).map_err(StartError::Logs)?;
    tasks.push(task);
    Ok(Box::new(move |uid, seen| {
        let running = seen.containers.iter().filter(|c| c.state == State::Running);
        let log = |c: &pleg::observed::Instance| RunningLog {
            id: c.id.as_str().into(),
            path: std::path::Path::new(&c.log_path).into(),
        };
        rotation.running(uid, running.map(log).collect());
    }))
}

/// Ended containers of the whole node are counted as they are seen: there may be a limit, and a full disk may want them gone.
fn counted(
    config: DeadConfig,
    clock: Clock,
    on_change: pleg::OnChange,
    tasks: &mut Vec<JoinHandle<()>>,
) -> (pleg::OnChange, dead::Count, dead::Condemned) {
    let (count, condemned, task) = dead::spawn(config, clock);
    tasks.push(task);
    let dead = count.clone();
    let both: pleg::OnChange = Box::new(move |uid, seen| {
        on_change(uid, seen);
        count.seen(uid, seen);
    });
    (both, dead, condemned)
}

/// Enforces a reservation and tells of it as the stock agent does.
async fn enforce(cgroups: &Cgroups, reserved: &Reserved, recorder: &Recorder) -> Result<(), StartError> {
    let cgroup = &reserved.cgroup;
    let tell = |kind, reason, message| recorder.record(of_node(kind, reason, message));
    match cgroups.enforce_reserved(reserved).await {
        Ok(()) => {
            let message =
                format!("Updated limits on {} reserved cgroup {cgroup}", reserved.whom.to_lowercase());
            tell(Kind::Normal, "NodeAllocatableEnforced", message);
            Ok(())
        }
        Err(error) => {
            let whom = reserved.whom;
            let message = format!("Failed to enforce {whom} Reserved Cgroup Limits on {cgroup:?}: {error}");
            tracing::error!("{message}");
            tell(Kind::Warning, "FailedNodeAllocatableEnforcement", message);
            Err(StartError::Reserved(error))
        }
    }
}

/// An event of the node.
fn of_node(kind: Kind, reason: &'static str, message: String) -> Event {
    let (reason, annotations) = (reason.into(), Default::default());
    Event { pod: None, field_path: None, kind, reason, message, annotations }
}

/// Tells whether the cgroup of all pods has its limits, as the stock agent does.
fn tell_of_node(
    cgroups: &Cgroups,
    recorder: Recorder,
) -> impl Fn(Result<(), &crate::cgroup::Error>) + Send + use<> {
    let cgroup = cgroups.of_all_pods();
    move |limited| match limited {
        Ok(()) => {
            let message = "Updated Node Allocatable limit across pods".to_owned();
            recorder.record(of_node(Kind::Normal, "NodeAllocatableEnforced", message));
        }
        Err(error) => {
            let message = format!("Failed to update Node Allocatable Limits {cgroup:?}: {error}");
            recorder.record(of_node(Kind::Warning, "FailedNodeAllocatableEnforcement", message));
        }
    }
}

/// The cgroup driver: the runtime's where it says, which has to be the configured one if there is one (KEP-4033).
fn choose_driver(
    configured: Option<Driver>,
    runtime: Option<cri::v1::CgroupDriver>,
) -> Result<Driver, StartError> {
    match (configured, runtime.map(driver_of)) {
        (Some(agent), Some(runtime)) if agent != runtime => {
            Err(StartError::Driver { runtime: runtime.as_str(), agent: agent.as_str() })
        }
        (configured, runtime) => Ok(configured.or(runtime).unwrap_or_default()),
    }
}

fn driver_of(driver: cri::v1::CgroupDriver) -> Driver {
    match driver {
        cri::v1::CgroupDriver::Cgroupfs => Driver::Cgroupfs,
        cri::v1::CgroupDriver::Systemd => Driver::Systemd,
    }
}

/// A runtime may come back with another driver: no pod is started while it has it.
async fn watch_driver(cgroups: Cgroups, mut connection: watch::Receiver<cri::Connection>) {
    // It may have come back before anybody looked.
    connection.mark_changed();
    while connection.changed().await.is_ok() {
        let now = connection.borrow_and_update().capabilities().map(|c| c.cgroup_driver);
        if let Some(said) = now {
            // One that does not say takes what it is given.
            cgroups.runtime_uses(said.map_or(cgroups.driver(), driver_of));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtimes_cgroup_driver_is_taken_unless_another_was_asked_for() {
        use cri::v1::CgroupDriver;
        let table = [
            (None, None, Some(Driver::Cgroupfs)),
            (Some(Driver::Systemd), None, Some(Driver::Systemd)),
            (None, Some(CgroupDriver::Systemd), Some(Driver::Systemd)),
            (None, Some(CgroupDriver::Cgroupfs), Some(Driver::Cgroupfs)),
            (Some(Driver::Systemd), Some(CgroupDriver::Systemd), Some(Driver::Systemd)),
            (Some(Driver::Systemd), Some(CgroupDriver::Cgroupfs), None),
            (Some(Driver::Cgroupfs), Some(CgroupDriver::Systemd), None),
        ];
        for (configured, runtime, want) in table {
            assert_eq!(choose_driver(configured, runtime).ok(), want, "{configured:?} {runtime:?}");
        }
    }
}
