//! [`Prober`]: how one question is put to a container, and the real one, which asks over the runtime or the network.
//!
//! Called by the room's task, once for each run of a probe, and for hooks that ask over the network. Answers read as
//! upstream's, word for word: they become events.

use super::dial::{self, host_port};
use super::grpc;
use super::http::{self, Agent, BadAction, Get, GetError};
use super::leftover::Hunter;
use super::readiness::Kind;
use super::spec::{Timing, container, probe_of};
use crate::api::{Container, Pod, PodRef};
use crate::event::ContainerList;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1 as core;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How much of what a command prints is told.
pub const OUTPUT_LIMIT: usize = 10 << 10;

/// A hook has no time limit of its own, and the HTTP client wants one.
const NO_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// One run of one probe.
#[derive(Clone, Debug)]
pub struct Question {
    /// The pod, whose spec has the probe.
    pub pod: Arc<Pod>,
    /// Which list of the spec the container stands in.
    pub list: ContainerList,
    /// Where in the list.
    pub index: usize,
    /// Which of its probes.
    pub kind: Kind,
    /// The runtime's id of the instance.
    pub instance: String,
    /// The pod's primary address.
    pub ip: Option<IpAddr>,
}

impl Question {
    /// The container and its probe.
    pub fn probe(&self) -> Option<(&Container, &core::Probe)> {
        let c = container(&self.pod, self.list, self.index)?;
        Some((c, probe_of(c, self.kind)?))
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The container is well.
    Success,
    /// It is well, but its owner should know this.
    Warning(String),
    /// It is not: what it said, or why it said nothing.
    Failure(String),
    /// Nothing can be said of it: the question could not be put. Counts neither way.
    Unknown(String),
}

/// Puts questions to containers. It keeps to the probe's own timeout by itself.
pub trait Prober: Send + Sync + fmt::Debug {
    /// Asks once.
    fn ask(&self, question: Question) -> BoxFuture<'static, Answer>;

    /// The request of a hook. It has no time limit of its own, and any answer will do.
    fn get(&self, request: Get) -> BoxFuture<'static, Result<(), GetError>> {
        Box::pin(async move { http::get(&request, NO_LIMIT).await.map(drop) })
    }
}

/// The real one.
#[derive(Clone, Debug)]
pub struct Live {
    runtime: cri::Client,
    hunter: Hunter,
}

impl Live {
    /// Commands are run by `runtime`.
    pub fn new(runtime: cri::Client) -> Self {
        Self { runtime, hunter: Hunter::new("/proc".into()) }
    }
}

impl Prober for Live {
    fn ask(&self, question: Question) -> BoxFuture<'static, Answer> {
        let (runtime, hunter) = (self.runtime.clone(), self.hunter.clone());
        Box::pin(async move {
            let Some((c, probe)) = question.probe() else {
                return Answer::Unknown(format!("missing probe handler for {}", PodRef::of(&question.pod)));
            };
            let timeout = Timing::of(probe).timeout;
            let ip = question.ip.map(|ip| ip.to_string()).unwrap_or_default();
            if let Some(action) = &probe.exec {
                return exec(&runtime, &hunter, &question.instance, action, timeout).await;
            }
            if let Some(action) = &probe.http_get {
                return http_get(action, c, &ip, timeout).await;
            }
            if let Some(action) = &probe.tcp_socket {
                return tcp_socket(action, c, &ip, timeout).await;
            }
            if let Some(action) = &probe.grpc {
                return grpc::check(&ip, action, timeout).await;
            }
            Answer::Unknown(format!("missing probe handler for {}:{}", PodRef::of(&question.pod), c.name))
        })
    }
}

/// Past the timeout the runtime has so long to say what it did. One that waits for what the command left behind
/// (containerd does, as long as a child holds the command's output) is not waited for.
const RUNTIME_SLACK: Duration = Duration::from_secs(1);
/// So long before its timeout a command that has not ended is looked for, to know what it leaves behind.
const BEFORE_TIMEOUT: Duration = Duration::from_millis(250);
/// So long after it the runtime has killed the command's first process; what still runs of it then is ended here.
const AFTER_TIMEOUT: Duration = Duration::from_millis(100);

async fn exec(
    runtime: &cri::Client,
    hunter: &Hunter,
    instance: &str,
    action: &core::ExecAction,
    timeout: Duration,
) -> Answer {
    let command = action.command.clone().unwrap_or_default();
    let shown = command.join(" ");
    let timed_out =
        || Answer::Failure(format!("command timed out: {shown:?} timed out after {}s", timeout.as_secs()));
    let began = Instant::now();
    let asked = runtime.exec_sync(instance, command.clone(), timeout);
    tokio::pin!(asked);
    let in_time = timeout_at(began + timeout.saturating_sub(BEFORE_TIMEOUT), &mut asked).await;
    let done = match in_time {
        Ok(done) => Ok(done),
        Err(_) => {
            let session = hunter.find(instance, &command, began.elapsed()).await;
            let done = timeout_at(began + timeout + AFTER_TIMEOUT, &mut asked).await;
            let late = matches!(&done, Err(_) | Ok(Err(cri::Error { kind: cri::Kind::Timeout, .. })));
            if let Some(session) = session.filter(|_| late) {
                hunter.kill(session).await;
            }
            match done {
                Err(_) => timeout_at(began + timeout + RUNTIME_SLACK, asked).await,
                done => done,
            }
        }
    };
    match done {
        Err(_) => timed_out(),
        Ok(Err(e)) if e.kind == cri::Kind::Timeout => timed_out(),
        Ok(Err(e)) => Answer::Unknown(e.rpc_text()),
        Ok(Ok(done)) if done.exit_code == 0 => Answer::Success,
        Ok(Ok(done)) => {
            let mut output = done.stdout;
            output.extend_from_slice(&done.stderr);
            output.truncate(OUTPUT_LIMIT);
            Answer::Failure(String::from_utf8_lossy(&output).into_owned())
        }
    }
}

async fn http_get(action: &core::HTTPGetAction, c: &Container, ip: &str, timeout: Duration) -> Answer {
    let request = match Get::of(action, c, ip, Agent::Probe) {
        Ok(request) => request,
        // The request is there and cannot be sent, as with upstream.
        Err(e @ BadAction::Header { .. }) => return Answer::Failure(e.to_string()),
        Err(e) => return Answer::Unknown(e.to_string()),
    };
    match http::get(&request, timeout).await {
        Ok(a) if a.redirects_away() => {
            Answer::Warning(format!("Probe terminated redirects, Response body: {}", a.body))
        }
        Ok(a) if a.is_success() => Answer::Success,
        Ok(a) => Answer::Failure(format!("HTTP probe failed with statuscode: {}", a.status)),
        Err(e) => Answer::Failure(e.to_string()),
    }
}

async fn tcp_socket(action: &core::TCPSocketAction, c: &Container, ip: &str, timeout: Duration) -> Answer {
    let port = match http::port(&action.port, c) {
        Ok(port) => port,
        Err(e) => return Answer::Unknown(e.to_string()),
    };
    let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(ip);
    match tokio::time::timeout(timeout, dial::dial(host, port)).await {
        Ok(Ok(_)) => Answer::Success,
        Ok(Err(e)) => Answer::Failure(e.to_string()),
        Err(_) => Answer::Failure(format!("dial tcp {}: i/o timeout", host_port(host, port))),
    }
}

#[cfg(test)]
mod tests;
