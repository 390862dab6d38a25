//! The rooms an actor asks to get its steps done. Built once by `assemble`, shared by every actor.

use super::dead::{Condemned, DeadConfig};
use super::translate::NodeFacts;
use crate::allocation::Store;
use crate::cgroup::Cgroups;
use crate::clock::Clock;
use crate::event::Recorder;
use crate::image::Images;
use crate::metrics::Metrics;
use crate::network::Network;
use crate::objects::Objects;
use crate::pleg::Pleg;
use crate::probe::{Prober, Probes};
use crate::status::{NodeIdentity, Statuses};
use crate::trace::Tracer;
use crate::userns::UserNamespaces;
use crate::volume::Volumes;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What every actor holds.
#[derive(Debug)]
pub struct Rooms {
    /// The runtime.
    pub runtime: cri::Client,
    /// Looks at it.
    pub pleg: Pleg,
    /// Images.
    pub images: Images,
    /// Probes of containers.
    pub probes: Probes,
    /// Asks what hooks want asked over the network.
    pub prober: Arc<dyn Prober>,
    /// Volumes and the pods' directories.
    pub volumes: Volumes,
    /// ConfigMaps and Secrets.
    pub objects: Objects,
    /// Whether the runtime has a network for pods.
    pub network: Network,
    /// Ids of the node for pods with a user namespace.
    pub user_namespaces: UserNamespaces,
    /// The pods' cgroups.
    pub cgroups: Cgroups,
    /// What resources pods were given; written by `world`.
    pub allocated: Store,
    /// Those that the runtime was last got to take; written by actors.
    pub actuated: Store,
    /// Where the links to log files are: `/var/log/containers`.
    pub log_links_dir: PathBuf,
    /// Facts of the node that go into CRI messages.
    pub facts: Arc<NodeFacts>,
    /// Facts of the node that go into statuses.
    pub identity: NodeIdentity,
    /// Where statuses are published.
    pub statuses: Statuses,
    /// Where events go.
    pub recorder: Recorder,
    /// What is measured.
    pub metrics: Metrics,
    /// Where the spans of starts go.
    pub tracer: Tracer,
    /// `/etc/hosts` of the node, for pods on its network.
    pub host_hosts_file: PathBuf,
    /// The runtime can make read-only mounts recursively so.
    pub recursive_read_only: bool,
    /// The wall clock.
    pub clock: Clock,
    /// Cap of the crash back-off.
    pub backoff_cap: Duration,
    /// Which ended containers are kept.
    pub dead: DeadConfig,
    /// Those that the node has too many of.
    pub condemned: Condemned,
}
