//! A wall clock that is set, an hour forward or back, under the runtime and the agent alike.

use crate::support::{Node, SECOND, pass, pod};
use cri::Code;
use cri::fake::{Fault, Script};
use std::time::Duration;
use tokio::time::Instant;

const HOUR: i64 = 3600;

#[tokio::test(start_paused = true)]
async fn what_was_made_after_the_clock_was_set_is_the_newest() {
    for jump in [-HOUR, HOUR] {
        let node = Node::new();
        let agent = node.start_synced(&[pod("u", &["a", "b"])]).await;
        agent.until_ready("u").await;
        node.jump(jump);
        let counts = || {
            let status = agent.status("u").unwrap();
            status.container_statuses.iter().flatten().map(|c| c.restart_count).collect::<Vec<_>>()
        };
        let a = node.instances("u", "a").pop().unwrap();
        node.fake.exit(&a.id, 1);
        agent.until("a runs again", || agent.is_ready("u") && counts() == [1, 0]).await;
        let sandbox = node.fake.sandboxes().pop().unwrap();
        node.fake.kill_sandbox(&sandbox.id);
        agent.until("both run again", || agent.is_ready("u") && counts() == [2, 1]).await;
        pass(Duration::from_secs(600)).await;
        assert_eq!(counts(), [2, 1], "by {jump} s");
        assert_eq!((node.count("RunPodSandbox"), node.running().len()), (2, 2), "by {jump} s");
        // Nor is a later agent mistaken.
        agent.kill().await;
        let agent = node.start_synced(&[pod("u", &["a", "b"])]).await;
        agent.until_ready("u").await;
        pass(Duration::from_secs(600)).await;
        assert_eq!((node.count("RunPodSandbox"), node.running().len()), (2, 2), "by {jump} s");
        node.witness.assert_never_two();
        agent.gone("u").await;
        agent.until_gone("u").await;
        node.assert_gone("u");
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_freezes_no_retry_and_no_removal() {
    let node = Node::new();
    let failing = node.fake.fault(Fault::fail("RunPodSandbox", Code::Unknown, "no"));
    let agent = node.start_synced(&[pod("u", &["a"])]).await;
    agent.until("it failed again and again", || node.count("RunPodSandbox") == 5).await;
    pass(SECOND).await;
    node.jump(-HOUR);
    failing.release();
    let began = Instant::now();
    agent.until_ready("u").await;
    assert!(began.elapsed() < 10 * SECOND, "{:?}", began.elapsed());
    let failing = node.fake.fault(Fault::fail("StopPodSandbox", Code::Unknown, "no"));
    agent.gone("u").await;
    agent.until("it failed again and again", || node.count("StopPodSandbox") == 5).await;
    pass(SECOND).await;
    node.jump(-HOUR);
    failing.release();
    let began = Instant::now();
    agent.until_gone("u").await;
    assert!(began.elapsed() < 10 * SECOND, "{:?}", began.elapsed());
    node.assert_gone("u");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_does_not_lengthen_a_crash_back_off() {
    let node = Node::new();
    node.fake.script("main", Script::exits(1, SECOND));
    let agent = node.start_synced(&[pod("u", &["main"])]).await;
    agent.until("it ran four times", || node.count("StartContainer") == 4).await;
    let began = Instant::now();
    // It has ended, and waits for 40 s.
    pass(5 * SECOND).await;
    node.jump(-HOUR);
    agent.until("it runs again", || node.count("StartContainer") == 5).await;
    assert!(began.elapsed() < 42 * SECOND, "{:?}", began.elapsed());
}
