//! What can be wrong with flags and configuration files: one value, and one printed line, per mistake.
//!
//! Every message names the flag or the file and field, and the value that was found there. The rooms of `config`
//! collect these; `main` prints each on a line of its own and exits with code 1.

use std::fmt;
use std::path::PathBuf;

/// One mistake in the command line, a configuration file or the configuration as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A flag that does not exist.
    #[error("unknown flag: {0}")]
    UnknownFlag(String),
    /// A flag at the end of the line whose value is missing.
    #[error("flag needs an argument: --{0}")]
    MissingArgument(&'static str),
    /// A flag whose value is not of its type.
    #[error("invalid argument {value:?} for \"--{flag}\" flag: {problem}")]
    FlagValue {
        /// Without the dashes.
        flag: &'static str,
        /// As given.
        value: String,
        /// What it should have been.
        problem: String,
    },
    /// A word that is no flag.
    #[error("unexpected argument {0:?}: the kubelet takes flags only")]
    Positional(String),
    /// A configuration file or directory that cannot be read.
    #[error("{path}: cannot read the kubelet configuration: {problem}", path = path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's words.
        problem: String,
    },
    /// A configuration file that is empty or no YAML.
    #[error("{path}: {problem}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser said, on one line.
        problem: String,
    },
    /// A field that KubeletConfiguration does not have.
    #[error("{origin}: unknown field {field:?}")]
    UnknownField {
        /// The file or flag it came from.
        origin: Origin,
        /// Dotted path.
        field: String,
    },
    /// A key that stands twice in the same mapping.
    #[error("{origin}: key {field:?} is already set in the same mapping")]
    DuplicateKey {
        /// The file.
        origin: Origin,
        /// Dotted path.
        field: String,
    },
    /// A field whose value has the wrong type or no meaning in it.
    #[error("{origin}: {field}: {value} is not {expected}")]
    WrongType {
        /// The file or flag it came from.
        origin: Origin,
        /// Dotted path.
        field: String,
        /// As given, as JSON, shortened.
        value: String,
        /// What would have been right.
        expected: String,
    },
    /// A value that breaks a rule of KubeletConfiguration.
    #[error("invalid configuration: {field}: {value} {rule}")]
    Invalid {
        /// The field and, where there is one, its flag.
        field: Field,
        /// The offending value, as JSON.
        value: String,
        /// The rule, so that the sentence "VALUE RULE" reads.
        rule: String,
    },
    /// A feature gate that does not exist.
    #[error("unrecognized feature gate: {0}")]
    UnknownGate(String),
    /// A feature gate that can no longer be changed.
    #[error("cannot set feature gate {gate} to {value}: it is locked to {locked}")]
    LockedGate {
        /// The gate.
        gate: &'static str,
        /// What was asked.
        value: bool,
        /// What it is.
        locked: bool,
    },
    /// A feature gate switched on without one that it needs.
    #[error("feature gate {gate} is enabled, but it depends on {needs}, which is disabled")]
    GateDependency {
        /// The enabled gate.
        gate: &'static str,
        /// The disabled one.
        needs: &'static str,
    },
    /// Valid, but this agent cannot do it yet.
    #[error("not supported yet: {field}: {value}: {reason}")]
    NotYet {
        /// The field or flag.
        field: Field,
        /// The value that was asked for, as JSON.
        value: String,
        /// What is missing, and which values are accepted.
        reason: String,
    },
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A configuration file.
    File(PathBuf),
    /// The command line.
    Flags,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Flags => f.write_str("command line"),
        }
    }
}

/// A setting as the user knows it: `port (--port)`, `memorySwap.swapBehavior`, or `--root-dir`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// The dotted path in KubeletConfiguration; empty for what is only a flag.
    pub path: String,
    /// The flag without dashes, where there is one.
    pub flag: Option<&'static str>,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.flag {
            Some(flag) if self.path.is_empty() => write!(f, "--{flag}"),
            Some(flag) => write!(f, "{} (--{flag})", self.path),
            None => f.write_str(&self.path),
        }
    }
}
