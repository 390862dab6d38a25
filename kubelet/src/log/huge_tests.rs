//! A log of one line that is longer than anybody's memory should be: read, quoted and rotated.
//!
//! What is asserted is the peak of a process that does nothing else: the test runs itself again as a child.

use super::follow::{ReadOptions, Reader};
use super::place::Place;
use super::{Filter, last_output, rotated};
use jiff::Timestamp;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tokio::sync::watch;

const SIZE: u64 = 1 << 30;
/// Far more than the bound; more would be slow without optimisation.
const COMPRESSED: u64 = 96 << 20;
const HEADER: &str = "2024-01-02T03:04:05Z stdout F ";
const LAST: &str = "2024-01-02T03:04:06Z stderr F last\n";
/// How much more memory all of it may take than a log of two lines, in KiB.
const BOUND: u64 = 24 * 1024;
const CHILD: &str = "STEVEDORE_TEST_IN_A_CHILD";

#[test]
fn a_line_of_a_gibibyte_is_read_quoted_and_rotated_in_bounded_memory() {
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    let (_, module) = module_path!().split_once("::").unwrap();
    let test = format!("{module}::a_line_of_a_gibibyte_is_read_quoted_and_rotated_in_bounded_memory");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &test, "--nocapture", "--test-threads=1"]).env(CHILD, "yes");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// The most memory this process ever had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn child() {
    let dir = tempfile::tempdir().unwrap();
    let small = log(&dir.path().join("small/c"));
    writeln!(File::options().append(true).open(&small).unwrap(), "{HEADER}first\n{}", LAST.trim_end())
        .unwrap();
    read_all(&small, "first".len() as u64);
    rotate(&small);
    let before = peak();

    // Sparse: the disk holds nothing of it. A record of zeros, and then a short one.
    let huge = log(&dir.path().join("huge/c"));
    one_line(&huge, SIZE);
    read_all(&huge, SIZE - HEADER.len() as u64);
    // A file that is no log at all, and has no end of a line.
    let zeros = log(&dir.path().join("zeros/c"));
    File::options().write(true).open(&zeros).unwrap().set_len(SIZE / 8).unwrap();
    assert_eq!(read(&zeros, Filter::default(), None), (0, String::new()));
    assert_eq!(last_output(&zeros, 80, 2048).unwrap(), "");
    // To rename is all that rotation does at once. Compressing takes as long as the file is, but no more room.
    let large = log(&dir.path().join("large/c"));
    one_line(&large, COMPRESSED);
    rotate(&large);

    let more = peak() - before;
    assert!(more < BOUND, "{more} KiB more than for a log of two lines");
}

/// A line that ends after so many bytes, and the last one.
fn one_line(log: &Path, size: u64) {
    let file = File::options().write(true).open(log).unwrap();
    file.write_all_at(HEADER.as_bytes(), 0).unwrap();
    file.write_all_at(b"\n", size).unwrap();
    file.write_all_at(LAST.as_bytes(), size + 1).unwrap();
}

/// An empty log in this directory.
fn log(dir: &Path) -> PathBuf {
    std::fs::create_dir_all(dir).unwrap();
    let path = dir.join("0.log");
    File::create(&path).unwrap();
    path
}

/// Reads the log of a record of `content` bytes and the last one by every option there is.
fn read_all(log: &Path, content: u64) {
    let all = Filter { timestamps: true, ..Filter::default() };
    let stamped =
        content + "2024-01-02T03:04:05.000000000Z \n2024-01-02T03:04:06.000000000Z last\n".len() as u64;
    assert_eq!(read(log, all, Some(2)).0, stamped);
    assert_eq!(read(log, Filter { limit_bytes: Some(3), ..Filter::default() }, None).0, 3);
    let since = Some("2024-01-02T03:04:06Z".parse().unwrap());
    assert_eq!(read(log, Filter { since, ..Filter::default() }, Some(1)).1, "last\n");
    assert!(last_output(log, 80, 5).unwrap().ends_with("last\n"));
}

/// Rotates it twice, so that it is compressed.
fn rotate(log: &Path) {
    let place = Place::open(log).unwrap();
    for _ in 0..2 {
        rotated::set_aside(&place, 9, Timestamp::UNIX_EPOCH, false).unwrap();
        File::create(log).unwrap();
    }
    assert!(rotated::compress(&place, || true).unwrap());
    let kept = rotated::list(&place).unwrap();
    assert_eq!(kept.values().filter(|forms| forms.compressed).count(), 1);
}

/// How many bytes a reader is given, and the last few of them.
fn read(log: &Path, filter: Filter, tail_lines: Option<u64>) -> (u64, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let running = watch::Sender::new(true);
        let options = ReadOptions { filter, tail_lines };
        let mut reader = Reader::open(log, options, running.subscribe(), None).await.unwrap();
        let (mut bytes, mut end) = (0, Vec::new());
        while let Some(piece) = reader.next().await {
            let piece = piece.unwrap();
            bytes += piece.len() as u64;
            end.extend_from_slice(&piece[piece.len().saturating_sub(5)..]);
            end.drain(..end.len().saturating_sub(5));
        }
        (bytes, String::from_utf8_lossy(&end).into_owned())
    })
}
