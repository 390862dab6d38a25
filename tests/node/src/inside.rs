//! An agent in this process, on a node's runtime, directories and configuration: for pods that come from an API server, which
//! the binary does not join yet. Static pods are never evicted.

use crate::node::Node;
use crate::wait::eventually;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kubelet::api::{Origin, PodUid};
use kubelet::assemble::{Agent, Settings};
use kubelet::config::{self, Command};
use kubelet::event::Event;
use kubelet::metrics::Metrics;
use kubelet::source::{SourceEvent, SourcePod};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::broadcast;

/// The agent, alone on its node.
pub struct Inside {
    /// Itself.
    pub agent: Agent,
    /// Every event from its start on.
    pub events: broadcast::Receiver<Event>,
    uids: Vec<String>,
}

impl std::fmt::Debug for Inside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inside").field("uids", &self.uids).finish_non_exhaustive()
    }
}

impl Inside {
    /// Starts it as `node`'s configuration file says; the binary must not run.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(node: &Node) -> Self {
        let (root, config) = (node.root_dir().display(), node.config_file());
        let args = [
            format!("--config={}", config.display()),
            format!("--root-dir={root}"),
            format!("--hostname-override={}", node.name),
        ];
        let loaded = match config::load(args) {
            Ok(Command::Run(loaded)) => loaded,
            Ok(_) => panic!("the agent is not asked to run"),
            Err(errors) => panic!("{errors:?}"),
        };
        let mut settings = Settings::from_loaded(&loaded).expect("the machine is fit");
        settings.log_links_dir = node.dir.join("links");
        settings.manifests = None;
        settings.other_sources = HashSet::from([Origin::Api]);
        let connector = cri::Connector::parse(&loaded.config.container_runtime_endpoint).unwrap();
        let client = cri::Client::builder(connector).build();
        let capabilities = client.connected().await;
        let metrics = Metrics::new(Path::new("/proc"));
        let agent = Agent::start(settings, client, &capabilities, metrics).await.expect("the agent starts");
        let events = agent.recorder.subscribe();
        agent.sources.send(SourceEvent::Synced(Origin::Api)).await.unwrap();
        Self { agent, events, uids: Vec::new() }
    }

    /// Gives it a pod, as the API server would; the manifest's name is its UID as well.
    pub async fn put(&mut self, manifest: &Value) {
        let mut manifest = manifest.clone();
        let uid = manifest["metadata"]["name"].as_str().unwrap().to_owned();
        manifest["metadata"]["uid"] = json!(uid);
        manifest["metadata"]["namespace"] = json!("default");
        let pod: Pod = kubelet::source::decode_pod(manifest.to_string().as_bytes()).unwrap();
        let pod = SourcePod {
            origin: Origin::Api,
            pod: Arc::new(pod),
            seen: kubelet::clock::Clock::System.now(),
            arrived: std::time::Instant::now(),
        };
        self.agent.sources.send(SourceEvent::Put(pod)).await.unwrap();
        self.uids.push(uid);
    }

    /// The pod's newest status.
    pub fn status(&self, uid: &str) -> Option<Arc<PodStatus>> {
        self.agent.statuses.get(&PodUid::new(uid))
    }

    /// Waits until the pod is ready.
    pub async fn until_ready(&self, uid: &str) {
        eventually(&format!("{uid} is ready"), async || {
            let status = self.status(uid).ok_or("it has no status")?;
            let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
            if ready { Ok(()) } else { Err(serde_json::to_string(&*status).unwrap()) }
        })
        .await;
    }

    /// Waits until the pod has failed and answers reason and message.
    pub async fn until_failed(&self, uid: &str) -> (String, String) {
        eventually(&format!("{uid} has failed"), async || {
            let status = self.status(uid).ok_or("it has no status")?;
            if status.phase.as_deref() != Some("Failed") {
                return Err(serde_json::to_string(&*status).unwrap());
            }
            Ok((status.reason.clone().unwrap_or_default(), status.message.clone().unwrap_or_default()))
        })
        .await
    }

    /// Takes a pod away and waits until nothing of it is known.
    pub async fn gone(&mut self, uid: &str) {
        self.uids.retain(|known| known != uid);
        let origin = Origin::Api;
        self.agent.sources.send(SourceEvent::Gone { origin, uid: PodUid::new(uid) }).await.unwrap();
        eventually(&format!("{uid} is gone"), async || match self.status(uid) {
            None => Ok(()),
            Some(status) => Err(serde_json::to_string(&*status).unwrap()),
        })
        .await;
    }

    /// Takes all pods away, ends this agent, and has the binary look for what is left.
    pub async fn finish(mut self, mut node: Node) {
        for uid in self.uids.clone() {
            self.gone(&uid).await;
        }
        drop(self);
        node.launch().await;
        node.wait_healthy().await;
        node.finish().await;
    }
}
