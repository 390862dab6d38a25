//! Many pods at once.

use crate::support::{Node, cpu_time, pod};
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn a_thousand_pods_start_from_nothing_and_disappear_again() {
    let mut node = Node::new();
    node.settings.node.pods = 1000;
    node.witness.stop();
    let agent = node.start_synced(&[]).await;
    let before = cpu_time();
    for n in 0..1000 {
        agent.put(&pod(&format!("u{n}"), &["main"])).await;
    }
    let ready = || (0..1000).all(|n| agent.is_ready(&format!("u{n}")));
    agent.until("all are ready", ready).await;
    assert_eq!(node.counts(), (1000, 1000));
    assert_eq!(node.count("CreateContainer"), 1000, "none was made twice");
    let started = cpu_time();
    for n in 0..1000 {
        agent.gone(&format!("u{n}")).await;
    }
    agent.until("all are gone", || agent.agent.directory.all().is_empty()).await;
    assert_eq!(node.counts(), (0, 0));
    // Thousands of pods: so many seconds for all are so many milliseconds for each.
    let each = |from: Duration, to: Duration| (to - from).as_secs_f64();
    println!(
        "1000 pods, the fake runtime included: {:.2} ms of CPU a pod to start, {:.2} to end",
        each(before, started),
        each(started, cpu_time())
    );
}

#[tokio::test(start_paused = true)]
async fn no_more_pods_than_max_pods_are_taken_on() {
    let mut node = Node::new();
    node.settings.node.pods = 3;
    let agent = node.start_synced(&[]).await;
    for n in 0..5 {
        agent.put(&pod(&format!("u{n}"), &["main"])).await;
    }
    agent.until("three are ready", || (0..3).all(|n| agent.is_ready(&format!("u{n}")))).await;
    agent.until("two are refused", || (3..5).all(|n| agent.phase(&format!("u{n}")) == "Failed")).await;
    let status = agent.status("u3").unwrap();
    assert_eq!(status.reason.as_deref(), Some("OutOfpods"));
    assert_eq!(node.counts(), (3, 3));
    agent.gone("u0").await;
    agent.until_gone("u0").await;
    agent.put(&pod("u5", &["main"])).await;
    agent.until_ready("u5").await;
    node.witness.assert_never_two();
}
