//! How an actor follows changes of its pod's resources: what is to be done, since when, what went wrong, when it is through.
//!
//! `world` says what the pod has; whether that is so is seen in what runs. Nothing here is remembered that could not be
//! found out again: after a restart what the runtime tells decides, and nothing is run again for what is so already.

use super::Actor;
use crate::allocation::{self, Allocation, same};
use crate::api::Container;
use crate::event::Kind;
use crate::metrics::Gauge;
use crate::pleg::observed::{Given, State};
use crate::pod::desired::Desired;
use crate::pod::plan::resize::{self, Actual, Needs};
use crate::pod::plan::{self, Phase};
use crate::pod::steps::Failure;
use k8s_openapi::api::core::v1::ResourceRequirements;
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::time::Instant;

/// What an actor knows of its pod's resources.
#[derive(Debug)]
pub(super) struct Resizing {
    /// What its containers have.
    pub actual: Actual,
    /// What is to be done.
    pub needs: Needs,
    /// New resources are being put into effect.
    pub in_progress: Option<InProgress>,
    /// How many changes of `world`'s were seen.
    seen: u64,
    /// What an earlier incarnation had got the runtime to take; until it was looked through.
    kept: Option<Allocation>,
    /// By container: the restart count of the newest instance that this agent made, and with which resources.
    made: HashMap<String, (u32, ResourceRequirements)>,
    /// What the runtime has taken is not what was last kept for the next incarnation.
    unkept: bool,
    /// The runtime was asked to change something: what it told before is old.
    pub stale: bool,
    /// How often it is still asked whether that shows.
    looks: u8,
}

/// Runtimes show at once what they have taken; one that does not is asked again so often, each time after so long.
const LOOKS: u8 = 5;
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The condition `PodResizeInProgress`.
#[derive(Debug)]
pub(super) struct InProgress {
    /// Of the object that asked.
    pub generation: Option<i64>,
    /// Why it is not through, if something went wrong.
    pub error: Option<String>,
    _counted: Counted,
}

/// Counts in `kubelet_pod_in_progress_resizes` as long as it is there.
#[derive(Debug)]
struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.add(1.0);
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.add(-1.0);
    }
}

impl Resizing {
    pub(super) fn new(desired: &Desired, kept: Option<Allocation>) -> Self {
        Self {
            actual: Actual::default(),
            needs: Needs::default(),
            in_progress: None,
            seen: desired.resize.changes,
            kept,
            made: HashMap::new(),
            unkept: false,
            stale: false,
            looks: 0,
        }
    }
}

impl Actor {
    /// Finds out what is to be done about the pod's resources, and tells when nothing is any more.
    pub(super) fn follow_resize(&mut self, desired: &Desired) {
        if desired.stop.is_some() || self.phase >= Phase::Terminating {
            self.resizing.needs = Needs::default();
            self.resizing.in_progress = None;
            return;
        }
        self.read_actual(desired);
        let (pod, facts) = (&desired.pod, &self.rooms.facts);
        let containers = resize::needs(pod, &self.seen, &self.resizing.actual, facts);
        let lives = self.seen.containers.iter().any(|i| i.state == State::Running);
        self.resizing.needs = Needs { containers, pod: lives && !self.steps.cgroup_is_so(pod) };
        let changed =
            std::mem::replace(&mut self.resizing.seen, desired.resize.changes) != desired.resize.changes;
        let generation = desired.resize.generation.or(pod.metadata.generation);
        if changed {
            self.forget_failure(plan::RESIZE);
        }
        if changed || (self.resizing.in_progress.is_none() && !self.resizing.needs.is_empty()) {
            let counted = Counted::new(&self.rooms.metrics.in_progress_resizes);
            self.resizing.in_progress = Some(InProgress { generation, error: None, _counted: counted });
        }
        if self.resizing.needs.is_empty() {
            let whole = pod.spec.as_ref().and_then(|s| s.resources.as_ref());
            if self.resizing.actual.pod.as_ref() != whole {
                self.resizing.actual.pod = whole.cloned();
                self.resizing.unkept = true;
            }
            if let Some(through) = self.resizing.in_progress.take() {
                let text = allocation::message("completed", pod, through.generation, None);
                self.steps.tell_resize(Kind::Normal, "ResizeCompleted", text);
            }
            if std::mem::take(&mut self.resizing.unkept) {
                self.keep_actuated(desired);
            }
        }
    }

    /// Brings what is known of the containers' resources up to date.
    fn read_actual(&mut self, desired: &Desired) {
        let running: Vec<_> =
            self.seen.containers.iter().filter(|i| i.state == State::Running).cloned().collect();
        let ids: HashSet<&str> = running.iter().map(|i| i.id.as_str()).collect();
        let actual = &mut self.resizing.actual;
        actual.actuated.retain(|id, _| ids.contains(id.as_str()));
        actual.read.retain(|id, _| ids.contains(id.as_str()));
        let fresh = std::mem::take(&mut self.resizing.stale);
        for i in &running {
            if i.given.is_none()
                && (fresh || !actual.read.contains_key(&i.id))
                && let Some(now) = self.steps.container_now(&desired.pod, &i.id)
            {
                actual.read.insert(i.id.clone(), given(&now));
            }
        }
        let kept = self.resizing.kept.take();
        let facts = &self.rooms.facts;
        for c in allocation::sized(&desired.pod) {
            let Some(i) = self.seen.latest(&c.name).filter(|i| ids.contains(i.id.as_str())) else { continue };
            if actual.actuated.contains_key(&i.id) {
                continue;
            }
            // It has what it was made with, however the runtime tells that.
            if let Some((_, with)) = self.resizing.made.get(&c.name).filter(|(n, _)| *n == i.restart_count) {
                actual.actuated.insert(i.id.clone(), with.clone());
                self.resizing.made.remove(&c.name);
                self.resizing.unkept = true;
                continue;
            }
            let wanted = c.resources.clone().unwrap_or_default();
            let last = kept.as_ref().and_then(|kept| kept.containers.get(&c.name)).cloned();
            match (actual.given(i), last) {
                // What it asked for last is believed of what the runtime does not tell, if it can be so of what it does.
                (Some(given), Some(last)) => {
                    let mut then = c.clone();
                    then.resources = Some(last.clone());
                    if resize::is_so(&desired.pod, &then, &given, facts) {
                        actual.actuated.insert(i.id.clone(), last);
                        self.resizing.unkept = true;
                    }
                }
                (Some(given), None) if resize::is_so(&desired.pod, c, &given, facts) => {
                    actual.actuated.insert(i.id.clone(), wanted);
                    self.resizing.unkept = true;
                }
                (Some(_), None) => {}
                (None, last) => {
                    actual.actuated.insert(i.id.clone(), last.unwrap_or(wanted));
                    self.resizing.unkept = true;
                }
            }
        }
    }

    /// Keeps for the next incarnation what the runtime has taken.
    fn keep_actuated(&self, desired: &Desired) {
        let actual = &self.resizing.actual;
        let mut containers = self.rooms.actuated.get(&self.pod.uid).unwrap_or_default().containers;
        for c in allocation::sized(&desired.pod) {
            let latest = self.seen.latest(&c.name);
            if let Some(taken) = latest.and_then(|i| actual.actuated.get(&i.id)) {
                containers.insert(c.name.clone(), taken.clone());
            }
        }
        if !containers.is_empty() {
            self.rooms.actuated.put(&self.pod.uid, Allocation { containers, pod: actual.pod.clone() });
        }
    }

    /// An instance of `c` is about to be made.
    pub(super) fn note_made(&mut self, c: &Container, restart_count: u32) {
        let with = c.resources.clone().unwrap_or_default();
        self.resizing.made.insert(c.name.clone(), (restart_count, with));
    }

    /// Carries out what the containers need that run on.
    pub(super) async fn resize(&mut self, desired: &Desired) -> Result<(), Failure> {
        let began = Instant::now();
        let (needs, actual) = (self.resizing.needs.clone(), self.resizing.actual.clone());
        let resized = self.steps.resize(&desired.pod, &self.seen, &needs, &actual).await;
        (self.resizing.stale, self.resizing.looks) = (true, LOOKS);
        // What was begun may have been taken in part: what the runtime tells decides, where it tells.
        for i in self.seen.containers.iter().filter(|i| resized.begun.contains(&i.id)) {
            if actual.given(i).is_some() {
                self.resizing.actual.actuated.remove(&i.id);
            }
        }
        for (name, id) in &resized.done {
            let c = allocation::sized(&desired.pod).find(|c| c.name == *name);
            let taken = c.and_then(|c| c.resources.clone()).unwrap_or_default();
            self.resizing.actual.actuated.insert(id.clone(), taken);
            self.resizing.unkept = true;
        }
        let success = if resized.error.is_none() { "true" } else { "false" };
        let millis = began.elapsed().as_secs_f64() * 1000.0;
        self.rooms.metrics.resize_duration.with([success]).observe(millis);
        self.tell_resize_error(desired, resized.error.clone());
        resized.failure()
    }

    /// Tells of what went wrong, once for each thing that does.
    fn tell_resize_error(&mut self, desired: &Desired, error: Option<String>) {
        let Some(in_progress) = self.resizing.in_progress.as_mut() else { return };
        let before = std::mem::replace(&mut in_progress.error, error.clone());
        let Some(error) = error.filter(|e| before.as_ref() != Some(e)) else { return };
        tracing::warn!(pod = %self.pod, error, "the pod's new resources cannot be put into effect yet");
        let text = allocation::message("error", &desired.pod, in_progress.generation, Some(&error));
        self.steps.tell_resize(Kind::Warning, "ResizeError", text);
    }

    /// Waits as [`Actor::wait`], and looks again where the runtime has yet to show what it took.
    pub(super) async fn rest(&mut self, desired: &Desired, wake: Option<i64>) -> bool {
        if self.resizing.looks == 0 || !self.lags(desired) {
            return self.wait(wake).await;
        }
        let at = Instant::now() + LOOK_AGAIN;
        tokio::select! {
            goes_on = self.wait(wake) => return goes_on,
            () = tokio::time::sleep_until(at) => {}
        }
        self.resizing.looks -= 1;
        self.resizing.stale = true;
        self.look().await
    }

    /// The runtime took new values and does not show them yet.
    fn lags(&self, desired: &Desired) -> bool {
        let actual = &self.resizing.actual;
        allocation::sized(&desired.pod).any(|c| {
            let Some(i) = self.seen.latest(&c.name).filter(|i| i.state == State::Running) else {
                return false;
            };
            let taken =
                actual.actuated.get(&i.id).is_some_and(|a| same(a, &c.resources.clone().unwrap_or_default()));
            let shown = actual.given(i).is_none_or(|g| resize::is_so(&desired.pod, c, &g, &self.rooms.facts));
            taken && !shown
        })
    }
}

/// What a cgroup has, in CRI's terms.
fn given(now: &crate::cgroup::Now) -> Given {
    Given {
        cpu_shares: i64::try_from(now.cpu_shares).unwrap_or(i64::MAX),
        cpu_quota_us: Some(now.cpu_quota_us).filter(|q| *q > 0),
        cpu_period_us: i64::try_from(now.cpu_period_us).unwrap_or(100_000),
        memory_limit: Some(now.memory_limit).filter(|m| *m > 0),
    }
}
