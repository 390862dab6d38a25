//! `spec.activeDeadlineSeconds`: pods that may run only so long.

use crate::support::{Node, Running, SECOND, container, custom, pass};
use cri::fake::{ExecAnswer, Script};
use cri::v1;
use kubelet::api::Pod;
use serde_json::json;
use tokio::time::Instant;

const MESSAGE: &str = "Pod was active on the node longer than the specified deadline";

fn limited(uid: &str, seconds: i64, restart_policy: &str) -> Pod {
    let spec = json!({"containers": [container("c")], "activeDeadlineSeconds": seconds,
        "restartPolicy": restart_policy, "terminationGracePeriodSeconds": 7});
    custom(uid, uid, spec)
}

/// Phase and reason.
fn end(agent: &Running, uid: &str) -> (String, String) {
    (agent.phase(uid), agent.status(uid).and_then(|s| s.reason.clone()).unwrap_or_default())
}

fn exceeded() -> (String, String) {
    ("Failed".to_owned(), "DeadlineExceeded".to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_time_is_over_is_ended_and_failed() {
    let node = Node::new();
    node.fake.script("c", Script::forever().on_term(0, SECOND));
    let agent = node.start_synced(&[limited("u1", 100, "Always")]).await;
    agent.until_ready("u1").await;
    let began = Instant::now();
    agent.events();
    agent.until("it is told", || !agent.is_ready("u1")).await;
    assert_eq!(
        end(&agent, "u1"),
        ("Running".to_owned(), String::new()),
        "as upstream, the reason comes last"
    );
    agent.until("it has failed", || agent.phase("u1") == "Failed").await;
    assert!((99..103).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(end(&agent, "u1"), exceeded());
    assert_eq!(agent.status("u1").unwrap().message.as_deref(), Some(MESSAGE));
    pass(3600 * SECOND).await;
    let told = agent.events().iter().filter(|e| **e == format!("DeadlineExceeded: {MESSAGE}")).count();
    assert_eq!((told, node.count("StartContainer")), (1, 1));
    let stops = node.fake.requests::<v1::StopContainerRequest>();
    assert_eq!(stops.iter().map(|s| s.timeout).collect::<Vec<_>>(), [7]);
    agent.gone("u1").await;
    agent.until_gone("u1").await;
    node.assert_gone("u1");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_counts_from_the_pods_start_whatever_agents_came_and_went() {
    let node = Node::new();
    node.fake.script("c", Script::forever().on_term(0, SECOND));
    let pods = [limited("u1", 100, "Always")];
    let began = Instant::now();
    let mut agent = node.start_synced(&pods).await;
    agent.until_ready("u1").await;
    for _ in 0..3 {
        pass(25 * SECOND).await;
        agent.kill().await;
        agent = node.start_synced(&pods).await;
        agent.until_ready("u1").await;
    }
    agent.until("it has failed", || agent.phase("u1") == "Failed").await;
    assert!((99..105).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(end(&agent, "u1"), exceeded());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_overran_stays_failed_when_the_agent_restarts() {
    for policy in ["Always", "OnFailure", "Never"] {
        let node = Node::new();
        node.fake.script("c", Script::forever().on_term(0, SECOND));
        let pods = [limited("u1", 100, policy)];
        let agent = node.start_synced(&pods).await;
        agent.until("it has failed", || end(&agent, "u1") == exceeded()).await;
        agent.kill().await;
        pass(50 * SECOND).await;
        let agent = node.start_synced(&pods).await;
        agent.until("it has failed again", || !agent.phase("u1").is_empty()).await;
        pass(600 * SECOND).await;
        assert_eq!(end(&agent, "u1"), exceeded(), "{policy}");
        assert_eq!(node.count("StartContainer"), 1, "{policy}");
        let events = agent.events();
        assert!(!events.iter().any(|e| e.starts_with("DeadlineExceeded")), "told twice: {events:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_passes_while_no_agent_runs_is_kept_by_the_next() {
    let node = Node::new();
    node.fake.script("c", Script::forever().on_term(0, SECOND));
    let pods = [limited("u1", 100, "Always")];
    let agent = node.start_synced(&pods).await;
    agent.until_ready("u1").await;
    agent.kill().await;
    pass(1000 * SECOND).await;
    assert_eq!(node.running().len(), 1);
    let agent = node.start_synced(&pods).await;
    agent.until("it has failed", || end(&agent, "u1") == exceeded()).await;
    assert_eq!((node.running().len(), node.count("StartContainer")), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn what_ended_in_time_ended_by_itself() {
    let node = Node::new();
    node.fake.script("c", Script::exits(0, 50 * SECOND));
    let pods = [limited("u1", 100, "Never")];
    let agent = node.start_synced(&pods).await;
    agent.until("it has succeeded", || agent.phase("u1") == "Succeeded").await;
    pass(600 * SECOND).await;
    assert_eq!(end(&agent, "u1"), ("Succeeded".to_owned(), String::new()));
    agent.kill().await;
    let agent = node.start_synced(&pods).await;
    agent.until("it is seen again", || !agent.phase("u1").is_empty()).await;
    pass(600 * SECOND).await;
    assert_eq!(end(&agent, "u1"), ("Succeeded".to_owned(), String::new()));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_can_be_brought_forward() {
    let node = Node::new();
    node.fake.script("c", Script::forever().on_term(0, SECOND));
    let agent = node.start_synced(&[limited("u1", 10_000, "Always")]).await;
    agent.until_ready("u1").await;
    let began = Instant::now();
    agent.put(&limited("u1", 100, "Always")).await;
    agent.until("it has failed", || end(&agent, "u1") == exceeded()).await;
    assert!((90..105).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_being_deleted_meets_no_deadline() {
    let node = Node::new();
    node.fake.script("c", Script::forever().on_term(0, 5 * SECOND));
    let agent = node.start_synced(&[limited("u1", 10, "Always")]).await;
    agent.until_ready("u1").await;
    pass(7 * SECOND).await;
    agent.gone("u1").await;
    agent.until_gone("u1").await;
    pass(60 * SECOND).await;
    let events = agent.events();
    assert!(!events.iter().any(|e| e.starts_with("DeadlineExceeded")), "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn a_grace_without_measure_keeps_no_pod() {
    let node = Node::new();
    node.fake.script("c", Script::forever().on_term(0, SECOND));
    let mut c = container("c");
    let probe = json!({"exec": {"command": ["no"]}, "failureThreshold": 1,
        "terminationGracePeriodSeconds": i64::MAX});
    c["livenessProbe"] = probe;
    c["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 1}}});
    node.fake.exec("c", |_| ExecAnswer::exits(1));
    let spec = json!({"containers": [c], "terminationGracePeriodSeconds": i64::MAX});
    let agent = node.start_synced(&[custom("u1", "u1", spec)]).await;
    // Ended by its probe, and run again.
    agent.until("it runs again", || node.count("StartContainer") == 2).await;
    agent.gone("u1").await;
    agent.until_gone("u1").await;
    node.assert_gone("u1");
    let stops = node.fake.requests::<v1::StopContainerRequest>();
    assert!(stops.iter().all(|s| s.timeout > 300_000_000), "{stops:?}");
}
