//! Eviction for want of disk space: what is reclaimed first, what pods may have there, and that it is given back.

use crate::support::meter::{MIB, Meter, Uses, hard};
use crate::support::{Node, Running, SECOND, container, custom, pass, pod};
use cri::fake::{FakeImage, FakeRuntime, Script};
use kubelet::api::Pod;
use kubelet::evict::Signal;
use kubelet::image::GcConfig;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

fn node(thresholds: &[kubelet::evict::Threshold]) -> (Node, Arc<Meter>) {
    let mut node = Node::with(FakeRuntime::builder().any_image().write_logs());
    node.fake.script("c", Script::forever().on_term(143, SECOND));
    let meter = Meter::of(&node);
    node.settings.measure = Some(meter.clone());
    node.settings.evict.thresholds = thresholds.to_vec();
    node.settings.evict.net = 10 * SECOND;
    (node, meter)
}

fn with_volume(uid: &str, empty_dir: Value, limit: Option<&str>) -> Pod {
    let mut c = container("c");
    c["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    if let Some(limit) = limit {
        c["resources"] = json!({"limits": {"ephemeral-storage": limit}});
    }
    custom(uid, uid, json!({"containers": [c], "volumes": [{"name": "v", "emptyDir": empty_dir}]}))
}

fn end(agent: &Running, uid: &str) -> [String; 3] {
    let status = agent.status(uid).unwrap_or_default();
    [&status.phase, &status.reason, &status.message].map(|s| s.clone().unwrap_or_default())
}

fn evicted(agent: &Running, uid: &str) -> bool {
    end(agent, uid)[..2] == ["Failed", "Evicted"]
}

#[tokio::test(start_paused = true)]
async fn what_an_evicted_pod_had_on_the_disk_is_given_back_before_another_goes() {
    let (node, meter) = node(&[hard(Signal::NodeFs, "100Mi")]);
    let pods = [with_volume("full", json!({}), None), with_volume("next", json!({}), None)];
    let agent = node.start_synced(&pods).await;
    agent.until_ready("full").await;
    agent.until_ready("next").await;
    let volume = node.path("root/pods/full/volumes/kubernetes.io~empty-dir/v");
    std::fs::write(volume.join("data"), "x").unwrap();
    meter.set("next", Uses::volume("v", 400 * MIB));
    meter.set("full", Uses::volume("v", 550 * MIB));
    agent.until("it is evicted", || evicted(&agent, "full")).await;
    agent.until("its data is gone", || !node.path("root/pods/full/volumes").exists()).await;
    pass(3600 * SECOND).await;
    assert!(agent.is_ready("next"), "{:?}", end(&agent, "next"));
    assert!(node.instances("full", "c").is_empty(), "its containers are gone");
    assert!(!evicted(&agent, "next"));
    let status = agent.status("full").unwrap();
    let ended = status.container_statuses.as_ref().unwrap()[0].state.as_ref().unwrap().terminated.clone();
    assert_eq!(ended.unwrap().exit_code, 143, "how it ended is still told");
    assert_eq!(
        end(&agent, "full")[2],
        "The node was low on resource: ephemeral-storage. Threshold quantity: 100Mi, available: 50Mi. "
    );
    agent.gone("full").await;
    agent.until_gone("full").await;
    node.assert_gone("full");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_killed_while_it_gives_back_goes_on() {
    let (node, meter) = node(&[hard(Signal::NodeFs, "100Mi")]);
    let pods = [with_volume("full", json!({}), None), with_volume("next", json!({}), None)];
    let agent = node.start_synced(&pods).await;
    agent.until_ready("full").await;
    agent.until_ready("next").await;
    meter.set("next", Uses::volume("v", 400 * MIB));
    meter.set("full", Uses::volume("v", 550 * MIB));
    agent.until("it is told to end", || node.count("StopContainer") == 1).await;
    agent.kill().await;
    let agent = node.start_synced(&pods).await;
    agent.until("it is evicted", || evicted(&agent, "full")).await;
    agent.until("its data is gone", || !node.path("root/pods/full/volumes").exists()).await;
    pass(3600 * SECOND).await;
    assert!(agent.is_ready("next") && node.instances("full", "c").is_empty());
    assert_eq!(node.count("StartContainer"), 2);
}

#[tokio::test(start_paused = true)]
async fn images_and_ended_containers_go_before_pods() {
    let (mut node, meter) = node(&[hard(Signal::NodeFs, "100Mi")]);
    node.settings.images.gc =
        Some(GcConfig { high_percent: 100, min_age: Duration::ZERO, ..GcConfig::default() });
    node.fake.add_image(FakeImage::new("unused.test/big:1").size(600 * MIB));
    // One that ran before, and lies about.
    node.fake.scripts("twice", [Script::exits(1, SECOND), Script::forever()]);
    meter.images(600 * MIB);
    let agent = node.start_synced(&[pod("u", &["c"]), pod("again", &["twice"])]).await;
    agent.until_ready("u").await;
    agent
        .until("it runs again", || agent.is_ready("again") && node.instances("again", "twice").len() == 2)
        .await;
    meter.set("u", Uses::layer(350 * MIB));
    agent.until("the image is gone", || node.count("RemoveImage") == 1).await;
    pass(3600 * SECOND).await;
    assert!(agent.is_ready("u") && agent.is_ready("again"));
    assert_eq!(node.instances("again", "twice").len(), 1, "the ended one went first");
    let removals: Vec<_> =
        node.changes().into_iter().filter(|m| m == "RemoveImage" || m == "RemoveContainer").collect();
    assert_eq!(removals, ["RemoveContainer", "RemoveImage"]);
    assert!(!agent.events().iter().any(|e| e.starts_with("Evicted")));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ends_while_its_node_is_tidied_up_is_not_evicted() {
    let (node, meter) = node(&[hard(Signal::NodeFs, "100Mi")]);
    let mut job = pod("job", &["work"]);
    job.spec.as_mut().unwrap().restart_policy = Some("Never".to_owned());
    let pods = [job, with_volume("next", json!({}), None)];
    let agent = node.start_synced(&pods).await;
    agent.until_ready("job").await;
    agent.until_ready("next").await;
    meter.set("next", Uses::volume("v", 400 * MIB));
    meter.set("job", Uses::layer(550 * MIB));
    let mut events = agent.agent.recorder.subscribe();
    while events.recv().await.unwrap().reason != "EvictionThresholdMet" {}
    node.fake.exit(&node.instances("job", "work")[0].id, 0);
    agent.until("the other goes", || evicted(&agent, "next")).await;
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        told.extend(event.pod.filter(|_| event.reason == "Evicted").map(|pod| pod.name.to_string()));
    }
    assert_eq!(told, ["next"]);
    assert!(!node.path("root/pods/job/evicted").exists());
    agent.kill().await;
    let agent = node.start_synced(&pods).await;
    agent.until("it has done its work", || end(&agent, "job")[0] == "Succeeded").await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fills_in_a_second_costs_the_pod_that_filled_it() {
    let (node, meter) = node(&[hard(Signal::NodeFs, "10%"), hard(Signal::NodeFsInodes, "5%")]);
    let pods =
        [with_volume("full", json!({}), None), with_volume("files", json!({}), None), pod("calm", &["c"])];
    let agent = node.start_synced(&pods).await;
    for p in ["full", "files", "calm"] {
        agent.until_ready(p).await;
    }
    meter.set("calm", Uses::layer(MIB));
    meter.set("full", Uses::volume("v", 999 * MIB));
    agent.until("it is evicted", || evicted(&agent, "full")).await;
    pass(60 * SECOND).await;
    // Thousands of tiny files: no bytes to speak of.
    meter.set("files", Uses::files("v", 980_000));
    agent.until("so is this one", || evicted(&agent, "files")).await;
    assert_eq!(
        end(&agent, "files")[2],
        "The node was low on resource: inodes. Threshold quantity: 50000, available: 20000. "
    );
    pass(3600 * SECOND).await;
    assert!(agent.is_ready("calm"));
}

#[tokio::test(start_paused = true)]
async fn pods_are_held_to_limits_of_their_own_whatever_the_node_has() {
    let (mut node, meter) = node(&[]);
    // A volume in memory is really mounted, and must be found.
    node.settings.mount_table = "/proc/self/mountinfo".into();
    let pods = [
        with_volume("volume", json!({"sizeLimit": "5Mi"}), None),
        with_volume("memory", json!({"sizeLimit": "5Mi", "medium": "Memory"}), None),
        with_volume("whole", json!({}), Some("5Mi")),
        with_volume("within", json!({"sizeLimit": "5Mi"}), Some("5Mi")),
    ];
    let names = ["volume", "memory", "whole", "within"];
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIP: mounting a volume in memory needs root");
    }
    let agent = node.start_synced(&pods).await;
    for n in names {
        agent.until_ready(n).await;
    }
    meter.set("within", Uses::volume("v", 5 * MIB));
    pass(600 * SECOND).await;
    assert!(names.iter().all(|n| agent.is_ready(n)));
    meter.set("volume", Uses::volume("v", 5 * MIB + 1));
    meter.set("memory", Uses::volume("v", 6 * MIB));
    meter.set("whole", Uses::layer(15 * MIB));
    for n in &names[..3] {
        agent.until("it is evicted", || evicted(&agent, n)).await;
    }
    let of_volume = "Usage of EmptyDir volume \"v\" exceeds the limit \"5Mi\". ";
    assert_eq!(end(&agent, "volume")[2], of_volume);
    assert_eq!(end(&agent, "memory")[2], of_volume);
    assert_eq!(
        end(&agent, "whole")[2],
        "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. "
    );
    let status = agent.status("volume").unwrap();
    let disrupted = status.conditions.as_ref().unwrap().iter().any(|c| c.type_ == "DisruptionTarget");
    assert!(!disrupted, "it goes for its own sake");
    let metrics = agent.metrics();
    for (signal, count) in [("emptydirfs.limit", 2), ("ephemeralpodfs.limit", 1)] {
        let line = format!("kubelet_evictions{{eviction_signal=\"{signal}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
    pass(3600 * SECOND).await;
    assert!(agent.is_ready("within"));
    for n in names {
        agent.gone(n).await;
        agent.until_gone(n).await;
    }
}

#[tokio::test(start_paused = true)]
async fn limits_are_not_looked_at_where_that_is_switched_off() {
    let (mut node, meter) = node(&[]);
    node.settings.evict.local_limits = false;
    let agent = node.start_synced(&[with_volume("u", json!({"sizeLimit": "5Mi"}), Some("5Mi"))]).await;
    agent.until_ready("u").await;
    meter.set("u", Uses::volume("v", 500 * MIB));
    pass(3600 * SECOND).await;
    assert!(agent.is_ready("u"));
    assert_eq!(meter.asked("pods"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ends_well_when_it_is_evicted_has_succeeded() {
    let (node, meter) = node(&[]);
    node.fake.script("c", Script::forever().on_term(0, SECOND));
    let agent = node.start_synced(&[with_volume("u", json!({"sizeLimit": "5Mi"}), None)]).await;
    agent.until_ready("u").await;
    meter.set("u", Uses::volume("v", 6 * MIB));
    agent.until("it has ended", || agent.phase("u") == "Succeeded").await;
    pass(600 * SECOND).await;
    assert_eq!(end(&agent, "u"), ["Succeeded", "", ""]);
    assert_eq!(node.count("StartContainer"), 1);
}
