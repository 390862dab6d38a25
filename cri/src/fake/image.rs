//! ImageService of the fake.

use futures::stream::{self, BoxStream};
use tokio::time::sleep;
use tonic::{Request, Response, Status};

use super::FakeRuntime;
use super::script::full_name;
use crate::v1;
use crate::v1::image_service_server::ImageService;

fn reference(image: Option<&v1::ImageSpec>) -> String {
    image.map(|i| i.image.clone()).unwrap_or_default()
}

fn listed(fake: &FakeRuntime, filter: Option<v1::ImageFilter>) -> Vec<v1::Image> {
    let wanted = reference(filter.as_ref().and_then(|f| f.image.as_ref()));
    let mut state = fake.state();
    if wanted.is_empty() {
        return state.world.images.clone();
    }
    state.world.find_image(&wanted).into_iter().collect()
}

#[tonic::async_trait]
impl ImageService for FakeRuntime {
    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        self.handle(request.into_inner(), |fake, m| async move {
            let image = fake.state().world.find_image(&reference(m.image.as_ref()));
            Ok(v1::ImageStatusResponse { image, ..Default::default() })
        })
        .await
    }

    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        self.handle(request.into_inner(), |fake, m| async move {
            Ok(v1::ListImagesResponse { images: listed(&fake, m.filter) })
        })
        .await
    }

    type StreamImagesStream = BoxStream<'static, Result<v1::StreamImagesResponse, Status>>;

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        self.handle(request.into_inner(), |fake, m| async move {
            let pieces = listed(&fake, m.filter)
                .into_iter()
                .map(|image| Ok(v1::StreamImagesResponse { images: vec![image] }));
            let stream: Self::StreamImagesStream = Box::pin(stream::iter(pieces.collect::<Vec<_>>()));
            Ok(stream)
        })
        .await
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        self.handle(request.into_inner(), |fake, m| async move {
            let name = full_name(&reference(m.image.as_ref()));
            let pull = fake.state().world.registry.get(&name).cloned();
            if let Some(pull) = pull {
                sleep(pull.takes).await;
                let image = pull.result?.0;
                let image_ref = image.id.clone();
                fake.state().world.add_image(image);
                return Ok(v1::PullImageResponse { image_ref });
            }
            // With every image at hand, a pull brings what is there.
            let mut state = fake.state();
            match state.world.find_image(&name).filter(|_| state.world.any_image) {
                Some(image) => Ok(v1::PullImageResponse { image_ref: image.id }),
                None => Err(Status::not_found(format!(
                    "failed to pull and unpack image {name:?}: failed to resolve reference {name:?}: {name}: not found"
                ))),
            }
        })
        .await
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        self.handle(request.into_inner(), |fake, m| async move {
            let mut state = fake.state();
            let any = std::mem::take(&mut state.world.any_image);
            let found = state.world.find_image(&reference(m.image.as_ref()));
            state.world.any_image = any;
            if let Some(image) = found {
                state.world.images.retain(|i| i.id != image.id);
            }
            Ok(v1::RemoveImageResponse {})
        })
        .await
    }

    async fn image_fs_info(
        &self,
        request: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        self.handle(request.into_inner(), |fake, _| async move { Ok(fake.state().image_fs.clone()) }).await
    }
}
