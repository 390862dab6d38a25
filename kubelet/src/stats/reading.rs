//! What one cgroup says at one time: counters, gauges and limits, on v1 and v2 alike. Types only; `counters` reads them.

use super::summary::Psi;
use jiff::Timestamp;

/// One cgroup. What its kernel does not tell is `None`.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// When it was read.
    pub at: Timestamp,
    /// CPU time.
    pub cpu: Option<CpuCounters>,
    /// Memory.
    pub memory: Option<MemoryCounters>,
    /// Tasks (threads) in it and below.
    pub tasks: Option<u64>,
    /// Input and output by device.
    pub io: Vec<DeviceIo>,
    /// Pressure.
    pub psi: Pressure,
    /// Limits.
    pub limits: Limits,
    /// Processes in it, not below.
    pub processes: Option<Processes>,
    /// When the cgroup was last made or given a child, nanoseconds since the epoch: what its directory tells.
    pub changed: Option<i64>,
}

/// CPU time, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuCounters {
    /// All.
    pub total: u64,
    /// In user mode; in steps of 10 ms on v1.
    pub user: u64,
    /// In the kernel; in steps of 10 ms on v1.
    pub system: u64,
    /// What the quota did; `None` where the cgroup cannot have one.
    pub throttling: Option<Throttling>,
}

/// `cpu.stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Throttling {
    /// Periods that ran.
    pub periods: u64,
    /// Of these, those in which the quota was used up.
    pub throttled_periods: u64,
    /// Time spent waiting for quota, nanoseconds.
    pub throttled: u64,
    /// Periods in which more than the quota was used.
    pub burst_periods: u64,
    /// How much more, nanoseconds.
    pub burst: u64,
}

/// Memory, bytes, with all that is below the cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MemoryCounters {
    /// All that is charged.
    pub usage: u64,
    /// Usage less `inactive_file`, never below zero.
    pub working_set: u64,
    /// File cache not used lately.
    pub inactive_file: u64,
    /// File cache in use.
    pub active_file: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// File cache.
    pub cache: u64,
    /// Of that what is mapped.
    pub mapped_file: u64,
    /// Swapped out.
    pub swap: u64,
    /// The most that was ever charged.
    pub max_usage: Option<u64>,
    /// How often the limit was hit.
    pub failures: Option<u64>,
    /// Memory of the kernel's.
    pub kernel: Option<u64>,
    /// Page faults: of the cgroup itself on v1, with all below on v2.
    pub faults: u64,
    /// Of these those that had to read.
    pub major_faults: u64,
    /// Page faults with all below.
    pub total_faults: u64,
    /// Of these those that had to read.
    pub total_major_faults: u64,
    /// How many processes the kernel killed for want of memory.
    pub oom_kills: Option<u64>,
}

/// Reads and writes of one device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceIo {
    /// Major and minor number.
    pub device: (u32, u32),
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Pressure of the three resources; v2 only, the node's own from `/proc/pressure` on any.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// CPU.
    pub cpu: Option<Psi>,
    /// Memory.
    pub memory: Option<Psi>,
    /// Input and output.
    pub io: Option<Psi>,
}

/// What the cgroup may use.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// `cpu.shares`, on v2 converted from `cpu.weight`.
    pub cpu_shares: Option<u64>,
    /// Microseconds per period; `None` without a quota.
    pub cpu_quota: Option<u64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// Bytes; `None` without a limit.
    pub memory: Option<u64>,
    /// Bytes of swap alone; `None` without a limit.
    pub swap: Option<u64>,
    /// As the file says it: on v1 of memory and swap together. For the metrics.
    pub swap_file: Option<u64>,
    /// `memory.soft_limit_in_bytes` or `memory.min`.
    pub reservation: Option<u64>,
    /// Tasks; `None` without a limit.
    pub tasks: Option<u64>,
}

/// The processes of one cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Processes {
    /// How many.
    pub count: u64,
    /// Their open files; `None` where not all could be counted.
    pub files: Option<u64>,
    /// Of these sockets; `None` where there are too many to look at.
    pub sockets: Option<u64>,
    /// `RLIMIT_NOFILE` of the first.
    pub max_files: Option<u64>,
}
