//! Values as properties of systemd units, and what systemd has no property for. Pure.
//!
//! Sources: systemd.resource-control(5), systemd.slice(5) and the D-Bus interface of its manager for names and types;
//! the recorded behaviour of the stock agent for what is set (`systemd.properties_set`).

use crate::cgroup::Error;
use crate::cgroup::layout;
use crate::cgroup::values::{self, MAX_SHARES, MIN_SHARES, PodValues, Write};
use zbus::zvariant::Value;

/// A property of a unit.
pub type Property = (&'static str, Value<'static>);

/// No limit.
const INFINITY: u64 = u64::MAX;
/// systemd keeps quotas in hundredths of a core.
const QUOTA_STEP_US: u64 = 10_000;
const SECOND_US: u64 = 1_000_000;

/// What makes `unit` a slice of pods: where it stands, and that its use is accounted for.
pub fn of_slice(unit: &str) -> Vec<Property> {
    let mut all: Vec<Property> = vec![
        ("Description", Value::from(format!("Kubernetes pods: {unit}"))),
        ("Wants", Value::from(vec![layout::parent_of(unit)])),
        // Slices without default dependencies stay until the end of a shutdown, like the containers in them.
        ("DefaultDependencies", Value::from(false)),
    ];
    let accounting = ["CPUAccounting", "MemoryAccounting", "IOAccounting", "TasksAccounting"];
    all.extend(accounting.map(|name| (name, Value::from(true))));
    all
}

/// `values` on cgroup v2: properties, and files for the rest.
pub fn v2(values: &PodValues) -> Result<(Vec<Property>, Vec<Write>), Error> {
    let mut all: Vec<Property> = Vec::new();
    if let Some(cpus) = &values.cpus {
        all.push(("AllowedCPUs", Value::from(cpu_mask(cpus)?)));
    }
    let bytes = |b: i64| Value::from(u64::try_from(b).unwrap_or(INFINITY));
    all.extend(values.memory_min.map(|b| ("MemoryMin", bytes(b))));
    all.extend(values.memory_low.map(|b| ("MemoryLow", bytes(b))));
    all.extend(values.memory_limit.filter(|l| *l != 0).map(|l| ("MemoryMax", bytes(l))));
    all.extend(values.cpu_shares.map(|s| ("CPUWeight", Value::from(values::weight_of_shares(s)))));
    common(values, &mut all);
    let rest = PodValues { hugetlb: values.hugetlb.clone(), ..PodValues::default() };
    Ok((all, values::v2(&rest)))
}

/// `values` on cgroup v1. systemd has controllers there that it does not manage and drops what it thinks nobody
/// needs, so every file is written as well.
pub fn v1(values: &PodValues) -> (Vec<Property>, Vec<Write>) {
    let mut all: Vec<Property> = Vec::new();
    let limit = values.memory_limit.filter(|l| *l != 0);
    all.extend(limit.map(|l| ("MemoryLimit", Value::from(u64::try_from(l).unwrap_or(INFINITY)))));
    let shares = values.cpu_shares.map(|s| s.clamp(MIN_SHARES, MAX_SHARES));
    all.extend(shares.map(|s| ("CPUShares", Value::from(s))));
    common(values, &mut all);
    (all, values::v1(values))
}

/// Quota and tasks have the same names on both.
fn common(values: &PodValues, all: &mut Vec<Property>) {
    if let Some(quota) = values.cpu_quota_us {
        let period = values.cpu_period_us.unwrap_or(values::DEFAULT_PERIOD_US);
        all.push(("CPUQuotaPeriodUSec", Value::from(period)));
        all.push(("CPUQuotaPerSecUSec", Value::from(quota_per_second(quota, period))));
    }
    let tasks = |n: i64| u64::try_from(n).ok().filter(|n| *n > 0).unwrap_or(INFINITY);
    all.extend(values.pids_limit.map(|n| ("TasksMax", Value::from(tasks(n)))));
}

/// The quota of a second, as the finest that systemd keeps, rounded up so that nothing is taken from a pod.
fn quota_per_second(quota_us: i64, period_us: u64) -> u64 {
    let Some(quota) = u64::try_from(quota_us).ok().filter(|q| *q > 0 && period_us > 0) else {
        return INFINITY;
    };
    let each = u128::from(quota) * u128::from(SECOND_US) / u128::from(period_us);
    u64::try_from(each).unwrap_or(INFINITY - QUOTA_STEP_US).next_multiple_of(QUOTA_STEP_US)
}

/// A list such as `0-3,8` as the bits of bytes, the lowest CPU first.
fn cpu_mask(list: &str) -> Result<Vec<u8>, Error> {
    let mut mask = Vec::new();
    for part in list.trim().split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|n| *n < 1 << 16);
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err(Error::CpuList { list: list.to_owned() });
        };
        for cpu in first..=last {
            if mask.len() <= cpu / 8 {
                mask.resize(cpu / 8 + 1, 0);
            }
            mask[cpu / 8] |= 1_u8 << (cpu % 8);
        }
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::HugetlbLimit;

    fn shown(all: &[Property]) -> Vec<String> {
        let words = |value: &Value<'_>| value.to_string().trim_start_matches("uint64 ").to_owned();
        all.iter().map(|(name, value)| format!("{name}={}", words(value))).collect()
    }

    fn values() -> PodValues {
        PodValues {
            cpu_shares: Some(340),
            cpu_quota_us: Some(33_300),
            cpu_period_us: Some(100_000),
            memory_limit: Some(1 << 20),
            pids_limit: Some(-1),
            hugetlb: vec![HugetlbLimit { page_size: "2MB".into(), bytes: 0 }],
            ..PodValues::default()
        }
    }

    #[test]
    fn values_are_properties_and_huge_pages_are_files() {
        let (all, files) = v2(&values()).unwrap();
        let infinity = u64::MAX;
        assert_eq!(
            shown(&all),
            [
                "MemoryMax=1048576".to_owned(),
                "CPUWeight=13".to_owned(),
                "CPUQuotaPeriodUSec=100000".to_owned(),
                // cgroupv2/systemd.json: 333m is 34000 of 100000 in the file.
                "CPUQuotaPerSecUSec=340000".to_owned(),
                format!("TasksMax={infinity}"),
            ]
        );
        assert_eq!(files.iter().map(|w| w.file.as_str()).collect::<Vec<_>>(), ["hugetlb.2MB.max"]);
        let (all, files) = v1(&values());
        assert_eq!(shown(&all)[..2], ["MemoryLimit=1048576", "CPUShares=340"]);
        assert_eq!(files.len(), 6, "every file as well");
        assert!(v2(&PodValues::default()).unwrap().0.is_empty());
    }

    #[test]
    fn quotas_are_rounded_up_to_what_systemd_keeps() {
        for (quota, period, want) in [
            (1000, 100_000, 10_000),
            (1100, 100_000, 20_000),
            (5000, 100_000, 50_000),
            (200_000, 100_000, 2_000_000),
            (1000, 10_000, 100_000),
            (-1, 100_000, INFINITY),
            (0, 100_000, INFINITY),
        ] {
            assert_eq!(quota_per_second(quota, period), want, "{quota} of {period}");
        }
    }

    #[test]
    fn cpus_are_bits() {
        assert_eq!(cpu_mask("0-3").unwrap(), [0b1111]);
        assert_eq!(cpu_mask("0,2,9\n").unwrap(), [0b101, 0b10]);
        assert_eq!(cpu_mask("").unwrap(), Vec::<u8>::new());
        for list in ["a", "1-", "0-99999999"] {
            assert!(cpu_mask(list).unwrap_err().to_string().contains(list));
        }
    }

    #[test]
    fn a_slice_wants_the_one_it_stands_in() {
        let all = of_slice("kubepods-burstable-podx.slice");
        assert!(
            shown(&all).contains(&"Wants=[\"kubepods-burstable.slice\"]".to_owned()),
            "{:?}",
            shown(&all)
        );
    }
}
