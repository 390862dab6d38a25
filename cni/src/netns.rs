//! Network namespaces: opening one by path, and running code inside it.
//!
//! Code runs on a thread made for it that dies afterwards: a thread that has called `setns` is never given back
//! to anybody, so no failure can leave a thread of the caller in a container's namespace.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

/// What can go wrong with a namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("network namespace {path}: cannot open: {source}", path = path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("network namespace {path}: is not a namespace (nothing is mounted there)", path = path.display())]
    NotANamespace { path: PathBuf },
    #[error("network namespace {path}: cannot enter: {source}", path = path.display())]
    Enter { path: PathBuf, source: io::Error },
}

impl NetnsError {
    /// True when there is no such namespace (any more): the file is missing, or is a plain file that a namespace
    /// was once mounted on. DEL treats both as "nothing left to do inside".
    pub fn is_gone(&self) -> bool {
        match self {
            NetnsError::Open { source, .. } => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
                    // /proc/<pid>/ns/net of a process that just died
                    || source.raw_os_error() == Some(nix::libc::ESRCH)
            }
            NetnsError::NotANamespace { .. } => true,
            NetnsError::Enter { .. } => false,
        }
    }
}

impl Netns {
    /// Opens the namespace at `path` (`/run/netns/x`, `/proc/<pid>/ns/net`).
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let fail = |source| NetnsError::Open { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(fail)?;
        let kind = rustix::fs::fstatfs(&file).map_err(|e| fail(e.into()))?.f_type as u64;
        // linux/magic.h
        const NSFS_MAGIC: u64 = 0x6e73_6673;
        if kind != NSFS_MAGIC {
            return Err(NetnsError::NotANamespace { path: path.to_path_buf() });
        }
        Ok(Netns { file, path: path.to_path_buf() })
    }

    /// Whether the calling thread is in this namespace already.
    pub fn is_current(&self) -> bool {
        let same = || -> io::Result<bool> {
            let (a, b) = (self.file.metadata()?, std::fs::metadata("/proc/thread-self/ns/net")?);
            Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
        };
        same().unwrap_or(false)
    }

    /// Runs `f` inside the namespace, on a thread of its own, and waits for it.
    ///
    /// A panic in `f` goes on in the caller.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)
                    .map_err(|e| NetnsError::Enter { path: self.path.clone(), source: e.into() })?;
                Ok(f())
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
