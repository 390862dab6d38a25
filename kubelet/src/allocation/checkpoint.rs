//! The file of a [`Store`](super::Store): its form, and how it is read and written. Blocking; knows no pods.
//!
//! The form is upstream's, so that a node can go from one agent to the other: `{"data": TEXT, "checksum": NUMBER}`,
//! where the text is JSON of `{"entries": {UID: Allocation}}` and the number is FNV-1a (32 bits) over the text as Go's
//! `spew` prints it, which puts `(string)` before it. A file of another form (later agents write another) is no file
//! of ours.

use super::Allocation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// By UID.
pub type Entries = BTreeMap<String, Allocation>;

/// A node of a thousand pods with ten containers each stays below.
const LIMIT: u64 = 16 << 20;

/// Why a file says nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// It is not what was written.
    #[error("{path} is spoiled: {why}")]
    Spoiled {
        /// Which.
        path: PathBuf,
        /// How that shows.
        why: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Outer {
    /// Set by agents that write another form.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    version: String,
    data: String,
    checksum: u64,
}

#[derive(Serialize, Deserialize)]
struct Inner {
    #[serde(default)]
    entries: Option<Entries>,
}

/// The file's content.
pub fn encode(entries: &Entries) -> serde_json::Result<Vec<u8>> {
    let data = serde_json::to_string(&Inner { entries: Some(entries.clone()).filter(|e| !e.is_empty()) })?;
    serde_json::to_vec(&Outer { version: String::new(), checksum: checksum(&data), data })
}

/// What the content says, or how it shows that it is spoiled.
pub fn decode(bytes: &[u8]) -> Result<Entries, String> {
    let outer: Outer = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if !outer.version.is_empty() {
        return Err(format!("it has version {:?}, which is not known", outer.version));
    }
    let sum = checksum(&outer.data);
    if sum != outer.checksum {
        return Err(format!("checksum {} of a text whose checksum is {sum}", outer.checksum));
    }
    let inner: Inner = serde_json::from_str(&outer.data).map_err(|e| format!("data: {e}"))?;
    Ok(inner.entries.unwrap_or_default())
}

fn checksum(data: &str) -> u64 {
    let printed = "(string)".bytes().chain(data.bytes());
    u64::from(printed.fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193)))
}

/// Reads `path`; a file that is not there says nothing.
pub fn read(path: &Path) -> Result<Entries, Error> {
    let failed = |cause| Error::Read { path: path.to_owned(), cause };
    let mut bytes = Vec::new();
    match open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Entries::new()),
        opened => opened.and_then(|f| f.take(LIMIT + 1).read_to_end(&mut bytes)).map_err(failed)?,
    };
    if bytes.len() as u64 > LIMIT {
        return Err(failed(io::Error::other("it is too long")));
    }
    decode(&bytes).map_err(|why| Error::Spoiled { path: path.to_owned(), why })
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

/// Puts a file that is of no use out of the way, beside itself, where its owner can look at it. One that was put there
/// before goes.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = beside(path, ".corrupt");
    std::fs::rename(path, &aside)?;
    Ok(aside)
}

/// Replaces the file: written beside it, synced, renamed, the directory synced. Blocks until it is on the disk.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = beside(path, ".tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&temporary, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of the stock agent's, from its own tests.
    const THEIRS: &str = r#"{"data":"{\"entries\":{\"pod1\":{\"ContainerResources\":{\"container1\":{\"requests\":{\"cpu\":\"1Ki\",\"memory\":\"1Ki\"}}}}}}","checksum":1178570812}"#;

    #[test]
    fn a_file_of_the_stock_agent_is_read() {
        let entries = decode(THEIRS.as_bytes()).unwrap();
        let requests = entries["pod1"].containers["container1"].requests.clone().unwrap();
        assert_eq!((requests["cpu"].0.as_str(), entries["pod1"].pod.is_none()), ("1Ki", true));
    }

    #[test]
    fn what_is_written_is_read_again_and_has_upstreams_shape() {
        let mut entries = decode(THEIRS.as_bytes()).unwrap();
        entries.insert("other".into(), Allocation { pod: Some(Default::default()), ..Allocation::default() });
        let bytes = encode(&entries).unwrap();
        assert_eq!(decode(&bytes).unwrap(), entries);
        let outer: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let data = outer["data"].as_str().unwrap();
        assert!(
            data.starts_with(r#"{"entries":{"other":{"ContainerResources":{},"PodLevelResources":{}}"#),
            "{data}"
        );
        assert!(decode(&encode(&Entries::new()).unwrap()).unwrap().is_empty());
    }

    #[test]
    fn whatever_was_changed_by_chance_is_noticed() {
        let good = THEIRS.as_bytes();
        for at in 0..good.len() {
            for bit in [1_u8, 0x40] {
                let mut bytes = good.to_vec();
                bytes[at] ^= bit;
                assert!(
                    decode(&bytes).is_err(),
                    "byte {at}, bit {bit}: {:?}",
                    String::from_utf8_lossy(&bytes)
                );
            }
            assert!(decode(&good[..at]).is_err(), "cut at {at}");
        }
        let newer = br#"{"version":"v2","data":"{}","checksum":1}"#;
        assert!(decode(newer).unwrap_err().contains("v2"));
    }

    #[test]
    fn files_that_are_none_are_errors_and_one_that_is_absent_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        assert!(read(&path).unwrap().is_empty());
        std::fs::create_dir(&path).unwrap();
        assert!(read(&path).is_err(), "a directory");
        std::fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(read(&path).is_err(), "a link");
        std::fs::remove_file(&path).unwrap();
        write(&path, b"{}").unwrap();
        let text = read(&path).unwrap_err().to_string();
        assert!(text.contains("is spoiled") && text.contains("state"), "{text}");
        let aside = set_aside(&path).unwrap();
        assert_eq!((std::fs::read(&aside).unwrap(), path.exists()), (b"{}".to_vec(), false));
        write(&path, &encode(&Entries::new()).unwrap()).unwrap();
        assert!(read(&path).unwrap().is_empty());
    }
}
