//! One inotify instance for all followed logs: says that something happened in a directory, not what.
//!
//! Followers look for themselves after each tick, so ticks may be merged and none can be misread. One instance serves
//! everybody because the kernel grants a user only 128 of them (`fs.inotify.max_user_instances`).

use futures::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::watch;

/// Hands out ticks for directories. Cloning is cheap; the kernel's instance lives as long as a clone or a
/// [`Watch`] does.
#[derive(Clone, Debug)]
pub struct Watcher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    watches: Mutex<Watches>,
    dirs: Mutex<HashMap<WatchDescriptor, Dir>>,
    task: tokio::task::AbortHandle,
}

/// A directory somebody watches: its ticks, and how many [`Watch`]es there are of it.
#[derive(Debug, Default)]
struct Dir {
    ticks: watch::Sender<()>,
    watches: usize,
}

/// One directory under watch, until dropped.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    wd: WatchDescriptor,
    ticks: watch::Receiver<()>,
}

impl Watcher {
    /// Opens the instance and starts the task that reads it. Needs a tokio runtime.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let watches = Mutex::new(inotify.watches());
        let events = inotify.into_event_stream(vec![0; 4096])?;
        let shared = Arc::new_cyclic(|weak: &Weak<Shared>| Shared {
            watches,
            dirs: Mutex::default(),
            task: tokio::spawn(read(events, weak.clone())).abort_handle(),
        });
        Ok(Self(shared))
    }

    /// Watches `dir`: a write, its end, a creation, renaming or removal in it, or its own removal, gives a tick.
    pub fn watch(&self, dir: &Path) -> io::Result<Watch> {
        let mask = WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::MOVE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::ONLYDIR;
        // Both locks, in this order everywhere: between adding the watch and filing it nobody may remove it.
        let mut dirs = self.0.dirs.lock().unwrap_or_else(PoisonError::into_inner);
        let wd = self.0.watches.lock().unwrap_or_else(PoisonError::into_inner).add(dir, mask)?;
        let entry = dirs.entry(wd.clone()).or_default();
        entry.watches += 1;
        let ticks = entry.ticks.subscribe();
        Ok(Watch { shared: self.0.clone(), wd, ticks })
    }

    /// How many directories are under watch.
    pub fn directories(&self) -> usize {
        self.0.dirs.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Marks everything so far as seen. Call before looking, so that what happens while looking gives a tick.
    pub fn mark(&mut self) {
        self.ticks.mark_unchanged();
    }

    /// Waits for something to happen after [`Watch::mark`]. Cancel-safe. Gives false when the directory is gone and
    /// nothing can happen any more.
    pub async fn tick(&mut self) -> bool {
        self.ticks.changed().await.is_ok()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut dirs = self.shared.dirs.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing filed: the directory is gone, and its watch with it.
        let Some(dir) = dirs.get_mut(&self.wd) else { return };
        dir.watches -= 1;
        if dir.watches == 0 {
            dirs.remove(&self.wd);
            let mut watches = self.shared.watches.lock().unwrap_or_else(PoisonError::into_inner);
            // Fails when the directory went just now; then there is nothing to remove.
            let _ = watches.remove(self.wd.clone());
        }
    }
}

/// Reads events and ticks their directories until nobody is left.
async fn read(mut events: EventStream<Vec<u8>>, shared: Weak<Shared>) {
    while let Some(event) = events.next().await {
        let Some(shared) = shared.upgrade() else { return };
        let mut dirs = shared.dirs.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            // Something was lost: everybody looks.
            Ok(event) if event.mask.contains(EventMask::Q_OVERFLOW) => {
                dirs.values().for_each(|dir| dir.ticks.send_modify(|()| ()));
            }
            // The directory is gone: dropping the sender tells its followers.
            Ok(event) if event.mask.contains(EventMask::IGNORED) => {
                dirs.remove(&event.wd);
            }
            Ok(event) => {
                if let Some(dir) = dirs.get(&event.wd) {
                    dir.ticks.send_modify(|()| ());
                }
            }
            Err(error) => {
                tracing::error!(%error, "followed logs no longer notice changes");
                // Dropping the senders ends every wait rather than leaving it hanging.
                dirs.clear();
                return;
            }
        }
    }
}
