//! Who is measured: the pods of the node and what of them runs. `assemble` tells it; this room asks nobody else.

use crate::api::{Pod, PodRef, Qos};
use std::sync::Arc;

/// The pods to measure. No method may block.
pub trait Population: Send + Sync + 'static {
    /// Every pod that has a sandbox.
    fn subjects(&self) -> Vec<Subject>;
}

/// One pod.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Who it is.
    pub id: PodRef,
    /// Its spec.
    pub pod: Arc<Pod>,
    /// Decides where its cgroup is.
    pub qos: Qos,
    /// Its newest sandbox.
    pub sandbox: Unit,
    /// Its running containers, the newest instance of each.
    pub containers: Vec<Unit>,
}

/// A container or a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// The runtime's id.
    pub id: String,
    /// The container's name in the pod's spec; empty for a sandbox.
    pub name: String,
    /// The image's name as the runtime tells it.
    pub image: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
}

impl Subject {
    /// Whether it uses the node's network.
    pub fn host_network(&self) -> bool {
        crate::api::spec(&self.pod).host_network == Some(true)
    }
}
