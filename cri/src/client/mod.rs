//! The client for both CRI services: one typed async method for each call.
//!
//! The kubelet's rooms hold clones of one [`Client`]. It adds to a call its deadline, the 16 MiB bound, an error that
//! names call and object, and CRI's promise that stopping and removing are idempotent, where a runtime does not keep it.
//! Nothing else: it never retries, never caches, never interprets an answer. The calls are in
//! `runtime` and `image`, what they share is here.
//!
//! Dropping the future of a call cancels it: the runtime sees the request reset and stops what it can. Whether the
//! effect happened is then as unknown as after a time-out.

mod image;
mod lost_task;
mod runtime;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tonic::{Request, Response, Status, Streaming};

use crate::connect::{Connector, EndpointError};
use crate::deadline::{Deadlines, LONGEST};
use crate::detect::{Connection, Watch, watch_link};
use crate::error::{Error, Kind, Result};
use crate::events::{Events, Parked};
use crate::link::{Backoff, Link};
use crate::v1::image_service_client::ImageServiceClient;
use crate::v1::runtime_service_client::RuntimeServiceClient;

/// The largest message either side may send, as the stock kubelet has it.
pub const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// A connection that stands for so long after a call failed was not broken by what broke the call.
const OUTAGE_IS_TOLD: Duration = Duration::from_secs(1);

pub(crate) type RuntimeService = RuntimeServiceClient<Link>;
type ImageService = ImageServiceClient<Link>;
type Observe = dyn Fn(&Finished<'_>) + Send + Sync;

/// A call that ended, for metrics.
#[derive(Debug, Clone, Copy)]
pub struct Finished<'a> {
    /// The call's name in CRI.
    pub call: &'static str,
    /// From before it was sent until its answer was decoded.
    pub took: Duration,
    /// What went wrong, if anything did.
    pub error: Option<&'a Error>,
}

/// Speaks to a runtime (and to the image service, which may live elsewhere). Clones share the connection; when the last
/// is dropped, the connection closes.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    /// To the runtime; for what is not CRI.
    link: Link,
    runtime: RuntimeService,
    image: ImageService,
    deadlines: Deadlines,
    stream_lists: bool,
    connection: watch::Receiver<Connection>,
    parked: Parked,
    observe: Option<Box<Observe>>,
}

/// What a client is made of; see [`Client::builder`].
#[must_use]
pub struct Builder {
    runtime: Connector,
    image: Option<Connector>,
    deadlines: Deadlines,
    backoff: Backoff,
    stream_lists: bool,
    reads_events: bool,
    observe: Option<Box<Observe>>,
}

impl Builder {
    /// Another endpoint for the image service (`imageServiceEndpoint`). Without it both services share a connection.
    pub fn image(mut self, connector: Connector) -> Self {
        self.image = Some(connector);
        self
    }

    /// Other deadlines than the default.
    pub fn deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// Other pauses between connection attempts than the default.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Let list methods use the streaming calls of KEP-5825 where the runtime has them, so that a list is not bound by
    /// the size of a message. Off by default, as upstream's feature gate `CRIListStreaming`.
    pub fn stream_lists(mut self, on: bool) -> Self {
        self.stream_lists = on;
        self
    }

    /// Whether somebody will read [`Client::container_events`] for as long as the client lives. On by default. A client
    /// that only makes calls must say no: containerd 2.x stands still when a stream that is open is not read.
    pub fn reads_events(mut self, yes: bool) -> Self {
        self.reads_events = yes;
        self
    }

    /// Called at the end of every call but the event stream, on the caller's task. It must not block.
    pub fn observe(mut self, observe: impl Fn(&Finished<'_>) + Send + Sync + 'static) -> Self {
        self.observe = Some(Box::new(observe));
        self
    }

    /// Makes the client, which starts to connect. Must be called within a tokio runtime. It does not wait for the
    /// connection: the first call does, and [`Client::connection`] tells.
    #[must_use]
    pub fn build(self) -> Client {
        // Only the path of the URI matters to a runtime behind a socket.
        let origin = http::Uri::from_static("http://localhost");
        let runtime_link = Link::start(self.runtime, self.backoff);
        let image_link = self.image.map_or_else(|| runtime_link.clone(), |c| Link::start(c, self.backoff));
        let link = runtime_link.clone();
        let runtime = RuntimeServiceClient::with_origin(runtime_link.clone(), origin.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let image = ImageServiceClient::with_origin(image_link, origin)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let parked = Parked::default();
        let (publish, connection) = watch::channel(Connection::Disconnected {
            since: Instant::now(),
            error: "not connected yet".to_owned(),
        });
        let watch = Watch {
            link: runtime_link,
            service: runtime.clone(),
            deadlines: self.deadlines,
            backoff: self.backoff,
            parked: self.reads_events.then(|| parked.clone()),
        };
        tokio::spawn(watch_link(watch, publish));
        let inner = Inner {
            link,
            runtime,
            image,
            deadlines: self.deadlines,
            stream_lists: self.stream_lists,
            connection,
            parked,
            observe: self.observe,
        };
        Client { inner: Arc::new(inner) }
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("runtime", &self.runtime)
            .field("image", &self.image)
            .field("deadlines", &self.deadlines)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("connection", &*self.inner.connection.borrow()).finish_non_exhaustive()
    }
}

impl Client {
    /// A client for both services at one endpoint, with all defaults. Does not wait for the connection.
    ///
    /// # Errors
    /// The endpoint is not a unix socket's; see [`Connector::parse`].
    pub fn connect(endpoint: &str) -> std::result::Result<Self, EndpointError> {
        Ok(Self::builder(Connector::parse(endpoint)?).build())
    }

    /// A client to be configured, for the runtime behind `connector`.
    pub fn builder(connector: Connector) -> Builder {
        Builder {
            runtime: connector,
            image: None,
            deadlines: Deadlines::default(),
            backoff: Backoff::default(),
            stream_lists: false,
            reads_events: true,
            observe: None,
        }
    }

    /// The runtime's connection: the latest, and every change. A new connection is published only after it was asked for
    /// its capabilities, so each `Connected` that follows a `Disconnected` is a runtime whose state has to be listed anew.
    #[must_use]
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.inner.connection.clone()
    }

    /// Waits until the runtime is connected. Cancel-safe. Waits for as long as it takes.
    pub async fn connected(&self) -> Arc<crate::Capabilities> {
        let mut connection = self.connection();
        loop {
            if let Some(capabilities) = connection.borrow_and_update().capabilities() {
                return Arc::clone(capabilities);
            }
            // The sender lives in a task that ends only when no client is left, and `self` is one.
            connection.changed().await.expect("the watching task outlives its clients");
        }
    }

    /// Makes a call that may be made twice, again whenever the runtime went away under it and has come back. Cancel-safe if
    /// `call` is.
    ///
    /// # Errors
    /// What `call` gives; [`Kind::Unavailable`] only when the connection stands all the same.
    pub async fn through_outages<T, Fut>(&self, mut call: impl FnMut() -> Fut) -> Result<T>
    where
        Fut: Future<Output = Result<T>>,
    {
        loop {
            let mut connection = self.connection();
            connection.mark_unchanged();
            let result = call().await;
            if !matches!(&result, Err(e) if e.kind == Kind::Unavailable) {
                return result;
            }
            // The watching task tells of the loss a moment after the calls that it broke.
            let told = timeout(OUTAGE_IS_TOLD, connection.changed()).await.is_ok();
            if !told && connection.borrow().capabilities().is_some() {
                return result;
            }
            self.connected().await;
        }
    }

    /// Container events from now on: at the latest from the first poll, at the earliest from the connect, if nobody asked
    /// before. A runtime without them gives [`Kind::Unimplemented`] as the first item, or (CRI-O) an empty stream; ask
    /// [`crate::Capabilities::container_events`] first.
    pub fn container_events(&self) -> Events {
        self.inner.parked.take().unwrap_or_else(|| Events::open(self.inner.runtime.clone()))
    }

    /// The deadline of most calls.
    fn plain(&self) -> Option<Duration> {
        Some(self.inner.deadlines.plain())
    }

    fn streams_lists(&self) -> bool {
        self.inner.stream_lists
            && self.inner.connection.borrow().capabilities().is_some_and(|c| c.streaming_lists)
    }

    /// One call: deadline (told to the runtime as well), error, observer.
    async fn call<M, T, F, Fut>(
        &self,
        call: &'static str,
        object: &str,
        deadline: Option<Duration>,
        message: M,
        send: F,
    ) -> Result<T>
    where
        F: FnOnce(Request<M>) -> Fut,
        Fut: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        let started = Instant::now();
        let deadline = deadline.map(|d| d.min(LONGEST));
        let mut request = Request::new(message);
        if let Some(deadline) = deadline {
            request.set_timeout(deadline);
        }
        let result = within(deadline, send(request)).await;
        let result = finish(call, object, result);
        self.finished(call, started, result.as_ref().err());
        result.map(Response::into_inner)
    }

    /// A list given in pieces, put together; the deadline is that of the whole.
    async fn collect<M, P, T, F, Fut>(
        &self,
        call: &'static str,
        message: M,
        send: F,
        items: impl Fn(P) -> Vec<T>,
    ) -> Result<Vec<T>>
    where
        F: FnOnce(Request<M>) -> Fut,
        Fut: Future<Output = std::result::Result<Response<Streaming<P>>, Status>>,
    {
        let started = Instant::now();
        let deadline = self.inner.deadlines.plain().min(LONGEST);
        let mut request = Request::new(message);
        request.set_timeout(deadline);
        let whole = async {
            let mut stream = send(request).await?.into_inner();
            let mut all = Vec::new();
            while let Some(piece) = stream.message().await? {
                all.extend(items(piece));
            }
            Ok(all)
        };
        let result = finish(call, "", within(Some(deadline), whole).await);
        self.finished(call, started, result.as_ref().err());
        result
    }

    fn finished(&self, call: &'static str, started: Instant, error: Option<&Error>) {
        let took = started.elapsed();
        tracing::trace!(
            call,
            took_ms = took.as_secs_f64() * 1e3,
            error = error.map(tracing::field::display),
            "cri"
        );
        if let Some(observe) = &self.inner.observe {
            observe(&Finished { call, took, error });
        }
    }
}

/// The outcome, or `None` when the deadline passed first.
async fn within<T>(deadline: Option<Duration>, future: impl Future<Output = T>) -> Option<T> {
    match deadline {
        None => Some(future.await),
        Some(deadline) => timeout(deadline, future).await.ok(),
    }
}

fn finish<T>(call: &'static str, object: &str, outcome: Option<std::result::Result<T, Status>>) -> Result<T> {
    match outcome {
        Some(Ok(answer)) => Ok(answer),
        Some(Err(status)) => Err(Error::from_status(call, object, &status)),
        None => Err(Error::timeout(call, object)),
    }
}

/// CRI promises that stopping and removing what is gone is no error. containerd 1.6 breaks the promise where it stops.
fn gone_is_done(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind == Kind::NotFound => Ok(()),
        other => other,
    }
}

/// For answers whose useful part is missing though CRI has it always there.
fn missing(call: &'static str, object: &str, field: &str) -> Error {
    Error {
        call,
        object: object.to_owned(),
        kind: Kind::Other,
        code: tonic::Code::Internal,
        message: format!("the runtime's answer lacks {field}"),
    }
}
