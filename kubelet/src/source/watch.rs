//! What to watch with inotify so that nothing that happens to the manifest path goes unseen.
//!
//! Used by the task in `file` only. Three kinds of watches: the manifest directory itself; the nearest directory above
//! it that exists (so that it may be created, replaced or be a single file); and the targets of manifests that are
//! symbolic links. It reads events and says which files to look at; it never reads a file.

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path, PathBuf};
use tokio::io::unix::AsyncFd;

/// What the manifest path is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nothing, or nothing that can hold manifests.
    Absent,
    /// A directory of manifests.
    Directory,
    /// A single manifest.
    File,
}

/// What a batch of events asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// These files are complete and want a look.
    pub files: BTreeSet<OsString>,
    /// These went away.
    pub removed: BTreeSet<OsString>,
    /// These only changed their metadata.
    pub touched: BTreeSet<OsString>,
    /// A hidden name changed, through which links may lead.
    pub hidden: bool,
    /// The directory itself came, went or was replaced, or events were lost: everything wants a look.
    pub everything: bool,
}

/// The watches.
#[derive(Debug)]
pub struct Watcher {
    fd: AsyncFd<Inotify>,
    root: PathBuf,
    place: Place,
    above: Option<Above>,
    directory: Option<WatchDescriptor>,
    /// The directory that is watched, by device and inode.
    identity: Option<(u64, u64)>,
    links: HashMap<WatchDescriptor, BTreeSet<OsString>>,
    buffer: Box<[u8]>,
}

/// The nearest existing directory above the path.
#[derive(Debug)]
struct Above {
    watch: WatchDescriptor,
    path: PathBuf,
    identity: Option<(u64, u64)>,
    /// The name to expect in it.
    next: OsString,
}

/// A file's content is complete when its writer closes it or it is renamed into place; IN_MODIFY says neither.
fn directory_mask() -> WatchMask {
    WatchMask::CREATE
        | WatchMask::CLOSE_WRITE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE
        | WatchMask::ATTRIB
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR
}

fn link_mask() -> WatchMask {
    WatchMask::CLOSE_WRITE | WatchMask::ATTRIB | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF
}

impl Watcher {
    /// Watches nothing yet; [`Watcher::attach`] follows. `root` must be absolute.
    pub fn new(root: PathBuf) -> io::Result<Self> {
        #[expect(
            deprecated,
            reason = "the safe constructor; `Inotify` keeps one descriptor open all its life"
        )]
        let fd = AsyncFd::new(Inotify::init()?)?;
        Ok(Self {
            fd,
            // Without a trailing slash or dots, so that the last component is a name in the directory above.
            root: root.components().filter(|c| *c != Component::CurDir).collect(),
            place: Place::Absent,
            above: None,
            directory: None,
            identity: None,
            links: HashMap::new(),
            buffer: vec![0; 16 << 10].into_boxed_slice(),
        })
    }

    /// The manifest path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the path is, if the watches still are the right ones for it.
    pub fn attached(&self) -> Option<Place> {
        let above_is_same = match &self.above {
            Some(above) => above.identity.is_some() && above.identity == identity(&above.path),
            None => self.root.parent().is_none(),
        };
        let same = match (self.place, &self.above) {
            (Place::Directory, _) => self.directory.is_some() && self.identity == identity(&self.root),
            (Place::File, _) => self.root.is_file(),
            (Place::Absent, Some(above)) => !above.path.join(&above.next).exists(),
            (Place::Absent, None) => false,
        };
        (above_is_same && same).then_some(self.place)
    }

    /// Takes the path for `place` though it could not be watched.
    pub fn assume(&mut self, place: Place) {
        self.place = place;
        self.identity = identity(&self.root).filter(|_| place == Place::Directory);
    }

    /// Which directory holds the manifests; none for a single manifest.
    pub fn identity(&self) -> Option<(u64, u64)> {
        self.identity
    }

    /// Watches the path as it is now and says what it is. What changes after this call is seen as an event.
    ///
    /// # Errors
    /// When a watch cannot be had: no permission, or the user's limit of watches is reached.
    pub fn attach(&mut self) -> io::Result<Place> {
        self.detach();
        self.place = Place::Absent;
        if self.root.file_name().is_none() {
            // The root of the file system: nothing above it.
            self.directory = Some(self.add(&self.root.clone(), directory_mask())?);
            self.identity = identity(&self.root);
            self.place = Place::Directory;
            return Ok(self.place);
        }
        // From the innermost directory outwards until one exists; again if the next one inwards appeared meanwhile.
        for _ in 0..100 {
            self.watch_above()?;
            let Some(above) = &self.above else { continue };
            if self.root.parent() != Some(above.path.as_path()) {
                if above.path.join(&above.next).is_dir() {
                    continue;
                }
                return Ok(Place::Absent);
            }
            self.place = match self.add(&self.root.clone(), directory_mask()) {
                Ok(watch) => {
                    self.directory = Some(watch);
                    self.identity = identity(&self.root);
                    Place::Directory
                }
                Err(e) if e.kind() == io::ErrorKind::NotADirectory && self.root.is_file() => Place::File,
                Err(e) if missing(&e) => Place::Absent,
                Err(e) => return Err(e),
            };
            return Ok(self.place);
        }
        Ok(Place::Absent)
    }

    /// Watches the nearest existing directory above the path.
    fn watch_above(&mut self) -> io::Result<()> {
        let mut inner = self.root.clone();
        while let (Some(path), Some(next)) = (inner.parent().map(Path::to_path_buf), inner.file_name()) {
            match self.add(&path, directory_mask()) {
                Ok(watch) => {
                    let (identity, next) = (identity(&path), next.to_owned());
                    self.above = Some(Above { watch, path, identity, next });
                    return Ok(());
                }
                Err(e) if missing(&e) => inner = path,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Also watches the target of the link `file`, so that a change behind it is seen; `true` if it was not before.
    pub fn follow(&mut self, file: &OsStr) -> bool {
        let path = self.path(file);
        // A link that cannot be watched is still looked at by the slow pass.
        match self.add(&path, link_mask() | WatchMask::MASK_ADD) {
            Ok(watch) => self.links.entry(watch).or_default().insert(file.to_owned()),
            Err(_) => false,
        }
    }

    /// Where `file` is: the path itself when it is a single manifest.
    pub fn path(&self, file: &OsStr) -> PathBuf {
        match self.place {
            Place::File => self.root.clone(),
            _ => self.root.join(file),
        }
    }

    fn add(&mut self, path: &Path, mask: WatchMask) -> io::Result<WatchDescriptor> {
        self.fd.get_ref().watches().add(path, mask)
    }

    fn detach(&mut self) {
        self.identity = None;
        let mut watches = self.fd.get_ref().watches();
        let above = self.above.take().map(|above| above.watch);
        let links = self.links.drain().map(|(watch, _)| watch);
        for watch in above.into_iter().chain(self.directory.take()).chain(links) {
            // A watch whose directory is gone is gone too.
            let _ = watches.remove(watch);
        }
    }

    /// Waits for the next batch of events. Cancel-safe: nothing is read before it is returned.
    pub async fn changes(&mut self) -> io::Result<Changes> {
        loop {
            let mut ready = self.fd.readable_mut().await?;
            let buffer = &mut self.buffer;
            let read = ready.try_io(|fd| {
                let events = fd.get_mut().read_events(buffer)?;
                Ok(events.map(|e| e.to_owned()).collect::<Vec<_>>())
            });
            let Ok(events) = read else { continue };
            let mut changes = Changes::default();
            for event in events? {
                self.sort(&event, &mut changes);
            }
            if changes != Changes::default() {
                return Ok(changes);
            }
        }
    }

    /// What one event means.
    fn sort(&mut self, event: &inotify::EventOwned, changes: &mut Changes) {
        let mask = event.mask;
        if mask.contains(EventMask::Q_OVERFLOW) {
            changes.everything = true;
            return;
        }
        let gone = EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::UNMOUNT | EventMask::IGNORED;
        if let Some(files) = self.links.get(&event.wd) {
            changes.files.extend(files.iter().cloned());
            if mask.contains(EventMask::IGNORED) {
                self.links.remove(&event.wd);
            }
            return;
        }
        if self.directory.as_ref() == Some(&event.wd) {
            match &event.name {
                Some(name) => self.sort_named(name, mask, changes),
                None => changes.everything |= mask.intersects(gone),
            }
            return;
        }
        let Some(above) = self.above.as_ref().filter(|above| above.watch == event.wd) else { return };
        match &event.name {
            Some(name) if *name == above.next => changes.everything |= self.is_new_place(mask),
            Some(_) => {}
            None => changes.everything |= mask.intersects(gone),
        }
    }

    /// Whether an event about the path itself, or the next directory towards it, asks for another look at it all.
    fn is_new_place(&self, mask: EventMask) -> bool {
        let appeared = EventMask::MOVED_TO | EventMask::MOVED_FROM | EventMask::DELETE;
        match self.place {
            _ if mask.intersects(appeared) => true,
            _ if mask.contains(EventMask::CREATE) => !is_being_written(&self.root, mask),
            // A single manifest is complete when it is closed.
            Place::File | Place::Absent => mask.contains(EventMask::CLOSE_WRITE),
            Place::Directory => false,
        }
    }

    /// An event about a name in the directory.
    fn sort_named(&self, name: &OsStr, mask: EventMask, changes: &mut Changes) {
        if is_hidden(name) {
            changes.hidden |= !mask.intersects(EventMask::CLOSE_WRITE | EventMask::ATTRIB);
            return;
        }
        let set = if mask.contains(EventMask::ATTRIB) {
            &mut changes.touched
        } else if mask.intersects(EventMask::MOVED_FROM | EventMask::DELETE) {
            &mut changes.removed
        } else if mask.contains(EventMask::CREATE) && is_being_written(&self.path(name), mask) {
            return;
        } else {
            &mut changes.files
        };
        set.insert(name.to_owned());
    }
}

/// Whether what was just created at `path` is an ordinary file that somebody is about to write, whose close follows.
/// Links, symbolic or hard, are complete when they appear.
fn is_being_written(path: &Path, mask: EventMask) -> bool {
    use std::os::unix::fs::MetadataExt;
    !mask.contains(EventMask::ISDIR) && path.symlink_metadata().is_ok_and(|m| m.is_file() && m.nlink() == 1)
}

/// Which file `path` leads to, by device and inode.
pub fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    path.metadata().ok().map(|m| (m.dev(), m.ino()))
}

/// Names upstream does not look at: those that begin with a dot.
pub fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().first() == Some(&b'.')
}

fn missing(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
