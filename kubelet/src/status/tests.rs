//! Statuses of pods in the states that decide something; what the stock agent says in them is recorded.

use super::*;
use crate::api::Pod;
use crate::pleg::observed::{Instance, Observed, Sandbox, State};
use crate::pod::plan::{Phase, Waiting};
use crate::probe::{ContainerReadiness, Readiness};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

const S: i64 = 1_000_000_000;

/// A pod and all that its status depends on; fields are public to be changed by a test.
struct Given {
    pod: Pod,
    observed: Observed,
    phase: Phase,
    released: bool,
    waiting: BTreeMap<String, Waiting>,
    removed: HashMap<String, Removed>,
    restarts: HashMap<String, u32>,
    readiness: Readiness,
    resetting: bool,
    previous: Option<PodStatus>,
    node: NodeIdentity,
}

impl Given {
    fn new(spec: Value) -> Self {
        Self {
            pod: serde_json::from_value(json!({"metadata": {"uid": "u", "name": "p"}, "spec": spec}))
                .unwrap(),
            observed: Observed::default(),
            phase: Phase::Starting,
            released: false,
            waiting: BTreeMap::new(),
            removed: HashMap::new(),
            restarts: HashMap::new(),
            readiness: Readiness::default(),
            resetting: false,
            previous: None,
            node: NodeIdentity {
                ips: vec!["192.0.2.10".parse().unwrap()],
                runtime_name: "containerd".to_owned(),
                recursive_read_only: false,
                stop_signals: false,
            },
        }
    }

    fn sandbox(mut self) -> Self {
        let ips = vec!["10.0.0.1".parse().unwrap()];
        self.observed.sandboxes =
            vec![Sandbox { id: "s".into(), attempt: 0, created_at: S, ready: true, ips }];
        self
    }

    fn status(&self) -> Value {
        let now = jiff::Timestamp::from_second(100).unwrap();
        let input = Input {
            pod: &self.pod,
            observed: &self.observed,
            phase: self.phase,
            stopping: false,
            released: self.released,
            outcome: None,
            waiting: &self.waiting,
            removed: &self.removed,
            failed: None,
            evicted: None,
            restarts: &self.restarts,
            readiness: &self.readiness,
            resetting: self.resetting,
            rejected: None,
            resize: None,
            sandbox_up: !self.observed.sandboxes.is_empty(),
            previous: self.previous.as_ref(),
            start_time: now,
            now,
            node: &self.node,
        };
        serde_json::to_value(api_status(&input)).unwrap()
    }
}

fn instance(name: &str, n: u32, state: State, code: i32) -> Instance {
    let at = S * (10 + i64::from(n));
    Instance {
        id: format!("{name}-{n}"),
        sandbox_id: "s".to_owned(),
        name: name.to_owned(),
        restart_count: n,
        state,
        created_at: at,
        started_at: at,
        finished_at: if state == State::Exited { at + S } else { 0 },
        exit_code: code,
        reason: if state == State::Exited { "Error".to_owned() } else { String::new() },
        message: String::new(),
        image: "i".to_owned(),
        image_ref: "sha256:1".to_owned(),
        hash: String::new(),
        grace: None,
        user: None,
        log_path: String::new(),
        stop_signal: None,
        given: None,
    }
}

fn containers(names: &[&str]) -> Value {
    json!({"containers": names.iter().map(|n| json!({"name": n, "image": "i"})).collect::<Vec<_>>()})
}

#[test]
fn containers_are_sorted_by_name_and_named_in_messages_as_the_spec_has_them() {
    let status = Given::new(containers(&["b", "c", "a"])).status();
    let names: Vec<_> = status["containerStatuses"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(status["conditions"][2]["message"], "containers with unready status: [b c a]");
}

#[test]
fn a_pod_on_the_hosts_network_has_its_address_from_the_start() {
    let mut spec = containers(&["c"]);
    assert_eq!(Given::new(spec.clone()).status()["podIP"], Value::Null);
    spec["hostNetwork"] = json!(true);
    assert_eq!(Given::new(spec).status()["podIP"], "192.0.2.10");
}

#[test]
fn the_end_of_an_instance_is_told_after_its_removal() {
    let mut given = Given::new(containers(&["c"])).sandbox();
    given.observed.containers = vec![instance("c", 2, State::Exited, 3)];
    let removed = Removed { instance: instance("c", 1, State::Exited, 7), reset: false };
    given.removed.insert("c".to_owned(), removed);
    let last = |status: &Value| status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"].clone();
    assert_eq!(last(&given.status()), 7);
    given.observed.containers.push(instance("c", 1, State::Exited, 9));
    assert_eq!(last(&given.status()), 9, "one that is there is asked itself");
}

fn with_sidecar() -> Given {
    let side = json!({"name": "s", "image": "i", "restartPolicy": "Always", "startupProbe": {"exec": {}}});
    let mut spec = containers(&["c"]);
    spec["initContainers"] = json!([side]);
    Given::new(spec).sandbox()
}

#[test]
fn a_sidecar_is_ready_once_it_has_started_and_counts_among_the_containers() {
    let mut given = with_sidecar();
    given.observed.containers = vec![instance("s", 0, State::Running, 0)];
    let before = given.status();
    let conditions = |status: &Value| {
        let of = |i: usize| {
            format!("{} {}", status["conditions"][i]["status"], status["conditions"][i]["message"])
        };
        (of(1), of(2))
    };
    assert_eq!(
        conditions(&before),
        (
            "\"False\" \"containers with incomplete status: [s]\"".to_owned(),
            "\"False\" \"containers with unready status: [s c]\"".to_owned()
        )
    );
    assert_eq!(
        (&before["phase"], &before["initContainerStatuses"][0]["started"]),
        (&json!("Pending"), &json!(false))
    );
    let of = ContainerReadiness { instance: "s-0".into(), started: true, ready: true, failed: None };
    given.readiness.containers.insert("s".to_owned(), of);
    let after = given.status();
    assert_eq!(conditions(&after).0, "\"True\" null");
    assert_eq!(after["initContainerStatuses"][0]["ready"], true);
}

#[test]
fn a_sidecar_that_crashes_leaves_its_pod_initialized_and_running_but_not_ready() {
    let mut given = with_sidecar();
    given.phase = Phase::Running;
    given.observed.containers = vec![instance("c", 0, State::Running, 0), instance("s", 0, State::Exited, 4)];
    let status = given.status();
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["conditions"][1]["status"], "True");
    assert_eq!(status["conditions"][2]["message"], "containers with unready status: [s]");
}

#[test]
fn a_container_that_was_lost_while_it_ran_says_so_and_counts_on() {
    let mut given = Given::new(containers(&["c"])).sandbox();
    given.observed.containers = vec![instance("c", 1, State::Running, 0)];
    given.previous = serde_json::from_value(given.status()).unwrap();
    given.observed.containers.clear();
    given.restarts.insert("c".to_owned(), 2);
    for _ in 0..2 {
        let status = given.status();
        let c = &status["containerStatuses"][0];
        assert_eq!(c["restartCount"], 2);
        assert_eq!(c["lastState"]["terminated"]["reason"], "ContainerStatusUnknown");
        assert_eq!(status["phase"], "Running", "it is run again");
        given.previous = serde_json::from_value(status).unwrap();
    }
    // An agent that remembers no status knows the count from the logs.
    given.previous = None;
    assert_eq!(given.status()["containerStatuses"][0]["restartCount"], 2);
}

#[test]
fn the_condition_about_all_containers_is_there_only_for_pods_that_may_restart_them() {
    let kinds = |given: &Given| given.status()["conditions"].as_array().unwrap().len();
    let mut spec = containers(&["c"]);
    assert_eq!(kinds(&Given::new(spec.clone())), 5);
    spec["containers"][0]["restartPolicyRules"] =
        json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [1]}}]);
    let mut given = Given::new(spec);
    assert_eq!(kinds(&given), 6);
    assert_eq!(given.status()["conditions"][5]["status"], "False");
    given.resetting = true;
    assert_eq!(given.status()["conditions"][5]["reason"], "RestartAllContainersStarted");
}

#[test]
fn what_never_ran_is_given_up_only_once_the_cgroup_is_gone() {
    let mut given = Given::new(containers(&["c"]));
    given.phase = Phase::Terminated;
    let before = given.status();
    assert_eq!(before["phase"], "Pending");
    assert_eq!(before["containerStatuses"][0]["state"]["waiting"]["reason"], "ContainerCreating");
    given.released = true;
    let after = given.status();
    assert_eq!(after["phase"], "Failed");
    assert_eq!(after["containerStatuses"][0]["state"]["terminated"]["reason"], "ContainerStatusUnknown");
}

#[test]
fn a_recursively_read_only_mount_if_possible_is_what_the_runtime_can_do() {
    let mount = json!({"name": "v", "mountPath": "/v", "readOnly": true, "recursiveReadOnly": "IfPossible"});
    let mut given = Given::new(json!({"containers": [{"name": "c", "image": "i", "volumeMounts": [mount]}]}));
    let told = |given: &Given| {
        given.status()["containerStatuses"][0]["volumeMounts"][0]["recursiveReadOnly"].clone()
    };
    assert_eq!(told(&given), "Disabled");
    given.node.recursive_read_only = true;
    assert_eq!(told(&given), "Enabled");
}

#[test]
fn termination_messages_of_a_pod_share_12_kib() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let mut given = Given::new(containers(&names)).sandbox();
    let long = |name: &&str| Instance { message: "é".repeat(3000), ..instance(name, 0, State::Exited, 1) };
    given.observed.containers = names.iter().map(long).collect();
    let status = given.status();
    for c in status["containerStatuses"].as_array().unwrap() {
        assert_eq!(c["state"]["terminated"]["message"].as_str().unwrap().len(), 2048);
    }
}

#[test]
fn started_and_ready_are_what_probes_say_of_that_instance_or_wait_for_them() {
    let probe = json!({"exec": {"command": ["x"]}});
    let told = |more: Value, known: Option<(&str, bool, bool)>| {
        let mut c = json!({"name": "c", "image": "i"});
        c.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut given = Given::new(json!({"containers": [c]})).sandbox();
        given.observed.containers = vec![instance("c", 0, State::Running, 0)];
        if let Some((id, started, ready)) = known {
            let known = ContainerReadiness { instance: id.to_owned(), started, ready, failed: None };
            given.readiness.containers.insert("c".to_owned(), known);
        }
        let status = given.status();
        let c = &status["containerStatuses"][0];
        (
            c["started"].as_bool().unwrap(),
            c["ready"].as_bool().unwrap(),
            status["conditions"][2]["status"].clone(),
        )
    };
    let (startup, readiness) = (json!({"startupProbe": probe}), json!({"readinessProbe": probe}));
    let liveness = json!({"livenessProbe": probe});
    assert_eq!(told(json!({}), None), (true, true, json!("True")));
    assert_eq!(told(liveness, None), (true, true, json!("True")), "liveness begins as success");
    assert_eq!(told(startup.clone(), None), (false, false, json!("False")), "startup begins as unknown");
    assert_eq!(told(readiness.clone(), None), (true, false, json!("False")), "readiness begins as failure");
    assert_eq!(told(startup.clone(), Some(("c-0", true, true))), (true, true, json!("True")));
    assert_eq!(told(readiness.clone(), Some(("c-0", true, true))), (true, true, json!("True")));
    assert_eq!(
        told(readiness, Some(("c-7", true, true))),
        (true, false, json!("False")),
        "another instance's"
    );
    assert_eq!(
        told(startup, Some(("c-0", false, true))),
        (false, false, json!("False")),
        "nothing is ready unstarted"
    );
}
