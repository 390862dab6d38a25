//! Images: what a container needs before it can be created, by pull policy, with the stock agent's events and back-off.
//!
//! Pod actors call [`Images::ensure`] for each container and [`Images::forget`] when a pod is gone. The room records
//! every event but the last, `Error: <reason>`, which is the actor's, as it is for any reason a container waits for. It
//! remembers who failed to pull what (in memory) and with whose credentials images were pulled (in files).
//!
//! | file | |
//! | --- | --- |
//! | `name` | what an image name is; the default tag |
//! | `policy` | pull policy, words |
//! | `backoff` | 10 s doubling to 300 s per pod and image |
//! | `pull` | pulls under way: a task each, shared, bounded |
//! | `credential` | what registries are shown: secrets, docker configuration files, exec credential providers |
//! | `record` | who may use an image that is here |
//! | `hold` | what keeps an image between a look and the container made from it |
//! | `gc` | removal of what nobody uses |
//! | `runtime` | the seam to the runtime |

mod backoff;
pub mod credential;
mod gc;
mod hold;
pub mod name;
pub mod policy;
mod pull;
mod record;
mod runtime;

pub use credential::CredentialConfig;
pub use gc::policy::GcConfig;
pub use policy::PullPolicy;
pub use pull::PullConfig;
pub use record::RecordConfig;
pub use record::policy::{Allowlist, Policy as VerificationPolicy};
pub use runtime::ImageRuntime;

use crate::api::{PodRef, PodUid};
use crate::event::{Event, Kind, Recorder};
use crate::metrics::{Metrics, image_size_bucket};
use backoff::Backoffs;
use credential::{Credentials, PullSecret, Tracked};
use cri::v1::{Image, ImageSpec, PodSandboxConfig};
use gc::Gc;
use hold::{Hold, Holds};
use pull::Pulls;
use record::{Records, Verdict};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Waits before images are listed again at the start: first and longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The room's handle. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Images {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    runtime: Arc<dyn ImageRuntime>,
    pulls: Arc<Pulls>,
    credentials: Credentials,
    holds: Arc<Holds>,
    records: Option<Arc<Records>>,
    gc: Arc<Gc>,
    gc_config: Option<GcConfig>,
    backoffs: Mutex<Backoffs>,
    recorder: Recorder,
    metrics: Metrics,
}

/// What the room must be told.
#[derive(Clone, Debug, Default)]
pub struct ImageConfig {
    /// How pulls are bounded.
    pub pulls: PullConfig,
    /// Where credentials come from.
    pub credentials: CredentialConfig,
    /// When unused images go; `None` is never.
    pub gc: Option<GcConfig>,
    /// Who may use what is here; `None` (gate `KubeletEnsureSecretPulledImages` off): everybody, and nothing is recorded.
    pub records: Option<RecordConfig>,
}

/// Who an image's processes run as unless a pod says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    /// Numeric `USER`.
    pub uid: Option<i64>,
    /// `USER` by name.
    pub username: Option<String>,
}

/// A container's wish for an image.
#[derive(Clone, Copy, Debug)]
pub struct EnsureImage<'a> {
    /// Whose container.
    pub pod: &'a PodRef,
    /// The pod's annotations travel with every request, for runtimes that look at them.
    pub pod_annotations: Option<&'a BTreeMap<String, String>>,
    /// `spec.containers{name}`, for events; empty for an image that is no container's.
    pub field_path: &'a str,
    /// As the pod's author wrote it.
    pub image: &'a str,
    /// `imagePullPolicy`; the API's default without it.
    pub policy: Option<&'a str>,
    /// The pod's `imagePullSecrets`, as far as they could be had.
    pub secrets: &'a [PullSecret],
    /// The pod's sandbox, for the pull.
    pub sandbox_config: &'a PodSandboxConfig,
    /// Images may be laid out apart for each handler; empty for the default one. It does not travel (the stock agent's
    /// gate `RuntimeClassInImageCriApi` is off).
    pub runtime_handler: &'a str,
}

/// An image that is here.
///
/// It is not removed as long as this lives; afterwards only what is made from it keeps it.
#[derive(Clone, Debug)]
pub struct ImageRef {
    /// What goes into `ContainerConfig.image`: the runtime's id.
    pub id: String,
    /// Who its processes run as.
    pub user: ImageUser,
    _hold: Option<Arc<Hold>>,
}

/// An image as it was found, not yet held.
struct Found {
    id: String,
    user: ImageUser,
    /// All it goes by.
    names: Vec<String>,
}

/// Why a container waits for its image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct ImageError {
    /// Reason of the container's waiting state.
    pub reason: &'static str,
    /// Its message.
    pub message: String,
    /// When asking again can bring something else; `None` when that is for the caller to say.
    pub retry_at: Option<Instant>,
}

impl ImageError {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), retry_at: None }
    }
}

impl Images {
    /// A room on `runtime`.
    pub fn new(
        runtime: Arc<dyn ImageRuntime>,
        config: ImageConfig,
        recorder: Recorder,
        metrics: Metrics,
    ) -> Self {
        let (ended, holds) = (Arc::<Notify>::default(), Arc::<Holds>::default());
        let records = config.records.map(|c| Arc::new(Records::new(c, metrics.clone())));
        let pulls = Pulls::new(runtime.clone(), config.pulls, records.clone(), ended.clone());
        let pulls = Arc::new(pulls);
        let credentials = Credentials::new(config.credentials, metrics.clone());
        let gc = Gc::new(
            runtime.clone(),
            holds.clone(),
            records.clone(),
            ended,
            recorder.clone(),
            metrics.clone(),
        );
        Self {
            inner: Arc::new(Inner {
                runtime,
                pulls,
                credentials,
                holds,
                records,
                gc: Arc::new(gc),
                gc_config: config.gc,
                backoffs: Mutex::default(),
                recorder,
                metrics,
            }),
        }
    }

    /// Settles what an earlier agent recorded, then removes unused images for as long as the agent runs; returns where that
    /// is off.
    pub async fn collect_garbage(self) {
        self.settle_records().await;
        if let Some(config) = self.inner.gc_config.filter(GcConfig::is_on) {
            self.inner.gc.clone().run(config).await;
        }
    }

    /// Removes every image that nobody uses, as far as it is older than `imageMinimumGCAge`: the node has no room left.
    ///
    /// # Errors
    /// What the runtime said; some may be gone all the same.
    pub async fn remove_unused(&self) -> Result<(), String> {
        let config = self.inner.gc_config.unwrap_or_default();
        self.inner.gc.remove_unused(&config).await.map_err(|e| e.to_string())
    }

    /// An earlier agent may have died in a pull, and images may have gone while none ran. Goes on until the runtime has
    /// listed its images: the garbage collection, which comes after it, needs the same list.
    async fn settle_records(&self) {
        let Some(records) = &self.inner.records else { return };
        let mut wait = RETRY.0;
        loop {
            records.begin_round();
            match self.inner.runtime.list_images().await {
                Ok(images) => {
                    records.recover(&images);
                    return records.prune(images.iter().map(|i| i.id.as_str()));
                }
                Err(error) => tracing::warn!(%error, "cannot settle the records of pulled images yet"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// Makes sure the image is here as its pull policy has it, and stays. Cancelling it leaves a pull under way alone.
    pub async fn ensure(&self, wish: EnsureImage<'_>) -> Result<ImageRef, ImageError> {
        loop {
            let Found { id, user, names } = self.find(wish).await?;
            if let Some(hold) = self.inner.holds.hold(names).await {
                self.inner.gc.touch(&id);
                return Ok(ImageRef { id, user, _hold: Some(Arc::new(hold)) });
            }
            // It was being removed while it was looked at.
        }
    }

    async fn find(&self, wish: EnsureImage<'_>) -> Result<Found, ImageError> {
        let image = match name::with_default_tag(wish.image) {
            Ok(image) => image,
            Err(e) => {
                let why = format!("couldn't parse image name {:?}: {e}", wish.image);
                let message = format!("Failed to apply default image tag {:?}: {why}", wish.image);
                self.event(&wish, Kind::Warning, "InspectFailed", &message);
                return Err(ImageError::new("InvalidImageName", message));
            }
        };
        let policy = pull_policy(&wish)?;
        let mut credentials = None;
        let spec = ImageSpec {
            image,
            annotations: wish.pod_annotations.cloned().unwrap_or_default(),
            ..ImageSpec::default()
        };
        // With `Always` what is here does not matter, so it is not looked at.
        if policy == PullPolicy::Always {
            self.count("unknown", policy, "true");
        } else {
            let here = self.look(&wish, &spec).await?;
            let present = here.is_some();
            let mut usable = None;
            if let Some(found) = here
                && self.may_use(&wish, &found.id, &mut credentials).await
            {
                usable = Some(found);
            }
            let pull = usable.is_none() && (present || policy != PullPolicy::Never);
            self.count(bool_label(present), policy, bool_label(pull));
            if let Some(found) = usable {
                let asked = if self.inner.records.is_some() { " and can be accessed by the pod" } else { "" };
                let text = format!("Container image {:?} already present on machine{asked}", wish.image);
                self.event(&wish, Kind::Normal, "Pulled", &text);
                return Ok(found_image(found, spec.image));
            }
            // Who may not use what is here is not told that it is here.
            if policy == PullPolicy::Never {
                let text =
                    format!("Container image {:?} is not present with pull policy of Never", wish.image);
                self.event(&wish, Kind::Warning, "ErrImageNeverPull", &text);
                return Err(ImageError::new("ErrImageNeverPull", text));
            }
        }
        self.back_off(&wish)?;
        self.pull(&wish, spec, credentials).await
    }

    /// Whether the pod may have `id`, which is here under the name it wishes for. What was looked up to answer that goes to
    /// `credentials`.
    async fn may_use(
        &self,
        wish: &EnsureImage<'_>,
        id: &str,
        credentials: &mut Option<Vec<Tracked>>,
    ) -> bool {
        let Some(records) = &self.inner.records else { return true };
        match records.ask(wish.image, id) {
            Verdict::Granted => true,
            Verdict::Denied => false,
            Verdict::Depends(recorded) => {
                let shown = credentials.insert(self.credentials(wish).await);
                records.shown(wish.image, id, &recorded, shown)
            }
        }
    }

    async fn credentials(&self, wish: &EnsureImage<'_>) -> Vec<Tracked> {
        match name::repository(wish.image) {
            Ok(repository) => self.inner.credentials.for_image(&repository, wish.secrets).await,
            // It has been parsed before.
            Err(_) => Vec::new(),
        }
    }

    /// The pod is gone: so is its back-off.
    pub fn forget(&self, pod: &PodUid) {
        self.backoffs().forget(pod);
    }

    async fn look(&self, wish: &EnsureImage<'_>, spec: &ImageSpec) -> Result<Option<Image>, ImageError> {
        self.inner.runtime.image_status(spec.clone()).await.map_err(|e| {
            let text = format!("Failed to inspect image {:?}: {}", wish.image, e.message);
            self.event(wish, Kind::Warning, "InspectFailed", &text);
            ImageError::new("ImageInspectError", text)
        })
    }

    /// Refuses while a failure is too recent.
    fn back_off(&self, wish: &EnsureImage<'_>) -> Result<(), ImageError> {
        let now = Instant::now();
        let (end, why) = {
            let backoffs = self.backoffs();
            let Some((end, why)) = backoffs.waiting(&wish.pod.uid, wish.image, now) else { return Ok(()) };
            (end, why.to_owned())
        };
        let text = format!("Back-off pulling image {:?}", wish.image);
        self.event(wish, Kind::Normal, "BackOff", &text);
        Err(ImageError {
            retry_at: Some(end),
            ..ImageError::new("ImagePullBackOff", format!("{text}: {why}"))
        })
    }

    async fn pull(
        &self,
        wish: &EnsureImage<'_>,
        spec: ImageSpec,
        credentials: Option<Vec<Tracked>>,
    ) -> Result<Found, ImageError> {
        let start = Instant::now();
        self.event(wish, Kind::Normal, "Pulling", &format!("Pulling image {:?}", wish.image));
        let credentials = match credentials {
            Some(known) => known,
            None => self.credentials(wish).await,
        };
        let (handler, sandbox) = (wish.runtime_handler, wish.sandbox_config.clone());
        let result = self.inner.pulls.pull(spec.clone(), wish.image, handler, credentials, sandbox).await;
        let pulled = match result {
            Ok(pulled) => pulled,
            Err(message) => {
                let (reason, text) = policy::pull_failure(wish.image, &message);
                self.event(wish, Kind::Warning, "Failed", &text);
                let why = format!("{reason}: {message}");
                self.backoffs().failed(&wish.pod.uid, wish.image, why, Instant::now());
                return Err(ImageError::new(reason, message));
            }
        };
        // Its size and user, which a container must not be created without.
        let here = self.look(wish, &spec).await?;
        let size = here.as_ref().map_or(0, |i| i.size);
        let text = policy::pulled_text(wish.image, pulled.took, start.elapsed(), size);
        self.event(wish, Kind::Normal, "Pulled", &text);
        self.inner.metrics.image_pull_duration.with([image_size_bucket(size)]).observe_duration(pulled.took);
        self.backoffs().forget_old(Instant::now());
        let mut found = found_image(here.unwrap_or_default(), spec.image);
        found.names.push(pulled.image_ref.clone());
        Ok(Found { id: pulled.image_ref, ..found })
    }

    fn event(&self, wish: &EnsureImage<'_>, kind: Kind, reason: &'static str, message: &str) {
        self.inner.recorder.record(Event {
            pod: Some(wish.pod.clone()),
            field_path: (!wish.field_path.is_empty()).then(|| wish.field_path.to_owned()),
            kind,
            reason: reason.into(),
            message: message.to_owned(),
            annotations: Default::default(),
        });
    }

    fn count(&self, present: &str, policy: PullPolicy, pull_required: &str) {
        self.inner.metrics.ensure_image_requests.with([present, policy.label(), pull_required]).inc();
    }

    fn backoffs(&self) -> MutexGuard<'_, Backoffs> {
        self.inner.backoffs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pull_policy(wish: &EnsureImage<'_>) -> Result<PullPolicy, ImageError> {
    match wish.policy {
        None | Some("") => PullPolicy::default_for(wish.image)
            .map_err(|e| ImageError::new("InvalidImageName", e.to_string())),
        Some(text) => PullPolicy::parse(text).ok_or_else(|| {
            let message = format!("imagePullPolicy {text:?} is none of Always, IfNotPresent, Never");
            ImageError::new("CreateContainerConfigError", message)
        }),
    }
}

fn found_image(image: Image, asked: String) -> Found {
    let mut names: Vec<String> =
        gc::policy::names(&image).filter(|n| !n.is_empty()).map(str::to_owned).collect();
    names.push(asked);
    let user = ImageUser {
        uid: image.uid.map(|uid| uid.value),
        username: (!image.username.is_empty()).then_some(image.username),
    };
    Found { id: image.id, user, names }
}

/// SHA-256 of `text` in hexadecimal.
fn sha256_hex(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

fn bool_label(b: bool) -> &'static str {
    if b { "true" } else { "false" }
}

#[cfg(test)]
mod tests;
