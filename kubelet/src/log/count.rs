//! How often a container was run, as its logs show: what is left to tell by when the runtime has lost it.

use super::{container_log_dir, pod_log_dir};
use crate::api::PodRef;
use std::collections::HashMap;
use std::io;
use std::path::Path;

/// More files than rotation leaves of any container; what is behind them is not read.
const MOST_FILES: usize = 10_000;

/// There are logs of `pod`. One look at the file system, which does not read a directory.
pub fn has_logs(root: &Path, pod: &PodRef) -> bool {
    pod_log_dir(root, pod).symlink_metadata().is_ok()
}

/// The restart count that the next instance of each of `containers` must have at least: one more than the highest in the
/// names of its log files (`<n>.log`, and `<n>.log.…` once rotated). A container without logs is not in the answer.
/// Blocks on the disk.
pub fn next_restarts<'a>(
    root: &Path,
    pod: &PodRef,
    containers: impl Iterator<Item = &'a str>,
) -> HashMap<String, u32> {
    let highest = |name: &str| match runs(&container_log_dir(root, pod, name)) {
        Ok(highest) => highest,
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(%pod, container = name, %error, "cannot read the directory of the container's logs");
            None
        }
    };
    containers.filter_map(|name| Some((name.to_owned(), highest(name)?.saturating_add(1)))).collect()
}

fn runs(dir: &Path) -> io::Result<Option<u32>> {
    let mut highest = None;
    for entry in std::fs::read_dir(dir)?.take(MOST_FILES) {
        highest = highest.max(run(&entry?.file_name().to_string_lossy()));
    }
    Ok(highest)
}

/// The number in a log file's name.
fn run(file: &str) -> Option<u32> {
    let (number, rest) = file.split_once(".log")?;
    let plain = number.bytes().all(|b| b.is_ascii_digit());
    (plain && (rest.is_empty() || rest.starts_with('.'))).then(|| number.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::PodUid;

    #[test]
    fn the_highest_number_of_a_log_file_counts_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let pod = PodRef { uid: PodUid::new("u"), namespace: "n".into(), name: "p".into() };
        assert!(!has_logs(dir.path(), &pod));
        for (container, files) in [
            (
                "a",
                &[
                    "0.log",
                    "9.log.20260101-000000",
                    "10.log",
                    "x.log",
                    "11.logs",
                    "-12.log",
                    "99999999999.log",
                ][..],
            ),
            ("b", &["3.log.20260101-000000.gz"][..]),
            ("empty", &[][..]),
        ] {
            let logs = container_log_dir(dir.path(), &pod, container);
            std::fs::create_dir_all(&logs).unwrap();
            files.iter().for_each(|f| std::fs::write(logs.join(f), "").unwrap());
        }
        assert!(has_logs(dir.path(), &pod));
        let counts = next_restarts(dir.path(), &pod, ["a", "b", "empty", "absent"].into_iter());
        assert_eq!(counts, HashMap::from([("a".to_owned(), 11), ("b".to_owned(), 4)]));
    }
}
