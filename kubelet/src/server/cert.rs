//! The serving certificate: read from the files given, or made once and kept under `--cert-dir`. Blocks on the disk.
//!
//! What is made looks like upstream's: `CN=<host>@<unix time>`, signed by a throw-away `CN=<host>-ca@<unix time>` whose
//! certificate stands behind it in the file and whose key is forgotten, valid for a year. Keys are ECDSA P-256 where
//! upstream's are RSA.

use super::CertSource;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const CERT_FILE: &str = "kubelet.crt";
const KEY_FILE: &str = "kubelet.key";
const VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);
/// Clients' clocks may be a little behind.
const BACKDATED: Duration = Duration::from_secs(3600);

/// There is no certificate to serve with.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A file given cannot be read as PEM.
    #[error("{field} {path}: {source}", path = .path.display())]
    Read {
        /// `tlsCertFile` or `tlsPrivateKeyFile`, or their names under `--cert-dir`.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not belong together, or cannot be used.
    #[error("certificate {cert} with key {key}: {reason}", cert = .cert.display(), key = .key.display())]
    Unusable {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong with them.
        reason: String,
    },
    /// A certificate cannot be made.
    #[error("self-made certificate for {hostname:?}: {source}")]
    Make {
        /// Whom it is for.
        hostname: String,
        /// Why not.
        source: rcgen::Error,
    },
    /// A certificate cannot be kept.
    #[error("certificate directory {path}: {source}", path = .path.display())]
    Keep {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Identity {
    /// The certificate, then whatever signs it.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

/// The certificate's file and its key's.
pub fn files(source: &CertSource) -> [PathBuf; 2] {
    match source {
        CertSource::Files { cert, key } => [cert.clone(), key.clone()],
        CertSource::SelfMade { dir, .. } => [dir.join(CERT_FILE), dir.join(KEY_FILE)],
    }
}

/// The identity to serve with, as the files are now.
pub fn read(source: &CertSource) -> Result<Identity, CertError> {
    let [cert, key] = files(source);
    let identity = match source {
        CertSource::Files { .. } => read_pair(&cert, &key, ["tlsCertFile", "tlsPrivateKeyFile"])?,
        CertSource::SelfMade { .. } => read_pair(&cert, &key, [CERT_FILE, KEY_FILE])?,
    };
    match check_key(&identity) {
        Ok(()) => Ok(identity),
        Err(reason) => Err(CertError::Unusable { cert, key, reason }),
    }
}

/// Makes a certificate where this agent is to make it and none can be used.
pub fn ensure(source: &CertSource) -> Result<(), CertError> {
    let CertSource::SelfMade { dir, hostname } = source else { return Ok(()) };
    let [cert, key] = files(source);
    if cert.exists() || key.exists() {
        let kept = read(source).map_err(|e| e.to_string());
        match kept.and_then(|kept| check_time(&kept)) {
            Ok(()) => return Ok(()),
            Err(reason) => {
                tracing::warn!(cert = %cert.display(), reason, "serving certificate cannot be used, making a new one");
                // Put aside rather than overwritten: somebody may have put their own there.
                for file in [&cert, &key] {
                    let aside = file.with_extension(format!(
                        "{}.old",
                        file.extension().unwrap_or_default().to_string_lossy()
                    ));
                    match fs::rename(file, &aside) {
                        Err(source) if source.kind() != io::ErrorKind::NotFound => {
                            return Err(CertError::Keep { path: file.clone(), source });
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    let made = make(hostname, SystemTime::now())
        .map_err(|source| CertError::Make { hostname: hostname.into(), source })?;
    fs::create_dir_all(dir).map_err(|source| CertError::Keep { path: dir.into(), source })?;
    // Should only one arrive, the pair does not match and is made anew at the next start.
    store(dir, KEY_FILE, &made.key_pem, 0o600)?;
    store(dir, CERT_FILE, &made.cert_pem, 0o644)
}

fn read_pair(cert: &Path, key: &Path, fields: [&'static str; 2]) -> Result<Identity, CertError> {
    let failed = |field, path: &Path| {
        let path = path.to_path_buf();
        move |source| CertError::Read { field, path, source }
    };
    let chain: Vec<_> =
        CertificateDer::pem_file_iter(cert)
            .and_then(Iterator::collect)
            .and_then(|chain: Vec<_>| {
                if chain.is_empty() { Err(rustls::pki_types::pem::Error::NoItemsFound) } else { Ok(chain) }
            })
            .map_err(failed(fields[0], cert))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(failed(fields[1], key))?;
    Ok(Identity { chain, key })
}

/// Whether the key is the certificate's.
fn check_key(identity: &Identity) -> Result<(), String> {
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(identity.chain.clone(), identity.key.clone_key(), &provider)
        .map(|_| ())
        .map_err(|e| e.to_string())
}

/// Whether the certificate is valid now. Who signed it and for which name is its owner's business.
fn check_time(identity: &Identity) -> Result<(), String> {
    use rustls::{CertificateError as Bad, Error};
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(identity.chain.iter().skip(1).cloned());
    if roots.is_empty() {
        // The verifier wants a root, whichever: the certificate's own time is judged before its signer is looked for.
        roots.add_parsable_certificates(identity.chain.iter().cloned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), provider)
        .build()
        .map_err(|e| e.to_string())?;
    // Any name will do: a wrong name is found last.
    let name = ServerName::try_from("localhost").map_err(|e| e.to_string())?;
    let Some(own) = identity.chain.first() else { return Err("no certificate".into()) };
    match verifier.verify_server_cert(own, &identity.chain[1..], &name, &[], UnixTime::now()) {
        Err(
            e @ Error::InvalidCertificate(
                Bad::Expired
                | Bad::ExpiredContext { .. }
                | Bad::NotValidYet
                | Bad::NotValidYetContext { .. }
                | Bad::BadEncoding,
            ),
        ) => Err(e.to_string()),
        _ => Ok(()),
    }
}

struct Made {
    cert_pem: String,
    key_pem: String,
}

fn make(hostname: &str, now: SystemTime) -> Result<Made, rcgen::Error> {
    let stamp = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let valid = |params: &mut CertificateParams, name: String| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + VALIDITY).into();
    };
    let mut ca = CertificateParams::default();
    valid(&mut ca, format!("{hostname}-ca@{stamp}"));
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::KeyCertSign,
    ];
    let ca_key = KeyPair::generate()?;
    let ca_cert = ca.self_signed(&ca_key)?;

    // A host name that is an address becomes an address in the certificate.
    let mut own = CertificateParams::new([hostname.to_string()])?;
    valid(&mut own, format!("{hostname}@{stamp}"));
    own.is_ca = IsCa::ExplicitNoCa;
    own.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    own.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let cert = own.signed_by(&key, &Issuer::new(ca, ca_key))?;
    Ok(Made { cert_pem: cert.pem() + &ca_cert.pem(), key_pem: key.serialize_pem() })
}

/// Writes a file so that it is there whole or not at all, also after a crash.
fn store(dir: &Path, name: &str, content: &str, mode: u32) -> Result<(), CertError> {
    let (path, temp) = (dir.join(name), dir.join(format!(".{name}.tmp")));
    let write = || -> io::Result<()> {
        // A leftover of a crash may have another mode.
        let _ = fs::remove_file(&temp);
        let mut file = fs::File::options().write(true).create_new(true).mode(mode).open(&temp)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temp, &path)?;
        fs::File::open(dir)?.sync_all()
    };
    write().map_err(|source| CertError::Keep { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn identity(source: &CertSource) -> Result<Identity, CertError> {
        ensure(source)?;
        read(source)
    }

    fn source(dir: &Path) -> CertSource {
        CertSource::SelfMade { dir: dir.join("pki"), hostname: "node-1".into() }
    }

    #[test]
    fn a_certificate_is_made_once_and_then_reused() {
        let dir = tempfile::tempdir().unwrap();
        let first = identity(&source(dir.path())).unwrap();
        assert_eq!(first.chain.len(), 2, "the signer stands behind the certificate");
        let again = identity(&source(dir.path())).unwrap();
        assert_eq!(first.chain, again.chain);
        let mode =
            |name: &str| dir.path().join("pki").join(name).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("kubelet.key"), mode("kubelet.crt")), (0o600, 0o644));
        assert_eq!(fs::read_dir(dir.path().join("pki")).unwrap().count(), 2, "no leftovers");
    }

    #[test]
    fn what_cannot_be_used_is_put_aside_and_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        let first = identity(&source(dir.path())).unwrap();
        // A key of another certificate.
        let other = make("node-1", SystemTime::now()).unwrap();
        fs::write(pki.join(KEY_FILE), &other.key_pem).unwrap();
        let second = identity(&source(dir.path())).unwrap();
        assert_ne!(first.chain, second.chain);
        assert!(pki.join("kubelet.crt.old").exists() && pki.join("kubelet.key.old").exists());
        // A certificate that ran out.
        let past = make("node-1", SystemTime::now() - 2 * VALIDITY).unwrap();
        fs::write(pki.join(CERT_FILE), &past.cert_pem).unwrap();
        fs::write(pki.join(KEY_FILE), &past.key_pem).unwrap();
        let third = identity(&source(dir.path())).unwrap();
        assert!(check_time(&third).is_ok());
        // Half a pair, and garbage.
        fs::remove_file(pki.join(KEY_FILE)).unwrap();
        assert_ne!(identity(&source(dir.path())).unwrap().chain, third.chain);
        fs::write(pki.join(CERT_FILE), "garbage").unwrap();
        identity(&source(dir.path())).unwrap();
    }

    #[test]
    fn a_pair_that_somebody_else_put_there_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        fs::create_dir_all(&pki).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["elsewhere".to_string()]).unwrap();
        params.not_after = (SystemTime::now() + VALIDITY).into();
        let cert = params.self_signed(&key).unwrap();
        fs::write(pki.join(CERT_FILE), cert.pem()).unwrap();
        fs::write(pki.join(KEY_FILE), key.serialize_pem()).unwrap();
        assert_eq!(identity(&source(dir.path())).unwrap().chain, [cert.der().clone()]);
    }

    #[test]
    fn given_files_are_used_or_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        identity(&source(dir.path())).unwrap();
        let at = |name: &str| dir.path().join("pki").join(name);
        let files = |cert: &str, key: &str| identity(&CertSource::Files { cert: at(cert), key: at(key) });
        files(CERT_FILE, KEY_FILE).unwrap();
        let missing = files("none.crt", KEY_FILE).unwrap_err().to_string();
        assert!(missing.contains("tlsCertFile") && missing.contains("none.crt"), "{missing}");
        fs::write(at("other.key"), make("x", SystemTime::now()).unwrap().key_pem).unwrap();
        assert!(matches!(files(CERT_FILE, "other.key"), Err(CertError::Unusable { .. })));
        fs::write(at("empty.crt"), "").unwrap();
        assert!(files("empty.crt", KEY_FILE).is_err());
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("pki"), "a file in the way").unwrap();
        let error = identity(&source(dir.path())).unwrap_err().to_string();
        assert!(error.contains("/pki"), "{error}");
    }
}
