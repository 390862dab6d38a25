//! Credentials for registries: a pod's secrets, the node's docker configuration files and exec credential providers.
//!
//! The room's handle asks [`Credentials::for_image`] before each pull. What comes back is tried in order: the pod's secrets
//! first, then the node's own files, then the providers in the order of their configuration. Nothing here is ever logged
//! but names and paths.
//!
//! | file | |
//! | --- | --- |
//! | `keyring` | which credentials fit an image name |
//! | `docker` | what `config.json` and `.dockercfg` say |
//! | `files` | where they are looked for, and when they are read again |
//! | `provider` | exec credential providers: configuration, protocol, cache |
//! | `secret` | a pod's `imagePullSecrets` |

mod docker;
mod files;
mod keyring;
pub mod provider;
mod secret;

pub use files::SearchPlaces;
pub use provider::ProvidersConfig;
pub use secret::PullSecret;

use crate::metrics::Metrics;
use cri::v1::AuthConfig;
use files::Files;
use provider::Providers;
use serde::Serialize;
use std::fmt;

/// What a registry is shown. Its `Debug` tells no secret.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credential {
    /// Empty with a token.
    pub username: String,
    /// Empty with a token.
    pub password: String,
    /// For a token server, in the place of a password.
    pub identity_token: String,
    /// Goes to the registry as it is.
    pub registry_token: String,
}

impl Credential {
    pub(super) fn basic(username: &str, password: &str) -> Self {
        Self { username: username.to_owned(), password: password.to_owned(), ..Self::default() }
    }

    /// A hash by which records know it: SHA-256 in hexadecimal of the JSON that the stock agent makes of it.
    pub fn hash(&self) -> String {
        #[derive(Serialize)]
        struct Hashed<'a> {
            #[serde(skip_serializing_if = "str::is_empty")]
            username: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            password: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            identitytoken: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            registrytoken: &'a str,
        }
        let hashed = Hashed {
            username: &self.username,
            password: &self.password,
            identitytoken: &self.identity_token,
            registrytoken: &self.registry_token,
        };
        // Strings alone: there is nothing that JSON could not hold.
        let mut text = serde_json::to_string(&hashed).unwrap_or_default();
        for c in ['<', '>', '&', '\u{2028}', '\u{2029}'] {
            // As the encoder of the stock agent has them; they stand within strings only.
            text = text.replace(c, &format!("\\u{:04x}", u32::from(c)));
        }
        super::sha256_hex(&text)
    }

    /// As CRI carries it.
    pub fn auth(&self) -> AuthConfig {
        AuthConfig {
            username: self.username.clone(),
            password: self.password.clone(),
            identity_token: self.identity_token.clone(),
            registry_token: self.registry_token.clone(),
            ..AuthConfig::default()
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").finish_non_exhaustive()
    }
}

/// An object of the API, for records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Object {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// `metadata.uid`
    pub uid: String,
}

/// Whose a credential is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The node's: what it pulls every pod may have.
    Node,
    /// From a secret that the pod names.
    Secret(Object),
    /// Given for a token of the pod's service account.
    ServiceAccount(Object),
}

/// A credential, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tracked {
    /// What a registry is shown.
    pub credential: Credential,
    /// Whose.
    pub source: Source,
}

impl Tracked {
    fn node(credential: Credential) -> Self {
        Self { credential, source: Source::Node }
    }
}

/// Where credentials come from.
#[derive(Clone, Debug, Default)]
pub struct CredentialConfig {
    /// Where docker configuration files are looked for; nowhere by default.
    pub places: SearchPlaces,
    /// Exec credential providers.
    pub providers: ProvidersConfig,
}

/// All sources of credentials.
#[derive(Debug)]
pub struct Credentials {
    files: Files,
    providers: Providers,
}

impl Credentials {
    pub fn new(config: CredentialConfig, metrics: Metrics) -> Self {
        Self { files: Files::new(config.places), providers: Providers::new(config.providers, metrics) }
    }

    /// What to try for `repository` (a full name without tag and digest, such as `docker.io/library/busybox`), in order;
    /// nothing means an anonymous pull.
    pub async fn for_image(&self, repository: &str, secrets: &[PullSecret]) -> Vec<Tracked> {
        let mut found: Vec<Tracked> = secrets.iter().flat_map(|s| s.lookup(repository)).collect();
        found.extend(self.files.keyring().lookup(repository).into_iter().map(Tracked::node));
        for tracked in self.providers.for_image(repository).await.into_iter().map(Tracked::node) {
            if !found.contains(&tracked) {
                found.push(tracked);
            }
        }
        found
    }
}
