//! What is kept of the machine, for the system, for the agent and its runtime, and what is left for pods.
//!
//! Part of `settings`, which alone calls it. Arithmetic on a configuration that was checked; nothing is read.

use super::SettingsError;
use crate::cgroup::{MemoryReserve, NodeValues, PodValues, Protection, Reserved};
use crate::config::Loaded;
use crate::evict::Amount;
use crate::node::Capacity;
use crate::pod::translate::memory::MemoryQos;
use crate::pod::translate::{self, Allocatable};
use crate::quantity;
use std::collections::BTreeMap;

/// What is left for pods after reservations and the memory at which eviction would begin.
pub fn allocatable(loaded: &Loaded, capacity: &Capacity) -> Result<Allocatable, SettingsError> {
    let config = &loaded.config;
    let cpu = reserved(loaded, "cpu", |n| n.milli());
    let kept = |signal, capacity| match loaded.flags.experimental_allocatable_ignore_eviction {
        true => 0,
        false => threshold(&config.eviction_hard, signal, capacity),
    };
    let memory =
        reserved(loaded, "memory", |n| n.value()).saturating_add(kept("memory.available", capacity.memory));
    let storage = reserved(loaded, "ephemeral-storage", |n| n.value())
        .saturating_add(kept("nodefs.available", capacity.ephemeral_storage));
    let left = |field, capacity: i64, reserved: i64| {
        // A limit of nothing would be no limit.
        if reserved > 0 && reserved >= capacity {
            return Err(SettingsError::Reserved { field, reserved, capacity });
        }
        Ok(capacity - reserved)
    };
    if let Some(pids) = capacity.pids {
        left("kubeReserved and systemReserved: pid", pids, reserved(loaded, "pid", |n| n.value()))?;
    }
    let huge: i64 = capacity.huge_pages.iter().map(|h| h.size.saturating_mul(h.count)).sum();
    Ok(Allocatable {
        cpu_milli: left("kubeReserved and systemReserved: cpu", capacity.cpu_milli, cpu)?,
        // Huge pages are set aside on the machine, whatever is reserved: there may be nothing left beside them.
        memory_bytes: left("kubeReserved, systemReserved and evictionHard: memory", capacity.memory, memory)?
            .saturating_sub(huge)
            .max(0),
        ephemeral_bytes: match config.local_storage_capacity_isolation {
            true => left(
                "kubeReserved, systemReserved and evictionHard: ephemeral-storage",
                capacity.ephemeral_storage,
                storage,
            )?,
            // The node has none to give, as upstream's has then.
            false => 0,
        },
    })
}

fn reserved(loaded: &Loaded, name: &str, of: impl Fn(quantity::Nano) -> i64) -> i64 {
    let config = &loaded.config;
    [&config.kube_reserved, &config.system_reserved]
        .into_iter()
        .filter_map(|map| amount(map, name))
        .fold(0, |sum, n| sum.saturating_add(of(n)))
}

/// Texts that are no quantities were refused when the configuration was read.
fn amount(map: &BTreeMap<String, String>, name: &str) -> Option<quantity::Nano> {
    quantity::parse(map.get(name)?).ok()
}

/// An eviction threshold as an amount: a quantity, or a percentage of `capacity`.
fn threshold(thresholds: &BTreeMap<String, String>, signal: &str, capacity: i64) -> i64 {
    let amount = thresholds.get(signal).and_then(|text| Amount::parse(text).ok());
    amount.map_or(0, |amount| amount.of(capacity))
}

/// Memory of all pods together: what is not reserved. The eviction threshold is not taken off.
fn memory_of_pods(loaded: &Loaded, capacity: &Capacity) -> i64 {
    capacity.memory - reserved(loaded, "memory", |n| n.value())
}

/// Values of the cgroup that holds all pods: what pods may have where that is enforced, else what there is.
pub fn node_cgroup(
    loaded: &Loaded,
    capacity: &Capacity,
    allocatable: &Allocatable,
    cgroup_v2: bool,
) -> NodeValues {
    let config = &loaded.config;
    let enforced = config.enforce_node_allocatable.iter().any(|e| e == "pods");
    let pick = |allocatable: i64, capacity: i64| if enforced { allocatable } else { capacity };
    let cpu = pick(allocatable.cpu_milli, capacity.cpu_milli);
    let tiered = config.memory_reservation_policy == "TieredReservation";
    let percent = config.qos_reserved.get("memory").and_then(|p| p.strip_suffix('%')?.parse().ok());
    NodeValues {
        cpu_shares: Some(translate::cpu_shares(cpu).unsigned_abs()),
        memory_limit: Some(pick(memory_of_pods(loaded, capacity), capacity.memory)),
        pids_limit: capacity.pids.map(|all| pick(all - reserved(loaded, "pid", |n| n.value()), all)),
        hugetlb: Vec::new(),
        protection: match (loaded.gates.enabled("MemoryQoS") && cgroup_v2, tiered) {
            (false, _) => Protection::Off,
            (true, false) => Protection::Nothing,
            (true, true) => Protection::Requests,
        },
        reserve_memory: percent
            .map(|percent| MemoryReserve { percent, allocatable: memory_of_pods(loaded, capacity) }),
    }
}

/// Memory QoS of containers, where the gate is on.
pub fn memory_qos(loaded: &Loaded, capacity: &Capacity) -> Option<MemoryQos> {
    loaded.gates.enabled("MemoryQoS").then(|| MemoryQos {
        tiered: loaded.config.memory_reservation_policy == "TieredReservation",
        throttling_factor: loaded.config.memory_throttling_factor,
        allocatable: memory_of_pods(loaded, capacity),
    })
}

/// The reservations that `enforceNodeAllocatable` wants enforced on cgroups of their own.
pub fn enforced(loaded: &Loaded, cgroup_v2: bool) -> Result<Vec<Reserved>, SettingsError> {
    let config = &loaded.config;
    let protect = loaded.gates.enabled("MemoryQoS") && cgroup_v2;
    let mut all = Vec::new();
    for option in &config.enforce_node_allocatable {
        let (whom, fields, map, cgroup) = match option.strip_suffix("-compressible").unwrap_or(option) {
            "system-reserved" => (
                "System",
                ("systemReserved", "systemReservedCgroup"),
                &config.system_reserved,
                &config.system_reserved_cgroup,
            ),
            "kube-reserved" => (
                "Kube",
                ("kubeReserved", "kubeReservedCgroup"),
                &config.kube_reserved,
                &config.kube_reserved_cgroup,
            ),
            _ => continue,
        };
        let compressible = option.ends_with("-compressible");
        if map.is_empty() || compressible && !map.contains_key("cpu") {
            return Err(SettingsError::NothingReserved { option: option.clone(), field: fields.0 });
        }
        let shares = |n: quantity::Nano| translate::cpu_shares(n.milli()).unsigned_abs();
        let mut values = PodValues { cpu_shares: amount(map, "cpu").map(shares), ..PodValues::default() };
        if !compressible {
            values.memory_limit = amount(map, "memory").map(|n| n.value());
            values.memory_min = values.memory_limit.filter(|_| protect);
            values.pids_limit = amount(map, "pid").map(|n| n.value());
        }
        all.push(Reserved { whom, field: fields.1, cgroup: cgroup.clone(), values });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Command, load};

    fn loaded(text: &str) -> Loaded {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        let base = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                    authentication: {webhook: {enabled: false}}\nauthorization: {mode: AlwaysAllow}\n\
                    enableSystemLogHandler: false\nenableProfilingHandler: false\n\
                    enableDebugFlagsHandler: false\nmakeIPTablesUtilChains: false\n";
        std::fs::write(&path, format!("{base}{text}")).unwrap();
        match load([format!("--config={}", path.display())]) {
            Ok(Command::Run(loaded)) => *loaded,
            other => panic!("{other:?}"),
        }
    }

    /// The node of cgroupv2/memoryqos.json.
    fn capacity() -> Capacity {
        Capacity { cpu_milli: 4000, memory: 6_318_186_496, pids: Some(48_284), ..Capacity::default() }
    }

    const RESERVED: &str = "evictionHard: {memory.available: 100Mi}\n\
                            kubeReserved: {cpu: 200m, memory: 200Mi}\n\
                            systemReserved: {cpu: 100m, memory: 150Mi}\n";

    #[test]
    fn the_cgroup_of_all_pods_has_what_is_not_reserved_where_that_is_enforced() {
        let of = |text: &str| {
            let loaded = loaded(&format!("{RESERVED}{text}"));
            let left = allocatable(&loaded, &capacity()).unwrap();
            node_cgroup(&loaded, &capacity(), &left, true)
        };
        // As memoryqos.json has it: weight 145, the eviction threshold not taken off.
        let values = of("");
        assert_eq!(crate::cgroup::values::weight_of_shares(values.cpu_shares.unwrap()), 145);
        assert_eq!((values.memory_limit, values.pids_limit), (Some(5_951_184_896), Some(48_284)));
        assert_eq!((values.protection, values.reserve_memory), (Protection::Off, None));
        let values = of("enforceNodeAllocatable: [none]\n");
        assert_eq!((values.cpu_shares, values.memory_limit), (Some(4096), Some(6_318_186_496)));
        let qos = "featureGates: {MemoryQoS: true}\n";
        assert_eq!(of(qos).protection, Protection::Nothing);
        assert_eq!(
            of(&format!("{qos}memoryReservationPolicy: TieredReservation\n")).protection,
            Protection::Requests
        );
        let kept =
            of("featureGates: {QOSReserved: true}\nqosReserved: {memory: 50%}\n").reserve_memory.unwrap();
        assert_eq!((kept.percent, kept.allocatable), (50, 5_951_184_896));
    }

    #[test]
    fn huge_pages_leave_nothing_rather_than_contradict_reservations() {
        let huge = |count| Capacity {
            huge_pages: vec![crate::node::HugePages { size: 1 << 30, count }],
            ..capacity()
        };
        let left = |count| allocatable(&loaded(RESERVED), &huge(count)).unwrap().memory_bytes;
        assert_eq!(left(5), 6_318_186_496 - (450 << 20) - (5 << 30));
        assert_eq!(left(6), 0);
    }

    #[test]
    fn reservations_are_enforced_on_the_cgroups_that_are_named_as_far_as_asked() {
        let text = format!(
            "{RESERVED}kubeReservedCgroup: /kube\nsystemReservedCgroup: /system\n\
             enforceNodeAllocatable: [pods, kube-reserved, system-reserved-compressible]\n"
        );
        let all = enforced(&loaded(&text), true).unwrap();
        let kube = PodValues { cpu_shares: Some(204), memory_limit: Some(200 << 20), ..PodValues::default() };
        let system = PodValues { cpu_shares: Some(102), ..PodValues::default() };
        assert_eq!(
            all,
            [
                Reserved {
                    whom: "Kube",
                    field: "kubeReservedCgroup",
                    cgroup: "/kube".into(),
                    values: kube.clone()
                },
                Reserved {
                    whom: "System",
                    field: "systemReservedCgroup",
                    cgroup: "/system".into(),
                    values: system
                },
            ]
        );
        let protected = loaded(&format!("{text}featureGates: {{MemoryQoS: true}}\n"));
        assert_eq!(enforced(&protected, true).unwrap()[0].values.memory_min, Some(200 << 20));
        assert_eq!(enforced(&protected, false).unwrap()[0].values, kube);
    }

    #[test]
    fn reservations_that_contradict_the_machine_or_each_other_are_told_by_field() {
        for (text, want) in [
            (
                "kubeReserved: {cpu: \"3\"}\nsystemReserved: {cpu: \"2\"}\n",
                "kubeReserved and systemReserved: cpu: 5000 reserved of 4000",
            ),
            (
                "kubeReserved: {cpu: \"4\"}\n",
                "kubeReserved and systemReserved: cpu: 4000 reserved of 4000: nothing would be left",
            ),
            ("systemReserved: {memory: 6Gi}\n", "kubeReserved, systemReserved and evictionHard: memory: "),
            (
                "systemReserved: {pid: \"50000\"}\n",
                "kubeReserved and systemReserved: pid: 50000 reserved of 48284",
            ),
        ] {
            let text = allocatable(&loaded(text), &capacity()).unwrap_err().to_string();
            assert!(text.starts_with(want), "{text}");
        }
        let no_cpu = loaded(
            "kubeReserved: {memory: 1Gi}\nkubeReservedCgroup: /kube\n\
             enforceNodeAllocatable: [kube-reserved-compressible]\n",
        );
        assert!(matches!(enforced(&no_cpu, true), Err(SettingsError::NothingReserved { .. })));
        let nothing = loaded("kubeReservedCgroup: /kube\nenforceNodeAllocatable: [pods, kube-reserved]\n");
        assert_eq!(
            enforced(&nothing, true).unwrap_err().to_string(),
            "enforceNodeAllocatable: \"kube-reserved\" needs kubeReserved, which reserves nothing"
        );
    }
}
