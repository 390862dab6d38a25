//! `PodSandboxConfig` from a pod.

use super::{NodeFacts, ResolvConf, Warning, dns, hostname, limits, security};
use crate::api::{Container, Pod, spec};
use cri::v1::{LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol};
use std::collections::BTreeMap;

/// A pod that no sandbox can be made for. The texts follow `Failed to create pod sandbox: ` in the event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TranslateError {
    /// `hostname`, `subdomain` or what is left of the pod's name is no DNS label.
    #[error("pod {field} {value:?} is not a valid DNS label")]
    NoLabel {
        /// The field in the spec (or `name`).
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// With `setHostnameAsFQDN`.
    #[error(
        "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long \
         ({max} characters is the max, {requested} characters requested)"
    )]
    FqdnTooLong {
        /// The full name.
        fqdn: String,
        /// What the kernel takes.
        max: usize,
        /// Its length.
        requested: usize,
    },
    /// A policy that does not exist.
    #[error("invalid DNSPolicy={value}")]
    DnsPolicy {
        /// `spec.dnsPolicy`
        value: String,
    },
    /// `hostUsers: false` on a runtime without user namespaces.
    #[error("can't set `spec.hostUsers: false`, runtime does not support user namespaces")]
    NoUserNamespaces,
    /// `supplementalGroupsPolicy: Strict` on a runtime that cannot.
    #[error("SupplementalGroupsPolicy=Strict is not supported in this node")]
    StrictGroups,
    /// A protocol, policy or profile type that does not exist.
    #[error("invalid value {value:?} for {field}")]
    Value {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// Something this agent cannot do yet.
    #[error("{field} is not supported by this agent yet")]
    Unsupported {
        /// The field in the pod.
        field: &'static str,
    },
}

/// A sandbox's configuration and what to tell the pod's owner about it.
#[derive(Clone, Debug, PartialEq)]
pub struct SandboxConfig {
    /// For `RunPodSandbox` and, the same value, for every `CreateContainer`.
    pub config: PodSandboxConfig,
    /// Events of kind Warning, such as `DNSConfigForming`.
    pub warnings: Vec<Warning>,
}

/// Labels that make a sandbox or container findable.
pub(super) fn identity_labels(pod: &Pod) -> BTreeMap<String, String> {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    BTreeMap::from([
        ("io.kubernetes.pod.name".to_owned(), text(&pod.metadata.name)),
        ("io.kubernetes.pod.namespace".to_owned(), text(&pod.metadata.namespace)),
        ("io.kubernetes.pod.uid".to_owned(), text(&pod.metadata.uid)),
    ])
}

/// The configuration of the sandbox of `pod`. `attempt` counts its sandboxes from zero; `cgroup_parent` is the pod's
/// cgroup as the cgroup driver names it; `resolv_conf` is what the node itself resolves names with.
pub fn sandbox_config(
    pod: &Pod,
    attempt: u32,
    cgroup_parent: &str,
    resolv_conf: Option<&ResolvConf>,
    facts: &NodeFacts,
) -> Result<SandboxConfig, TranslateError> {
    let (meta, spec) = (&pod.metadata, spec(pod));
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let (name, namespace, uid) = (text(&meta.name), text(&meta.namespace), text(&meta.uid));
    let dns = dns::pod_dns(pod, resolv_conf, facts)?;
    let hostname = if spec.host_network == Some(true) {
        String::new()
    } else {
        hostname::pod_hostname(pod, &facts.cluster_domain)?
            .for_kernel(spec.set_hostname_as_fqdn == Some(true))?
    };
    let mut labels = meta.labels.clone().unwrap_or_default();
    labels.extend(identity_labels(pod));
    let log_directory = facts.pod_logs_dir.join(format!("{namespace}_{name}_{uid}"));
    let config = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata { name, uid, namespace, attempt }),
        hostname,
        log_directory: log_directory.to_string_lossy().into_owned(),
        dns_config: Some(dns.config),
        port_mappings: port_mappings(pod)?,
        labels,
        annotations: meta.annotations.clone().unwrap_or_default(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroup_parent.to_owned(),
            security_context: Some(security::sandbox_security(pod, facts)?),
            sysctls: sysctls(pod),
            overhead: Some(limits::sandbox_overhead(pod, facts)),
            resources: Some(limits::sandbox_resources(pod, facts)),
        }),
        windows: None,
    };
    Ok(SandboxConfig { config, warnings: dns.warnings })
}

/// Kernel parameters by their dotted names; `/` as a separator is the same name.
fn sysctls(pod: &Pod) -> BTreeMap<String, String> {
    let list = spec(pod).security_context.as_ref().and_then(|s| s.sysctls.as_ref());
    list.into_iter().flatten().map(|s| (dotted(&s.name), s.value.clone())).collect()
}

/// A sysctl name with dots as separators. The first separator of a name tells which of the two it uses; then the
/// other one is part of a component (`net/ipv4/conf/eth0.1/rp_filter`).
fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes().get(at) == Some(&b'/') => name
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    }
}

/// The ports of all containers that run beside each other, each once per container.
fn port_mappings(pod: &Pod) -> Result<Vec<PortMapping>, TranslateError> {
    let spec = spec(pod);
    let sidecars = spec.init_containers.iter().flatten().filter(|c| super::resources::is_sidecar(c));
    let mut out = Vec::new();
    for container in spec.containers.iter().chain(sidecars) {
        let mut own = ports(container)?;
        out.append(&mut own);
    }
    Ok(out)
}

fn ports(container: &Container) -> Result<Vec<PortMapping>, TranslateError> {
    let mut out: Vec<PortMapping> = Vec::new();
    for port in container.ports.iter().flatten() {
        let protocol = match port.protocol.as_deref() {
            None | Some("" | "TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            Some(other) => {
                return Err(TranslateError::Value { field: "ports.protocol", value: other.to_owned() });
            }
        };
        let mapping = PortMapping {
            protocol: protocol.into(),
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or(0),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        };
        if !out.contains(&mapping) {
            out.push(mapping);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{facts, pod};
    use super::*;

    #[test]
    fn sysctl_names_are_dotted() {
        for (name, want) in [
            ("net.core.somaxconn", "net.core.somaxconn"),
            ("net/core/somaxconn", "net.core.somaxconn"),
            ("net/ipv4/conf/eth0.1/rp_filter", "net.ipv4.conf.eth0/1.rp_filter"),
            ("net.ipv4.conf.eth0/1.rp_filter", "net.ipv4.conf.eth0/1.rp_filter"),
        ] {
            assert_eq!(dotted(name), want);
        }
    }

    #[test]
    fn ports_of_sidecars_count_and_repeats_do_not() {
        let p = pod(
            "{spec: {initContainers: [{name: s, restartPolicy: Always, ports: [{containerPort: 1, hostPort: 11}]}, \
             {name: i, ports: [{containerPort: 2}]}], \
             containers: [{name: c, ports: [{containerPort: 3}, {containerPort: 3, protocol: TCP, name: x}, {containerPort: 3, protocol: UDP}]}]}}",
        );
        let got: Vec<_> = port_mappings(&p).unwrap().iter().map(|m| (m.container_port, m.protocol)).collect();
        assert_eq!(got, [(3, 0), (3, 1), (1, 0)]);
        let bad = pod("{spec: {containers: [{name: c, ports: [{containerPort: 3, protocol: ICMP}]}]}}");
        assert_eq!(
            sandbox_config(&bad, 0, "", None, &facts()).unwrap_err().to_string(),
            "invalid value \"ICMP\" for ports.protocol"
        );
    }

    #[test]
    fn the_pods_labels_cannot_take_the_agents_names() {
        let p = pod(
            "{metadata: {name: p, namespace: n, uid: u, labels: {io.kubernetes.pod.uid: forged, app: x}}, spec: {containers: []}}",
        );
        let config = sandbox_config(&p, 3, "/k/podu", None, &facts()).unwrap().config;
        assert_eq!(config.labels["io.kubernetes.pod.uid"], "u");
        assert_eq!(config.labels["app"], "x");
        assert_eq!(config.metadata.unwrap().attempt, 3);
        assert_eq!(config.log_directory, "/var/log/pods/n_p_u");
    }
}
