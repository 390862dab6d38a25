//! OCI image layouts on disk (image-spec, "image-layout"), each with one image of one layer.
//!
//! Called by the builder (writes), the importer (reads) and the archive writer. Layers are not
//! compressed: they never travel, and so a layer's digest is its diff id.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use oci_spec::image::{
    Arch, Config, Descriptor, DescriptorBuilder, ImageConfiguration, ImageConfigurationBuilder, ImageIndex,
    ImageIndexBuilder, ImageManifest, ImageManifestBuilder, MediaType, Os, RootFsBuilder, Sha256Digest,
};
use sha2::{Digest as _, Sha256};

use crate::tree;

/// Which image this is, in the index (image-spec, "annotations").
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An image on disk.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The folder with `oci-layout`, `index.json` and `blobs/`.
    pub dir: PathBuf,
    /// The name under which it is imported.
    pub reference: String,
    /// Whether the runtime shall keep it through garbage collection.
    pub pinned: bool,
}

impl Layout {
    /// Writes a complete layout into `dir`, which must be empty.
    pub(super) fn write(&self, config: Config, layer: &[u8]) -> Result<()> {
        let blobs = self.dir.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let layer = put(&blobs, MediaType::ImageLayer, layer)?;
        let rootfs =
            RootFsBuilder::default().typ("layers").diff_ids(vec![layer.digest().to_string()]).build()?;
        let configuration = ImageConfigurationBuilder::default()
            .architecture(Arch::default())
            .os(Os::Linux)
            .created("1970-01-01T00:00:00Z")
            .config(config)
            .rootfs(rootfs)
            .history(Vec::new())
            .build()?;
        let configuration = put(&blobs, MediaType::ImageConfig, configuration.to_string()?.as_bytes())?;
        let manifest = ImageManifestBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageManifest)
            .config(configuration)
            .layers(vec![layer])
            .build()?;
        let mut manifest = put(&blobs, MediaType::ImageManifest, manifest.to_string()?.as_bytes())?;
        manifest.set_annotations(Some([(REF_NAME.to_owned(), self.reference.clone())].into()));
        let index = ImageIndexBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageIndex)
            .manifests(vec![manifest])
            .build()?;
        fs::write(self.dir.join("index.json"), index.to_string()?)?;
        fs::write(self.dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(())
    }

    /// The descriptor of the image's manifest.
    pub fn target(&self) -> Result<Descriptor> {
        let path = self.dir.join("index.json");
        let index = ImageIndex::from_file(&path).with_context(|| format!("read {}", path.display()))?;
        match index.manifests().as_slice() {
            [one] => Ok(one.clone()),
            other => bail!("{} lists {} manifests, expected 1", path.display(), other.len()),
        }
    }

    /// The manifest itself.
    pub fn manifest(&self) -> Result<ImageManifest> {
        Ok(ImageManifest::from_reader(self.blob(&self.target()?)?.as_slice())?)
    }

    /// The image configuration; its digest is the image id of CRI.
    pub fn configuration(&self) -> Result<ImageConfiguration> {
        Ok(ImageConfiguration::from_reader(self.blob(self.manifest()?.config())?.as_slice())?)
    }

    /// The image id as CRI reports it: `sha256:` and the digest of the configuration.
    pub fn image_id(&self) -> Result<String> {
        Ok(self.manifest()?.config().digest().to_string())
    }

    /// The bytes that a descriptor names.
    pub fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let path = self.dir.join("blobs/sha256").join(descriptor.digest().digest());
        fs::read(&path).with_context(|| format!("read blob {}", path.display()))
    }

    /// Writes the image as one tar that is both an OCI archive and a docker archive, for runtimes that
    /// are not containerd: `skopeo copy docker-archive:FILE containers-storage:…`, `podman load`, `ctr
    /// images import`.
    pub fn write_archive(&self, path: &Path) -> Result<()> {
        let manifest = self.manifest()?;
        let blob = |d: &Descriptor| format!("blobs/sha256/{}", d.digest().digest());
        let docker = serde_json::json!([{
            "Config": blob(manifest.config()),
            "RepoTags": [self.reference],
            "Layers": manifest.layers().iter().map(blob).collect::<Vec<_>>(),
        }]);
        let mut archive = super::layer::Layer::new();
        archive.file("manifest.json", 0o644, docker.to_string().as_bytes())?;
        for name in ["oci-layout", "index.json"] {
            archive.file(name, 0o644, &fs::read(self.dir.join(name))?)?;
        }
        for descriptor in
            [vec![self.target()?, manifest.config().clone()], manifest.layers().clone()].concat()
        {
            archive.file(&blob(&descriptor), 0o644, &self.blob(&descriptor)?)?;
        }
        tree::write_atomic(path, &archive.finish()?)
    }
}

/// Stores a blob under its digest.
fn put(blobs: &Path, media_type: MediaType, bytes: &[u8]) -> Result<Descriptor> {
    let hex = hex(&Sha256::digest(bytes));
    fs::write(blobs.join(&hex), bytes)?;
    let digest: Sha256Digest = hex.parse().context("a sha256 in hex is a digest")?;
    Ok(DescriptorBuilder::default().media_type(media_type).digest(digest).size(bytes.len() as u64).build()?)
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
