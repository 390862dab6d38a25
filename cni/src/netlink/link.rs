//! Links: bridges, veth pairs, and their settings.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::str::FromStr;

use futures::TryStreamExt;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use nix::errno::Errno;
use rtnetlink::{LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::{Netlink, NetlinkError, absent_is_none};

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Makes six arbitrary bytes a unicast, locally administered address.
    pub fn local(mut bytes: [u8; 6]) -> Self {
        bytes[0] = (bytes[0] & 0xfc) | 0x02;
        Mac(bytes)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad =
            || format!("{:?} is not a hardware address such as 02:00:00:00:00:01", s.get(..32).unwrap_or(s));
        let mut bytes = [0u8; 6];
        let mut parts = s.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() || bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(bad());
        }
        Ok(Mac(bytes))
    }
}

/// What the kernel says of a link.
#[derive(Debug, Clone, Default)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// "bridge", "veth"…; empty for physical ones and loopback.
    pub kind: String,
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub up: bool,
    /// Index of the bridge the link is a port of.
    pub master: Option<u32>,
    pub alias: String,
    pub hairpin: bool,
}

impl From<LinkMessage> for Link {
    fn from(m: LinkMessage) -> Self {
        let mut link =
            Link { index: m.header.index, up: m.header.flags.contains(LinkFlags::Up), ..Link::default() };
        for attribute in m.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(a) => link.mac = <[u8; 6]>::try_from(a).ok().map(Mac),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::LinkInfo(infos) => link.read_infos(infos),
                _ => {}
            }
        }
        link
    }
}

impl Link {
    fn read_infos(&mut self, infos: Vec<LinkInfo>) {
        for info in infos {
            match info {
                LinkInfo::Kind(InfoKind::Bridge) => self.kind = "bridge".into(),
                LinkInfo::Kind(InfoKind::Veth) => self.kind = "veth".into(),
                LinkInfo::Kind(other) => self.kind = format!("{other:?}").to_lowercase(),
                LinkInfo::PortData(InfoPortData::BridgePort(settings)) => {
                    self.hairpin = settings.contains(&InfoBridgePort::HairpinMode(true));
                }
                _ => {}
            }
        }
    }
}

/// A veth pair to make: one end here, the other directly in another namespace.
#[derive(Debug)]
pub struct VethSpec<'a> {
    pub host_name: &'a str,
    pub host_mac: Mac,
    pub peer_name: &'a str,
    pub peer_mac: Mac,
    pub peer_netns: BorrowedFd<'a>,
    pub mtu: Option<u32>,
}

/// Changes to a link; `None` leaves a setting as it is.
#[derive(Debug, Default)]
pub struct LinkChange<'a> {
    pub up: Option<bool>,
    pub promisc: Option<bool>,
    pub mtu: Option<u32>,
    pub mac: Option<Mac>,
    /// Make it a port of this bridge.
    pub master: Option<u32>,
    pub alias: Option<&'a str>,
    /// No IPv6 link-local address of its own: a bridge port needs none, and each costs a few packets.
    pub no_link_local: bool,
}

/// Settings of a bridge port.
#[derive(Debug, Clone, Copy, Default)]
pub struct BridgePort {
    /// Frames may leave by the port they came in on.
    pub hairpin: bool,
    /// No frames to other isolated ports.
    pub isolated: bool,
}

impl Netlink {
    /// `None` when there is no such link.
    pub fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let found = self.run(
            || format!("look up link {name}"),
            self.handle.link().get().match_name(name).execute().try_next(),
        );
        Ok(absent_is_none(found)?.flatten().map(Link::from))
    }

    /// `None` when there is no such link.
    pub fn link_by_index(&self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let found = self.run(
            || format!("look up link {index}"),
            self.handle.link().get().match_index(index).execute().try_next(),
        );
        Ok(absent_is_none(found)?.flatten().map(Link::from))
    }

    /// Every link of the namespace.
    pub fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let all: Vec<LinkMessage> =
            self.run(|| "list links".into(), self.handle.link().get().execute().try_collect())?;
        Ok(all.into_iter().map(Link::from).collect())
    }

    /// Makes a bridge without spanning tree. `Ok(false)` when a link of the name is there already.
    pub fn add_bridge(&self, name: &str, mac: Mac, mtu: Option<u32>) -> Result<bool, NetlinkError> {
        let mut message = LinkBridge::new(name).address(mac.0.to_vec());
        if let Some(mtu) = mtu {
            message = message.mtu(mtu);
        }
        self.created(|| format!("create bridge {name}"), message.build())
    }

    /// Makes a veth pair; both ends are down. `Ok(false)` when either name is taken.
    pub fn add_veth(&self, spec: &VethSpec<'_>) -> Result<bool, NetlinkError> {
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(spec.peer_name)
            .address(spec.peer_mac.0.to_vec())
            .setns_by_fd(spec.peer_netns.as_raw_fd());
        let mut host = LinkVeth::new(spec.host_name, spec.peer_name).address(spec.host_mac.0.to_vec());
        if let Some(mtu) = spec.mtu {
            (peer, host) = (peer.mtu(mtu), host.mtu(mtu));
        }
        let host = host.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())));
        self.created(|| format!("create veth pair {} and {}", spec.host_name, spec.peer_name), host.build())
    }

    fn created(&self, what: impl FnOnce() -> String, message: LinkMessage) -> Result<bool, NetlinkError> {
        match self.run(what, self.handle.link().add(message).execute()) {
            Ok(()) => Ok(true),
            Err(e) if e.errno() == Some(Errno::EEXIST) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Applies `change` in one request.
    pub fn change_link(&self, index: u32, change: &LinkChange<'_>) -> Result<(), NetlinkError> {
        let mut m = LinkUnspec::new_with_index(index);
        m = match change.up {
            Some(true) => m.up(),
            Some(false) => m.down(),
            None => m,
        };
        if let Some(on) = change.promisc {
            m = m.promiscuous(on);
        }
        if let Some(mtu) = change.mtu {
            m = m.mtu(mtu);
        }
        if let Some(mac) = change.mac {
            m = m.address(mac.0.to_vec());
        }
        if let Some(master) = change.master {
            m = m.controller(master);
        }
        if let Some(alias) = change.alias {
            m = m.alias(alias);
        }
        if change.no_link_local {
            let none = vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])];
            m = m.append_extra_attribute(LinkAttribute::AfSpecUnspec(none));
        }
        self.run(
            || format!("change link {index}: {change:?}"),
            self.handle.link().change(m.build()).execute(),
        )
    }

    /// Sets what a bridge does with a port.
    pub fn set_bridge_port(&self, index: u32, port: BridgePort) -> Result<(), NetlinkError> {
        let mut settings = vec![InfoBridgePort::HairpinMode(port.hairpin)];
        if port.isolated {
            settings.push(InfoBridgePort::Isolated(true));
        }
        let message = LinkBridgePort::new(index)
            .set_port_kind(InfoPortKind::Bridge)
            .set_port_data(InfoPortData::BridgePort(settings))
            .build();
        self.run(
            || format!("change bridge port {index}: {port:?}"),
            self.handle.link().set_port(message).execute(),
        )
    }

    /// Removes a link by name, and with a veth its other end. `Ok(false)` when there was none.
    pub fn delete_link(&self, name: &str) -> Result<bool, NetlinkError> {
        // By name in one request: between a look-up and a removal the index could become another link's.
        let message = LinkMessageBuilder::<LinkUnspec>::new().name(name).build();
        let gone = self
            .run(|| format!("delete link {name}"), self.handle.link().del_with_message(message).execute());
        Ok(absent_is_none(gone)?.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_read_back_and_group_addresses_are_refused() {
        let mac = Mac::local([0xff, 1, 2, 3, 4, 0xab]);
        assert_eq!(mac.to_string(), "fe:01:02:03:04:ab");
        assert_eq!(mac.to_string().parse(), Ok(mac));
        for bad in [
            "",
            "01:00:00:00:00:00",
            "00:00:00:00:00:00",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "2:0:0:0:0:1",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
