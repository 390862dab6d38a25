//! How the fake is reached: HTTP/2 connections over unix sockets and in memory, which can be broken at will.
//!
//! Each connection is a task. The fake breaks them by aborting the tasks, which resets what is under way as the death of
//! a real runtime does.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::UnixListener;
use tokio::task::AbortHandle;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use super::FakeRuntime;
use crate::MAX_MESSAGE;
use crate::v1::image_service_server::{ImageService, ImageServiceServer, SERVICE_NAME as IMAGE};
use crate::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer, SERVICE_NAME as RUNTIME};

/// The connections of a fake, and whether it takes new ones.
#[derive(Debug, Default)]
pub(super) struct Host {
    pub(super) down: bool,
    connections: Vec<AbortHandle>,
}

impl Host {
    pub(super) fn break_all(&mut self) {
        for connection in self.connections.drain(..) {
            connection.abort();
        }
    }
}

/// A socket on which a fake is served. Dropping it stops that and removes the socket; the connections that are there go
/// on.
#[derive(Debug)]
#[must_use = "dropping it stops serving"]
pub struct Served {
    path: PathBuf,
    accepting: AbortHandle,
}

impl Served {
    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.accepting.abort();
        // It may have been removed by the test, which is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

pub(super) async fn serve(fake: &FakeRuntime, path: &Path) -> io::Result<Served> {
    let is_socket = |m: std::fs::Metadata| m.file_type().is_socket();
    if tokio::fs::symlink_metadata(path).await.is_ok_and(is_socket) {
        tokio::fs::remove_file(path).await?;
    }
    let listener = UnixListener::bind(path)?;
    // Not kept alive by its own socket.
    let shared = std::sync::Arc::downgrade(&fake.shared);
    let accepting = tokio::spawn(async move {
        loop {
            let accepted = listener.accept().await;
            let Some(shared) = shared.upgrade() else { return };
            let fake = FakeRuntime { shared };
            match accepted {
                Ok((stream, _)) if !fake.host().down => fake.connection(stream),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "the fake runtime stops accepting");
                    return;
                }
            }
        }
    });
    Ok(Served { path: path.to_owned(), accepting: accepting.abort_handle() })
}

impl FakeRuntime {
    pub(super) fn accept_in_memory(&self) -> io::Result<DuplexStream> {
        if self.host().down {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (theirs, ours) = tokio::io::duplex(64 * 1024);
        self.connection(ours);
        Ok(theirs)
    }

    /// Serves one connection, on a task of its own.
    fn connection(&self, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let dispatch = Dispatch::new(self.clone());
        let task = tokio::spawn(async move {
            let service = TowerToHyperService::new(dispatch);
            let mut http = Builder::new(TokioExecutor::new());
            http.timer(TokioTimer::new());
            if let Err(error) = http.serve_connection(TokioIo::new(io), service).await {
                tracing::debug!(%error, "a connection of the fake runtime ended");
            }
        });
        let mut host = self.host();
        host.connections.retain(|c| !c.is_finished());
        host.connections.push(task.abort_handle());
    }
}

/// Both services behind one connection.
#[derive(Clone)]
struct Dispatch {
    runtime: RuntimeServiceServer<FakeRuntime>,
    image: ImageServiceServer<FakeRuntime>,
}

impl Dispatch {
    fn new(fake: FakeRuntime) -> Self {
        Self {
            runtime: RuntimeServiceServer::new(fake.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
            image: ImageServiceServer::new(fake)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        }
    }
}

impl Service<http::Request<Incoming>> for Dispatch {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Incoming>) -> Self::Future {
        let service = request.uri().path().split('/').nth(1).unwrap_or_default();
        if service == RUNTIME {
            Box::pin(call(self.runtime.clone(), request))
        } else if service == IMAGE {
            Box::pin(call(self.image.clone(), request))
        } else {
            let status = Status::unimplemented(format!("unknown service {service}"));
            Box::pin(async move { Ok(status.into_http()) })
        }
    }
}

async fn call<S>(mut server: S, request: http::Request<Incoming>) -> Result<http::Response<Body>, Infallible>
where
    S: Service<http::Request<Incoming>, Response = http::Response<Body>, Error = Infallible>,
{
    server.call(request).await
}

/// Both traits are the fake's.
const _: fn() = || {
    fn serves<T: RuntimeService + ImageService>() {}
    serves::<FakeRuntime>();
};
