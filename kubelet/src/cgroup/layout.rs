//! Names: where a QoS class and a pod stand in the hierarchy, for either driver. Pure.
//!
//! ```text
//!  <cgroupRoot>/kubepods/pod<uid>              Guaranteed     kubepods-pod<uid_>.slice
//!  <cgroupRoot>/kubepods/burstable/pod<uid>    Burstable      kubepods-burstable-pod<uid_>.slice
//!  <cgroupRoot>/kubepods/besteffort/pod<uid>   BestEffort     kubepods-besteffort-pod<uid_>.slice
//! ```

use super::Error;
use crate::api::{PodUid, Qos};

/// The directory under `cgroupRoot` that holds every pod.
pub const NODE: &str = "kubepods";
/// Every QoS class, the parent of the others first.
pub const CLASSES: [Qos; 3] = [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort];

/// The directory name of a class under [`NODE`]; `Guaranteed` pods stand in [`NODE`] itself.
fn class_dir(qos: Qos) -> Option<&'static str> {
    match qos {
        Qos::Guaranteed => None,
        Qos::Burstable => Some("burstable"),
        Qos::BestEffort => Some("besteffort"),
    }
}

/// Checks `cgroupRoot` and brings it to the form that paths are appended to: empty, or `/a/b`.
pub fn normal_root(value: &str) -> Result<String, Error> {
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

/// `<root>/kubepods[/class]`, for the cgroupfs driver.
pub fn class_path(root: &str, qos: Qos) -> String {
    match class_dir(qos) {
        None => format!("{root}/{NODE}"),
        Some(dir) => format!("{root}/{NODE}/{dir}"),
    }
}

/// The pod's cgroup for the cgroupfs driver, as it travels in CRI's `cgroup_parent`.
pub fn pod_path(root: &str, qos: Qos, uid: &PodUid) -> String {
    format!("{}/pod{uid}", class_path(root, qos))
}

/// The UID that a directory of a class stands for; `None` for anything that is no pod's.
pub fn uid_of_dir(name: &str) -> Option<PodUid> {
    name.strip_prefix("pod").filter(|uid| !uid.is_empty()).map(PodUid::new)
}

/// Refuses UIDs that would leave the class's directory or cannot be a file name.
pub fn check_uid(uid: &PodUid) -> Result<(), Error> {
    let text = uid.as_str();
    if text.is_empty() || text.len() > 250 || text.contains(['/', '\0', '\n']) {
        return Err(Error::Uid { uid: text.to_owned() });
    }
    Ok(())
}

/// The pod's slice for the systemd driver. Dashes nest slices, so those of the UID become underscores.
pub fn pod_slice(qos: Qos, uid: &PodUid) -> String {
    let uid = uid.as_str().replace('-', "_");
    match class_dir(qos) {
        None => format!("{NODE}-pod{uid}.slice"),
        Some(class) => format!("{NODE}-{class}-pod{uid}.slice"),
    }
}

/// The slice's path in the hierarchy, which is what CRI's `cgroup_parent` carries with the systemd driver.
pub fn pod_slice_path(qos: Qos, uid: &PodUid) -> String {
    let slice = pod_slice(qos, uid);
    match class_dir(qos) {
        None => format!("/{NODE}.slice/{slice}"),
        Some(class) => format!("/{NODE}.slice/{NODE}-{class}.slice/{slice}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(pod_path("/golden", qos, &uid), fs);
            assert_eq!(pod_slice_path(qos, &uid), slice);
        }
        assert_eq!(pod_path("", Qos::Burstable, &uid), "/kubepods/burstable/pod0a-b");
    }

    #[test]
    fn a_root_is_absolute_and_normal_or_refused() {
        for (value, want) in [("", ""), ("/", ""), ("/golden", "/golden"), ("/a/b/", "/a/b")] {
            assert_eq!(normal_root(value).unwrap(), want);
        }
        for value in ["golden", "/..", "/a/../b", "/a//b", "//", "/a/."] {
            assert!(normal_root(value).is_err(), "{value}");
        }
    }

    #[test]
    fn a_uid_that_would_leave_its_directory_is_refused() {
        for uid in ["", "../x", "a/b", "a\0"] {
            assert!(check_uid(&PodUid::new(uid)).is_err(), "{uid:?}");
        }
        assert!(check_uid(&PodUid::new("..")).is_ok(), "pod.. is an ordinary name");
        assert_eq!(uid_of_dir("poduid1"), Some(PodUid::new("uid1")));
        assert_eq!(uid_of_dir("pod"), None);
        assert_eq!(uid_of_dir("burstable"), None);
    }
}
