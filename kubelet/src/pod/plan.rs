//! The plan: from what should be and what is to what to do next. Pure: no I/O, no clock, table- and property-tested.
//!
//! The actor asks for a plan, carries it out, looks at the runtime, and asks again, until the plan has no steps. A plan
//! is never remembered: a step that failed is in the next plan again, because the world still differs.
//!
//! ```text
//!   Starting ──▶ Running ──▶ Terminating ──▶ Terminated ──▶ Gone
//!      └────────────┴──(Stop, or every container done)──▶        phases only move to the right
//! ```

use super::backoff::{self, Verdict};
use super::desired::{Desired, MINIMUM_GRACE, StopReason};
use super::translate;
use crate::api::{self, Container, Pod, PodRef};
use crate::event::ContainerList;
use crate::pleg::observed::{Instance, Observed, Sandbox, State};
use crate::probe::Readiness;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

/// Where a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not every regular container has been started yet.
    Starting,
    /// Every regular container has been started at least once.
    Running,
    /// Its processes are being ended.
    Terminating,
    /// Nothing of it runs or will run again.
    Terminated,
    /// Nothing of it is left on the node.
    Gone,
}

/// How a pod's work ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every container ended with exit code 0.
    Succeeded,
    /// Some container failed and will not be restarted.
    Failed,
}

/// `state.waiting` of a container: why it does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// `CrashLoopBackOff`, `ErrImagePull`, …
    pub reason: String,
    /// Empty for none.
    pub message: String,
}

/// What a pod's actor remembers between plans. All of it may be lost: a plan made without it is still right, only
/// less patient.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Crash back-off by container name.
    pub backoff: HashMap<String, backoff::Entry>,
    /// Why the last try to start a container failed.
    pub waiting: BTreeMap<String, Waiting>,
    /// Not before this moment (nanoseconds since the epoch) is what failed tried again; the key is the container's
    /// name, [`POD`] or [`GARBAGE`].
    pub retry: HashMap<String, i64>,
    /// How often in a row; same keys.
    pub failures: HashMap<String, u32>,
    /// Sandboxes that have been stopped by us.
    pub stopped: HashSet<String>,
    /// Instances whose start failed, and until when nothing is done about those that are still only created; they are
    /// not started a second time.
    pub failed_starts: HashMap<String, i64>,
}

/// The key in [`Memory`] of what concerns the pod as a whole: its sandbox, its directories, ending it.
pub const POD: &str = "";
/// The key in [`Memory`] of removing what is not needed any more from a pod that runs. No container has this name.
pub const GARBAGE: &str = "#garbage";

/// One thing to do. Steps of a plan are carried out in order; the first that fails ends the plan.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// End these containers, all at once, and wait until they have ended.
    Kill {
        /// Which.
        targets: Vec<Kill>,
        /// Between SIGTERM and SIGKILL.
        grace: Duration,
    },
    /// Stop a sandbox and release its network.
    StopSandbox {
        /// The runtime's id.
        id: String,
    },
    /// Make the sandbox.
    CreateSandbox {
        /// `metadata.attempt`
        attempt: u32,
    },
    /// Create and start a container.
    Start {
        /// Which list of the spec.
        list: ContainerList,
        /// Where in the list.
        index: usize,
        /// The new instance's restart count.
        restart_count: u32,
        /// Back-off to remember once this is under way.
        backoff: Option<backoff::Entry>,
    },
    /// Start an instance that was created (by an earlier incarnation of the agent) and never started.
    Resume {
        /// Which list of the spec.
        list: ContainerList,
        /// Where in the list.
        index: usize,
        /// The runtime's id.
        id: String,
    },
    /// Remove a dead instance.
    RemoveContainer {
        /// The runtime's id.
        id: String,
        /// The container's name.
        name: String,
    },
    /// Remove a stopped sandbox with what is in it.
    RemoveSandbox {
        /// The runtime's id.
        id: String,
    },
    /// Remove the pod's cgroup: nothing of the pod runs any more.
    ReleaseCgroup,
    /// Remove volumes, directories, logs: the source no longer has the pod and the runtime has nothing of it.
    CleanUp,
}

/// One container to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// The runtime's id.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// For the event; `None`: "Stopping container NAME".
    pub message: Option<String>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Where the pod is before the steps.
    pub phase: Phase,
    /// In order.
    pub steps: Vec<Step>,
    /// Containers that wait, and why; for the status.
    pub waiting: BTreeMap<String, Waiting>,
    /// When to plan again if nothing happens (nanoseconds since the epoch).
    pub wake: Option<i64>,
    /// How the pod's own work ended, once it has.
    pub outcome: Option<Outcome>,
}

/// Everything a plan depends on.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// What should be.
    pub desired: &'a Desired,
    /// What is.
    pub observed: &'a Observed,
    /// What was tried.
    pub memory: &'a Memory,
    /// What probes made of its containers.
    pub readiness: &'a Readiness,
    /// The pod's cgroup exists (or may).
    pub cgroup: bool,
    /// Nanoseconds since the epoch.
    pub now: i64,
    /// Cap of the crash back-off.
    pub backoff_cap: Duration,
}

/// Why a container waits that ended too often.
pub const CRASH_LOOP: &str = "CrashLoopBackOff";

/// Upstream keeps this many dead instances of each container for their logs.
const DEAD_KEPT: usize = 1;

/// The plan for one pod.
pub fn plan(input: &Input<'_>) -> Plan {
    let outcome = outcome(input);
    if input.desired.stop.is_some() || outcome.is_some() {
        return terminate(input, outcome);
    }
    let mut planner = Planner::new(input);
    planner.sandbox();
    planner.containers();
    planner.garbage();
    planner.finish()
}

/// Nothing of the pod runs, and nothing of it will run again.
pub fn has_ended(desired: &Desired, observed: &Observed) -> bool {
    let (memory, readiness) = (Memory::default(), Readiness::default());
    let input = Input {
        desired,
        observed,
        memory: &memory,
        readiness: &readiness,
        cgroup: false,
        now: 0,
        backoff_cap: Duration::ZERO,
    };
    (desired.stop.is_some() || outcome(&input).is_some()) && !observed.is_live()
}

/// That instance has ended and will not be followed by another.
pub fn ended_for_good(pod: &Pod, instance: &Instance) -> bool {
    instance.state == State::Exited && !Policy::of(pod).restarts(instance)
}

/// The pod's own end: `None` while something runs or will run again.
pub fn outcome(input: &Input<'_>) -> Option<Outcome> {
    let spec = api::spec(&input.desired.pod);
    let policy = Policy::of(&input.desired.pod);
    let ended = |c: &Container| -> Option<i32> {
        let latest = input.observed.latest(&c.name)?;
        (latest.state == State::Exited && !policy.restarts(latest)).then_some(latest.exit_code)
    };
    // Only Never lets an init container's failure end the pod.
    if policy == Policy::Never {
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        let regular_seen = spec.containers.iter().any(|c| input.observed.latest(&c.name).is_some());
        if !regular_seen && inits.iter().any(|c| ended(c).is_some_and(|code| code != 0)) {
            return Some(Outcome::Failed);
        }
    }
    let mut failed = false;
    for c in &spec.containers {
        failed |= ended(c)? != 0;
    }
    if spec.containers.is_empty() {
        return None;
    }
    Some(if failed { Outcome::Failed } else { Outcome::Succeeded })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Policy {
    Always,
    OnFailure,
    Never,
}

impl Policy {
    fn of(pod: &Pod) -> Self {
        match api::spec(pod).restart_policy.as_deref() {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }
    fn restarts(self, ended: &Instance) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => ended.exit_code != 0,
            Self::Never => false,
        }
    }
}

/// The grace of a pod that ends by itself or loses its sandbox: its spec's.
fn spec_grace(input: &Input<'_>) -> Duration {
    let seconds = api::spec(&input.desired.pod).termination_grace_period_seconds.unwrap_or(30);
    Duration::from_secs(seconds.try_into().unwrap_or(0)).max(MINIMUM_GRACE)
}

/// Ends everything; then, when the source has let go of the pod, removes everything.
fn terminate(input: &Input<'_>, outcome: Option<Outcome>) -> Plan {
    let observed = input.observed;
    let mut steps = Vec::new();
    let live = live_targets(observed.containers.iter());
    let running = !live.is_empty();
    if running {
        let grace = input.desired.stop.as_ref().map_or_else(|| spec_grace(input), |s| s.grace);
        steps.push(Step::Kill { targets: live, grace: grace.max(MINIMUM_GRACE) });
    }
    // One that was stopped and still calls itself ready is the runtime's mistake (containerd 2.1 makes it when its client
    // died while it made the sandbox): another stop would change nothing, its removal ends it.
    let unstopped = observed.sandboxes.iter().filter(|s| !input.memory.stopped.contains(&s.id));
    steps.extend(unstopped.map(|s| Step::StopSandbox { id: s.id.clone() }));
    let ended = steps.is_empty();
    let mut phase = if ended { Phase::Terminated } else { Phase::Terminating };
    if ended && input.cgroup {
        steps.push(Step::ReleaseCgroup);
    }
    if ended && input.desired.stop.as_ref().is_some_and(|s| s.remove) {
        if observed.is_empty() && !input.cgroup {
            phase = Phase::Gone;
            steps.push(Step::CleanUp);
        }
        steps.extend(
            observed
                .containers
                .iter()
                .map(|c| Step::RemoveContainer { id: c.id.clone(), name: c.name.clone() }),
        );
        steps.extend(observed.sandboxes.iter().map(|s| Step::RemoveSandbox { id: s.id.clone() }));
    } else if ended {
        steps.extend(garbage(observed, None, &input.memory.stopped));
    }
    // A rejected pod never ran: it is Failed by its reason, whatever its containers say.
    let outcome = match input.desired.stop.as_ref().map(|s| &s.why) {
        Some(StopReason::Rejected { .. }) => Some(Outcome::Failed),
        _ => outcome,
    };
    let wake = (!steps.is_empty()).then(|| retry_at(input, POD)).flatten();
    let steps = if wake.is_some() { Vec::new() } else { steps };
    Plan { phase, steps, waiting: BTreeMap::new(), wake, outcome }
}

/// When the operation under `key` may be tried again, if that is in the future.
fn retry_at(input: &Input<'_>, key: &str) -> Option<i64> {
    input.memory.retry.get(key).copied().filter(|at| *at > input.now)
}

fn live_targets<'a>(instances: impl Iterator<Item = &'a Instance>) -> Vec<Kill> {
    instances
        .filter(|i| i.is_live())
        .map(|i| Kill { id: i.id.clone(), name: i.name.clone(), message: None })
        .collect()
}

/// Dead instances past the ones kept, and old sandboxes that hold none of the kept ones.
fn garbage(observed: &Observed, current: Option<&Sandbox>, stopped: &HashSet<String>) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut dead: HashMap<&str, usize> = HashMap::new();
    let mut kept_in: HashSet<&str> = HashSet::new();
    let mut met: HashSet<&str> = HashSet::new();
    for i in &observed.containers {
        let n = dead.entry(&i.name).or_default();
        // The newest instance of a name is the one that counts; an older one that never ran is of no use.
        let superseded = !met.insert(&i.name) && i.state == State::Created;
        if superseded {
            steps.push(Step::RemoveContainer { id: i.id.clone(), name: i.name.clone() });
            continue;
        }
        if i.state == State::Exited {
            *n += 1;
            if *n > DEAD_KEPT {
                steps.push(Step::RemoveContainer { id: i.id.clone(), name: i.name.clone() });
                continue;
            }
        }
        kept_in.insert(&i.sandbox_id);
    }
    let newest = current.or_else(|| observed.sandbox()).map(|s| s.id.as_str());
    let old = observed
        .sandboxes
        .iter()
        .filter(|s| Some(s.id.as_str()) != newest && (!s.ready || stopped.contains(&s.id)))
        .filter(|s| !kept_in.contains(s.id.as_str()));
    steps.extend(old.map(|s| Step::RemoveSandbox { id: s.id.clone() }));
    steps
}

/// The sandbox is usable: ready, and with an address unless it is on the host's network.
pub fn usable(sandbox: &Sandbox, host_network: bool) -> bool {
    sandbox.ready && (host_network || !sandbox.ips.is_empty())
}

struct Planner<'a> {
    input: &'a Input<'a>,
    policy: Policy,
    /// The sandbox that containers may be started in; `None` when it must be made first.
    current: Option<&'a Sandbox>,
    steps: Vec<Step>,
    waiting: BTreeMap<String, Waiting>,
    wake: Option<i64>,
}

impl<'a> Planner<'a> {
    fn new(input: &'a Input<'a>) -> Self {
        let host = api::spec(&input.desired.pod).host_network.unwrap_or(false);
        let current = input.observed.sandbox().filter(|s| usable(s, host));
        Self {
            input,
            policy: Policy::of(&input.desired.pod),
            current,
            steps: Vec::new(),
            waiting: BTreeMap::new(),
            wake: None,
        }
    }

    /// Ends what lives in sandboxes other than the current one; makes a new one when there is none.
    fn sandbox(&mut self) {
        let observed = self.input.observed;
        let current = self.current.map(|s| s.id.as_str());
        let stray =
            live_targets(observed.containers.iter().filter(|c| Some(c.sandbox_id.as_str()) != current));
        if !stray.is_empty() {
            self.steps.push(Step::Kill { targets: stray, grace: spec_grace(self.input) });
        }
        let unstopped = observed
            .sandboxes
            .iter()
            .filter(|s| Some(s.id.as_str()) != current && !self.input.memory.stopped.contains(&s.id));
        self.steps.extend(unstopped.map(|s| Step::StopSandbox { id: s.id.clone() }));
        if self.current.is_none() {
            let attempt = observed.sandboxes.iter().map(|s| s.attempt + 1).max().unwrap_or(0);
            self.steps.push(Step::CreateSandbox { attempt });
        }
    }

    fn containers(&mut self) {
        let spec = api::spec(&self.input.desired.pod);
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        if !self.initialized(inits, &spec.containers) {
            return;
        }
        for (index, c) in spec.containers.iter().enumerate() {
            self.container(ContainerList::Regular, index, c);
        }
    }

    /// Plans the next init container; true when all are done in this sandbox.
    fn initialized(&mut self, inits: &[Container], regular: &[Container]) -> bool {
        if regular.iter().any(|c| self.active(c).is_some()) {
            return true;
        }
        for (index, c) in inits.iter().enumerate() {
            if self.active(c).is_some_and(|i| i.state == State::Exited && i.exit_code == 0) {
                continue;
            }
            self.container(ContainerList::Init, index, c);
            return false;
        }
        true
    }

    /// The newest instance of `c`, if it is of the current sandbox.
    fn active(&self, c: &Container) -> Option<&'a Instance> {
        let current = self.current?;
        let newest = self.input.observed.containers.iter().find(|i| i.name == c.name);
        newest.filter(|i| i.sandbox_id == current.id)
    }

    fn container(&mut self, list: ContainerList, index: usize, c: &Container) {
        let Some(latest) = self.input.observed.latest(&c.name) else {
            return self.start(list, index, c, 0, None);
        };
        let next = latest.restart_count + 1;
        match latest.state {
            State::Running if Some(&latest.sandbox_id) == self.current.map(|s| &s.id) => {
                if list == ContainerList::Regular && latest.hash != translate::container_hash(c) {
                    let message = format!("Container {} definition changed, will be restarted", c.name);
                    let target = Kill { id: latest.id.clone(), name: c.name.clone(), message: Some(message) };
                    self.steps.push(Step::Kill { targets: vec![target], grace: spec_grace(self.input) });
                    self.start(list, index, c, next, None);
                }
            }
            State::Created
                if Some(&latest.sandbox_id) == self.current.map(|s| &s.id)
                    && latest.hash == translate::container_hash(c) =>
            {
                match self.input.memory.failed_starts.get(&latest.id) {
                    None => self.steps.push(Step::Resume { list, index, id: latest.id.clone() }),
                    // No end was seen from which the crash back-off could count.
                    Some(until) if *until > self.input.now => self.wake_at(*until),
                    Some(_) => self.start(list, index, c, next, None),
                }
            }
            State::Unknown => {
                let target = Kill {
                    id: latest.id.clone(),
                    name: c.name.clone(),
                    message: Some(format!(
                        "Container is in unknown state, try killing it before restart {}",
                        c.name
                    )),
                };
                self.steps.push(Step::Kill { targets: vec![target], grace: spec_grace(self.input) });
                if self.policy != Policy::Never {
                    self.start(list, index, c, next, None);
                }
            }
            State::Created => self.start(list, index, c, next, None),
            // What lost its sandbox while running was ended above; its policy decides as if it had failed.
            State::Running if self.policy != Policy::Never => self.start(list, index, c, next, None),
            State::Running => {}
            State::Exited => self.restart(list, index, c, latest),
        }
    }

    fn restart(&mut self, list: ContainerList, index: usize, c: &Container, ended: &Instance) {
        // An init container is run again in a new sandbox even if it had succeeded in the old one.
        let again = list == ContainerList::Init && self.active(c).is_none();
        if !again && !self.policy.restarts(ended) {
            return;
        }
        let next = ended.restart_count + 1;
        let entry = self.input.memory.backoff.get(&c.name).copied();
        match backoff::decide(entry, ended.finished_at, self.input.now, self.input.backoff_cap) {
            Verdict::Start(entry) => self.start(list, index, c, next, Some(entry)),
            Verdict::Wait { until, wait } => {
                let pod = PodRef::of(&self.input.desired.pod);
                let message = format!(
                    "back-off {} restarting failed container={} pod={pod}",
                    go_duration(wait),
                    c.name
                );
                self.waiting.insert(c.name.clone(), Waiting { reason: CRASH_LOOP.to_owned(), message });
                self.wake_at(until);
            }
        }
    }

    fn start(
        &mut self,
        list: ContainerList,
        index: usize,
        c: &Container,
        restart_count: u32,
        backoff: Option<backoff::Entry>,
    ) {
        if let Some(waiting) = self.input.memory.waiting.get(&c.name)
            && let Some(at) = retry_at(self.input, &c.name)
        {
            self.waiting.insert(c.name.clone(), waiting.clone());
            self.wake_at(at);
            return;
        }
        self.steps.push(Step::Start { list, index, restart_count, backoff });
    }

    fn garbage(&mut self) {
        let steps = garbage(self.input.observed, self.current, &self.input.memory.stopped);
        match retry_at(self.input, GARBAGE) {
            Some(at) if !steps.is_empty() => self.wake_at(at),
            _ => self.steps.extend(steps),
        }
    }

    fn wake_at(&mut self, at: i64) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }

    fn finish(mut self) -> Plan {
        let spec = api::spec(&self.input.desired.pod);
        let all_seen = spec.containers.iter().all(|c| self.input.observed.latest(&c.name).is_some());
        for (name, waiting) in &self.input.memory.waiting {
            self.waiting.entry(name.clone()).or_insert_with(|| waiting.clone());
        }
        // What failed for the pod as a whole keeps everything else waiting: each step relies on those before it.
        if !self.steps.is_empty()
            && let Some(at) = retry_at(self.input, POD)
        {
            self.steps.clear();
            self.wake_at(at);
        }
        let phase = if all_seen { Phase::Running } else { Phase::Starting };
        Plan { phase, steps: self.steps, waiting: self.waiting, wake: self.wake, outcome: None }
    }
}

/// Go's text of a duration of whole seconds: `10s`, `2m40s`, `5m0s`.
fn go_duration(d: Duration) -> String {
    let s = d.as_secs();
    if s < 60 { format!("{s}s") } else { format!("{}m{}s", s / 60, s % 60) }
}

#[cfg(test)]
mod tests;
