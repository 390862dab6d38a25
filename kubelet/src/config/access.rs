//! Who may use the HTTPS API, given that there may be no API server to ask.
//!
//! `config::load` computes the [`Access`] once; `server` enforces it. Upstream's defaults (with a configuration file)
//! delegate both questions to the API server. Stand-alone there is none: a mode that is a default and not asked for
//! gives way, one that was asked for is refused, and nobody gets in who was not let in: without a client CA and without
//! anonymous access every request is answered 401.

use super::error::{ConfigError, Field};
use super::flags::Flags;
use super::node::Node;
use super::types::KubeletConfiguration;
use std::path::PathBuf;

/// The effective rules: callers that pass authentication may do everything (AlwaysAllow).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Callers without credentials are let in as `system:anonymous`.
    pub anonymous: bool,
    /// CA bundle for client certificates; `None`: certificates are not asked for.
    pub client_ca_file: Option<PathBuf>,
}

impl Access {
    pub(super) fn warning(&self, config: &KubeletConfiguration) -> Option<String> {
        (config.enable_server && !self.anonymous && self.client_ca_file.is_none()).then(|| {
            "nobody can use the HTTPS API: set authentication.x509.clientCAFile, or authentication.anonymous.enabled: true"
                .into()
        })
    }
}

/// The effective rules, and what was asked for that needs an API server.
pub(super) fn resolve(
    config: &KubeletConfiguration,
    flags: &Flags,
    document: Option<&Node>,
    overlay: Option<&Node>,
) -> (Access, Vec<ConfigError>) {
    let asked = |path: &str| [document, overlay].iter().flatten().any(|layer| layer.get(path).is_some());
    let mut refused = Vec::new();
    if flags.kubeconfig.is_empty() {
        let mut refuse = |path: &str, value: String, accepted: &str| {
            if asked(path) {
                refused.push(ConfigError::NotYet {
                    field: Field { path: path.into(), flag: super::flags::flag_of(path) },
                    value,
                    reason: format!(
                        "without an API server there is nobody to ask; only {accepted} is accepted"
                    ),
                });
            }
        };
        if config.authentication.webhook.enabled {
            refuse("authentication.webhook.enabled", "true".into(), "false");
        }
        if config.authorization.mode == "Webhook" {
            refuse("authorization.mode", "\"Webhook\"".into(), "\"AlwaysAllow\"");
        }
    }
    let ca = &config.authentication.x509.client_ca_file;
    let access = Access {
        anonymous: config.authentication.anonymous.enabled,
        client_ca_file: (!ca.is_empty()).then(|| PathBuf::from(ca)),
    };
    (access, refused)
}
