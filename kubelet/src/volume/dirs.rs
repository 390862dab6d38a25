//! The pod's directories under the root directory, with the stock agent's names and modes.
//!
//! ```text
//!  <root>/pods/<uid>/                                   0750
//!    containers/<container>/<8 hex>                     0750, termination log 0666
//!    plugins/kubernetes.io~empty-dir/<volume>/ready     0750, file 0644: the volume's set-up is complete; `wrapped_<volume>`
//!                                                       for the plugins that fill an empty volume
//!    volumes/<plugin>/<volume>                          0755 above, the volume 0777, 1777 in memory
//!    volume-subpaths/<volume>/<container>/<n>           0750, bind mounts
//!    etc-hosts                                          written by the pod's actor
//! ```

use super::error::IoError;
use rustix::fs::{AtFlags, CWD, Mode, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

/// The escaped name of the plugin `kubernetes.io/empty-dir`.
pub const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// `<pod>/volumes/<plugin>/<volume>`
pub fn volume(pod_dir: &Path, plugin: &str, volume: &str) -> PathBuf {
    pod_dir.join("volumes").join(plugin).join(volume)
}

/// `<pod>/plugins/kubernetes.io~empty-dir/<volume>`
pub fn plugin_dir(pod_dir: &Path, volume: &str) -> PathBuf {
    pod_dir.join("plugins").join(EMPTY_DIR).join(volume)
}

/// Makes one directory with exactly `mode`; `true` when it was not there. One that is there is left as it is.
pub fn make(path: &Path, mode: u32) -> Result<bool, IoError> {
    let bits = Mode::from_raw_mode(mode);
    match rustix::fs::mkdir(path, bits) {
        // The process's umask has had its say.
        Ok(()) => rustix::fs::chmod(path, bits).map(|()| true).map_err(IoError::at("chmod", path)),
        Err(Errno::EXIST) if path.is_dir() => Ok(false),
        Err(Errno::EXIST) => Err(IoError::at("mkdir", path)(Errno::NOTDIR)),
        Err(e) => Err(IoError::at("mkdir", path)(e)),
    }
}

/// Makes `base/part/part…`, each with `mode`; `base` must exist. Tries the innermost first: it is mostly there.
pub fn make_below(base: &Path, parts: &[&str], mode: u32) -> Result<PathBuf, IoError> {
    let full: PathBuf = base.join(parts.iter().collect::<PathBuf>());
    match make(&full, mode) {
        Err(e) if e.cause.kind() == std::io::ErrorKind::NotFound => {}
        done => return done.map(|_| full),
    }
    let mut at = base.to_owned();
    for part in parts {
        at.push(part);
        make(&at, mode)?;
    }
    Ok(at)
}

/// `containers/<container>` and in it a new, empty termination log that any user can write. Answers the log's path.
pub fn termination_log(pod_dir: &Path, container: &str) -> Result<PathBuf, IoError> {
    let dir = make_below(pod_dir, &["containers", container], 0o750)?;
    loop {
        let path = dir.join(format!("{:08x}", RandomState::new().hash_one(container) as u32));
        match std::fs::File::create_new(&path) {
            Ok(_) => {
                rustix::fs::chmod(&path, Mode::from_raw_mode(0o666)).map_err(IoError::at("chmod", &path))?;
                return Ok(path);
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(IoError::at("create", &path)(e)),
        }
    }
}

/// Whether something is mounted on `path` itself.
pub fn is_mount_point(path: &Path) -> Result<bool, IoError> {
    let stat = |p: &Path| {
        rustix::fs::statx(CWD, p, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)
            .map_err(IoError::at("stat", p))
    };
    let own = stat(path)?;
    if own.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(own.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    // Kernels before 5.8: a mount of another file system shows as another device.
    let parent = stat(path.parent().unwrap_or(path))?;
    Ok((own.stx_dev_major, own.stx_dev_minor) != (parent.stx_dev_major, parent.stx_dev_minor))
}
