//! The container event stream as the kubelet's `pleg` consumes it.
//!
//! Opening it cannot be awaited: Go's gRPC servers send no headers before the first event. So [`Events`] is a stream from
//! the start, and its opening is part of what it does when polled.
//!
//! containerd 1.7 hands each event to one subscriber only and notices that a subscriber is gone no earlier than the next
//! event, which is then lost. So the stream that detection opened is never thrown away: it is parked ([`Parked`]) and
//! becomes the first consumer's.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;
use futures::stream::{Stream, StreamExt};
use tonic::{Response, Status, Streaming};

use crate::client::RuntimeService;
use crate::error::{Error, Result};
use crate::v1;

const CALL: &str = "GetContainerEvents";

type Item = v1::ContainerEventResponse;

/// Container events from the moment it was opened. Ends (after an error, if there was one) when the runtime ends it or
/// the connection breaks; it never opens itself again. Dropping it closes it.
#[must_use = "dropping the stream closes it"]
pub struct Events {
    state: State,
    /// The first event, where detection saw it come.
    early: Option<Item>,
    /// Keeps the connection from being closed while somebody listens.
    _service: RuntimeService,
}

enum State {
    Opening(BoxFuture<'static, std::result::Result<Response<Streaming<Item>>, Status>>),
    Open(Box<Streaming<Item>>),
    Done,
}

impl Events {
    /// Asks for events on this connection; nothing is sent before the first poll.
    pub(crate) fn open(service: RuntimeService) -> Self {
        let mut opener = service.clone();
        let opening = async move { opener.get_container_events(v1::GetEventsRequest {}).await };
        Self { state: State::Opening(Box::pin(opening)), early: None, _service: service }
    }

    /// The next event. Cancel-safe: an event is taken only when it is returned.
    pub async fn next(&mut self) -> Option<Result<Item>> {
        StreamExt::next(self).await
    }

    /// Gives back an event that was taken, to be the next one again.
    pub(crate) fn put_back(&mut self, event: Item) {
        self.early = Some(event);
    }
}

impl Stream for Events {
    type Item = Result<Item>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(event) = self.early.take() {
            return Poll::Ready(Some(Ok(event)));
        }
        loop {
            match &mut self.state {
                State::Done => return Poll::Ready(None),
                State::Opening(opening) => match ready!(opening.as_mut().poll(cx)) {
                    Ok(response) => self.state = State::Open(Box::new(response.into_inner())),
                    Err(status) => {
                        self.state = State::Done;
                        return Poll::Ready(Some(Err(Error::from_status(CALL, "", &status))));
                    }
                },
                State::Open(stream) => {
                    let item = ready!(stream.poll_next_unpin(cx));
                    if !matches!(item, Some(Ok(_))) {
                        self.state = State::Done;
                    }
                    return Poll::Ready(item.map(|r| r.map_err(|s| Error::from_status(CALL, "", &s))));
                }
            }
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            State::Opening(_) => "Events(opening)",
            State::Open(_) => "Events(open)",
            State::Done => "Events(done)",
        })
    }
}

/// The stream that detection opened on the present connection, until somebody wants it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parked(Arc<Mutex<Option<Events>>>);

impl Parked {
    pub(crate) fn put(&self, events: Option<Events>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = events;
    }

    pub(crate) fn take(&self) -> Option<Events> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
