//! The plan of a pod that must end: its processes, its sandbox, its cgroup, and what is left of it. Pure.

use super::{Input, Kill, Outcome, POD, Phase, Plan, Step, outcome, retry_at};
use crate::api::{self, Pod};
use crate::pleg::observed::{Instance, Observed, Sandbox, State};
use crate::pod::desired::{Desired, SHORTEST_GRACE, StopReason, grace_of};
use crate::pod::translate::resources::is_sidecar;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

/// The grace of a pod that ends by itself or loses its sandbox: its spec's.
pub(super) fn spec_grace(input: &Input<'_>) -> Duration {
    grace_of(&input.desired.pod)
}

/// The pod was ended by its deadline: it had not ended by itself before.
pub fn overran(desired: &Desired, observed: &Observed) -> bool {
    let Some(StopReason::DeadlineExceeded { at }) = desired.stop.as_ref().map(|s| &s.why) else {
        return false;
    };
    let in_time = |i: &Instance| i.state == State::Exited && i.finished_at <= *at;
    outcome(desired, observed).is_none() || !observed.containers.iter().all(in_time)
}

/// Ends everything; then, when the source has let go of the pod, removes everything.
pub(super) fn terminate(input: &Input<'_>, outcome: Option<Outcome>) -> Plan {
    let observed = input.observed;
    let (mut steps, mut wake) = (Vec::new(), None);
    let live = live_targets(&input.desired.pod, observed.containers.iter());
    let running = !live.is_empty();
    if running {
        let grace = input.desired.stop.as_ref().map_or_else(|| spec_grace(input), |s| s.grace);
        steps.push(Step::Kill { targets: live, grace: grace.max(SHORTEST_GRACE) });
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
        steps.extend(removals(observed));
        steps.extend(observed.sandboxes.iter().map(|s| Step::RemoveSandbox { id: s.id.clone() }));
    } else if ended && input.desired.stop.as_ref().is_some_and(|s| s.why.evicted().is_some()) {
        // What it had on the node's disks is what the node is in need of.
        steps.extend(removals(observed));
        if !input.memory.volumes_released {
            steps.push(Step::ReleaseVolumes);
        }
    } else if ended {
        let (more, later) = garbage(input, None);
        steps.extend(more);
        wake = later;
    }
    // A rejected pod never ran: it is Failed by its reason, whatever its containers say.
    let outcome = match input.desired.stop.as_ref().map(|s| &s.why) {
        Some(StopReason::Rejected { .. }) => Some(Outcome::Failed),
        _ if overran(input.desired, observed) => Some(Outcome::Failed),
        _ => outcome,
    };
    if let Some(at) = retry_at(input, POD).filter(|_| !steps.is_empty()) {
        (steps, wake) = (Vec::new(), Some(at));
    }
    Plan { phase, steps, waiting: BTreeMap::new(), wake, outcome, resetting: false }
}

/// Every instance there is goes.
fn removals(observed: &Observed) -> impl Iterator<Item = Step> {
    observed.containers.iter().map(|c| Step::RemoveContainer { id: c.id.clone(), name: c.name.clone() })
}

/// Those of `instances` that live, each with its turn.
pub(super) fn live_targets<'a>(pod: &Pod, instances: impl Iterator<Item = &'a Instance>) -> Vec<Kill> {
    instances
        .filter(|i| i.is_live())
        .map(|i| Kill { id: i.id.clone(), name: i.name.clone(), message: None, turn: turn(pod, &i.name) })
        .collect()
}

/// When `name` is stopped: a sidecar after all that may need it, which are the sidecars behind it and everything else.
fn turn(pod: &Pod, name: &str) -> u32 {
    let inits = api::spec(pod).init_containers.as_deref().unwrap_or_default();
    let mut later = inits.iter().rev().filter(|c| is_sidecar(c));
    later.position(|c| c.name == name).map_or(0, |n| u32::try_from(n + 1).unwrap_or(u32::MAX))
}

/// Dead instances past the ones kept, and old sandboxes that hold none of the kept ones; and when the next one may go.
pub(super) fn garbage(input: &Input<'_>, current: Option<&Sandbox>) -> (Vec<Step>, Option<i64>) {
    let (observed, stopped, kept) = (input.observed, &input.memory.stopped, input.kept);
    let (mut steps, mut wake) = (Vec::new(), None);
    let mut dead: HashMap<&str, usize> = HashMap::new();
    let mut kept_in: HashSet<&str> = HashSet::new();
    let mut met: HashSet<&str> = HashSet::new();
    for i in &observed.containers {
        // The newest instance of a name is the one that counts; an older one that never ran is of no use.
        let newest = met.insert(&i.name);
        let goes = match i.state {
            State::Created => !newest,
            State::Exited => 'young: {
                if let Some(at) = kept.config.young_until(i.created_at, input.now) {
                    wake = Some(wake.map_or(at, |w: i64| w.min(at)));
                    break 'young false;
                }
                let n = dead.entry(&i.name).or_default();
                *n += 1;
                let too_many = kept.config.per_container.is_some_and(|most| *n > most);
                !newest && (too_many || kept.condemned.contains(&i.id))
            }
            State::Running | State::Unknown => false,
        };
        if goes {
            steps.push(Step::RemoveContainer { id: i.id.clone(), name: i.name.clone() });
        } else {
            kept_in.insert(&i.sandbox_id);
        }
    }
    let newest = current.or_else(|| observed.sandbox()).map(|s| s.id.as_str());
    let old = observed
        .sandboxes
        .iter()
        .filter(|s| Some(s.id.as_str()) != newest && (!s.ready || stopped.contains(&s.id)))
        .filter(|s| !kept_in.contains(s.id.as_str()));
    steps.extend(old.map(|s| Step::RemoveSandbox { id: s.id.clone() }));
    (steps, wake)
}
