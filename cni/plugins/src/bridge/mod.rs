//! The plugin `bridge`: containers of one host on one bridge, with addresses, a gateway and masquerading.
//!
//! Called by runtimes as the first plugin of a network. The order of its steps lets DEL, which knows nothing but
//! container id and interface name, undo an ADD that was killed anywhere: names of links are made from those two,
//! leases carry them. The bridge itself and the masquerading of its subnet are the network's and stay.

mod conf;
mod container;
mod host;

use std::collections::HashSet;

use cni::netlink::{Link, Netlink};
use cni::netns::Netns;
use cni::{Cidr, CniError, CniResult, Interface, Route, code};

use crate::nft;
use crate::owner::{Mark, Owner};
use crate::skel::{Plugin, Request, note};
use conf::BridgeConf;
use container::{Pair, namespace};
use host::kernel;

/// The plugin.
#[derive(Debug)]
pub struct Bridge;

impl Plugin for Bridge {
    fn add(&self, request: &Request) -> Result<CniResult, CniError> {
        let conf = BridgeConf::read(request)?;
        let netns = Netns::open(request.netns()?).map_err(namespace)?;
        if netns.is_current() {
            return Err(CniError::new(
                code::INVALID_ENVIRONMENT,
                format!("CNI_NETNS {} is the host's own namespace", netns.path().display()),
            ));
        }
        let netlink = Netlink::open().map_err(kernel)?;
        let bridge = host::ensure_bridge(&netlink, &conf)?;
        // The link comes before the address: a second ADD of a container that is there ends here, and what it has
        // stays.
        let pair = container::create(&netlink, &conf, &request.owner(), &request.ifname, &netns)?;
        attach(request, &conf, &netlink, &netns, &bridge, &pair).inspect_err(|_| {
            // The runtime will call DEL as well; an address should not wait for that.
            if let Err(e) = cleanup(request, Some(&conf)) {
                note(&format!("cleaning up after the failure: {e}"));
            }
        })
    }

    fn del(&self, request: &Request) -> Result<(), CniError> {
        match BridgeConf::read(request) {
            Ok(conf) => cleanup(request, Some(&conf)),
            // A configuration that became wrong must not keep a container from going.
            Err(e) => {
                note(&format!("DEL goes on with what it can find: {e}"));
                cleanup(request, None)
            }
        }
    }

    fn check(&self, request: &Request) -> Result<(), CniError> {
        let conf = BridgeConf::read(request)?;
        let owner = request.owner();
        let prev = request.prev_result()?.ok_or_else(|| {
            CniError::new(code::INVALID_NETWORK_CONFIG, "field prevResult: is missing, and CHECK needs it")
        })?;
        conf.ipam.check(request)?;
        let wrong = |what: String| Err(CniError::new(code::CHECK_FAILED, what));
        let netlink = Netlink::open().map_err(kernel)?;
        let Some(bridge) = netlink.link(&conf.bridge).map_err(kernel)? else {
            return wrong(format!("bridge {} is gone", conf.bridge));
        };
        match netlink.link(&owner.host_link()).map_err(kernel)? {
            None => return wrong(format!("link {} is gone", owner.host_link())),
            Some(host) if host.master != Some(bridge.index) => {
                return wrong(format!("link {} is no port of bridge {}", host.name, conf.bridge));
            }
            Some(host) if !host.up || !bridge.up => {
                return wrong(format!("link {} or bridge {} is down", host.name, conf.bridge));
            }
            Some(_) => {}
        }
        let netns = Netns::open(request.netns()?).map_err(namespace)?;
        container::verify(&netns, &request.ifname, &prev)?;
        if conf.ip_masq {
            for ip in prev.container_ips() {
                if !nft::masquerades(&ip.address)? {
                    return wrong(format!("the masquerading of {} is gone", ip.address.network()));
                }
            }
        }
        Ok(())
    }

    fn gc(&self, request: &Request, valid: &HashSet<(String, String)>) -> Result<(), CniError> {
        let conf = BridgeConf::read(request)?;
        let netlink = Netlink::open().map_err(kernel)?;
        let mut failures = Vec::new();
        for link in netlink.links().map_err(kernel)? {
            let mark = Mark::read(&link.alias);
            if link.kind == "veth" && mark.is_some_and(|m| m.is_garbage(&request.network, valid)) {
                failures.extend(netlink.delete_link(&link.name).map_err(kernel).err());
            }
        }
        failures.extend(conf.ipam.gc(request, valid).err());
        all(failures)
    }

    fn status(&self, request: &Request) -> Result<(), CniError> {
        let conf = BridgeConf::read(request)?;
        if conf.ip_masq {
            nft::available().map_err(|e| CniError { code: code::PLUGIN_NOT_AVAILABLE, ..e })?;
        }
        conf.ipam.status(request)
    }
}

/// Everything behind the making of the pair.
fn attach(
    request: &Request,
    conf: &BridgeConf,
    netlink: &Netlink,
    netns: &Netns,
    bridge: &Link,
    pair: &Pair,
) -> Result<CniResult, CniError> {
    let owner = request.owner();
    container::plug(netlink, conf, &owner, bridge, pair)?;
    let mut result = complete(conf, conf.ipam.add(request)?);
    container::configure(netns, conf, &request.ifname, &result)?;
    if conf.is_gateway {
        host::ensure_gateways(netlink, conf, bridge, &result.ips)?;
    }
    if conf.ip_masq {
        let subnets: Vec<Cidr> = result.ips.iter().map(|ip| ip.address.network()).collect();
        nft::ensure_masquerade(&subnets)?;
    }
    let link = |name: &str, mac: String, sandbox: String| Interface {
        name: name.to_string(),
        mac,
        mtu: conf.mtu.unwrap_or(0),
        sandbox,
        ..Interface::default()
    };
    result.interfaces = vec![
        link(&conf.bridge, bridge.mac.map(|m| m.to_string()).unwrap_or_default(), String::new()),
        link(&pair.host, pair.host_mac.to_string(), String::new()),
        link(&request.ifname, pair.container_mac.to_string(), netns.path().display().to_string()),
    ];
    Ok(result)
}

/// The result of address management with what the bridge's own settings add: gateways, default routes, DNS.
fn complete(conf: &BridgeConf, given: CniResult) -> CniResult {
    let mut result = CniResult { interfaces: Vec::new(), ..given };
    for ip in &mut result.ips {
        // The container's interface is the third.
        ip.interface = Some(2);
        if conf.is_gateway && ip.gateway.is_none() {
            ip.gateway = first_address(&ip.address);
        }
    }
    if conf.is_default_gateway {
        for ip in &result.ips {
            let dst = Cidr::default_route(ip.address.addr);
            if ip.gateway.is_some() && !result.routes.iter().any(|r| r.dst == dst) {
                result.routes.push(Route::new(dst, ip.gateway));
            }
        }
    }
    if result.dns.is_empty()
        && let Some(dns) = &conf.dns
    {
        result.dns = dns.clone();
    }
    result
}

fn first_address(address: &Cidr) -> Option<std::net::IpAddr> {
    let net = address.network();
    let first = cni::cidr::from_u128(cni::cidr::to_u128(net.addr) + 1, net.is_ipv4());
    (net.contains(first) && first != address.addr).then_some(first)
}

/// Removes every trace of an attachment. Each step is tried whatever became of the others.
fn cleanup(request: &Request, conf: Option<&BridgeConf>) -> Result<(), CniError> {
    let owner = request.owner();
    let mut failures = Vec::new();
    // The link goes before the address is given back, so that no other container gets one that is still in use.
    match remove_links(request, &owner) {
        Ok(()) => match conf {
            Some(conf) => failures.extend(conf.ipam.del(request).err()),
            None => failures.extend(crate::host_local::HostLocal.del(request).err()),
        },
        Err(e) => failures.push(e),
    }
    all(failures)
}

fn remove_links(request: &Request, owner: &Owner) -> Result<(), CniError> {
    let netlink = Netlink::open().map_err(kernel)?;
    if netlink.delete_link(&owner.host_link()).map_err(kernel)? {
        return Ok(());
    }
    let Some(path) = &request.netns else { return Ok(()) };
    match Netns::open(path) {
        Err(e) if e.is_gone() => Ok(()),
        Err(e) => Err(namespace(e)),
        Ok(netns) if netns.is_current() => Ok(()),
        Ok(netns) => container::remove_inside(&netns, &request.ifname),
    }
}

/// One error of several.
fn all(mut failures: Vec<CniError>) -> Result<(), CniError> {
    if failures.is_empty() {
        return Ok(());
    }
    let mut first = failures.remove(0);
    for other in failures {
        first.details.push_str(&format!("; also: {other}"));
    }
    Err(first)
}

/// Removes every trace of the network itself: attachments, leases, the bridge when nothing else is on it.
pub fn purge(request: &Request) -> Result<(), CniError> {
    let conf = BridgeConf::read(request)?;
    let mut failures: Vec<CniError> = Bridge.gc(request, &HashSet::new()).err().into_iter().collect();
    if conf.ip_masq {
        let ended = conf.ipam.subnets(request).and_then(|subnets| nft::remove_masquerade(&subnets));
        failures.extend(ended.err());
    }
    failures.extend(conf.ipam.purge(request).err());
    let netlink = Netlink::open().map_err(kernel)?;
    if let Some(bridge) = netlink.link(&conf.bridge).map_err(kernel)? {
        let links = netlink.links().map_err(kernel)?;
        match links.iter().find(|l| l.master == Some(bridge.index)) {
            Some(port) => note(&format!("bridge {} stays: link {} is a port of it", conf.bridge, port.name)),
            None if bridge.kind == "bridge" => {
                failures.extend(netlink.delete_link(&conf.bridge).map_err(kernel).err());
            }
            None => {}
        }
    }
    all(failures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skel::Request;
    use cni::IpConfig;
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

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        for (field, value) in [
            ("vlan", json!(7)),
            ("vlanTrunk", json!([{"id": 1}])),
            ("macspoofchk", json!(true)),
            ("disableContainerInterface", json!(true)),
            ("ipMasqBackend", json!("iptables")),
        ] {
            let err = BridgeConf::read(&request(json!({ field: value }))).unwrap_err();
            assert_eq!(err.code, code::UNSUPPORTED_FIELD, "{err}");
            assert!(err.msg.contains(&format!("field {field}")), "{err}");
        }
        BridgeConf::read(&request(json!({"vlan": 0, "macspoofchk": false, "vlanTrunk": []}))).unwrap();
    }

    #[test]
    fn wrong_values_name_field_and_value() {
        for (conf, words) in [
            (json!({"bridge": "much-too-long-name"}), vec!["bridge", "much-too-long-name"]),
            (json!({"mtu": -1}), vec!["mtu", "-1"]),
            (json!({"mtu": 20}), vec!["mtu", "20"]),
            (json!({"isGateway": "yes"}), vec!["isGateway", "yes"]),
            (json!({"hairpinMode": true, "promiscMode": true}), vec!["promiscMode"]),
            (json!({"ipMasqBackend": "ebtables"}), vec!["ipMasqBackend", "ebtables"]),
            (json!({"runtimeConfig": {"mac": "01:00:00:00:00:00"}}), vec!["runtimeConfig.mac", "01:00"]),
            (json!({"ipam": {"type": "../sh"}}), vec!["ipam.type", "../sh"]),
        ] {
            let err = BridgeConf::read(&request(conf.clone())).unwrap_err();
            assert!(words.iter().all(|w| err.msg.contains(w)), "{conf}: {err}");
        }
        for (ipam, words) in [
            (json!({}), vec!["ipam.ranges"]),
            (json!({"ranges": [[{}]]}), vec!["ipam.ranges[0][0].subnet"]),
            (json!({"ranges": [[{"subnet": "10.0.0.0"}]]}), vec!["ipam.ranges[0][0].subnet", "10.0.0.0"]),
            (json!({"subnet": "10.0.0.0/24", "rangeStart": "10.1.0.1"}), vec!["ipam.rangeStart", "10.1.0.1"]),
            (
                json!({"subnet": "10.0.0.0/24", "ranges": [[{"subnet": "10.0.0.0/16"}]]}),
                vec!["ipam.ranges[0][0].subnet", "overlaps"],
            ),
            (json!({"subnet": "10.0.0.0/24", "routes": [{"dst": "x"}]}), vec!["ipam.routes[0].dst", "x"]),
        ] {
            let err = crate::host_local::HostLocal.add(&request(json!({"ipam": ipam}))).unwrap_err();
            assert!(words.iter().all(|w| err.msg.contains(w)), "{ipam}: {err}");
        }
    }

    #[test]
    fn default_gateway_adds_a_route_only_where_there_is_none() {
        let conf = BridgeConf::read(&request(json!({"isDefaultGateway": true}))).unwrap();
        let given = CniResult {
            ips: ["10.88.0.5/16", "fd00::5/64"]
                .map(|a| IpConfig { interface: None, address: a.parse().unwrap(), gateway: None })
                .to_vec(),
            routes: vec![Route::new("0.0.0.0/0".parse().unwrap(), None)],
            ..CniResult::default()
        };
        let result = complete(&conf, given);
        assert_eq!(result.ips[0].gateway, Some("10.88.0.1".parse().unwrap()));
        let routes: Vec<_> = result.routes.iter().map(|r| (r.dst.to_string(), r.gw)).collect();
        assert_eq!(
            routes,
            [("0.0.0.0/0".to_string(), None), ("::/0".to_string(), Some("fd00::1".parse().unwrap()))]
        );
    }
}
