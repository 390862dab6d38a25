//! Names of log directories, files and links, and the few file-system steps on them.
//!
//! The path functions are pure. The others block: call them from a blocking thread. Layout (upstream's):
//!
//! ```text
//! <podLogsDir>/<namespace>_<name>_<uid>/<container>/<attempt>.log
//! /var/log/containers/<name>_<namespace>_<container>-<container id>.log -> the file above
//! ```

use super::place::Place;
use super::rotated;
use crate::api::{PodRef, PodUid};
use std::io;
use std::path::{Path, PathBuf};

/// Where upstream puts the links; it is not configurable there.
pub const CONTAINER_LOGS_DIR: &str = "/var/log/containers";

/// ext4's and most other file systems' limit for one name.
const MAX_NAME: usize = 255;
const SUFFIX: &str = ".log";

/// A step on the log directories failed.
#[derive(Debug, thiserror::Error)]
pub enum LogPathError {
    /// A directory could not be read, made or removed.
    #[error("log directory {path}: {step}: {source}", path = .path.display())]
    Directory {
        /// What was being done.
        step: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A link could not be made or removed.
    #[error("log link {path}: {step}: {source}", path = .path.display())]
    Link {
        /// What was being done.
        step: &'static str,
        /// The link.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// `<root>/<namespace>_<name>_<uid>`: the sandbox's `log_directory`.
pub fn pod_log_dir(root: &Path, pod: &PodRef) -> PathBuf {
    root.join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
}

/// The directory of one container's logs.
pub fn container_log_dir(root: &Path, pod: &PodRef, container: &str) -> PathBuf {
    pod_log_dir(root, pod).join(container)
}

/// `<container>/<attempt>.log`: the container's `log_path`, relative to the sandbox's `log_directory`.
pub fn relative_log_path(container: &str, attempt: u32) -> PathBuf {
    Path::new(container).join(format!("{attempt}{SUFFIX}"))
}

/// The file of one run of a container.
pub fn container_log_path(root: &Path, pod: &PodRef, container: &str, attempt: u32) -> PathBuf {
    pod_log_dir(root, pod).join(relative_log_path(container, attempt))
}

/// The link in `links` (normally [`CONTAINER_LOGS_DIR`]) for the container with the runtime's id `container_id`. Names
/// past the file system's limit are cut before the suffix, as upstream cuts them.
pub fn link_path(links: &Path, pod: &PodRef, container: &str, container_id: &str) -> PathBuf {
    let mut name = format!("{}_{}_{container}-{container_id}", pod.name, pod.namespace);
    let mut keep = name.len().min(MAX_NAME - SUFFIX.len());
    while !name.is_char_boundary(keep) {
        keep -= 1;
    }
    name.truncate(keep);
    links.join(name + SUFFIX)
}

/// Links `link` to `log`, making the directory of links where there is none and replacing a link that is there.
/// Gives false, and makes nothing, when there is no such log: a container that never started leaves no dangling link.
pub fn create_link(link: &Path, log: &Path) -> Result<bool, LogPathError> {
    let fail = |step| move |source| LogPathError::Link { step, path: link.to_path_buf(), source };
    if !log.exists() {
        return Ok(false);
    }
    match std::os::unix::fs::symlink(log, link) {
        Ok(()) => return Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if let Some(dir) = link.parent() {
                std::fs::create_dir_all(dir).map_err(|source| LogPathError::Directory {
                    step: "create",
                    path: dir.to_path_buf(),
                    source,
                })?;
            }
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            if std::fs::read_link(link).is_ok_and(|target| target == log) {
                return Ok(true);
            }
            std::fs::remove_file(link).map_err(fail("replace"))?;
        }
        Err(e) => return Err(fail("create")(e)),
    }
    std::os::unix::fs::symlink(log, link).map_err(fail("create"))?;
    Ok(true)
}

/// Removes the link of one container, whatever run of it; nothing there is fine.
pub fn remove_links(
    links: &Path,
    pod: &PodRef,
    container: &str,
    container_id: &str,
) -> Result<(), LogPathError> {
    let link = link_path(links, pod, container, container_id);
    match std::fs::remove_file(&link) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(LogPathError::Link { step: "remove", path: link, source })
        }
        _ => Ok(()),
    }
}

/// Removes every link in `links` that leads to or below `dir`, whether or not anything is there. A directory of links that
/// is not there has none. Goes on past failures and gives the first.
pub fn remove_links_into(links: &Path, dir: &Path) -> Result<(), LogPathError> {
    let mut failed = None;
    for entry in read_dir(links)? {
        let path = entry.path();
        if !std::fs::read_link(&path).is_ok_and(|target| target.starts_with(dir)) {
            continue;
        }
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                failed.get_or_insert(LogPathError::Link { step: "remove", path, source });
            }
            _ => {}
        }
    }
    failed.map_or(Ok(()), Err)
}

/// A pod's log directory as found on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLogDir {
    /// The directory.
    pub path: PathBuf,
    /// The pod it belongs to, read from its name.
    pub uid: PodUid,
}

/// The pod log directories below `root`; entries that are not named like one are left out. No `root`, no directories.
pub fn find_pod_log_dirs(root: &Path) -> Result<Vec<PodLogDir>, LogPathError> {
    let found = read_dir(root)?.into_iter().filter_map(|entry| {
        if !entry.file_type().is_ok_and(|t| t.is_dir()) {
            return None;
        }
        let name = entry.file_name();
        // Neither namespace nor name can hold an underscore; a mirror or static pod's UID may be any text.
        let mut parts = name.to_str()?.splitn(3, '_');
        let (_, _, uid) = (parts.next()?, parts.next()?, parts.next()?);
        Some(PodLogDir { path: entry.path(), uid: PodUid::new(uid) })
    });
    Ok(found.collect())
}

/// Removes a pod's log directory with everything in it; nothing there is fine. Symbolic links are removed, never
/// followed.
pub fn remove_pod_logs(dir: &Path) -> Result<(), LogPathError> {
    match std::fs::remove_dir_all(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(LogPathError::Directory { step: "remove", path: dir.to_path_buf(), source })
        }
        _ => Ok(()),
    }
}

/// Removes the log at `path` of one run of a container, with everything that was rotated of it. Nothing there is fine.
pub fn remove_instance_logs(path: &Path) -> Result<(), LogPathError> {
    match Place::open(path).and_then(|place| rotated::remove_all(&place)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(LogPathError::Directory { step: "remove logs", path: path.to_path_buf(), source })
        }
        _ => Ok(()),
    }
}

fn read_dir(dir: &Path) -> Result<Vec<std::fs::DirEntry>, LogPathError> {
    let fail = |source| LogPathError::Directory { step: "read", path: dir.to_path_buf(), source };
    match std::fs::read_dir(dir) {
        Ok(entries) => entries.collect::<Result<_, _>>().map_err(fail),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(fail(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> PodRef {
        PodRef { uid: PodUid::new("uid-1"), namespace: "demo".into(), name: "web".into() }
    }

    #[test]
    fn names_are_upstreams() {
        let p = pod();
        let path = container_log_path(Path::new("/var/log/pods"), &p, "c", 2);
        assert_eq!(path, Path::new("/var/log/pods/demo_web_uid-1/c/2.log"));
        let link = link_path(Path::new(CONTAINER_LOGS_DIR), &p, "c", "abc");
        assert_eq!(link, Path::new("/var/log/containers/web_demo_c-abc.log"));
    }

    #[test]
    fn a_link_name_fits_the_file_system() {
        let p = PodRef { name: "é".repeat(126).into(), ..pod() };
        let link = link_path(Path::new("/l"), &p, "c", &"0".repeat(64));
        let name = link.file_name().unwrap().to_str().unwrap();
        assert!(name.len() <= 255 && name.len() > 250 && name.ends_with(".log"), "{} bytes", name.len());
    }

    #[test]
    fn a_link_is_made_replaced_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (p, links) = (pod(), dir.path().join("containers"));
        let log = container_log_path(&dir.path().join("pods"), &p, "c", 0);
        let link = link_path(&links, &p, "c", "id");
        assert!(!create_link(&link, &log).unwrap(), "no log, no link");
        assert!(!links.exists());
        std::fs::create_dir_all(log.parent().unwrap()).unwrap();
        std::fs::write(&log, "").unwrap();
        assert!(create_link(&link, &log).unwrap());
        assert!(create_link(&link, &log).unwrap(), "again is fine");
        assert_eq!(std::fs::read_link(&link).unwrap(), log);
        let other = log.with_file_name("1.log");
        std::fs::write(&other, "").unwrap();
        assert!(create_link(&link, &other).unwrap());
        assert_eq!(std::fs::read_link(&link).unwrap(), other);
        remove_links(&links, &p, "c", "id").unwrap();
        remove_links(&links, &p, "c", "id").unwrap();
        assert!(std::fs::symlink_metadata(&link).is_err());
    }

    #[test]
    fn links_that_lead_into_a_directory_are_removed_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (link, target) in
            [("in.log", "pods/a/c/0.log"), ("dir.log", "pods/a"), ("near.log", "pods/ab/0.log")]
        {
            std::os::unix::fs::symlink(at(target), at(link)).unwrap();
        }
        std::fs::write(at("file.log"), "").unwrap();
        remove_links_into(dir.path(), &at("pods/a")).unwrap();
        let mut left: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["file.log", "near.log"]);
        remove_links_into(&at("absent"), dir.path()).unwrap();
    }

    #[test]
    fn pod_log_directories_are_found_by_name_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let p = pod();
        let dir = pod_log_dir(root.path(), &p);
        std::fs::create_dir_all(dir.join("c")).unwrap();
        std::fs::create_dir(root.path().join("not-a-pod")).unwrap();
        std::fs::write(root.path().join("a_b_c"), "a file").unwrap();
        let found = find_pod_log_dirs(root.path()).unwrap();
        assert_eq!(found, [PodLogDir { path: dir.clone(), uid: p.uid }]);
        remove_pod_logs(&dir).unwrap();
        remove_pod_logs(&dir).unwrap();
        assert!(find_pod_log_dirs(root.path()).unwrap().is_empty());
        assert!(find_pod_log_dirs(&root.path().join("absent")).unwrap().is_empty());
    }
}
