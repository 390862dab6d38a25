//! What a runtime tells a plugin beside the configuration: the attachment, and the free-form CNI_ARGS.
//!
//! Called by the runtime side to write the environment and by plugins to read it. Names are checked here, once:
//! they end up in file names and interface names.

use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::error::{CniError, code};

/// One attachment of a container to a network: the parameters of ADD, DEL and CHECK.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attachment {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_NETNS; `None` on DEL when the namespace is gone.
    pub netns: Option<PathBuf>,
    /// CNI_IFNAME, the interface's name in the container.
    pub ifname: String,
    /// CNI_ARGS.
    pub args: CniArgs,
    /// Capability arguments; a plugin sees those whose names its `capabilities` declare, as `runtimeConfig`.
    pub capability_args: Map<String, Value>,
}

/// The pairs of CNI_ARGS ("K=V;K2=V2").
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniArgs(pub Vec<(String, String)>);

impl CniArgs {
    /// Reads the variable; an empty text has no pairs.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let mut pairs = Vec::new();
        for part in text.split(';').filter(|p| !p.is_empty()) {
            let (k, v) = part.split_once('=').ok_or_else(|| {
                CniError::new(
                    code::INVALID_ENVIRONMENT,
                    format!("CNI_ARGS: {part:?} is not of the form KEY=VALUE"),
                )
            })?;
            pairs.push((k.to_string(), v.to_string()));
        }
        Ok(CniArgs(pairs))
    }

    /// The value of the last pair with this key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The variable's text.
    pub fn render(&self) -> String {
        self.0.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(";")
    }
}

/// The longest container id accepted. The specification sets no limit; runtimes use 64 hex digits.
pub const MAX_ID: usize = 512;

/// A container id or network name: alphanumeric first, then alphanumerics, `_`, `.`, `-` (specification,
/// "Parameters" and "Network configuration"). `what` names the variable or field in the error.
pub fn check_name(what: &str, name: &str, error_code: u32) -> Result<(), CniError> {
    let good = name.len() <= MAX_ID
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if good {
        return Ok(());
    }
    let shown: String = name.chars().take(100).collect();
    Err(CniError::new(
        error_code,
        format!(
            "{what} is {shown:?}: it must be 1 to {MAX_ID} letters, digits, '_', '.' or '-', a letter or digit first"
        ),
    ))
}

/// An interface name the kernel accepts: 1 to 15 bytes, no slash, colon or white space, not "." or "..".
pub fn check_ifname(what: &str, name: &str, error_code: u32) -> Result<(), CniError> {
    let good = (1..16).contains(&name.len())
        && name != "."
        && name != ".."
        && name.chars().all(|c| c != '/' && c != ':' && !c.is_whitespace() && !c.is_control());
    if good {
        return Ok(());
    }
    let shown: String = name.chars().take(100).collect();
    Err(CniError::new(
        error_code,
        format!("{what} is {shown:?}: an interface name is 1 to 15 bytes without '/', ':' and white space"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_escape_a_directory_or_upset_the_kernel_are_refused() {
        for good in ["a", "0a.b-c_d", &"f".repeat(64)] {
            assert!(check_name("CNI_CONTAINERID", good, 4).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "../x", "a/b", "-a", "a b", "ü", &"f".repeat(600)] {
            let err = check_name("CNI_CONTAINERID", bad, 4).unwrap_err();
            assert!(err.code == 4 && err.msg.contains("CNI_CONTAINERID"), "{err}");
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "sixteen-bytes-xx"] {
            assert!(check_ifname("CNI_IFNAME", bad, 4).is_err(), "{bad}");
        }
        assert!(check_ifname("CNI_IFNAME", "eth0", 4).is_ok());
    }

    #[test]
    fn args_read_back_and_the_last_of_two_wins() {
        let a = CniArgs::parse("IgnoreUnknown=1;IP=10.0.0.5;IP=10.0.0.6").unwrap();
        assert_eq!(a.get("IP"), Some("10.0.0.6"));
        assert_eq!(CniArgs::parse(&a.render()).unwrap(), a);
        assert!(CniArgs::parse("IP").unwrap_err().msg.contains("\"IP\""));
    }
}
