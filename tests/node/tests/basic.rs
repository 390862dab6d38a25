//! What a pod is promised, on a real runtime.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use node_e2e::manifest::{FOREVER, pod, sh, then_forever};
use node_e2e::{Node, status};

#[tokio::test]
async fn a_pod_runs_and_is_ready_and_has_an_address() {
    let Some(mut node) = Node::start().await else { return };
    node.put("web", pod("web", [sh("c", &then_forever("echo up"))]));
    let web = node.wait_ready("web").await;
    assert!(status::ip(&web).unwrap().parse::<std::net::IpAddr>().is_ok());
    assert_eq!(node.exec(&web, "c", "echo $((6*7))").await, "42\n");
    assert_eq!(node.leftovers().await, [""; 0]);
    node.put("other", pod("other", [sh("c", FOREVER)]));
    node.wait_ready("other").await;
    node.remove("web");
    node.wait_gone("web").await;
    node.wait_clean().await;
    node.wait_ready("other").await;
    node.finish().await;
}
