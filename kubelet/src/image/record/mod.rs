//! Who may use an image that is here: records of what was pulled with whose credentials (KEP-2535).
//!
//! The room's handle asks before it gives a present image to a pod; pulls write down that they begin and what came of
//! them; the garbage collection takes away the records of images that are gone. The records are files in the form of the
//! stock agent, which can take over a node with them, and are read at each question: nothing is kept in memory but how
//! many pulls of an image are under way. Whatever cannot be read counts against the pod: it must show its credentials.
//!
//! | file | |
//! | --- | --- |
//! | `policy` | which images need no proof; the allowlist. Pure |
//! | `access` | what is recorded for an image name, and whether a pod's credentials fit it. Pure |
//! | `files` | the files |

pub mod access;
mod files;
pub mod policy;

use super::credential::{Source, Tracked};
use super::name;
use crate::clock::Clock;
use crate::metrics::Metrics;
use access::Access;
use cri::v1::Image;
use files::{Dir, PulledRecord};
use policy::Policy;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How images that are here are guarded.
#[derive(Clone, Debug)]
pub struct RecordConfig {
    /// `<root-dir>/image_manager`
    pub dir: PathBuf,
    /// `imagePullCredentialsVerificationPolicy` and `preloadedImagesVerificationAllowlist`.
    pub policy: Policy,
    /// Dates the records.
    pub clock: Clock,
}

/// What the records say to a pod that wants an image which is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may have it.
    Granted,
    /// It must pull it.
    Denied,
    /// It may have it if one of its own credentials is among these.
    Depends(Access),
}

/// The records. Files are small and local: they are read and written in place.
#[derive(Debug)]
pub struct Records {
    pulling: Dir,
    pulled: Dir,
    policy: Policy,
    clock: Clock,
    metrics: Metrics,
    /// Held over every question and change, so that none sees a pull that is neither under way nor done.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Pulls under way by image name as written.
    pulls: HashMap<String, usize>,
    /// Records written since the last round of the garbage collection began, by image reference.
    fresh: HashSet<String>,
}

impl Records {
    pub fn new(config: RecordConfig, metrics: Metrics) -> Self {
        Self {
            pulling: Dir::new(config.dir.join("pulling")),
            pulled: Dir::new(config.dir.join("pulled")),
            policy: config.policy,
            clock: config.clock,
            metrics,
            state: Mutex::default(),
        }
    }

    /// A pull of `image` (as the pod's author wrote it) begins.
    ///
    /// # Errors
    /// It cannot be written down: then nothing must be pulled, or the image would pass for one that was always here.
    pub fn pull_begins(&self, image: &str) -> io::Result<()> {
        let mut state = self.state();
        self.pulling.write_intent(image)?;
        *state.pulls.entry(image.to_owned()).or_default() += 1;
        self.measure();
        Ok(())
    }

    /// That pull has brought `image_ref` with the credentials of `source`.
    pub fn pulled(&self, image: &str, image_ref: &str, source: &Source, hash: &str) {
        let mut state = self.state();
        match self.add(&mut state, image, image_ref, Some(&Access::of(source, hash))) {
            Ok(()) => self.pull_ends(&mut state, image),
            Err(error) => {
                tracing::warn!(image, image_ref, %error, "cannot record a pulled image");
                // The intent stays: the image is still known as pulled.
                one_less(&mut state, image);
            }
        }
        self.measure();
    }

    /// That pull has brought nothing.
    pub fn pull_failed(&self, image: &str) {
        self.pull_ends(&mut self.state(), image);
        self.measure();
    }

    fn pull_ends(&self, state: &mut State, image: &str) {
        if one_less(state, image) == 0
            && let Err(error) = self.pulling.remove(image)
        {
            tracing::warn!(image, %error, "cannot remove the record of a pull that has ended");
        }
    }

    /// Whether a pod may have `image`, which is here as `image_ref`.
    pub fn ask(&self, image: &str, image_ref: &str) -> Verdict {
        let (verdict, result) = self.verdict(image, image_ref).unwrap_or_else(|error| {
            tracing::warn!(image, image_ref, %error, "cannot read the records of pulled images");
            (Verdict::Denied, "error")
        });
        if !matches!(verdict, Verdict::Depends(_)) {
            self.count(result);
        }
        verdict
    }

    fn verdict(&self, image: &str, image_ref: &str) -> io::Result<(Verdict, &'static str)> {
        let state = self.state();
        let record = self.pulled.read_pulled(image_ref)?;
        let ours = match &record {
            Some(_) => true,
            None => state.pulls.contains_key(image) || self.pulling.has_intent(image)?,
        };
        drop(state);
        let Ok(repository) = name::repository(image) else { return Ok((Verdict::Denied, "error")) };
        if !self.policy.verifies(&repository, ours) {
            return Ok((Verdict::Granted, "credentialPolicyAllowed"));
        }
        let must = (Verdict::Denied, "mustAuthenticate");
        let Some(access) = record.and_then(|mut r| r.credential_mapping.remove(&repository)) else {
            return Ok(must);
        };
        Ok(match access {
            a if a.node_pods_accessible => (Verdict::Granted, "credentialRecordFound"),
            a if a.is_empty() => must,
            a => (Verdict::Depends(a), ""),
        })
    }

    /// Whether one of the pod's credentials fits what is recorded. What it shows in another way than recorded is recorded
    /// too.
    pub fn shown(&self, image: &str, image_ref: &str, recorded: &Access, pod: &[Tracked]) -> bool {
        let (granted, learned) = recorded.fits(pod);
        if let Some(learned) = learned {
            let mut state = self.state();
            if let Err(error) = self.add(&mut state, image, image_ref, Some(&learned)) {
                tracing::warn!(image, image_ref, %error, "cannot record a credential that fits a pulled image");
            }
        }
        self.count(if granted { "credentialRecordFound" } else { "mustAuthenticate" });
        granted
    }

    /// What an earlier agent left: records of an older form are written anew, and pulls whose end it did not see become
    /// records of images that were pulled by nobody knows whom, where the image is here.
    pub fn recover(&self, images: &[Image]) {
        let mut state = self.state();
        for problem in self.pulling.migrate_intents().chain(self.pulled.migrate_pulled()) {
            tracing::warn!(%problem, "cannot read a record of the image manager");
        }
        let (intents, problems) = self.pulling.intents();
        for problem in problems {
            tracing::warn!(%problem, "cannot read a record of a pull");
        }
        for image in intents {
            let Ok(full) = name::full(&image) else { continue };
            if state.pulls.contains_key(&image) {
                continue;
            }
            let is_it = |i: &&Image| {
                let mut names = i.repo_tags.iter().chain(&i.repo_digests);
                names.any(|n| *n == image || name::full(n).is_ok_and(|n| n == full))
            };
            let Some(here) = images.iter().find(is_it) else { continue };
            let done =
                self.add(&mut state, &image, &here.id, None).and_then(|()| self.pulling.remove(&image));
            if let Err(error) = done {
                tracing::warn!(image, %error, "cannot settle the record of a pull that was interrupted");
            }
        }
        drop(state);
        self.measure();
    }

    /// A round of the garbage collection begins: what is recorded from now on is not touched by its [`Records::prune`].
    pub fn begin_round(&self) {
        self.state().fresh.clear();
    }

    /// Takes away the records of images that are not among `here` (ids listed after [`Records::begin_round`]).
    pub fn prune<'a>(&self, here: impl Iterator<Item = &'a str>) {
        let state = self.state();
        let mut keep: HashSet<String> = state.fresh.iter().map(|r| files::name_of(r)).collect();
        keep.extend(here.map(files::name_of));
        match self.pulled.remove_all_but(&keep) {
            Ok(problems) => problems
                .iter()
                .for_each(|error| tracing::warn!(error, "cannot remove the record of an image that is gone")),
            Err(error) => tracing::warn!(%error, "cannot list the records of pulled images"),
        }
        drop(state);
        self.measure();
    }

    /// The image is gone. What was recorded in this round stays: it may have been pulled again already.
    pub fn forget(&self, image_ref: &str) {
        let state = self.state();
        if !state.fresh.contains(image_ref)
            && let Err(error) = self.pulled.remove(image_ref)
        {
            tracing::warn!(image_ref, %error, "cannot remove the record of an image that is gone");
        }
        drop(state);
        self.measure();
    }

    /// `None` for the access leaves the image recorded as pulled, by nobody known.
    fn add(
        &self,
        state: &mut State,
        image: &str,
        image_ref: &str,
        access: Option<&Access>,
    ) -> io::Result<()> {
        let repository = name::repository(image).map_err(|e| io::Error::other(format!("{image:?}: {e}")))?;
        let old = self.pulled.read_pulled(image_ref).unwrap_or_else(|error| {
            tracing::warn!(image_ref, %error, "the record of a pulled image is replaced");
            None
        });
        let mut record = match old {
            Some(record) => {
                let before = record.credential_mapping.get(&repository);
                let Some(merged) = access.and_then(|new| Access::merged(before, new)) else { return Ok(()) };
                let mut record = record;
                record.credential_mapping.insert(repository, merged);
                record
            }
            None => {
                let mut record = PulledRecord::of(image_ref);
                record.credential_mapping.extend(access.map(|a| (repository, a.clone())));
                record
            }
        };
        record.last_updated_time = self.clock.seconds().to_string();
        self.pulled.write_pulled(&record)?;
        state.fresh.insert(image_ref.to_owned());
        Ok(())
    }

    fn measure(&self) {
        self.metrics.pull_intents_on_disk.set(self.pulling.count() as f64);
        self.metrics.pulled_records_on_disk.set(self.pulled.count() as f64);
    }

    fn count(&self, result: &str) {
        self.metrics.image_must_pull_checks.with([result]).inc();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One pull of `image` is over; answers how many of it are under way.
fn one_less(state: &mut State, image: &str) -> usize {
    let left = state.pulls.get(image).map_or(0, |n| n.saturating_sub(1));
    match left {
        0 => drop(state.pulls.remove(image)),
        left => drop(state.pulls.insert(image.to_owned(), left)),
    }
    left
}

#[cfg(test)]
mod tests;
