//! Eviction: which pod goes, that no other does, what is told of it, and what outlives the agent.

use crate::support::meter::{MIB, Meter, Uses, hard, soft};
use crate::support::{Node, Running, SECOND, container, custom, pass, pod};
use cri::fake::Script;
use cri::v1;
use kubelet::api::Pod;
use kubelet::evict::Signal;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const MESSAGE: &str = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
                       Container c was using 850Mi, request is 0, has larger consumption of memory. ";

/// A node of 1000 MiB with these thresholds, and its meter.
fn node(thresholds: &[kubelet::evict::Threshold]) -> (Node, Arc<Meter>) {
    let mut node = Node::new();
    node.fake.script("c", Script::forever().on_term(143, SECOND));
    let meter = Meter::of(&node);
    node.settings.measure = Some(meter.clone());
    node.settings.evict.thresholds = thresholds.to_vec();
    node.settings.evict.net = 10 * SECOND;
    (node, meter)
}

/// A pod of one container `c` with more of a spec.
fn one(uid: &str, more: Value) -> Pod {
    let mut spec = json!({"containers": [container("c")], "terminationGracePeriodSeconds": 20});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    custom(uid, uid, spec)
}

fn asks(uid: &str, memory: &str) -> Pod {
    let mut c = container("c");
    c["resources"] = json!({"requests": {"memory": memory}});
    one(uid, json!({"containers": [c]}))
}

/// Phase, reason and message.
fn end(agent: &Running, uid: &str) -> [String; 3] {
    let status = agent.status(uid).unwrap_or_default();
    [&status.phase, &status.reason, &status.message].map(|s| s.clone().unwrap_or_default())
}

fn evicted(agent: &Running, uid: &str) -> bool {
    end(agent, uid)[..2] == ["Failed", "Evicted"]
}

fn pressure(agent: &Running) -> Vec<&'static str> {
    agent.agent.pressure.borrow().conditions.iter().map(|c| c.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn the_pod_that_takes_most_above_what_it_asked_for_goes_and_no_other() {
    let (node, meter) = node(&[hard(Signal::Memory, "100Mi")]);
    let pods = [pod("small", &["c"]), pod("big", &["c"]), asks("asks", "900Mi")];
    let agent = node.start_synced(&pods).await;
    for p in ["small", "big", "asks"] {
        agent.until_ready(p).await;
    }
    meter.set("small", Uses::memory(10 * MIB));
    meter.set("asks", Uses::memory(90 * MIB));
    pass(60 * SECOND).await;
    assert_eq!((pressure(&agent), meter.asked("pods")), (vec![], 0), "nobody is counted without need");
    agent.events();
    let began = Instant::now();
    meter.set("big", Uses::memory(850 * MIB));
    agent.until("it is evicted", || evicted(&agent, "big")).await;
    // 11 s at most: the next look, and what it takes to end.
    assert!(began.elapsed() < 15 * SECOND, "{:?}", began.elapsed());
    assert_eq!(end(&agent, "big"), ["Failed", "Evicted", MESSAGE]);
    let status = agent.status("big").unwrap();
    let first = serde_json::to_value(&status.conditions.as_ref().unwrap()[0]).unwrap();
    assert_eq!(
        [&first["type"], &first["status"], &first["reason"], &first["message"]],
        ["DisruptionTarget", "True", "TerminationByKubelet", MESSAGE]
    );
    assert_eq!(pressure(&agent), ["MemoryPressure"]);
    pass(3600 * SECOND).await;
    assert!(agent.is_ready("small") && agent.is_ready("asks"));
    let stops = node.fake.requests::<v1::StopContainerRequest>();
    assert_eq!(stops.iter().map(|s| s.timeout).collect::<Vec<_>>(), [2], "at once, as far as that goes");
    let events = agent.events();
    let of = |reason: &str| {
        let mine = events.iter().filter(|e| e.starts_with(&format!("{reason}: ")));
        mine.cloned().collect::<Vec<_>>()
    };
    assert_eq!(of("Evicted"), [format!("Evicted: {MESSAGE}")]);
    assert_eq!(of("EvictionThresholdMet"), ["EvictionThresholdMet: Attempting to reclaim memory"]);
    assert_eq!(
        of("NodeHasInsufficientMemory"),
        ["NodeHasInsufficientMemory: Node node status is now: NodeHasInsufficientMemory"]
    );
    assert_eq!(
        of("NodeHasSufficientMemory"),
        ["NodeHasSufficientMemory: Node node status is now: NodeHasSufficientMemory"]
    );
    let metrics = agent.metrics();
    assert!(metrics.contains("kubelet_evictions{eviction_signal=\"memory.available\"} 1\n"), "{metrics}");
    assert!(
        metrics
            .contains("kubelet_eviction_stats_age_seconds_count{eviction_signal=\"memory.available\"} 1\n")
    );
    agent.gone("big").await;
    agent.until_gone("big").await;
    node.assert_gone("big");
}

#[tokio::test(start_paused = true)]
async fn the_event_says_whose_containers_took_it() {
    let (node, meter) = node(&[hard(Signal::Memory, "100Mi")]);
    let agent = node.start_synced(&[pod("u", &["c"])]).await;
    agent.until_ready("u").await;
    let mut events = agent.agent.recorder.subscribe();
    meter.set("u", Uses::memory(950 * MIB));
    let event = loop {
        let event = events.recv().await.unwrap();
        if event.reason == "Evicted" {
            break event;
        }
    };
    let told: Vec<_> = event.annotations.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(
        told,
        [
            ("offending_containers", "c"),
            ("offending_containers_usage", "950Mi"),
            ("starved_resource", "memory")
        ]
    );
    agent.until("it has ended", || evicted(&agent, "u")).await;
}

#[tokio::test(start_paused = true)]
async fn memory_that_goes_fast_is_noticed_long_before_the_next_slow_look() {
    let (mut node, meter) = node(&[hard(Signal::Memory, "200Mi")]);
    node.settings.evict.net = 60 * SECOND;
    let agent = node.start_synced(&[pod("u", &["c"]), pod("other", &["c"])]).await;
    agent.until_ready("u").await;
    agent.until_ready("other").await;
    pass(61 * SECOND).await;
    meter.set("other", Uses::memory(10 * MIB));
    meter.grow("u", 100 * MIB);
    let began = Instant::now();
    agent.until("it is told to end", || node.count("StopContainer") == 1).await;
    // 790 MiB are gone after 7.9 s.
    let late =
        began.elapsed().checked_sub(Duration::from_millis(7900)).expect("not before the threshold is met");
    assert!(late < Duration::from_millis(200), "{late:?} late");
    agent.until("it has ended", || evicted(&agent, "u")).await;
    pass(3600 * SECOND).await;
    assert!(agent.is_ready("other"));
}

#[tokio::test(start_paused = true)]
async fn pods_go_one_at_a_time_and_only_as_many_as_it_takes() {
    let (node, meter) = node(&[hard(Signal::Memory, "100Mi")]);
    let names = ["a", "b", "c1", "d"];
    let agent = node.start_synced(&names.map(|n| pod(n, &["c"]))).await;
    for n in names {
        agent.until_ready(n).await;
    }
    for (n, mib) in names.iter().zip([230, 240, 250, 260]) {
        meter.set(n, Uses::memory(mib * MIB));
    }
    agent.until("the largest went", || evicted(&agent, "d")).await;
    pass(600 * SECOND).await;
    assert_eq!(names.map(|n| evicted(&agent, n)), [false, false, false, true]);
    // 720 MiB by now: 281 more, and two must go.
    meter.set("a", Uses::memory(511 * MIB));
    meter.set("b", Uses::memory(505 * MIB));
    agent.until("two more went", || evicted(&agent, "a")).await;
    pass(600 * SECOND).await;
    assert_eq!(names.map(|n| evicted(&agent, n)), [true, false, false, true], "one was enough");
}

#[tokio::test(start_paused = true)]
async fn a_soft_threshold_waits_and_gives_pods_time_and_no_clock_that_is_set_changes_that() {
    for jump in [0, 7 * 24 * 3600, -7 * 24 * 3600] {
        let (mut node, meter) = node(&[soft(Signal::Memory, "200Mi", 90)]);
        node.settings.evict.max_grace = 10 * SECOND;
        node.fake.script("c", Script::forever().ignores_term());
        let agent = node.start_synced(&[pod("u", &["c"])]).await;
        agent.until_ready("u").await;
        meter.set("u", Uses::memory(850 * MIB));
        agent.until("the node is short of memory", || !pressure(&agent).is_empty()).await;
        let began = Instant::now();
        pass(60 * SECOND).await;
        node.jump(jump);
        assert!(agent.is_ready("u"), "within the grace of the threshold");
        agent.until("it is told to end", || node.count("StopContainer") == 1).await;
        assert!((89..92).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        // The pod asks for 30 s and ignores the signal; it has no more than evictionMaxPodGracePeriod.
        agent.until("it is evicted", || evicted(&agent, "u")).await;
        assert!((99..103).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        let stops = node.fake.requests::<v1::StopContainerRequest>();
        assert_eq!(stops.iter().map(|s| s.timeout).collect::<Vec<_>>(), [10]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_shortage_that_passes_within_its_grace_costs_nobody() {
    let (node, meter) = node(&[soft(Signal::Memory, "200Mi", 90)]);
    let agent = node.start_synced(&[pod("u", &["c"])]).await;
    agent.until_ready("u").await;
    meter.set("u", Uses::memory(850 * MIB));
    agent.until("the node is short of memory", || !pressure(&agent).is_empty()).await;
    pass(60 * SECOND).await;
    meter.set("u", Uses::memory(100 * MIB));
    pass(200 * SECOND).await;
    assert_eq!(pressure(&agent), ["MemoryPressure"], "for the transition period");
    pass(200 * SECOND).await;
    assert_eq!(pressure(&agent), [""; 0]);
    assert!(agent.is_ready("u"));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_measured_evicts_nobody() {
    let (node, meter) = node(&[hard(Signal::Memory, "100Mi"), hard(Signal::NodeFs, "10%")]);
    let agent = node.start_synced(&[pod("u", &["c"])]).await;
    agent.until_ready("u").await;
    meter.set("u", Uses::memory(1000 * MIB));
    meter.fail(true);
    pass(3600 * SECOND).await;
    assert!(agent.is_ready("u") && pressure(&agent).is_empty());
    meter.fail(false);
    agent.until("it is evicted once it is known", || evicted(&agent, "u")).await;
}

#[tokio::test(start_paused = true)]
async fn pods_the_node_needs_are_never_evicted_and_what_never_ran_is_left_alone() {
    let (node, meter) = node(&[hard(Signal::Memory, "100Mi")]);
    let mut fixed = pod("static", &["c"]);
    let annotations = fixed.metadata.annotations.get_or_insert_default();
    annotations.insert("kubernetes.io/config.source".into(), "file".into());
    let critical = one("critical", json!({"priority": 2_000_000_000}));
    node.fake.script("never", Script::create_error("no"));
    let waits = pod("waits", &["never"]);
    let agent = node.start_synced(&[fixed, critical, waits]).await;
    agent.until_ready("static").await;
    agent.until_ready("critical").await;
    meter.set("static", Uses::memory(600 * MIB));
    meter.set("critical", Uses::memory(390 * MIB));
    agent.until("the node is short of memory", || !pressure(&agent).is_empty()).await;
    pass(600 * SECOND).await;
    assert!(agent.is_ready("static") && agent.is_ready("critical"));
    assert!(!evicted(&agent, "waits"), "{:?}", end(&agent, "waits"));
    assert!(agent.events().iter().any(|e| e.starts_with("EvictionThresholdMet")));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_cannot_be_ended_does_not_keep_the_node_from_being_saved() {
    let (node, meter) = node(&[hard(Signal::Memory, "100Mi")]);
    node.fake.script("held", Script::forever().unkillable());
    let agent = node.start_synced(&[pod("stuck", &["held"]), pod("next", &["c"])]).await;
    agent.until_ready("stuck").await;
    agent.until_ready("next").await;
    meter.set("stuck", Uses::memory(500 * MIB));
    meter.set("next", Uses::memory(450 * MIB));
    let began = Instant::now();
    agent.until("the next one is evicted", || evicted(&agent, "next")).await;
    let waited = began.elapsed();
    assert!(waited > 35 * SECOND && waited < 90 * SECOND, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn an_eviction_outlives_the_agent_at_whatever_moment_it_is_killed() {
    for after in [0, 1, 500, 1500, 3000, 60_000] {
        let (node, meter) = node(&[hard(Signal::Memory, "100Mi")]);
        node.fake.script("c", Script::forever().on_term(143, 2 * SECOND));
        let pods = [pod("u", &["c"]), pod("other", &["c"])];
        let agent = node.start_synced(&pods).await;
        agent.until_ready("u").await;
        agent.until_ready("other").await;
        meter.set("u", Uses::memory(950 * MIB));
        agent.until("it is told to end", || node.count("StopContainer") > 0).await;
        pass(Duration::from_millis(after)).await;
        agent.kill().await;
        // By the next agent's start there is memory enough.
        meter.set("u", Uses::memory(MIB));
        let agent = node.start_synced(&pods).await;
        agent.until("it ends as evicted", || evicted(&agent, "u")).await;
        assert!(end(&agent, "u")[2].starts_with("The node was low on resource: memory. "), "{after}");
        pass(3600 * SECOND).await;
        assert!(evicted(&agent, "u") && agent.is_ready("other"), "{after}");
        assert_eq!(node.count("StartContainer"), 2, "{after}: neither was started again");
        agent.gone("u").await;
        agent.until_gone("u").await;
        node.assert_gone("u");
        // The same pod, made anew, is not evicted for what its namesake did.
        agent.put(&pods[0]).await;
        agent.until_ready("u").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_makes_no_sense_evicts_nobody() {
    let (node, _meter) = node(&[]);
    let pods = [pod("u", &["c"])];
    let agent = node.start_synced(&pods).await;
    agent.until_ready("u").await;
    agent.kill().await;
    let whole = json!({"uid": "other", "why": {"message": "m", "disrupted": true}, "grace_seconds": 1});
    for text in ["", "{\"uid\":\"u\"", &whole.to_string()] {
        std::fs::write(node.path("root/pods/u/evicted"), text).unwrap();
        let agent = node.start_synced(&pods).await;
        agent.until_ready("u").await;
        pass(60 * SECOND).await;
        assert!(agent.is_ready("u"), "{text:?}");
        agent.kill().await;
    }
    assert_eq!(node.count("StartContainer"), 1);
}

#[tokio::test(start_paused = true)]
async fn under_memory_pressure_who_asks_for_nothing_stays_out() {
    let (node, meter) = node(&[hard(Signal::Memory, "100Mi")]);
    let agent = node.start_synced(&[one("critical", json!({"priority": 2_000_000_000}))]).await;
    agent.until_ready("critical").await;
    meter.set("critical", Uses::memory(950 * MIB));
    agent.until("the node is short of memory", || !pressure(&agent).is_empty()).await;
    let tolerates =
        json!({"tolerations": [{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]});
    let other = json!({"tolerations": [{"key": "node.kubernetes.io/disk-pressure", "operator": "Exists"}]});
    for p in [
        pod("best", &["c"]),
        one("other", other),
        one("tolerates", tolerates),
        asks("asks", "1Mi"),
        one("needed", json!({"priority": 2_000_000_000})),
    ] {
        agent.put(&p).await;
    }
    let refused = ["Failed", "Evicted", "Pod was rejected: The node had condition: [MemoryPressure]. "]
        .map(String::from);
    for uid in ["best", "other"] {
        agent.until("it is refused", || agent.phase(uid) == "Failed").await;
        assert_eq!(end(&agent, uid), refused);
    }
    agent.until("the critical one runs", || agent.is_ready("needed")).await;
    // The others were taken on, and may have to go again: they are what the node can spare.
    for uid in ["tolerates", "asks"] {
        agent.until("it was taken on", || !agent.phase(uid).is_empty()).await;
        assert_ne!(end(&agent, uid), refused);
    }
}

#[tokio::test(start_paused = true)]
async fn under_other_pressure_only_critical_pods_come_in() {
    for (signal, name) in [(Signal::NodeFs, "DiskPressure"), (Signal::Pid, "PIDPressure")] {
        let (node, meter) = node(&[hard(signal, "100")]);
        let agent = node.start_synced(&[]).await;
        meter.low(signal, true);
        agent.until("the node is short", || pressure(&agent) == [name]).await;
        agent.put(&asks("asks", "1Mi")).await;
        agent.put(&one("needed", json!({"priority": 2_000_000_000}))).await;
        agent.until_ready("needed").await;
        let message = format!("Pod was rejected: The node had condition: [{name}]. ");
        assert_eq!(end(&agent, "asks"), ["Failed", "Evicted", &message]);
        meter.low(signal, false);
        agent.until("it is over", || pressure(&agent).is_empty()).await;
        agent.put(&asks("later", "1Mi")).await;
        agent.until_ready("later").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_idle_and_has_no_thresholds_is_not_measured() {
    let (node, meter) = node(&[]);
    let agent = node.start_synced(&[pod("u", &["c"])]).await;
    agent.until_ready("u").await;
    pass(24 * 3600 * SECOND).await;
    assert_eq!(["memory", "node", "pods"].map(|what| meter.asked(what)), [0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_condition_begins_with_what_is_measured_and_not_with_what_was() {
    let (node, meter) = node(&[hard(Signal::Memory, "100Mi")]);
    let pods = [one("u", json!({"priority": 2_000_000_000}))];
    let agent = node.start_synced(&pods).await;
    agent.until_ready("u").await;
    meter.set("u", Uses::memory(950 * MIB));
    agent.until("the node is short of memory", || pressure(&agent) == ["MemoryPressure"]).await;
    agent.kill().await;
    meter.set("u", Uses::memory(MIB));
    let agent = node.start_synced(&pods).await;
    agent.until_ready("u").await;
    pass(60 * SECOND).await;
    assert_eq!(pressure(&agent), [""; 0], "as upstream, the transition period begins anew");
}
