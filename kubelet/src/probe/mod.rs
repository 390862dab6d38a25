//! probe: startup, liveness and readiness probes of every container that runs, and what they make of it.
//!
//! A pod's actor opens its [`PodProbes`], tells what runs ([`PodProbes::aim`]) and reads the pod's [`Readiness`]: the
//! plan ends containers by it and gates sidecars with it, the status shows it. One task (`task`) has the agenda of all
//! probes; a probe at rest is an entry in it and nothing else. A run is a job of its own, bounded in number, that puts
//! the question through a [`Prober`]. The room kills nothing and writes no status; it never calls back.

pub mod dial;
mod grpc;
mod h2;
pub mod http;
mod keep;
mod leftover;
mod level;
mod prober;
mod readiness;
mod spec;
mod task;
mod tls;

pub use prober::{Answer, Live, Prober, Question};
pub use readiness::{ContainerReadiness, Kind, ProbeFailure, Readiness};
pub use spec::{Target, Targets, is_probed, probe_of};

use crate::api::PodRef;
use crate::clock::Clock;
use crate::event::Recorder;
use crate::metrics::Metrics;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use task::{Request, Task};
use tokio::sync::{mpsc, watch};

/// The handle. Cloning is cheap; the room's task ends with the last one and the last [`PodProbes`].
#[derive(Clone, Debug)]
pub struct Probes {
    requests: mpsc::UnboundedSender<Request>,
    next: Arc<AtomicU64>,
}

impl Probes {
    /// Starts the room's task.
    pub fn spawn(prober: Arc<dyn Prober>, recorder: Recorder, metrics: Metrics, clock: Clock) -> Self {
        let (requests, arriving) = mpsc::unbounded_channel();
        tokio::spawn(Task::new(prober, recorder, metrics, clock, arriving).run());
        Self { requests, next: Arc::default() }
    }

    /// The probes of one pod, whose directory is `dir`. One that was running before this agent (`adopted`) begins with
    /// what an earlier incarnation knew of it.
    pub fn open(&self, pod: &PodRef, dir: &Path, adopted: bool) -> PodProbes {
        let known = Arc::new(if adopted { keep::read(dir) } else { Readiness::default() });
        let (readiness, reader) = watch::channel(known);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let open = Request::Open { id, pod: pod.clone(), dir: dir.to_owned(), adopted, readiness };
        // Without the task the agent is stopping.
        let _ = self.requests.send(open);
        PodProbes { id, requests: self.requests.clone(), readiness: reader, aimed: None }
    }
}

/// A pod's actor's side. Dropping it ends the pod's probes.
#[derive(Debug)]
pub struct PodProbes {
    id: u64,
    requests: mpsc::UnboundedSender<Request>,
    readiness: watch::Receiver<Arc<Readiness>>,
    aimed: Option<Targets>,
}

impl PodProbes {
    /// Says what is to be probed from now on; the same again is nothing.
    pub fn aim(&mut self, targets: Targets) {
        let nothing_yet = self.aimed.is_none() && targets.running.is_empty();
        if nothing_yet || self.aimed.as_ref().is_some_and(|aimed| aimed.same(&targets)) {
            return;
        }
        let _ = self.requests.send(Request::Aim { id: self.id, targets: targets.clone() });
        self.aimed = Some(targets);
    }

    /// What the probes make of the pod now.
    pub fn readiness(&mut self) -> Arc<Readiness> {
        self.readiness.borrow_and_update().clone()
    }

    /// Resolves when there is something newer than what was last read. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.readiness.changed().await.is_err() {
            // Without the task nothing will change any more.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for PodProbes {
    fn drop(&mut self) {
        let _ = self.requests.send(Request::Close { id: self.id });
    }
}
