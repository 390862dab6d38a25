//! Traces: a collector of ours is given the tree of spans of a pod's start.

use crate::support::{Node, SECOND, pass, pod};
use bytes::{Buf, Bytes};
use cri::fake::{FakeRuntime, Pull};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kubelet::metrics::Metrics;
use kubelet::trace::{ExportConfig, Flush, Target, Tracer, otlp};
use prost::Message;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::UnixListener;

/// A collector on a socket in `node`'s directory.
#[derive(Clone, Default)]
struct Collector {
    requests: Arc<Mutex<Vec<otlp::ExportRequest>>>,
    /// The gRPC status of the next answers, 0 when it has run out.
    refuse: Arc<AtomicU32>,
}

impl Collector {
    fn listen(&self, socket: &PathBuf) {
        let (listener, this) = (UnixListener::bind(socket).unwrap(), self.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let this = this.clone();
                let service = service_fn(move |request| this.clone().answer(request));
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
    }

    async fn answer(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
        assert_eq!(request.uri().path(), otlp::EXPORT);
        let mut body = request.into_body().collect().await.unwrap().to_bytes();
        // A gRPC message: not compressed, its length, itself.
        assert_eq!(body.get_u8(), 0);
        assert_eq!(body.get_u32() as usize, body.len());
        let code = self.refuse.swap(0, Ordering::Relaxed);
        if code == 0 {
            self.requests.lock().unwrap().push(otlp::ExportRequest::decode(body).unwrap());
        }
        let trailers = http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.into())]);
        let frames = [Frame::data(Bytes::from_static(&[0; 5])), Frame::trailers(trailers)];
        let frames = frames.into_iter().skip(usize::from(code != 0)).map(Ok::<_, Infallible>);
        let body = StreamBody::new(futures::stream::iter(frames));
        Ok(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
    }

    fn spans(&self) -> Vec<otlp::Span> {
        let requests = self.requests.lock().unwrap();
        let resources = requests.iter().flat_map(|r| r.resource_spans.clone());
        resources.flat_map(|r| r.scope_spans).flat_map(|s| s.spans).collect()
    }
}

/// A node whose pods are traced, and the collector of it.
fn traced(node: &mut Node, per_million: u32) -> (Collector, Flush) {
    let collector = Collector::default();
    let socket = node.path("collector");
    collector.listen(&socket);
    let target = Target::Unix(socket.to_string_lossy().into_owned());
    let config = ExportConfig { target, per_million, node: "node".to_owned() };
    let (tracer, flush) = Tracer::start(config, &Metrics::default());
    node.settings.tracer = tracer;
    (collector, flush)
}

/// The attribute `key` of a span.
fn attribute<'a>(attributes: &'a [otlp::KeyValue], key: &str) -> &'a str {
    attributes.iter().find(|a| a.key == key).and_then(otlp::KeyValue::as_text).unwrap_or_default()
}

/// `parent > child` by name, each once.
fn tree(spans: &[otlp::Span]) -> std::collections::BTreeSet<String> {
    let named = |id: &[u8]| spans.iter().find(|s| s.span_id == id).map_or("-", |s| &s.name);
    spans.iter().map(|s| format!("{} > {}", named(&s.parent_span_id), s.name)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_start_is_one_trace_from_its_source_event_to_ready_with_every_call() {
    let mut node = Node::new();
    let (collector, flush) = traced(&mut node, 1_000_000);
    let agent = node.start_synced(&[pod("u1", &["a", "b"])]).await;
    agent.until_ready("u1").await;
    flush.within(60 * SECOND).await;
    let spans = collector.spans();
    let tree = tree(&spans);
    for want in [
        "- > startPod",
        "startPod > admission",
        "startPod > cgroup",
        "startPod > volumes",
        "startPod > sandbox",
        "sandbox > runtime.v1.RuntimeService/RunPodSandbox",
        "startPod > image",
        "image > runtime.v1.ImageService/ImageStatus",
        "startPod > create",
        "create > runtime.v1.RuntimeService/CreateContainer",
        "startPod > start",
        "start > runtime.v1.RuntimeService/StartContainer",
        "startPod > runtime.v1.RuntimeService/ListContainers",
        "startPod > observe",
        "startPod > ready",
    ] {
        assert!(tree.contains(want), "{want} in {tree:#?}");
    }
    let root = spans.iter().find(|s| s.name == "startPod").unwrap();
    assert_eq!((root.trace_id.len(), root.span_id.len()), (16, 8));
    assert_eq!(attribute(&root.attributes, "k8s.pod.uid"), "u1");
    assert_eq!(attribute(&root.attributes, "k8s.pod.name"), "u1");
    assert_eq!(attribute(&root.attributes, "k8s.namespace.name"), "ns");
    for s in &spans {
        assert_eq!(s.trace_id, root.trace_id, "{}", s.name);
        assert!(s.start_time_unix_nano <= s.end_time_unix_nano && s.status.is_none(), "{s:?}");
    }
    // Each of the two containers has its own, and every change of the runtime is in the trace.
    let of = |name: &str| spans.iter().filter(|s| s.name == name).count();
    assert_eq!((of("startPod"), of("image"), of("create"), of("start"), of("sandbox")), (1, 2, 2, 2, 1));
    let calls = spans.iter().filter(|s| s.kind == otlp::CLIENT);
    for change in node.fake.changes() {
        assert!(calls.clone().any(|s| s.name.ends_with(change.method)), "{}", change.method);
    }
    let requests = collector.requests.lock().unwrap();
    let resource = requests[0].resource_spans[0].resource.clone().unwrap();
    assert_eq!(attribute(&resource.attributes, "service.name"), "kubelet");
    assert_eq!(attribute(&resource.attributes, "k8s.node.name"), "node");
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_fails_is_an_error_in_the_trace() {
    let mut node = Node::with(FakeRuntime::builder());
    node.fake.on_pull("reg.test/app:1", Pull::fails("the registry is on fire"));
    let (collector, flush) = traced(&mut node, 1_000_000);
    let agent = node.start_synced(&[pod("u1", &["main"])]).await;
    agent.until("it failed", || node.count("PullImage") >= 1).await;
    pass(SECOND / 2).await;
    agent.gone("u1").await;
    agent.until_gone("u1").await;
    flush.within(60 * SECOND).await;
    let spans = collector.spans();
    let error = |name: &str| {
        let status = spans.iter().find(|s| s.name == name).and_then(|s| s.status.clone());
        status.map(|s| (s.code, s.message)).unwrap_or_else(|| panic!("no error of {name} in {spans:#?}"))
    };
    assert_eq!(error("runtime.v1.ImageService/PullImage"), (otlp::ERROR, "the registry is on fire".into()));
    assert_eq!(error("image").0, otlp::ERROR);
    assert!(error("image").1.contains("the registry is on fire"));
    assert_eq!(error("startPod").0, otlp::ERROR);
    assert!(tree(&spans).contains("image > runtime.v1.ImageService/PullImage"), "{:#?}", tree(&spans));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_sampled_leaves_no_span() {
    let mut node = Node::new();
    let (collector, flush) = traced(&mut node, 0);
    let agent = node.start_synced(&[pod("u1", &["a"])]).await;
    agent.until_ready("u1").await;
    flush.within(60 * SECOND).await;
    assert_eq!(collector.spans(), []);
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_is_busy_is_asked_again() {
    let mut node = Node::new();
    let (collector, _flush) = traced(&mut node, 1_000_000);
    // UNAVAILABLE, once.
    collector.refuse.store(14, Ordering::Relaxed);
    let agent = node.start_synced(&[pod("u1", &["a"])]).await;
    agent.until_ready("u1").await;
    agent.until("the spans came", || collector.spans().iter().any(|s| s.name == "startPod")).await;
    assert_eq!(collector.refuse.load(Ordering::Relaxed), 0);
}
