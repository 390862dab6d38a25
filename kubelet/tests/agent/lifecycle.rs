//! Sidecars, ephemeral containers, restart rules and restart counts, as the runtime and the pod's owner see them.

use crate::support::{Node, Running, SECOND, container, custom, pass, pod};
use cri::fake::{FakeRuntime, Fault, Script};
use cri::v1;
use kubelet::api::Pod;
use serde_json::{Value, json};
use std::time::Duration;

fn sidecar(name: &str) -> Value {
    let mut c = container(name);
    c["restartPolicy"] = json!("Always");
    c
}

/// Names of containers in the order of the calls of `method`.
fn order(node: &Node, method: &str, names: &[&str]) -> Vec<String> {
    let calls = node.fake.calls();
    let about = |c: &cri::fake::Call| names.iter().find(|n| c.is_about(n)).map(|n| (*n).to_owned());
    calls.iter().filter(|c| c.method == method).filter_map(about).collect()
}

fn count(agent: &Running, uid: &str, container: &str) -> i32 {
    let status = agent.status(uid).unwrap();
    let lists = [&status.container_statuses, &status.init_container_statuses];
    lists.into_iter().flatten().flatten().find(|c| c.name == container).unwrap().restart_count
}

/// Seconds between SIGTERM and SIGKILL that were asked for, in order.
fn graces(node: &Node) -> Vec<i64> {
    node.fake.requests::<v1::StopContainerRequest>().iter().map(|r| r.timeout).collect()
}

#[tokio::test(start_paused = true)]
async fn sidecars_start_in_order_among_init_containers_and_stop_last_with_what_is_left_of_the_grace() {
    let node = Node::new();
    let names = ["first", "one", "second", "main"];
    node.fake.script("one", Script::exits(0, SECOND));
    node.fake.script("main", Script::forever().on_term(0, 10 * SECOND));
    node.fake.script("second", Script::forever().on_term(0, 12 * SECOND));
    let spec = json!({"initContainers": [sidecar("first"), container("one"), sidecar("second")],
        "containers": [container("main")], "terminationGracePeriodSeconds": 20});
    let agent = node.start_synced(&[custom("u", "u", spec)]).await;
    agent.until_ready("u").await;
    assert_eq!(order(&node, "StartContainer", &names), names);
    agent.gone("u").await;
    agent.until_gone("u").await;
    assert_eq!(order(&node, "StopContainer", &names), ["main", "second", "first"]);
    // 20, less the 10 of main; the 10 that are left are over when the second one is killed, and the shortest grace remains.
    assert_eq!(graces(&node), [20, 10, 2]);
    node.assert_gone("u");
}

#[tokio::test(start_paused = true)]
async fn a_job_with_a_sidecar_that_crashes_and_never_ends_succeeds_when_its_work_is_done() {
    let node = Node::new();
    node.fake.scripts("side", [Script::exits(4, 3 * SECOND), Script::forever()]);
    node.fake.script("main", Script::exits(0, 60 * SECOND));
    let spec = json!({"restartPolicy": "Never", "initContainers": [sidecar("side")],
        "containers": [container("main")]});
    let agent = node.start_synced(&[custom("u", "u", spec)]).await;
    agent.until("the sidecar runs again", || agent.is_ready("u") && count(&agent, "u", "side") == 1).await;
    assert_eq!(agent.phase("u"), "Running");
    agent.until("it succeeded", || agent.phase("u") == "Succeeded").await;
    assert_eq!(agent.state("u", "side")["terminated"]["exitCode"], 143);
    pass(600 * SECOND).await;
    assert!(node.running().is_empty());
    assert_eq!(order(&node, "StartContainer", &["side", "main"]), ["side", "main", "side"]);
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_is_kept_running_by_an_agent_that_restarted_too() {
    let node = Node::new();
    let spec = json!({"initContainers": [sidecar("side")], "containers": [container("main")]});
    let p = custom("u", "u", spec);
    let agent = node.start_synced(std::slice::from_ref(&p)).await;
    agent.until_ready("u").await;
    agent.kill().await;
    let agent = node.start_synced(&[p]).await;
    agent.until_ready("u").await;
    node.assert_whole("u", &["side", "main"]);
    let side = node.instances("u", "side").pop().unwrap();
    node.fake.exit(&side.id, 0);
    agent.until("it runs again", || count(&agent, "u", "side") == 1 && agent.is_ready("u")).await;
    node.witness.assert_never_two();
}

fn debugged(uid: &str) -> Pod {
    let ephemeral = |name: &str, target: Option<&str>| {
        let mut c = container(name);
        c["targetContainerName"] = json!(target);
        c
    };
    let spec = json!({"containers": [container("main")],
        "ephemeralContainers": [ephemeral("inside", Some("main")), ephemeral("beside", None)]});
    custom(uid, uid, spec)
}

#[tokio::test(start_paused = true)]
async fn ephemeral_containers_join_a_running_pod_once_and_do_not_count_in_its_status() {
    let node = Node::new();
    node.fake.script("beside", Script::exits(3, SECOND));
    let agent = node.start_synced(&[pod("u", &["main"])]).await;
    agent.until_ready("u").await;
    let main = node.instances("u", "main").pop().unwrap();
    agent.put(&debugged("u")).await;
    let states = || {
        let status = agent.status("u").unwrap();
        let all = status.ephemeral_container_statuses.clone().unwrap_or_default();
        all.iter().map(|c| serde_json::to_value(&c.state).unwrap()).collect::<Vec<_>>()
    };
    agent.until("one ended", || states().first().is_some_and(|s| s["terminated"]["exitCode"] == 3)).await;
    assert!(states()[1]["running"].is_object(), "{:?}", states());
    assert!(agent.is_ready("u"), "what became of them does not matter to the pod");
    let made = node.fake.requests::<v1::CreateContainerRequest>();
    let namespaces = |name: &str| {
        let config = made
            .iter()
            .filter_map(|r| r.config.as_ref())
            .find(|c| c.metadata.as_ref().is_some_and(|m| m.name == name));
        config.unwrap().linux.clone().unwrap().security_context.unwrap().namespace_options.unwrap()
    };
    assert_eq!(namespaces("inside").pid(), v1::NamespaceMode::Target);
    assert_eq!(namespaces("inside").target_id, main.id);
    assert_eq!(namespaces("beside").pid(), v1::NamespaceMode::Container);
    pass(Duration::from_secs(3600)).await;
    agent.kill().await;
    let agent = node.start_synced(&[debugged("u")]).await;
    agent.until_ready("u").await;
    pass(Duration::from_secs(3600)).await;
    assert_eq!(node.count("CreateContainer"), 3, "none of them twice");
    agent.gone("u").await;
    agent.until_gone("u").await;
    node.assert_gone("u");
}

fn resetting() -> Pod {
    let mut source = container("source");
    source["restartPolicy"] = json!("Never");
    source["restartPolicyRules"] = json!([{"action": "RestartAllContainers",
        "exitCodes": {"operator": "In", "values": [88]}}]);
    custom(
        "u",
        "u",
        json!({"initContainers": [container("init"), sidecar("side")],
        "containers": [source, container("main")]}),
    )
}

#[tokio::test(start_paused = true)]
async fn restart_all_containers_runs_the_pod_again_in_its_sandbox_from_the_first_init_container() {
    let node = Node::new();
    let names = ["init", "side", "source", "main"];
    node.fake.script("init", Script::exits(0, SECOND));
    node.fake.scripts("source", [Script::exits(88, 5 * SECOND), Script::forever()]);
    let agent = node.start_synced(&[resetting()]).await;
    agent
        .until("all of it ran twice", || {
            names.iter().all(|n| agent.status("u").is_some() && count(&agent, "u", n) == 1)
                && agent.is_ready("u")
        })
        .await;
    assert_eq!(order(&node, "StartContainer", &names), [names, names].concat());
    assert_eq!(order(&node, "StopContainer", &names), ["main", "side"]);
    assert_eq!(order(&node, "RemoveContainer", &names).last().map(String::as_str), Some("source"));
    assert_eq!(graces(&node), [2, 2]);
    assert_eq!(node.count("RunPodSandbox"), 1);
    assert_eq!(agent.condition("u", "AllContainersRestarting").unwrap().0, "False");
    let status = agent.status("u").unwrap();
    for c in status.container_statuses.as_ref().unwrap() {
        let last = c.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
        assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("RestartingAllContainers")));
    }
    node.witness.assert_never_two();
}

/// A node whose agents wait 20 s at most, and one whose pod [`resetting`] has yet to ask for the third time: then an agent that
/// remembers nothing is more patient than one that saw the long run before.
async fn before_the_third_reset() -> (Node, Running) {
    let mut node = Node::with(FakeRuntime::builder().any_image().write_logs());
    node.settings.backoff_cap = 20 * SECOND;
    node.fake.script("init", Script::exits(0, SECOND));
    let ends = [5, 60, 5].map(|seconds| Script::exits(88, seconds * SECOND));
    node.fake.scripts("source", ends.into_iter().chain([Script::forever()]));
    let agent = node.start_synced(&[resetting()]).await;
    agent.until("it was reset twice", || node.count("StartContainer") == 3 * 4 && agent.is_ready("u")).await;
    node.fake.forget_calls();
    (node, agent)
}

#[tokio::test(start_paused = true)]
async fn restart_all_containers_is_completed_by_the_next_agent_wherever_the_first_was_killed() {
    let names = ["init", "side", "source", "main"];
    let calls = [
        ("StopContainer", "main"),
        ("StopContainer", "side"),
        ("RemoveContainer", "main"),
        ("RemoveContainer", "side"),
        ("RemoveContainer", "init"),
        ("RemoveContainer", "source"),
    ];
    for (call, object) in calls {
        for after in [false, true] {
            let what = format!("{call} {object}, killed {}", if after { "after" } else { "before" });
            let (node, agent) = before_the_third_reset().await;
            let fault = if after { Fault::hang_answer(call) } else { Fault::hang(call) };
            let hung = node.fake.fault(fault.object(object).once());
            agent.until(&what, || hung.hits() == 1).await;
            agent.kill().await;
            hung.release();
            let agent = node.start_synced(&[resetting()]).await;
            agent.until(&what, || agent.is_ready("u") && count(&agent, "u", "source") == 3).await;
            pass(600 * SECOND).await;
            assert_eq!(order(&node, "StartContainer", &names), names, "{what}: each once, in order");
            for name in names {
                assert_eq!(count(&agent, "u", name), 3, "{what}: {name}");
            }
            assert_eq!(node.count("RunPodSandbox"), 0, "{what}");
            node.witness.assert_never_two();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_killed_while_a_pod_waits_to_run_all_again_leaves_the_rest_alone() {
    let (node, agent) = before_the_third_reset().await;
    let before = node.running().len();
    agent.until("it waits", || agent.state("u", "source")["waiting"]["reason"] == "CrashLoopBackOff").await;
    agent.kill().await;
    let agent = node.start_synced(&[resetting()]).await;
    agent.until("it waits", || agent.state("u", "source")["waiting"]["reason"] == "CrashLoopBackOff").await;
    assert_eq!((node.running().len(), node.changes().len()), (before - 1, 0), "the others run on meanwhile");
    agent.until("all of it ran again", || agent.is_ready("u") && count(&agent, "u", "main") == 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_resets_itself_again_and_again_waits_in_between() {
    let node = Node::new();
    node.fake.script("init", Script::exits(0, SECOND));
    node.fake.script("source", Script::exits(88, SECOND));
    let agent = node.start_synced(&[resetting()]).await;
    agent.until("it waits", || agent.state("u", "source")["waiting"]["reason"] == "CrashLoopBackOff").await;
    let before = node.count("StartContainer");
    pass(5 * SECOND).await;
    assert_eq!(node.count("StartContainer"), before);
    assert_eq!(node.running().len(), 2, "the others run on meanwhile");
    agent.until("it was reset again", || count(&agent, "u", "main") == 2).await;
}

#[tokio::test(start_paused = true)]
async fn restart_counts_survive_lost_containers_and_a_restart_of_the_agent() {
    let node = Node::with(FakeRuntime::builder().any_image().write_logs());
    let p = pod("u", &["main"]);
    let agent = node.start_synced(std::slice::from_ref(&p)).await;
    for n in 0..2 {
        agent.until("it runs", || agent.is_ready("u") && count(&agent, "u", "main") == n).await;
        node.fake.exit(&node.running()[0], 1);
    }
    agent.until("it runs", || agent.is_ready("u") && count(&agent, "u", "main") == 2).await;
    agent.kill().await;
    // Somebody clears the runtime while no agent runs: only logs tell.
    let somebody = node.fake.client();
    somebody.connected().await;
    for c in node.fake.containers() {
        somebody.remove_container(&c.id).await.unwrap();
    }
    let agent = node.start_synced(std::slice::from_ref(&p)).await;
    agent.until_ready("u").await;
    assert_eq!(count(&agent, "u", "main"), 3);
    // And while one does.
    let lost = node.running()[0].clone();
    somebody.remove_container(&lost).await.unwrap();
    agent.until("it runs again", || agent.is_ready("u") && count(&agent, "u", "main") == 4).await;
}
