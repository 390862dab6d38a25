//! Response bodies that are made as the client takes them.

use bytes::Bytes;
use futures::Stream;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

/// How much is made at once; up to this much goes out whole, with its length, as upstream's server does.
const PIECE: usize = 2048;

/// A response's body. Dropping it, sent or not, ends the request.
pub struct Body {
    content: Content,
    /// Kept until the body is gone: what counts the request.
    guard: Option<Box<dyn Send + Sync>>,
}

enum Content {
    Whole(Option<Bytes>),
    Pieces(Box<dyn Iterator<Item = Bytes> + Send>),
    Stream(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}

impl Body {
    /// A text that is there already.
    pub fn whole(text: impl Into<Bytes>) -> Self {
        Content::Whole(Some(text.into())).into()
    }

    /// Pieces made when they are wanted. A short body goes out whole.
    pub fn pieces(mut pieces: impl Iterator<Item = Bytes> + Send + 'static) -> Self {
        let mut first: Vec<u8> = Vec::new();
        while first.len() <= PIECE {
            match pieces.next() {
                Some(piece) => first.extend_from_slice(&piece),
                None => return Self::whole(first),
            }
        }
        Content::Pieces(Box::new(std::iter::once(first.into()).chain(pieces))).into()
    }

    /// Pieces that come when they come; always sent chunked.
    pub fn stream(stream: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        Content::Stream(Box::pin(stream)).into()
    }

    /// Keeps `guard`, too, until the body was sent or given up.
    pub fn guarded(mut self, guard: impl Send + Sync + 'static) -> Self {
        self.guard = Some(match self.guard.take() {
            Some(before) => Box::new((before, guard)),
            None => Box::new(guard),
        });
        self
    }
}

impl From<Content> for Body {
    fn from(content: Content) -> Self {
        Self { content, guard: None }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match &mut self.content {
            Content::Whole(text) => text.take().filter(|text| !text.is_empty()),
            Content::Pieces(pieces) => pieces.next(),
            Content::Stream(stream) => std::task::ready!(stream.as_mut().poll_next(cx)),
        };
        Poll::Ready(next.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.content, Content::Whole(text) if text.as_ref().is_none_or(Bytes::is_empty))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(text) => SizeHint::with_exact(text.as_ref().map_or(0, |t| t.len() as u64)),
            _ => SizeHint::default(),
        }
    }
}
