//! Resource amounts in the kernel's terms: CPU shares, quotas, memory limits, OOM scores, huge pages; for
//! containers and sandboxes over CRI, and for the pod's own cgroup, which the agent writes itself.

use super::resources::{self, HUGEPAGES, Overhead, ResourceList};
use super::{NodeFacts, memory};
use crate::api::{CONFIG_SOURCE, Container, Origin, Pod, Qos, spec};
use crate::cgroup::{HugetlbLimit, PodValues};
use crate::quantity::{self, Nano};
use cri::v1::{HugepageLimit, LinuxContainerResources};
use std::collections::BTreeMap;

/// The least priority of system-critical pods.
pub(super) const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;
/// The least `cpu.shares` the kernel takes.
const MIN_SHARES: i64 = 2;
/// The most.
const MAX_SHARES: i64 = 262_144;
/// The least quota in microseconds the kernel takes.
const MIN_QUOTA_US: i64 = 1000;
/// OOM score of containers the node cannot do without, and of guaranteed ones.
const OOM_PROTECTED: i64 = -997;
/// OOM score of best-effort containers: the first to go.
const OOM_BEST_EFFORT: i64 = 1000;

/// `cpu.shares` for a CPU request in thousandths.
pub fn cpu_shares(milli: i64) -> i64 {
    (milli.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// The CFS quota for a CPU limit in thousandths; `None` when there is no limit.
pub fn cpu_quota(milli: i64, period_us: i64) -> Option<i64> {
    (milli > 0).then(|| (milli.saturating_mul(period_us) / 1000).max(MIN_QUOTA_US))
}

/// A huge page size as the kernel's cgroup files name it: `2MB`, `1GB`, `64KB`.
pub fn hugepage_name(bytes: i64) -> String {
    const UNITS: [(&str, u32); 3] = [("GB", 30), ("MB", 20), ("KB", 10)];
    for (unit, shift) in UNITS {
        if bytes != 0 && bytes % (1i64 << shift) == 0 {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

/// The values of the pod's cgroup. A limit is written only where every container (or the pod itself) has one, because
/// the cgroup holds them all.
pub fn pod_cgroup_resources(pod: &Pod, facts: &NodeFacts) -> PodValues {
    let sums = resources::pod_resources(pod);
    let qos = resources::qos_class(pod);
    let amount = |list: &ResourceList, name: &str| list.get(name).copied().unwrap_or_default();
    let cpu_shares = match qos {
        Qos::BestEffort => MIN_SHARES,
        _ => cpu_shares(amount(&sums.requests, "cpu").milli()),
    };
    let limited = |name: &str| qos != Qos::BestEffort && all_limited(pod, name);
    let cpu_quota = match (limited("cpu"), facts.cpu_cfs_quota) {
        (false, _) => None,
        // What an earlier configuration limited is limited no longer.
        (true, false) => Some(-1),
        (true, true) => cpu_quota(amount(&sums.limits, "cpu").milli(), facts.cfs_period_us),
    };
    let memory_limit = Some(amount(&sums.limits, "memory").value()).filter(|v| *v > 0 && limited("memory"));
    let (memory_min, memory_low) = memory::of_pod(pod, facts);
    PodValues {
        cpu_shares: u64::try_from(cpu_shares).ok(),
        memory_min,
        memory_low,
        cpu_period_us: cpu_quota.and(u64::try_from(facts.cfs_period_us).ok()),
        cpu_quota_us: cpu_quota,
        memory_limit,
        pids_limit: Some(facts.pod_pids_limit).filter(|n| *n > 0),
        hugetlb: hugepages(&sums.limits, facts)
            .into_iter()
            .map(|(size, bytes)| HugetlbLimit { page_size: hugepage_name(size), bytes })
            .collect(),
        ..PodValues::default()
    }
}

fn all_limited(pod: &Pod, name: &str) -> bool {
    let limited = |list: &ResourceList| list.get(name).is_some_and(|a| *a > Nano::default());
    if limited(&resources::pod_level(pod).1) {
        return true;
    }
    let spec = spec(pod);
    spec.containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .all(|c| limited(&resources::limits_of(c)))
}

/// Every page size of the node with its limit, smallest first; what is not asked for is limited to nothing.
fn hugepages(limits: &ResourceList, facts: &NodeFacts) -> Vec<(i64, u64)> {
    let mut sizes = facts.hugepage_sizes.clone();
    sizes.sort_unstable();
    let of = |size: i64| {
        limits
            .iter()
            .filter_map(|(name, amount)| Some((name.strip_prefix(HUGEPAGES)?, amount)))
            .find(|(text, _)| quantity::parse(text).is_ok_and(|q| q.value() == size))
            .map_or(0, |(_, amount)| u64::try_from(amount.value()).unwrap_or(0))
    };
    sizes.into_iter().map(|size| (size, of(size))).collect()
}

/// CPU and memory as CRI carries them, common to containers, sandboxes and overhead. Without a CPU request the limit
/// stands for it.
fn linux(
    cpu_request: Option<Nano>,
    cpu_limit: Option<Nano>,
    memory_limit: Option<Nano>,
    facts: &NodeFacts,
) -> LinuxContainerResources {
    let mut out = LinuxContainerResources {
        cpu_shares: cpu_shares(cpu_request.or(cpu_limit).unwrap_or_default().milli()),
        memory_limit_in_bytes: memory_limit.unwrap_or_default().value(),
        ..LinuxContainerResources::default()
    };
    if facts.cpu_cfs_quota {
        out.cpu_period = facts.cfs_period_us;
        out.cpu_quota = cpu_quota(cpu_limit.unwrap_or_default().milli(), facts.cfs_period_us).unwrap_or(0);
    }
    if facts.cgroup_v2 && !facts.single_process_oom_kill {
        out.unified = BTreeMap::from([("memory.oom.group".to_owned(), "1".to_owned())]);
    }
    out
}

/// `PodSandboxConfig.linux.resources`: the sums without overhead. Unlike in the pod's cgroup a limit shows even when
/// only some containers have one; the runtime uses it for sizing.
pub fn sandbox_resources(pod: &Pod, facts: &NodeFacts) -> LinuxContainerResources {
    let sums = resources::totals(pod, Overhead::Excluded);
    let get = |list: &ResourceList, name: &str| list.get(name).copied();
    linux(get(&sums.requests, "cpu"), get(&sums.limits, "cpu"), get(&sums.limits, "memory"), facts)
}

/// `PodSandboxConfig.linux.overhead`; the empty message without overhead.
pub fn sandbox_overhead(pod: &Pod, facts: &NodeFacts) -> LinuxContainerResources {
    let overhead = resources::overhead_of(pod);
    if overhead.is_empty() {
        return LinuxContainerResources::default();
    }
    let (cpu, memory) = (overhead.get("cpu").copied(), overhead.get("memory").copied());
    linux(cpu, cpu, memory, facts)
}

/// `ContainerConfig.linux.resources`.
pub fn container_resources(pod: &Pod, container: &Container, facts: &NodeFacts) -> LinuxContainerResources {
    let limit = |name: &str| resources::effective_limit(pod, container, name);
    let cpu_request = resources::requests_of(container).get("cpu").copied();
    let mut out = linux(cpu_request, limit("cpu"), limit("memory"), facts);
    out.oom_score_adj = oom_score_adj(pod, container, facts.capacity_memory);
    out.hugepage_limits = hugepages(&resources::limits_of(container), facts)
        .into_iter()
        .map(|(size, limit)| HugepageLimit { page_size: hugepage_name(size), limit })
        .collect();
    memory::swap_of_container(pod, container, facts, &mut out);
    memory::qos_of_container(pod, container, facts, &mut out);
    out
}

/// A container's `oom_score_adj` on a node with `capacity` bytes of memory: the more a burstable container requests,
/// the less likely it is killed. A sidecar is protected at least as well as the regular container that requests least.
pub fn oom_score_adj(pod: &Pod, container: &Container, capacity: i64) -> i64 {
    if is_node_critical(pod) {
        return OOM_PROTECTED;
    }
    match resources::qos_class(pod) {
        Qos::Guaranteed => return OOM_PROTECTED,
        Qos::BestEffort => return OOM_BEST_EFFORT,
        Qos::Burstable => {}
    }
    let spec = spec(pod);
    let memory = |c: &Container| resources::requests_of(c).get("memory").copied().unwrap_or_default().value();
    let sidecars: Vec<_> =
        spec.init_containers.iter().flatten().filter(|c| resources::is_sidecar(c)).collect();
    // What the pod requests beyond its containers is spread evenly over those that run together.
    let share = if resources::has_pod_level(pod) {
        let members = || spec.containers.iter().chain(sidecars.iter().copied());
        let total = resources::totals(pod, Overhead::Excluded).requests.get("memory").copied();
        let rest = total.unwrap_or_default().value() - members().map(memory).sum::<i64>();
        i64::try_from(members().count()).map_or(0, |n| rest.max(0) / n.max(1))
    } else {
        0
    };
    let score = |request: i64| {
        let part = i128::from(request) * 1000 / i128::from(capacity.max(1));
        OOM_BEST_EFFORT - i64::try_from(part).unwrap_or(i64::MAX).min(OOM_BEST_EFFORT)
    };
    let mut adj = score(memory(container) + share);
    if sidecars.iter().any(|s| s.name == container.name) {
        let least = spec.containers.iter().map(memory).min().unwrap_or(0);
        adj = adj.min(score(least + share));
    }
    // Between the guaranteed and the best-effort ones, never equal to either.
    adj.clamp(OOM_BEST_EFFORT + OOM_PROTECTED, OOM_BEST_EFFORT - 1)
}

/// The pod did not come from the API server.
pub(super) fn is_static(pod: &Pod) -> bool {
    let source = pod.metadata.annotations.as_ref().and_then(|a| a.get(CONFIG_SOURCE));
    source.is_some_and(|s| s != Origin::Api.as_str())
}

/// A pod of class `system-node-critical` that really is critical: by its priority, or because it did not come from the
/// API server.
fn is_node_critical(pod: &Pod) -> bool {
    let spec = spec(pod);
    spec.priority_class_name.as_deref() == Some("system-node-critical")
        && (is_static(pod) || spec.priority.unwrap_or(0) >= SYSTEM_CRITICAL_PRIORITY)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{facts, pod};
    use super::*;

    #[test]
    fn shares_and_quotas_stay_within_what_the_kernel_takes() {
        for (milli, shares) in
            [(0, 2), (1, 2), (10, 10), (108, 110), (125, 128), (1000, 1024), (1_000_000, 262_144)]
        {
            assert_eq!(cpu_shares(milli), shares, "{milli}m");
        }
        for (milli, quota) in [(0, None), (1, Some(1000)), (33, Some(3300)), (1250, Some(125_000))] {
            assert_eq!(cpu_quota(milli, 100_000), quota, "{milli}m");
        }
    }

    #[test]
    fn huge_pages_are_named_as_the_kernel_does() {
        for (bytes, name) in [(2 << 20, "2MB"), (1 << 30, "1GB"), (64 << 10, "64KB"), (32 << 20, "32MB")] {
            assert_eq!(hugepage_name(bytes), name);
        }
        let p = pod(
            "{spec: {containers: [{name: a, resources: {limits: {hugepages-2Mi: 4Mi, memory: 1Mi, cpu: 1}}}]}}",
        );
        let of_pod = pod_cgroup_resources(&p, &facts()).hugetlb;
        let shown: Vec<_> = of_pod.iter().map(|h| (h.page_size.as_str(), h.bytes)).collect();
        assert_eq!(shown, [("2MB", 4 << 20), ("1GB", 0)]);
        let r = container_resources(&p, &spec(&p).containers[0], &facts());
        let shown: Vec<_> = r.hugepage_limits.iter().map(|h| (h.page_size.as_str(), h.limit)).collect();
        assert_eq!(shown, [("2MB", 4 << 20), ("1GB", 0)]);
    }

    #[test]
    fn one_unlimited_container_leaves_the_pods_cgroup_unlimited() {
        let both = pod("{spec: {containers: [{name: a, resources: {limits: {cpu: 75m, memory: 48Mi}}}, \
                        {name: b, resources: {limits: {cpu: 33m}}}]}}");
        let v = pod_cgroup_resources(&both, &facts());
        assert_eq!((v.cpu_shares, v.cpu_quota_us, v.cpu_period_us), (Some(110), Some(10_800), Some(100_000)));
        assert_eq!(v.memory_limit, None);
        let f = NodeFacts { cpu_cfs_quota: false, pod_pids_limit: 100, ..facts() };
        let v = pod_cgroup_resources(&both, &f);
        assert_eq!((v.cpu_quota_us, v.cpu_period_us, v.pids_limit), (Some(-1), Some(100_000), Some(100)));
        assert_eq!(sandbox_resources(&both, &f).cpu_period, 0);
    }

    #[test]
    fn best_effort_pods_have_no_limits_even_with_overhead() {
        let p = pod("{spec: {overhead: {cpu: 50m, memory: 20Mi}, containers: [{name: a}]}}");
        let v = pod_cgroup_resources(&p, &facts());
        assert_eq!((v.cpu_shares, v.cpu_quota_us, v.memory_limit), (Some(2), None, None));
        let o = sandbox_overhead(&p, &facts());
        assert_eq!((o.cpu_shares, o.cpu_quota, o.memory_limit_in_bytes), (51, 5000, 20 << 20));
    }

    #[test]
    fn a_sidecar_is_protected_like_the_least_of_the_regular_containers() {
        let p = pod("{spec: {initContainers: [{name: s, restartPolicy: Always}], \
                     containers: [{name: a, resources: {requests: {memory: 500}}}, {name: b, resources: {requests: {memory: 300}}}]}}");
        let s = spec(&p);
        let side = &s.init_containers.as_ref().unwrap()[0];
        assert_eq!(oom_score_adj(&p, side, 1000), 700);
        assert_eq!(oom_score_adj(&p, &s.containers[0], 1000), 500);
    }

    #[test]
    fn burstable_scores_stay_between_the_classes() {
        let p = pod(
            "{spec: {containers: [{name: a, resources: {requests: {memory: 1000}}}, {name: b, resources: {requests: {cpu: 1m}}}]}}",
        );
        let s = spec(&p);
        assert_eq!(oom_score_adj(&p, &s.containers[0], 1000), 3);
        assert_eq!(oom_score_adj(&p, &s.containers[1], 1000), 999);
    }
}
