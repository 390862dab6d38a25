//! Values: what a node's and a pod's cgroup shall hold, and how each cgroup version spells it. Pure.
//!
//! Sources: the kernel's cgroup-v1 and cgroup-v2 documents for the files; the recorded behaviour of the stock agent
//! for what is written at all; the shares-to-weight mapping is the OCI runtimes' linear one from 2…262144 to 1…10000.

use crate::api::Qos;

/// Fewest `cpu.shares` the kernel takes, and the share of pods that ask for no CPU.
pub const MIN_SHARES: u64 = 2;
/// Most `cpu.shares` the kernel takes.
pub const MAX_SHARES: u64 = 262_144;
/// `cpu.cfs_period_us` where none is given.
pub const DEFAULT_PERIOD_US: u64 = 100_000;

/// Limits of the cgroup that holds every pod. `None` leaves the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeValues {
    /// From the node's allocatable CPU, see [`shares_of_milli`].
    pub cpu_shares: Option<u64>,
    /// Bytes: the node's memory less its reservations (the eviction threshold is not subtracted).
    pub memory_limit: Option<i64>,
    /// Tasks; negative for no limit.
    pub pids_limit: Option<i64>,
    /// Bytes per size of huge pages; sizes not named are left alone.
    pub hugetlb: Vec<HugetlbLimit>,
    /// What of the memory that pods request their classes protect (KEP-2570).
    pub protection: Protection,
    /// `qosReserved`: what the classes below may not use of the memory that better ones request.
    pub reserve_memory: Option<MemoryReserve>,
}

/// Memory QoS of the classes: `memory.min` of all pods, `memory.low` of the burstable ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protection {
    /// The feature is off: left alone.
    #[default]
    Off,
    /// `memoryReservationPolicy: None`: nothing, and what was protected before is not any more.
    Nothing,
    /// `memoryReservationPolicy: TieredReservation`: what the pods request.
    Requests,
}

/// `qosReserved: {memory: …%}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryReserve {
    /// The share of the requests that is kept, in percent.
    pub percent: u8,
    /// Bytes of memory that all pods may have: the node's less its reservations.
    pub allocatable: i64,
}

/// What the admitted pods request, by which the classes' cgroups are set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requested {
    /// Milli-CPU of the Burstable pods.
    pub burstable_milli: u64,
    /// Bytes of memory of the Burstable pods.
    pub burstable_memory: i64,
    /// Bytes of memory of the Guaranteed pods.
    pub guaranteed_memory: i64,
}

/// Limits of one pod's cgroup. `None` leaves the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodValues {
    /// v1 scale, 2…262144; on v2 converted to a weight.
    pub cpu_shares: Option<u64>,
    /// Microseconds per period; zero or less for no limit.
    pub cpu_quota_us: Option<i64>,
    /// Microseconds.
    pub cpu_period_us: Option<u64>,
    /// Bytes; negative for no limit; zero is no value and leaves the kernel's default.
    pub memory_limit: Option<i64>,
    /// Bytes that are never reclaimed; v2 only.
    pub memory_min: Option<i64>,
    /// Bytes that are reclaimed last; v2 only.
    pub memory_low: Option<i64>,
    /// CPUs as a list such as `0-3`; v2 only, as on v1 every cgroup inherits them.
    pub cpus: Option<String>,
    /// Tasks; zero or less for no limit.
    pub pids_limit: Option<i64>,
    /// Bytes per size of huge pages. Sizes the kernel has and that are not named get a limit of nothing.
    pub hugetlb: Vec<HugetlbLimit>,
}

/// A limit of huge pages of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HugetlbLimit {
    /// As in the file's name: `2MB`, `1GB`.
    pub page_size: String,
    /// Bytes.
    pub bytes: u64,
}

impl From<&NodeValues> for PodValues {
    fn from(n: &NodeValues) -> Self {
        Self {
            cpu_shares: n.cpu_shares,
            memory_limit: n.memory_limit,
            pids_limit: n.pids_limit,
            hugetlb: n.hugetlb.clone(),
            ..Self::default()
        }
    }
}

/// One write into a cgroup's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The controller whose hierarchy holds the file.
    pub controller: &'static str,
    /// The file's name.
    pub file: String,
    /// The text to write.
    pub value: String,
}

impl Write {
    fn new(controller: &'static str, file: impl Into<String>, value: impl ToString) -> Self {
        Self { controller, file: file.into(), value: value.to_string() }
    }
}

/// `cpu.shares` for a CPU request: 1024 a core, rounded down, within the kernel's bounds.
pub fn shares_of_milli(milli_cpu: u64) -> u64 {
    (milli_cpu.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// `cpu.weight` for `cpu.shares`.
pub fn weight_of_shares(shares: u64) -> u64 {
    let shares = shares.clamp(MIN_SHARES, MAX_SHARES);
    1 + (shares - MIN_SHARES) * 9999 / (MAX_SHARES - MIN_SHARES)
}

/// The fewest `cpu.shares` whose weight is `weight`.
pub fn shares_of_weight(weight: u64) -> u64 {
    let weight = weight.clamp(1, 10_000);
    MIN_SHARES + ((weight - 1) * (MAX_SHARES - MIN_SHARES)).div_ceil(9999)
}

/// How cgroup v1 spells `values`. The period stands before the quota, which the kernel checks against it.
pub fn v1(values: &PodValues) -> Vec<Write> {
    let mut w = Vec::new();
    if let Some(limit) = values.memory_limit.filter(|limit| *limit != 0) {
        w.push(Write::new("memory", "memory.limit_in_bytes", limit.max(-1)));
    }
    if let Some(shares) = values.cpu_shares {
        w.push(Write::new("cpu", "cpu.shares", shares.clamp(MIN_SHARES, MAX_SHARES)));
    }
    if let Some(period) = values.cpu_period_us {
        w.push(Write::new("cpu", "cpu.cfs_period_us", period));
    }
    if let Some(quota) = values.cpu_quota_us {
        w.push(Write::new("cpu", "cpu.cfs_quota_us", if quota > 0 { quota } else { -1 }));
    }
    if let Some(limit) = values.pids_limit {
        w.push(Write::new("pids", "pids.max", max_or(limit)));
    }
    for h in &values.hugetlb {
        w.push(Write::new("hugetlb", format!("hugetlb.{}.limit_in_bytes", h.page_size), h.bytes));
    }
    w
}

/// How cgroup v2 spells `values`.
pub fn v2(values: &PodValues) -> Vec<Write> {
    let mut w = Vec::new();
    if let Some(cpus) = &values.cpus {
        w.push(Write::new("cpuset", "cpuset.cpus", cpus));
    }
    for (file, bytes) in [("memory.min", values.memory_min), ("memory.low", values.memory_low)] {
        w.extend(bytes.map(|b| Write::new("memory", file, b)));
    }
    if let Some(limit) = values.memory_limit.filter(|limit| *limit != 0) {
        w.push(Write::new("memory", "memory.max", max_or(limit)));
    }
    if let Some(shares) = values.cpu_shares {
        w.push(Write::new("cpu", "cpu.weight", weight_of_shares(shares)));
    }
    if values.cpu_quota_us.is_some() || values.cpu_period_us.is_some() {
        let quota = max_or(values.cpu_quota_us.unwrap_or(-1));
        let period = values.cpu_period_us.unwrap_or(DEFAULT_PERIOD_US);
        w.push(Write::new("cpu", "cpu.max", format!("{quota} {period}")));
    }
    if let Some(limit) = values.pids_limit {
        w.push(Write::new("pids", "pids.max", max_or(limit)));
    }
    for h in &values.hugetlb {
        w.push(Write::new("hugetlb", format!("hugetlb.{}.max", h.page_size), h.bytes));
    }
    w
}

/// `hugetlb` for a pod: what it asks for, and nothing of the other sizes the kernel has. Nothing of a size that cannot
/// be limited here is no limit.
pub fn hugetlb_of_pod(asked: &[HugetlbLimit], kernel_sizes: &[String]) -> Vec<HugetlbLimit> {
    let limited = |h: &&HugetlbLimit| h.bytes > 0 || kernel_sizes.contains(&h.page_size);
    let mut all: Vec<_> = asked.iter().filter(limited).cloned().collect();
    for size in kernel_sizes {
        if !asked.iter().any(|h| h.page_size == *size) {
            all.push(HugetlbLimit { page_size: size.clone(), bytes: 0 });
        }
    }
    all
}

/// The values of the class's cgroup for what its pods request; those of the guaranteed class are of the cgroup of all
/// pods. Without CPU requests a class has the least share.
pub fn of_class(qos: Qos, asked: &Requested, node: &NodeValues) -> PodValues {
    let mut values = if qos == Qos::Guaranteed { PodValues::from(node) } else { PodValues::default() };
    let milli = if qos == Qos::Burstable { asked.burstable_milli } else { 0 };
    if qos != Qos::Guaranteed {
        values.cpu_shares = Some(shares_of_milli(milli));
    }
    let all = asked.guaranteed_memory.saturating_add(asked.burstable_memory);
    if node.protection != Protection::Off {
        let protected = |bytes| if node.protection == Protection::Requests { bytes } else { 0 };
        values.memory_min = (qos == Qos::Guaranteed).then_some(protected(all));
        values.memory_low = (qos == Qos::Burstable).then_some(protected(asked.burstable_memory));
    }
    if let Some(MemoryReserve { percent, allocatable }) = node.reserve_memory {
        let kept = match qos {
            Qos::Guaranteed => None,
            Qos::Burstable => Some(share(asked.guaranteed_memory, percent)),
            Qos::BestEffort => {
                Some(share(asked.guaranteed_memory, percent) + share(asked.burstable_memory, percent))
            }
        };
        // Nothing at all would be no limit.
        if let Some(kept) = kept {
            values.memory_limit = Some((allocatable - kept).max(1));
        }
    }
    values
}

fn share(bytes: i64, percent: u8) -> i64 {
    let part = i128::from(bytes) * i128::from(percent) / 100;
    i64::try_from(part).unwrap_or(i64::MAX)
}

fn max_or(limit: i64) -> String {
    if limit > 0 { limit.to_string() } else { "max".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_weights_are_those_recorded() {
        // The last column: cgroupv2/cgroupfs.json.
        for (milli, shares, weight) in [
            (0, 2, 1),
            (1, 2, 1),
            (33, 33, 2),
            (100, 102, 4),
            (1500, 1536, 59),
            (3000, 3072, 118),
            (4000, 4096, 157),
        ] {
            assert_eq!(shares_of_milli(milli), shares, "{milli}m");
            assert_eq!(weight_of_shares(shares), weight, "{milli}m");
        }
        assert_eq!(shares_of_milli(u64::MAX), MAX_SHARES);
        assert_eq!(weight_of_shares(u64::MAX), 10_000);
        assert_eq!(weight_of_shares(0), 1);
    }

    fn spelled(writes: &[Write]) -> Vec<String> {
        writes.iter().map(|w| format!("{}/{}={}", w.controller, w.file, w.value)).collect()
    }

    #[test]
    fn each_version_spells_the_same_values_its_own_way() {
        let values = PodValues {
            cpu_shares: Some(204),
            cpu_quota_us: Some(20_000),
            cpu_period_us: Some(100_000),
            memory_limit: Some(134_217_728),
            pids_limit: Some(100),
            hugetlb: vec![HugetlbLimit { page_size: "2MB".into(), bytes: 4 << 20 }],
            memory_min: Some(7),
            memory_low: Some(0),
            cpus: Some("0-1".into()),
        };
        assert_eq!(
            spelled(&v1(&values)),
            [
                "memory/memory.limit_in_bytes=134217728",
                "cpu/cpu.shares=204",
                "cpu/cpu.cfs_period_us=100000",
                "cpu/cpu.cfs_quota_us=20000",
                "pids/pids.max=100",
                "hugetlb/hugetlb.2MB.limit_in_bytes=4194304",
            ]
        );
        assert_eq!(
            spelled(&v2(&values)),
            [
                "cpuset/cpuset.cpus=0-1",
                "memory/memory.min=7",
                "memory/memory.low=0",
                "memory/memory.max=134217728",
                "cpu/cpu.weight=8",
                "cpu/cpu.max=20000 100000",
                "pids/pids.max=100",
                "hugetlb/hugetlb.2MB.max=4194304",
            ]
        );
    }

    #[test]
    fn no_limit_is_minus_one_or_max_and_nothing_given_writes_nothing() {
        let none = PodValues {
            cpu_quota_us: Some(-1),
            memory_limit: Some(-1),
            pids_limit: Some(-1),
            ..PodValues::default()
        };
        assert_eq!(
            spelled(&v1(&none)),
            ["memory/memory.limit_in_bytes=-1", "cpu/cpu.cfs_quota_us=-1", "pids/pids.max=max"]
        );
        assert_eq!(
            spelled(&v2(&none)),
            ["memory/memory.max=max", "cpu/cpu.max=max 100000", "pids/pids.max=max"]
        );
        assert!(v1(&PodValues::default()).is_empty() && v2(&PodValues::default()).is_empty());
    }

    #[test]
    fn the_classes_have_what_their_pods_request() {
        let asked = Requested {
            burstable_milli: 2100,
            burstable_memory: 3_476_029_440,
            guaranteed_memory: 67_108_864,
        };
        let plain = NodeValues::default();
        let shares = |qos| of_class(qos, &asked, &plain).cpu_shares;
        assert_eq!(shares(Qos::Guaranteed), None);
        assert_eq!(shares(Qos::Burstable), Some(2150));
        assert_eq!(shares(Qos::BestEffort), Some(2));
        // As memoryqos.json has them with TieredReservation in batch1.
        let tiered = NodeValues { protection: Protection::Requests, ..plain.clone() };
        let of = |qos| of_class(qos, &asked, &tiered);
        assert_eq!(
            (of(Qos::Guaranteed).memory_min, of(Qos::Guaranteed).memory_low),
            (Some(3_543_138_304), None)
        );
        assert_eq!(
            (of(Qos::Burstable).memory_min, of(Qos::Burstable).memory_low),
            (None, Some(3_476_029_440))
        );
        assert_eq!((of(Qos::BestEffort).memory_min, of(Qos::BestEffort).memory_low), (None, None));
        let none = NodeValues { protection: Protection::Nothing, ..plain.clone() };
        assert_eq!(of_class(Qos::Guaranteed, &asked, &none).memory_min, Some(0));
        assert_eq!(of_class(Qos::Burstable, &asked, &none).memory_low, Some(0));
        assert_eq!(of_class(Qos::Burstable, &asked, &plain).memory_low, None);
    }

    #[test]
    fn a_reserve_takes_from_lesser_classes_what_better_ones_request() {
        let asked = Requested { burstable_memory: 200, guaranteed_memory: 100, ..Requested::default() };
        let node = |percent| NodeValues {
            reserve_memory: Some(MemoryReserve { percent, allocatable: 1000 }),
            ..NodeValues::default()
        };
        let limit = |qos, percent| of_class(qos, &asked, &node(percent)).memory_limit;
        assert_eq!(limit(Qos::Guaranteed, 100), None);
        assert_eq!((limit(Qos::Burstable, 100), limit(Qos::BestEffort, 100)), (Some(900), Some(700)));
        assert_eq!((limit(Qos::Burstable, 50), limit(Qos::BestEffort, 50)), (Some(950), Some(850)));
        assert_eq!((limit(Qos::Burstable, 0), limit(Qos::BestEffort, 0)), (Some(1000), Some(1000)));
    }

    #[test]
    fn huge_pages_not_asked_for_are_denied() {
        let asked = [HugetlbLimit { page_size: "2MB".into(), bytes: 8 }];
        let all = hugetlb_of_pod(&asked, &["2MB".into(), "1GB".into()]);
        assert_eq!(
            all.iter().map(|h| (h.page_size.as_str(), h.bytes)).collect::<Vec<_>>(),
            [("2MB", 8), ("1GB", 0)]
        );
    }
}
