//! The span that the present task works in, and what becomes its children: phases and calls to the runtime.

use super::export::Exporter;
use super::otlp::{self, KeyValue};
use crate::metrics::Metrics;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

tokio::task_local! {
    /// What the task works in; unset outside of a pod's start.
    static CURRENT: Carried;
}

/// A phase of a pod's start; the value of the label `phase` and the span's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// From the source event until the pod has been admitted and its actor has begun.
    Admission,
    /// The pod's cgroup.
    Cgroup,
    /// Its directories and volumes.
    Volumes,
    /// The sandbox, with the pod's network.
    Sandbox,
    /// One container's image.
    Image,
    /// One container, created.
    Create,
    /// One container, started.
    Start,
    /// From the last start until the pod was seen to run.
    Observe,
    /// From then until it was ready.
    Ready,
}

impl Phase {
    /// As the label and the span have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admission => "admission",
            Self::Cgroup => "cgroup",
            Self::Volumes => "volumes",
            Self::Sandbox => "sandbox",
            Self::Image => "image",
            Self::Create => "create",
            Self::Start => "start",
            Self::Observe => "observe",
            Self::Ready => "ready",
        }
    }
}

/// A span that has begun, as far as its children and its end need it.
#[derive(Debug)]
pub(super) struct Open {
    pub exporter: Exporter,
    pub trace_id: [u8; 16],
    pub id: [u8; 8],
}

/// What a task works in: hand it to another task that does part of the work.
#[derive(Clone, Debug)]
pub struct Carried {
    pub(super) metrics: Metrics,
    /// `None` for a pod that is not sampled.
    pub(super) span: Option<Arc<Open>>,
}

/// What the present task works in.
pub fn carry() -> Option<Carried> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Does `work` as part of what `carried` stands for.
pub async fn within<T>(carried: Option<Carried>, work: impl Future<Output = T>) -> T {
    match carried {
        Some(carried) => CURRENT.scope(carried, work).await,
        None => work.await,
    }
}

/// Does `work` as a phase of the pod's start that the present task works in; outside of one it only does it. `of` is the
/// container it is about, or empty; `cause` says of a failure what the span is to tell.
pub async fn phase<T, E>(
    phase: Phase,
    of: &str,
    work: impl Future<Output = Result<T, E>>,
    cause: impl FnOnce(&E) -> String,
) -> Result<T, E> {
    let Some(current) = carry() else { return work.await };
    let began = Instant::now();
    let Some(parent) = &current.span else {
        let result = work.await;
        observe_phase(&current.metrics, phase, began.elapsed());
        return result;
    };
    let child = Arc::new(parent.child());
    let below = Carried { metrics: current.metrics.clone(), span: Some(child.clone()) };
    let result = CURRENT.scope(below, work).await;
    let took = began.elapsed();
    observe_phase(&current.metrics, phase, took);
    let attributes = if of.is_empty() { Vec::new() } else { vec![KeyValue::text("k8s.container.name", of)] };
    let error = result.as_ref().err().map(cause);
    child.end(Some(parent.id), phase.name(), otlp::INTERNAL, took, attributes, error);
    result
}

/// Takes a phase that ended now, began at `began`, and had nothing below it.
pub fn done(phase: Phase, began: Instant, error: Option<String>) {
    let _ = CURRENT.try_with(|current| {
        let took = began.elapsed();
        observe_phase(&current.metrics, phase, took);
        if let Some(parent) = &current.span {
            parent.child().end(Some(parent.id), phase.name(), otlp::INTERNAL, took, Vec::new(), error);
        }
    });
}

/// Takes a call to the runtime that has ended, on the caller's task: the observer of [`cri::Client`].
pub fn observe(call: &cri::Finished<'_>) {
    let _ = CURRENT.try_with(|current| {
        let Some(parent) = &current.span else { return };
        let service = match call.call {
            "ImageStatus" | "ListImages" | "PullImage" | "RemoveImage" | "ImageFsInfo" => {
                "runtime.v1.ImageService"
            }
            _ => "runtime.v1.RuntimeService",
        };
        let code = call.error.map_or(0, |e| e.code as i64);
        let attributes = vec![
            KeyValue::text("rpc.system", "grpc"),
            KeyValue::text("rpc.service", service),
            KeyValue::text("rpc.method", call.call),
            KeyValue::number("rpc.grpc.status_code", code),
        ];
        let error = call.error.map(|e| e.message.clone());
        let name = format!("{service}/{}", call.call);
        parent.child().end(Some(parent.id), &name, otlp::CLIENT, call.took, attributes, error);
    });
}

pub(super) fn observe_phase(metrics: &Metrics, phase: Phase, took: Duration) {
    metrics.pod_start_phase.with([phase.name()]).observe_duration(took);
}

impl Open {
    pub fn child(&self) -> Self {
        Self { exporter: self.exporter.clone(), trace_id: self.trace_id, id: random().to_be_bytes() }
    }

    /// Hands the span over for export; it ends now and began `took` ago.
    pub fn end(
        &self,
        parent: Option<[u8; 8]>,
        name: &str,
        kind: i32,
        took: Duration,
        attributes: Vec<KeyValue>,
        error: Option<String>,
    ) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        self.exporter.take(otlp::Span {
            trace_id: self.trace_id.to_vec(),
            span_id: self.id.to_vec(),
            parent_span_id: parent.map(|id| id.to_vec()).unwrap_or_default(),
            name: name.to_owned(),
            kind,
            start_time_unix_nano: nanos(now.saturating_sub(took)),
            end_time_unix_nano: nanos(now),
            attributes,
            status: error.map(|message| otlp::Status { message: bounded(message), code: otlp::ERROR }),
        });
    }
}

/// A runtime's text may be of any length.
fn bounded(mut text: String) -> String {
    const MOST: usize = 4096;
    if text.len() > MOST {
        text.truncate(text.floor_char_boundary(MOST));
    }
    text
}

/// Ids need to be unlike each other, not secret: a keyed hash of a counter, the key from the kernel.
pub(super) fn random() -> u64 {
    static KEY: OnceLock<RandomState> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let hash = KEY.get_or_init(RandomState::new).hash_one(COUNT.fetch_add(1, Ordering::Relaxed));
    // All zeros means no id.
    hash.max(1)
}
