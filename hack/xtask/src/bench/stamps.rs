//! What the benchmark's containers tell: the moments of their first instruction and of SIGTERM.
//!
//! The programs (`hack/images/stamp.rs`) send a datagram each to a socket in a folder that is mounted into
//! every container. Moments are CLOCK_MONOTONIC, which all of the machine shares, so when a datagram is read
//! does not matter.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// The file name of the socket in the mounted folder.
const SOCKET: &str = "socket";

/// What happened to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Moment {
    /// Its first instruction.
    Start,
    /// SIGTERM was taken.
    Term,
}

type Stamp = (Moment, String, u64);

/// The stamps so far, and the socket for more.
#[derive(Debug)]
pub(super) struct Stamps {
    incoming: mpsc::UnboundedReceiver<Stamp>,
    seen: HashMap<(Moment, String), u64>,
    reader: JoinHandle<()>,
}

impl Drop for Stamps {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Stamps {
    /// Listens in `folder`.
    pub(super) fn listen(folder: &Path) -> Result<Self> {
        let path = folder.join(SOCKET);
        let socket = UnixDatagram::bind(&path).with_context(|| format!("listen at {}", path.display()))?;
        let (told, incoming) = mpsc::unbounded_channel();
        let reader = tokio::spawn(async move {
            let mut buffer = [0; 256];
            while let Ok(length) = socket.recv(&mut buffer).await {
                let stamp = std::str::from_utf8(&buffer[..length]).ok().and_then(parse);
                if stamp.is_some_and(|stamp| told.send(stamp).is_err()) {
                    return;
                }
            }
        });
        Ok(Self { incoming, seen: HashMap::new(), reader })
    }

    /// When that happened, in nanoseconds of [`now`]; waits for it.
    pub(super) async fn wait(&mut self, moment: Moment, name: &str, limit: Duration) -> Result<u64> {
        let key = (moment, name.to_owned());
        let told = tokio::time::timeout(limit, async {
            loop {
                if let Some(at) = self.seen.get(&key) {
                    return Some(*at);
                }
                let (moment, name, at) = self.incoming.recv().await?;
                self.seen.insert((moment, name), at);
            }
        });
        let told = told.await.with_context(|| format!("{name} gave no sign of {moment:?} in {limit:?}"))?;
        told.context("the socket for stamps is closed")
    }

    /// How many containers have started so far.
    pub(super) fn starts(&mut self) -> usize {
        while let Ok((moment, name, at)) = self.incoming.try_recv() {
            self.seen.insert((moment, name), at);
        }
        self.seen.keys().filter(|(moment, _)| *moment == Moment::Start).count()
    }
}

fn parse(text: &str) -> Option<Stamp> {
    let mut words = text.split(' ');
    let moment = match words.next()? {
        "start" => Moment::Start,
        "term" => Moment::Term,
        _ => return None,
    };
    let at = words.next()?.parse().ok()?;
    Some((moment, words.next()?.to_owned(), at))
}

/// CLOCK_MONOTONIC in nanoseconds.
pub(super) fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Milliseconds between two moments.
pub(super) fn ms(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_a_word_a_time_and_a_name() {
        assert_eq!(parse("start 17 a-1"), Some((Moment::Start, "a-1".to_owned(), 17)));
        assert_eq!(parse("term 18 a-1"), Some((Moment::Term, "a-1".to_owned(), 18)));
        for bad in ["", "start", "start x a", "stop 1 a", "start 1"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_stamp_is_kept_until_somebody_asks() {
        let dir = tempfile::tempdir().unwrap();
        let mut stamps = Stamps::listen(dir.path()).unwrap();
        let container = UnixDatagram::unbound().unwrap();
        for text in ["start 1 a", "rubbish", "start 2 b", "term 3 a"] {
            container.send_to(text.as_bytes(), dir.path().join(SOCKET)).await.unwrap();
        }
        let limit = Duration::from_secs(5);
        assert_eq!(stamps.wait(Moment::Term, "a", limit).await.unwrap(), 3);
        assert_eq!(stamps.wait(Moment::Start, "b", limit).await.unwrap(), 2);
        assert_eq!(stamps.starts(), 2);
        assert!(stamps.wait(Moment::Term, "b", Duration::ZERO).await.is_err());
    }
}
