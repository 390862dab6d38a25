//! Containers' logs: rotated while they run, removed with the container and with the pod.

use crate::support::{Node, SECOND, pass, pod};
use cri::fake::{FakeRuntime, Script};
use std::io::Write;
use std::path::PathBuf;

fn node() -> Node {
    Node::with(FakeRuntime::builder().any_image().write_logs())
}

/// The names in the log directory of the container `main` of the pod `u1`.
fn logs(node: &Node) -> Vec<String> {
    let dir = node.path("logs/ns_u1_u1/main");
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn append(path: &PathBuf, bytes: usize) {
    let mut file = std::fs::File::options().append(true).open(path).unwrap();
    file.write_all(&vec![b'x'; bytes]).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_growing_log_is_rotated_with_every_net_cut_and_goes_with_its_pod() {
    let mut node = node();
    node.settings.log_rotation.max_size = Some(1000);
    node.fake.script("main", Script::forever().prints("hello"));
    let agent = node.start_synced(&[pod("u1", &["main"])]).await;
    agent.until_ready("u1").await;
    let log = node.path("logs/ns_u1_u1/main/0.log");
    for rotations in 1..=2 {
        append(&log, 2000);
        agent.until("the log is rotated", || node.count("ReopenContainerLog") == rotations).await;
    }
    agent.until("the older one is compressed", || logs(&node).iter().any(|n| n.ends_with(".gz"))).await;
    agent.gone("u1").await;
    agent.until_gone("u1").await;
    node.assert_gone("u1");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_was_killed_after_renaming_has_its_successor_ask_for_a_new_log() {
    let node = node();
    node.fake.script("main", Script::forever().prints("hello"));
    let agent = node.start_synced(&[pod("u1", &["main"])]).await;
    agent.until_ready("u1").await;
    agent.kill().await;
    let log = node.path("logs/ns_u1_u1/main/0.log");
    std::fs::rename(&log, log.with_file_name("0.log.20260101-000000")).unwrap();
    let agent = node.start_synced(&[pod("u1", &["main"])]).await;
    agent.until("there is a log again", || log.exists()).await;
    assert_eq!(node.count("ReopenContainerLog"), 1);
    let old = std::fs::read_to_string(log.with_file_name("0.log.20260101-000000")).unwrap();
    assert!(old.ends_with("hello\n"), "{old}");
}

#[tokio::test(start_paused = true)]
async fn a_dead_container_takes_its_logs_with_it() {
    let node = node();
    node.fake.script("main", Script::exits(1, SECOND).prints("hello"));
    let agent = node.start_synced(&[pod("u1", &["main"])]).await;
    agent.until("it ran", || node.instances("u1", "main").len() == 1).await;
    let rotated = node.path("logs/ns_u1_u1/main/0.log.20260101-000000.gz");
    std::fs::write(&rotated, "").unwrap();
    agent.until("three starts", || node.count("StartContainer") >= 3).await;
    pass(SECOND / 2).await;
    agent.until("the first is removed", || node.count("RemoveContainer") >= 1).await;
    agent.until("its logs are gone", || !rotated.exists()).await;
    let runs: Vec<String> = node
        .instances("u1", "main")
        .iter()
        .map(|c| format!("{}.log", c.metadata.as_ref().unwrap().attempt))
        .collect();
    assert_eq!(logs(&node), runs, "the logs of the runs that are there, and no others");
}
