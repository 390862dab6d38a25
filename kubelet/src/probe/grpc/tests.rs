//! The check against a real gRPC server of a few lines.

use super::*;
use http::Response;
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rstest::rstest;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

const PATIENCE: Duration = Duration::from_secs(20);

fn action(port: u16, service: &str) -> GRPCAction {
    serde_json::from_value(serde_json::json!({"port": port, "service": service})).unwrap()
}

type Frames = Vec<Result<Frame<Bytes>, Infallible>>;

/// What the server sends: a body with a status in its trailers.
fn trailing(body: &'static [u8], code: u32, message: &str) -> Frames {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.into());
    trailers.insert("grpc-message", message.parse().unwrap());
    vec![Ok(Frame::data(Bytes::from_static(body))), Ok(Frame::trailers(trailers))]
}

/// Serves one connection; what was asked (path, user agent, message) comes out.
async fn server(answer: fn() -> Frames) -> (u16, Arc<Mutex<Vec<(String, String, Bytes)>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = asked.clone();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service_fn(move |request: Request<Incoming>| {
            let heard = heard.clone();
            async move {
                let path = request.uri().path().to_owned();
                let agent = request.headers()["user-agent"].to_str().unwrap().to_owned();
                let message = request.into_body().collect().await.unwrap().to_bytes();
                heard.lock().unwrap().push((path, agent, message));
                let body = StreamBody::new(futures::stream::iter(answer()));
                Ok::<_, Infallible>(Response::new(body))
            }
        });
        let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = http2.serve_connection(TokioIo::new(stream), service).await;
    });
    (port, asked)
}

#[tokio::test]
async fn a_serving_service_is_well_and_is_asked_by_its_name() {
    let (port, asked) = server(|| trailing(b"\0\0\0\0\x02\x08\x01", 0, "")).await;
    assert_eq!(check("127.0.0.1", &action(port, "x.y"), PATIENCE).await, Answer::Success);
    let want =
        (PATH.to_owned(), "kube-probe/1.36".to_owned(), Bytes::from_static(b"\0\0\0\0\x05\x0a\x03x.y"));
    assert_eq!(*asked.lock().unwrap(), [want]);
}

#[rstest]
#[case(|| trailing(b"\0\0\0\0\x02\x08\x02", 0, ""), "service unhealthy (responded with \"NOT_SERVING\")")]
#[case(|| trailing(b"\0\0\0\0\0", 0, ""), "service unhealthy (responded with \"UNKNOWN\")")]
#[case(|| trailing(b"", 5, "unknown%20service"),
    "error: health rpc probe failed: rpc error: code = NotFound desc = unknown service")]
#[case(|| trailing(b"", 12, "no"),
    "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): no")]
#[case(|| trailing(b"\0\0\0\0\x63\x08", 0, ""),
    "error: health rpc probe failed: rpc error: code = Internal desc = the answer of the health check cannot be read")]
#[case(|| trailing(&[0; 9000], 0, ""),
    "error: health rpc probe failed: rpc error: code = Internal desc = the answer of the health check is too long")]
#[tokio::test]
async fn anything_else_is_a_failure_in_upstreams_words(#[case] answer: fn() -> Frames, #[case] want: &str) {
    let (port, _) = server(answer).await;
    let got = check("127.0.0.1", &action(port, ""), PATIENCE).await;
    assert_eq!(got, Answer::Failure(want.to_owned()));
}

#[tokio::test(start_paused = true)]
async fn nobody_there_is_waited_for_until_the_time_is_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let got = check("127.0.0.1", &action(port, ""), Duration::from_secs(1)).await;
    let want = format!(
        "timeout: failed to connect service \"127.0.0.1:{port}\" within 1s: context deadline exceeded"
    );
    assert_eq!(got, Answer::Failure(want));
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let got = check("127.0.0.1", &action(port, ""), Duration::from_millis(200)).await;
    assert_eq!(got, Answer::Failure("timeout: health rpc did not complete within 0s".to_owned()));
    drop(listener);
}

#[tokio::test]
async fn a_server_that_is_no_grpc_server_is_a_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    });
    let Answer::Failure(text) = check("127.0.0.1", &action(port, ""), PATIENCE).await else { panic!() };
    assert!(text.starts_with("error: health rpc probe failed: rpc error: code = Unavailable"), "{text}");
}
