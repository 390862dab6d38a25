//! The text of the managed `/etc/hosts` of a pod. The pod actor writes it to the pod's directory before containers
//! start and mounts it into each.

use super::hostname::PodHostname;
use crate::api::{Pod, spec};
use std::fmt::Write as _;
use std::net::IpAddr;

/// The file for `pod`. `host_file` is the node's own `/etc/hosts`, given for pods on the host network, whatever bytes are in
/// it; other pods get the standard names and a line per address of theirs.
pub fn etc_hosts(pod: &Pod, pod_ips: &[IpAddr], name: &PodHostname, host_file: Option<&[u8]>) -> Vec<u8> {
    let mut file = match host_file {
        Some(host) => [b"# Kubernetes-managed hosts file (host network).\n", host].concat(),
        None => managed(pod_ips, name).into_bytes(),
    };
    file.extend(added(pod).into_bytes());
    file
}

fn added(pod: &Pod) -> String {
    let mut text = String::new();
    let aliases = spec(pod).host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}\t{names}", alias.ip);
        }
    }
    text
}

fn managed(pod_ips: &[IpAddr], name: &PodHostname) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for ip in pod_ips {
        let PodHostname { hostname, domain } = name;
        let _ = if domain.is_empty() {
            writeln!(text, "{ip}\t{hostname}")
        } else {
            writeln!(text, "{ip}\t{hostname}.{domain}\t{hostname}")
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::testing::pod;
    use super::*;

    const HEAD: &str = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                        fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";

    #[test]
    fn each_address_gets_a_line_with_the_full_name_first() {
        let name = PodHostname { hostname: "h".into(), domain: "s.n.svc.c".into() };
        let ips = ["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        let text = etc_hosts(&pod("{spec: {}}"), &ips, &name, None);
        assert_eq!(text, format!("{HEAD}10.0.0.7\th.s.n.svc.c\th\nfd00::7\th.s.n.svc.c\th\n").into_bytes());
    }

    #[test]
    fn host_aliases_follow_on_both_kinds_of_file() {
        let p = pod("{spec: {hostAliases: [{ip: 1.2.3.4, hostnames: [a, b]}]}}");
        let name = PodHostname { hostname: "h".into(), domain: String::new() };
        let aliases = "\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n";
        let text = etc_hosts(&p, &["10.0.0.7".parse().unwrap()], &name, None);
        assert_eq!(text, format!("{HEAD}10.0.0.7\th\n{aliases}").into_bytes());
        let host = b"127.0.0.1 localhost # caf\xe9\n";
        let text = etc_hosts(&p, &[], &name, Some(host));
        let head = b"# Kubernetes-managed hosts file (host network).\n";
        assert_eq!(text, [head, &host[..], aliases.as_bytes()].concat());
    }
}
