//! What of the results outlives the agent: a small file in the pod's directory, so that a ready pod is still ready after a
//! restart until a probe says otherwise.
//!
//! It is written when a result changes, never at each probe: a temporary file, synced, renamed, the directory synced.
//! It names the runtime's id of each instance, so that what is old says nothing; one that is lost, cut or of no sense
//! costs a restarted agent its knowledge and nothing else. It goes with the pod's directory.

use super::readiness::{ContainerReadiness, Readiness};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

/// Its name in the pod's directory.
pub const FILE: &str = "probe-results";
const TEMPORARY: &str = ".probe-results.tmp";
/// A pod of a hundred containers stays far below.
const LIMIT: u64 = 64 << 10;

/// What is kept of a pod: results worth remembering, by container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    containers: BTreeMap<String, KeptContainer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeptContainer {
    instance: String,
    started: bool,
    ready: bool,
}

impl Kept {
    /// Adds the results of an instance.
    pub fn add(&mut self, name: &str, of: &ContainerReadiness) {
        let kept = KeptContainer { instance: of.instance.clone(), started: of.started, ready: of.ready };
        self.containers.insert(name.to_owned(), kept);
    }

    fn readiness(self) -> Readiness {
        let one = |(name, k): (String, KeptContainer)| {
            let ready = k.ready && k.started;
            (name, ContainerReadiness { instance: k.instance, started: k.started, ready, failed: None })
        };
        Readiness { containers: self.containers.into_iter().map(one).collect() }
    }
}

/// What an earlier incarnation kept in `dir`; nothing where there is no file or it makes no sense.
pub fn read(dir: &Path) -> Readiness {
    let path = dir.join(FILE);
    let text = || -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        open(&path)?.take(LIMIT + 1).read_to_end(&mut text)?;
        if text.len() as u64 > LIMIT { Err(io::Error::other("it is too long")) } else { Ok(text) }
    };
    let kept = text().and_then(|text| serde_json::from_slice::<Kept>(&text).map_err(io::Error::from));
    match kept {
        Ok(kept) => kept.readiness(),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "cannot read the probes' last results: they start anew");
            }
            Readiness::default()
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

/// Replaces what is kept in `dir`, which must be there. Blocks until it is on the disk.
pub fn write(dir: &Path, kept: &Kept) -> io::Result<()> {
    let temporary = dir.join(TEMPORARY);
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(kept)?)?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&temporary, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(instance: &str, ready: bool) -> ContainerReadiness {
        ContainerReadiness { instance: instance.to_owned(), started: true, ready, failed: None }
    }

    #[test]
    fn what_was_written_is_read_again_and_the_last_one_counts() {
        let dir = tempfile::tempdir().unwrap();
        for ready in [false, true] {
            let mut kept = Kept::default();
            kept.add("web", &known("id-1", ready));
            write(dir.path(), &kept).unwrap();
        }
        let read = read(dir.path());
        assert_eq!(read.ready("web", "id-1"), Some(true));
        assert_eq!(read.ready("web", "id-2"), None, "another instance");
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, [FILE]);
    }

    #[test]
    fn what_makes_no_sense_counts_as_nothing_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert_eq!(read(dir.path()), Readiness::default(), "absent");
        let cut = br#"{"containers":{"web":{"instance":"id-1","sta"#;
        for text in [cut.as_slice(), b"", b"\0\0\0\0", b"[]", &vec![b' '; 70_000]] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read(dir.path()), Readiness::default(), "{:?}", text.get(..20));
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(read(dir.path()), Readiness::default(), "a directory");
        std::fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert_eq!(read(dir.path()), Readiness::default(), "a link");
    }

    #[test]
    fn without_the_pods_directory_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        assert_eq!(write(&gone, &Kept::default()).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!gone.exists());
    }
}
