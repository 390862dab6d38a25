//! What the fake runtime holds (sandboxes, containers, images) and how each call changes it: containerd's rules as a
//! state machine without time or I/O.
//!
//! `service` calls it under a lock and does the waiting. Instants come in as `now` (nanoseconds since the epoch); what
//! happened comes out as events to send. Texts and codes of errors are those of containerd.
//!
//! ```text
//!   sandbox    READY ──StopPodSandbox, dies──▶ NOTREADY ──RemovePodSandbox──▶ gone
//!   container  CREATED ──StartContainer──▶ RUNNING ──exits──▶ EXITED ──RemoveContainer──▶ gone
//!                 └──StartContainer fails: code 128, StartError──▲
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};

use tokio::sync::watch;
use tonic::Status;

use super::script::{FakeImage, OnTerm, Pull, Script, full_name, hex_of};
use crate::v1;
use crate::v1::ContainerEventType as Event;

pub(super) const KILLED: i32 = 137;
/// What containerd reports for a container that never started.
const START_FAILED: i32 = 128;
/// What containerd reports for a container whose task is gone.
const LOST: i32 = 255;

/// One sandbox.
#[derive(Debug, Clone)]
pub(super) struct Sandbox {
    pub(super) id: String,
    pub(super) config: v1::PodSandboxConfig,
    pub(super) handler: String,
    pub(super) ready: bool,
    pub(super) created_at: i64,
    pub(super) ips: Vec<String>,
}

/// One container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) sandbox_id: String,
    pub(super) config: v1::ContainerConfig,
    pub(super) log_path: String,
    pub(super) image_id: String,
    pub(super) state: v1::ContainerState,
    pub(super) created_at: i64,
    pub(super) started_at: i64,
    pub(super) finished_at: i64,
    pub(super) exit_code: i32,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) resources: Option<v1::LinuxContainerResources>,
    pub(super) script: Script,
    pub(super) term_sent: bool,
    /// Becomes true at the exit; StopContainer waits on it.
    pub(super) stopped: watch::Sender<bool>,
}

/// What the stop signal leads to.
#[derive(Debug)]
pub(super) enum Stopping {
    /// Nothing to wait for.
    Done,
    /// Wait for this to become true; `exit` is what the signal does, if this call was the one to send it.
    Wait { exit: Option<(i32, std::time::Duration)>, stopped: watch::Receiver<bool> },
}

/// The whole of it.
#[derive(Debug)]
pub(super) struct World {
    pub(super) sandboxes: BTreeMap<String, Sandbox>,
    pub(super) containers: BTreeMap<String, Container>,
    pub(super) images: Vec<v1::Image>,
    pub(super) any_image: bool,
    pub(super) registry: BTreeMap<String, Pull>,
    pub(super) scripts: BTreeMap<String, VecDeque<Script>>,
    pub(super) handlers: BTreeSet<String>,
    pub(super) dual_stack: bool,
    made: u64,
    addresses: BTreeSet<u16>,
    /// What happened and nobody was told yet: container id, sandbox id, what.
    pub(super) happened: Vec<v1::ContainerEventResponse>,
}

/// `error: not found`, with that code.
fn not_found(what: String) -> Status {
    Status::not_found(format!("{what}: not found"))
}

impl World {
    pub(super) fn new(handlers: BTreeSet<String>) -> Self {
        Self {
            sandboxes: BTreeMap::new(),
            containers: BTreeMap::new(),
            images: Vec::new(),
            any_image: false,
            registry: BTreeMap::new(),
            scripts: BTreeMap::new(),
            handlers,
            dual_stack: false,
            made: 0,
            addresses: BTreeSet::new(),
            happened: Vec::new(),
        }
    }

    fn new_id(&mut self, what: &str) -> String {
        self.made += 1;
        hex_of(&format!("{what} {}", self.made))
    }

    // ---- sandboxes ----

    pub(super) fn run_sandbox(
        &mut self,
        request: v1::RunPodSandboxRequest,
        now: i64,
    ) -> Result<String, Status> {
        let config = request.config.unwrap_or_default();
        let Some(metadata) = &config.metadata else {
            return Err(Status::unknown("sandbox config must include metadata"));
        };
        let id = self.new_id("sandbox");
        let same = |s: &&Sandbox| s.config.metadata.as_ref() == Some(metadata);
        if let Some(other) = self.sandboxes.values().find(same) {
            let name = sandbox_name(metadata);
            let text = format!(
                "failed to reserve sandbox name {name:?}: name {name:?} is reserved for {:?}",
                other.id
            );
            return Err(Status::unknown(text));
        }
        let handler = request.runtime_handler;
        if !handler.is_empty() && !self.handlers.contains(&handler) {
            let text = format!(
                "unable to get OCI runtime for sandbox {id:?}: no runtime for {handler:?} is configured"
            );
            return Err(Status::unknown(text));
        }
        let ips = if on_host_network(&config) { vec![] } else { self.new_addresses()? };
        let sandbox = Sandbox { id: id.clone(), config, handler, ready: true, created_at: now, ips };
        self.sandboxes.insert(id.clone(), sandbox);
        self.event(&id, &id, Event::ContainerCreatedEvent, now);
        self.event(&id, &id, Event::ContainerStartedEvent, now);
        Ok(id)
    }

    fn new_addresses(&mut self) -> Result<Vec<String>, Status> {
        let free = (2..u16::MAX).find(|n| !self.addresses.contains(n));
        let n = free.ok_or_else(|| Status::unknown("no addresses left in 10.88.0.0/16"))?;
        self.addresses.insert(n);
        let [high, low] = n.to_be_bytes();
        let mut ips = vec![Ipv4Addr::new(10, 88, high, low).to_string()];
        if self.dual_stack {
            ips.push(Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, n).to_string());
        }
        Ok(ips)
    }

    /// The sandbox's process is gone and its network taken down; containers are left as they are.
    pub(super) fn sandbox_dies(&mut self, id: &str, now: i64) {
        let Some(sandbox) = self.sandboxes.get_mut(id) else { return };
        let (was_ready, ips) = (std::mem::take(&mut sandbox.ready), std::mem::take(&mut sandbox.ips));
        if let Some(Ok(v4)) = ips.first().map(|ip| ip.parse::<Ipv4Addr>()) {
            let [_, _, high, low] = v4.octets();
            self.addresses.remove(&u16::from_be_bytes([high, low]));
        }
        if was_ready {
            self.event(id, id, Event::ContainerStoppedEvent, now);
        }
    }

    /// Forgets a stopped sandbox and its stopped containers.
    pub(super) fn remove_sandbox(&mut self, id: &str, now: i64) {
        if !self.sandboxes.contains_key(id) {
            return;
        }
        for container in self.container_ids_in(id) {
            self.forget_container(&container, now);
        }
        self.event(id, id, Event::ContainerDeletedEvent, now);
        self.sandboxes.remove(id);
    }

    pub(super) fn container_ids_in(&self, sandbox: &str) -> Vec<String> {
        self.containers.values().filter(|c| c.sandbox_id == sandbox).map(|c| c.id.clone()).collect()
    }

    // ---- containers ----

    pub(super) fn create_container(
        &mut self,
        request: v1::CreateContainerRequest,
        now: i64,
    ) -> Result<String, Status> {
        let config = request.config.unwrap_or_default();
        let Some(sandbox) = self.sandboxes.get(&request.pod_sandbox_id) else {
            return Err(not_found(format!("failed to find sandbox id {:?}", request.pod_sandbox_id)));
        };
        let sandbox = sandbox.clone();
        let Some(metadata) = config.metadata.clone() else {
            return Err(Status::unknown("container config must include metadata"));
        };
        let mut pod = request.sandbox_config.and_then(|c| c.metadata).unwrap_or_default();
        pod.attempt = metadata.attempt;
        let reserved = format!("{}_{}", metadata.name, sandbox_name(&pod));
        let taken =
            |c: &&Container| c.sandbox_id == sandbox.id && c.config.metadata.as_ref() == Some(&metadata);
        if let Some(other) = self.containers.values().find(taken) {
            return Err(Status::unknown(format!(
                "failed to reserve container name {reserved:?}; check if another CreateContainer request is in \
                 progress: name {reserved:?} is reserved for {:?}",
                other.id
            )));
        }
        let reference = config.image.as_ref().map_or("", |i| i.image.as_str());
        let Some(image) = self.find_image(reference) else {
            return Err(not_found(format!("failed to resolve image {reference:?}")));
        };
        let script = self.script_for(&sandbox, &metadata.name);
        if let Some((code, text)) = &script.create_error {
            return Err(Status::new(*code, text.as_str()));
        }
        let id = self.new_id("container");
        let directory = sandbox.config.log_directory.trim_end_matches('/');
        let log_path = match config.log_path.as_str() {
            "" => String::new(),
            path => format!("{directory}/{path}"),
        };
        let container = Container {
            id: id.clone(),
            sandbox_id: sandbox.id.clone(),
            log_path,
            image_id: image.id,
            state: v1::ContainerState::ContainerCreated,
            created_at: now,
            started_at: 0,
            finished_at: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            resources: config.linux.as_ref().and_then(|l| l.resources.clone()),
            script,
            term_sent: false,
            stopped: watch::channel(false).0,
            config,
        };
        self.containers.insert(id.clone(), container);
        self.event(&id, &sandbox.id, Event::ContainerCreatedEvent, now);
        Ok(id)
    }

    /// The next script for a container of that name: of `pod/container`, else of `container`. The last one stays.
    fn script_for(&mut self, sandbox: &Sandbox, container: &str) -> Script {
        let pod = sandbox.config.metadata.as_ref().map_or("", |m| m.name.as_str());
        let narrow = format!("{pod}/{container}");
        let key = if self.scripts.contains_key(&narrow) { narrow.as_str() } else { container };
        match self.scripts.get_mut(key) {
            Some(scripts) if scripts.len() > 1 => scripts.pop_front(),
            Some(scripts) => scripts.front().cloned(),
            None => None,
        }
        .unwrap_or_else(Script::forever)
    }

    /// The container by its id.
    pub(super) fn container(&mut self, id: &str) -> Result<&mut Container, Status> {
        let missing = || not_found(format!("an error occurred when try to find container {id:?}"));
        self.containers.get_mut(id).ok_or_else(missing)
    }

    pub(super) fn start_container(&mut self, id: &str, now: i64) -> Result<Script, Status> {
        let (sandbox_id, state) = {
            let container = self.container(id)?;
            (container.sandbox_id.clone(), container.state)
        };
        if state != v1::ContainerState::ContainerCreated {
            let text = format!(
                "failed to set starting state for container {id:?}: container is in {} state",
                state.as_str_name()
            );
            return Err(Status::unknown(text));
        }
        let ready = self.sandboxes.get(&sandbox_id).is_some_and(|s| s.ready);
        let container = self.container(id)?;
        let failure = match &container.script.start_error {
            _ if !ready => Some(Status::unknown(format!("sandbox container {sandbox_id:?} is not running"))),
            Some((code, text)) => Some(Status::new(*code, text.as_str())),
            None => None,
        };
        if let Some(status) = failure {
            container.state = v1::ContainerState::ContainerExited;
            container.finished_at = now;
            container.exit_code = START_FAILED;
            container.reason = "StartError".into();
            container.message = status.message().into();
            container.stopped.send_replace(true);
            return Err(status);
        }
        container.state = v1::ContainerState::ContainerRunning;
        container.started_at = now;
        let script = container.script.clone();
        self.event(id, &sandbox_id, Event::ContainerStartedEvent, now);
        Ok(script)
    }

    /// The container's process ends, if it runs.
    pub(super) fn container_exits(&mut self, id: &str, code: i32, now: i64) {
        use v1::ContainerState::{ContainerExited, ContainerRunning, ContainerUnknown};
        let Some(container) = self.containers.get_mut(id) else { return };
        let (code, reason) = match container.state {
            ContainerRunning if container.script.oom && !container.term_sent => (code, "OOMKilled"),
            ContainerRunning => (code, ""),
            ContainerUnknown => (LOST, "Unknown"),
            _ => return,
        };
        container.state = ContainerExited;
        container.finished_at = now;
        container.exit_code = code;
        container.reason = reason.into();
        container.stopped.send_replace(true);
        let sandbox = container.sandbox_id.clone();
        self.event(id, &sandbox, Event::ContainerStoppedEvent, now);
    }

    /// The stop signal, or with `grace` false SIGKILL, goes to the container.
    pub(super) fn signal(&mut self, id: &str, grace: bool, now: i64) -> Stopping {
        use v1::ContainerState::{ContainerRunning, ContainerUnknown};
        let Some(container) = self.containers.get_mut(id) else { return Stopping::Done };
        match container.state {
            ContainerUnknown => {
                self.container_exits(id, LOST, now);
                return Stopping::Done;
            }
            ContainerRunning => {}
            _ => return Stopping::Done,
        }
        let stopped = container.stopped.subscribe();
        if !grace {
            if container.script.unkillable {
                return Stopping::Wait { exit: None, stopped };
            }
            self.container_exits(id, KILLED, now);
            return Stopping::Done;
        }
        // containerd sends the stop signal once, however often it is asked to stop.
        let exit = match container.script.on_term {
            OnTerm::Exit(code, after) if !container.term_sent => Some((code, after)),
            _ => None,
        };
        container.term_sent = true;
        Stopping::Wait { exit, stopped }
    }

    /// Forgets a container that does not run.
    pub(super) fn forget_container(&mut self, id: &str, now: i64) {
        if let Some(container) = self.containers.remove(id) {
            self.event(id, &container.sandbox_id, Event::ContainerDeletedEvent, now);
        }
    }

    // ---- images ----

    /// By id, or any name.
    pub(super) fn find_image(&mut self, reference: &str) -> Option<v1::Image> {
        if reference.is_empty() {
            return None;
        }
        let name = full_name(reference);
        let bare = |id: &str| id.strip_prefix("sha256:").unwrap_or(id) == reference;
        let found = (self.images.iter())
            .find(|i| {
                i.id == reference
                    || bare(&i.id)
                    || i.repo_tags.contains(&name)
                    || i.repo_digests.contains(&name)
            })
            .cloned();
        if found.is_none() && self.any_image && !name.starts_with("sha256:") {
            let image = FakeImage::new(reference).0;
            self.images.push(image.clone());
            return Some(image);
        }
        found
    }

    /// Puts an image on the disk; names it takes from others are then its own.
    pub(super) fn add_image(&mut self, image: v1::Image) {
        for other in &mut self.images {
            other.repo_tags.retain(|t| !image.repo_tags.contains(t));
        }
        self.images.retain(|i| i.id != image.id);
        self.images.push(image);
    }

    // ---- events ----

    fn event(&mut self, id: &str, sandbox: &str, what: Event, now: i64) {
        let containers_statuses = self
            .containers
            .values()
            .filter(|c| c.sandbox_id == sandbox)
            .map(|c| self.container_status(c))
            .collect();
        let event = v1::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: what.into(),
            created_at: now,
            pod_sandbox_status: self.sandboxes.get(sandbox).map(Sandbox::status),
            containers_statuses,
        };
        self.happened.push(event);
    }

    pub(super) fn container_status(&self, c: &Container) -> v1::ContainerStatus {
        use v1::ContainerState::{ContainerCreated, ContainerExited};
        let image = self.images.iter().find(|i| i.id == c.image_id);
        let tag = image.and_then(|i| i.repo_tags.first()).cloned();
        let digest = image.and_then(|i| i.repo_digests.first()).cloned();
        let reason = match (c.state, c.reason.as_str(), c.exit_code) {
            (ContainerExited, "", 0) => "Completed",
            (ContainerExited, "", _) => "Error",
            (_, reason, _) => reason,
        };
        let (uid, gid, supplemental_groups) = c.script.user.clone();
        let user = v1::LinuxContainerUser { uid, gid, supplemental_groups };
        v1::ContainerStatus {
            id: c.id.clone(),
            metadata: c.config.metadata.clone(),
            state: c.state.into(),
            created_at: c.created_at,
            started_at: if c.state == ContainerCreated { 0 } else { c.started_at },
            finished_at: c.finished_at,
            exit_code: c.exit_code,
            image: tag
                .map(|image| v1::ImageSpec { image, ..Default::default() })
                .or_else(|| c.config.image.clone()),
            image_ref: digest.unwrap_or_else(|| c.image_id.clone()),
            reason: reason.into(),
            message: c.message.clone(),
            labels: c.config.labels.clone(),
            annotations: c.config.annotations.clone(),
            mounts: c.config.mounts.clone(),
            log_path: c.log_path.clone(),
            resources: c
                .resources
                .clone()
                .map(|linux| v1::ContainerResources { linux: Some(linux), windows: None }),
            image_id: String::new(),
            user: Some(v1::ContainerUser { linux: Some(user) }),
            stop_signal: c.config.stop_signal,
        }
    }
}

impl Container {
    pub(super) fn listed(&self) -> v1::Container {
        v1::Container {
            id: self.id.clone(),
            pod_sandbox_id: self.sandbox_id.clone(),
            metadata: self.config.metadata.clone(),
            image: self.config.image.clone(),
            image_ref: self.image_id.clone(),
            state: self.state.into(),
            created_at: self.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            image_id: String::new(),
        }
    }

    pub(super) fn matches(&self, filter: Option<&v1::ContainerFilter>) -> bool {
        filter.is_none_or(|f| {
            (f.id.is_empty() || f.id == self.id)
                && (f.pod_sandbox_id.is_empty() || f.pod_sandbox_id == self.sandbox_id)
                && f.state.as_ref().is_none_or(|s| s.state() == self.state)
                && selects(&f.label_selector, &self.config.labels)
        })
    }
}

impl Sandbox {
    fn state(&self) -> v1::PodSandboxState {
        if self.ready { v1::PodSandboxState::SandboxReady } else { v1::PodSandboxState::SandboxNotready }
    }

    pub(super) fn status(&self) -> v1::PodSandboxStatus {
        let mut ips = self.ips.iter().cloned();
        let network = v1::PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
        };
        let linux = self.config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let options = linux.and_then(|c| c.namespace_options.clone()).unwrap_or_default();
        let namespaces = Some(v1::Namespace { options: Some(options) });
        v1::PodSandboxStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state().into(),
            created_at: self.created_at,
            network: Some(network),
            linux: Some(v1::LinuxPodSandboxStatus { namespaces }),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: self.handler.clone(),
        }
    }

    pub(super) fn listed(&self) -> v1::PodSandbox {
        v1::PodSandbox {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state().into(),
            created_at: self.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: self.handler.clone(),
        }
    }

    pub(super) fn matches(&self, filter: Option<&v1::PodSandboxFilter>) -> bool {
        filter.is_none_or(|f| {
            (f.id.is_empty() || f.id == self.id)
                && f.state.as_ref().is_none_or(|s| s.state() == self.state())
                && selects(&f.label_selector, &self.config.labels)
        })
    }
}

pub(super) fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn sandbox_name(m: &v1::PodSandboxMetadata) -> String {
    format!("{}_{}_{}_{}", m.name, m.namespace, m.uid, m.attempt)
}

fn on_host_network(config: &v1::PodSandboxConfig) -> bool {
    let context = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let options = context.and_then(|c| c.namespace_options.as_ref());
    options.is_some_and(|o| o.network() == v1::NamespaceMode::Node)
}
