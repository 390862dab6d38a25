//! Files that change all at once: a directory a reader never sees half.
//!
//! ```text
//!  <volume>/
//!    ..2026_11_20_16_45_22.123456/a, x/y     the files
//!    ..data -> ..2026_11_20_16_45_22.123456  swapped by one rename
//!    a -> ..data/a, x -> ..data/x            what a container opens
//! ```
//!
//! [`write`] makes the files in a new directory, swaps the link, then puts right which names are there and removes what
//! is left of earlier writes. It believes nothing but what it finds: killed at any call, the next write ends where an
//! undisturbed one would have. Nothing is written when everything is as it should be. Called on blocking threads with
//! the pod's lock held, for there must be one writer; it follows no link and leaves alone what is not its own.

use super::error::IoError;
use super::payload::{File, Payload};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The link to the files that count.
const DATA: &str = "..data";
/// Where the next one is made.
const NEXT: &str = "..data_tmp";
/// What a group that owns a volume may do with its files, and with its directories.
const GROUP: (u32, u32) = (0o440, 0o2550);

/// Makes the directory `volume` show `payload` and nothing else of ours; `true` when something was written. Files belong
/// to `group`, if any.
///
/// # Errors
/// The first call that failed. What the volume showed before it still shows, or it shows the payload.
pub fn write(volume: &Path, payload: &Payload, group: Option<u32>) -> Result<bool, IoError> {
    Writer { volume, group, tap: &|_| Ok(()) }.write(payload)
}

/// One write. `tap` is asked before every call that changes something: tests fail there.
struct Writer<'a> {
    volume: &'a Path,
    group: Option<u32>,
    tap: &'a dyn Fn(&'static str) -> Result<(), Errno>,
}

/// What is in the volume's directory.
#[derive(Debug, Default)]
struct Listing {
    /// Where `..data` leads, if to one of our directories.
    current: Option<String>,
    /// Names that begin with two dots, beside `..data`.
    ours: Vec<String>,
    /// Links into `..data`, as they should be, by name.
    links: BTreeSet<String>,
}

impl Writer<'_> {
    fn write(&self, payload: &Payload) -> Result<bool, IoError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(CWD, self.volume, flags, Mode::empty())
            .map_err(IoError::at("open", self.volume))?;
        let listing = self.list(&dir)?;
        let wanted: BTreeSet<&str> = payload.keys().map(|p| first(p)).collect();
        let current = listing.current.clone().filter(|name| self.holds(&dir, name, payload));
        let mut wrote = false;
        let current = match current {
            Some(name) => name,
            None => {
                wrote = true;
                self.replace(&dir, payload)?
            }
        };
        let mut failed = None;
        for name in wanted.iter().filter(|name| !listing.links.contains(**name)) {
            wrote = true;
            let target = format!("{DATA}/{name}");
            let made = self.step("symlink").and_then(|()| rustix::fs::symlinkat(&target, &dir, *name));
            // Something else has the name: the rest is put right all the same.
            failed = failed.or(made.map_err(IoError::at("symlink", &self.volume.join(name))).err());
        }
        for name in listing.links.iter().filter(|name| !wanted.contains(name.as_str())) {
            wrote = true;
            self.unlink(&dir, name, &PathBuf::from(name))?;
        }
        for name in listing.ours.iter().filter(|name| **name != current) {
            wrote = true;
            self.remove(&dir, name, &PathBuf::from(name))?;
        }
        failed.map_or(Ok(wrote), Err)
    }

    fn step(&self, call: &'static str) -> Result<(), Errno> {
        (self.tap)(call)
    }

    fn list(&self, dir: &OwnedFd) -> Result<Listing, IoError> {
        let mut found = Listing::default();
        for entry in Dir::read_from(dir).map_err(IoError::at("read", self.volume))? {
            let entry = entry.map_err(IoError::at("read", self.volume))?;
            // Names of ours are text; a name that is not is not ours.
            let Ok(name) = entry.file_name().to_str() else { continue };
            if matches!(name, "." | "..") {
                continue;
            }
            let target = || rustix::fs::readlinkat(dir, name, Vec::new()).ok()?.into_string().ok();
            if name == DATA {
                found.current = target().filter(|t| is_ours(t));
            } else if name.starts_with("..") {
                found.ours.push(name.to_owned());
            } else if target().is_some_and(|t| t.strip_prefix("..data/") == Some(name)) {
                found.links.insert(name.to_owned());
            }
        }
        Ok(found)
    }

    /// Whether the directory `name` holds exactly `payload`.
    fn holds(&self, dir: &OwnedFd, name: &str, payload: &Payload) -> bool {
        let Ok(at) = open_dir(dir, name) else { return false };
        let mut found = BTreeMap::new();
        self.read_below(&at, String::new(), payload, &mut found).is_ok_and(|()| {
            // Equal numbers and each found one wanted: the same.
            found.len() == payload.len() && found.values().all(|same| *same)
        }) && self.is_owned(&at, FileType::Directory, 0o755)
    }

    /// Puts into `found` every file below `at`, and whether it is the one of the payload.
    fn read_below(
        &self,
        at: &OwnedFd,
        path: String,
        payload: &Payload,
        found: &mut BTreeMap<String, bool>,
    ) -> Result<(), Errno> {
        for entry in Dir::read_from(at)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(text) = name.to_str() else { return Err(Errno::ILSEQ) };
            let path = if path.is_empty() { text.to_owned() } else { format!("{path}/{text}") };
            // Whether it is a directory is asked of the thing itself.
            if let Ok(below) = open_dir(at, text) {
                let needed = payload
                    .range(format!("{path}/")..)
                    .next()
                    .is_some_and(|(p, _)| p.strip_prefix(&path).is_some_and(|rest| rest.starts_with('/')));
                if !needed || !self.is_owned(&below, FileType::Directory, 0o755) {
                    return Err(Errno::INVAL);
                }
                self.read_below(&below, path, payload, found)?;
                continue;
            }
            let same = payload.get(&path).is_some_and(|file| self.is_same(at, text, file));
            found.insert(path, same);
        }
        Ok(())
    }

    fn is_same(&self, at: &OwnedFd, name: &str, file: &File) -> bool {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(fd) = rustix::fs::openat(at, name, flags, Mode::empty()) else { return false };
        if !self.is_owned(&fd, FileType::RegularFile, file.mode) {
            return false;
        }
        let mut bytes = Vec::with_capacity(file.bytes.len() + 1);
        // One byte more than wanted tells longer from equal.
        let limit = file.bytes.len() as u64 + 1;
        let read =
            std::io::Read::read_to_end(&mut std::io::Read::take(std::fs::File::from(fd), limit), &mut bytes);
        read.is_ok() && bytes == *file.bytes
    }

    fn is_owned(&self, fd: &OwnedFd, kind: FileType, mode: u32) -> bool {
        let Ok(stat) = rustix::fs::fstat(fd) else { return false };
        let mode = self.mode(kind, mode);
        let of_group = self.group.is_none_or(|gid| stat.st_gid == gid);
        // Without a group of the volume, the set-group-id bit of what lies above may be inherited.
        let bits = if self.group.is_some() { 0o7777 } else { 0o777 };
        FileType::from_raw_mode(stat.st_mode) == kind && stat.st_mode & bits == mode & bits && of_group
    }

    /// The mode of what should have `mode`: the group that owns the volume may read it.
    fn mode(&self, kind: FileType, mode: u32) -> u32 {
        match (self.group, kind) {
            (None, _) => mode,
            (Some(_), FileType::Directory) => mode | GROUP.1,
            (Some(_), _) => mode | GROUP.0,
        }
    }

    /// Owner and mode of what was just made. The change of owner comes first: it clears bits of the mode.
    fn own(&self, fd: &OwnedFd, kind: FileType, mode: u32) -> Result<(), Errno> {
        if let Some(gid) = self.group {
            self.step("chown")?;
            rustix::fs::fchown(fd, None, Some(Gid::from_raw(gid)))?;
        }
        self.step("chmod")?;
        rustix::fs::fchmod(fd, Mode::from_raw_mode(self.mode(kind, mode)))
    }

    /// A new directory with the files, and `..data` leading there; its name.
    fn replace(&self, dir: &OwnedFd, payload: &Payload) -> Result<String, IoError> {
        let name = loop {
            let name = new_name();
            let made = self.step("mkdir").and_then(|()| rustix::fs::mkdirat(dir, &name, Mode::RWXU));
            match made {
                Ok(()) => break name,
                Err(Errno::EXIST) => {}
                Err(e) => return Err(IoError::at("mkdir", &self.volume.join(name))(e)),
            }
        };
        let made = self.fill(dir, &name, payload).and_then(|()| self.swap(dir, &name));
        if made.is_err() {
            // As a rule the disk is full: this very directory is in the way.
            let _left_for_the_next_write = self.remove(dir, &name, &PathBuf::from(&name));
        }
        made.map(|()| name)
    }

    fn fill(&self, dir: &OwnedFd, name: &str, payload: &Payload) -> Result<(), IoError> {
        let place = self.volume.join(name);
        let top = open_dir(dir, name).map_err(IoError::at("open", &place))?;
        self.own(&top, FileType::Directory, 0o755).map_err(IoError::at("chmod", &place))?;
        for (path, file) in payload {
            let whole = place.join(path);
            let failed = |call| IoError::at(call, &whole);
            let (parent, base) = path.rsplit_once('/').map_or(("", path.as_str()), |(p, b)| (p, b));
            let at = self.make_parents(&top, parent).map_err(failed("mkdir"))?;
            self.step("create").map_err(failed("create"))?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd =
                rustix::fs::openat(&at, base, flags, Mode::RUSR | Mode::WUSR).map_err(failed("create"))?;
            let mut rest: &[u8] = &file.bytes;
            while !rest.is_empty() {
                self.step("write").map_err(failed("write"))?;
                let n = rustix::io::write(&fd, rest).map_err(failed("write"))?;
                rest = &rest[n..];
            }
            self.own(&fd, FileType::RegularFile, file.mode).map_err(failed("chmod"))?;
        }
        Ok(())
    }

    fn make_parents(&self, top: &OwnedFd, parents: &str) -> Result<OwnedFd, Errno> {
        let mut at = open_dir(top, ".")?;
        for part in parents.split('/').filter(|p| !p.is_empty()) {
            self.step("mkdir")?;
            match rustix::fs::mkdirat(&at, part, Mode::RWXU) {
                Ok(()) => {
                    at = open_dir(&at, part)?;
                    self.own(&at, FileType::Directory, 0o755)?;
                }
                Err(Errno::EXIST) => at = open_dir(&at, part)?,
                Err(e) => return Err(e),
            }
        }
        Ok(at)
    }

    /// Makes `..data` lead to the directory `name`.
    fn swap(&self, dir: &OwnedFd, name: &str) -> Result<(), IoError> {
        let next = self.volume.join(NEXT);
        self.unlink_if_there(dir, NEXT).map_err(IoError::at("unlink", &next))?;
        self.step("symlink").map_err(IoError::at("symlink", &next))?;
        rustix::fs::symlinkat(name, dir, NEXT).map_err(IoError::at("symlink", &next))?;
        self.step("rename").map_err(IoError::at("rename", &next))?;
        rustix::fs::renameat(dir, NEXT, dir, DATA).map_err(IoError::at("rename", &next))
    }

    fn unlink_if_there(&self, dir: &OwnedFd, name: &str) -> Result<(), Errno> {
        self.step("unlink")?;
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn unlink(&self, dir: &OwnedFd, name: &str, path: &Path) -> Result<(), IoError> {
        self.unlink_if_there(dir, name).map_err(IoError::at("unlink", &self.volume.join(path)))
    }

    /// Removes `name` and what is below it.
    fn remove(&self, dir: &OwnedFd, name: &str, path: &Path) -> Result<(), IoError> {
        let below = match open_dir(dir, name) {
            Ok(below) => below,
            Err(Errno::NOENT) => return Ok(()),
            Err(_) => return self.unlink(dir, name, path),
        };
        let whole = self.volume.join(path);
        let failed = |call| IoError::at(call, &whole);
        for entry in Dir::read_from(&below).map_err(failed("read"))? {
            let entry = entry.map_err(failed("read"))?;
            let inner = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
            match inner.to_str() {
                Some("." | "..") => {}
                Some(text) => self.remove(&below, text, &path.join(inner))?,
                None => return Err(IoError::at("unlink", &self.volume.join(path).join(inner))(Errno::ILSEQ)),
            }
        }
        self.step("rmdir").map_err(failed("rmdir"))?;
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(failed("rmdir")(e)),
        }
    }
}

/// A directory itself: neither a link to one nor one that is mounted there.
fn open_dir(at: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(at.as_fd(), name, flags, Mode::empty(), how)
}

/// The part of a path that stands in the volume's own directory.
fn first(path: &str) -> &str {
    path.split_once('/').map_or(path, |(first, _)| first)
}

/// Whether `..data` may lead there.
fn is_ours(name: &str) -> bool {
    name.starts_with("..") && name.len() > 2 && !name.contains('/') && name != DATA && name != NEXT
}

/// A name for a new directory: the time in UTC and a number, as the stock agent's.
fn new_name() -> String {
    let now = jiff::Timestamp::now();
    let number = RandomState::new().hash_one(now.as_nanosecond()) as u32;
    format!("{}.{number}", now.strftime("..%Y_%m_%d_%H_%M_%S"))
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
