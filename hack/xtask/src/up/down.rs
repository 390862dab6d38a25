//! `hack/down`: takes away everything that `up` made, in the order that lets each part clean up after
//! itself, and then whatever is still there.
//!
//! It goes on past every failure and reports all of them at the end; run again, it tries again.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::api::Api;
use super::node::{self, Node, PORT};
use super::pki::Pki;
use super::progress::Progress;
use crate::runtime;

/// The longest a pod's own grace period is waited for.
const GRACE: Duration = Duration::from_secs(45);

/// Removes the node of `up` from this machine.
pub async fn down() -> Result<()> {
    let node = Node::new();
    let _alone = super::lock(&node)?;
    let mut progress = Progress::new(4);
    let mut problems = Vec::new();

    progress.step("stop the pods");
    stop_pods(&node, &progress).await;

    progress.step("stop the agent");
    if !node.kubelet_daemon().stop(Duration::from_secs(30)) {
        problems.push("the agent would not end".to_owned());
    }

    progress.step("stop what still runs in containerd");
    if !node.containerd_daemon().running().is_empty() {
        // Pods that the agent did not stop; their network is taken back by the plugins here.
        if let Err(error) = runtime::stop_all_pods(&node.containerd().socket()).await {
            progress.note(&format!("  not stopped in order: {error:#}"));
        }
    }

    progress.step("remove processes, mounts, cgroups, links and folders");
    for link in node::log_links(&node.logs) {
        if let Err(error) = fs::remove_file(&link) {
            problems.push(format!("remove {}: {error}", link.display()));
        }
    }
    problems.extend(runtime::sweep_traces(&node.traces()));
    progress.finish();
    // Still held: whoever starts now is turned away, whoever starts later makes a new one.
    let _absent = fs::remove_file(super::lock_file(&node));
    if !problems.is_empty() {
        bail!("not everything went: {}", problems.join("; "));
    }
    Ok(())
}

/// Takes the manifests away and waits until the agent has no pods left. Whatever does not go this way
/// is killed afterwards, so failures here are only said.
async fn stop_pods(node: &Node, progress: &Progress) {
    for entry in fs::read_dir(node.manifests()).into_iter().flatten().flatten() {
        if let Err(error) = fs::remove_file(entry.path()) {
            progress.note(&format!("  {}: {error}", entry.path().display()));
        }
    }
    if node.kubelet_daemon().running().is_empty() || !node.pki().exists() {
        return;
    }
    let Ok(api) = Pki::ensure(&node.pki()).and_then(|pki| Api::new(&pki, PORT)) else { return };
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline {
        match api.pods().await {
            Ok(pods) if pods.is_empty() => return,
            Ok(pods) => progress.detail(&format!("{} left", pods.len())),
            Err(error) => return progress.note(&format!("  the agent does not answer: {error:#}")),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    progress.note("  some pods did not stop in time and are killed");
}
