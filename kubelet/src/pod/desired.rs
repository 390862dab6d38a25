//! What should run: the message from `world` to a pod's actor. The newest one wins.

use crate::api::{Origin, Pod};
use std::sync::Arc;
use std::time::Duration;

/// What should be true of one pod.
#[derive(Clone, Debug)]
pub struct Desired {
    /// The pod as its source gave it.
    pub pod: Arc<Pod>,
    /// Which source gave it.
    pub origin: Origin,
    /// Set once the pod must end; never unset.
    pub stop: Option<Stop>,
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
}

/// Upstream gives processes at least this long.
pub const MINIMUM_GRACE: Duration = Duration::from_secs(2);
