//! Taking a pod's directory away: unmount what the room mounted, then remove the tree. Called on blocking threads only.
//!
//! It never runs through a mount and never follows a link: every directory is opened beneath its parent's handle with
//! `RESOLVE_NO_XDEV` and `RESOLVE_NO_SYMLINKS`. A mount that the room did not make stops it before it touches anything.

use super::dirs;
use super::error::{IoError, TeardownError};
use super::payload::Plugin;
use crate::mountinfo::{self, Mount};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Directories deeper than this below the pod's are first moved up, so that neither handles nor stack run out
/// however deep a container nested them.
const DEEP: usize = 48;

/// Unmounts and removes `pod_dir`; one that is not there is done. Goes on past what cannot be removed and tells of it
/// at the end.
pub fn teardown(pod_dir: &Path, mount_table: &Path) -> Result<(), TeardownError> {
    if !pod_dir.exists() {
        return Ok(());
    }
    unmount(pod_dir, mount_table)?;
    remove_tree(pod_dir)
}

/// Unmounts and removes the volumes in `pod_dir` and nothing else of it. Tells of what cannot be removed.
pub fn volumes(pod_dir: &Path, mount_table: &Path) -> Result<(), TeardownError> {
    if !pod_dir.exists() {
        return Ok(());
    }
    unmount(pod_dir, mount_table)?;
    remove_tree(&pod_dir.join("volume-subpaths")).and(remove_tree(&pod_dir.join("volumes")))
}

/// Unmounts what the room mounted in `pod_dir`.
fn unmount(pod_dir: &Path, mount_table: &Path) -> Result<(), TeardownError> {
    let table = mountinfo::read(mount_table).map_err(IoError::at("read", mount_table))?;
    let inside: Vec<&Mount> = table.iter().filter(|m| m.point.starts_with(pod_dir)).collect();
    if let Some(foreign) = inside.iter().find(|m| !is_ours(pod_dir, &m.point)) {
        return Err(TeardownError::ForeignMount {
            point: foreign.point.clone(),
            fs_type: foreign.fs_type.clone(),
            pod_dir: pod_dir.to_owned(),
        });
    }
    // The last mounted first.
    for mount in inside.iter().rev() {
        rustix::mount::unmount(&mount.point, UnmountFlags::NOFOLLOW)
            .map_err(|e| TeardownError::Unmount { point: mount.point.clone(), cause: e.into() })?;
    }
    Ok(())
}

/// Whether the room mounts things at `point`: a memory volume or a bound sub path.
fn is_ours(pod_dir: &Path, point: &Path) -> bool {
    let Ok(inside) = point.strip_prefix(pod_dir) else { return false };
    let parts: Vec<&OsStr> = inside.components().map(Component::as_os_str).collect();
    match parts.as_slice() {
        [volumes, plugin, _volume] => {
            let in_memory = Plugin::ALL.into_iter().filter(|p| p.in_memory()).map(Plugin::dir);
            *volumes == "volumes" && in_memory.chain([dirs::EMPTY_DIR]).any(|known| *plugin == known)
        }
        [subpaths, _volume, _container, n] => {
            *subpaths == "volume-subpaths" && n.as_bytes().iter().all(u8::is_ascii_digit)
        }
        _ => false,
    }
}

/// Removes the directory `dir` and what is in it.
fn remove_tree(dir: &Path) -> Result<(), TeardownError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = match rustix::fs::openat(CWD, dir, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(IoError::at("open", dir)(e).into()),
    };
    let mut sweep = Sweep { top: &top, path: dir.to_owned(), moved: 0, failures: Vec::new() };
    // What was moved up is met by the next pass.
    loop {
        let moved = sweep.moved;
        sweep.empty(&top, 0);
        if sweep.moved == moved || !sweep.failures.is_empty() {
            break;
        }
    }
    let mut failures = sweep.failures.into_iter();
    if let Some(first) = failures.next() {
        return Err(TeardownError::Tree { pod_dir: dir.to_owned(), first, further: failures.count() });
    }
    match rustix::fs::rmdir(dir) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(IoError::at("rmdir", dir)(e).into()),
    }
}

/// One removal under way.
struct Sweep<'a> {
    /// Where deep directories are moved to.
    top: &'a OwnedFd,
    /// Where the sweep is, for errors.
    path: PathBuf,
    /// Directories moved up so far.
    moved: u64,
    failures: Vec<IoError>,
}

impl Sweep<'_> {
    /// Removes everything in `dir` that can be removed.
    fn empty(&mut self, dir: &OwnedFd, depth: usize) {
        let entries = match Dir::read_from(dir) {
            Ok(entries) => entries,
            Err(e) => return self.failed("read", e),
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) => return self.failed("read", e),
            };
            let name = entry.file_name();
            if name.to_bytes() == b"." || name.to_bytes() == b".." {
                continue;
            }
            self.path.push(OsStr::from_bytes(name.to_bytes()));
            self.remove(dir, name, entry.file_type() == FileType::Directory, depth);
            self.path.pop();
        }
    }

    fn remove(&mut self, dir: &OwnedFd, name: &CStr, is_dir: bool, depth: usize) {
        if !is_dir {
            match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => return,
                // The file system does not tell types, or it was swapped.
                Err(Errno::ISDIR) => {}
                Err(e) => return self.failed("unlink", e),
            }
        }
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return,
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(e) => return self.failed("rmdir", e),
        }
        if depth >= DEEP {
            return self.move_up(dir, name);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        match rustix::fs::openat2(dir, name, flags, Mode::empty(), how) {
            Ok(child) => self.empty(&child, depth + 1),
            Err(e) => return self.failed("open", e),
        }
        let before = self.failures.len();
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            // Told of already, by what is still in it.
            Err(Errno::NOTEMPTY | Errno::EXIST) if before > 0 => {}
            Err(e) => self.failed("rmdir", e),
        }
    }

    fn move_up(&mut self, dir: &OwnedFd, name: &CStr) {
        loop {
            let new = format!(".removing-{}", self.moved);
            self.moved += 1;
            match rustix::fs::renameat(dir, name, self.top, new) {
                Ok(()) => return,
                // Left by an earlier attempt, and met by the next pass.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                Err(e) => return self.failed("rename", e),
            }
        }
    }

    fn failed(&mut self, call: &'static str, e: Errno) {
        self.failures.push(IoError::at(call, &self.path)(e));
    }
}
