//! Reading small files of `/proc` and of cgroups, many times: one buffer, few system calls, no allocation.
//!
//! Used by the readers of this room on blocking threads. What cannot be read is `None`: a cgroup may go at any instant,
//! and a kernel need not have every file.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::Path;

/// An open directory, a place to read files from.
#[derive(Debug)]
pub struct Dir(OwnedFd);

impl Dir {
    /// Opens `path`; `None` where it is not there or not a directory.
    pub fn open(path: &Path) -> Option<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).ok().map(Self)
    }

    /// Opens the directory `name` in this one.
    pub fn open_in(&self, name: &str) -> Option<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.0, name, flags, Mode::empty()).ok().map(Self)
    }

    /// The descriptor.
    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }
}

/// Reads files into one buffer.
#[derive(Debug)]
pub struct Reader {
    buf: Vec<u8>,
}

/// What one read takes at most to begin with; most files are a line.
const FIRST: usize = 16 * 1024;
/// No file of interest is longer.
const MOST: usize = 4 << 20;
/// The kernel hands out lists in pieces of nearly a page; less than this means that there was no more.
const PIECE: usize = 3072;

impl Default for Reader {
    fn default() -> Self {
        Self { buf: vec![0; FIRST] }
    }
}

impl Reader {
    /// The contents of `file` in `dir`; `None` if it cannot be read.
    pub fn read(&mut self, dir: &Dir, file: &str) -> Option<&[u8]> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&dir.0, file, flags, Mode::empty()).ok()?;
        self.all(&fd)
    }

    /// The contents of the file at `path`; `None` if it cannot be read.
    pub fn read_path(&mut self, path: &Path) -> Option<&[u8]> {
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        self.all(&fd)
    }

    fn all(&mut self, fd: &OwnedFd) -> Option<&[u8]> {
        let mut filled = 0;
        loop {
            if filled == self.buf.len() {
                if filled >= MOST {
                    return None;
                }
                self.buf.resize(filled * 2, 0);
            }
            match rustix::io::read(fd, &mut self.buf[filled..]) {
                Ok(0) => break,
                Ok(n) => {
                    filled += n;
                    if n < PIECE && filled < self.buf.len() {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        Some(&self.buf[..filled])
    }

    /// The number that `file` in `dir` holds. `max` is the largest there is.
    pub fn number(&mut self, dir: &Dir, file: &str) -> Option<u64> {
        number(self.read(dir, file)?)
    }
}

/// A decimal number, white space around it left out; `max` is the largest there is, and so is what does not fit.
pub fn number(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii();
    if text == b"max" {
        return Some(u64::MAX);
    }
    if text.is_empty() {
        return None;
    }
    let mut n: u64 = 0;
    for byte in text {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        n = n.saturating_mul(10).saturating_add(u64::from(digit));
    }
    Some(n)
}

/// Lines of `key value`, further words left out; lines whose value is no number too.
pub fn pairs(text: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    lines(text).filter_map(|line| {
        let mut words = words(line);
        Some((words.next()?, number(words.next()?)?))
    })
}

/// The lines of a text.
pub fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| *b == b'\n').filter(|l| !l.is_empty())
}

/// The words of a line.
pub fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|b| *b == b' ' || *b == b'\t').filter(|w| !w.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_and_what_is_none_is_not_guessed() {
        for (text, want) in [
            ("0\n", Some(0)),
            (" 42 \n", Some(42)),
            ("max\n", Some(u64::MAX)),
            ("18446744073709551616", Some(u64::MAX)),
            ("", None),
            ("-1\n", None),
            ("1 2", None),
        ] {
            assert_eq!(number(text.as_bytes()), want, "{text:?}");
        }
        let text = b"some 1 2\n\nodd\nbad x\nlast 3";
        assert_eq!(pairs(text).collect::<Vec<_>>(), [(&b"some"[..], 1), (&b"last"[..], 3)]);
    }

    #[test]
    fn a_file_longer_than_the_buffer_is_read_whole_and_a_missing_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let long = "x".repeat(3 * FIRST + 7);
        std::fs::write(dir.path().join("long"), &long).unwrap();
        std::fs::write(dir.path().join("short"), "7\n").unwrap();
        let at = Dir::open(dir.path()).unwrap();
        let mut reader = Reader::default();
        assert_eq!(reader.read(&at, "long").unwrap(), long.as_bytes());
        assert_eq!(reader.number(&at, "short"), Some(7), "nothing of the long one is left over");
        assert_eq!(reader.read(&at, "none"), None);
        assert!(Dir::open(&dir.path().join("none")).is_none() && at.open_in("short").is_none());
        assert_eq!(reader.read_path(&dir.path().join("short")).unwrap(), b"7\n");
    }
}
