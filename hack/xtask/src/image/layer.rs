//! One file system layer as a tar stream, the same bytes for the same contents.
//!
//! Called by the image builder. Owners are root and times are zero, so that digests depend on contents
//! alone.

use anyhow::{Context, Result};
use tar::{Builder, EntryType, Header};

/// A layer in the making.
pub(super) struct Layer {
    tar: Builder<Vec<u8>>,
}

impl Layer {
    pub(super) fn new() -> Self {
        Self { tar: Builder::new(Vec::new()) }
    }

    /// `path` without a leading slash.
    pub(super) fn dir(&mut self, path: &str, mode: u32) -> Result<()> {
        self.add(&mut header(EntryType::Directory, mode), path, &[])
    }

    pub(super) fn file(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<()> {
        self.add(&mut header(EntryType::Regular, mode), path, contents)
    }

    pub(super) fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        let mut link = header(EntryType::Symlink, 0o777);
        self.tar.append_link(&mut link, path, target).with_context(|| format!("add link {path}"))
    }

    pub(super) fn finish(self) -> Result<Vec<u8>> {
        self.tar.into_inner().context("finish a layer")
    }

    fn add(&mut self, header: &mut Header, path: &str, contents: &[u8]) -> Result<()> {
        header.set_size(contents.len() as u64);
        self.tar.append_data(header, path, contents).with_context(|| format!("add {path}"))
    }
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}
