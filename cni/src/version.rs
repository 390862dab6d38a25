//! The versions of the CNI specification this crate speaks, and what differs between them.
//!
//! Called by everything that reads or writes CNI JSON. It must never guess: an unknown version is an error
//! that lists the known ones.

use std::fmt;
use std::str::FromStr;

/// A version of the CNI specification; the order is the order of publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

/// `cniVersion` names a version of the specification this crate does not speak.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cniVersion {found:?} is not supported (supported: {})", Version::names().join(", "))]
pub struct UnknownVersion {
    /// The text that was found.
    pub found: String,
}

impl Version {
    /// Every supported version, oldest first.
    pub const ALL: [Version; 5] =
        [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];

    /// The newest supported version.
    pub const LATEST: Version = Version::V1_1_0;

    /// The name as it stands in `cniVersion`.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    /// The names of [`Version::ALL`], for `supportedVersions` and messages.
    pub fn names() -> Vec<&'static str> {
        Self::ALL.iter().map(|v| v.as_str()).collect()
    }

    /// Up to 0.4.0 every entry of `ips` says its family in a `version` field; 1.0.0 dropped it.
    pub fn has_ip_version_field(self) -> bool {
        self < Version::V1_0_0
    }

    /// CHECK, and `prevResult` on DEL, exist since 0.4.0.
    pub fn has_check(self) -> bool {
        self >= Version::V0_4_0
    }

    /// GC, STATUS and the longer interface and route objects exist since 1.1.0.
    pub fn has_gc_and_status(self) -> bool {
        self >= Version::V1_1_0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Version {
    type Err = UnknownVersion;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|v| v.as_str() == s)
            .ok_or_else(|| UnknownVersion { found: s.chars().take(64).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_reads_back_as_itself_and_others_are_refused_by_name() {
        for v in Version::ALL {
            assert_eq!(v.as_str().parse(), Ok(v));
        }
        let err = "0.2.0".parse::<Version>().unwrap_err().to_string();
        assert!(err.contains("\"0.2.0\"") && err.contains("1.1.0"), "{err}");
    }
}
