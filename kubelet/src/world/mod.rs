//! world: the only writer of what should run.
//!
//! It takes what the sources tell, refuses what the node cannot run, keeps the books of what is promised, and tells
//! each pod's actor what should be. Everything that wants a pod gone sends a stop here. Check and reserve are one step
//! of one task, so nothing is ever promised twice.
//!
//! ```text
//!   source ──SourceEvent──▶ task ──watch<Desired>──▶ actor (one per pod)
//!   Picture (pleg, once) ──▶  │  ◀──"nothing left"── actor
//!                             └──▶ Directory (what the server shows)
//! ```
//!
//! Two pods of one name never run at once: the newer one waits until nothing of the older one is left.

pub mod admit;
pub mod affinity;
mod books;
mod deadlines;
mod orphans;
mod resize;
mod resizes;
mod task;

pub use task::{Config, World};

use crate::api::{Pod, PodUid};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The pods the node answers for, as sources gave them; for whoever shows pods. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Directory(Arc<Mutex<HashMap<PodUid, Arc<Pod>>>>);

impl Directory {
    /// All of them, in no order.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.lock().values().cloned().collect()
    }

    /// The pod of that namespace and name; of several the one that still runs is as good as the one that waits.
    pub fn named(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let wanted = |p: &Pod| {
            p.metadata.namespace.as_deref() == Some(namespace) && p.metadata.name.as_deref() == Some(name)
        };
        self.lock().values().find(|p| wanted(p)).cloned()
    }

    fn put(&self, uid: PodUid, pod: Arc<Pod>) {
        self.lock().insert(uid, pod);
    }

    fn remove(&self, uid: &PodUid) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PodUid, Arc<Pod>>> {
        // Every entry is whole at all times, so a panic elsewhere spoils nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
