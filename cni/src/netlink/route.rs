//! Routes and neighbours.

use std::net::IpAddr;

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteScope, RouteType,
};
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;

use super::{Mac, Netlink, NetlinkError};
use crate::cidr::Cidr;
use crate::result::Route;

/// A unicast route as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteEntry {
    pub dst: Cidr,
    pub gateway: Option<IpAddr>,
    /// Index of the link it leaves by.
    pub oif: Option<u32>,
    pub table: u32,
}

/// An entry of the neighbour table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    pub addr: IpAddr,
    pub mac: Option<Mac>,
}

impl Netlink {
    /// Adds a route by link `index`. `gateway` overrules `route.gw`'s absence; with neither, the destination is on
    /// the link. `Ok(false)` when the same route is there already.
    pub fn add_route(
        &self,
        index: u32,
        route: &Route,
        gateway: Option<IpAddr>,
    ) -> Result<bool, NetlinkError> {
        let gateway = route.gw.or(gateway);
        let what = || format!("add route to {} by link {index} (gateway {gateway:?})", route.dst);
        let invalid = |problem: String| NetlinkError::Protocol { what: what(), problem };
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(route.dst.network().addr, route.dst.prefix)
            .map_err(|e| invalid(format!("{e:?}")))?
            .output_interface(index);
        builder = match gateway {
            Some(gw) => builder.gateway(gw).map_err(|e| invalid(format!("{e:?}")))?,
            None => builder.scope(RouteScope::Link),
        };
        if let Some(priority) = route.priority {
            builder = builder.priority(priority);
        }
        if let Some(table) = route.table {
            builder = builder.table_id(table);
        }
        if let Some(scope) = route.scope {
            builder = builder.scope(RouteScope::from(scope));
        }
        let mut message = builder.build();
        let metrics: Vec<RouteMetric> =
            [route.mtu.map(RouteMetric::Mtu), route.advmss.map(RouteMetric::Advmss)]
                .into_iter()
                .flatten()
                .collect();
        if !metrics.is_empty() {
            message.attributes.push(RouteAttribute::Metrics(metrics));
        }
        match self.run(what, self.handle.route().add(message).execute()) {
            Ok(()) => Ok(true),
            Err(e) if e.errno() == Some(Errno::EEXIST) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The unicast routes of one family, of every table.
    pub fn routes(&self, ipv4: bool) -> Result<Vec<RouteEntry>, NetlinkError> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = if ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let all: Vec<RouteMessage> =
            self.run(|| "list routes".into(), self.handle.route().get(filter).execute().try_collect())?;
        let any: IpAddr = if ipv4 { [0u8; 4].into() } else { [0u8; 16].into() };
        Ok(all
            .into_iter()
            .filter(|m| m.header.kind == RouteType::Unicast)
            .filter_map(|m| {
                let mut entry = RouteEntry {
                    dst: Cidr::new(any, m.header.destination_prefix_length)?,
                    gateway: None,
                    oif: None,
                    table: u32::from(m.header.table),
                };
                for attribute in &m.attributes {
                    match attribute {
                        RouteAttribute::Destination(a) => entry.dst.addr = ip_of(a)?,
                        RouteAttribute::Gateway(a) => entry.gateway = ip_of(a),
                        RouteAttribute::Oif(index) => entry.oif = Some(*index),
                        RouteAttribute::Table(table) => entry.table = *table,
                        _ => {}
                    }
                }
                Some(entry)
            })
            .collect())
    }

    /// The index of the link a packet to `addr` would leave by; `None` when it is unreachable.
    pub fn route_to(&self, addr: IpAddr) -> Result<Option<u32>, NetlinkError> {
        let what = || format!("look up the route to {addr}");
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(addr, Cidr::host(addr).prefix)
            .map_err(|e| NetlinkError::Protocol { what: what(), problem: format!("{e:?}") })?;
        let mut message = message.build();
        // A strict kernel refuses anything but the destination in a look-up.
        message.header.protocol = Default::default();
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unspec;
        message.header.table = 0;
        let found = self.run(what, self.handle.route().get(message).execute().try_next());
        match found {
            Ok(m) => Ok(m.and_then(|m| {
                m.attributes.iter().find_map(|a| match a {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                })
            })),
            Err(e) if matches!(e.errno(), Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ESRCH)) => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Adds or replaces a permanent neighbour entry.
    pub fn set_neighbour(&self, index: u32, addr: IpAddr, mac: Mac) -> Result<(), NetlinkError> {
        self.run(
            || format!("set neighbour {addr} of link {index} to {mac}"),
            self.handle
                .neighbours()
                .add(index, addr)
                .state(NeighbourState::Permanent)
                .link_layer_address(&mac.0)
                .replace()
                .execute(),
        )
    }

    /// The neighbour entries of one link.
    pub fn neighbours(&self, index: u32) -> Result<Vec<Neighbour>, NetlinkError> {
        let all: Vec<NeighbourMessage> =
            self.run(|| "list neighbours".into(), self.handle.neighbours().get().execute().try_collect())?;
        Ok(all
            .into_iter()
            .filter(|m| m.header.ifindex == index)
            .filter_map(|m| {
                let (mut addr, mut mac) = (None, None);
                for attribute in m.attributes {
                    match attribute {
                        NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => {
                            addr = Some(IpAddr::V4(a))
                        }
                        NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => {
                            addr = Some(IpAddr::V6(a))
                        }
                        NeighbourAttribute::LinkLayerAddress(a) => mac = <[u8; 6]>::try_from(a).ok().map(Mac),
                        _ => {}
                    }
                }
                Some(Neighbour { addr: addr?, mac })
            })
            .collect())
    }
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    }
}
