//! Tracing as it is configured: the agent's process, a collector of ours on a port, no runtime but the fake.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bytes::{Buf, Bytes};
use cri::fake::FakeRuntime;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kubelet::trace::otlp;
use node_e2e::manifest::{FOREVER, pod, sh};
use node_e2e::{Node, Options, http};
use prost::Message;
use serde_json::json;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

type Spans = Arc<Mutex<Vec<otlp::Span>>>;

/// Takes spans on a port of the loopback.
async fn collector() -> (u16, Spans) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, spans) = (listener.local_addr().unwrap().port(), Spans::default());
    let taken = spans.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let taken = taken.clone();
            let service = service_fn(move |request| answer(request, taken.clone()));
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
        }
    });
    (port, spans)
}

async fn answer(
    request: Request<Incoming>,
    taken: Spans,
) -> Result<Response<impl Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let mut body = request.into_body().collect().await.unwrap().to_bytes();
    // A gRPC message: a flag and its length, then itself.
    body.advance(5);
    let request = otlp::ExportRequest::decode(body).unwrap();
    let spans = request.resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans);
    taken.lock().unwrap().extend(spans);
    let trailers = ::http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), 0.into())]);
    let frames = [Frame::data(Bytes::from_static(&[0; 5])), Frame::trailers(trailers)];
    let body = StreamBody::new(futures::stream::iter(frames.map(Ok::<_, Infallible>)));
    Ok(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_tracing_says_is_done_and_what_is_queued_is_sent_when_the_agent_ends() {
    if !nix::unistd::geteuid().is_root() {
        node_e2e::skip("needs root: the agent makes cgroups");
        return;
    }
    let (port, spans) = collector().await;
    let fake = FakeRuntime::builder().any_image().build();
    let dir = tempfile::tempdir().unwrap();
    let served = fake.serve(dir.path().join("fake.sock")).await.unwrap();
    let tracing = json!({ "endpoint": format!("127.0.0.1:{port}"), "samplingRatePerMillion": 1_000_000 });
    let options = Options {
        endpoint: Some(served.path().to_path_buf()),
        fake: true,
        config: Some(json!({ "tracing": tracing })),
        ..Options::default()
    };
    let Some(mut node) = Node::start_with(options).await else { return };
    node.put("traced", pod("traced", [sh("c", FOREVER)]));
    node.wait_ready("traced").await;
    let page = http::get(node.read_only, "/metrics").await.unwrap().body;
    assert!(page.contains(r#"stevedore_pod_start_phase_duration_seconds_count{phase="ready"} 1"#), "{page}");
    // Well before the batch is due.
    node.stop().await;
    {
        let spans = spans.lock().unwrap();
        let root = spans.iter().find(|s| s.name == "startPod").expect("the trace of the start");
        let below = spans.iter().filter(|s| s.parent_span_id == root.span_id).count();
        assert!(below > 8 && spans.iter().all(|s| s.trace_id == root.trace_id), "{below} below it");
        assert!(spans.iter().any(|s| s.name == "runtime.v1.RuntimeService/StartContainer"));
    }
    node.launch().await;
    node.wait_healthy().await;
    node.finish_on_fake(&fake).await;
}
