//! Pods whose resources change while they run: what they are given, how that is put into effect and told, and what of it
//! outlives the agent.

use crate::support::{Node, Running, SECOND, YEAR, container, custom, fake_cgroups, pass};
use cri::fake::{Fault, Script};
use cri::v1;
use kubelet::api::Pod;
use serde_json::{Value, json};
use std::path::Path;
use tokio::time::Instant;
use tonic::Code;

/// A container of that name with these requests, and limits of twice as much.
fn sized(name: &str, cpu_milli: u32, memory_mib: u32) -> Value {
    let amounts = |times: u32| json!({"cpu": format!("{}m", cpu_milli * times), "memory": format!("{}Mi", memory_mib * times)});
    let mut c = container(name);
    c["resources"] = json!({"requests": amounts(1), "limits": amounts(2)});
    c
}

/// The pod `uid` of these containers, as the API has it in its `generation`.
fn of(uid: &str, generation: i64, containers: Value) -> Pod {
    let mut pod = custom(uid, uid, json!({"containers": containers}));
    pod.metadata.generation = Some(generation);
    pod
}

fn one(uid: &str, generation: i64, cpu_milli: u32, memory_mib: u32) -> Pod {
    of(uid, generation, json!([sized("main", cpu_milli, memory_mib)]))
}

/// The condition: status, reason, message, generation.
fn resize(agent: &Running, uid: &str, kind: &str) -> Option<(String, String, i64)> {
    let status = agent.status(uid)?;
    let c = status.conditions.as_ref()?.iter().find(|c| c.type_ == kind)?;
    assert_eq!(c.status, "True");
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    Some((text(&c.reason), text(&c.message), c.observed_generation.unwrap_or(0)))
}

fn pending(agent: &Running, uid: &str) -> Option<(String, String, i64)> {
    resize(agent, uid, "PodResizePending")
}

fn in_progress(agent: &Running, uid: &str) -> Option<(String, String, i64)> {
    resize(agent, uid, "PodResizeInProgress")
}

/// `resources` and `allocatedResources` of a container's status.
fn told(agent: &Running, uid: &str, container: &str) -> (Value, Value) {
    let Some(status) = agent.status(uid) else { return (Value::Null, Value::Null) };
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let found = lists.into_iter().flatten().flatten().find(|c| c.name == container).unwrap();
    (
        serde_json::to_value(&found.resources).unwrap(),
        serde_json::to_value(&found.allocated_resources).unwrap(),
    )
}

fn amounts(c: &Value) -> (Value, Value) {
    (c["resources"].clone(), c["resources"]["requests"].clone())
}

/// CPU shares and memory limit in mebibytes of the container as the runtime has it.
fn has(node: &Node, uid: &str, container: &str) -> (i64, i64) {
    let attempt = |c: &v1::ContainerStatus| c.metadata.as_ref().map(|m| m.attempt);
    let newest = node.instances(uid, container).into_iter().max_by_key(attempt).unwrap();
    let linux = newest.resources.unwrap().linux.unwrap();
    (linux.cpu_shares, linux.memory_limit_in_bytes >> 20)
}

fn updates(node: &Node) -> usize {
    node.count("UpdateContainerResources")
}

fn reasons(agent: &Running) -> Vec<String> {
    let events = agent.events();
    let reason = |e: &String| e.split(':').next().unwrap_or_default().to_owned();
    events.iter().map(reason).filter(|r| r.starts_with("Resize")).collect()
}

async fn until_settled(agent: &Running, uid: &str, c: &Value) {
    let name = c["name"].as_str().unwrap();
    let so = || told(agent, uid, name) == amounts(c) && in_progress(agent, uid).is_none();
    agent.until("the new resources are in effect", so).await;
}

#[tokio::test(start_paused = true)]
async fn a_container_gets_what_its_pod_asks_for_and_runs_on() {
    let node = Node::new();
    let agent = node.start_synced(&[one("u", 1, 100, 64)]).await;
    agent.until_ready("u").await;
    let (before, mut statuses) = (node.running(), agent.agent.statuses.subscribe());
    agent.events();
    let began = Instant::now();
    agent.put(&one("u", 2, 200, 96)).await;
    until_settled(&agent, "u", &sized("main", 200, 96)).await;
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    assert_eq!((node.running(), has(&node, "u", "main")), (before, (204, 192)));
    let asked = node.fake.requests::<v1::UpdateContainerResourcesRequest>();
    let values = |r: &v1::UpdateContainerResourcesRequest| {
        let linux = r.linux.as_ref().unwrap();
        (linux.cpu_shares, linux.cpu_quota, linux.memory_limit_in_bytes >> 20)
    };
    // Memory comes first, with the CPU that it has.
    assert_eq!(asked.iter().map(values).collect::<Vec<_>>(), [(102, 20_000, 192), (204, 40_000, 192)]);
    assert_eq!(reasons(&agent), ["ResizeStarted", "ResizeCompleted"]);
    // On the way the old amounts were told, and that there will be others.
    let first = statuses.recv().await.unwrap().status.unwrap();
    let c = &first.container_statuses.as_ref().unwrap()[0];
    let old = sized("main", 100, 64)["resources"].clone();
    assert_eq!(serde_json::to_value(&c.resources).unwrap(), old);
    assert_eq!(first.conditions.as_ref().unwrap()[0].type_, "PodResizeInProgress");
    assert_eq!(first.allocated_resources.as_ref().unwrap()["cpu"].0, "200m");
    assert_eq!(first.resources.as_ref().unwrap().requests.as_ref().unwrap()["cpu"].0, "100m");
    let last = agent.status("u").unwrap();
    assert_eq!(
        (
            last.observed_generation,
            last.resources.as_ref().unwrap().requests.as_ref().unwrap()["cpu"].0.as_str()
        ),
        (Some(2), "200m")
    );
    pass(60 * SECOND).await;
    assert_eq!(updates(&node), 2, "nothing is done again");
    // The same object again is no resize.
    agent.put(&one("u", 3, 200, 96)).await;
    pass(60 * SECOND).await;
    assert_eq!((updates(&node), reasons(&agent)), (2, Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn a_container_whose_policy_says_so_is_run_again() {
    let node = Node::new();
    let with = |generation, cpu, memory| {
        let mut c = sized("main", cpu, memory);
        c["resizePolicy"] = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
        of("u", generation, json!([c, sized("other", 10, 10)]))
    };
    let agent = node.start_synced(&[with(1, 100, 64)]).await;
    agent.until_ready("u").await;
    agent.put(&with(2, 200, 64)).await;
    until_settled(&agent, "u", &sized("main", 200, 64)).await;
    assert_eq!(node.instances("u", "main").len(), 1, "its CPU changes in place");
    agent.put(&with(3, 200, 96)).await;
    until_settled(&agent, "u", &sized("main", 200, 96)).await;
    agent.until_ready("u").await;
    assert_eq!((has(&node, "u", "main"), node.instances("u", "other").len()), ((204, 192), 1));
    let counts: Vec<i32> = agent
        .status("u")
        .unwrap()
        .container_statuses
        .as_ref()
        .unwrap()
        .iter()
        .map(|c| c.restart_count)
        .collect();
    assert_eq!(counts, [1, 0]);
    assert!(agent.events().iter().any(|e| e == "Killing: Container main resize requires restart"));
    node.witness.assert_never_two();
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_waits_until_something_is_given_back() {
    let node = Node::new();
    let agent = node.start_synced(&[one("u", 1, 1000, 64), one("v", 1, 2000, 64)]).await;
    agent.until_ready("u").await;
    agent.until_ready("v").await;
    agent.put(&one("u", 2, 3000, 64)).await;
    let why = "Node didn't have enough resource: cpu, requested: 3000, used: 2000, capacity: 4000";
    let want = Some(("Deferred".to_owned(), why.to_owned(), 2));
    agent.until("it is told to wait", || pending(&agent, "u") == want).await;
    assert_eq!((told(&agent, "u", "main"), updates(&node)), (amounts(&sized("main", 1000, 64)), 0));
    // Who shows the pod shows what it asks for, who judges it goes by what it has.
    let requests = |pod: &Pod| {
        let resources = pod.spec.as_ref().unwrap().containers[0].resources.clone().unwrap();
        resources.requests.unwrap()["cpu"].0.clone()
    };
    let judged = agent.agent.directory.all();
    let judged = judged.iter().find(|p| p.metadata.uid.as_deref() == Some("u")).unwrap();
    let shown = agent.agent.pods();
    let shown = shown.iter().find(|p| p.metadata.uid.as_deref() == Some("u")).unwrap();
    assert_eq!((requests(shown), requests(judged)), ("3000m".to_owned(), "1000m".to_owned()));
    let events = agent.events();
    let deferred = "ResizeDeferred: Pod resize Deferred: {\"containers\":[{\"name\":\"main\",\"resources\":\
        {\"limits\":{\"cpu\":\"6000m\",\"memory\":\"128Mi\"},\"requests\":{\"cpu\":\"3000m\",\"memory\":\"64Mi\"}}}],\
        \"generation\":2,\"error\":\"Node didn't have enough resource: cpu, requested: 3000, used: 2000, capacity: 4000\"}";
    assert!(events.iter().any(|e| e == deferred), "{events:?}");
    // Nobody else gets what is free for want of its turn: what asks for it is judged by what is promised.
    pass(600 * SECOND).await;
    assert_eq!(updates(&node), 0);
    agent.gone("v").await;
    until_settled(&agent, "u", &sized("main", 3000, 64)).await;
    assert_eq!((pending(&agent, "u"), has(&node, "u", "main").0), (None, 3072));
    assert_eq!(reasons(&agent), ["ResizeStarted", "ResizeCompleted"]);
    let text = agent.agent.metrics.registry().render();
    assert!(
        text.contains("kubelet_pod_deferred_accepted_resizes_total{retry_trigger=\"pods_removed\"} 1"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn those_that_wait_are_served_by_priority_and_a_pod_that_shrinks_makes_room() {
    let node = Node::new();
    let important = |generation, cpu| {
        let mut pod = one("important", generation, cpu, 64);
        pod.spec.as_mut().unwrap().priority = Some(1000);
        pod
    };
    let agent =
        node.start_synced(&[one("first", 1, 500, 64), important(1, 500), one("big", 1, 2500, 64)]).await;
    for uid in ["first", "important", "big"] {
        agent.until_ready(uid).await;
    }
    agent.put(&one("first", 2, 1500, 64)).await;
    agent.until("it waits", || pending(&agent, "first").is_some()).await;
    agent.put(&important(2, 1500)).await;
    agent.until("it waits", || pending(&agent, "important").is_some()).await;
    agent.put(&one("big", 2, 1500, 64)).await;
    until_settled(&agent, "important", &sized("main", 1500, 64)).await;
    until_settled(&agent, "big", &sized("main", 1500, 64)).await;
    assert_eq!(pending(&agent, "first").unwrap().0, "Deferred");
    agent.gone("big").await;
    until_settled(&agent, "first", &sized("main", 1500, 64)).await;
}

#[tokio::test(start_paused = true)]
async fn what_can_never_be_is_told_by_field_until_it_is_taken_back() {
    let node = Node::new();
    let agent = node.start_synced(&[one("u", 1, 100, 64)]).await;
    agent.until_ready("u").await;
    agent.put(&one("u", 2, 5000, 64)).await;
    agent.until("it is refused", || pending(&agent, "u").is_some()).await;
    let capacity = "Node didn't have enough capacity: cpu, requested: 5000, capacity: 4000";
    assert_eq!(pending(&agent, "u"), Some(("Infeasible".into(), capacity.into(), 2)));
    let mut unlimited = sized("main", 100, 64);
    unlimited["resources"]["limits"].as_object_mut().unwrap().remove("memory");
    agent.put(&of("u", 3, json!([unlimited]))).await;
    let removed = "spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed";
    agent
        .until("it is refused", || pending(&agent, "u") == Some(("Infeasible".into(), removed.into(), 3)))
        .await;
    let mut equal = sized("main", 100, 64);
    equal["resources"]["limits"] = equal["resources"]["requests"].clone();
    agent.put(&of("u", 4, json!([equal]))).await;
    let class = "spec: Invalid value: \"Guaranteed\": Pod QOS Class may not change as a result of resizing";
    agent
        .until("it is refused", || pending(&agent, "u") == Some(("Infeasible".into(), class.into(), 4)))
        .await;
    assert_eq!(reasons(&agent), ["ResizeInfeasible"; 3]);
    agent.put(&one("u", 5, 100, 64)).await;
    agent.until("it is taken back", || pending(&agent, "u").is_none()).await;
    assert_eq!((told(&agent, "u", "main"), updates(&node)), (amounts(&sized("main", 100, 64)), 0));
    agent.put(&one("u", 6, 200, 64)).await;
    until_settled(&agent, "u", &sized("main", 200, 64)).await;
}

#[tokio::test(start_paused = true)]
async fn a_static_pod_keeps_what_it_was_made_with() {
    let mut node = Node::new();
    let dir = node.path("manifests");
    std::fs::create_dir(&dir).unwrap();
    node.settings.manifests = Some((dir.clone(), YEAR));
    let manifest = |cpu| {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "s", "uid": "s"},
            "spec": {"containers": [sized("main", cpu, 64)]}});
        std::fs::write(dir.join(".new"), pod.to_string()).unwrap();
        std::fs::rename(dir.join(".new"), dir.join("s.json")).unwrap();
    };
    manifest(100);
    let agent = node.start_synced(&[]).await;
    agent.until_ready("s").await;
    manifest(200);
    agent.until("it is refused", || pending(&agent, "s").is_some()).await;
    let (reason, message, _) = pending(&agent, "s").unwrap();
    assert_eq!(
        (reason.as_str(), message.as_str()),
        ("Infeasible", "In-place resize of static-pods is not supported")
    );
    assert_eq!((told(&agent, "s", "main"), updates(&node)), (amounts(&sized("main", 100, 64)), 0));
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_refuses_is_asked_again_and_that_is_told() {
    let node = Node::new();
    let agent = node.start_synced(&[one("u", 1, 100, 64)]).await;
    agent.until_ready("u").await;
    agent.events();
    let fault = node.fake.fault(Fault::fail("UpdateContainerResources", Code::Unknown, "no").times(3));
    agent.put(&one("u", 2, 200, 64)).await;
    let error = ("Error".to_owned(), "rpc error: code = Unknown desc = no".to_owned(), 2);
    agent.until("the error is told", || in_progress(&agent, "u") == Some(error.clone())).await;
    assert_eq!(told(&agent, "u", "main").0, sized("main", 100, 64)["resources"]);
    until_settled(&agent, "u", &sized("main", 200, 64)).await;
    assert_eq!((fault.hits(), has(&node, "u", "main")), (3, (204, 128)));
    assert_eq!(
        reasons(&agent),
        ["ResizeStarted", "ResizeError", "ResizeCompleted"],
        "the same error is told once"
    );
    let text = agent.agent.metrics.registry().render();
    for sample in [
        "kubelet_pod_resize_duration_milliseconds_count{success=\"false\"} 3",
        "kubelet_pod_resize_duration_milliseconds_count{success=\"true\"} 1",
        "kubelet_pod_in_progress_resizes 0",
        "kubelet_container_requested_resizes_total{operation=\"increase\",requirement=\"limits\",resource=\"cpu\"} 1",
    ] {
        assert!(text.contains(sample), "{sample}: {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_newer_wish_takes_the_place_of_one_that_cannot_be_carried_out() {
    let node = Node::new();
    let agent = node.start_synced(&[one("u", 1, 100, 64)]).await;
    agent.until_ready("u").await;
    let fault = node.fake.fault(Fault::fail("UpdateContainerResources", Code::Unknown, "no"));
    agent.put(&one("u", 2, 200, 64)).await;
    agent.until("the error is told", || in_progress(&agent, "u").is_some_and(|p| p.0 == "Error")).await;
    agent.put(&one("u", 3, 100, 64)).await;
    agent.until("nothing is to do", || in_progress(&agent, "u").is_none()).await;
    let hits = fault.hits();
    pass(600 * SECOND).await;
    assert_eq!((fault.hits(), has(&node, "u", "main")), (hits, (102, 128)));
}

#[tokio::test(start_paused = true)]
async fn what_was_done_by_half_is_taken_back() {
    let node = with_cgroups();
    let agent = node.start_synced(&[one("u", 1, 100, 64)]).await;
    agent.until_ready("u").await;
    // The memory is given, and then no CPU.
    let memory = node.fake.fault(Fault::delay("UpdateContainerResources", SECOND).times(1));
    agent.put(&one("u", 2, 200, 96)).await;
    agent.until("the first call is under way", || memory.hits() == 1).await;
    let cpu = node.fake.fault(Fault::fail("UpdateContainerResources", Code::Unknown, "no").once());
    agent.until("the error is told", || in_progress(&agent, "u").is_some_and(|p| p.0 == "Error")).await;
    assert_eq!((has(&node, "u", "main"), of_pod(&node, "cpu.cfs_quota_us").as_str()), ((102, 192), "40000"));
    assert_eq!(cpu.hits(), 1);
    agent.put(&one("u", 3, 100, 64)).await;
    until_settled(&agent, "u", &sized("main", 100, 64)).await;
    let pod = ["cpu.shares", "cpu.cfs_quota_us", "memory.limit_in_bytes"].map(|f| of_pod(&node, f));
    assert_eq!((has(&node, "u", "main"), pod), ((102, 128), ["102", "20000", "134217728"].map(String::from)));
}

#[tokio::test(start_paused = true)]
async fn a_container_that_does_not_run_has_its_new_size_when_it_does() {
    let node = Node::new();
    node.fake.scripts("main", [Script::exits(1, SECOND), Script::exits(1, SECOND), Script::forever()]);
    let agent = node.start_synced(&[one("u", 1, 100, 64)]).await;
    agent.until("it waits", || agent.state("u", "main")["waiting"]["reason"] == "CrashLoopBackOff").await;
    agent.put(&one("u", 2, 200, 64)).await;
    agent.until_ready("u").await;
    assert_eq!((has(&node, "u", "main"), updates(&node)), ((204, 128), 0));
    assert_eq!(told(&agent, "u", "main"), amounts(&sized("main", 200, 64)));
}

#[tokio::test(start_paused = true)]
async fn sidecars_and_init_containers_that_run_are_resized_and_those_that_are_through_are_not() {
    let node = Node::new();
    node.fake.script("init", Script::exits(0, 100 * SECOND));
    let with = |generation, init: u32, side: u32| {
        let mut sidecar = sized("side", side, 64);
        sidecar["restartPolicy"] = json!("Always");
        let spec = json!({"initContainers": [sidecar, sized("init", init, 64)], "containers": [sized("main", 100, 64)]});
        let mut pod = custom("u", "u", spec);
        pod.metadata.generation = Some(generation);
        pod
    };
    let agent = node.start_synced(&[with(1, 100, 100)]).await;
    agent.until("it initializes", || node.running().len() == 2).await;
    agent.put(&with(2, 200, 300)).await;
    agent
        .until("both are larger", || has(&node, "u", "init").0 == 204 && has(&node, "u", "side").0 == 307)
        .await;
    agent.until_ready("u").await;
    agent.put(&with(3, 200, 400)).await;
    agent.until("the sidecar is larger", || has(&node, "u", "side").0 == 409).await;
    agent.put(&with(4, 100, 400)).await;
    let through = "spec.initContainers[1].resources: Forbidden: \
                   resources for non-sidecar init containers are immutable once they have run";
    agent.until("it is refused", || pending(&agent, "u").is_some_and(|p| p.1 == through)).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_for_its_class_is_refused_again_by_the_next_agent() {
    let node = Node::new();
    let agent = node.start_synced(&[one("u", 1, 100, 64)]).await;
    agent.until_ready("u").await;
    let mut equal = sized("main", 200, 64);
    equal["resources"]["limits"] = equal["resources"]["requests"].clone();
    let asked = of("u", 2, json!([equal]));
    agent.put(&asked).await;
    agent.until("it is refused", || pending(&agent, "u").is_some()).await;
    let why = pending(&agent, "u");
    pass(5 * SECOND).await;
    agent.kill().await;
    let changes = node.fake.changes().len();
    let agent = node.start_synced(&[asked]).await;
    agent.until_ready("u").await;
    agent.until("it is refused again", || pending(&agent, "u") == why).await;
    pass(60 * SECOND).await;
    assert_eq!(told(&agent, "u", "main"), amounts(&sized("main", 100, 64)));
    assert_eq!(node.fake.changes().len(), changes, "nothing was touched");
}

/// A node whose pods have cgroups, in a tree of plain files.
fn with_cgroups() -> Node {
    let mut node = Node::new();
    node.settings.cgroup = fake_cgroups(&node.path(""), true);
    node
}

fn of_pod(node: &Node, file: &str) -> String {
    let controller = if file.starts_with("cpu") { "cpu,cpuacct" } else { "memory" };
    let path = node.path("cgroup").join(controller).join("kubepods/burstable/podu").join(file);
    std::fs::read_to_string(path).unwrap_or_default()
}

fn write(path: &Path, value: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, value).unwrap();
}

#[tokio::test(start_paused = true)]
async fn memory_in_use_is_not_taken_away() {
    let node = with_cgroups();
    let agent = node.start_synced(&[one("u", 1, 100, 64)]).await;
    agent.until_ready("u").await;
    agent.events();
    let pod = node.path("cgroup/memory/kubepods/burstable/podu");
    let id = node.running()[0].clone();
    let use_up = |mib: u64| {
        write(&pod.join("memory.usage_in_bytes"), &(mib << 20).to_string());
        write(&pod.join(&id).join("memory.usage_in_bytes"), &(mib << 20).to_string());
    };
    use_up(100);
    agent.put(&one("u", 2, 100, 32)).await;
    agent.until("it is refused", || in_progress(&agent, "u").is_some_and(|p| p.0 == "Error")).await;
    let why = "[attempting to set pod memory limit (67108864) below current usage (104857600), \
               attempting to set container \"main\" memory limit (67108864) below current usage (104857600)]";
    assert_eq!(in_progress(&agent, "u").unwrap().1, why);
    assert_eq!((updates(&node), of_pod(&node, "memory.limit_in_bytes").as_str()), (0, "134217728"));
    assert_eq!(reasons(&agent), ["ResizeStarted", "ResizeError"]);
    // A container that ends meanwhile begins again in the pod's old limit, with its own new one.
    use_up(10);
    until_settled(&agent, "u", &sized("main", 100, 32)).await;
    assert_eq!(
        (has(&node, "u", "main").1, of_pod(&node, "memory.limit_in_bytes").as_str()),
        (64, "67108864")
    );
    assert_eq!(reasons(&agent), ["ResizeCompleted"]);
}

#[tokio::test(start_paused = true)]
async fn the_pods_cgroup_is_raised_before_anything_starts_that_is_larger() {
    let node = with_cgroups();
    node.fake.scripts("main", [Script::exits(1, SECOND), Script::exits(1, SECOND), Script::forever()]);
    let agent = node.start_synced(&[one("u", 1, 100, 64)]).await;
    agent.until("it waits", || agent.state("u", "main")["waiting"]["reason"] == "CrashLoopBackOff").await;
    let values =
        |node: &Node| ["cpu.shares", "cpu.cfs_quota_us", "memory.limit_in_bytes"].map(|f| of_pod(node, f));
    assert_eq!(values(&node), ["102", "20000", "134217728"]);
    let hang = node.fake.fault(Fault::hang("CreateContainer"));
    agent.put(&one("u", 2, 200, 32)).await;
    agent.until("it is made again", || hang.hits() == 1).await;
    assert_eq!(values(&node), ["204", "40000", "134217728"], "what shrinks has its turn when something runs");
    hang.release();
    agent.until_ready("u").await;
    agent.until("all is in effect", || values(&node) == ["204", "40000", "67108864"]).await;
    assert_eq!((has(&node, "u", "main"), updates(&node)), ((204, 64), 0));
}

#[tokio::test(start_paused = true)]
async fn the_pods_cgroup_is_raised_before_its_containers_and_lowered_after_them() {
    let node = with_cgroups();
    let agent = node.start_synced(&[one("u", 1, 100, 64)]).await;
    agent.until_ready("u").await;
    let values =
        |node: &Node| ["cpu.shares", "cpu.cfs_quota_us", "memory.limit_in_bytes"].map(|f| of_pod(node, f));
    assert_eq!(values(&node), ["102", "20000", "134217728"]);
    let hang = node.fake.fault(Fault::hang("UpdateContainerResources"));
    agent.put(&one("u", 2, 200, 96)).await;
    agent.until("its memory is raised", || hang.hits() == 1).await;
    assert_eq!(values(&node), ["102", "20000", "201326592"], "CPU has its turn later");
    hang.release();
    until_settled(&agent, "u", &sized("main", 200, 96)).await;
    assert_eq!(values(&node), ["204", "40000", "201326592"]);
    let hang = node.fake.fault(Fault::hang("UpdateContainerResources"));
    agent.put(&one("u", 3, 50, 32)).await;
    agent.until("its memory is lowered", || hang.hits() == 1).await;
    assert_eq!(values(&node), ["204", "40000", "201326592"]);
    hang.release();
    until_settled(&agent, "u", &sized("main", 50, 32)).await;
    assert_eq!(values(&node), ["51", "10000", "67108864"]);
    let told = node.fake.requests::<v1::UpdatePodSandboxResourcesRequest>();
    let told = told.iter().map(|r| {
        r.resources.as_ref().map(|r| (r.cpu_shares, r.cpu_quota, r.memory_limit_in_bytes >> 20)).unwrap()
    });
    let want = [
        (102, 20_000, 192),
        (102, 40_000, 192),
        (204, 40_000, 192),
        (204, 40_000, 64),
        (51, 40_000, 64),
        (51, 10_000, 64),
    ];
    assert_eq!(told.collect::<Vec<_>>(), want);
}

#[tokio::test(start_paused = true)]
async fn resources_of_the_pod_as_a_whole_change_in_its_cgroup_alone() {
    let node = with_cgroups();
    let whole = |generation, cpu: u32| {
        let amounts = |times: u32| json!({"cpu": format!("{}m", cpu * times), "memory": "64Mi"});
        let spec = json!({"containers": [container("a"), container("b")],
            "resources": {"requests": amounts(1), "limits": amounts(2)}});
        let mut pod = custom("u", "u", spec);
        pod.metadata.generation = Some(generation);
        pod
    };
    let agent = node.start_synced(&[whole(1, 100)]).await;
    agent.until_ready("u").await;
    assert_eq!(
        (of_pod(&node, "cpu.shares"), of_pod(&node, "cpu.cfs_quota_us")),
        ("102".into(), "20000".into())
    );
    agent.events();
    agent.put(&whole(2, 200)).await;
    agent.until("it is through", || reasons(&agent).contains(&"ResizeCompleted".to_owned())).await;
    assert_eq!(
        (of_pod(&node, "cpu.shares"), of_pod(&node, "cpu.cfs_quota_us")),
        ("204".into(), "40000".into())
    );
    let status = agent.status("u").unwrap();
    assert_eq!(status.allocated_resources.as_ref().unwrap()["cpu"].0, "200m");
    assert_eq!(status.resources.as_ref().unwrap().limits.as_ref().unwrap()["cpu"].0, "400m");
    assert_eq!(node.running().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_agent_killed_at_any_call_of_a_resize_ends_it_and_restarts_nothing() {
    let pair =
        |generation, n: u32| of("u", generation, json!([sized("a", 100 * n, 64 * n), sized("b", 100, 64)]));
    let points = [
        (false, "UpdateContainerResources", 1),
        (false, "UpdateContainerResources", 2),
        (true, "StopContainer", 1),
        (true, "CreateContainer", 1),
        (true, "StartContainer", 1),
    ];
    for ((restarts, call, nth), before) in points.into_iter().flat_map(|p| [(p, true), (p, false)]) {
        let what = format!("killed at {call} {nth} (before: {before}, restarts: {restarts})");
        let asked = |generation, n| {
            let mut pod = pair(generation, n);
            if restarts {
                let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
                pod.spec.as_mut().unwrap().containers[0].resize_policy =
                    serde_json::from_value(policy).unwrap();
            }
            pod
        };
        let node = Node::new();
        let agent = node.start_synced(&[asked(1, 1)]).await;
        agent.until_ready("u").await;
        let b = node.instances("u", "b")[0].id.clone();
        // Those before it go through.
        let first = node.fake.fault(Fault::delay(call, SECOND).times(nth - 1));
        agent.put(&asked(2, 2)).await;
        if nth > 1 {
            agent.until("the first is under way", || first.hits() == nth - 1).await;
        }
        let fault = if before { Fault::hang(call) } else { Fault::hang_answer(call) };
        let fault = node.fake.fault(fault.once());
        pass(3 * SECOND).await;
        assert_eq!(fault.hits(), 1, "{what}");
        agent.kill().await;
        let agent = node.start_synced(&[asked(2, 2)]).await;
        until_settled(&agent, "u", &sized("a", 200, 128)).await;
        agent.until_ready("u").await;
        pass(60 * SECOND).await;
        assert_eq!(has(&node, "u", "a"), (204, 256), "{what}");
        assert_eq!((has(&node, "u", "b"), node.running().contains(&b)), ((102, 128), true), "{what}");
        let instances = node.instances("u", "a");
        let runs = instances.iter().filter(|c| c.started_at != 0).count();
        assert_eq!(runs, if restarts { 2 } else { 1 }, "{what}: {instances:#?}");
        assert_eq!(in_progress(&agent, "u"), None, "{what}");
        node.witness.assert_never_two();
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_promised_outlives_the_agent_and_so_does_what_waits() {
    let node = Node::new();
    let pods = [one("u", 2, 3000, 64), one("v", 1, 2000, 64)];
    let agent = node.start_synced(&[one("u", 1, 1000, 64), pods[1].clone()]).await;
    agent.until_ready("u").await;
    agent.until_ready("v").await;
    agent.put(&pods[0]).await;
    agent.until("it waits", || pending(&agent, "u").is_some()).await;
    pass(5 * SECOND).await;
    agent.kill().await;
    let changes = node.fake.changes().len();
    let agent = node.start_synced(&pods).await;
    agent.until_ready("u").await;
    agent.until_ready("v").await;
    agent.until("it waits", || pending(&agent, "u").is_some()).await;
    assert_eq!(told(&agent, "u", "main"), amounts(&sized("main", 1000, 64)));
    assert_eq!(node.fake.changes().len(), changes);
    // What was promised is still counted, and no more.
    agent.put(&one("w", 1, 1100, 64)).await;
    agent.until("there is no room", || agent.phase("w") == "Failed").await;
    agent.put(&one("x", 1, 900, 64)).await;
    agent.until_ready("x").await;
    agent.gone("v").await;
    until_settled(&agent, "u", &sized("main", 3000, 64)).await;
}

#[tokio::test(start_paused = true)]
async fn without_its_notes_an_agent_finds_out_from_what_runs() {
    for spoil in [&|path: &Path| std::fs::write(path, "{\"data\": \"").unwrap(), &|path: &Path| {
        std::fs::remove_file(path).unwrap()
    }] as [&dyn Fn(&Path); 2]
    {
        let node = Node::new();
        let pods = [one("u", 2, 3000, 64), one("v", 1, 2000, 64)];
        let agent = node.start_synced(&[one("u", 1, 1000, 64), pods[1].clone()]).await;
        agent.until_ready("u").await;
        agent.until_ready("v").await;
        agent.put(&pods[0]).await;
        agent.until("it waits", || pending(&agent, "u").is_some()).await;
        pass(5 * SECOND).await;
        agent.kill().await;
        for file in ["root/allocated_pods_state", "root/actuated_pods_state"] {
            spoil(&node.path(file));
        }
        let changes = node.fake.changes().len();
        let agent = node.start_synced(&pods).await;
        agent.until_ready("u").await;
        agent.until("it waits", || pending(&agent, "u").is_some()).await;
        assert_eq!(told(&agent, "u", "main").0["requests"]["cpu"], "1");
        assert_eq!(told(&agent, "u", "main").0["limits"], json!({"cpu": "2", "memory": "128Mi"}));
        pass(60 * SECOND).await;
        assert_eq!(node.fake.changes().len(), changes, "nothing was touched");
        agent.gone("v").await;
        until_settled(&agent, "u", &sized("main", 3000, 64)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn notes_of_pods_that_are_gone_go_with_them() {
    let node = Node::new();
    let agent = node.start_synced(&[one("u", 1, 100, 64), one("v", 1, 100, 64)]).await;
    agent.until_ready("u").await;
    agent.until_ready("v").await;
    agent.gone("v").await;
    agent.until_gone("v").await;
    pass(5 * SECOND).await;
    let kept = |file: &str| {
        let file: Value = serde_json::from_slice(&std::fs::read(node.path(file)).unwrap()).unwrap();
        let data: Value = serde_json::from_str(file["data"].as_str().unwrap()).unwrap();
        data["entries"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    for file in ["root/allocated_pods_state", "root/actuated_pods_state"] {
        assert_eq!(kept(file), ["u"], "{file}");
    }
    agent.kill().await;
    // One that went while no agent ran.
    let agent = node.start_synced(&[one("w", 1, 100, 64)]).await;
    agent.until_ready("w").await;
    agent.until("the other is gone", || node.instances("u", "main").is_empty()).await;
    pass(5 * SECOND).await;
    assert_eq!(kept("root/allocated_pods_state"), ["w"]);
}
