//! The calls of ImageService, over the image endpoint's connection.
//!
//! As in `runtime`: one message, the useful part of the answer, [`crate::Error`].

use super::{Client, gone_is_done};
use crate::error::Result;
use crate::v1;

impl Client {
    /// One image, by reference or id. No such image is no error: `image` is then absent from the answer.
    pub async fn image_status(&self, image: v1::ImageSpec, verbose: bool) -> Result<v1::ImageStatusResponse> {
        let object = image.image.clone();
        let mut service = self.inner.image.clone();
        let message = v1::ImageStatusRequest { image: Some(image), verbose };
        self.call(
            "ImageStatus",
            &object,
            self.plain(),
            message,
            |m| async move { service.image_status(m).await },
        )
        .await
    }

    /// Images that match the filter; all without one.
    pub async fn list_images(&self, filter: Option<v1::ImageFilter>) -> Result<Vec<v1::Image>> {
        let mut service = self.inner.image.clone();
        if self.streams_lists() {
            let message = v1::StreamImagesRequest { filter };
            let send = |m| async move { service.stream_images(m).await };
            return self.collect("StreamImages", message, send, |p: v1::StreamImagesResponse| p.images).await;
        }
        let message = v1::ListImagesRequest { filter };
        let answer = self
            .call("ListImages", "", self.plain(), message, |m| async move { service.list_images(m).await })
            .await?;
        Ok(answer.images)
    }

    /// Pulls an image; gives the reference to start containers by. Deadline: [`crate::Deadlines::pull`]. Dropping the
    /// future stops the pull.
    pub async fn pull_image(
        &self,
        image: v1::ImageSpec,
        auth: Option<v1::AuthConfig>,
        sandbox_config: Option<v1::PodSandboxConfig>,
    ) -> Result<String> {
        let object = image.image.clone();
        let mut service = self.inner.image.clone();
        let message = v1::PullImageRequest { image: Some(image), auth, sandbox_config };
        let answer = self
            .call("PullImage", &object, Some(self.inner.deadlines.pull), message, |m| async move {
                service.pull_image(m).await
            })
            .await?;
        Ok(answer.image_ref)
    }

    /// Removes an image with all its names. Idempotent: an image that is gone is no error.
    pub async fn remove_image(&self, image: v1::ImageSpec) -> Result<()> {
        let object = image.image.clone();
        let mut service = self.inner.image.clone();
        let message = v1::RemoveImageRequest { image: Some(image) };
        let done =
            self.call("RemoveImage", &object, self.plain(), message, |m| async move {
                service.remove_image(m).await
            })
            .await;
        gone_is_done(done.map(drop))
    }

    /// What images (and, where they lie apart, writable layers) use on disk.
    pub async fn image_fs_info(&self) -> Result<v1::ImageFsInfoResponse> {
        let mut service = self.inner.image.clone();
        let message = v1::ImageFsInfoRequest {};
        self.call("ImageFsInfo", "", self.plain(), message, |m| async move { service.image_fs_info(m).await })
            .await
    }
}
