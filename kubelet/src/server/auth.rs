//! Who is let in: client certificates where a CA is configured, and everybody else where anonymous access is allowed.
//!
//! Whoever is let in may do everything (`authorization.mode: AlwaysAllow`); the `config` room refuses the webhook modes.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The client CA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientCaError {
    /// It cannot be read as PEM.
    #[error("authentication.x509.clientCAFile {path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: rustls::pki_types::pem::Error,
    },
    /// It holds no certificate that can sign others.
    #[error("authentication.x509.clientCAFile {path}: {source}", path = .path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Who is at the other end of a connection.
#[derive(Debug, Default)]
pub struct Peer {
    /// The certificates presented, the client's own first; none over plain HTTP.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Set once they were found good: then its connection stays when others are given up.
    pub known: Arc<AtomicBool>,
}

/// Who may come in.
#[derive(Clone, Debug)]
pub struct Door {
    /// Clients without a certificate.
    pub anonymous: bool,
    /// Who signs clients' certificates.
    pub ca: Option<ClientCa>,
}

impl Door {
    /// Whether a client is let in. A bad certificate is worse than none: it is refused
    /// even where anonymous clients are let in, as with upstream.
    pub fn admits(&self, peer: &Peer) -> bool {
        match (&self.ca, peer.certificates.split_first()) {
            (Some(ca), Some((own, intermediates))) => {
                match ca.0.verify_client_cert(own, intermediates, UnixTime::now()) {
                    Ok(_) => {
                        peer.known.store(true, Ordering::Relaxed);
                        true
                    }
                    Err(error) => {
                        tracing::debug!(%error, "client certificate refused");
                        false
                    }
                }
            }
            _ => self.anonymous,
        }
    }
}

/// The CA of clients' certificates.
#[derive(Clone, Debug)]
pub struct ClientCa(Arc<dyn ClientCertVerifier>);

impl ClientCa {
    /// Reads the CA's certificates.
    pub fn load(path: &Path) -> Result<Self, ClientCaError> {
        let read = |source| ClientCaError::Read { path: path.to_path_buf(), source };
        let unfit = |source| ClientCaError::Certificates { path: path.to_path_buf(), source };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).map_err(read)? {
            roots.add(certificate.map_err(read)?).map_err(|e| unfit(e.into()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
        Ok(Self(verifier.map_err(|e| unfit(e.into()))?))
    }

    /// Asks clients for a certificate in the handshake and takes whatever comes, so that a bad one is answered 401
    /// rather than with a broken connection. That the client holds the key is still proven.
    pub fn ask(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::new(AskOnly(self.0.clone()))
    }
}

#[derive(Debug)]
struct AskOnly(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for AskOnly {
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }
    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        // Judged for each request, by `Door::admits`.
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
