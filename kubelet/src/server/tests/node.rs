//! A node with the pods the recording had: `facts-a` with two containers, one of which wrote two lines.

use crate::api::Pod;
use crate::server::{LogLookupError, LogTarget, NodeView, log_container};
use crate::stats::{self, Stats};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

pub struct Fake {
    pub pods: Mutex<Vec<Arc<Pod>>>,
    pub health: Mutex<Result<(), String>>,
    pub running: watch::Sender<bool>,
    pub log: PathBuf,
    stats: Stats,
    /// What checkpoints were asked for: container and timeout.
    pub checkpoints: Mutex<Vec<(String, i64)>>,
}

impl Fake {
    pub fn new(dir: &Path) -> Self {
        let log = dir.join("c2.log");
        std::fs::write(&log, "2026-01-01T00:00:00.5Z stdout F l1\n2026-01-01T00:00:01Z stderr F l2\n")
            .unwrap();
        let status = |name: &str| {
            json!({
                "name": name, "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "state": {"running": {}}, "containerID": format!("containerd://{name}"),
            })
        };
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "facts-a", "namespace": "demo", "uid": "UID"},
            "spec": {"containers": [{"name": "c1"}, {"name": "c2"}]},
            "status": {"containerStatuses": [status("c1"), status("c2")], "message": "x".repeat(4000)},
        }));
        Self {
            pods: Mutex::new(vec![Arc::new(pod.unwrap())]),
            health: Mutex::new(Ok(())),
            running: watch::Sender::new(true),
            log,
            stats: stats::tests::room(&stats::tests::Tree::new(false), &Default::default(), false),
            checkpoints: Mutex::default(),
        }
    }

    /// Writes a line as the runtime would.
    pub fn write(&self, text: &str) {
        let mut log = std::fs::File::options().append(true).open(&self.log).unwrap();
        writeln!(log, "2026-01-01T00:00:02Z stdout F {text}").unwrap();
    }
}

impl NodeView for Fake {
    fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.lock().unwrap().clone()
    }
    fn running_pods(&self) -> BoxFuture<'_, Result<Vec<Pod>, String>> {
        let bare = |pod: &Arc<Pod>| {
            let mut pod = Pod::clone(pod);
            pod.status = None;
            pod
        };
        let pods = self.pods().iter().map(bare).collect();
        async { Ok(pods) }.boxed()
    }
    fn container_log(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        previous: bool,
    ) -> Result<LogTarget, LogLookupError> {
        let found = self.pod(namespace, pod).ok_or_else(|| LogLookupError::NoPod { pod: pod.into() })?;
        let id = log_container(&found, container, previous)?;
        let path = self.log.with_file_name(format!("{id}.log"));
        Ok(LogTarget { path, running: self.running.subscribe() })
    }
    fn pod(&self, namespace: &str, pod: &str) -> Option<Arc<Pod>> {
        let is = |p: &&Arc<Pod>| {
            p.metadata.namespace.as_deref() == Some(namespace) && p.metadata.name.as_deref() == Some(pod)
        };
        self.pods().iter().find(is).cloned()
    }
    fn checkpoint(
        &self,
        _: &Pod,
        container: &str,
        timeout: i64,
    ) -> BoxFuture<'static, Result<PathBuf, String>> {
        self.checkpoints.lock().unwrap().push((container.to_owned(), timeout));
        let done = match container {
            "c2" => Ok("/var/lib/kubelet/checkpoints/checkpoint.tar".into()),
            // As it was recorded.
            _ => Err("rpc error: code = Unknown desc = CRIU binary not found or too old (<31600). Failed to checkpoint container \
                      \"HEX64\": failed to check for criu version: exec: \"criu\": executable file not found in $PATH"
                .to_owned()),
        };
        async { done }.boxed()
    }
    fn healthy(&self) -> Result<(), String> {
        self.health.lock().unwrap().clone()
    }
    fn stats(&self) -> Option<Stats> {
        Some(self.stats.clone())
    }
    fn configz(&self) -> serde_json::Value {
        json!({"address": "0.0.0.0", "filler": "x".repeat(4000)})
    }
}
