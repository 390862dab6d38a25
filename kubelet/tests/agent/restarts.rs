//! An agent that is killed, and the next one.

use crate::support::{Node, SECOND, container, custom, fake_cgroups, pass, pod};
use cri::fake::{Call, Fault, Script};
use kubelet::api::{Origin, PodUid};
use kubelet::source::SourceEvent;
use serde_json::json;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use tracing_subscriber::layer::SubscriberExt;

#[tokio::test(start_paused = true)]
async fn an_agent_that_ends_leaves_everything_as_it_is() {
    let node = Node::new();
    let agent = node.start_synced(&[pod("u", &["a", "b"])]).await;
    agent.until_ready("u").await;
    let (running, changes) = (node.running(), node.fake.changes().len());
    agent.kill().await;
    pass(Duration::from_secs(3600)).await;
    assert_eq!((node.running(), node.fake.changes().len()), (running, changes));
}

#[tokio::test(start_paused = true)]
async fn the_next_agent_takes_over_what_runs_and_its_readiness_does_not_flap() {
    let node = Node::new();
    let pods: Vec<_> = (0..20).map(|n| pod(&format!("u{n}"), &["a"])).collect();
    let agent = node.start_synced(&pods).await;
    agent.until("all are ready", || (0..20).all(|n| agent.is_ready(&format!("u{n}")))).await;
    let (running, started) = (node.running(), agent.status("u7").unwrap().start_time.clone());
    let changes = node.fake.changes().len();
    agent.kill().await;
    pass(100 * SECOND).await;
    let agent = node.start().await;
    let mut statuses = agent.agent.statuses.subscribe();
    for p in &pods {
        agent.put(p).await;
    }
    agent.synced().await;
    agent.until("all are ready", || (0..20).all(|n| agent.is_ready(&format!("u{n}")))).await;
    pass(100 * SECOND).await;
    assert_eq!((node.running(), node.fake.changes().len()), (running, changes), "nothing was touched");
    assert_eq!(agent.status("u7").unwrap().start_time, started);
    let mut seen = 0;
    while let Ok(change) = statuses.try_recv() {
        let status = change.status.unwrap();
        let ready = status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!(ready.status, "True", "{}: {status:?}", change.pod);
        seen += 1;
    }
    assert_eq!(seen, 20, "each pod's status is told once");
}

/// What a call is about, for a fault: the container, else the pod; nothing for lists.
fn object(call: &Call) -> Option<String> {
    ["a", "b", "u"].iter().find(|name| call.is_about(name)).map(|n| (*n).to_owned())
}

/// Every call, by name and object, that a pod of two containers needs to start and then to end.
async fn script() -> (Vec<(&'static str, Option<String>)>, Vec<(&'static str, Option<String>)>) {
    let node = Node::new();
    let agent = node.start_synced(&[]).await;
    node.fake.forget_calls();
    agent.put(&pod("u", &["a", "b"])).await;
    agent.until_ready("u").await;
    let calls = |node: &Node| {
        let mut met = HashSet::new();
        let calls = node.fake.calls();
        let each = calls.iter().map(|c| (c.method, object(c)));
        each.filter(|c| met.insert(c.clone())).collect::<Vec<_>>()
    };
    let start = calls(&node);
    node.fake.forget_calls();
    agent.gone("u").await;
    agent.until_gone("u").await;
    (start, calls(&node))
}

fn fault(call: &'static str, object: &Option<String>, after: bool) -> Fault {
    let fault = if after { Fault::hang_answer(call) } else { Fault::hang(call) };
    match object {
        Some(object) => fault.object(object.clone()),
        None => fault,
    }
    .once()
}

#[tokio::test(start_paused = true)]
async fn an_agent_killed_at_any_call_of_a_start_is_followed_by_one_that_completes_it() {
    let (start, _) = script().await;
    let changing = ["RunPodSandbox", "CreateContainer", "StartContainer"];
    assert!(changing.iter().all(|c| start.iter().any(|(call, _)| call == c)), "{start:?}");
    for (call, object) in &start {
        for after in [false, true] {
            let what = format!("{call} {object:?}, killed {}", if after { "after" } else { "before" });
            let node = Node::new();
            let agent = node.start_synced(&[]).await;
            let hung = node.fake.fault(fault(call, object, after));
            agent.put(&pod("u", &["a", "b"])).await;
            agent.until(&what, || hung.hits() == 1).await;
            agent.kill().await;
            hung.release();
            let agent = node.start_synced(&[pod("u", &["a", "b"])]).await;
            agent.until(&what, || agent.is_ready("u") && node.running().len() == 2).await;
            pass(60 * SECOND).await;
            node.assert_whole("u", &["a", "b"]);
            let attempts: Vec<u32> =
                node.fake.containers().iter().map(|c| c.metadata.as_ref().unwrap().attempt).collect();
            assert_eq!(attempts, [0, 0], "{what}: restarted");
            assert_eq!(
                node.count("StopContainer") + node.count("StopPodSandbox"),
                0,
                "{what}: something was stopped"
            );
            node.witness.assert_never_two();
            agent.gone("u").await;
            agent.until_gone("u").await;
            node.assert_gone("u");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_killed_at_any_call_of_an_end_is_followed_by_one_that_completes_it() {
    let (_, end) = script().await;
    let changing = ["StopContainer", "StopPodSandbox", "RemoveContainer", "RemovePodSandbox"];
    assert!(changing.iter().all(|c| end.iter().any(|(call, _)| call == c)), "{end:?}");
    for (call, object) in &end {
        for after in [false, true] {
            let what = format!("{call} {object:?}, killed {}", if after { "after" } else { "before" });
            let node = Node::new();
            let agent = node.start_synced(&[pod("u", &["a", "b"])]).await;
            agent.until_ready("u").await;
            let hung = node.fake.fault(fault(call, object, after));
            agent.gone("u").await;
            agent.until(&what, || hung.hits() == 1).await;
            agent.kill().await;
            hung.release();
            // Its source no longer has it.
            let agent = node.start_synced(&[]).await;
            agent.until(&what, || node.left_of("u").is_empty()).await;
            pass(60 * SECOND).await;
            assert_eq!(node.count("RunPodSandbox"), 1, "{what}");
            drop(agent);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_status_that_hangs_at_the_start_delays_nobody_and_costs_no_container() {
    for call in ["ContainerStatus", "PodSandboxStatus"] {
        let node = Node::new();
        let pods: Vec<_> = (0..4).map(|n| pod(&format!("u{n}"), &["a"])).collect();
        let agent = node.start_synced(&pods).await;
        agent.until("all are ready", || (0..4).all(|n| agent.is_ready(&format!("u{n}")))).await;
        agent.kill().await;
        let (running, changes) = (node.running(), node.fake.changes().len());
        let hung = node.fake.fault(Fault::hang(call).object("u0"));
        let began = Instant::now();
        let agent = node.start_synced(&pods).await;
        agent.until("the others are ready", || (1..4).all(|n| agent.is_ready(&format!("u{n}")))).await;
        assert!(began.elapsed() <= 3 * SECOND, "{call}: {:?}", began.elapsed());
        // Past the deadline of the call, too.
        pass(600 * SECOND).await;
        assert!(!agent.is_ready("u0"));
        assert_eq!(node.running(), running, "{call}");
        hung.release();
        agent.until_ready("u0").await;
        assert_eq!(
            (node.running(), node.fake.changes().len()),
            (running, changes),
            "{call}: nothing was touched"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_status_hangs_can_be_removed_all_the_same() {
    let node = Node::new();
    let agent = node.start_synced(&[pod("u", &["a"])]).await;
    agent.until_ready("u").await;
    agent.kill().await;
    let hung = node.fake.fault(Fault::hang("ContainerStatus").object("u"));
    let agent = node.start_synced(&[]).await;
    agent.until("it was ended", || node.running().is_empty()).await;
    hung.release();
    agent.until("it is gone", || node.left_of("u").is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn orphans_are_ended_only_when_every_source_has_told_all() {
    let mut node = Node::new();
    let agent = node.start_synced(&[pod("kept", &["a"]), pod("orphan", &["a"])]).await;
    agent.until("both are ready", || agent.is_ready("kept") && agent.is_ready("orphan")).await;
    agent.kill().await;
    let kept = node.instances("kept", "a")[0].id.clone();
    let changes = node.fake.changes().len();
    node.settings.other_sources = HashSet::from([Origin::Api, Origin::Http]);
    let agent = node.start_synced(&[pod("kept", &["a"])]).await;
    pass(Duration::from_secs(3600)).await;
    assert_eq!(node.fake.changes().len(), changes, "one source has not told all");
    agent.agent.sources.send(SourceEvent::Synced(Origin::Http)).await.unwrap();
    agent.until("the orphan is gone", || node.left_of("orphan").is_empty()).await;
    assert_eq!(node.running(), [kept]);
    let stop = node.fake.requests::<cri::v1::StopContainerRequest>();
    assert_eq!(stop.iter().map(|r| r.timeout).collect::<Vec<_>>(), [30], "with the grace of its own spec");
}

#[tokio::test(start_paused = true)]
async fn without_a_picture_of_the_runtime_nothing_is_ended_and_nothing_started() {
    let node = Node::new();
    let agent = node.start_synced(&[pod("orphan", &["a"])]).await;
    agent.until_ready("orphan").await;
    agent.kill().await;
    let changes = node.fake.changes().len();
    let hung = node.fake.fault(Fault::hang("ListContainers"));
    let agent = node.start_synced(&[pod("new", &["a"])]).await;
    pass(Duration::from_secs(3600)).await;
    assert_eq!(node.fake.changes().len(), changes);
    assert!(agent.agent.healthy().is_err());
    hung.release();
    agent.until_ready("new").await;
    agent.until("the orphan is gone", || node.counts() == (1, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn directories_and_cgroups_that_no_pod_has_are_removed() {
    let mut node = Node::new();
    node.settings.cgroup = fake_cgroups(&node.path(""), true);
    let dirs = [
        node.path("root/pods/left-1/volumes"),
        node.path("logs/ns_name_left-1/a"),
        node.path("cgroup/memory/kubepods/burstable/podleft-2"),
        node.path("cgroup/memory/kubepods/podleft-3"),
    ];
    for dir in &dirs {
        std::fs::create_dir_all(dir).unwrap();
    }
    let agent = node.start_synced(&[]).await;
    agent.until("nothing is left", || dirs.iter().all(|d| !d.exists())).await;
    assert!(!node.path("logs/ns_name_left-1").exists());
    assert!(node.fake.changes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn pods_whose_uids_left_directories_wait_for_their_removal_and_all_of_them_begin() {
    let node = Node::new();
    for uid in ["left-1", "left-2"] {
        std::fs::create_dir_all(node.path("root/pods").join(uid).join("volumes")).unwrap();
    }
    let agent = node.start().await;
    agent.until("it can be asked", || agent.agent.healthy().is_ok()).await;
    // Nothing is seen to be gone before this is released.
    let hung = node.fake.fault(Fault::hang("ListContainers"));
    agent.synced().await;
    agent.put(&pod("left-1", &["a"])).await;
    agent.put(&pod("left-2", &["a"])).await;
    pass(SECOND).await;
    assert_eq!(node.count("RunPodSandbox"), 0);
    hung.release();
    agent.until("both are ready", || agent.is_ready("left-1") && agent.is_ready("left-2")).await;
}

#[tokio::test(start_paused = true)]
async fn a_hosts_file_that_was_left_half_written_is_made_whole() {
    let node = Node::new();
    let agent = node.start_synced(&[pod("u", &["a"])]).await;
    agent.until_ready("u").await;
    let path = node.path("root/pods/u/etc-hosts");
    let whole = std::fs::read(&path).unwrap();
    agent.kill().await;
    std::fs::write(&path, b"127.0.0.1\tlo").unwrap();
    let agent = node.start_synced(&[pod("u", &["a"])]).await;
    agent.until_ready("u").await;
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    assert_eq!(node.count("StartContainer"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_a_uid_that_can_name_nothing_is_removed_from_the_runtime() {
    let mut node = Node::new();
    node.settings.cgroup = fake_cgroups(&node.path(""), true);
    let somebody = node.fake.client();
    somebody.connected().await;
    let labels = [("io.kubernetes.pod.uid", "team/a"), ("io.kubernetes.pod.name", "p")];
    let config = cri::v1::PodSandboxConfig {
        metadata: Some(cri::v1::PodSandboxMetadata {
            name: "p".into(),
            uid: "team/a".into(),
            namespace: "ns".into(),
            attempt: 0,
        }),
        labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        ..Default::default()
    };
    somebody.run_pod_sandbox(config, "").await.unwrap();
    let agent = node.start_synced(&[]).await;
    agent.until("it is gone", || node.counts() == (0, 0)).await;
    agent.until("it is forgotten", || agent.agent.pleg.seen(&PodUid::new("team/a")).is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_was_replaced_while_no_agent_ran_ends_before_its_successor_begins() {
    let mut node = Node::new();
    node.settings.other_sources = HashSet::from([Origin::Api]);
    node.fake.script("main", Script::forever().on_term(0, 10 * SECOND));
    let spec = json!({"containers": [container("main")]});
    let agent = node.start_synced(&[custom("old", "web", spec.clone())]).await;
    agent.until_ready("old").await;
    agent.kill().await;
    let agent = node.start_synced(&[custom("new", "web", spec)]).await;
    agent.until_ready("new").await;
    node.assert_gone("old");
    let at = |method: &str, n: usize| {
        node.fake.calls().iter().filter(|c| c.method == method).nth(n).map(|c| c.seq)
    };
    assert!(at("RemovePodSandbox", 0) < at("RunPodSandbox", 1), "{:?}", node.changes());
}

/// Panics once, at the first log line with this text.
struct PanicAt(&'static str, AtomicBool);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for PanicAt {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        if text.0 == self.0 && !self.1.swap(true, Ordering::Relaxed) {
            panic!("a bug, by order");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_panics_is_replaced_and_its_pod_goes_on() {
    let layer = PanicAt("pod started", AtomicBool::new(false));
    let _logs = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
    let node = Node::new();
    let agent = node.start_synced(&[pod("u", &["a"])]).await;
    agent.until_ready("u").await;
    let first = node.running();
    pass(10 * SECOND).await;
    node.fake.exit(&first[0], 1);
    agent.until("its actor still acts", || node.running().len() == 1 && node.running() != first).await;
    assert_eq!(node.count("RunPodSandbox"), 1);
    agent.gone("u").await;
    agent.until_gone("u").await;
    node.assert_gone("u");
}
