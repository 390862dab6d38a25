//! The error object a plugin prints, and its codes (CNI specification, section 5, "Error").
//!
//! Plugins build one with a code and a sentence; the runtime side reads one back from a plugin that failed.

use serde::{Deserialize, Serialize};

/// The codes the specification reserves. Plugin-specific ones start at 100.
pub mod code {
    /// The configuration's `cniVersion` is not one the plugin speaks.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field of the configuration asks for something the plugin does not do; the message names it.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container does not exist or is gone; the runtime need not clean up.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// An environment variable (CNI_COMMAND, CNI_CONTAINERID…) is missing or wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading the configuration from standard input failed, or another input or output.
    pub const IO_FAILURE: u32 = 5;
    /// The input is not JSON, or not JSON of the right shape.
    pub const DECODING_FAILURE: u32 = 6;
    /// A field of the configuration holds a wrong value; the message names both.
    pub const INVALID_NETWORK_CONFIG: u32 = 7;
    /// Try again later: for example no address is free now.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: the plugin cannot serve ADD requests.
    pub const PLUGIN_NOT_AVAILABLE: u32 = 50;
    /// STATUS: the plugin cannot serve ADD, and containers that exist may have lost connectivity.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// Plugin-specific: the kernel or a helper refused something.
    pub const KERNEL: u32 = 100;
    /// Plugin-specific: CHECK found that something is not as it was made.
    pub const CHECK_FAILED: u32 = 101;
    /// Plugin-specific: a host port, address or interface belongs to another container.
    pub const CONFLICT: u32 = 102;
    /// Anything else.
    pub const INTERNAL: u32 = 999;
}

/// What went wrong, as a plugin prints it on standard output with a non-zero exit code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}{}", if details.is_empty() { String::new() } else { format!(": {details}") })]
pub struct CniError {
    /// The version the error is written in; a runtime ignores it.
    #[serde(rename = "cniVersion", default, skip_serializing_if = "String::is_empty")]
    pub cni_version: String,
    /// See [`code`].
    pub code: u32,
    /// One sentence that names the object, the field and the value.
    pub msg: String,
    /// The longer story: causes, what was tried.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl CniError {
    /// An error with a code of [`code`] and a sentence.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        CniError { cni_version: String::new(), code, msg: msg.into(), details: String::new() }
    }

    /// An error whose details are the chain of causes of `cause`.
    pub fn caused(code: u32, msg: impl Into<String>, cause: &dyn std::error::Error) -> Self {
        let mut details = cause.to_string();
        let mut next = cause.source();
        while let Some(e) = next {
            details.push_str(": ");
            details.push_str(&e.to_string());
            next = e.source();
        }
        CniError { details, ..CniError::new(code, msg) }
    }
}
