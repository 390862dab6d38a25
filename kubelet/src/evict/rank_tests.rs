//! Tables and properties of the order in which pods are evicted.

use super::super::measure::ContainerUse;
use super::*;
use proptest::prelude::*;
use serde_json::json;

fn active(name: &str, priority: i32, memory: i64, storage: i64) -> Active {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name},
        "spec": {"containers": [], "priority": priority, "volumes": [
            {"name": "disk", "emptyDir": {}}, {"name": "mem", "emptyDir": {"medium": "Memory"}},
            {"name": "far", "nfs": {"server": "s", "path": "/"}}]},
    }))
    .unwrap();
    Active { who: PodRef::of(&pod), pod: Arc::new(pod), memory, storage, storage_limit: None }
}

fn order(pods: &[Active], used: &[(&str, PodUse)], signal: Signal, layout: Layout) -> Vec<String> {
    let used = used.iter().map(|(n, u)| (PodUid::new(n), u.clone())).collect();
    let mut pods = pods.to_vec();
    rank(&mut pods, &used, signal, layout);
    pods.iter().map(|p| p.who.name.to_string()).collect()
}

fn memory(bytes: u64) -> PodUse {
    PodUse { memory: Some(bytes), ..PodUse::default() }
}

fn disk(layer: u64, log: u64, volumes: &[(&str, u64)]) -> PodUse {
    let du = |bytes: u64| DiskUse { bytes, inodes: bytes / 10 };
    let c = ContainerUse {
        name: "c".into(),
        rootfs: Some(du(layer)),
        logs: Some(du(log)),
        ..ContainerUse::default()
    };
    PodUse {
        containers: vec![c],
        volumes: volumes.iter().map(|(n, b)| ((*n).to_owned(), du(*b))).collect(),
        ..PodUse::default()
    }
}

#[test]
fn who_uses_more_than_it_requests_goes_first_whatever_its_priority() {
    let pods = [active("within", 0, 1000, 0), active("above", 1_000_000, 100, 0)];
    let used = [("within", memory(999)), ("above", memory(101))];
    assert_eq!(order(&pods, &used, Signal::Memory, Layout::One), ["above", "within"]);
}

#[test]
fn then_the_lower_priority_and_then_the_larger_excess() {
    let pods = [active("a", 10, 0, 0), active("b", 5, 0, 0), active("c", 5, 100, 0), active("d", 5, 0, 0)];
    let used = [("a", memory(900)), ("b", memory(10)), ("c", memory(120)), ("d", memory(15))];
    // c is 20 above its request, d 15 and b 10 above theirs.
    assert_eq!(order(&pods, &used, Signal::AllocatableMemory, Layout::One), ["c", "d", "b", "a"]);
}

#[test]
fn pods_of_which_nothing_is_known_go_first() {
    let pods = [active("known", 0, 0, 0), active("unknown", 9, 0, 0)];
    let used = [("known", memory(1 << 40))];
    assert_eq!(order(&pods, &used, Signal::Memory, Layout::One), ["unknown", "known"]);
}

#[test]
fn for_processes_priority_counts_and_then_their_number() {
    let pods = [active("few", 1, 0, 0), active("many", 1, 0, 0), active("low", 0, 0, 0)];
    let of = |n: u64| PodUse { processes: Some(n), ..PodUse::default() };
    let used = [("few", of(3)), ("many", of(300)), ("low", of(1))];
    assert_eq!(order(&pods, &used, Signal::Pid, Layout::One), ["low", "many", "few"]);
}

#[test]
fn only_what_is_on_the_file_system_in_question_counts() {
    let pods = [active("layer", 0, 0, 0), active("log", 0, 0, 0), active("volume", 0, 0, 0)];
    let used = [
        ("layer", disk(900, 0, &[])),
        ("log", disk(0, 500, &[])),
        ("volume", disk(0, 0, &[("disk", 700), ("mem", 5000), ("far", 5000)])),
    ];
    for (signal, layout, want) in [
        (Signal::NodeFs, Layout::One, ["layer", "volume", "log"]),
        (Signal::ImageFs, Layout::One, ["layer", "volume", "log"]),
        (Signal::NodeFs, Layout::OfRuntime, ["volume", "log", "layer"]),
        (Signal::NodeFsInodes, Layout::OfRuntime, ["volume", "log", "layer"]),
        (Signal::ImageFs, Layout::OfRuntime, ["layer", "log", "volume"]),
        (Signal::ContainerFsInodes, Layout::OfRuntime, ["layer", "log", "volume"]),
        (Signal::NodeFs, Layout::OfImages, ["layer", "volume", "log"]),
        // Nothing of a pod is there: by name.
        (Signal::ImageFs, Layout::OfImages, ["layer", "log", "volume"]),
    ] {
        assert_eq!(order(&pods, &used, signal, layout), want, "{signal} {layout:?}");
    }
}

#[test]
fn a_number_that_is_missing_is_not_zero_and_where_all_are_nobody_is_chosen() {
    let missing = |log: Option<u64>| {
        let du = |bytes| DiskUse { bytes, inodes: 1 };
        let c = ContainerUse { name: "c".into(), logs: log.map(du), ..ContainerUse::default() };
        PodUse { containers: vec![c], ..PodUse::default() }
    };
    let pods = [active("known", 0, 0, 0), active("logs", 0, 0, 0), active("unknown", 0, 0, 0)];
    let used = [("known", disk(500, 0, &[])), ("logs", missing(Some(9))), ("unknown", missing(None))];
    assert_eq!(order(&pods, &used, Signal::NodeFs, Layout::One), ["unknown", "known", "logs"]);
    let told = |used: &[(&str, PodUse)], signal, layout| {
        let used = used.iter().map(|(n, u)| (PodUid::new(n), u.clone())).collect();
        !nothing_told(&used, signal, layout)
    };
    assert!(told(&used, Signal::NodeFs, Layout::One));
    assert!(
        !told(&used[1..], Signal::NodeFs, Layout::One)
            && !told(&used[1..], Signal::ImageFs, Layout::OfRuntime)
    );
    assert!(told(&used[1..], Signal::NodeFs, Layout::OfRuntime), "layers are elsewhere");
    assert!(told(&used[1..], Signal::Memory, Layout::One) && told(&[], Signal::NodeFs, Layout::One));
}

#[test]
fn requests_for_storage_count_for_bytes_and_not_for_inodes() {
    let pods = [active("asks", 0, 0, 1000), active("modest", 0, 0, 0)];
    let used = [("asks", disk(900, 0, &[])), ("modest", disk(10, 0, &[]))];
    assert_eq!(order(&pods, &used, Signal::NodeFs, Layout::One), ["modest", "asks"]);
    assert_eq!(order(&pods, &used, Signal::NodeFsInodes, Layout::One), ["asks", "modest"]);
}

proptest! {
    #[test]
    fn the_order_does_not_hang_on_the_order_of_the_question(
        of in proptest::collection::vec((0..3i32, 0..3i64, proptest::option::of(0..5u64)), 1..8),
        signal in proptest::sample::select(Signal::ALL.to_vec()),
    ) {
        let pods: Vec<Active> =
            of.iter().enumerate().map(|(i, (p, r, _))| active(&i.to_string(), *p, *r, *r)).collect();
        let names: Vec<String> = (0..of.len()).map(|i| i.to_string()).collect();
        let used: Vec<(&str, PodUse)> = of
            .iter()
            .enumerate()
            .filter_map(|(i, (_, _, u))| Some((names[i].as_str(), PodUse { memory: Some((*u)?), ..disk(u.unwrap(), 0, &[]) })))
            .collect();
        let forward = order(&pods, &used, signal, Layout::One);
        let backward: Vec<Active> = pods.iter().rev().cloned().collect();
        prop_assert_eq!(&forward, &order(&backward, &used, signal, Layout::One));
        prop_assert_eq!(forward.len(), pods.len());
    }
}
