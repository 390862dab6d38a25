//! Folders with CNI plugins: ours, built from this tree, and the reference ones for comparison.
//!
//! Called by tests and by `up`. Blocking.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::{apt, build, cmd, tree};

/// Our plugins, built and installed as links into `.stevedore/cni/<profile>`.
pub fn ours(profile: build::Profile) -> Result<PathBuf> {
    let binary = build::binary("cni-plugins", "stevedore-cni", profile)?;
    let _alone = tree::lock("cni")?;
    let dir = tree::cache("cni")?.join(profile.dir());
    install(&binary, &dir)?;
    Ok(dir)
}

/// Has the multi-call binary install its links into `dir`.
pub fn install(binary: &std::path::Path, dir: &std::path::Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    cmd::run(std::process::Command::new(binary).arg("install").arg(dir))
        .context("install the CNI plugins")?;
    Ok(())
}

/// The reference plugins of Debian's unstable suite (1.9), unpacked into the tree.
pub fn reference() -> Result<PathBuf> {
    let _alone = tree::lock("cni-reference")?;
    let dir = tree::cache("runtimes")?.join("cni-plugins");
    let bin = dir.join("usr/lib/cni");
    if !bin.exists() {
        apt::unpack("sid", &["containernetworking-plugins"], &dir)?;
    }
    if !bin.join("bridge").exists() {
        bail!("{} holds no bridge plugin", bin.display());
    }
    Ok(bin)
}
