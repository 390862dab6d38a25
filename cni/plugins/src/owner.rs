//! Whose something is: the marks on links and nftables elements, and the names made from them.
//!
//! Every trace on the host carries container id, interface name and network, so that DEL and GC of a later
//! incarnation find it without any record of ours.

use std::collections::HashSet;

use cni::netlink::Mac;
use sha2::{Digest, Sha256};

/// An attachment, in the form in which it is written on things: words without spaces, bounded in length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    container_id: String,
    ifname: String,
    network: String,
    digest: [u8; 32],
}

/// Longest container id and network name that are written as they are; longer ones are written as digests, so
/// that the mark fits the 250 bytes of a comment and, with usual ids, the 128 that `nft` reads back.
const MAX_WORD: usize = 96;

fn word(text: &str) -> String {
    if text.len() <= MAX_WORD {
        text.to_string()
    } else {
        format!("sha256-{}", hex(&Sha256::digest(text)[..16]))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl Owner {
    pub fn new(container_id: &str, ifname: &str, network: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(container_id);
        hash.update([0]);
        hash.update(ifname);
        Owner {
            container_id: word(container_id),
            ifname: ifname.to_string(),
            network: word(network),
            digest: hash.finalize().into(),
        }
    }

    /// The mark: "CONTAINER INTERFACE NETWORK".
    pub fn mark(&self) -> String {
        format!("{} {} {}", self.container_id, self.ifname, self.network)
    }

    /// Whether a mark is this attachment's, whatever words follow it.
    pub fn owns(&self, mark: &str) -> bool {
        Mark::read(mark).is_some_and(|m| {
            m.container_id == self.container_id && m.ifname == self.ifname && m.network == self.network
        })
    }

    /// Name of the host's end of the veth pair: the same on every call, so that DEL needs no record of it.
    pub fn host_link(&self) -> String {
        format!("veth{}", hex(&self.digest[..4]))
    }

    /// Hardware address of the host's end. Set, so that no tool on the host invents another.
    pub fn host_mac(&self) -> Mac {
        Mac::local(self.digest[8..14].try_into().expect("six bytes of 32"))
    }

    /// Hardware address of the container's end.
    pub fn container_mac(&self) -> Mac {
        Mac::local(self.digest[14..20].try_into().expect("six bytes of 32"))
    }
}

/// A mark read back from a link's alias or an element's comment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark<'a> {
    pub container_id: &'a str,
    pub ifname: &'a str,
    pub network: &'a str,
    /// A fourth word: the host's link, where the writer knew it.
    pub host_link: Option<&'a str>,
}

impl<'a> Mark<'a> {
    /// `None` when the text is not a mark of ours.
    pub fn read(text: &'a str) -> Option<Self> {
        let mut words = text.split(' ');
        Some(Mark {
            container_id: words.next().filter(|w| !w.is_empty())?,
            ifname: words.next()?,
            network: words.next()?,
            host_link: words.next(),
        })
    }

    /// Whether it belongs to the network and to none of the valid attachments.
    pub fn is_garbage(&self, network: &str, valid: &HashSet<(String, String)>) -> bool {
        self.network == word(network)
            && !valid.iter().any(|(id, ifname)| word(id) == self.container_id && ifname == self.ifname)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_its_owners_and_nobody_elses() {
        let a = Owner::new("abc", "eth0", "net");
        assert!(a.owns(&a.mark()) && a.owns(&format!("{} veth0", a.mark())));
        for other in [
            Owner::new("abcd", "eth0", "net"),
            Owner::new("abc", "eth1", "net"),
            Owner::new("abc", "eth0", "n"),
        ] {
            assert!(!a.owns(&other.mark()));
        }
        assert!(!a.owns("") && !a.owns("abc"));
        let long = Owner::new(&"f".repeat(500), "eth0", &"n".repeat(500));
        assert!(long.owns(&long.mark()) && long.mark().len() + 16 <= cni::nfnetlink::MAX_COMMENT);
    }

    #[test]
    fn garbage_is_what_its_network_no_longer_knows() {
        let valid = HashSet::from([("abc".to_string(), "eth0".to_string())]);
        assert!(!Mark::read("abc eth0 net").unwrap().is_garbage("net", &valid));
        assert!(Mark::read("abc eth1 net").unwrap().is_garbage("net", &valid));
        assert!(Mark::read("xyz eth0 net").unwrap().is_garbage("net", &valid));
        assert!(!Mark::read("xyz eth0 other").unwrap().is_garbage("net", &valid));
    }

    #[test]
    fn names_and_addresses_fit_the_kernel() {
        let o = Owner::new("abc", "eth0", "net");
        assert_eq!(o.host_link().len(), 12);
        assert_ne!(o.host_mac(), o.container_mac());
        assert_eq!(o.host_mac().0[0] & 3, 2);
    }
}
