//! What an actor tells: the pod's status, the events of back-offs, how far its start has come.

use super::Actor;
use crate::api;
use crate::pod::desired::{Desired, StopReason};
use crate::pod::plan::{self, Phase, Plan, Waiting};
use crate::status::{self, api_status};
use crate::trace::End;
use std::collections::BTreeMap;

impl Actor {
    /// Why containers wait, as far as it was known before this plan: failures of the last one, and back-offs that were
    /// told of and still stand.
    pub(super) fn known_reasons(&self) -> BTreeMap<String, Waiting> {
        let mut known = self.memory.waiting.clone();
        for (name, (ended, waiting)) in &self.told {
            if self.seen.latest(name).is_some_and(|i| i.id == *ended) {
                known.insert(name.clone(), waiting.clone());
            }
        }
        known
    }

    /// An event for each back-off that begins.
    pub(super) fn tell_backoffs(&mut self, desired: &Desired, waiting: &BTreeMap<String, Waiting>) {
        for (name, waiting) in waiting.iter().filter(|(_, w)| w.reason == plan::CRASH_LOOP) {
            let Some(ended) = self.seen.latest(name).map(|i| i.id.clone()) else { continue };
            let told = self.told.insert(name.clone(), (ended.clone(), waiting.clone()));
            if told.is_none_or(|(before, _)| before != ended) {
                self.steps.tell_backoff(&desired.pod, name);
            }
        }
    }

    /// The pod ended, that was told, and now all of it is being removed: what is missing by then is not news.
    fn told_the_end(&self, desired: &Desired) -> bool {
        let removing = desired.stop.as_ref().is_some_and(|s| s.remove) && self.phase >= Phase::Terminated;
        removing && self.rooms.statuses.get(&self.pod.uid).is_some_and(|s| status::is_final(&s))
    }

    /// How far the pod's start has come.
    fn tell_start(&mut self, desired: &Desired, status: &api::PodStatus) {
        if self.phase == Phase::Running {
            self.start.running();
        }
        let ready = |c: &&k8s_openapi::api::core::v1::PodCondition| c.type_ == "Ready" && c.status == "True";
        let why = || status.message.as_deref().or(status.reason.as_deref()).unwrap_or("the pod failed");
        let end = match status.phase.as_deref() {
            Some("Succeeded") => End::Succeeded,
            Some("Failed") => End::Failed(why()),
            _ if status.conditions.iter().flatten().any(|c| ready(&c)) => End::Ready,
            _ if desired.stop.is_some() => End::Failed("the pod was ended before it was ready"),
            _ => return,
        };
        self.start.end(&self.pod, end);
    }

    pub(super) fn publish(&mut self, desired: &Desired, plan: &Plan) {
        let Some(status) = self.status(desired, plan) else { return };
        self.tell_start(desired, &status);
        self.rooms.statuses.publish(&self.pod, status);
        if self.phase == Phase::Running
            && let Some(arrived) = self.arrived.take()
        {
            let took = arrived.elapsed();
            self.rooms.metrics.pod_start_duration.observe_duration(took);
            tracing::info!(pod = %self.pod, took_ms = took.as_millis() as u64, "pod started");
        }
    }

    /// What the status says of the pod's resources.
    fn told_of_resize<'a>(&'a self, desired: &'a Desired) -> status::Resizing<'a> {
        let in_progress = self.resizing.in_progress.as_ref();
        status::Resizing {
            pending: desired.resize.pending.as_ref(),
            in_progress: in_progress.map(|p| (p.generation, p.error.as_deref())),
            actual: &self.resizing.actual,
            facts: &self.rooms.facts,
        }
    }

    /// The status to tell now; none when nobody would ask for it.
    pub(super) fn status(&self, desired: &Desired, plan: &Plan) -> Option<api::PodStatus> {
        if desired.stop.as_ref().is_some_and(|s| s.why == StopReason::Orphaned) {
            // Nobody asks for the status of a pod that no source has.
            return None;
        }
        if self.told_the_end(desired) {
            return None;
        }
        let host_network = api::spec(&desired.pod).host_network.unwrap_or(false);
        let sandbox_up =
            self.seen.sandbox().is_some_and(|s| plan::usable(s, host_network)) || self.steps.sandbox_made;
        let rejected = desired.stop.as_ref().and_then(|s| match &s.why {
            StopReason::Rejected { reason, message } => Some((reason.as_str(), message.as_str())),
            _ => None,
        });
        let verdict = desired.stop.as_ref().and_then(|s| s.why.verdict());
        let evicted = desired.stop.as_ref().and_then(|s| s.why.evicted());
        let nothing = Default::default();
        let previous = self.rooms.statuses.get(&self.pod.uid);
        Some(api_status(&status::Input {
            pod: &desired.pod,
            observed: &self.seen,
            phase: self.phase,
            stopping: desired.stop.is_some(),
            released: !self.steps.cgroup_made,
            outcome: plan.outcome,
            resetting: plan.resetting,
            restarts: &self.memory.restarts,
            readiness: &self.readiness,
            waiting: if desired.stop.is_some() { &nothing } else { &self.reasons },
            removed: &self.removed,
            rejected,
            resize: (self.phase <= Phase::Running).then(|| self.told_of_resize(desired)),
            failed: if plan::overran(desired, &self.seen) { verdict } else { None },
            evicted,
            sandbox_up,
            previous: previous.as_deref(),
            start_time: self.start_time,
            now: self.rooms.clock.seconds(),
            node: &self.rooms.identity,
        }))
    }
}
