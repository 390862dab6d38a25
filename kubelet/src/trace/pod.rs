//! One pod's start: from the source event until it is ready, or has ended without.

use super::export::Tracer;
use super::otlp::{self, KeyValue};
use super::span::{Carried, Open, Phase, observe_phase, random};
use crate::api::PodRef;
use crate::metrics::Metrics;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How a start ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End<'a> {
    /// The pod is ready.
    Ready,
    /// All of it ran and succeeded before it was ever ready.
    Succeeded,
    /// It ended otherwise; why.
    Failed(&'a str),
}

/// Held by the pod's actor. Without a tracer it allocates nothing.
#[derive(Debug)]
pub struct PodStart(Option<Going>);

#[derive(Debug)]
struct Going {
    metrics: Metrics,
    span: Option<Arc<Open>>,
    began: Instant,
    /// The last phase ended.
    since: Instant,
    running: bool,
}

impl PodStart {
    /// A start that is not one: the pod ran already when the agent came.
    pub fn none() -> Self {
        Self(None)
    }

    /// A pod that was admitted now and that its source learned of at `arrived`.
    pub fn new(tracer: &Tracer, metrics: &Metrics, arrived: std::time::Instant) -> Self {
        let waited = arrived.elapsed();
        let now = Instant::now();
        let span = tracer.sampling().and_then(|sampling| {
            let (high, low) = (random(), random());
            // As upstream's sampler: by the last 63 bits.
            if low >> 1 >= sampling.threshold {
                return None;
            }
            let mut trace_id = [0; 16];
            trace_id[..8].copy_from_slice(&high.to_be_bytes());
            trace_id[8..].copy_from_slice(&low.to_be_bytes());
            let id = random().to_be_bytes();
            Some(Arc::new(Open { exporter: sampling.exporter.clone(), trace_id, id }))
        });
        let began = now.checked_sub(waited).unwrap_or(now);
        let going = Going { metrics: metrics.clone(), span, began, since: now, running: false };
        going.phase(Phase::Admission, waited);
        Self(Some(going))
    }

    /// For the work of this start.
    pub fn carried(&self) -> Option<Carried> {
        self.0.as_ref().map(|g| Carried { metrics: g.metrics.clone(), span: g.span.clone() })
    }

    /// A plan was carried out.
    pub fn acted(&mut self) {
        if let Some(going) = &mut self.0
            && !going.running
        {
            going.since = Instant::now();
        }
    }

    /// The pod was told to be running; only the first time counts.
    pub fn running(&mut self) {
        let Some(going) = &mut self.0 else { return };
        if std::mem::replace(&mut going.running, true) {
            return;
        }
        let now = Instant::now();
        going.phase(Phase::Observe, now - going.since);
        going.since = now;
    }

    /// The start is over.
    pub fn end(&mut self, pod: &PodRef, end: End<'_>) {
        let Some(going) = self.0.take() else { return };
        if end == End::Ready {
            going.phase(Phase::Ready, going.since.elapsed());
        }
        let Some(span) = &going.span else { return };
        let attributes = vec![
            KeyValue::text("k8s.pod.uid", pod.uid.as_str()),
            KeyValue::text("k8s.pod", format!("{}/{}", pod.namespace, pod.name)),
            KeyValue::text("k8s.pod.name", &*pod.name),
            KeyValue::text("k8s.namespace.name", &*pod.namespace),
        ];
        let error = match end {
            End::Failed(why) => Some(why.to_owned()),
            End::Ready | End::Succeeded => None,
        };
        span.end(None, "startPod", otlp::INTERNAL, going.began.elapsed(), attributes, error);
    }
}

impl Going {
    /// A phase that ended now.
    fn phase(&self, phase: Phase, took: Duration) {
        observe_phase(&self.metrics, phase, took);
        if let Some(span) = &self.span {
            span.child().end(Some(span.id), phase.name(), otlp::INTERNAL, took, Vec::new(), None);
        }
    }
}
