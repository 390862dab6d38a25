//! Conntrack entries: finding and deleting flows that a change of NAT made stale.
//!
//! Conntrack remembers for a UDP "connection" where its packets go, for minutes after the last one. A flow that began
//! before a host port existed, or that points at a pod that is gone, would miss the new rule. linux/netfilter/
//! nfnetlink_conntrack.h.

use std::net::IpAddr;

use nix::errno::Errno;

use super::wire::{self, Answer, Message, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use super::{NfError, Socket};

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;

/// Transport protocols of host ports, by their IP protocol number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Protocol {
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

impl Protocol {
    /// The IP protocol number.
    pub fn number(self) -> u8 {
        self as u8
    }
}

/// A tracked flow, as far as the decision to delete it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// IP protocol number.
    pub protocol: u8,
    /// Where the first packet was sent to, before NAT.
    pub orig_dst: IpAddr,
    pub orig_dport: u16,
    /// Who answers, after NAT.
    pub reply_src: IpAddr,
}

fn ip(tuple: &[u8], v4: u16, v6: u16) -> Option<IpAddr> {
    let ips = wire::attr(tuple, CTA_TUPLE_IP)?;
    if let Some(a) = wire::attr(ips, v4) {
        return Some(IpAddr::from(<[u8; 4]>::try_from(a).ok()?));
    }
    Some(IpAddr::from(<[u8; 16]>::try_from(wire::attr(ips, v6)?).ok()?))
}

fn flow(payload: &[u8]) -> Option<Flow> {
    let (orig, reply) = (wire::attr(payload, CTA_TUPLE_ORIG)?, wire::attr(payload, CTA_TUPLE_REPLY)?);
    let proto = wire::attr(orig, CTA_TUPLE_PROTO)?;
    Some(Flow {
        protocol: *wire::attr(proto, CTA_PROTO_NUM)?.first()?,
        orig_dst: ip(orig, CTA_IP_V4_DST, CTA_IP_V6_DST)?,
        orig_dport: u16::from_be_bytes(wire::attr(proto, CTA_PROTO_DST_PORT)?.try_into().ok()?),
        reply_src: ip(reply, CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
    })
}

impl Socket {
    /// Deletes the flows of one address family that `stale` picks; returns how many.
    pub fn delete_flows(&mut self, ipv4: bool, stale: impl Fn(&Flow) -> bool) -> Result<usize, NfError> {
        let family = if ipv4 { nix::libc::AF_INET } else { nix::libc::AF_INET6 } as u8;
        let doomed = self.dump(
            "list conntrack entries",
            |seq| {
                let kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET;
                Message::new(kind, NLM_F_REQUEST | NLM_F_DUMP, seq, family, 0).finish()
            },
            |payload, items| {
                // Entries without ports (ICMP) are no business of ours.
                if flow(payload).is_some_and(|f| stale(&f)) {
                    items.push(payload.to_vec());
                }
                Some(())
            },
        )?;
        for payload in &doomed {
            self.delete_flow(family, payload)?;
        }
        Ok(doomed.len())
    }

    fn delete_flow(&mut self, family: u8, payload: &[u8]) -> Result<(), NfError> {
        let seq = self.next_seq();
        let kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE;
        let mut m = Message::new(kind, NLM_F_REQUEST | NLM_F_ACK, seq, family, 0);
        for (kind, value) in wire::attrs(payload) {
            match kind {
                CTA_TUPLE_ORIG => {
                    m.attr(CTA_TUPLE_ORIG | 0x8000, value);
                }
                // The id makes sure that a new flow of the same addresses is left alone.
                CTA_ID | CTA_ZONE => {
                    m.attr(kind, value);
                }
                _ => {}
            }
        }
        self.send(&m.finish())?;
        while let Some(bytes) = self.receive(true)? {
            for answer in wire::answers(&bytes) {
                let what = || "delete a conntrack entry".to_string();
                match answer.ok_or_else(|| NfError::Malformed { what: what() })? {
                    (s, Answer::Status(errno)) if s == seq => {
                        return match Errno::from_raw(errno) {
                            // It ended by itself meanwhile.
                            _ if errno == 0 => Ok(()),
                            Errno::ENOENT => Ok(()),
                            errno => Err(NfError::Kernel { what: what(), errno }),
                        };
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
