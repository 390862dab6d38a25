//! What of the numbers only the runtime knows: how large writable layers are and where its images lie.

use cri::v1;
use futures::FutureExt;
use futures::future::BoxFuture;

/// The questions this room has for the runtime. An answer may never come: whoever asks sets a deadline.
pub trait Runtime: Send + Sync + 'static {
    /// `ImageFsInfo`
    fn image_fs(&self) -> BoxFuture<'_, Result<v1::ImageFsInfoResponse, String>>;
    /// `ListContainerStats` of all containers.
    fn container_stats(&self) -> BoxFuture<'_, Result<Vec<v1::ContainerStats>, String>>;
}

impl Runtime for cri::Client {
    fn image_fs(&self) -> BoxFuture<'_, Result<v1::ImageFsInfoResponse, String>> {
        async { self.image_fs_info().await.map_err(|e| e.to_string()) }.boxed()
    }

    fn container_stats(&self) -> BoxFuture<'_, Result<Vec<v1::ContainerStats>, String>> {
        async { self.list_container_stats(None).await.map_err(|e| e.to_string()) }.boxed()
    }
}
