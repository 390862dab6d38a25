//! What follows when a container ends, and how a pod ends by itself. Pure.
//!
//! A container's own rules come first (KEP-5307, KEP-5532), then its own restart policy, then the pod's. An init container
//! with `restartPolicy: Always` is a sidecar (KEP-753): it runs as long as the pod does and has no say in how the pod ends.

use super::{Outcome, usable};
use crate::api::{self, Container, Pod};
use crate::event::ContainerList;
use crate::pleg::observed::{Instance, Observed, State};
use crate::pod::desired::Desired;
use crate::pod::translate::resources::is_sidecar;
use std::collections::HashMap;

/// What the end of a container leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: it has ended for good.
    Stays,
    /// It is run again.
    Restarts,
    /// Every container of the pod is run again, from the first init container on.
    RestartsAll,
}

/// The exit code that decides about a container of which no end was seen.
const LOST: i32 = 137;

/// What follows the end of `i`, an instance of `c` of `list`; one that was not seen to end counts as failed.
pub(super) fn next(pod: &Pod, list: ContainerList, c: &Container, i: &Instance) -> Next {
    if list == ContainerList::Ephemeral {
        return Next::Stays;
    }
    let code = if i.state == State::Exited { i.exit_code } else { LOST };
    if let Some(next) = by_rule(c, code) {
        return next;
    }
    let own = c.restart_policy.as_deref();
    let restarts = match own.or(api::spec(pod).restart_policy.as_deref()) {
        Some("Never") => false,
        Some("OnFailure") => !succeeded(list, c, i),
        _ => true,
    };
    if restarts { Next::Restarts } else { Next::Stays }
}

/// That instance of `c` of `list` has done its work. An init container that the kernel killed for want of memory has not,
/// whatever its exit code.
pub(super) fn succeeded(list: ContainerList, c: &Container, i: &Instance) -> bool {
    let init = list == ContainerList::Init && !is_sidecar(c);
    i.state == State::Exited && i.exit_code == 0 && !(init && i.oom_killed())
}

/// What the first rule that applies says. Rules count only beside a policy of the container's own.
fn by_rule(c: &Container, code: i32) -> Option<Next> {
    c.restart_policy.as_ref()?;
    let applies = |operator: &str, values: &[i32]| match operator {
        "In" => values.contains(&code),
        "NotIn" => !values.contains(&code),
        _ => false,
    };
    let rules = c.restart_policy_rules.as_deref().unwrap_or_default();
    let rule = rules.iter().find(|r| {
        let codes = r.exit_codes.as_ref();
        codes.is_some_and(|e| applies(&e.operator, e.values.as_deref().unwrap_or_default()))
    })?;
    match rule.action.as_str() {
        "Restart" => Some(Next::Restarts),
        "RestartAllContainers" => Some(Next::RestartsAll),
        _ => None,
    }
}

/// The containers whose ends count, with their lists.
fn restartable(pod: &Pod) -> impl Iterator<Item = (ContainerList, &Container)> {
    let spec = api::spec(pod);
    let inits = spec.init_containers.iter().flatten().map(|c| (ContainerList::Init, c));
    inits.chain(spec.containers.iter().map(|c| (ContainerList::Regular, c)))
}

/// Some rule of the pod may ask for all containers to be run again: its status has a condition about that.
pub fn may_restart_all(pod: &Pod) -> bool {
    restartable(pod)
        .any(|(_, c)| c.restart_policy_rules.iter().flatten().any(|r| r.action == "RestartAllContainers"))
}

/// The containers that asked, by their end in the current sandbox, for all containers to be run again.
pub(super) fn sources<'a>(pod: &'a Pod, observed: &'a Observed) -> Vec<&'a Instance> {
    let host_network = api::spec(pod).host_network.unwrap_or(false);
    let Some(current) = observed.sandbox().filter(|s| usable(s, host_network)) else { return Vec::new() };
    let asked = restartable(pod).filter_map(|(list, c)| {
        let latest = observed.latest(&c.name)?;
        let ended = latest.state == State::Exited && latest.sandbox_id == current.id;
        (ended && next(pod, list, c, latest) == Next::RestartsAll).then_some(latest)
    });
    asked.collect()
}

/// The instance for which an agent that is gone had begun to end and remove all containers, to run them again: one that
/// asked for that, where another container was ended after it or is gone although it ran (`restarts`). One that ended by
/// itself meanwhile looks the same; then all are run again at once instead of after a back-off.
pub fn begun_reset<'a>(
    pod: &'a Pod,
    observed: &'a Observed,
    restarts: &HashMap<String, u32>,
) -> Option<&'a Instance> {
    let sources = sources(pod, observed);
    let first = sources.first()?;
    let asked = sources.iter().map(|s| s.finished_at).min()?;
    let begun =
        restartable(pod).filter(|(_, c)| sources.iter().all(|s| s.name != c.name)).any(
            |(_, c)| match observed.latest(&c.name) {
                None => restarts.contains_key(&c.name),
                Some(i) => i.state == State::Exited && i.finished_at >= asked,
            },
        );
    begun.then_some(first)
}

/// That instance has ended and will not be followed by another.
pub fn ended_for_good(pod: &Pod, instance: &Instance) -> bool {
    if instance.state != State::Exited {
        return false;
    }
    let Some((list, c)) = restartable(pod).find(|(_, c)| c.name == instance.name) else { return true };
    let done = list == ContainerList::Init && !is_sidecar(c) && succeeded(list, c, instance);
    done || next(pod, list, c, instance) == Next::Stays
}

/// The last instance of `c`: no other will follow.
fn last<'a>(pod: &Pod, observed: &'a Observed, c: &'a Container) -> Option<&'a Instance> {
    observed.latest(&c.name).filter(|i| ended_for_good(pod, i))
}

/// The pod's own end, by what is seen alone: `None` while something runs or will run again. Sidecars do not count.
pub fn outcome(desired: &Desired, observed: &Observed) -> Option<Outcome> {
    let pod = &desired.pod;
    let spec = api::spec(pod);
    // Init containers were through where a regular one was made. What ran in an older sandbox says nothing.
    let went_on = |sandbox: &str| {
        let here = |c: &Container| observed.latest(&c.name).is_some_and(|i| i.sandbox_id == sandbox);
        spec.containers.iter().any(here)
    };
    let failed_init = |c: &Container| {
        let failed = last(pod, observed, c).filter(|i| !succeeded(ContainerList::Init, c, i));
        failed.is_some_and(|i| !went_on(&i.sandbox_id))
    };
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    if inits.iter().filter(|c| !is_sidecar(c)).any(failed_init) {
        return Some(Outcome::Failed);
    }
    let mut failed = false;
    for c in &spec.containers {
        failed |= !succeeded(ContainerList::Regular, c, last(pod, observed, c)?);
    }
    if spec.containers.is_empty() {
        return None;
    }
    Some(if failed { Outcome::Failed } else { Outcome::Succeeded })
}
