//! The nftables table `inet stevedore_cni`: masquerading and host ports.
//!
//! Called by `bridge` and `portmap`. The rules are few and the same for every pod. Masquerading is one chain for each
//! subnet and nothing for a pod. Host ports are elements of maps, whose comments say whose they are; they go over
//! netlink. Rules are made by one run of the `nft` program, and only when they are found missing.
//!
//! A chain's name says all that is in it ("masq-10.88.0.0/16"), so one that exists needs no comparing. Nothing is
//! removed from the table when a pod without host ports goes: the kernel lets a process that removed something wait
//! for an RCU grace period, about ten milliseconds, when it closes its socket.

mod rules;

use std::collections::HashSet;
use std::net::IpAddr;

use cni::nfnetlink::{Data, Element, ElementChange, NfError, Protocol, Socket};
use cni::{Cidr, CniError, code};
use nix::errno::Errno;

use crate::owner::{Mark, Owner};

pub use rules::available;

/// The table's name, in the family inet.
pub const TABLE: &str = "stevedore_cni";

/// A chain of rules; its name holds everything that it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Chain {
    /// Masquerade what leaves this subnet: a chain that the kernel calls by itself.
    Masquerade(Cidr),
    /// Masquerade what reaches a host port from this subnet or from the host's loopback.
    SourceNat(Cidr),
    /// Masquerade whatever reaches a host port.
    SourceNatAll,
}

impl Chain {
    pub fn name(&self) -> String {
        let subnet = |net: &Cidr| net.network().to_string().replace(':', "_");
        match self {
            Chain::Masquerade(net) => format!("masq-{}", subnet(net)),
            Chain::SourceNat(net) => format!("snat-{}", subnet(net)),
            Chain::SourceNatAll => "snat-all".to_string(),
        }
    }
}

/// Something a container wants in the table.
#[derive(Debug, Clone)]
pub enum Entry {
    /// Masquerade traffic to the container that came through a host port, if `chain` says so.
    SourceNat { ip: IpAddr, chain: Chain },
    /// A port of the host.
    Port { protocol: Protocol, host_ip: Option<IpAddr>, host_port: u16, ip: IpAddr, port: u16 },
}

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// A concatenation's part is padded to four bytes.
fn port_bytes(port: u16) -> [u8; 4] {
    let [a, b] = port.to_be_bytes();
    [a, b, 0, 0]
}

impl Entry {
    pub fn set(&self) -> &'static str {
        match self {
            Entry::SourceNat { ip, .. } => rules::by_family(*ip, "snat4", "snat6"),
            Entry::Port { host_ip: None, ip, .. } => rules::by_family(*ip, "ports4", "ports6"),
            Entry::Port { host_ip: Some(_), ip, .. } => rules::by_family(*ip, "ports_ip4", "ports_ip6"),
        }
    }

    fn chain(&self) -> Option<Chain> {
        match self {
            Entry::SourceNat { chain, .. } => Some(*chain),
            Entry::Port { .. } => None,
        }
    }

    /// The element without its comment.
    fn element(&self) -> Element {
        let jump = |chain: Chain| Some(Data::Jump(chain.name()));
        let (key, data) = match *self {
            Entry::SourceNat { ip, chain } => (bytes(ip), jump(chain)),
            Entry::Port { protocol, host_ip, host_port, ip, port } => {
                let mut key = host_ip.map(bytes).unwrap_or_default();
                key.extend([protocol.number(), 0, 0, 0]);
                key.extend(port_bytes(host_port));
                let mut value = bytes(ip);
                value.extend(port_bytes(port));
                (key, Some(Data::Value(value)))
            }
        };
        Element { key, data, comment: String::new() }
    }

    /// For messages.
    pub fn describe(&self) -> String {
        match self {
            Entry::SourceNat { ip, .. } => format!("source NAT towards {ip}"),
            Entry::Port { protocol, host_ip, host_port, .. } => {
                let host = host_ip.map(|ip| format!("{ip} ")).unwrap_or_default();
                format!("host port {host}{host_port}/{protocol:?}")
            }
        }
    }
}

fn failed(e: &NfError) -> CniError {
    CniError::caused(code::KERNEL, format!("nftables table {TABLE}"), e)
}

/// Puts the entries in, all or none. Those that the same owner has already are brought up to date; a host port of a
/// container that still has its link (`host_link`, asked of `alive`) is refused; what a dead one left is replaced.
pub fn add(
    owner: &Owner,
    host_link: Option<&str>,
    entries: &[Entry],
    alive: &dyn Fn(&str) -> bool,
) -> Result<(), CniError> {
    if entries.is_empty() {
        return Ok(());
    }
    let mark = match host_link {
        Some(link) => format!("{} {link}", owner.mark()),
        None => owner.mark(),
    };
    let mut socket = Socket::open().map_err(|e| failed(&e))?;
    let mut replace: HashSet<usize> = HashSet::new();
    let mut installed = None;
    // Each turn mends what the one before found: no rules, stale elements, and others doing the same meanwhile.
    for _ in 0..8 {
        let mut changes = Vec::new();
        let mut index = Vec::new();
        for (i, entry) in entries.iter().enumerate() {
            let element = Element { comment: mark.clone(), ..entry.element() };
            if replace.contains(&i) {
                changes.push(ElementChange::Delete { set: entry.set(), key: element.key.clone() });
                index.push(i);
            }
            changes.push(ElementChange::Add { set: entry.set(), element });
            index.push(i);
        }
        let refused = match socket.change_elements(TABLE, &changes) {
            Ok(()) => return Ok(()),
            Err(NfError::Refused { refused, .. }) => refused,
            Err(e) => return Err(failed(&e)),
        };
        for (at, errno) in &refused {
            let i = *index.get(*at).ok_or_else(|| CniError::new(code::INTERNAL, "an answer to no change"))?;
            match errno {
                Errno::EEXIST => {
                    may_replace(&mut socket, owner, &entries[i], alive)?;
                    replace.insert(i);
                }
                // The element to replace is gone meanwhile, or rules are missing; the next turn tells.
                Errno::ENOENT => {
                    replace.remove(&i);
                }
                errno => {
                    let what = entries[i].describe();
                    return Err(CniError::new(code::KERNEL, format!("{what}: nftables refused it: {errno}")));
                }
            }
        }
        if refused.iter().any(|(_, e)| *e == Errno::ENOENT) {
            let chains: HashSet<Chain> = entries.iter().filter_map(Entry::chain).collect();
            installed = Some(rules::install(&chains)?);
        }
    }
    let said = installed.unwrap_or_default();
    Err(CniError {
        details: said,
        ..CniError::new(code::KERNEL, format!("nftables table {TABLE} cannot be brought in order"))
    })
}

/// An element with the entry's key is there; whether it may go.
fn may_replace(
    socket: &mut Socket,
    owner: &Owner,
    entry: &Entry,
    alive: &dyn Fn(&str) -> bool,
) -> Result<(), CniError> {
    // An address was given to this container, so any other trace of it is stale.
    if matches!(entry, Entry::SourceNat { .. }) {
        return Ok(());
    }
    let key = entry.element().key;
    let elements = socket.elements(TABLE, entry.set()).map_err(|e| failed(&e))?;
    let Some(old) = elements.into_iter().find(|e| e.key == key) else { return Ok(()) };
    if owner.owns(&old.comment) {
        return Ok(());
    }
    match Mark::read(&old.comment) {
        Some(mark) if mark.host_link.is_none_or(alive) => Err(CniError::new(
            code::CONFLICT,
            format!(
                "{} is in use by container {} of network {}",
                entry.describe(),
                mark.container_id,
                mark.network
            ),
        )),
        _ => Ok(()),
    }
}

/// A host port that was removed: what stale flows are recognised by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemovedPort {
    pub protocol: u8,
    pub host_port: u16,
    pub ip: IpAddr,
}

/// Every map of the table.
const MAPS: &[&str] = &["ports4", "ports6", "ports_ip4", "ports_ip6", "snat4", "snat6"];

/// Removes every element whose mark is picked; the host ports among them are returned.
pub fn remove(which: &dyn Fn(&str) -> bool) -> Result<Vec<RemovedPort>, CniError> {
    let mut socket = Socket::open().map_err(|e| failed(&e))?;
    let mut ports = Vec::new();
    // Again when another process removed one of them meanwhile.
    for _ in 0..8 {
        ports.clear();
        let mut changes = Vec::new();
        for set in MAPS {
            for element in socket.elements(TABLE, set).map_err(|e| failed(&e))? {
                if which(&element.comment) {
                    ports.extend(removed_port(set, &element));
                    changes.push(ElementChange::Delete { set, key: element.key });
                }
            }
        }
        match socket.change_elements(TABLE, &changes) {
            Ok(()) => return Ok(ports),
            Err(e) if e.has(Errno::ENOENT) => {}
            Err(e) => return Err(failed(&e)),
        }
    }
    Err(CniError::new(code::TRY_AGAIN_LATER, format!("nftables table {TABLE} keeps changing")))
}

/// Whether the owner has this entry, exactly as it should be.
pub fn has(owner: &Owner, entry: &Entry) -> Result<bool, CniError> {
    let wanted = entry.element();
    let mut socket = Socket::open().map_err(|e| failed(&e))?;
    let elements = socket.elements(TABLE, entry.set()).map_err(|e| failed(&e))?;
    Ok(elements.iter().any(|e| e.key == wanted.key && e.data == wanted.data && owner.owns(&e.comment)))
}

/// Makes sure that what leaves these subnets is masqueraded.
pub fn ensure_masquerade(subnets: &[Cidr]) -> Result<(), CniError> {
    let missing = |socket: &mut Socket| -> Result<HashSet<Chain>, CniError> {
        let mut missing = HashSet::new();
        for chain in subnets.iter().map(|net| Chain::Masquerade(net.network())) {
            if !socket.has_chain(TABLE, &chain.name()).map_err(|e| failed(&e))? {
                missing.insert(chain);
            }
        }
        Ok(missing)
    };
    let mut socket = Socket::open().map_err(|e| failed(&e))?;
    let chains = missing(&mut socket)?;
    if chains.is_empty() {
        return Ok(());
    }
    let said = rules::install(&chains)?;
    if missing(&mut socket)?.is_empty() {
        return Ok(());
    }
    Err(CniError {
        details: said,
        ..CniError::new(code::KERNEL, format!("nftables table {TABLE} cannot be made"))
    })
}

/// Whether what leaves this subnet is masqueraded.
pub fn masquerades(subnet: &Cidr) -> Result<bool, CniError> {
    let mut socket = Socket::open().map_err(|e| failed(&e))?;
    socket.has_chain(TABLE, &Chain::Masquerade(*subnet).name()).map_err(|e| failed(&e))
}

/// Ends the masquerading of these subnets; one that is not masqueraded is no error.
pub fn remove_masquerade(subnets: &[Cidr]) -> Result<(), CniError> {
    for net in subnets {
        if masquerades(net)? {
            rules::remove_chain(&Chain::Masquerade(net.network()))?;
        }
    }
    Ok(())
}

/// Removes the table when no network uses it any more.
pub fn remove_table_if_unused() -> Result<(), CniError> {
    let mut socket = Socket::open().map_err(|e| failed(&e))?;
    if socket.chains(TABLE).map_err(|e| failed(&e))?.iter().any(|name| name.starts_with("masq-")) {
        return Ok(());
    }
    for set in MAPS {
        if !socket.elements(TABLE, set).map_err(|e| failed(&e))?.is_empty() {
            return Ok(());
        }
    }
    rules::remove_table()
}

fn removed_port(set: &str, element: &Element) -> Option<RemovedPort> {
    if !set.starts_with("ports") {
        return None;
    }
    let Some(Data::Value(value)) = &element.data else { return None };
    let key = element.key.get(element.key.len().checked_sub(8)?..)?;
    let ip = match value.len() {
        8 => IpAddr::from(<[u8; 4]>::try_from(&value[..4]).ok()?),
        20 => IpAddr::from(<[u8; 16]>::try_from(&value[..16]).ok()?),
        _ => return None,
    };
    Some(RemovedPort { protocol: key[0], host_port: u16::from_be_bytes([key[4], key[5]]), ip })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_port_reads_back_from_its_element() {
        for (ip, host_ip) in [("10.88.0.5", None), ("fd00::5", Some("fd00::1"))] {
            let entry = Entry::Port {
                protocol: Protocol::Udp,
                host_ip: host_ip.map(|s: &str| s.parse().unwrap()),
                host_port: 5353,
                ip: ip.parse().unwrap(),
                port: 53,
            };
            let port = removed_port(entry.set(), &entry.element()).unwrap();
            assert_eq!(port, RemovedPort { protocol: 17, host_port: 5353, ip: ip.parse().unwrap() });
        }
    }

    #[test]
    fn a_chains_name_is_its_meaning() {
        assert_eq!(Chain::Masquerade("10.88.0.7/16".parse().unwrap()).name(), "masq-10.88.0.0/16");
        assert_eq!(Chain::SourceNat("fd00::7/64".parse().unwrap()).name(), "snat-fd00__/64");
    }
}
