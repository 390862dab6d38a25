//! A runtime without a network for pods.

use crate::support::{Node, SECOND, custom, pass, pod};
use cri::fake::{FakeRuntime, Script};
use serde_json::json;
use tokio::time::Instant;

fn network(fake: &FakeRuntime, ready: bool) {
    let message = "Network plugin returns error: cni plugin not initialized";
    fake.set_condition("NetworkReady", ready, "NetworkPluginNotReady", message);
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_the_network_and_one_on_the_nodes_does_not() {
    let node = Node::new();
    network(&node.fake, false);
    let on_host =
        custom("h", "h", json!({"hostNetwork": true, "containers": [crate::support::container("main")]}));
    let agent = node.start_synced(&[pod("u", &["main"]), pod("v", &["main"]), on_host]).await;
    agent.until_ready("h").await;
    pass(60 * SECOND).await;
    assert_eq!(node.count("RunPodSandbox"), 1, "that of the pod on the node's network");
    let told = agent.events();
    let want = "NetworkNotReady: network is not ready: container runtime network not ready: NetworkReady=false \
                reason:NetworkPluginNotReady message:Network plugin returns error: cni plugin not initialized";
    assert!(told.iter().any(|e| e == want), "{told:#?}");
    assert_eq!(agent.state("u", "main")["waiting"]["reason"], "ContainerCreating");
    let asked = node.count("Status");
    pass(60 * SECOND).await;
    assert!(node.count("Status") - asked <= 61, "one question a second for all pods");
    network(&node.fake, true);
    let there = Instant::now();
    agent.until_ready("u").await;
    agent.until_ready("v").await;
    assert!(there.elapsed() < 2 * SECOND, "{:?}", there.elapsed());
    let asked = node.count("Status");
    pass(600 * SECOND).await;
    assert_eq!(node.count("Status"), asked, "nothing is asked once all have one");
}

#[tokio::test(start_paused = true)]
async fn what_has_its_network_already_runs_on_and_is_restarted_without() {
    let node = Node::new();
    node.fake.scripts("main", [Script::exits(1, 30 * SECOND), Script::forever()]);
    let agent = node.start_synced(&[pod("u", &["main"])]).await;
    agent.until_ready("u").await;
    network(&node.fake, false);
    let runs_again =
        || node.fake.containers().iter().any(|c| c.metadata.as_ref().is_some_and(|m| m.attempt == 1));
    agent.until("it runs again", runs_again).await;
    agent.until_ready("u").await;
    // A sandbox of its own is another matter.
    let sandbox = node.fake.sandboxes()[0].id.clone();
    node.fake.kill_sandbox(&sandbox);
    pass(60 * SECOND).await;
    assert_eq!(node.count("RunPodSandbox"), 1);
    network(&node.fake, true);
    agent.until("another sandbox", || node.count("RunPodSandbox") == 2).await;
    agent.until_ready("u").await;
    node.witness.assert_never_two();
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_waits_for_the_network_can_be_removed() {
    let node = Node::new();
    network(&node.fake, false);
    let agent = node.start_synced(&[pod("u", &["main"])]).await;
    pass(10 * SECOND).await;
    agent.gone("u").await;
    agent.until_gone("u").await;
    node.assert_gone("u");
}
