//! The task's part that changes what pods were given: when an object asks for other resources, and again for those that
//! wait whenever something is given back. `resize` judges.
//!
//! Check and reserve are one step, as for admission. Nothing is judged before every source has told all its pods: what
//! they hold is not known until then.

use super::resize::{self, Change};
use super::task::World;
use crate::allocation::{self, Allocation};
use crate::api::{Origin, Pod, PodRef, PodUid};
use crate::event::{Event, Kind};
use crate::pleg::observed::Observed;
use crate::pod::{Desired, Pending, PendingReason, Resize};
use std::sync::Arc;

/// What gave those that wait another chance: `retry_trigger` of `kubelet_pod_deferred_accepted_resizes_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trigger {
    Updated,
    Resized,
    Added,
    Removed,
}

impl Trigger {
    fn as_str(self) -> &'static str {
        match self {
            Self::Updated => "pod_updated",
            Self::Resized => "pod_resized",
            Self::Added => "pods_added",
            Self::Removed => "pods_removed",
        }
    }
}

impl World {
    /// What a pod has that is new to this agent: what an earlier incarnation had kept of it; where that is lost or makes no
    /// sense, what runs; and what it asks for where nothing runs. A static pod is never resized, so what runs of it was made
    /// with what its manifest says, however the runtime puts that.
    pub(super) fn had(
        &self,
        pod: &Arc<Pod>,
        uid: &PodUid,
        origin: Origin,
        seen: Option<&Observed>,
    ) -> Allocation {
        let runs = seen.is_some_and(|seen| !seen.is_empty());
        // What a manifest says now is all there is to a pod of which nothing runs.
        let kept = self.rooms.allocated.get(uid).filter(|_| runs || origin == Origin::Api);
        let kept = kept.filter(|kept| resize::plausible(kept, pod));
        let found = |seen: &Observed| {
            let found = resize::found(pod, seen, &self.rooms.facts);
            resize::same_class(pod, &found.applied(pod)).then_some(found)
        };
        let seen = seen.filter(|_| origin == Origin::Api);
        kept.or_else(|| seen.and_then(found)).unwrap_or_else(|| Allocation::of(pod))
    }

    /// The object of a known pod asks for something: gives the pod with the resources it has until they are changed.
    pub(super) fn with_allocated(&self, uid: &PodUid, before: &Desired, asked: &Arc<Pod>) -> Arc<Pod> {
        let has = self.rooms.allocated.get(uid).unwrap_or_else(|| Allocation::of(&before.pod));
        has.applied(asked)
    }

    /// Changes the resources of `uid` to what its object asks for now, or tells why not. True where something that others
    /// may wait for was given back.
    fn change(&mut self, uid: &PodUid, trigger: Trigger) -> bool {
        let Some(entry) = self.pods.get(uid) else { return false };
        let (before, wants, pod) = (entry.desired.borrow().clone(), entry.source.clone(), entry.pod.clone());
        if before.stop.is_some() || !self.promised.holds(uid) {
            return false;
        }
        if has_what(&before, &wants) {
            if before.resize.pending.is_some() {
                entry.desired.send_modify(|d| d.resize.pending = None);
                self.count_pending();
            }
            return false;
        }
        let seen = self.rooms.pleg.seen(uid).map(|seen| seen.borrow().clone()).unwrap_or_default();
        let facts = &*self.rooms.facts;
        let change =
            Change { uid, origin: before.origin, has: &before.pod, wants: &wants, seen: &seen, facts };
        match resize::judge(&change, &self.promised, &self.node) {
            Ok(()) => {
                self.give(&pod, &before, &wants, trigger);
                true
            }
            Err(refusal) => {
                self.refuse(&pod, &before, &wants, refusal);
                self.count_pending();
                false
            }
        }
    }

    fn give(&mut self, pod: &PodRef, before: &Desired, wants: &Arc<Pod>, trigger: Trigger) {
        let generation = wants.metadata.generation;
        self.rooms.allocated.put(&pod.uid, Allocation::of(wants));
        self.promised.promise(pod.uid.clone(), wants);
        self.directory.put(pod.uid.clone(), wants.clone(), wants.clone());
        if before.resize.pending.as_ref().is_some_and(|p| p.reason == PendingReason::Deferred) {
            self.rooms.metrics.deferred_accepted_resizes.with([trigger.as_str()]).inc();
        }
        self.tell(
            pod,
            Kind::Normal,
            "ResizeStarted",
            allocation::message("started", wants, generation, None),
        );
        if let Some(entry) = self.pods.get(&pod.uid) {
            entry.desired.send_modify(|d| {
                d.pod = wants.clone();
                d.resize = Resize { pending: None, changes: d.resize.changes + 1, generation };
            });
        }
    }

    fn refuse(&self, pod: &PodRef, before: &Desired, wants: &Pod, refusal: resize::Refusal) {
        let resize::Refusal { reason, message, detail } = refusal;
        let old = before.resize.pending.as_ref();
        let since =
            old.filter(|old| old.reason == reason).map_or_else(|| self.rooms.clock.nanos(), |old| old.since);
        let pending = Pending { reason, message, generation: wants.metadata.generation, since };
        if old == Some(&pending) {
            return;
        }
        let (text, told) = (
            reason.as_str(),
            match reason {
                PendingReason::Deferred => "ResizeDeferred",
                PendingReason::Infeasible => {
                    self.rooms.metrics.infeasible_resizes.with([detail]).inc();
                    "ResizeInfeasible"
                }
            },
        );
        let message = allocation::message(text, wants, pending.generation, Some(&pending.message));
        self.tell(pod, Kind::Warning, told, message);
        if let Some(entry) = self.pods.get(&pod.uid) {
            entry.desired.send_modify(|d| d.resize.pending = Some(pending));
        }
    }

    fn tell(&self, pod: &PodRef, kind: Kind, reason: &'static str, message: String) {
        let (pod, reason) = (Some(pod.clone()), reason.into());
        self.rooms.recorder.record(Event {
            pod,
            field_path: None,
            kind,
            reason,
            message,
            annotations: Default::default(),
        });
    }

    /// Judges `first`, where one is named, and then all that wait, as often as one of them gives something back.
    pub(super) fn resize(&mut self, first: Option<&PodUid>, trigger: Trigger) {
        if !self.unsynced.is_empty() || self.picture.is_none() {
            return;
        }
        let mut given = first.is_some_and(|uid| self.change(uid, trigger));
        let mut again = first.is_none() || given;
        let mut trigger = if first.is_some() { Trigger::Resized } else { trigger };
        while std::mem::take(&mut again) {
            for uid in self.waiting() {
                again |= self.change(&uid, trigger);
            }
            given |= again;
            trigger = Trigger::Resized;
        }
        if given {
            self.update_qos();
        }
    }

    /// The pods that wait for other resources, in the order in which they are served.
    fn waiting(&self) -> Vec<PodUid> {
        let mut waiting: Vec<_> = self
            .pods
            .iter()
            .filter_map(|(uid, entry)| {
                let desired = entry.desired.borrow();
                let refused = desired.resize.pending.as_ref();
                if desired.stop.is_some() || refused.is_some_and(|p| p.reason == PendingReason::Infeasible) {
                    return None;
                }
                if has_what(&desired, &entry.source) {
                    return None;
                }
                let since = refused.map_or(i64::MAX, |p| p.since);
                Some((resize::order(&desired.pod, &entry.source, since), uid.clone()))
            })
            .collect();
        waiting.sort();
        waiting.into_iter().map(|(_, uid)| uid).collect()
    }

    /// How many changes wait, by reason.
    pub(super) fn count_pending(&self) {
        let of = |reason| {
            let is = |d: &Desired| {
                d.stop.is_none() && d.resize.pending.as_ref().is_some_and(|p| p.reason == reason)
            };
            self.pods.values().filter(|e| is(&e.desired.borrow())).count() as f64
        };
        let pending = &self.rooms.metrics.pending_resizes;
        pending.with(["deferred"]).set(of(PendingReason::Deferred));
        pending.with(["infeasible"]).set(of(PendingReason::Infeasible));
    }
}

/// The pod has what its object asks for: mostly the two are one.
fn has_what(desired: &Desired, wants: &Arc<Pod>) -> bool {
    Arc::ptr_eq(&desired.pod, wants) || Allocation::of(&desired.pod).fits(wants)
}
