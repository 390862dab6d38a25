//! What the room needs of a runtime: look, pull, list, remove. Implemented by `cri::Client` and by the tests' runtime.

use super::gc::policy::Usage;
use cri::v1::{AuthConfig, Image, ImageFsInfoResponse, ImageSpec, PodSandboxConfig};
use futures::future::BoxFuture;
use std::collections::HashSet;
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
    /// All that are here.
    fn list_images(&self) -> BoxFuture<'_, cri::Result<Vec<Image>>>;
    /// Removes an image with all its names. No such image is no error.
    fn remove_image<'a>(&'a self, id: &'a str) -> BoxFuture<'a, cri::Result<()>>;
    /// What keeps images: names and ids that containers, running or not, were made from. With `all` also what they have
    /// mounted and what sandboxes are made from, which takes a call for each container.
    fn images_in_use(&self, all: bool) -> BoxFuture<'_, cri::Result<HashSet<String>>>;
    /// The filesystem that images are on.
    fn image_fs(&self) -> BoxFuture<'_, cri::Result<Usage>>;
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
    fn list_images(&self) -> BoxFuture<'_, cri::Result<Vec<Image>>> {
        Box::pin(cri::Client::list_images(self, None))
    }
    fn remove_image<'a>(&'a self, id: &'a str) -> BoxFuture<'a, cri::Result<()>> {
        let image = ImageSpec { image: id.to_owned(), ..ImageSpec::default() };
        Box::pin(cri::Client::remove_image(self, image))
    }
    fn images_in_use(&self, all: bool) -> BoxFuture<'_, cri::Result<HashSet<String>>> {
        Box::pin(in_use(self, all))
    }
    fn image_fs(&self) -> BoxFuture<'_, cri::Result<Usage>> {
        Box::pin(image_fs(self))
    }
}

async fn in_use(client: &cri::Client, all: bool) -> cri::Result<HashSet<String>> {
    let containers = client.list_containers(None).await?;
    let mut used = HashSet::new();
    for c in &containers {
        used.extend([c.image_id.clone(), c.image_ref.clone()]);
        used.extend(c.image.iter().flat_map(|i| [i.image.clone(), i.user_specified_image.clone()]));
    }
    if all {
        for c in &containers {
            let status = match client.container_status(&c.id, false).await {
                Err(e) if e.kind == cri::Kind::NotFound => continue,
                other => other?.status.unwrap_or_default(),
            };
            let mounted = status.mounts.into_iter().filter_map(|m| m.image);
            used.extend(mounted.flat_map(|i| [i.image, i.user_specified_image]));
        }
        used.extend(sandbox_image(client).await?);
    }
    used.remove("");
    Ok(used)
}

/// The image of sandboxes, where the runtime tells it. Newer runtimes pin it; containerd before 1.7 does not, and a node
/// that loses it where its registry cannot be reached starts no pod any more.
async fn sandbox_image(client: &cri::Client) -> cri::Result<Option<String>> {
    let status = client.status(true).await?;
    let config =
        status.info.get("config").and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    Ok(config.and_then(|c| c["sandboxImage"].as_str().map(str::to_owned)))
}

async fn image_fs(client: &cri::Client) -> cri::Result<Usage> {
    let failed = |object: &str, message: String| cri::Error {
        call: "ImageFsInfo",
        object: object.to_owned(),
        kind: cri::Kind::Other,
        code: cri::Code::Unknown,
        message,
    };
    let Some(mountpoint) = place_of_images(client.image_fs_info().await?) else {
        return Err(failed("", "the runtime tells no image filesystem".to_owned()));
    };
    let path = mountpoint.clone();
    // A filesystem over the network may not answer for long.
    let asked = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&path)).await;
    let stat = match asked {
        Ok(Ok(stat)) => stat,
        Ok(Err(e)) => return Err(failed(&mountpoint, format!("cannot measure {mountpoint}: {e}"))),
        Err(e) => return Err(failed(&mountpoint, format!("cannot measure {mountpoint}: {e}"))),
    };
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(Usage { capacity: bytes(stat.f_blocks), available: bytes(stat.f_bavail) })
}

/// Where images lie. The filesystem of writable layers, where that is another (KEP-4191), has no part in it: no image that
/// goes makes room there. Of several the first counts, as upstream.
fn place_of_images(info: ImageFsInfoResponse) -> Option<String> {
    let places = info.image_filesystems.into_iter().filter_map(|fs| fs.fs_id).map(|id| id.mountpoint);
    places.into_iter().find(|place| !place.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri::v1::{FilesystemIdentifier, FilesystemUsage};

    fn at(places: &[&str]) -> Vec<FilesystemUsage> {
        let of = |place: &&str| {
            let fs_id = Some(FilesystemIdentifier { mountpoint: (*place).to_owned() });
            FilesystemUsage { fs_id, ..FilesystemUsage::default() }
        };
        places.iter().map(of).collect()
    }

    #[test]
    fn images_lie_where_they_are_said_to_lie_and_not_where_writable_layers_do() {
        for (images, containers, want) in [
            (&["/images"][..], &[][..], Some("/images")),
            (&["/images"], &["/layers"], Some("/images")),
            (&["", "/images", "/more"], &["/layers"], Some("/images")),
            (&[], &["/layers"], None),
            (&[], &[], None),
        ] {
            let info =
                ImageFsInfoResponse { image_filesystems: at(images), container_filesystems: at(containers) };
            assert_eq!(place_of_images(info).as_deref(), want, "{images:?} {containers:?}");
        }
    }

    #[tokio::test]
    async fn how_full_the_filesystem_of_images_is_decides_and_not_that_of_layers() {
        let fake = cri::fake::FakeRuntime::builder().build();
        // Two filesystems that every machine has, and that are never the same.
        fake.set_image_fs(ImageFsInfoResponse {
            image_filesystems: at(&["/usr"]),
            container_filesystems: at(&["/proc"]),
        });
        let client = fake.client();
        client.connected().await;
        let usage = image_fs(&client).await.unwrap();
        let of_usr = rustix::fs::statvfs("/usr").unwrap();
        assert!(usage.capacity > 0 && usage.capacity == of_usr.f_blocks * of_usr.f_frsize, "{usage:?}");
    }
}
