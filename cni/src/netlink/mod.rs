//! Links, addresses, routes and neighbours over rtnetlink: the one place that knows that crate.
//!
//! Plugins call it with plain values. A [`Netlink`] belongs to the network namespace of the thread that opened it
//! and blocks that thread; it is never shared and never kept beyond one operation. Inside, rtnetlink is driven by a
//! runtime of the current thread, because a plugin does one thing after another and then exits.

mod addr;
mod link;
mod route;

use std::fmt;
use std::io;

use nix::errno::Errno;

pub use link::{BridgePort, Link, LinkChange, Mac, VethSpec};
pub use route::{Neighbour, RouteEntry};

/// A request to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// The kernel answered with an error number.
    #[error("cannot {what}: {errno}")]
    Kernel { what: String, errno: Errno },
    /// The answer was not understood, or there was none.
    #[error("cannot {what}: {problem}")]
    Protocol { what: String, problem: String },
}

impl NetlinkError {
    /// The kernel's error number, if it was the kernel that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            NetlinkError::Kernel { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    fn from_rtnetlink(what: String, error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(message) => match message.code {
                Some(code) => {
                    NetlinkError::Kernel { what, errno: Errno::from_raw(code.get().saturating_abs()) }
                }
                None => NetlinkError::Protocol { what, problem: "an error without a number".into() },
            },
            other => NetlinkError::Protocol { what, problem: other.to_string() },
        }
    }
}

/// A connection to the kernel's routing tables and links, in the network namespace of the opening thread.
pub struct Netlink {
    runtime: tokio::runtime::Runtime,
    handle: rtnetlink::Handle,
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netlink").finish_non_exhaustive()
    }
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace. Must not be called on an async runtime's thread.
    pub fn open() -> Result<Self, NetlinkError> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(NetlinkError::Open)?;
        let guard = runtime.enter();
        // Strict checking makes the kernel honour the filters of dumps.
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(NetlinkError::Open)?;
        drop(guard);
        runtime.spawn(connection);
        Ok(Netlink { runtime, handle })
    }

    fn run<T>(
        &self,
        what: impl FnOnce() -> String,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, NetlinkError> {
        self.runtime.block_on(request).map_err(|e| NetlinkError::from_rtnetlink(what(), e))
    }
}

/// `Ok(None)` where the kernel says there is no such object.
fn absent_is_none<T>(result: Result<T, NetlinkError>) -> Result<Option<T>, NetlinkError> {
    match result {
        Ok(v) => Ok(Some(v)),
        Err(e) if matches!(e.errno(), Some(Errno::ENODEV | Errno::ENOENT | Errno::ESRCH)) => Ok(None),
        Err(e) => Err(e),
    }
}
