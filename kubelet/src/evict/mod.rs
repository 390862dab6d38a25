//! Eviction: before the node runs out of memory, disk or processes, what nobody needs is removed, and then pods are ended, one
//! at a time, those first that take more than they asked for. And the watch over the kernel's log for processes that it
//! killed because memory had run out all the same.
//!
//! `assemble` starts [`spawn`] and [`oom::watch`]. The task measures (through [`Measure`]), decides (`policy`, pure), reclaims
//! (through [`Reclaim`]) and orders; the orders go to `world`, the only writer of what should run, and so does the
//! [`Pressure`] by which it admits. The room ends no pod itself and never calls back into the flow.
//!
//! | file | |
//! | --- | --- |
//! | `signal`, `threshold` | names; what the configuration says |
//! | `policy` | which thresholds are met, conditions, what to act on |
//! | `rank`, `limits`, `message` | who goes first; who has passed a limit of its own; what is said of it |
//! | `measure` | the seam to whoever measures |
//! | `task` | the loop: measure, reclaim, evict, measure again |
//! | `memory`, `kernel` | when memory is looked at: the kernel's notifications, and a poll as fast as the margin is small |
//! | `record` | a file per evicted pod, so that an eviction outlives the agent |
//! | `oom` | the kernel's log: `SystemOOM` |

mod kernel;
mod limits;
mod measure;
mod memory;
mod message;
pub mod oom;
mod policy;
mod rank;
pub mod record;
mod signal;
mod task;
mod threshold;

pub use kernel::MemoryCgroup;
pub use measure::{ContainerUse, Detail, DiskUse, Left, Measure, Observations, PodUse};
pub use message::{REASON, not_admitted};
pub use rank::Active;
pub use signal::{Condition, Resource, Signal};
pub use task::{Rooms, spawn};
pub use threshold::{Amount, AmountError, Layout, Texts, Threshold, ThresholdError, parse};

use crate::api::PodUid;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::NodeCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;
use tokio::sync::oneshot;

/// What the room must be told.
#[derive(Clone, Debug)]
pub struct EvictConfig {
    /// `evictionHard`, `evictionSoft` and what belongs to them.
    pub thresholds: Vec<Threshold>,
    /// `evictionPressureTransitionPeriod`
    pub transition: Duration,
    /// `evictionMaxPodGracePeriod`
    pub max_grace: Duration,
    /// `localStorageCapacityIsolation`: pods are held to their limits of local storage.
    pub local_limits: bool,
    /// How often everything is measured when nothing tells of a change.
    pub net: Duration,
}

impl Default for EvictConfig {
    /// No thresholds; the rest as configured by default.
    fn default() -> Self {
        Self {
            thresholds: Vec::new(),
            transition: Duration::from_secs(300),
            max_grace: Duration::ZERO,
            local_limits: true,
            net: Duration::from_secs(10),
        }
    }
}

/// Why a pod was evicted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evicted {
    /// `status.message`
    pub message: String,
    /// It goes for the node's sake, not for a limit of its own: it has the condition `DisruptionTarget`.
    pub disrupted: bool,
}

/// An order to `world`: end that pod.
#[derive(Debug)]
pub struct Order {
    /// Which.
    pub uid: PodUid,
    /// Why.
    pub why: Evicted,
    /// How long its processes have.
    pub grace: Duration,
    /// Told when the pod is ordered to end; dropped where nothing of it runs any more, and it stays what it is.
    pub accepted: oneshot::Sender<()>,
    /// Told (or dropped) when nothing of it runs any more and its volumes are gone.
    pub ended: oneshot::Sender<()>,
}

/// The node's conditions of pressure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Those that hold.
    pub conditions: BTreeSet<Condition>,
}

impl Pressure {
    /// As they stand in the node's status, `now` being the time of the last look; transition times are the status's to keep.
    pub fn conditions_of_node(&self, now: jiff::Timestamp) -> Vec<NodeCondition> {
        let one = |c: Condition| {
            let holds = self.conditions.contains(&c);
            let (reason, message) = c.told(holds);
            NodeCondition {
                type_: c.as_str().to_owned(),
                status: if holds { "True" } else { "False" }.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: Some(Time(now)),
            }
        };
        Condition::ALL.into_iter().map(one).collect()
    }
}

/// Wins room on the node without ending a pod.
pub trait Reclaim: fmt::Debug + Send + Sync {
    /// Removes every image that nobody uses and that is old enough.
    fn images(&self) -> BoxFuture<'_, Result<(), String>>;
    /// Removes every ended container that nobody needs any more.
    fn containers(&self) -> BoxFuture<'_, Result<(), String>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_of_the_node_are_the_stock_agents_to_the_letter() {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let told = |pressure: &Pressure| {
            let all = pressure.conditions_of_node(now);
            all.into_iter()
                .map(|c| format!("{} {} {}: {}", c.type_, c.status, c.reason.unwrap(), c.message.unwrap()))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            told(&Pressure::default()),
            [
                "MemoryPressure False KubeletHasSufficientMemory: kubelet has sufficient memory available",
                "DiskPressure False KubeletHasNoDiskPressure: kubelet has no disk pressure",
                "PIDPressure False KubeletHasSufficientPID: kubelet has sufficient PID available",
            ]
        );
        let all = Pressure { conditions: Condition::ALL.into() };
        assert_eq!(
            told(&all),
            [
                "MemoryPressure True KubeletHasInsufficientMemory: kubelet has insufficient memory available",
                "DiskPressure True KubeletHasDiskPressure: kubelet has disk pressure",
                "PIDPressure True KubeletHasInsufficientPID: kubelet has insufficient PID available",
            ]
        );
    }
}
