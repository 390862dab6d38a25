//! Tables and properties of resizes: what a container needs, and that at no moment a pod has less than its containers.

use super::*;
use cri::v1;
use proptest::prelude::*;
use serde_json::{Value, json};

fn facts() -> NodeFacts {
    NodeFacts {
        cpu_cfs_quota: true,
        cfs_period_us: 100_000,
        capacity_memory: 8 << 30,
        ..NodeFacts::default()
    }
}

fn pod(containers: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"containers": containers}})).unwrap()
}

fn amounts(cpu: &str, memory: &str) -> Value {
    json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}})
}

fn one(resources: &Value, policy: Value) -> Pod {
    pod(json!([{"name": "c", "resources": resources, "resizePolicy": policy}]))
}

/// The container runs in the pod's sandbox, with what it would have been given for `resources`.
fn running(resources: Option<&Value>) -> Observed {
    let mut i =
        Instance::from_status_for_tests("s", &v1::ContainerStatus { id: "i".into(), ..Default::default() });
    (i.name, i.state) = ("c".to_owned(), State::Running);
    i.given = resources.map(|r| {
        let p = one(r, json!([]));
        Given::of(&limits::container_resources(&p, &p.spec.as_ref().unwrap().containers[0], &facts()))
    });
    let sandbox = crate::pleg::observed::Sandbox {
        id: "s".into(),
        attempt: 0,
        created_at: 0,
        ready: true,
        ips: Vec::new(),
    };
    Observed { seq: 1, sandboxes: vec![sandbox], containers: vec![i] }
}

fn actuated(resources: &Value) -> Actual {
    let actuated = [("i".to_owned(), serde_json::from_value(resources.clone()).unwrap())].into();
    Actual { actuated, ..Actual::default() }
}

fn need_of(wants: &Value, policy: Value, seen: &Observed, actual: &Actual) -> Option<Need> {
    needs(&one(wants, policy), seen, actual, &facts()).remove("c")
}

#[test]
fn what_a_container_needs_follows_from_what_it_has() {
    let old = amounts("1", "1Gi");
    let update = |memory, cpu| Some(Need::Update { memory, cpu });
    for (wants, want) in [
        (amounts("1", "1Gi"), None),
        (amounts("1000m", "1024Mi"), None),
        (amounts("2", "1Gi"), update(false, true)),
        (amounts("1", "2Gi"), update(true, false)),
        (amounts("500m", "2Gi"), update(true, true)),
        (
            json!({"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}}),
            update(false, true),
        ),
        (
            json!({"requests": {"cpu": "1", "memory": "1Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}),
            update(true, false),
        ),
    ] {
        let got = need_of(&wants, json!([]), &running(Some(&old)), &actuated(&old));
        assert_eq!(got, want, "{wants}");
        let untold = need_of(&wants, json!([]), &running(None), &actuated(&old));
        assert_eq!(untold, want, "{wants}, of which the runtime says nothing");
    }
}

#[test]
fn a_resize_policy_restarts_for_its_resource_alone() {
    let old = amounts("1", "1Gi");
    let policy = |name: &str| json!([{"resourceName": name, "restartPolicy": "RestartContainer"}]);
    for (wants, name, want) in [
        (amounts("2", "1Gi"), "cpu", Some(Need::Restart)),
        (amounts("2", "1Gi"), "memory", Some(Need::Update { memory: false, cpu: true })),
        (amounts("1", "2Gi"), "memory", Some(Need::Restart)),
        (amounts("2", "2Gi"), "memory", Some(Need::Restart)),
        (amounts("1", "1Gi"), "memory", None),
    ] {
        assert_eq!(
            need_of(&wants, policy(name), &running(Some(&old)), &actuated(&old)),
            want,
            "{wants} {name}"
        );
    }
}

#[test]
fn nothing_is_done_again_that_is_so_by_what_anybody_tells() {
    let (old, new) = (amounts("1", "1Gi"), amounts("2", "2Gi"));
    let restart = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    // Killed between the runtime's answer and the note of it: the runtime tells.
    assert_eq!(need_of(&new, restart.clone(), &running(Some(&new)), &Actual::default()), None);
    // The runtime took it and tells something else, or nothing.
    assert_eq!(need_of(&new, restart.clone(), &running(Some(&old)), &actuated(&new)), None);
    assert_eq!(need_of(&new, restart.clone(), &running(None), &actuated(&new)), None);
    // It is not known what it was asked for: what the runtime tells restarts nothing.
    let update = Some(Need::Update { memory: true, cpu: true });
    assert_eq!(need_of(&new, restart.clone(), &running(Some(&old)), &Actual::default()), update);
    let cpu_alone = need_of(&amounts("2", "1Gi"), restart.clone(), &running(Some(&new)), &actuated(&old));
    assert_eq!(cpu_alone, Some(Need::Update { memory: true, cpu: false }), "its memory was not to change");
    // Nobody knows anything: what runs is left alone.
    assert_eq!(need_of(&new, restart, &running(None), &Actual::default()), None);
}

#[test]
fn what_does_not_run_needs_nothing() {
    let (old, new) = (amounts("1", "1Gi"), amounts("2", "2Gi"));
    for state in [State::Created, State::Exited, State::Unknown] {
        let mut seen = running(Some(&old));
        seen.containers[0].state = state;
        assert_eq!(need_of(&new, json!([]), &seen, &actuated(&old)), None, "{state:?}");
    }
    let mut seen = running(Some(&old));
    seen.containers[0].sandbox_id = "older".into();
    assert_eq!(need_of(&new, json!([]), &seen, &actuated(&old)), None, "it is ended with its sandbox");
}

fn now(shares: u64, quota: i64, memory: i64) -> Now {
    Now {
        cpu_shares: shares,
        cpu_quota_us: quota,
        cpu_period_us: 100_000,
        memory_limit: memory,
        memory_usage: 0,
    }
}

fn wanted(shares: u64, quota: Option<i64>, memory: Option<i64>) -> PodValues {
    PodValues {
        cpu_shares: Some(shares),
        cpu_quota_us: quota,
        cpu_period_us: quota.map(|_| 100_000),
        memory_limit: memory,
        ..PodValues::default()
    }
}

fn update(name: &str, from: (i64, i64), to: (i64, i64)) -> Update {
    Update {
        id: name.into(),
        name: name.into(),
        memory: from.1 != to.1,
        cpu: from.0 != to.0,
        target: LinuxContainerResources {
            cpu_shares: to.0,
            cpu_quota: to.0 * 100,
            cpu_period: 100_000,
            memory_limit_in_bytes: to.1,
            ..Default::default()
        },
        given: Some(Given {
            cpu_shares: from.0,
            cpu_quota_us: Some(from.0 * 100),
            cpu_period_us: 100_000,
            memory_limit: Some(from.1),
        }),
    }
}

fn short(deeds: &[Deed], updates: &[Update]) -> Vec<String> {
    let one = |d: &Deed| match d {
        Deed::Pod(part) => format!("pod {part:?}"),
        Deed::Container(i, m) => {
            format!("{} {} {}", updates[*i].name, m.cpu_shares, m.memory_limit_in_bytes >> 20)
        }
    };
    deeds.iter().map(one).collect()
}

const MIB: i64 = 1 << 20;

#[test]
fn the_recorded_order_of_raising_and_lowering() {
    // resize-guaranteed-two: one container grows in both.
    let updates = [update("a", (102, 64 * MIB), (204, 96 * MIB))];
    let deeds_up = deeds(
        Some(&now(204, 20_000, 128 * MIB)),
        &wanted(307, Some(30_000), Some(160 * MIB)),
        &updates,
        false,
    );
    assert_eq!(short(&deeds_up, &updates), ["pod Memory", "a 102 96", "pod Quota", "pod Shares", "a 204 96"]);
    // resize-cpu, the second: less CPU.
    let updates = [update("c", (153, 128 * MIB), (51, 128 * MIB))];
    let down = deeds(
        Some(&now(153, 30_000, 128 * MIB)),
        &wanted(51, Some(10_000), Some(128 * MIB)),
        &updates,
        false,
    );
    assert_eq!(short(&down, &updates), ["c 51 128", "pod Shares", "pod Quota"]);
    // What shrinks makes room for what grows.
    let updates = [update("a", (10, 10 * MIB), (20, 20 * MIB)), update("b", (20, 20 * MIB), (10, 10 * MIB))];
    let swapped =
        deeds(Some(&now(30, 3_000, 30 * MIB)), &wanted(30, Some(3_000), Some(30 * MIB)), &updates, false);
    assert_eq!(short(&swapped, &updates), ["b 20 10", "a 10 20", "b 10 10", "a 20 20"]);
}

#[test]
fn a_pod_without_a_limit_keeps_none_and_one_that_gets_one_gets_it_last() {
    let updates = [update("a", (10, 10 * MIB), (20, 20 * MIB))];
    let none = deeds(Some(&now(10, -1, -1)), &wanted(20, None, None), &updates, false);
    assert_eq!(short(&none, &updates), ["a 10 20", "pod Shares", "a 20 20"]);
    let first = deeds(Some(&now(10, -1, -1)), &wanted(20, Some(2_000), Some(20 * MIB)), &updates, false);
    assert_eq!(short(&first, &updates), ["a 10 20", "pod Memory", "pod Shares", "a 20 20", "pod Quota"]);
    assert_eq!(
        short(&deeds(None, &wanted(20, None, None), &updates, false), &updates),
        ["a 10 20", "a 20 20"],
        "no cgroup"
    );
}

#[test]
fn weights_hide_what_they_do_not_tell_apart() {
    let (is, should) = (now(102, -1, -1), wanted(104, None, None));
    assert_eq!(values::weight_of_shares(102), values::weight_of_shares(104));
    assert!(pod_is_so(&is, &should, true) && !pod_is_so(&is, &should, false));
}

/// CPU in hundredths of a core and memory in MiB, before and after.
type Sizes = ((i64, i64), (i64, i64));

proptest! {
    #[test]
    fn at_no_moment_has_the_pod_less_than_its_containers(
        sizes in proptest::collection::vec(((1i64..50, 1i64..50), (1i64..50, 1i64..50)), 1..5),
    ) {
        let updates: Vec<Update> = sizes
            .iter()
            .enumerate()
            .map(|(i, (from, to))| update(&i.to_string(), (from.0 * 10, from.1 * MIB), (to.0 * 10, to.1 * MIB)))
            .collect();
        let sum = |of: &dyn Fn(&Sizes) -> i64| sizes.iter().map(of).sum::<i64>();
        let cpu = (sum(&|s| s.0.0 * 10), sum(&|s| s.1.0 * 10));
        let memory = (sum(&|s| s.0.1 * MIB), sum(&|s| s.1.1 * MIB));
        let mut is = now(cpu.0.unsigned_abs(), cpu.0 * 100, memory.0);
        let should = wanted(cpu.1.unsigned_abs(), Some(cpu.1 * 100), Some(memory.1));
        let mut has: Vec<(i64, i64, i64)> = sizes.iter().map(|s| (s.0.0 * 10, s.0.0 * 1000, s.0.1 * MIB)).collect();
        for deed in deeds(Some(&is), &should, &updates, false) {
            match deed {
                Deed::Pod(Part::Memory) => is.memory_limit = memory.1,
                Deed::Pod(Part::Quota) => is.cpu_quota_us = cpu.1 * 100,
                Deed::Pod(Part::Shares) => is.cpu_shares = cpu.1.unsigned_abs(),
                Deed::Container(i, m) => has[i] = (m.cpu_shares, m.cpu_quota, m.memory_limit_in_bytes),
            }
            let total = |of: &dyn Fn(&(i64, i64, i64)) -> i64| has.iter().map(of).sum::<i64>();
            prop_assert!(total(&|h| h.1) <= is.cpu_quota_us, "quota");
            prop_assert!(total(&|h| h.2) <= is.memory_limit, "memory");
        }
        let end: Vec<(i64, i64, i64)> = sizes.iter().map(|s| (s.1.0 * 10, s.1.0 * 1000, s.1.1 * MIB)).collect();
        prop_assert_eq!(has, end);
        prop_assert!(pod_is_so(&is, &should, false));
    }
}
