//! Where the last lines of a log begin, found from its end: only the tail is read, in blocks.
//!
//! Lines are the file's own: a line that the runtime split counts as often as it was split, as with upstream.

use super::decode::{Decoder, Filter};
use super::place::Place;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const BLOCK: usize = 16 * 1024;

/// The offset at which the last `lines` lines of `file` begin; a last line without its end counts. Blocks on the disk.
pub fn tail_offset(file: &File, lines: u64) -> io::Result<u64> {
    tail_from(file, lines, 0)
}

/// The same, or `least` when they begin before that.
fn tail_from(file: &File, lines: u64, least: u64) -> io::Result<u64> {
    let size = file.metadata()?.len();
    if lines == 0 || size == 0 {
        return Ok(size);
    }
    let mut block = vec![0; BLOCK];
    let mut end = size;
    // The line feed that ends the file begins no line.
    let mut ends_seen = 0;
    while end > least {
        let start = end.saturating_sub(BLOCK as u64).max(least);
        let part = &mut block[..usize::try_from(end - start).unwrap_or(BLOCK)];
        file.read_exact_at(part, start)?;
        for at in memchr::memrchr_iter(b'\n', part) {
            let offset = start + at as u64;
            if offset + 1 == size {
                continue;
            }
            ends_seen += 1;
            if ends_seen == lines {
                return Ok(offset + 1);
            }
        }
        end = start;
    }
    Ok(least)
}

/// Longer than any number of lines that somebody asks the end of: a runtime splits lines at 16 KiB.
const MOST: u64 = 4 << 20;

/// What a container printed last: of its last `lines` lines the last `bytes`. Blocks on the disk.
pub fn last_output(log: &Path, lines: u64, bytes: usize) -> io::Result<String> {
    let place = Place::open(log)?;
    let file = place.open_file(place.name())?;
    let size = file.metadata()?.len();
    let start = tail_from(&file, lines, size.saturating_sub(MOST))?;
    let mut records = vec![0; usize::try_from(size.saturating_sub(start)).unwrap_or(0)];
    file.read_exact_at(&mut records, start)?;
    let mut text = Vec::new();
    Decoder::new(Filter::default()).push(&records, &mut text);
    let from = text.len().saturating_sub(bytes);
    Ok(String::from_utf8_lossy(&text[from..]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_last_output_is_bounded_in_lines_and_bytes() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for i in 0..100 {
            writeln!(file, "2026-01-02T03:04:05.6Z stdout F line {i:02}").unwrap();
        }
        assert_eq!(last_output(file.path(), 2, 99).unwrap(), "line 98\nline 99\n");
        assert_eq!(last_output(file.path(), 80, 10).unwrap(), "8\nline 99\n");
        assert_eq!(last_output(file.path(), 200, 9999).unwrap().len(), 800);
        assert!(last_output(Path::new("/nonexistent/log"), 1, 1).is_err());
    }

    fn tail(content: &[u8], lines: u64) -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let at = tail_offset(&file, lines).unwrap();
        content[usize::try_from(at).unwrap()..].to_vec()
    }

    #[rstest::rstest]
    #[case(b"a\nb\nc\n", 0, b"")]
    #[case(b"a\nb\nc\n", 1, b"c\n")]
    #[case(b"a\nb\nc\n", 2, b"b\nc\n")]
    #[case(b"a\nb\nc\n", 3, b"a\nb\nc\n")]
    #[case(b"a\nb\nc\n", 9, b"a\nb\nc\n")]
    #[case(b"a\nb\nc", 1, b"c")]
    #[case(b"a\n\n\n", 2, b"\n\n")]
    #[case(b"", 3, b"")]
    #[case(b"\n", 1, b"\n")]
    fn the_last_lines_begin_where_they_should(#[case] content: &[u8], #[case] n: u64, #[case] want: &[u8]) {
        assert_eq!(tail(content, n), want);
    }

    #[test]
    fn lines_are_found_across_blocks() {
        let line = [vec![b'x'; 7000], vec![b'\n']].concat();
        let content = line.repeat(20);
        for n in 1..=21 {
            assert_eq!(tail(&content, n).len(), line.len() * usize::try_from(n).unwrap().min(20));
        }
    }
}
