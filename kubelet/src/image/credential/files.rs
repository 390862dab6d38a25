//! The node's docker configuration files: where they are looked for, and when they are read again.
//!
//! The first that can be read and understood counts, as upstream has it: `config.json` of the root directory, of the
//! working directory, of `$HOME/.docker` and of `/.docker`; then `.dockercfg` of the root directory, of the working
//! directory, of `$HOME` and of `/`. Every pull looks whether any of them has changed; only then are they read.

use super::docker::{self, Format};
use super::keyring::Keyring;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The longest file taken.
const MAX_BYTES: u64 = 1 << 20;

/// The directories that docker configuration files are looked for in.
#[derive(Clone, Debug, Default)]
pub struct SearchPlaces {
    /// Those with a `config.json`, in order.
    pub config: Vec<PathBuf>,
    /// Those with a `.dockercfg`, in order.
    pub legacy: Vec<PathBuf>,
}

impl SearchPlaces {
    /// Upstream's, for an agent with that root directory.
    pub fn of_node(root_dir: &Path, working_dir: Option<PathBuf>, home: Option<PathBuf>) -> Self {
        let home_docker = home.as_ref().map(|h| h.join(".docker"));
        let all = |home: Option<PathBuf>, root: &str| {
            let ours = [Some(root_dir.to_owned()), working_dir.clone(), home, Some(root.into())];
            ours.into_iter().flatten().collect()
        };
        Self { config: all(home_docker, "/.docker"), legacy: all(home, "/") }
    }
}

/// What tells that a file is another one than before: device, inode, size, modification and change in nanoseconds.
type Stamp = Option<(u64, u64, u64, i128, i128)>;

/// The files, with what was read last.
#[derive(Debug)]
pub struct Files {
    candidates: Vec<(PathBuf, Format)>,
    read: Mutex<Option<(Vec<Stamp>, Arc<Keyring>)>>,
}

impl Files {
    pub fn new(places: SearchPlaces) -> Self {
        let config = places.config.iter().map(|d| (d.join("config.json"), Format::Config));
        let legacy = places.legacy.iter().map(|d| (d.join(".dockercfg"), Format::Legacy));
        Self { candidates: config.chain(legacy).collect(), read: Mutex::default() }
    }

    /// What the files say now. A handful of system calls; reads only what has changed.
    pub fn keyring(&self) -> Arc<Keyring> {
        let stamps: Vec<Stamp> = self.candidates.iter().map(|(path, _)| stamp(path)).collect();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, ring)) = read.as_ref().filter(|(before, _)| *before == stamps) {
            return ring.clone();
        }
        let ring = Arc::new(self.first());
        *read = Some((stamps, ring.clone()));
        ring
    }

    fn first(&self) -> Keyring {
        for (path, format) in &self.candidates {
            let bytes = match read(path) {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot read registry credentials");
                    continue;
                }
            };
            match docker::parse(&bytes, *format) {
                Ok((ring, problems)) => {
                    for problem in problems {
                        tracing::warn!(path = %path.display(), problem, "registry credentials left out");
                    }
                    tracing::debug!(path = %path.display(), "read registry credentials");
                    return ring;
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), error, "registry credentials cannot be understood");
                }
            }
        }
        Keyring::default()
    }
}

fn stamp(path: &Path) -> Stamp {
    let m = std::fs::metadata(path).ok()?;
    let nanos = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
    Some((m.dev(), m.ino(), m.size(), nanos(m.mtime(), m.mtime_nsec()), nanos(m.ctime(), m.ctime_nsec())))
}

/// A regular file of a sensible size.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::{Error, ErrorKind};
    // Without blocking: whoever opens a pipe nobody writes to would wait for ever.
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::new(ErrorKind::InvalidData, format!("it is longer than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(files: &Files) -> String {
        files.keyring().lookup("r.test/x").first().map(|c| c.username.clone()).unwrap_or_default()
    }

    fn entry(user: &str) -> String {
        format!(r#"{{"r.test": {{"username": "{user}", "password": "p"}}}}"#)
    }

    #[test]
    fn the_first_file_that_can_be_understood_counts_and_changes_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let (root, home) = (dir.path().join("root"), dir.path().join("home"));
        std::fs::create_dir_all(home.join(".docker")).unwrap();
        std::fs::create_dir_all(&root).unwrap();
        let places = SearchPlaces::of_node(&root, Some(dir.path().join("cwd")), Some(home.clone()));
        assert_eq!(places.config.len(), 4);
        let files = Files::new(SearchPlaces {
            // Not the machine's own.
            config: places.config[..3].to_vec(),
            legacy: places.legacy[..3].to_vec(),
        });
        assert_eq!(user(&files), "");
        std::fs::write(home.join(".dockercfg"), entry("legacy")).unwrap();
        assert_eq!(user(&files), "legacy");
        let at_home = home.join(".docker/config.json");
        std::fs::write(&at_home, format!(r#"{{"auths": {}}}"#, entry("home"))).unwrap();
        assert_eq!(user(&files), "home");
        std::fs::write(root.join("config.json"), "{").unwrap();
        assert_eq!(user(&files), "home", "what cannot be understood is passed over");
        std::fs::write(root.join("config.json"), format!(r#"{{"auths": {}}}"#, entry("root"))).unwrap();
        assert_eq!(user(&files), "root");
        std::fs::remove_file(root.join("config.json")).unwrap();
        assert_eq!(user(&files), "home");
    }

    #[test]
    fn pipes_and_endless_files_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let files = Files::new(SearchPlaces { config: vec![dir.path().into()], legacy: vec![] });
        assert_eq!(user(&files), "");
        std::fs::remove_file(&path).unwrap();
        std::fs::File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert_eq!(user(&files), "");
    }
}
