//! What a runtime can do, as a pure function of what it answered when it was asked.
//!
//! `detect` asks at every connect; the kubelet reads the result from [`crate::Client::connection`]. Nothing here asks or
//! remembers, and nothing is concluded from a runtime's name that its answers can tell.

use std::collections::BTreeMap;

use crate::error::Kind;
use crate::v1;

/// What the runtime at the other end can do. Published anew with every connection.
#[derive(Debug, Clone, PartialEq)]
pub struct Capabilities {
    /// As the runtime calls itself: `containerd`, `cri-o`.
    pub runtime_name: String,
    /// The runtime's own version, in its own notation.
    pub runtime_version: String,
    /// `v1`.
    pub api_version: String,
    /// Features by runtime handler name; the default handler is `""`. Empty where the runtime does not say (containerd
    /// before 2.0), which is not the same as having none.
    pub handlers: BTreeMap<String, v1::RuntimeHandlerFeatures>,
    /// Features of the runtime as a whole; all false where it does not say.
    pub features: v1::RuntimeFeatures,
    /// The cgroup driver to use (KEP-4033); `None` where the runtime does not say (containerd before 2.0).
    pub cgroup_driver: Option<v1::CgroupDriver>,
    /// GetContainerEvents gives events (KEP-3386).
    pub container_events: bool,
    /// Each event goes to one subscriber only, and perhaps to one that is gone: containerd 1.7, the one that has events and
    /// no RuntimeConfig. Until a stream has given something, what happens may not be on it.
    pub events_may_go_astray: bool,
    /// Which measurements can be had.
    pub stats: Stats,
    /// The Stream… calls beside the lists are there (KEP-5825).
    pub streaming_lists: bool,
}

/// Which measurements a runtime offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// ContainerStats and ListContainerStats.
    pub containers: bool,
    /// PodSandboxStats and ListPodSandboxStats (KEP-2371).
    pub sandboxes: bool,
    /// ListMetricDescriptors and ListPodSandboxMetrics.
    pub metrics: bool,
}

/// What came back when the container event stream was opened and the connection then used for something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventStream {
    /// It stays open.
    Open,
    /// The runtime closed it without an error: how CRI-O says that events are not enabled.
    Ended,
    /// It was refused.
    Refused(Kind),
}

/// Everything detection asked for. `Ok` and `Err` tell whether the call is there; what a probing call returns does not
/// matter.
#[derive(Debug, Clone, PartialEq)]
pub struct Answers {
    /// Version.
    pub version: v1::VersionResponse,
    /// Status, not verbose.
    pub status: v1::StatusResponse,
    /// RuntimeConfig.
    pub runtime_config: Result<v1::RuntimeConfigResponse, Kind>,
    /// GetContainerEvents.
    pub container_events: EventStream,
    /// ListContainerStats, for no container.
    pub container_stats: Result<(), Kind>,
    /// ListPodSandboxStats, for no sandbox.
    pub sandbox_stats: Result<(), Kind>,
    /// ListMetricDescriptors.
    pub metric_descriptors: Result<(), Kind>,
    /// StreamContainers, for no container.
    pub stream_containers: Result<(), Kind>,
}

impl Capabilities {
    /// The conclusion from a runtime's answers.
    #[must_use]
    pub fn from_answers(answers: &Answers) -> Self {
        // Any other failure of a probe comes from behind the call's door, so the door is there.
        let there = |probe: Result<(), Kind>| probe != Err(Kind::Unimplemented);
        let driver = |config: &v1::RuntimeConfigResponse| {
            config.linux.as_ref().map(v1::LinuxRuntimeConfiguration::cgroup_driver)
        };
        let container_events = answers.container_events == EventStream::Open;
        Self {
            runtime_name: answers.version.runtime_name.clone(),
            runtime_version: answers.version.runtime_version.clone(),
            api_version: answers.version.runtime_api_version.clone(),
            handlers: (answers.status.runtime_handlers.iter())
                .map(|h| (h.name.clone(), h.features.unwrap_or_default()))
                .collect(),
            features: answers.status.features.unwrap_or_default(),
            cgroup_driver: answers.runtime_config.as_ref().ok().and_then(driver),
            container_events,
            events_may_go_astray: container_events && answers.runtime_config == Err(Kind::Unimplemented),
            stats: Stats {
                containers: there(answers.container_stats),
                sandboxes: there(answers.sandbox_stats),
                metrics: there(answers.metric_descriptors),
            },
            streaming_lists: there(answers.stream_containers),
        }
    }

    /// Major and minor of [`Capabilities::runtime_version`]: `(2, 1)` of `2.1.9+unknown` or `v2.1.9`. `None` when it does
    /// not begin with two numbers.
    #[must_use]
    pub fn runtime_release(&self) -> Option<(u32, u32)> {
        let mut parts = self.runtime_version.strip_prefix('v').unwrap_or(&self.runtime_version).split('.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?;
        let digits = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
        Some((major, minor[..digits].parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kind::{Other, Unimplemented};
    use rstest::rstest;
    use v1::CgroupDriver::{Cgroupfs, Systemd};

    const NO: Result<(), Kind> = Err(Unimplemented);
    const YES: Result<(), Kind> = Ok(());

    fn handler(name: &str, rro: bool, userns: bool) -> v1::RuntimeHandler {
        let features =
            v1::RuntimeHandlerFeatures { recursive_read_only_mounts: rro, user_namespaces: userns };
        v1::RuntimeHandler { name: name.into(), features: Some(features) }
    }

    fn driver(driver: v1::CgroupDriver) -> Result<v1::RuntimeConfigResponse, Kind> {
        let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: driver.into() };
        Ok(v1::RuntimeConfigResponse { linux: Some(linux) })
    }

    /// What each runtime answers; `probes` are container stats, sandbox stats, metric descriptors, streaming lists.
    struct Case {
        version: (&'static str, &'static str),
        handlers: Vec<v1::RuntimeHandler>,
        supplemental_groups: Option<bool>,
        config: Result<v1::RuntimeConfigResponse, Kind>,
        events: EventStream,
        probes: [Result<(), Kind>; 4],
    }

    impl Case {
        fn capabilities(&self) -> Capabilities {
            let [container_stats, sandbox_stats, metric_descriptors, stream_containers] = self.probes;
            Capabilities::from_answers(&Answers {
                version: v1::VersionResponse {
                    version: "0.1.0".into(),
                    runtime_name: self.version.0.into(),
                    runtime_version: self.version.1.into(),
                    runtime_api_version: "v1".into(),
                },
                status: v1::StatusResponse {
                    runtime_handlers: self.handlers.clone(),
                    features: self
                        .supplemental_groups
                        .map(|b| v1::RuntimeFeatures { supplemental_groups_policy: b, ..Default::default() }),
                    ..Default::default()
                },
                runtime_config: self.config,
                container_events: self.events,
                container_stats,
                sandbox_stats,
                metric_descriptors,
                stream_containers,
            })
        }
    }

    /// What is expected, in the order: release, handlers, groups policy, driver, events, sandbox stats, metrics, lists.
    type Want = (Option<(u32, u32)>, usize, bool, Option<v1::CgroupDriver>, bool, bool, bool, bool);

    #[rstest]
    #[case::containerd_1_6(
        Case { version: ("containerd", "1.6.20~ds1"), handlers: vec![], supplemental_groups: None, config: Err(Unimplemented),
               events: EventStream::Refused(Unimplemented), probes: [YES, YES, NO, NO] },
        (Some((1, 6)), 0, false, None, false, true, false, false))]
    #[case::containerd_1_7(
        Case { version: ("containerd", "1.7.24~ds1"), handlers: vec![], supplemental_groups: None, config: Err(Unimplemented),
               events: EventStream::Open, probes: [YES, YES, NO, NO] },
        (Some((1, 7)), 0, false, None, true, true, false, false))]
    #[case::containerd_2_0(
        Case { version: ("containerd", "v2.0.0"), handlers: vec![handler("", true, false), handler("runc", true, false)],
               supplemental_groups: Some(true), config: driver(Cgroupfs), events: EventStream::Open, probes: [YES, YES, NO, NO] },
        (Some((2, 0)), 2, true, Some(Cgroupfs), true, true, false, false))]
    #[case::containerd_2_1(
        Case { version: ("containerd", "2.1.9+unknown"), handlers: vec![handler("", true, false), handler("runc", true, false)],
               supplemental_groups: Some(true), config: driver(Systemd), events: EventStream::Open, probes: [YES, YES, NO, NO] },
        (Some((2, 1)), 2, true, Some(Systemd), true, true, false, false))]
    #[case::containerd_to_come(
        Case { version: ("containerd", "v2.4.0"), handlers: vec![handler("", true, true)], supplemental_groups: Some(true),
               config: driver(Systemd), events: EventStream::Open, probes: [YES, Err(Other), YES, YES] },
        (Some((2, 4)), 1, true, Some(Systemd), true, true, true, true))]
    #[case::cri_o_1_30_events_off(
        Case { version: ("cri-o", "1.30.4"), handlers: vec![handler("runc", true, false), handler("", true, false)],
               supplemental_groups: None, config: driver(Systemd), events: EventStream::Ended, probes: [YES, YES, YES, NO] },
        (Some((1, 30)), 2, false, Some(Systemd), false, true, true, false))]
    #[case::cri_o_1_36_events_on(
        Case { version: ("cri-o", "1.36.0"), handlers: vec![handler("crun", true, true), handler("", true, true)],
               supplemental_groups: Some(true), config: driver(Cgroupfs), events: EventStream::Open, probes: [YES, YES, YES, YES] },
        (Some((1, 36)), 2, true, Some(Cgroupfs), true, true, true, true))]
    #[case::a_runtime_without_linux_part_and_release(
        Case { version: ("other", "edge"), handlers: vec![], supplemental_groups: None,
               config: Ok(v1::RuntimeConfigResponse { linux: None }), events: EventStream::Refused(Other), probes: [YES, NO, NO, NO] },
        (None, 0, false, None, false, false, false, false))]
    fn capabilities_follow_from_the_answers_of(#[case] case: Case, #[case] want: Want) {
        let got = case.capabilities();
        let seen = (
            got.runtime_release(),
            got.handlers.len(),
            got.features.supplemental_groups_policy,
            got.cgroup_driver,
            got.container_events,
            got.stats.sandboxes,
            got.stats.metrics,
            got.streaming_lists,
        );
        assert_eq!(seen, want);
        assert!(got.stats.containers);
        assert_eq!(got.events_may_go_astray, got.runtime_release() == Some((1, 7)));
    }
}
