//! The runtime away, broken or hung.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use cri::fake::{FakeRuntime, Fault};
use cri::v1;
use k8s_openapi::api::core::v1::Pod;
use node_e2e::manifest::{FOREVER, pod, sh};
use node_e2e::marks::{Marks, number};
use node_e2e::proxy::Proxy;
use node_e2e::wait::eventually;
use node_e2e::{Node, Options, http, status};
use std::collections::BTreeMap;
use std::time::Duration;
use xtask::image::DEMO;

/// A node with a runtime that may be killed; skipped aloud where it is somebody else's.
async fn with_own_runtime() -> Option<Node> {
    let mut node = Node::start().await?;
    node.runtime_killed = true;
    if node.turn.as_ref()?.private().is_none() {
        node_e2e::skip("the runtime of CRI_SOCKET is not ours to kill");
        node.finish().await;
        return None;
    }
    Some(node)
}

async fn ready(node: &mut Node, marks: &Marks, names: std::ops::Range<u32>) -> Vec<Pod> {
    for n in names.clone() {
        node.put(&format!("p-{n}"), marks.pod(&format!("p-{n}"), 1));
    }
    all_ready(node, names).await
}

async fn all_ready(node: &Node, names: std::ops::Range<u32>) -> Vec<Pod> {
    let mut pods = Vec::new();
    for n in names {
        pods.push(node.wait_ready(&format!("p-{n}")).await);
    }
    pods
}

/// The same containers, never restarted, started once.
fn untouched(marks: &Marks, before: &[Pod], after: &[Pod]) {
    for (n, (old, new)) in before.iter().zip(after).enumerate() {
        assert_eq!(status::id(old, "c"), status::id(new, "c"));
        assert_eq!(status::restarts(new, "c"), 0);
        assert_eq!(marks.history(&format!("p-{n}")), ["start 1"]);
    }
    marks.none_ran_twice_at_once();
}

#[tokio::test]
async fn a_runtime_killed_under_load_costs_no_running_container() {
    let Some(mut node) = with_own_runtime().await else { return };
    let marks = Marks::new(&node.dir);
    let before = ready(&mut node, &marks, 0..5).await;
    for round in 0..3 {
        for n in 5..15 {
            node.put(&format!("p-{n}"), marks.pod(&format!("p-{n}"), round));
        }
        // In the middle of the work: some of the new ones are being made.
        eventually("some sandbox of this round is there", async || {
            let suffix = format!("-v{round}");
            let all = node.cri.list_pod_sandboxes(None).await.map_err(|e| e.to_string())?;
            let mut uids = all.iter().filter_map(|s| s.metadata.as_ref().map(|m| m.uid.as_str()));
            if uids.any(|uid| uid.ends_with(&suffix)) { Ok(()) } else { Err("none".to_owned()) }
        })
        .await;
        node.turn.as_mut().unwrap().private_mut().unwrap().restart().await.unwrap();
    }
    for n in 5..15 {
        let name = format!("p-{n}");
        let uid = Marks::uid(&name, 2);
        node.wait(&name, "Ready in its last version", |p| status::uid(p) == uid && status::is(p, "Ready"))
            .await;
    }
    let after = all_ready(&node, 0..5).await;
    untouched(&marks, &before, &after);
    node.wait_clean().await;
    node.finish().await;
}

#[tokio::test]
async fn a_runtime_that_is_away_for_a_while_is_waited_for() {
    let Some(mut node) = with_own_runtime().await else { return };
    let marks = Marks::new(&node.dir);
    let before = ready(&mut node, &marks, 0..3).await;
    node.put("leaves", pod("leaves", [sh("c", FOREVER)]));
    node.wait_ready("leaves").await;
    node.turn.as_mut().unwrap().private_mut().unwrap().kill9().unwrap();
    node.put("p-3", marks.pod("p-3", 1));
    node.remove("leaves");
    // The length of the outage is the point of the test.
    let outage = number("STEVEDORE_OUTAGE", 60);
    tokio::time::sleep(Duration::from_secs(outage)).await;
    // It is the runtime that is ill, not the agent: restarting the agent would not help.
    let health = http::get(node.healthz, "/healthz").await.unwrap();
    assert_eq!(health.status, 200, "{}", health.body);
    assert_eq!(node.pods().await.unwrap().len(), 5, "the agent forgot pods while the runtime was away");
    node.turn.as_mut().unwrap().private_mut().unwrap().restart().await.unwrap();
    node.wait_healthy().await;
    node.wait_ready("p-3").await;
    node.wait_gone("leaves").await;
    let after = all_ready(&node, 0..3).await;
    untouched(&marks, &before, &after);
    node.wait_clean().await;
    node.finish().await;
}

#[tokio::test]
async fn connections_to_the_runtime_may_break_at_any_instant() {
    let Some(mut node) = Node::start_with(Options { stopped: true, ..Options::default() }).await else {
        return;
    };
    let socket = node.dir.join("proxy.sock");
    let proxy = Proxy::start(&socket, &node.turn.as_ref().unwrap().socket()).unwrap();
    node.reconfigure(
        &serde_json::json!({ "containerRuntimeEndpoint": format!("unix://{}", socket.display()) }),
    );
    node.launch().await;
    node.wait_healthy().await;
    let marks = Marks::new(&node.dir);
    let before = ready(&mut node, &marks, 0..3).await;
    for round in 0..10_u64 {
        node.put("p-3", marks.pod("p-3", u32::try_from(round).unwrap()));
        tokio::time::sleep(Duration::from_millis(round * 60)).await;
        proxy.cut();
    }
    // What ends while nobody listens is noticed all the same.
    let pid = node.container_pid(&before[0], "c").await;
    proxy.cut();
    xtask::proc::ProcId::of(pid).unwrap().signal(rustix::process::Signal::KILL);
    proxy.cut();
    node.wait("p-0", "restarted", |p| status::restarts(p, "c") == 1 && status::is(p, "Ready")).await;
    let last = Marks::uid("p-3", 9);
    node.wait("p-3", "Ready in its last version", |p| status::uid(p) == last && status::is(p, "Ready")).await;
    let after = all_ready(&node, 1..3).await;
    for (old, new) in before[1..].iter().zip(&after) {
        assert_eq!(status::id(old, "c"), status::id(new, "c"));
    }
    marks.none_ran_twice_at_once();
    node.wait_clean().await;
    node.finish().await;
}

/// An agent on a runtime in memory, which commits faults to order.
async fn on_a_fake() -> Option<(Node, FakeRuntime, cri::fake::Served, tempfile::TempDir)> {
    if !nix::unistd::geteuid().is_root() {
        node_e2e::skip("needs root: the agent makes cgroups");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeRuntime::builder().any_image().build();
    let served = fake.serve(dir.path().join("cri.sock")).await.unwrap();
    let options = Options { endpoint: Some(served.path().to_path_buf()), fake: true, ..Options::default() };
    Some((Node::start_with(options).await?, fake, served, dir))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_never_returns_holds_up_its_own_pod_only() {
    let Some((mut node, fake, _served, _dir)) = on_a_fake().await else { return };
    for (call, name) in [
        ("RunPodSandbox", "stuck-sandbox"),
        ("CreateContainer", "stuck-create"),
        ("StartContainer", "stuck-start"),
        ("StopContainer", "stuck-stop"),
    ] {
        let object = node.full(name);
        let hung = fake.fault(Fault::hang(call).object(object));
        node.put(name, pod(name, [sh("c", FOREVER)]));
        if call == "StopContainer" {
            node.wait_ready(name).await;
            node.remove(name);
        }
        eventually(
            &format!("{call} hangs"),
            async || if hung.hits() > 0 { Ok(()) } else { Err("no".to_owned()) },
        )
        .await;
        let beside = format!("beside-{name}");
        node.put(&beside, pod(&beside, [sh("c", FOREVER)]));
        node.wait_within(Duration::from_secs(20), &beside, "Ready beside it", |p| status::is(p, "Ready"))
            .await;
        node.remove(&beside);
        node.wait_gone(&beside).await;
        let health = http::get(node.healthz, "/healthz").await.unwrap();
        assert_eq!(health.status, 200, "one hung call made the node unhealthy: {}", health.body);
        hung.release();
        if call == "StopContainer" {
            node.wait_gone(name).await;
        } else {
            node.wait_ready(name).await;
        }
    }
    node.finish_on_fake(&fake).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_that_never_comes_holds_up_its_own_pod_only_also_after_a_restart() {
    let Some((mut node, fake, _served, _dir)) = on_a_fake().await else { return };
    node.put("mute", pod("mute", [sh("c", FOREVER)]));
    node.put("open", pod("open", [sh("c", FOREVER)]));
    node.wait_ready("mute").await;
    node.wait_ready("open").await;
    let mute = fake
        .containers()
        .into_iter()
        .find(|c| c.labels["io.kubernetes.pod.name"].starts_with("mute"))
        .unwrap();
    let hung = fake.fault(Fault::hang("ContainerStatus").object(mute.id.clone()));
    node.kill9();
    node.launch().await;
    node.wait_healthy().await;
    node.put("later", pod("later", [sh("c", FOREVER)]));
    node.wait_ready("later").await;
    node.wait_ready("open").await;
    hung.release();
    node.wait_ready("mute").await;
    assert_eq!(fake.containers().iter().filter(|c| c.id == mute.id && c.exit_code == 0).count(), 1);
    node.finish_on_fake(&fake).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_event_stream_is_opened_anew_and_what_was_missed_is_found() {
    let Some((mut node, fake, _served, _dir)) = on_a_fake().await else { return };
    node.put("web", pod("web", [sh("c", FOREVER)]));
    node.wait_ready("web").await;
    for round in 1..=2 {
        // The end of the container is not told; only the broken stream is.
        let running = node.pod("web").await.unwrap();
        fake.lose_events(1);
        fake.exit(status::id(&running, "c").unwrap(), 1);
        fake.drop_event_streams();
        node.wait("web", "restarted", |p| status::restarts(p, "c") == round && status::running(p, "c")).await;
        eventually("the agent listens again", async || match fake.event_streams() {
            1 => Ok(()),
            n => Err(format!("{n} streams")),
        })
        .await;
    }
    node.finish_on_fake(&fake).await;
}

/// The runtime does not know that the container's task runs: left now and then of a StartContainer whose client went away.
/// Made here behind the back of containerd's CRI service.
#[tokio::test]
async fn a_task_that_containerd_lost_sight_of_does_not_keep_its_pod() {
    let options = Options { stopped: true, ..Options::default() };
    let Some(mut node) = Node::start_with(options).await else { return };
    let Some(containerd) = node.turn.as_ref().and_then(|t| t.private()) else {
        node_e2e::skip("the runtime of CRI_SOCKET may be no containerd, or have no ctr");
        return node.finish().await;
    };
    let (ctr, socket) = (containerd.installed().ctr(), containerd.socket());
    let labels = BTreeMap::from(
        [("name", "lost"), ("namespace", "default"), ("uid", "lost-1")]
            .map(|(key, value)| (format!("io.kubernetes.pod.{key}"), value.to_owned())),
    );
    let options = v1::NamespaceOption {
        network: v1::NamespaceMode::Node.into(),
        pid: v1::NamespaceMode::Container.into(),
        ..Default::default()
    };
    let context =
        v1::LinuxSandboxSecurityContext { namespace_options: Some(options.clone()), ..Default::default() };
    let sandbox = v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "lost".into(),
            uid: "lost-1".into(),
            namespace: "default".into(),
            attempt: 0,
        }),
        labels: labels.clone(),
        linux: Some(v1::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() }),
        ..Default::default()
    };
    let sandbox_id = node.cri.run_pod_sandbox(sandbox.clone(), "").await.unwrap();
    let context =
        v1::LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
    let mut container_labels = labels;
    container_labels.insert("io.kubernetes.container.name".to_owned(), "c".to_owned());
    let container = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "c".into(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: DEMO.to_owned(), ..Default::default() }),
        command: vec!["sleep".to_owned(), "100000".to_owned()],
        labels: container_labels,
        linux: Some(v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() }),
        ..Default::default()
    };
    let id = node.cri.create_container(&sandbox_id, container, sandbox).await.unwrap();
    let started = tokio::process::Command::new(ctr)
        .arg("--address")
        .arg(socket)
        .args(["--namespace", "k8s.io", "task", "start", "--detach", &id])
        .output()
        .await
        .unwrap();
    assert!(started.status.success(), "{started:?}");
    let seen = node.cri.container_status(&id, false).await.unwrap().status.unwrap();
    assert_eq!(seen.state(), v1::ContainerState::ContainerCreated);

    node.launch().await;
    node.wait_healthy().await;
    node.wait_clean().await;
    assert!(node.log().contains("deleting it"), "the task was in nobody's way");
    node.finish().await;
}
