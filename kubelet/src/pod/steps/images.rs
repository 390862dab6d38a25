//! The images a container needs: what its image volumes show, then its own.

use super::{Failure, Made, Steps};
use crate::api::{self, Container, Pod};
use crate::event::Kind;
use crate::image::credential::PullSecret;
use crate::image::{EnsureImage, ImageError, ImageRef};
use cri::v1;
use std::collections::BTreeMap;

/// What a container's image volumes show, held until the container is made.
#[derive(Debug, Default)]
pub(super) struct VolumeImages {
    by_volume: BTreeMap<String, (ImageRef, v1::ImageSpec)>,
}

impl VolumeImages {
    /// As CRI carries them, by volume.
    pub(super) fn specs(&self) -> BTreeMap<String, v1::ImageSpec> {
        self.by_volume.iter().map(|(volume, (_, spec))| (volume.clone(), spec.clone())).collect()
    }
}

impl Steps {
    /// Makes sure that all of them are here.
    pub(super) async fn images(
        &self,
        pod: &Pod,
        c: &Container,
        path: &str,
        made: &Made,
        secrets: &[PullSecret],
    ) -> Result<(ImageRef, VolumeImages), Failure> {
        let volumes = self.volume_images(pod, c, path, made, secrets).await?;
        let request = EnsureImage {
            field_path: path,
            ..self.wish(pod, c.image.as_deref(), c.image_pull_policy.as_deref(), made, secrets)
        };
        let image = self.rooms.images.ensure(request).await.map_err(|e| self.no_image(path, e))?;
        Ok((image, volumes))
    }

    /// Only those the container mounts: another's trouble is not its own.
    async fn volume_images(
        &self,
        pod: &Pod,
        c: &Container,
        path: &str,
        made: &Made,
        secrets: &[PullSecret],
    ) -> Result<VolumeImages, Failure> {
        let mut images = VolumeImages::default();
        let mounted = |name: &str| c.volume_mounts.iter().flatten().any(|m| m.name == name);
        for volume in api::spec(pod).volumes.iter().flatten().filter(|v| mounted(&v.name)) {
            let Some(source) = &volume.image else { continue };
            self.rooms.metrics.image_volume_requested.inc();
            // The events of a volume's image are the pod's, not the container's.
            let (reference, policy) = (source.reference.as_deref(), source.pull_policy.as_deref());
            let wish = self.wish(pod, reference, policy, made, secrets);
            let found = self.rooms.images.ensure(wish).await.map_err(|e| self.no_image(path, e))?;
            let spec = v1::ImageSpec {
                image: found.id.clone(),
                user_specified_image: source.reference.clone().unwrap_or_default(),
                annotations: pod.metadata.annotations.clone().unwrap_or_default(),
                ..v1::ImageSpec::default()
            };
            images.by_volume.insert(volume.name.clone(), (found, spec));
        }
        Ok(images)
    }

    fn wish<'a>(
        &'a self,
        pod: &'a Pod,
        image: Option<&'a str>,
        policy: Option<&'a str>,
        made: &'a Made,
        secrets: &'a [PullSecret],
    ) -> EnsureImage<'a> {
        EnsureImage {
            pod: &self.pod,
            pod_annotations: pod.metadata.annotations.as_ref(),
            field_path: "",
            image: image.unwrap_or_default(),
            policy,
            secrets,
            sandbox_config: &made.config,
            runtime_handler: "",
        }
    }

    fn no_image(&self, path: &str, e: ImageError) -> Failure {
        self.event(Kind::Warning, Some(path.to_owned()), "Failed", format!("Error: {}", e.reason));
        let mut failure = Failure::waiting(e.reason, e.message);
        failure.retry_at = e.retry_at;
        failure
    }

    /// The runtime mounts them when it makes the container.
    pub(super) fn count_image_volumes(&self, volumes: &VolumeImages, created: bool) {
        let metrics = &self.rooms.metrics;
        let counter = if created { &metrics.image_volume_mounted } else { &metrics.image_volume_errors };
        for _ in &volumes.by_volume {
            counter.inc();
        }
    }
}
