//! The loop: measure, decide, reclaim, evict one pod, measure again.
//!
//! Between two pods everything is measured anew, and what was removed is given time to come free: no pod goes for what an
//! earlier one has already made up for. While the task waits, every arm of its select is cancel-safe.

use super::kernel::{Kernel, MemoryCgroup};
use super::limits;
use super::measure::{Detail, Measure, Observations, PodUse};
use super::memory;
use super::message;
use super::policy::{self, State, Verdict};
use super::rank::{self, Active};
use super::record::{self, Record};
use super::signal::{Condition, Resource, Signal};
use super::threshold::{Layout, Threshold, follow};
use super::{EvictConfig, Evicted, Order, Pressure, Reclaim};
use crate::api::{self, PodRef, PodUid};
use crate::event::{Event, Kind, Recorder};
use crate::metrics::Metrics;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Processes of a pod that goes at once have so long, as upstream's.
const IMMEDIATE: Duration = Duration::from_secs(1);

/// So long after its grace a pod may take to end and to be cleared away before others are looked at: a runtime that hangs
/// must not cost the node. Upstream waits as long for the clearing.
const CLEARING: Duration = Duration::from_secs(30);

/// What the task works with.
#[derive(Clone)]
pub struct Rooms {
    /// Who measures.
    pub measure: Arc<dyn Measure>,
    /// Who reclaims.
    pub reclaim: Arc<dyn Reclaim>,
    /// Every pod of which something has run and that has not ended.
    pub pods: Arc<dyn Fn() -> Vec<Active> + Send + Sync>,
    /// A pod's directory on the node.
    pub pod_dir: Arc<dyn Fn(&PodUid) -> PathBuf + Send + Sync>,
    /// The cgroup of all pods, where memory is counted.
    pub cgroup: Option<MemoryCgroup>,
    /// Where events go.
    pub recorder: Recorder,
    /// What is measured of the room itself.
    pub metrics: Metrics,
    /// For events of the node.
    pub node_name: String,
}

impl std::fmt::Debug for Rooms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rooms").field("measure", &self.measure).finish_non_exhaustive()
    }
}

/// Starts the task: what comes back are its orders, and the node's pressure.
pub fn spawn(
    config: EvictConfig,
    rooms: Rooms,
) -> (mpsc::Receiver<Order>, watch::Receiver<Pressure>, JoinHandle<()>) {
    let (orders, taken) = mpsc::channel(16);
    let (pressure, seen) = watch::channel(Pressure::default());
    let kernel = Kernel::listen(rooms.cgroup.as_ref());
    let task = Task {
        thresholds: config.thresholds.clone(),
        config,
        rooms,
        kernel,
        layout: None,
        state: State::default(),
        verdict: Verdict::default(),
        limits_checked: None,
        going: HashSet::new(),
        orders,
        pressure,
    };
    (taken, seen, tokio::spawn(task.run()))
}

struct Task {
    config: EvictConfig,
    /// As configured, and those for the file system of containers once it is known which that is.
    thresholds: Vec<Threshold>,
    rooms: Rooms,
    kernel: Kernel,
    layout: Option<Layout>,
    state: State,
    verdict: Verdict,
    /// When pods were last held to their own limits.
    limits_checked: Option<Instant>,
    /// Pods that were ordered to end.
    going: HashSet<PodUid>,
    orders: mpsc::Sender<Order>,
    pressure: watch::Sender<Pressure>,
}

/// What a pass came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// Nothing (more) to do for now.
    Rest,
    /// A pod went: look again at once.
    Again,
    /// Nobody takes orders any more.
    Over,
}

impl Task {
    async fn run(mut self) {
        loop {
            match self.pass().await {
                Pass::Again => {}
                Pass::Rest => self.wait().await,
                Pass::Over => return,
            }
        }
    }

    async fn wait(&mut self) {
        let next = self.verdict.next;
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let net = self.config.net;
        tokio::select! {
            () = tokio::time::sleep(net) => {}
            () = due => {}
            () = memory::falls_short(&self.thresholds, &*self.rooms.measure, &mut self.kernel, net) => {}
        }
    }

    async fn pass(&mut self) -> Pass {
        let pods = self.active();
        let held = |p: &Active| !api::is_critical(&p.pod) && limits::has_any(p);
        let limited = self.config.local_limits && pods.iter().any(held);
        if self.thresholds.is_empty() && !limited {
            return Pass::Rest;
        }
        self.find_layout().await;
        let (observed, at) = self.observe().await;
        let of_memory = |place: &usize| self.thresholds[*place].signal.resource() == Resource::Memory;
        // Disks are walked for the limits, and memory does not wait.
        if limited && !self.verdict.act.iter().any(of_memory) {
            let passed = self.hold_to_limits(&pods).await;
            if passed != Pass::Rest {
                return passed;
            }
        }
        let Some(first) = self.verdict.act.first() else { return Pass::Rest };
        let signal = self.thresholds[*first].signal;
        let resource = signal.resource();
        let reclaiming = format!("Attempting to reclaim {resource}");
        tracing::warn!(%signal, left = ?observed.get(&signal), "the node is short of {resource}");
        self.event(Kind::Warning, "EvictionThresholdMet", reclaiming);
        let Some((observed, at)) = self.reclaim(signal, observed, at).await else { return Pass::Rest };
        self.evict_one(signal, &observed, at).await
    }

    /// The pods there are, but for those that are going.
    fn active(&mut self) -> Vec<Active> {
        let mut pods = (self.rooms.pods)();
        let here: HashSet<PodUid> = pods.iter().map(|p| p.who.uid.clone()).collect();
        self.going.retain(|uid| here.contains(uid));
        pods.retain(|p| !self.going.contains(&p.who.uid));
        pods
    }

    /// Asks how file systems are laid out until that is known; until then everything counts as being on one.
    async fn find_layout(&mut self) {
        if self.layout.is_some() {
            return;
        }
        let Some(layout) = self.rooms.measure.layout().await else { return };
        for signal in follow(&mut self.thresholds, layout) {
            tracing::warn!(
                %signal,
                "the threshold is not used: it is that of the file system that containers write to"
            );
        }
        self.layout = Some(layout);
    }

    /// Measures the node and takes in what that says.
    async fn observe(&mut self) -> (Observations, Instant) {
        let observed = self.rooms.measure.node().await;
        let now = Instant::now();
        self.verdict = self.state.look(&self.thresholds, &observed, self.config.transition, now);
        self.tell(self.verdict.conditions.clone());
        (observed, now)
    }

    /// Publishes the node's conditions, with an event for each that changed.
    fn tell(&self, conditions: BTreeSet<Condition>) {
        let mut before = BTreeSet::new();
        self.pressure.send_if_modified(|p| {
            before = std::mem::replace(&mut p.conditions, conditions.clone());
            before != conditions
        });
        for c in before.symmetric_difference(&conditions) {
            let reason = c.event(conditions.contains(c));
            self.event(
                Kind::Normal,
                reason,
                format!("Node {} status is now: {reason}", self.rooms.node_name),
            );
        }
    }

    /// Removes what nobody needs, step by step, and measures after each; `None` once that is enough.
    async fn reclaim(
        &mut self,
        signal: Signal,
        mut observed: Observations,
        mut at: Instant,
    ) -> Option<(Observations, Instant)> {
        for step in steps(signal, self.layout.unwrap_or_default()) {
            let done = match step {
                Step::Containers => self.rooms.reclaim.containers().await,
                Step::Images => self.rooms.reclaim.images().await,
            };
            if let Err(error) = done {
                tracing::warn!(%signal, ?step, error, "cannot reclaim all that is unused");
            }
            (observed, at) = self.settled(signal).await;
            if policy::relieved(&self.thresholds, &observed) {
                tracing::info!(%signal, ?step, "enough was reclaimed without evicting a pod");
                return None;
            }
        }
        Some((observed, at))
    }

    /// Measures until `signal` is relieved, for as long as what was removed may take to come free.
    async fn settled(&mut self, signal: Signal) -> (Observations, Instant) {
        let (patience, step) = match signal.resource() {
            Resource::Memory | Resource::Pids => (Duration::from_millis(500), Duration::from_millis(50)),
            Resource::EphemeralStorage | Resource::Inodes => {
                (Duration::from_secs(5), Duration::from_millis(250))
            }
        };
        let until = Instant::now() + patience;
        loop {
            let seen = self.observe().await;
            let low = self.verdict.act.iter().any(|place| self.thresholds[*place].signal == signal);
            if !low || Instant::now() >= until {
                return seen;
            }
            tokio::time::sleep(step).await;
        }
    }

    /// Evicts the first pod in order that may go, and waits until it has ended.
    async fn evict_one(&mut self, signal: Signal, observed: &Observations, at: Instant) -> Pass {
        let Some(threshold) =
            self.verdict.act.iter().map(|p| &self.thresholds[*p]).find(|t| t.signal == signal)
        else {
            // It was relieved, and another may be low.
            return if self.verdict.act.is_empty() { Pass::Rest } else { Pass::Again };
        };
        let hard = threshold.is_hard();
        let pods = self.active();
        let resource = signal.resource();
        let detail = match resource {
            Resource::Memory => Detail::Memory,
            Resource::Pids => Detail::Processes,
            Resource::EphemeralStorage | Resource::Inodes => Detail::Disks,
        };
        let used = self.rooms.measure.pods(detail).await;
        let layout = self.layout.unwrap_or_default();
        if rank::nothing_told(&used, signal, layout) {
            tracing::warn!(%signal, "the runtime does not tell what containers wrote: nobody is evicted by guess");
            return Pass::Rest;
        }
        // Measuring takes its time: what has ended meanwhile has nothing to give, and what is new was not measured.
        let still: HashSet<PodUid> = self.active().into_iter().map(|p| p.who.uid).collect();
        let mut pods: Vec<Active> = pods.into_iter().filter(|p| still.contains(&p.who.uid)).collect();
        rank::rank(&mut pods, &used, signal, layout);
        for place in &self.verdict.act {
            let age = self.rooms.metrics.eviction_stats_age.with([self.thresholds[*place].signal.as_str()]);
            age.observe_duration(at.elapsed());
        }
        let (critical, may_go): (Vec<Active>, Vec<Active>) =
            pods.into_iter().partition(|p| api::is_critical(&p.pod));
        let Some(victim) = may_go.into_iter().next() else {
            tracing::warn!(%signal, critical = critical.len(), "no pod may be evicted");
            return Pass::Rest;
        };
        let met: Vec<&Threshold> = self.verdict.act.iter().map(|p| &self.thresholds[*p]).collect();
        let told = message::evicted(resource, &victim, used.get(&victim.who.uid), &met, observed);
        let grace = if hard {
            IMMEDIATE
        } else {
            let own = api::spec(&victim.pod).termination_grace_period_seconds;
            own.map_or(self.config.max_grace, |own| api::grace(own).min(self.config.max_grace))
        };
        let why = Evicted { message: told.message, disrupted: true };
        match self.order(&victim, why, told.annotations, grace, signal.as_str()).await {
            Answer::Taken(wait) => {
                if !wait.ended().await {
                    tracing::warn!(pod = %victim.who, "an evicted pod does not end");
                }
            }
            Answer::HasEnded => {}
            Answer::Over => return Pass::Over,
        }
        self.settled(signal).await;
        Pass::Again
    }

    /// Evicts every pod that has passed a limit of its own.
    async fn hold_to_limits(&mut self, pods: &[Active]) -> Pass {
        let due = self.limits_checked.is_none_or(|at| at.elapsed() >= self.config.net);
        if !due {
            return Pass::Rest;
        }
        self.limits_checked = Some(Instant::now());
        let used: HashMap<PodUid, PodUse> = self.rooms.measure.pods(Detail::Disks).await;
        let layout = self.layout.unwrap_or_default();
        let mut waits = Vec::new();
        for pod in pods.iter().filter(|p| !api::is_critical(&p.pod)) {
            let Some(passed) = used.get(&pod.who.uid).and_then(|u| limits::passed(pod, u, layout)) else {
                continue;
            };
            let why = Evicted { message: passed.message, disrupted: false };
            match self.order(pod, why, BTreeMap::new(), IMMEDIATE, passed.signal).await {
                Answer::Taken(wait) => waits.push(wait),
                Answer::HasEnded => {}
                Answer::Over => return Pass::Over,
            }
        }
        if waits.is_empty() {
            return Pass::Rest;
        }
        for wait in waits {
            wait.ended().await;
        }
        Pass::Again
    }

    /// Keeps the eviction, orders it, and tells of it once the pod is ordered to end.
    async fn order(
        &mut self,
        pod: &Active,
        why: Evicted,
        annotations: BTreeMap<String, String>,
        grace: Duration,
        signal: &'static str,
    ) -> Answer {
        let (who, grace, message) = (pod.who.clone(), grace.max(IMMEDIATE), why.message.clone());
        let kept = self.keep(&who, Record::new(&who.uid, &why, grace)).await;
        let (taken, accepted) = oneshot::channel();
        let (told, ended) = oneshot::channel();
        let order = Order { uid: who.uid.clone(), why, grace, accepted: taken, ended: told };
        let sent = self.orders.send(order).await;
        // Either way nothing more is to be had from it.
        self.going.insert(who.uid.clone());
        if accepted.await.is_err() {
            tracing::info!(pod = %who, "a pod that was to be evicted has ended by itself");
            if kept {
                self.take_back(&who).await;
            }
            return if sent.is_ok() { Answer::HasEnded } else { Answer::Over };
        }
        tracing::warn!(pod = %who, signal, message, grace_s = grace.as_secs(), "evicting a pod");
        self.rooms.recorder.record(Event {
            pod: Some(who),
            field_path: None,
            kind: Kind::Warning,
            reason: message::REASON.into(),
            message,
            annotations,
        });
        self.rooms.metrics.evictions.with([signal]).inc();
        Answer::Taken(Wait { ended, until: Instant::now() + grace.max(Duration::from_secs(10)) + CLEARING })
    }

    /// From here on the eviction outlives the agent. A disk that takes no more keeps no pod from being evicted.
    /// Whether there is a record now that was not there before: one of an earlier agent's stays.
    async fn keep(&self, who: &PodRef, record: Record) -> bool {
        let (dir, uid) = ((self.rooms.pod_dir)(&who.uid), who.uid.clone());
        let there = dir.clone();
        let written = tokio::task::spawn_blocking(move || match record::read(&dir, &uid) {
            Some(_) => Ok(None),
            None => record::write(&dir, &record).map(Some),
        });
        match written.await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(file))) => {
                // That may take long on a disk that is busy; the pod's processes need not wait for it.
                tokio::task::spawn_blocking(move || {
                    if let Err(error) = record::settle(&there, &file) {
                        tracing::warn!(path = %there.display(), %error, "the record of an eviction may be lost");
                    }
                });
                return true;
            }
            Ok(Err(error)) => {
                tracing::warn!(pod = %who, %error, "the eviction cannot be kept: the next agent may run the pod again");
            }
            Err(error) => tracing::error!(pod = %who, %error, "keeping an eviction panicked"),
        }
        false
    }

    /// The pod was not evicted after all.
    async fn take_back(&self, who: &PodRef) {
        let dir = (self.rooms.pod_dir)(&who.uid);
        match tokio::task::spawn_blocking(move || record::remove(&dir)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(pod = %who, %error, "the record of an eviction that did not happen stays");
            }
            Err(error) => tracing::error!(pod = %who, %error, "taking back an eviction panicked"),
        }
    }

    fn event(&self, kind: Kind, reason: &'static str, message: String) {
        let reason = reason.into();
        let annotations = BTreeMap::new();
        self.rooms.recorder.record(Event { pod: None, field_path: None, kind, reason, message, annotations });
    }
}

/// What became of an order.
enum Answer {
    /// The pod is told to end.
    Taken(Wait),
    /// It has ended by itself, and stays what it is.
    HasEnded,
    /// Nobody takes orders any more.
    Over,
}

/// An eviction under way.
struct Wait {
    ended: oneshot::Receiver<()>,
    until: Instant,
}

impl Wait {
    /// Whether the pod has ended in time. One that is gone altogether has.
    async fn ended(self) -> bool {
        tokio::time::timeout_at(self.until, self.ended).await.is_ok()
    }
}

/// Something to reclaim before pods go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Containers,
    Images,
}

/// What can be reclaimed where `signal` is low: images and what ended containers wrote are where the runtime keeps them.
fn steps(signal: Signal, layout: Layout) -> &'static [Step] {
    use Signal::{AllocatableMemory, ContainerFs, ContainerFsInodes, ImageFs, ImageFsInodes, Memory, NodeFs};
    use Signal::{NodeFsInodes, Pid};
    match (signal, layout) {
        (Memory | AllocatableMemory | Pid, _) | (NodeFs | NodeFsInodes, Layout::OfRuntime) => &[],
        (ImageFs | ImageFsInodes, Layout::OfImages) => &[Step::Images],
        (NodeFs | NodeFsInodes | ContainerFs | ContainerFsInodes, Layout::OfImages) => &[Step::Containers],
        _ => &[Step::Containers, Step::Images],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reclaimed_is_where_the_shortage_is() {
        use Step::{Containers, Images};
        let cases: [(Signal, Layout, &[Step]); 9] = [
            (Signal::Memory, Layout::One, &[]),
            (Signal::Pid, Layout::OfRuntime, &[]),
            (Signal::NodeFs, Layout::One, &[Containers, Images]),
            (Signal::ImageFsInodes, Layout::One, &[Containers, Images]),
            (Signal::NodeFs, Layout::OfRuntime, &[]),
            (Signal::ImageFs, Layout::OfRuntime, &[Containers, Images]),
            (Signal::ContainerFs, Layout::OfRuntime, &[Containers, Images]),
            (Signal::ImageFs, Layout::OfImages, &[Images]),
            (Signal::NodeFsInodes, Layout::OfImages, &[Containers]),
        ];
        for (signal, layout, want) in cases {
            assert_eq!(steps(signal, layout), want, "{signal} {layout:?}");
        }
    }
}
