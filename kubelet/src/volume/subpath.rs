//! `subPath`: a place inside a volume, bound to a path that nobody but the agent can change.
//!
//! The container owns what is inside a volume and can swap any part of a path for a link at any moment. So a path
//! is resolved once, by the kernel, to a handle that lies beneath the volume, and the handle is what gets mounted:
//! there is no second look at the path. Called on blocking threads only; never follows a link out of the volume.

use super::dirs;
use super::error::IoError;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

/// Attempts at a path that is being renamed under our feet, which the kernel answers with EAGAIN.
const RACED: u32 = 32;

/// Which half failed: upstream words them differently.
#[derive(Debug)]
pub enum Failure {
    /// The path was not there and could not be made.
    Create(IoError),
    /// The path leads out of the volume, or could not be bound.
    Prepare(IoError),
}

/// Binds `sub_path` of the volume at `volume` to `target`, whose parent exists. A missing path is made as directories
/// with the volume's own mode. Idempotent: a target that shows the right thing stays.
pub fn bind(volume: &Path, sub_path: &str, target: &Path) -> Result<(), Failure> {
    let root = rustix::fs::open(volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(IoError::at("open", volume))
        .map_err(Failure::Prepare)?;
    let place = volume.join(sub_path);
    let source = match resolve(&root, volume, Path::new(sub_path)) {
        Err(Errno::NOENT) => make_missing(&root, volume, sub_path)
            .map_err(IoError::at("mkdir", &place))
            .map_err(Failure::Create)?,
        other => other.map_err(IoError::at("open", &place)).map_err(Failure::Prepare)?,
    };
    attach(&source, target).map_err(Failure::Prepare)
}

/// The bytes of the regular file `path` beneath `volume`, at most `limit`.
pub fn read(volume: &Path, path: &str, limit: u64) -> io::Result<Vec<u8>> {
    let root = rustix::fs::open(volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    // What it leads to may be a FIFO that a container made.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(rustix::fs::openat2(&root, path, flags, Mode::empty(), how)?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {limit} bytes")));
    }
    Ok(bytes)
}

/// A handle on `sub_path`, which lies beneath `root`.
fn resolve(root: &OwnedFd, volume: &Path, sub_path: &Path) -> Result<OwnedFd, Errno> {
    match open_beneath(root, sub_path, ResolveFlags::empty()) {
        // A link with an absolute target, or one that leads out. As seen from the node it may still end up inside.
        Err(Errno::XDEV) => {
            let real = |p: &Path| p.canonicalize().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO));
            let end = real(&volume.join(sub_path))?;
            let inside = end.strip_prefix(real(volume)?).map_err(|_| Errno::XDEV)?.to_owned();
            let inside = if inside.as_os_str().is_empty() { PathBuf::from(".") } else { inside };
            // What was looked up just now may have changed: from here on no link at all.
            open_beneath(root, &inside, ResolveFlags::NO_SYMLINKS)
        }
        other => other,
    }
}

fn open_beneath(at: &OwnedFd, path: &Path, more: ResolveFlags) -> Result<OwnedFd, Errno> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | more;
    for _ in 0..RACED {
        match rustix::fs::openat2(at, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Makes what is missing of `sub_path` and answers a handle on its end.
fn make_missing(root: &OwnedFd, volume: &Path, sub_path: &str) -> Result<OwnedFd, Errno> {
    let mode = Mode::from_raw_mode(rustix::fs::fstat(root)?.st_mode & 0o777);
    let parts: Vec<_> =
        Path::new(sub_path).components().filter(|c| matches!(c, Component::Normal(_))).collect();
    // The longest part that is there; links within the volume are followed.
    let mut have = parts.len();
    let mut at = loop {
        let prefix: PathBuf = if have == 0 { PathBuf::from(".") } else { parts[..have].iter().collect() };
        match resolve(root, volume, &prefix) {
            Err(Errno::NOENT) if have > 0 => have -= 1,
            other => break other?,
        }
    };
    for part in &parts[have..] {
        let name = Path::new(part);
        match rustix::fs::mkdirat(&at, name, mode) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
        // What was just made may have been swapped already: no links.
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let made = rustix::fs::openat2(&at, name, flags, Mode::empty(), how)?;
        rustix::fs::fchmod(&made, mode)?;
        at = made;
    }
    Ok(at)
}

/// Mounts `source` on `target`.
fn attach(source: &OwnedFd, target: &Path) -> Result<(), IoError> {
    let want = rustix::fs::fstat(source).map_err(IoError::at("stat", target))?;
    if let Some(have) = stat(target)? {
        if dirs::is_mount_point(target)? {
            if (have.st_dev, have.st_ino) == (want.st_dev, want.st_ino) {
                return Ok(());
            }
            rustix::mount::unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
                .map_err(IoError::at("unmount", target))?;
        }
        remove_leftover(target)?;
    }
    if FileType::from_raw_mode(want.st_mode) == FileType::Directory {
        dirs::make(target, 0o750)?;
    } else {
        std::fs::File::create_new(target).map_err(IoError::at("create", target))?;
    }
    let tree = rustix::mount::open_tree(
        source.as_fd(),
        "",
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH,
    )
    .map_err(IoError::at("clone the mount for", target))?;
    rustix::mount::move_mount(tree.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(IoError::at("mount on", target))
}

fn stat(path: &Path) -> Result<Option<Stat>, IoError> {
    match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(IoError::at("stat", path)(e)),
    }
}

/// An earlier mount point, empty by now: the new one may need the other type.
fn remove_leftover(target: &Path) -> Result<(), IoError> {
    match rustix::fs::unlink(target) {
        Err(Errno::ISDIR) => rustix::fs::rmdir(target).map_err(IoError::at("rmdir", target)),
        other => other.map_err(IoError::at("unlink", target)),
    }
}
