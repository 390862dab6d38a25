//! Crash back-off and pull back-off, to the millisecond.

use crate::support::{Node, Running, SECOND, custom, pass, pod};
use cri::fake::{FakeImage, FakeRuntime, Pull, Script};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

/// Seconds between the calls of `method`, which must be whole but for a timer's precision.
fn gaps(node: &Node, method: &str) -> Vec<u64> {
    let at: Vec<Instant> = node.fake.calls().iter().filter(|c| c.method == method).map(|c| c.at).collect();
    let gap = |pair: &[Instant]| {
        let gap = pair[1] - pair[0];
        assert!(gap.subsec_millis() < 20, "{gap:?} between calls of {method}");
        gap.as_secs()
    };
    at.windows(2).map(gap).collect()
}

async fn until_calls(node: &Node, agent: &Running, method: &str, count: usize) {
    agent.until(&format!("{count} calls of {method}"), || node.count(method) >= count).await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_crashes_waits_0_10_20_40_up_to_300_seconds() {
    let node = Node::new();
    node.fake.script("main", Script::exits(1, SECOND));
    let agent = node.start_synced(&[pod("u", &["main"])]).await;
    until_calls(&node, &agent, "StartContainer", 10).await;
    // Each ran for a second before it waited.
    assert_eq!(gaps(&node, "StartContainer"), [1, 11, 21, 41, 81, 161, 301, 301, 301]);
    agent.until("it waits", || agent.state("u", "main")["waiting"]["reason"] == "CrashLoopBackOff").await;
    let message = "back-off 5m0s restarting failed container=main pod=u_ns(u)";
    assert_eq!(agent.state("u", "main")["waiting"]["message"], message);
    node.witness.assert_never_two();
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_restarts_keeps_the_crash_back_off() {
    let node = Node::new();
    node.fake.script("main", Script::exits(1, SECOND));
    let mut agent = node.start_synced(&[pod("u", &["main"])]).await;
    for count in 2..9 {
        until_calls(&node, &agent, "StartContainer", count).await;
        // Long enough for the container to have ended, and for the wait to have begun.
        pass(3 * SECOND).await;
        agent.kill().await;
        pass(2 * SECOND).await;
        agent = node.start_synced(&[pod("u", &["main"])]).await;
    }
    until_calls(&node, &agent, "StartContainer", 9).await;
    assert_eq!(gaps(&node, "StartContainer"), [1, 11, 21, 41, 81, 161, 301, 301]);
}

#[tokio::test(start_paused = true)]
async fn a_configured_cap_bounds_the_crash_back_off() {
    let mut node = Node::new();
    node.settings.backoff_cap = Duration::from_secs(15);
    node.fake.script("main", Script::exits(0, SECOND));
    let agent = node.start_synced(&[pod("u", &["main"])]).await;
    until_calls(&node, &agent, "StartContainer", 6).await;
    assert_eq!(gaps(&node, "StartContainer"), [1, 11, 16, 16, 16]);
}

#[tokio::test(start_paused = true)]
async fn one_container_that_crashes_leaves_its_neighbour_running() {
    let node = Node::new();
    node.fake.script("bad", Script::exits(1, SECOND));
    let agent = node.start_synced(&[pod("u", &["good", "bad"])]).await;
    pass(Duration::from_secs(1800)).await;
    assert_eq!(node.instances("u", "good").len(), 1);
    assert!(node.instances("u", "bad").len() <= 2, "one dead instance is kept");
    assert!(agent.state("u", "good")["running"].is_object());
    assert_eq!(node.count("RunPodSandbox"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_fails_waits_10_20_40_up_to_300_seconds_and_then_works() {
    let node = Node::with(FakeRuntime::builder());
    node.fake.on_pull("reg.test/app:1", Pull::fails("no such host"));
    let agent = node.start_synced(&[pod("u", &["main"])]).await;
    until_calls(&node, &agent, "PullImage", 8).await;
    assert_eq!(gaps(&node, "PullImage"), [10, 20, 40, 80, 160, 300, 300]);
    let waits = || agent.state("u", "main")["waiting"]["reason"] == "ImagePullBackOff";
    agent.until("it waits", waits).await;
    node.fake.on_pull("reg.test/app:1", Pull::gives(FakeImage::new("reg.test/app:1")));
    agent.until_ready("u").await;
    assert_eq!(node.count("PullImage"), 9);
    assert_eq!(node.instances("u", "main").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_leaves_an_ended_instance_that_backs_off_as_a_crash_does() {
    let node = Node::new();
    node.fake.script("main", Script::start_error("exec: no such file"));
    let agent = node.start_synced(&[pod("u", &["main"])]).await;
    until_calls(&node, &agent, "StartContainer", 5).await;
    assert_eq!(gaps(&node, "StartContainer"), [0, 10, 20, 40]);
}

#[tokio::test(start_paused = true)]
async fn what_ended_for_good_is_not_shown_as_waiting() {
    let node = Node::new();
    node.fake.script("bad", Script::start_error("exec: no such file"));
    let spec = json!({"restartPolicy": "Never", "containers": [
        crate::support::container("good"), crate::support::container("bad")]});
    let agent = node.start_synced(&[custom("u", "u", spec)]).await;
    agent.until("good runs", || agent.state("u", "good")["running"].is_object()).await;
    pass(60 * SECOND).await;
    let state = agent.state("u", "bad");
    assert_eq!(
        (&state["terminated"]["exitCode"], &state["terminated"]["reason"]),
        (&json!(128), &json!("StartError"))
    );
}

#[tokio::test(start_paused = true)]
async fn another_image_does_not_wait_out_the_back_off_of_the_one_before() {
    let node = Node::with(FakeRuntime::builder());
    node.fake.on_pull("reg.test/app:1", Pull::fails("no such host"));
    node.fake.on_pull("reg.test/app:2", Pull::gives(FakeImage::new("reg.test/app:2")));
    node.fake.on_pull("reg.test/app:3", Pull::gives(FakeImage::new("reg.test/app:3")));
    let with_image = |n: u32| {
        let mut p = pod("u", &["main"]);
        p.spec.as_mut().unwrap().containers[0].image = Some(format!("reg.test/app:{n}"));
        p
    };
    let agent = node.start_synced(&[with_image(1)]).await;
    until_calls(&node, &agent, "PullImage", 5).await;
    agent.until("it waits", || waits(&agent, "ImagePullBackOff")).await;
    node.fake.script("main", Script::exits(1, SECOND));
    agent.put(&with_image(2)).await;
    let began = Instant::now();
    until_calls(&node, &agent, "StartContainer", 1).await;
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    until_calls(&node, &agent, "StartContainer", 5).await;
    agent.until("it waits", || waits(&agent, "CrashLoopBackOff")).await;
    node.fake.script("main", Script::forever());
    agent.put(&with_image(3)).await;
    let began = Instant::now();
    agent.until_ready("u").await;
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
}

/// The container `main` of the pod `u` waits for `reason`.
fn waits(agent: &Running, reason: &str) -> bool {
    agent.state("u", "main")["waiting"]["reason"] == reason
}
