//! Facts of the machine for the `machine_…` metrics, read once, and the counters of its disks.

use super::files::{Reader, lines, number, words};
use crate::mountinfo;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What does not change while the agent runs.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// `/etc/machine-id`
    pub machine_id: String,
    /// The firmware's UUID of the machine.
    pub system_uuid: String,
    /// `/proc/sys/kernel/random/boot_id`
    pub boot_id: String,
    /// Kernel release.
    pub kernel: String,
    /// `PRETTY_NAME` of `/etc/os-release`.
    pub os: String,
    /// Logical CPUs.
    pub cpus: u64,
    /// Parts of the topology that CPUs stand in; 0 of those that the machine has not.
    pub topology: Topology,
}

/// Counts of parts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Topology {
    /// Cores, however many threads each has.
    pub cores: u64,
    /// Sockets.
    pub sockets: u64,
    /// Books (s390).
    pub books: u64,
    /// Drawers (s390).
    pub drawers: u64,
}

/// Reads all of it. A few files per CPU.
pub fn identity() -> Identity {
    let text = |path: &str| {
        std::fs::read_to_string(path).map(|t| t.trim().to_owned()).ok().filter(|t| !t.is_empty())
    };
    let machine_id = text("/etc/machine-id").or_else(|| text("/var/lib/dbus/machine-id")).unwrap_or_default();
    let uuid = text("/sys/class/dmi/id/product_uuid")
        .or_else(|| text("/proc/device-tree/system-id"))
        .or_else(|| text("/proc/device-tree/vm,uuid"));
    let release = text("/etc/os-release").unwrap_or_default();
    let pretty = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    Identity {
        system_uuid: uuid.unwrap_or_else(|| machine_id.clone()),
        machine_id,
        boot_id: text("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
        kernel: text("/proc/sys/kernel/osrelease").unwrap_or_default(),
        os: pretty.map(|p| p.trim_matches('"').to_owned()).unwrap_or_else(|| "Linux".to_owned()),
        cpus: text("/sys/devices/system/cpu/online")
            .and_then(|list| cpus(&list))
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u64)),
        topology: topology(Path::new("/sys/devices/system/cpu")),
    }
}

/// How many CPUs a list of the kernel's has: `0-3,5`. Not how many of them this process may use.
fn cpus(list: &str) -> Option<u64> {
    let count = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.split(',').map(count).sum()
}

fn topology(dir: &Path) -> Topology {
    let mut seen: [BTreeSet<Vec<String>>; 4] = Default::default();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let numbered = name.to_str().and_then(|n| n.strip_prefix("cpu"));
        if !numbered.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) {
            continue;
        }
        let id = |file: &str| {
            let text = std::fs::read_to_string(entry.path().join("topology").join(file)).ok()?;
            // -1 stands for "none".
            Some(text.trim().to_owned()).filter(|t| !t.starts_with('-'))
        };
        let package = id("physical_package_id");
        let parts = [
            package.clone().zip(id("core_id")).map(|(package, core)| vec![package, core]),
            package.map(|p| vec![p]),
            id("book_id").map(|b| vec![b]),
            id("drawer_id").map(|d| vec![d]),
        ];
        for (set, part) in seen.iter_mut().zip(parts) {
            set.extend(part);
        }
    }
    let [cores, sockets, books, drawers] = seen.map(|set| set.len() as u64);
    Topology { cores, sockets, books, drawers }
}

/// A file system on a block device, and what the device did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DiskStats {
    /// `/dev/vda1`
    pub device: String,
    /// Bytes of the whole.
    pub capacity: u64,
    /// Bytes in use.
    pub used: u64,
    /// Inodes of the whole; `None` where they are not counted.
    pub inodes: Option<u64>,
    /// Free inodes.
    pub inodes_free: Option<u64>,
    /// The eleven counters of `/proc/diskstats` behind the name; `None` where the device has none there.
    pub counters: Option<[u64; 11]>,
}

/// Every file system on a block device, once, however often it is mounted.
pub fn disks(reader: &mut Reader, mount_table: &Path) -> Vec<DiskStats> {
    let mut points: BTreeMap<String, std::path::PathBuf> = BTreeMap::new();
    for mount in mountinfo::read(mount_table).unwrap_or_default() {
        let source = mount.source.to_string_lossy();
        let kind = mount.fs_type.as_str();
        let local = kind.starts_with("ext") || matches!(kind, "xfs" | "btrfs" | "zfs" | "f2fs");
        if local && (source.starts_with("/dev/") || kind == "zfs") {
            points.entry(source.into_owned()).or_insert(mount.point);
        }
    }
    let counters = diskstats(reader.read_path(Path::new("/proc/diskstats")).unwrap_or_default());
    let disk = |(device, point): (String, std::path::PathBuf)| {
        let fs = rustix::fs::statvfs(&point).ok()?;
        // `/dev/mapper/x` is a link to the name that the counters go by.
        let real = std::fs::canonicalize(&device).ok();
        let name = real.as_deref().and_then(Path::file_name).and_then(|n| n.to_str());
        let counters = name.and_then(|n| counters.iter().find(|(of, ..)| of == n)).map(|(_, _, c)| *c);
        let inodes = (fs.f_files > 0).then_some(fs.f_files);
        Some(DiskStats {
            device,
            capacity: fs.f_blocks.saturating_mul(fs.f_frsize),
            used: fs.f_blocks.saturating_sub(fs.f_bfree).saturating_mul(fs.f_frsize),
            inodes,
            inodes_free: inodes.map(|_| fs.f_ffree),
            counters,
        })
    };
    points.into_iter().filter_map(disk).collect()
}

/// Names of block devices by number, `/dev/` before them.
pub fn device_names(reader: &mut Reader) -> BTreeMap<(u32, u32), String> {
    let all = diskstats(reader.read_path(Path::new("/proc/diskstats")).unwrap_or_default());
    all.into_iter().map(|(name, number, _)| (number, format!("/dev/{name}"))).collect()
}

/// `253 0 vda 1 2 3 …`
fn diskstats(text: &[u8]) -> Vec<(String, (u32, u32), [u64; 11])> {
    let line = |line| {
        let mut words = words(line);
        let mut device = || u32::try_from(number(words.next()?)?).ok();
        let device = (device()?, device()?);
        let name = String::from_utf8_lossy(words.next()?).into_owned();
        let mut counters = [0; 11];
        for slot in &mut counters {
            *slot = number(words.next()?)?;
        }
        Some((name, device, counters))
    };
    lines(text).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_those_that_are_online() {
        for (list, want) in
            [("0", Some(1)), ("0-3", Some(4)), ("0-3,5,8-9", Some(7)), ("", None), ("3-0", None)]
        {
            assert_eq!(cpus(list), want, "{list}");
        }
    }

    #[test]
    fn a_machine_is_told_by_its_ids_and_its_cores() {
        let dir = tempfile::tempdir().unwrap();
        for (cpu, core) in [(0, 0), (1, 0), (2, 1)] {
            let topology = dir.path().join(format!("cpu{cpu}/topology"));
            std::fs::create_dir_all(&topology).unwrap();
            std::fs::write(topology.join("core_id"), format!("{core}\n")).unwrap();
            std::fs::write(topology.join("physical_package_id"), "0\n").unwrap();
            std::fs::write(topology.join("book_id"), "-1\n").unwrap();
        }
        std::fs::create_dir_all(dir.path().join("cpufreq")).unwrap();
        let t = topology(dir.path());
        assert_eq!((t.cores, t.sockets, t.books, t.drawers), (2, 1, 0, 0));
        let machine = identity();
        assert!(!machine.boot_id.is_empty() && !machine.kernel.is_empty() && machine.cpus > 0);
    }

    #[test]
    fn a_disk_mounted_twice_counts_once_and_what_is_no_disk_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let line = |source: &str, kind: &str| format!("1 0 0:1 / {at} rw - {kind} {source} rw\n");
        let table = [line("/dev/none", "ext4"), line("/dev/none", "ext4"), line("tmpfs", "tmpfs")].concat();
        let path = dir.path().join("mounts");
        std::fs::write(&path, table).unwrap();
        let disks = disks(&mut Reader::default(), &path);
        assert_eq!(disks.len(), 1);
        assert!(disks[0].device == "/dev/none" && disks[0].capacity > 0 && disks[0].counters.is_none());
        let stats = diskstats(b" 253       0 vda 1 2 3 4 5 6 7 8 9 10 11 12 13\n 7 1 short 1\n");
        assert_eq!(stats, [("vda".to_owned(), (253, 0), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])]);
    }
}
