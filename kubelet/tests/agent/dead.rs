//! How many ended containers are kept: per container, on the whole node, and for how long.

use crate::support::{Node, Running, SECOND, pass, pod};
use cri::fake::{FakeRuntime, Script};
use cri::v1;
use kubelet::pod::dead::DeadConfig;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

/// A node with these limits, whose containers fail after a second.
fn node(dead: DeadConfig) -> Node {
    let mut node = Node::with(FakeRuntime::builder().any_image().write_logs());
    node.settings.dead = dead;
    node.fake.script("main", Script::exits(1, SECOND));
    node
}

/// The restart counts of the ended instances that are kept, oldest first.
fn kept(node: &Node, uid: &str) -> Vec<u32> {
    let all = node.instances(uid, "main");
    let ended = all.iter().filter(|c| c.state() == v1::ContainerState::ContainerExited);
    ended.map(|c| c.metadata.as_ref().unwrap().attempt).collect()
}

/// Waits until `main` has ended `times` times, and nothing of that is left to do.
async fn ended(node: &Node, agent: &Running, uid: &str, times: u32) {
    let newest = || kept(node, uid).last().copied();
    agent.until(&format!("{uid} ended {times} times"), || newest() == Some(times - 1)).await;
    pass(2 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn each_container_keeps_as_many_as_it_may_and_always_its_newest() {
    for (most, want) in
        [(Some(0), &[4][..]), (Some(1), &[4]), (Some(3), &[2, 3, 4]), (None, &[0, 1, 2, 3, 4])]
    {
        let node = node(DeadConfig { per_container: most, ..DeadConfig::default() });
        let agent = node.start_synced(&[pod("u", &["main"])]).await;
        ended(&node, &agent, "u", 5).await;
        assert_eq!(kept(&node, "u"), want, "{most:?}");
        let logs = std::fs::read_dir(node.path("logs/ns_u_u/main")).unwrap().count();
        assert_eq!(logs, want.len(), "logs go with their containers");
        // The count goes on where it was.
        agent.kill().await;
        let agent = node.start_synced(&[pod("u", &["main"])]).await;
        ended(&node, &agent, "u", 6).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_that_runs_keeps_nothing_of_its_past_where_nothing_may_be_kept() {
    let node = node(DeadConfig { per_container: Some(0), ..DeadConfig::default() });
    node.fake.scripts("main", [Script::exits(3, SECOND), Script::forever()]);
    let agent = node.start_synced(&[pod("u", &["main"])]).await;
    agent.until("it runs alone", || agent.is_ready("u") && node.count("RemoveContainer") == 1).await;
    pass(SECOND).await;
    node.assert_whole("u", &["main"]);
    let status = agent.status("u").unwrap();
    let main = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(main.restart_count, 1);
    let before = main.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!(before.exit_code, 3, "how it ended is still told");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_done_is_not_run_again_because_nothing_may_be_kept() {
    let none = DeadConfig { on_node: Some(0), per_container: Some(0), min_age: Duration::ZERO };
    let node = node(none);
    let job = |uid: &str| {
        let mut job = pod(uid, &["main", "other"]);
        job.spec.as_mut().unwrap().restart_policy = Some("Never".into());
        job
    };
    node.fake.script("other", Script::exits(0, 5 * SECOND));
    let agent = node.start_synced(&[job("u")]).await;
    agent.until("it failed", || agent.phase("u") == "Failed").await;
    agent.kill().await;
    let agent = node.start_synced(&[job("u")]).await;
    agent.until("it is still known to have failed", || agent.phase("u") == "Failed").await;
    pass(HOUR).await;
    assert_eq!(node.count("StartContainer"), 2);
}

#[tokio::test(start_paused = true)]
async fn the_whole_node_keeps_no_more_than_it_may_and_the_oldest_go_first() {
    let node = node(DeadConfig { on_node: Some(5), per_container: Some(4), min_age: Duration::ZERO });
    let agent = node.start_synced(&[pod("u", &["main"])]).await;
    ended(&node, &agent, "u", 5).await;
    assert_eq!(kept(&node, "u"), [1, 2, 3, 4], "four of five are within both limits");
    // The other one's ends are counted as they come, and cost the first one its oldest.
    agent.put(&pod("v", &["main"])).await;
    ended(&node, &agent, "v", 3).await;
    let (u, v) = (kept(&node, "u"), kept(&node, "v"));
    assert!(u.len() + v.len() <= 5, "{u:?} {v:?}");
    assert!(u.len() >= 2 && v.len() >= 2, "each keeps as many as the other may: {u:?} {v:?}");
    // What an earlier agent left is counted, too.
    agent.kill().await;
    let mut node = node;
    node.settings.dead.on_node = Some(2);
    let agent = node.start_synced(&[pod("u", &["main"]), pod("v", &["main"])]).await;
    agent.until("two are left", || kept(&node, "u").len() + kept(&node, "v").len() <= 2).await;
}

#[tokio::test(start_paused = true)]
async fn what_ended_stays_as_long_as_it_must_and_no_longer() {
    let node = node(DeadConfig { min_age: HOUR, ..DeadConfig::default() });
    node.fake.scripts(
        "main",
        [1, 1, 1].map(|code| Script::exits(code, SECOND)).into_iter().chain([Script::forever()]),
    );
    let agent = node.start_synced(&[pod("u", &["main"])]).await;
    agent.until("it runs at last", || kept(&node, "u").len() == 3 && agent.is_ready("u")).await;
    pass(HOUR / 2).await;
    assert_eq!((kept(&node, "u"), node.count("RemoveContainer")), (vec![0, 1, 2], 0));
    // Nothing happens but that time passes.
    pass(HOUR).await;
    assert_eq!(kept(&node, "u"), [2]);
    assert_eq!(node.running().len(), 1);
}
