//! Pulls under way: one task each, shared by everybody who waits for the same image, as many at once as configured.
//!
//! Called by the room's handle only. A pull belongs to nobody: when those who wait for it leave, it goes on, and who
//! comes back finds it under way or done. What it begins and brings is recorded here, so that it is recorded whoever is
//! left. Never retries; that is the back-off's business.

use super::credential::{Source, Tracked};
use super::record::Records;
use super::runtime::ImageRuntime;
use crate::gotext;
use crate::trace;
use cri::v1::{ImageSpec, PodSandboxConfig};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

/// How pulls are bounded.
#[derive(Clone, Copy, Debug)]
pub struct PullConfig {
    /// `serializeImagePulls`: one at a time.
    pub serialize: bool,
    /// `maxParallelImagePulls` where pulls are not serialized; `None` for no bound.
    pub max_parallel: Option<usize>,
    /// `registryPullQPS`; 0 for no bound.
    pub registry_qps: u32,
    /// `registryBurst`: pulls that may start at once.
    pub registry_burst: u32,
}

impl Default for PullConfig {
    /// The configuration's defaults.
    fn default() -> Self {
        Self { serialize: true, max_parallel: None, registry_qps: 5, registry_burst: 10 }
    }
}

/// A pull that worked.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The runtime's reference.
    pub image_ref: String,
    /// Without the wait for its turn.
    pub took: Duration,
}

/// The runtime's message, or why it was not asked.
pub type PullResult = Result<Pulled, String>;
type Ongoing = Shared<BoxFuture<'static, PullResult>>;
/// Image as its pod's author wrote it, runtime handler and credentials: the same image may be laid out apart for each
/// handler, and what one may pull says nothing about another.
type Key = (String, String, Vec<Tracked>);

/// Every pull under way.
#[derive(Debug)]
pub struct Pulls {
    runtime: Arc<dyn ImageRuntime>,
    turns: Option<Arc<Semaphore>>,
    rate: Mutex<Rate>,
    ongoing: Mutex<HashMap<Key, Ongoing>>,
    records: Option<Arc<Records>>,
    /// Told when a pull has ended: there is less room on the disk, whatever came of it.
    ended: Arc<Notify>,
}

impl Pulls {
    pub fn new(
        runtime: Arc<dyn ImageRuntime>,
        config: PullConfig,
        records: Option<Arc<Records>>,
        ended: Arc<Notify>,
    ) -> Self {
        let at_once = if config.serialize { Some(1) } else { config.max_parallel };
        Self {
            runtime,
            turns: at_once.map(|n| Arc::new(Semaphore::new(n.clamp(1, Semaphore::MAX_PERMITS)))),
            rate: Mutex::new(Rate::new(config, Instant::now())),
            ongoing: Mutex::default(),
            records,
            ended,
        }
    }

    /// Joins the pull of this image, called `written` by its pod's author, for this handler with these credentials, or starts
    /// it. They are tried in order; without any the pull is anonymous. Dropping the future leaves the pull alone.
    pub async fn pull(
        self: &Arc<Self>,
        image: ImageSpec,
        written: &str,
        handler: &str,
        credentials: Vec<Tracked>,
        sandbox: PodSandboxConfig,
    ) -> PullResult {
        let key = (written.to_owned(), handler.to_owned(), credentials);
        let ongoing = {
            let mut table = self.ongoing.lock().unwrap_or_else(PoisonError::into_inner);
            match table.get(&key) {
                Some(ongoing) => ongoing.clone(),
                None => {
                    let task = tokio::spawn(trace::within(
                        trace::carry(),
                        self.clone().run(key.clone(), image, sandbox),
                    ));
                    let done = task.map(|r| r.unwrap_or_else(|e| Err(format!("the pull was lost: {e}"))));
                    let ongoing = done.boxed().shared();
                    table.insert(key, ongoing.clone());
                    ongoing
                }
            }
        };
        ongoing.await
    }

    async fn run(self: Arc<Self>, key: Key, image: ImageSpec, sandbox: PodSandboxConfig) -> PullResult {
        let listed = Listed { pulls: &self, key };
        let (written, _, credentials) = &listed.key;
        let Some(records) = &self.records else {
            return self.try_each(&image, credentials, &sandbox).await.map(|(pulled, _)| pulled);
        };
        records.pull_begins(written).map_err(|e| {
            format!("Failed to record image pull intent for container image {written:?}: {e}")
        })?;
        match self.try_each(&image, credentials, &sandbox).await {
            Ok((pulled, used)) => {
                let id = self.id_of(&image, &pulled.image_ref).await;
                let hash = used.map(|t| t.credential.hash()).unwrap_or_default();
                records.pulled(written, &id, used.map_or(&Source::Node, |t| &t.source), &hash);
                Ok(pulled)
            }
            Err(e) => {
                records.pull_failed(written);
                Err(e)
            }
        }
    }

    /// The id by which the image is found again: most runtimes answer it, some a digest.
    async fn id_of(&self, image: &ImageSpec, image_ref: &str) -> String {
        let hex = image_ref.strip_prefix("sha256:").unwrap_or(image_ref);
        if hex.len() == image_ref.len() && hex.len() != 64 {
            let found = self.runtime.image_status(image.clone()).await.ok().flatten();
            return found.map_or_else(|| image_ref.to_owned(), |i| i.id);
        }
        image_ref.to_owned()
    }

    /// The first that works, and the credential that it took.
    async fn try_each<'c>(
        &self,
        image: &ImageSpec,
        credentials: &'c [Tracked],
        sandbox: &PodSandboxConfig,
    ) -> Result<(Pulled, Option<&'c Tracked>), String> {
        let _turn = match &self.turns {
            Some(turns) => Some(turns.acquire().await.map_err(|e| e.to_string())?),
            None => None,
        };
        if !self.rate.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()) {
            return Err("pull QPS exceeded".to_owned());
        }
        let start = Instant::now();
        let shown: Vec<_> = match credentials.is_empty() {
            true => vec![None],
            false => credentials.iter().map(Some).collect(),
        };
        let mut failures = Vec::new();
        for tracked in shown {
            let auth = tracked.map(|t| t.credential.auth());
            match self.runtime.pull_image(image.clone(), auth, sandbox.clone()).await {
                Ok(image_ref) => return Ok((Pulled { image_ref, took: start.elapsed() }, tracked)),
                Err(e) => failures.push(e.message),
            }
        }
        Err(gotext::aggregate(failures))
    }
}

/// Takes the pull off the table however its task ends; later callers start anew.
struct Listed<'a> {
    pulls: &'a Pulls,
    key: Key,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.pulls.ongoing.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        self.pulls.ended.notify_one();
    }
}

/// A token bucket: `burst` at once, refilled at `per_second`.
#[derive(Debug)]
struct Rate {
    per_second: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl Rate {
    fn new(config: PullConfig, now: Instant) -> Self {
        let burst = f64::from(config.registry_burst.max(1));
        Self { per_second: f64::from(config.registry_qps), burst, tokens: burst, at: now }
    }

    /// Whether one more may start now.
    fn take(&mut self, now: Instant) -> bool {
        if self.per_second == 0.0 {
            return true;
        }
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * self.per_second;
        self.tokens = (self.tokens + gained).min(self.burst);
        self.at = now;
        let free = self.tokens >= 1.0;
        if free {
            self.tokens -= 1.0;
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_then_the_rate_holds() {
        let config = PullConfig { registry_qps: 5, registry_burst: 3, ..PullConfig::default() };
        let now = Instant::now();
        let mut rate = Rate::new(config, now);
        assert_eq!((0..5).filter(|_| rate.take(now)).count(), 3);
        let later = now + Duration::from_millis(201);
        assert!(rate.take(later) && !rate.take(later));
        assert_eq!(
            (0..9).filter(|_| rate.take(now + Duration::from_secs(60))).count(),
            3,
            "no more than a burst"
        );
        let mut free = Rate::new(PullConfig { registry_qps: 0, ..config }, now);
        assert!((0..100).all(|_| free.take(now)));
    }
}
