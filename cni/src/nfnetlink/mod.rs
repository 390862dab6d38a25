//! Netfilter over netlink, as far as a plugin's hot path needs it: elements of nftables sets and maps, and
//! deletion of conntrack entries. Everything else (tables, chains, rules) is rare and goes through the `nft` program.
//!
//! Written by hand because `nft` costs a fork and about ten milliseconds, and an element a few tens of microseconds.
//! Called by the plugins. A [`Socket`] belongs to the namespace of the thread that opened it.

mod conntrack;
mod elements;
mod wire;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

pub use conntrack::{Flow, Protocol};
pub use elements::{Data, Element, ElementChange, MAX_COMMENT};

use wire::Answer;

/// A request to netfilter failed.
#[derive(Debug, thiserror::Error)]
pub enum NfError {
    #[error("netfilter socket: cannot {verb}: {source}")]
    Socket { verb: &'static str, source: io::Error },
    /// The transaction was refused as a whole; these are the changes the kernel objected to, by index.
    #[error("nftables table {table}: the kernel refused {}", describe(.refused))]
    Refused { table: String, refused: Vec<(usize, Errno)> },
    #[error("netfilter: cannot {what}: {errno}")]
    Kernel { what: String, errno: Errno },
    #[error("netfilter: cannot {what}: the answer is malformed")]
    Malformed { what: String },
}

fn describe(refused: &[(usize, Errno)]) -> String {
    refused.iter().map(|(i, e)| format!("change {i}: {e}")).collect::<Vec<_>>().join(", ")
}

impl NfError {
    /// Whether any refusal, or the failure itself, has this number.
    pub fn has(&self, wanted: Errno) -> bool {
        match self {
            NfError::Refused { refused, .. } => refused.iter().any(|(_, e)| *e == wanted),
            NfError::Kernel { errno, .. } => *errno == wanted,
            _ => false,
        }
    }
}

/// A socket to netfilter in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    seq: u32,
}

/// Longest single read; the kernel fills dumps by pages up to 32 KiB.
const BUFFER: usize = 64 << 10;

impl Socket {
    /// Opens the socket.
    pub fn open() -> Result<Self, NfError> {
        let fail = |verb| move |e: Errno| NfError::Socket { verb, source: e.into() };
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .map_err(fail("open"))?;
        // The kernel answers within the send itself; the limit only guards against a broken one.
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(5)).map_err(fail("set a time limit"))?;
        Ok(Socket { fd, seq: 1 })
    }

    /// Makes room for a transaction of `count` changes: it goes out in one piece and each change is answered.
    fn make_room(&self, bytes: usize, count: usize) -> Result<(), NfError> {
        // A small one fits the defaults. An answer takes a buffer of its own in the kernel, under 2 KiB.
        const FITS: usize = 64;
        if count <= FITS {
            return Ok(());
        }
        // Beyond the administrator's limits, which need the same capability as nftables itself.
        let fail = |e: Errno| NfError::Socket { verb: "size the buffer", source: e.into() };
        setsockopt(&self.fd, sockopt::SndBufForce, &(bytes * 2)).map_err(fail)?;
        setsockopt(&self.fd, sockopt::RcvBufForce, &(count * 2048)).map_err(fail)
    }

    fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1).max(1);
        self.seq
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NfError> {
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.fd.as_raw_fd(), bytes, &kernel, MsgFlags::empty())
            .map(drop)
            .map_err(|e| NfError::Socket { verb: "send", source: e.into() })
    }

    /// One read; `None` when `wait` is false and nothing is there.
    fn receive(&self, wait: bool) -> Result<Option<Vec<u8>>, NfError> {
        let mut buffer = vec![0; BUFFER];
        let flags = if wait { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
        loop {
            match recv(self.fd.as_raw_fd(), &mut buffer, flags) {
                Ok(n) => {
                    buffer.truncate(n);
                    return Ok(Some(buffer));
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if !wait => return Ok(None),
                Err(e) => return Err(NfError::Socket { verb: "receive", source: e.into() }),
            }
        }
    }

    /// Sends a request whose answer is a list, and collects what `parse` makes of every item's payload.
    ///
    /// A list that changed while it was read is read again.
    fn dump<T>(
        &mut self,
        what: &str,
        mut request: impl FnMut(u32) -> Vec<u8>,
        mut parse: impl FnMut(&[u8], &mut Vec<T>) -> Option<()>,
    ) -> Result<Vec<T>, NfError> {
        for _ in 0..10 {
            let seq = self.next_seq();
            self.send(&request(seq))?;
            let mut items = Vec::new();
            let mut interrupted = false;
            'reads: while let Some(bytes) = self.receive(true)? {
                for answer in wire::answers(&bytes) {
                    match answer.ok_or_else(|| NfError::Malformed { what: what.into() })? {
                        (s, _) if s != seq => {}
                        (_, Answer::Done { interrupted: i }) => {
                            interrupted |= i;
                            break 'reads;
                        }
                        (_, Answer::Status(0)) => break 'reads,
                        (_, Answer::Status(errno)) => {
                            return Err(NfError::Kernel { what: what.into(), errno: Errno::from_raw(errno) });
                        }
                        (_, Answer::Item { payload, interrupted: i }) => {
                            interrupted |= i;
                            parse(payload, &mut items)
                                .ok_or_else(|| NfError::Malformed { what: what.into() })?;
                        }
                    }
                }
            }
            if !interrupted {
                return Ok(items);
            }
        }
        Err(NfError::Kernel { what: what.into(), errno: Errno::EAGAIN })
    }
}
