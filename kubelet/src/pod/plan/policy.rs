//! What is restarted when it ends, and how a pod ends by itself. Pure.

use super::{Input, Outcome};
use crate::api::{self, Container, Pod};
use crate::pleg::observed::{Instance, State};

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

/// `spec.restartPolicy`
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    Always,
    OnFailure,
    Never,
}

impl Policy {
    pub(super) fn of(pod: &Pod) -> Self {
        match api::spec(pod).restart_policy.as_deref() {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }
    pub(super) fn restarts(self, ended: &Instance) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => ended.exit_code != 0,
            Self::Never => false,
        }
    }
}
