//! pleg: the only writer of what is running.
//!
//! It listens to the runtime's event stream where there is one and looks again at the pod an event names; it looks at
//! everything only at the start, after a reconnect, and at a slow interval as a net. A runtime without events, or whose
//! stream cannot be relied on yet, is listed every [`Config::poll`]. Each pod is looked at by a job of its own, so a
//! container whose status hangs delays nobody else.
//!
//! Pod actors [`subscribe`](Pleg::subscribe) to their pod and [`look`](Pleg::look) when they need to see what they
//! just did. pleg calls nobody: it never starts, stops or removes anything.
//!
//! ```text
//!   runtime events ─┐                         ┌─▶ watch<Arc<Observed>> per pod ──▶ actors
//!   look requests ──┼─▶ task: one job a pod ──┤
//!   net / reconnect ┘   (lists, statuses)     └─▶ Picture, once ──▶ world
//! ```

mod look;
pub mod observed;
mod task;

use crate::api::{PodRef, PodUid};
use crate::metrics::Metrics;
use crate::trace;
use observed::{Observed, Picture};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// How often pleg looks when nothing tells it to.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Interval of the full look where the runtime has an event stream.
    pub net: Duration,
    /// Interval of the full look where it has none, or none that can be relied on.
    pub poll: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { net: Duration::from_secs(300), poll: Duration::from_secs(1) }
    }
}

/// pleg has ended: the agent is stopping.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the agent is stopping")]
pub struct Stopping;

#[derive(Debug)]
enum Request {
    Subscribe { uid: PodUid, answer: oneshot::Sender<watch::Receiver<Arc<Observed>>> },
    Look { uid: PodUid, answer: oneshot::Sender<Arc<Observed>>, afresh: bool, traced: Option<trace::Carried> },
    Forget { uid: PodUid },
}

/// How pleg is doing, for health checks and metrics.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// The last full look that succeeded.
    pub last_full: Option<std::time::Instant>,
    /// Events come in.
    pub events: bool,
    /// The last full look failed with this.
    pub error: Option<String>,
}

/// Told of what runs of a pod whenever that changes, on pleg's own task: it must not block.
pub type OnChange = Box<dyn Fn(&PodUid, &Observed) + Send>;

/// What is seen of each pod, for those who cannot wait for the task.
type Index = Arc<Mutex<HashMap<PodUid, watch::Receiver<Arc<Observed>>>>>;

/// The handle. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Pleg {
    tx: mpsc::Sender<Request>,
    index: Index,
    health: watch::Receiver<Health>,
}

impl Pleg {
    /// Starts the task. The first receiver gets the first full [`Picture`], the second every pod that is found in the
    /// runtime later without anybody having asked for it. `on_change` is told of every pod whenever what is seen of it
    /// changes.
    pub fn spawn(
        runtime: cri::Client,
        config: Config,
        metrics: Metrics,
        on_change: OnChange,
    ) -> (Self, oneshot::Receiver<Picture>, mpsc::Receiver<PodRef>) {
        let (tx, rx) = mpsc::channel(256);
        let (picture_tx, picture_rx) = oneshot::channel();
        let (health_tx, health) = watch::channel(Health::default());
        let index = Index::default();
        let (strays_tx, strays) = mpsc::channel(64);
        let ends = task::Ends {
            requests: rx,
            index: index.clone(),
            strays: strays_tx,
            picture: picture_tx,
            health: health_tx,
            on_change,
        };
        let task = task::Task::new(runtime, config, metrics, ends);
        tokio::spawn(task.run());
        (Self { tx, index, health }, picture_rx, strays)
    }

    /// What is seen of `uid` from now on; the present value is the last one seen (empty if never).
    pub async fn subscribe(&self, uid: &PodUid) -> watch::Receiver<Arc<Observed>> {
        let (answer, got) = oneshot::channel();
        // When the task is gone the agent is stopping; a channel that never changes is the right answer.
        let closed = || watch::channel(Arc::default()).1;
        if self.tx.send(Request::Subscribe { uid: uid.clone(), answer }).await.is_err() {
            return closed();
        }
        got.await.unwrap_or_else(|_| closed())
    }

    /// What is seen of `uid`, if anybody has ever asked for it or the runtime had it.
    pub fn seen(&self, uid: &PodUid) -> Option<watch::Receiver<Arc<Observed>>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// Looks at one pod now, and again until it can be seen. What comes back was seen entirely after this call was made;
    /// `afresh`, also of containers whose state is what it was.
    ///
    /// # Errors
    /// The agent is stopping.
    pub async fn look(&self, uid: &PodUid, afresh: bool) -> Result<Arc<Observed>, Stopping> {
        let (answer, got) = oneshot::channel();
        self.tx
            .send(Request::Look { uid: uid.clone(), answer, afresh, traced: trace::carry() })
            .await
            .map_err(|_| Stopping)?;
        got.await.map_err(|_| Stopping)
    }

    /// Lets go of a pod of which nothing is left.
    pub async fn forget(&self, uid: &PodUid) {
        let _ = self.tx.send(Request::Forget { uid: uid.clone() }).await;
    }

    /// How it is doing.
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }
}
