//! The actor: one task per pod that plans, acts and looks, until nothing of the pod is left.
//!
//! The loop never blocks on anything but its own pod. While it waits, every arm of its select is cancel-safe:
//! `watch` channels and a timer. Calls that change the runtime are awaited to their end or deadline, because a call
//! that was dropped half-way says nothing about what it did; image pulls are dropped when the pod must end.
//!
//! Here is the loop and how steps are carried out. `remembered` has what outlives a plan, `told` what statuses and events
//! say, `aim` what is probed.

mod aim;
mod remembered;
mod resize;
mod told;

use super::dead::{Condemned, Kept};
use super::desired::Desired;
use super::plan::{self, Memory, Phase, Plan, Step, Waiting};
use super::rooms::Rooms;
use super::steps::{Failure, Steps};
use super::wants::Wants;
use crate::api::{Pod, PodRef, PodUid};
use crate::pleg::observed::Observed;
use crate::probe::{PodProbes, Readiness};
use crate::status::Removed;
use crate::trace::{self, PodStart};
use futures::future::join_all;
use jiff::Timestamp;
use remembered::{adopt, adoption_time, logged};
use resize::Resizing;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// How many containers are removed at once.
const REMOVALS_AT_ONCE: usize = 8;

/// Runs the pod until nothing of it is left on the node. `arrived` is when its source learned of it; `ended` is told,
/// once, when nothing of the pod runs or will run again.
pub async fn spawn(
    rooms: Arc<Rooms>,
    desired: watch::Receiver<Desired>,
    arrived: Instant,
    ended: mpsc::UnboundedSender<PodUid>,
) -> PodRef {
    let pod = PodRef::of(&desired.borrow().pod);
    let observed = rooms.pleg.subscribe(&pod.uid).await;
    let object = desired.borrow().pod.clone();
    let logged = logged(&rooms, object).await;
    let mut actor = Actor::new(rooms, pod, desired, observed, arrived, ended);
    actor.memory.restarts = logged;
    actor.run().await;
    actor.pod
}

struct Actor {
    rooms: Arc<Rooms>,
    pod: PodRef,
    desired: watch::Receiver<Desired>,
    observed: watch::Receiver<Arc<Observed>>,
    /// The newest of what was published and what this actor looked at itself.
    seen: Arc<Observed>,
    memory: Memory,
    /// Which ended instances stay, and what of the node is condemned.
    kept: Kept,
    condemned: Condemned,
    /// What probes made of the containers.
    readiness: Arc<Readiness>,
    probes: PodProbes,
    /// Crash back-offs that were told of: of which instance, and in which words.
    told: HashMap<String, (String, Waiting)>,
    /// The newest instance of each container that was removed from the runtime.
    removed: HashMap<String, Removed>,
    /// Why containers wait, for the status.
    reasons: BTreeMap<String, Waiting>,
    steps: Steps,
    /// How far its resources are what they should be.
    resizing: Resizing,
    /// Objects that failed steps wait for.
    wants: Wants,
    phase: Phase,
    /// An order to end the pod was seen.
    stopping: bool,
    /// The grace of the pod's end, and when it is over; once something was killed for it.
    ending: Option<(Duration, tokio::time::Instant)>,
    /// What an earlier incarnation of the agent had begun has not been looked through yet.
    adopting: bool,
    start_time: Timestamp,
    arrived: Option<Instant>,
    /// Where the time of its start goes.
    start: PodStart,
    /// Whom to tell of the end; `None` once told.
    ended: Option<mpsc::UnboundedSender<PodUid>>,
}

impl Actor {
    fn new(
        rooms: Arc<Rooms>,
        pod: PodRef,
        desired: watch::Receiver<Desired>,
        observed: watch::Receiver<Arc<Observed>>,
        arrived: Instant,
        ended: mpsc::UnboundedSender<PodUid>,
    ) -> Self {
        let seen = observed.borrow().clone();
        let adopted = !seen.is_empty();
        let start_time = adoption_time(&seen).unwrap_or_else(|| rooms.clock.seconds());
        let memory = adopt(&desired.borrow(), &seen, rooms.backoff_cap);
        let steps = Steps::new(rooms.clone(), pod.clone());
        let resizing = Resizing::new(&desired.borrow(), rooms.actuated.get(&pod.uid));
        let mut probes = rooms.probes.open(&pod, &rooms.volumes.pod_dir(&pod.uid), adopted);
        let start =
            if adopted { PodStart::none() } else { PodStart::new(&rooms.tracer, &rooms.metrics, arrived) };
        let arrived = (!adopted).then_some(arrived);
        let kept = Kept { config: rooms.dead, ..Kept::default() };
        Self {
            kept,
            condemned: rooms.condemned.clone(),
            rooms,
            pod,
            desired,
            observed,
            seen,
            memory,
            readiness: probes.readiness(),
            probes,
            told: HashMap::new(),
            removed: HashMap::new(),
            reasons: BTreeMap::new(),
            steps,
            resizing,
            wants: Wants::default(),
            phase: Phase::Starting,
            stopping: false,
            ending: None,
            adopting: adopted,
            start_time,
            arrived,
            start,
            ended: Some(ended),
        }
    }

    async fn run(&mut self) {
        if let Some(arrived) = self.arrived {
            self.rooms.metrics.pod_worker_start_duration.observe_duration(arrived.elapsed());
        }
        let mut acted_on = self.desired.borrow().pod.clone();
        let mut known = acted_on.clone();
        loop {
            let desired = self.desired.borrow_and_update().clone();
            let before = std::mem::replace(&mut known, desired.pod.clone());
            if !Arc::ptr_eq(&before, &known) {
                self.forget_changed(&before, &known);
            }
            if desired.stop.is_some() && !std::mem::replace(&mut self.stopping, true) {
                // What could not be made says nothing about the end.
                self.forget_failure(plan::POD);
            }
            self.take_observed();
            self.readiness = self.probes.readiness();
            self.kept.condemned = self.condemned.borrow_and_update().clone();
            if self.seen.is_rough() && desired.stop.is_none() {
                // What runs is left alone until its statuses are known: pleg goes on asking for them.
                if !self.wait(None).await {
                    return;
                }
                continue;
            }
            if std::mem::take(&mut self.adopting) {
                self.steps.link_logs(&self.seen).await;
                if desired.stop.is_none() {
                    self.steps.mend_hosts_file(&desired.pod, &self.seen);
                    self.steps.adopt_limits(&desired.pod);
                }
                self.resume_reset(&desired.pod);
                self.steps.keep_volumes(&desired.pod);
            }
            self.count_restarts();
            self.follow_resize(&desired);
            let plan = self.plan(&desired);
            self.phase = self.phase.max(plan.phase);
            let ips = &self.rooms.facts.node_ips;
            let ending = self.phase >= Phase::Terminating;
            self.probes.aim(aim::targets(&desired.pod, &self.seen, ips, ending));
            self.memory.outcome = self.memory.outcome.or(plan.outcome);
            let updated = !Arc::ptr_eq(&acted_on, &desired.pod);
            if updated && self.phase <= Phase::Running && !self.seen.is_empty() {
                acted_on = desired.pod.clone();
                self.steps.pod_changed(&acted_on);
            }
            // What is seen comes first, with the reasons known before; what the plan makes of it follows.
            self.reasons = self.known_reasons();
            self.publish(&desired, &plan);
            self.tell_backoffs(&desired, &plan.waiting);
            self.reasons.extend(plan.waiting.clone());
            self.publish(&desired, &plan);
            // An evicted pod has ended when what it had on the node is gone, for which others wait.
            let evicted = desired.stop.as_ref().is_some_and(|s| s.why.evicted().is_some() && !s.remove);
            if self.phase >= Phase::Terminated
                && (!evicted || plan.steps.is_empty())
                && let Some(ended) = self.ended.take()
            {
                // Without `world` the agent is stopping.
                let _ = ended.send(self.pod.uid.clone());
            }
            if plan.steps.is_empty() {
                if !self.rest(&desired, plan.wake).await {
                    return;
                }
                continue;
            }
            // Boxed: the calls in it take tens of kilobytes, which a pod at rest must not hold.
            let began = Instant::now();
            let traced = self.start.carried();
            let carried = trace::within(traced, Box::pin(self.carry_out(&desired, &plan))).await;
            let what = match plan.phase {
                Phase::Starting => "create",
                Phase::Running if updated => "update",
                Phase::Running => "sync",
                _ => "kill",
            };
            self.rooms.metrics.pod_worker_duration.with([what]).observe_duration(began.elapsed());
            if carried == Carried::Gone {
                self.rooms.statuses.forget(&self.pod);
                self.rooms.pleg.forget(&self.pod.uid).await;
                tracing::info!(pod = %self.pod, "pod is gone");
                return;
            }
            self.start.acted();
            if !trace::within(self.start.carried(), self.look()).await {
                return;
            }
        }
    }

    /// Takes what pleg published, unless this actor has seen something newer itself.
    fn take_observed(&mut self) {
        let published = self.observed.borrow_and_update().clone();
        if published.seq >= self.seen.seq {
            self.seen = published;
        }
    }

    fn plan(&self, desired: &Desired) -> Plan {
        plan::plan(&plan::Input {
            desired,
            observed: &self.seen,
            memory: &self.memory,
            readiness: &self.readiness,
            cgroup: self.steps.cgroup_made,
            now: self.rooms.clock.nanos(),
            instant: tokio::time::Instant::now(),
            backoff_cap: self.rooms.backoff_cap,
            kept: &self.kept,
            needs: &self.resizing.needs,
        })
    }

    /// Waits for anything that could change the plan; false when the agent is stopping.
    async fn wait(&mut self, wake: Option<i64>) -> bool {
        let clock = self.rooms.clock;
        let timer = async {
            match wake {
                Some(at) => {
                    let nanos = u64::try_from(at.saturating_sub(clock.nanos())).unwrap_or(0);
                    tokio::time::sleep(Duration::from_nanos(nanos)).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.desired.changed() => changed.is_ok(),
            changed = self.observed.changed() => changed.is_ok(),
            () = self.probes.changed() => true,
            () = changed(&mut self.condemned) => true,
            name = self.wants.changed(&self.rooms.objects, &self.rooms.network) => {
                self.wants.remove(&name);
                self.memory.retry.remove(&name);
                true
            }
            () = timer => true,
        }
    }

    /// Carries the steps out in order. A container that cannot be started does not keep the next one from starting;
    /// any other failure ends the plan, and so does a new order when the next step would start something.
    async fn carry_out(&mut self, desired: &Desired, plan: &Plan) -> Carried {
        let made = |s: &Step| matches!(s, Step::CreateSandbox { .. });
        if plan.steps.iter().any(made) && !self.seen.sandboxes.is_empty() {
            self.steps.tell_sandbox_changed();
        }
        let mut rest = plan.steps.as_slice();
        while let Some((step, behind)) = rest.split_first() {
            if plan.phase >= Phase::Terminated {
                let removal = rest.iter().map_while(|s| match s {
                    Step::RemoveContainer { id, name } => Some((id.as_str(), name.as_str())),
                    _ => None,
                });
                let removals: Vec<_> = removal.collect();
                if removals.len() > 1 {
                    if !self.remove_containers(&desired.pod, &removals).await {
                        return Carried::Out;
                    }
                    rest = &rest[removals.len()..];
                    continue;
                }
            }
            rest = behind;
            let starts =
                matches!(step, Step::CreateSandbox { .. } | Step::Start { .. } | Step::Resume { .. });
            if starts && self.stop_arrived(desired) {
                return Carried::Out;
            }
            let began = Instant::now();
            let result = self.step(desired, plan, step).await;
            tracing::debug!(pod = %self.pod, ?step, took_ms = began.elapsed().as_millis() as u64, ok = result.is_ok(), "step");
            let failed = result.is_err();
            if let Some(why) = result.as_ref().err().and_then(|f| f.not_ended.as_ref())
                && self.phase >= Phase::Terminating
            {
                self.steps.tell_failed_kill(why);
            }
            let key = self.key(desired, plan, step);
            match result {
                Ok(()) => self.forget_failure(&key),
                Err(failure) if failure.of_container => {
                    self.remember_failure(&key, failure);
                    continue;
                }
                // What a start needs of the pod as a whole is missing, or it is another step.
                Err(failure) => {
                    let start = matches!(step, Step::Start { .. } | Step::Resume { .. });
                    self.remember_failure(if start { plan::POD } else { &key }, failure);
                }
            }
            match step {
                _ if failed => return Carried::Out,
                Step::CleanUp => return Carried::Gone,
                Step::CreateSandbox { .. } => self.publish(desired, plan),
                _ => {}
            }
        }
        Carried::Out
    }

    /// The containers of a pod that has ended, ids and names, need nothing of each other and are removed side by side; false
    /// when one could not be. However many could not be, it is one failure: the next try is of them all.
    async fn remove_containers(&mut self, pod: &Pod, removals: &[(&str, &str)]) -> bool {
        let began = Instant::now();
        let (mut failed, mut first) = (0, None);
        for some in removals.chunks(REMOVALS_AT_ONCE) {
            let each =
                some.iter().map(|(id, name)| self.steps.remove_container(pod, id, name, self.own_log(id)));
            for ((id, name), removed) in some.iter().zip(join_all(each).await) {
                match removed {
                    Ok(()) => self.remember_removed(id, name),
                    Err(failure) => {
                        failed += 1;
                        first.get_or_insert(failure);
                    }
                }
            }
        }
        tracing::debug!(pod = %self.pod, containers = removals.len(), failed, took_ms = began.elapsed().as_millis() as u64, "removals");
        match first {
            None => self.forget_failure(plan::POD),
            Some(failure) => self.remember_failure(plan::POD, failure),
        }
        failed == 0
    }

    /// Under which key a failure of `step` is remembered.
    fn key(&self, desired: &Desired, plan: &Plan, step: &Step) -> String {
        match step {
            Step::Start { list, index, .. } | Step::Resume { list, index, .. } => {
                let c = self.steps.container(&desired.pod, *list, *index);
                c.map_or_else(String::new, |c| c.name.clone())
            }
            Step::Resize => plan::RESIZE.to_owned(),
            Step::RemoveContainer { .. } | Step::RemoveSandbox { .. }
                if plan.phase <= Phase::Running && !plan.resetting =>
            {
                plan::GARBAGE.to_owned()
            }
            _ => plan::POD.to_owned(),
        }
    }

    async fn step(&mut self, desired: &Desired, plan: &Plan, step: &Step) -> Result<(), Failure> {
        let pod = &desired.pod;
        match step {
            Step::Kill { targets, grace } => {
                let grace = self.grace_left(*grace);
                let steps = self.lend_steps();
                let done = self.telling(desired, plan, Box::pin(steps.kill(pod, targets, grace))).await;
                self.steps = steps;
                done
            }
            Step::StopSandbox { id } => {
                self.steps.stop_sandbox(id).await?;
                self.memory.stopped.insert(id.clone());
                Ok(())
            }
            Step::CreateSandbox { attempt } => {
                let mut desired = self.desired.clone();
                self.steps.create_sandbox(pod, *attempt, until_stop(&mut desired)).await
            }
            Step::Start { list, index, restart_count, backoff } => {
                if let (Some(entry), Some(c)) = (backoff, self.steps.container(pod, *list, *index)) {
                    self.memory.backoff.insert(c.name.clone(), *entry);
                }
                if let Some(c) = self.steps.container(pod, *list, *index) {
                    self.note_made(&c, *restart_count);
                }
                let (mut orders, seen) = (self.desired.clone(), self.seen.clone());
                let stop = until_stop(&mut orders);
                let mut steps = self.lend_steps();
                let start = Box::pin(steps.start(pod, &seen, *list, *index, *restart_count, stop));
                let done = self.telling(desired, plan, start).await;
                self.steps = steps;
                done
            }
            Step::Resume { list, index, id } => {
                let mut orders = self.desired.clone();
                let stop = until_stop(&mut orders);
                let steps = self.lend_steps();
                let resume = Box::pin(steps.resume(pod, *list, *index, id, stop));
                let done = self.telling(desired, plan, resume).await;
                self.steps = steps;
                done
            }
            Step::Resize => self.resize(desired).await,
            Step::Reset { source, name, backoff } => {
                self.memory.resetting = Some(source.clone());
                self.memory.backoff.insert(name.clone(), *backoff);
                Ok(())
            }
            Step::RemoveContainer { id, name } => {
                self.steps.remove_container(pod, id, name, self.own_log(id)).await?;
                self.remember_removed(id, name);
                Ok(())
            }
            Step::RemoveSandbox { id } => self.steps.remove_sandbox(pod, id).await,
            Step::ReleaseCgroup => self.steps.release_cgroup(pod).await,
            Step::ReleaseVolumes => {
                self.steps.release_volumes().await?;
                self.memory.volumes_released = true;
                Ok(())
            }
            Step::CleanUp => self.steps.clean_up().await,
        }
    }

    /// The steps, to be put back; in their place stands what a status needs of them.
    fn lend_steps(&mut self) -> Steps {
        let stand_in = self.steps.stand_in();
        std::mem::replace(&mut self.steps, stand_in)
    }

    /// Awaits what may take long. What runs meanwhile is still asked whether it is ready, and that is still told. The work is
    /// boxed by the caller: it is large, and would be held twice.
    async fn telling<T>(
        &mut self,
        desired: &Desired,
        plan: &Plan,
        mut work: impl Future<Output = T> + Unpin,
    ) -> T {
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = self.probes.changed() => {
                    self.readiness = self.probes.readiness();
                    if let Some(status) = self.status(desired, plan) {
                        self.rooms.statuses.publish(&self.pod, status);
                    }
                }
            }
        }
    }

    /// What is left of the grace of a pod that is ending: kills that are repeated, because one failed or more was found to
    /// kill, do not begin it anew. A container that is ended while its pod lives has all of it.
    fn grace_left(&mut self, grace: Duration) -> Duration {
        if self.phase < Phase::Terminating {
            return grace;
        }
        let now = tokio::time::Instant::now();
        let until = match self.ending {
            Some((before, until)) if before <= grace => until,
            Some((_, until)) => until.min(now + grace),
            None => now + grace,
        };
        self.ending = Some((grace, until));
        until.saturating_duration_since(now)
    }

    fn stop_arrived(&self, acted_on: &Desired) -> bool {
        self.desired.borrow().stop.is_some() && acted_on.stop.is_none()
    }

    /// Looks at the pod, however long that takes: what the steps did must be known before anything else is planned, or a
    /// pod that was never seen would pass for one of which nothing is left. False when the agent is stopping.
    async fn look(&mut self) -> bool {
        let afresh = self.resizing.stale;
        let Ok(seen) = self.rooms.pleg.look(&self.pod.uid, afresh).await else { return false };
        self.seen = seen;
        self.reconcile_memory();
        true
    }
}

/// How a plan went.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Carried {
    /// As far as it could be: look and plan again.
    Out,
    /// Nothing is left of the pod.
    Gone,
}

/// Resolves when an order to end the pod stands (or the agent stops).
async fn until_stop(desired: &mut watch::Receiver<Desired>) {
    // An error means that `world` is gone: stop as well.
    let _ = desired.wait_for(|d| d.stop.is_some()).await;
}

/// Resolves when the set has changed; never where there is no limit.
async fn changed(condemned: &mut Condemned) {
    if condemned.changed().await.is_err() {
        std::future::pending().await
    }
}
