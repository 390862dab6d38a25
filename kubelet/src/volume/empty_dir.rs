//! `emptyDir` on disk or in memory. Blocks: a handful of system calls, a mount for medium `Memory`.

use super::dirs;
use super::error::IoError;
use rustix::fs::{Gid, Mode};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Any user of the pod may write.
const MODE: u32 = 0o777;

/// Which volume.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The escaped name of its plugin.
    pub plugin: &'a str,
    /// Its name.
    pub volume: &'a str,
    /// Under which name it is noted down that the volume is complete: its own, or that of an empty volume which another
    /// plugin fills.
    pub ready: &'a str,
}

impl<'a> Place<'a> {
    /// An `emptyDir`.
    pub fn of(volume: &'a str) -> Self {
        Self { plugin: dirs::EMPTY_DIR, volume, ready: volume }
    }

    /// Where it is, if it is complete: after a reboot the mount of a volume in memory is gone.
    pub fn complete(&self, pod_dir: &Path, in_memory: bool) -> Result<Option<PathBuf>, IoError> {
        let dir = dirs::volume(pod_dir, self.plugin, self.volume);
        let ready = dirs::plugin_dir(pod_dir, self.ready).join("ready");
        let complete = ready.exists() && dir.is_dir() && (!in_memory || dirs::is_mount_point(&dir)?);
        Ok(complete.then_some(dir))
    }
}

/// Makes the volume if it is not there and complete. Idempotent: what a complete one holds, and its mode and owner,
/// are not touched. After a reboot a memory volume's mount is gone; it is made anew.
pub fn setup(
    pod_dir: &Path,
    place: &Place<'_>,
    memory: Option<Option<i64>>,
    fs_group: Option<i64>,
) -> Result<PathBuf, IoError> {
    if let Some(dir) = place.complete(pod_dir, memory.is_some())? {
        return Ok(dir);
    }
    let dir = dirs::volume(pod_dir, place.plugin, place.volume);
    let ready = dirs::plugin_dir(pod_dir, place.ready).join("ready");
    let volumes = pod_dir.join("volumes");
    dirs::make_below(&volumes, &[place.plugin], 0o755)?;
    dirs::make(&dir, MODE)?;
    if let Some(size) = memory
        && !dirs::is_mount_point(&dir)?
    {
        mount_tmpfs(&dir, size)?;
    }
    if let Some(gid) = fs_group {
        own_by_group(&dir, gid)?;
    }
    dirs::make_below(&pod_dir.join("plugins"), &[dirs::EMPTY_DIR, place.ready], 0o750)?;
    std::fs::File::create(&ready).map_err(IoError::at("create", &ready))?;
    Ok(dir)
}

/// The group gets the volume and, through the set-group-id bit, what is made in it.
fn own_by_group(dir: &Path, gid: i64) -> Result<(), IoError> {
    let raw = u32::try_from(gid).map_err(|_| IoError::at("chown", dir)(Errno::INVAL))?;
    rustix::fs::chown(dir, None, Some(Gid::from_raw(raw))).map_err(IoError::at("chown", dir))?;
    let meta = std::fs::metadata(dir).map_err(IoError::at("stat", dir))?;
    let mode = std::os::unix::fs::MetadataExt::mode(&meta) & 0o7777;
    // After the change of owner, which clears it.
    rustix::fs::chmod(dir, Mode::from_raw_mode(mode | 0o2770)).map_err(IoError::at("chmod", dir))
}

fn mount_tmpfs(dir: &Path, size: Option<i64>) -> Result<(), IoError> {
    /// Linux 6.4 has `noswap`; older ones refuse it, once asked.
    static NOSWAP: AtomicBool = AtomicBool::new(true);
    let noswap = NOSWAP.load(Ordering::Relaxed);
    match mount_with(dir, size, noswap) {
        Err(Errno::INVAL) if noswap => {
            mount_with(dir, size, false).map_err(IoError::at("mount tmpfs on", dir))?;
            NOSWAP.store(false, Ordering::Relaxed);
            tracing::warn!("this kernel cannot keep memory volumes out of swap: tmpfs has no option noswap");
            Ok(())
        }
        other => other.map_err(IoError::at("mount tmpfs on", dir)),
    }
}

fn mount_with(dir: &Path, size: Option<i64>, noswap: bool) -> Result<(), Errno> {
    let size = size.map(|bytes| format!("size={bytes}"));
    let options: Vec<&str> = size.as_deref().into_iter().chain(noswap.then_some("noswap")).collect();
    let options = CString::new(options.join(",")).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount("tmpfs", dir, "tmpfs", MountFlags::empty(), options.as_c_str())
}
