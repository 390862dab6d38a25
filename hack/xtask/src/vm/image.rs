//! The root file system of the nodes: Debian 13 with systemd, what a node needs to run pods, and the script that runs a
//! node's job.
//!
//! Built once and kept in the tree's cache under a name made from the recipe. Every node runs over it with a disk of its own
//! for what it writes, so it never changes. Needs mmdebstrap, mke2fs and the machine's Debian mirror.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};

use crate::image::hex;
use crate::{apt, cmd, tree};

/// Debian 13: the oldest whose systemd and runc are what nodes with cgroup v2 commonly have.
const SUITE: &str = "trixie";
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "dbus",
    "containerd",
    "runc",
    "crun",
    "iptables",
    "nftables",
    "conntrack",
    "iproute2",
    "ethtool",
    "kmod",
    "procps",
    "e2fsprogs",
    "busybox-static",
    "ca-certificates",
];
/// Units that a node of this kind has no use for, each of which takes a second or two of its start; and containerd, because
/// tests start their own.
const MASKED: &[&str] = &[
    "containerd.service",
    "getty@tty1.service",
    "ldconfig.service",
    "systemd-logind.service",
    "systemd-networkd.service",
    "systemd-timesyncd.service",
    "systemd-udev-trigger.service",
    "systemd-udevd.service",
];
/// Nobody reads there.
const UNREAD: &[&str] =
    &["usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists"];
const GUEST: &str = include_str!("guest.sh");
const SERVICE: &str = include_str!("guest.service");
/// How large the disk of a node is. Sparse: it takes what is used.
const SIZE: &str = "4G";

/// The file system; built when it is not there, which takes a minute or two and needs the network. The error is the reason of
/// a skip.
pub fn find_or_build() -> Result<PathBuf> {
    let key = Sha256::digest(format!("{SUITE} {PACKAGES:?} {MASKED:?} {UNREAD:?} {SIZE} {GUEST} {SERVICE}"));
    let image = super::cache()?.join(format!("node-{}.ext4", &hex(&key)[..16]));
    let _alone = tree::lock("vm-image")?;
    if !image.exists() {
        build(&image).context("the root file system of a node is not there and cannot be built")?;
    }
    Ok(image)
}

fn build(image: &Path) -> Result<()> {
    let since = Instant::now();
    let sources = apt::sources(SUITE)?;
    let cache = super::cache()?;
    // What an interrupted build or another recipe left.
    let (root, fresh) = (cache.join("root"), cache.join("node.new"));
    remove(&root)?;
    for entry in fs::read_dir(&cache)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("node") {
            fs::remove_file(entry.path())?;
        }
    }
    // In a mount namespace, so that the mounts it makes go with it, however it ends.
    let mut debootstrap = Command::new("unshare");
    debootstrap.args(["--mount", "setpriv", "--pdeathsig", "KILL", "mmdebstrap", "--quiet", "--mode=root"]);
    debootstrap.args(["--variant=minbase", &format!("--include={}", PACKAGES.join(","))]);
    cmd::run(debootstrap.arg(SUITE).arg(&root).arg(&sources))?;
    furnish(&root)?;
    let _sparse = cmd::run(Command::new("truncate").args(["--size", SIZE]).arg(&fresh))?;
    cmd::run(
        Command::new("mke2fs").args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(&root).arg(&fresh),
    )?;
    fs::rename(&fresh, image).with_context(|| format!("rename onto {}", image.display()))?;
    remove(&root)?;
    eprintln!("built {} in {:.0} s", image.display(), since.elapsed().as_secs_f32());
    Ok(())
}

fn furnish(root: &Path) -> Result<()> {
    for dir in UNREAD {
        remove(&root.join(dir))?;
    }
    let units = root.join("etc/systemd/system");
    for unit in MASKED {
        let path = units.join(unit);
        if path.symlink_metadata().is_ok() {
            fs::remove_file(&path)?;
        }
        symlink("/dev/null", &path).with_context(|| format!("mask {unit}"))?;
    }
    let script = root.join("usr/local/sbin/stevedore-node");
    fs::write(&script, GUEST)?;
    fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    fs::write(units.join("stevedore-node.service"), SERVICE)?;
    let wanted = units.join("multi-user.target.wants");
    fs::create_dir_all(&wanted)?;
    symlink("../stevedore-node.service", wanted.join("stevedore-node.service"))?;
    fs::write(root.join("etc/resolv.conf"), "")?;
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
