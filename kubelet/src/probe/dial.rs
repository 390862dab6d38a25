//! TCP connections to probe targets: opened for one question, closed without a trace.
//!
//! Every socket closes with its end of stream and, right behind that, a reset. The server reads an end, not an error that it
//! would log; and nothing of a probe stays behind in TIME_WAIT, which at some hundred probes a second would fill the
//! node's port and connection-tracking tables. Waiting for the server to close, too, would be politer, and would make
//! the kernel keep just that. Errors read as the stock agent's do.

use crate::resolve::resolve;
use nix::errno::Errno;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

/// A stream of bytes to a target, with or without TLS.
pub type Stream = Box<dyn Io>;

/// What a [`Stream`] is.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Closes as the module says when it is dropped.
struct Connection(TcpStream);

impl Drop for Connection {
    fn drop(&mut self) {
        // Fails when the other side has reset it: then it is closed already. The reset is the socket's zero linger.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Write);
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    /// Nothing: the end of stream goes out with the reset.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

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
pub async fn dial(host: &str, port: u16) -> Result<Stream, DialError> {
    let lookup = |source| DialError::Lookup { host: host.to_owned(), source };
    let mut failed = None;
    for address in resolve(host, port).await.map_err(lookup)? {
        match connect(address).await {
            Ok(stream) => return Ok(Box::new(stream)),
            Err(source) => failed = Some(DialError::Connect { address, source }),
        }
    }
    Err(failed.unwrap_or_else(|| lookup(io::Error::other("no such host"))))
}

async fn connect(address: SocketAddr) -> io::Result<Connection> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_zero_linger()?;
    Ok(Connection(socket.connect(address).await?))
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_port_nobody_listens_at_is_refused_in_upstreams_words() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = dial("127.0.0.1", address.port()).await.err().unwrap();
        assert_eq!(error.to_string(), format!("dial tcp {address}: connect: connection refused"));
    }

    #[tokio::test]
    async fn a_server_reads_an_end_and_nothing_stays_in_time_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // Met before the end or after it, spoken to or not: a reset alone would be an error to read.
        for (early, says) in [(false, ""), (true, ""), (false, "x"), (true, "x")] {
            let mut stream = dial("127.0.0.1", address.port()).await.unwrap();
            let mut accepted = None;
            if early {
                accepted = Some(listener.accept().await.unwrap());
            }
            stream.write_all(says.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            drop(stream);
            let (mut accepted, peer) = match accepted {
                Some(accepted) => accepted,
                None => listener.accept().await.unwrap(),
            };
            let mut heard = String::new();
            accepted.read_to_string(&mut heard).await.unwrap();
            assert_eq!(heard, says);
            // The reset, which follows.
            accepted.ready(tokio::io::Interest::ERROR).await.unwrap();
            drop(accepted);
            let line = format!("0100007F:{:04X} 0100007F:{:04X}", peer.port(), address.port());
            let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
            assert!(!table.contains(&line), "{line} is still in\n{table}");
        }
    }

    #[test]
    fn names_and_addresses_become_authorities() {
        assert_eq!(host_port("::1", 80), "[::1]:80");
        assert_eq!(host_port("10.0.0.1", 80), "10.0.0.1:80");
    }
}
