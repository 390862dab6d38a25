//! Which runtime the fake poses as: name, version, and the calls it lacks. Data only.

use crate::v1;

/// A runtime to pose as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// containerd 1.6.20: no events, no RuntimeConfig, no handler features, no metrics; stopping what is gone is an
    /// error.
    Containerd16,
    /// containerd 1.7.24: as 1.6, with events.
    Containerd17,
    /// containerd 2.1.9: events, RuntimeConfig, handler features; no metrics, no streaming lists, no
    /// UpdatePodSandboxResources.
    #[default]
    Containerd21,
    /// CRI-O 1.30 as it comes: the event stream ends at once.
    CriO130,
    /// Every call of CRI 1.36, as CRI-O 1.36 with events enabled.
    Everything,
}

const BEFORE_2_0: &[&str] = &["RuntimeConfig"];
const NO_METRICS: &[&str] = &["ListMetricDescriptors", "ListPodSandboxMetrics"];
const SINCE_1_36: &[&str] = &[
    "StreamPodSandboxes",
    "StreamContainers",
    "StreamContainerStats",
    "StreamPodSandboxStats",
    "StreamPodSandboxMetrics",
    "StreamImages",
];

impl Profile {
    pub(super) fn version(self) -> v1::VersionResponse {
        let (name, version) = match self {
            Self::Containerd16 => ("containerd", "1.6.20~ds1"),
            Self::Containerd17 => ("containerd", "1.7.24~ds1"),
            Self::Containerd21 => ("containerd", "2.1.9+unknown"),
            Self::CriO130 => ("cri-o", "1.30.4"),
            Self::Everything => ("cri-o", "1.36.0"),
        };
        v1::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: name.into(),
            runtime_version: version.into(),
            runtime_api_version: "v1".into(),
        }
    }

    /// Calls that are answered with `Unimplemented`.
    pub(super) fn lacks(self, call: &str) -> bool {
        let lists: &[&[&str]] = match self {
            Self::Containerd16 => &[
                BEFORE_2_0,
                NO_METRICS,
                SINCE_1_36,
                &["GetContainerEvents", "UpdatePodSandboxResources", "CheckpointContainer"],
            ],
            Self::Containerd17 => {
                &[BEFORE_2_0, NO_METRICS, SINCE_1_36, &["UpdatePodSandboxResources", "CheckpointContainer"]]
            }
            Self::Containerd21 => &[NO_METRICS, SINCE_1_36, &["UpdatePodSandboxResources"]],
            Self::CriO130 => &[SINCE_1_36, &["UpdatePodSandboxResources"]],
            Self::Everything => &[],
        };
        lists.iter().any(|list| list.contains(&call))
    }

    /// Stopping a container or sandbox that is gone gives `NotFound`.
    pub(super) fn misses_what_it_stops(self) -> bool {
        self == Self::Containerd16
    }

    pub(super) fn sends_events(self) -> bool {
        !matches!(self, Self::Containerd16 | Self::CriO130)
    }

    /// Whether Status tells handlers, and whether it tells features of the whole.
    pub(super) fn tells_handlers(self) -> (bool, bool) {
        match self {
            Self::Containerd16 | Self::Containerd17 => (false, false),
            Self::CriO130 => (true, false),
            Self::Containerd21 | Self::Everything => (true, true),
        }
    }
}
