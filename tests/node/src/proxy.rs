//! A unix socket in front of the runtime's, whose connections can be cut.
//!
//! It copies bytes and understands none of them.

use std::io;
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A running proxy; gone with its socket at drop.
#[derive(Debug)]
pub struct Proxy {
    socket: PathBuf,
    /// Counts the cuts: a connection ends when it has seen one.
    cuts: watch::Sender<u32>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on `socket` and leads to `upstream`.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(socket: &Path, upstream: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(socket)?;
        let cuts = watch::Sender::new(0);
        let (upstream, seen) = (upstream.to_path_buf(), cuts.clone());
        let task = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (upstream, mut cut) = (upstream.clone(), seen.subscribe());
                tokio::spawn(async move {
                    // A runtime that is away shows as a connection that ends at once.
                    let Ok(mut far) = UnixStream::connect(upstream).await else { return };
                    tokio::select! {
                        _ended = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _cut_or_dropped = cut.changed() => {}
                    }
                });
            }
        });
        Ok(Self { socket: socket.to_path_buf(), cuts, task })
    }

    /// Ends every connection there is, in the middle of whatever it carries.
    pub fn cut(&self) {
        self.cuts.send_modify(|n| *n += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        let _gone = std::fs::remove_file(&self.socket);
    }
}
