//! What probes made of a pod's containers: published by this room, read by the plan and the status. Plain values.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Which of a container's three probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Holds the other two back until it succeeded once.
    Startup,
    /// Ends the container when it fails.
    Liveness,
    /// Says whether the container may be sent work.
    Readiness,
}

impl Kind {
    /// The word in metrics' labels: `Startup`, `Liveness`, `Readiness`.
    pub fn title(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// The word in messages: `startup`, `liveness`, `readiness`.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Startup => "startup",
            Kind::Liveness => "liveness",
            Kind::Readiness => "readiness",
        })
    }
}

/// Everything the probes of one pod made of it. A container without probes is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// By the container's name: its newest instance that is or was probed.
    pub containers: BTreeMap<String, ContainerReadiness>,
}

/// What probes made of one instance of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerReadiness {
    /// The runtime's id of the instance. Nothing here says anything of any other.
    pub instance: String,
    /// Its startup probe succeeded, or it has none.
    pub started: bool,
    /// Its readiness probe stands at success, or it has none and it has started.
    pub ready: bool,
    /// The probe for which it must be ended.
    pub failed: Option<ProbeFailure>,
}

/// A startup or liveness probe that failed as often as it may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeFailure {
    /// Which probe.
    pub kind: Kind,
    /// The event `Killing` says this, such as `Container web failed liveness probe`; whoever starts the container again
    /// adds `, will be restarted` (only for regular containers).
    pub message: String,
    /// The probe's own `terminationGracePeriodSeconds`, in place of the pod's.
    pub grace: Option<Duration>,
}

impl Readiness {
    /// What is known of that very instance of the container `name`.
    pub fn of(&self, name: &str, instance: &str) -> Option<&ContainerReadiness> {
        self.containers.get(name).filter(|c| c.instance == instance)
    }

    /// Whether that instance has started as its startup probe has it. `None`: nothing is known of it, as it has no
    /// probes or is not probed yet; one without a startup probe has started once it runs.
    pub fn started(&self, name: &str, instance: &str) -> Option<bool> {
        self.of(name, instance).map(|c| c.started)
    }

    /// Whether that instance is ready. `None`: nothing is known of it; one without a readiness probe is ready once it
    /// has started.
    pub fn ready(&self, name: &str, instance: &str) -> Option<bool> {
        self.of(name, instance).map(|c| c.ready)
    }

    /// The probe for which that instance must be ended.
    pub fn failed(&self, name: &str, instance: &str) -> Option<&ProbeFailure> {
        self.of(name, instance).and_then(|c| c.failed.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_one_instance_says_nothing_of_another() {
        let known = ContainerReadiness { instance: "a".into(), started: true, ready: false, failed: None };
        let readiness = Readiness { containers: BTreeMap::from([("c".to_owned(), known)]) };
        assert_eq!((readiness.started("c", "a"), readiness.ready("c", "a")), (Some(true), Some(false)));
        assert_eq!((readiness.started("c", "b"), readiness.ready("c", "b")), (None, None));
        assert_eq!((readiness.started("d", "a"), readiness.failed("c", "b")), (None, None));
    }
}
