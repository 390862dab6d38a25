//! Reading and writing `/proc/sys/net`, which shows the network namespace of the calling thread.
//!
//! Called by plugins, on the host's thread or inside [`crate::netns::Netns::run`].

use std::fs;
use std::io;
use std::path::PathBuf;

/// A kernel setting could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("sysctl {name}: cannot {verb}: {source}")]
pub struct SysctlError {
    pub name: String,
    pub verb: &'static str,
    pub source: io::Error,
}

/// `parts` are path components below /proc/sys (interface names may hold dots, so no dotted names here).
fn path(parts: &[&str]) -> PathBuf {
    let mut p = PathBuf::from("/proc/sys");
    p.extend(parts);
    p
}

/// The setting's text without its newline; `None` when it does not exist (IPv6 switched off, no such interface).
pub fn read(parts: &[&str]) -> Result<Option<String>, SysctlError> {
    match fs::read_to_string(path(parts)) {
        Ok(s) => Ok(Some(s.trim_end().to_string())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SysctlError { name: parts.join("/"), verb: "read", source }),
    }
}

/// Writes `value`, unless it is there already: a read is much cheaper than the kernel's work on a write.
pub fn ensure(parts: &[&str], value: &str) -> Result<(), SysctlError> {
    if read(parts)?.as_deref() == Some(value) {
        return Ok(());
    }
    write(parts, value)
}

/// Writes `value` without looking.
pub fn write(parts: &[&str], value: &str) -> Result<(), SysctlError> {
    fs::write(path(parts), value).map_err(|source| SysctlError {
        name: parts.join("/"),
        verb: "write",
        source,
    })
}
