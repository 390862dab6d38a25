//! The books: what is promised to the pods that were admitted. Kept by the task alone; no I/O.

use super::admit::{self, HostPort};
use crate::api::{Pod, PodUid, Qos};
use crate::cgroup::Requested;
use crate::pod::translate;
use std::collections::HashMap;

/// What every admitted pod that has not ended holds.
#[derive(Clone, Debug, Default)]
pub struct Promised {
    pods: HashMap<PodUid, Share>,
}

#[derive(Clone, Debug)]
struct Share {
    requests: [i64; 3],
    qos: Qos,
    ports: Vec<HostPort>,
}

const NAMES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

impl Promised {
    /// How many pods.
    pub fn pods(&self) -> i64 {
        i64::try_from(self.pods.len()).unwrap_or(i64::MAX)
    }

    /// The sum of requests for `name`: milli-CPU, or bytes.
    pub fn requested(&self, name: &str) -> i64 {
        let Some(at) = NAMES.iter().position(|n| *n == name) else { return 0 };
        self.pods.values().fold(0, |sum, s| sum.saturating_add(s.requests[at]))
    }

    /// What the QoS classes' cgroups are set by.
    pub fn by_class(&self) -> Requested {
        let mut sums = Requested::default();
        for share in self.pods.values() {
            let [cpu, memory, _] = share.requests;
            match share.qos {
                Qos::Burstable => {
                    sums.burstable_milli = sums.burstable_milli.saturating_add(cpu.unsigned_abs());
                    sums.burstable_memory = sums.burstable_memory.saturating_add(memory);
                }
                Qos::Guaranteed => {
                    sums.guaranteed_memory = sums.guaranteed_memory.saturating_add(memory);
                }
                Qos::BestEffort => {}
            }
        }
        sums
    }

    /// As [`Promised::requested`], of all pods but `uid`.
    pub fn requested_beside(&self, uid: &PodUid, name: &str) -> i64 {
        let Some(at) = NAMES.iter().position(|n| *n == name) else { return 0 };
        let others = self.pods.iter().filter(|(other, _)| *other != uid);
        others.fold(0, |sum, (_, s)| sum.saturating_add(s.requests[at]))
    }

    /// Another pod holds that port on an overlapping address.
    pub fn conflicts(&self, wanted: &HostPort) -> bool {
        let every = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
        self.pods.values().flat_map(|s| &s.ports).any(|held| {
            held.port == wanted.port
                && held.protocol == wanted.protocol
                && (every(&held.ip) || every(&wanted.ip) || held.ip == wanted.ip)
        })
    }

    /// Something is promised to that pod.
    pub fn holds(&self, uid: &PodUid) -> bool {
        self.pods.contains_key(uid)
    }

    /// Books what `pod` asks for, instead of what was booked for it before.
    pub fn promise(&mut self, uid: PodUid, pod: &Pod) {
        let requests = NAMES.map(|name| admit::requested(pod, name));
        let qos = translate::qos_class(pod);
        self.pods.insert(uid, Share { requests, qos, ports: admit::host_ports_of(pod).collect() });
    }

    /// Gives back what a pod held.
    pub fn release(&mut self, uid: &PodUid) {
        self.pods.remove(uid);
    }
}
