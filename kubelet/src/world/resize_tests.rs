//! Tables of resizes: what is refused and why, whose turn comes first, what is found out anew.

use super::*;
use crate::world::affinity::NodeLabels;
use serde_json::{Value, json};

fn pod(uid: &str, spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": spec})).unwrap()
}

/// A Burstable pod of one container with these requests.
fn asking(cpu: &str, memory: &str) -> Pod {
    pod(
        "u",
        json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}),
    )
}

fn node() -> Node {
    Node {
        cpu_milli: 4000,
        memory: 8 << 30,
        ephemeral_storage: 0,
        pods: 1,
        unsafe_sysctls: Vec::new(),
        apparmor: false,
        labels: NodeLabels::default(),
    }
}

fn judged(origin: Origin, has: &Pod, wants: &Pod, others: &[Pod]) -> Result<(), (PendingReason, String)> {
    let mut promised = Promised::default();
    promised.promise(PodUid::new("u"), has);
    for (n, other) in others.iter().enumerate() {
        promised.promise(PodUid::new(&format!("other-{n}")), other);
    }
    let (uid, seen) = (PodUid::new("u"), Observed::default());
    let facts = NodeFacts::default();
    let change = Change { uid: &uid, origin, has, wants, seen: &seen, facts: &facts };
    judge(&change, &promised, &node()).map_err(|r| (r.reason, r.message))
}

#[test]
fn what_fits_beside_the_others_is_given() {
    let (has, wants) = (asking("1", "1Gi"), asking("2", "2Gi"));
    assert_eq!(judged(Origin::Api, &has, &wants, &[asking("2", "6Gi")]), Ok(()));
    // Its own old share does not count.
    assert_eq!(judged(Origin::Api, &asking("4", "1Gi"), &asking("3", "1Gi"), &[]), Ok(()));
}

#[test]
fn what_does_not_fit_now_waits_and_what_never_fits_is_told_so() {
    use PendingReason::{Deferred, Infeasible};
    let has = asking("1", "1Gi");
    let beside =
        |cpu, memory| judged(Origin::Api, &has, &asking(cpu, memory), &[asking("2500m", "6Gi")]).unwrap_err();
    let deferred = "Node didn't have enough resource: cpu, requested: 2000, used: 2500, capacity: 4000";
    assert_eq!(beside("2", "1Gi"), (Deferred, deferred.to_owned()));
    let deferred = "Node didn't have enough resource: memory, requested: 3221225472, used: 6442450944, capacity: 8589934592";
    assert_eq!(beside("1", "3Gi"), (Deferred, deferred.to_owned()));
    let never = "Node didn't have enough capacity: cpu, requested: 5000, capacity: 4000";
    assert_eq!(beside("5", "1Gi"), (Infeasible, never.to_owned()));
    let never = "Node didn't have enough capacity: memory, requested: 9663676416, capacity: 8589934592";
    assert_eq!(beside("5", "9Gi"), (Infeasible, never.to_owned()));
}

#[test]
fn who_asks_for_less_is_refused_on_no_node() {
    let others = [asking("100", "100Gi")];
    assert_eq!(judged(Origin::Api, &asking("50", "50Gi"), &asking("40", "50Gi"), &others), Ok(()));
    assert!(judged(Origin::Api, &asking("1", "50Gi"), &asking("2", "40Gi"), &others).is_err(), "more CPU");
}

#[test]
fn what_cannot_be_done_in_place_is_infeasible() {
    let (has, wants) = (asking("1", "1Gi"), asking("2", "1Gi"));
    for origin in [Origin::File, Origin::Http] {
        let (reason, message) = judged(origin, &has, &wants, &[]).unwrap_err();
        assert_eq!(
            (reason, message.as_str()),
            (PendingReason::Infeasible, "In-place resize of static-pods is not supported")
        );
    }
    let limited = pod(
        "u",
        json!({"containers": [{"name": "c", "resources":
        {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}}}]}),
    );
    let (reason, message) = judged(Origin::Api, &has, &limited, &[]).unwrap_err();
    let want = "spec: Invalid value: \"Guaranteed\": Pod QOS Class may not change as a result of resizing";
    assert_eq!((reason, message.as_str()), (PendingReason::Infeasible, want));
}

#[test]
fn who_waits_is_served_in_upstreams_order() {
    let with = |cpu: &str, priority: i32, guaranteed: bool| {
        let r = json!({"cpu": cpu, "memory": "1Gi"});
        let limits = if guaranteed { r.clone() } else { json!({}) };
        pod(
            "u",
            json!({"priority": priority, "containers": [{"name": "c", "resources": {"requests": r, "limits": limits}}]}),
        )
    };
    let at = |cpu: &str, priority, guaranteed, since| {
        order(&with("1", priority, guaranteed), &with(cpu, priority, guaranteed), since)
    };
    let in_order = [
        at("500m", 0, false, 90),
        at("2", 10, false, 80),
        at("2", 0, true, 70),
        at("2", 0, false, 10),
        at("2", 0, false, 20),
    ];
    assert!(in_order.is_sorted());
}

#[test]
fn every_change_of_an_amount_is_counted() {
    let of = |r: Value| pod("u", json!({"containers": [{"name": "c", "resources": r}, {"name": "d"}]}));
    let old = of(json!({"requests": {"cpu": "1", "memory": "2"}, "limits": {"memory": "2"}}));
    let new = of(json!({"requests": {"cpu": "2", "memory": "1"}, "limits": {"cpu": "2"}}));
    assert_eq!(
        operations(&old, &new),
        [
            ["cpu", "limits", "add"],
            ["cpu", "requests", "increase"],
            ["memory", "limits", "remove"],
            ["memory", "requests", "decrease"]
        ]
    );
    assert!(operations(&old, &old).is_empty());
}

#[test]
fn what_cannot_be_true_of_a_pod_is_not_believed() {
    let p = asking("1", "1Gi");
    let check = |change: &dyn Fn(&mut Allocation)| {
        let mut kept = Allocation::of(&p);
        change(&mut kept);
        plausible(&kept, &p)
    };
    let set = |kept: &mut Allocation, r: Value| {
        kept.containers.insert("c".into(), serde_json::from_value(r).unwrap());
    };
    assert!(check(&|_| ()));
    assert!(check(&|k| set(k, json!({"requests": {"cpu": "5", "memory": "1Gi"}}))));
    assert!(!check(&|k| set(k, json!({"requests": {"cpu": "lots"}}))));
    assert!(!check(&|k| set(k, json!({"requests": {"cpu": "-1"}}))));
    assert!(check(&|k| set(k, json!({}))), "another class");
    assert!(!check(&|k| k.containers.clear()), "nothing is known of its container");
}

fn running(name: &str, given: Option<Given>) -> Observed {
    let status = cri::v1::ContainerStatus::default();
    let mut instance = Instance::from_status_for_tests("s", &status);
    (instance.name, instance.state, instance.given) = (name.to_owned(), State::Running, given);
    Observed { seq: 1, sandboxes: Vec::new(), containers: vec![instance] }
}

#[test]
fn what_runs_tells_what_it_was_given() {
    let facts = NodeFacts { cpu_cfs_quota: true, cfs_period_us: 100_000, ..NodeFacts::default() };
    let wants = pod(
        "u",
        json!({"containers": [{"name": "c", "resources":
        {"requests": {"cpu": "300m", "memory": "64Mi"}, "limits": {"cpu": "600m", "memory": "256Mi"}}}]}),
    );
    let given = |cpu_shares, quota, memory| Given {
        cpu_shares,
        cpu_quota_us: Some(quota),
        cpu_period_us: 100_000,
        memory_limit: Some(memory),
    };
    let got =
        |given| serde_json::to_value(&found(&wants, &running("c", given), &facts).containers["c"]).unwrap();
    let asked =
        json!({"requests": {"cpu": "300m", "memory": "64Mi"}, "limits": {"cpu": "600m", "memory": "256Mi"}});
    assert_eq!(got(None), asked, "the runtime does not tell");
    assert_eq!(got(Some(given(307, 60_000, 256 << 20))), asked, "it is as asked");
    assert_eq!(
        got(Some(given(102, 20_000, 128 << 20))),
        json!({"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "200m", "memory": "128Mi"}})
    );
    assert_eq!(
        got(Some(given(102, 20_000, 32 << 20)))["requests"]["memory"],
        "32Mi",
        "no more than its limit"
    );
    let both = json!({"cpu": "300m", "memory": "64Mi"});
    let guaranteed =
        pod("u", json!({"containers": [{"name": "c", "resources": {"requests": both, "limits": both}}]}));
    let kept = found(&guaranteed, &running("c", Some(given(102, 10_000, 32 << 20))), &facts);
    let applied = kept.applied(&std::sync::Arc::new(guaranteed));
    assert_eq!(translate::qos_class(&applied), Qos::Guaranteed);
    assert_eq!(kept.containers["c"].requests.as_ref().unwrap()["memory"].0, "32Mi");
}

#[test]
fn a_container_that_may_swap_is_not_resized_in_its_memory() {
    let facts = NodeFacts {
        cgroup_v2: true,
        swap_accounting: true,
        swap: translate::memory::Swap::Limited { capacity: 1 << 30 },
        capacity_memory: 8 << 30,
        ..NodeFacts::default()
    };
    let (uid, seen, promised) = (PodUid::new("u"), Observed::default(), Promised::default());
    let judged = |has: &Pod, wants: &Pod| {
        let change = Change { uid: &uid, origin: Origin::Api, has, wants, seen: &seen, facts: &facts };
        judge(&change, &promised, &node()).map_err(|r| (r.detail, r.message))
    };
    let why = "In-place resize of containers with swap is not supported.";
    assert_eq!(judged(&asking("1", "1Gi"), &asking("1", "2Gi")), Err(("swap_limitation", why.to_owned())));
    assert_eq!(judged(&asking("1", "1Gi"), &asking("2", "1Gi")), Ok(()));
    let mut restarted = [asking("1", "1Gi"), asking("1", "2Gi")];
    for pod in &mut restarted {
        let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
        pod.spec.as_mut().unwrap().containers[0].resize_policy = serde_json::from_value(policy).unwrap();
    }
    assert_eq!(judged(&restarted[0], &restarted[1]), Ok(()));
}
