//! TLS, authentication, clients that misbehave, starting and stopping.

use super::*;
use crate::server::auth::{ClientCa, Door, Peer};
use crate::server::reload::Reload;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

fn authority() -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params, KeyPair::generate().unwrap())
}

/// A client's certificate, signed by `ca`.
fn certificate(
    ca: &CertificateParams,
    ca_key: &KeyPair,
    days: i64,
) -> (rustls::pki_types::CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.not_before = (std::time::SystemTime::now() - Duration::from_secs(30 * 86_400)).into();
    let end = Duration::from_secs(days.unsigned_abs() * 86_400);
    let now = std::time::SystemTime::now();
    params.not_after = if days < 0 { (now - end).into() } else { (now + end).into() };
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let cert = params.signed_by(&key, &Issuer::from_params(ca, ca_key)).unwrap();
    (cert.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

/// A TLS client that presents a certificate signed by `ca`.
fn signed_by(running: &Running, ca: &CertificateParams, ca_key: &KeyPair, days: i64) -> rustls::ClientConfig {
    let (cert, key) = certificate(ca, ca_key, days);
    client::presenting(running.dir.path(), vec![cert], key)
}

#[test]
fn only_a_good_certificate_makes_a_peer_known() {
    let ((ca, ca_key), (stranger, stranger_key)) = (authority(), authority());
    let files = tempfile::tempdir().unwrap();
    let ca_file = files.path().join("ca.crt");
    std::fs::write(&ca_file, ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let door = Door { anonymous: true, ca: Some(ClientCa::load(&ca_file).unwrap()) };
    let judge = |certificates| {
        let peer = Peer { certificates, ..Peer::default() };
        (door.admits(&peer), peer.known.load(Ordering::Relaxed))
    };
    assert_eq!(judge(Vec::new()), (true, false), "let in, and not known");
    assert_eq!(judge(vec![certificate(&stranger, &stranger_key, 1).0]), (false, false));
    assert_eq!(judge(vec![certificate(&ca, &ca_key, 1).0]), (true, true));
}

#[tokio::test]
async fn certificates_are_read_again_when_their_files_change() {
    let ((old, old_key), (new, new_key)) = (authority(), authority());
    let files = tempfile::tempdir().unwrap();
    let ca_file = files.path().join("ca.crt");
    std::fs::write(&ca_file, old.self_signed(&old_key).unwrap().pem()).unwrap();
    let running = Running::with(|c| {
        let secure = c.secure.as_mut().unwrap();
        (secure.client_ca, secure.anonymous) = (Some(ca_file.clone()), false);
    })
    .await;
    let address = running.handle.secure.unwrap();
    let mut open = Client::tls(address, signed_by(&running, &old, &old_key, 1)).await.unwrap();
    assert_eq!(open.get("/pods").await.status, 200);
    std::fs::write(&ca_file, new.self_signed(&new_key).unwrap().pem()).unwrap();
    let judged = async {
        while open.get("/pods").await.status != 401 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, judged).await.expect("a connection that is open is judged by the new CA, too");
    let mut known = Client::tls(address, signed_by(&running, &new, &new_key, 1)).await.unwrap();
    assert_eq!(known.get("/pods").await.status, 200);

    let other = tempfile::tempdir().unwrap();
    cert::ensure(&CertSource::SelfMade { dir: other.path().join("pki"), hostname: "node-1".into() }).unwrap();
    for file in ["kubelet.key", "kubelet.crt"] {
        std::fs::rename(other.path().join("pki").join(file), running.dir.path().join("pki").join(file))
            .unwrap();
    }
    // Trusts the new one alone.
    let trusting = client::trusting(running.dir.path());
    let served = async {
        while Client::tls(address, trusting.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, served).await.expect("the new certificate is served");
}

#[test]
fn certificates_that_cannot_be_used_are_left_until_they_can() {
    let dir = tempfile::tempdir().unwrap();
    let (mut reload, _) = Reload::start(config(dir.path()).secure.unwrap()).unwrap();
    assert!(reload.again().is_none(), "nothing has changed");
    let file = dir.path().join("pki/kubelet.crt");
    let good = std::fs::read(&file).unwrap();
    std::fs::write(&file, "garbage").unwrap();
    assert!(reload.again().is_none());
    std::fs::remove_file(&file).unwrap();
    assert!(reload.again().is_none());
    std::fs::write(&file, good).unwrap();
    assert!(reload.again().is_some());
    assert!(reload.again().is_none(), "nothing has changed since");
}

#[tokio::test]
async fn an_http2_connection_that_asks_nothing_more_is_closed_though_it_answers_pings() {
    let running = Running::new().await;
    let mut tls = client::trusting(running.dir.path());
    tls.alpn_protocols = vec!["h2".into()];
    let mut client = Client::tls(running.handle.secure.unwrap(), tls).await.unwrap();
    assert_eq!(client.get("/healthz").await.status, 200);
    let Client::Two(sender) = client else { panic!("not HTTP/2") };
    tokio::time::pause();
    let closed = async {
        while !sender.is_closed() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(Duration::from_secs(3600), closed).await.expect("it is still open");
}

#[tokio::test]
async fn client_certificates_are_judged_by_their_signer_and_time() {
    let ((ca, ca_key), (stranger, stranger_key)) = (authority(), authority());
    let files = tempfile::tempdir().unwrap();
    let ca_file = files.path().join("ca.crt");
    std::fs::write(&ca_file, ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    for anonymous in [false, true] {
        let running = Running::with(|c| {
            let secure = c.secure.as_mut().unwrap();
            secure.client_ca = Some(ca_file.clone());
            secure.anonymous = anonymous;
        })
        .await;
        let status = async |config| {
            let mut client = Client::tls(running.handle.secure.unwrap(), config).await.unwrap();
            client.get("/pods").await.status
        };
        assert_eq!(status(signed_by(&running, &ca, &ca_key, 1)).await, 200);
        assert_eq!(status(signed_by(&running, &ca, &ca_key, -1)).await, 401, "expired");
        assert_eq!(status(signed_by(&running, &stranger, &stranger_key, 1)).await, 401, "of another signer");
        assert_eq!(status(client::trusting(running.dir.path())).await, if anonymous { 200 } else { 401 });
    }
}

#[tokio::test]
async fn the_self_made_certificate_serves_its_name_and_survives_a_restart() {
    let running = Running::new().await;
    running.secure().await.get("/healthz").await;
    // The same directory, started again: a client that trusted the first one trusts the second one.
    let trusting = client::trusting(running.dir.path());
    let again =
        Server::start(config(running.dir.path()), running.node.clone(), Default::default()).await.unwrap();
    let mut client = Client::tls(again.secure.unwrap(), trusting.clone()).await.unwrap();
    assert_eq!(client.get("/healthz").await.status, 200);
    // Another name is not this node's.
    let tcp = TcpStream::connect(again.secure.unwrap()).await.unwrap();
    let other = rustls::pki_types::ServerName::try_from("node-2").unwrap();
    assert!(tokio_rustls::TlsConnector::from(Arc::new(trusting)).connect(other, tcp).await.is_err());
}

#[tokio::test]
async fn versions_below_the_least_are_not_spoken() {
    let running = Running::with(|c| c.secure.as_mut().unwrap().min_version = "VersionTLS13".into()).await;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls12 = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    tls12.enable_sni = false;
    let error = Client::tls(running.handle.secure.unwrap(), tls12).await.err().unwrap().to_string();
    assert!(error.contains("ProtocolVersion"), "{error}");
    assert_eq!(running.secure().await.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off_and_holds_no_page() {
    let stall = Duration::from_millis(300);
    let running = Running::with(|c| c.stall_timeout = stall).await;
    // Far more than the kernel's buffers take.
    let pod = running.node.pods.lock().unwrap()[0].clone();
    *running.node.pods.lock().unwrap() = vec![pod; 20_000];
    let mut slow = TcpStream::connect(running.handle.read_only.unwrap()).await.unwrap();
    slow.write_all(b"GET /pods HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let inflight = running.metrics.http_inflight.with(["false", "GET", "pods", "readonly"]);
    timeout(SOON, async {
        while inflight.get() < 1.0 {
            tokio::task::yield_now().await;
        }
        while inflight.get() > 0.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the client still has its place");
    // What was on the way comes, and not all of it.
    let mut got = Vec::new();
    let _ = timeout(SOON, slow.read_to_end(&mut got)).await.expect("the connection is closed");
    assert!(got.len() < 20_000 * 4000, "{} bytes", got.len());
    assert_eq!(
        Arc::strong_count(&running.node.pods.lock().unwrap()[0]),
        20_000,
        "nobody else holds the pods"
    );
}

#[tokio::test]
async fn requests_that_are_none_are_refused() {
    let running = Running::new().await;
    let address = running.handle.read_only.unwrap();
    let raw = async |request: &[u8]| {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        // The server may close before it has taken everything.
        let _ = tcp.write_all(request).await;
        let mut answer = Vec::new();
        let _ = timeout(SOON, tcp.read_to_end(&mut answer)).await.expect("an end");
        String::from_utf8_lossy(&answer).into_owned()
    };
    let line = |answer: String| answer.lines().next().unwrap_or_default().to_string();
    assert_eq!(line(raw(b"\x16\x03\x01 this is TLS\r\n\r\n").await), "HTTP/1.1 400 Bad Request");
    assert_eq!(
        line(raw(b"GET /%zz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await),
        "HTTP/1.1 400 Bad Request"
    );
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(100_000));
    let refused = line(raw(long.as_bytes()).await);
    assert!(refused.is_empty() || refused.contains(" 414 ") || refused.contains(" 431 "), "{refused}");
    // A body nobody asked for is not taken in.
    let post = b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nConnection: close\r\n\r\nabcd";
    assert_eq!(line(raw(post).await), "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn silent_clients_do_not_keep_others_out() {
    let running = Running::new().await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(running.handle.secure.unwrap()).await.unwrap());
    }
    assert_eq!(timeout(SOON, running.secure()).await.unwrap().get("/healthz").await.status, 200);
}

#[tokio::test]
async fn stopping_closes_the_ports_and_ends_what_hangs() {
    for alpn in ["http/1.1", "h2"] {
        let running = Running::new().await;
        let address = running.handle.secure.unwrap();
        let mut idle = running.secure().await;
        idle.get("/healthz").await;
        let mut tls = client::trusting(running.dir.path());
        tls.alpn_protocols = vec![alpn.into()];
        let mut follower = Client::tls(address, tls).await.unwrap();
        let following = follower.send("GET", "/containerLogs/demo/facts-a/c2?follow=true").await.unwrap();
        timeout(SOON, running.handle.stop(Duration::from_millis(50))).await.expect("stopped");
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
        assert_eq!(running.node.running.receiver_count(), 0, "nobody follows");
        drop(following);
    }
}

#[tokio::test]
async fn what_is_not_configured_does_not_listen() {
    let running = Running::with(|c| (c.secure, c.healthz, c.read_only) = (None, None, None)).await;
    let handle = &running.handle;
    assert_eq!((handle.secure, handle.healthz, handle.read_only), (None, None, None));
    assert!(!running.dir.path().join("pki").exists(), "no certificate for nobody");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let running = Running::new().await;
    let mut config = config(running.dir.path());
    config.healthz = running.handle.healthz;
    let error =
        Server::start(config, running.node.clone(), Default::default()).await.unwrap_err().to_string();
    assert!(error.starts_with("healthzPort: cannot listen on 127.0.0.1:"), "{error}");
}

#[tokio::test]
async fn settings_that_cannot_be_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let start = async |change: &dyn Fn(&mut SecureConfig)| {
        let mut config = config(dir.path());
        change(config.secure.as_mut().unwrap());
        let node = Arc::new(Fake::new(dir.path()));
        Server::start(config, node, Default::default()).await.unwrap_err().to_string()
    };
    let error = start(&|c| c.client_ca = Some("/nonexistent/ca.crt".into())).await;
    assert!(error.contains("authentication.x509.clientCAFile /nonexistent/ca.crt"), "{error}");
    let error = start(&|c| c.cipher_suites = vec!["NONE".into()]).await;
    assert!(error.contains("tlsCipherSuites") && error.contains("NONE"), "{error}");
    let error = start(&|c| c.min_version = "VersionTLS11".into()).await;
    assert!(error.contains("tlsMinVersion") && error.contains("VersionTLS11"), "{error}");
}
