//! Admission: may this pod run on this node, beside what is promised already? Pure; reasons and messages are
//! upstream's.

use super::affinity::{self, NodeLabels};
use super::books::Promised;
use crate::api::{self, Pod, Qos};
use crate::evict::{self, Condition, Pressure};
use crate::pod::translate::{self, resources::is_sidecar, security::APPARMOR_ANNOTATION};
use crate::quantity::Nano;

/// What the node has to give.
#[derive(Clone, Debug)]
pub struct Node {
    /// Milli-CPU pods may request.
    pub cpu_milli: i64,
    /// Bytes of memory pods may request.
    pub memory: i64,
    /// Bytes of local storage pods may request.
    pub ephemeral_storage: i64,
    /// Pods at once (`maxPods`, `podsPerCore`).
    pub pods: i64,
    /// Sysctls that may be set although they are not safe (`allowedUnsafeSysctls`); a trailing `*` matches a prefix.
    pub unsafe_sysctls: Vec<String>,
    /// The kernel enforces AppArmor profiles.
    pub apparmor: bool,
    /// Its name and labels, for node selectors.
    pub labels: NodeLabels,
}

/// Why a pod is refused: `status.reason` and the end of `status.message`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Such as `OutOfcpu`.
    pub reason: String,
    /// Such as `Node didn't have enough resource: cpu, requested: 50000, used: 0, capacity: 2000`.
    pub message: String,
}

impl Rejection {
    fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into() }
    }

    fn resource(name: &str, requested: i64, used: i64, capacity: i64) -> Self {
        Self::new(&format!("OutOf{name}"), not_enough(name, requested, used, capacity))
    }
}

/// Does the node take `pod` in while it is short of something? Critical pods always; under memory pressure alone those that
/// asked for resources, or tolerate it.
pub fn pressure(pod: &Pod, pressure: &Pressure) -> Result<(), Rejection> {
    let conditions = &pressure.conditions;
    if conditions.is_empty() || api::is_critical(pod) {
        return Ok(());
    }
    let memory_alone = conditions.iter().eq([&Condition::MemoryPressure]);
    let best_effort = translate::qos_class(pod) == Qos::BestEffort;
    if memory_alone && (!best_effort || tolerates_memory_pressure(pod)) {
        return Ok(());
    }
    Err(Rejection::new(evict::REASON, evict::not_admitted(conditions)))
}

/// The taint `node.kubernetes.io/memory-pressure:NoSchedule`, which has no value, is tolerated.
fn tolerates_memory_pressure(pod: &Pod) -> bool {
    api::spec(pod).tolerations.iter().flatten().any(|t| {
        let effect = t.effect.as_deref().unwrap_or_default();
        let key = t.key.as_deref().unwrap_or_default();
        let matches = match t.operator.as_deref().unwrap_or_default() {
            "Exists" => true,
            "" | "Equal" => t.value.as_deref().unwrap_or_default().is_empty(),
            _ => false,
        };
        matches
            && (effect.is_empty() || effect == "NoSchedule")
            && (key.is_empty() || key == "node.kubernetes.io/memory-pressure")
    })
}

/// The node has not so much left; milli-CPU, or bytes.
pub(super) fn not_enough(name: &str, requested: i64, used: i64, capacity: i64) -> String {
    format!(
        "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
    )
}

/// May `pod` run beside what is `promised`?
pub fn admit(pod: &Pod, promised: &Promised, node: &Node) -> Result<(), Rejection> {
    supported(pod)?;
    os(pod)?;
    apparmor(pod, node)?;
    sysctls(pod, node)?;
    resources(pod, promised, node)?;
    if !affinity::matches(pod, &node.labels) {
        return Err(Rejection::new(
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        ));
    }
    host_ports(pod, promised)
}

fn os(pod: &Pod) -> Result<(), Rejection> {
    match api::spec(pod).os.as_ref().map(|os| os.name.as_str()) {
        None | Some("linux") => Ok(()),
        Some(_) => Err(Rejection::new(
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        )),
    }
}

/// A profile that nobody would enforce is no protection.
fn apparmor(pod: &Pod, node: &Node) -> Result<(), Rejection> {
    let spec = api::spec(pod);
    let of_pod = spec.security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref());
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let contexts = containers
        .filter_map(|c| c.security_context.as_ref())
        .chain(spec.ephemeral_containers.iter().flatten().filter_map(|c| c.security_context.as_ref()));
    let of_containers = contexts.filter_map(|s| s.app_armor_profile.as_ref());
    let by_field = of_pod.into_iter().chain(of_containers).any(|p| p.type_ != "Unconfined");
    // No server has turned the old annotation of a static pod into the field.
    let mut old =
        pod.metadata.annotations.iter().flatten().filter(|(key, _)| key.starts_with(APPARMOR_ANNOTATION));
    let wanted = by_field || old.any(|(_, profile)| profile != "unconfined");
    if wanted && !node.apparmor {
        return Err(Rejection::new(
            "AppArmor",
            "Cannot enforce AppArmor: AppArmor is not enabled on the host",
        ));
    }
    Ok(())
}

fn resources(pod: &Pod, promised: &Promised, node: &Node) -> Result<(), Rejection> {
    if promised.pods() + 1 > node.pods {
        return Err(Rejection::resource("pods", 1, promised.pods(), node.pods));
    }
    let asked = translate::pod_resources(pod);
    let whole = |name: &str, value: Nano| if name == "cpu" { value.milli() } else { value.value() };
    for (name, capacity) in
        [("cpu", node.cpu_milli), ("memory", node.memory), ("ephemeral-storage", node.ephemeral_storage)]
    {
        let requested = asked.requests.get(name).map_or(0, |v| whole(name, *v));
        let used = promised.requested(name);
        if requested > 0 && requested.saturating_add(used) > capacity {
            return Err(Rejection::resource(name, requested, used, capacity));
        }
    }
    // Huge pages are not shared out. Extended resources are for others to count: upstream, too, lets a pod run that
    // asks for one of which the node does not know, as its device plugin may register later.
    for (name, value) in asked.requests.iter().filter(|(name, _)| name.starts_with("hugepages-")) {
        if value.value() > 0 {
            return Err(Rejection::resource(name, value.value(), 0, 0));
        }
    }
    Ok(())
}

fn host_ports(pod: &Pod, promised: &Promised) -> Result<(), Rejection> {
    if host_ports_of(pod).any(|p| promised.conflicts(&p)) {
        return Err(Rejection::new(
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
        ));
    }
    Ok(())
}

/// A port of the node that a pod takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Empty or `0.0.0.0` is every address.
    pub ip: String,
    /// The port.
    pub port: i32,
}

/// Every port of the node that `pod` takes while it runs: its sidecars' among them.
pub fn host_ports_of(pod: &Pod) -> impl Iterator<Item = HostPort> {
    let spec = api::spec(pod);
    let sidecars = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports.filter_map(|p| {
        Some(HostPort {
            protocol: p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            ip: p.host_ip.clone().unwrap_or_default(),
            port: p.host_port.filter(|n| *n > 0)?,
        })
    })
}

/// Sysctls that are namespaced and cannot harm other pods; upstream's list.
const SAFE_SYSCTLS: [&str; 14] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_notsent_lowat",
];

fn sysctls(pod: &Pod, node: &Node) -> Result<(), Rejection> {
    let spec = api::spec(pod);
    let asked = spec.security_context.as_ref().and_then(|s| s.sysctls.as_deref()).unwrap_or_default();
    for s in asked {
        let name = s.name.replace('/', ".");
        let forbidden =
            |why: &str| Rejection::new("SysctlForbidden", format!("forbidden sysctl: \"{name}\" {why}"));
        if spec.host_network.unwrap_or(false) && name.starts_with("net.") {
            return Err(forbidden("not allowed with host net enabled"));
        }
        if spec.host_ipc.unwrap_or(false)
            && (name.starts_with("kernel.shm") || name.starts_with("fs.mqueue."))
        {
            return Err(forbidden("not allowed with host ipc enabled"));
        }
        let listed = node.unsafe_sysctls.iter().any(|allowed| match allowed.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == *allowed,
        });
        if !listed && !SAFE_SYSCTLS.contains(&name.as_str()) {
            return Err(forbidden("not allowlisted"));
        }
    }
    Ok(())
}

/// What this agent does not do yet is refused, by the field's name, never ignored.
fn supported(pod: &Pod) -> Result<(), Rejection> {
    let missing = |field: String, what: &str| {
        Err(Rejection::new("UnsupportedPodSpec", format!("{field}: {what} not supported yet")))
    };
    let spec = api::spec(pod);
    if spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty()) {
        return missing("spec.resourceClaims".to_owned(), "dynamic resource allocation is");
    }
    if spec.runtime_class_name.as_ref().is_some_and(|n| !n.is_empty()) {
        return missing("spec.runtimeClassName".to_owned(), "runtime classes are");
    }
    Ok(())
}

/// The value of a request, for the books.
pub(super) fn requested(pod: &Pod, name: &str) -> i64 {
    let asked = translate::pod_resources(pod);
    let value = asked.requests.get(name).copied().unwrap_or_default();
    if name == "cpu" { value.milli() } else { value.value() }
}
