//! The page `/metrics/probes`: upstream's two families of probes, and one of this agent's own.

use super::kubelet::buckets::DEFAULT;
use super::{Counter, Family, Histogram, Registry};
use crate::api::PodRef;

/// What the lateness of a probe is measured in. A probe that is on time is late by the grain of the timer, a millisecond.
const LATENESS: &[f64] = &[
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2,
    0.3, 0.5, 1.0, 2.0, 5.0,
];

const RESULTS: [&str; 3] = ["successful", "failed", "unknown"];

/// The families; each is fed by the room `probe` alone.
#[derive(Clone, Debug)]
pub struct ProbeMetrics {
    registry: Registry,
    /// `prober_probe_total`: labels container, namespace, pod, pod_uid, probe_type, result.
    pub total: Family<Counter, 6>,
    /// `prober_probe_duration_seconds`: labels container, namespace, pod, probe_type.
    pub duration: Family<Histogram, 4>,
    /// `stevedore_prober_lateness_seconds`: from when a probe was due to when its command or connection was begun. Label
    /// means: `command` or `connection`.
    pub lateness: Family<Histogram, 1>,
    /// `stevedore_prober_place_wait_seconds`: what of that was spent waiting for one of the places. Same label.
    pub place_wait: Family<Histogram, 1>,
    /// `stevedore_prober_panics_total`: defects that were survived.
    pub panics: Counter,
}

impl Default for ProbeMetrics {
    fn default() -> Self {
        let registry = Registry::default();
        Self {
            total: registry.counters(
                "prober_probe_total",
                "Probes by container and result: successful, failed, unknown.",
                ["container", "namespace", "pod", "pod_uid", "probe_type", "result"],
            ),
            duration: registry.histograms(
                "prober_probe_duration_seconds",
                "How long probes that succeeded took.",
                ["container", "namespace", "pod", "probe_type"],
                DEFAULT,
            ),
            lateness: registry.histograms(
                "stevedore_prober_lateness_seconds",
                "From the moment a probe was due to the moment its command or connection was begun.",
                ["means"],
                LATENESS,
            ),
            place_wait: registry.histograms(
                "stevedore_prober_place_wait_seconds",
                "What of a probe's lateness was spent waiting for a place among those under way.",
                ["means"],
                LATENESS,
            ),
            panics: registry.counter(
                "stevedore_prober_panics_total",
                "Panics while probing that were survived; each cost a turn at most, one inside a run is told as unknown.",
            ),
            registry,
        }
    }
}

impl ProbeMetrics {
    /// For the page.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Shows no more of the probes of that container: it is not probed any more. `kind` is the label `probe_type`.
    pub fn forget(&self, pod: &PodRef, container: &str, kind: &str) {
        let (namespace, name, uid) = (&*pod.namespace, &*pod.name, pod.uid.as_str());
        for result in RESULTS {
            self.total.remove([container, namespace, name, uid, kind, result]);
        }
        self.duration.remove([container, namespace, name, kind]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::PodUid;

    #[test]
    fn what_is_not_probed_any_more_is_not_shown() {
        let m = ProbeMetrics::default();
        let pod = PodRef { uid: PodUid::new("u"), namespace: "ns".into(), name: "p".into() };
        for container in ["a", "b"] {
            m.total.with([container, "ns", "p", "u", "Liveness", "failed"]).inc();
            m.duration.with([container, "ns", "p", "Liveness"]).observe(0.1);
        }
        m.forget(&pod, "a", "Liveness");
        let page = m.registry().render();
        assert!(!page.contains("container=\"a\"") && page.contains("container=\"b\""), "{page}");
    }
}
