//! The client against servers of a few lines, well-behaved and not.

use super::*;
use crate::api::Container;
use k8s_openapi::api::core::v1::HTTPGetAction;
use rstest::rstest;
use serde_json::json;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(20);

fn action(of: serde_json::Value) -> HTTPGetAction {
    serde_json::from_value(of).unwrap()
}

fn container() -> Container {
    serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]})).unwrap()
}

/// A server that answers each request with `answer(path)`; what it was asked comes out beside its port.
async fn server(answer: fn(&str) -> String) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = asked.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = read_head(&mut stream).await;
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            heard.lock().unwrap().push(head);
            // The client may have enough before all is sent.
            let _ = stream.write_all(answer(&path).as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    (port, asked)
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(b) => head.push(b),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

fn to(port: u16, path: &str) -> Get {
    let action = action(json!({"port": port, "path": path}));
    Get::of(&action, &container(), "127.0.0.1", Agent::Probe).unwrap()
}

fn say(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_probe_sends_the_recorded_headers_in_the_recorded_order() {
    let (port, asked) = server(|_| say("200 OK", "", "fine")).await;
    let answer = get(&to(port, "/live?q=1"), PATIENCE).await.unwrap();
    assert_eq!(answer, Answer { status: 200, body: "fine".into() });
    let want = format!(
        "GET /live?q=1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: kube-probe/1.36\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n"
    );
    assert_eq!(*asked.lock().unwrap(), [want]);
}

#[test]
fn headers_of_the_action_replace_the_default_ones_and_empty_ones_remove_them() {
    let action = action(json!({"port": "web", "path": "ready", "httpHeaders": [
        {"name": "Host", "value": "vhost.test"}, {"name": "User-Agent", "value": "custom"},
        {"name": "Accept", "value": ""}, {"name": "X-Probe", "value": "1"}, {"name": "X-Probe", "value": "2"}]}));
    let request = Get::of(&action, &container(), "10.0.0.1", Agent::Probe).unwrap();
    assert_eq!(request.url(), "http://10.0.0.1:8080/ready");
    let headers: Vec<_> =
        request.headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
    assert_eq!(
        headers,
        ["host: vhost.test", "user-agent: custom", "x-probe: 1", "x-probe: 2", "connection: close"]
    );
}

#[test]
fn a_hook_calls_itself_by_another_name_and_takes_gzip() {
    let request = Get::of(&action(json!({"port": 80})), &container(), "10.0.0.1", Agent::Lifecycle).unwrap();
    let header = |n: &str| request.headers.get(n).map(|v| v.to_str().unwrap());
    assert_eq!(header("user-agent"), Some("kube-lifecycle/1.36"));
    assert_eq!((header("accept-encoding"), header("connection")), (Some("gzip"), None));
}

#[rstest]
#[case(json!({"port": "none"}), "strconv.Atoi: parsing \"none\": invalid syntax")]
#[case(json!({"port": 0}), "invalid port number: 0")]
#[case(json!({"port": "70000"}), "invalid port number: 70000")]
#[case(json!({"port": 1, "httpHeaders": [{"name": "X", "value": "a\r\nb: c"}]}), "Get \"http://10.0.0.1:1/\": net/http: invalid header field value for \"X\"")]
#[case(json!({"port": 1, "host": "a b/c"}), "invalid host \"a b/c\"")]
fn an_action_that_makes_no_request_says_why(#[case] of: serde_json::Value, #[case] want: &str) {
    let error = Get::of(&action(of), &container(), "10.0.0.1", Agent::Probe).unwrap_err();
    assert_eq!(error.to_string(), want);
}

#[rstest]
#[case("x y", "/x%20y")]
#[case("/a#frag", "/a")]
#[case("", "/")]
#[case("/ä?b={c}", "/%C3%A4?b=%7Bc%7D")]
fn paths_are_made_fit_for_a_request_line(#[case] given: &str, #[case] want: &str) {
    assert_eq!(to(1, given).path, want);
}

#[rstest]
#[case("http", "fd00::1", "http://[fd00::1]:8080/")]
#[case("HTTPS", "[fd00::1]", "https://[fd00::1]:8080/")]
fn an_ipv6_host_has_brackets_once(#[case] scheme: &str, #[case] host: &str, #[case] want: &str) {
    let action = action(json!({"port": 8080, "scheme": scheme, "host": host}));
    assert_eq!(Get::of(&action, &container(), "", Agent::Probe).unwrap().url(), want);
}

#[tokio::test]
async fn a_redirect_on_the_same_host_is_followed_with_a_referer() {
    let (port, asked) = server(|path| match path {
        "/from" => say("302 Found", "Location: /to?x=1\r\n", ""),
        _ => say("204 No Content", "", ""),
    })
    .await;
    assert_eq!(get(&to(port, "/from"), PATIENCE).await.unwrap().status, 204);
    let asked = asked.lock().unwrap();
    assert!(asked[1].starts_with("GET /to?x=1 HTTP/1.1\r\n"), "{asked:?}");
    assert!(asked[1].contains(&format!("Referer: http://127.0.0.1:{port}/from\r\n")), "{asked:?}");
}

#[tokio::test]
async fn a_redirect_elsewhere_is_not_followed_and_counts_as_success_with_a_warning() {
    let (port, asked) = server(|_| say("302 Found", "Location: http://192.0.2.1/\r\n", "ok")).await;
    let answer = get(&to(port, "/"), PATIENCE).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (302, "ok"));
    assert!(answer.is_success() && answer.redirects_away());
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[rstest]
#[case("/login?next=https://elsewhere.test/", "http://127.0.0.1:8080/login?next=https://elsewhere.test/")]
#[case("at:noon/x", "elsewhere")]
#[case("./at:noon", "http://127.0.0.1:8080/a/at:noon")]
#[case("x?y=../z", "http://127.0.0.1:8080/a/x?y=../z")]
#[case("../x", "http://127.0.0.1:8080/x")]
#[case("../../../x/./y/..", "http://127.0.0.1:8080/x/")]
#[case("/x/../y/.", "http://127.0.0.1:8080/y/")]
#[case("?r=s", "http://127.0.0.1:8080/a/b?r=s")]
#[case("#part", "http://127.0.0.1:8080/a/b?q=1")]
#[case("http://127.0.0.1?z", "http://127.0.0.1:80/?z")]
#[case("HTTPS://127.0.0.1/c/../d", "https://127.0.0.1:443/d")]
#[case("//127.0.0.1:81/x", "http://127.0.0.1:81/x")]
#[case("//127.0.0.2/x", "elsewhere")]
#[case("ftp://elsewhere.test/x", "elsewhere")]
#[case("mailto:x@127.0.0.1", "elsewhere")]
fn a_location_is_read_as_a_reference_to_what_was_asked(#[case] location: &str, #[case] want: &str) {
    let next = to(8080, "/a/b?q=1").redirected(location).unwrap();
    assert_eq!(next.map_or("elsewhere".to_owned(), |next| next.url()), want);
}

#[tokio::test]
async fn an_answer_that_redirects_nowhere_counts_as_it_is() {
    let (port, asked) = server(|_| say("302 Found", "Location: \r\n", "ok")).await;
    let answer = get(&to(port, "/x"), PATIENCE).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (302, "ok"));
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn an_endless_redirect_ends_after_ten_requests() {
    let (port, asked) = server(|_| say("307 Temporary Redirect", "Location: again\r\n", "")).await;
    let error = get(&to(port, "/x"), PATIENCE).await.unwrap_err();
    assert_eq!(error.to_string(), "Get \"/again\": stopped after 10 redirects");
    assert_eq!(asked.lock().unwrap().len(), 10);
}

#[tokio::test]
async fn a_redirect_to_nonsense_is_an_error_that_shows_it() {
    let (port, _) = server(|_| say("301 Moved", "Location: ftp://127.0.0.1/\r\n", "")).await;
    let error = get(&to(port, "/x"), PATIENCE).await.unwrap_err().to_string();
    assert!(error.contains("ftp://127.0.0.1/") && error.contains("unsupported protocol scheme"), "{error}");
}

#[tokio::test]
async fn of_an_endless_body_only_the_first_ten_kilobytes_are_read() {
    let (port, _) = server(|_| format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(4 << 20))).await;
    assert_eq!(get(&to(port, "/"), PATIENCE).await.unwrap().body.len(), BODY_LIMIT);
}

#[tokio::test]
async fn endless_headers_are_refused() {
    let (port, _) =
        server(|_| format!("HTTP/1.1 200 OK\r\n{}", format!("X: {}\r\n", "y".repeat(900)).repeat(400))).await;
    let error = get(&to(port, "/"), PATIENCE).await.unwrap_err().to_string();
    assert!(error.contains("headers exceeded") || error.contains("malformed"), "{error}");
}

#[tokio::test]
async fn what_is_not_http_or_ends_at_once_is_an_error() {
    let (port, _) = server(|_| "SSH-2.0-x\r\n\r\n".into()).await;
    let error = get(&to(port, "/"), PATIENCE).await.unwrap_err().to_string();
    assert!(error.contains("malformed HTTP response"), "{error}");
    let (port, _) = server(|_| String::new()).await;
    let error = get(&to(port, "/"), PATIENCE).await.unwrap_err().to_string();
    assert_eq!(error, format!("Get \"http://127.0.0.1:{port}/\": EOF"));
}

#[tokio::test]
async fn a_target_that_resets_is_an_error_that_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_head(&mut stream).await;
        stream.set_zero_linger().unwrap();
    });
    let error = get(&to(port, "/"), PATIENCE).await.unwrap_err().to_string();
    assert!(error.ends_with("read: connection reset by peer"), "{error}");
}

/// Time is paused once the connection is made: it moves when both sides wait.
#[rstest]
#[case("", "Client.Timeout exceeded while awaiting headers")]
#[case("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nha", "while reading body")]
#[tokio::test]
async fn a_target_that_hangs_is_given_up_at_the_deadline(#[case] says: &'static str, #[case] want: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_head(&mut stream).await;
        stream.write_all(says.as_bytes()).await.unwrap();
        // Until the client has gone.
        let _ = stream.read_u8().await;
    });
    let error = get(&to(port, "/"), Duration::from_millis(300)).await.unwrap_err();
    assert!(error.to_string().contains(want), "{error}");
    server.await.unwrap();
}

/// A TLS server's side, with a certificate for another name.
fn acceptor(protocols: &[&str]) -> tokio_rustls::TlsAcceptor {
    let made = rcgen::generate_simple_self_signed(["elsewhere".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn a_server_that_speaks_only_http2_is_asked_in_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = heard.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let stream = acceptor(&["h2"]).accept(stream).await.unwrap();
            let hears = hears.clone();
            let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
                let mut answer = Response::new(Full::new(Bytes::from("x".repeat(100_000))));
                if request.uri().path() == "/from" {
                    *answer.status_mut() = StatusCode::FOUND;
                    answer.headers_mut().insert(header::LOCATION, HeaderValue::from_static("to"));
                }
                hears.lock().unwrap().push((request.uri().to_string(), request.headers().clone()));
                async move { Ok::<_, std::convert::Infallible>(answer) }
            });
            let server = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    let request = Get { scheme: Scheme::Https, ..to(port, "/from") };
    let answer = get(&request, PATIENCE).await.unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, BODY_LIMIT));
    let heard = heard.lock().unwrap();
    let uris: Vec<_> = heard.iter().map(|(uri, _)| uri.clone()).collect();
    assert_eq!(uris, ["from", "to"].map(|path| format!("https://127.0.0.1:{port}/{path}")));
    let headers = &heard[0].1;
    assert_eq!(headers["user-agent"], "kube-probe/1.36");
    assert_eq!((headers.get("host"), headers.get("connection")), (None, None));
}

#[tokio::test]
async fn https_is_asked_whoever_answers_and_a_plain_server_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor(&[]).accept(stream).await.unwrap();
        let mut head = [0; 4];
        stream.read_exact(&mut head).await.unwrap();
        stream.write_all(say("200 OK", "", "secret").as_bytes()).await.unwrap();
        let _ = stream.shutdown().await;
    });
    let https = |port| Get { scheme: Scheme::Https, ..to(port, "/") };
    assert_eq!(get(&https(port), PATIENCE).await.unwrap().body, "secret");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let _ = stream.read_u8().await;
    });
    let error = get(&https(port), PATIENCE).await.unwrap_err();
    assert!(matches!(error, GetError::Tls { plain: true, .. }), "{error:?}");
}
