//! Images: what a container needs before it can be created, by pull policy, with the stock agent's events and back-off.
//!
//! Pod actors call [`Images::ensure`] for each container and [`Images::forget`] when a pod is gone. The room records
//! every event but the last, `Error: <reason>`, which is the actor's, as it is for any reason a container waits for. It
//! remembers only who failed to pull what (in memory).
//!
//! | file | |
//! | --- | --- |
//! | `name` | what an image name is; the default tag |
//! | `policy` | pull policy, words |
//! | `backoff` | 10 s doubling to 300 s per pod and image |
//! | `pull` | pulls under way: a task each, shared, bounded |
//! | `credential` | what registries are shown: docker configuration files, exec credential providers |
//! | `runtime` | the seam to the runtime |

mod backoff;
pub mod credential;
pub mod name;
pub mod policy;
mod pull;
mod runtime;

pub use credential::CredentialConfig;
pub use policy::PullPolicy;
pub use pull::PullConfig;
pub use runtime::ImageRuntime;

use crate::api::{PodRef, PodUid};
use crate::event::{Event, Kind, Recorder};
use crate::metrics::{Metrics, image_size_bucket};
use backoff::Backoffs;
use credential::Credentials;
use cri::v1::{Image, ImageSpec, PodSandboxConfig};
use pull::Pulls;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

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
    /// The pod's sandbox, for the pull.
    pub sandbox_config: &'a PodSandboxConfig,
    /// Images may be laid out apart for each handler; empty for the default one. It does not travel (the stock agent's
    /// gate `RuntimeClassInImageCriApi` is off).
    pub runtime_handler: &'a str,
}

/// An image that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRef {
    /// What goes into `ContainerConfig.image`: the runtime's id.
    pub id: String,
    /// Who its processes run as.
    pub user: ImageUser,
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
        let pulls = Arc::new(Pulls::new(runtime.clone(), config.pulls));
        let credentials = Credentials::new(config.credentials, metrics.clone());
        let backoffs = Mutex::default();
        Self { inner: Arc::new(Inner { runtime, pulls, credentials, backoffs, recorder, metrics }) }
    }

    /// Makes sure the image is here as its pull policy has it. Cancelling it leaves a pull under way alone.
    pub async fn ensure(&self, wish: EnsureImage<'_>) -> Result<ImageRef, ImageError> {
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
            self.count(
                bool_label(here.is_some()),
                policy,
                bool_label(here.is_none() && policy != PullPolicy::Never),
            );
            if let Some(found) = here {
                let text = format!(
                    "Container image {:?} already present on machine and can be accessed by the pod",
                    wish.image
                );
                self.event(&wish, Kind::Normal, "Pulled", &text);
                return Ok(image_ref(found));
            }
            if policy == PullPolicy::Never {
                let text =
                    format!("Container image {:?} is not present with pull policy of Never", wish.image);
                self.event(&wish, Kind::Warning, "ErrImageNeverPull", &text);
                return Err(ImageError::new("ErrImageNeverPull", text));
            }
        }
        self.back_off(&wish)?;
        self.pull(&wish, spec).await
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

    async fn pull(&self, wish: &EnsureImage<'_>, spec: ImageSpec) -> Result<ImageRef, ImageError> {
        let start = Instant::now();
        self.event(wish, Kind::Normal, "Pulling", &format!("Pulling image {:?}", wish.image));
        let credentials = match name::repository(&spec.image) {
            Ok(repository) => self.inner.credentials.for_image(&repository).await,
            // It has been parsed before.
            Err(_) => Vec::new(),
        };
        let (handler, sandbox) = (wish.runtime_handler, wish.sandbox_config.clone());
        let result = self.inner.pulls.pull(spec.clone(), handler, credentials, sandbox).await;
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
        let user = here.map(image_ref).map(|r| r.user).unwrap_or_default();
        Ok(ImageRef { id: pulled.image_ref, user })
    }

    fn event(&self, wish: &EnsureImage<'_>, kind: Kind, reason: &'static str, message: &str) {
        self.inner.recorder.record(Event {
            pod: Some(wish.pod.clone()),
            field_path: (!wish.field_path.is_empty()).then(|| wish.field_path.to_owned()),
            kind,
            reason: reason.into(),
            message: message.to_owned(),
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

fn image_ref(image: Image) -> ImageRef {
    let user = ImageUser {
        uid: image.uid.map(|uid| uid.value),
        username: (!image.username.is_empty()).then_some(image.username),
    };
    ImageRef { id: image.id, user }
}

fn bool_label(b: bool) -> &'static str {
    if b { "true" } else { "false" }
}

#[cfg(test)]
mod tests;
