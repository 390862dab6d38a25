//! One HTTP GET to a container, for probes and for lifecycle hooks: bounded in time and size, with upstream's headers,
//! redirects and error texts. [`Get::of`] makes the request from the API's action, [`get`] asks.
//!
//! A connection serves one request and is gone afterwards. Nothing here is remembered. A server that takes TLS may choose
//! HTTP/2, as with upstream.

mod request;

pub use request::{Agent, BadAction, Get, Scheme, port};

use super::dial::{DialError, Stream, dial};
use super::{h2, tls};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::error::Error as _;
use std::time::Duration;

/// How much of a body is read; the rest is never asked for.
pub const BODY_LIMIT: usize = 10 << 10;
/// Status line and headers of an answer take no more than this.
const HEAD_LIMIT: usize = 64 << 10;
/// Upstream follows so many redirects.
const REDIRECTS: usize = 10;

/// What the container said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The last answer's status.
    pub status: u16,
    /// The first [`BODY_LIMIT`] bytes of its body; what is not UTF-8 is replaced.
    pub body: String,
}

impl Answer {
    /// 200 to 399, which counts as success. With 300 or more a redirect led elsewhere and was not followed.
    pub fn is_success(&self) -> bool {
        (200..400).contains(&self.status)
    }

    /// Success, but only as far as this container goes: it points elsewhere.
    pub fn redirects_away(&self) -> bool {
        (300..400).contains(&self.status)
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// Not within the time.
    #[error("Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)")]
    Timeout {
        /// What was asked for, after redirects.
        url: String,
    },
    /// The head of the answer came in time, its body did not.
    #[error("context deadline exceeded (Client.Timeout or context cancellation while reading body)")]
    BodyTimeout,
    /// No connection.
    #[error("Get {url:?}: {source}")]
    Dial {
        /// What was asked for.
        url: String,
        /// Why.
        source: DialError,
    },
    /// No TLS. `plain` is set when the other side seems to speak plain HTTP.
    #[error("Get {url:?}: {message}")]
    Tls {
        /// What was asked for.
        url: String,
        /// Why.
        message: String,
        /// The other side answered without TLS.
        plain: bool,
    },
    /// The answer is not HTTP, or ended too soon.
    #[error("Get {url:?}: {message}")]
    Http {
        /// What was asked for.
        url: String,
        /// Why.
        message: String,
    },
    /// The answer's head is fine and its body is broken.
    #[error("{0}")]
    Body(String),
    /// A redirect that cannot be followed.
    #[error("Get {url:?}: {message}")]
    Redirect {
        /// Where it led.
        url: String,
        /// Why not.
        message: String,
    },
}

/// Asks, following redirects that stay on the same host. All of it takes no longer than `timeout`.
///
/// # Errors
/// No answer in time, or none that is HTTP. An answer with any status is not an error.
pub async fn get(request: &Get, timeout: Duration) -> Result<Answer, GetError> {
    let deadline = tokio::time::Instant::now() + timeout;
    let mut current = request.clone();
    for followed in 0.. {
        let url = current.url();
        let asked = tokio::time::timeout_at(deadline, ask(&current));
        let (status, next, mut body) = asked.await.map_err(|_| GetError::Timeout { url })??;
        if let Some(location) = next {
            let next = current.redirected(&location).map_err(|message| GetError::Redirect {
                url: location.to_string(),
                message: format!("failed to parse Location header {location:?}: {message}"),
            })?;
            // Elsewhere is not this container: where it points says nothing of whether it works.
            if let Some(next) = next {
                if followed + 1 >= REDIRECTS {
                    let message = format!("stopped after {REDIRECTS} redirects");
                    return Err(GetError::Redirect { url: next.target(), message });
                }
                current = next;
                continue;
            }
        }
        let body = tokio::time::timeout_at(deadline, body.read());
        let body = body.await.map_err(|_| GetError::BodyTimeout)??;
        return Ok(Answer { status: status.as_u16(), body: String::from_utf8_lossy(&body).into_owned() });
    }
    unreachable!("the loop has no end")
}

/// One request on a connection of its own.
async fn ask(request: &Get) -> Result<Head, GetError> {
    let url = || request.url();
    let stream = dial(&request.host, request.port);
    let stream = stream.await.map_err(|source| GetError::Dial { url: url(), source })?;
    match request.scheme {
        Scheme::Http => exchange(request, stream).await,
        Scheme::Https => {
            let (stream, is_h2) = tls::connect(&request.host, stream).await.map_err(|error| {
                let plain = format!("{error:?}").contains("InvalidContentType");
                let message = if plain {
                    "http: server gave HTTP response to HTTPS client".to_owned()
                } else {
                    format!("tls: {error}")
                };
                GetError::Tls { url: url(), message, plain }
            })?;
            if is_h2 { exchange2(request, stream).await } else { exchange(request, stream).await }
        }
    }
}

type Connection = std::pin::Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// An answer's body, and the connection that must be driven while it is read.
struct Body {
    incoming: Incoming,
    connection: Option<Connection>,
}

/// The head of an answer: its status, where it redirects to, and the body to come.
type Head = (StatusCode, Option<String>, Body);

fn broken(request: &Get, e: &hyper::Error) -> GetError {
    GetError::Http { url: request.url(), message: hyper_text(e, "awaiting headers") }
}

async fn exchange(request: &Get, stream: Stream) -> Result<Head, GetError> {
    let handshake = http1::Builder::new()
        .title_case_headers(true)
        .max_buf_size(HEAD_LIMIT)
        .handshake::<_, Full<Bytes>>(TokioIo::new(stream))
        .await;
    let (mut sender, connection) = handshake.map_err(|e| broken(request, &e))?;
    head(request, sender.send_request(request.message()), Box::pin(connection)).await
}

async fn exchange2(request: &Get, stream: Stream) -> Result<Head, GetError> {
    let (mut sender, connection) = h2::handshake(stream).await.map_err(|e| broken(request, &e))?;
    let message = request.message2();
    let message =
        message.map_err(|e| GetError::Http { url: request.url(), message: format!("http2: {e}") })?;
    head(request, sender.send_request(message), Box::pin(connection)).await
}

/// Drives the connection until the answer's head is there.
async fn head(
    request: &Get,
    asked: impl Future<Output = hyper::Result<Response<Incoming>>>,
    mut connection: Connection,
) -> Result<Head, GetError> {
    tokio::pin!(asked);
    let mut over = false;
    let answer = loop {
        tokio::select! {
            biased;
            answer = &mut asked => break answer.map_err(|e| broken(request, &e))?,
            // Its end is told by the request too, with the reason.
            _ = &mut connection, if !over => over = true,
        }
    };
    let location = || answer.headers().get(header::LOCATION).map(HeaderValue::as_bytes);
    let next = answer.status().is_redirection().then(location).flatten();
    // 300 and 304 point nowhere that would have to be followed.
    let next = next.filter(|_| matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308));
    // Nor does an empty one.
    let next = next.filter(|location| !location.is_empty());
    let next = next.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let status = answer.status();
    let body = Body { incoming: answer.into_body(), connection: (!over).then_some(connection) };
    Ok((status, next, body))
}

impl Body {
    async fn read(&mut self) -> Result<Vec<u8>, GetError> {
        let mut read = Vec::new();
        loop {
            let frame = match &mut self.connection {
                None => self.incoming.frame().await,
                Some(connection) => tokio::select! {
                    biased;
                    frame = self.incoming.frame() => frame,
                    _ = connection => {
                        self.connection = None;
                        continue;
                    }
                },
            };
            let Some(frame) = frame else { return Ok(read) };
            let frame = frame.map_err(|e| GetError::Body(hyper_text(&e, "reading body")))?;
            if let Some(data) = frame.data_ref() {
                read.extend_from_slice(&data[..data.len().min(BODY_LIMIT - read.len())]);
                if read.len() == BODY_LIMIT {
                    return Ok(read);
                }
            }
        }
    }
}

/// The words for what went wrong in an exchange, as near to upstream's as the cause allows.
fn hyper_text(error: &hyper::Error, doing: &str) -> String {
    if let Some(io) = error.source().and_then(|s| s.downcast_ref::<std::io::Error>())
        && io.raw_os_error().is_some()
    {
        return format!("read tcp: read: {}", super::dial::errno_text(io));
    }
    match error {
        e if e.is_incomplete_message() && doing == "awaiting headers" => "EOF".to_owned(),
        e if e.is_incomplete_message() => "unexpected EOF".to_owned(),
        e if e.is_parse_too_large() => {
            format!("net/http: server response headers exceeded {HEAD_LIMIT} bytes; aborted")
        }
        e if e.is_parse() => {
            format!("net/http: HTTP/1.x transport connection broken: malformed HTTP response: {e}")
        }
        e => e.to_string(),
    }
}

#[cfg(test)]
mod tests;
