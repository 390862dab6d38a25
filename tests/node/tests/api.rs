//! The agent's ports, asked while real pods run.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;
use node_e2e::http;
use node_e2e::manifest::{FOREVER, pod, sh, then_forever};
use node_e2e::wait::eventually;
use node_e2e::{Node, status};

#[tokio::test]
async fn logs_are_read_whole_from_their_end_and_of_the_run_before() {
    let Some(mut node) = Node::start().await else { return };
    let script = "echo run-$(cat /data/n 2>/dev/null || echo 0); echo second; echo to-stderr >&2; echo last";
    let mut p = pod(
        "talker",
        [sh("c", &format!("{script}; [ -e /data/n ] || {{ echo 1 > /data/n; exit 1; }}\n{FOREVER}"))],
    );
    p["spec"]["volumes"] = serde_json::json!([{ "name": "data", "emptyDir": {} }]);
    p["spec"]["containers"][0]["volumeMounts"] =
        serde_json::json!([{ "name": "data", "mountPath": "/data" }]);
    node.put("talker", p);
    node.wait("talker", "restarted", |p| status::restarts(p, "c") == 1 && status::is(p, "Ready")).await;
    let whole = eventually("the whole log", async || {
        let answer = node.container_log("talker", "c", "").await;
        if answer.body.contains("last") { Ok(answer) } else { Err(answer.body) }
    })
    .await;
    assert_eq!(whole.status, 200);
    let mut lines: Vec<&str> = whole.body.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["last", "run-1", "second", "to-stderr"]);
    assert_eq!(node.container_log("talker", "c", "tailLines=2").await.body.lines().count(), 2);
    assert!(node.container_log("talker", "c", "previous=true").await.body.contains("run-0\n"));
    let stamped = node.container_log("talker", "c", "timestamps=true&tailLines=1").await.body;
    assert!(stamped.starts_with("20") && stamped.contains("Z "), "{stamped}");
    assert_eq!(node.container_log("talker", "nobody", "").await.status, 404);
    assert_eq!(node.container_log("talker", "c", "tailLines=-1").await.status, 422);
    node.finish().await;
}

#[tokio::test]
async fn a_followed_log_comes_as_it_is_written_and_ends_with_the_container() {
    let Some(mut node) = Node::start().await else { return };
    let mut p = pod("live", [sh("c", "echo one; until [ -e /data/go ]; do sleep 0.1; done; echo two")]);
    p["spec"]["restartPolicy"] = "Never".into();
    p["spec"]["volumes"] = serde_json::json!([{ "name": "data", "emptyDir": {} }]);
    p["spec"]["containers"][0]["volumeMounts"] =
        serde_json::json!([{ "name": "data", "mountPath": "/data" }]);
    node.put("live", p);
    let running = node.wait_ready("live").await;
    let path = node.log_path("live", "c", "follow=true");
    let mut answer = http::open_tls(node.port, &node.dir.join("pki"), &node.name, &path).await.unwrap();
    let mut text = String::new();
    while text != "one\n" {
        text += &http::piece(&mut answer).await.expect("the log goes on");
    }
    node.exec(&running, "c", "touch /data/go").await;
    while let Some(more) = http::piece(&mut answer).await {
        text += &more;
    }
    assert_eq!(text, "one\ntwo\n");
    node.wait_phase("live", "Succeeded").await;
    node.finish().await;
}

#[tokio::test]
async fn health_pods_metrics_and_configuration_are_served() {
    let Some(mut node) = Node::start().await else { return };
    node.put("web", pod("web", [sh("c", &then_forever("echo up"))]));
    let web = node.wait_ready("web").await;
    for port in [node.healthz, node.read_only] {
        let answer = http::get(port, "/healthz").await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
    }
    assert_eq!(node.https("/healthz").await.body, "ok");

    let list: List<Pod> = serde_json::from_str(&node.https("/pods").await.body).unwrap();
    assert_eq!(list.items.len(), 1);
    assert_eq!(list.items[0].metadata.uid, web.metadata.uid);
    let annotations = list.items[0].metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations["kubernetes.io/config.source"], "file");
    let running: List<Pod> = serde_json::from_str(&node.https("/runningpods/").await.body).unwrap();
    assert_eq!(running.items[0].metadata.name, web.metadata.name);
    assert_eq!(running.items[0].spec.as_ref().unwrap().containers[0].name, "c");

    let metrics = node.https("/metrics").await;
    assert!(metrics.content_type.starts_with("text/plain"), "{}", metrics.content_type);
    for name in [
        "kubelet_pod_start_duration_seconds_count",
        "kubelet_runtime_operations_total{operation_type=\"run_podsandbox\"}",
        "kubelet_started_containers_total",
        "kubelet_running_pods",
        "kubelet_running_containers{container_state=\"running\"}",
        "kubelet_desired_pods{static=\"true\"}",
        "kubelet_pleg_relist_duration_seconds_count",
        "kubelet_node_name",
        "process_cpu_seconds_total",
    ] {
        assert!(metrics.body.lines().any(|l| l.starts_with(name)), "{name} is not in:\n{}", metrics.body);
    }
    for line in metrics.body.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap_or_default();
        assert!(!name.is_empty() && value.parse::<f64>().is_ok(), "{line:?} is no sample");
    }

    let configz: serde_json::Value = serde_json::from_str(&node.https("/configz").await.body).unwrap();
    let config = &configz["kubeletconfig"];
    assert_eq!(config["cgroupRoot"], node.places.cgroup_root.as_str());
    assert_eq!(config["maxPods"], 110);
    assert_eq!(node.https("/exec/default/x/c").await.status, 501);
    assert_eq!(node.https("/nowhere").await.status, 404);
    node.finish().await;
}

#[tokio::test]
async fn a_checkpoint_is_what_the_runtime_makes_of_it_and_costs_the_container_nothing() {
    let Some(mut node) = Node::start().await else { return };
    node.put("kept", pod("kept", [sh("c", FOREVER)]));
    let before = node.wait_ready("kept").await;
    let ask = async |path: String| {
        http::post_tls(node.port, &node.dir.join("pki"), &node.name, &path).await.unwrap()
    };
    let name = node.full("kept");
    let answer = ask(format!("/checkpoint/default/{name}/c?timeout=20")).await;
    if answer.status == 200 {
        let items: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        let archive = items["items"][0].as_str().unwrap();
        assert!(std::fs::metadata(archive).unwrap().len() > 0, "{archive}");
    } else {
        // Without criu, or before containerd 2.
        let failed = format!("checkpointing of default/{name}/c failed (rpc error: code = ");
        assert!(answer.status == 500 && answer.body.starts_with(&failed), "{answer:?}");
    }
    let unknown = ask(format!("/checkpoint/default/{name}/other")).await;
    assert_eq!((unknown.status, unknown.body.as_str()), (404, "container other does not exist"));
    let unknown = ask("/checkpoint/default/nobody/c".to_owned()).await;
    assert_eq!((unknown.status, unknown.body.as_str()), (404, "pod does not exist"));
    let after = node.wait_ready("kept").await;
    assert_eq!(
        status::container(&before, "c").unwrap().container_id,
        status::container(&after, "c").unwrap().container_id
    );
    node.finish().await;
}
