//! What CPU and memory a cgroup has now, read from the kernel: a resize compares it with what should be.
//!
//! Pod actors ask. Nothing is written here: who raises or lowers values does it with
//! [`create_pod`](Cgroups::create_pod), which leaves alone what it is not given.

use super::{Cgroups, Error, Version, files, values};
use crate::api::{PodUid, Qos};
use std::path::{Path, PathBuf};

/// CPU and memory of one cgroup. Where a controller is missing its values read as unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// On the v1 scale; on v2 the shares that make the weight.
    pub cpu_shares: u64,
    /// Microseconds a period; -1 for no limit.
    pub cpu_quota_us: i64,
    /// Microseconds.
    pub cpu_period_us: u64,
    /// Bytes; -1 for no limit.
    pub memory_limit: i64,
    /// Bytes in use, caches among them.
    pub memory_usage: u64,
}

/// v1 says "no limit" by the largest number of whole pages.
const UNLIMITED: i64 = 1 << 62;

impl Cgroups {
    /// The pod's cgroup; `None` where it has none.
    pub fn pod_now(&self, qos: Qos, uid: &PodUid) -> Result<Option<Now>, Error> {
        if !self.inner.per_qos || self.inner.layout.check_uid(uid).is_err() {
            return Ok(None);
        }
        self.now(&|root| Ok(Some(self.pod_dir(root, qos, uid)).filter(|dir| dir.is_dir())))
    }

    /// The cgroup of the container `id` of the pod, whichever runtime and driver named it; `None` where there is none.
    pub fn container_now(&self, qos: Qos, uid: &PodUid, id: &str) -> Result<Option<Now>, Error> {
        if !self.inner.per_qos || self.inner.layout.check_uid(uid).is_err() || id.is_empty() {
            return Ok(None);
        }
        let names = self.inner.layout.names_of(id);
        self.now(&|root| {
            let pod = self.pod_dir(root, qos, uid);
            Ok(names.iter().map(|name| pod.join(name)).find(|dir| dir.is_dir()))
        })
    }

    fn pod_dir(&self, root: &Path, qos: Qos, uid: &PodUid) -> PathBuf {
        super::below(root, &self.inner.layout.pod(qos, uid))
    }

    /// `dir` finds the cgroup in a hierarchy.
    fn now(&self, dir: &dyn Fn(&Path) -> Result<Option<PathBuf>, Error>) -> Result<Option<Now>, Error> {
        let version = &self.inner.version;
        let in_hierarchy = |controller: &str| match version.root_of(&self.inner.fs_root, controller) {
            Some(root) => dir(root),
            None => Ok(None),
        };
        let (cpu, memory) = (in_hierarchy("cpu")?, in_hierarchy("memory")?);
        if cpu.is_none() && memory.is_none() {
            return Ok(None);
        }
        let cpu = |file: &str| number(cpu.as_deref(), file);
        let memory = |file: &str| number(memory.as_deref(), file);
        Ok(Some(match version {
            Version::V1 { .. } => Now {
                cpu_shares: unsigned(cpu("cpu.shares")?, values::MIN_SHARES),
                cpu_quota_us: cpu("cpu.cfs_quota_us")?.filter(|q| *q > 0).unwrap_or(-1),
                cpu_period_us: unsigned(cpu("cpu.cfs_period_us")?, values::DEFAULT_PERIOD_US),
                memory_limit: memory("memory.limit_in_bytes")?
                    .filter(|l| (0..UNLIMITED).contains(l))
                    .unwrap_or(-1),
                memory_usage: unsigned(memory("memory.usage_in_bytes")?, 0),
            },
            Version::V2 { .. } => {
                let (quota, period) = in_hierarchy("cpu")?
                    .map_or(Ok(None), |d| cpu_max(&d))?
                    .unwrap_or((-1, values::DEFAULT_PERIOD_US));
                Now {
                    cpu_shares: values::shares_of_weight(unsigned(cpu("cpu.weight")?, 1)),
                    cpu_quota_us: quota,
                    cpu_period_us: period,
                    memory_limit: memory("memory.max")?.unwrap_or(-1),
                    memory_usage: unsigned(memory("memory.current")?, 0),
                }
            }
        }))
    }
}

fn unsigned(value: Option<i64>, default: u64) -> u64 {
    value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default)
}

/// The number in a file; `None` for `max`, and for a file that is not there.
fn number(dir: Option<&Path>, file: &str) -> Result<Option<i64>, Error> {
    let Some(dir) = dir else { return Ok(None) };
    Ok(text(dir, file)?.and_then(|t| t.parse().ok()))
}

/// Quota (-1 for none) and period.
fn cpu_max(dir: &Path) -> Result<Option<(i64, u64)>, Error> {
    let parsed = |t: String| {
        let (quota, period) = t.split_once(' ')?;
        Some((quota.parse().unwrap_or(-1), period.parse().ok()?))
    };
    Ok(text(dir, "cpu.max")?.and_then(parsed))
}

fn text(dir: &Path, file: &str) -> Result<Option<String>, Error> {
    match files::read(dir.join(file)) {
        Ok(text) => Ok(Some(text)),
        Err(Error::Read { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CgroupConfig, PodValues};
    use super::*;

    /// A tree of plain directories with these files below the pod's cgroups, which reads as v1 or as v2.
    fn tree(v2: bool, content: &[(&str, &str)]) -> (tempfile::TempDir, Cgroups) {
        let dir = tempfile::tempdir().unwrap();
        let table = dir.path().join("mountinfo");
        let root = dir.path().join("cg");
        std::fs::create_dir_all(&root).unwrap();
        let line = |path: &Path, kind: &str, options: &str| {
            format!("30 29 0:30 / {} rw - {kind} cg rw,{options}\n", path.display())
        };
        let text = if v2 {
            std::fs::write(root.join("cgroup.controllers"), "cpuset cpu memory").unwrap();
            line(&root, "cgroup2", "")
        } else {
            ["cpu", "memory"]
                .map(|c| {
                    std::fs::create_dir_all(root.join(c)).unwrap();
                    line(&root.join(c), "cgroup", c)
                })
                .concat()
        };
        std::fs::write(&table, text).unwrap();
        for (file, value) in content {
            let controller = file.split('.').next().unwrap();
            let (own, file) = file.split_once(':').map_or(("", *file), |(c, f)| (c, f));
            let controller = if own.is_empty() { controller } else { file.split('.').next().unwrap() };
            let below = if v2 { root.clone() } else { root.join(controller) };
            let at = below.join("kubepods/burstable/podu").join(own);
            std::fs::create_dir_all(&at).unwrap();
            std::fs::write(at.join(file), format!("{value}\n")).unwrap();
        }
        let config = CgroupConfig { fs_root: root, mount_table: table, ..CgroupConfig::host("", true) };
        let cgroups = Cgroups::detect(config).unwrap();
        (dir, cgroups)
    }

    fn of_pod(cgroups: &Cgroups) -> Option<Now> {
        cgroups.pod_now(Qos::Burstable, &PodUid::new("u")).unwrap()
    }

    #[test]
    fn both_versions_tell_the_same() {
        let want = Now {
            cpu_shares: 102,
            cpu_quota_us: 20_000,
            cpu_period_us: 100_000,
            memory_limit: 1 << 27,
            memory_usage: 4096,
        };
        let (_dir, v1) = tree(
            false,
            &[
                ("cpu.shares", "102"),
                ("cpu.cfs_quota_us", "20000"),
                ("cpu.cfs_period_us", "100000"),
                ("memory.limit_in_bytes", "134217728"),
                ("memory.usage_in_bytes", "4096"),
            ],
        );
        assert_eq!(of_pod(&v1), Some(want));
        let (_dir, v2) = tree(
            true,
            &[
                ("cpu.weight", "4"),
                ("cpu.max", "20000 100000"),
                ("memory.max", "134217728"),
                ("memory.current", "4096"),
            ],
        );
        let now = of_pod(&v2).unwrap();
        assert_eq!(values::weight_of_shares(now.cpu_shares), values::weight_of_shares(102));
        assert_eq!(Now { cpu_shares: 102, ..now }, want);
    }

    #[test]
    fn no_limit_is_minus_one_and_no_cgroup_is_none() {
        let (_dir, v1) =
            tree(false, &[("cpu.cfs_quota_us", "-1"), ("memory.limit_in_bytes", "9223372036854771712")]);
        let now = of_pod(&v1).unwrap();
        assert_eq!((now.cpu_quota_us, now.memory_limit, now.cpu_shares), (-1, -1, 2));
        let (_dir, v2) = tree(true, &[("cpu.max", "max 100000"), ("memory.max", "max")]);
        let now = of_pod(&v2).unwrap();
        assert_eq!((now.cpu_quota_us, now.memory_limit), (-1, -1));
        let (_dir, none) = tree(false, &[]);
        assert_eq!(of_pod(&none), None);
        assert_eq!(none.pod_now(Qos::Burstable, &PodUid::new("a/b")).unwrap(), None);
    }

    #[test]
    fn containers_are_found_by_their_id_whoever_named_their_cgroup() {
        for name in ["abc", "crio-abc"] {
            let file = format!("{name}:memory.limit_in_bytes");
            let (_dir, cgroups) = tree(false, &[(&file, "8192"), ("cpu.shares", "7")]);
            let now = |id: &str| cgroups.container_now(Qos::Burstable, &PodUid::new("u"), id).unwrap();
            assert_eq!(now("abc").unwrap().memory_limit, 8192, "{name}");
            assert_eq!((now("abd"), now("")), (None, None));
        }
    }

    #[test]
    fn a_weight_is_the_weight_of_its_shares() {
        for weight in [1, 2, 4, 59, 118, 157, 5000, 9999, 10_000] {
            assert_eq!(values::weight_of_shares(values::shares_of_weight(weight)), weight);
        }
    }

    #[tokio::test]
    async fn what_was_written_is_read() {
        let (_dir, cgroups) =
            tree(false, &[("cpu.shares", "2"), ("memory.limit_in_bytes", "9223372036854771712")]);
        let uid = PodUid::new("u");
        let values = PodValues { cpu_shares: Some(204), memory_limit: Some(1 << 20), ..PodValues::default() };
        cgroups.create_pod(Qos::Burstable, &uid, &values).await.unwrap();
        let now = of_pod(&cgroups).unwrap();
        assert_eq!((now.cpu_shares, now.memory_limit, now.cpu_quota_us), (204, 1 << 20, -1));
    }
}
