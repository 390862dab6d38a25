//! What the server is shown of the node: the agent's public face, before and after it has started.

use crate::api::{Pod, PodRef};
use crate::assemble::{Agent, Settings};
use crate::clock::Clock;
use crate::config::Loaded;
use crate::pleg::observed::{Observed, State, labels};
use crate::server::{LogLookupError, LogTarget, NodeView, log_container};
use crate::stats::Stats;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;

/// A runtime that is away for longer makes the agent unhealthy; a restart of it does not. Upstream calls it down after as
/// long.
const RUNTIME_AWAY: Duration = Duration::from_secs(30);

/// Implements [`NodeView`] over the agent. The server starts first, so that health can be asked for at once; until the
/// agent runs there are no pods, and it is not healthy.
#[derive(Debug)]
pub struct View {
    configz: serde_json::Value,
    runtime: cri::Client,
    /// `<root-dir>/checkpoints`
    checkpoints: PathBuf,
    clock: Clock,
    agent: OnceLock<Agent>,
}

impl View {
    /// A view of an agent that has not started yet.
    pub fn new(loaded: &Loaded, settings: &Settings, runtime: cri::Client) -> Self {
        let mut configz = serde_json::to_value(&loaded.config).unwrap_or_default();
        // As upstream shows the certificate that it made itself.
        if loaded.config.tls_cert_file.is_empty()
            && let Some(map) = configz.as_object_mut()
        {
            let file = |name: &str| settings.cert_dir.join(name).to_string_lossy().into_owned().into();
            map.insert("tlsCertFile".to_owned(), file("kubelet.crt"));
            map.insert("tlsPrivateKeyFile".to_owned(), file("kubelet.key"));
        }
        let checkpoints = settings.root_dir.join("checkpoints");
        Self { configz, runtime, checkpoints, clock: settings.clock, agent: OnceLock::new() }
    }

    /// From now on the view is `agent`'s. Called once.
    pub fn agent_started(&self, agent: Agent) {
        if self.agent.set(agent).is_err() {
            tracing::error!("a second agent was started in this process; it is dropped");
        }
    }
}

impl NodeView for View {
    fn pods(&self) -> Vec<Arc<Pod>> {
        self.agent.get().map(Agent::pods).unwrap_or_default()
    }

    fn running_pods(&self) -> BoxFuture<'_, Result<Vec<Pod>, String>> {
        Box::pin(async move { running_pods(&self.runtime).await.map_err(|e| e.to_string()) })
    }

    fn container_log(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        previous: bool,
    ) -> Result<LogTarget, LogLookupError> {
        let no_pod = || LogLookupError::NoPod { pod: pod.to_owned() };
        let agent = self.agent.get().ok_or_else(no_pod)?;
        let found = agent.pod(namespace, pod).ok_or_else(no_pod)?;
        let id = log_container(&found, container, previous)?;
        let missing =
            || LogLookupError::NotAvailable { pod: pod.to_owned(), container: container.to_owned() };
        let id = id.rsplit_once("://").map_or(id.as_str(), |(_, id)| id).to_owned();
        let seen = agent.pleg.seen(&PodRef::of(&found).uid).ok_or_else(missing)?;
        let path = seen.borrow().containers.iter().find(|c| c.id == id).map(|c| PathBuf::from(&c.log_path));
        Ok(LogTarget { path: path.ok_or_else(missing)?, running: running(seen, id) })
    }

    fn pod(&self, namespace: &str, pod: &str) -> Option<Arc<Pod>> {
        self.agent.get()?.pod(namespace, pod)
    }

    fn checkpoint(
        &self,
        pod: &Pod,
        container: &str,
        timeout: i64,
    ) -> BoxFuture<'static, Result<PathBuf, String>> {
        let of = PodRef::of(pod);
        let seen = self.agent.get().and_then(|agent| agent.pleg.seen(&of.uid));
        let id = seen.and_then(|seen| {
            let seen = seen.borrow();
            seen.latest(container).filter(|c| c.state == State::Running).map(|c| c.id.clone())
        });
        let Some(id) = id else {
            let missing = format!("container {container} not found");
            return Box::pin(async { Err(missing) });
        };
        let name =
            format!("checkpoint-{}_{}-{container}-{}.tar", of.name, of.namespace, self.clock.seconds());
        let (runtime, dir) = (self.runtime.clone(), self.checkpoints.clone());
        // A task: a client that goes away leaves no call half-way.
        let work = tokio::spawn(async move {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            made.map_err(|e| format!("mkdir {}: {e}", dir.display()))?;
            let place = dir.join(name);
            let done = runtime.checkpoint_container(&id, &place.to_string_lossy(), timeout).await;
            tracing::info!(pod = %of, container = id, place = %place.display(), ok = done.is_ok(), "checkpoint");
            done.map(|()| place).map_err(|e| e.rpc_text())
        });
        Box::pin(async move { work.await.unwrap_or_else(|e| Err(e.to_string())) })
    }

    fn healthy(&self) -> Result<(), String> {
        if let cri::Connection::Disconnected { since, error } = &*self.runtime.connection().borrow()
            && since.elapsed() > RUNTIME_AWAY
        {
            return Err(format!("the container runtime is away: {error}"));
        }
        match self.agent.get() {
            None => Err("the container runtime has not answered yet".to_owned()),
            Some(agent) => agent.healthy(),
        }
    }

    fn stats(&self) -> Option<Stats> {
        self.agent.get().map(|agent| agent.stats.clone())
    }

    fn configz(&self) -> serde_json::Value {
        self.configz.clone()
    }
}

/// Follows one instance for as long as somebody asks.
fn running(mut seen: watch::Receiver<Arc<Observed>>, id: String) -> watch::Receiver<bool> {
    let runs = move |o: &Observed| o.containers.iter().any(|c| c.id == id && c.is_live());
    let (tx, rx) = watch::channel(runs(&seen.borrow_and_update()));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = tx.closed() => return,
                changed = seen.changed() => {
                    if changed.is_err() || !runs(&seen.borrow_and_update()) {
                        // The sender goes with this task, which reads as "no".
                        return;
                    }
                }
            }
        }
    });
    rx
}

/// What the runtime says runs, as skeletons of pods.
async fn running_pods(runtime: &cri::Client) -> Result<Vec<Pod>, cri::Error> {
    use cri::v1::{ContainerFilter, ContainerState, ContainerStateValue};
    let running = ContainerStateValue { state: ContainerState::ContainerRunning.into() };
    let containers =
        runtime.list_containers(Some(ContainerFilter { state: Some(running), ..Default::default() })).await?;
    let mut pods: BTreeMap<String, Pod> = BTreeMap::new();
    for c in containers {
        let label = |key: &str| c.labels.get(key).cloned();
        let Some(uid) = label(labels::POD_UID) else { continue };
        let pod = pods.entry(uid.clone()).or_insert_with(|| {
            let mut pod =
                Pod { spec: Some(PodSpec::default()), status: Some(Default::default()), ..Pod::default() };
            pod.metadata.uid = Some(uid);
            pod.metadata.name = label(labels::POD_NAME);
            pod.metadata.namespace = label(labels::POD_NAMESPACE);
            pod
        });
        let container = Container {
            name: label(labels::CONTAINER_NAME).unwrap_or_default(),
            image: Some(c.image_ref.clone()),
            resources: Some(ResourceRequirements::default()),
            ..Container::default()
        };
        if let Some(s) = &mut pod.spec {
            s.containers.push(container);
        }
    }
    Ok(pods.into_values().collect())
}
