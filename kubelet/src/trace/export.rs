//! The way of spans to a collector: a bounded queue, batches, one connection that is made anew when it breaks.
//!
//! ```text
//!   take ──▶ queue (2048) ──▶ batch: 512 spans, or what came within 5 s of the first ──▶ Export
//!     └─ full: dropped, counted                       └─ failed: again after 1, 2, 4 … 30 s; after a minute dropped, counted
//! ```
//!
//! The task sleeps while there are no spans. What a collector refuses for good is dropped at once.

use super::otlp::{self, KeyValue};
use crate::metrics::Metrics;
use crate::resolve::resolve;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::body::Body;
use tonic::{Code, Request, Status};

/// Spans that wait for export.
pub const QUEUE: usize = 2048;
/// Spans sent at once.
const BATCH: usize = 512;
/// How long a span waits for others.
const GATHER: Duration = Duration::from_secs(5);
/// For one attempt, with connecting.
const DEADLINE: Duration = Duration::from_secs(10);
/// Waits after a failure: first and longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// A batch that could not be sent for so long is dropped.
const GIVE_UP: Duration = Duration::from_secs(60);

/// Where a collector listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `host:port`
    Tcp(String),
    /// A socket's path.
    Unix(String),
    /// An abstract socket's name.
    Abstract(String),
}

impl Target {
    /// Reads `tracing.endpoint`: `host:port`, with `dns:` before it or not, `unix:PATH` or `unix-abstract:NAME`, each with
    /// or without slashes after the scheme. Empty is upstream's default.
    pub fn parse(endpoint: &str) -> Self {
        let authority = |rest: &str| {
            rest.strip_prefix("//").map_or(rest, |r| r.split_once('/').map_or(r, |(_, p)| p)).to_owned()
        };
        let path = |rest: &str| rest.strip_prefix("//").unwrap_or(rest).to_owned();
        match endpoint.split_once(':') {
            _ if endpoint.is_empty() => Self::Tcp("localhost:4317".to_owned()),
            Some(("unix", rest)) => Self::Unix(path(rest)),
            Some(("unix-abstract", rest)) => Self::Abstract(path(rest)),
            Some(("dns", rest)) => Self::Tcp(authority(rest)),
            _ => Self::Tcp(endpoint.strip_prefix("//").unwrap_or(endpoint).to_owned()),
        }
    }

    async fn connect(&self) -> io::Result<Box<dyn Io>> {
        Ok(match self {
            Self::Tcp(address) => {
                let stream = dial(address).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Self::Abstract(name) => {
                let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
                let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
                stream.set_nonblocking(true)?;
                Box::new(UnixStream::from_std(stream)?)
            }
        })
    }
}

/// Connects to `host:port`.
async fn dial(address: &str) -> io::Result<TcpStream> {
    let bad = || io::Error::new(io::ErrorKind::InvalidInput, format!("{address:?} is not host:port"));
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let addresses = resolve(host, port.parse().map_err(|_| bad())?).await?;
    // Each in turn, as it comes.
    TcpStream::connect(&addresses[..]).await
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// `tracing`, and who is speaking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportConfig {
    /// `tracing.endpoint`
    pub target: Target,
    /// `tracing.samplingRatePerMillion`, above 0.
    pub per_million: u32,
    /// The node's name.
    pub node: String,
}

/// What rooms hold. Cloning is cheap; the default traces nothing.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Sampling>);

#[derive(Clone, Debug)]
pub(super) struct Sampling {
    /// Of the values of 63 bits, those below are sampled.
    pub threshold: u64,
    pub exporter: Exporter,
}

/// The queue's end that takes spans.
#[derive(Clone, Debug)]
pub(super) struct Exporter {
    queue: mpsc::Sender<otlp::Span>,
    metrics: Metrics,
}

/// Sends what is queued; see [`Flush::within`].
#[derive(Debug)]
pub struct Flush(mpsc::Sender<oneshot::Sender<()>>);

impl Exporter {
    /// Never waits.
    pub fn take(&self, span: otlp::Span) {
        if self.queue.try_send(span).is_err() {
            self.metrics.trace_spans_dropped.with(["queue_full"]).inc();
        }
    }
}

impl Tracer {
    /// Starts the export task, which ends with the last tracer. Needs a tokio runtime.
    pub fn start(config: ExportConfig, metrics: &Metrics) -> (Self, Flush) {
        let (queue, spans) = mpsc::channel(QUEUE);
        let (flush, flushes) = mpsc::channel(1);
        let task = Task {
            resource: resource(&config.node),
            target: config.target,
            metrics: metrics.clone(),
            spans,
            connection: None,
            warned: false,
        };
        tokio::spawn(task.run(flushes));
        let threshold = (u128::from(config.per_million) << 63) / 1_000_000;
        let exporter = Exporter { queue, metrics: metrics.clone() };
        let threshold = u64::try_from(threshold).unwrap_or(u64::MAX);
        (Self(Some(Sampling { threshold, exporter })), Flush(flush))
    }

    pub(super) fn sampling(&self) -> Option<&Sampling> {
        self.0.as_ref()
    }
}

impl Flush {
    /// Has everything queued by now sent, waiting no longer than `limit`.
    pub async fn within(&self, limit: Duration) {
        let (done, wait) = oneshot::channel();
        if self.0.send(done).await.is_ok() {
            // Not sent in time, or the task is gone: nothing more can be done.
            let _ = timeout(limit, wait).await;
        }
    }
}

fn resource(node: &str) -> otlp::Resource {
    otlp::Resource {
        attributes: vec![
            KeyValue::text("service.name", "kubelet"),
            KeyValue::text("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::text("host.name", node),
            KeyValue::text("k8s.node.name", node),
        ],
    }
}

struct Task {
    resource: otlp::Resource,
    target: Target,
    metrics: Metrics,
    spans: mpsc::Receiver<otlp::Span>,
    connection: Option<SendRequest<Body>>,
    /// The collector's silence was told of.
    warned: bool,
}

impl Task {
    async fn run(mut self, mut flushes: mpsc::Receiver<oneshot::Sender<()>>) {
        loop {
            // Cancel-safe: both keep what they have not given.
            let first = tokio::select! {
                span = self.spans.recv() => match span {
                    Some(span) => span,
                    None => return,
                },
                Some(done) = flushes.recv() => {
                    self.flush(Vec::new(), done).await;
                    continue;
                }
            };
            let mut batch = vec![first];
            let until = Instant::now() + GATHER;
            let mut asked = None;
            while batch.len() < BATCH {
                let more = tokio::select! {
                    more = timeout_at(until, self.spans.recv()) => more,
                    Some(done) = flushes.recv() => {
                        asked = Some(done);
                        break;
                    }
                };
                match more {
                    Ok(Some(span)) => batch.push(span),
                    Ok(None) | Err(_) => break,
                }
            }
            match asked {
                Some(done) => self.flush(batch, done).await,
                None => self.deliver(batch, &mut flushes).await,
            }
        }
    }

    /// Sends `batch` and all that is queued, once.
    async fn flush(&mut self, mut batch: Vec<otlp::Span>, done: oneshot::Sender<()>) {
        while let Ok(span) = self.spans.try_recv() {
            batch.push(span);
        }
        while !batch.is_empty() {
            let rest = batch.split_off(batch.len().min(BATCH));
            let request = self.request(batch);
            if let Err(status) = self.send(&request).await {
                self.dropped(spans(&request) + rest.len(), &status);
                break;
            }
            batch = rest;
        }
        let _ = done.send(());
    }

    /// Sends `batch`, again and again where that may help.
    async fn deliver(&mut self, batch: Vec<otlp::Span>, flushes: &mut mpsc::Receiver<oneshot::Sender<()>>) {
        let (request, began) = (self.request(batch), Instant::now());
        let mut wait = RETRY.0;
        loop {
            let Err(status) = self.send(&request).await else { return };
            if !may_pass(status.code()) || began.elapsed() > GIVE_UP {
                return self.dropped(spans(&request), &status);
            }
            if !std::mem::replace(&mut self.warned, true) {
                tracing::warn!(target = ?self.target, error = status.message(), "cannot export traces; trying again");
            }
            let asked = tokio::select! {
                () = tokio::time::sleep(wait) => None,
                Some(done) = flushes.recv() => Some(done),
            };
            if let Some(done) = asked {
                if let Err(status) = self.send(&request).await {
                    self.dropped(spans(&request), &status);
                }
                return self.flush(Vec::new(), done).await;
            }
            wait = (wait * 2).min(RETRY.1);
        }
    }

    fn request(&self, spans: Vec<otlp::Span>) -> otlp::ExportRequest {
        let scope =
            otlp::Scope { name: "stevedore".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let scope_spans = vec![otlp::ScopeSpans { scope: Some(scope), spans }];
        let resource = Some(self.resource.clone());
        otlp::ExportRequest { resource_spans: vec![otlp::ResourceSpans { resource, scope_spans }] }
    }

    async fn send(&mut self, request: &otlp::ExportRequest) -> Result<(), Status> {
        let sent = timeout(DEADLINE, self.attempt(request)).await;
        let result = sent.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
        match result {
            Ok(answer) => {
                if std::mem::take(&mut self.warned) {
                    tracing::info!(target = ?self.target, "traces are exported again");
                }
                let refused = answer.partial_success.map_or(0, |p| p.rejected_spans.max(0));
                let refused = u64::try_from(refused).unwrap_or(0).min(spans(request) as u64);
                if refused > 0 {
                    self.metrics.trace_spans_dropped.with(["refused"]).inc_by(refused);
                }
                self.metrics.trace_spans_exported.inc_by(spans(request) as u64 - refused);
                Ok(())
            }
            Err(status) => {
                self.connection = None;
                Err(status)
            }
        }
    }

    async fn attempt(&mut self, request: &otlp::ExportRequest) -> Result<otlp::ExportResponse, Status> {
        let broken = |e: &dyn std::error::Error| Status::unavailable(e.to_string());
        let handle = match &self.connection {
            Some(handle) if !handle.is_closed() => handle.clone(),
            _ => {
                let io = self.target.connect().await.map_err(|e| broken(&e))?;
                let (handle, connection) =
                    http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.map_err(|e| broken(&e))?;
                // It ends when it breaks, or with the last handle.
                tokio::spawn(connection);
                self.connection.insert(handle).clone()
            }
        };
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let mut handle = handle.clone();
            async move {
                handle.ready().await?;
                handle.send_request(request).await
            }
        });
        let origin = http::Uri::from_static("http://collector");
        let mut client = tonic::client::Grpc::with_origin(service, origin);
        client.ready().await.map_err(|e| broken(&e))?;
        let codec = tonic_prost::ProstCodec::<otlp::ExportRequest, otlp::ExportResponse>::default();
        let path = http::uri::PathAndQuery::from_static(otlp::EXPORT);
        Ok(client.unary(Request::new(request.clone()), path, codec).await?.into_inner())
    }

    fn dropped(&mut self, spans: usize, status: &Status) {
        self.metrics.trace_spans_dropped.with(["export_failed"]).inc_by(spans as u64);
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(target = ?self.target, error = %status, "cannot export traces");
        }
    }
}

fn spans(request: &otlp::ExportRequest) -> usize {
    request.resource_spans.iter().flat_map(|r| &r.scope_spans).map(|s| s.spans.len()).sum()
}

/// What OTLP calls retryable, and what this side makes of a broken connection.
fn may_pass(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
            | Code::ResourceExhausted
            | Code::Unknown
    )
}
