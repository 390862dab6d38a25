//! A pod's `imagePullSecrets`: secrets of type `kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg`.
//!
//! Whoever has the secrets makes them; a stand-alone node has none.

use super::docker::{self, Format};
use super::keyring::Keyring;
use super::{Object, Source, Tracked};

/// A secret, read.
#[derive(Clone, Debug)]
pub struct PullSecret {
    object: Object,
    keyring: Keyring,
}

impl PullSecret {
    /// Reads `.dockerconfigjson`; also what of it is in disorder and left out.
    ///
    /// # Errors
    /// It is no docker configuration as a whole.
    pub fn docker_config_json(object: Object, bytes: &[u8]) -> Result<(Self, Vec<String>), String> {
        Self::read(object, bytes, Format::Config)
    }

    /// Reads `.dockercfg`, likewise.
    ///
    /// # Errors
    /// It is no docker configuration as a whole.
    pub fn docker_cfg(object: Object, bytes: &[u8]) -> Result<(Self, Vec<String>), String> {
        Self::read(object, bytes, Format::Legacy)
    }

    fn read(object: Object, bytes: &[u8], format: Format) -> Result<(Self, Vec<String>), String> {
        let (keyring, problems) = docker::parse(bytes, format)?;
        Ok((Self { object, keyring }, problems))
    }

    /// What of it fits `repository`.
    pub fn lookup(&self, repository: &str) -> impl Iterator<Item = Tracked> {
        let source = Source::Secret(self.object.clone());
        self.keyring
            .lookup(repository)
            .into_iter()
            .map(move |credential| Tracked { credential, source: source.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_secret_are_read_and_say_whose_they_are() {
        let object = Object { namespace: "n".to_owned(), name: "s".to_owned(), uid: "u".to_owned() };
        let entry = br#"{"r.test":{"username":"alice","password":"p"},"bad":{"auth":"%"}}"#;
        let whole = [br#"{"auths":"#.as_slice(), entry, b"}"].concat();
        let both = [
            PullSecret::docker_config_json(object.clone(), &whole).unwrap(),
            PullSecret::docker_cfg(object.clone(), entry).unwrap(),
        ];
        for (secret, problems) in both {
            let found: Vec<_> = secret.lookup("r.test/a").collect();
            assert_eq!((found.len(), found[0].credential.username.as_str()), (1, "alice"));
            assert_eq!(found[0].source, Source::Secret(object.clone()));
            assert_eq!(secret.lookup("s.test/a").count(), 0);
            assert_eq!(problems.len(), 1);
        }
        assert!(PullSecret::docker_cfg(object, b"[]").is_err());
    }

    #[test]
    fn a_hash_is_that_of_the_stock_agents_text() {
        let hash =
            |username: &str, password: &str| super::super::Credential::basic(username, password).hash();
        // Of `{"username":"alice","password":"p"}` and `{"username":"a\u003cb","password":"\u0026"}`.
        assert_eq!(hash("alice", "p"), "b9a395b05da1ac64a1df291d22356502a6bff43068deb5806c6b16079457f603");
        assert_eq!(hash("a<b", "&"), "1ef49a3f37157e67bc70cf23f7dfeab85c96049731bdf533766246ba5bf79101");
    }
}
