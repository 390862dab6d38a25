//! A registry of our own: the pull side of the OCI distribution protocol over images built here, on the loopback.
//!
//! It can demand credentials (basic, or a bearer token that is fetched with them), speak TLS, and misbehave for chosen
//! repositories. It takes down who asked for what. It ends with its value.

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use oci_spec::image::Descriptor;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use xtask::image::Layout;

/// Whom the registry lets in.
#[derive(Clone, Debug, Default)]
pub enum Access {
    /// Everybody.
    #[default]
    Open,
    /// This user with this password, by basic authentication.
    Basic(String, String),
    /// Holders of a token, which this user gets with this password.
    Bearer(String, String),
}

/// How a repository misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every request gets this status.
    Status(u16),
    /// Every connection is cut without an answer.
    Reset,
    /// Blobs end in the middle.
    Truncated,
    /// No request is answered until the fault is taken away.
    Stalled,
}

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
    certificate: Option<String>,
}

#[derive(Debug)]
struct State {
    access: Access,
    content: Mutex<Content>,
    faults: watch::Sender<HashMap<String, Fault>>,
    requests: watch::Sender<Vec<String>>,
    realm: String,
}

#[derive(Debug, Default)]
struct Content {
    /// By repository and tag or digest.
    manifests: HashMap<(String, String), Blob>,
    /// By repository and digest.
    blobs: HashMap<(String, String), Blob>,
}

#[derive(Clone, Debug)]
struct Blob {
    media_type: String,
    digest: String,
    bytes: Bytes,
}

/// The token that the token server gives.
const TOKEN: &str = "a-token-of-the-test";

impl Registry {
    /// Serves over plain HTTP.
    pub async fn start(access: Access) -> Self {
        Self::begin(access, None).await
    }

    /// Serves over TLS with a certificate of its own.
    ///
    /// # Panics
    /// When no certificate can be made.
    pub async fn start_tls(access: Access) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        Self::begin(access, Some(made)).await
    }

    async fn begin(access: Access, tls: Option<rcgen::CertifiedKey<rcgen::KeyPair>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let state = Arc::new(State {
            access,
            content: Mutex::default(),
            faults: watch::Sender::default(),
            requests: watch::Sender::default(),
            realm: format!("{scheme}://{address}/token"),
        });
        let certificate = tls.as_ref().map(|t| t.cert.pem());
        let acceptor = tls.map(|t| acceptor(&t));
        let task = tokio::spawn(serve(listener, acceptor, state.clone()));
        Self { address, state, task, certificate }
    }

    /// What stands before the repository in an image's name.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Offers `layout` as `repository:tag`; returns the image's full name.
    ///
    /// # Panics
    /// When the layout cannot be read.
    pub fn offer(&self, repository: &str, tag: &str, layout: &Layout) -> String {
        let (target, manifest) = (layout.target().unwrap(), layout.manifest().unwrap());
        let blob = |d: &Descriptor| Blob {
            media_type: "application/octet-stream".to_owned(),
            digest: d.digest().to_string(),
            bytes: layout.blob(d).unwrap().into(),
        };
        let mut content = self.state.content();
        for descriptor in [vec![manifest.config().clone()], manifest.layers().clone()].concat() {
            let blob = blob(&descriptor);
            content.blobs.insert((repository.to_owned(), blob.digest.clone()), blob);
        }
        let served = Blob { media_type: target.media_type().to_string(), ..blob(&target) };
        for name in [tag.to_owned(), served.digest.clone()] {
            content.manifests.insert((repository.to_owned(), name), served.clone());
        }
        self.name(repository, tag)
    }

    /// Offers something that is no image as `repository:tag`; returns its full name.
    pub fn offer_rubbish(&self, repository: &str, tag: &str) -> String {
        let served = Blob {
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            digest: "sha256:e19bd3c06efc4a1efe9c9d4d4cbe2b3e77ba9af1f3c1e8b9d9a6a9d5a7b3c1f0".to_owned(),
            bytes: Bytes::from_static(b"{\"this\": \"is no image\"}"),
        };
        self.state.content().manifests.insert((repository.to_owned(), tag.to_owned()), served);
        self.name(repository, tag)
    }

    /// The full name of `repository:tag` here.
    pub fn name(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.address)
    }

    /// Makes a repository misbehave, or behave again.
    pub fn fault(&self, repository: &str, fault: Option<Fault>) {
        self.state.faults.send_modify(|faults| match fault {
            Some(fault) => drop(faults.insert(repository.to_owned(), fault)),
            None => drop(faults.remove(repository)),
        });
    }

    /// Everything asked so far, as `METHOD path user`; the user is `-` for nobody and `token` for a token's holder.
    pub fn requests(&self) -> Vec<String> {
        self.state.requests.borrow().clone()
    }

    /// Waits until something was asked that contains `part`.
    ///
    /// # Panics
    /// Never: the registry outlives the wait.
    pub async fn asked(&self, part: &str) {
        let mut requests = self.state.requests.subscribe();
        requests.wait_for(|all| all.iter().any(|r| r.contains(part))).await.unwrap();
    }

    /// Tells a containerd whose `config_path` is `dir` how to reach this registry.
    ///
    /// # Panics
    /// When the files cannot be written.
    pub fn announce(&self, dir: &Path) -> PathBuf {
        let at = dir.join(self.host());
        std::fs::create_dir_all(&at).unwrap();
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", self.address);
        let mut text =
            format!("server = {url:?}\n[host.{url:?}]\n  capabilities = [\"pull\", \"resolve\"]\n");
        if let Some(pem) = &self.certificate {
            let ca = at.join("ca.crt");
            std::fs::write(&ca, pem).unwrap();
            text += &format!("  ca = {:?}\n", ca.display().to_string());
        }
        std::fs::write(at.join("hosts.toml"), text).unwrap();
        at
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn acceptor(made: &rcgen::CertifiedKey<rcgen::KeyPair>) -> tokio_rustls::TlsAcceptor {
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

async fn serve(listener: TcpListener, acceptor: Option<tokio_rustls::TlsAcceptor>, state: Arc<State>) {
    // Connections end with the registry.
    let mut connections = JoinSet::new();
    loop {
        let Ok((socket, _)) = listener.accept().await else { return };
        let (state, acceptor) = (state.clone(), acceptor.clone());
        connections.spawn(async move {
            match acceptor {
                None => connection(socket, state).await,
                // Who does not like the certificate goes away.
                Some(acceptor) => {
                    if let Ok(socket) = acceptor.accept(socket).await {
                        connection(socket, state).await;
                    }
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(socket: impl AsyncRead + AsyncWrite + Unpin, state: Arc<State>) {
    let service = service_fn(|request| answer(request, state.clone()));
    // A cut connection is what some tests are about.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
}

type Answer = Response<Full<Bytes>>;

async fn answer(request: Request<Incoming>, state: Arc<State>) -> Result<Answer, std::io::Error> {
    let path = request.uri().path().to_owned();
    let user = user(request.headers());
    state.requests.send_modify(|all| all.push(format!("{} {path} {}", request.method(), user.0)));
    if path == "/token" {
        return Ok(state.token(request.method(), &user));
    }
    let Some((repository, kind, name)) = split(&path) else {
        return Ok(if state.lets_in(&user) { plain(StatusCode::OK) } else { state.challenge() });
    };
    let mut faults = state.faults.subscribe();
    let stalled = |faults: &HashMap<String, Fault>| faults.get(&repository) == Some(&Fault::Stalled);
    // The sender lives in the state.
    let fault = faults.wait_for(|f| !stalled(f)).await.ok().and_then(|f| f.get(&repository).copied());
    match fault {
        Some(Fault::Status(status)) => {
            return Ok(plain(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)));
        }
        Some(Fault::Reset) => return Err(std::io::ErrorKind::ConnectionReset.into()),
        _ => {}
    }
    if !state.lets_in(&user) {
        return Ok(state.challenge());
    }
    let content = state.content();
    let table = if kind == "manifests" { &content.manifests } else { &content.blobs };
    let Some(blob) = table.get(&(repository, name)) else { return Ok(plain(StatusCode::NOT_FOUND)) };
    let mut bytes = blob.bytes.clone();
    if fault == Some(Fault::Truncated) && kind == "blobs" {
        bytes.truncate(bytes.len() / 2);
    }
    let answer = Response::builder()
        .header(header::CONTENT_TYPE, &blob.media_type)
        .header(header::CONTENT_LENGTH, bytes.len())
        .header("Docker-Content-Digest", &blob.digest);
    let body = if request.method() == Method::HEAD { Bytes::new() } else { bytes };
    Ok(answer.body(Full::new(body)).unwrap())
}

/// `/v2/<repository>/<manifests|blobs>/<name>`
fn split(path: &str) -> Option<(String, &'static str, String)> {
    let rest = path.strip_prefix("/v2/")?;
    ["manifests", "blobs"].into_iter().find_map(|kind| {
        let (repository, name) = rest.split_once(&format!("/{kind}/"))?;
        Some((repository.to_owned(), kind, name.to_owned()))
    })
}

/// Who asks, and the password.
fn user(headers: &HeaderMap) -> (String, String) {
    let text = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if let Some(token) = text.strip_prefix("Bearer ") {
        return ("token".to_owned(), token.to_owned());
    }
    let decoded = text
        .strip_prefix("Basic ")
        .and_then(|t| base64::engine::general_purpose::STANDARD.decode(t).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
    pair.map_or(("-".to_owned(), String::new()), |(user, password)| (user.to_owned(), password.to_owned()))
}

impl State {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lets_in(&self, (user, password): &(String, String)) -> bool {
        match &self.access {
            Access::Open => true,
            Access::Basic(u, p) => user == u && password == p,
            Access::Bearer(..) => user == "token" && password == TOKEN,
        }
    }

    fn challenge(&self) -> Answer {
        let challenge = match &self.access {
            Access::Bearer(..) => format!("Bearer realm={:?},service=\"test\"", self.realm),
            _ => "Basic realm=\"test\"".to_owned(),
        };
        let answer = Response::builder().status(StatusCode::UNAUTHORIZED);
        answer.header(header::WWW_AUTHENTICATE, challenge).body(Full::default()).unwrap()
    }

    /// Tokens are had by GET; who comes with POST (OAuth 2) is sent away, as by many registries.
    fn token(&self, method: &Method, (user, password): &(String, String)) -> Answer {
        match &self.access {
            _ if method != Method::GET => plain(StatusCode::METHOD_NOT_ALLOWED),
            Access::Bearer(u, p) if user == u && password == p => {
                let body = format!("{{\"token\": {TOKEN:?}, \"expires_in\": 300}}");
                Response::builder()
                    .header(header::CONTENT_TYPE, "application/json")
                    .body(Full::new(body.into()))
                    .unwrap()
            }
            _ => plain(StatusCode::UNAUTHORIZED),
        }
    }
}

fn plain(status: StatusCode) -> Answer {
    Response::builder().status(status).body(Full::default()).unwrap()
}
