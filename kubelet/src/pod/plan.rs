//! The plan: from what should be and what is to what to do next. Pure: no I/O, no clock, table- and property-tested.
//!
//! The actor asks for a plan, carries it out, looks at the runtime, and asks again, until the plan has no steps. A plan
//! is never remembered: a step that failed is in the next plan again, because the world still differs.
//!
//! ```text
//!   Starting ──▶ Running ──▶ Terminating ──▶ Terminated ──▶ Gone
//!      └────────────┴──(Stop, or every container done)──▶        phases only move to the right
//! ```
//!
//! `policy` knows what is restarted and how a pod ends, `run` plans for a pod that lives, `end` for one that must go.

mod end;
mod policy;
pub mod resize;
mod run;

use super::backoff::{self, Verdict};
use super::dead::Kept;
use super::desired::Desired;
use crate::event::ContainerList;
use crate::pleg::observed::{Instance, Observed, Sandbox};
use crate::probe::Readiness;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;
use tokio::time::Instant;

pub use end::overran;
pub use policy::{begun_reset, ended_for_good, may_restart_all, outcome};

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
    /// Not before this moment is what failed tried again; the key is the container's name, [`POD`] or [`GARBAGE`].
    pub retry: HashMap<String, Instant>,
    /// How often in a row; same keys.
    pub failures: HashMap<String, u32>,
    /// The least that the next instance's restart count may be, by container name; a container that is not in it never ran.
    /// Known from instances that were seen, and from logs where those are gone.
    pub restarts: HashMap<String, u32>,
    /// The pod was seen to have ended by itself: it does not begin again because what it left behind is lost.
    pub outcome: Option<Outcome>,
    /// All containers are being removed to be run again, because this instance's end asked for it. Lost, it is known again
    /// by [`begun_reset`].
    pub resetting: Option<String>,
    /// Sandboxes that have been stopped by us.
    pub stopped: HashSet<String>,
    /// Instances whose start failed, and until when nothing is done about those that are still only created; they are
    /// not started a second time.
    pub failed_starts: HashMap<String, Instant>,
    /// Of these, instances that run although their postStart hook failed: they could not be ended yet.
    pub hook_failed: HashSet<String>,
    /// The volumes of a pod that was evicted are gone.
    pub volumes_released: bool,
    /// When instances that ended were first seen to have: a wait is over by the steady clock at the latest.
    pub ends: HashMap<String, Instant>,
}

/// The key in [`Memory`] of what concerns the pod as a whole: its sandbox, its directories, ending it.
pub const POD: &str = "";
/// The key in [`Memory`] of removing what is not needed any more from a pod that runs. No container has this name.
pub const GARBAGE: &str = "#garbage";
/// The key in [`Memory`] of changing the resources of what runs. No container has this name.
pub const RESIZE: &str = "#resize";

/// One thing to do. Steps of a plan are carried out in order; the first that fails ends the plan.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// End these containers and wait until they have ended. All are told of it at once (events, hooks); those of one
    /// [`Kill::turn`] are stopped at once, those of the next when they have ended.
    Kill {
        /// Which.
        targets: Vec<Kill>,
        /// For their hooks, and between SIGTERM and SIGKILL, for all turns together: a later turn has what the earlier ones
        /// left, and at least [`MINIMUM_GRACE`](super::desired::MINIMUM_GRACE). Zero: no hook runs.
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
    /// Change the resources of what runs, the pod's cgroup among it: what [`Input::needs`] says.
    Resize,
    /// All containers of the pod are run again; the steps behind this one end and remove them.
    Reset {
        /// The instance whose end asked for it.
        source: String,
        /// Its container.
        name: String,
        /// That container's back-off from now on.
        backoff: backoff::Entry,
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
    /// Remove the pod's volumes with what is in them; the rest of its directory stays.
    ReleaseVolumes,
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
    /// Its place in the order of stops: 0 is stopped first. Sidecars come after everything else, the last one of the spec
    /// first.
    pub turn: u32,
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
    /// The steps end and remove every container, to run all of them again.
    pub resetting: bool,
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
    /// The same moment by the steady clock: what the agent itself waits for does not depend on how the other one is set.
    pub instant: Instant,
    /// Cap of the crash back-off.
    pub backoff_cap: Duration,
    /// Which ended instances stay.
    pub kept: &'a Kept,
    /// What it needs to have the resources that it was given.
    pub needs: &'a resize::Needs,
}

impl Input<'_> {
    /// `at` by the wall clock as it is now (nanoseconds since the epoch), if it is yet to come.
    fn yet_to_come(&self, at: Instant) -> Option<i64> {
        let left = at.checked_duration_since(self.instant).filter(|left| !left.is_zero())?;
        Some(self.now.saturating_add(i64::try_from(left.as_nanos()).unwrap_or(i64::MAX)))
    }

    /// What the crash back-off says of the container of which this instance `ended`.
    fn backoff(&self, ended: &Instance) -> Verdict {
        let entry = self.memory.backoff.get(&ended.name).copied();
        let known_for = self.memory.ends.get(&ended.id).map(|at| self.instant.saturating_duration_since(*at));
        let known_for = known_for.unwrap_or_default();
        backoff::decide(entry, ended.finished_at, known_for, self.now, self.backoff_cap)
    }
}

/// Why a container waits that ended too often.
pub const CRASH_LOOP: &str = "CrashLoopBackOff";

/// The plan for one pod.
pub fn plan(input: &Input<'_>) -> Plan {
    let outcome = outcome(input.desired, input.observed).or(input.memory.outcome);
    if input.desired.stop.is_some() || outcome.is_some() {
        return end::terminate(input, outcome);
    }
    run::run(input)
}

/// Nothing of the pod runs, and nothing of it will run again.
pub fn has_ended(desired: &Desired, observed: &Observed) -> bool {
    (desired.stop.is_some() || outcome(desired, observed).is_some()) && !observed.is_live()
}

/// The sandbox is usable: ready, and with an address unless it is on the host's network.
pub fn usable(sandbox: &Sandbox, host_network: bool) -> bool {
    sandbox.ready && (host_network || !sandbox.ips.is_empty())
}

/// When the operation under `key` may be tried again, if that is in the future.
fn retry_at(input: &Input<'_>, key: &str) -> Option<i64> {
    input.memory.retry.get(key).and_then(|at| input.yet_to_come(*at))
}

#[cfg(test)]
mod tests;
