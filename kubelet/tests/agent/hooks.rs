//! Lifecycle hooks: when they run, what their failure costs, what cuts them off, and what they leave of the grace.

use crate::support::{Node, Running, SECOND, YEAR, container, custom, pass, pod};
use cri::fake::{ExecAnswer, Fault, Script};
use cri::v1;
use kubelet::api::Pod;
use serde_json::{Value, json};
use tokio::time::Instant;

/// A pod of one container `c` with these hooks.
fn hooked(uid: &str, lifecycle: &Value) -> Pod {
    custom(uid, uid, json!({"containers": [with("c", lifecycle)]}))
}

fn with(name: &str, lifecycle: &Value) -> Value {
    let mut c = container(name);
    c["lifecycle"] = lifecycle.clone();
    c
}

fn exec(command: &str) -> Value {
    json!({"exec": {"command": ["sh", "-c", command]}})
}

/// The grace given with each StopContainer, in order.
fn graces(node: &Node) -> Vec<i64> {
    node.fake.requests::<v1::StopContainerRequest>().into_iter().map(|r| r.timeout).collect()
}

/// Methods of the calls that start, stop or enter a container, in order.
fn deeds(node: &Node) -> Vec<&'static str> {
    let of_interest = ["CreateContainer", "StartContainer", "ExecSync", "StopContainer"];
    node.fake.calls().iter().map(|c| c.method).filter(|m| of_interest.contains(m)).collect()
}

/// Ends the pod, and gives the events since it was started.
async fn end(agent: &Running, uid: &str) -> Vec<String> {
    agent.events();
    agent.gone(uid).await;
    agent.until_gone(uid).await;
    agent.events()
}

#[tokio::test(start_paused = true)]
async fn nothing_else_of_the_pod_starts_before_a_post_start_hook_has_returned() {
    let node = Node::new();
    node.fake.exec("a", |_| ExecAnswer::exits(0).takes(5 * SECOND));
    let first = with("a", &json!({"postStart": exec("warm up")}));
    let agent =
        node.start_synced(&[custom("u1", "u1", json!({"containers": [first, container("b")]}))]).await;
    agent.until("the hook runs", || node.count("ExecSync") == 1).await;
    pass(4 * SECOND).await;
    assert_eq!(agent.phase("u1"), "Pending", "a container is not told to run before its hook has returned");
    agent.until_ready("u1").await;
    assert_eq!(
        deeds(&node),
        ["CreateContainer", "StartContainer", "ExecSync", "CreateContainer", "StartContainer"]
    );
    let calls = node.fake.calls();
    let hook = calls.iter().find(|c| c.method == "ExecSync").unwrap();
    let second = calls.iter().filter(|c| c.method == "CreateContainer").nth(1).unwrap();
    assert!(second.at - hook.at >= 5 * SECOND);
    node.assert_whole("u1", &["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_post_start_hook_costs_the_container_and_backs_off() {
    let node = Node::new();
    node.fake.script("c", Script::forever().on_term(0, SECOND));
    node.fake.exec("c", |_| ExecAnswer::exits(4).stdout("bad\n"));
    let agent = node.start_synced(&[hooked("u1", &json!({"postStart": exec("x")}))]).await;
    let waits = |reason: &str| agent.state("u1", "c")["waiting"]["reason"] == reason;
    agent.until("the failure is told", || waits("PostStartHookError")).await;
    assert_eq!(
        agent.state("u1", "c")["waiting"]["message"],
        "Exec lifecycle hook ([sh -c x]) for Container \"c\" in Pod \"u1_ns(u1)\" failed - error: command 'sh -c x' \
         exited with 4: , message: \"bad\\n\""
    );
    agent.until("the back-off begins", || waits("CrashLoopBackOff")).await;
    let events = agent.events();
    for told in ["FailedPostStartHook: PostStartHook failed", "Killing: FailedPostStartHook"] {
        assert!(events.iter().any(|e| e == told), "{told}: {events:?}");
    }
    assert_eq!(node.running(), [""; 0]);
    node.fake.exec("c", |_| ExecAnswer::exits(0));
    agent.until_ready("u1").await;
    node.witness.assert_never_two();
}

#[tokio::test(start_paused = true)]
async fn a_failed_post_start_hook_ends_a_pod_that_never_restarts() {
    let node = Node::new();
    node.fake.script("c", Script::forever().on_term(3, SECOND));
    let mut never = hooked("u1", &json!({"postStart": {"tcpSocket": {"port": 80}}}));
    never.spec.as_mut().unwrap().restart_policy = Some("Never".to_owned());
    let agent = node.start_synced(&[never]).await;
    agent.until("the pod has failed", || agent.phase("u1") == "Failed").await;
    pass(600 * SECOND).await;
    assert_eq!(node.count("CreateContainer"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_the_death_of_the_runtime_cuts_off_is_run_again_when_it_is_back() {
    let node = Node::new();
    node.fake.script("c", Script::forever().on_term(0, SECOND));
    let hung = node.fake.fault(Fault::hang("ExecSync").object("c").once());
    let hooks = json!({"postStart": exec("warm up"), "preStop": exec("wind down")});
    let agent = node.start_synced(&[hooked("u1", &hooks)]).await;
    agent.until("the postStart hook runs", || hung.hits() == 1).await;
    node.fake.go_down();
    pass(5 * SECOND).await;
    node.fake.come_back();
    agent.until_ready("u1").await;
    node.assert_whole("u1", &["c"]);
    assert_eq!(deeds(&node), ["CreateContainer", "StartContainer", "ExecSync", "ExecSync"]);
    let hung = node.fake.fault(Fault::hang("ExecSync").object("c").once());
    agent.events();
    agent.gone("u1").await;
    agent.until("the preStop hook runs", || hung.hits() == 1).await;
    node.fake.restart();
    agent.until_gone("u1").await;
    assert_eq!(deeds(&node)[4..], ["ExecSync", "ExecSync", "StopContainer"]);
    let events = agent.events();
    assert!(!events.iter().any(|e| e.contains("Hook")), "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn a_container_whose_start_the_runtime_finished_as_it_died_has_its_post_start_hook_and_no_second_start()
{
    let node = Node::new();
    let hung = node.fake.fault(Fault::hang_answer("StartContainer").object("c").once());
    let mut never = hooked("u1", &json!({"postStart": exec("warm up")}));
    never.spec.as_mut().unwrap().restart_policy = Some("Never".to_owned());
    let agent = node.start_synced(&[never]).await;
    agent.until("it is being started", || hung.hits() == 1).await;
    node.fake.restart();
    agent.until_ready("u1").await;
    node.assert_whole("u1", &["c"]);
    assert_eq!(deeds(&node), ["CreateContainer", "StartContainer", "ExecSync"]);
}

#[tokio::test(start_paused = true)]
async fn a_container_whose_hook_failed_does_not_run_on_because_its_kill_failed_too() {
    let node = Node::new();
    node.fake.script("c", Script::forever().on_term(0, SECOND));
    node.fake.exec("c", |_| ExecAnswer::exits(4).stdout("bad\n"));
    let refused = node.fake.fault(Fault::fail("StopContainer", cri::Code::Internal, "not now").times(3));
    let pods = [custom(
        "u1",
        "u1",
        json!({"containers": [with("c", &json!({"postStart": exec("x")})), container("b")]}),
    )];
    let agent = node.start_synced(&pods).await;
    agent.until("the kill has failed", || refused.hits() == 1).await;
    agent.until("it is ended all the same", || node.count("StopContainer") == 4).await;
    assert_eq!(refused.hits(), 3);
    assert_eq!(node.instances("u1", "c").len(), 1, "it was not run again before");
    let waits = |reason: &str| agent.state("u1", "c")["waiting"]["reason"] == reason;
    agent.until("the back-off begins", || waits("CrashLoopBackOff")).await;
    node.fake.exec("c", |_| ExecAnswer::exits(0));
    agent.until_ready("u1").await;
    assert_eq!(node.instances("u1", "b").len(), 1, "the other one is left alone");
    node.witness.assert_never_two();
}

#[tokio::test(start_paused = true)]
async fn an_order_to_stop_cuts_off_a_post_start_hook_that_never_returns() {
    let node = Node::new();
    node.fake.exec("c", |_| ExecAnswer::exits(0).takes(YEAR));
    node.fake.script("c", Script::forever().on_term(0, SECOND));
    let agent = node.start_synced(&[hooked("u1", &json!({"postStart": exec("hang")}))]).await;
    agent.until("the hook runs", || node.count("ExecSync") == 1).await;
    let began = Instant::now();
    let events = end(&agent, "u1").await;
    assert!(began.elapsed() < 10 * SECOND, "{:?}", began.elapsed());
    assert!(!events.iter().any(|e| e.starts_with("FailedPostStartHook")), "{events:?}");
    assert_eq!(graces(&node), [30]);
    node.assert_gone("u1");
}

#[tokio::test(start_paused = true)]
async fn a_post_start_hook_that_an_agents_death_cut_off_is_not_run_again() {
    let node = Node::new();
    node.fake.exec("c", |_| ExecAnswer::exits(0).takes(YEAR));
    let pods = [hooked("u1", &json!({"postStart": exec("once")}))];
    let agent = node.start_synced(&pods).await;
    agent.until("the hook runs", || node.count("ExecSync") == 1).await;
    agent.kill().await;
    let agent = node.start_synced(&pods).await;
    agent.until_ready("u1").await;
    pass(600 * SECOND).await;
    assert_eq!(node.count("ExecSync"), 1);
    node.assert_whole("u1", &["c"]);
}

#[tokio::test(start_paused = true)]
async fn hooks_take_from_the_grace_what_they_need() {
    // The hook's seconds, what is left for the container, and whether a failure is told.
    for (takes, left, told) in [(0, 30, false), (5, 25, false), (29, 2, false), (100, 2, true)] {
        let node = Node::new();
        node.fake.exec("c", move |_| ExecAnswer::exits(0).takes(takes * SECOND));
        node.fake.script("c", Script::forever().on_term(0, SECOND));
        let agent = node.start_synced(&[hooked("u1", &json!({"preStop": exec("drain")}))]).await;
        agent.until_ready("u1").await;
        let began = Instant::now();
        let events = end(&agent, "u1").await;
        assert_eq!(graces(&node), [left], "a hook of {takes} s");
        assert!(began.elapsed() < 36 * SECOND, "a hook of {takes} s: {:?}", began.elapsed());
        let failed = events.iter().any(|e| e == "FailedPreStopHook: PreStopHook failed");
        assert_eq!(failed, told, "a hook of {takes} s: {events:?}");
        node.assert_gone("u1");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pre_stop_hook_that_fails_is_told_and_changes_nothing_else() {
    let node = Node::new();
    node.fake.exec("c", |_| ExecAnswer::error(cri::Code::Unknown, "no such file"));
    node.fake.script("c", Script::forever().on_term(0, SECOND));
    let agent = node.start_synced(&[hooked("u1", &json!({"preStop": exec("nothing")}))]).await;
    agent.until_ready("u1").await;
    let events = end(&agent, "u1").await;
    assert!(events.iter().any(|e| e == "FailedPreStopHook: PreStopHook failed"), "{events:?}");
    assert_eq!(deeds(&node)[2..], ["ExecSync", "StopContainer"]);
    assert_eq!(graces(&node), [30]);
}

#[tokio::test(start_paused = true)]
async fn hooks_of_several_containers_run_side_by_side() {
    let node = Node::new();
    for name in ["a", "b", "c"] {
        node.fake.exec(name, |_| ExecAnswer::exits(0).takes(10 * SECOND));
        node.fake.script(name, Script::forever().on_term(0, SECOND));
    }
    let all = ["a", "b", "c"].map(|name| with(name, &json!({"preStop": exec("drain")})));
    let agent = node.start_synced(&[custom("u1", "u1", json!({"containers": all}))]).await;
    agent.until_ready("u1").await;
    let began = Instant::now();
    end(&agent, "u1").await;
    assert!(began.elapsed() < 15 * SECOND, "{:?}", began.elapsed());
    assert_eq!(graces(&node), [20, 20, 20]);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_ended_by_itself_has_no_pre_stop_hook_run() {
    let node = Node::new();
    node.fake.script("c", Script::exits(1, SECOND));
    let agent = node.start_synced(&[hooked("u1", &json!({"preStop": exec("drain")}))]).await;
    agent.until("it was started again", || node.count("StartContainer") == 3).await;
    pass(2 * SECOND).await;
    end(&agent, "u1").await;
    assert_eq!(node.count("ExecSync"), 0);
    assert_eq!(graces(&node), [0; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_sleep_ends_with_the_container_it_waits_for() {
    let node = Node::new();
    let agent = node.start_synced(&[hooked("u1", &json!({"preStop": {"sleep": {"seconds": 25}}}))]).await;
    agent.until_ready("u1").await;
    let began = Instant::now();
    agent.gone("u1").await;
    pass(5 * SECOND).await;
    assert_eq!(graces(&node), [0; 0]);
    node.fake.exit(&node.running()[0], 1);
    agent.until_gone("u1").await;
    assert!(began.elapsed() < 10 * SECOND, "{:?}", began.elapsed());
    assert!(agent.events().iter().any(|e| e.starts_with("FailedPreStopHook")));
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_grace_still_has_a_second_for_its_hooks() {
    let node = Node::new();
    node.fake.exec("c", |_| ExecAnswer::exits(0).takes(100 * SECOND));
    node.fake.script("c", Script::forever().on_term(0, SECOND));
    let mut brief = hooked("u1", &json!({"preStop": exec("drain")}));
    brief.spec.as_mut().unwrap().termination_grace_period_seconds = Some(0);
    let agent = node.start_synced(&[brief]).await;
    agent.until_ready("u1").await;
    let began = Instant::now();
    end(&agent, "u1").await;
    assert_eq!((node.count("ExecSync"), graces(&node)), (1, vec![2]));
    assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_container_whose_definition_changed_has_its_pre_stop_hook_run_before_it_is_replaced() {
    let node = Node::new();
    node.fake.script("c", Script::forever().on_term(0, SECOND));
    let agent = node.start_synced(&[hooked("u1", &json!({"preStop": exec("drain")}))]).await;
    agent.until_ready("u1").await;
    let mut changed = hooked("u1", &json!({"preStop": exec("drain")}));
    changed.spec.as_mut().unwrap().containers[0].image = Some("reg.test/app:2".to_owned());
    agent.put(&changed).await;
    agent.until("it was replaced", || node.count("StartContainer") == 2).await;
    assert_eq!(deeds(&node)[2..], ["ExecSync", "StopContainer", "CreateContainer", "StartContainer"]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_no_source_has_any_more_has_the_hooks_it_was_made_with() {
    let node = Node::new();
    node.fake.exec("c", |_| ExecAnswer::exits(0).takes(5 * SECOND));
    node.fake.script("c", Script::forever().on_term(0, SECOND));
    let agent = node.start_synced(&[hooked("u1", &json!({"preStop": exec("drain the rest")}))]).await;
    agent.until_ready("u1").await;
    agent.kill().await;
    let agent = node.start_synced(&[]).await;
    agent.until("nothing is left", || node.counts() == (0, 0)).await;
    let run = node.fake.requests::<v1::ExecSyncRequest>();
    assert_eq!(run.len(), 1);
    assert_eq!(run[0].cmd, ["sh", "-c", "drain the rest"]);
    assert_eq!(graces(&node), [25]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_is_tried_again_does_not_begin_the_grace_anew() {
    let node = Node::new();
    node.fake.script("c", Script::forever().on_term(0, SECOND));
    node.fake.fault(Fault::fail("StopContainer", cri::Code::Unknown, "not now").times(3));
    let agent = node.start_synced(&[pod("u1", &["c"])]).await;
    agent.until_ready("u1").await;
    end(&agent, "u1").await;
    let graces = graces(&node);
    assert_eq!(graces.len(), 4, "{graces:?}");
    assert!(graces.is_sorted_by(|a, b| a >= b) && graces[3] < 30, "{graces:?}");
}

#[tokio::test(start_paused = true)]
async fn a_containers_stop_signal_is_told_where_the_gate_is_on() {
    for gate in [true, false] {
        let mut node = Node::new();
        node.settings.facts.container_stop_signals = gate;
        let containers = [
            with("given", &json!({"stopSignal": "SIGRTMIN+3"})),
            with("silent", &json!({"preStop": exec("true")})),
        ];
        let agent = node
            .start_synced(&[custom("u", "u", json!({"os": {"name": "linux"}, "containers": containers}))])
            .await;
        agent.until_ready("u").await;
        let status = agent.status("u").unwrap();
        let told: Vec<_> =
            status.container_statuses.iter().flatten().map(|c| c.stop_signal.as_deref()).collect();
        assert_eq!(told, [gate.then_some("SIGRTMIN+3"), None], "the runtime tells only what it was given");
    }
}
