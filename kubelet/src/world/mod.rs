//! world: the only writer of what should run.
//!
//! It takes what the sources tell, refuses what the node cannot run, keeps the books of what is promised, and tells
//! each pod's actor what should be. Everything that wants a pod gone sends a stop here. Check and reserve are one step
//! of one task, so nothing is ever promised twice.
//!
//! ```text
//!   source ──SourceEvent──▶ task ──watch<Desired>──▶ actor (one per pod)
//!   Picture (pleg, once) ──▶  │  ◀──"nothing left"── actor
//!                             └──▶ Directory (what the server shows and others measure)
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

/// The pods the node answers for. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Directory(Arc<Mutex<HashMap<PodUid, Listed>>>);

#[derive(Debug)]
struct Listed {
    source: Arc<Pod>,
    has: Arc<Pod>,
}

impl Directory {
    /// All of them with the resources that they have, in no order; for whoever judges or measures them.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.lock().values().map(|pod| pod.has.clone()).collect()
    }

    /// All of them as sources gave them, in no order; for whoever shows them.
    pub fn sources(&self) -> Vec<Arc<Pod>> {
        self.lock().values().map(|pod| pod.source.clone()).collect()
    }

    /// The pod of that namespace and name as its source gave it; of several the one that still runs is as good as the one
    /// that waits.
    pub fn named(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let wanted = |p: &Pod| {
            p.metadata.namespace.as_deref() == Some(namespace) && p.metadata.name.as_deref() == Some(name)
        };
        self.lock().values().map(|pod| &pod.source).find(|p| wanted(p)).cloned()
    }

    fn put(&self, uid: PodUid, source: Arc<Pod>, has: Arc<Pod>) {
        self.lock().insert(uid, Listed { source, has });
    }

    fn remove(&self, uid: &PodUid) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PodUid, Listed>> {
        // Every entry is whole at all times, so a panic elsewhere spoils nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
