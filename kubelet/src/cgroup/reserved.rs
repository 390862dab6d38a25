//! What is reserved for the system and for the agent with its runtime, enforced on the cgroups that they run in.
//!
//! `assemble` calls it once at start, where `enforceNodeAllocatable` asks for it. The cgroups are others': they must be
//! there, and get nothing but the values.

use super::layout::{self, SLICE};
use super::values::{self, PodValues};
use super::{Cgroups, Driver, Error, Version, below, files, systemd};
use std::path::Path;

/// A reservation to enforce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// For whom, as events say it: `System` or `Kube`.
    pub whom: &'static str,
    /// The field that names the cgroup, such as `systemReservedCgroup`.
    pub field: &'static str,
    /// The cgroup as configured: a path, or with the systemd driver the name of a slice too.
    pub cgroup: String,
    /// What it may use.
    pub values: PodValues,
}

impl Cgroups {
    /// Gives the cgroup of `reserved` its values. Idempotent.
    ///
    /// # Errors
    /// It cannot be, is not there, or uses more memory already than it may: the kernel would end processes in it.
    pub async fn enforce_reserved(&self, reserved: &Reserved) -> Result<(), Error> {
        let inner = &*self.inner;
        let path = self
            .reserved_path(&reserved.cgroup)
            .ok_or_else(|| Error::ReservedName { field: reserved.field, cgroup: reserved.cgroup.clone() })?;
        let spelled = match inner.version {
            Version::V1 { .. } => values::v1(&reserved.values),
            Version::V2 { .. } => values::v2(&reserved.values),
        };
        let no_cgroup =
            |dir| Err(Error::NoReserved { field: reserved.field, cgroup: reserved.cgroup.clone(), dir });
        // There may be no value to look for its directory.
        let dirs = self.dirs(&path);
        if !dirs.iter().any(|dir| dir.is_dir()) {
            return no_cgroup(dirs.into_iter().next().unwrap_or_default());
        }
        let mut writes = Vec::new();
        for w in spelled {
            let Some(root) = inner.version.root_of(&inner.fs_root, w.controller) else {
                return Err(Error::NoController { controller: w.controller, file: w.file, value: w.value });
            };
            let dir = below(root, &path);
            if !dir.is_dir() {
                return no_cgroup(dir);
            }
            writes.push((dir, w));
        }
        if let (Some(limit), Some((dir, _))) =
            (reserved.values.memory_limit, writes.iter().find(|(_, w)| w.file == "memory.max"))
        {
            let used = not_reclaimable(dir);
            if used > limit {
                let (field, cgroup) = (reserved.field, reserved.cgroup.clone());
                return Err(Error::ReservedInUse { field, cgroup, used, limit });
            }
        }
        if let Some(systemd) = &inner.systemd {
            let properties = match inner.version {
                Version::V1 { .. } => systemd::properties::v1(&reserved.values).0,
                Version::V2 { .. } => systemd::properties::v2(&reserved.values)?.0,
            };
            systemd.set(layout::unit_of(&path), &properties).await?;
            if matches!(inner.version, Version::V2 { .. }) {
                return Ok(());
            }
        }
        writes.into_iter().try_for_each(|(dir, w)| files::write(dir.join(&w.file), &w.value))
    }

    /// Where the cgroup that a field names stands; with the systemd driver the last part of a path counts, as upstream
    /// reads it.
    fn reserved_path(&self, name: &str) -> Option<String> {
        let path = layout::normal_root(&format!("/{}", name.trim_start_matches('/'))).ok()?;
        let path = match self.driver() {
            Driver::Cgroupfs => path,
            Driver::Systemd => {
                let unit = layout::unit_of(&path);
                let stem = unit.strip_suffix(SLICE).unwrap_or(unit);
                let plain = stem.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b));
                if !plain || stem.split('-').any(str::is_empty) {
                    return None;
                }
                layout::slice_path(&format!("{stem}{SLICE}"))
            }
        };
        (path.len() > 1).then_some(path)
    }
}

/// Bytes of the v2 cgroup `dir` that the kernel cannot take back; none where it does not say.
fn not_reclaimable(dir: &Path) -> i64 {
    let number = |text: &str| text.trim().parse::<i64>().unwrap_or(0);
    let now = files::read(dir.join("memory.current")).map_or(0, |t| number(&t));
    let stat = files::read(dir.join("memory.stat")).unwrap_or_default();
    let of = |key: &str| stat.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')).map_or(0, number);
    // What is shared between processes counts as `file`, and goes nowhere.
    now - of("active_file") - of("inactive_file") - of("slab_reclaimable")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::CgroupConfig;

    fn detected(driver: Driver, dir: &Path) -> Cgroups {
        let root = dir.join("cg");
        std::fs::create_dir_all(root.join("runtime/daemon")).unwrap();
        std::fs::write(root.join("cgroup.controllers"), "cpu memory pids").unwrap();
        let table = dir.join("mountinfo");
        std::fs::write(&table, format!("1 0 0:1 / {} rw - cgroup2 cgroup2 rw\n", root.display())).unwrap();
        let config = CgroupConfig { driver: Some(driver), ..CgroupConfig::host("", true) };
        Cgroups::detect(CgroupConfig { fs_root: root, mount_table: table, ..config }).unwrap()
    }

    fn reserved(cgroup: &str) -> Reserved {
        let values = PodValues {
            cpu_shares: Some(204),
            memory_limit: Some(200 << 20),
            memory_min: Some(200 << 20),
            pids_limit: Some(1000),
            ..PodValues::default()
        };
        Reserved { whom: "Kube", field: "kubeReservedCgroup", cgroup: cgroup.to_owned(), values }
    }

    #[tokio::test]
    async fn a_reservation_is_written_into_the_cgroup_that_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let c = detected(Driver::Cgroupfs, dir.path());
        for name in ["/runtime/daemon", "runtime/daemon"] {
            c.enforce_reserved(&reserved(name)).await.unwrap();
        }
        for (file, want) in [
            ("cpu.weight", "8"),
            ("memory.max", "209715200"),
            ("memory.min", "209715200"),
            ("pids.max", "1000"),
        ] {
            let path = dir.path().join("cg/runtime/daemon").join(file);
            assert_eq!(files::read(path).unwrap(), want, "{file}");
        }
    }

    #[tokio::test]
    async fn a_cgroup_that_is_not_there_or_cannot_be_is_told_by_field_and_name() {
        let dir = tempfile::tempdir().unwrap();
        let c = detected(Driver::Cgroupfs, dir.path());
        for (name, want) in [
            ("/absent", "kubeReservedCgroup: \"/absent\": there is no cgroup "),
            ("/a/../b", "kubeReservedCgroup: \"/a/../b\" can name no cgroup"),
            ("/", "kubeReservedCgroup: \"/\" can name no cgroup"),
        ] {
            let text = c.enforce_reserved(&reserved(name)).await.unwrap_err().to_string();
            assert!(text.starts_with(want), "{text}");
        }
        let nothing = Reserved { values: PodValues::default(), ..reserved("/absent") };
        assert!(matches!(c.enforce_reserved(&nothing).await, Err(Error::NoReserved { .. })));
        let c = detected(Driver::Systemd, dir.path());
        for name in ["/a b.slice", "a--b.slice", "-.slice"] {
            let text = c.enforce_reserved(&reserved(name)).await.unwrap_err().to_string();
            assert!(text.ends_with("can name no cgroup"), "{text}");
        }
        assert_eq!(c.reserved_path("/a.slice/a-b.slice").as_deref(), Some("/a.slice/a-b.slice"));
        assert_eq!(c.reserved_path("a-b").as_deref(), Some("/a.slice/a-b.slice"));
    }

    #[tokio::test]
    async fn a_limit_that_would_cost_processes_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let c = detected(Driver::Cgroupfs, dir.path());
        let cgroup = dir.path().join("cg/runtime");
        std::fs::write(cgroup.join("memory.current"), (300 << 20).to_string()).unwrap();
        let text = c.enforce_reserved(&reserved("/runtime")).await.unwrap_err().to_string();
        assert_eq!(
            text,
            "kubeReservedCgroup: \"/runtime\" uses 314572800 bytes of memory, more than the 209715200 reserved for it"
        );
        // What can be taken back does not count.
        let shared = format!("anon 1\nfile {0}\nshmem {0}\n", 150 << 20);
        std::fs::write(cgroup.join("memory.stat"), shared).unwrap();
        assert!(c.enforce_reserved(&reserved("/runtime")).await.is_err());
        let files = format!("active_file {0}\ninactive_file {0}\n", 75 << 20);
        std::fs::write(cgroup.join("memory.stat"), files).unwrap();
        c.enforce_reserved(&reserved("/runtime")).await.unwrap();
    }
}
