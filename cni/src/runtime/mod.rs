//! What a container runtime does with CNI: find the network's configuration, run its plugins in order.
//!
//! containerd and CRI-O bring their own; this one serves tests, tools and whatever of the agent needs a network
//! without a CRI runtime. It keeps no cache of results: the caller does, and hands `prev_result` back.

mod chain;
mod dir;
mod exec;

use std::path::PathBuf;
use std::time::Duration;

pub use chain::ValidAttachment;
pub use dir::{LoadError, Loaded, find_network, load_dir};
pub use exec::{PluginFailure, run_plugin};

use crate::error::CniError;

/// Where plugins are, and how much of their time and output is endured.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// CNI_PATH: directories with plugin binaries, searched in order.
    pub bin_dirs: Vec<PathBuf>,
    /// One plugin's run; it is killed when it takes longer.
    pub timeout: Duration,
    /// Longest standard output, in bytes; a longer one fails the call.
    pub max_output: usize,
}

impl Runtime {
    /// A minute a plugin (containerd's own limit for a whole chain is longer), 1 MiB of output.
    pub fn new(bin_dirs: Vec<PathBuf>) -> Self {
        Runtime { bin_dirs, timeout: Duration::from_secs(60), max_output: 1 << 20 }
    }
}

/// A call of a network's plugins failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("network {network}: plugin {plugin}: {command}: {source}")]
    Plugin { network: String, plugin: String, command: &'static str, source: Box<PluginFailure> },
    #[error("network {network}: plugin {plugin}: {command}: {source}")]
    Result { network: String, plugin: String, command: &'static str, source: Box<CniError> },
    #[error("network {network}: {command} needs cniVersion {needs} or later, the network has {has}")]
    Version { network: String, command: &'static str, needs: &'static str, has: &'static str },
    #[error("network {network}: CHECK needs the result of ADD")]
    NoPrevResult { network: String },
    /// DEL and GC go on past a failing plugin; these are all that failed.
    #[error("{}", .0.iter().map(|e| e.to_string()).collect::<Vec<_>>().join("; "))]
    Several(Vec<RuntimeError>),
}
