//! The messages, clients and servers of package `runtime.v1`, generated from `proto/cri.proto` at build time.
//!
//! Everybody who speaks CRI uses these types as they are; nothing here may add meaning to them. Maps are `BTreeMap`s,
//! so that equal messages have equal bytes.

// Generated code: its style is the generator's.
#![allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    missing_debug_implementations,
    reason = "generated code is not ours to restyle"
)]

use std::fmt;

tonic::include_proto!("runtime.v1");

/// Shows who logs in where, and of the secrets only whether they are there.
impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = |s: &String| if s.is_empty() { "" } else { "<redacted>" };
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("password", &secret(&self.password))
            .field("auth", &secret(&self.auth))
            .field("server_address", &self.server_address)
            .field("identity_token", &secret(&self.identity_token))
            .field("registry_token", &secret(&self.registry_token))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::AuthConfig;

    #[test]
    fn secrets_of_a_registry_login_do_not_show_in_debug_output() {
        let auth = AuthConfig {
            username: "ann".into(),
            password: "p4ss".into(),
            auth: "b64s3cret".into(),
            identity_token: "t0ken".into(),
            registry_token: "r3g".into(),
            ..Default::default()
        };
        let shown = format!("{auth:?}");
        assert!(shown.contains("ann"));
        for secret in ["p4ss", "b64s3cret", "t0ken", "r3g"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}
