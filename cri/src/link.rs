//! One HTTP/2 connection to one endpoint, made again whenever it breaks.
//!
//! One task per link ([`run`]) connects, drives the connection and, when it ends, connects again with a growing pause.
//! The client's calls go through [`Link`], which is the newest connection or the reason there is none. The task ends when
//! the last `Link` is gone. It never decides what a failed call means and never repeats one.
//!
//! ```text
//!   Connecting ──ok──▶ Up(n) ──connection ends──▶ Down ──pause──▶ Connecting
//!        └────────────failed────────────────────────▲
//! ```
//!
//! While connecting, calls wait (each within its own deadline). While down they fail at once: the caller has its own
//! way of coming back, and would only queue up here.

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, Connection, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use crate::connect::{Connector, Io};
use crate::error::chain;

/// Bytes in flight for one answer; also what an event stream nobody reads can hold.
const STREAM_WINDOW: u32 = 64 * 1024;
/// Bytes in flight for all answers together.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// A connection attempt that takes longer has failed. On a unix socket it takes no time at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The pauses between connection attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// Never longer than this. A connection that lived this long starts again without a pause.
    pub max: Duration,
}

impl Default for Backoff {
    /// 20 ms doubling up to 1 s: a failed attempt on a unix socket costs microseconds.
    fn default() -> Self {
        Self { first: Duration::from_millis(20), max: Duration::from_secs(1) }
    }
}

impl Backoff {
    /// The pause after `failures` failures in a row: none after zero.
    #[must_use]
    pub fn pause(&self, failures: u32) -> Duration {
        match failures.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => self.first.saturating_mul(1 << doublings.min(16)).min(self.max),
        }
    }
}

/// What a link is doing.
#[derive(Clone, Debug)]
pub(crate) enum State {
    Connecting,
    /// The number counts connections of this link, so that one can tell a new one from the old.
    Up(u64, SendRequest<Body>),
    Down(String),
}

/// The calls' side of the connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    state: watch::Receiver<State>,
}

impl Link {
    /// Starts connecting at once. Must be called within a tokio runtime.
    pub(crate) fn start(connector: Connector, backoff: Backoff) -> Self {
        let (tx, state) = watch::channel(State::Connecting);
        tokio::spawn(run(connector, backoff, tx));
        Self { state }
    }

    /// The newest state; await its changes.
    pub(crate) fn watch(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// A handle for one request, as soon as there is a connection.
    async fn handle(&self) -> Result<SendRequest<Body>, Status> {
        let mut state = self.state.clone();
        loop {
            match &*state.borrow_and_update() {
                State::Up(_, handle) => return Ok(handle.clone()),
                State::Down(error) => return Err(Status::unavailable(error.as_str())),
                State::Connecting => {}
            }
            if state.changed().await.is_err() {
                return Err(Status::unavailable("the client is shut down"));
            }
        }
    }
}

impl Service<http::Request<Body>> for Link {
    type Response = http::Response<Incoming>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let link = self.clone();
        Box::pin(async move {
            let mut handle = link.handle().await?;
            let broken = |e: hyper::Error| Status::unavailable(chain(&e));
            handle.ready().await.map_err(broken)?;
            handle.send_request(request).await.map_err(broken)
        })
    }
}

/// The link's task: see the module's drawing.
async fn run(connector: Connector, backoff: Backoff, state: watch::Sender<State>) {
    let mut failures: u32 = 0;
    let mut count = 0;
    loop {
        state.send_replace(State::Connecting);
        let error = tokio::select! {
            () = state.closed() => return,
            made = connect(&connector) => match made {
                Err(e) => {
                    failures = failures.saturating_add(1);
                    format!("connecting to {}: {}", connector.name(), chain(&e))
                }
                Ok((handle, connection)) => {
                    count += 1;
                    let since = Instant::now();
                    state.send_replace(State::Up(count, handle));
                    let error = tokio::select! {
                        () = state.closed() => return,
                        ended = connection => ended.err().map_or_else(|| "closed by the runtime".to_owned(), |e| chain(&e)),
                    };
                    failures = if since.elapsed() >= backoff.max { 0 } else { failures.saturating_add(1) };
                    format!("connection to {} lost: {error}", connector.name())
                }
            },
        };
        tracing::debug!(endpoint = connector.name(), error, "not connected");
        state.send_replace(State::Down(error));
        tokio::select! {
            () = state.closed() => return,
            () = sleep(backoff.pause(failures)) => {}
        }
    }
}

type Made = (SendRequest<Body>, Connection<TokioIo<Box<dyn Io>>, Body, TokioExecutor>);

async fn connect(connector: &Connector) -> io::Result<Made> {
    let attempt = async {
        let io = connector.connect().await?;
        Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(io))
            .await
            .map_err(io::Error::other)
    };
    match timeout(CONNECT_TIMEOUT, attempt).await {
        Ok(made) => made,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no connection within 5 s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_from_none_to_the_maximum() {
        let b = Backoff { first: Duration::from_millis(20), max: Duration::from_secs(1) };
        let got: Vec<u64> = (0..9).map(|n| b.pause(n).as_millis() as u64).collect();
        assert_eq!(got, [0, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert_eq!(b.pause(u32::MAX), b.max);
    }
}
