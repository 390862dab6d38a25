//! Every request that was put to the stock kubelet, put to these servers, and the answers compared.

use super::*;
use serde_json::Value;
use std::collections::BTreeSet;

fn golden(file: &str) -> Option<Value> {
    let root = std::env::var_os("GOLDEN_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden"), PathBuf::from);
    match std::fs::read(root.join(file)) {
        Ok(data) => Some(serde_json::from_slice(&data).unwrap()),
        Err(e) => {
            println!("SKIPPED: no recorded behaviour at {}: {e}", root.join(file).display());
            None
        }
    }
}

/// What upstream serves and this agent answers 501: kept here so that serving one of them, or losing one, is noticed.
const MISSING: [&str; 6] =
    ["GET /logs/", "GET /flagz", "GET /statusz", "PUT /debug/flags/v", "POST /run/", "GET /debug/pprof/"];
/// The same, for every method.
const MISSING_TREES: [&str; 4] = ["/exec/", "/attach/", "/portForward/", "/logs/"];

fn is_missing(method: &str, path: &str) -> bool {
    let path = path.split('?').next().unwrap();
    let tree = |known: &&str| known.ends_with('/') && path.starts_with(*known) && path.len() > known.len();
    MISSING_TREES.iter().any(|t| path.starts_with(t))
        || MISSING.iter().any(|known| {
            let (m, p) = known.split_once(' ').unwrap();
            m == method && (p == path || tree(&p))
        })
}

/// Compares an answer with the recorded one; gives what differs.
fn differs(want: &Value, got: &client::Answer) -> Vec<String> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, want: Option<&str>, got: Option<&str>| {
        if want != got {
            differences.push(format!("{what}: recorded {want:?}, got {got:?}"));
        }
    };
    let status = want["status"].to_string();
    compare("status", Some(&status), Some(&got.status.to_string()));
    compare("Content-Type", want["contentType"].as_str(), got.header("content-type"));
    for header in ["X-Content-Type-Options", "Allow", "Location"] {
        compare(header, want[header].as_str(), got.header(header));
    }
    // Whether a body is long enough to be chunked depends on what is on the node.
    let own_length = ["application/json", crate::metrics::CONTENT_TYPE];
    if !own_length.iter().any(|t| got.header("content-type") == Some(t)) {
        compare("Transfer-Encoding", want["Transfer-Encoding"].as_str(), got.header("transfer-encoding"));
    }
    if let Some(body) = want["body"].as_str() {
        let got = got.body.replace("2026-01-01T00:00:01.000000000Z", "TS");
        compare("body", Some(body), Some(&got));
    }
    differences
}

/// Puts every recorded request of `credential` to `client` and gives how many were compared.
async fn replay(
    requests: &Value,
    credential: &str,
    connect: impl AsyncFn() -> Client,
    missing: impl Fn(&str, &str) -> bool,
) -> usize {
    let mut failures = Vec::new();
    let (mut compared, mut seen) = (0, BTreeSet::new());
    for request in requests.as_array().unwrap() {
        let Some(want) = request.get(credential) else { continue };
        let method = request.get("method").map_or("GET", |m| m.as_str().unwrap());
        let path = request["path"].as_str().unwrap();
        let got = connect().await.ask(method, path).await;
        compared += 1;
        let found = if missing(method, path) {
            seen.insert(format!("{method} {path}"));
            let named = got.status == 501 && got.body.starts_with("not implemented by this node agent: ");
            if named { Vec::new() } else { vec![format!("expected 501, got {} {:?}", got.status, got.body)] }
        } else {
            differs(want, &got)
        };
        failures.extend(found.into_iter().map(|f| format!("{method} {path}: {f}")));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    println!("{compared} compared, of which {} are not implemented: {seen:?}", seen.len());
    compared
}

#[tokio::test]
async fn the_health_port_answers_as_recorded() {
    let Some(requests) = golden("kubelet/endpoints_10248_healthz.json") else { return };
    let running = Running::new().await;
    let connect = async || Client::plain(running.handle.healthz.unwrap()).await;
    assert!(replay(&requests, "none", connect, |_, _| false).await > 5);
}

#[tokio::test]
async fn the_read_only_port_answers_as_recorded() {
    let Some(requests) = golden("kubelet/endpoints_10255_readonly.json") else { return };
    let running = Running::new().await;
    let connect = async || Client::plain(running.handle.read_only.unwrap()).await;
    // What is switched off there is refused before it can be missing.
    let missing = |method: &str, path: &str| {
        is_missing(method, path) && (path.starts_with("/stats") || path.starts_with("/metrics"))
    };
    assert!(replay(&requests, "none", connect, missing).await > 40);
}

#[tokio::test]
async fn the_secure_port_answers_as_recorded_to_whom_may_do_everything() {
    let Some(requests) = golden("kubelet/endpoints_10250.json") else { return };
    let running = Running::new().await;
    let connect = async || running.secure().await;
    let missing = |method: &str, path: &str| {
        // Refused by upstream for other reasons, which apply here too.
        let refused = ["/debug/pprof/", "/stats/"].contains(&path);
        !refused && is_missing(method, path)
    };
    assert!(replay(&requests, "admin", connect, missing).await > 70);
}

#[tokio::test]
async fn the_secure_port_answers_as_recorded_to_whom_it_does_not_know() {
    let Some(requests) = golden("kubelet/endpoints_10250.json") else { return };
    let running = Running::with(|c| c.secure.as_mut().unwrap().anonymous = false).await;
    let connect = async || running.secure().await;
    assert!(replay(&requests, "none", connect, |_, _| false).await > 70);
}

#[tokio::test]
async fn pods_are_shown_as_recorded() {
    let running = Running::new().await;
    for (file, path) in [("kubelet/pods.json", "/pods"), ("kubelet/runningpods.json", "/runningpods/")] {
        let Some(recorded) = golden(file) else { return };
        // Times were normalised; any will do.
        let text = recorded.to_string().replace("\"TS\"", "\"2026-01-01T00:00:00Z\"");
        // The types leave out an absent `lastProbeTime`, where upstream writes null: the same to every decoder.
        let want: Value = serde_json::from_str(&text.replace("\"lastProbeTime\":null,", "")).unwrap();
        let pods = want["items"].as_array().unwrap().iter();
        *running.node.pods.lock().unwrap() =
            pods.map(|p| Arc::new(serde_json::from_value(p.clone()).unwrap())).collect();
        let answer = running.secure().await.get(path).await;
        assert_eq!(serde_json::from_str::<Value>(&answer.body).unwrap(), want, "{path}");
        assert!(answer.body.ends_with("}\n"));
    }
    running.node.pods.lock().unwrap().clear();
    let none = running.secure().await.get("/pods").await.body;
    assert_eq!(none, "{\"kind\":\"PodList\",\"apiVersion\":\"v1\",\"metadata\":{},\"items\":null}\n");
}

#[tokio::test]
async fn the_configuration_and_the_metrics_are_shown() {
    let running = Running::new().await;
    let mut client = running.secure().await;
    let config: Value = serde_json::from_str(&client.get("/configz").await.body).unwrap();
    assert_eq!(config["kubeletconfig"]["address"], "0.0.0.0");
    running.metrics.running_pods.set(3.0);
    client.get("/nonexistent").await;
    let page = client.get("/metrics").await;
    assert_eq!(page.header("content-type"), Some(crate::metrics::CONTENT_TYPE));
    assert!(page.body.contains("\nkubelet_running_pods 3\n"), "{}", page.body);
    let label = |method, path| {
        format!(
            "kubelet_http_requests_total{{long_running=\"false\",method=\"{method}\",path=\"{path}\",server_type=\"readwrite\"}} 1\n"
        )
    };
    for path in ["configz", "other", "metrics"] {
        assert!(page.body.contains(&label("GET", path)), "{path} in {}", page.body);
    }
    let slis = client.get("/metrics/slis").await.body;
    assert!(slis.contains("process_start_time_seconds 1."), "{slis}");
}

#[tokio::test]
async fn an_unhealthy_loop_shows_on_10250_and_not_on_10248() {
    let running = Running::new().await;
    *running.node.health.lock().unwrap() = Err("world has not turned for 5m".into());
    let mut secure = running.secure().await;
    let all = secure.get("/healthz").await;
    assert_eq!(all.status, 500);
    assert_eq!(
        all.body,
        "[+]ping ok\n[+]log ok\n[-]syncloop failed: reason withheld\nhealthz check failed\n"
    );
    let one = secure.get("/healthz/syncloop").await;
    assert_eq!(
        (one.status, one.body.as_str()),
        (500, "internal server error: world has not turned for 5m\n")
    );
    assert_eq!(secure.get("/healthz?exclude=syncloop").await.status, 200);
    let mut health = Client::plain(running.handle.healthz.unwrap()).await;
    assert_eq!(health.get("/healthz").await.status, 200);
    assert_eq!(health.get("/healthz?verbose").await.body, "[+]ping ok\nhealthz check passed\n");
}

#[tokio::test]
async fn a_checkpoint_is_answered_with_its_place_and_takes_the_last_timeout() {
    let running = Running::new().await;
    let mut client = running.secure().await;
    let taken = client.ask("POST", "/checkpoint/demo/facts-a/c2").await;
    assert_eq!((taken.status, taken.header("content-type")), (200, Some("application/json")));
    assert_eq!(taken.body, "{\"items\":[\"/var/lib/kubelet/checkpoints/checkpoint.tar\"]}");
    client.ask("POST", "/checkpoint/demo/facts-a/c2?timeout=5&timeout=-7").await;
    let bad = client.ask("POST", "/checkpoint/demo/facts-a/c2?timeout=soon").await;
    assert_eq!((bad.status, bad.body.as_str()), (404, "cannot parse value of timeout parameter"));
    assert_eq!(*running.node.checkpoints.lock().unwrap(), [("c2".to_owned(), 0), ("c2".to_owned(), -7)]);
    let off = Running::with(|c| c.secure.as_mut().unwrap().checkpoints = false).await;
    let unknown = off.secure().await.ask("POST", "/checkpoint/demo/facts-a/c2").await;
    assert_eq!((unknown.status, unknown.body.as_str()), (404, "404 page not found\n"));
}
