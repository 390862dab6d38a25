//! Decisions and words: which pull policy holds, what a failed pull is called, what events say. Pure.

use super::name::{self, NameError};
use crate::gotext;
use std::time::Duration;

/// `imagePullPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// Pull at every start of a container, whatever is here.
    Always,
    /// Pull what is not here.
    IfNotPresent,
    /// Take what is here.
    Never,
}

impl PullPolicy {
    /// The policy as the API spells it; `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "Always" => Some(Self::Always),
            "IfNotPresent" => Some(Self::IfNotPresent),
            "Never" => Some(Self::Never),
            _ => None,
        }
    }

    /// The API's default for a container that gives none: `Always` for the tag `latest`, given or implied.
    pub fn default_for(image: &str) -> Result<Self, NameError> {
        let parsed = name::parse(image)?;
        Ok(match (parsed.tag, parsed.digest) {
            (Some("latest"), _) | (None, None) => Self::Always,
            _ => Self::IfNotPresent,
        })
    }

    /// Label value of the room's metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::IfNotPresent => "ifnotpresent",
            Self::Never => "never",
        }
    }
}

/// Reason of a pull that failed for no known reason.
pub const ERR_IMAGE_PULL: &str = "ErrImagePull";

/// The reason for a runtime's refusal to pull, and the event's message. CRI lets a runtime name two reasons at the
/// beginning of its message.
pub fn pull_failure(image: &str, message: &str) -> (&'static str, String) {
    let named = [
        ("RegistryUnavailable", "the registry is unavailable"),
        ("SignatureValidationFailed", "the signature validation failed"),
    ];
    for (reason, because) in named {
        if let Some(detail) = message.strip_prefix(reason) {
            return (reason, format!("image pull failed for {image} because {because}{detail}"));
        }
    }
    (ERR_IMAGE_PULL, format!("Failed to pull image {image:?}: {message}"))
}

/// Message of the event after a pull that worked.
pub fn pulled_text(image: &str, pull: Duration, waited_too: Duration, size: u64) -> String {
    format!(
        "Successfully pulled image {image:?} in {} ({} including waiting). Image size: {size} bytes.",
        gotext::duration(pull),
        gotext::duration(waited_too)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_depends_on_the_tag() {
        let sha = "a".repeat(64);
        for (image, want) in [
            ("busybox", PullPolicy::Always),
            ("busybox:latest", PullPolicy::Always),
            ("busybox:1", PullPolicy::IfNotPresent),
            (&format!("busybox@sha256:{sha}"), PullPolicy::IfNotPresent),
        ] {
            assert_eq!(PullPolicy::default_for(image), Ok(want), "{image}");
        }
        assert_eq!(PullPolicy::parse("always"), None);
    }

    #[test]
    fn a_runtime_may_name_its_reason() {
        assert_eq!(
            pull_failure("i", "RegistryUnavailable: connection refused"),
            (
                "RegistryUnavailable",
                "image pull failed for i because the registry is unavailable: connection refused".into()
            )
        );
        assert_eq!(pull_failure("i", "boom"), ("ErrImagePull", "Failed to pull image \"i\": boom".into()));
    }
}
