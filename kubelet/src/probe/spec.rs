//! What a probe's fields say, with upstream's defaults, and what a row of its answers amounts to. Pure.

use super::readiness::Kind;
use crate::api::{self, Container, Pod};
use crate::event::ContainerList;
use k8s_openapi::api::core::v1 as core;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// The order in which a container's probes are kept.
pub const KINDS: [Kind; 3] = [Kind::Startup, Kind::Liveness, Kind::Readiness];

/// The probe of that kind of `c`.
pub fn probe_of(c: &Container, kind: Kind) -> Option<&core::Probe> {
    match kind {
        Kind::Startup => c.startup_probe.as_ref(),
        Kind::Liveness => c.liveness_probe.as_ref(),
        Kind::Readiness => c.readiness_probe.as_ref(),
    }
}

/// `c` has any probe.
pub fn is_probed(c: &Container) -> bool {
    KINDS.iter().any(|kind| probe_of(c, *kind).is_some())
}

/// The numbers of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From the container's start to the first run.
    pub initial_delay: Duration,
    /// From the beginning of one run to that of the next.
    pub period: Duration,
    /// How long the container may take to answer.
    pub timeout: Duration,
    /// Successes in a row that make a success.
    pub successes: u32,
    /// Failures in a row that make a failure.
    pub failures: u32,
}

impl Timing {
    /// Fields that are absent or zero have upstream's defaults.
    pub fn of(p: &core::Probe) -> Self {
        let number = |n: Option<i32>, default: u32| {
            n.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(default)
        };
        let seconds = |n: Option<i32>, default: u32| Duration::from_secs(number(n, default).into());
        Self {
            initial_delay: seconds(p.initial_delay_seconds, 0),
            period: seconds(p.period_seconds, 10),
            timeout: seconds(p.timeout_seconds, 1),
            successes: number(p.success_threshold, 1),
            failures: number(p.failure_threshold, 3),
        }
    }
}

/// Counts equal answers in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    last: Option<bool>,
    length: u32,
}

impl Row {
    /// Takes one more answer. `Some` is the probe's result from now on: enough answers in a row say so.
    pub fn add(&mut self, success: bool, timing: &Timing) -> Option<bool> {
        self.length = if self.last == Some(success) { self.length.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let needed = if success { timing.successes } else { timing.failures };
        (self.length >= needed).then_some(success)
    }
}

/// What of one pod is to be probed, as its actor sees it.
#[derive(Clone, Debug)]
pub struct Targets {
    /// The pod; its spec has the probes.
    pub pod: Arc<Pod>,
    /// It is being ended: only readiness is still asked for.
    pub terminating: bool,
    /// Its primary address.
    pub ip: Option<IpAddr>,
    /// Instances that run and have probes, one for each container.
    pub running: Vec<Target>,
}

/// One running instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which list of the spec.
    pub list: ContainerList,
    /// Where in the list.
    pub index: usize,
    /// The runtime's id.
    pub instance: String,
    /// Nanoseconds since the epoch.
    pub started_at: i64,
}

impl Targets {
    /// The same things are to be probed. Pods are compared as values only when they are not the same object.
    pub fn same(&self, other: &Self) -> bool {
        (self.terminating, self.ip, &self.running) == (other.terminating, other.ip, &other.running)
            && (Arc::ptr_eq(&self.pod, &other.pod) || self.pod.spec == other.pod.spec)
    }
}

/// The container at that place of the spec.
pub fn container(pod: &Pod, list: ContainerList, index: usize) -> Option<&Container> {
    let spec = api::spec(pod);
    match list {
        ContainerList::Init => spec.init_containers.as_ref()?.get(index),
        ContainerList::Regular => spec.containers.get(index),
        ContainerList::Ephemeral => None,
    }
}

/// Whether the container of that name may have another instance while its pod lives, by what the spec alone says.
pub fn may_run_again(pod: &Pod, name: &str) -> bool {
    let spec = api::spec(pod);
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    all.filter(|c| c.name == name).any(|c| {
        let policy = c.restart_policy.as_ref().or(spec.restart_policy.as_ref());
        policy.is_none_or(|p| p != "Never") || c.restart_policy_rules.as_ref().is_some_and(|r| !r.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    #[test]
    fn what_is_absent_or_zero_has_upstreams_default() {
        let of = |v| Timing::of(&serde_json::from_value(v).unwrap());
        let default = of(json!({}));
        let s = Duration::from_secs;
        assert_eq!((default.initial_delay, default.period, default.timeout), (s(0), s(10), s(1)));
        assert_eq!((default.successes, default.failures), (1, 3));
        assert_eq!(of(json!({"periodSeconds": 0, "timeoutSeconds": -1, "failureThreshold": 0})), default);
    }

    #[rstest]
    #[case("++", &[None, Some(true)])]
    #[case("+-+", &[None, None, None])]
    #[case("---+--", &[None, None, Some(false), None, None, None])]
    #[case("----", &[None, None, Some(false), Some(false)])]
    fn only_a_row_of_equal_answers_counts(#[case] answers: &str, #[case] want: &[Option<bool>]) {
        let timing = Timing::of(
            &serde_json::from_value(json!({"successThreshold": 2, "failureThreshold": 3})).unwrap(),
        );
        let mut row = Row::default();
        let got: Vec<_> = answers.chars().map(|c| row.add(c == '+', &timing)).collect();
        assert_eq!(got, want);
    }
}
