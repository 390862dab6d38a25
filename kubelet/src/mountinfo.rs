//! `/proc/<pid>/mountinfo` (proc(5)): the one parser for the rooms that must know what is mounted where.
//!
//! Called by `cgroup` (which hierarchies there are) and `volume` (what a teardown must not run through). Reads one
//! file, changes nothing; the file's path is a parameter so that a test can write its own.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The calling process's own table.
pub const SELF: &str = "/proc/self/mountinfo";

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What of the file system is mounted.
    pub root: PathBuf,
    /// Where it is mounted, relative to the process's root.
    pub point: PathBuf,
    /// File system type, such as `tmpfs`.
    pub fs_type: String,
    /// The device or pseudo source.
    pub source: OsString,
    /// Options of the superblock, such as `size=10240k`.
    pub super_options: Vec<String>,
}

/// Reads and parses `path`, in mount order.
pub fn read(path: &Path) -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read(path)?))
}

/// Parses a table; lines that are none are left out.
pub fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /point rw,noatime optional… - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let root = fields.nth(3)?;
    let point = fields.next()?;
    // Optional fields end at the separator.
    fields.by_ref().find(|f| *f == b"-")?;
    let fs_type = fields.next()?;
    let source = fields.next()?;
    let options = fields.next().unwrap_or_default();
    Some(Mount {
        root: unescape(root).into(),
        point: unescape(point).into(),
        fs_type: String::from_utf8_lossy(fs_type).into_owned(),
        source: unescape(source),
        super_options: String::from_utf8_lossy(options).split(',').map(str::to_owned).collect(),
    })
}

/// The kernel writes space, tab, newline, backslash and hash as `\ooo`.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|d| byte == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match octal {
            Some(d) => {
                let code = d.iter().fold(0u32, |n, b| n * 8 + u32::from(b - b'0'));
                out.push((code & 0xff) as u8);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_parse_with_and_without_optional_fields_and_with_escapes() {
        let table = b"36 35 98:0 /a /mnt/with\\040space rw,noatime shared:1 master:2 - ext4 /dev/root rw,errors=continue\n\
            37 35 0:5 / /back\\134slash rw - tmpfs tmpfs rw,size=10240k\nnot a line\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].root, Path::new("/a"));
        assert_eq!(mounts[0].point, Path::new("/mnt/with space"));
        assert_eq!((mounts[0].fs_type.as_str(), mounts[0].source.to_str()), ("ext4", Some("/dev/root")));
        assert_eq!(mounts[1].point, Path::new("/back\\slash"));
        assert_eq!(mounts[1].super_options, ["rw", "size=10240k"]);
    }

    #[test]
    fn the_machines_own_table_parses_line_for_line() {
        let text = std::fs::read(SELF).unwrap();
        assert_eq!(parse(&text).len(), text.iter().filter(|b| **b == b'\n').count());
    }
}
