//! The signals of eviction: what is measured, which resource is short when one is low, which condition of the node tells.
//! Pure tables; the names are the API's.

use serde::Serialize;
use std::fmt;

/// What a threshold looks at. The order is that in which shortages are dealt with: memory first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Signal {
    /// `memory.available`
    Memory,
    /// `allocatableMemory.available`: of the cgroup that holds all pods.
    AllocatableMemory,
    /// `nodefs.available`: where the agent's directory is.
    NodeFs,
    /// `nodefs.inodesFree`
    NodeFsInodes,
    /// `imagefs.available`: where the runtime keeps images.
    ImageFs,
    /// `imagefs.inodesFree`
    ImageFsInodes,
    /// `containerfs.available`: where the runtime keeps what containers write.
    ContainerFs,
    /// `containerfs.inodesFree`
    ContainerFsInodes,
    /// `pid.available`
    Pid,
}

/// What is short, and can be won back by evicting pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// `memory`
    Memory,
    /// `ephemeral-storage`
    EphemeralStorage,
    /// `inodes`
    Inodes,
    /// `pids`
    Pids,
}

/// A condition of the node. The order is that of lists in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Condition {
    /// `MemoryPressure`
    MemoryPressure,
    /// `DiskPressure`
    DiskPressure,
    /// `PIDPressure`
    #[serde(rename = "PIDPressure")]
    PidPressure,
}

impl Signal {
    /// Every signal.
    pub const ALL: [Self; 9] = [
        Self::Memory,
        Self::AllocatableMemory,
        Self::NodeFs,
        Self::NodeFsInodes,
        Self::ImageFs,
        Self::ImageFsInodes,
        Self::ContainerFs,
        Self::ContainerFsInodes,
        Self::Pid,
    ];

    /// As configurations, metrics and messages spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory.available",
            Self::AllocatableMemory => "allocatableMemory.available",
            Self::NodeFs => "nodefs.available",
            Self::NodeFsInodes => "nodefs.inodesFree",
            Self::ImageFs => "imagefs.available",
            Self::ImageFsInodes => "imagefs.inodesFree",
            Self::ContainerFs => "containerfs.available",
            Self::ContainerFsInodes => "containerfs.inodesFree",
            Self::Pid => "pid.available",
        }
    }

    /// The signal of that name.
    pub fn named(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }

    /// What is short when the signal is low.
    pub fn resource(self) -> Resource {
        match self {
            Self::Memory | Self::AllocatableMemory => Resource::Memory,
            Self::NodeFs | Self::ImageFs | Self::ContainerFs => Resource::EphemeralStorage,
            Self::NodeFsInodes | Self::ImageFsInodes | Self::ContainerFsInodes => Resource::Inodes,
            Self::Pid => Resource::Pids,
        }
    }

    /// Which condition of the node tells of it.
    pub fn condition(self) -> Condition {
        match self.resource() {
            Resource::Memory => Condition::MemoryPressure,
            Resource::EphemeralStorage | Resource::Inodes => Condition::DiskPressure,
            Resource::Pids => Condition::PidPressure,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::EphemeralStorage => "ephemeral-storage",
            Self::Inodes => "inodes",
            Self::Pids => "pids",
        })
    }
}

impl Condition {
    /// Every condition.
    pub const ALL: [Self; 3] = [Self::MemoryPressure, Self::DiskPressure, Self::PidPressure];

    /// The API's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MemoryPressure => "MemoryPressure",
            Self::DiskPressure => "DiskPressure",
            Self::PidPressure => "PIDPressure",
        }
    }

    /// Reason of the node's event when it begins (`true`) or is over.
    pub fn event(self, begins: bool) -> &'static str {
        match (self, begins) {
            (Self::MemoryPressure, true) => "NodeHasInsufficientMemory",
            (Self::MemoryPressure, false) => "NodeHasSufficientMemory",
            (Self::DiskPressure, true) => "NodeHasDiskPressure",
            (Self::DiskPressure, false) => "NodeHasNoDiskPressure",
            (Self::PidPressure, true) => "NodeHasInsufficientPID",
            (Self::PidPressure, false) => "NodeHasSufficientPID",
        }
    }

    /// Reason and message of the condition in the node's status.
    pub fn told(self, holds: bool) -> (&'static str, &'static str) {
        match (self, holds) {
            (Self::MemoryPressure, true) => {
                ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available")
            }
            (Self::MemoryPressure, false) => {
                ("KubeletHasSufficientMemory", "kubelet has sufficient memory available")
            }
            (Self::DiskPressure, true) => ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            (Self::DiskPressure, false) => ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            (Self::PidPressure, true) => {
                ("KubeletHasInsufficientPID", "kubelet has insufficient PID available")
            }
            (Self::PidPressure, false) => ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_is_found_by_its_name_and_by_no_other() {
        for signal in Signal::ALL {
            assert_eq!(Signal::named(signal.as_str()), Some(signal));
        }
        for text in ["", "memory", "Memory.available", "memory.available ", "nodefs.inodesfree"] {
            assert_eq!(Signal::named(text), None, "{text:?}");
        }
    }

    #[test]
    fn signals_of_one_resource_have_one_condition() {
        for a in Signal::ALL {
            for b in Signal::ALL.into_iter().filter(|b| a.resource() == b.resource()) {
                assert_eq!(a.condition(), b.condition(), "{a} and {b}");
            }
        }
        assert_eq!(Signal::NodeFsInodes.condition(), Condition::DiskPressure);
        assert_eq!(Signal::Pid.condition().as_str(), "PIDPressure");
    }
}
