//! Exec credential providers (KEP-2133): plugins that are asked for credentials when an image of theirs is pulled.
//!
//! Several pulls that ask the same at once share one call. Answers are kept as long, and for as much, as they say. A
//! plugin that fails gives no credentials; the log and the metrics tell, and the pull goes on with what else there is.

mod config;
mod exec;

pub use config::{ProviderConfig, ProviderConfigError, ProvidersConfig};

use super::Credential;
use super::keyring::{Keyring, matches};
use crate::metrics::Metrics;
use exec::{Answer, CacheKeyType};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, join_all};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// All plugins.
#[derive(Debug, Default)]
pub struct Providers {
    all: Vec<Arc<Provider>>,
}

impl Providers {
    pub fn new(config: ProvidersConfig, metrics: Metrics) -> Self {
        let provider = |config| Arc::new(Provider::new(config, metrics.clone()));
        Self { all: config.providers.into_iter().map(provider).collect() }
    }

    /// What the plugins for `repository` answer, in the order of their configuration; they are asked at once.
    pub async fn for_image(&self, repository: &str) -> Vec<Credential> {
        let fits = |p: &&Arc<Provider>| p.config.match_images.iter().any(|place| matches(place, repository));
        let asked = self.all.iter().filter(fits).map(|p| p.keyring(repository));
        join_all(asked).await.iter().flat_map(|ring| ring.lookup(repository)).collect()
    }
}

type Ongoing = Shared<BoxFuture<'static, Arc<Keyring>>>;

/// One plugin with its answers.
#[derive(Debug)]
struct Provider {
    config: ProviderConfig,
    metrics: Metrics,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    cache: Cache,
    /// By image.
    ongoing: HashMap<String, Ongoing>,
}

impl Provider {
    fn new(config: ProviderConfig, metrics: Metrics) -> Self {
        Self { config, metrics, state: Mutex::default() }
    }

    async fn keyring(self: &Arc<Self>, image: &str) -> Arc<Keyring> {
        let ongoing = {
            let mut state = self.state();
            if let Some(ring) = state.cache.get(image, Instant::now()) {
                return ring;
            }
            match state.ongoing.get(image) {
                Some(ongoing) => ongoing.clone(),
                None => {
                    // A task: it goes on when the pull that asked is given up, as others may wait for it.
                    let task = tokio::spawn(self.clone().ask(image.to_owned()));
                    let ongoing = task.map(|ring| ring.unwrap_or_default()).boxed().shared();
                    state.ongoing.insert(image.to_owned(), ongoing.clone());
                    ongoing
                }
            }
        };
        ongoing.await
    }

    async fn ask(self: Arc<Self>, image: String) -> Arc<Keyring> {
        let _listed = Listed { provider: &self, image: &image };
        let start = Instant::now();
        let answer = exec::ask(&self.config, &image).await;
        let name = self.config.name.as_str();
        self.metrics.credential_provider_duration.with([name]).observe_duration(start.elapsed());
        match answer {
            Ok(answer) => self.keep(&image, answer),
            Err(error) => {
                self.metrics.credential_provider_errors.with([name]).inc();
                tracing::warn!(plugin = name, image, error, "credential provider failed");
                Arc::default()
            }
        }
    }

    fn keep(&self, image: &str, answer: Answer) -> Arc<Keyring> {
        let mut ring = Keyring::default();
        for (place, credential) in answer.auth {
            if let Err(why) = ring.add(&place, credential) {
                tracing::warn!(plugin = self.config.name, image, place, why, "credential left out");
            }
        }
        let ring = Arc::new(ring);
        let held = answer.held.unwrap_or(self.config.default_cache_duration);
        self.state().cache.put(image, answer.key_type, held, ring.clone(), Instant::now());
        ring
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a call off the table however it ends.
struct Listed<'a> {
    provider: &'a Provider,
    image: &'a str,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.provider.state().ongoing.remove(self.image);
    }
}

/// Answers that hold still. Pure.
#[derive(Debug, Default)]
struct Cache {
    kept: HashMap<(CacheKeyType, String), (Option<Instant>, Arc<Keyring>)>,
}

impl Cache {
    /// The most particular answer for `image`.
    fn get(&self, image: &str, now: Instant) -> Option<Arc<Keyring>> {
        [CacheKeyType::Image, CacheKeyType::Registry, CacheKeyType::Global].into_iter().find_map(|kind| {
            let (until, ring) = self.kept.get(&(kind, key(kind, image)))?;
            until.is_none_or(|until| now <= until).then(|| ring.clone())
        })
    }

    fn put(&mut self, image: &str, kind: CacheKeyType, held: Duration, ring: Arc<Keyring>, now: Instant) {
        self.kept.retain(|_, (until, _)| until.is_none_or(|until| now <= until));
        if !held.is_zero() && self.kept.len() < MAX_KEPT {
            // A time past all clocks is for ever.
            self.kept.insert((kind, key(kind, image)), (now.checked_add(held), ring));
        }
    }
}

/// More answers than images on a node are not worth their memory.
const MAX_KEPT: usize = 4096;

fn key(kind: CacheKeyType, image: &str) -> String {
    match kind {
        CacheKeyType::Image => image.to_owned(),
        CacheKeyType::Registry => image.split('/').next().unwrap_or_default().to_owned(),
        CacheKeyType::Global => String::new(),
    }
}

#[cfg(test)]
mod tests;
