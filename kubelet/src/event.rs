//! Events: what the agent tells a pod's or the node's owner, with upstream's reasons and messages.
//!
//! Rooms call [`Recorder::record`]; it never blocks and never fails. `assemble` decides where events go: the log, a
//! bounded in-memory ring, and later the API server (a subscriber of [`Recorder::subscribe`]).

use crate::api::PodRef;
use std::borrow::Cow;
use std::collections::BTreeMap;
use tokio::sync::broadcast;

/// `type` of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `Normal`
    Normal,
    /// `Warning`
    Warning,
}

/// One event as it happened; aggregation of repeats is the sink's business.
#[derive(Clone, Debug)]
pub struct Event {
    /// The pod it is about; `None` for the node.
    pub pod: Option<PodRef>,
    /// `involvedObject.fieldPath`, such as `spec.containers{web}`.
    pub field_path: Option<String>,
    /// `Normal` or `Warning`.
    pub kind: Kind,
    /// Upstream's reason, such as `Pulled`.
    pub reason: Cow<'static, str>,
    /// Upstream's message.
    pub message: String,
    /// Upstream's annotations, which few events have.
    pub annotations: BTreeMap<String, String>,
}

/// The handle rooms hold. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Recorder {
    tx: broadcast::Sender<Event>,
}

impl Recorder {
    /// A recorder whose slow subscribers lose events past `capacity`, never the recorder.
    pub fn new(capacity: usize) -> Self {
        Self { tx: broadcast::channel(capacity).0 }
    }

    /// Publishes `event` and logs it.
    pub fn record(&self, event: Event) {
        let pod = event.pod.as_ref().map(tracing::field::display);
        match event.kind {
            Kind::Normal => {
                tracing::debug!(pod, reason = %event.reason, field = event.field_path, "{}", event.message);
            }
            Kind::Warning => {
                tracing::warn!(pod, reason = %event.reason, field = event.field_path, "{}", event.message);
            }
        }
        // No subscriber is not an error: the log has it.
        let _ = self.tx.send(event);
    }

    /// Everything recorded from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.tx.subscribe()
    }
}

/// `spec.containers{name}` and its init and ephemeral siblings: the field path of a container's events.
pub fn container_path(list: ContainerList, name: &str) -> String {
    format!("spec.{}{{{name}}}", list.field())
}

/// Which list of the pod's spec a container stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ContainerList {
    /// `spec.initContainers`
    Init,
    /// `spec.containers`
    Regular,
    /// `spec.ephemeralContainers`
    Ephemeral,
}

impl ContainerList {
    /// The field's name in the spec.
    pub fn field(self) -> &'static str {
        match self {
            ContainerList::Init => "initContainers",
            ContainerList::Regular => "containers",
            ContainerList::Ephemeral => "ephemeralContainers",
        }
    }
}

/// `source.component` of every event.
pub const COMPONENT: &str = "kubelet";
