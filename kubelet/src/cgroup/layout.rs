//! Names: where a QoS class and a pod stand in the hierarchy, for either driver. Pure.
//!
//! ```text
//!  cgroupfs                                    systemd
//!  <root>/kubepods/pod<uid>                    <root>kubepods-pod<uid_>.slice               Guaranteed
//!  <root>/kubepods/burstable/pod<uid>          <root>kubepods-burstable-pod<uid_>.slice     Burstable
//!  <root>/kubepods/besteffort/pod<uid>         <root>kubepods-besteffort-pod<uid_>.slice    BestEffort
//! ```
//!
//! A slice stands below those that its name is made of: `a-b.slice` is `/a.slice/a-b.slice`. So `cgroupRoot: /a/b` is
//! the slice `a-b.slice`, and dashes within a part, like those of a UID, become underscores.

use super::{Driver, Error};
use crate::api::{PodUid, Qos};

/// The directory under `cgroupRoot` that holds every pod.
pub const NODE: &str = "kubepods";
/// Every QoS class, the parent of the others first.
pub const CLASSES: [Qos; 3] = [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort];
/// What a slice's name ends in.
pub const SLICE: &str = ".slice";
/// systemd takes no longer names of units.
const LONGEST_UNIT: usize = 255;

/// The directory name of a class under [`NODE`]; `Guaranteed` pods stand in [`NODE`] itself.
fn class_dir(qos: Qos) -> Option<&'static str> {
    match qos {
        Qos::Guaranteed => None,
        Qos::Burstable => Some("burstable"),
        Qos::BestEffort => Some("besteffort"),
    }
}

/// Where everything stands with one driver below one `cgroupRoot`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    driver: Driver,
    /// cgroupfs: empty, or `/a/b`. systemd: empty, or `a-b-`.
    root: String,
}

impl Layout {
    /// Checks `cgroupRoot` for `driver`.
    pub fn new(driver: Driver, root: &str) -> Result<Self, Error> {
        let path = normal_root(root)?;
        let root = match driver {
            Driver::Cgroupfs => path,
            Driver::Systemd => {
                slice_prefix(&path).ok_or_else(|| Error::SliceRoot { value: root.to_owned() })?
            }
        };
        Ok(Self { driver, root })
    }

    /// `cgroupDriver`
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// The class's cgroup; the one of the guaranteed class holds all pods and the other classes.
    pub fn class(&self, qos: Qos) -> String {
        let root = &self.root;
        match (self.driver, class_dir(qos)) {
            (Driver::Cgroupfs, None) => format!("{root}/{NODE}"),
            (Driver::Cgroupfs, Some(dir)) => format!("{root}/{NODE}/{dir}"),
            (Driver::Systemd, None) => slice_path(&format!("{root}{NODE}{SLICE}")),
            (Driver::Systemd, Some(dir)) => slice_path(&format!("{root}{NODE}-{dir}{SLICE}")),
        }
    }

    /// The pod's cgroup, as it travels in CRI's `cgroup_parent`.
    pub fn pod(&self, qos: Qos, uid: &PodUid) -> String {
        let class = self.class(qos);
        match self.driver {
            Driver::Cgroupfs => format!("{class}/pod{uid}"),
            Driver::Systemd => {
                let uid = uid.as_str().replace('-', "_");
                format!("{class}/{}-pod{uid}{SLICE}", stem(unit_of(&class)))
            }
        }
    }

    /// The UID that the directory `name` in the class's cgroup stands for; `None` for anything that is no pod's. UIDs
    /// have no underscores, so those of a slice's name were dashes.
    pub fn uid_of(&self, qos: Qos, name: &str) -> Option<PodUid> {
        let uid = match self.driver {
            Driver::Cgroupfs => name.strip_prefix("pod")?.to_owned(),
            Driver::Systemd => {
                let class = self.class(qos);
                let own = name.strip_suffix(SLICE)?.strip_prefix(stem(unit_of(&class)))?;
                own.strip_prefix("-pod")?.replace('_', "-")
            }
        };
        (!uid.is_empty()).then(|| PodUid::new(&uid))
    }

    /// Refuses UIDs that would leave the class's directory, cannot be a name there, or could not be read back from it.
    pub fn check_uid(&self, uid: &PodUid) -> Result<(), Error> {
        let text = uid.as_str();
        let fits = match self.driver {
            Driver::Cgroupfs => text.len() <= 250 && !text.contains(['/', '\0', '\n']),
            Driver::Systemd => {
                let longest = self.pod(Qos::BestEffort, uid);
                let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:".contains(&b));
                plain && unit_of(&longest).len() <= LONGEST_UNIT
            }
        };
        if text.is_empty() || !fits {
            return Err(Error::Uid { uid: text.to_owned() });
        }
        Ok(())
    }

    /// The names that runtimes give the cgroup of the container or sandbox `id` in its pod's: containerd's and CRI-O's.
    pub fn names_of(&self, id: &str) -> [String; 2] {
        match self.driver {
            Driver::Cgroupfs => [id.to_owned(), format!("crio-{id}")],
            Driver::Systemd => [format!("cri-containerd-{id}.scope"), format!("crio-{id}.scope")],
        }
    }
}

/// Checks `cgroupRoot` and brings it to the form that paths are appended to: empty, or `/a/b`.
pub(super) fn normal_root(value: &str) -> Result<String, Error> {
    if value.is_empty() || value == "/" {
        return Ok(String::new());
    }
    let bad = || Error::CgroupRoot { value: value.to_owned() };
    let parts = value.strip_prefix('/').ok_or_else(bad)?.trim_end_matches('/');
    if parts.split('/').any(|p| p.is_empty() || p == "." || p == "..") || parts.contains('\0') {
        return Err(bad());
    }
    Ok(format!("/{parts}"))
}

/// `/a/b-c` as `a-b_c-`; `None` when a slice cannot be named so.
fn slice_prefix(path: &str) -> Option<String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/".contains(&b);
    // A pod's part, with a UID as long as they come, goes behind it.
    let room = LONGEST_UNIT - "kubepods-besteffort-pod".len() - 36 - SLICE.len();
    let prefix: String =
        path.split('/').filter(|p| !p.is_empty()).map(|p| p.replace('-', "_") + "-").collect();
    (path.bytes().all(allowed) && prefix.len() <= room).then_some(prefix)
}

/// The last part of a cgroup's path: for the systemd driver, the unit.
pub fn unit_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The name of a slice without what all slices' names end in.
fn stem(unit: &str) -> &str {
    unit.strip_suffix(SLICE).unwrap_or(unit)
}

/// Where the slice `unit` stands.
pub fn slice_path(unit: &str) -> String {
    let name = stem(unit);
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    ends.map(|end| format!("/{}{SLICE}", &name[..end])).collect()
}

/// The slice that `unit` stands in.
pub fn parent_of(unit: &str) -> String {
    match stem(unit).rsplit_once('-') {
        Some((parent, _)) => format!("{parent}{SLICE}"),
        None => format!("-{SLICE}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(driver: Driver, root: &str) -> Layout {
        Layout::new(driver, root).unwrap()
    }

    #[test]
    fn pods_stand_where_the_stock_agent_puts_them() {
        let uid = PodUid::new("0a-b");
        for (qos, fs, slice) in [
            (Qos::Guaranteed, "/golden/kubepods/pod0a-b", "/kubepods.slice/kubepods-pod0a_b.slice"),
            (
                Qos::Burstable,
                "/golden/kubepods/burstable/pod0a-b",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0a_b.slice",
            ),
            (
                Qos::BestEffort,
                "/golden/kubepods/besteffort/pod0a-b",
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0a_b.slice",
            ),
        ] {
            assert_eq!(layout(Driver::Cgroupfs, "/golden").pod(qos, &uid), fs);
            let systemd = layout(Driver::Systemd, "");
            assert_eq!(systemd.pod(qos, &uid), slice);
            assert_eq!(systemd.uid_of(qos, unit_of(slice)), Some(uid.clone()));
        }
        assert_eq!(layout(Driver::Cgroupfs, "").pod(Qos::Burstable, &uid), "/kubepods/burstable/pod0a-b");
    }

    #[test]
    fn a_root_of_slices_is_nested_as_their_names_say() {
        let nested = layout(Driver::Systemd, "/a/b-c");
        assert_eq!(nested.class(Qos::Guaranteed), "/a.slice/a-b_c.slice/a-b_c-kubepods.slice");
        let pod = nested.pod(Qos::Burstable, &PodUid::new("u-1"));
        assert_eq!(
            pod,
            "/a.slice/a-b_c.slice/a-b_c-kubepods.slice/a-b_c-kubepods-burstable.slice/\
             a-b_c-kubepods-burstable-podu_1.slice"
        );
        assert_eq!(slice_path(unit_of(&pod)), pod, "as systemd will see it");
        assert_eq!(parent_of("a-b_c-kubepods.slice"), "a-b_c.slice");
        assert_eq!(parent_of("kubepods.slice"), "-.slice");
        assert_eq!(nested.uid_of(Qos::Burstable, unit_of(&pod)), Some(PodUid::new("u-1")));
        for name in ["a-b_c-kubepods-burstable.slice", "kubepods-burstable-podu_1.slice", "podu-1", "x.slice"]
        {
            assert_eq!(nested.uid_of(Qos::Burstable, name), None, "{name}");
        }
    }

    #[test]
    fn a_root_is_absolute_and_normal_or_refused() {
        for (value, want) in [("", ""), ("/", ""), ("/golden", "/golden"), ("/a/b/", "/a/b")] {
            assert_eq!(normal_root(value).unwrap(), want);
        }
        for value in ["golden", "/..", "/a/../b", "/a//b", "//", "/a/."] {
            assert!(normal_root(value).is_err(), "{value}");
        }
        let long = format!("/{}", "x".repeat(200));
        for value in ["/a b", "/a@1", "/a\\x", "/ä", &long] {
            assert!(Layout::new(Driver::Cgroupfs, value).is_ok(), "{value}");
            let error = Layout::new(Driver::Systemd, value).unwrap_err().to_string();
            assert!(error.starts_with("cgroupRoot: ") && error.contains("slice"), "{error}");
        }
    }

    #[test]
    fn a_uid_that_would_leave_its_directory_is_refused() {
        let (fs, systemd) = (layout(Driver::Cgroupfs, ""), layout(Driver::Systemd, ""));
        for uid in ["", "../x", "a/b", "a\0"] {
            assert!(fs.check_uid(&PodUid::new(uid)).is_err(), "{uid:?}");
            assert!(systemd.check_uid(&PodUid::new(uid)).is_err(), "{uid:?}");
        }
        // It could not be told from one with dashes, or is no name of a unit.
        for uid in ["a_b", "a b", "a@b", &"x".repeat(240)] {
            assert!(fs.check_uid(&PodUid::new(uid)).is_ok(), "{uid:?}");
            assert!(systemd.check_uid(&PodUid::new(uid)).is_err(), "{uid:?}");
        }
        assert!(fs.check_uid(&PodUid::new("..")).is_ok(), "pod.. is an ordinary name");
        assert_eq!(fs.uid_of(Qos::Guaranteed, "poduid1"), Some(PodUid::new("uid1")));
        assert_eq!(fs.uid_of(Qos::Guaranteed, "pod"), None);
        assert_eq!(fs.uid_of(Qos::Guaranteed, "burstable"), None);
    }
}
