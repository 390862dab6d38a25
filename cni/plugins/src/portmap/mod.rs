//! The plugin `portmap`: ports of the host that lead into a container.
//!
//! Called by runtimes behind a plugin that gave the container its addresses. However many ports there are, a packet
//! costs one look-up; see [`crate::nft`] for the rules.

mod conf;

use std::collections::HashSet;
use std::net::IpAddr;

use cni::netlink::{Netlink, NetlinkError};
use cni::nfnetlink::{Protocol, Socket};
use cni::{CniError, CniResult, IpConfig, code, sysctl};

use crate::nft::{self, Chain, Entry, RemovedPort};
use crate::owner::Mark;
use crate::skel::{Plugin, Request, note};
use conf::PortmapConf;

/// The plugin.
#[derive(Debug)]
pub struct Portmap;

impl Plugin for Portmap {
    fn add(&self, request: &Request) -> Result<CniResult, CniError> {
        let conf = PortmapConf::read(request)?;
        let prev = request.prev_result()?.ok_or_else(|| {
            CniError::new(
                code::INVALID_NETWORK_CONFIG,
                "field prevResult: is missing; portmap must come behind a plugin that makes an interface",
            )
        })?;
        if conf.mappings.is_empty() {
            return Ok(prev);
        }
        let entries = entries(&conf, &prev)?;
        let netlink = Netlink::open().map_err(kernel)?;
        if conf.snat {
            open_localhost(&netlink, &entries)?;
        }
        let host_link = host_link(&prev);
        let alive = |name: &str| !matches!(netlink.link(name), Ok(None));
        nft::add(&request.owner(), host_link.as_deref(), &entries, &alive)?;
        let ports: Vec<RemovedPort> = entries.iter().filter_map(udp_port).collect();
        // Flows that began before the port existed lead nowhere or elsewhere.
        forget_flows(&ports, |port, flow_target| flow_target != port.ip);
        Ok(prev)
    }

    fn del(&self, request: &Request) -> Result<(), CniError> {
        let owner = request.owner();
        let removed = nft::remove(&|mark| owner.owns(mark))?;
        forget_flows(&removed, |port, flow_target| flow_target == port.ip);
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), CniError> {
        let conf = PortmapConf::read(request)?;
        let prev = request.prev_result()?.ok_or_else(|| {
            CniError::new(code::INVALID_NETWORK_CONFIG, "field prevResult: is missing, and CHECK needs it")
        })?;
        let owner = request.owner();
        for entry in entries(&conf, &prev)? {
            if !nft::has(&owner, &entry)? {
                return Err(CniError::new(code::CHECK_FAILED, format!("{} is gone", entry.describe())));
            }
        }
        Ok(())
    }

    fn gc(&self, request: &Request, valid: &HashSet<(String, String)>) -> Result<(), CniError> {
        let garbage = |mark: &str| Mark::read(mark).is_some_and(|m| m.is_garbage(&request.network, valid));
        let removed = nft::remove(&garbage)?;
        forget_flows(&removed, |port, flow_target| flow_target == port.ip);
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), CniError> {
        PortmapConf::read(request)?;
        nft::available().map_err(|e| CniError { code: code::PLUGIN_NOT_AVAILABLE, ..e })
    }
}

fn kernel(e: NetlinkError) -> CniError {
    CniError::caused(code::KERNEL, "the kernel refused", &e)
}

/// The first address of each family that is the container's: where its ports lead.
fn targets(prev: &CniResult) -> Vec<&IpConfig> {
    let first = |v4: bool| prev.container_ips().find(|ip| ip.address.is_ipv4() == v4);
    [first(true), first(false)].into_iter().flatten().collect()
}

/// What the table must hold for the container.
fn entries(conf: &PortmapConf, prev: &CniResult) -> Result<Vec<Entry>, CniError> {
    let mut entries: Vec<Entry> = Vec::new();
    for target in targets(prev) {
        let ip = target.address.addr;
        let mine = conf.mappings.iter().filter(|m| m.only_ipv4.is_none_or(|v4| v4 == ip.is_ipv4()));
        let mut seen = HashSet::new();
        for m in mine {
            let key = (m.protocol, m.host_ip, m.host_port);
            if !seen.insert(key) {
                return Err(CniError::new(
                    code::INVALID_NETWORK_CONFIG,
                    format!(
                        "field runtimeConfig.portMappings: host port {}/{:?} is there twice",
                        m.host_port, m.protocol
                    ),
                ));
            }
            entries.push(Entry::Port {
                protocol: m.protocol,
                host_ip: m.host_ip,
                host_port: m.host_port,
                ip,
                port: m.container_port,
            });
        }
        if !seen.is_empty() && (conf.snat || conf.masq_all) {
            let chain =
                if conf.masq_all { Chain::SourceNatAll } else { Chain::SourceNat(target.address.network()) };
            entries.push(Entry::SourceNat { ip, chain });
        }
    }
    Ok(entries)
}

/// Lets packets of 127.0.0.1 leave by the link that leads to the container: otherwise the host's own
/// `127.0.0.1:hostPort` would be dropped as martian. The table's chain `guard` keeps others out of 127.0.0.0/8.
fn open_localhost(netlink: &Netlink, entries: &[Entry]) -> Result<(), CniError> {
    let v4 = entries.iter().find_map(|e| match e {
        Entry::SourceNat { ip: ip @ IpAddr::V4(_), .. } => Some(*ip),
        _ => None,
    });
    let Some(ip) = v4 else { return Ok(()) };
    let Some(index) = netlink.route_to(ip).map_err(kernel)? else {
        note(&format!("no route to {ip}: 127.0.0.1 will not reach its host ports"));
        return Ok(());
    };
    let links = netlink.link_by_index(index).map_err(kernel)?;
    let Some(link) = links else { return Ok(()) };
    sysctl::ensure(&["net", "ipv4", "conf", &link.name, "route_localnet"], "1")
        .map_err(|e| CniError::caused(code::KERNEL, "the kernel refused", &e))
}

/// The host's end of the container's link, by which a later ADD sees whether the owner of a port still lives.
fn host_link(prev: &CniResult) -> Option<String> {
    let host: Vec<&str> =
        prev.interfaces.iter().filter(|i| i.sandbox.is_empty()).map(|i| i.name.as_str()).collect();
    host.iter().find(|n| n.starts_with("veth")).map(|n| n.to_string())
}

fn udp_port(entry: &Entry) -> Option<RemovedPort> {
    match entry {
        Entry::Port { protocol: Protocol::Udp, host_port, ip, .. } => {
            Some(RemovedPort { protocol: Protocol::Udp.number(), host_port: *host_port, ip: *ip })
        }
        _ => None,
    }
}

/// Deletes UDP flows to these ports whose target `stale` picks. Failing costs only time until they expire, so it is
/// told and nothing more.
fn forget_flows(ports: &[RemovedPort], stale: impl Fn(&RemovedPort, IpAddr) -> bool) {
    let udp: Vec<&RemovedPort> = ports.iter().filter(|p| p.protocol == Protocol::Udp.number()).collect();
    for v4 in [true, false] {
        let udp: Vec<&&RemovedPort> = udp.iter().filter(|p| p.ip.is_ipv4() == v4).collect();
        if udp.is_empty() {
            continue;
        }
        let done = Socket::open().and_then(|mut socket| {
            socket.delete_flows(v4, |flow| {
                flow.protocol == Protocol::Udp.number()
                    && udp.iter().any(|p| p.host_port == flow.orig_dport && stale(p, flow.reply_src))
            })
        });
        if let Err(e) = done {
            note(&format!("stale UDP flows stay until they expire: {e}"));
        }
    }
}

/// Removes every host port of the network.
pub fn purge(request: &Request) -> Result<(), CniError> {
    Portmap.gc(request, &HashSet::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn request(conf: Value) -> Request {
        Request {
            version: cni::Version::V1_0_0,
            network: "net".into(),
            container_id: "abc".into(),
            ifname: "eth0".into(),
            netns: None,
            args: cni::CniArgs::default(),
            path: Vec::new(),
            conf: conf.as_object().unwrap().clone(),
            command: "ADD".into(),
        }
    }

    fn mappings(list: Value) -> Result<PortmapConf, CniError> {
        PortmapConf::read(&request(json!({"runtimeConfig": {"portMappings": list}})))
    }

    fn dual() -> CniResult {
        let prev = json!({"ips": [{"address": "10.88.0.5/16"}, {"address": "fd00::5/64"}]});
        CniResult::from_value(&prev, cni::Version::V1_0_0, "prevResult").unwrap()
    }

    #[test]
    fn a_mapping_goes_to_the_families_its_host_address_means() {
        let count = |list: Value, set: &str| {
            let conf = mappings(list).unwrap();
            entries(&conf, &dual()).unwrap().iter().filter(|e| e.set() == set).count()
        };
        let any = json!([{"hostPort": 80, "containerPort": 8080}]);
        assert_eq!(
            (count(any.clone(), "ports4"), count(any.clone(), "ports6"), count(any, "snat6")),
            (1, 1, 1)
        );
        let v4 = json!([{"hostPort": 80, "containerPort": 8080, "hostIP": "0.0.0.0"}]);
        assert_eq!((count(v4.clone(), "ports4"), count(v4.clone(), "ports6"), count(v4, "snat6")), (1, 0, 0));
        let one = json!([{"hostPort": 80, "containerPort": 8080, "hostIP": "192.0.2.1", "protocol": "UDP"}]);
        assert_eq!(
            (count(one.clone(), "ports4"), count(one.clone(), "ports_ip4"), count(one, "ports_ip6")),
            (0, 1, 0)
        );
    }

    #[test]
    fn mappings_are_read_in_the_case_that_containerd_writes() {
        let theirs =
            json!([{"HostPort": 80, "ContainerPort": 8080, "Protocol": "udp", "HostIP": "192.0.2.1"}]);
        let ours = json!([{"hostPort": 80, "containerPort": 8080, "protocol": "UDP", "hostIP": "192.0.2.1"}]);
        assert_eq!(mappings(theirs).unwrap().mappings, mappings(ours).unwrap().mappings);
        let none = json!([{"HostPort": 80, "ContainerPort": 8080, "Protocol": "tcp", "HostIP": ""}]);
        assert_eq!(mappings(none).unwrap().mappings[0].host_ip, None);
    }

    #[test]
    fn bad_mappings_name_field_and_value() {
        for (list, words) in [
            (json!([{"hostPort": 0, "containerPort": 1}]), vec!["portMappings[0].hostPort", "0"]),
            (json!([{"hostPort": 70000, "containerPort": 1}]), vec!["portMappings[0].hostPort", "70000"]),
            (json!([{"hostPort": 1}]), vec!["portMappings[0].containerPort"]),
            (
                json!([{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]),
                vec!["portMappings[0].protocol", "icmp"],
            ),
            (
                json!([{"hostPort": 1, "containerPort": 1, "hostIP": "x"}]),
                vec!["portMappings[0].hostIP", "x"],
            ),
            (json!({"hostPort": 1}), vec!["runtimeConfig.portMappings", "list"]),
        ] {
            let err = mappings(list).unwrap_err();
            assert!(words.iter().all(|w| err.msg.contains(w)), "{err}");
        }
        let twice =
            mappings(json!([{"hostPort": 1, "containerPort": 1}, {"hostPort": 1, "containerPort": 2}]))
                .unwrap();
        assert!(entries(&twice, &dual()).unwrap_err().msg.contains("twice"));
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        for (field, value) in [
            ("conditionsV4", json!(["ip saddr 10.0.0.1"])),
            ("conditionsV6", json!(["x"])),
            ("externalSetMarkChain", json!("KUBE-MARK-MASQ")),
            ("markMasqBit", json!(7)),
            ("markMasqBit", json!(0)),
            ("backend", json!("iptables")),
        ] {
            let err = PortmapConf::read(&request(json!({ field: value }))).unwrap_err();
            assert!(err.code == code::UNSUPPORTED_FIELD && err.msg.contains(field), "{err}");
        }
        PortmapConf::read(&request(json!({"conditionsV4": [], "markMasqBit": 13, "backend": "nftables"})))
            .unwrap();
    }
}
