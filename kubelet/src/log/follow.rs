//! Reading a container's log, to its end or on and on while the container runs.
//!
//! What the follower does between two looks at the file:
//!
//! ```text
//!        ┌────────── bytes ───────────┐
//!        ▼                            │
//!  sample "has exited", mark ticks ─▶ read ──end of file──▶ another file follows, with content?  ─yes──▶ read the
//!        ▲                                                     │no                            old one to its end once
//!        └── tick of the directory or the container's exit ◀─no─ exited? ─yes─▶ done           more, then the new one
//! ```
//!
//! Rotation renames the file and makes the runtime open a new one at the same path. The runtime may still be writing
//! to the old one when the new one appears, so the switch waits until the new one has content and nobody has the old one
//! open for writing (but no longer than [`SWITCH`] after its last byte: whoever holds it may not be the runtime). A
//! reader that is slower than the container finds the files between the two by their names, compressed or not, for as
//! long as rotation keeps them. No other timer is involved; a test that sends no ticks and no exit would wait for ever.
//!
//! A reader that is not polled holds an open file and no buffer.

use super::decode::{Decoder, Filter};
use super::place::Place;
use super::source::Source;
use super::tail::tail_offset;
use super::watch::{Watch, Watcher};
use bytes::Bytes;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch as latest;
use tokio::time::Instant;

/// How much of the file is read at once; also about how much one item of the reader can hold.
const CHUNK: usize = 16 * 1024;

/// How long a file that is open for writing keeps a reader from the one that follows.
const SWITCH: Duration = Duration::from_secs(1);

/// What of the log to show.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// Which records, and how.
    pub filter: Filter,
    /// Only the last lines of the file as it is at the beginning.
    pub tail_lines: Option<u64>,
}

/// The log cannot be read (further).
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The path leads nowhere; upstream's words.
    #[error("failed to try resolving symlinks in path {path:?}: {source}")]
    Resolve {
        /// The path asked for.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file cannot be opened; upstream's words.
    #[error("failed to open log file {path:?}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Reading failed.
    #[error("failed to read log file {path:?}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The directory cannot be watched for changes.
    #[error("failed to watch for changes of log file {path:?}: {source}")]
    Watch {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// One reading of one log.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    place: Arc<Place>,
    file: Arc<Source>,
    pos: u64,
    decoder: Decoder,
    /// The file that follows; the current one is read to its end once more before it.
    successor: Option<Source>,
    /// When the file that follows is turned to though the current one, which gives nothing, is open for writing.
    switch_at: Option<Instant>,
    /// `None` when not following.
    watch: Option<Watch>,
    running: latest::Receiver<bool>,
    reported_invalid: bool,
    done: bool,
}

/// What a look at the path found, at the end of the current file.
enum Look {
    /// The current file, no shorter than what was read of it, or nothing.
    Same,
    /// The current file became shorter: it was emptied and begins anew.
    Truncated,
    /// Another file follows, and nobody writes to the current one any more.
    Successor(Source),
    /// Another file follows, and the current one is still open for writing.
    StillWritten(Source),
}

impl Reader {
    /// Opens the log at `path`. With `follow` the reader goes on until the container has exited, as `running` tells,
    /// and all was read; without, it ends where the file ends.
    pub async fn open(
        path: &Path,
        options: ReadOptions,
        running: latest::Receiver<bool>,
        follow: Option<&Watcher>,
    ) -> Result<Self, ReadError> {
        let (asked, tail) = (path.to_path_buf(), options.tail_lines);
        let opened = blocking(move || open(&asked, tail)).await;
        let failed = |source| ReadError::Open { path: path.to_path_buf(), source };
        let (place, file, pos) = opened.map_err(failed)??;
        let path = path.to_path_buf();
        let failed = |source| ReadError::Watch { path: path.clone(), source };
        let watch = follow.map(|watcher| watcher.watch(&place.path_of("."))).transpose().map_err(failed)?;
        let decoder = Decoder::new(options.filter);
        let (place, file) = (Arc::new(place), Arc::new(file));
        Ok(Self {
            path,
            place,
            file,
            pos,
            decoder,
            successor: None,
            switch_at: None,
            watch,
            running,
            reported_invalid: false,
            done: false,
        })
    }

    /// The next piece of output, at most a few KiB more than what is read at once; `None` at the end. After an error
    /// comes the end. Cancel-safe: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<Bytes, ReadError>> {
        while !self.done {
            match self.step().await {
                Ok(out) if out.is_empty() => {}
                Ok(out) => return Some(Ok(out.into())),
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }

    /// One read, and at the end of the file whatever comes next. Gives output, or nothing yet.
    async fn step(&mut self) -> Result<Vec<u8>, ReadError> {
        // Both before reading: what is written after an exit seen here is nothing, and what is written after a mark
        // made here gives a tick.
        let exited = self.running.has_changed().is_err() || !*self.running.borrow_and_update();
        if let Some(watch) = &mut self.watch {
            watch.mark();
        }
        let (file, pos) = (self.file.clone(), self.pos);
        let chunk = blocking(move || file.read_at(pos, CHUNK));
        let chunk = chunk.await.flatten().map_err(|source| self.read_error(source))?;
        if !chunk.is_empty() {
            self.switch_at = None;
            return Ok(self.decode(&chunk));
        }
        if let Some(file) = self.successor.take() {
            self.file = Arc::new(file);
            self.switch_at = None;
            self.pos = 0;
            self.decoder.restart();
        } else if self.watch.is_none() {
            self.done = true;
        } else {
            self.at_end(exited).await?;
        }
        Ok(Vec::new())
    }

    /// Following, everything read: the next file, the end, or a wait.
    async fn at_end(&mut self, exited: bool) -> Result<(), ReadError> {
        let (place, file, pos) = (self.place.clone(), self.file.clone(), self.pos);
        let found = blocking(move || look(&place, &file, pos, exited)).await.flatten();
        let switch_at = self.switch_at.take();
        match found.map_err(|source| self.read_error(source))? {
            Look::Successor(file) => self.successor = Some(file),
            Look::StillWritten(file) => {
                let Some(watch) = &mut self.watch else { return Ok(()) };
                let at = switch_at.unwrap_or_else(|| Instant::now() + SWITCH);
                self.switch_at = Some(at);
                tokio::select! {
                    // First: where the new file is written all the time, there is always a tick.
                    biased;
                    () = tokio::time::sleep_until(at) => self.successor = Some(file),
                    _ = self.running.changed() => {}
                    _ = watch.tick() => {}
                }
            }
            Look::Truncated => {
                self.pos = 0;
                self.decoder.restart();
            }
            _ if exited => self.done = true,
            _ => {
                let Some(watch) = &mut self.watch else { return Ok(()) };
                tokio::select! {
                    // Either way the loop looks again; a dropped sender reads as an exit there.
                    _ = self.running.changed() => {}
                    // Without its directory the log cannot go on. (The kernel says so only once nobody has a file
                    // of it open, so normally the container's exit ends a removed log.)
                    more = watch.tick() => self.done = !more,
                }
            }
        }
        Ok(())
    }

    fn decode(&mut self, chunk: &[u8]) -> Vec<u8> {
        self.pos += chunk.len() as u64;
        let mut out = Vec::with_capacity(chunk.len());
        self.decoder.push(chunk, &mut out);
        self.done = self.decoder.is_full();
        if self.decoder.invalid() > 0 && !self.reported_invalid {
            self.reported_invalid = true;
            tracing::warn!(path = %self.path.display(), "log has lines that are no CRI log records; they are skipped");
        }
        out
    }

    fn read_error(&self, source: io::Error) -> ReadError {
        ReadError::Read { path: self.path.clone(), source }
    }
}

/// Resolves and opens the log and finds where to begin.
fn open(path: &Path, tail: Option<u64>) -> Result<(Place, Source, u64), ReadError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ReadError::Resolve { path: path.to_path_buf(), source },
        _ => ReadError::Open { path: path.to_path_buf(), source },
    };
    let place = Place::open(path).map_err(failed)?;
    let file = place.open_file(place.name()).map_err(failed)?;
    let pos = match tail {
        None => 0,
        Some(lines) => tail_offset(&file, lines)
            .map_err(|source| ReadError::Read { path: path.to_path_buf(), source })?,
    };
    Ok((place, Source::plain(file), pos))
}

fn look(place: &Place, current: &Source, pos: u64, exited: bool) -> io::Result<Look> {
    if current.was_emptied(pos)? {
        return Ok(Look::Truncated);
    }
    match current.successor(place)? {
        Some((next, has_content)) if has_content || exited => {
            // A runtime may write the end of the old file after the beginning of the new one.
            if !exited && current.is_written() {
                Ok(Look::StillWritten(next))
            } else {
                Ok(Look::Successor(next))
            }
        }
        _ => Ok(Look::Same),
    }
}

/// Runs file work off the async workers. Fails when the runtime is shutting down.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

#[cfg(test)]
#[path = "reading_tests.rs"]
mod reading_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use std::time::Duration;
    use tempfile::TempDir;

    /// A container's log as the runtime writes it.
    struct Log {
        dir: TempDir,
        out: File,
        running: latest::Sender<bool>,
        watcher: Watcher,
    }

    impl Log {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let out = File::create(dir.path().join("0.log")).unwrap();
            Self { dir, out, running: latest::Sender::new(true), watcher: Watcher::new().unwrap() }
        }
        fn path(&self) -> PathBuf {
            self.dir.path().join("0.log")
        }
        fn line(&mut self, text: &str) {
            writeln!(self.out, "2024-01-02T03:04:05Z stdout F {text}").unwrap();
        }
        /// What rotation does: rename, and make the runtime open a new file.
        fn rename(&self, n: u32) {
            std::fs::rename(self.path(), self.dir.path().join(format!("0.log.{n}"))).unwrap();
        }
        fn reopen(&self) -> File {
            File::create(self.path()).unwrap()
        }
        async fn open(&self, follow: bool, tail_lines: Option<u64>) -> Reader {
            let options = ReadOptions { tail_lines, ..ReadOptions::default() };
            let follow = follow.then_some(&self.watcher);
            Reader::open(&self.path(), options, self.running.subscribe(), follow).await.unwrap()
        }
    }

    /// Reads until `want` characters came.
    async fn take(reader: &mut Reader, want: usize) -> String {
        let mut got = Vec::new();
        while got.len() < want {
            let next = tokio::time::timeout(Duration::from_secs(20), reader.next());
            match next.await.expect("nothing came") {
                Some(chunk) => got.extend_from_slice(&chunk.unwrap()),
                None => break,
            }
        }
        String::from_utf8(got).unwrap()
    }

    async fn rest(reader: &mut Reader) -> String {
        take(reader, usize::MAX).await
    }

    #[tokio::test]
    async fn a_log_is_read_to_its_end_while_the_container_runs() {
        let mut log = Log::new();
        log.line("one");
        log.line("two");
        assert_eq!(rest(&mut log.open(false, None).await).await, "one\ntwo\n");
        assert_eq!(rest(&mut log.open(false, Some(1)).await).await, "two\n");
        assert_eq!(rest(&mut log.open(false, Some(0)).await).await, "");
    }

    #[tokio::test]
    async fn following_shows_what_is_written_and_ends_with_the_container() {
        let mut log = Log::new();
        log.line("before");
        let mut reader = log.open(true, None).await;
        assert_eq!(take(&mut reader, 7).await, "before\n");
        log.line("after");
        assert_eq!(take(&mut reader, 6).await, "after\n");
        log.line("last");
        log.running.send_replace(false);
        assert_eq!(rest(&mut reader).await, "last\n");
    }

    #[tokio::test]
    async fn following_waits_for_the_exit_when_nothing_is_written() {
        let log = Log::new();
        let mut reader = log.open(true, None).await;
        let running = log.running.clone();
        let reading = tokio::spawn(async move { rest(&mut reader).await });
        while running.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(!reading.is_finished());
        running.send_replace(false);
        assert_eq!(reading.await.unwrap(), "");
    }

    #[tokio::test]
    async fn a_container_that_nobody_knows_any_more_has_exited() {
        let mut log = Log::new();
        log.line("x");
        let mut reader = log.open(true, None).await;
        drop(std::mem::replace(&mut log.running, latest::Sender::new(true)));
        assert_eq!(rest(&mut reader).await, "x\n");
    }

    #[tokio::test]
    async fn following_goes_on_across_rotations_and_loses_nothing() {
        let mut log = Log::new();
        log.line("one");
        let mut reader = log.open(true, None).await;
        assert_eq!(take(&mut reader, 4).await, "one\n");
        for n in 0..5 {
            log.rename(n);
            log.line("to the renamed file");
            assert_eq!(take(&mut reader, 20).await, "to the renamed file\n");
            let fresh = log.reopen();
            // The new file is there, the runtime has not switched yet.
            log.line("still to the old one");
            assert_eq!(take(&mut reader, 21).await, "still to the old one\n");
            log.line("and again");
            log.out = fresh;
            log.line("to the new one");
            assert_eq!(take(&mut reader, 25).await, "and again\nto the new one\n");
        }
        log.rename(9);
        log.line("end");
        log.running.send_replace(false);
        assert_eq!(rest(&mut reader).await, "end\n");
    }

    #[tokio::test]
    async fn somebody_who_keeps_the_old_file_open_does_not_keep_a_busy_log_from_its_reader() {
        let mut log = Log::new();
        log.line("old");
        let mut reader = log.open(true, None).await;
        assert_eq!(take(&mut reader, 4).await, "old\n");
        log.rename(0);
        let (new, path) = (log.reopen(), log.path());
        let held = std::mem::replace(&mut log.out, new);
        log.line("new");
        // A write every now and then, each a tick for the reader, until it has what it waits for.
        let (done, ended) = std::sync::mpsc::channel::<()>();
        let writing = std::thread::spawn(move || {
            let mut out = File::options().append(true).open(path).unwrap();
            while ended.recv_timeout(Duration::from_millis(20))
                == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                writeln!(out, "2024-01-02T03:04:05Z stdout F more").unwrap();
            }
        });
        assert!(take(&mut reader, 4).await.starts_with("new\n"));
        drop(done);
        writing.join().unwrap();
        drop(held);
    }

    #[tokio::test]
    async fn a_rotation_just_before_the_exit_loses_nothing() {
        let mut log = Log::new();
        let mut reader = log.open(true, None).await;
        log.line("old");
        log.rename(0);
        log.out = log.reopen();
        log.line("new");
        log.running.send_replace(false);
        assert_eq!(rest(&mut reader).await, "old\nnew\n");
    }

    #[tokio::test]
    async fn a_log_that_was_emptied_begins_anew() {
        let mut log = Log::new();
        log.line("a rather long line");
        let mut reader = log.open(true, None).await;
        take(&mut reader, 19).await;
        log.out.set_len(0).unwrap();
        log.out = File::options().append(true).open(log.path()).unwrap();
        log.line("new");
        assert_eq!(take(&mut reader, 4).await, "new\n");
    }

    #[tokio::test]
    async fn a_line_of_many_megabytes_passes_in_small_pieces() {
        let mut log = Log::new();
        let size = 8 << 20;
        log.line(&"x".repeat(size));
        let mut reader = log.open(false, None).await;
        let (mut total, mut largest) = (0, 0);
        while let Some(chunk) = reader.next().await {
            let chunk = chunk.unwrap();
            (total, largest) = (total + chunk.len(), largest.max(chunk.len()));
        }
        assert_eq!(total, size + 1);
        assert!(largest <= 2 * CHUNK, "a piece of {largest} bytes");
    }

    #[tokio::test]
    async fn following_ends_at_the_byte_limit() {
        let mut log = Log::new();
        log.line("0123456789");
        let filter = Filter { limit_bytes: Some(4), ..Filter::default() };
        let options = ReadOptions { filter, tail_lines: None };
        let running = log.running.subscribe();
        let mut reader = Reader::open(&log.path(), options, running, Some(&log.watcher)).await.unwrap();
        assert_eq!(rest(&mut reader).await, "0123");
    }

    #[tokio::test]
    async fn what_is_no_log_file_is_refused() {
        let log = Log::new();
        let open = async |path: PathBuf| {
            Reader::open(&path, ReadOptions::default(), log.running.subscribe(), None)
                .await
                .unwrap_err()
                .to_string()
        };
        let missing = open(log.dir.path().join("none.log")).await;
        assert!(missing.starts_with("failed to try resolving symlinks in path \"/"), "{missing}");
        assert!(open(log.dir.path().to_path_buf()).await.ends_with("not a regular file"));
        let pipe = log.dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(open(pipe).await.ends_with("not a regular file"));
    }

    #[tokio::test]
    async fn followers_share_one_watch_and_leave_none_behind() {
        let mut log = Log::new();
        let mut readers = Vec::new();
        for _ in 0..200 {
            readers.push(log.open(true, None).await);
        }
        assert_eq!(log.watcher.directories(), 1);
        log.line("x");
        for reader in &mut readers {
            assert_eq!(take(reader, 2).await, "x\n");
        }
        drop(readers);
        assert_eq!(log.watcher.directories(), 0);
    }

    #[tokio::test]
    async fn a_log_removed_while_followed_ends_with_the_container() {
        let mut log = Log::new();
        let path = log.dir.path().join("c");
        std::fs::create_dir(&path).unwrap();
        let file = path.join("0.log");
        log.out = File::create(&file).unwrap();
        log.line("x");
        let (options, running) = (ReadOptions::default(), log.running.subscribe());
        let mut reader = Reader::open(&file, options, running, Some(&log.watcher)).await.unwrap();
        assert_eq!(take(&mut reader, 2).await, "x\n");
        log.line("y");
        std::fs::remove_dir_all(&path).unwrap();
        log.running.send_replace(false);
        assert_eq!(rest(&mut reader).await, "y\n");
    }
}
