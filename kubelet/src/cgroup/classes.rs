//! The cgroup of all pods and those of the QoS classes: made at start, set by what the admitted pods request, and put
//! right again whenever somebody changed or removed them.
//!
//! `world` says what is requested ([`Cgroups::update_qos`]), `assemble` runs [`Cgroups::keep_classes`], which follows
//! it. [`Cgroups::setup_node`] makes the classes, and a pod's cgroup is made in a class that is there: one that vanished
//! is made again first. Nothing is taken from classes that an earlier agent left before all their pods are known.

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

/// What the admitted pods request, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    sums: Requested,
    /// Every pod that runs is in the sums.
    whole: bool,
}

impl Cgroups {
    /// Makes the cgroup of all pods with `values` and the QoS classes in it. Idempotent; leaves pods alone. Values that
    /// a cgroup from before refuses are left to [`Cgroups::keep_classes`].
    pub async fn setup_node(&self, values: &NodeValues) -> Result<(), Error> {
        if !self.inner.per_qos {
            return Ok(());
        }
        let inner = &*self.inner;
        inner.node.lock().unwrap_or_else(PoisonError::into_inner).clone_from(values);
        if values.pids_limit.is_some() && inner.version.root_of(&inner.fs_root, "pids").is_none() {
            tracing::warn!("the kernel has no cgroup controller pids: pods' tasks are not limited together");
        }
        self.make_classes().await
    }

    /// What the admitted pods request now. Their classes follow at once, where [`Cgroups::keep_classes`] runs.
    pub fn update_qos(&self, sums: Requested) {
        self.ask(Asked { sums, whole: true });
    }

    /// What those pods request that are known so far, after a start: classes rise to it, and none falls.
    pub fn raise_qos(&self, sums: Requested) {
        self.ask(Asked { sums, whole: false });
    }

    fn ask(&self, asked: Asked) {
        self.inner.requested.send_if_modified(|old| std::mem::replace(old, asked) != asked);
    }

    /// Keeps the classes as they should be; never ends. `tell` hears of the first failure and of the first success.
    pub async fn keep_classes(self, tell: impl Fn(Result<(), &Error>) + Send) {
        if !self.inner.per_qos {
            return;
        }
        let mut asked = self.inner.requested.subscribe();
        asked.mark_changed();
        let (mut wait, mut told) = (NET, None);
        loop {
            tokio::select! {
                // The other end is in `self`.
                _ = asked.changed() => {}
                () = sleep(wait) => {}
            }
            let mended = self.mend_classes().await;
            if told != Some(true) && told != Some(mended.is_ok()) {
                told = Some(mended.is_ok());
                tell(mended.as_ref().copied());
            }
            wait = match mended {
                Ok(()) => NET,
                Err(error) => {
                    tracing::warn!(%error, "cannot set the cgroups of the QoS classes");
                    AGAIN
                }
            };
        }
    }

    /// Puts right what is not as it should be, and writes nothing else. A class that cannot be does not keep the others
    /// from it; the first error is told.
    pub async fn mend_classes(&self) -> Result<(), Error> {
        let mut all = Ok(());
        for qos in layout::CLASSES {
            all = all.and(self.mend(qos).await);
        }
        all
    }

    async fn mend(&self, qos: Qos) -> Result<(), Error> {
        let (path, values) = (self.inner.layout.class(qos), self.class_values(qos)?);
        if self.differs(&path, &values) { self.ensure(&path, &values, Walk::All).await } else { Ok(()) }
    }

    /// Makes every class, whether it is there or not. One that was there may refuse values, as v1 does limits below
    /// what is in use; the net tries again.
    pub(super) async fn make_classes(&self) -> Result<(), Error> {
        for qos in layout::CLASSES {
            let (path, values) = (self.inner.layout.class(qos), self.class_values(qos)?);
            let there = self.is_there(&path);
            let writes = self.prepare(&path, &values, Walk::All).await?;
            match self.write(&path, writes) {
                Err(error) if there => tracing::warn!(%error, "tried again until it is taken"),
                made => made?,
            }
        }
        self.huge_pages()?;
        Ok(())
    }

    /// The cgroup of all pods, as its path in every hierarchy.
    pub fn of_all_pods(&self) -> String {
        self.inner.layout.class(Qos::Guaranteed)
    }

    /// What the class's cgroup shall hold.
    fn class_values(&self, qos: Qos) -> Result<PodValues, Error> {
        let inner = &*self.inner;
        let asked = *inner.requested.borrow();
        let node = inner.node.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut values = values::of_class(qos, &asked.sums, &node);
        let path = inner.layout.class(qos);
        if qos == Qos::Guaranteed {
            values.cpus = self.node_cpus()?;
            values.pids_limit =
                values.pids_limit.filter(|_| inner.version.root_of(&inner.fs_root, "pids").is_some());
        } else {
            // What is in use cannot be taken away, or only with the processes that use it.
            let used = self.memory_used(&path);
            values.memory_limit = values.memory_limit.map(|limit| limit.max(used));
        }
        if asked.whole {
            self.withdraw(&path, &mut values);
            let limited = || inner.is_v2() && self.number("memory", &path, "memory.max").is_some();
            if qos != Qos::Guaranteed && values.memory_limit.is_none() && limited() {
                values.memory_limit = Some(-1);
            }
        } else if self.is_there(&path) {
            self.only_raise(qos, &path, &mut values);
        }
        Ok(values)
    }

    /// Drops of what pods' requests make of the class's values those that take something from it.
    fn only_raise(&self, qos: Qos, path: &str, values: &mut PodValues) {
        let (file, spelled): (_, fn(u64) -> u64) = match self.inner.is_v2() {
            true => ("cpu.weight", values::weight_of_shares),
            false => ("cpu.shares", |shares| shares),
        };
        let has = |controller, file| self.number(controller, path, file).unwrap_or(0);
        if qos != Qos::Guaranteed {
            let now = has("cpu", file).unsigned_abs();
            values.cpu_shares = values.cpu_shares.filter(|shares| spelled(*shares) > now);
            // It falls with what others request.
            values.memory_limit = None;
        }
        values.memory_min = values.memory_min.filter(|bytes| *bytes > has("memory", "memory.min"));
        values.memory_low = values.memory_low.filter(|bytes| *bytes > has("memory", "memory.low"));
    }

    /// Takes back the protection that an earlier configuration gave the cgroup `path` and that `values` do not.
    pub(super) fn withdraw(&self, path: &str, values: &mut PodValues) {
        if !self.inner.is_v2() {
            return;
        }
        let protects = |file| self.number("memory", path, file).is_some_and(|bytes| bytes > 0);
        for (file, bytes) in [("memory.min", &mut values.memory_min), ("memory.low", &mut values.memory_low)]
        {
            if bytes.is_none() && protects(file) {
                *bytes = Some(0);
            }
        }
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
        let file = if self.inner.is_v2() { "memory.current" } else { "memory.usage_in_bytes" };
        self.number("memory", path, file).unwrap_or(0)
    }

    /// The number that `file` of the cgroup `path` holds, if it is there and holds one.
    fn number(&self, controller: &str, path: &str, file: &str) -> Option<i64> {
        let inner = &*self.inner;
        let root = inner.version.root_of(&inner.fs_root, controller)?;
        files::read(below(root, path).join(file)).ok()?.parse().ok()
    }

    /// Whether the cgroup `path` is in any hierarchy.
    fn is_there(&self, path: &str) -> bool {
        self.dirs(path).iter().any(|dir| dir.is_dir())
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
            Some(root) => files::differs(below(root, path).join(&w.file), &w),
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
