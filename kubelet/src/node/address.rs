//! The node's own addresses: `--node-ip`, or those of the interface with the default route.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// `--node-ip` is not usable.
#[derive(Clone, Debug, thiserror::Error)]
#[error("invalid --node-ip value {value:?}: {why}")]
pub struct AddressError {
    /// What was given.
    pub value: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// The node's addresses, primary first, at most one of each family. `given` is the flag's text: empty, one address,
/// or one of each family; an unspecified address (`0.0.0.0`, `::`) chooses the family that comes first.
///
/// A machine without any route has the loopback address: it can run pods all the same.
pub fn node_addresses(given: &str) -> Result<Vec<IpAddr>, AddressError> {
    let bad = |why| AddressError { value: given.to_owned(), why };
    let mut asked = Vec::new();
    for text in given.split(',').map(str::trim).filter(|t| !t.is_empty()) {
        let ip: IpAddr = text.parse().map_err(|_| bad("not an IP address"))?;
        if ip.is_multicast() {
            return Err(bad("must not be a multicast address"));
        }
        asked.push(ip);
    }
    if asked.len() > 2 || (asked.len() == 2 && asked[0].is_ipv4() == asked[1].is_ipv4()) {
        return Err(bad("must be one address, or one of each family"));
    }
    if let [first, ..] = asked[..]
        && !first.is_unspecified()
    {
        return Ok(asked);
    }
    let v6_first = asked.first().is_some_and(IpAddr::is_ipv6);
    let routed = [outgoing(v6_first), outgoing(!v6_first)];
    let found: Vec<IpAddr> = routed.into_iter().flatten().collect();
    Ok(if found.is_empty() { vec![IpAddr::V4(Ipv4Addr::LOCALHOST)] } else { found })
}

/// The source address the kernel would choose for the default route. Nothing is sent: a UDP socket is only connected.
fn outgoing(v6: bool) -> Option<IpAddr> {
    // Addresses reserved for documentation: never local, so only a default route leads there.
    let (any, target): (IpAddr, IpAddr) = if v6 {
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into())
    } else {
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into())
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((target, 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    (!ip.is_unspecified() && !ip.is_loopback() && !link_local).then_some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_addresses_are_taken_as_they_are() {
        assert_eq!(node_addresses("192.0.2.10").unwrap(), ["192.0.2.10".parse::<IpAddr>().unwrap()]);
        assert_eq!(node_addresses("192.0.2.10, 2001:db8::5").unwrap().len(), 2);
    }

    #[test]
    fn unusable_addresses_are_refused_by_value() {
        for given in ["nonsense", "192.0.2.1,192.0.2.2", "224.0.0.1", "192.0.2.1,::1,10.0.0.1"] {
            let error = node_addresses(given).unwrap_err().to_string();
            assert!(error.contains(given), "{error}");
        }
    }

    #[test]
    fn a_machine_always_has_an_address() {
        assert!(!node_addresses("").unwrap().is_empty());
    }
}
