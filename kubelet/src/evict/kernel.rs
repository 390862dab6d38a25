//! What the kernel tells of memory before anybody asks: on cgroup v1 an event when the pods' cgroup has grown by so much,
//! and where there is pressure stall information an event when processes begin to wait for memory.
//!
//! `memory` waits for these. Nothing is changed in any hierarchy: an event descriptor is registered with the pods' own
//! cgroup, and goes with its descriptor. Where there is neither, nothing is told.

use crate::sys;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The cgroup that holds all pods, in the hierarchy of the memory controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryCgroup {
    /// cgroup v1: it has `cgroup.event_control`.
    V1(PathBuf),
    /// cgroup v2: it may have `memory.pressure`.
    V2(PathBuf),
}

/// Stalls of 50 ms within a second: what a node has that is about to run out, and no other.
const STALL: &[u8] = b"some 50000 1000000\0";

/// Listens to the kernel.
#[derive(Debug, Default)]
pub struct Kernel {
    /// Where growth can be asked about.
    grows: Option<PathBuf>,
    /// What was asked there.
    asked: Option<Asked>,
    stalls: Option<AsyncFd<File>>,
}

/// An event that is registered with the pods' cgroup.
#[derive(Debug)]
struct Asked {
    /// Readable once so many bytes are used.
    mark: u64,
    event: AsyncFd<File>,
}

impl Kernel {
    /// Listens where that can be done; says once, in the log, what cannot.
    pub fn listen(cgroup: Option<&MemoryCgroup>) -> Self {
        let Some(cgroup) = cgroup else { return Self::default() };
        let (grows, pressure) = match cgroup {
            MemoryCgroup::V1(dir) => {
                let there = dir.join("cgroup.event_control").exists();
                (there.then(|| dir.clone()), PathBuf::from("/proc/pressure/memory"))
            }
            MemoryCgroup::V2(dir) => (None, dir.join("memory.pressure")),
        };
        let stalls = match stalls(&pressure) {
            Ok(stalls) => Some(stalls),
            Err(error) => {
                tracing::debug!(file = %pressure.display(), %error, "no pressure stall events");
                None
            }
        };
        Self { grows, asked: None, stalls }
    }

    /// Growth of the pods' cgroup is told. Nothing else is: not what others than pods take, nor memory that takes the place
    /// of cached files.
    #[cfg(test)]
    pub fn tells_growth(&self) -> bool {
        self.grows.is_some()
    }

    /// Resolves when the pods have taken `margin` bytes more than now, or when processes wait for memory; never where the
    /// kernel does not tell. May resolve for nothing, or not at all: it saves nobody from looking. Cancel-safe.
    pub async fn told(&mut self, margin: u64) {
        if let Some(dir) = &self.grows
            && let Err(error) = ask(dir, margin, &mut self.asked)
        {
            tracing::warn!(%error, "the kernel does not tell of growing memory; it is polled");
            (self.grows, self.asked) = (None, None);
        }
        let grown = async {
            match &self.asked {
                Some(asked) => drop(asked.event.readable().await),
                None => std::future::pending().await,
            }
        };
        let stalled = async {
            match &self.stalls {
                Some(file) => match file.ready(Interest::PRIORITY).await {
                    Ok(mut guard) => guard.clear_ready(),
                    Err(_) => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = grown => self.asked = None,
            () = stalled => {}
        }
    }
}

/// A trigger on a file of pressure stall information: it is ready with priority when the stall was that long.
fn stalls(file: &Path) -> io::Result<AsyncFd<File>> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = File::options();
    let mut file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(file)?;
    file.write_all(STALL)?;
    sys::watched(file, Interest::PRIORITY)
}

/// Asks for an event that is readable once the cgroup `dir` uses `margin` bytes more than now. What was asked before stands
/// as long as it comes to about the same: the kernel takes its time to register an event and to forget one.
fn ask(dir: &Path, margin: u64, asked: &mut Option<Asked>) -> io::Result<()> {
    let path = dir.join("memory.usage_in_bytes");
    let usage = || -> io::Result<u64> {
        let text = std::fs::read_to_string(&path)?;
        text.trim().parse().map_err(|_| io::Error::other(format!("{}: {text:?}", path.display())))
    };
    let now = usage()?;
    let about = now.saturating_add(margin / 2)..=now.saturating_add(margin).saturating_add(margin / 4);
    if asked.as_ref().is_some_and(|asked| about.contains(&asked.mark)) {
        return Ok(());
    }
    let mark = now.saturating_add(margin.max(1));
    let mut event = sys::event_fd()?;
    let usage_file = File::open(&path)?;
    let line = format!("{} {} {mark}", event.as_raw_fd(), usage_file.as_raw_fd());
    File::options().write(true).open(dir.join("cgroup.event_control"))?.write_all(line.as_bytes())?;
    // The kernel tells only of a mark that is passed from now on.
    if usage()? >= mark {
        event.write_all(&1_u64.to_ne_bytes())?;
    }
    *asked = Some(Asked { mark, event: sys::watched(event, Interest::READABLE)? });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A cgroup of the test's own in the memory hierarchy, on cgroup v1.
    struct Own(PathBuf);

    impl Own {
        fn make() -> Option<Self> {
            let dir = PathBuf::from(format!("/sys/fs/cgroup/memory/stevedore-evict-{}", std::process::id()));
            if !Path::new("/sys/fs/cgroup/memory/cgroup.event_control").exists() {
                eprintln!("SKIP: there is no memory controller of cgroup v1");
                return None;
            }
            match std::fs::create_dir(&dir) {
                Ok(()) => Some(Self(dir)),
                Err(error) => {
                    eprintln!("SKIP: cannot make {}: {error}", dir.display());
                    None
                }
            }
        }
    }

    impl Drop for Own {
        fn drop(&mut self) {
            let gone = (0..100).any(|_| {
                std::thread::sleep(Duration::from_millis(10));
                std::fs::remove_dir(&self.0).is_ok()
            });
            assert!(gone || std::thread::panicking(), "{} is left", self.0.display());
        }
    }

    #[tokio::test]
    async fn growth_past_the_margin_is_told_on_cgroup_v1() {
        let Some(own) = Own::make() else { return };
        let mut kernel = Kernel::listen(Some(&MemoryCgroup::V1(own.0.clone())));
        assert!(kernel.tells_growth());
        // 32 MiB in a process of that cgroup, once it is told to.
        let script = format!(
            "echo $$ > {}/cgroup.procs && read go && head -c 32M /dev/zero | tail -c 32M | (sleep 0.3; wc -c)",
            own.0.display()
        );
        let mut child = std::process::Command::new("sh")
            .args(["-c", &script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while std::fs::read_to_string(own.0.join("cgroup.procs")).unwrap().trim().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let told = tokio::spawn(async move { kernel.told(8 << 20).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!told.is_finished(), "nothing has grown yet");
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let heard = tokio::time::timeout(Duration::from_secs(60), told).await;
        tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
        heard.expect("growth is told").unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn where_the_kernel_tells_nothing_nothing_is_told() {
        let dir = tempfile::tempdir().unwrap();
        for cgroup in [None, Some(MemoryCgroup::V2(dir.path().to_owned()))] {
            let mut kernel = Kernel::listen(cgroup.as_ref());
            assert!(!kernel.tells_growth());
            let waited = tokio::time::timeout(Duration::from_secs(3600), kernel.told(1)).await;
            assert!(waited.is_err());
        }
    }
}
