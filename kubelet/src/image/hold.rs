//! Who keeps an image from being removed, and which images are being removed, so that the two never meet.
//!
//! The room's handle holds an image from the moment it says that it is here until the container is made; the garbage
//! collection asks before each removal. Both are one step under one lock, never held across an await.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Held and vanishing images, by any of their names.
#[derive(Debug, Default)]
pub struct Holds {
    state: Mutex<State>,
    /// Ticks when a removal has ended.
    ended: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<String, usize>,
    removing: HashSet<String>,
}

/// Keeps an image as long as it lives.
#[derive(Debug)]
pub struct Hold {
    holds: Arc<Holds>,
    names: Vec<String>,
}

/// A removal under way.
#[derive(Debug)]
pub struct Removing<'a> {
    holds: &'a Holds,
    names: &'a [String],
}

impl Holds {
    /// Holds an image by its names. `None` if it was being removed, once that is over: it must be looked for again.
    pub async fn hold(self: &Arc<Self>, names: Vec<String>) -> Option<Hold> {
        let mut ended = self.ended.subscribe();
        {
            let mut state = self.state();
            if !names.iter().any(|n| state.removing.contains(n)) {
                for name in &names {
                    *state.held.entry(name.clone()).or_default() += 1;
                }
                return Some(Hold { holds: self.clone(), names });
            }
        }
        while names.iter().any(|n| self.state().removing.contains(n)) {
            // The sender lives in `self`.
            let _ = ended.changed().await;
        }
        None
    }

    /// Begins a removal; `None` if the image is held by any of its names.
    pub fn begin_removal<'a>(&'a self, names: &'a [String]) -> Option<Removing<'a>> {
        let mut state = self.state();
        if names.iter().any(|n| state.held.contains_key(n)) {
            return None;
        }
        state.removing.extend(names.iter().cloned());
        Some(Removing { holds: self, names })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.holds.state();
        for name in &self.names {
            if let Some(count) = state.held.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    state.held.remove(name);
                }
            }
        }
    }
}

impl Drop for Removing<'_> {
    fn drop(&mut self) {
        {
            let mut state = self.holds.state();
            for name in self.names {
                state.removing.remove(name);
            }
        }
        self.holds.ended.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[tokio::test]
    async fn what_is_held_by_any_name_is_not_removed() {
        let holds = Arc::new(Holds::default());
        let (one, two) = (holds.hold(names(&["id", "a:1"])).await, holds.hold(names(&["a:1"])).await);
        let all = names(&["id", "a:1", "b:1"]);
        assert!(holds.begin_removal(&all).is_none());
        drop(one);
        assert!(holds.begin_removal(&all).is_none());
        drop(two);
        assert!(holds.begin_removal(&all).is_some());
        assert!(holds.state().held.is_empty() && holds.state().removing.is_empty());
    }

    #[tokio::test]
    async fn who_wants_what_is_being_removed_waits_and_looks_again() {
        let holds = Arc::new(Holds::default());
        let all = names(&["id", "a:1"]);
        let removing = holds.begin_removal(&all).unwrap();
        let waiting = tokio::spawn({
            let holds = holds.clone();
            async move { holds.hold(names(&["a:1"])).await.is_none() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(removing);
        assert!(waiting.await.unwrap());
        assert!(holds.hold(names(&["a:1"])).await.is_some());
    }
}
