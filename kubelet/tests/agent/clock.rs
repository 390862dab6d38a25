//! A wall clock that is set, an hour forward or back, under the runtime and the agent alike.

use crate::support::{Node, pass, pod};
use std::time::Duration;

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
