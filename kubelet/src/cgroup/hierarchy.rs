//! Which cgroup file systems are mounted: version and controllers, from the mount table. Reads only.

use super::Error;
use crate::mountinfo::{self, Mount};
use std::path::{Path, PathBuf};

/// What is mounted under the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// One or more v1 hierarchies. The hybrid layout's v2 mount below the root (`unified`) is one of them, without
    /// controllers: OCI runtimes make cgroups in it too, and somebody has to remove them.
    V1 {
        /// Every hierarchy with what it carries, in mount order.
        hierarchies: Vec<Hierarchy>,
    },
    /// The single v2 hierarchy, mounted at the root itself.
    V2 {
        /// `cgroup.controllers` of the root.
        controllers: Vec<String>,
    },
}

/// A v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its mount point.
    pub path: PathBuf,
    /// `["cpu", "cpuacct"]`, or `["name=systemd"]`, or nothing for the hybrid layout's `unified`.
    pub controllers: Vec<String>,
}

/// Every v1 controller there has ever been; what else stands in the superblock's options is no controller.
const V1_CONTROLLERS: [&str; 14] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "hugetlb",
    "net_cls",
    "net_prio",
    "perf_event",
    "rdma",
    "misc",
];

/// Finds the version below `fs_root` from the table at `mount_table`.
pub fn detect(fs_root: &Path, mount_table: &Path) -> Result<Version, Error> {
    let mounts = mountinfo::read(mount_table)
        .map_err(|cause| Error::MountTable { path: mount_table.to_owned(), cause })?;
    // The last mount on a point is the one in sight.
    if mounts.iter().rfind(|m| m.point == fs_root).is_some_and(|m| m.fs_type == "cgroup2") {
        let path = fs_root.join("cgroup.controllers");
        let text = std::fs::read_to_string(&path).map_err(|cause| Error::Read { path, cause })?;
        return Ok(Version::V2 { controllers: text.split_whitespace().map(str::to_owned).collect() });
    }
    let hierarchies = v1_hierarchies(fs_root, &mounts);
    if hierarchies.iter().all(|h| h.controllers.is_empty()) {
        return Err(Error::NoHierarchy { fs_root: fs_root.to_owned() });
    }
    Ok(Version::V1 { hierarchies })
}

/// The v1 mounts directly below `fs_root`; of two mounts of one hierarchy the first.
fn v1_hierarchies(fs_root: &Path, mounts: &[Mount]) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for mount in mounts.iter().filter(|m| m.point.parent() == Some(fs_root)) {
        if mount.fs_type == "cgroup2" {
            found.push(Hierarchy { path: mount.point.clone(), controllers: Vec::new() });
        }
        if mount.fs_type != "cgroup" {
            continue;
        }
        let controllers: Vec<String> = mount
            .super_options
            .iter()
            .filter(|o| o.starts_with("name=") || V1_CONTROLLERS.contains(&o.as_str()))
            .cloned()
            .collect();
        if !controllers.is_empty() && !found.iter().any(|h| h.controllers == controllers) {
            found.push(Hierarchy { path: mount.point.clone(), controllers });
        }
    }
    found
}

impl Version {
    /// The directory to which cgroup paths of `controller` are appended.
    pub fn root_of<'a>(&'a self, fs_root: &'a Path, controller: &str) -> Option<&'a Path> {
        match self {
            Version::V1 { hierarchies } => hierarchies
                .iter()
                .find(|h| h.controllers.iter().any(|c| c == controller))
                .map(|h| h.path.as_path()),
            Version::V2 { controllers } => controllers.iter().any(|c| c == controller).then_some(fs_root),
        }
    }

    /// Every directory to which cgroup paths are appended.
    pub fn roots<'a>(&'a self, fs_root: &'a Path) -> Vec<&'a Path> {
        match self {
            Version::V1 { hierarchies } => hierarchies.iter().map(|h| h.path.as_path()).collect(),
            Version::V2 { .. } => vec![fs_root],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect_in(lines: &[&str], controllers: Option<&str>) -> Result<Version, Error> {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("cg");
        std::fs::create_dir(&root).unwrap();
        if let Some(text) = controllers {
            std::fs::write(root.join("cgroup.controllers"), text).unwrap();
        }
        let table: String = lines
            .iter()
            .map(|l| {
                format!("1 0 0:1 / {} rw - {}\n", l.split(' ').next().unwrap(), l.split_once(' ').unwrap().1)
            })
            .collect::<String>()
            .replace("ROOT", root.to_str().unwrap());
        let path = dir.path().join("mountinfo");
        std::fs::write(&path, table).unwrap();
        detect(&root, &path)
    }

    fn names(v: &Version) -> Vec<Vec<&str>> {
        match v {
            Version::V1 { hierarchies } => {
                hierarchies.iter().map(|h| h.controllers.iter().map(String::as_str).collect()).collect()
            }
            Version::V2 { .. } => panic!("v2"),
        }
    }

    #[test]
    fn a_hybrid_layout_with_a_unified_mount_counts_as_v1() {
        let v = detect_in(
            &[
                "ROOT tmpfs tmpfs rw,mode=755",
                "ROOT/cpu,cpuacct cgroup cgroup rw,cpu,cpuacct",
                "ROOT/systemd cgroup cgroup rw,xattr,name=systemd",
                "ROOT/unified cgroup2 cgroup2 rw,nsdelegate",
                "/elsewhere/memory cgroup cgroup rw,memory",
            ],
            None,
        )
        .unwrap();
        assert_eq!(names(&v), [vec!["cpu", "cpuacct"], vec!["name=systemd"], vec![]]);
        assert_eq!(v.root_of(Path::new("/"), "memory"), None, "unified carries no controllers");
    }

    #[test]
    fn a_v2_mount_at_the_root_is_v2() {
        let v =
            detect_in(&["ROOT cgroup2 cgroup2 rw,nsdelegate"], Some("cpuset cpu io memory pids\n")).unwrap();
        let Version::V2 { controllers } = v else { panic!("{v:?}") };
        assert_eq!(controllers, ["cpuset", "cpu", "io", "memory", "pids"]);
    }

    #[test]
    fn no_cgroup_mount_is_an_error_that_names_the_root() {
        let text = detect_in(&["ROOT tmpfs tmpfs rw"], None).unwrap_err().to_string();
        assert!(text.contains("no cgroup file system") && text.contains("/cg"), "{text}");
    }

    #[test]
    fn this_machine_reads_as_cgroups_rs_reads_it() {
        let ours = match detect(Path::new("/sys/fs/cgroup"), Path::new(mountinfo::SELF)) {
            Ok(v) => v,
            Err(e) => return eprintln!("SKIP this_machine_reads_as_cgroups_rs_reads_it: {e}"),
        };
        let v2 = matches!(ours, Version::V2 { .. });
        assert_eq!(v2, cgroups_rs::fs::hierarchies::is_cgroup2_unified_mode());
        if let Version::V1 { hierarchies } = ours {
            let theirs: Vec<PathBuf> = cgroups_rs::fs::hierarchies::mountinfo_self()
                .into_iter()
                .map(|m| m.mount_point)
                .filter(|p| p.parent() == Some(Path::new("/sys/fs/cgroup")))
                .collect();
            let v1 = hierarchies.into_iter().filter(|h| !h.controllers.is_empty());
            assert_eq!(v1.map(|h| h.path).collect::<Vec<_>>(), theirs);
        }
    }
}
