//! Removal of images that nobody uses, when their filesystem is full or they are old.
//!
//! One task ([`Gc::run`]) looks after each pull and at a slow interval as a net. What it would remove it asks the
//! runtime about once more, mounts and sandboxes included, and an image that a container is about to be made from is held
//! ([`super::hold`]): a pod never finds that what it was just told is here is gone.

pub mod policy;

use super::hold::Holds;
use super::record::Records as PullRecords;
use super::runtime::ImageRuntime;
use crate::event::{Event, Kind, Recorder};
use crate::metrics::Metrics;
use policy::{Candidate, Freeing, GcConfig, Records};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;
use tokio::time::Instant;

/// What the task and the room's handle share.
#[derive(Debug)]
pub struct Gc {
    runtime: Arc<dyn ImageRuntime>,
    records: Mutex<Records>,
    holds: Arc<Holds>,
    /// Records of what was pulled go with the images.
    pulled: Option<Arc<PullRecords>>,
    /// A pull has ended: the filesystem may have filled.
    grown: Arc<Notify>,
    recorder: Recorder,
    metrics: Metrics,
}

/// Why a round did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    #[error(transparent)]
    Runtime(#[from] cri::Error),
    #[error(transparent)]
    Capacity(#[from] policy::NoCapacity),
    #[error("{0}")]
    Full(String),
    #[error(
        "wanted to free {wanted} bytes, but freed {freed} bytes space with errors in image deletion: {errors}"
    )]
    Removal { wanted: u64, freed: u64, errors: String },
    #[error(
        "wanted to remove all unused images, but freed {freed} bytes space with errors in image deletion: {errors}"
    )]
    Unused { freed: u64, errors: String },
}

impl Gc {
    pub fn new(
        runtime: Arc<dyn ImageRuntime>,
        holds: Arc<Holds>,
        pulled: Option<Arc<PullRecords>>,
        grown: Arc<Notify>,
        recorder: Recorder,
        metrics: Metrics,
    ) -> Self {
        let records = Mutex::new(Records::new(Instant::now()));
        Self { runtime, records, holds, pulled, grown, recorder, metrics }
    }

    /// An image is used from now on.
    pub fn touch(&self, id: &str) {
        self.records().touch(id, Instant::now());
    }

    /// Looks for ever. The first look only takes down what is there: after a start of the node nothing is used yet that
    /// its pods are about to need.
    pub async fn run(self: Arc<Self>, config: GcConfig) {
        let mut failed = false;
        if let Err(error) = self.first_look().await {
            tracing::warn!(%error, "cannot see the images yet");
        }
        loop {
            tokio::select! {
                () = tokio::time::sleep(config.net) => {}
                // What could not be done a moment ago is not tried again for each pull.
                () = self.grown.notified(), if !failed => {}
            }
            match self.round(&config).await {
                Ok(()) => failed = false,
                Err(error) => {
                    tracing::warn!(%error, "image garbage collection failed");
                    // Once may be a runtime that has just started.
                    if failed {
                        self.event("ImageGCFailed", error.to_string());
                    }
                    failed = true;
                }
            }
        }
    }

    /// Removes every image that nobody uses and that is old enough, whatever the thresholds: the disk is full.
    pub async fn remove_unused(&self, config: &GcConfig) -> Result<(), GcError> {
        let now = Instant::now();
        let images = self.runtime.list_images().await?;
        let used = self.runtime.images_in_use(true).await?;
        let candidates = self.records().look(&images, &used, now);
        let mut freeing = Freeing::new(candidates, u64::MAX, config, now);
        let mut errors = Vec::new();
        while let Some(candidate) = freeing.next() {
            if self.remove(&candidate, "space", &mut errors).await {
                freeing.removed(candidate.size);
            }
        }
        if errors.is_empty() {
            return Ok(());
        }
        Err(GcError::Unused { freed: freeing.freed, errors: errors.join(", ") })
    }

    async fn first_look(&self) -> Result<(), GcError> {
        let images = self.runtime.list_images().await?;
        let used = self.runtime.images_in_use(false).await?;
        self.records().look(&images, &used, Instant::now());
        Ok(())
    }

    async fn round(&self, config: &GcConfig) -> Result<(), GcError> {
        let now = Instant::now();
        if let Some(pulled) = &self.pulled {
            pulled.begin_round();
        }
        let images = self.runtime.list_images().await?;
        if let Some(pulled) = &self.pulled {
            pulled.prune(images.iter().map(|i| i.id.as_str()));
        }
        let used = self.runtime.images_in_use(false).await?;
        let mut candidates = self.records().look(&images, &used, now);
        let mut old = self.records().take_old(&mut candidates, config, now);
        let usage = self.runtime.image_fs().await?;
        let wanted =
            usage.to_free(config).inspect_err(|e| self.event("InvalidDiskCapacity", e.to_string()))?;
        if old.is_empty() && wanted.is_none() {
            return Ok(());
        }
        // Something is to go: ask about all that may keep it.
        let used = self.runtime.images_in_use(true).await?;
        let free = |c: &Candidate| !c.names.iter().any(|name| used.contains(name));
        candidates.retain(free);
        old.retain(free);
        let mut errors = Vec::new();
        for candidate in old {
            self.remove(&candidate, "age", &mut errors).await;
        }
        let (percent, capacity) = (usage.percent()?, usage.capacity);
        let wanted = wanted.unwrap_or(0);
        if wanted > 0 {
            tracing::info!(
                percent,
                high = config.high_percent,
                wanted,
                "the image filesystem is full: removing unused images"
            );
        }
        let mut freeing = Freeing::new(candidates, wanted, config, now);
        while let Some(candidate) = freeing.next() {
            if self.remove(&candidate, "space", &mut errors).await {
                freeing.removed(candidate.size);
            }
        }
        let freed = freeing.freed;
        if !errors.is_empty() {
            return Err(GcError::Removal { wanted, freed, errors: errors.join(", ") });
        }
        if !freeing.enough() {
            let message = policy::not_enough(percent, capacity, freed);
            self.event("FreeDiskSpaceFailed", message.clone());
            return Err(GcError::Full(message));
        }
        Ok(())
    }

    /// Whether it is gone. One that is held by now stays.
    async fn remove(&self, candidate: &Candidate, reason: &str, errors: &mut Vec<String>) -> bool {
        let Some(_removing) = self.holds.begin_removal(&candidate.names) else { return false };
        match self.runtime.remove_image(&candidate.id).await {
            Ok(()) => {
                if let Some(pulled) = &self.pulled {
                    pulled.forget(&candidate.id);
                }
                tracing::info!(image = candidate.id, names = ?candidate.names, bytes = candidate.size, reason, "removed an unused image");
                self.metrics.image_garbage_collected.with([reason]).inc();
                true
            }
            Err(error) => {
                errors.push(error.message);
                false
            }
        }
    }

    fn records(&self) -> std::sync::MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn event(&self, reason: &'static str, message: String) {
        let (kind, reason) = (Kind::Warning, reason.into());
        self.recorder.record(Event {
            pod: None,
            field_path: None,
            kind,
            reason,
            message,
            annotations: Default::default(),
        });
    }
}

#[cfg(test)]
mod tests;
