//! The container's side: the veth pair, and the interface's addresses and routes.

use cni::netlink::{BridgePort, Link, LinkChange, Mac, Netlink, VethSpec};
use cni::netns::{Netns, NetnsError};
use cni::{Cidr, CniError, CniResult, Route, code};
use std::os::fd::AsFd;

use super::conf::BridgeConf;
use super::host::{kernel, sysctl_if_there};
use crate::owner::Owner;

/// What the attachment made of links.
#[derive(Debug)]
pub struct Pair {
    pub host: String,
    pub host_mac: Mac,
    pub container_mac: Mac,
}

/// An error about the namespace as the plugin's answer.
pub fn namespace(e: NetnsError) -> CniError {
    let code = if e.is_gone() { code::UNKNOWN_CONTAINER } else { code::KERNEL };
    CniError::new(code, e.to_string())
}

/// Makes the pair, one end in the container. An interface of that name in the container is an error.
pub fn create(
    netlink: &Netlink,
    conf: &BridgeConf,
    owner: &Owner,
    ifname: &str,
    netns: &Netns,
) -> Result<Pair, CniError> {
    let pair = Pair {
        host: owner.host_link(),
        host_mac: owner.host_mac(),
        container_mac: conf.mac.unwrap_or_else(|| owner.container_mac()),
    };
    let spec = VethSpec {
        host_name: &pair.host,
        host_mac: pair.host_mac,
        peer_name: ifname,
        peer_mac: pair.container_mac,
        peer_netns: netns.as_fd(),
        mtu: conf.mtu,
    };
    if !netlink.add_veth(&spec).map_err(kernel)? {
        // Either the container has the interface: then this is a second ADD, an error. Or only the host's end is
        // there, which an ADD that was killed left in a namespace that is no more: then it goes.
        let taken = netns
            .run(|| Netlink::open().and_then(|n| n.link(ifname)))
            .map_err(namespace)?
            .map_err(kernel)?
            .is_some();
        if taken {
            return Err(CniError::new(
                code::CONFLICT,
                format!("interface {ifname} exists already in {}", netns.path().display()),
            ));
        }
        netlink.delete_link(&pair.host).map_err(kernel)?;
        if !netlink.add_veth(&spec).map_err(kernel)? {
            return Err(CniError::new(
                code::TRY_AGAIN_LATER,
                format!("link {} is being made by another", pair.host),
            ));
        }
    }
    Ok(pair)
}

/// Makes the host's end a port of the bridge, up and marked with its owner.
pub fn plug(
    netlink: &Netlink,
    conf: &BridgeConf,
    owner: &Owner,
    bridge: &Link,
    pair: &Pair,
) -> Result<(), CniError> {
    let host = netlink.link(&pair.host).map_err(kernel)?.ok_or_else(|| {
        CniError::new(code::UNKNOWN_CONTAINER, format!("link {} vanished: the container is gone", pair.host))
    })?;
    let change = LinkChange {
        up: Some(true),
        master: Some(bridge.index),
        alias: Some(&owner.mark()),
        no_link_local: true,
        ..LinkChange::default()
    };
    netlink.change_link(host.index, &change).map_err(kernel)?;
    if conf.hairpin || conf.isolated {
        let port = BridgePort { hairpin: conf.hairpin, isolated: conf.isolated };
        netlink.set_bridge_port(host.index, port).map_err(kernel)?;
    }
    Ok(())
}

/// Sets the interface up inside the container: addresses, then routes.
pub fn configure(netns: &Netns, conf: &BridgeConf, ifname: &str, result: &CniResult) -> Result<(), CniError> {
    netns.run(|| configure_here(conf, ifname, result)).map_err(namespace)?
}

fn configure_here(conf: &BridgeConf, ifname: &str, result: &CniResult) -> Result<(), CniError> {
    let netlink = Netlink::open().map_err(kernel)?;
    let link = netlink.link(ifname).map_err(kernel)?.ok_or_else(|| {
        CniError::new(code::UNKNOWN_CONTAINER, format!("interface {ifname} vanished from the container"))
    })?;
    let has_v6 = result.ips.iter().any(|ip| !ip.address.is_ipv4());
    if has_v6 {
        // Some runtimes switch IPv6 off by default in new namespaces.
        sysctl_if_there(&["net", "ipv6", "conf", ifname, "disable_ipv6"], "0")?;
    }
    if !conf.enable_dad {
        sysctl_if_there(&["net", "ipv6", "conf", ifname, "accept_dad"], "0")?;
    }
    netlink
        .change_link(link.index, &LinkChange { up: Some(true), ..LinkChange::default() })
        .map_err(kernel)?;
    for ip in &result.ips {
        netlink.add_address(link.index, ip.address, conf.enable_dad).map_err(kernel)?;
    }
    for route in &result.routes {
        let gateway = result
            .ips
            .iter()
            .find(|ip| ip.address.is_ipv4() == route.dst.is_ipv4() && ip.gateway.is_some())
            .and_then(|ip| ip.gateway);
        netlink.add_route(link.index, route, gateway).map_err(kernel)?;
    }
    Ok(())
}

/// Removes an interface of the container, where a link made by another means has no host end that we could name.
pub fn remove_inside(netns: &Netns, ifname: &str) -> Result<(), CniError> {
    netns
        .run(|| Netlink::open().and_then(|n| n.delete_link(ifname)))
        .map_err(namespace)?
        .map(drop)
        .map_err(kernel)
}

/// Compares the interface with what ADD answered.
pub fn verify(netns: &Netns, ifname: &str, prev: &CniResult) -> Result<(), CniError> {
    netns.run(|| verify_here(ifname, prev)).map_err(namespace)?
}

fn verify_here(ifname: &str, prev: &CniResult) -> Result<(), CniError> {
    let wrong = |what: String| CniError::new(code::CHECK_FAILED, what);
    let netlink = Netlink::open().map_err(kernel)?;
    let link =
        netlink.link(ifname).map_err(kernel)?.ok_or_else(|| wrong(format!("interface {ifname} is gone")))?;
    if !link.up {
        return Err(wrong(format!("interface {ifname} is down")));
    }
    let present = netlink.addresses(link.index).map_err(kernel)?;
    let ours = prev.container_ips().filter(|ip| match ip.interface {
        Some(i) => prev.interfaces.get(i as usize).is_some_and(|i| i.name == ifname),
        None => true,
    });
    for ip in ours {
        if !present.contains(&ip.address) {
            return Err(wrong(format!("interface {ifname} lacks the address {}", ip.address)));
        }
    }
    for v4 in [true, false] {
        let wanted: Vec<&Route> = prev.routes.iter().filter(|r| r.dst.is_ipv4() == v4).collect();
        if wanted.is_empty() {
            continue;
        }
        let routes = netlink.routes(v4).map_err(kernel)?;
        for route in wanted {
            let dst: Cidr = route.dst.network();
            if !routes.iter().any(|r| r.dst == dst && route.gw.is_none_or(|gw| r.gateway == Some(gw))) {
                return Err(wrong(format!("the route to {dst} is gone")));
            }
        }
    }
    Ok(())
}
