//! The fake's own promises: scripts, faults, the recorder. What it has in common with real runtimes is in `conformance`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::time::Duration;

use cri::fake::{ExecAnswer, FakeImage, FakeRuntime, Fault, Pull, Script};
use cri::v1::ContainerState::{self, ContainerCreated, ContainerExited, ContainerRunning, ContainerUnknown};
use cri::{Client, Code, Kind, v1};
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

fn sandbox(name: &str) -> v1::PodSandboxConfig {
    let metadata =
        v1::PodSandboxMetadata { name: name.into(), uid: "u".into(), namespace: "ns".into(), attempt: 0 };
    v1::PodSandboxConfig { metadata: Some(metadata), ..Default::default() }
}

fn spec(image: &str) -> v1::ImageSpec {
    v1::ImageSpec { image: image.into(), ..Default::default() }
}

/// A client with one pod, in which containers are made and started.
struct Pod {
    fake: FakeRuntime,
    client: Client,
    id: String,
}

impl Pod {
    async fn new() -> Self {
        let fake = FakeRuntime::builder().any_image().build();
        let client = fake.client();
        client.connected().await;
        let id = client.run_pod_sandbox(sandbox("pod"), "").await.unwrap();
        Self { fake, client, id }
    }

    async fn create(&self, name: &str, attempt: u32) -> cri::Result<String> {
        let metadata = v1::ContainerMetadata { name: name.into(), attempt };
        let config =
            v1::ContainerConfig { metadata: Some(metadata), image: Some(spec("demo")), ..Default::default() };
        self.client.create_container(&self.id, config, sandbox("pod")).await
    }

    async fn start(&self, name: &str, attempt: u32) -> String {
        let id = self.create(name, attempt).await.unwrap();
        self.client.start_container(&id).await.unwrap();
        id
    }

    async fn status(&self, id: &str) -> v1::ContainerStatus {
        self.client.container_status(id, false).await.unwrap().status.unwrap()
    }

    async fn state(&self, id: &str) -> ContainerState {
        self.status(id).await.state()
    }
}

#[tokio::test(start_paused = true)]
async fn containers_end_when_their_script_says_so() {
    let pod = Pod::new().await;
    pod.fake.scripts(
        "job",
        [Script::exits(3, 10 * SECOND), Script::oom_killed(SECOND), Script::exits(0, SECOND)],
    );
    let first = pod.start("job", 0).await;
    sleep(9 * SECOND).await;
    assert_eq!(pod.state(&first).await, ContainerRunning);
    sleep(2 * SECOND).await;
    let status = pod.status(&first).await;
    assert_eq!((status.state(), status.exit_code, status.reason.as_str()), (ContainerExited, 3, "Error"));
    assert_eq!(status.finished_at - status.started_at, 10_000_000_000);
    for (attempt, want) in [(1, (137, "OOMKilled")), (2, (0, "Completed")), (3, (0, "Completed"))] {
        let id = pod.start("job", attempt).await;
        sleep(2 * SECOND).await;
        let status = pod.status(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), want, "attempt {attempt}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_stop_signal_does_what_the_script_says() {
    let pod = Pod::new().await;
    pod.fake.script("pod/polite", Script::forever().on_term(0, 2 * SECOND));
    pod.fake.script("deaf", Script::forever().ignores_term());
    pod.fake.script("stuck", Script::forever().unkillable());
    for (name, grace, took, code) in
        [("polite", 10, 2, 0), ("polite", 1, 1, 137), ("deaf", 5, 5, 137), ("other", 5, 0, 143)]
    {
        let id = pod.start(name, took).await;
        let started = Instant::now();
        pod.client.stop_container(&id, grace).await.unwrap();
        assert_eq!(started.elapsed(), took * SECOND, "{name} {grace}");
        assert_eq!(pod.status(&id).await.exit_code, code, "{name} {grace}");
    }
    let stuck = pod.start("stuck", 0).await;
    assert_eq!(pod.client.stop_container(&stuck, 1).await.unwrap_err().kind, Kind::Timeout);
    pod.fake.exit(&stuck, 9);
    assert_eq!(pod.status(&stuck).await.exit_code, 9);
}

#[tokio::test(start_paused = true)]
async fn creating_and_starting_fail_when_told_to() {
    let pod = Pod::new().await;
    pod.fake.script("unmade", Script::create_error("no such device"));
    pod.fake.script("unstarted", Script::start_error("exec: \"x\": not found"));
    let error = pod.create("unmade", 0).await.unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (Kind::Other, "no such device"));
    let id = pod.create("unstarted", 0).await.unwrap();
    assert_eq!(pod.client.start_container(&id).await.unwrap_err().message, "exec: \"x\": not found");
    let status = pod.status(&id).await;
    assert_eq!(
        (status.state(), status.exit_code, status.reason.as_str()),
        (ContainerExited, 128, "StartError")
    );
}

#[tokio::test(start_paused = true)]
async fn images_come_by_pull_and_go() {
    let fake = FakeRuntime::default();
    let client = fake.client();
    let image = FakeImage::new("reg.test/web:1").uid(1000).size(42);
    fake.on_pull("reg.test/web:1", Pull::gives(image).takes(30 * SECOND));
    fake.on_pull("broken", Pull::fails("no such host"));
    assert!(client.image_status(spec("reg.test/web:1"), false).await.unwrap().image.is_none());
    let started = Instant::now();
    let id = client.pull_image(spec("reg.test/web:1"), None, None).await.unwrap();
    assert_eq!(started.elapsed(), 30 * SECOND);
    let got = client.image_status(spec(&id), false).await.unwrap().image.unwrap();
    assert_eq!(
        (got.uid.unwrap().value, got.size, got.repo_tags),
        (1000, 42, vec!["reg.test/web:1".to_owned()])
    );
    let error = client.pull_image(spec("broken"), None, None).await.unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (Kind::Other, "no such host"));
    let error = client.pull_image(spec("absent"), None, None).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
    client.remove_image(spec("reg.test/web:1")).await.unwrap();
    assert_eq!(client.list_images(None).await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_delayed_call_takes_its_time_and_a_hanging_one_goes_on_when_released() {
    let pod = Pod::new().await;
    let delay = pod.fake.fault(Fault::delay("StartContainer", 5 * SECOND).object("slow").once());
    let started = Instant::now();
    pod.start("quick", 0).await;
    assert_eq!(started.elapsed(), Duration::ZERO);
    pod.start("slow", 0).await;
    pod.start("slow", 1).await;
    assert_eq!((started.elapsed(), delay.hits()), (5 * SECOND, 1));

    let hang = pod.fake.fault(Fault::hang("StartContainer").object("ns/pod"));
    let id = pod.create("late", 0).await.unwrap();
    let release = async {
        pod.fake.until(|_| hang.hits() == 1).await;
        sleep(60 * SECOND).await;
        assert_eq!(pod.state(&id).await, ContainerCreated);
        hang.release();
    };
    let (result, ()) = tokio::join!(pod.client.start_container(&id), release);
    result.unwrap();
    assert_eq!(pod.state(&id).await, ContainerRunning);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_leaves_its_effect_and_a_failure_leaves_none() {
    let pod = Pod::new().await;
    pod.fake.fault(Fault::lose_answer("StartContainer").once());
    let id = pod.create("web", 0).await.unwrap();
    assert_eq!(pod.client.start_container(&id).await.unwrap_err().kind, Kind::Unavailable);
    assert_eq!(pod.state(&id).await, ContainerRunning);
    pod.fake.fault(Fault::fail("StopContainer", Code::Unknown, "busy").object(&id).once());
    assert_eq!(pod.client.stop_container(&id, 1).await.unwrap_err().message, "busy");
    assert_eq!(pod.state(&id).await, ContainerRunning);
    let hang = pod.fake.fault(Fault::hang_answer("RemoveContainer"));
    assert_eq!(pod.client.remove_container(&id).await.unwrap_err().kind, Kind::Timeout);
    assert_eq!((hang.hits(), pod.fake.containers().len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn answers_are_wrong_when_ordered() {
    let pod = Pod::new().await;
    let (a, b) = (pod.start("a", 0).await, pod.start("b", 0).await);
    let hide = pod.fake.fault(Fault::hide("ListContainers").object("a"));
    let unknown = pod.fake.fault(Fault::unknown_state("ContainerStatus").object("b"));
    let listed = pod.client.list_containers(None).await.unwrap();
    assert_eq!(listed.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), [b.as_str()]);
    assert_eq!((pod.state(&a).await, pod.state(&b).await), (ContainerRunning, ContainerUnknown));
    hide.release();
    unknown.release();
    assert_eq!(pod.client.list_containers(None).await.unwrap().len(), 2);
    assert_eq!(pod.state(&b).await, ContainerRunning);
    pod.fake.lose_sight(&a);
    assert_eq!(pod.state(&a).await, ContainerUnknown);
    pod.client.stop_container(&a, 10).await.unwrap();
    assert_eq!(pod.status(&a).await.exit_code, 255);
    let hidden = pod.fake.fault(Fault::hide("ListPodSandbox"));
    assert_eq!(pod.client.list_pod_sandboxes(None).await.unwrap(), []);
    assert_eq!(hidden.hits(), 1);
}

#[tokio::test(start_paused = true)]
async fn events_get_lost_when_ordered_and_containers_outlive_a_restart() {
    let pod = Pod::new().await;
    let mut events = pod.client.container_events();
    for _ in 0..2 {
        events.next().await.unwrap().unwrap();
    }
    pod.fake.lose_events(2);
    let id = pod.start("web", 0).await;
    pod.fake.exit(&id, 1);
    let event = events.next().await.unwrap().unwrap();
    assert_eq!(event.container_event_type(), v1::ContainerEventType::ContainerStoppedEvent);
    assert_eq!(event.containers_statuses[0].exit_code, 1);
    let other = pod.start("other", 0).await;
    pod.fake.go_down();
    pod.fake.come_back();
    pod.client.connected().await;
    pod.fake.until(|f| f.event_streams() == 1).await;
    assert_eq!(pod.state(&other).await, ContainerRunning);
}

#[tokio::test(start_paused = true)]
async fn commands_answer_by_script_within_their_time() {
    let pod = Pod::new().await;
    let id = pod.start("web", 0).await;
    let run = |cmd: &str| pod.client.exec_sync(&id, vec![cmd.to_owned()], 2 * SECOND);
    assert_eq!(run("anything").await.unwrap(), v1::ExecSyncResponse::default());
    pod.fake.exec("web", |cmd| match cmd[0].as_str() {
        "slow" => ExecAnswer::exits(0).takes(5 * SECOND),
        "broken" => ExecAnswer::error(Code::Unknown, "no task"),
        other => ExecAnswer::exits(4).stdout(other).stderr("!"),
    });
    let answer = run("hi").await.unwrap();
    assert_eq!(
        (answer.exit_code, answer.stdout.as_slice(), answer.stderr.as_slice()),
        (4, &b"hi"[..], &b"!"[..])
    );
    let started = Instant::now();
    let error = run("slow").await.unwrap_err();
    assert_eq!((error.kind, started.elapsed()), (Kind::Timeout, 2 * SECOND));
    assert_eq!(error.message, "failed to exec in container: timeout 2s exceeded: context deadline exceeded");
    assert_eq!(run("broken").await.unwrap_err().message, "no task");
    pod.fake.exit(&id, 0);
    assert!(run("hi").await.unwrap_err().message.contains("CONTAINER_EXITED"));
}

#[tokio::test(start_paused = true)]
async fn every_call_is_recorded_in_order_with_its_request_and_outcome() {
    let pod = Pod::new().await;
    let id = pod.start("web", 0).await;
    let limits = v1::LinuxContainerResources { cpu_shares: 512, ..Default::default() };
    let update = v1::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(limits.clone()),
        ..Default::default()
    };
    pod.client.update_container_resources(update.clone()).await.unwrap();
    pod.client.container_status("nothing", false).await.unwrap_err();
    let changes = pod.fake.changes();
    let methods: Vec<_> = changes.iter().map(|c| c.method).collect();
    assert_eq!(methods, ["RunPodSandbox", "CreateContainer", "StartContainer", "UpdateContainerResources"]);
    assert_eq!(changes[3].request::<v1::UpdateContainerResourcesRequest>(), Some(&update));
    assert!(changes[3].is_about("web") && changes[3].is_about("ns/pod") && changes[3].is_about(&id));
    let last = pod.fake.calls().pop().unwrap();
    assert_eq!((last.method, last.answered.unwrap().1), ("ContainerStatus", Code::NotFound));
    assert_eq!(pod.status(&id).await.resources.unwrap().linux, Some(limits));
    pod.fake.forget_calls();
    assert!(pod.fake.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn sandboxes_have_addresses_of_their_own_unless_they_use_the_hosts() {
    let fake = FakeRuntime::builder().dual_stack().build();
    let client = fake.client();
    let mut ips = Vec::new();
    for name in ["a", "b"] {
        let id = client.run_pod_sandbox(sandbox(name), "").await.unwrap();
        let network = client.pod_sandbox_status(&id, false).await.unwrap().status.unwrap().network.unwrap();
        ips.push((network.ip, network.additional_ips[0].ip.clone()));
    }
    assert_eq!(ips[0], ("10.88.0.2".to_owned(), "fd00:88::2".to_owned()));
    assert_ne!(ips[0], ips[1]);
    let options = v1::NamespaceOption { network: v1::NamespaceMode::Node.into(), ..Default::default() };
    let context = v1::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    let linux = v1::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() };
    let host = v1::PodSandboxConfig { linux: Some(linux), ..sandbox("host") };
    let id = client.run_pod_sandbox(host, "runc").await.unwrap();
    let status = client.pod_sandbox_status(&id, false).await.unwrap().status.unwrap();
    assert_eq!((status.network.unwrap().ip, status.runtime_handler), (String::new(), "runc".to_owned()));
}
