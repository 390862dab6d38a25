//! What the room needs of a runtime: look and pull. Implemented by `cri::Client` and by the tests' runtime.

use cri::v1::{AuthConfig, Image, ImageSpec, PodSandboxConfig};
use futures::future::BoxFuture;
use std::fmt;

/// The image half of a container runtime.
pub trait ImageRuntime: fmt::Debug + Send + Sync + 'static {
    /// The image, or `None` when it is not here.
    fn image_status(&self, image: ImageSpec) -> BoxFuture<'_, cri::Result<Option<Image>>>;
    /// Pulls with that credential and answers the reference to start containers by.
    fn pull_image(
        &self,
        image: ImageSpec,
        auth: Option<AuthConfig>,
        sandbox: PodSandboxConfig,
    ) -> BoxFuture<'_, cri::Result<String>>;
}

impl ImageRuntime for cri::Client {
    fn image_status(&self, image: ImageSpec) -> BoxFuture<'_, cri::Result<Option<Image>>> {
        Box::pin(async move { Ok(cri::Client::image_status(self, image, false).await?.image) })
    }
    fn pull_image(
        &self,
        image: ImageSpec,
        auth: Option<AuthConfig>,
        sandbox: PodSandboxConfig,
    ) -> BoxFuture<'_, cri::Result<String>> {
        Box::pin(cri::Client::pull_image(self, image, auth, Some(sandbox)))
    }
}
