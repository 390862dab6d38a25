//! What holds for every CRI runtime, as checks that run against the fake and against real ones alike, so that the fake
//! stays honest. Feature `conformance`; run by `tests/conformance.rs`, by other test crates, and by nothing in
//! production.
//!
//! A check makes its own sandbox (on the host's network, so that no CNI is needed), looks, and removes it whatever comes.
//! It returns the first thing that is not as it should be, as text. None touches what it did not make. Real containers run `sh` of [`Subject::image`]; for the fake, [`script`] makes containers of the same names
//! behave the same.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::future::LocalBoxFuture;
use tokio::time::{Instant, sleep, timeout};

use crate::v1::ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
use crate::v1::PodSandboxState::{SandboxNotready, SandboxReady};
use crate::{Client, Connector, Events, Kind, v1};

/// What is to be checked.
#[derive(Debug, Clone)]
pub struct Subject {
    /// How to reach the runtime, for checks that need a connection of their own.
    pub connector: Connector,
    /// A client of it. All checks use the same one, for a client that is dropped costs containerd 1.7 an event.
    pub client: Client,
    /// An image that is there and has a `sh`.
    pub image: String,
    /// A directory for log files, which the runtime can write to.
    pub logs: PathBuf,
}

/// Nothing, or what is not as it should be.
pub type Outcome = Result<(), String>;

/// Containers' names and what they run.
const ROLES: &[(&str, &str)] = &[
    ("polite", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"),
    ("deaf", "trap '' TERM; echo ready; while :; do sleep 0.05; done"),
    ("succeeds", "exit 0"),
    ("fails", "exit 3"),
    ("talks", "echo to out; echo to err >&2"),
];

/// What `ExecSync` runs, and the exit code and output it must give.
const COMMAND: (&str, i32, &str) = ("echo hello; exit 4", 4, "hello\n");
const SLEEP: &str = "sleep 60";
/// How long something may take that takes no time on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes the fake's containers do what the real ones run. The fake must have been built with `any_image` and
/// `write_logs`.
#[cfg(feature = "fake")]
pub fn script(fake: &crate::fake::FakeRuntime) {
    use crate::fake::{ExecAnswer, Script};
    fake.script("polite", Script::forever().on_term(7, Duration::from_millis(20)).prints("ready"));
    fake.script("deaf", Script::forever().ignores_term().prints("ready"));
    fake.script("succeeds", Script::exits(0, Duration::ZERO));
    fake.script("fails", Script::exits(3, Duration::ZERO));
    fake.script("talks", Script::exits(0, Duration::ZERO).prints("to out").complains("to err"));
    fake.script("absent", Script::start_error("exec: \"/no/such/binary\": no such file or directory"));
    fake.exec("deaf", |command| match command {
        [_, _, text] if text == COMMAND.0 => ExecAnswer::exits(COMMAND.1).stdout(COMMAND.2),
        _ => ExecAnswer::exits(0).takes(Duration::from_secs(60)),
    });
}

/// One check.
#[derive(Clone, Copy)]
pub struct Check {
    /// What holds, as a sentence with underscores.
    pub name: &'static str,
    run: for<'a> fn(&'a Subject) -> LocalBoxFuture<'a, Outcome>,
}

impl Check {
    /// Runs it. Where the runtime lacks what it is about, it holds.
    pub async fn run(&self, subject: &Subject) -> Outcome {
        (self.run)(subject).await
    }
}

impl Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

macro_rules! checks {
    ($($name:ident;)*) => {
        /// All checks.
        pub const CHECKS: &[Check] = &[$(Check { name: stringify!($name), run: |s| Box::pin($name(s)) }),*];
    };
}

checks! {
    version_and_status_are_told;
    a_sandbox_is_run_listed_stopped_and_removed;
    the_same_sandbox_cannot_be_run_twice;
    a_container_is_created_started_stopped_and_removed;
    exit_codes_and_reasons_are_told;
    a_container_that_ignores_the_stop_signal_is_killed_after_its_grace;
    a_running_container_can_be_removed;
    a_container_starts_once_only;
    a_command_that_is_not_there_fails_the_start;
    stopping_a_sandbox_kills_its_containers;
    lists_are_filtered_by_id_state_label_and_sandbox;
    what_is_not_there_is_not_found;
    what_is_not_there_is_stopped_and_removed_without_an_error;
    events_tell_a_containers_life;
    an_absent_image_has_no_status_and_is_removed_without_an_error;
    an_image_is_found_by_name_and_id;
    a_container_of_an_absent_image_cannot_be_created;
    output_goes_to_the_log_file;
    a_command_is_run_in_a_container;
    a_command_past_its_timeout_is_killed;
    resources_can_be_changed_while_running;
    what_a_container_uses_is_measured;
    another_client_sees_what_the_first_one_made;
}

fn ensure(ok: bool, what: impl FnOnce() -> String) -> Outcome {
    if ok { Ok(()) } else { Err(what()) }
}

fn same<T: PartialEq + Debug>(what: &str, got: T, want: T) -> Outcome {
    ensure(got == want, || format!("{what}: got {got:?}, want {want:?}"))
}

fn text(error: crate::Error) -> String {
    format!("{error} ({:?})", error.kind)
}

fn fails<T: Debug>(what: &str, result: crate::Result<T>, kind: Kind) -> Outcome {
    match result {
        Err(error) => same(&format!("{what}: {error}"), error.kind, kind),
        Ok(answer) => Err(format!("{what} succeeded: {answer:?}")),
    }
}

/// A sandbox of a check, and what it takes to make containers in it.
struct Pod {
    client: Client,
    image: String,
    config: v1::PodSandboxConfig,
    id: String,
}

/// Names that no other check, process or earlier run has.
fn sandbox_config(subject: &Subject) -> v1::PodSandboxConfig {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("conformance-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let options = v1::NamespaceOption {
        network: v1::NamespaceMode::Node.into(),
        pid: v1::NamespaceMode::Container.into(),
        ..Default::default()
    };
    let context = v1::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    let linux = v1::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() };
    v1::PodSandboxConfig {
        log_directory: subject.logs.join(&name).display().to_string(),
        labels: BTreeMap::from([("check".to_owned(), name.clone())]),
        annotations: BTreeMap::from([("note".to_owned(), "made by a check".to_owned())]),
        metadata: Some(v1::PodSandboxMetadata {
            uid: name.clone(),
            name,
            namespace: "conformance".into(),
            attempt: 0,
        }),
        linux: Some(linux),
        ..Default::default()
    }
}

/// Runs a check in a sandbox of its own, and removes the sandbox whatever the check found.
async fn in_pod(subject: &Subject, check: impl AsyncFnOnce(&Pod) -> Outcome) -> Outcome {
    let client = subject.client.clone();
    let config = sandbox_config(subject);
    let io = |e: std::io::Error| format!("{}: {e}", config.log_directory);
    tokio::fs::create_dir_all(&config.log_directory).await.map_err(io)?;
    let id = client.run_pod_sandbox(config.clone(), "").await.map_err(text)?;
    let pod = Pod { client, image: subject.image.clone(), config, id };
    let outcome = check(&pod).await;
    let removed = match pod.client.stop_pod_sandbox(&pod.id).await {
        Ok(()) => pod.client.remove_pod_sandbox(&pod.id).await,
        stopped => stopped,
    };
    outcome.and(removed.map_err(text))
}

impl Pod {
    /// The container of that role.
    fn container(&self, role: &str) -> v1::ContainerConfig {
        let command = match ROLES.iter().find(|(name, _)| *name == role) {
            Some((_, script)) => vec!["sh".to_owned(), "-c".to_owned(), (*script).to_owned()],
            None => vec!["/no/such/binary".to_owned()],
        };
        // CRI: the namespaces of the sandbox are asked for again for each container.
        let sandbox = self.config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let context = v1::LinuxContainerSecurityContext {
            namespace_options: sandbox.and_then(|s| s.namespace_options.clone()),
            ..Default::default()
        };
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: role.to_owned(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: self.image.clone(), ..Default::default() }),
            command,
            log_path: format!("{role}.log"),
            labels: BTreeMap::from([("role".to_owned(), role.to_owned())]),
            linux: Some(v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() }),
            ..Default::default()
        }
    }

    async fn create(&self, role: &str) -> Result<String, String> {
        let created = self.client.create_container(&self.id, self.container(role), self.config.clone());
        created.await.map_err(text)
    }

    async fn start(&self, role: &str) -> Result<String, String> {
        let id = self.create(role).await?;
        self.client.start_container(&id).await.map_err(text)?;
        Ok(id)
    }

    async fn status(&self, id: &str) -> Result<v1::ContainerStatus, String> {
        let answer = self.client.container_status(id, false).await.map_err(text)?;
        answer.status.ok_or_else(|| "a status without a status".to_owned())
    }

    /// The status once it has exited. Asked for again and again, for not every runtime has events.
    async fn exited(&self, id: &str) -> Result<v1::ContainerStatus, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status(id).await?;
            if status.state() == ContainerExited {
                return Ok(status);
            }
            ensure(Instant::now() < deadline, || format!("{id} is still {:?}", status.state()))?;
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the container's log has just these lines, in any order; their times are left out.
    async fn said(&self, id: &str, wanted: &[&str]) -> Outcome {
        let path = self.status(id).await?.log_path;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = tokio::fs::read_to_string(&path).await.map_err(|e| format!("{path}: {e}"))?;
            let mut lines: Vec<&str> = log.lines().filter_map(|l| Some(l.split_once(' ')?.1)).collect();
            lines.sort_unstable();
            if lines == wanted {
                return ensure(log.lines().all(|l| l.contains('T')), || log.clone());
            }
            ensure(Instant::now() < deadline, || format!("{path} has {log:?}"))?;
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn sandbox_status(&self) -> Result<v1::PodSandboxStatus, String> {
        let answer = self.client.pod_sandbox_status(&self.id, false).await.map_err(text)?;
        answer.status.ok_or_else(|| "a status without a status".to_owned())
    }
}

// ---- the runtime and its sandboxes ----

async fn version_and_status_are_told(subject: &Subject) -> Outcome {
    let client = &subject.client;
    let version = client.version().await.map_err(text)?;
    same("runtime_api_version", version.runtime_api_version.as_str(), "v1")?;
    ensure(!version.runtime_name.is_empty(), || "no runtime_name".into())?;
    let status = client.status(false).await.map_err(text)?.status.unwrap_or_default();
    for kind in ["RuntimeReady", "NetworkReady"] {
        ensure(status.conditions.iter().any(|c| c.r#type == kind), || format!("no condition {kind}"))?;
    }
    let capabilities = timeout(PATIENCE, client.connected()).await.map_err(|_| "never connected")?;
    same("name", &capabilities.runtime_name, &version.runtime_name)
}

async fn a_sandbox_is_run_listed_stopped_and_removed(subject: &Subject) -> Outcome {
    in_pod(subject, async |pod| {
        let status = pod.sandbox_status().await?;
        same("state", status.state(), SandboxReady)?;
        same("metadata", &status.metadata, &pod.config.metadata)?;
        same("labels", &status.labels, &pod.config.labels)?;
        same("annotations", &status.annotations, &pod.config.annotations)?;
        same("address on the host's network", status.network.unwrap_or_default().ip, String::new())?;
        ensure(status.created_at > 1_000_000_000_000_000_000, || {
            format!("created_at {}", status.created_at)
        })?;
        for stop in ["first", "second"] {
            pod.client.stop_pod_sandbox(&pod.id).await.map_err(|e| format!("{stop} stop: {}", text(e)))?;
            same("state after stop", pod.sandbox_status().await?.state(), SandboxNotready)?;
        }
        for remove in ["first", "second"] {
            pod.client
                .remove_pod_sandbox(&pod.id)
                .await
                .map_err(|e| format!("{remove} remove: {}", text(e)))?;
            fails(
                "status after remove",
                pod.client.pod_sandbox_status(&pod.id, false).await,
                Kind::NotFound,
            )?;
        }
        Ok(())
    })
    .await
}

async fn the_same_sandbox_cannot_be_run_twice(subject: &Subject) -> Outcome {
    in_pod(subject, async |pod| {
        let again = pod.client.run_pod_sandbox(pod.config.clone(), "").await;
        ensure(again.is_err(), || format!("{again:?}"))?;
        let filter = v1::PodSandboxFilter { label_selector: pod.config.labels.clone(), ..Default::default() };
        same("sandboxes", pod.client.list_pod_sandboxes(Some(filter)).await.map_err(text)?.len(), 1)
    })
    .await
}

async fn stopping_a_sandbox_kills_its_containers(subject: &Subject) -> Outcome {
    in_pod(subject, async |pod| {
        let id = pod.start("deaf").await?;
        pod.client.stop_pod_sandbox(&pod.id).await.map_err(text)?;
        let status = pod.exited(&id).await?;
        same("exit code", status.exit_code, 137)?;
        pod.client.remove_pod_sandbox(&pod.id).await.map_err(text)?;
        fails("status after the sandbox's end", pod.client.container_status(&id, false).await, Kind::NotFound)
    })
    .await
}

// ---- containers ----

async fn a_container_is_created_started_stopped_and_removed(subject: &Subject) -> Outcome {
    in_pod(subject, async |pod| {
        let id = pod.create("polite").await?;
        let created = pod.status(&id).await?;
        same("state", created.state(), ContainerCreated)?;
        same("instants", (created.started_at, created.finished_at), (0, 0))?;
        same("metadata", &created.metadata, &pod.container("polite").metadata)?;
        same("labels", &created.labels, &pod.container("polite").labels)?;
        same("log path", &created.log_path, &format!("{}/polite.log", pod.config.log_directory))?;
        pod.client.start_container(&id).await.map_err(text)?;
        let running = pod.status(&id).await?;
        same("state", running.state(), ContainerRunning)?;
        ensure(running.started_at >= running.created_at, || format!("{running:?}"))?;
        same("finished_at", running.finished_at, 0)?;
        // The trap has to be set before the signal comes.
        pod.said(&id, &["stdout F ready"]).await?;
        for stop in ["first", "second"] {
            pod.client.stop_container(&id, 30).await.map_err(|e| format!("{stop} stop: {}", text(e)))?;
        }
        let exited = pod.status(&id).await?;
        same("state", exited.state(), ContainerExited)?;
        same("exit", (exited.exit_code, exited.reason.as_str()), (7, "Error"))?;
        ensure(exited.finished_at >= exited.started_at, || format!("{exited:?}"))?;
        for remove in ["first", "second"] {
            pod.client.remove_container(&id).await.map_err(|e| format!("{remove} remove: {}", text(e)))?;
        }
        fails("status after remove", pod.client.container_status(&id, false).await, Kind::NotFound)
    })
    .await
}

async fn exit_codes_and_reasons_are_told(subject: &Subject) -> Outcome {
    in_pod(subject, async |pod| {
        for (role, want) in [("succeeds", (0, "Completed")), ("fails", (3, "Error"))] {
            let id = pod.start(role).await?;
            let status = pod.exited(&id).await?;
            same(role, (status.exit_code, status.reason.as_str()), want)?;
            // containerd stamps the start when the start call has returned, the exit when it happened: a container that
            // exits at once may have finished before it started, by a little.
            let ran = status.finished_at - status.started_at;
            ensure(status.started_at > 0 && ran > -1_000_000_000, || format!("{status:?}"))?;
        }
        Ok(())
    })
    .await
}

async fn a_container_that_ignores_the_stop_signal_is_killed_after_its_grace(subject: &Subject) -> Outcome {
    in_pod(subject, async |pod| {
        let id = pod.start("deaf").await?;
        pod.said(&id, &["stdout F ready"]).await?;
        let started = Instant::now();
        pod.client.stop_container(&id, 1).await.map_err(text)?;
        ensure(started.elapsed() >= Duration::from_secs(1), || {
            format!("killed after {:?}", started.elapsed())
        })?;
        same("exit code", pod.status(&id).await?.exit_code, 137)
    })
    .await
}

async fn a_running_container_can_be_removed(subject: &Subject) -> Outcome {
    in_pod(subject, async |pod| {
        let id = pod.start("deaf").await?;
        pod.client.remove_container(&id).await.map_err(text)?;
        fails("status after remove", pod.client.container_status(&id, false).await, Kind::NotFound)
    })
    .await
}

async fn a_container_starts_once_only(subject: &Subject) -> Outcome {
    in_pod(subject, async |pod| {
        let id = pod.start("succeeds").await?;
        pod.exited(&id).await?;
        let again = pod.client.start_container(&id).await;
        ensure(again.is_err(), || "started a second time".into())?;
        same("state", pod.status(&id).await?.state(), ContainerExited)
    })
    .await
}

async fn a_command_that_is_not_there_fails_the_start(subject: &Subject) -> Outcome {
    in_pod(subject, async |pod| {
        let id = match pod.create("absent").await {
            Ok(id) => id,
            // CRI-O looks for the command when it creates the container.
            Err(error) => return ensure(error.contains("/no/such/binary"), || error.clone()),
        };
        let error = match pod.client.start_container(&id).await {
            Ok(()) => return Err("started".into()),
            Err(error) => error,
        };
        ensure(error.message.contains("/no/such/binary"), || error.message.clone())?;
        let status = pod.exited(&id).await?;
        same("exit", (status.exit_code, status.reason.as_str()), (128, "StartError"))?;
        ensure(status.message.contains("/no/such/binary"), || format!("{status:?}"))
    })
    .await
}

async fn lists_are_filtered_by_id_state_label_and_sandbox(subject: &Subject) -> Outcome {
    in_pod(subject, async |pod| {
        let (a, b) = (pod.start("deaf").await?, pod.create("polite").await?);
        let list = async |filter: v1::ContainerFilter| {
            let listed = pod.client.list_containers(Some(filter)).await.map_err(text)?;
            let mut ids: Vec<String> = listed.into_iter().map(|c| c.id).collect();
            ids.sort();
            Ok::<_, String>(ids)
        };
        let here = || v1::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
        let mut both = [a.clone(), b.clone()];
        both.sort();
        same("by sandbox", list(here()).await?, both.to_vec())?;
        let state = |state: v1::ContainerState| Some(v1::ContainerStateValue { state: state.into() });
        same(
            "created",
            list(v1::ContainerFilter { state: state(ContainerCreated), ..here() }).await?,
            vec![b.clone()],
        )?;
        same(
            "running",
            list(v1::ContainerFilter { state: state(ContainerRunning), ..here() }).await?,
            vec![a.clone()],
        )?;
        same(
            "by id",
            list(v1::ContainerFilter { id: b.clone(), ..Default::default() }).await?,
            vec![b.clone()],
        )?;
        same(
            "id and other state",
            list(v1::ContainerFilter { id: b, state: state(ContainerRunning), ..here() }).await?,
            vec![],
        )?;
        let label = |value: &str| BTreeMap::from([("role".to_owned(), value.to_owned())]);
        same(
            "by label",
            list(v1::ContainerFilter { label_selector: label("deaf"), ..here() }).await?,
            vec![a],
        )?;
        same(
            "other label",
            list(v1::ContainerFilter { label_selector: label("x"), ..here() }).await?,
            vec![],
        )?;

        let sandboxes = async |filter: v1::PodSandboxFilter| {
            let listed = pod.client.list_pod_sandboxes(Some(filter)).await.map_err(text)?;
            Ok::<_, String>(listed.into_iter().map(|s| s.id).collect::<Vec<_>>())
        };
        let mine =
            || v1::PodSandboxFilter { label_selector: pod.config.labels.clone(), ..Default::default() };
        same("sandboxes by label", sandboxes(mine()).await?, vec![pod.id.clone()])?;
        let by_id = v1::PodSandboxFilter { id: pod.id.clone(), ..Default::default() };
        same("sandboxes by id", sandboxes(by_id).await?, vec![pod.id.clone()])?;
        let not_ready = Some(v1::PodSandboxStateValue { state: SandboxNotready.into() });
        same(
            "sandboxes by state",
            sandboxes(v1::PodSandboxFilter { state: not_ready, ..mine() }).await?,
            vec![],
        )
    })
    .await
}

// ---- what is not there ----

/// An id that no runtime has given.
const NOTHING: &str = "00000000000000000000000000000000000000000000000000000000deadbeef";

async fn what_is_not_there_is_not_found(subject: &Subject) -> Outcome {
    in_pod(subject, async |pod| {
        let c = &pod.client;
        fails("ContainerStatus", c.container_status(NOTHING, false).await, Kind::NotFound)?;
        fails("PodSandboxStatus", c.pod_sandbox_status(NOTHING, false).await, Kind::NotFound)?;
        fails("StartContainer", c.start_container(NOTHING).await, Kind::NotFound)?;
        fails("ReopenContainerLog", c.reopen_container_log(NOTHING).await, Kind::NotFound)?;
        let command = vec!["true".to_owned()];
        fails("ExecSync", c.exec_sync(NOTHING, command, Duration::from_secs(5)).await, Kind::NotFound)?;
        let created = c.create_container(NOTHING, pod.container("fails"), pod.config.clone()).await;
        fails("CreateContainer", created, Kind::NotFound)?;
        let by_id = v1::ContainerFilter { id: NOTHING.to_owned(), ..Default::default() };
        same("ListContainers", c.list_containers(Some(by_id)).await.map_err(text)?.len(), 0)
    })
    .await
}

async fn what_is_not_there_is_stopped_and_removed_without_an_error(subject: &Subject) -> Outcome {
    let client = &subject.client;
    client.stop_container(NOTHING, 1).await.map_err(text)?;
    client.remove_container(NOTHING).await.map_err(text)?;
    client.stop_pod_sandbox(NOTHING).await.map_err(text)?;
    client.remove_pod_sandbox(NOTHING).await.map_err(text)
}

// ---- events ----

/// The next event about this container or sandbox; those about others are none of the check's business.
async fn event_about(events: &mut Events, id: &str) -> Result<v1::ContainerEventResponse, String> {
    let about = async {
        while let Some(event) = events.next().await {
            let event = event.map_err(text)?;
            if event.container_id == id {
                return Ok(event);
            }
        }
        Err("the event stream ended".to_owned())
    };
    timeout(PATIENCE, about).await.unwrap_or_else(|_| Err(format!("no event about {id}")))
}

/// Makes and removes containers until their events arrive. On containerd 1.7 each client that went away before takes one
/// event with it, and those of earlier runs are among them.
async fn heard(events: &mut Events, pod: &Pod) -> Outcome {
    for _ in 0..50 {
        let id = pod.create("polite").await?;
        pod.client.remove_container(&id).await.map_err(text)?;
        let both = async {
            event_about(events, &id).await?;
            event_about(events, &id).await
        };
        if let Ok(both) = timeout(Duration::from_millis(300), both).await {
            return both.map(drop);
        }
    }
    Err("no events arrive".into())
}

async fn events_tell_a_containers_life(subject: &Subject) -> Outcome {
    use v1::ContainerEventType as Type;
    in_pod(subject, async |pod| {
        let capabilities = timeout(PATIENCE, pod.client.connected()).await.map_err(|_| "never connected")?;
        if !capabilities.container_events {
            return Ok(());
        }
        let mut events = pod.client.container_events();
        heard(&mut events, pod).await?;
        let id = pod.start("fails").await?;
        pod.exited(&id).await?;
        pod.client.remove_container(&id).await.map_err(text)?;
        for (what, state) in [
            (Type::ContainerCreatedEvent, Some(ContainerCreated)),
            (Type::ContainerStartedEvent, None),
            (Type::ContainerStoppedEvent, Some(ContainerExited)),
            (Type::ContainerDeletedEvent, None),
        ] {
            let event = event_about(&mut events, &id).await?;
            same("event", event.container_event_type(), what)?;
            same("sandbox", event.pod_sandbox_status.map(|s| s.id), Some(pod.id.clone()))?;
            ensure(event.created_at > 0, || "an event without an instant".into())?;
            let told = event.containers_statuses.iter().find(|c| c.id == id);
            if let Some(state) = state {
                same("state in the event", told.map(v1::ContainerStatus::state), Some(state))?;
            }
            if what == Type::ContainerDeletedEvent {
                same("a deleted container's status", told, None)?;
            }
        }
        pod.client.stop_pod_sandbox(&pod.id).await.map_err(text)?;
        pod.client.remove_pod_sandbox(&pod.id).await.map_err(text)?;
        let mut last = event_about(&mut events, &pod.id).await?;
        while last.container_event_type() != Type::ContainerDeletedEvent {
            last = event_about(&mut events, &pod.id).await?;
        }
        Ok(())
    })
    .await
}

// ---- images ----

fn image(name: &str) -> v1::ImageSpec {
    v1::ImageSpec { image: name.to_owned(), ..Default::default() }
}

const ABSENT: &str = "sha256:00000000000000000000000000000000000000000000000000000000deadbeef";

async fn an_absent_image_has_no_status_and_is_removed_without_an_error(subject: &Subject) -> Outcome {
    let client = &subject.client;
    same("status", client.image_status(image(ABSENT), false).await.map_err(text)?.image, None)?;
    client.remove_image(image(ABSENT)).await.map_err(text)
}

async fn an_image_is_found_by_name_and_id(subject: &Subject) -> Outcome {
    let client = &subject.client;
    let status = |name: String| {
        let client = client.clone();
        async move { Ok::<_, String>(client.image_status(image(&name), false).await.map_err(text)?.image) }
    };
    let found = status(subject.image.clone()).await?.ok_or_else(|| format!("no image {}", subject.image))?;
    same("by id", status(found.id.clone()).await?.map(|i| i.id), Some(found.id.clone()))?;
    ensure(found.size > 0, || format!("{found:?}"))?;
    let listed = client.list_images(None).await.map_err(text)?;
    ensure(listed.iter().any(|i| i.id == found.id), || format!("{} is not listed", found.id))
}

async fn a_container_of_an_absent_image_cannot_be_created(subject: &Subject) -> Outcome {
    in_pod(subject, async |pod| {
        let config = v1::ContainerConfig { image: Some(image(ABSENT)), ..pod.container("fails") };
        let created = pod.client.create_container(&pod.id, config, pod.config.clone()).await;
        ensure(created.is_err(), || format!("{created:?}"))
    })
    .await
}

// ---- what runs in a container ----

async fn output_goes_to_the_log_file(subject: &Subject) -> Outcome {
    in_pod(subject, async |pod| {
        let id = pod.start("talks").await?;
        pod.exited(&id).await?;
        // The runtime may write after it told the exit.
        pod.said(&id, &["stderr F to err", "stdout F to out"]).await
    })
    .await
}

fn shell(script: &str) -> Vec<String> {
    vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()]
}

async fn a_command_is_run_in_a_container(subject: &Subject) -> Outcome {
    in_pod(subject, async |pod| {
        let id = pod.start("deaf").await?;
        let (script, code, output) = COMMAND;
        let answer = pod.client.exec_sync(&id, shell(script), PATIENCE).await.map_err(text)?;
        same("exit code", answer.exit_code, code)?;
        same("output", String::from_utf8_lossy(&answer.stdout).into_owned(), output.to_owned())?;
        pod.client.stop_container(&id, 0).await.map_err(text)?;
        let after = pod.client.exec_sync(&id, shell(script), PATIENCE).await;
        ensure(after.is_err(), || format!("ran in a stopped container: {after:?}"))
    })
    .await
}

async fn a_command_past_its_timeout_is_killed(subject: &Subject) -> Outcome {
    in_pod(subject, async |pod| {
        let id = pod.start("deaf").await?;
        let answer = pod.client.exec_sync(&id, shell(SLEEP), Duration::from_secs(1)).await;
        fails("ExecSync", answer, Kind::Timeout)?;
        same("state", pod.status(&id).await?.state(), ContainerRunning)
    })
    .await
}

async fn resources_can_be_changed_while_running(subject: &Subject) -> Outcome {
    in_pod(subject, async |pod| {
        let id = pod.start("deaf").await?;
        let linux = v1::LinuxContainerResources { cpu_shares: 512, ..Default::default() };
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        pod.client.update_container_resources(request).await.map_err(text)?;
        // containerd before 1.7 does not tell resources.
        match pod.status(&id).await?.resources.and_then(|r| r.linux) {
            None => Ok(()),
            Some(told) => same("cpu_shares", told.cpu_shares, 512),
        }
    })
    .await
}

async fn what_a_container_uses_is_measured(subject: &Subject) -> Outcome {
    in_pod(subject, async |pod| {
        let id = pod.start("deaf").await?;
        let stats = pod.client.container_stats(&id).await.map_err(text)?;
        same("attributes", stats.attributes.map(|a| a.id), Some(id.clone()))?;
        ensure(stats.memory.is_some() && stats.cpu.is_some(), || "neither memory nor cpu".into())?;
        let filter = v1::ContainerStatsFilter { id: id.clone(), ..Default::default() };
        same("listed", pod.client.list_container_stats(Some(filter)).await.map_err(text)?.len(), 1)
    })
    .await
}

async fn another_client_sees_what_the_first_one_made(subject: &Subject) -> Outcome {
    in_pod(subject, async |pod| {
        let id = pod.start("deaf").await?;
        let before = pod.status(&id).await?;
        let other = Client::builder(subject.connector.clone()).build();
        let after = other.container_status(&id, false).await.map_err(text)?.status.unwrap_or_default();
        same("status", after, before)
    })
    .await
}
