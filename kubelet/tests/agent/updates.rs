//! Manifests that change, pods that end, sandboxes that die, and what their statuses say.

use crate::support::{Node, SECOND, container, custom, pass, pod};
use cri::Code;
use cri::fake::{FakeImage, FakeRuntime, Fault, Pull, Script};
use cri::v1;
use kubelet::api::{Pod, PodUid};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

/// The pod `web` under this UID.
fn web(uid: &str) -> Pod {
    custom(uid, "web", json!({"containers": [container("main")]}))
}

/// UIDs of the sandboxes that were asked for, in order.
fn sandboxes_made(node: &Node) -> Vec<String> {
    let asked = node.fake.requests::<v1::RunPodSandboxRequest>();
    asked.into_iter().map(|r| r.config.unwrap().metadata.unwrap().uid).collect()
}

#[tokio::test(start_paused = true)]
async fn the_successor_of_a_name_begins_when_nothing_is_left_of_the_older_pod() {
    let node = Node::new();
    node.fake.script("main", Script::forever().on_term(0, 5 * SECOND));
    let agent = node.start_synced(&[web("u1")]).await;
    agent.until_ready("u1").await;
    agent.gone("u1").await;
    agent.put(&web("u2")).await;
    agent.until_ready("u2").await;
    let seq = |method: &str, n: usize| {
        node.fake.changes().iter().filter(|c| c.method == method).nth(n).unwrap().seq
    };
    assert!(seq("RemovePodSandbox", 0) < seq("RunPodSandbox", 1));
    node.assert_gone("u1");
    node.assert_whole("u2", &["main"]);
}

#[tokio::test(start_paused = true)]
async fn of_many_quick_changes_only_the_newest_runs_in_the_end() {
    let node = Node::new();
    node.fake.script("main", Script::forever().on_term(0, 5 * SECOND));
    let agent = node.start_synced(&[web("u0")]).await;
    agent.until_ready("u0").await;
    for n in 1..10 {
        agent.gone(&format!("u{}", n - 1)).await;
        agent.put(&web(&format!("u{n}"))).await;
    }
    agent.until_ready("u9").await;
    pass(600 * SECOND).await;
    assert_eq!(sandboxes_made(&node), ["u0", "u9"]);
    node.assert_whole("u9", &["main"]);
    assert_eq!(node.counts(), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_change_taken_back_while_the_pod_ends_brings_it_back() {
    let node = Node::new();
    node.fake.script("main", Script::forever().on_term(0, 5 * SECOND));
    let agent = node.start_synced(&[web("u1")]).await;
    agent.until_ready("u1").await;
    agent.gone("u1").await;
    agent.put(&web("u2")).await;
    pass(SECOND).await;
    agent.gone("u2").await;
    agent.put(&web("u1")).await;
    agent.until("it was ended", || node.count("RemovePodSandbox") == 1).await;
    agent.until_ready("u1").await;
    assert_eq!(sandboxes_made(&node), ["u1", "u1"]);
    node.assert_whole("u1", &["main"]);
    // And what is taken back for good stays away.
    agent.gone("u1").await;
    agent.put(&web("u1")).await;
    agent.gone("u1").await;
    agent.until_gone("u1").await;
    pass(600 * SECOND).await;
    assert_eq!(node.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_pod_removed_while_its_sandbox_is_made_starts_nothing_and_leaves_nothing() {
    let node = Node::new();
    let agent = node.start_synced(&[]).await;
    node.fake.fault(Fault::delay("RunPodSandbox", 10 * SECOND));
    agent.put(&pod("u", &["a"])).await;
    agent.until("it is being made", || node.count("RunPodSandbox") == 1).await;
    agent.gone("u").await;
    agent.until_gone("u").await;
    assert_eq!(node.count("CreateContainer"), 0);
    assert_eq!(node.count("RemovePodSandbox"), 1);
    node.assert_gone("u");
}

#[tokio::test(start_paused = true)]
async fn removal_interrupts_a_pull() {
    let node = Node::with(FakeRuntime::builder());
    node.fake.on_pull("reg.test/app:1", Pull::gives(FakeImage::new("reg.test/app:1")).takes(3600 * SECOND));
    let agent = node.start_synced(&[pod("u", &["a"])]).await;
    agent.until("it pulls", || node.count("PullImage") == 1).await;
    let began = Instant::now();
    agent.gone("u").await;
    agent.until_gone("u").await;
    assert!(began.elapsed() < 3 * SECOND, "{:?}", began.elapsed());
    pass(7200 * SECOND).await;
    assert_eq!(node.count("CreateContainer"), 0);
    node.assert_gone("u");
}

#[tokio::test(start_paused = true)]
async fn a_new_object_with_the_same_uid_restarts_only_the_container_that_differs() {
    let node = Node::new();
    let agent = node.start_synced(&[pod("u", &["a", "b"])]).await;
    agent.until_ready("u").await;
    let (a, b) = (node.instances("u", "a").pop().unwrap(), node.instances("u", "b").pop().unwrap());
    let mut changed = pod("u", &["a", "b"]);
    changed.spec.as_mut().unwrap().containers[0].image = Some("reg.test/app:2".into());
    agent.put(&changed).await;
    agent.until("a was replaced", || node.running().len() == 2 && !node.running().contains(&a.id)).await;
    assert!(node.running().contains(&b.id));
    assert_eq!(node.count("RunPodSandbox"), 1);
    agent.put(&changed).await;
    pass(60 * SECOND).await;
    assert_eq!(node.count("CreateContainer"), 3, "the same object again is no change");
    assert!(agent.events().iter().any(|e| e == "Killing: Container a definition changed, will be restarted"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_has_the_grace_it_asks_for_and_at_least_two_seconds() {
    for (spec, want) in [(Some(7), 7), (Some(0), 2), (Some(1), 2), (None, 30), (Some(3600), 3600)] {
        let node = Node::new();
        node.fake.script("main", Script::forever().ignores_term());
        let mut asked = pod("u", &["main"]);
        asked.spec.as_mut().unwrap().termination_grace_period_seconds = spec;
        let agent = node.start_synced(&[asked]).await;
        agent.until_ready("u").await;
        let began = Instant::now();
        agent.gone("u").await;
        agent.until_gone("u").await;
        let timeouts: Vec<i64> =
            node.fake.requests::<v1::StopContainerRequest>().iter().map(|r| r.timeout).collect();
        assert_eq!(timeouts, [want], "terminationGracePeriodSeconds {spec:?}");
        let took = began.elapsed().as_secs();
        assert!((want.unsigned_abs()..=want.unsigned_abs() + 1).contains(&took), "{took} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_ends_with_the_grace_of_its_deletion_and_stays_until_its_source_lets_go() {
    let node = Node::new();
    let agent = node.start_synced(&[pod("u", &["main"])]).await;
    agent.until_ready("u").await;
    let mut deleted = pod("u", &["main"]);
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(node.clock.now());
    deleted.metadata.deletion_timestamp = Some(now);
    deleted.metadata.deletion_grace_period_seconds = Some(11);
    agent.put(&deleted).await;
    agent.until("it ended", || agent.phase("u") == "Failed" || agent.phase("u") == "Succeeded").await;
    let timeouts: Vec<i64> =
        node.fake.requests::<v1::StopContainerRequest>().iter().map(|r| r.timeout).collect();
    assert_eq!(timeouts, [11]);
    pass(600 * SECOND).await;
    assert_eq!(node.counts(), (1, 1), "its logs are kept");
    assert_eq!(agent.state("u", "main")["terminated"]["exitCode"], 143);
    agent.gone("u").await;
    agent.until_gone("u").await;
    node.assert_gone("u");
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_dies_is_made_anew_with_everything_in_it() {
    let node = Node::new();
    let agent = node.start_synced(&[pod("u", &["a", "b"])]).await;
    agent.until_ready("u").await;
    pass(SECOND).await;
    let old = node.fake.sandboxes()[0].id.clone();
    node.fake.kill_sandbox(&old);
    let counts = || {
        let status = agent.status("u").unwrap();
        status.container_statuses.as_ref().unwrap().iter().map(|c| c.restart_count).collect::<Vec<_>>()
    };
    agent.until("both run again", || agent.is_ready("u") && counts() == [1, 1]).await;
    let changed = "SandboxChanged: Pod sandbox changed, it will be killed and re-created.";
    assert_eq!(agent.events().iter().filter(|e| *e == changed).count(), 1);
    let attempt = node.fake.sandboxes().last().unwrap().metadata.as_ref().unwrap().attempt;
    assert_eq!((attempt, node.running().len()), (1, 2));
    let ip = node.fake.sandboxes().last().unwrap().network.as_ref().unwrap().ip.clone();
    assert_eq!(agent.status("u").unwrap().pod_ip.as_deref(), Some(ip.as_str()));
    node.witness.assert_never_two();
    agent.gone("u").await;
    agent.until_gone("u").await;
    assert_eq!(node.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_container_killed_for_want_of_memory_says_so() {
    let node = Node::new();
    node.fake.script("main", Script::oom_killed(5 * SECOND));
    let spec = json!({"restartPolicy": "Never", "containers": [container("main")]});
    let agent = node.start_synced(&[custom("u", "u", spec)]).await;
    agent.until("it failed", || agent.phase("u") == "Failed").await;
    let state = agent.state("u", "main");
    assert_eq!(
        (&state["terminated"]["reason"], &state["terminated"]["exitCode"]),
        (&json!("OOMKilled"), &json!(137))
    );
    assert_eq!(
        node.fake.sandboxes()[0].state(),
        v1::PodSandboxState::SandboxNotready,
        "its sandbox was stopped"
    );
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_done_is_succeeded_and_runs_no_more_even_after_the_agent_restarts() {
    let node = Node::new();
    node.fake.script("main", Script::exits(0, 5 * SECOND));
    let job = custom("u", "u", json!({"restartPolicy": "OnFailure", "containers": [container("main")]}));
    let agent = node.start_synced(std::slice::from_ref(&job)).await;
    agent.until("it succeeded", || agent.phase("u") == "Succeeded").await;
    agent.kill().await;
    let agent = node.start_synced(&[job]).await;
    agent.until("it succeeded", || agent.phase("u") == "Succeeded").await;
    pass(Duration::from_secs(3600)).await;
    assert_eq!(node.count("CreateContainer"), 1);
    assert_eq!(node.count("RunPodSandbox"), 1);
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_one_after_the_other_before_the_rest() {
    let node = Node::new();
    node.fake.scripts("one", [Script::exits(1, SECOND), Script::exits(0, SECOND)]);
    node.fake.script("two", Script::exits(0, SECOND));
    let spec =
        json!({"initContainers": [container("one"), container("two")], "containers": [container("main")]});
    let agent = node.start_synced(&[custom("u", "u", spec)]).await;
    agent.until_ready("u").await;
    let started: Vec<String> = node
        .fake
        .calls()
        .iter()
        .filter(|c| c.method == "StartContainer")
        .map(|c| ["one", "two", "main"].iter().find(|n| c.is_about(n)).unwrap().to_string())
        .collect();
    assert_eq!(started, ["one", "one", "two", "main"]);
}

#[tokio::test(start_paused = true)]
async fn transition_times_move_only_with_the_condition() {
    let node = Node::new();
    let agent = node.start_synced(&[pod("u", &["main"])]).await;
    agent.until_ready("u").await;
    let (_, initialized) = agent.condition("u", "Initialized").unwrap();
    let (_, ready) = agent.condition("u", "Ready").unwrap();
    pass(100 * SECOND).await;
    // The first crash is followed by a restart at once, the second by a wait.
    for _ in 0..2 {
        let running = node.running();
        node.fake.exit(&running[0], 1);
        agent
            .until("it was seen", || {
                agent.status("u").unwrap().container_statuses.as_ref().unwrap()[0]
                    .last_state
                    .as_ref()
                    .is_some_and(|l| l.terminated.is_some())
            })
            .await;
        pass(SECOND).await;
    }
    let (state, unready) = agent.condition("u", "Ready").unwrap();
    assert_eq!(state, "False");
    assert_eq!(unready, ready + 101, "since the second crash");
    pass(5 * SECOND).await;
    assert_eq!(agent.condition("u", "Ready").unwrap().1, unready);
    agent.until_ready("u").await;
    assert_eq!(agent.condition("u", "Ready").unwrap().1, unready + 10, "since the end of the back-off");
    assert_eq!(agent.condition("u", "Initialized").unwrap(), ("True".into(), initialized));
}

#[tokio::test(start_paused = true)]
async fn pods_that_are_gone_are_forgotten_everywhere() {
    let node = Node::new();
    let agent = node.start_synced(&[]).await;
    for n in 0..30 {
        let uid = format!("u{n}");
        agent.put(&pod(&uid, &["main"])).await;
        agent.until_ready(&uid).await;
        agent.gone(&uid).await;
        agent.until_gone(&uid).await;
    }
    pass(60 * SECOND).await;
    for n in 0..30 {
        let uid = PodUid::new(&format!("u{n}"));
        assert!(agent.agent.pleg.seen(&uid).is_none(), "{uid}");
        assert!(agent.agent.statuses.get(&uid).is_none(), "{uid}");
    }
    assert!(agent.agent.pods().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_containers_of_a_pod_that_goes_are_removed_side_by_side() {
    let names = ["a", "b", "c", "d", "e"];
    let node = Node::new();
    let agent = node.start_synced(&[pod("u", &names)]).await;
    agent.until_ready("u").await;
    node.fake.fault(Fault::delay("RemoveContainer", 10 * SECOND));
    let began = Instant::now();
    agent.gone("u").await;
    agent.until_gone("u").await;
    assert!(began.elapsed() < 20 * SECOND, "{:?}", began.elapsed());
    let removed = |n: usize| node.fake.changes()[n].method == "RemoveContainer";
    let first = (0..node.fake.changes().len()).find(|n| removed(*n)).unwrap();
    assert!((first..first + names.len()).all(removed), "{:?}", node.changes());
    node.assert_gone("u");
}

#[tokio::test(start_paused = true)]
async fn a_container_that_cannot_be_removed_keeps_only_itself_and_the_sandbox() {
    let node = Node::new();
    let agent = node.start_synced(&[pod("u", &["a", "b", "c"])]).await;
    agent.until_ready("u").await;
    let kept = node.fake.fault(Fault::fail("RemoveContainer", Code::Internal, "busy").object("b").times(3));
    agent.gone("u").await;
    agent.until("it was tried", || kept.hits() == 1).await;
    agent.until("the others are gone", || node.counts() == (1, 1)).await;
    assert_eq!(node.instances("u", "b").len(), 1);
    assert_eq!(node.count("RemovePodSandbox"), 0);
    agent.until_gone("u").await;
    assert_eq!((kept.hits(), node.count("RemoveContainer")), (3, 6));
    node.assert_gone("u");
}

#[tokio::test(start_paused = true)]
async fn removals_that_fail_side_by_side_are_tried_again_as_soon_as_one_would_be() {
    let node = Node::new();
    let agent = node.start_synced(&[pod("u", &["a", "b", "c", "d"])]).await;
    agent.until_ready("u").await;
    node.fake.fault(Fault::fail("RemoveContainer", Code::Internal, "busy").times(12));
    agent.gone("u").await;
    agent.until_gone("u").await;
    let calls = node.fake.calls();
    let at: Vec<Instant> = calls.iter().filter(|c| c.method == "RemoveContainer").map(|c| c.at).collect();
    let gaps = at.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).filter(|gap| *gap > 0);
    assert_eq!((at.len(), gaps.collect::<Vec<_>>()), (16, vec![1, 2, 4]));
    node.assert_gone("u");
}

#[tokio::test(start_paused = true)]
async fn each_sandbox_resolves_names_as_the_node_does_by_then() {
    let mut node = Node::new();
    let file = node.path("resolv.conf");
    node.settings.facts.resolv_conf = Some(file.clone());
    std::fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
    let agent = node.start_synced(&[pod("u1", &["main"])]).await;
    agent.until_ready("u1").await;
    std::fs::remove_file(&file).unwrap();
    agent.events();
    agent.put(&pod("u2", &["main"])).await;
    let failed = "FailedCreatePodSandBox: Failed to create pod sandbox: ";
    let text = format!("{failed}{}: No such file or directory (os error 2)", file.display());
    agent.until("it was told", || agent.events().contains(&text)).await;
    std::fs::write(&file, b"# caf\xe9\nnameserver 192.0.2.2\n").unwrap();
    agent.until_ready("u2").await;
    let asked = node.fake.requests::<v1::RunPodSandboxRequest>();
    let servers = |r: &v1::RunPodSandboxRequest| r.config.clone().unwrap().dns_config.unwrap().servers;
    assert_eq!(asked.iter().map(servers).collect::<Vec<_>>(), [["192.0.2.1"], ["192.0.2.2"]]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_on_the_hosts_network_has_the_hosts_names_whatever_bytes_they_are() {
    let node = Node::new();
    let names = b"127.0.0.1 localhost # caf\xe9\n";
    std::fs::write(node.path("hosts"), names).unwrap();
    let spec = json!({"hostNetwork": true, "containers": [container("main")]});
    let agent = node.start_synced(&[custom("u", "u", spec)]).await;
    agent.until_ready("u").await;
    let file = std::fs::read(node.path("root/pods/u/etc-hosts")).unwrap();
    assert!(file.ends_with(names), "{file:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_could_not_be_made_is_gone_without_a_wait() {
    let node = Node::new();
    node.fake.fault(Fault::fail("RunPodSandbox", Code::Unknown, "no"));
    let agent = node.start_synced(&[pod("u", &["a"])]).await;
    agent.until("it failed again and again", || node.count("RunPodSandbox") == 6).await;
    pass(SECOND).await;
    let began = Instant::now();
    agent.gone("u").await;
    agent.until_gone("u").await;
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    node.assert_gone("u");
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_ended_is_told() {
    let node = Node::new();
    let agent = node.start_synced(&[pod("u", &["a", "b"])]).await;
    agent.until_ready("u").await;
    node.fake.fault(Fault::fail("StopContainer", Code::Unknown, "no").object("a").once());
    node.fake.fault(Fault::fail("StopPodSandbox", Code::Unknown, "nor that").once());
    agent.gone("u").await;
    agent.until_gone("u").await;
    let told = agent.events().into_iter().filter(|e| e.starts_with("FailedKillPod")).collect::<Vec<_>>();
    let error = |what: &str, whose: &str, why: &str| {
        format!(
            "FailedKillPod: error killing pod: failed to \"{what}\" for \"{whose}\" with {what}Error: \
             \"rpc error: code = Unknown desc = {why}\""
        )
    };
    assert_eq!(told, [error("KillContainer", "a", "no"), error("KillPodSandbox", "u", "nor that")]);
}

#[tokio::test(start_paused = true)]
async fn volumes_that_a_pod_gains_are_there_for_its_next_container() {
    let node = Node::new();
    let agent = node.start_synced(&[pod("u", &["main"])]).await;
    agent.until_ready("u").await;
    let mut main = container("main");
    main["image"] = json!("reg.test/app:2");
    main["volumeMounts"] = json!([{"name": "new", "mountPath": "/new"}]);
    let spec = json!({"containers": [main], "volumes": [{"name": "new", "emptyDir": {}}]});
    agent.put(&custom("u", "u", spec)).await;
    agent.until("it runs anew", || node.count("StartContainer") == 2 && agent.is_ready("u")).await;
    let made = node.fake.requests::<v1::CreateContainerRequest>().pop().unwrap().config.unwrap();
    let mount = made.mounts.iter().find(|m| m.container_path == "/new").unwrap();
    assert!(std::path::Path::new(&mount.host_path).is_dir(), "{mount:?}");
}
