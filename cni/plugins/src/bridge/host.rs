//! The host's side: the bridge, its addresses, forwarding.

use cni::netlink::{Link, LinkChange, Mac, Netlink, NetlinkError};
use cni::{Cidr, CniError, IpConfig, code, sysctl};

use super::conf::BridgeConf;

/// An error of the kernel's as the plugin's answer.
pub fn kernel(e: NetlinkError) -> CniError {
    CniError::caused(code::KERNEL, "the kernel refused", &e)
}

pub fn setting(e: sysctl::SysctlError) -> CniError {
    CniError::caused(code::KERNEL, "the kernel refused", &e)
}

/// Finds or makes the bridge and sets it up.
pub fn ensure_bridge(netlink: &Netlink, conf: &BridgeConf) -> Result<Link, CniError> {
    let mut found = netlink.link(&conf.bridge).map_err(kernel)?;
    if found.is_none() {
        // Without an address of its own a bridge takes its lowest port's, and changes it as ports come and go.
        netlink.add_bridge(&conf.bridge, random_mac()?, conf.mtu).map_err(kernel)?;
        // An address is used at once, whatever another machine may answer: nobody else is on this link.
        sysctl_if_there(&["net", "ipv6", "conf", &conf.bridge, "accept_dad"], "0")?;
        found = netlink.link(&conf.bridge).map_err(kernel)?;
    }
    let bridge = found.ok_or_else(|| {
        CniError::new(code::TRY_AGAIN_LATER, format!("bridge {} vanished while it was made", conf.bridge))
    })?;
    if bridge.kind != "bridge" {
        return Err(CniError::new(
            code::CONFLICT,
            format!("field bridge: link {} exists and is not a bridge (kind {:?})", conf.bridge, bridge.kind),
        ));
    }
    if !bridge.up || conf.promisc {
        let change =
            LinkChange { up: Some(true), promisc: conf.promisc.then_some(true), ..LinkChange::default() };
        netlink.change_link(bridge.index, &change).map_err(kernel)?;
    }
    Ok(bridge)
}

fn random_mac() -> Result<Mac, CniError> {
    let mut bytes = [0u8; 6];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| std::io::Read::read_exact(&mut f, &mut bytes))
        .map_err(|e| CniError::caused(code::IO_FAILURE, "cannot read /dev/urandom", &e))?;
    Ok(Mac::local(bytes))
}

/// A setting of IPv6 does not exist where IPv6 is switched off.
pub fn sysctl_if_there(parts: &[&str], value: &str) -> Result<(), CniError> {
    match sysctl::read(parts).map_err(setting)? {
        None => Ok(()),
        Some(old) if old == value => Ok(()),
        Some(_) => sysctl::write(parts, value).map_err(setting),
    }
}

/// Gives the bridge the gateways' addresses and makes the host forward their families.
pub fn ensure_gateways(
    netlink: &Netlink,
    conf: &BridgeConf,
    bridge: &Link,
    ips: &[IpConfig],
) -> Result<(), CniError> {
    let gateways: Vec<Cidr> = ips.iter().filter_map(|ip| Cidr::new(ip.gateway?, ip.address.prefix)).collect();
    if gateways.is_empty() {
        return Ok(());
    }
    let present = netlink.addresses(bridge.index).map_err(kernel)?;
    for gateway in &gateways {
        if present.contains(gateway) {
            continue;
        }
        for other in present.iter().filter(|other| in_the_way(other, gateway, &gateways)) {
            if !conf.force_address {
                return Err(CniError::new(
                    code::CONFLICT,
                    format!(
                        "bridge {} has the address {other}, and the gateway wants {gateway}; forceAddress would replace it",
                        conf.bridge
                    ),
                ));
            }
            netlink.delete_address(bridge.index, *other).map_err(kernel)?;
        }
        if !gateway.is_ipv4() {
            sysctl_if_there(&["net", "ipv6", "conf", &conf.bridge, "disable_ipv6"], "0")?;
        }
        netlink.add_address(bridge.index, *gateway, false).map_err(kernel)?;
    }
    if gateways.iter().any(Cidr::is_ipv4) {
        sysctl::ensure(&["net", "ipv4", "ip_forward"], "1").map_err(setting)?;
    }
    if gateways.iter().any(|g| !g.is_ipv4()) {
        sysctl::ensure(&["net", "ipv6", "conf", "all", "forwarding"], "1").map_err(setting)?;
    }
    Ok(())
}

/// Whether an address on the bridge contradicts a gateway: another IPv4 address, or one of an overlapping subnet.
fn in_the_way(other: &Cidr, gateway: &Cidr, gateways: &[Cidr]) -> bool {
    other.is_ipv4() == gateway.is_ipv4()
        && !gateways.contains(other)
        && (other.is_ipv4() || other.overlaps(gateway))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_keeps_addresses_that_do_not_contradict_its_gateways() {
        let c = |s: &str| s.parse::<Cidr>().unwrap();
        let gateways = [c("10.88.0.1/16"), c("fd00::1/64"), c("10.99.0.1/16")];
        let way = |other: &str, gateway: &str| in_the_way(&c(other), &c(gateway), &gateways);
        assert!(way("10.77.0.1/16", "10.88.0.1/16"));
        assert!(way("10.88.0.1/24", "10.88.0.1/16"));
        assert!(!way("10.99.0.1/16", "10.88.0.1/16"), "another gateway of the same network");
        assert!(!way("fe80::1/64", "fd00::1/64"));
        assert!(way("fd00::2/64", "fd00::1/64"));
    }
}
