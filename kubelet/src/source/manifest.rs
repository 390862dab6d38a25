//! One manifest on disk: what a look at its path finds.
//!
//! `directory` calls [`look`] on a blocking thread. It reads one path, has it judged by whoever knows what it should
//! hold ([`judge_pod`] for pods), and remembers nothing; what to do about a file that went bad is `table`'s decision. It
//! never blocks on a FIFO and never reads past the bound.

use super::decode::{self, DecodeError, MAX_BYTES};
use super::field::{Errors, FieldError};
use super::identity::References;
use super::{defaults, identity, validate};
use crate::api::Pod;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Which bytes a path had: a look is skipped when nothing in it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// The path is a symbolic link; the other fields are its target's.
    pub link: bool,
}

impl Stamp {
    fn new(target: &Metadata, link: bool) -> Self {
        Self {
            device: target.dev(),
            inode: target.ino(),
            size: target.size(),
            modified: (target.mtime(), target.mtime_nsec()),
            changed: (target.ctime(), target.ctime_nsec()),
            link,
        }
    }
    fn is_fresh(&self) -> bool {
        let (seconds, nanos) = self.modified;
        let modified = u64::try_from(seconds).ok().zip(u32::try_from(nanos).ok());
        let modified = modified.map(|(s, n)| SystemTime::UNIX_EPOCH + Duration::new(s, n));
        // A time in the future is another clock's: it says nothing.
        modified.and_then(|m| m.elapsed().ok()).is_some_and(|age| age < SETTLED)
    }
    /// Whether both are the same file, whatever it holds.
    pub fn same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// Why a path is looked at, which decides whether it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Its name went away: read nothing, another event tells when something of that name is complete again.
    Removed,
    /// Its metadata changed: read it only if the name now leads to another file.
    Touched,
    /// The slow pass: read it if it is not what it was, and nobody seems to be writing it.
    Net,
    /// Something it may lead through changed: read it if it is not what it was.
    Moved,
    /// Its content is complete, or must be taken as it is.
    Complete,
}

/// A file changed so recently is likely still being written; the end of that is an event.
const SETTLED: Duration = Duration::from_secs(2);

impl Why {
    /// Whether a path that was `known` and is `now` need not be read.
    fn skips(self, known: Option<&Stamp>, now: &Stamp) -> bool {
        match (self, known) {
            (Why::Complete, _) => false,
            (Why::Removed, _) => true,
            (Why::Touched, Some(known)) => known.same_file(now),
            (Why::Moved, Some(known)) => known == now,
            (Why::Net, Some(known)) => known == now || now.is_fresh(),
            (Why::Net, None) => now.is_fresh(),
            (Why::Touched | Why::Moved, None) => false,
        }
    }
}

/// What a look found.
#[derive(Debug)]
pub enum Look<T> {
    /// Nothing new: it is as it was, or not to be read now.
    Unchanged,
    /// Nothing of this name.
    Absent,
    /// Something that is no manifest and never was one: a directory, a link to nothing, a device. What this name stood
    /// for is gone.
    NotAFile(Problem),
    /// A file that cannot be read or holds nothing valid. What it stood for stays: the file may be half written or
    /// wrongly edited, and its owner has not asked for it to go.
    Bad(Vec<Problem>),
    /// What the file stands for, not yet stamped with the time, and what was read over.
    Item(Box<T>, Vec<Problem>),
}

/// Makes something of a file's bytes; the path is the file's. The answer has what was read over.
pub type Judge<T> = dyn Fn(&[u8], &Path) -> Result<(T, Vec<FieldError>), DecodeError> + Send + Sync;

/// One thing wrong with one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field at fault, such as `spec.containers[0].image`; none when the whole file is.
    pub field: Option<String>,
    /// What is wrong with it.
    pub message: String,
}

impl Problem {
    fn whole(message: impl Into<String>) -> Self {
        Self { field: None, message: message.into() }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.field {
            Some(field) => write!(f, "{field}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl From<FieldError> for Problem {
    fn from(e: FieldError) -> Self {
        Self { field: Some(e.field), message: e.message }
    }
}

/// Looks at `path`, which was `known`.
pub fn look<T>(path: &Path, judge: &Judge<T>, why: Why, known: Option<&Stamp>) -> (Look<T>, Option<Stamp>) {
    let (metadata, stamp) = match examine(path) {
        Ok(Some(found)) => found,
        Ok(None) => return (Look::Absent, None),
        Err(problem) => return (problem, None),
    };
    if why.skips(known, &stamp) {
        return (Look::Unchanged, known.copied());
    }
    if !metadata.is_file() {
        return (Look::NotAFile(Problem::whole(kind(&metadata))), Some(stamp));
    }
    match read(path) {
        Ok(bytes) => (judged(judge(&bytes, path)), Some(stamp)),
        Err(e) if e.kind() == ErrorKind::NotFound => (Look::Absent, None),
        // Without a stamp, so that every later look tries again.
        Err(e) => (Look::Bad(vec![Problem::whole(format!("cannot be read: {e}"))]), None),
    }
}

/// What `path` leads to; `None` for nothing at all.
fn examine<T>(path: &Path) -> Result<Option<(Metadata, Stamp)>, Look<T>> {
    let own = match path.symlink_metadata() {
        Ok(own) => own,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Look::Bad(vec![Problem::whole(format!("cannot be read: {e}"))])),
    };
    if !own.is_symlink() {
        let stamp = Stamp::new(&own, false);
        return Ok(Some((own, stamp)));
    }
    match path.metadata() {
        Ok(target) => {
            let stamp = Stamp::new(&target, true);
            Ok(Some((target, stamp)))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let target = path.read_link().unwrap_or_default();
            Err(Look::NotAFile(Problem::whole(format!("a link to {}, which is not there", target.display()))))
        }
        Err(e) => Err(Look::Bad(vec![Problem::whole(format!("its link cannot be followed: {e}"))])),
    }
}

fn kind(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    if kind.is_dir() {
        "a directory: manifests are not looked for in subdirectories"
    } else if kind.is_fifo() {
        "a FIFO, not a regular file"
    } else if kind.is_socket() {
        "a socket, not a regular file"
    } else {
        "a device, not a regular file"
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Non-blocking: what was a file a moment ago may be a FIFO now.
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits() | nix::fcntl::OFlag::O_NOCTTY.bits())
        .open(path)?;
    let mut bytes = Vec::with_capacity(4096);
    // One byte more than allowed tells "too large" from "just fits".
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn judged<T>(judged: Result<(T, Vec<FieldError>), DecodeError>) -> Look<T> {
    match judged {
        Ok((item, warnings)) => Look::Item(Box::new(item), warnings.into_iter().map(Problem::from).collect()),
        Err(e) => Look::Bad(problems(e)),
    }
}

fn problems(e: DecodeError) -> Vec<Problem> {
    let whole = e.to_string();
    match e.fields() {
        fields if fields.is_empty() => vec![Problem::whole(whole)],
        fields => fields.into_iter().map(Problem::from).collect(),
    }
}

/// The static pod that the manifest `bytes` at `path` stands for on `node_name`, with the warnings of its decoding; one
/// that refers to no API objects.
pub fn static_pod(bytes: &[u8], path: &str, node_name: &str) -> Result<(Pod, Vec<FieldError>), DecodeError> {
    judge_pod(bytes, path, node_name, References::None)
}

/// [`static_pod`], which may refer to such API objects as there are. Decodes, adopts, defaults and validates.
pub fn judge_pod(
    bytes: &[u8],
    path: &str,
    node_name: &str,
    references: References,
) -> Result<(Pod, Vec<FieldError>), DecodeError> {
    let decode::Decoded { object: mut pod, warnings } = decode::manifest(bytes)?;
    let own_uid = pod.metadata.uid.as_ref().is_some_and(|uid| !uid.is_empty());
    identity::adopt(&mut pod, path, node_name);
    judged_pod(pod, warnings, own_uid, references)
}

/// The pod that the object `bytes` is, as an API server would have it on `node_name`. It must have a UID.
pub fn judge_object(
    bytes: &[u8],
    node_name: &str,
    references: References,
) -> Result<(Pod, Vec<FieldError>), DecodeError> {
    let decode::Decoded { object: mut pod, warnings } = decode::manifest(bytes)?;
    if pod.metadata.uid.as_ref().is_none_or(String::is_empty) {
        let mut errors = Errors::default();
        let metadata = super::field::Path::root("metadata");
        errors.required(&metadata.child("uid"), "an object has one, under which it may change");
        return Err(DecodeError::Invalid(errors));
    }
    identity::assign(&mut pod, node_name);
    judged_pod(pod, warnings, true, references)
}

fn judged_pod(
    mut pod: Pod,
    warnings: Vec<FieldError>,
    own_uid: bool,
    references: References,
) -> Result<(Pod, Vec<FieldError>), DecodeError> {
    defaults::apply(&mut pod);
    let mut errors = Errors::default();
    identity::unresolvable(&pod, own_uid, references, &mut errors);
    errors.append(validate::pod(&pod));
    match errors.is_empty() {
        true => Ok((pod, warnings)),
        false => Err(DecodeError::Invalid(errors)),
    }
}
