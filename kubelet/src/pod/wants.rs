//! Objects that something of the pod waits for: it is tried again when one of them changes, not only after a while.
//!
//! The actor puts in what a failed step says, and selects on [`Wants::changed`].

use crate::objects::{Known, Objects};
use std::collections::HashMap;

/// What was found of objects when something failed, by what that was: a container, or the pod as a whole.
#[derive(Debug, Default)]
pub struct Wants(HashMap<String, Vec<Known>>);

impl Wants {
    /// `name` failed with the objects as they were.
    pub fn put(&mut self, name: &str, known: Vec<Known>) {
        if known.is_empty() {
            self.0.remove(name);
        } else {
            self.0.insert(name.to_owned(), known);
        }
    }

    /// `name` waits for nothing any more.
    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Resolves with what it is worth trying again. Cancel-safe.
    pub async fn changed(&self, objects: &Objects) -> String {
        let each = self.0.iter().map(|(name, known)| {
            Box::pin(async move {
                objects.changed(known).await;
                name.clone()
            })
        });
        let each: Vec<_> = each.collect();
        if each.is_empty() {
            return std::future::pending().await;
        }
        futures::future::select_all(each).await.0
    }
}
