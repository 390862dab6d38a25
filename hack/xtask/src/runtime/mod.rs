//! Container runtimes for tests, benchmarks and `hack/up`: found, or fetched, and run in private.
//!
//! `find` answers "which binaries are containerd 2.x here", [`PrivateContainerd`] runs one with a root,
//! state and socket of its own, and `sweep` removes whatever such a one left on the machine. Nothing
//! here touches a containerd that it did not start.

mod config;
mod find;
mod private;
mod sweep;

use std::fmt;
use std::str::FromStr;

use anyhow::Context as _;

pub use config::may_lower_oom_score;
pub use find::{Installed, find, find_any, find_oci};
pub use private::{Folders, Network, Options, PrivateContainerd, TEST_BASE, UnderTest, under_test};
pub(crate) use private::{Setup, configure, handlers, respawn, stop_all_pods, wait_ready};
pub(crate) use sweep::{Traces, sweep_traces};
pub use sweep::{sweep, sweep_dead};

/// Which containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// What Debian 12 ships: 1.6, the oldest that is supported.
    Debian,
    /// 1.7, from Debian 13.
    V1_7,
    /// 2.x, from Debian's unstable suite.
    V2,
}

impl Flavour {
    /// All of them, oldest first.
    pub const ALL: [Self; 3] = [Self::Debian, Self::V1_7, Self::V2];

    /// The prefix of the version number that makes a binary this flavour.
    fn version_prefix(self) -> &'static str {
        match self {
            Self::Debian => "1.6.",
            Self::V1_7 => "1.7.",
            Self::V2 => "2.",
        }
    }

    /// The Debian suite that has it.
    fn suite(self) -> &'static str {
        match self {
            Self::Debian => "bookworm",
            Self::V1_7 => "trixie",
            Self::V2 => "sid",
        }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debian => "debian",
            Self::V1_7 => "1.7",
            Self::V2 => "2",
        })
    }
}

impl FromStr for Flavour {
    type Err = anyhow::Error;

    /// `debian` or `1.6`, `1.7`, `2` or `2.x`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "debian" | "1.6" => Ok(Self::Debian),
            "1.7" => Ok(Self::V1_7),
            "2" | "2.x" => Ok(Self::V2),
            _ => anyhow::bail!("containerd flavour {text:?}: expected debian (or 1.6), 1.7 or 2"),
        }
    }
}

/// Which OCI runtime runs the containers by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Oci {
    /// The reference implementation.
    Runc,
    /// The one in C.
    Crun,
}

impl fmt::Display for Oci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
        })
    }
}

impl FromStr for Oci {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "runc" => Ok(Self::Runc),
            "crun" => Ok(Self::Crun),
            _ => anyhow::bail!("OCI runtime {text:?}: expected runc or crun"),
        }
    }
}

/// Who makes cgroups: containerd, and the agent, which must agree with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum CgroupDriver {
    /// Whoever needs one.
    #[default]
    Cgroupfs,
    /// systemd, on request.
    Systemd,
}

impl CgroupDriver {
    /// What `STEVEDORE_CGROUP_DRIVER` says; cgroupfs when it says nothing.
    pub fn from_env() -> anyhow::Result<Self> {
        match std::env::var("STEVEDORE_CGROUP_DRIVER") {
            Ok(text) => text.parse().context("STEVEDORE_CGROUP_DRIVER"),
            Err(_) => Ok(Self::default()),
        }
    }
}

impl fmt::Display for CgroupDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        })
    }
}

impl FromStr for CgroupDriver {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "cgroupfs" => Ok(Self::Cgroupfs),
            "systemd" => Ok(Self::Systemd),
            _ => anyhow::bail!("cgroup driver {text:?}: expected cgroupfs or systemd"),
        }
    }
}
