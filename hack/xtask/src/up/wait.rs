//! Waits until every example pod is as it should be, and measures how long each took to start.
//!
//! Called by `up` after the manifests are in place.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use cri::v1::runtime_service_client::RuntimeServiceClient;
use cri::v1::{ContainerFilter, ContainerStatusRequest, ListContainersRequest};
use k8s_openapi::api::core::v1::Pod;

use super::api::Api;
use super::expect::{self, Expectation, Row, Table};
use super::node::Node;
use super::progress::Progress;
use crate::cmd;

/// How long all examples together may take; none of them needs a tenth of it.
const LIMIT: Duration = Duration::from_secs(180);

/// One manifest with what it promises.
#[derive(Debug, Clone)]
pub(super) struct Example {
    /// Its file name.
    pub file: String,
    /// Its text.
    pub text: String,
    /// The pod's name, without the node's.
    pub name: String,
    /// What must become of it.
    pub expectation: Expectation,
}

/// Every `*.yaml` of `dir`, in order of their names.
pub(super) fn read_examples(dir: &Path) -> Result<Vec<Example>> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .with_context(|| format!("read the examples in {}", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    files
        .iter()
        .map(|path| read_example(path).with_context(|| format!("example {}", path.display())))
        .collect()
}

fn read_example(path: &Path) -> Result<Example> {
    let text = fs::read_to_string(path)?;
    let pod: Pod = serde_saphyr::from_str(&text)?;
    let expected = pod.metadata.annotations.as_ref().and_then(|a| a.get(expect::ANNOTATION));
    Ok(Example {
        file: path.file_name().context("a file has a name")?.to_string_lossy().into_owned(),
        name: pod.metadata.name.context("metadata.name is missing")?,
        expectation: expected.map_or(Ok(Expectation::Running), |text| text.parse())?,
        text,
    })
}

/// Returns the example pods once all are as they should be; otherwise says which is not, and why.
pub(super) async fn until_met(
    node: &Node,
    api: &Api,
    examples: &[Example],
    node_name: &str,
    progress: &Progress,
) -> Result<Vec<Pod>> {
    let deadline = Instant::now() + LIMIT;
    let mut pause = Duration::from_millis(50);
    loop {
        let answer = api.pods().await;
        let missing = match &answer {
            Ok(pods) => {
                let found = ours(pods, examples, node_name);
                let missing = unmet(&found, examples, node_name);
                if missing.is_empty() {
                    return Ok(found.into_values().cloned().collect());
                }
                missing
            }
            Err(error) => vec![format!("the agent does not answer: {error:#}")],
        };
        progress.detail(&format!("{} of {} to go", missing.len(), examples.len()));
        if node.kubelet_daemon().running().is_empty() {
            bail!("the agent ended; its log ends: {}", log_end(node));
        }
        if Instant::now() > deadline {
            bail!("after {LIMIT:?}: {}; the agent's log ends: {}", missing.join("; "), log_end(node));
        }
        // The agent's API has no watch; the pause grows to what a person does not notice.
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_millis(500));
    }
}

fn log_end(node: &Node) -> String {
    cmd::tail(&fs::read(node.kubelet_daemon().log).unwrap_or_default(), 5)
}

/// A static pod carries the node's name behind its own.
fn full_name(example: &Example, node_name: &str) -> String {
    format!("{}-{node_name}", example.name)
}

fn ours<'a>(pods: &'a [Pod], examples: &[Example], node_name: &str) -> BTreeMap<String, &'a Pod> {
    let names: Vec<String> = examples.iter().map(|example| full_name(example, node_name)).collect();
    let named = pods.iter().filter_map(|pod| Some((pod.metadata.name.clone()?, pod)));
    named.filter(|(name, _)| names.contains(name)).collect()
}

fn unmet(found: &BTreeMap<String, &Pod>, examples: &[Example], node_name: &str) -> Vec<String> {
    let mut missing = Vec::new();
    for example in examples {
        match found.get(&full_name(example, node_name)) {
            None => missing.push(format!("pod {} is not there", example.name)),
            Some(pod) if !example.expectation.met(pod) => {
                let (name, expected) = (&example.name, example.expectation);
                missing.push(format!("pod {name} should be {expected:?}, but: {}", expect::complaint(pod)));
            }
            Some(_) => {}
        }
    }
    missing
}

/// The table of the pods, with the time each took from its manifest's rename to its last container's
/// first start.
pub(super) async fn table(node: &Node, pods: &[Pod], examples: &[Example], node_name: &str) -> Table {
    let mut rows = Vec::new();
    for pod in pods {
        let file = examples
            .iter()
            .find(|example| pod.metadata.name.as_deref() == Some(&full_name(example, node_name)))
            .map(|example| node.manifests().join(&example.file));
        let latency = match (file, uid(pod)) {
            (Some(file), Some(uid)) => latency(node, &file, uid).await,
            _ => None,
        };
        rows.push(Row::new(pod, latency));
    }
    Table(rows)
}

fn uid(pod: &Pod) -> Option<&str> {
    pod.metadata.uid.as_deref()
}

/// `None` where the first containers are gone already, or where the pod is older than its manifest.
async fn latency(node: &Node, manifest: &Path, uid: &str) -> Option<Duration> {
    use std::os::unix::fs::MetadataExt as _;
    // A rename sets the inode's change time; nothing else touches the file afterwards.
    let metadata = fs::metadata(manifest).ok()?;
    let renamed = Duration::new(metadata.ctime().try_into().ok()?, metadata.ctime_nsec().try_into().ok()?);
    let channel = containerd_client::connect(node.containerd().socket()).await.ok()?;
    let mut client = RuntimeServiceClient::new(channel);
    let filter = ContainerFilter {
        label_selector: [("io.kubernetes.pod.uid".to_owned(), uid.to_owned())].into(),
        ..Default::default()
    };
    let all = client.list_containers(ListContainersRequest { filter: Some(filter) }).await.ok()?.into_inner();
    let mut last: Option<SystemTime> = None;
    for container in all.containers.iter().filter(|c| c.metadata.as_ref().is_some_and(|m| m.attempt == 0)) {
        let request = ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
        let status = client.container_status(request).await.ok()?.into_inner().status?;
        let started = UNIX_EPOCH + Duration::from_nanos(u64::try_from(status.started_at).ok()?);
        last = last.max(Some(started));
    }
    last?.duration_since(UNIX_EPOCH + renamed).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_in_the_tree_says_what_becomes_of_it() {
        let examples = read_examples(&crate::tree::root().join("examples")).unwrap();
        assert_eq!(examples.len(), 5);
        for example in &examples {
            assert!(example.text.contains(expect::ANNOTATION), "{}", example.file);
        }
    }

    #[test]
    fn a_missing_pod_and_one_in_the_wrong_state_are_both_named() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            let text =
                format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: []}}\n");
            fs::write(dir.path().join(format!("{name}.yaml")), text).unwrap();
        }
        let examples = read_examples(dir.path()).unwrap();
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": { "name": "a-node" }, "status": { "phase": "Pending" },
        }))
        .unwrap();
        let pods = [pod];
        let problems = unmet(&ours(&pods, &examples, "node"), &examples, "node");
        assert_eq!(problems, ["pod a should be Running, but: phase Pending", "pod b is not there"]);
    }
}
