//! Memory beyond the limit: what of it is protected, from where on it is throttled (memory QoS, KEP-2570), and how much
//! may be swapped (KEP-2400). For containers over CRI's `unified`, for the pod's cgroup as values.
//!
//! Called by [`super::limits`]. Only cgroup v2 has any of it, but for keeping swap away, which v1 can too.

use super::NodeFacts;
use super::resources;
use crate::api::{Container, Pod, Qos, spec};
use cri::v1::LinuxContainerResources;

/// What containers are throttled at is a multiple of this.
const PAGE: f64 = 4096.0;

/// Memory QoS, where the feature gate `MemoryQoS` is on and the node has cgroup v2.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryQos {
    /// `memoryReservationPolicy: TieredReservation`: requests are protected.
    pub tiered: bool,
    /// `memoryThrottlingFactor`; `None`: nothing is throttled.
    pub throttling_factor: Option<f64>,
    /// Bytes that all pods together may have, what throttles containers without a limit.
    pub allocatable: i64,
}

/// `memorySwap.swapBehavior`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Swap {
    /// No swap for anybody.
    #[default]
    None,
    /// Containers of burstable pods get the share of the node's swap that they request of its memory.
    Limited {
        /// Bytes of swap that the node has.
        capacity: i64,
    },
}

/// `memory.min` and `memory.low` of the pod's cgroup.
pub fn of_pod(pod: &Pod, facts: &NodeFacts) -> (Option<i64>, Option<i64>) {
    let requests = resources::pod_resources(pod).requests;
    let request = requests.get("memory").map(|m| m.value()).filter(|m| *m > 0);
    match facts.memory_qos.filter(|q| q.tiered).map(|_| resources::qos_class(pod)) {
        Some(Qos::Guaranteed) => (request, None),
        Some(Qos::Burstable) => (None, request),
        Some(Qos::BestEffort) | None => (None, None),
    }
}

/// Adds protection and throttling to what is asked of the runtime for a container.
pub fn qos_of_container(
    pod: &Pod,
    container: &Container,
    facts: &NodeFacts,
    out: &mut LinuxContainerResources,
) {
    let Some(qos) = facts.memory_qos else { return };
    let of = |list: resources::ResourceList| list.get("memory").map_or(0, |m| m.value());
    let (request, limit) = (of(resources::requests_of(container)), of(resources::limits_of(container)));
    let mut set = |file: &str, bytes: i64| out.unified.insert(file.to_owned(), bytes.to_string());
    match (qos.tiered && request > 0, resources::qos_class(pod)) {
        (true, Qos::Guaranteed) => {
            set("memory.min", request);
        }
        (true, Qos::Burstable) => {
            set("memory.low", request);
        }
        _ => {
            // What an earlier configuration protected is protected no longer.
            set("memory.min", 0);
            set("memory.low", 0);
        }
    }
    // Where all that may be had is requested there is nothing to throttle.
    if let Some(factor) = qos.throttling_factor.filter(|_| request != limit) {
        let most = if limit > 0 { limit } else { qos.allocatable };
        let high = request as f64 + (most as f64 - request as f64) * factor;
        let high = ((high / PAGE).floor() * PAGE) as i64;
        if high > request {
            set("memory.high", high);
        }
    }
}

/// Adds how much the container may swap. Says nothing where the kernel does not account for swap.
pub fn swap_of_container(
    pod: &Pod,
    container: &Container,
    facts: &NodeFacts,
    out: &mut LinuxContainerResources,
) {
    if !facts.swap_accounting {
        return;
    }
    if facts.cgroup_v2 {
        let bytes = swap_limit(pod, container, facts);
        out.unified.insert("memory.swap.max".to_owned(), bytes.to_string());
    } else {
        // Memory and swap together.
        out.memory_swap_limit_in_bytes = out.memory_limit_in_bytes;
    }
}

/// Bytes of swap: the share of the node's that the container requests of the memory. Nothing for whoever has all it
/// may have guaranteed, requests nothing, or is critical.
fn swap_limit(pod: &Pod, container: &Container, facts: &NodeFacts) -> i64 {
    let Swap::Limited { capacity } = facts.swap else { return 0 };
    let of = |list: resources::ResourceList| list.get("memory").copied().unwrap_or_default();
    let (request, limit) = (of(resources::requests_of(container)), of(resources::limits_of(container)));
    let burstable = resources::qos_class(pod) == Qos::Burstable;
    if !burstable || request == limit || is_critical(pod) || facts.capacity_memory <= 0 {
        return 0;
    }
    let share = request.value() as f64 / facts.capacity_memory as f64;
    (share * capacity as f64) as i64
}

/// Static pods, and those of a system-critical priority.
fn is_critical(pod: &Pod) -> bool {
    super::limits::is_static(pod)
        || spec(pod).priority.unwrap_or(0) >= super::limits::SYSTEM_CRITICAL_PRIORITY
}

#[cfg(test)]
mod tests {
    use super::super::limits::container_resources;
    use super::super::testing::{facts, pod};
    use super::*;

    fn v2(swap: Swap) -> NodeFacts {
        NodeFacts { cgroup_v2: true, capacity_memory: 1000 << 20, swap, ..facts() }
    }

    fn swap_max(yaml: &str, facts: &NodeFacts) -> Vec<String> {
        let p = pod(yaml);
        let of = |c: &Container| container_resources(&p, c, facts).unified["memory.swap.max"].clone();
        spec(&p).containers.iter().map(of).collect()
    }

    #[test]
    fn burstable_containers_swap_in_proportion_to_what_they_request() {
        let limited = v2(Swap::Limited { capacity: 500 << 20 });
        let burstable = "{spec: {containers: [{name: a, resources: {requests: {memory: 100Mi}}}, \
                         {name: b, resources: {requests: {memory: 10Mi}, limits: {memory: 20Mi}}}, \
                         {name: same, resources: {limits: {memory: 20Mi}}}, {name: none}]}}";
        assert_eq!(swap_max(burstable, &limited), ["52428800", "5242880", "0", "0"]);
        assert_eq!(swap_max(burstable, &v2(Swap::None)), ["0", "0", "0", "0"]);
        for nothing in [
            "{spec: {containers: [{name: a}]}}",
            "{spec: {containers: [{name: a, resources: {limits: {cpu: 1, memory: 1Mi}}}]}}",
            "{spec: {priority: 2000000000, containers: [{name: a, resources: {requests: {memory: 9Mi}}}]}}",
            "{metadata: {annotations: {kubernetes.io/config.source: file}}, \
             spec: {containers: [{name: a, resources: {requests: {memory: 9Mi}}}]}}",
        ] {
            assert_eq!(swap_max(nothing, &limited), ["0"], "{nothing}");
        }
    }

    #[test]
    fn on_v1_memory_and_swap_together_have_the_memorys_limit_whatever_the_behaviour() {
        let p = pod(
            "{spec: {containers: [{name: a, resources: {requests: {memory: 1Mi}, limits: {memory: 2Mi}}}]}}",
        );
        let limited = NodeFacts { swap: Swap::Limited { capacity: 500 << 20 }, ..facts() };
        for facts in [facts(), limited] {
            let r = container_resources(&p, &spec(&p).containers[0], &facts);
            assert_eq!((r.memory_swap_limit_in_bytes, r.unified.len()), (2 << 20, 0));
        }
        let unaccounted = NodeFacts { swap_accounting: false, ..facts() };
        let r = container_resources(&p, &spec(&p).containers[0], &unaccounted);
        assert_eq!(r.memory_swap_limit_in_bytes, 0);
    }

    #[test]
    fn without_a_factor_nothing_is_throttled_and_a_tiny_one_throttles_nobody_below_its_request() {
        let p = pod(
            "{spec: {containers: [{name: a, resources: {requests: {memory: 5000}, limits: {memory: 8Mi}}}]}}",
        );
        let high = |throttling_factor| {
            let memory_qos = Some(MemoryQos { tiered: false, throttling_factor, allocatable: 1 << 30 });
            let facts = NodeFacts { memory_qos, ..v2(Swap::None) };
            container_resources(&p, &spec(&p).containers[0], &facts).unified.get("memory.high").cloned()
        };
        assert_eq!(high(None), None);
        assert_eq!(high(Some(0.0001)), None);
        assert_eq!(high(Some(1.0)).as_deref(), Some("8388608"));
    }
}
