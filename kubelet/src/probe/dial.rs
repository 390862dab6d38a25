//! TCP connections to probe targets: opened for one question, closed without a trace.
//!
//! Every socket closes with a reset: nothing of a probe stays behind in TIME_WAIT, which at some hundred probes a second
//! would fill the node's port and connection-tracking tables. Errors read as the stock agent's do.

use nix::errno::Errno;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use tokio::net::{TcpSocket, TcpStream};

/// Why there is no connection.
#[derive(Debug)]
pub enum DialError {
    /// The name has no address.
    Lookup {
        /// The name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The address does not take connections.
    Connect {
        /// The last one that was tried.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lookup { host, source } => write!(f, "dial tcp: lookup {host}: {source}"),
            Self::Connect { address, source } => {
                write!(f, "dial tcp {address}: connect: {}", errno_text(source))
            }
        }
    }
}

impl std::error::Error for DialError {}

/// Connects to `host` (a name or an address) at `port`, trying its addresses in turn. Waits as long as the kernel does:
/// the caller brings the deadline.
pub async fn dial(host: &str, port: u16) -> Result<TcpStream, DialError> {
    let lookup = |source| DialError::Lookup { host: host.to_owned(), source };
    let mut failed = None;
    for address in tokio::net::lookup_host((host, port)).await.map_err(lookup)? {
        match connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(source) => failed = Some(DialError::Connect { address, source }),
        }
    }
    Err(failed.unwrap_or_else(|| lookup(io::Error::other("no such host"))))
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_zero_linger()?;
    socket.connect(address).await
}

/// The kernel's word for an error, as Go prints it: without a capital and without the number.
pub fn errno_text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => {
            let text = Errno::from_raw(number).desc();
            let mut letters = text.chars();
            letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
        }
        None => error.to_string(),
    }
}

/// `host:port`, with brackets around what is an IPv6 address.
pub fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_port_nobody_listens_at_is_refused_in_upstreams_words() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = dial("127.0.0.1", address.port()).await.unwrap_err();
        assert_eq!(error.to_string(), format!("dial tcp {address}: connect: connection refused"));
    }

    #[tokio::test]
    async fn a_closed_connection_leaves_nothing_in_time_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = dial("127.0.0.1", address.port()).await.unwrap();
        let local = stream.local_addr().unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        drop(stream);
        accepted.readable().await.unwrap();
        drop(accepted);
        let line = format!("0100007F:{:04X} 0100007F:{:04X}", local.port(), address.port());
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        assert!(!table.contains(&line), "{line} is still in\n{table}");
    }

    #[test]
    fn names_and_addresses_become_authorities() {
        assert_eq!(host_port("::1", 80), "[::1]:80");
        assert_eq!(host_port("10.0.0.1", 80), "10.0.0.1:80");
    }
}
