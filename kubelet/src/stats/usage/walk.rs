//! One directory tree, counted a slice at a time: what `du` would tell, without following a link, crossing a mount or
//! counting a file twice.
//!
//! What containers write is not to be trusted: names are opened below the directory they were found in, never by path;
//! how many directories are open is bounded, and a slice ends after a number of entries however large a directory is.

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

/// What a tree takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Bytes on the disk, in whole blocks.
    pub bytes: u64,
    /// Files, directories, links and whatever else, the root included; each once.
    pub inodes: u64,
}

/// What of a path is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// All of it.
    Tree,
    /// The files right in it: not the directory, nothing deeper. A log directory.
    Files,
    /// The one file.
    File,
}

/// So many directories are open from the root to where the count is; deeper ones wait, as many again at most. What does not
/// find a place is not counted, and said.
const DEEPEST: usize = 256;

/// A count under way.
#[derive(Debug)]
pub struct Walk {
    what: What,
    device: (u32, u32),
    used: Used,
    /// From the root to where the count is.
    open: Vec<Level>,
    /// Directories that were too deep, to be counted from there.
    later: Vec<OwnedFd>,
    /// Inodes with several names that were counted.
    linked: HashSet<u64>,
    /// Something could not be counted.
    cut: bool,
}

/// A directory being read.
#[derive(Debug)]
struct Level {
    dir: OwnedFd,
    /// Directories in what was read of it last; they are counted before more is read, so that few names are held.
    inside: Vec<CString>,
    /// There is no more to read.
    read: bool,
}

const READ: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Walk {
    /// Begins at `path`, which may itself be reached through links. `None` where there is nothing.
    pub fn begin(path: &Path, what: What) -> Option<Self> {
        let own = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS).ok()?;
        let mut walk = Self {
            what,
            device: (own.stx_dev_major, own.stx_dev_minor),
            used: Used::default(),
            open: Vec::new(),
            later: Vec::new(),
            linked: HashSet::new(),
            cut: false,
        };
        if what != What::Files {
            walk.count(&own);
        }
        if what != What::File {
            walk.enter(rustix::fs::open(path, READ, Mode::empty()).ok()?);
        }
        Some(walk)
    }

    /// Counts about `entries` more; what the tree takes, once all is counted.
    pub fn slice(&mut self, entries: &mut usize) -> Option<Used> {
        loop {
            let Some(level) = self.open.last_mut() else {
                let Some(dir) = self.later.pop() else { return Some(self.used) };
                self.enter(dir);
                continue;
            };
            if let Some(name) = level.inside.pop() {
                // One that went meanwhile, or became something else, is passed over.
                let child =
                    rustix::fs::openat(&level.dir, name.as_c_str(), READ | OFlags::NOFOLLOW, Mode::empty());
                match child {
                    Ok(dir) if self.open.len() < DEEPEST => self.enter(dir),
                    Ok(dir) if self.later.len() < DEEPEST => self.later.push(dir),
                    Ok(_) | Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => self.cut = true,
                    Err(_) => {}
                }
                *entries = entries.saturating_sub(1);
            } else if level.read {
                self.open.pop();
            } else {
                self.read(entries);
            }
            if *entries == 0 && !(self.open.is_empty() && self.later.is_empty()) {
                return None;
            }
        }
    }

    /// Whether something could not be counted: too many directories at too great a depth, or no descriptors left.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    fn enter(&mut self, dir: OwnedFd) {
        self.open.push(Level { dir, inside: Vec::new(), read: false });
    }

    /// Reads one piece of the innermost directory.
    fn read(&mut self, entries: &mut usize) {
        let Some(mut level) = self.open.pop() else { return };
        let mut space = [MaybeUninit::<u8>::uninit(); 8192];
        let mut list = RawDir::new(&level.dir, &mut space);
        let mut inside = Vec::new();
        level.read = true;
        // A directory that cannot be read further is as far as it goes.
        while let Some(Ok(entry)) = list.next() {
            let name = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                if self.entry(&level.dir, name) {
                    inside.push(name.to_owned());
                }
                *entries = entries.saturating_sub(1);
            }
            if list.is_buffer_empty() {
                level.read = false;
                break;
            }
        }
        level.inside = inside;
        self.open.push(level);
    }

    /// Counts one name; `true` for a directory to be counted, too.
    fn entry(&mut self, dir: &OwnedFd, name: &CStr) -> bool {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let Ok(stat) = rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS) else { return false };
        let kind = u32::from(stat.stx_mode) & libc::S_IFMT;
        let mounted = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        let elsewhere = mounted || (stat.stx_dev_major, stat.stx_dev_minor) != self.device;
        if elsewhere || (self.what == What::Files && kind != libc::S_IFREG) {
            return false;
        }
        self.count(&stat);
        kind == libc::S_IFDIR
    }

    fn count(&mut self, stat: &Statx) {
        let directory = u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFDIR;
        if stat.stx_nlink > 1 && !directory && !self.linked.insert(stat.stx_ino) {
            return;
        }
        self.used.bytes = self.used.bytes.saturating_add(stat.stx_blocks.saturating_mul(512));
        self.used.inodes += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn whole(walk: &mut Walk) -> Used {
        let mut entries = usize::MAX;
        walk.slice(&mut entries).unwrap()
    }

    fn all(path: &Path, what: What) -> Used {
        whole(&mut Walk::begin(path, what).unwrap())
    }

    /// What `du` tells: bytes, inodes.
    fn du(path: &Path) -> Used {
        let ask = |flag: &str| {
            let out = std::process::Command::new("du").args(["-s", "-x", flag]).arg(path).output().unwrap();
            String::from_utf8(out.stdout).unwrap().split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        Used { bytes: ask("--block-size=1"), inodes: ask("--inodes") }
    }

    #[test]
    fn a_tree_takes_what_du_says_whatever_is_in_it() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = dir.path();
        std::fs::write(other.path().join("large"), vec![1; 1 << 20]).unwrap();
        for name in ["a", "a/b", "a/b/c", "d", "empty"] {
            std::fs::create_dir(at.join(name)).unwrap();
        }
        for nth in 0..700 {
            std::fs::write(at.join(format!("d/a file with a rather long name, number {nth}")), "x").unwrap();
        }
        std::fs::write(at.join("a/b/c/data"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(at.join("a/b/c/data"), at.join("again")).unwrap();
        symlink(other.path(), at.join("a/link")).unwrap();
        symlink("..", at.join("a/loop")).unwrap();
        let sparse = std::fs::File::create(at.join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        drop(sparse);
        assert_eq!(all(at, What::Tree), du(at));
    }

    #[test]
    fn slices_add_up_to_the_whole_and_each_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        for nth in 0..1000 {
            std::fs::write(dir.path().join(format!("{nth}")), "x").unwrap();
        }
        let whole = all(dir.path(), What::Tree);
        assert_eq!(whole.inodes, 1001);
        let mut walk = Walk::begin(dir.path(), What::Tree).unwrap();
        let mut slices = 0;
        let used = loop {
            slices += 1;
            if let Some(used) = walk.slice(&mut 10) {
                break used;
            }
        };
        assert_eq!(used, whole);
        assert!(slices > 2, "a slice ends with what the kernel handed out, {slices} slices");
    }

    #[test]
    fn of_a_log_directory_the_files_count_alone_and_a_file_is_one_inode() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("0.log"), "line").unwrap();
        std::fs::write(dir.path().join("0.log.20260101"), "").unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/x"), "line").unwrap();
        symlink("0.log", dir.path().join("link")).unwrap();
        let blocks = std::fs::metadata(dir.path().join("0.log")).unwrap().blocks() * 512;
        assert_eq!(all(dir.path(), What::Files), Used { bytes: blocks, inodes: 2 });
        assert_eq!(all(&dir.path().join("0.log"), What::File), Used { bytes: blocks, inodes: 1 });
        assert!(Walk::begin(&dir.path().join("none"), What::Tree).is_none());
    }

    #[test]
    fn what_is_removed_during_the_count_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        for nth in 0..600 {
            std::fs::create_dir(dir.path().join(format!("{nth}"))).unwrap();
        }
        let mut walk = Walk::begin(dir.path(), What::Tree).unwrap();
        assert_eq!(walk.slice(&mut 1), None);
        std::fs::remove_dir_all(dir.path()).unwrap();
        assert!(whole(&mut walk).inodes > 0);
    }

    /// Makes a directory in one that is inside of another, and so on, so often; the innermost.
    fn nest(path: &Path, levels: usize) -> OwnedFd {
        let mut at = rustix::fs::open(path, READ, Mode::empty()).unwrap();
        for _ in 0..levels {
            rustix::fs::mkdirat(&at, "a-directory", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "a-directory", READ, Mode::empty()).unwrap();
        }
        at
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_counted_whole() {
        let dir = tempfile::tempdir().unwrap();
        drop(nest(dir.path(), 2 * DEEPEST + 5));
        let mut walk = Walk::begin(dir.path(), What::Tree).unwrap();
        let used = whole(&mut walk);
        assert_eq!((used.inodes, walk.is_cut()), (2 * DEEPEST as u64 + 6, false));
    }

    #[test]
    fn what_is_deep_and_broad_is_cut_and_said_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let deep = nest(dir.path(), DEEPEST - 1);
        for nth in 0..DEEPEST + 3 {
            rustix::fs::mkdirat(&deep, nth.to_string(), Mode::RWXU).unwrap();
        }
        let mut walk = Walk::begin(dir.path(), What::Tree).unwrap();
        let used = whole(&mut walk);
        assert!(walk.is_cut());
        assert_eq!(used.inodes, 2 * DEEPEST as u64 + 3, "all are counted, three were not entered");
    }

    #[test]
    fn another_file_system_below_is_not_counted() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("mounted");
        std::fs::create_dir(&below).unwrap();
        let none = rustix::mount::MountFlags::empty();
        if let Err(e) = rustix::mount::mount("tmpfs", &below, "tmpfs", none, None::<&CStr>) {
            return eprintln!("SKIP another_file_system_below_is_not_counted: cannot mount: {e}");
        }
        std::fs::write(below.join("file"), "x").unwrap();
        let used = all(dir.path(), What::Tree);
        rustix::mount::unmount(&below, rustix::mount::UnmountFlags::empty()).unwrap();
        assert_eq!(used.inodes, 1, "neither the mount nor what is in it");
    }
}
