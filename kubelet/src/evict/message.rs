//! What is said of an eviction: messages, annotations, the conditions' list. Pure; the words are upstream's.

use super::measure::{Observations, PodUse};
use super::rank::Active;
use super::signal::{Condition, Resource};
use super::threshold::Threshold;
use crate::api;
use crate::quantity;
use std::collections::{BTreeMap, BTreeSet};

/// `status.reason` of a pod that was evicted or is not admitted for pressure, and the reason of its event.
pub const REASON: &str = "Evicted";

/// Message and annotations of one eviction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// `status.message`
    pub message: String,
    /// The event's annotations.
    pub annotations: BTreeMap<String, String>,
}

/// Why `victim` goes when `resource` is short. `used` is what it uses, as far as that is known.
pub fn evicted(
    resource: Resource,
    victim: &Active,
    used: Option<&PodUse>,
    thresholds: &[&Threshold],
    observed: &Observations,
) -> Told {
    let mut message = format!("The node was low on resource: {resource}. ");
    let met = thresholds.iter().filter(|t| t.signal.resource() == resource);
    if let Some((threshold, left)) = met.filter_map(|t| Some((t, observed.get(&t.signal)?))).next() {
        let quantity = threshold.value.text(left.capacity);
        let available = quantity::binary(left.available);
        message += &format!("Threshold quantity: {quantity}, available: {available}. ");
    }
    let (mut names, mut usages) = (Vec::new(), Vec::new());
    let spec = api::spec(&victim.pod);
    // Ephemeral containers cannot request anything: upstream does not blame them.
    let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    for c in used.iter().flat_map(|u| &u.containers) {
        let usage = match resource {
            Resource::Memory => c.memory,
            Resource::EphemeralStorage => c.rootfs.zip(c.logs).map(|(r, l)| r.bytes.saturating_add(l.bytes)),
            Resource::Inodes | Resource::Pids => None,
        };
        let Some(usage) = usage.map(|u| i64::try_from(u).unwrap_or(i64::MAX)) else { continue };
        for container in containers().filter(|of| of.name == c.name) {
            let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
            let request = requests.and_then(|r| r.get(&resource.to_string())).map_or("0", |q| q.0.as_str());
            if quantity::parse(request).is_ok_and(|r| usage <= r.value()) {
                continue;
            }
            let usage = quantity::binary(usage);
            message += &format!(
                "Container {} was using {usage}, request is {request}, has larger consumption of {resource}. ",
                c.name
            );
            names.push(c.name.clone());
            usages.push(usage);
        }
    }
    let annotations = match used {
        None => BTreeMap::new(),
        Some(_) => BTreeMap::from([
            ("offending_containers".to_owned(), names.join(",")),
            ("offending_containers_usage".to_owned(), usages.join(",")),
            ("starved_resource".to_owned(), resource.to_string()),
        ]),
    };
    Told { message, annotations }
}

/// Why a pod is not admitted: the end of `status.message`.
pub fn not_admitted(conditions: &BTreeSet<Condition>) -> String {
    let names: Vec<&str> = conditions.iter().map(|c| c.as_str()).collect();
    format!("The node had condition: [{}]. ", names.join(" "))
}

#[cfg(test)]
mod tests {
    use super::super::measure::{ContainerUse, DiskUse, Left};
    use super::super::signal::Signal;
    use super::super::threshold::Amount;
    use super::*;
    use crate::api::{Pod, PodRef};
    use serde_json::json;
    use std::sync::Arc;

    fn victim() -> Active {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {
                "containers": [
                    {"name": "a", "resources": {"requests": {"memory": "64Mi", "ephemeral-storage": "1Gi"}}},
                    {"name": "b"}],
                "initContainers": [{"name": "side", "restartPolicy": "Always"}],
                "ephemeralContainers": [{"name": "debug"}]},
        }))
        .unwrap();
        let who = PodRef::of(&pod);
        Active { who, pod: Arc::new(pod), memory: 64 << 20, storage: 1 << 30, storage_limit: None }
    }

    fn uses(memory: &[(&str, u64)]) -> PodUse {
        let of = |(name, m): &(&str, u64)| ContainerUse {
            name: (*name).to_owned(),
            memory: Some(*m),
            rootfs: Some(DiskUse { bytes: *m, inodes: 1 }),
            logs: Some(DiskUse { bytes: 1024, inodes: 1 }),
        };
        PodUse { containers: memory.iter().map(of).collect(), ..PodUse::default() }
    }

    fn threshold(signal: Signal, amount: &str) -> Threshold {
        Threshold { signal, value: Amount::parse(amount).unwrap(), grace: None, min_reclaim: None }
    }

    #[test]
    fn a_message_names_the_resource_the_threshold_and_who_uses_more_than_it_asked_for() {
        let memory = threshold(Signal::Memory, "100Mi");
        let seen = Observations::from([(Signal::Memory, Left { available: 50 << 20, capacity: 1 << 30 })]);
        let used = uses(&[("a", 100 << 20), ("b", 3000), ("side", 4096), ("debug", 1 << 30)]);
        let told = evicted(Resource::Memory, &victim(), Some(&used), &[&memory], &seen);
        assert_eq!(
            told.message,
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container a was using 100Mi, request is 64Mi, has larger consumption of memory. \
             Container b was using 3000, request is 0, has larger consumption of memory. \
             Container side was using 4Ki, request is 0, has larger consumption of memory. "
        );
        let annotations: Vec<_> = told.annotations.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(
            annotations,
            [
                ("offending_containers", "a,b,side"),
                ("offending_containers_usage", "100Mi,3000,4Ki"),
                ("starved_resource", "memory")
            ]
        );
    }

    #[test]
    fn who_keeps_to_its_request_is_not_blamed() {
        let memory = threshold(Signal::AllocatableMemory, "10%");
        let left = Left { available: 1 << 20, capacity: 1000 << 20 };
        let seen = Observations::from([(Signal::AllocatableMemory, left)]);
        let used = uses(&[("a", 64 << 20)]);
        let told = evicted(Resource::Memory, &victim(), Some(&used), &[&memory], &seen);
        let quantity = quantity::binary(memory.value.of(1000 << 20));
        assert_eq!(
            told.message,
            format!("The node was low on resource: memory. Threshold quantity: {quantity}, available: 1Mi. ")
        );
        assert_eq!(told.annotations["offending_containers"], "");
    }

    #[test]
    fn layers_and_logs_are_counted_together_and_inodes_and_processes_of_nobody() {
        let disk = threshold(Signal::NodeFs, "1Gi");
        let seen = Observations::from([(Signal::NodeFs, Left { available: 512 << 20, capacity: 1 << 34 })]);
        let used = uses(&[("b", 1024)]);
        let told = evicted(Resource::EphemeralStorage, &victim(), Some(&used), &[&disk], &seen);
        assert_eq!(
            told.message,
            "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: 512Mi. \
             Container b was using 2Ki, request is 0, has larger consumption of ephemeral-storage. "
        );
        let pid = threshold(Signal::Pid, "100");
        let seen = Observations::from([(Signal::Pid, Left { available: 7, capacity: 1000 })]);
        let told = evicted(Resource::Pids, &victim(), Some(&used), &[&disk, &pid], &seen);
        assert_eq!(
            told.message,
            "The node was low on resource: pids. Threshold quantity: 100, available: 7. "
        );
        let told = evicted(Resource::Pids, &victim(), None, &[], &Observations::new());
        assert_eq!(
            told,
            Told { message: "The node was low on resource: pids. ".into(), annotations: BTreeMap::new() }
        );
    }

    #[test]
    fn conditions_are_listed_as_upstream_prints_them() {
        let all = BTreeSet::from([Condition::PidPressure, Condition::MemoryPressure]);
        assert_eq!(not_admitted(&all), "The node had condition: [MemoryPressure PIDPressure]. ");
    }
}
