//! Where a log lies, reached without following a single link below the root of all pods' logs.
//!
//! Whoever may write to a log directory, such as a pod that mounts `/var/log`, could put links there; with root's rights
//! a reader would show any file of the node and a rotation would move it. So the container's directory is opened by a
//! path whose last components (`<pod>/<container>`) may be no links, and everything in it is reached through that handle,
//! by plain names, again without links. All functions block on the disk.

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

/// `openat2` gives up when something is renamed under it; how often it is tried.
const RACED: usize = 32;

/// A container's log directory, and the name of one log in it.
#[derive(Debug)]
pub struct Place {
    dir: OwnedFd,
    name: String,
}

impl Place {
    /// Opens the directory of the log at `path`: `<root>/<pod>/<container>/<n>.log`, of which only the root's own path may
    /// contain links.
    pub fn open(path: &Path) -> io::Result<Self> {
        let name = path.file_name().and_then(|n| n.to_str()).ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let parts: Vec<Component<'_>> = dir.components().collect();
        if parts.iter().any(|c| matches!(c, Component::ParentDir)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a log's path must not contain \"..\""));
        }
        let (above, below) = parts.split_at(parts.len().saturating_sub(2).max(1).min(parts.len()));
        let (above, below): (PathBuf, PathBuf) = (above.iter().collect(), below.iter().collect());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&above, flags, Mode::empty())?;
        if below.as_os_str().is_empty() {
            return Ok(Self { dir: root, name });
        }
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        for _ in 0..RACED {
            match rustix::fs::openat2(&root, &below, flags, Mode::empty(), how) {
                Err(Errno::AGAIN) => {}
                other => return Ok(Self { dir: other?, name }),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// The log's own name: `<n>.log`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path to `name` in this directory that holds for as long as this handle lives.
    pub fn path_of(&self, name: &str) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.dir.as_raw_fd()))
    }

    /// What is at the log's name; a link is not followed.
    pub fn stat(&self) -> io::Result<Stat> {
        Ok(rustix::fs::statat(&self.dir, &*self.name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Opens the regular file `name` for reading; anything else is refused, and a pipe without a writer does not block.
    pub fn open_file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
        let file = File::from(rustix::fs::openat(&self.dir, name, flags, Mode::empty())?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
    }

    /// Makes the file `name` anew, for writing. One that is there, or a link, is removed first.
    pub fn create_file(&self, name: &str) -> io::Result<File> {
        self.remove(name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o640);
        Ok(File::from(rustix::fs::openat(&self.dir, name, flags, mode)?))
    }

    /// Removes the file `name`; nothing there is fine. Tells whether something was.
    pub fn remove(&self, name: &str) -> io::Result<bool> {
        match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Renames within the directory; what is at `to` already stays, and that is an error.
    pub fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        match rustix::fs::renameat_with(&self.dir, from, &self.dir, to, RenameFlags::NOREPLACE) {
            // A file system without that flag: link and unlink do the same in two steps, and never replace either.
            Err(Errno::INVAL) => {
                rustix::fs::linkat(&self.dir, from, &self.dir, to, AtFlags::empty())?;
                Ok(rustix::fs::unlinkat(&self.dir, from, AtFlags::empty())?)
            }
            other => Ok(other?),
        }
    }

    /// Renames within the directory, in the place of what is there.
    pub fn rename_over(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.dir, from, &self.dir, to)?)
    }

    /// Makes what was renamed and removed so far outlive a power cut.
    pub fn sync(&self) -> io::Result<()> {
        // The handle itself cannot be read or synced.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::fsync(rustix::fs::openat(&self.dir, ".", flags, Mode::empty())?)?)
    }

    /// The names in the directory that are text; those that are not are nobody's logs.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&self.dir, ".", flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(dir)? {
            if let Ok(name) = entry?.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn log() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("ns_p_uid/c/0.log");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "x").unwrap();
        (root, path)
    }

    #[test]
    fn no_link_below_the_root_is_followed() {
        let (root, path) = log();
        let (pod, container) = (root.path().join("ns_p_uid"), path.parent().unwrap());
        assert!(Place::open(&path).unwrap().open_file("0.log").is_ok());
        // The log itself.
        std::fs::write(root.path().join("secret"), "s").unwrap();
        std::fs::remove_file(&path).unwrap();
        symlink(root.path().join("secret"), &path).unwrap();
        let place = Place::open(&path).unwrap();
        assert!(place.open_file("0.log").is_err());
        assert!(rustix::fs::FileType::from_raw_mode(place.stat().unwrap().st_mode).is_symlink());
        // Its directory, then the pod's.
        std::fs::rename(container, pod.join("real")).unwrap();
        symlink("real", container).unwrap();
        assert!(Place::open(&path).is_err());
        std::fs::rename(&pod, root.path().join("elsewhere")).unwrap();
        symlink("elsewhere", &pod).unwrap();
        assert!(Place::open(&pod.join("real/0.log")).is_err());
        // The root may be a link: that is the node's own doing.
        symlink(root.path(), root.path().join("root")).unwrap();
        assert!(Place::open(&root.path().join("root/elsewhere/real/0.log")).is_ok());
        assert!(Place::open(Path::new("/a/../b/0.log")).is_err());
    }

    #[test]
    fn nothing_is_overwritten_unasked() {
        let (_root, path) = log();
        let place = Place::open(&path).unwrap();
        std::fs::write(path.with_file_name("other"), "y").unwrap();
        assert_eq!(place.rename_new("0.log", "other").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(path.with_file_name("other")).unwrap(), b"y");
        place.rename_new("0.log", "new").unwrap();
        assert!(place.remove("new").unwrap() && !place.remove("new").unwrap());
        assert_eq!(place.names().unwrap().iter().filter(|n| !n.starts_with('.')).count(), 1);
        place.sync().unwrap();
    }
}
