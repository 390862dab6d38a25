//! From a request to its response: route, authenticate, ask the node, count.

use super::auth::{Door, Peer};
use super::body::Body;
use super::query::Query;
use super::route::{self, Endpoint, Site, Way};
use super::{NodeView, checkpoint, health, logs, pods};
use crate::metrics::{self, Metrics};
use crate::stats::{Stats, Summary};
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, X_CONTENT_TYPE_OPTIONS};
use http::{Method, Request, Response, StatusCode};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

const TEXT: &str = "text/plain; charset=utf-8";
/// How large the pieces of `/metrics` are made.
const METRICS_PIECE: usize = 8 * 1024;
/// How old numbers may be that are shown: as long as upstream keeps them. However many ask, they are read so often.
const NUMBERS_AGE: Duration = Duration::from_secs(10);

/// One server's answers.
pub struct Answerer {
    pub site: Site,
    /// The newest counts, also for connections that are open.
    pub door: watch::Receiver<Door>,
    pub node: Arc<dyn NodeView>,
    pub metrics: Metrics,
    pub logs: Arc<logs::Logs>,
}

impl Answerer {
    /// Answers one request of `peer`. The request's body is not read.
    pub async fn answer<B>(&self, request: Request<B>, peer: &Peer) -> Response<Body> {
        let (method, uri) = (request.method(), request.uri());
        let Some(way) = route::way(self.site, method, uri.path(), uri.query()) else {
            return plain(StatusCode::BAD_REQUEST, "400 Bad Request");
        };
        let counted = self.count(method, route::label(uri.path(), &way));
        let door = self.door.borrow().clone();
        let response = if !way.is_public() && !door.admits(peer) {
            plain(StatusCode::UNAUTHORIZED, "Unauthorized")
        } else {
            self.go(way, &Query::parse(uri.query().unwrap_or_default())).await
        };
        match counted {
            Some(counted) => response.map(|body| body.guarded(counted)),
            None => response,
        }
    }

    async fn go(&self, way: Way, query: &Query) -> Response<Body> {
        match way {
            Way::Unknown => go_error(StatusCode::NOT_FOUND, "404 page not found"),
            Way::Redirect(to) => redirect(&to),
            Way::Nothing => plain(StatusCode::NOT_FOUND, "404: Page Not Found"),
            Way::Method(allow) => {
                let refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
                with(refusal, ALLOW, HeaderValue::from_static(allow))
            }
            Way::NotPut => {
                let refusal = respond(StatusCode::NOT_ACCEPTABLE, "text/plain", "unsupported http method\n");
                nosniff(refusal)
            }
            Way::Disabled(text) => go_error(StatusCode::METHOD_NOT_ALLOWED, text),
            Way::Missing(what) => {
                plain(StatusCode::NOT_IMPLEMENTED, format!("not implemented by this node agent: {what}\n"))
            }
            Way::To(endpoint) => self.serve(endpoint, query).await,
        }
    }

    async fn serve(&self, endpoint: Endpoint, query: &Query) -> Response<Body> {
        match endpoint {
            Endpoint::Health => health::all(&self.checks(), query),
            Endpoint::Check(name) => {
                let checks = self.checks();
                health::one(checks.iter().find(|(n, _)| *n == name).map_or(&Ok(()), |(_, found)| found))
            }
            Endpoint::Pods => json(Body::pieces(pods::pod_list(self.node.pods()))),
            Endpoint::RunningPods => match self.node.running_pods().await {
                Ok(running) => json(Body::pieces(pods::pod_list(running))),
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error),
            },
            Endpoint::Metrics => {
                let pieces = self.metrics.registry().chunks(METRICS_PIECE).map(Bytes::from);
                exposition(Body::pieces(pieces))
            }
            Endpoint::Probes => {
                let pieces = self.metrics.probes.registry().chunks(METRICS_PIECE).map(Bytes::from);
                exposition(Body::pieces(pieces))
            }
            Endpoint::Slis => exposition(Body::whole(self.slis())),
            Endpoint::Cadvisor | Endpoint::Resource | Endpoint::Summary => match self.node.stats() {
                Some(stats) => numbers(&stats, &endpoint, query).await,
                None => {
                    plain(StatusCode::SERVICE_UNAVAILABLE, "the container runtime has not answered yet\n")
                }
            },
            Endpoint::Configz => {
                let config = serde_json::json!({ "kubeletconfig": self.node.configz() });
                nosniff(json(Body::pieces(std::iter::once(config.to_string().into()))))
            }
            Endpoint::ContainerLogs { namespace, pod, container } => {
                self.logs.serve(&*self.node, [&namespace, &pod, &container], query).await
            }
            Endpoint::Checkpoint { namespace, pod, container } => {
                match checkpoint::take(&*self.node, [&namespace, &pod, &container], query).await {
                    Ok(items) => json(Body::whole(items)),
                    Err((status, why)) => plain(status, why),
                }
            }
        }
    }

    /// What `/healthz` checks here: on 10248 only that somebody answers. Nothing of the agent's own logging can hang
    /// while it still answers requests, so `log` is always well.
    fn checks(&self) -> Vec<health::Check> {
        match self.site {
            Site::Healthz => vec![("ping", Ok(()))],
            _ => vec![("ping", Ok(())), ("log", Ok(())), ("syncloop", self.node.healthy())],
        }
    }

    /// The only thing upstream shows of its own service levels where no component check is registered.
    fn slis(&self) -> String {
        let mut w = metrics::Writer::default();
        if let Some(start) = metrics::Process::new("/proc").start_time() {
            let (name, help) =
                ("process_start_time_seconds", "Start of the agent, in seconds since the epoch.");
            w.family(name, help, metrics::Kind::Gauge);
            w.sample(name, "", &[], start);
        }
        w.take()
    }

    /// Counts a request until what it gives is dropped; the health port is not counted, as with upstream.
    fn count(&self, method: &Method, path: &'static str) -> Option<Counted> {
        let server_type = match self.site {
            Site::Healthz => return None,
            Site::Secure(_) => "readwrite",
            Site::ReadOnly => "readonly",
        };
        let long_running =
            if matches!(path, "exec" | "attach" | "portForward" | "debug") { "true" } else { "false" };
        const METHODS: [&str; 7] = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"];
        let method = METHODS.into_iter().find(|known| *known == method.as_str()).unwrap_or("other");
        let labels = [long_running, method, path, server_type];
        self.metrics.http_requests.with(labels).inc();
        let inflight = self.metrics.http_inflight.with(labels);
        inflight.add(1.0);
        Some(Counted { inflight, took: self.metrics.http_duration.with(labels), since: Instant::now() })
    }
}

/// A request being served.
struct Counted {
    inflight: metrics::Gauge,
    took: metrics::Histogram,
    since: Instant,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.inflight.add(-1.0);
        self.took.observe_duration(self.since.elapsed());
    }
}

/// The pages that show what is used.
async fn numbers(stats: &Stats, endpoint: &Endpoint, query: &Query) -> Response<Body> {
    match endpoint {
        Endpoint::Cadvisor => exposition(Body::pieces(stats.cadvisor(NUMBERS_AGE).await)),
        Endpoint::Resource => exposition(Body::whole(stats.resource(NUMBERS_AGE).await)),
        _ => {
            // As upstream reads it: once, and nothing but this word.
            let only = query.all("only_cpu_and_memory").eq(["true"]);
            let summary =
                if only { stats.cpu_and_memory(NUMBERS_AGE).await } else { stats.summary(NUMBERS_AGE).await };
            json(Body::pieces(summary_pieces(summary)))
        }
    }
}

/// The summary as JSON, a pod at a time.
fn summary_pieces(summary: Arc<Summary>) -> impl Iterator<Item = Bytes> + Send + 'static {
    let text = |value: serde_json::Result<Vec<u8>>| {
        // Its maps have names for keys and its numbers are finite, so this does not happen; the rest is shown all the same.
        value.unwrap_or_else(|_| b"null".to_vec())
    };
    let head =
        [b"{\"node\":".to_vec(), text(serde_json::to_vec(&summary.node)), b",\"pods\":[".to_vec()].concat();
    let pods = (0..summary.pods.len()).map(move |at| {
        let comma: &[u8] = if at == 0 { b"" } else { b"," };
        Bytes::from([comma, &text(serde_json::to_vec(&summary.pods[at]))].concat())
    });
    std::iter::once(Bytes::from(head)).chain(pods).chain(std::iter::once(Bytes::from_static(b"]}\n")))
}

/// A text as go-restful writes one.
pub fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    respond(status, TEXT, text)
}

/// An error as Go's own HTTP server writes one: with a line feed, and not to be sniffed.
pub fn go_error(status: StatusCode, text: &str) -> Response<Body> {
    nosniff(plain(status, format!("{text}\n")))
}

/// Tells browsers not to guess the content's type.
pub fn nosniff(response: Response<Body>) -> Response<Body> {
    with(response, X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))
}

fn respond(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::whole(text));
    *response.status_mut() = status;
    with(response, CONTENT_TYPE, HeaderValue::from_static(content_type))
}

fn json(body: Body) -> Response<Body> {
    with(Response::new(body), CONTENT_TYPE, HeaderValue::from_static("application/json"))
}

fn exposition(body: Body) -> Response<Body> {
    with(Response::new(body), CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE))
}

fn redirect(to: &str) -> Response<Body> {
    match HeaderValue::from_str(to) {
        Ok(to) => with(respond(StatusCode::TEMPORARY_REDIRECT, "text/html; charset=utf-8", ""), LOCATION, to),
        // The path is encoded; only the query, given back as it came, could be at fault.
        Err(_) => plain(StatusCode::BAD_REQUEST, "400 Bad Request"),
    }
}

fn with(mut response: Response<Body>, name: HeaderName, value: HeaderValue) -> Response<Body> {
    response.headers_mut().insert(name, value);
    response
}
