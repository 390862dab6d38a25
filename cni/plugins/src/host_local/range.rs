//! Which address is next: pure arithmetic over ranges, no files.

use std::net::IpAddr;

use cni::Cidr;
use cni::cidr::{from_u128, to_u128};

/// A run of addresses of one subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The subnet, host bits zero.
    pub subnet: Cidr,
    pub start: IpAddr,
    /// Inclusive.
    pub end: IpAddr,
    pub gateway: IpAddr,
}

impl Range {
    /// A range with the defaults: everything between network and broadcast address, the first one the gateway.
    /// Errors name the field that is wrong ("subnet", "rangeStart", "rangeEnd", "gateway") and why.
    pub fn new(
        subnet: Cidr,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
        gateway: Option<IpAddr>,
    ) -> Result<Self, (&'static str, String)> {
        if !subnet.is_network() {
            return Err((
                "subnet",
                format!("{subnet} has host bits set; {} is the subnet", subnet.network()),
            ));
        }
        if subnet.host_bits() < 2 {
            return Err((
                "subnet",
                format!("{subnet} is too small: it must leave two bits or more for hosts"),
            ));
        }
        let v4 = subnet.is_ipv4();
        let first = from_u128(to_u128(subnet.addr) + 1, v4);
        // IPv6 has no broadcast address.
        let last = if v4 { from_u128(to_u128(subnet.last()) - 1, v4) } else { subnet.last() };
        for (field, addr) in [("rangeStart", start), ("rangeEnd", end), ("gateway", gateway)] {
            if let Some(addr) = addr
                && !subnet.contains(addr)
            {
                return Err((field, format!("{addr} is not in the subnet {subnet}")));
            }
        }
        let (start, end) = (start.unwrap_or(first), end.unwrap_or(last));
        if start > end {
            return Err(("rangeStart", format!("{start} is behind rangeEnd {end}")));
        }
        Ok(Range { subnet, start, end, gateway: gateway.unwrap_or(first) })
    }

    pub fn contains(&self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.subnet.is_ipv4() && self.start <= addr && addr <= self.end
    }

    /// Whether a container may have the address: not the gateway's, the network's or the broadcast address.
    pub fn usable(&self, addr: IpAddr) -> bool {
        self.contains(addr)
            && addr != self.gateway
            && addr != self.subnet.addr
            && !(addr.is_ipv4() && addr == self.subnet.last())
    }

    pub fn overlaps(&self, other: &Range) -> bool {
        self.contains(other.start) || other.contains(self.start)
    }
}

/// Ranges of one family from which a container gets one address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeSet(pub Vec<Range>);

impl RangeSet {
    pub fn find(&self, addr: IpAddr) -> Option<&Range> {
        self.0.iter().find(|r| r.contains(addr))
    }

    /// The first free address behind `last`, round and round, so that an address rests as long as possible before
    /// it is given again. `None` when every address is taken.
    pub fn next(&self, last: Option<IpAddr>, taken: impl Fn(IpAddr) -> bool) -> Option<(IpAddr, &Range)> {
        let count = self.0.len();
        let (first, begin) = last
            .and_then(|last| {
                let i = self.0.iter().position(|r| r.contains(last))?;
                Some((i, to_u128(last).checked_add(1)?))
            })
            .or_else(|| Some((0, to_u128(self.0.first()?.start))))?;
        // The range of `last` comes twice: its rest at first, all of it at the end.
        for turn in 0..=count {
            let range = &self.0[(first + turn) % count];
            let from = if turn == 0 { begin } else { to_u128(range.start) };
            let mut n = from;
            while n <= to_u128(range.end) {
                let addr = from_u128(n, range.subnet.is_ipv4());
                if range.usable(addr) && !taken(addr) {
                    return Some((addr, range));
                }
                let Some(next) = n.checked_add(1) else { break };
                n = next;
            }
        }
        None
    }

    /// For messages: "10.88.0.1-10.88.255.254".
    pub fn describe(&self) -> String {
        self.0.iter().map(|r| format!("{}-{}", r.start, r.end)).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn range(subnet: &str, start: Option<&str>, end: Option<&str>) -> Range {
        let ip = |s: &str| s.parse().unwrap();
        Range::new(subnet.parse().unwrap(), start.map(ip), end.map(ip), None).unwrap()
    }

    #[test]
    fn defaults_leave_out_network_gateway_and_broadcast() {
        let set = RangeSet(vec![range("10.1.2.0/29", None, None)]);
        let (mut last, mut seen) = (None, HashSet::new());
        while let Some((addr, _)) = set.next(last, |a| seen.contains(&a)) {
            assert!(seen.insert(addr));
            last = Some(addr);
        }
        let mut seen: Vec<_> = seen.into_iter().map(|a| a.to_string()).collect();
        seen.sort();
        assert_eq!(seen, ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]);
    }

    #[test]
    fn the_search_begins_behind_the_last_address_and_goes_round() {
        let set = RangeSet(vec![
            range("10.1.2.0/24", Some("10.1.2.10"), Some("10.1.2.11")),
            range("10.1.3.0/29", None, Some("10.1.3.2")),
        ]);
        let ip = |s: &str| Some(s.parse().unwrap());
        let next = |last| set.next(last, |_| false).unwrap().0.to_string();
        assert_eq!(next(None), "10.1.2.10");
        assert_eq!(next(ip("10.1.2.10")), "10.1.2.11");
        assert_eq!(next(ip("10.1.2.11")), "10.1.3.2");
        assert_eq!(next(ip("10.1.3.2")), "10.1.2.10");
        assert_eq!(next(ip("192.168.0.1")), "10.1.2.10");
    }

    #[test]
    fn the_ends_of_the_address_spaces_do_not_overflow() {
        let set = RangeSet(vec![range("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124", None, None)]);
        let end = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap();
        assert!(set.next(Some(end), |_| false).is_some());
        assert!(set.next(Some(end), |_| true).is_none());
        let set = RangeSet(vec![range("255.255.255.248/29", None, None)]);
        assert!(set.next(Some("255.255.255.254".parse().unwrap()), |_| false).is_some());
    }

    #[test]
    fn bad_ranges_name_the_field() {
        let bad = |subnet: &str, start: Option<&str>, end: Option<&str>| {
            let ip = |s: &str| s.parse().unwrap();
            Range::new(subnet.parse().unwrap(), start.map(ip), end.map(ip), None).unwrap_err()
        };
        assert_eq!(bad("10.1.2.3/24", None, None).0, "subnet");
        assert_eq!(bad("10.1.2.0/31", None, None).0, "subnet");
        assert_eq!(bad("10.1.2.0/24", Some("10.1.3.1"), None).0, "rangeStart");
        assert_eq!(bad("10.1.2.0/24", None, Some("fd00::1")).0, "rangeEnd");
        assert_eq!(bad("10.1.2.0/24", Some("10.1.2.9"), Some("10.1.2.8")).0, "rangeStart");
    }

    proptest! {
        /// Whatever is taken, what comes next is in the ranges, usable and free; and everything free comes in the end.
        #[test]
        fn no_address_is_given_twice_and_every_free_one_is_found(
            bits in 2u8..8, skip in 0u128..300, v6: bool, taken in proptest::collection::hash_set(0u128..256, 0..200),
        ) {
            let base = if v6 { to_u128("fd00:1::".parse().unwrap()) } else { to_u128("10.9.8.0".parse().unwrap()) };
            let width = if v6 { 128 } else { 32 };
            let subnet = Cidr::new(from_u128(base, !v6), width - bits).unwrap();
            let set = RangeSet(vec![Range::new(subnet, None, None, None).unwrap()]);
            let mut taken: HashSet<IpAddr> = taken.into_iter().map(|n| from_u128(base + n, !v6)).collect();
            let free = (0..1u128 << bits).map(|n| from_u128(base + n, !v6))
                .filter(|a| set.0[0].usable(*a) && !taken.contains(a)).count();
            let mut last = Some(from_u128(base + skip, !v6));
            let mut given = 0;
            while let Some((addr, range)) = set.next(last, |a| taken.contains(&a)) {
                prop_assert!(range.usable(addr) && subnet.contains(addr));
                prop_assert!(taken.insert(addr));
                last = Some(addr);
                given += 1;
            }
            prop_assert_eq!(given, free);
        }
    }
}
