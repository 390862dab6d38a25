//! The objects there are, and a channel for each that somebody asks for.
//!
//! A source's task is the only writer. A change wakes exactly those who hold the object's channel. What nobody asks for
//! and is not there takes no room.

use super::{Key, Object, Source, State};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// The objects of one source.
#[derive(Debug, Default)]
pub struct Shelf(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    states: HashMap<Key, watch::Sender<State>>,
    /// Everything has been told once: what has no entry is not there.
    synced: bool,
    /// Of the last content, of whatever object.
    version: u64,
}

impl Shelf {
    /// Takes changes in: objects that are there now, or no more. All of them are there before the first one who waits
    /// can look.
    pub fn set(&self, changes: impl IntoIterator<Item = (Key, Option<Arc<Object>>)>) {
        let mut inner = self.lock();
        for (key, object) in changes {
            inner.version += 1;
            let version = if object.is_some() { inner.version } else { 0 };
            inner.entry(&key).send_modify(|s| *s = State { version, object: Some(object) });
        }
        // Nobody can come to ask while the lock is held.
        inner.states.retain(|_, tx| tx.receiver_count() > 0 || !matches!(tx.borrow().object, Some(None)));
    }

    /// Everything has been told once: whatever is not there yet is not there.
    pub fn synced(&self) {
        let mut inner = self.lock();
        inner.synced = true;
        for tx in inner.states.values() {
            tx.send_if_modified(|s| s.object.is_none() && s.object.insert(None).is_none());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // Every entry is whole at all times, so a panic elsewhere spoils nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// What is told about `key`.
    fn entry(&mut self, key: &Key) -> &mut watch::Sender<State> {
        let object = self.synced.then_some(None);
        self.states.entry(key.clone()).or_insert_with(|| watch::Sender::new(State { version: 0, object }))
    }
}

impl Source for Shelf {
    fn subscribe(&self, key: &Key) -> watch::Receiver<State> {
        self.lock().entry(key).subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Objects};
    use super::*;
    use std::collections::BTreeMap;

    fn key(name: &str) -> Key {
        Key::new(Kind::Secret, "ns", name)
    }

    fn object(name: &str) -> Arc<Object> {
        let (data, binary) = (BTreeMap::new(), BTreeMap::new());
        let (type_, uid) = (String::new(), String::new());
        Arc::new(Object { key: key(name), data, binary, type_, immutable: false, uid })
    }

    #[test]
    fn what_nobody_asks_for_and_is_not_there_takes_no_room() {
        let shelf = Shelf::default();
        shelf.synced();
        for i in 0..100 {
            drop(shelf.subscribe(&key(&format!("n{i}"))));
        }
        let kept = shelf.subscribe(&key("kept"));
        shelf.set([(key("here"), Some(object("here")))]);
        assert_eq!(shelf.lock().states.len(), 2);
        drop(kept);
    }

    #[tokio::test]
    async fn a_change_between_looking_and_waiting_is_not_missed() {
        let shelf = Arc::new(Shelf::default());
        let objects = Objects::new(shelf.clone());
        shelf.synced();
        let seen = objects.get(&key("a")).await;
        assert!(seen.object.is_none());
        // Its entry goes, and a new one comes.
        shelf.set([]);
        shelf.set([(key("a"), Some(object("a")))]);
        objects.changed(&[(key("b"), 0), (key("a"), seen.version)]).await;
        let seen = objects.get(&key("a")).await;
        assert!(seen.object.is_some());
        let known = [(key("a"), seen.version)];
        let waits = objects.changed(&known);
        tokio::pin!(waits);
        // Others' changes wake nobody.
        shelf.set([(key("c"), Some(object("c")))]);
        assert!(futures::poll!(&mut waits).is_pending());
        shelf.set([(key("a"), None)]);
        waits.await;
    }

    #[tokio::test]
    async fn what_is_not_known_yet_is_waited_for() {
        let shelf = Arc::new(Shelf::default());
        let objects = Objects::new(shelf.clone());
        let (here, absent) = (key("here"), key("absent"));
        let (a, b) = (objects.get(&here), objects.get(&absent));
        tokio::pin!(a, b);
        assert!(futures::poll!(&mut a).is_pending() && futures::poll!(&mut b).is_pending());
        shelf.set([(here.clone(), Some(object("here")))]);
        assert!(a.await.object.is_some());
        assert!(futures::poll!(&mut b).is_pending(), "the rest may still come");
        shelf.synced();
        assert!(b.await.object.is_none());
    }
}
