//! Where the source tree is and where its cache lives.
//!
//! Every other module of this crate asks here for a path; nothing is cached outside the tree
//! except what cargo itself keeps.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

/// The root of the workspace: `STEVEDORE_TREE`, or where this crate was compiled.
pub fn root() -> PathBuf {
    if let Some(tree) = std::env::var_os("STEVEDORE_TREE") {
        return PathBuf::from(tree);
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_path_buf()
}

/// `.stevedore/<part>` in the tree, created when absent. It is git-ignored and may be deleted at any time.
pub fn cache(part: &str) -> Result<PathBuf> {
    let dir = root().join(".stevedore").join(part);
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

/// An exclusive lock held until drop, so that parallel test processes do not build the same thing twice.
#[derive(Debug)]
pub struct Lock {
    _held: Flock<File>,
}

/// Blocks until the lock named `name` in the cache is ours. Blocking: not for an async worker.
pub fn lock(name: &str) -> Result<Lock> {
    let path = cache("locks")?.join(name);
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let held = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("lock {}", path.display()))?;
    Ok(Lock { _held: held })
}

/// Replaces `path` in one step: temporary file, fsync, rename.
pub fn write_atomic(path: &Path, contents: &[u8]) -> Result<()> {
    use std::io::Write as _;
    let dir = path.parent().context("a file path has a parent")?;
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let mut temp =
        tempfile::NamedTempFile::new_in(dir).with_context(|| format!("temporary in {}", dir.display()))?;
    temp.write_all(contents)?;
    temp.as_file().sync_all()?;
    temp.persist(path).with_context(|| format!("rename onto {}", path.display()))?;
    // A temporary file is 0600; configuration is for everybody to read.
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    File::open(dir)?.sync_all()?;
    Ok(())
}

/// As [`write_atomic`], but leaves a file alone that has these contents already. True when it wrote.
pub fn write_if_changed(path: &Path, contents: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|present| present == contents) {
        return Ok(false);
    }
    write_atomic(path, contents)?;
    Ok(true)
}
