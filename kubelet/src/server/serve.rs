//! Listening, connections and their bounds.

use super::answer::Answerer;
use super::auth::{Door, Peer};
use super::idle::Requests;
use super::places::{Place, Places};
use super::reload::{self, Reload};
use super::route::{Site, Switches};
use super::tls::TlsError;
use super::{NodeView, ServerConfig, logs};
use crate::metrics::Metrics;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections to one port at once; who makes room for more is `places`' business.
const MAX_CONNECTIONS: usize = 1024;
/// For the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For a request's head, counted from the end of the request before: also how long an idle connection is kept, as
/// upstream keeps it.
const HEADER: Duration = Duration::from_secs(90);
/// For a request's head, and for what is read and written at once.
const BUFFER: usize = 16 * 1024;
/// Requests at once on one HTTP/2 connection: an API server sends all its requests over one.
const MAX_REQUESTS: u32 = 250;
/// How often a quiet HTTP/2 peer is asked whether it is still there, and how quiet a TCP peer may be.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// After failing to accept, for want of descriptors: until some may have become free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port cannot be bound.
    #[error("{field}: cannot listen on {address}: {source}")]
    Listen {
        /// The port's field in KubeletConfiguration.
        field: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The runtime is shutting down.
    #[error("the server was not set up: {0}")]
    Interrupted(tokio::task::JoinError),
}

/// The servers.
#[derive(Debug)]
pub struct Server;

/// Running servers; they run on when this is dropped.
#[derive(Debug)]
pub struct Handle {
    /// Where HTTPS is served.
    pub secure: Option<SocketAddr>,
    /// Where `/healthz` is served.
    pub healthz: Option<SocketAddr>,
    /// Where the read-only API is served.
    pub read_only: Option<SocketAddr>,
    shared: Shared,
}

/// What all connections share.
#[derive(Clone, Debug)]
struct Shared {
    tasks: TaskTracker,
    /// No new connections and requests.
    stop: CancellationToken,
    /// No connections at all.
    abort: CancellationToken,
    stall: Duration,
}

impl Server {
    /// Binds every port of `config`, then serves on them. Fails without anything left listening.
    pub async fn start(
        config: ServerConfig,
        node: Arc<dyn NodeView>,
        metrics: Metrics,
    ) -> Result<Handle, StartError> {
        let healthz = bind("healthzPort", config.healthz).await?;
        let read_only = bind("readOnlyPort", config.read_only).await?;
        let secure = bind("port", config.secure.as_ref().map(|s| s.address)).await?;
        let (shared, logs) =
            (Shared::new(config.stall_timeout), Arc::new(logs::Logs::new(config.split_log_streams)));
        let answerer = |site, door| {
            let (node, metrics, logs) = (node.clone(), metrics.clone(), logs.clone());
            Arc::new(Answerer { site, door, node, metrics, logs })
        };
        let open = watch::channel(Door { anonymous: true, ca: None }).1;
        let mut handle = Handle { secure: None, healthz: None, read_only: None, shared: shared.clone() };
        // TLS first: it can fail, and then nobody has been served.
        if let (Some((listener, address)), Some(config)) = (secure, config.secure) {
            let switches = Switches {
                debugging: config.debugging,
                system_logs: config.system_logs,
                profiling: config.profiling,
                debug_flags: config.debug_flags,
                checkpoints: config.checkpoints,
            };
            let (reload, first) = tokio::task::spawn_blocking(move || Reload::start(config))
                .await
                .map_err(StartError::Interrupted)??;
            let (acceptor, acceptors) = watch::channel(first.acceptor);
            let (door, doors) = watch::channel(first.door);
            shared.listen(listener, Some(acceptors), answerer(Site::Secure(switches), doors));
            let reloading = reload::run(reload, logs.clone(), acceptor, door);
            shared.tasks.spawn(shared.stop.clone().run_until_cancelled_owned(reloading));
            handle.secure = Some(address);
        }
        for (bound, site, at) in [
            (healthz, Site::Healthz, &mut handle.healthz),
            (read_only, Site::ReadOnly, &mut handle.read_only),
        ] {
            if let Some((listener, address)) = bound {
                shared.listen(listener, None, answerer(site, open.clone()));
                *at = Some(address);
            }
        }
        Ok(handle)
    }
}

impl Handle {
    /// Stops listening at once, gives requests under way `grace` to end, then cuts them off.
    pub async fn stop(self, grace: Duration) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if timeout(grace, self.shared.tasks.wait()).await.is_err() {
            self.shared.abort.cancel();
            self.shared.tasks.wait().await;
        }
    }
}

async fn bind(
    field: &'static str,
    address: Option<SocketAddr>,
) -> Result<Option<(TcpListener, SocketAddr)>, StartError> {
    let Some(address) = address else { return Ok(None) };
    let failed = |source| StartError::Listen { field, address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok(Some((listener, bound)))
}

impl Shared {
    fn new(stall: Duration) -> Self {
        let (tasks, stop, abort) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
        Self { tasks, stop, abort, stall }
    }

    /// Accepts connections until the stop.
    fn listen(
        &self,
        listener: TcpListener,
        tls: Option<watch::Receiver<TlsAcceptor>>,
        answerer: Arc<Answerer>,
    ) {
        let shared = self.clone();
        self.tasks.spawn(async move {
            let stop = shared.stop.clone();
            let places = Places::new(MAX_CONNECTIONS);
            // Dropping the accept in the middle loses nothing: a connection not taken stays in the queue, one taken
            // and dropped is closed, as it would be a moment later.
            stop.run_until_cancelled_owned(async {
                loop {
                    let tcp = match listener.accept().await {
                        Ok((tcp, _)) => tcp,
                        Err(error) => {
                            tracing::warn!(%error, "connection not accepted");
                            tokio::time::sleep(ACCEPT_PAUSE).await;
                            continue;
                        }
                    };
                    let place = places.take().await;
                    // What connections that are open began with is theirs to the end.
                    let tls = tls.as_ref().map(|newest| newest.borrow().clone());
                    let connection = shared.clone().connection(tcp, tls, answerer.clone(), place);
                    shared.tasks.spawn(shared.abort.clone().run_until_cancelled_owned(connection));
                }
            })
            .await;
        });
    }

    /// Serves one connection to its end, or until its place is wanted.
    async fn connection(
        self,
        tcp: TcpStream,
        tls: Option<TlsAcceptor>,
        answerer: Arc<Answerer>,
        place: Place,
    ) {
        let known = place.known();
        tokio::select! {
            () = self.serve(tcp, tls, answerer, known) => {}
            () = place.wanted() => tracing::debug!("connection given up for a newer one"),
        }
    }

    async fn serve(
        self,
        tcp: TcpStream,
        tls: Option<TlsAcceptor>,
        answerer: Arc<Answerer>,
        known: Arc<AtomicBool>,
    ) {
        // Neither is needed to serve; a peer that is gone without a word is found a little later.
        let _ = tcp.set_nodelay(true);
        let _ = rustix::net::sockopt::set_socket_keepalive(&tcp, true);
        let _ = rustix::net::sockopt::set_tcp_keepidle(&tcp, KEEP_ALIVE);
        let tcp = Patient { inner: tcp, stall: self.stall, waiting: None };
        let mut peer = Peer { certificates: Vec::new(), known };
        let Some(tls) = tls else { return self.http1(tcp, answerer, Arc::new(peer)).await };
        let accept = tls.accept_with(tcp, |connection| connection.set_buffer_limit(Some(2 * BUFFER)));
        let tls = match timeout(HANDSHAKE, accept).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => return tracing::debug!("TLS handshake took too long"),
        };
        let session = tls.get_ref().1;
        peer.certificates = session.peer_certificates().unwrap_or_default().to_vec();
        let peer = Arc::new(peer);
        let h2 = session.alpn_protocol() == Some(b"h2");
        if h2 {
            self.http2(tls, answerer, peer).await;
        } else {
            self.http1(tls, answerer, peer).await;
        }
    }

    async fn http1(
        self,
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        answerer: Arc<Answerer>,
        peer: Arc<Peer>,
    ) {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEADER).max_buf_size(BUFFER);
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (answerer, peer) = (answerer.clone(), peer.clone());
            async move { Ok::<_, Infallible>(answerer.answer(request, &peer).await) }
        });
        let mut connection = pin!(http.serve_connection(TokioIo::new(io), service));
        let served = match self.stop.run_until_cancelled(connection.as_mut()).await {
            Some(served) => served,
            None => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        report(served);
    }

    async fn http2(
        self,
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        answerer: Arc<Answerer>,
        peer: Arc<Peer>,
    ) {
        let mut http = http2::Builder::new(self.clone());
        http.timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .max_concurrent_streams(MAX_REQUESTS)
            // Request bodies are never read, so there is nothing to take in.
            .initial_stream_window_size(BUFFER as u32)
            .initial_connection_window_size(4 * BUFFER as u32)
            .max_send_buf_size(BUFFER)
            .max_header_list_size(BUFFER as u32);
        let requests = Requests::default();
        let opened = requests.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (answerer, peer, open) = (answerer.clone(), peer.clone(), opened.open());
            async move { Ok::<_, Infallible>(answerer.answer(request, &peer).await.map(|b| b.guarded(open))) }
        });
        let mut connection = pin!(http.serve_connection(TokioIo::new(io), service));
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = requests.idle(HEADER) => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    served = connection => served,
                    // Whoever does not take the farewell is left; a request that crossed it is served.
                    () = requests.idle(HANDSHAKE) => Ok(()),
                }
            }
        };
        report(served);
    }
}

/// Requests on one HTTP/2 connection are tasks of their own; they too end with the servers.
impl<F> hyper::rt::Executor<F> for Shared
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, request: F) {
        let abort = self.abort.clone();
        self.tasks.spawn(async move { abort.run_until_cancelled_owned(request).await.is_some() });
    }
}

fn report(served: hyper::Result<()>) {
    if let Err(error) = served {
        // Clients go away in many ways; none is this node's concern.
        tracing::debug!(%error, "connection ended");
    }
}

/// A connection whose peer may take nothing for `stall` at most.
struct Patient<S> {
    inner: S,
    stall: Duration,
    /// Set while the peer takes nothing.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    /// Passes on what a write gave, minding the time.
    fn mind<T>(&mut self, cx: &mut Context<'_>, gave: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if gave.is_ready() {
            self.waiting = None;
            return gave;
        }
        let stall = self.stall;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + stall)));
        std::task::ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client took nothing for too long")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let gave = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.mind(cx, gave)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let gave = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.mind(cx, gave)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gave = Pin::new(&mut self.inner).poll_flush(cx);
        self.mind(cx, gave)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gave = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.mind(cx, gave)
    }
}

#[cfg(test)]
mod tests;
