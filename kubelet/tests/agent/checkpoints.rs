//! Checkpoints of containers: what the runtime is asked for, and what cannot be had.

use crate::support::{Node, Running, custom};
use cri::fake::{Builder, FakeRuntime, Fault, Profile, Script};
use cri::v1;
use kubelet::api::Pod;
use kubelet::config::{self, Command};
use kubelet::server::NodeView;
use kubelet::view::View;
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

/// A node whose pod `u` has a container that runs and one that has ended, and what the server sees of it.
async fn node(runtime: Builder) -> (Node, View, Arc<Pod>) {
    let node = Node::with(runtime.any_image());
    node.fake.script("done", Script::exits(0, std::time::Duration::ZERO));
    let container = crate::support::container;
    let spec = json!({"restartPolicy": "Never", "containers": [container("main"), container("done")]});
    let running = node.start_synced(&[custom("u", "web", spec)]).await;
    let ended = || !running.state("u", "done")["terminated"].is_null();
    running.until("one has ended", ended).await;
    let client = node.fake.client();
    client.connected().await;
    let Command::Run(loaded) = config::load(std::iter::empty()).unwrap() else { panic!("not to run") };
    let view = View::new(&loaded, &node.settings, client);
    let Running { agent, .. } = running;
    view.agent_started(agent);
    let pod = view.pod("ns", "web").unwrap();
    (node, view, pod)
}

#[tokio::test(start_paused = true)]
async fn the_archive_of_a_container_lies_below_the_root_directory_by_name_and_time() {
    let (node, view, pod) = node(FakeRuntime::builder()).await;
    let place = view.checkpoint(&pod, "main", 7).await.unwrap();
    let dir = node.path("root/checkpoints");
    assert_eq!(place.parent(), Some(dir.as_path()));
    let name = place.file_name().unwrap().to_str().unwrap();
    let time = name.strip_prefix("checkpoint-web_ns-main-").and_then(|rest| rest.strip_suffix(".tar"));
    assert!(time.is_some_and(|t| t.parse::<jiff::Timestamp>().is_ok() && t.len() == 20), "{name}");
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    let id = node.instances("u", "main")[0].id.clone();
    assert_eq!(std::fs::read_to_string(&place).unwrap(), id);
    let asked = &node.fake.requests::<v1::CheckpointContainerRequest>()[0];
    assert_eq!((asked.container_id.as_str(), asked.timeout), (id.as_str(), 7));
    assert!(view.pod("ns", "nobody").is_none());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_had_is_said_in_the_runtimes_words() {
    let (node, view, pod) = node(FakeRuntime::builder()).await;
    assert_eq!(view.checkpoint(&pod, "done", 0).await.unwrap_err(), "container done not found");
    node.fake.fault(Fault::fail("CheckpointContainer", tonic::Code::Unknown, "CRIU binary not found").once());
    assert_eq!(
        view.checkpoint(&pod, "main", 0).await.unwrap_err(),
        "rpc error: code = Unknown desc = CRIU binary not found"
    );
    let dir = node.path("root/checkpoints");
    std::fs::remove_dir(&dir).unwrap();
    std::fs::write(&dir, "in the way").unwrap();
    let why = view.checkpoint(&pod, "main", 0).await.unwrap_err();
    assert!(why.starts_with(&format!("mkdir {}: ", dir.display())), "{why}");
    std::fs::remove_file(&dir).unwrap();
    node.fake.forget_calls();
    // A client that goes away takes nothing back.
    drop(view.checkpoint(&pod, "main", 0));
    node.fake.until(|f| !f.requests::<v1::CheckpointContainerRequest>().is_empty()).await;
    let (_node, view, pod) = self::node(FakeRuntime::builder().profile(Profile::Containerd16)).await;
    let why = view.checkpoint(&pod, "main", 0).await.unwrap_err();
    assert!(
        why.starts_with("rpc error: code = Unimplemented desc = unknown method CheckpointContainer"),
        "{why}"
    );
}
