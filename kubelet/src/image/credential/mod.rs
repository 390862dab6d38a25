//! Credentials for registries: the node's docker configuration files and exec credential providers.
//!
//! The room's handle asks [`Credentials::for_image`] before each pull. What comes back is tried in order: the node's own
//! files first, then the providers in the order of their configuration. Nothing here is ever logged but names and paths.
//!
//! | file | |
//! | --- | --- |
//! | `keyring` | which credentials fit an image name |
//! | `docker` | what `config.json` and `.dockercfg` say |
//! | `files` | where they are looked for, and when they are read again |
//! | `provider` | exec credential providers: configuration, protocol, cache |

mod docker;
mod files;
mod keyring;
pub mod provider;

pub use files::SearchPlaces;
pub use provider::ProvidersConfig;

use crate::metrics::Metrics;
use cri::v1::AuthConfig;
use files::Files;
use provider::Providers;
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
    fn basic(username: &str, password: &str) -> Self {
        Self { username: username.to_owned(), password: password.to_owned(), ..Self::default() }
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
    pub async fn for_image(&self, repository: &str) -> Vec<Credential> {
        let mut found = self.files.keyring().lookup(repository);
        for credential in self.providers.for_image(repository).await {
            if !found.contains(&credential) {
                found.push(credential);
            }
        }
        found
    }
}
