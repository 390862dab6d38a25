//! How a byte stream to a runtime comes about: a unix socket for real ones, anything for tests.
//!
//! [`crate::Client`] takes a [`Connector`]; `link` calls it for every connection attempt. Nothing here retries.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

/// A byte stream in both directions.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

type Connect = dyn Fn() -> BoxFuture<'static, io::Result<Box<dyn Io>>> + Send + Sync;

/// Makes a new connection to one endpoint each time it is asked. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    name: Arc<str>,
    connect: Arc<Connect>,
}

/// An endpoint that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("endpoint {endpoint:?}: {reason}")]
pub struct EndpointError {
    /// The endpoint as it was given.
    pub endpoint: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Connector {
    /// An endpoint as the kubelet's flags and configuration name it: `unix:///run/containerd/containerd.sock`, or the
    /// plain absolute path.
    ///
    /// # Errors
    /// Another scheme (`tcp:`, `npipe:`…), or a path that is empty or relative.
    pub fn parse(endpoint: &str) -> Result<Self, EndpointError> {
        let refuse = |reason| EndpointError { endpoint: endpoint.to_owned(), reason };
        let path = match endpoint.split_once(':') {
            Some(("unix", rest)) => rest.strip_prefix("//").unwrap_or(rest),
            Some((scheme, _)) if !scheme.contains('/') => {
                return Err(refuse("only unix sockets are supported"));
            }
            _ => endpoint,
        };
        if path.is_empty() {
            return Err(refuse("the path of a unix socket is missing"));
        }
        if !path.starts_with('/') {
            return Err(refuse("the path of a unix socket must be absolute"));
        }
        Ok(Self::unix(path))
    }

    /// A unix socket by its path.
    #[must_use]
    pub fn unix(path: impl AsRef<Path>) -> Self {
        let path: PathBuf = path.as_ref().to_owned();
        let name = path.display().to_string();
        Self::from_fn(name, move || {
            let path = path.clone();
            async move { UnixStream::connect(path).await }
        })
    }

    /// Any transport. `name` is what errors call the endpoint; `connect` is called once for each connection attempt.
    pub fn from_fn<F, Fut, T>(name: impl Into<Arc<str>>, connect: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<T>> + Send + 'static,
        T: Io,
    {
        let connect = move || -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
            let connecting = connect();
            Box::pin(async move { Ok(Box::new(connecting.await?) as Box<dyn Io>) })
        };
        Self { name: name.into(), connect: Arc::new(connect) }
    }

    /// What errors call the endpoint.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) async fn connect(&self) -> io::Result<Box<dyn Io>> {
        (self.connect)().await
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connector").field(&self.name).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("unix:///run/a.sock", Ok("/run/a.sock"))]
    #[case("unix:/run/a.sock", Ok("/run/a.sock"))]
    #[case("/run/a.sock", Ok("/run/a.sock"))]
    #[case("/run/od:d.sock", Ok("/run/od:d.sock"))]
    #[case("unix://", Err("the path of a unix socket is missing"))]
    #[case("", Err("the path of a unix socket is missing"))]
    #[case("run/a.sock", Err("the path of a unix socket must be absolute"))]
    #[case("unix://run/a.sock", Err("the path of a unix socket must be absolute"))]
    #[case("tcp://127.0.0.1:1", Err("only unix sockets are supported"))]
    #[case("npipe:////./pipe/containerd", Err("only unix sockets are supported"))]
    fn endpoints_are_unix_sockets_with_absolute_paths(#[case] text: &str, #[case] want: Result<&str, &str>) {
        let got = Connector::parse(text);
        assert_eq!(got.as_ref().map(Connector::name).map_err(|e| e.reason), want);
    }
}
