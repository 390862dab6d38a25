//! The agent's own HTTP API: HTTPS on 10250, `/healthz` on 10248, and the optional read-only port.
//!
//! `assemble` implements [`NodeView`], calls [`Server::start`] and keeps the [`Handle`]. Paths, status codes, headers
//! and texts are the stock kubelet's. What it serves and this agent does not yet, is answered 501 with the name of what
//! is missing.
//!
//! ```text
//!  accept (bounded) ─▶ TLS ─▶ HTTP/1.1 or 2 ─▶ route (pure) ─▶ authenticate ─▶ answer ─▶ body, made as it is read
//! ```
//!
//! This room asks the node through [`NodeView`] and never changes it. Request bodies are never read. Bodies are made
//! piece by piece as the client takes them, so a slow client holds a few KiB; connections, headers, handshakes, stalled
//! writes and log streams are bounded.

mod answer;
mod auth;
mod body;
mod cert;
mod checkpoint;
mod health;
mod idle;
mod logs;
mod places;
mod pods;
mod query;
mod reload;
mod route;
mod serve;
mod tls;

#[cfg(test)]
mod tests;

use crate::api::Pod;
use crate::stats::Stats;
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use auth::ClientCaError;
pub use cert::CertError;
pub use logs::{LogLookupError, LogTarget, log_container};
pub use serve::{Handle, Server, StartError};
pub use tls::TlsError;

/// What the server asks of the node. Implemented by `assemble`; no method may block.
pub trait NodeView: Send + Sync + 'static {
    /// The pods the node should run, with their current status: `/pods`.
    fn pods(&self) -> Vec<Arc<Pod>>;
    /// The pods that run according to the runtime: `/runningpods/`. An error's text is given to the client.
    fn running_pods(&self) -> BoxFuture<'_, Result<Vec<Pod>, String>>;
    /// Where the log of a container is. [`log_container`] makes the choice and upstream's errors out of a pod.
    fn container_log(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        previous: bool,
    ) -> Result<LogTarget, LogLookupError>;
    /// The pod of that namespace and name.
    fn pod(&self, namespace: &str, pod: &str) -> Option<Arc<Pod>>;
    /// Has the runtime write a checkpoint of a running container of `pod` to an archive, within `timeout` seconds (zero:
    /// the runtime's own); answers where it is. Goes on when nobody waits for it any more. An error's text is given to the
    /// client.
    fn checkpoint(
        &self,
        pod: &Pod,
        container: &str,
        timeout: i64,
    ) -> BoxFuture<'static, Result<PathBuf, String>>;
    /// Whether the agent's loops make progress: `/healthz` and `/healthz/syncloop`.
    fn healthy(&self) -> Result<(), String>;
    /// What the node and its pods use; `None` until the agent has started.
    fn stats(&self) -> Option<Stats>;
    /// The effective KubeletConfiguration as JSON; the server puts it under `kubeletconfig`.
    fn configz(&self) -> serde_json::Value;
}

/// Where to listen and what to serve; made by `assemble` from KubeletConfiguration.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// `enableServer`, `address` and `port`: the HTTPS server; `None` for none.
    pub secure: Option<SecureConfig>,
    /// `healthzBindAddress` and `healthzPort`; `None` where the port is 0.
    pub healthz: Option<SocketAddr>,
    /// `address` and `readOnlyPort`; `None` where the port is 0, the default.
    pub read_only: Option<SocketAddr>,
    /// The feature gate `PodLogsQuerySplitStreams`: allow `stream=Stdout|Stderr` on container logs.
    pub split_log_streams: bool,
    /// `streamingConnectionIdleTimeout`: how long a client may take nothing before its connection is cut.
    pub stall_timeout: Duration,
}

/// The HTTPS server.
#[derive(Clone, Debug)]
pub struct SecureConfig {
    /// `address` and `port`.
    pub address: SocketAddr,
    /// The server's certificate.
    pub certificate: CertSource,
    /// `tlsMinVersion`; empty for the default, `VersionTLS12`.
    pub min_version: String,
    /// `tlsCipherSuites`, by their IANA names; empty for all that are good.
    pub cipher_suites: Vec<String>,
    /// `authentication.x509.clientCAFile`: who signs client certificates.
    pub client_ca: Option<PathBuf>,
    /// `authentication.anonymous.enabled`: whether a client without a certificate is let in.
    pub anonymous: bool,
    /// `enableDebuggingHandlers`: logs, exec, running pods and the like.
    pub debugging: bool,
    /// `enableSystemLogHandler`
    pub system_logs: bool,
    /// `enableProfilingHandler`
    pub profiling: bool,
    /// `enableDebugFlagsHandler`
    pub debug_flags: bool,
    /// The feature gate `ContainerCheckpoint`.
    pub checkpoints: bool,
}

/// Where the serving certificate comes from.
#[derive(Clone, Debug)]
pub enum CertSource {
    /// `tlsCertFile` and `tlsPrivateKeyFile`, both PEM.
    Files {
        /// The certificate, with intermediates behind it.
        cert: PathBuf,
        /// Its key.
        key: PathBuf,
    },
    /// `kubelet.crt` and `kubelet.key` in `--cert-dir`, made for `hostname` where there are none that can be used.
    SelfMade {
        /// `--cert-dir`
        dir: PathBuf,
        /// The node's host name, or an address.
        hostname: String,
    },
}
