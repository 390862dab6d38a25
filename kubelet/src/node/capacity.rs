//! What the machine has: CPUs, memory, huge pages, storage. Blocking, a few small files.

use std::path::{Path, PathBuf};

/// What the machine has to give.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Thousandths of a CPU.
    pub cpu_milli: i64,
    /// Bytes, as the kernel counts them (`MemTotal`).
    pub memory: i64,
    /// Bytes of swap (`SwapTotal`).
    pub swap: i64,
    /// Bytes of the file system that holds the root directory.
    pub ephemeral_storage: i64,
    /// Tasks the kernel allows at once; `None` where it does not say.
    pub pids: Option<i64>,
    /// Huge pages by size.
    pub huge_pages: Vec<HugePages>,
}

/// Huge pages of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HugePages {
    /// Bytes of one page.
    pub size: i64,
    /// How many are reserved for use.
    pub count: i64,
}

/// The machine cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CapacityError {
    /// A file or file system cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file has not the form that the kernel gives it.
    #[error("{path} has no line {line}")]
    Format {
        /// Which.
        path: PathBuf,
        /// What is missing.
        line: &'static str,
    },
}

impl Capacity {
    /// Reads `/proc`, `/sys` and the file system of `root_dir`.
    pub fn read(proc: &Path, sys: &Path, root_dir: &Path) -> Result<Self, CapacityError> {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self {
            cpu_milli: i64::try_from(cpus).unwrap_or(1) * 1000,
            memory: memory(&proc.join("meminfo"), "MemTotal")?,
            // A kernel without swap may not have the line.
            swap: memory(&proc.join("meminfo"), "SwapTotal").unwrap_or(0),
            ephemeral_storage: storage(root_dir)?,
            pids: pids(&proc.join("sys/kernel")),
            huge_pages: huge_pages(&sys.join("kernel/mm/hugepages")),
        })
    }
}

fn memory(path: &Path, line: &'static str) -> Result<i64, CapacityError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| CapacityError::Io { path: path.to_owned(), source })?;
    let kib = text
        .lines()
        .find_map(|l| l.strip_prefix(line)?.strip_prefix(':'))
        .and_then(|l| l.trim().strip_suffix("kB"))
        .and_then(|n| n.trim().parse::<i64>().ok());
    kib.map(|k| k * 1024).ok_or(CapacityError::Format { path: path.to_owned(), line })
}

fn storage(dir: &Path) -> Result<i64, CapacityError> {
    let fs =
        rustix::fs::statvfs(dir).map_err(|e| CapacityError::Io { path: dir.to_owned(), source: e.into() })?;
    Ok(i64::try_from(fs.f_blocks.saturating_mul(fs.f_frsize)).unwrap_or(i64::MAX))
}

/// The smaller of the two limits that hold for the whole machine.
fn pids(kernel: &Path) -> Option<i64> {
    let limit = |file: &str| std::fs::read_to_string(kernel.join(file)).ok()?.trim().parse::<i64>().ok();
    ["pid_max", "threads-max"].into_iter().filter_map(limit).min()
}

/// Sizes the kernel knows, smallest first; a kernel without huge pages has none.
fn huge_pages(dir: &Path) -> Vec<HugePages> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<HugePages> = entries
        .filter_map(|e| {
            let e = e.ok()?;
            let name = e.file_name();
            let kib: i64 = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let count = std::fs::read_to_string(e.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
            Some(HugePages { size: kib * 1024, count })
        })
        .collect();
    found.sort_by_key(|h| h.size);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_read_from_its_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("meminfo"),
            "MemTotal:       24579948 kB\nMemFree: 1 kB\nSwapTotal: 8 kB\n",
        )
        .unwrap();
        let pages = dir.path().join("kernel/mm/hugepages/hugepages-2048kB");
        std::fs::create_dir_all(&pages).unwrap();
        std::fs::write(pages.join("nr_hugepages"), "3\n").unwrap();
        let kernel = dir.path().join("sys/kernel");
        std::fs::create_dir_all(&kernel).unwrap();
        std::fs::write(kernel.join("pid_max"), "32768\n").unwrap();
        std::fs::write(kernel.join("threads-max"), "190000\n").unwrap();
        let capacity = Capacity::read(dir.path(), dir.path(), dir.path()).unwrap();
        assert_eq!(capacity.pids, Some(32_768));
        assert_eq!(capacity.swap, 8192);
        assert_eq!(capacity.memory, 24_579_948 * 1024);
        assert_eq!(capacity.huge_pages, [HugePages { size: 2 << 20, count: 3 }]);
        assert!(capacity.cpu_milli >= 1000 && capacity.ephemeral_storage > 0);
    }

    #[test]
    fn a_file_without_the_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("meminfo"), "MemFree: 1 kB\n").unwrap();
        let error = Capacity::read(dir.path(), dir.path(), dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("meminfo has no line MemTotal"), "{error}");
    }
}
