//! The cgroup of all pods and those of the QoS classes: made at start, set by what the admitted pods request, and put
//! right again whenever somebody changed or removed them.
//!
//! `world` says what is requested ([`Cgroups::update_qos`]), `assemble` runs [`Cgroups::keep_classes`], which alone
//! writes. A pod's cgroup is made in a class that is there: one that vanished is made again first.

use super::values::{self, NodeValues, PodValues, Requested};
use super::{Cgroups, Driver, Error, Version, Walk, below, files, layout};
use crate::api::Qos;
use std::sync::PoisonError;
use std::time::Duration;
use tokio::time::sleep;

/// Between two looks at whether the classes are as they were left; upstream's interval.
const NET: Duration = Duration::from_secs(60);
/// After an attempt that failed.
const AGAIN: Duration = Duration::from_secs(5);

impl Cgroups {
    /// Makes the cgroup of all pods with `values` and the QoS classes in it. Idempotent; leaves pods alone.
    pub async fn setup_node(&self, values: &NodeValues) -> Result<(), Error> {
        if !self.inner.per_qos {
            return Ok(());
        }
        self.inner.node.lock().unwrap_or_else(PoisonError::into_inner).clone_from(values);
        self.make_classes().await
    }

    /// What the admitted pods request now. Their classes follow at once, where [`Cgroups::keep_classes`] runs.
    pub fn update_qos(&self, requested: Requested) {
        self.inner.requested.send_if_modified(|old| std::mem::replace(old, requested) != requested);
    }

    /// Keeps the classes as they should be; never ends.
    pub async fn keep_classes(self) {
        if !self.inner.per_qos {
            return;
        }
        let mut asked = self.inner.requested.subscribe();
        asked.mark_changed();
        let mut wait = NET;
        loop {
            tokio::select! {
                // The other end is in `self`.
                _ = asked.changed() => {}
                () = sleep(wait) => {}
            }
            wait = match self.mend_classes().await {
                Ok(()) => NET,
                Err(error) => {
                    tracing::warn!(%error, "cannot set the cgroups of the QoS classes");
                    AGAIN
                }
            };
        }
    }

    /// Puts right what is not as it should be, and writes nothing else.
    pub async fn mend_classes(&self) -> Result<(), Error> {
        for qos in layout::CLASSES {
            let (path, values) = (self.inner.layout.class(qos), self.class_values(qos)?);
            if self.differs(&path, &values) {
                self.ensure(&path, &values, Walk::All).await?;
            }
        }
        Ok(())
    }

    /// Makes every class, whether it is there or not.
    pub(super) async fn make_classes(&self) -> Result<(), Error> {
        for qos in layout::CLASSES {
            self.ensure(&self.inner.layout.class(qos), &self.class_values(qos)?, Walk::All).await?;
        }
        self.huge_pages()?;
        Ok(())
    }

    /// What the class's cgroup shall hold.
    fn class_values(&self, qos: Qos) -> Result<PodValues, Error> {
        let requested = *self.inner.requested.borrow();
        let node = self.inner.node.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut values = values::of_class(qos, &requested, &node);
        if qos == Qos::Guaranteed {
            values.cpus = self.node_cpus()?;
        } else {
            // What is in use cannot be taken away, or only with the processes that use it.
            let used = self.memory_used(&self.inner.layout.class(qos));
            values.memory_limit = values.memory_limit.map(|limit| limit.max(used));
        }
        Ok(values)
    }

    /// On v2 the node's cgroup names its CPUs, those its parent has in effect, as the stock agent's does.
    fn node_cpus(&self) -> Result<Option<String>, Error> {
        let inner = &*self.inner;
        if !matches!(inner.version, Version::V2 { .. }) {
            return Ok(None);
        }
        let Some(root) = inner.version.root_of(&inner.fs_root, "cpuset") else { return Ok(None) };
        let node = below(root, &inner.layout.class(Qos::Guaranteed));
        // The parent may be still to be made.
        let parent = node.ancestors().skip(1).find(|dir| dir.join("cpuset.cpus.effective").exists());
        files::read(parent.unwrap_or(root).join("cpuset.cpus.effective")).map(Some)
    }

    /// Bytes in use by the cgroup `path`; none where it is not there.
    fn memory_used(&self, path: &str) -> i64 {
        let inner = &*self.inner;
        let file = match inner.version {
            Version::V1 { .. } => "memory.usage_in_bytes",
            Version::V2 { .. } => "memory.current",
        };
        let root = inner.version.root_of(&inner.fs_root, "memory");
        let text = root.and_then(|root| files::read(below(root, path).join(file)).ok());
        text.and_then(|t| t.parse().ok()).unwrap_or(0)
    }

    /// Whether the cgroup `path` is not there or holds other values.
    fn differs(&self, path: &str, values: &PodValues) -> bool {
        let inner = &*self.inner;
        if self.dirs(path).iter().any(|dir| !dir.is_dir()) {
            return true;
        }
        let writes = match inner.version {
            Version::V1 { .. } => values::v1(values),
            Version::V2 { .. } => values::v2(values),
        };
        writes.into_iter().any(|w| match inner.version.root_of(&inner.fs_root, w.controller) {
            Some(root) => files::differs(below(root, path).join(w.file), &w.value),
            None => true,
        })
    }
}

impl Driver {
    /// As it is configured and as errors name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }
}
