//! What should run: the message from `world` to a pod's actor. The newest one wins.

use crate::api::{self, Origin, Pod};
use crate::evict::Evicted;
use std::sync::Arc;
use std::time::Duration;

/// What should be true of one pod.
#[derive(Clone, Debug)]
pub struct Desired {
    /// The pod as its source gave it, but with the resources it was given.
    pub pod: Arc<Pod>,
    /// Which source gave it.
    pub origin: Origin,
    /// Set once the pod must end; never unset.
    pub stop: Option<Stop>,
    /// How its resources came to be what they are.
    pub resize: Resize,
}

/// What `world` decided about changes of a pod's resources (KEP-1287).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resize {
    /// The source asks for other resources than the pod has: why it does not have them.
    pub pending: Option<Pending>,
    /// How often the pod was given other resources since this agent knows it.
    pub changes: u64,
    /// `metadata.generation` of the object that asked for the resources it has, where they were changed.
    pub generation: Option<i64>,
}

/// A change of resources that was not made: the condition `PodResizePending`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The condition's reason.
    pub reason: PendingReason,
    /// Its message.
    pub message: String,
    /// `metadata.generation` of the object that asks.
    pub generation: Option<i64>,
    /// Since when (nanoseconds since the epoch) it waits for this reason.
    pub since: i64,
}

/// Why a change of resources was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PendingReason {
    /// It fits once others give something back.
    Deferred,
    /// It can never be made on this node, or not in place.
    Infeasible,
}

impl PendingReason {
    /// The API's text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deferred => "Deferred",
            Self::Infeasible => "Infeasible",
        }
    }
}

/// An order to end a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Who wants it gone.
    pub why: StopReason,
    /// How long its processes have between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// The source no longer has the pod: once it has ended, nothing of it may stay.
    pub remove: bool,
}

/// Why a pod must end. Later orders may only shorten the grace or add `remove`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Its object has a deletion timestamp, or its manifest is gone.
    Deleted,
    /// It was found in the runtime, and no source has it.
    Orphaned,
    /// The node refused it: reason and message of the pod's status.
    Rejected {
        /// `status.reason`
        reason: String,
        /// `status.message` without the prefix "Pod was rejected: "
        message: String,
    },
    /// It has run for `spec.activeDeadlineSeconds`.
    DeadlineExceeded {
        /// When the time was over (nanoseconds since the epoch): what had ended by then ended by itself.
        at: i64,
    },
    /// The node was short of something, or the pod passed a limit of its own.
    Evicted(Evicted),
}

impl StopReason {
    /// `status.reason` of a pod that was ended for it, and `status.message`; `None` where its containers tell how it ended.
    pub fn verdict(&self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::DeadlineExceeded { .. } => {
                Some(("DeadlineExceeded", "Pod was active on the node longer than the specified deadline"))
            }
            Self::Deleted | Self::Orphaned | Self::Rejected { .. } | Self::Evicted(_) => None,
        }
    }

    /// Why it was evicted, if it was.
    pub fn evicted(&self) -> Option<&Evicted> {
        match self {
            Self::Evicted(why) => Some(why),
            _ => None,
        }
    }
}

/// Upstream gives processes at least this long between SIGTERM and SIGKILL, whatever hooks left of the grace.
pub const MINIMUM_GRACE: Duration = Duration::from_secs(2);

/// A pod that ends has at least this much grace: its hooks are run, though it asks for none.
pub const SHORTEST_GRACE: Duration = Duration::from_secs(1);

/// How long the pod's processes have to end when nobody orders otherwise: what its deletion says, or its spec.
pub fn grace_of(pod: &Pod) -> Duration {
    let seconds = pod
        .metadata
        .deletion_grace_period_seconds
        .or(api::spec(pod).termination_grace_period_seconds)
        .unwrap_or(30);
    api::grace(seconds)
}
