//! Allocatable and reservations, node shutdown, memory and restart back-off: fields that depend on one another.
//!
//! One of the rule sets of `validate`.

use super::names::is_cpu_list;
use super::{Report, Shown};
use crate::config::duration::GoDuration;
use crate::config::gates::FeatureGates;
use crate::config::types::KubeletConfiguration;
use crate::quantity;
use std::collections::BTreeSet;

pub(super) fn allocatable(c: &KubeletConfiguration, report: &mut Report) {
    let path = "enforceNodeAllocatable";
    let wanted = &c.enforce_node_allocatable;
    let mut seen = BTreeSet::new();
    for option in wanted {
        if !seen.insert(option) {
            report.fail(path, option, "is given twice");
            continue;
        }
        match option.as_str() {
            "none" => {
                if wanted.len() > 1 {
                    report.fail(path, option, "must stand alone");
                }
                continue;
            }
            "pods" => {}
            "system-reserved" | "system-reserved-compressible" if c.system_reserved_cgroup.is_empty() => {
                report.fail(path, option, "needs systemReservedCgroup");
            }
            "kube-reserved" | "kube-reserved-compressible" if c.kube_reserved_cgroup.is_empty() => {
                report.fail(path, option, "needs kubeReservedCgroup");
            }
            "system-reserved"
            | "system-reserved-compressible"
            | "kube-reserved"
            | "kube-reserved-compressible" => {}
            _ => {
                report.fail(
                    path,
                    option,
                    "must be one of pods, system-reserved, system-reserved-compressible, kube-reserved, \
                     kube-reserved-compressible, none",
                );
                continue;
            }
        }
        if !c.cgroups_per_qos {
            report.fail(path, option, "needs cgroupsPerQOS: true");
        }
    }
    for of in ["system-reserved", "kube-reserved"] {
        let compressible = format!("{of}-compressible");
        if wanted.iter().any(|o| o == of) && wanted.contains(&compressible) {
            report.fail(path, of, format!("cannot stand with {compressible}"));
        }
    }
    if !c.system_cgroups.is_empty() && c.cgroup_root.is_empty() {
        report.fail("systemCgroups", &c.system_cgroups, "needs cgroupRoot");
    }
}

pub(super) fn reserved(c: &KubeletConfiguration, gates: &FeatureGates, report: &mut Report) {
    for (path, map) in [("systemReserved", &c.system_reserved), ("kubeReserved", &c.kube_reserved)] {
        for (resource, amount) in map {
            if !["cpu", "memory", "ephemeral-storage", "pid"].contains(&resource.as_str()) {
                report.fail(path, resource, "cannot be reserved; cpu, memory, ephemeral-storage and pid can");
            }
            if !quantity::parse(amount).is_ok_and(|q| !q.is_negative()) {
                report.fail(&format!("{path}[{resource}]"), amount, "must be a quantity of 0 or more");
            }
        }
    }
    for (resource, share) in &c.qos_reserved {
        if !gates.enabled("QOSReserved") {
            report.fail(&format!("qosReserved[{resource}]"), share, "needs feature gate QOSReserved");
        }
        if resource != "memory" {
            report.fail("qosReserved", resource, "cannot be reserved; only memory can");
        }
        let percent = share.strip_suffix('%').and_then(|p| p.parse::<i32>().ok());
        if !percent.is_some_and(|p| (0..=100).contains(&p)) {
            report.fail(&format!("qosReserved[{resource}]"), share, "must be a percentage from 0% to 100%");
        }
    }
    let cpus = &c.reserved_system_cpus;
    if !cpus.is_empty() {
        if !is_cpu_list(cpus) {
            report.fail("reservedSystemCPUs", cpus, "must be a CPU list such as 0-3,7");
        }
        if !c.system_reserved_cgroup.is_empty() || !c.kube_reserved_cgroup.is_empty() {
            let rule = "cannot stand with systemReservedCgroup or kubeReservedCgroup";
            report.fail("reservedSystemCPUs", cpus, rule);
        }
    }
    let mut seen = BTreeSet::new();
    for reservation in &c.reserved_memory {
        let node = reservation.numa_node;
        if node < 0 {
            report.fail("reservedMemory", node, "is no NUMA node");
        }
        if reservation.limits.is_empty() {
            report.fail("reservedMemory", node, "is a NUMA node for which nothing is reserved");
        }
        for (resource, amount) in &reservation.limits {
            if resource != "memory" && !resource.starts_with("hugepages-") {
                report.fail("reservedMemory", resource, "cannot be reserved; memory and hugepages-SIZE can");
            }
            if amount.amount().value() <= 0 {
                report.fail("reservedMemory", amount.as_str(), format!("must be above 0 for {resource}"));
            }
            if !seen.insert((node, resource)) {
                report.fail("reservedMemory", resource, format!("is reserved twice on NUMA node {node}"));
            }
        }
    }
}

pub(super) fn shutdown(c: &KubeletConfiguration, gates: &FeatureGates, report: &mut Report) {
    let (all, critical) = (c.shutdown_grace_period, c.shutdown_grace_period_critical_pods);
    let periods = [("shutdownGracePeriod", all), ("shutdownGracePeriodCriticalPods", critical)];
    let set = !all.is_zero() || !critical.is_zero();
    if critical > all {
        let rule = format!("must be at most shutdownGracePeriod, {all}");
        report.fail("shutdownGracePeriodCriticalPods", Shown(critical), rule);
    }
    for (path, period) in periods.into_iter().filter(|(_, p)| !p.is_zero()) {
        if period < GoDuration::from_secs(1) {
            report.fail(path, Shown(period), "must be 0s, or 1s or more");
        }
        if !gates.enabled("GracefulNodeShutdown") {
            report.fail(path, Shown(period), "needs feature gate GracefulNodeShutdown");
        }
    }
    let by_priority = c.shutdown_grace_period_by_pod_priority.len();
    if by_priority > 0 {
        let path = "shutdownGracePeriodByPodPriority";
        let shown = format_args!("{by_priority} entries").to_string();
        if set {
            report.fail(path, &shown, "cannot stand with shutdownGracePeriod");
        }
        if !gates.enabled("GracefulNodeShutdownBasedOnPodPriority") {
            report.fail(path, &shown, "needs feature gate GracefulNodeShutdownBasedOnPodPriority");
        }
    }
}

pub(super) fn memory(c: &KubeletConfiguration, gates: &FeatureGates, report: &mut Report) {
    if let Some(factor) = c.memory_throttling_factor.filter(|f| !(*f > 0.0 && *f <= 1.0)) {
        report.fail("memoryThrottlingFactor", factor, "must be above 0 and at most 1");
    }
    if c.memory_reservation_policy == "TieredReservation" && !gates.enabled("MemoryQoS") {
        report.fail("memoryReservationPolicy", "TieredReservation", "needs feature gate MemoryQoS");
    }
    if let Some(ids) = c.user_namespaces.as_ref().and_then(|u| u.ids_per_pod)
        && (ids < 65536 || ids % 65536 != 0 || ids >= 1 << 32)
    {
        let rule = "must be a multiple of 65536, at least that, and below 4294967296";
        report.fail("userNamespaces.idsPerPod", ids, rule);
    }
}

pub(super) fn back_off(c: &KubeletConfiguration, gates: &FeatureGates, report: &mut Report) {
    let path = "crashLoopBackOff.maxContainerRestartPeriod";
    let Some(period) = c.crash_loop_back_off.max_container_restart_period else { return };
    if !gates.enabled("KubeletCrashLoopBackOffMax") {
        report.fail(path, Shown(period), "needs feature gate KubeletCrashLoopBackOffMax");
    } else if period < GoDuration::from_secs(1) || period > GoDuration::from_secs(300) {
        report.fail(path, Shown(period), "must be between 1s and 5m0s");
    }
}
