//! The client against the fake: deadlines, errors, reconnecting, capabilities, events. Time is paused throughout, so that
//! what waits for a timer shows in the clock.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cri::fake::{FakeRuntime, Fault, Profile, Script};
use cri::{Client, Connection, Deadlines, Kind, v1};
use rstest::rstest;
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

fn sandbox(name: &str) -> v1::PodSandboxConfig {
    let metadata =
        v1::PodSandboxMetadata { name: name.into(), uid: "u".into(), namespace: "ns".into(), attempt: 0 };
    v1::PodSandboxConfig { metadata: Some(metadata), ..Default::default() }
}

fn container(name: &str) -> v1::ContainerConfig {
    let metadata = v1::ContainerMetadata { name: name.into(), attempt: 0 };
    let image = v1::ImageSpec { image: "demo".into(), ..Default::default() };
    v1::ContainerConfig { metadata: Some(metadata), image: Some(image), ..Default::default() }
}

/// A running container: the client, the sandbox, the container.
async fn running(fake: &FakeRuntime, name: &str) -> (Client, String, String) {
    let client = fake.client();
    let pod = client.run_pod_sandbox(sandbox("pod"), "").await.unwrap();
    let id = client.create_container(&pod, container(name), sandbox("pod")).await.unwrap();
    client.start_container(&id).await.unwrap();
    (client, pod, id)
}

fn fake() -> FakeRuntime {
    FakeRuntime::builder().any_image().build()
}

/// Name, release, handlers, cgroup driver, events, sandbox stats, metrics, streaming lists.
type Want = (&'static str, Option<(u32, u32)>, usize, Option<v1::CgroupDriver>, bool, bool, bool, bool);

#[rstest]
#[case(Profile::Containerd16, ("containerd", Some((1, 6)), 0, None, false, true, false, false))]
#[case(Profile::Containerd17, ("containerd", Some((1, 7)), 0, None, true, true, false, false))]
#[case(Profile::Containerd21, ("containerd", Some((2, 1)), 2, Some(v1::CgroupDriver::Cgroupfs), true, true, false, false))]
#[case(Profile::CriO130, ("cri-o", Some((1, 30)), 2, Some(v1::CgroupDriver::Cgroupfs), false, true, true, false))]
#[case(Profile::Everything, ("cri-o", Some((1, 36)), 2, Some(v1::CgroupDriver::Cgroupfs), true, true, true, true))]
#[tokio::test(start_paused = true)]
async fn capabilities_are_detected_without_waiting_for_a_timer(#[case] profile: Profile, #[case] want: Want) {
    let fake = FakeRuntime::builder().profile(profile).build();
    let started = Instant::now();
    let client = fake.client();
    let c = client.connected().await;
    assert_eq!(started.elapsed(), Duration::ZERO);
    let got = (
        c.runtime_name.as_str(),
        c.runtime_release(),
        c.handlers.len(),
        c.cgroup_driver,
        c.container_events,
        c.stats.sandboxes,
        c.stats.metrics,
        c.streaming_lists,
    );
    assert_eq!(got, want);
}

#[tokio::test(start_paused = true)]
async fn each_call_has_the_deadline_of_its_kind() {
    let fake = fake();
    let (client, pod, id) = running(&fake, "web").await;
    for call in ["Status", "RunPodSandbox", "StopContainer", "ExecSync", "PullImage"] {
        let _ = fake.fault(Fault::hang(call));
    }
    async fn takes<T: std::fmt::Debug>(call: impl Future<Output = cri::Result<T>>) -> u64 {
        let started = Instant::now();
        let error = call.await.unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (Kind::Timeout, "context deadline exceeded"));
        started.elapsed().as_secs()
    }
    assert_eq!(takes(client.status(false)).await, 120);
    assert_eq!(takes(client.run_pod_sandbox(sandbox("other"), "")).await, 240);
    assert_eq!(takes(client.stop_container(&id, 30)).await, 150);
    assert_eq!(takes(client.exec_sync(&id, vec!["x".into()], SECOND)).await, 121);
    let image = v1::ImageSpec { image: "x".into(), ..Default::default() };
    assert_eq!(takes(client.pull_image(image, None, None)).await, 24 * 3600);
    let short = Deadlines { base: SECOND, ..Default::default() };
    let quick = Client::builder(fake.connector()).deadlines(short).build();
    let _ = fake.fault(Fault::hang("PodSandboxStatus"));
    assert_eq!(takes(quick.pod_sandbox_status(&pod, false)).await, 1);
}

#[tokio::test(start_paused = true)]
async fn errors_name_call_and_object_and_carry_the_runtimes_words() {
    let client = fake().client();
    let error = client.container_status("abc", false).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
    assert_eq!(error.message, "an error occurred when try to find container \"abc\": not found");
    assert_eq!(error.to_string(), format!("ContainerStatus abc: {}", error.message));
    let error = client.run_pod_sandbox(sandbox("web"), "kata").await.unwrap_err();
    assert!(
        error.to_string().starts_with("RunPodSandbox ns/web: unable to get OCI runtime for sandbox"),
        "{error}"
    );
    let error = client.create_container("s", container("web"), sandbox("web")).await.unwrap_err();
    assert_eq!((error.kind, error.object.as_str()), (Kind::NotFound, "web in s"));
    let error = client.update_pod_sandbox_resources(Default::default()).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unimplemented);
    assert!(error.message.starts_with("unknown method UpdatePodSandboxResources"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_message_past_16_mib_is_an_error_of_its_own_kind_and_hurts_nothing_else() {
    let fake = fake();
    let (client, _, id) = running(&fake, "web").await;
    fake.exec("web", |cmd| cri::fake::ExecAnswer::exits(0).stdout(vec![b'x'; cmd[0].parse().unwrap()]));
    let error = client.exec_sync(&id, vec![(17 << 20).to_string()], SECOND).await.unwrap_err();
    assert_eq!(error.kind, Kind::ResourceExhausted, "{error:?}");
    let answer = client.exec_sync(&id, vec![(15 << 20).to_string()], SECOND).await.unwrap();
    assert_eq!(answer.stdout.len(), 15 << 20);
}

#[tokio::test(start_paused = true)]
async fn a_call_under_way_fails_when_the_runtime_dies_and_the_next_goes_to_the_new_one() {
    let fake = fake();
    let (client, _, id) = running(&fake, "web").await;
    let mut connection = client.connection();
    client.connected().await;
    connection.mark_unchanged();
    let hanging = fake.fault(Fault::hang("StopContainer"));
    let call = tokio::spawn({
        let (client, id) = (client.clone(), id.clone());
        async move { client.stop_container(&id, 1).await }
    });
    fake.until(|_| hanging.hits() == 1).await;
    fake.restart();
    let error = call.await.unwrap().unwrap_err();
    assert_eq!((error.kind, error.call), (Kind::Unavailable, "StopContainer"), "{error}");
    connection.changed().await.unwrap();
    assert!(matches!(&*connection.borrow(), Connection::Disconnected { .. }));
    client.connected().await;
    assert_eq!(client.container_status(&id, false).await.unwrap().status.unwrap().state, 1);
}

#[tokio::test(start_paused = true)]
async fn while_the_runtime_is_away_calls_fail_at_once_and_the_client_comes_back_by_itself() {
    let fake = fake();
    let (client, ..) = running(&fake, "web").await;
    client.connected().await;
    let mut connection = client.connection();
    fake.go_down();
    connection.wait_for(|c| c.capabilities().is_none()).await.unwrap();
    tokio::time::sleep(60 * SECOND).await;
    let started = Instant::now();
    let error = client.version().await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(error.message.contains("fake runtime"), "{error}");
    assert_eq!(started.elapsed(), Duration::ZERO);
    let Connection::Disconnected { since, .. } = connection.borrow().clone() else {
        panic!("connected to nothing")
    };
    assert!(since.elapsed() >= 60 * SECOND);
    let started = Instant::now();
    fake.come_back();
    client.connected().await;
    assert!(started.elapsed() <= SECOND, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_is_up_but_not_ready_is_not_called_connected() {
    let fake = fake();
    fake.refuse_all(true);
    let client = fake.client();
    let mut connection = client.connection();
    let not_ready = |c: &Connection| matches!(c, Connection::Disconnected { error, .. } if error.contains("not initialized"));
    connection.wait_for(not_ready).await.unwrap();
    fake.refuse_all(false);
    client.connected().await;
}

#[tokio::test(start_paused = true)]
async fn events_since_the_connect_reach_the_first_who_asks() {
    use v1::ContainerEventType::{ContainerCreatedEvent, ContainerStartedEvent};
    let fake = fake();
    let client = fake.client();
    client.connected().await;
    let pod = client.run_pod_sandbox(sandbox("pod"), "").await.unwrap();
    let mut events = client.container_events();
    for want in [ContainerCreatedEvent, ContainerStartedEvent] {
        let event = events.next().await.unwrap().unwrap();
        assert_eq!((event.container_id.as_str(), event.container_event_type()), (pod.as_str(), want));
        assert_eq!(event.pod_sandbox_status.unwrap().id, pod);
    }
    assert_eq!(fake.event_streams(), 1);
    drop(events);
    let mut events = client.container_events();
    let (id, event) = tokio::join!(
        async {
            fake.until(|f| f.requests::<v1::GetEventsRequest>().len() == 2).await;
            client.create_container(&pod, container("web"), sandbox("pod")).await.unwrap()
        },
        events.next()
    );
    let event = event.unwrap().unwrap();
    assert_eq!((event.container_id, event.containers_statuses.len()), (id, 1));
}

#[tokio::test(start_paused = true)]
async fn an_event_stream_ends_with_the_connection_and_when_it_is_cut() {
    let fake = fake();
    let client = fake.client();
    client.connected().await;
    let mut events = client.container_events();
    fake.drop_event_streams();
    assert_eq!(events.next().await.unwrap().unwrap_err().kind, Kind::Unavailable);
    assert!(events.next().await.is_none());
    let mut events = client.container_events();
    let cut = async {
        fake.until(|f| f.event_streams() == 1).await;
        fake.restart();
    };
    let (item, ()) = tokio::join!(events.next(), cut);
    assert_eq!(item.unwrap().unwrap_err().kind, Kind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_runtime_without_events_says_so_at_once() {
    let client = FakeRuntime::builder().profile(Profile::Containerd16).build().client();
    let error = client.container_events().next().await.unwrap().unwrap_err();
    assert_eq!(error.kind, Kind::Unimplemented);
}

#[tokio::test(start_paused = true)]
async fn lists_are_streamed_where_that_is_wanted_and_can_be_had() {
    for (profile, wanted, streams) in [
        (Profile::Everything, true, true),
        (Profile::Everything, false, false),
        (Profile::Containerd21, true, false),
    ] {
        let fake = FakeRuntime::builder().profile(profile).any_image().build();
        let client = Client::builder(fake.connector()).stream_lists(wanted).build();
        client.connected().await;
        for name in ["a", "b"] {
            client.run_pod_sandbox(sandbox(name), "").await.unwrap();
        }
        fake.forget_calls();
        assert_eq!(client.list_pod_sandboxes(None).await.unwrap().len(), 2);
        assert_eq!(fake.requests::<v1::StreamPodSandboxesRequest>().len(), usize::from(streams));
        assert_eq!(fake.requests::<v1::ListPodSandboxRequest>().len(), usize::from(!streams));
    }
}

#[tokio::test(start_paused = true)]
async fn the_image_service_may_live_elsewhere() {
    let (runtime, images) = (fake(), fake());
    let client = Client::builder(runtime.connector()).image(images.connector()).build();
    client.list_images(None).await.unwrap();
    client.version().await.unwrap();
    assert_eq!(images.requests::<v1::ListImagesRequest>().len(), 1);
    assert_eq!(images.requests::<v1::VersionRequest>().len(), 0);
    assert_eq!(runtime.requests::<v1::ListImagesRequest>().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_observer_sees_every_call_end() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let client = Client::builder(fake().connector())
        .observe(move |f| log.lock().unwrap().push((f.call, f.error.map(|e| e.kind))))
        .build();
    client.version().await.unwrap();
    client.container_status("x", false).await.unwrap_err();
    assert_eq!(*seen.lock().unwrap(), [("Version", None), ("ContainerStatus", Some(Kind::NotFound))]);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_call_cancels_it_in_the_runtime() {
    let fake = fake();
    let (client, _, id) = running(&fake, "web").await;
    let slow = fake.fault(Fault::delay("StopContainer", 10 * SECOND));
    let call = client.stop_container(&id, 1);
    tokio::select! {
        biased;
        _ = call => panic!("the call takes ten seconds"),
        () = fake.until(|_| slow.hits() == 1) => {}
    }
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(client.container_status(&id, false).await.unwrap().status.unwrap().state, 1);
}

#[tokio::test(start_paused = true)]
async fn the_connection_closes_with_the_last_client() {
    let fake = fake();
    let client = fake.client();
    let other = client.clone();
    client.connected().await;
    drop(client);
    other.version().await.unwrap();
    assert_eq!(fake.event_streams(), 1);
    drop(other);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fake.event_streams(), 0);
}

#[tokio::test]
async fn a_real_socket_serves_as_well_and_may_appear_late() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("cri.sock");
    let client = Client::connect(&format!("unix://{}", socket.display())).unwrap();
    let error = client.version().await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(error.message.contains("cri.sock"), "{error}");
    let fake = fake();
    fake.script("web", Script::exits(5, Duration::ZERO));
    let served = fake.serve(&socket).await.unwrap();
    client.connected().await;
    assert_eq!(client.version().await.unwrap().runtime_name, "containerd");
    drop(served);
    assert!(!socket.exists());
}
