//! Finds a containerd of a given flavour and an OCI runtime, on the machine or in the tree's cache,
//! and fetches them from a Debian suite when neither has them.
//!
//! Called before a private containerd starts. Blocking: a fetch takes seconds. It never installs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Flavour, Oci};
use crate::{apt, cmd, tree};

/// The binaries of one containerd release.
#[derive(Debug, Clone)]
pub struct Installed {
    /// The daemon.
    pub containerd: PathBuf,
    /// The folder with the daemon, its shim and `ctr`.
    pub bin: PathBuf,
    /// As the binary says it, such as `1.6.20~ds1`.
    pub version: String,
}

impl Installed {
    /// `ctr` of the same release, for people who debug.
    pub fn ctr(&self) -> PathBuf {
        self.bin.join("ctr")
    }

    fn at(bin: &Path) -> Result<Self> {
        let containerd = bin.join("containerd");
        // `containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1`
        let said = cmd::text(Command::new(&containerd).arg("--version"))?;
        let version = said.split_whitespace().nth(2).context("containerd --version has no version")?;
        Ok(Self { version: version.trim_start_matches('v').to_owned(), bin: bin.to_path_buf(), containerd })
    }

    fn is(&self, flavour: Flavour) -> bool {
        self.version.starts_with(flavour.version_prefix())
            && self.bin.join("containerd-shim-runc-v2").exists()
    }
}

/// The installed containerd of whatever supported release, else Debian 12's.
pub fn find_any() -> Result<(Flavour, Installed)> {
    for bin in ["/usr/bin", "/usr/local/bin"] {
        let Ok(installed) = Installed::at(Path::new(bin)) else { continue };
        if let Some(flavour) = Flavour::ALL.into_iter().find(|flavour| installed.is(*flavour)) {
            return Ok((flavour, installed));
        }
    }
    Ok((Flavour::Debian, find(Flavour::Debian)?))
}

/// The containerd of this flavour: the installed one when it is of that release, else the cached or
/// freshly fetched one. The error says why it cannot be had; a test prints it as the reason of a skip.
pub fn find(flavour: Flavour) -> Result<Installed> {
    for bin in ["/usr/bin", "/usr/local/bin"] {
        if let Ok(installed) = Installed::at(Path::new(bin))
            && installed.is(flavour)
        {
            return Ok(installed);
        }
    }
    let _alone = tree::lock(&format!("containerd-{flavour}"))?;
    let dir = tree::cache("runtimes")?.join(format!("containerd-{flavour}"));
    let bin = dir.join("usr/bin");
    if !bin.exists() {
        apt::unpack(flavour.suite(), &["containerd"], &dir)
            .with_context(|| format!("containerd {flavour} is neither installed nor to be had"))?;
    }
    let found = Installed::at(&bin)
        .with_context(|| format!("containerd of Debian {} does not run here", flavour.suite()))?;
    if !found.is(flavour) {
        bail!("Debian {} has containerd {}, not {flavour}", flavour.suite(), found.version);
    }
    Ok(found)
}

/// The OCI runtime for this containerd: the installed one when it will do, else one unpacked into the
/// tree.
///
/// crun before 1.9 refuses the bundles of containerd 1.7 and later ("unknown version specified"), so
/// there Debian 13's is used; and crun refuses a cgroup v1 machine that left controllers to an unused
/// v2 hierarchy, so there it runs in a mount namespace without that hierarchy.
pub fn find_oci(oci: Oci, flavour: Flavour) -> Result<PathBuf> {
    let modern = oci == Oci::Crun && flavour != Flavour::Debian;
    let wrap = oci == Oci::Crun && controllers_in_unused_v2();
    if !wrap {
        for dir in ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"] {
            let path = Path::new(dir).join(oci.to_string());
            if path.exists() && will_do(&path, modern) {
                return Ok(path);
            }
        }
    }
    let suite = if modern { "trixie" } else { "bookworm" };
    let _alone = tree::lock(&format!("{oci}-{suite}"))?;
    let dir = tree::cache("runtimes")?.join(format!("{oci}-{suite}"));
    let wrapper = dir.join("bin").join(oci.to_string());
    // The wrapper holds absolute paths: a tree that was moved makes it anew.
    if !will_do(&wrapper, modern) {
        let mut packages = vec![match oci {
            Oci::Runc => "runc",
            Oci::Crun => "crun",
        }];
        packages.extend(["libseccomp2", "libcap2", "libyajl2", "libsystemd0"]);
        if modern {
            packages.extend(["libc6", "libgcc-s1"]);
        }
        apt::unpack(suite, &packages, &dir)
            .with_context(|| format!("{oci} for containerd {flavour} is neither installed nor to be had"))?;
        write_wrapper(&dir, oci, modern, wrap)?;
    }
    if !will_do(&wrapper, modern) {
        bail!("{oci} of Debian {suite} does not run here: try {} --version", wrapper.display());
    }
    Ok(wrapper)
}

/// It starts, and it is new enough.
fn will_do(path: &Path, modern: bool) -> bool {
    let Ok(said) = cmd::text(Command::new(path).arg("--version")) else { return false };
    !modern || minor_of(&said).is_some_and(|minor| minor >= 9)
}

/// `8` of `crun version 1.8.1`.
fn minor_of(said: &str) -> Option<u32> {
    said.split_whitespace()
        .nth(2)?
        .strip_prefix("1.")?
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

fn controllers_in_unused_v2() -> bool {
    fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers").is_ok_and(|text| !text.trim().is_empty())
}

/// The unpacked binary needs its unpacked libraries; a script of one line names them. Container
/// processes do not see the variable: an OCI runtime gives them the bundle's environment only. A
/// binary that needs a newer C library than the machine's also gets that library's loader written into
/// it, because it executes itself again and so cannot be started through the loader.
fn write_wrapper(dir: &Path, oci: Oci, own_loader: bool, hide_unified: bool) -> Result<()> {
    let name = oci.to_string();
    let binary = ["usr/sbin", "usr/bin"].iter().map(|d| dir.join(d).join(&name)).find(|p| p.exists());
    let binary = binary.with_context(|| format!("the package {name} holds no {name}"))?;
    let libraries = library_folders(dir);
    let path = libraries.iter().map(|l| l.display().to_string()).collect::<Vec<_>>().join(":");
    let mut run = format!("LD_LIBRARY_PATH={path} exec {}", binary.display());
    if own_loader {
        set_loader(&binary, &libraries, &path)?;
        run = format!("exec {}", binary.display());
    }
    let script = if hide_unified {
        let inner = format!("umount /sys/fs/cgroup/unified; {run} \"$@\"");
        // Mounts made on the host later must still arrive in containers: slave, not private.
        format!("#!/bin/sh\nexec unshare --mount --propagation slave sh -c '{inner}' {name} \"$@\"\n")
    } else {
        format!("#!/bin/sh\n{run} \"$@\"\n")
    };
    let wrapper = dir.join("bin").join(&name);
    tree::write_atomic(&wrapper, script.as_bytes())?;
    fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(())
}

/// Debian's multi-arch library folders below `dir`.
fn library_folders(dir: &Path) -> Vec<PathBuf> {
    let parents = ["usr/lib", "lib"].map(|parent| dir.join(parent));
    let entries = parents.iter().flat_map(|parent| fs::read_dir(parent).into_iter().flatten().flatten());
    entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("-linux-")).collect()
}

fn set_loader(binary: &Path, libraries: &[PathBuf], path: &str) -> Result<()> {
    let files = libraries.iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    let loader = files
        .map(|f| f.path())
        .find(|p| p.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux")));
    let loader = loader.context("the package libc6 holds no ld-linux")?;
    let tools = tree::cache("runtimes")?.join("patchelf");
    let patchelf = tools.join("usr/bin/patchelf");
    if !patchelf.exists() {
        apt::unpack(&apt::codename()?, &["patchelf"], &tools)?;
    }
    let mut command = Command::new(patchelf);
    command.arg("--set-interpreter").arg(loader).args(["--force-rpath", "--set-rpath", path]).arg(binary);
    cmd::run(&mut command).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minor_version_of_crun_is_read_from_what_it_says() {
        assert_eq!(minor_of("crun version 1.8.1\ncommit: f8a0"), Some(8));
        assert_eq!(minor_of("crun version 1.21"), Some(21));
        assert_eq!(minor_of("crun version UNKNOWN"), None);
    }
}
