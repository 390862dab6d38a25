//! Addresses of links.

use std::net::IpAddr;

use futures::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use nix::errno::Errno;

use super::{Netlink, NetlinkError, absent_is_none};
use crate::cidr::Cidr;

impl Netlink {
    /// The addresses of one link.
    pub fn addresses(&self, index: u32) -> Result<Vec<Cidr>, NetlinkError> {
        let all: Vec<AddressMessage> = self.run(
            || format!("list the addresses of link {index}"),
            self.handle.address().get().set_link_index_filter(index).execute().try_collect(),
        )?;
        Ok(all.iter().filter(|m| m.header.index == index).filter_map(cidr_of).collect())
    }

    /// Adds an address. IPv6 duplicate address detection is left out: the address comes from an allocator that
    /// gives none twice, and a tentative address cannot be used for a second. `Ok(false)` when it is there already.
    pub fn add_address(
        &self,
        index: u32,
        address: Cidr,
        detect_duplicates: bool,
    ) -> Result<bool, NetlinkError> {
        let mut request = self.handle.address().add(index, address.addr, address.prefix);
        if !detect_duplicates && !address.is_ipv4() {
            let message = request.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        match self.run(|| format!("add address {address} to link {index}"), request.execute()) {
            Ok(()) => Ok(true),
            Err(e) if e.errno() == Some(Errno::EEXIST) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Removes an address; one that is not there is no error.
    pub fn delete_address(&self, index: u32, address: Cidr) -> Result<(), NetlinkError> {
        let all: Vec<AddressMessage> = self.run(
            || format!("list the addresses of link {index}"),
            self.handle.address().get().set_link_index_filter(index).execute().try_collect(),
        )?;
        for message in all {
            if message.header.index == index && cidr_of(&message) == Some(address) {
                let gone = self.run(
                    || format!("delete address {address} of link {index}"),
                    self.handle.address().del(message).execute(),
                );
                match gone {
                    Err(e) if e.errno() == Some(Errno::EADDRNOTAVAIL) => {}
                    other => {
                        absent_is_none(other)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// IPv4 has the address in IFA_LOCAL (IFA_ADDRESS is the peer's), IPv6 in IFA_ADDRESS.
fn cidr_of(message: &AddressMessage) -> Option<Cidr> {
    let (mut local, mut address): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(a) => local = Some(*a),
            AddressAttribute::Address(a) => address = Some(*a),
            _ => {}
        }
    }
    Cidr::new(local.or(address)?, message.header.prefix_len)
}
