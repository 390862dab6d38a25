//! A pod's phase from its containers' statuses, and what becomes of a status when the pod has ended. Pure.
//!
//! Sidecars keep a pod running and never decide how it ended; ephemeral containers do not count at all.

use super::conditions::{FAILED, PENDING, RUNNING, SUCCEEDED, has_run, sidecars};
use super::container;
use super::convert::Input;
use crate::api::{self, PodStatus};
use crate::pod::plan::{self, Phase};
use crate::pod::translate::resources::is_sidecar;
use k8s_openapi::api::core::v1::ContainerStatus;

/// The phase as the containers alone have it.
pub fn phase(input: &Input<'_>, status: &PodStatus) -> &'static str {
    let inits = status.init_container_statuses.as_deref().unwrap_or_default();
    let regular = status.container_statuses.as_deref().unwrap_or_default();
    let sidecars = sidecars(input.pod, inits);
    let counts = |s: &&ContainerStatus| !sidecars.iter().any(|sidecar| sidecar.name == s.name);
    let mut pending = false;
    for s in inits.iter().filter(counts) {
        match ended(s) {
            Some(0) => {}
            Some(_) if for_good(input, s) => return FAILED,
            _ => pending = true,
        }
    }
    // A sidecar that crashed and waits is no news; one that has not started yet is.
    let ended_before = |s: &ContainerStatus| s.last_state.as_ref().is_some_and(|l| l.terminated.is_some());
    pending |= sidecars.iter().any(|s| match () {
        () if is_running(s) => s.started != Some(true),
        () => ended(s).is_none() && !ended_before(s),
    });
    let (mut waiting, mut running, mut succeeded, mut restarting) = (0, 0, 0, 0);
    for s in regular {
        if is_running(s) {
            running += 1;
        } else if let Some(code) = ended(s) {
            succeeded += usize::from(code == 0);
            restarting += usize::from(!for_good(input, s));
        } else if ended_before(s) {
            restarting += 1;
        } else {
            waiting += 1;
        }
    }
    running += sidecars.iter().filter(|s| is_running(s)).count();
    if waiting > 0 || (pending && !has_run(regular)) {
        return PENDING;
    }
    if running > 0 || (restarting > 0 && input.phase < Phase::Terminated) {
        return RUNNING;
    }
    if succeeded == regular.len() { SUCCEEDED } else { FAILED }
}

fn is_running(s: &ContainerStatus) -> bool {
    s.state.as_ref().is_some_and(|st| st.running.is_some())
}

fn ended(s: &ContainerStatus) -> Option<i32> {
    s.state.as_ref()?.terminated.as_ref().map(|t| t.exit_code)
}

/// The end that `s` tells will not be followed by another run.
fn for_good(input: &Input<'_>, s: &ContainerStatus) -> bool {
    input.observed.latest(&s.name).is_some_and(|i| plan::ended_for_good(input.pod, i))
}

/// A pod does not reach a final phase before everything of it has stopped. One that outlasted its work by its sidecars is,
/// as upstream's, told of once more in between: nothing of it runs, and its phase is still to come.
pub fn held_back(input: &Input<'_>, computed: &'static str) -> &'static str {
    let sidecars = api::spec(input.pod).init_containers.iter().flatten().any(is_sidecar);
    let in_between = sidecars && !input.stopping && !input.released;
    if computed != SUCCEEDED && computed != FAILED || (input.phase >= Phase::Terminated && !in_between) {
        return computed;
    }
    match input.previous.and_then(|p| p.phase.as_deref()) {
        Some(PENDING) => PENDING,
        _ => RUNNING,
    }
}

/// What an ended pod's status must be even where containers were never found.
pub fn end(input: &Input<'_>, status: &mut PodStatus, computed: &str) {
    if computed != SUCCEEDED && computed != FAILED {
        status.phase = Some(FAILED.to_owned());
    }
    let lose = |s: &mut ContainerStatus| {
        if s.state.as_ref().is_none_or(|st| st.terminated.is_none()) {
            s.state = Some(container::lost());
        }
    };
    let touched = |s: &ContainerStatus| {
        s.state.as_ref().is_none_or(|st| st.waiting.is_none())
            || s.last_state.as_ref().is_some_and(|l| l.terminated.is_some())
    };
    let last = api::spec(input.pod).init_containers.as_deref().unwrap_or_default().last();
    let ends_with_sidecar = last.is_some_and(is_sidecar);
    let inits = status.init_container_statuses.as_deref_mut().unwrap_or_default();
    let initialized = inits.last().is_none_or(|s| ended(s) == Some(0) || (ends_with_sidecar && touched(s)));
    // Of init containers only those up to the last one that was ever run count as lost, and always the first.
    let reached = inits.iter().rposition(touched).map_or(1, |i| i + 1).min(inits.len());
    inits[..reached].iter_mut().for_each(lose);
    if initialized {
        status.container_statuses.iter_mut().flatten().for_each(lose);
    }
}
