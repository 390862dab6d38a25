//! HTTP/2 to a probe's target, for gRPC and for HTTPS servers that choose it: one request, bounded buffers.

use super::dial::Stream;
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2::{Builder, Connection, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};

/// Of headers.
const HEAD_LIMIT: u32 = 64 << 10;
/// What a server may send before it is read.
const WINDOW: u32 = 64 << 10;

/// Where requests go in, and what must be driven for them.
type Ends = (SendRequest<Full<Bytes>>, Connection<TokioIo<Stream>, Full<Bytes>, TokioExecutor>);

/// Begins to speak HTTP/2 over `stream`.
///
/// # Errors
/// The stream is broken.
pub async fn handshake(stream: Stream) -> hyper::Result<Ends> {
    Builder::new(TokioExecutor::new())
        .max_header_list_size(HEAD_LIMIT)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(TokioIo::new(stream))
        .await
}
