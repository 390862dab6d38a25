//! Asks the agent that `up` started: `GET` over HTTPS with the owner's certificate.
//!
//! Called while `up` waits and by `down`. Answers are bounded in size and time.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::pki::Pki;

const LIMIT: Duration = Duration::from_secs(10);
const MAX_BODY: usize = 64 << 20;

/// The agent's API at 127.0.0.1.
pub(super) struct Api {
    connector: TlsConnector,
    port: u16,
}

impl Api {
    pub(super) fn new(pki: &Pki, port: u16) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(pki.ca()).context("read the CA certificate")?)?;
        let certificate =
            CertificateDer::from_pem_file(pki.client_cert()).context("read the client certificate")?;
        let key = PrivateKeyDer::from_pem_file(pki.client_key()).context("read the client key")?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), port })
    }

    /// What the agent knows of its pods.
    pub(super) async fn pods(&self) -> Result<Vec<Pod>> {
        let body = tokio::time::timeout(LIMIT, self.get("/pods")).await.context("GET /pods: no answer")??;
        let list: List<Pod> = serde_json::from_slice(&body).context("GET /pods: not a list of pods")?;
        Ok(list.items)
    }

    async fn get(&self, path: &str) -> Result<Bytes> {
        let stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.context("connect to the agent")?;
        let name = ServerName::try_from("localhost")?;
        let stream = self.connector.connect(name, stream).await.context("TLS with the agent")?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = hyper::Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        driver.abort();
        let body = body.map_err(|error| anyhow::anyhow!("GET {path}: {error}"))?.to_bytes();
        if !status.is_success() {
            bail!("GET {path}: {status}: {}", String::from_utf8_lossy(&body).trim());
        }
        Ok(body)
    }
}
