//! `install` and `uninstall`: the binary and its links in a directory such as /opt/cni/bin.
//!
//! Called by people and by `hack/up`. Every step is a rename, so that a runtime that calls a plugin meanwhile finds
//! either the old one or the new one. Files of somebody else's are not replaced unless asked to.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, bail};

use crate::PLUGINS;

const BINARY: &str = "stevedore-cni";

/// Whether `path` is a link to our binary, made by an earlier `install`.
fn is_ours(path: &Path) -> bool {
    fs::read_link(path).is_ok_and(|target| target == Path::new(BINARY))
}

pub fn install(dir: &Path, force: bool) -> anyhow::Result<()> {
    let at = || format!("directory {}", dir.display());
    fs::create_dir_all(dir).with_context(at)?;
    let foreign: Vec<&str> = PLUGINS
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| dir.join(name).symlink_metadata().is_ok() && !is_ours(&dir.join(name)))
        .collect();
    if !foreign.is_empty() && !force {
        bail!("{} holds plugins of another make ({}); --force replaces them", at(), foreign.join(", "));
    }
    let own = std::env::current_exe().context("cannot tell where this binary is")?;
    let target = dir.join(BINARY);
    if fs::canonicalize(&target).ok() != fs::canonicalize(&own).ok() {
        let temporary = dir.join(format!(".{BINARY}.{}", std::process::id()));
        fs::copy(&own, &temporary).with_context(|| format!("copy to {}", temporary.display()))?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755)).with_context(at)?;
        fs::rename(&temporary, &target).with_context(|| format!("rename to {}", target.display()))?;
    }
    for (name, _) in PLUGINS {
        let link = dir.join(name);
        if is_ours(&link) {
            continue;
        }
        let temporary = dir.join(format!(".{name}.{}", std::process::id()));
        let _ = fs::remove_file(&temporary);
        symlink(BINARY, &temporary).with_context(|| format!("link {}", temporary.display()))?;
        fs::rename(&temporary, &link).with_context(|| format!("rename to {}", link.display()))?;
    }
    Ok(())
}

pub fn uninstall(dir: &Path) -> anyhow::Result<()> {
    for (name, _) in PLUGINS {
        let link = dir.join(name);
        if is_ours(&link) {
            fs::remove_file(&link).with_context(|| format!("remove {}", link.display()))?;
        }
    }
    match fs::remove_file(dir.join(BINARY)) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {BINARY} in {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installing_twice_converges_and_uninstalling_leaves_others_alone() {
        let dir = tempfile::tempdir().unwrap();
        install(dir.path(), false).unwrap();
        install(dir.path(), false).unwrap();
        assert_eq!(fs::read_link(dir.path().join("bridge")).unwrap(), Path::new(BINARY));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), PLUGINS.len() + 1);
        fs::write(dir.path().join("macvlan"), "other").unwrap();
        uninstall(dir.path()).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["macvlan"]);
    }

    #[test]
    fn plugins_of_another_make_are_replaced_only_by_force() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("bridge"), "reference").unwrap();
        let err = install(dir.path(), false).unwrap_err().to_string();
        assert!(err.contains("bridge") && err.contains("--force"), "{err}");
        assert_eq!(fs::read(dir.path().join("bridge")).unwrap(), b"reference");
        install(dir.path(), true).unwrap();
        assert!(is_ours(&dir.path().join("bridge")));
    }
}
