//! Readers and rotation, and files that are not what they should be.

use super::super::rotated;
use super::*;
use jiff::Timestamp;
use std::fs::File;
use std::io::Write;
use tempfile::TempDir;

struct Dir {
    dir: TempDir,
    out: File,
    running: latest::Sender<bool>,
    watcher: Watcher,
}

impl Dir {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("pod/c")).unwrap();
        let out = File::create(dir.path().join("pod/c/0.log")).unwrap();
        Self { dir, out, running: latest::Sender::new(true), watcher: Watcher::new().unwrap() }
    }
    fn path(&self) -> PathBuf {
        self.dir.path().join("pod/c/0.log")
    }
    fn line(&mut self, n: u32) {
        writeln!(self.out, "2024-01-02T03:04:05Z stdout F {n}").unwrap();
    }
    fn rotate(&mut self, max_files: usize) {
        let place = Place::open(&self.path()).unwrap();
        rotated::set_aside(&place, max_files, Timestamp::UNIX_EPOCH, false).unwrap();
        self.out = File::create(self.path()).unwrap();
        rotated::compress(&place, || true).unwrap();
    }
    async fn follow(&self) -> Reader {
        let running = self.running.subscribe();
        Reader::open(&self.path(), ReadOptions::default(), running, Some(&self.watcher)).await.unwrap()
    }
    async fn error(&self) -> String {
        let opened = Reader::open(&self.path(), ReadOptions::default(), self.running.subscribe(), None).await;
        opened.unwrap_err().to_string()
    }
}

async fn rest(reader: &mut Reader) -> String {
    let mut all = Vec::new();
    while let Some(piece) = reader.next().await {
        all.extend_from_slice(&piece.unwrap());
    }
    String::from_utf8(all).unwrap()
}

#[tokio::test]
async fn a_reader_that_was_overtaken_finds_what_was_rotated_meanwhile() {
    let mut log = Dir::new();
    let mut reader = log.follow().await;
    let mut want = String::new();
    for n in 0..40 {
        log.line(n);
        want += &format!("{n}\n");
        if n % 5 == 4 {
            log.rotate(100);
        }
    }
    log.line(40);
    log.running.send_replace(false);
    assert_eq!(rest(&mut reader).await, want + "40\n");
}

#[tokio::test]
async fn a_reader_that_is_too_slow_goes_on_with_the_oldest_that_is_kept() {
    let mut log = Dir::new();
    log.line(0);
    let mut reader = log.follow().await;
    for n in 1..10 {
        log.rotate(4);
        log.line(n);
    }
    log.running.send_replace(false);
    // Its own file it has still; of the others the last four are there.
    assert_eq!(rest(&mut reader).await, "0\n6\n7\n8\n9\n");
}

#[tokio::test]
async fn a_link_is_not_read_wherever_it_is() {
    let log = Dir::new();
    let secret = log.dir.path().join("secret");
    std::fs::write(&secret, "2024-01-02T03:04:05Z stdout F secret\n").unwrap();
    std::fs::remove_file(log.path()).unwrap();
    std::os::unix::fs::symlink(&secret, log.path()).unwrap();
    assert!(log.error().await.starts_with("failed to open log file"));
    let (dir, real) = (log.dir.path().join("pod/c"), log.dir.path().join("real"));
    std::fs::remove_file(log.path()).unwrap();
    std::fs::rename(&dir, &real).unwrap();
    std::fs::copy(&secret, real.join("0.log")).unwrap();
    std::os::unix::fs::symlink(&real, &dir).unwrap();
    assert!(log.error().await.starts_with("failed to open log file"));
    assert!(super::super::last_output(&log.path(), 1, 100).is_err());
}

#[tokio::test]
async fn a_log_that_becomes_a_link_while_it_is_followed_ends_the_reading() {
    let mut log = Dir::new();
    log.line(1);
    let mut reader = log.follow().await;
    assert_eq!(reader.next().await.unwrap().unwrap(), "1\n");
    std::fs::remove_file(log.path()).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", log.path()).unwrap();
    assert!(matches!(reader.next().await, Some(Err(ReadError::Read { .. }))));
    assert!(reader.next().await.is_none());
}

#[tokio::test]
async fn a_file_of_nothing_but_zeros_shows_nothing_and_is_never_held() {
    let log = Dir::new();
    // Sparse: it takes no room.
    log.out.set_len(32 << 20).unwrap();
    let options = ReadOptions { tail_lines: Some(1), ..ReadOptions::default() };
    let mut reader = Reader::open(&log.path(), options, log.running.subscribe(), None).await.unwrap();
    assert_eq!(rest(&mut reader).await, "");
}

#[tokio::test]
async fn a_compressed_file_that_is_damaged_ends_the_reading_with_an_error() {
    let mut log = Dir::new();
    let mut reader = log.follow().await;
    log.rotate(9);
    log.line(1);
    log.rotate(9);
    log.rotate(9);
    let dir = std::fs::read_dir(log.dir.path().join("pod/c")).unwrap();
    for entry in dir.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "gz")) {
        std::fs::write(entry, "no gzip").unwrap();
    }
    assert!(matches!(reader.next().await, Some(Err(ReadError::Read { .. }))));
}
