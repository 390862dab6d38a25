//! That a pod was evicted, kept in its directory: an eviction that was ordered is carried out though the agent is killed, and
//! a pod that was evicted is not run again by the next agent.
//!
//! Written before the order goes out; read when a pod is taken on. A file that is cut or says something else is no
//! eviction: the pod lives, and is evicted again if need be. It goes with the pod's directory. Blocking; a few system calls.

use super::Evicted;
use crate::api::PodUid;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

/// Its name in the pod's directory.
pub const FILE: &str = "evicted";
const TEMPORARY: &str = ".evicted.tmp";
/// A message of a pod of many containers stays far below.
const LIMIT: u64 = 256 << 10;

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Whose it is: a directory that was copied evicts nobody.
    pub uid: String,
    /// Why.
    pub why: Evicted,
    /// How long its processes have, in seconds.
    pub grace_seconds: u64,
}

impl Record {
    /// Of that order.
    pub fn new(uid: &PodUid, why: &Evicted, grace: Duration) -> Self {
        Self { uid: uid.to_string(), why: why.clone(), grace_seconds: grace.as_secs() }
    }
}

/// The record in `dir`, if the pod `uid` was evicted.
pub fn read(dir: &Path, uid: &PodUid) -> Option<Record> {
    let path = dir.join(FILE);
    let text = || -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        open(&path)?.take(LIMIT + 1).read_to_end(&mut text)?;
        if text.len() as u64 > LIMIT { Err(io::Error::other("it is too long")) } else { Ok(text) }
    };
    let record = text().and_then(|text| serde_json::from_slice::<Record>(&text).map_err(io::Error::from));
    match record {
        Ok(record) if record.uid == uid.as_str() => Some(record),
        Ok(record) => {
            tracing::warn!(path = %path.display(), of = record.uid, "the record of an eviction is another pod's");
            None
        }
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound && error.kind() != io::ErrorKind::NotADirectory {
                tracing::warn!(path = %path.display(), %error, "cannot read the record of an eviction: there was none");
            }
            None
        }
    }
}

/// Opens a plain file, following no link and waiting for no writer of a pipe.
fn open(path: &Path) -> io::Result<File> {
    use rustix::fs::{FileType, Mode, OFlags, fstat};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&fd)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it is not a plain file"));
    }
    Ok(File::from(fd))
}

/// Writes the record into `dir`, which must be there. It outlives the agent from here on; [`settle`] makes it outlive the
/// machine.
pub fn write(dir: &Path, record: &Record) -> io::Result<File> {
    let temporary = dir.join(TEMPORARY);
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    std::fs::rename(&temporary, dir.join(FILE))?;
    Ok(file)
}

/// Waits until what [`write`] wrote is on the disk, which may take long where it is slow. A cut file after a crash of the
/// machine between the two is no eviction; nothing of the pod runs then either.
pub fn settle(dir: &Path, file: &File) -> io::Result<()> {
    file.sync_all()?;
    File::open(dir)?.sync_all()
}

/// Takes back what [`write`] wrote: the pod was not evicted.
pub fn remove(dir: &Path) -> io::Result<()> {
    std::fs::remove_file(dir.join(FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(uid: &str) -> Record {
        let why = Evicted { message: "low \"memory\"".into(), disrupted: true };
        Record::new(&PodUid::new(uid), &why, Duration::from_secs(1))
    }

    #[test]
    fn what_was_written_is_read_again_by_the_pod_it_names() {
        let dir = tempfile::tempdir().unwrap();
        let uid = PodUid::new("u1");
        assert_eq!(read(dir.path(), &uid), None);
        let file = write(dir.path(), &record("u1")).unwrap();
        assert_eq!(read(dir.path(), &uid), Some(record("u1")));
        settle(dir.path(), &file).unwrap();
        assert_eq!(read(dir.path(), &uid), Some(record("u1")));
        assert_eq!(read(dir.path(), &PodUid::new("u2")), None, "another pod's");
        remove(dir.path()).unwrap();
        assert_eq!(read(dir.path(), &uid), None);
    }

    #[test]
    fn what_makes_no_sense_evicts_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let uid = PodUid::new("u1");
        let whole = serde_json::to_vec(&record("u1")).unwrap();
        for text in [&whole[..whole.len() / 2], b"", b"{}", b"null", &vec![b'['; 300 << 10]] {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            assert_eq!(read(dir.path(), &uid), None, "{:?}", text.get(..20));
        }
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.path().join(FILE)).unwrap();
        assert_eq!(read(dir.path(), &uid), None);
        assert!(write(&dir.path().join("gone"), &record("u1")).is_err());
    }
}
