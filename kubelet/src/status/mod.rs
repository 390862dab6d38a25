//! status: the published status of every pod, and the only place from which it leaves the agent.
//!
//! Pod actors [`publish`](Statuses::publish) what [`api_status`] makes of their pod; the server reads
//! [`get`](Statuses::get); whoever must see every change (later the API writer) subscribes. The room decides nothing:
//! it keeps the last status, so that transition times survive, and tells of each that differs.

mod conditions;
mod container;
mod convert;
mod phase;
mod resources;

pub use convert::{Input, NodeIdentity, Removed, api_status};
pub use resources::Resizing;

use crate::api::{PodRef, PodStatus, PodUid};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::broadcast;

/// The pod has ended: nothing of it will run again.
pub fn is_final(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some(conditions::SUCCEEDED | conditions::FAILED))
}

/// One change of one pod's status.
#[derive(Clone, Debug)]
pub struct Change {
    /// Whose.
    pub pod: PodRef,
    /// The new status; `None` once the pod is gone from the node.
    pub status: Option<Arc<PodStatus>>,
}

/// The handle. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Statuses {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    last: Mutex<HashMap<PodUid, Arc<PodStatus>>>,
    changes: broadcast::Sender<Change>,
}

impl Default for Statuses {
    fn default() -> Self {
        Self { inner: Arc::new(Inner { last: Mutex::default(), changes: broadcast::channel(1024).0 }) }
    }
}

impl Statuses {
    /// The last published status of `uid`.
    pub fn get(&self, uid: &PodUid) -> Option<Arc<PodStatus>> {
        self.lock().get(uid).cloned()
    }

    /// Publishes `status` if it differs from the last one; says whether it did.
    pub fn publish(&self, pod: &PodRef, status: PodStatus) -> bool {
        let status = Arc::new(status);
        {
            let mut last = self.lock();
            if last.get(&pod.uid).is_some_and(|old| **old == *status) {
                return false;
            }
            last.insert(pod.uid.clone(), status.clone());
        }
        // Nobody listening is fine: the last status is kept.
        let _ = self.inner.changes.send(Change { pod: pod.clone(), status: Some(status) });
        true
    }

    /// Forgets a pod that is gone.
    pub fn forget(&self, pod: &PodRef) {
        if self.lock().remove(&pod.uid).is_some() {
            let _ = self.inner.changes.send(Change { pod: pod.clone(), status: None });
        }
    }

    /// Every change from now on. A subscriber that is slow loses changes, not the latest state: it can `get`.
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.inner.changes.subscribe()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PodUid, Arc<PodStatus>>> {
        // A map of finished statuses is whole even if a holder of the lock panicked.
        self.inner.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
