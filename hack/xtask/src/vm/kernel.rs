//! The kernel of the nodes: found, unpacked, or built from Debian's source when somebody asks for that.
//!
//! Called before a node boots. Finding takes a moment; building takes ten minutes and more and never happens unasked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::image::hex;
use crate::{apt, cmd, tree};

/// What the kernel must have beside user-mode Linux's defaults.
const CONFIG: &str = include_str!("kernel.config");
/// Where Debian's source is taken from: seccomp mode and several processors together need 7.x.
const SUITE: &str = "sid";
const PACKAGE: &str = "linux-source-7";
/// Names a kernel that is there already.
const VARIABLE: &str = "STEVEDORE_VM_KERNEL";

/// The kernel: of the variable, else one built here, else one that lies beside the tree. The error is the reason of a skip.
pub fn find() -> Result<PathBuf> {
    ensure!(cfg!(target_arch = "x86_64"), "user-mode Linux is for x86-64 machines");
    if let Some(given) = std::env::var_os(VARIABLE) {
        let path = PathBuf::from(given);
        ensure!(path.is_file(), "{VARIABLE}={}: there is no such file", path.display());
        return Ok(path);
    }
    let built = built()?;
    if built.exists() {
        return Ok(built);
    }
    match beside_the_tree(&tree::root().join("../shared/vm")) {
        Some(packed) => unpack(&packed),
        None => bail!("no user-mode Linux kernel: set {VARIABLE}, or build one with hack/vm kernel"),
    }
}

/// Where [`build`] puts a kernel of this configuration.
fn built() -> Result<PathBuf> {
    Ok(super::cache()?.join(format!("linux-{}", &hex(&Sha256::digest(CONFIG))[..16])))
}

/// The newest `linux-uml-VERSION.xz` in a folder.
fn beside_the_tree(dir: &Path) -> Option<PathBuf> {
    let version = |path: &Path| -> Option<Vec<u32>> {
        let name = path.file_name()?.to_str()?.strip_prefix("linux-uml-")?.strip_suffix(".xz")?;
        name.split('.').map(|part| part.parse().ok()).collect()
    };
    let entries = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
    entries.filter_map(|path| Some((version(&path)?, path))).max().map(|(_, path)| path)
}

/// Unpacks it into the cache, under a name made from its contents.
fn unpack(packed: &Path) -> Result<PathBuf> {
    let bytes = fs::read(packed).with_context(|| format!("read {}", packed.display()))?;
    let path = super::cache()?.join(format!("linux-{}", &hex(&Sha256::digest(&bytes))[..16]));
    let _alone = tree::lock("vm-kernel")?;
    if !path.exists() {
        let kernel = cmd::run(Command::new("xz").arg("-dc").arg(packed))
            .with_context(|| format!("unpack {}", packed.display()))?;
        install(&kernel.stdout, &path)?;
    }
    Ok(path)
}

/// The executable appears whole or not at all.
fn install(kernel: &[u8], path: &Path) -> Result<()> {
    use std::io::Write as _;
    let mut fresh = tempfile::NamedTempFile::new_in(super::cache()?)?;
    fresh.write_all(kernel)?;
    fs::set_permissions(fresh.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fresh.as_file().sync_all()?;
    fresh.persist(path).with_context(|| format!("rename onto {}", path.display()))?;
    Ok(())
}

/// Builds it from Debian's source package and returns its path; it is found from then on. Blocking, ten minutes and more on
/// two cores. Needs a compiler, make, flex, bison, bc and libelf, which `hack/vm kernel` installs.
pub fn build() -> Result<PathBuf> {
    let path = built()?;
    let _alone = tree::lock("vm-kernel")?;
    if path.exists() {
        return Ok(path);
    }
    // One folder for all attempts: what an interrupted one left goes first.
    let work = super::cache()?.join("kernel-build");
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
    }
    let package = apt::newest(SUITE, PACKAGE)?;
    eprintln!("building {package} of Debian {SUITE}; this takes ten minutes and more");
    apt::unpack(SUITE, &[&package], &work.join("package"))?;
    let packed = only_entry(&work.join("package/usr/src"), ".tar.xz")?;
    cmd::run(Command::new("tar").arg("-C").arg(&work).arg("-xf").arg(packed))?;
    let source = only_entry(&work, "")?;
    configure(&source)?;
    make(&source, &[&format!("-j{}", std::thread::available_parallelism()?), "linux"])?;
    cmd::run(Command::new("strip").arg(source.join("linux")))?;
    install(&fs::read(source.join("linux"))?, &path)?;
    fs::remove_dir_all(&work)?;
    Ok(path)
}

/// The one entry called `linux-source-*` with this ending.
fn only_entry(dir: &Path, ending: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?.flatten();
    let mut found = entries.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix("linux-source-")
            .and_then(|rest| rest.strip_suffix(ending))
            .is_some_and(|version| version.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
    });
    found.next().with_context(|| format!("{} holds no linux-source-VERSION{ending}", dir.display()))
}

fn make(source: &Path, arguments: &[&str]) -> Result<()> {
    // Long, so its errors go to the person as they come.
    let mut command = Command::new("make");
    command.arg("-C").arg(source).args(["-s", "ARCH=um"]).args(arguments);
    let status = command.stdout(Stdio::null()).status().context("start make")?;
    ensure!(status.success(), "`{}` failed ({status})", cmd::line_of(&command));
    Ok(())
}

/// Writes the configuration, and makes sure that every line of ours stands in it: kconfig drops silently what it cannot have.
fn configure(source: &Path) -> Result<()> {
    make(source, &["defconfig"])?;
    let file = source.join(".config");
    let defaults = fs::read_to_string(&file)?;
    fs::write(&file, format!("{defaults}{CONFIG}"))?;
    make(source, &["olddefconfig"])?;
    let dropped = missing(CONFIG, &fs::read_to_string(&file)?);
    ensure!(dropped.is_empty(), "this source cannot be configured with {}", dropped.join(", "));
    Ok(())
}

/// The settings of `wanted` that `config` does not have.
fn missing<'a>(wanted: &'a str, config: &str) -> Vec<&'a str> {
    let has = |line: &str| match line.strip_suffix("=n") {
        Some(option) => !config.lines().any(|have| have.starts_with(&format!("{option}="))),
        None => config.lines().any(|have| have == line),
    };
    wanted.lines().filter(|line| line.starts_with("CONFIG_") && !has(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_beside_the_tree_is_taken_by_its_number() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(beside_the_tree(dir.path()), None);
        for name in ["linux-uml-7.2.9.xz", "linux-uml-7.2.13.xz", "linux-uml-7.10.xz.part", "linux-8.1.xz"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(beside_the_tree(dir.path()), Some(dir.path().join("linux-uml-7.2.13.xz")));
    }

    #[test]
    fn settings_that_kconfig_dropped_or_left_on_are_named() {
        let wanted = "# a comment\nCONFIG_SMP=y\nCONFIG_PSI=y\nCONFIG_MODULES=n\nCONFIG_NR_CPUS=4\n";
        let all = "CONFIG_SMP=y\nCONFIG_PSI=y\n# CONFIG_MODULES is not set\nCONFIG_NR_CPUS=4\n";
        assert!(missing(wanted, all).is_empty());
        let few = "# CONFIG_SMP is not set\nCONFIG_PSI=m\nCONFIG_MODULES=y\nCONFIG_NR_CPUS=4\n";
        assert_eq!(missing(wanted, few), ["CONFIG_SMP=y", "CONFIG_PSI=y", "CONFIG_MODULES=n"]);
    }
}
