//! `configMap`, `secret`, `downwardAPI` and `projected` on the node: a directory on disk, or in memory what must not be on
//! one, with the files of a payload. Blocks: a mount, and a handful of system calls per file.

use super::empty_dir;
use super::error::IoError;
use super::payload::{Payload, Plugin};
use super::writer;
use rustix::io::Errno;
use std::path::{Path, PathBuf};

/// Makes the volume if it is not there, and has it show `payload`. Idempotent. `size` bounds a volume in memory, bytes.
pub fn setup(
    pod_dir: &Path,
    volume: &str,
    plugin: Plugin,
    size: Option<i64>,
    payload: &Payload,
    fs_group: Option<i64>,
) -> Result<PathBuf, IoError> {
    let memory = plugin.in_memory().then_some(size);
    let place = empty_dir::Place { plugin: plugin.dir(), volume, ready: &wrapped(volume) };
    let dir = empty_dir::setup(pod_dir, &place, memory, fs_group)?;
    writer::write(&dir, payload, group(&dir, fs_group)?)?;
    Ok(dir)
}

/// Has the volume show `payload`, if it is set up.
pub fn refresh(
    pod_dir: &Path,
    volume: &str,
    plugin: Plugin,
    payload: &Payload,
    fs_group: Option<i64>,
) -> Result<(), IoError> {
    let place = empty_dir::Place { plugin: plugin.dir(), volume, ready: &wrapped(volume) };
    match place.complete(pod_dir, plugin.in_memory())? {
        Some(dir) => writer::write(&dir, payload, group(&dir, fs_group)?).map(drop),
        None => Ok(()),
    }
}

/// What the stock agent calls the empty volume that these are made of.
fn wrapped(volume: &str) -> String {
    format!("wrapped_{volume}")
}

fn group(dir: &Path, fs_group: Option<i64>) -> Result<Option<u32>, IoError> {
    let raw = |gid| u32::try_from(gid).map_err(|_| IoError::at("chown", dir)(Errno::INVAL));
    fs_group.map(raw).transpose()
}
