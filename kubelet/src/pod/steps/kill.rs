//! Ending containers: what is said, the preStop hook, the stop signal; all within one grace period.

use super::{Failure, Steps};
use crate::api::{self, Container, Pod};
use crate::event::{Kind, container_path};
use crate::gotext;
use crate::pleg::observed::State;
use crate::pod::desired::{MINIMUM_GRACE, SHORTEST_GRACE};
use crate::pod::hooks;
use crate::pod::plan::Kill;
use crate::pod::translate::annotations::{PORTS, PRE_STOP_HANDLER};
use futures::future::join_all;
use k8s_openapi::api::core::v1::LifecycleHandler;
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How far the stops of one order have come.
#[derive(Debug)]
struct Under {
    /// The turns of those that have not ended yet.
    way: Vec<u32>,
    /// Which could not be stopped, and why: nobody's turn comes any more.
    failed: Vec<String>,
}

impl Steps {
    /// Ends containers: all are told of it at once and run their preStop hooks at once; those of a later turn are stopped
    /// when the earlier ones have ended, with what is left of the grace. As upstream's, a stop under way is not shortened
    /// by a later order.
    pub async fn kill(&self, pod: &Pod, targets: &[Kill], grace: Duration) -> Result<(), Failure> {
        for t in targets {
            let message = t.message.clone().unwrap_or_else(|| format!("Stopping container {}", t.name));
            self.event(
                Kind::Normal,
                Some(container_path(self.list_of(pod, &t.name), &t.name)),
                "Killing",
                message,
            );
        }
        let began = Instant::now();
        // Whole seconds, as upstream's: what was spent is rounded down.
        let left = || grace.saturating_sub(Duration::from_secs(began.elapsed().as_secs()));
        let under =
            watch::Sender::new(Under { way: targets.iter().map(|t| t.turn).collect(), failed: Vec::new() });
        let stops = targets.iter().map(|t| {
            let (under, left) = (&under, &left);
            async move {
                self.pre_stop(pod, t, grace).await;
                let mut others = under.subscribe();
                let come = async {
                    let come = others
                        .wait_for(|u| !u.failed.is_empty() || u.way.iter().all(|at| *at >= t.turn))
                        .await;
                    come.is_ok_and(|u| !u.failed.is_empty())
                };
                // Whoever does not get its turn within the grace is stopped all the same.
                if tokio::time::timeout_at(began + grace, come).await.unwrap_or(false) {
                    return;
                }
                let ended = self.stop_container(t, left().max(MINIMUM_GRACE)).await;
                under.send_modify(|u| match ended {
                    Ok(()) => drop(u.way.iter().position(|at| *at == t.turn).map(|i| u.way.swap_remove(i))),
                    Err(e) => u.failed.push(format!(
                        "failed to \"KillContainer\" for \"{}\" with KillContainerError: \"{}\"",
                        t.name,
                        e.rpc_text()
                    )),
                });
            }
        });
        join_all(stops).await;
        let failed = &under.borrow().failed;
        if failed.is_empty() {
            return Ok(());
        }
        let why = gotext::aggregate(failed.iter().map(String::as_str));
        Err(Failure { not_ended: Some(why), ..Failure::default() })
    }

    async fn stop_container(&self, target: &Kill, grace: Duration) -> Result<(), cri::Error> {
        let seconds = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        match self.rooms.runtime.stop_container(&target.id, seconds).await {
            Err(error) if error.kind != cri::Kind::NotFound => {
                tracing::warn!(pod = %self.pod, container = target.name, %error, "cannot stop the container");
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Runs the preStop hook, for no longer than the grace. A failure is told, and changes nothing.
    async fn pre_stop(&self, pod: &Pod, target: &Kill, grace: Duration) {
        if grace < SHORTEST_GRACE {
            return;
        }
        let Some((container, hook)) = self.pre_stop_hook(pod, target).await else { return };
        let began = Instant::now();
        let ip = self.pod_ip(pod).await;
        let of = self.hook_target(&container, &target.id, ip);
        let run = async {
            tokio::select! {
                done = hooks::run(&of, &hook) => done,
                // Nobody is left to wait for.
                () = self.until_exited(&target.id), if hook.sleep.is_some() => {
                    Err("container terminated before sleep hook finished".to_owned())
                }
            }
        };
        let done = tokio::time::timeout(grace, run).await;
        let error = match done {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some("it was still running at the end of the grace period".to_owned()),
        };
        let took_ms = began.elapsed().as_millis() as u64;
        tracing::debug!(pod = %self.pod, container = target.name, took_ms, error, "preStop hook");
        if error.is_some() {
            let path = container_path(self.list_of(pod, &target.name), &target.name);
            // Not the error: a command's output may hold secrets.
            self.event(Kind::Warning, Some(path), "FailedPreStopHook", "PreStopHook failed".to_owned());
        }
    }

    /// The hook and whose it is, as the pod has it now; of a pod that no source has, as the container was made with it.
    async fn pre_stop_hook(&self, pod: &Pod, target: &Kill) -> Option<(Container, LifecycleHandler)> {
        let spec = api::spec(pod);
        let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        if let Some(c) = containers.find(|c| c.name == target.name) {
            let hook = c.lifecycle.as_ref()?.pre_stop.clone()?;
            return Some((c.clone(), hook));
        }
        let status = self.rooms.runtime.container_status(&target.id, false).await.ok()?.status?;
        let text = status.annotations.get(PRE_STOP_HANDLER)?;
        let ports = status.annotations.get(PORTS).map_or("[]", String::as_str);
        let parsed = serde_json::from_str(text).and_then(|hook| Ok((hook, serde_json::from_str(ports)?)));
        match parsed {
            Ok((hook, ports)) => {
                Some((Container { name: target.name.clone(), ports, ..Default::default() }, hook))
            }
            Err(error) => {
                tracing::warn!(pod = %self.pod, container = target.name, %error, "annotation {PRE_STOP_HANDLER}");
                None
            }
        }
    }

    pub(super) fn hook_target<'a>(
        &'a self,
        container: &'a Container,
        id: &'a str,
        ip: Option<IpAddr>,
    ) -> hooks::Target<'a> {
        let rooms = &self.rooms;
        let (recorder, metrics) = (&rooms.recorder, &rooms.metrics);
        hooks::Target {
            runtime: &rooms.runtime,
            prober: &*rooms.prober,
            recorder,
            metrics,
            pod: &self.pod,
            ip,
            container,
            id,
        }
    }

    /// The pod's primary address, as far as it is known.
    pub(super) async fn pod_ip(&self, pod: &Pod) -> Option<IpAddr> {
        if api::spec(pod).host_network.unwrap_or(false) {
            return self.rooms.facts.node_ips.first().copied();
        }
        if let Some(made) = &self.made {
            return made.ips.first().copied();
        }
        let seen = self.rooms.pleg.subscribe(&self.pod.uid).await;
        let seen = seen.borrow();
        seen.sandbox()?.ips.first().copied()
    }

    async fn until_exited(&self, id: &str) {
        let mut seen = self.rooms.pleg.subscribe(&self.pod.uid).await;
        let ended = seen
            .wait_for(|seen| seen.containers.iter().any(|c| c.id == id && c.state == State::Exited))
            .await
            .is_ok();
        if !ended {
            std::future::pending::<()>().await;
        }
    }
}
