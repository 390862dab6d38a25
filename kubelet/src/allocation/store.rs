//! A [`Store`]: the allocations of all pods in memory, and a task that keeps a file the same.
//!
//! Changes are gathered for a moment before they are written, so that the start of many pods costs few writes and waits
//! for none. Who must not go on before a change is on the disk [flushes](Store::flush).

use super::Allocation;
use super::checkpoint::{self, Entries};
use crate::api::PodUid;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// How long changes are gathered.
const GATHER: Duration = Duration::from_secs(1);
/// How long a write that failed rests.
const RETRY: Duration = Duration::from_secs(10);

/// The handle. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    now: Mutex<Now>,
    changed: Notify,
    urgent: Notify,
    tries: watch::Sender<Tries>,
}

#[derive(Debug, Default)]
struct Now {
    entries: Entries,
    /// Grows with every change.
    version: u64,
}

/// How the writes went.
#[derive(Clone, Debug, Default)]
struct Tries {
    /// What is on the disk.
    written: u64,
    /// What was last tried, how many there were, and why the last one failed.
    tried: u64,
    count: u64,
    error: Option<String>,
}

impl Store {
    /// Reads the file `name` in `dir`. One that cannot be used is told of, put aside, and as good as none. What comes
    /// back beside the store is to be run as a task; without it nothing is written.
    pub fn open(dir: &Path, name: &str) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let path = dir.join(name);
        let entries = checkpoint::read(&path).unwrap_or_else(|error| {
            let aside = checkpoint::set_aside(&path).map(|p| p.display().to_string());
            let aside = aside.unwrap_or_else(|e| format!("nowhere: {e}"));
            tracing::warn!(%error, aside, "what pods were given is found out anew from what runs");
            Entries::new()
        });
        let store = Self(Arc::new(Inner {
            path,
            now: Mutex::new(Now { entries, version: 0 }),
            changed: Notify::new(),
            urgent: Notify::new(),
            tries: watch::Sender::default(),
        }));
        (store.clone(), store.keep())
    }

    /// What is kept of `uid`.
    pub fn get(&self, uid: &PodUid) -> Option<Allocation> {
        self.lock().entries.get(uid.as_str()).cloned()
    }

    /// Keeps `allocation` for `uid`.
    pub fn put(&self, uid: &PodUid, allocation: Allocation) {
        let mut now = self.lock();
        if now.entries.get(uid.as_str()) != Some(&allocation) {
            now.entries.insert(uid.to_string(), allocation);
            self.touch(&mut now);
        }
    }

    /// Forgets a pod that is gone.
    pub fn remove(&self, uid: &PodUid) {
        let mut now = self.lock();
        if now.entries.remove(uid.as_str()).is_some() {
            self.touch(&mut now);
        }
    }

    /// Forgets every pod but those.
    pub fn retain(&self, wanted: impl Fn(&str) -> bool) {
        let mut now = self.lock();
        let before = now.entries.len();
        now.entries.retain(|uid, _| wanted(uid));
        if now.entries.len() != before {
            self.touch(&mut now);
        }
    }

    /// Waits until everything that was put by now is on the disk.
    ///
    /// # Errors
    /// It could not be written: which file, and why. It goes on being tried.
    pub async fn flush(&self) -> Result<(), String> {
        let version = self.lock().version;
        let mut tries = self.0.tries.subscribe();
        let begun = tries.borrow_and_update().clone();
        if begun.written >= version {
            return Ok(());
        }
        self.0.urgent.notify_one();
        let over = |t: &Tries| t.written >= version || (t.tried >= version && t.count > begun.count);
        let stopping = || "the agent is stopping".to_owned();
        let after = tries.wait_for(over).await.map_err(|_| stopping())?.clone();
        if after.written >= version { Ok(()) } else { Err(after.error.unwrap_or_else(stopping)) }
    }

    fn touch(&self, now: &mut Now) {
        now.version += 1;
        self.0.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        // Every entry is whole at all times, so a panic elsewhere spoils nothing.
        self.0.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The task: writes whenever something differs from what is on the disk.
    async fn keep(self) {
        let mut last = Vec::new();
        loop {
            while self.lock().version == self.0.tries.borrow().written {
                self.0.changed.notified().await;
            }
            let pause = if self.0.tries.borrow().error.is_some() { RETRY } else { GATHER };
            tokio::select! {
                () = self.0.urgent.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
            let (version, entries) = {
                let now = self.lock();
                (now.version, now.entries.clone())
            };
            let (path, before) = (self.0.path.clone(), std::mem::take(&mut last));
            let written = tokio::task::spawn_blocking(move || {
                let bytes = checkpoint::encode(&entries).map_err(|e| (before.clone(), e.to_string()))?;
                if bytes != before {
                    let told =
                        |e: std::io::Error| (Vec::new(), format!("cannot write {}: {e}", path.display()));
                    checkpoint::write(&path, &bytes).map_err(told)?;
                }
                Ok::<_, (Vec<u8>, String)>(bytes)
            });
            let result = written.await.unwrap_or_else(|e| Err((Vec::new(), e.to_string())));
            let error = match result {
                Ok(bytes) => {
                    last = bytes;
                    None
                }
                Err((bytes, error)) => {
                    tracing::warn!(error, "what pods were given is not on the disk");
                    last = bytes;
                    Some(error)
                }
            };
            self.0.tries.send_modify(|t| {
                (t.tried, t.count) = (version, t.count + 1);
                if error.is_none() {
                    t.written = version;
                }
                t.error = error;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    fn some(cpu: &str) -> Allocation {
        let of = serde_json::json!({"ContainerResources": {"c": {"requests": {"cpu": cpu}}}});
        serde_json::from_value(of).unwrap()
    }

    fn started(dir: &Path) -> Store {
        let (store, task) = Store::open(dir, "state");
        tokio::spawn(task);
        store
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_put_is_there_for_the_next_incarnation() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b, c) = (PodUid::new("a"), PodUid::new("b"), PodUid::new("c"));
        let store = started(dir.path());
        store.put(&a, some("1"));
        store.put(&b, some("2"));
        store.put(&c, some("3"));
        store.remove(&b);
        store.retain(|uid| uid != "c");
        store.flush().await.unwrap();
        let next = started(dir.path());
        assert_eq!((next.get(&a), next.get(&b), next.get(&c)), (Some(some("1")), None, None));
        next.flush().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_the_disk_who_did_not_ask_to() {
        let dir = tempfile::tempdir().unwrap();
        let store = started(dir.path());
        let began = Instant::now();
        for n in 0..100 {
            store.put(&PodUid::new(&n.to_string()), some("1"));
        }
        assert!(!dir.path().join("state").exists());
        store.flush().await.unwrap();
        assert!(began.elapsed() < GATHER, "who asks waits for no gathering");
        store.put(&PodUid::new("x"), some("1"));
        tokio::time::sleep(2 * GATHER).await;
        let tries = store.0.tries.borrow().clone();
        assert_eq!((tries.count, tries.written), (2, 101), "it is written without anybody's asking");
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_takes_nothing_is_told_and_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let within = dir.path().join("gone");
        let store = started(&within);
        store.put(&PodUid::new("a"), some("1"));
        let error = store.flush().await.unwrap_err();
        assert!(error.contains("gone/state"), "{error}");
        assert_eq!(store.get(&PodUid::new("a")), Some(some("1")));
        std::fs::create_dir(&within).unwrap();
        store.flush().await.unwrap();
        assert!(within.join("state").exists());
    }

    #[tokio::test(start_paused = true)]
    async fn a_spoiled_file_is_put_aside_and_nothing_is_believed_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = started(dir.path());
        store.put(&PodUid::new("a"), some("1"));
        store.flush().await.unwrap();
        let path = dir.path().join("state");
        let spoiled = std::fs::read_to_string(&path).unwrap().replace("\\\"1\\\"", "\\\"9\\\"");
        std::fs::write(&path, &spoiled).unwrap();
        let store = started(dir.path());
        assert_eq!(store.get(&PodUid::new("a")), None);
        assert_eq!(std::fs::read_to_string(dir.path().join("state.corrupt")).unwrap(), spoiled);
        store.put(&PodUid::new("a"), some("2"));
        store.flush().await.unwrap();
        assert_eq!(started(dir.path()).get(&PodUid::new("a")), Some(some("2")));
    }
}
