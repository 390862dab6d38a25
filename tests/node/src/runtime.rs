//! The container runtime that the tests of one process take turns at.
//!
//! An agent owns every pod of its runtime, so two agents never share one at a time: [`Turn`] is exclusive. A private
//! containerd is started by the first test and goes when no test holds or waits for it; a runtime named by
//! `CRI_SOCKET` is shared with other test processes by a file lock.

use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::OwnedMutexGuard;
use xtask::build::Profile;
use xtask::image::Image;
use xtask::plugins;
use xtask::runtime::{self, Network, Options, PrivateContainerd, TEST_BASE, UnderTest};

type Slot = Arc<tokio::sync::Mutex<Option<UnderTest>>>;

static SHARED: Mutex<Weak<tokio::sync::Mutex<Option<UnderTest>>>> = Mutex::new(Weak::new());

/// The runtime, for one test alone.
#[derive(Debug)]
pub struct Turn {
    guard: OwnedMutexGuard<Option<UnderTest>>,
    /// Other processes keep off a runtime that none of them owns.
    _alone: Option<Flock<File>>,
}

/// Waits for the runtime. The error is the reason of a skip: it cannot be had on this machine.
///
/// # Panics
/// When it can be had and does not start.
pub async fn turn() -> Result<Turn, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root".to_owned());
    }
    let slot = slot();
    let mut guard = slot.lock_owned().await;
    let given = std::env::var_os("CRI_SOCKET").is_some();
    let alone = if given { Some(blocking(lock_given).await?) } else { None };
    if guard.is_none() {
        let mut options = Options::from_env().map_err(|e| format!("{e:#}"))?;
        if !given {
            let (flavour, oci) = (options.flavour, options.oci);
            let had = blocking(move || runtime::find(flavour).and_then(|_| runtime::find_oci(oci, flavour)));
            had.await.map_err(|e| format!("{e:#}"))?;
            options.images = vec![Image::Pause, Image::Demo, Image::Entrypoint, Image::UserNamed];
            let plugins = blocking(|| plugins::ours(Profile::Dev)).await.expect("our CNI plugins are built");
            options.network = Network::Bridge { plugins };
        }
        *guard = Some(runtime::under_test(options).await.expect("the runtime starts"));
    }
    Ok(Turn { guard, _alone: alone })
}

fn slot() -> Slot {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let fresh = Slot::default();
        *shared = Arc::downgrade(&fresh);
        fresh
    })
}

fn lock_given() -> Result<Flock<File>, String> {
    std::fs::create_dir_all(TEST_BASE).map_err(|e| format!("{TEST_BASE}: {e}"))?;
    let file = File::create(Path::new(TEST_BASE).join(".given")).map_err(|e| e.to_string())?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.to_string())
}

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the blocking work does not panic")
}

impl Turn {
    /// Where CRI is served.
    pub fn socket(&self) -> PathBuf {
        self.guard.as_ref().expect("there from start to discard").socket()
    }

    /// Ours, when it is ours.
    pub fn private(&self) -> Option<&PrivateContainerd> {
        match self.guard.as_ref() {
            Some(UnderTest::Private(ours)) => Some(ours),
            _ => None,
        }
    }

    /// Ours, to kill and restart.
    pub fn private_mut(&mut self) -> Option<&mut PrivateContainerd> {
        match self.guard.as_mut() {
            Some(UnderTest::Private(ours)) => Some(ours),
            _ => None,
        }
    }

    /// Ends a private runtime with everything in it; the next test starts another. Blocking.
    pub fn discard(&mut self) {
        if self.private().is_some() {
            *self.guard = None;
        }
    }
}
