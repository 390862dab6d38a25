//! The HTTPS server's TLS settings: versions, cipher suites, protocols, certificate.

use super::cert::{CertError, Identity};
use super::{SecureConfig, auth};
use rustls::crypto::{CryptoProvider, ring};
use rustls::{ServerConfig, SupportedProtocolVersion, version};
use std::sync::Arc;

/// The TLS settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A version this agent does not speak.
    #[error("tlsMinVersion {value:?}: not supported, use VersionTLS12 or VersionTLS13")]
    Version {
        /// What was asked for.
        value: String,
    },
    /// A cipher suite this agent does not have.
    #[error("tlsCipherSuites: {value:?} is not supported, use some of {known}")]
    CipherSuite {
        /// What was asked for.
        value: String,
        /// What there is, with commas.
        known: String,
    },
    /// The serving certificate.
    #[error(transparent)]
    Certificate(#[from] CertError),
    /// The client CA.
    #[error(transparent)]
    ClientCa(#[from] auth::ClientCaError),
    /// The settings do not fit together.
    #[error("TLS: {0}")]
    Settings(#[from] rustls::Error),
}

/// The settings for `config`, serving as `identity`, asking for client certificates where there is a `ca`.
pub fn settings(
    config: &SecureConfig,
    identity: Identity,
    ca: Option<&auth::ClientCa>,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(provider(&config.cipher_suites)?);
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions(&config.min_version)?)?;
    let builder = match ca {
        Some(ca) => builder.with_client_cert_verifier(ca.ask()),
        None => builder.with_no_client_auth(),
    };
    let mut settings = builder.with_single_cert(identity.chain, identity.key)?;
    settings.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Resumption would keep state for clients that are gone; a handshake is cheap at the rate a kubelet is asked.
    settings.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    settings.send_tls13_tickets = 0;
    Ok(settings)
}

fn versions(min: &str) -> Result<Vec<&'static SupportedProtocolVersion>, TlsError> {
    match min {
        "" | "VersionTLS12" => Ok(vec![&version::TLS13, &version::TLS12]),
        "VersionTLS13" => Ok(vec![&version::TLS13]),
        other => Err(TlsError::Version { value: other.into() }),
    }
}

/// The provider with the suites named. TLS 1.3's are always there: upstream cannot configure them away either.
fn provider(names: &[String]) -> Result<CryptoProvider, TlsError> {
    let mut provider = ring::default_provider();
    if names.is_empty() {
        return Ok(provider);
    }
    let name_of = |suite: &rustls::SupportedCipherSuite| {
        // rustls calls TLS 1.3's TLS13_AES_…, IANA and upstream TLS_AES_…
        format!("{:?}", suite.suite()).replace("TLS13_", "TLS_")
    };
    // Names without the hash are upstream's older spelling of the two ChaCha suites.
    let wanted = |name: &String| {
        name == "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" || name == "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305"
    };
    let names: Vec<String> =
        names.iter().map(|n| if wanted(n) { format!("{n}_SHA256") } else { n.clone() }).collect();
    let known: Vec<String> = provider.cipher_suites.iter().map(name_of).collect();
    if let Some(value) = names.iter().find(|name| !known.contains(name)) {
        return Err(TlsError::CipherSuite { value: value.clone(), known: known.join(",") });
    }
    provider.cipher_suites.retain(|suite| suite.tls13().is_some() || names.contains(&name_of(suite)));
    Ok(provider)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_chosen_by_their_iana_names() {
        let all = provider(&[]).unwrap().cipher_suites.len();
        let one = provider(&["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256".into()]).unwrap();
        assert!(one.cipher_suites.len() < all);
        assert_eq!(one.cipher_suites.iter().filter(|s| s.tls13().is_none()).count(), 1);
        assert!(provider(&["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305".into()]).is_ok());
        let error = provider(&["TLS_RSA_WITH_3DES_EDE_CBC_SHA".into()]).unwrap_err().to_string();
        assert!(
            error.contains("TLS_RSA_WITH_3DES_EDE_CBC_SHA") && error.contains("TLS_AES_128_GCM_SHA256"),
            "{error}"
        );
    }

    #[test]
    fn old_versions_are_refused_by_name() {
        assert_eq!(versions("").unwrap().len(), 2);
        assert_eq!(versions("VersionTLS13").unwrap().len(), 1);
        assert!(versions("VersionTLS10").unwrap_err().to_string().contains("VersionTLS10"));
    }
}
