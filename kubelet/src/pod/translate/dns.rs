//! Pod DNS: the host's resolv.conf parsed, the four policies, `dnsConfig` merged in, and the resolver's limits.
//!
//! Called when a sandbox's configuration is made. Reading the host's file is the caller's business.

use super::{NodeFacts, TranslateError, Warning};
use crate::api::{Pod, PodRef, spec};
use cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::PodDNSConfigOption;
use std::net::IpAddr;

/// Nameservers a resolver looks at (resolv.conf(5), MAXNS).
const MAX_NAMESERVERS: usize = 3;
/// Search paths a pod may have (API validation's limit).
const MAX_SEARCHES: usize = 32;
/// Characters of the search line, blanks included (API validation's limit).
const MAX_SEARCH_CHARS: usize = 2048;
/// The longest DNS name.
const MAX_NAME: usize = 253;
/// What cluster pods resolve with, so that service names with dots are found.
const CLUSTER_OPTION: &str = "ndots:5";

/// A host's resolver configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// `nameserver` lines in order.
    pub nameservers: Vec<String>,
    /// The last `search` line, without trailing dots.
    pub searches: Vec<String>,
    /// All `options`; a later one replaces an earlier one of the same name.
    pub options: Vec<String>,
}

/// A resolv.conf that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("resolv.conf: nameserver without an address in line {line}: {text:?}")]
pub struct ResolvConfError {
    /// Counted from one.
    pub line: usize,
    /// The line.
    pub text: String,
}

impl ResolvConf {
    /// Reads the text of a resolv.conf(5) file. Unknown keywords are skipped, as resolvers do.
    pub fn parse(text: &str) -> Result<Self, ResolvConfError> {
        let mut conf = Self::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.starts_with(['#', ';']) {
                continue;
            }
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let address = words
                        .next()
                        .ok_or_else(|| ResolvConfError { line: index + 1, text: line.to_owned() })?;
                    conf.nameservers.push(address.to_owned());
                }
                // A trailing dot says nothing in a search path; with it the same path would count twice.
                Some("search") => {
                    conf.searches = words
                        .filter(|w| *w != ".")
                        .map(|w| w.strip_suffix('.').unwrap_or(w).to_owned())
                        .collect();
                }
                Some("options") => words.for_each(|w| set_option(&mut conf.options, w.to_owned())),
                _ => {}
            }
        }
        Ok(conf)
    }
}

/// A pod's DNS and what to tell its owner about it.
#[derive(Clone, Debug, PartialEq)]
pub struct PodDns {
    /// For `PodSandboxConfig.dns_config`.
    pub config: DnsConfig,
    /// Events `DNSConfigForming` and `MissingClusterDNS`.
    pub warnings: Vec<Warning>,
}

/// Where a pod's settings start from.
enum Base {
    Cluster,
    Host,
    Nothing,
}

/// The resolver configuration of `pod` on this node, whose own is `node`.
pub fn pod_dns(pod: &Pod, node: Option<&ResolvConf>, facts: &NodeFacts) -> Result<PodDns, TranslateError> {
    let mut warnings = Vec::new();
    let mut config = match base(pod, facts, &mut warnings)? {
        Base::Nothing => DnsConfig::default(),
        Base::Host => host(node, facts),
        Base::Cluster => cluster(pod, node, facts),
    };
    if let Some(own) = &spec(pod).dns_config {
        append_new(&mut config.servers, own.nameservers.iter().flatten());
        append_new(&mut config.searches, own.searches.iter().flatten());
        for option in own.options.iter().flatten() {
            set_option(&mut config.options, option_text(option));
        }
    }
    limit_servers(&mut config.servers, &mut warnings);
    limit_searches(&mut config.searches, &mut warnings);
    Ok(PodDns { config, warnings })
}

fn base(pod: &Pod, facts: &NodeFacts, warnings: &mut Vec<Warning>) -> Result<Base, TranslateError> {
    let spec = spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let wants_cluster = match policy {
        "None" => return Ok(Base::Nothing),
        "Default" => false,
        "ClusterFirst" => spec.host_network != Some(true),
        "ClusterFirstWithHostNet" => true,
        _ => return Err(TranslateError::DnsPolicy { value: policy.to_owned() }),
    };
    if !wants_cluster {
        return Ok(Base::Host);
    }
    if facts.cluster_dns.is_empty() {
        warnings.push(Warning {
            reason: "MissingClusterDNS",
            message: format!(
                "pod: \"{}\". kubelet does not have ClusterDNS IP configured and cannot create Pod using \
                 \"ClusterFirst\" policy. Falling back to \"Default\" policy.",
                PodRef::of(pod)
            ),
        });
        return Ok(Base::Host);
    }
    Ok(Base::Cluster)
}

/// The node's own settings; with none configured, a resolver on the pod's loopback and no search, which looks up
/// nothing.
fn host(node: Option<&ResolvConf>, facts: &NodeFacts) -> DnsConfig {
    match node {
        Some(conf) => DnsConfig {
            servers: conf.nameservers.clone(),
            searches: conf.searches.clone(),
            options: conf.options.clone(),
        },
        None => {
            let loopback = |ip: &IpAddr| if ip.is_ipv6() { "::1".to_owned() } else { "127.0.0.1".to_owned() };
            let mut servers: Vec<String> = facts.node_ips.iter().map(loopback).collect();
            if servers.is_empty() {
                servers.push("127.0.0.1".to_owned());
            }
            DnsConfig { servers, searches: vec![".".to_owned()], options: Vec::new() }
        }
    }
}

/// The cluster's servers; its search paths before the host's.
fn cluster(pod: &Pod, node: Option<&ResolvConf>, facts: &NodeFacts) -> DnsConfig {
    let mut searches = Vec::new();
    let domain = &facts.cluster_domain;
    if !domain.is_empty() {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    }
    append_new(&mut searches, node.iter().flat_map(|n| &n.searches));
    DnsConfig {
        servers: facts.cluster_dns.iter().map(ToString::to_string).collect(),
        searches,
        options: vec![CLUSTER_OPTION.to_owned()],
    }
}

fn append_new<'a>(list: &mut Vec<String>, more: impl IntoIterator<Item = &'a String>) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

fn option_text(option: &PodDNSConfigOption) -> String {
    let name = option.name.as_deref().unwrap_or_default();
    match option.value.as_deref() {
        Some(value) if !value.is_empty() => format!("{name}:{value}"),
        _ => name.to_owned(),
    }
}

/// Puts `option` in the place of the one with its name, or at the end.
fn set_option(options: &mut Vec<String>, option: String) {
    fn name(text: &str) -> &str {
        text.split(':').next().unwrap_or(text)
    }
    match options.iter_mut().find(|o| name(o) == name(&option)) {
        Some(old) => *old = option,
        None => options.push(option),
    }
}

fn limit_servers(servers: &mut Vec<String>, warnings: &mut Vec<Warning>) {
    if servers.len() > MAX_NAMESERVERS {
        servers.truncate(MAX_NAMESERVERS);
        let line = servers.join(" ");
        warnings.push(forming(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {line}"
        )));
    }
}

fn limit_searches(searches: &mut Vec<String>, warnings: &mut Vec<Warning>) {
    let before = searches.len();
    searches.retain(|s| s.len() <= MAX_NAME);
    searches.truncate(MAX_SEARCHES);
    let mut line_len = searches.iter().map(|s| s.len() + 1).sum::<usize>().saturating_sub(1);
    while line_len > MAX_SEARCH_CHARS {
        let Some(cut) = searches.pop() else { break };
        line_len -= cut.len() + 1;
    }
    if searches.len() < before {
        let line = searches.join(" ");
        warnings.push(forming(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {line}"
        )));
    }
}

fn forming(message: String) -> Warning {
    Warning { reason: "DNSConfigForming", message }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{facts, pod, resolv_conf};
    use super::*;

    fn dns(spec: &str) -> PodDns {
        let pod = pod(&format!("{{metadata: {{name: p, namespace: ns, uid: u}}, spec: {spec}}}"));
        pod_dns(&pod, Some(&resolv_conf()), &facts()).unwrap()
    }

    #[test]
    fn resolv_conf_is_read_as_resolvers_do() {
        let text = "# c\n; c\nnameserver 1.1.1.1\n nameserver\t2.2.2.2 junk\nsearch old.test\nsearch a.test. b.test .\n\
                    options ndots:1 rotate\noptions ndots:3\nsortlist x\ndomain d.test\n";
        let conf = ResolvConf::parse(text).unwrap();
        assert_eq!(conf.nameservers, ["1.1.1.1", "2.2.2.2"]);
        assert_eq!(conf.searches, ["a.test", "b.test"]);
        assert_eq!(conf.options, ["ndots:3", "rotate"]);
        assert_eq!(ResolvConf::parse("\nnameserver \n").unwrap_err().line, 2);
    }

    #[test]
    fn each_policy_starts_from_its_own_base() {
        let cluster = [
            "ns.svc.cluster.local",
            "svc.cluster.local",
            "cluster.local",
            "corp.example.test",
            "lab.example.test",
        ];
        for spec in
            ["{}", "{dnsPolicy: ClusterFirst}", "{dnsPolicy: ClusterFirstWithHostNet, hostNetwork: true}"]
        {
            let c = dns(spec).config;
            assert_eq!(
                (c.servers, c.options),
                (vec!["10.96.0.10".to_owned()], vec!["ndots:5".to_owned()]),
                "{spec}"
            );
            assert_eq!(c.searches, cluster, "{spec}");
        }
        for spec in ["{dnsPolicy: Default}", "{dnsPolicy: ClusterFirst, hostNetwork: true}"] {
            let c = dns(spec).config;
            assert_eq!(c.servers, ["192.0.2.53", "192.0.2.54"], "{spec}");
            assert_eq!(c.searches, ["corp.example.test", "lab.example.test"], "{spec}");
            assert_eq!(c.options, ["ndots:1", "timeout:2"], "{spec}");
        }
        assert_eq!(dns("{dnsPolicy: None}").config, DnsConfig::default());
        let p = pod("{spec: {dnsPolicy: Sometimes}}");
        assert_eq!(pod_dns(&p, None, &facts()).unwrap_err().to_string(), "invalid DNSPolicy=Sometimes");
    }

    #[test]
    fn the_pods_own_settings_add_to_the_policy_and_override_options() {
        let c =
            dns("{dnsConfig: {nameservers: [9.9.9.9, 10.96.0.10], searches: [a.test, svc.cluster.local], \
             options: [{name: ndots, value: '2'}, {name: edns0}]}}")
            .config;
        assert_eq!(c.servers, ["10.96.0.10", "9.9.9.9"]);
        assert_eq!(c.searches.last().unwrap(), "a.test");
        assert_eq!(c.searches.len(), 6);
        assert_eq!(c.options, ["ndots:2", "edns0"]);
    }

    #[test]
    fn without_cluster_dns_the_host_is_used_and_the_owner_told() {
        let facts = NodeFacts { cluster_dns: vec![], ..facts() };
        let pod = pod("{metadata: {name: p, namespace: n, uid: u}, spec: {}}");
        let dns = pod_dns(&pod, Some(&resolv_conf()), &facts).unwrap();
        assert_eq!(dns.config.servers, ["192.0.2.53", "192.0.2.54"]);
        assert_eq!(dns.warnings[0].reason, "MissingClusterDNS");
        assert!(dns.warnings[0].message.starts_with("pod: \"p_n(u)\". kubelet does not have ClusterDNS IP"));
    }

    #[test]
    fn with_no_host_file_configured_lookups_go_nowhere() {
        let c = pod_dns(&pod("{spec: {dnsPolicy: Default}}"), None, &facts()).unwrap().config;
        assert_eq!((c.servers, c.searches), (vec!["127.0.0.1".to_owned()], vec![".".to_owned()]));
    }

    #[test]
    fn limits_cut_from_the_end_and_warn() {
        let d = dns("{dnsPolicy: Default, dnsConfig: {nameservers: [1.1.1.1, 2.2.2.2]}}");
        assert_eq!(d.config.servers, ["192.0.2.53", "192.0.2.54", "1.1.1.1"]);
        assert_eq!(
            d.warnings,
            [forming(
                "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: \
                 192.0.2.53 192.0.2.54 1.1.1.1"
                    .into()
            )]
        );
        let many: Vec<String> = (0..40).map(|i| format!("d{i}.test")).collect();
        let d = dns(&format!("{{dnsPolicy: None, dnsConfig: {{searches: [{}]}}}}", many.join(", ")));
        assert_eq!(d.config.searches, many[..32]);
        assert!(d.warnings[0].message.starts_with("Search Line limits were exceeded"), "{:?}", d.warnings);
        // 2048 characters hold 20 names of 100 with their blanks and no 21st.
        let long: Vec<String> = (0..22).map(|i| format!("{i:02}{}", "x".repeat(98))).collect();
        let d = dns(&format!("{{dnsPolicy: None, dnsConfig: {{searches: [{}]}}}}", long.join(", ")));
        assert_eq!(d.config.searches, long[..20]);
    }
}
