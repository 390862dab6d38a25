//! An address with a prefix length, as CNI writes it ("10.88.0.5/16", "fd00::1/64"), and the arithmetic on it.
//!
//! Called wherever addresses, subnets and routes are read. Pure: it never touches the kernel.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An address and the length of its network prefix. Host bits are kept: an interface address has them, a subnet
/// does not ([`Cidr::is_network`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    pub addr: IpAddr,
    /// 0 to 32 for IPv4, 0 to 128 for IPv6.
    pub prefix: u8,
}

/// A text is not an address with a prefix length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an address with a prefix length such as 10.88.0.0/16 or fd00::/64")]
pub struct ParseCidrError {
    pub text: String,
}

impl Cidr {
    /// `None` when the prefix is longer than the family's addresses.
    pub fn new(addr: IpAddr, prefix: u8) -> Option<Self> {
        (prefix <= bits(addr)).then_some(Cidr { addr, prefix })
    }

    /// An address alone: /32 or /128.
    pub fn host(addr: IpAddr) -> Self {
        Cidr { addr, prefix: bits(addr) }
    }

    /// "Everything" of the family of `addr`: 0.0.0.0/0 or ::/0.
    pub fn default_route(addr: IpAddr) -> Self {
        let addr = match addr {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Cidr { addr, prefix: 0 }
    }

    pub fn is_ipv4(&self) -> bool {
        self.addr.is_ipv4()
    }

    pub fn is_default_route(&self) -> bool {
        self.prefix == 0
    }

    /// How many host bits the prefix leaves.
    pub fn host_bits(&self) -> u8 {
        bits(self.addr) - self.prefix
    }

    /// The same prefix with the host bits zero.
    pub fn network(&self) -> Cidr {
        Cidr { addr: from_u128(to_u128(self.addr) & !self.host_mask(), self.is_ipv4()), prefix: self.prefix }
    }

    /// True when no host bit is set.
    pub fn is_network(&self) -> bool {
        self.network() == *self
    }

    /// The last address of the prefix: for IPv4 the broadcast address.
    pub fn last(&self) -> IpAddr {
        from_u128(to_u128(self.addr) | self.host_mask(), self.is_ipv4())
    }

    /// Whether `addr` is of the same family and under the prefix.
    pub fn contains(&self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.is_ipv4()
            && (to_u128(addr) | self.host_mask()) == (to_u128(self.addr) | self.host_mask())
    }

    /// Whether the two prefixes share an address.
    pub fn overlaps(&self, other: &Cidr) -> bool {
        self.contains(other.network().addr) || other.contains(self.network().addr)
    }

    fn host_mask(&self) -> u128 {
        match self.host_bits() {
            0 => 0,
            n => u128::MAX >> (128 - u32::from(n)),
        }
    }
}

/// The number of bits of an address of this family.
pub fn bits(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

/// The address as a number; IPv4 stays below 2^32.
pub fn to_u128(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

/// The reverse of [`to_u128`]; of an IPv4 address only the low 32 bits count.
pub fn from_u128(n: u128, ipv4: bool) -> IpAddr {
    if ipv4 {
        IpAddr::V4(Ipv4Addr::from((n & u128::from(u32::MAX)) as u32))
    } else {
        IpAddr::V6(Ipv6Addr::from(n))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let err = || ParseCidrError { text: s.chars().take(100).collect() };
        let (addr, prefix) = s.split_once('/').ok_or_else(err)?;
        let addr: IpAddr = addr.parse().map_err(|_| err())?;
        if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return Err(err());
        }
        Cidr::new(addr, prefix.parse().map_err(|_| err())?).ok_or_else(err)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn c(s: &str) -> Cidr {
        s.parse().unwrap()
    }

    #[test]
    fn the_arithmetic_holds_at_the_edges_of_both_families() {
        assert_eq!(c("10.88.3.4/16").network(), c("10.88.0.0/16"));
        assert_eq!(c("10.88.3.4/16").last().to_string(), "10.88.255.255");
        assert_eq!(c("0.0.0.0/0").last().to_string(), "255.255.255.255");
        assert_eq!(c("10.0.0.1/32").last().to_string(), "10.0.0.1");
        assert_eq!(c("fd00::1/64").last().to_string(), "fd00::ffff:ffff:ffff:ffff");
        assert_eq!(c("::/0").last().to_string(), "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
        assert!(c("::/0").contains("fd00::1".parse().unwrap()));
        assert!(!c("::/0").contains("10.0.0.1".parse().unwrap()));
        assert!(c("10.0.0.0/8").overlaps(&c("10.88.0.0/16")) && c("10.88.0.0/16").overlaps(&c("10.0.0.0/8")));
        assert!(!c("10.87.0.0/16").overlaps(&c("10.88.0.0/16")));
    }

    #[test]
    fn what_is_not_a_prefix_is_refused_with_its_text() {
        for bad in
            ["", "10.0.0.1", "10.0.0.1/33", "10.0.0.1/", "10.0.0.1/+1", "fd00::/129", "x/1", "10.0.0/8"]
        {
            let err = bad.parse::<Cidr>().unwrap_err().to_string();
            assert!(err.contains(&format!("{bad:?}")), "{err}");
        }
    }
}
