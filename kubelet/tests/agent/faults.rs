//! A runtime that fails, hangs, forgets or restarts.

use crate::support::{Node, Running, SECOND, changed, pass, pod};
use cri::Code;
use cri::fake::{FakeRuntime, Fault, Profile, Script};
use std::time::Duration;
use tokio::time::Instant;

/// Every call an agent makes for a pod from its start to its end.
const CALLS: [&str; 13] = [
    "RunPodSandbox",
    "PodSandboxStatus",
    "ImageStatus",
    "CreateContainer",
    "StartContainer",
    "ContainerStatus",
    "ListPodSandbox",
    "ListContainers",
    "StopContainer",
    "StopPodSandbox",
    "RemoveContainer",
    "RemovePodSandbox",
    "Version",
];

/// Starts a pod of two containers, restarts one, ends the pod; each must come true.
async fn whole_life(node: &Node, agent: &Running) {
    agent.put(&pod("u", &["a", "b"])).await;
    agent.until("two run", || node.running().len() == 2).await;
    agent.until_ready("u").await;
    let a = node.instances("u", "a").pop().unwrap().id;
    node.fake.exit(&a, 1);
    agent.until("a runs again", || node.running().len() == 2 && !node.running().contains(&a)).await;
    agent.until_ready("u").await;
    agent.gone("u").await;
    agent.until_gone("u").await;
    node.assert_gone("u");
    assert_eq!(node.counts(), (0, 0));
    node.witness.assert_never_two();
}

#[tokio::test(start_paused = true)]
async fn with_the_net_cut_a_pod_lives_and_ends_by_events_and_nothing_waits_for_a_timer() {
    let node = Node::new();
    let agent = node.start_synced(&[]).await;
    let began = Instant::now();
    whole_life(&node, &agent).await;
    assert!(began.elapsed() < SECOND / 10, "{:?}", began.elapsed());
    assert_eq!(node.count("RunPodSandbox"), 1);
    assert_eq!(node.count("CreateContainer"), 3);
}

#[tokio::test(start_paused = true)]
async fn a_runtime_without_events_is_polled() {
    let node = Node::with(FakeRuntime::builder().any_image().profile(Profile::Containerd16));
    let agent = node.start_synced(&[]).await;
    let began = Instant::now();
    whole_life(&node, &agent).await;
    // One crash had to be found by the poll.
    assert!(began.elapsed() <= 2 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn every_runtime_will_do() {
    for profile in [Profile::Containerd17, Profile::CriO130, Profile::Everything] {
        let node = Node::with(FakeRuntime::builder().any_image().profile(profile));
        let agent = node.start_synced(&[]).await;
        whole_life(&node, &agent).await;
    }
}

/// The pod's container ends, its event is lost, and it runs again after so long.
async fn an_end_that_no_event_tells(node: &Node, agent: &Running) -> Duration {
    node.fake.lose_events(1);
    let began = Instant::now();
    node.fake.exit(&node.running()[0], 1);
    agent.until("it runs again", || node.instances("u", "a").len() == 2 && node.running().len() == 1).await;
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn an_event_that_was_lost_is_made_up_for_by_the_net() {
    let mut node = Node::new();
    node.settings.pleg.net = 60 * SECOND;
    let agent = node.start_synced(&[pod("u", &["a"])]).await;
    agent.until_ready("u").await;
    let took = an_end_that_no_event_tells(&node, &agent).await;
    assert!(took <= 61 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn events_that_go_to_an_agent_that_is_gone_are_made_up_for_until_the_first_one_comes() {
    let node = Node::with(FakeRuntime::builder().any_image().profile(Profile::Containerd17));
    let agent = node.start_synced(&[pod("u", &["a"])]).await;
    agent.until_ready("u").await;
    agent.kill().await;
    let agent = node.start_synced(&[pod("u", &["a"])]).await;
    agent.until_ready("u").await;
    // Its predecessor gets this one.
    let took = an_end_that_no_event_tells(&node, &agent).await;
    assert!(took <= 2 * SECOND, "{took:?}");
    // The restart was seen by events: an idle node is asked for nothing any more.
    pass(2 * SECOND).await;
    let listed = node.count("ListContainers");
    pass(3600 * SECOND).await;
    assert_eq!(node.count("ListContainers"), listed);
}

#[tokio::test(start_paused = true)]
async fn after_a_broken_event_stream_everything_is_looked_at() {
    let node = Node::new();
    let agent = node.start_synced(&[pod("u", &["a"])]).await;
    agent.until_ready("u").await;
    node.fake.drop_event_streams();
    // Nobody listens now.
    node.fake.exit(&node.running()[0], 1);
    let began = Instant::now();
    agent.until("it runs again", || node.running().len() == 1).await;
    assert!(began.elapsed() <= 2 * SECOND);
    agent.until("somebody listens", || node.fake.event_streams() == 1).await;
    // And from now on events do.
    let listed = node.count("ListContainers");
    pass(3600 * SECOND).await;
    assert!(node.count("ListContainers") <= listed + 2, "an idle node asks for nothing");
    node.fake.exit(&node.running()[0], 1);
    agent.until("it runs again", || node.running().len() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn what_happened_while_the_runtime_was_away_is_seen_when_it_is_back() {
    let node = Node::new();
    let agent = node.start_synced(&[pod("u", &["a"]), pod("v", &["a"])]).await;
    agent.until("both are ready", || agent.is_ready("u") && agent.is_ready("v")).await;
    node.fake.go_down();
    node.fake.exit(&node.instances("u", "a")[0].id, 1);
    agent.gone("v").await;
    agent.put(&pod("w", &["a"])).await;
    let before = node.fake.calls().len();
    pass(600 * SECOND).await;
    assert_eq!(node.fake.calls().len(), before, "nobody is reached");
    node.fake.come_back();
    let began = Instant::now();
    agent.until_gone("v").await;
    agent.until("w is there and u again", || agent.is_ready("w") && node.running().len() == 2).await;
    assert!(began.elapsed() <= 15 * SECOND, "{:?}", began.elapsed());
    assert_eq!(node.instances("u", "a").len(), 2);
    node.assert_whole("w", &["a"]);
    node.witness.assert_never_two();
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_restarts_at_any_call_ends_with_one_sandbox_and_one_instance_of_each() {
    let calls = {
        let node = Node::new();
        let agent = node.start_synced(&[pod("u", &["a", "b"])]).await;
        let before = node.fake.calls().len();
        agent.until_ready("u").await;
        node.fake.calls().len() - before
    };
    assert!(calls > 8, "{calls}");
    for n in 0..calls {
        let node = Node::new();
        let agent = node.start_synced(&[]).await;
        let from = node.fake.calls().len();
        agent.put(&pod("u", &["a", "b"])).await;
        while node.fake.calls().len() <= from + n {
            changed(&node.fake).await;
        }
        node.fake.restart();
        agent
            .until(&format!("whole in spite of a restart at call {n}"), || {
                agent.is_ready("u") && node.counts() == (1, 2) && node.running().len() == 2
            })
            .await;
        node.assert_whole("u", &["a", "b"]);
        agent.gone("u").await;
        agent.until_gone("u").await;
        node.assert_gone("u");
        node.witness.assert_never_two();
    }
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_refuses_everything_is_asked_patiently() {
    let node = Node::new();
    let agent = node.start_synced(&[pod("old", &["a"])]).await;
    agent.until_ready("old").await;
    node.fake.refuse_all(true);
    node.fake.exit(&node.running()[0], 1);
    agent.put(&pod("new", &["a"])).await;
    let before = node.fake.calls().len();
    pass(600 * SECOND).await;
    let asked = node.fake.calls().len() - before;
    assert!(asked < 3000, "{asked} calls in ten minutes");
    node.fake.refuse_all(false);
    let began = Instant::now();
    agent.until("both run", || node.running().len() == 2 && agent.is_ready("new")).await;
    assert!(began.elapsed() <= 20 * SECOND, "{:?}", began.elapsed());
    node.assert_whole("new", &["a"]);
    node.witness.assert_never_two();
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_or_loses_its_answer_a_few_times_does_no_harm() {
    let faults: [fn(&'static str) -> Fault; 3] = [
        |call| Fault::fail(call, Code::Unavailable, "transport is closing"),
        |call| Fault::fail(call, Code::Unknown, "no luck"),
        |call| Fault::lose_answer(call),
    ];
    for call in &CALLS[..12] {
        for (kind, fault) in faults.iter().enumerate() {
            for times in [1, 3] {
                let node = Node::new();
                let agent = node.start_synced(&[]).await;
                let handle = node.fake.fault(fault(call).times(times));
                agent.put(&pod("u", &["a", "b"])).await;
                let what = format!("whole in spite of {call}, fault {kind}, {times} times");
                agent.until(&what, || agent.is_ready("u") && node.counts() == (1, 2)).await;
                node.assert_whole("u", &["a", "b"]);
                agent.gone("u").await;
                agent.until_gone("u").await;
                node.assert_gone("u");
                assert!(handle.hits() > 0, "{call} was not called");
                let calls = node.fake.calls().len();
                assert!(calls < 200, "{what}: {calls} calls");
                node.witness.assert_never_two();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_always_fails_is_repeated_patiently_and_works_once_it_can() {
    for call in &CALLS[..12] {
        for code in [Code::Unknown, Code::Unavailable] {
            let node = Node::new();
            let agent = node.start_synced(&[]).await;
            let handle = node.fake.fault(Fault::fail(call, code, "no luck"));
            agent.put(&pod("u", &["a", "b"])).await;
            pass(300 * SECOND).await;
            agent.gone("u").await;
            pass(300 * SECOND).await;
            let calls = node.fake.calls().len();
            assert!(calls < 1500, "{call}, {code}: {calls} calls in ten minutes");
            assert!(handle.hits() > 0, "{call}");
            handle.release();
            agent.until_gone("u").await;
            node.assert_gone("u");
            node.witness.assert_never_two();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_without_a_trace_is_repeated_patiently() {
    let node = Node::new();
    let agent = node.start_synced(&[]).await;
    let handle = node.fake.fault(Fault::fail("StartContainer", Code::Unknown, "no luck"));
    agent.put(&pod("u", &["a"])).await;
    pass(600 * SECOND).await;
    assert!((20..100).contains(&handle.hits()), "{} tries in ten minutes", handle.hits());
    assert!(node.counts().1 <= 2, "what never ran is not kept: {:?}", node.counts());
    handle.release();
    agent.until("it runs", || node.running().len() == 1 && node.counts() == (1, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_for_one_pod_delays_no_other() {
    for call in ["RunPodSandbox", "PodSandboxStatus", "CreateContainer", "StartContainer", "ContainerStatus"]
    {
        let node = Node::new();
        let agent = node.start_synced(&[]).await;
        let hung = node.fake.fault(Fault::hang(call).object("u0"));
        let began = Instant::now();
        for n in 0..4 {
            agent.put(&pod(&format!("u{n}"), &["a"])).await;
        }
        agent.until("the others are ready", || (1..4).all(|n| agent.is_ready(&format!("u{n}")))).await;
        assert!(began.elapsed() < SECOND / 10, "{call}: {:?}", began.elapsed());
        agent.until("it hangs", || hung.hits() == 1).await;
        agent.gone("u1").await;
        agent.until_gone("u1").await;
        assert!(!agent.is_ready("u0"));
        hung.release();
        agent.until_ready("u0").await;
        node.assert_whole("u0", &["a"]);
        node.witness.assert_never_two();
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_past_its_deadline_is_repeated() {
    for call in ["RunPodSandbox", "CreateContainer", "StartContainer", "ContainerStatus", "ListContainers"] {
        for fault in [Fault::hang(call), Fault::hang_answer(call)] {
            let node = Node::new();
            let agent = node.start_synced(&[]).await;
            let hung = node.fake.fault(fault.once());
            agent.put(&pod("u", &["a"])).await;
            agent.until("it is whole", || agent.is_ready("u") && node.counts() == (1, 1)).await;
            assert_eq!(hung.hits(), 1);
            node.assert_whole("u", &["a"]);
            node.witness.assert_never_two();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_cannot_be_killed_keeps_its_pod_but_no_other() {
    let node = Node::new();
    node.fake.script("u/a", Script::forever().unkillable());
    let agent = node.start_synced(&[pod("u", &["a"]), pod("v", &["a"])]).await;
    agent.until("both are ready", || agent.is_ready("u") && agent.is_ready("v")).await;
    let stuck = node.instances("u", "a")[0].id.clone();
    agent.gone("u").await;
    agent.gone("v").await;
    agent.until_gone("v").await;
    pass(Duration::from_secs(3600)).await;
    assert!(agent.knows("u"));
    assert!(node.count("StopContainer") < 40, "{}", node.count("StopContainer"));
    node.fake.exit(&stuck, 137);
    agent.until_gone("u").await;
    node.assert_gone("u");
}

#[tokio::test(start_paused = true)]
async fn a_container_the_runtime_loses_sight_of_is_ended_and_made_anew() {
    let node = Node::new();
    let agent = node.start_synced(&[pod("u", &["a"])]).await;
    agent.until_ready("u").await;
    let lost = node.running()[0].clone();
    node.fake.lose_sight(&lost);
    // No event tells of it; a broken stream makes the agent look.
    node.fake.drop_event_streams();
    agent.until("another runs", || node.running().len() == 1 && node.running()[0] != lost).await;
    assert!(node.fake.changes().iter().any(|c| c.method == "StopContainer" && c.is_about(&lost)));
}
