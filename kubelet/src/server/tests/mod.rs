//! The servers on loopback ports, asked by real clients: recorded behaviour, TLS, logs, and clients that misbehave.

mod client;
mod connections;
pub(super) mod node;
mod recorded;
mod streaming;

use super::*;
use client::Client;
use node::Fake;
use std::path::Path;

/// A configuration that listens on free ports only.
fn config(dir: &Path) -> ServerConfig {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    ServerConfig {
        secure: Some(SecureConfig {
            address: any,
            certificate: CertSource::SelfMade { dir: dir.join("pki"), hostname: "node-1".into() },
            min_version: String::new(),
            cipher_suites: Vec::new(),
            client_ca: None,
            anonymous: true,
            debugging: true,
            system_logs: true,
            profiling: true,
            debug_flags: true,
            checkpoints: true,
        }),
        healthz: Some(any),
        read_only: Some(any),
        split_log_streams: false,
        stall_timeout: Duration::from_secs(60),
    }
}

/// Servers that run, the node they show, and where their files are.
struct Running {
    dir: tempfile::TempDir,
    node: Arc<Fake>,
    metrics: crate::metrics::Metrics,
    handle: Handle,
}

impl Running {
    async fn new() -> Self {
        Self::with(|_| ()).await
    }

    async fn with(change: impl FnOnce(&mut ServerConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        let node = Arc::new(Fake::new(dir.path()));
        let metrics = crate::metrics::Metrics::default();
        let handle = Server::start(config, node.clone(), metrics.clone()).await.unwrap();
        Self { dir, node, metrics, handle }
    }

    /// A client of 10250 that checks the server's certificate against its signer.
    async fn secure(&self) -> Client {
        Client::tls(self.handle.secure.unwrap(), client::trusting(self.dir.path())).await.unwrap()
    }
}
