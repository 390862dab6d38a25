//! The steps of a plan, carried out: the only place that asks the runtime and the rooms to change something for a pod.
//!
//! Every step may be repeated: what is already so is success. A step's failure says what the pod's owner must read
//! (event, waiting reason) and when to try again; it never loses what other steps have done.

use super::plan::{Kill, Waiting};
use super::rooms::Rooms;
use super::translate::{self, ContainerInput, EnvSources, SourceError};
use crate::api::{self, Container, Pod, PodRef, PodUid, Qos};
use crate::event::{ContainerList, Event, Kind, container_path};
use crate::image::EnsureImage;
use crate::log;
use crate::pleg::observed::Observed;
use crate::volume::Mounted;
use cri::v1;
use futures::future::join_all;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Why a step failed.
#[derive(Debug, Default)]
pub struct Failure {
    /// It concerns one container; the others go on.
    pub of_container: bool,
    /// For the container's status.
    pub waiting: Option<Waiting>,
    /// When to try again (nanoseconds since the epoch), where a room knows better than the actor's own back-off.
    pub retry_at: Option<i64>,
    /// The pod must end; this is no failure at all.
    pub interrupted: bool,
    /// The instance that was left behind, as a rule ended.
    pub not_started: Option<String>,
}

impl Failure {
    fn interrupted() -> Self {
        Self { interrupted: true, ..Self::default() }
    }

    fn waiting(reason: &str, message: impl Into<String>) -> Self {
        let waiting = Waiting { reason: reason.to_owned(), message: message.into() };
        Self { of_container: true, waiting: Some(waiting), ..Self::default() }
    }
}

/// What has been made for the pod, and the rooms to make more.
#[derive(Debug)]
pub struct Steps {
    rooms: Arc<Rooms>,
    pod: PodRef,
    /// The pod's cgroup exists, or may.
    pub cgroup_made: bool,
    /// A sandbox was made and has not been seen yet.
    pub sandbox_made: bool,
    made: Option<Made>,
    mounted: Option<Mounted>,
}

/// The sandbox that containers are started in.
#[derive(Debug)]
struct Made {
    id: String,
    config: v1::PodSandboxConfig,
    ips: Vec<IpAddr>,
}

impl Steps {
    /// An earlier incarnation may have made the cgroup of a pod that is new to this one, so it counts as there until
    /// it has been removed.
    pub fn new(rooms: Arc<Rooms>, pod: PodRef) -> Self {
        Self { rooms, pod, cgroup_made: true, sandbox_made: false, made: None, mounted: None }
    }

    pub fn container<'a>(&self, pod: &'a Pod, list: ContainerList, index: usize) -> Option<&'a Container> {
        let spec = api::spec(pod);
        match list {
            ContainerList::Init => spec.init_containers.as_ref()?.get(index),
            ContainerList::Regular => spec.containers.get(index),
            ContainerList::Ephemeral => None,
        }
    }

    fn event(&self, kind: Kind, field_path: Option<String>, reason: &'static str, message: String) {
        let (pod, reason) = (Some(self.pod.clone()), reason.into());
        self.rooms.recorder.record(Event { pod, field_path, kind, reason, message });
    }

    /// Tells that a container that ended waits before it runs again.
    pub fn tell_backoff(&self, pod: &Pod, container: &str) {
        let path = container_path(self.list_of(pod, container), container);
        let message = format!("Back-off restarting failed container {container} in pod {}", self.pod);
        self.event(Kind::Warning, Some(path), "BackOff", message);
    }

    /// Ends containers, all at once. As upstream's, a stop under way is not shortened by a later order.
    pub async fn kill(&self, pod: &Pod, targets: &[Kill], grace: Duration) -> Result<(), Failure> {
        let stops = targets.iter().map(|t| async move {
            let message = t.message.clone().unwrap_or_else(|| format!("Stopping container {}", t.name));
            self.event(Kind::Normal, Some(container_path(self.list_of(pod, &t.name), &t.name)), "Killing", message);
            let seconds = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
            match self.rooms.runtime.stop_container(&t.id, seconds).await {
                Err(e) if e.kind != cri::Kind::NotFound => {
                    tracing::warn!(pod = %self.pod, container = t.name, error = %e, "cannot stop the container");
                    Err(())
                }
                _ => Ok(()),
            }
        });
        let all = join_all(stops).await;
        if all.iter().any(Result::is_err) { Err(Failure::default()) } else { Ok(()) }
    }

    fn list_of(&self, pod: &Pod, name: &str) -> ContainerList {
        let inits = api::spec(pod).init_containers.as_deref().unwrap_or_default();
        if inits.iter().any(|c| c.name == name) { ContainerList::Init } else { ContainerList::Regular }
    }

    pub async fn stop_sandbox(&mut self, id: &str) -> Result<(), Failure> {
        self.sandbox_made = false;
        if self.made.as_ref().is_some_and(|m| m.id == id) {
            self.made = None;
        }
        self.runtime_gone(self.rooms.runtime.stop_pod_sandbox(id).await, "stop the sandbox")
    }

    pub async fn remove_container(&self, pod: &Pod, id: &str, name: &str) -> Result<(), Failure> {
        let removed = self.rooms.runtime.remove_container(id).await;
        self.runtime_gone(removed, "remove the container")?;
        self.remove_leftover(pod, id).await?;
        if let Err(error) = log::remove_links(&self.rooms.log_links_dir, &self.pod, name, id) {
            tracing::warn!(pod = %self.pod, container = name, %error, "cannot remove the link to the container's log");
        }
        Ok(())
    }

    pub async fn remove_sandbox(&self, pod: &Pod, id: &str) -> Result<(), Failure> {
        self.runtime_gone(self.rooms.runtime.remove_pod_sandbox(id).await, "remove the sandbox")?;
        self.remove_leftover(pod, id).await
    }

    /// What the runtime has removed must not go on in the pod's cgroup.
    async fn remove_leftover(&self, pod: &Pod, id: &str) -> Result<(), Failure> {
        let (cgroups, uid, qos) =
            (self.rooms.cgroups.clone(), self.pod.uid.clone(), translate::qos_class(pod));
        let id = id.to_owned();
        let removed = tokio::task::spawn_blocking(move || cgroups.remove_leftover(qos, &uid, &id)).await;
        self.cgroup_gone(removed, "remove what is left of the container's cgroup")
    }

    fn cgroup_gone(
        &self,
        removed: Result<Result<(), crate::cgroup::Error>, tokio::task::JoinError>,
        what: &str,
    ) -> Result<(), Failure> {
        match removed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                tracing::warn!(pod = %self.pod, %error, "cannot {what}");
                Err(Failure::default())
            }
            Err(error) => {
                tracing::error!(pod = %self.pod, %error, "panicked: {what}");
                Err(Failure::default())
            }
        }
    }

    /// What is not there any more is as wanted.
    fn runtime_gone(&self, result: Result<(), cri::Error>, what: &str) -> Result<(), Failure> {
        match result {
            Err(error) if error.kind != cri::Kind::NotFound => {
                tracing::warn!(pod = %self.pod, %error, "cannot {what}");
                Err(Failure::default())
            }
            _ => Ok(()),
        }
    }

    /// Directories, cgroup and volumes: what must be there before anything of the pod runs.
    async fn prepare(&mut self, pod: &Pod) -> Result<(), Failure> {
        if self.mounted.is_some() {
            return Ok(());
        }
        let qos = translate::qos_class(pod);
        let values = translate::pod_cgroup_resources(pod, &self.rooms.facts);
        self.cgroup_made = true;
        if let Err(error) = self.rooms.cgroups.create_pod(qos, &self.pod.uid, &values) {
            let message = format!("error: {error}");
            self.event(Kind::Warning, None, "FailedToCreatePodContainer", message);
            return Err(Failure::default());
        }
        if let Err(error) = self.rooms.volumes.prepare_pod_dirs(&self.pod.uid) {
            self.event(Kind::Warning, None, error.reason, error.message);
            return Err(Failure::default());
        }
        match self.rooms.volumes.setup(pod, values.memory_limit).await {
            Ok(mounted) => {
                self.mounted = Some(mounted);
                Ok(())
            }
            Err(error) => {
                for e in error.all() {
                    self.event(Kind::Warning, None, e.reason, e.message.clone());
                }
                Err(Failure::default())
            }
        }
    }

    pub async fn create_sandbox(
        &mut self,
        pod: &Pod,
        attempt: u32,
        stop: impl Future<Output = ()>,
    ) -> Result<(), Failure> {
        // Whatever comes of this, what was known of an earlier sandbox is void.
        self.made = None;
        tokio::select! {
            prepared = self.prepare(pod) => prepared?,
            () = stop => return Err(Failure::interrupted()),
        }
        let config = self.sandbox_config(pod, attempt)?;
        let made = async {
            self.make_log_dir(&config.log_directory)?;
            let handler = String::new();
            let id = self
                .rooms
                .runtime
                .run_pod_sandbox(config.clone(), &handler)
                .await
                .map_err(|e| e.rpc_text())?;
            Ok::<_, String>(id)
        };
        match made.await {
            Ok(id) => {
                self.sandbox_made = true;
                self.made = Some(self.known(pod, id, config).await?);
                Ok(())
            }
            Err(message) => {
                let message = format!("Failed to create pod sandbox: {message}");
                self.event(Kind::Warning, None, "FailedCreatePodSandBox", message);
                Err(Failure::default())
            }
        }
    }

    fn sandbox_config(&self, pod: &Pod, attempt: u32) -> Result<v1::PodSandboxConfig, Failure> {
        let qos = translate::qos_class(pod);
        let parent = self.rooms.cgroups.pod_parent(qos, &self.pod.uid);
        match translate::sandbox_config(pod, attempt, &parent, &self.rooms.facts) {
            Ok(sandbox) => {
                for w in sandbox.warnings {
                    self.event(Kind::Warning, None, w.reason, w.message);
                }
                Ok(sandbox.config)
            }
            Err(error) => {
                let message = format!("Failed to create pod sandbox: {error}");
                self.event(Kind::Warning, None, "FailedCreatePodSandBox", message);
                Err(Failure::default())
            }
        }
    }

    fn make_log_dir(&self, dir: &str) -> Result<(), String> {
        std::fs::create_dir_all(dir).map_err(|e| format!("mkdir {dir}: {e}"))
    }

    /// The sandbox with the addresses the runtime gave it.
    async fn known(&self, pod: &Pod, id: String, config: v1::PodSandboxConfig) -> Result<Made, Failure> {
        if api::spec(pod).host_network.unwrap_or(false) {
            return Ok(Made { id, config, ips: self.rooms.facts.node_ips.clone() });
        }
        let status = self.rooms.runtime.pod_sandbox_status(&id, false).await.map_err(|error| {
            tracing::warn!(pod = %self.pod, %error, "cannot see the sandbox that was just made");
            Failure::default()
        })?;
        let ips = status.status.as_ref().map(crate::pleg::observed::sandbox_ips).unwrap_or_default();
        Ok(Made { id, config, ips })
    }

    pub async fn start(
        &mut self,
        pod: &Pod,
        seen: &Observed,
        list: ContainerList,
        index: usize,
        restart_count: u32,
        stop: impl Future<Output = ()>,
    ) -> Result<(), Failure> {
        let Some(c) = self.container(pod, list, index) else { return Ok(()) };
        tokio::pin!(stop);
        tokio::select! {
            ready = self.ready_to_start(pod, seen) => ready?,
            () = &mut stop => return Err(Failure::interrupted()),
        }
        let Some((made, mounted)) = self.made.as_ref().zip(self.mounted.as_ref()) else {
            return Err(Failure::default());
        };
        let path = container_path(list, &c.name);
        let image = tokio::select! {
            biased;
            () = &mut stop => return Err(Failure::interrupted()),
            image = self.image(pod, c, &path, made) => image?,
        };
        let config = self.container_config(pod, list, c, restart_count, &image, made, mounted).await;
        let config = config.map_err(|e| self.failed(&path, "CreateContainerConfigError", &e))?;
        let log_path = format!("{}/{}", made.config.log_directory, config.log_path);
        if let Some((dir, _)) = log_path.rsplit_once('/') {
            self.make_log_dir(dir).map_err(|e| self.failed(&path, "CreateContainerError", &e))?;
        }
        let created = self.rooms.runtime.create_container(&made.id, config, made.config.clone()).await;
        let id = created.map_err(|e| self.failed(&path, "CreateContainerError", &e.message))?;
        self.event(Kind::Normal, Some(path.clone()), "Created", "Container created".to_owned());
        self.run(list, c, &path, &id, &log_path).await
    }

    /// Starts an instance that an earlier incarnation of the agent created.
    pub async fn resume(
        &self,
        pod: &Pod,
        list: ContainerList,
        index: usize,
        id: &str,
    ) -> Result<(), Failure> {
        let Some(c) = self.container(pod, list, index) else { return Ok(()) };
        let path = container_path(list, &c.name);
        let status = self.rooms.runtime.container_status(id, false).await;
        let log_path = status.ok().and_then(|s| s.status).map(|s| s.log_path).unwrap_or_default();
        self.run(list, c, &path, id, &log_path).await
    }

    async fn run(
        &self,
        list: ContainerList,
        c: &Container,
        path: &str,
        id: &str,
        log_path: &str,
    ) -> Result<(), Failure> {
        if let Err(error) = self.rooms.runtime.start_container(id).await {
            let mut failure = self.failed(path, "RunContainerError", &error.message);
            failure.not_started = Some(id.to_owned());
            return Err(failure);
        }
        self.event(Kind::Normal, Some(path.to_owned()), "Started", "Container started".to_owned());
        let kind = if list == ContainerList::Init { "init_container" } else { "container" };
        self.rooms.metrics.started_containers.with([kind]).inc();
        let link = log::link_path(&self.rooms.log_links_dir, &self.pod, &c.name, id);
        if let Err(error) = log::create_link(&link, Path::new(log_path)) {
            tracing::warn!(pod = %self.pod, container = c.name, %error, "cannot link the container's log");
        }
        Ok(())
    }

    fn failed(&self, path: &str, reason: &str, message: &str) -> Failure {
        self.event(Kind::Warning, Some(path.to_owned()), "Failed", format!("Error: {message}"));
        Failure::waiting(reason, message)
    }

    /// After a restart of the agent the sandbox was made by an earlier incarnation: rebuild what is known of it.
    async fn ready_to_start(&mut self, pod: &Pod, seen: &Observed) -> Result<(), Failure> {
        self.prepare(pod).await?;
        if self.made.is_some() {
            return Ok(());
        }
        let Some(sandbox) = seen.sandbox() else { return Err(Failure::default()) };
        let config = self.sandbox_config(pod, sandbox.attempt)?;
        let on_host = api::spec(pod).host_network.unwrap_or(false);
        let ips = if on_host { self.rooms.facts.node_ips.clone() } else { sandbox.ips.clone() };
        self.made = Some(Made { id: sandbox.id.clone(), config, ips });
        Ok(())
    }

    async fn image(
        &self,
        pod: &Pod,
        c: &Container,
        path: &str,
        made: &Made,
    ) -> Result<crate::image::ImageRef, Failure> {
        let request = EnsureImage {
            pod: &self.pod,
            pod_annotations: pod.metadata.annotations.as_ref(),
            field_path: path,
            image: c.image.as_deref().unwrap_or_default(),
            policy: c.image_pull_policy.as_deref(),
            sandbox_config: &made.config,
            runtime_handler: "",
        };
        self.rooms.images.ensure(request).await.map_err(|e| {
            self.event(Kind::Warning, Some(path.to_owned()), "Failed", format!("Error: {}", e.reason));
            let mut failure = Failure::waiting(e.reason, e.message);
            failure.retry_at = e.retry_at.map(|at| {
                let wait = at.saturating_duration_since(tokio::time::Instant::now());
                self.rooms.clock.nanos().saturating_add(i64::try_from(wait.as_nanos()).unwrap_or(i64::MAX))
            });
            failure
        })
    }

    #[expect(clippy::too_many_arguments, reason = "each is a different source of the configuration")]
    async fn container_config(
        &self,
        pod: &Pod,
        list: ContainerList,
        c: &Container,
        restart_count: u32,
        image: &crate::image::ImageRef,
        made: &Made,
        mounted: &Mounted,
    ) -> Result<v1::ContainerConfig, String> {
        let rooms = &self.rooms;
        let hosts = self.hosts_file(pod, &made.ips)?;
        let log = rooms.volumes.termination_log(&self.pod.uid, &c.name).map_err(|e| e.to_string())?;
        let log = log.to_string_lossy();
        let mut input = ContainerInput {
            pod,
            list,
            container: c,
            restart_count,
            image_ref: &image.id,
            image: &image.user,
            pod_ips: &made.ips,
            mounts: &[],
            termination_log_host_path: Some(&log),
            etc_hosts_host_path: hosts.as_deref(),
            service_env: &[],
            env_sources: &EnvFiles(mounted),
            target_id: None,
            facts: &rooms.facts,
        };
        let env = translate::environment(&input).map_err(|e| e.to_string())?;
        let expand = |text: &str| {
            let expanded = translate::expand::expand_strict(text, |name| translate::env::lookup(&env, name));
            expanded
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .map_err(|missing| format!("missing value for {}", missing.0))
        };
        let rro = rooms.recursive_read_only;
        let mounts = rooms.volumes.mounts(pod, c, mounted, rro, &expand).await.map_err(|e| e.message)?;
        input.mounts = &mounts;
        translate::container_config(&input).map_err(|e| e.to_string())
    }

    /// Writes the pod's managed `/etc/hosts`; none for a pod whose containers bring their own.
    fn hosts_file(&self, pod: &Pod, ips: &[IpAddr]) -> Result<Option<String>, String> {
        let on_host = api::spec(pod).host_network.unwrap_or(false);
        let name =
            translate::pod_hostname(pod, &self.rooms.facts.cluster_domain).map_err(|e| e.to_string())?;
        let host_file = on_host
            .then(|| std::fs::read_to_string(&self.rooms.host_hosts_file))
            .transpose()
            .map_err(|e| format!("{}: {e}", self.rooms.host_hosts_file.display()))?;
        let text = translate::etc_hosts(pod, ips, &name, host_file.as_deref());
        let path: PathBuf = self.rooms.volumes.pod_dir(&self.pod.uid).join("etc-hosts");
        // Other containers have this very file mounted, so it is written in place; what is right already is left alone, so
        // that a full disk does not cut it to nothing.
        if !std::fs::read(&path).is_ok_and(|there| there == text.as_bytes()) {
            std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        Ok(Some(path.to_string_lossy().into_owned()))
    }

    pub async fn release_cgroup(&mut self, pod: &Pod) -> Result<(), Failure> {
        let (cgroups, uid, qos) =
            (self.rooms.cgroups.clone(), self.pod.uid.clone(), translate::qos_class(pod));
        let removed = tokio::task::spawn_blocking(move || remove_cgroup(&cgroups, qos, &uid)).await;
        self.cgroup_gone(removed, "remove the pod's cgroup")?;
        self.cgroup_made = false;
        Ok(())
    }

    /// Everything on the host that bears the pod's name. The pod's directory goes last: while it is there, an agent that
    /// remembers nothing finds the rest by it.
    pub async fn clean_up(&mut self) -> Result<(), Failure> {
        let (root, links) = (self.rooms.facts.pod_logs_dir.clone(), self.rooms.log_links_dir.clone());
        let uid = self.pod.uid.clone();
        match tokio::task::spawn_blocking(move || remove_logs(&root, &links, &uid)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(pod = %self.pod, %error, "cannot remove the pod's logs");
                return Err(Failure::default());
            }
            Err(error) => {
                tracing::error!(pod = %self.pod, %error, "removing the pod's logs panicked");
                return Err(Failure::default());
            }
        }
        if let Err(error) = self.rooms.volumes.teardown(&self.pod.uid).await {
            self.event(Kind::Warning, None, "FailedUnmount", error.to_string());
            return Err(Failure::default());
        }
        self.mounted = None;
        self.rooms.images.forget(&self.pod.uid);
        Ok(())
    }
}

/// What variables are read from on a node without an API server: files of the pod's own volumes.
struct EnvFiles<'a>(&'a Mounted);

/// Upstream's bound for such a file.
const ENV_FILE_LIMIT: u64 = 64 << 10;

impl EnvSources for EnvFiles<'_> {
    fn config_map(&self, namespace: &str, name: &str) -> Result<BTreeMap<String, Vec<u8>>, SourceError> {
        translate::NoSources.config_map(namespace, name)
    }
    fn secret(&self, namespace: &str, name: &str) -> Result<BTreeMap<String, Vec<u8>>, SourceError> {
        translate::NoSources.secret(namespace, name)
    }
    fn file(&self, pod: &Pod, volume: &str, path: &str) -> Result<Vec<u8>, SourceError> {
        match self.0.read(volume, path, ENV_FILE_LIMIT) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                translate::NoSources.file(pod, volume, path)
            }
            other => other.map_err(|e| SourceError::Other(format!("file {volume}/{path}: {e}"))),
        }
    }
}

/// An orphan's name is not always known: its logs are found by its UID, and the links to them by where they lead.
/// Links are there still when somebody else removed the container, or the agent ended after it had.
fn remove_logs(root: &Path, links: &Path, uid: &PodUid) -> Result<(), log::LogPathError> {
    log::find_pod_log_dirs(root)?.into_iter().filter(|found| found.uid == *uid).try_for_each(|found| {
        log::remove_links_into(links, &found.path)?;
        log::remove_pod_logs(&found.path)
    })
}

/// An orphan's QoS class is not known: its cgroup is looked for under each.
fn remove_cgroup(
    cgroups: &crate::cgroup::Cgroups,
    qos: Qos,
    uid: &PodUid,
) -> Result<(), crate::cgroup::Error> {
    for class in [qos, Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
        cgroups.remove_pod(class, uid)?;
    }
    Ok(())
}
