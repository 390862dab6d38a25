//! Puts OCI layouts into a containerd through its own API (content, snapshots, images), in the
//! namespace that CRI uses.
//!
//! Called by the private containerd and by `up`. Works the same on 1.6, 1.7 and 2.x (the transfer
//! service exists from 1.7 on only). Images are unpacked here, so that the first pod does not pay for it.
//! Repeating an import changes nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use containerd_client::Client;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::services::v1::{
    ApplyRequest, CreateImageRequest, CreateRequest, DeleteRequest, Image as StoredImage, InfoRequest,
    UpdateImageRequest, WriteAction, WriteContentRequest,
};
use containerd_client::tonic::{Code, Request, Status};
use containerd_client::types;
use cri::v1::image_service_client::ImageServiceClient;
use cri::v1::{ImageSpec, ImageStatusRequest};
use oci_spec::image::Descriptor;
use sha2::{Digest as _, Sha256};

use super::layout::{Layout, hex};

/// The containerd namespace of everything that CRI shows.
const NAMESPACE: &str = "k8s.io";
const SNAPSHOTTER: &str = "overlayfs";
/// One message of a blob; well under gRPC's default limit of 4 MiB.
const CHUNK: usize = 1 << 20;
/// containerd answers its own store within milliseconds; this only bounds a hang.
const LIMIT: Duration = Duration::from_secs(60);

/// Imports `layouts` and returns when CRI's image store knows every one of them.
///
/// # Errors
/// Names the image, and the step that failed with containerd's answer.
pub async fn import(client: &Client, layouts: &[Layout]) -> Result<()> {
    let lease = create_lease(client).await.context("create a lease for the import")?;
    let mut outcome = Ok(());
    for layout in layouts {
        let one = tokio::time::timeout(LIMIT, import_one(client, &lease, layout)).await;
        outcome = match one {
            Ok(result) => result,
            Err(_) => Err(anyhow::anyhow!("took longer than {LIMIT:?}")),
        }
        .with_context(|| format!("import image {}", layout.reference));
        if outcome.is_err() {
            break;
        }
    }
    // An expired lease is removed by containerd itself, so a failure here loses nothing.
    let _expires = client.leases().delete(plain(DeleteRequest { id: lease, sync: false })).await;
    outcome
}

async fn import_one(client: &Client, lease: &str, layout: &Layout) -> Result<()> {
    let (target, manifest) = (layout.target()?, layout.manifest()?);
    let configuration = layout.configuration()?;
    let mut parent = String::new();
    for (layer, diff_id) in manifest.layers().iter().zip(configuration.rootfs().diff_ids()) {
        write_blob(client, lease, layer, layout.blob(layer)?, Vec::new()).await?;
        parent = unpack(client, lease, layer, diff_id, &parent).await?;
    }
    // Labels tell containerd's garbage collector what a blob keeps alive.
    let keeps_snapshot = (format!("containerd.io/gc.ref.snapshot.{SNAPSHOTTER}"), parent);
    let config = manifest.config();
    write_blob(client, lease, config, layout.blob(config)?, vec![keeps_snapshot]).await?;
    let mut keeps = vec![("containerd.io/gc.ref.content.config".to_owned(), config.digest().to_string())];
    for (index, layer) in manifest.layers().iter().enumerate() {
        keeps.push((format!("containerd.io/gc.ref.content.l.{index}"), layer.digest().to_string()));
    }
    write_blob(client, lease, &target, layout.blob(&target)?, keeps).await?;
    create_image(client, layout, &target).await?;
    wait_for_cri(client, layout).await
}

/// A request in CRI's namespace, outside any lease.
fn plain<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let namespace = NAMESPACE.parse().expect("a namespace of letters and dots is a header value");
    request.metadata_mut().insert("containerd-namespace", namespace);
    request
}

/// A request whose results the lease keeps until the image refers to them.
fn leased<T>(lease: &str, message: T) -> Result<Request<T>> {
    let mut request = plain(message);
    request.metadata_mut().insert("containerd-lease", lease.parse()?);
    Ok(request)
}

async fn create_lease(client: &Client) -> Result<String> {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let id = format!("stevedore-import-{}-{nanos}", std::process::id());
    // RFC 3339; a crashed import's lease goes away by itself.
    let expires = jiff::Timestamp::try_from(SystemTime::now() + Duration::from_secs(3600))?;
    let labels = [("containerd.io/gc.expire".to_owned(), expires.to_string())].into();
    client.leases().create(plain(CreateRequest { id: id.clone(), labels })).await?;
    Ok(id)
}

async fn write_blob(
    client: &Client,
    lease: &str,
    descriptor: &Descriptor,
    bytes: Vec<u8>,
    labels: Vec<(String, String)>,
) -> Result<()> {
    let digest = descriptor.digest().to_string();
    if client.content().info(plain(InfoRequest { digest: digest.clone() })).await.is_ok() {
        return Ok(());
    }
    let step = || format!("write blob {digest}");
    let total = bytes.len() as i64;
    // A reference per lease: an ingest that a crash left open must not block this one.
    let message = WriteContentRequest {
        r#ref: format!("{lease}-{digest}"),
        total,
        expected: digest.clone(),
        ..Default::default()
    };
    let mut messages = Vec::new();
    let mut offset = 0;
    for chunk in bytes.chunks(CHUNK) {
        let action = WriteAction::Write.into();
        messages.push(WriteContentRequest { action, offset, data: chunk.to_vec(), ..message.clone() });
        offset += chunk.len() as i64;
    }
    let labels = labels.into_iter().collect();
    messages.push(WriteContentRequest {
        action: WriteAction::Commit.into(),
        offset: total,
        labels,
        ..message
    });
    let request = leased(lease, futures::stream::iter(messages))?;
    let answer = client.content().write(request).await;
    let result = match answer {
        Ok(answer) => {
            let mut answers = answer.into_inner();
            loop {
                match answers.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => break Ok(()),
                    Err(status) => break Err(status),
                }
            }
        }
        Err(status) => Err(status),
    };
    ignore_existing(result).with_context(step)
}

fn ignore_existing(result: Result<(), Status>) -> Result<(), Status> {
    match result {
        Err(status) if status.code() == Code::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Unpacks a layer over `parent` and returns the chain id (image-spec, "Layer ChainID").
async fn unpack(
    client: &Client,
    lease: &str,
    layer: &Descriptor,
    diff_id: &str,
    parent: &str,
) -> Result<String> {
    let chain = match parent {
        "" => diff_id.to_owned(),
        below => format!("sha256:{}", hex(&Sha256::digest(format!("{below} {diff_id}")))),
    };
    let mut snapshots = client.snapshots();
    let snapshotter = SNAPSHOTTER.to_owned();
    let stat = StatSnapshotRequest { snapshotter: snapshotter.clone(), key: chain.clone() };
    if snapshots.stat(plain(stat)).await.is_ok() {
        return Ok(chain);
    }
    let key = format!("{lease}-extract-{chain}");
    let prepare = PrepareSnapshotRequest {
        snapshotter: snapshotter.clone(),
        key: key.clone(),
        parent: parent.to_owned(),
        ..Default::default()
    };
    let prepared = snapshots.prepare(leased(lease, prepare)?).await.context("prepare a snapshot")?;
    let apply =
        ApplyRequest { diff: Some(wire(layer)), mounts: prepared.into_inner().mounts, ..Default::default() };
    let applied = client.diff().apply(leased(lease, apply)?).await;
    let applied = applied.context("unpack a layer").and_then(|answer| {
        let digest = answer.into_inner().applied.map(|d| d.digest).unwrap_or_default();
        if digest == diff_id { Ok(()) } else { bail!("unpacked {digest}, the configuration says {diff_id}") }
    });
    if let Err(error) = applied {
        let remove = RemoveSnapshotRequest { snapshotter, key };
        let _leased_anyway = snapshots.remove(plain(remove)).await;
        return Err(error);
    }
    let commit = CommitSnapshotRequest { snapshotter, name: chain.clone(), key, ..Default::default() };
    let committed = snapshots.commit(leased(lease, commit)?).await.map(drop);
    ignore_existing(committed).context("commit a snapshot")?;
    Ok(chain)
}

fn wire(descriptor: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type().to_string(),
        digest: descriptor.digest().to_string(),
        size: descriptor.size() as i64,
        annotations: Default::default(),
    }
}

async fn create_image(client: &Client, layout: &Layout, target: &Descriptor) -> Result<()> {
    // Without CRI's own label: that is how its plugin tells that the image is new to it, and then makes
    // the record under the image's id.
    let mut labels = std::collections::HashMap::new();
    if layout.pinned {
        labels.insert("io.cri-containerd.pinned".to_owned(), "pinned".to_owned());
    }
    let image = StoredImage {
        name: layout.reference.clone(),
        labels,
        target: Some(wire(target)),
        ..Default::default()
    };
    let create = CreateImageRequest { image: Some(image.clone()), ..Default::default() };
    match client.images().create(plain(create)).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::AlreadyExists => {
            let update = UpdateImageRequest { image: Some(image), ..Default::default() };
            client.images().update(plain(update)).await.context("update the image record")?;
            Ok(())
        }
        Err(status) => Err(status).context("create the image record"),
    }
}

/// CRI learns of a new image by an event, a moment after the record is there.
async fn wait_for_cri(client: &Client, layout: &Layout) -> Result<()> {
    let id = layout.image_id()?;
    let mut images = ImageServiceClient::new(client.channel());
    for _ in 0..500 {
        let spec = ImageSpec { image: layout.reference.clone(), ..Default::default() };
        let status = images.image_status(ImageStatusRequest { image: Some(spec), verbose: false }).await;
        if status.context("CRI ImageStatus")?.into_inner().image.is_some_and(|image| image.id == id) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("the CRI plugin does not know image {id} under this name after 5 s")
}
