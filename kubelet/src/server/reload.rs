//! The serving certificate and the client CA while the server runs: read at the start, and again when their files change.
//! What cannot be used then is told once, and what was read before stays in use.
//!
//! The task is woken by the directories of the files; links that lead elsewhere are followed. The net is for what inotify
//! does not tell.

use super::auth::{ClientCa, Door};
use super::tls::{self, TlsError};
use super::{SecureConfig, cert, logs};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// From the first change until the files are read: they come in pairs, and their directory may be a busy one.
const SETTLE: Duration = Duration::from_millis(100);
/// Between looks that nothing asked for; upstream's.
const NET: Duration = Duration::from_secs(60);

/// What is served with, and who is let in.
pub struct Credentials {
    pub acceptor: TlsAcceptor,
    pub door: Door,
}

/// Reads the files. Blocks on the disk.
pub struct Reload {
    config: SecureConfig,
    files: Vec<PathBuf>,
    /// What the files were before they were last read.
    seen: Vec<Option<Stamp>>,
    /// Somebody was told that what is there cannot be used.
    told: bool,
}

/// Device, inode, size, and when it was changed: another file, or another content.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp(path: &PathBuf) -> Option<Stamp> {
    let m = std::fs::metadata(path).ok()?;
    Some((m.dev(), m.ino(), m.size(), m.ctime(), m.ctime_nsec()))
}

impl Reload {
    /// Reads the files for the first time, or makes the certificate.
    pub fn start(config: SecureConfig) -> Result<(Self, Credentials), TlsError> {
        cert::ensure(&config.certificate)?;
        let [cert, key] = cert::files(&config.certificate);
        let files: Vec<_> = [cert, key].into_iter().chain(config.client_ca.clone()).collect();
        let seen = files.iter().map(stamp).collect();
        let credentials = read(&config)?;
        Ok((Self { config, files, seen, told: false }, credentials))
    }

    /// What is to be used from now on, if it changed and can be.
    pub fn again(&mut self) -> Option<Credentials> {
        let now: Vec<_> = self.files.iter().map(stamp).collect();
        if now == self.seen {
            return None;
        }
        self.seen = now;
        match read(&self.config) {
            Ok(credentials) => {
                self.told = false;
                tracing::info!("serving certificate and client CA were read again");
                Some(credentials)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    tracing::warn!(%error, "certificates have changed and cannot be used; serving on as before");
                }
                None
            }
        }
    }

    /// Where a change of the files would show.
    fn directories(&self) -> BTreeSet<PathBuf> {
        let led = self.files.iter().filter_map(|file| file.canonicalize().ok());
        let all = self.files.iter().cloned().chain(led);
        all.filter_map(|file| file.parent().map(Path::to_path_buf)).collect()
    }
}

fn read(config: &SecureConfig) -> Result<Credentials, TlsError> {
    let identity = cert::read(&config.certificate)?;
    let ca = config.client_ca.as_deref().map(ClientCa::load).transpose()?;
    let settings = tls::settings(config, identity, ca.as_ref())?;
    let door = Door { anonymous: config.anonymous, ca };
    Ok(Credentials { acceptor: TlsAcceptor::from(Arc::new(settings)), door })
}

/// Publishes what changes, for ever.
pub async fn run(
    mut reload: Reload,
    logs: Arc<logs::Logs>,
    acceptor: watch::Sender<TlsAcceptor>,
    door: watch::Sender<Door>,
) {
    loop {
        let directories = reload.directories();
        // Watched before the files are looked at. One that cannot be watched is left to the net.
        let watcher = logs.watcher().ok();
        let watched = directories.iter().filter_map(|dir| watcher.as_ref()?.watch(dir).ok());
        let mut watches: Vec<_> = watched.collect();
        let looked = tokio::task::spawn_blocking(move || {
            let new = reload.again();
            (reload, new)
        });
        // It only fails when the agent is stopping.
        let Ok((same, new)) = looked.await else { return };
        reload = same;
        if let Some(new) = new {
            acceptor.send_replace(new.acceptor);
            door.send_replace(new.door);
        }
        if watches.is_empty() {
            tokio::time::sleep(NET).await;
            continue;
        }
        let ticks = futures::future::select_all(watches.iter_mut().map(|watch| Box::pin(watch.tick())));
        if tokio::time::timeout(NET, ticks).await.is_ok() {
            tokio::time::sleep(SETTLE).await;
        }
    }
}
