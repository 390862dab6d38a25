//! What something of the pod waits for, objects or the network: it is tried again when that changes, not only after a while.
//!
//! The actor puts in what a failed step says, and selects on [`Wants::changed`].

use super::steps::Failure;
use crate::network::Network;
use crate::objects::{Known, Objects};
use std::collections::HashMap;

/// What was missing when something failed, by what that was: a container, or the pod as a whole.
#[derive(Debug, Default)]
pub struct Wants(HashMap<String, Want>);

#[derive(Debug)]
struct Want {
    /// As they were found.
    objects: Vec<Known>,
    network: bool,
}

impl Wants {
    /// `name` failed so.
    pub fn put(&mut self, name: &str, failure: &Failure) {
        let want = Want { objects: failure.waits_for.clone(), network: failure.waits_for_network };
        if want.objects.is_empty() && !want.network {
            self.0.remove(name);
        } else {
            self.0.insert(name.to_owned(), want);
        }
    }

    /// `name` waits for nothing any more.
    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Resolves with what it is worth trying again. Cancel-safe.
    pub async fn changed(&self, objects: &Objects, network: &Network) -> String {
        let each = self.0.iter().map(|(name, want)| {
            Box::pin(async move {
                tokio::select! {
                    () = objects.changed(&want.objects) => {}
                    () = network.until_ready(), if want.network => {}
                }
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
