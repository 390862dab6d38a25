//! Where cgroups are, for whoever only reads them (`stats`, `evict`). Changes nothing, reads nothing.

use super::{Cgroups, Version, below};
use crate::api::{PodUid, Qos};
use std::path::PathBuf;

/// The node's cgroups by name. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Lookup {
    cgroups: Cgroups,
}

impl Cgroups {
    /// A view that can only find.
    pub fn lookup(&self) -> Lookup {
        Lookup { cgroups: self.clone() }
    }
}

impl Lookup {
    /// Whether this is the single v2 hierarchy.
    pub fn is_v2(&self) -> bool {
        matches!(self.cgroups.inner.version, Version::V2 { .. })
    }

    /// The directory of the cgroup `path` (such as `/` or `/kubepods/podX`) in the hierarchy of `controller`; `None`
    /// where no hierarchy carries it. The directory need not be there.
    pub fn dir(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let inner = &self.cgroups.inner;
        match &inner.version {
            // One directory holds the files of all controllers, and some that belong to none.
            Version::V2 { .. } => Some(below(&inner.fs_root, path)),
            version => version.root_of(&inner.fs_root, controller).map(|root| below(root, path)),
        }
    }

    /// The cgroup that holds every pod; `None` without `cgroupsPerQOS`.
    pub fn node(&self) -> Option<String> {
        self.class(Qos::Guaranteed)
    }

    /// The cgroup of a QoS class; guaranteed pods stand in the node's itself. `None` without `cgroupsPerQOS`.
    pub fn class(&self, qos: Qos) -> Option<String> {
        let inner = &self.cgroups.inner;
        inner.per_qos.then(|| inner.layout.class(qos))
    }

    /// The cgroup of a pod; `None` without `cgroupsPerQOS`, or for a UID that can name none.
    pub fn pod(&self, qos: Qos, uid: &PodUid) -> Option<String> {
        let inner = &self.cgroups.inner;
        (inner.per_qos && inner.layout.check_uid(uid).is_ok()).then(|| inner.layout.pod(qos, uid))
    }
}
