//! What a pod asks for as a whole: requests and limits over its containers, sidecars, init containers, overhead and
//! pod-level resources, and the QoS class that follows.
//!
//! Admission, the pod's cgroup, the sandbox's resources and OOM scores start here. Rules: the API documentation of init
//! containers (highest init container or the sum), KEP-753 (sidecars), KEP-688 (overhead), KEP-2837 (pod-level
//! resources). Quantities were validated by the source; one that does not parse counts as absent.

use crate::api::{Container, Pod, Qos, spec};
use crate::quantity::{self, Nano};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// Amounts by resource name.
pub type ResourceList = BTreeMap<String, Nano>;

/// The prefix of huge page resources, followed by the page size.
pub const HUGEPAGES: &str = "hugepages-";

/// Sums over a pod. An absent key means that nothing is asked for or that nothing limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodResources {
    /// What is reserved.
    pub requests: ResourceList,
    /// What is the most. Containers without a limit are not seen here: see [`super::pod_cgroup_resources`].
    pub limits: ResourceList,
}

/// Whether the RuntimeClass's overhead counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overhead {
    /// As for the pod's cgroup and for admission.
    Included,
    /// As for the sandbox's resources, which carry it apart.
    Excluded,
}

/// The pod's totals, overhead included: what admission reserves.
pub fn pod_resources(pod: &Pod) -> PodResources {
    totals(pod, Overhead::Included)
}

/// The pod's totals.
pub fn totals(pod: &Pod, overhead: Overhead) -> PodResources {
    let (mut requests, mut limits) = (container_totals(pod, requests_of), container_totals(pod, limits_of));
    let (pod_requests, pod_limits) = pod_level(pod);
    for (name, amount) in &pod_limits {
        limits.insert(name.clone(), *amount);
        // Without a request of its own, a pod-level limit stands for what no container requested.
        requests.entry(name.clone()).or_insert(*amount);
    }
    requests.extend(pod_requests);
    if overhead == Overhead::Included {
        for (name, amount) in overhead_of(pod) {
            // Overhead widens a limit but does not make one.
            if let Some(limit) = limits.get_mut(&name) {
                *limit = limit.plus(amount);
            }
            let request = requests.entry(name).or_default();
            *request = request.plus(amount);
        }
    }
    PodResources { requests, limits }
}

/// `spec.overhead`.
pub fn overhead_of(pod: &Pod) -> ResourceList {
    parsed(spec(pod).overhead.as_ref())
}

/// A container's requests; what has only a limit requests the limit.
pub fn requests_of(container: &Container) -> ResourceList {
    let mut list = limits_of(container);
    list.extend(parsed(container.resources.as_ref().and_then(|r| r.requests.as_ref())));
    list
}

/// The CPU request in thousandths that has these `cpu.shares`.
pub fn milli_of_shares(shares: i64) -> i64 {
    if shares <= 2 { 0 } else { (shares.saturating_mul(1000) + 1023) / 1024 }
}

/// A container's own limits.
pub fn limits_of(container: &Container) -> ResourceList {
    parsed(container.resources.as_ref().and_then(|r| r.limits.as_ref()))
}

/// The limit that holds for a container: its own, else the pod's.
pub fn effective_limit(pod: &Pod, container: &Container, name: &str) -> Option<Nano> {
    limits_of(container).get(name).copied().or_else(|| pod_level(pod).1.get(name).copied())
}

/// An init container that keeps running beside the others (KEP-753).
pub fn is_sidecar(init: &Container) -> bool {
    init.restart_policy.as_deref() == Some("Always")
}

/// Pod-level requests and limits of the resources that may be set there.
pub fn pod_level(pod: &Pod) -> (ResourceList, ResourceList) {
    let own = spec(pod).resources.as_ref();
    let supported = |map: Option<&BTreeMap<String, Quantity>>| {
        let mut list = parsed(map);
        list.retain(|name, _| name == "cpu" || name == "memory" || name.starts_with(HUGEPAGES));
        list
    };
    (supported(own.and_then(|r| r.requests.as_ref())), supported(own.and_then(|r| r.limits.as_ref())))
}

/// Whether anything is set for the pod as a whole.
pub fn has_pod_level(pod: &Pod) -> bool {
    let (requests, limits) = pod_level(pod);
    !requests.is_empty() || !limits.is_empty()
}

/// Regular containers together, sidecars among them; or the heaviest moment of the init phase where that is more.
/// An init container runs beside the sidecars that stand before it.
fn container_totals(pod: &Pod, of: fn(&Container) -> ResourceList) -> ResourceList {
    let spec = spec(pod);
    let mut running = ResourceList::new();
    for container in &spec.containers {
        add(&mut running, &of(container));
    }
    let mut sidecars = ResourceList::new();
    let mut peak = ResourceList::new();
    for init in spec.init_containers.as_deref().unwrap_or_default() {
        let own = of(init);
        let mut moment = sidecars.clone();
        add(&mut moment, &own);
        if is_sidecar(init) {
            add(&mut running, &own);
            sidecars.clone_from(&moment);
        }
        raise(&mut peak, &moment);
    }
    raise(&mut running, &peak);
    running
}

fn add(to: &mut ResourceList, more: &ResourceList) {
    for (name, amount) in more {
        let sum = to.entry(name.clone()).or_default();
        *sum = sum.plus(*amount);
    }
}

fn raise(to: &mut ResourceList, floor: &ResourceList) {
    for (name, amount) in floor {
        let most = to.entry(name.clone()).or_default();
        *most = (*most).max(*amount);
    }
}

fn parsed(map: Option<&BTreeMap<String, Quantity>>) -> ResourceList {
    map.into_iter()
        .flatten()
        .filter_map(|(name, q)| Some((name.clone(), quantity::parse(&q.0).ok()?)))
        .collect()
}

/// The pod's QoS class, from CPU and memory only. Pod-level resources, where there are any, decide alone.
pub fn qos_class(pod: &Pod) -> Qos {
    if has_pod_level(pod) {
        let all = totals(pod, Overhead::Excluded);
        let (own_requests, own_limits) = pod_level(pod);
        // Requests of the pod that were defaulted from its limits or its containers count like given ones.
        let requests: ResourceList = all
            .requests
            .into_iter()
            .filter(|(name, _)| own_requests.contains_key(name) || own_limits.contains_key(name))
            .collect();
        return classify(&[(requests, own_limits)]);
    }
    let spec = spec(pod);
    let each: Vec<_> = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .map(|c| (requests_of(c), limits_of(c)))
        .collect();
    classify(&each)
}

fn classify(each: &[(ResourceList, ResourceList)]) -> Qos {
    const COUNTED: [&str; 2] = ["cpu", "memory"];
    let positive = |list: &ResourceList, name: &str| list.get(name).copied().filter(|a| *a > Nano::default());
    let mut anything = false;
    let mut equal = true;
    for name in COUNTED {
        let mut sums = (Nano::default(), Nano::default());
        for (requests, limits) in each {
            let (request, limit) = (positive(requests, name), positive(limits, name));
            anything |= request.is_some() || limit.is_some();
            equal &= limit.is_some();
            sums.0 = sums.0.plus(request.unwrap_or_default());
            sums.1 = sums.1.plus(limit.unwrap_or_default());
        }
        equal &= sums.0 == sums.1;
    }
    match (anything, equal) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::pod;
    use super::*;

    fn shown(list: &ResourceList) -> String {
        list.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
    }

    fn check(spec: &str, requests: &str, limits: &str, qos: Qos) {
        let p = pod(&format!("{{spec: {spec}}}"));
        let r = pod_resources(&p);
        assert_eq!((shown(&r.requests).as_str(), shown(&r.limits).as_str()), (requests, limits), "{spec}");
        assert_eq!(qos_class(&p), qos, "{spec}");
    }

    #[test]
    fn containers_add_up_and_requests_default_to_limits() {
        check("{containers: [{name: a}]}", "", "", Qos::BestEffort);
        check(
            "{containers: [{name: a, resources: {limits: {nvidia.com/gpu: 1}}}]}",
            "nvidia.com/gpu=1",
            "nvidia.com/gpu=1",
            Qos::BestEffort,
        );
        check(
            "{containers: [{name: a, resources: {requests: {cpu: 100m}, limits: {memory: 1k}}}, \
             {name: b, resources: {requests: {cpu: 50m}}}]}",
            "cpu=150m memory=1k",
            "memory=1k",
            Qos::Burstable,
        );
        check(
            "{containers: [{name: a, resources: {requests: {cpu: 1, memory: 1k}, limits: {cpu: 1, memory: 1k}}}, \
             {name: b, resources: {limits: {cpu: 1, memory: 1k}}}]}",
            "cpu=2 memory=2k",
            "cpu=2 memory=2k",
            Qos::Guaranteed,
        );
        check(
            "{containers: [{name: a, resources: {requests: {cpu: 0}, limits: {cpu: 1, memory: 1k}}}]}",
            "cpu=0 memory=1k",
            "cpu=1 memory=1k",
            Qos::Burstable,
        );
    }

    #[test]
    fn the_heaviest_init_moment_counts_where_it_is_more() {
        // init beside the sidecar before it: 20+300; running: 100+20+30.
        check(
            "{initContainers: [{name: s, restartPolicy: Always, resources: {requests: {cpu: 20m}}}, \
             {name: i, resources: {requests: {cpu: 300m}}}, \
             {name: t, restartPolicy: Always, resources: {requests: {cpu: 30m}}}], \
             containers: [{name: a, resources: {requests: {cpu: 100m, memory: 5}}}]}",
            "cpu=320m memory=5",
            "",
            Qos::Burstable,
        );
        check(
            "{initContainers: [{name: s, restartPolicy: Always, resources: {requests: {cpu: 20m}}}, \
             {name: i, resources: {requests: {cpu: 30m}}}], \
             containers: [{name: a, resources: {requests: {cpu: 100m}}}]}",
            "cpu=120m",
            "",
            Qos::Burstable,
        );
    }

    #[test]
    fn an_init_container_without_limits_costs_the_guarantee() {
        let guaranteed = "containers: [{name: a, resources: {limits: {cpu: 1, memory: 1k}}}]";
        assert_eq!(qos_class(&pod(&format!("{{spec: {{{guaranteed}}}}}"))), Qos::Guaranteed);
        let p = pod(&format!("{{spec: {{{guaranteed}, initContainers: [{{name: i}}]}}}}"));
        assert_eq!(qos_class(&p), Qos::Burstable);
    }

    #[test]
    fn overhead_adds_to_requests_and_to_limits_that_exist() {
        check(
            "{overhead: {cpu: 50m, memory: 20}, containers: [{name: a, resources: {limits: {cpu: 100m}}}]}",
            "cpu=150m memory=20",
            "cpu=150m",
            Qos::Burstable,
        );
    }

    #[test]
    fn pod_level_resources_take_the_place_of_sums_and_decide_the_class() {
        check(
            "{resources: {requests: {cpu: 200m, memory: 64}, limits: {cpu: 200m, memory: 64}}, containers: [{name: a}]}",
            "cpu=200m memory=64",
            "cpu=200m memory=64",
            Qos::Guaranteed,
        );
        // The request defaults to what the containers request, else to the limit.
        check(
            "{resources: {limits: {cpu: 40m, memory: 96}}, containers: [{name: a, resources: {requests: {cpu: 5m}}}, {name: b}]}",
            "cpu=5m memory=96",
            "cpu=40m memory=96",
            Qos::Burstable,
        );
        check("{resources: {requests: {cpu: 12m}}, containers: [{name: a}]}", "cpu=12m", "", Qos::Burstable);
    }

    proptest::proptest! {
        #[test]
        fn a_pod_requests_what_its_heaviest_moment_needs(
            regular in proptest::collection::vec(0u32..1000, 1..4),
            inits in proptest::collection::vec((0u32..1000, proptest::bool::ANY), 0..5),
        ) {
            let cpu = |milli: u32| format!("resources: {{requests: {{cpu: {milli}m}}}}");
            let containers: Vec<_> = regular.iter().map(|m| format!("{{name: c, {}}}", cpu(*m))).collect();
            let init = |(milli, sidecar): &(u32, bool)| {
                let policy = if *sidecar { "restartPolicy: Always, " } else { "" };
                format!("{{name: i, {policy}{}}}", cpu(*milli))
            };
            let list: Vec<_> = inits.iter().map(init).collect();
            let p = pod(&format!(
                "{{spec: {{initContainers: [{}], containers: [{}]}}}}", list.join(", "), containers.join(", ")
            ));
            // What runs at once: before each init container the sidecars so far and it; then everything that stays.
            let (mut beside, mut most) = (0u32, 0u32);
            for (milli, sidecar) in &inits {
                most = most.max(beside + milli);
                beside += if *sidecar { *milli } else { 0 };
            }
            most = most.max(beside + regular.iter().sum::<u32>());
            let got = pod_resources(&p).requests["cpu"].milli();
            proptest::prop_assert_eq!(got, i64::from(most));
        }
    }
}
