//! ConfigMaps and Secrets from a directory: in variables and volumes, missing, appearing and changing.

use crate::support::{Node, Running, SECOND, container, custom, pass};
use cri::v1;
use kubelet::api::Pod;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// A node with a directory of objects, that is not there yet.
fn node() -> Node {
    let mut node = Node::new();
    node.settings.objects = Some((node.path("objects"), Duration::ZERO));
    node
}

/// Writes the object by a rename.
fn put(node: &Node, kind: &str, name: &str, data: &Value) {
    let key = if kind == "Secret" { "stringData" } else { "data" };
    let object =
        json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": "ns"}, key: data});
    std::fs::create_dir_all(node.path("objects")).unwrap();
    std::fs::write(node.path("new"), object.to_string()).unwrap();
    std::fs::rename(node.path("new"), node.path("objects").join(format!("{kind}-{name}"))).unwrap();
}

fn with_env(uid: &str, env: Value, env_from: Value) -> Pod {
    let mut c = container("main");
    (c["env"], c["envFrom"]) = (env, env_from);
    custom(uid, uid, json!({"containers": [c]}))
}

fn with_volume(uid: &str, name: &str) -> Pod {
    let mut c = container("main");
    c["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    let volumes = json!([{"name": "v", "configMap": {"name": name}}]);
    custom(uid, uid, json!({"containers": [c], "volumes": volumes}))
}

fn shown(node: &Node, uid: &str, file: &str) -> Option<String> {
    let volume = format!("root/pods/{uid}/volumes/kubernetes.io~configmap/v");
    std::fs::read_to_string(node.path(&volume).join(file)).ok()
}

async fn until_waiting(agent: &Running, uid: &str, message: &str) {
    let waits = || {
        let waiting = &agent.state(uid, "main")["waiting"];
        waiting["reason"] == "CreateContainerConfigError" && waiting["message"] == message
    };
    agent.until(message, waits).await;
}

#[tokio::test(start_paused = true)]
async fn variables_come_from_objects_with_their_prefixes() {
    let node = node();
    put(&node, "ConfigMap", "m", &json!({"a": "va", "b.dotted": "vb", "1num": "n"}));
    put(&node, "Secret", "s", &json!({"k": "vk", "a": "from-secret"}));
    let env = json!([
        {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "a"}}},
        {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        {"name": "O", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k", "optional": true}}},
        {"name": "U", "value": "$(P_a)-$(K)-$(k)"}]);
    let from = json!([{"prefix": "P_", "configMapRef": {"name": "m"}}, {"secretRef": {"name": "s"}},
        {"configMapRef": {"name": "none", "optional": true}}]);
    let agent = node.start_synced(&[with_env("u", env, from)]).await;
    agent.until_ready("u").await;
    let config = node.fake.requests::<v1::CreateContainerRequest>()[0].config.clone().unwrap();
    let vars: Vec<String> =
        config.envs.iter().map(|e| format!("{}={}", e.key, String::from_utf8_lossy(&e.value))).collect();
    assert_eq!(
        vars,
        ["P_1num=n", "P_a=va", "P_b.dotted=vb", "a=from-secret", "k=vk", "K=va", "S=vk", "U=va-va-vk"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_container_that_waits_for_an_object_starts_when_it_appears_not_when_its_turn_comes() {
    let node = node();
    std::fs::create_dir(node.path("objects")).unwrap();
    let env = json!([{"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]);
    let agent = node.start_synced(&[with_env("u", env, json!([]))]).await;
    until_waiting(&agent, "u", "secret \"s\" not found").await;
    // By now ten seconds pass between two attempts.
    pass(60 * SECOND).await;
    put(&node, "Secret", "s", &json!({"other": "x"}));
    let appeared = Instant::now();
    until_waiting(&agent, "u", "couldn't find key k in Secret ns/s").await;
    assert!(appeared.elapsed() < SECOND, "{:?}", appeared.elapsed());
    put(&node, "Secret", "s", &json!({"k": "v"}));
    agent.until_ready("u").await;
    assert!(appeared.elapsed() < SECOND, "{:?}", appeared.elapsed());
    node.assert_whole("u", &["main"]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_waits_for_a_volumes_object_is_told_of_and_goes_on_when_it_appears() {
    let node = node();
    let agent = node.start_synced(&[with_volume("u", "m")]).await;
    let told = "FailedMount: MountVolume.SetUp failed for volume \"v\" : configmap \"m\" not found";
    let mut events = Vec::new();
    while !events.iter().any(|e| e == told) {
        pass(SECOND / 10).await;
        events.extend(agent.events());
    }
    assert_eq!(agent.state("u", "main")["waiting"]["reason"], "ContainerCreating");
    pass(60 * SECOND).await;
    assert_eq!(node.counts(), (0, 0));
    // The directory itself comes only now.
    put(&node, "ConfigMap", "m", &json!({"a": "1"}));
    let appeared = Instant::now();
    agent.until_ready("u").await;
    assert!(appeared.elapsed() < SECOND, "{:?}", appeared.elapsed());
    assert_eq!(shown(&node, "u", "a").as_deref(), Some("1"));
    let mounts = node.fake.requests::<v1::CreateContainerRequest>()[0].config.clone().unwrap().mounts;
    assert!(mounts.iter().any(|m| m.container_path == "/v" && m.readonly), "{mounts:?}");
    agent.gone("u").await;
    agent.until_gone("u").await;
    node.assert_gone("u");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_restarts_finds_the_objects_before_it_judges_and_keeps_volumes_current() {
    let node = node();
    put(&node, "ConfigMap", "m", &json!({"a": "1"}));
    let pod = with_volume("u", "m");
    let agent = node.start_synced(std::slice::from_ref(&pod)).await;
    agent.until_ready("u").await;
    put(&node, "ConfigMap", "m", &json!({"a": "2"}));
    agent.until("the change is shown", || shown(&node, "u", "a").as_deref() == Some("2")).await;
    agent.kill().await;
    // What changes while there is no agent, and what changes while there is one that started nothing of the pod.
    put(&node, "ConfigMap", "m", &json!({"a": "3"}));
    let agent = node.start_synced(&[pod]).await;
    agent.until("the change is shown", || shown(&node, "u", "a").as_deref() == Some("3")).await;
    put(&node, "ConfigMap", "m", &json!({"b": "4"}));
    agent.until("the change is shown", || shown(&node, "u", "b").as_deref() == Some("4")).await;
    assert_eq!(shown(&node, "u", "a"), None);
    let failed: Vec<String> = agent.events().into_iter().filter(|e| e.starts_with("Failed")).collect();
    assert_eq!(failed, [""; 0]);
    assert_eq!(node.count("CreateContainer"), 1, "the container is the one of before");
}
