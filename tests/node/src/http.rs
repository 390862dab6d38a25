//! Requests to the agent: one connection each, plain or TLS with the agent's own certificate as the authority.

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// No single answer takes so long.
const LIMIT: Duration = Duration::from_secs(30);

/// An answer read to its end.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// `Content-Type`, empty when there is none.
    pub content_type: String,
    /// The body.
    pub body: String,
}

/// GET over plain HTTP from a port of the loopback.
pub async fn get(port: u16, path: &str) -> Result<Answer> {
    let work = async {
        let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
        whole(ask(tcp, Method::GET, path).await?).await
    };
    tokio::time::timeout(LIMIT, work).await.context("no whole answer in time")?
}

/// GET over HTTPS; the server must have the certificate in `cert_dir/kubelet.crt` and be called `name`.
pub async fn get_tls(port: u16, cert_dir: &Path, name: &str, path: &str) -> Result<Answer> {
    let work = async { whole(open_tls(port, cert_dir, name, path).await?).await };
    tokio::time::timeout(LIMIT, work).await.context("no whole answer in time")?
}

/// POST without a body, as [`get_tls`].
pub async fn post_tls(port: u16, cert_dir: &Path, name: &str, path: &str) -> Result<Answer> {
    let work = async { whole(ask(connect(port, cert_dir, name).await?, Method::POST, path).await?).await };
    tokio::time::timeout(LIMIT, work).await.context("no whole answer in time")?
}

/// As [`get_tls`], for a body that is read as it comes.
pub async fn open_tls(port: u16, cert_dir: &Path, name: &str, path: &str) -> Result<Response<Incoming>> {
    ask(connect(port, cert_dir, name).await?, Method::GET, path).await
}

async fn connect(port: u16, cert_dir: &Path, name: &str) -> Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_file_iter(cert_dir.join("kubelet.crt"))? {
        roots.add(cert?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
    Ok(TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name.to_owned())?, tcp).await?)
}

/// The next piece of a body as text; `None` at its end.
pub async fn piece(answer: &mut Response<Incoming>) -> Option<String> {
    loop {
        let frame = tokio::time::timeout(LIMIT, answer.body_mut().frame()).await.expect("a piece in time")?;
        if let Ok(data) = frame.expect("an unbroken body").into_data() {
            return Some(String::from_utf8_lossy(&data).into_owned());
        }
    }
}

async fn ask(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: Method,
    path: &str,
) -> Result<Response<Incoming>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    // It ends with the answer's body.
    tokio::spawn(connection);
    let request =
        Request::builder().method(method).uri(path).header("Host", "localhost").body(Empty::<Bytes>::new())?;
    Ok(sender.send_request(request).await?)
}

async fn whole(answer: Response<Incoming>) -> Result<Answer> {
    let status = answer.status().as_u16();
    let content_type =
        answer.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let body = answer.into_body().collect().await?.to_bytes();
    Ok(Answer { status, content_type, body: String::from_utf8_lossy(&body).into_owned() })
}
