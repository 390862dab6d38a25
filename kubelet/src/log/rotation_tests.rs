//! The task that rotates, against a runtime of a few lines that writes real files.

use super::*;
use crate::log::{ReadOptions, Reader, Watcher};
use std::fs::File;
use std::io::{Read, Write};
use tokio::sync::watch;

const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);
const PATIENCE: Duration = Duration::from_secs(30);

/// A container whose log is `pod/c/0.log`, and the runtime that has it open.
#[derive(Debug)]
struct Runtime {
    dir: tempfile::TempDir,
    out: Mutex<Option<File>>,
    reopened: mpsc::UnboundedSender<String>,
    fails: AtomicBool,
}

impl Runtime {
    fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<String>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("pod/c")).unwrap();
        let (reopened, calls) = mpsc::unbounded_channel();
        (Arc::new(Self { dir, out: Mutex::default(), reopened, fails: AtomicBool::new(false) }), calls)
    }
    fn path(&self) -> PathBuf {
        self.dir.path().join("pod/c/0.log")
    }
    fn open(&self) {
        let file = File::options().create(true).append(true).open(self.path()).unwrap();
        *self.out.lock().unwrap() = Some(file);
    }
    fn line(&self, text: &str) {
        writeln!(self.out.lock().unwrap().as_ref().unwrap(), "2024-01-02T03:04:05Z stdout F {text}").unwrap();
    }
    fn log(&self) -> Vec<RunningLog> {
        vec![RunningLog { id: "id".into(), path: self.path().into() }]
    }
    fn start(self: &Arc<Self>, max_size: u64, max_files: usize, interval: Duration) -> Rotation {
        let config = RotationConfig { max_size: Some(max_size), max_files, workers: 1, interval };
        let rotation = Rotation::spawn(config, self.clone(), Clock::System).unwrap().0;
        rotation.running(&PodUid::new("uid"), self.log());
        rotation
    }
    /// The rotated files, oldest first, and what is in all of them and the log, one after the other.
    fn all(&self) -> (Vec<String>, String) {
        loop {
            let mut names: Vec<String> = std::fs::read_dir(self.path().parent().unwrap())
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .filter(|n| !n.ends_with(".tmp"))
                .collect();
            names.sort();
            // Just compressed, and the original is about to go.
            names.dedup_by(|next, this| *next == format!("{this}.gz"));
            let log = names.remove(0);
            // One that went between the two looks is there under another name.
            if let Some(text) = names.iter().chain([&log]).map(|n| self.read(n)).collect() {
                return (names, text);
            }
        }
    }
    fn read(&self, name: &str) -> Option<String> {
        let (file, mut text) = (File::open(self.path().with_file_name(name)).ok()?, String::new());
        if name.ends_with(".gz") {
            flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
        } else {
            (&file).read_to_string(&mut text).unwrap();
        }
        Some(text)
    }
}

impl Reopen for Runtime {
    fn reopen<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let fails = self.fails.load(Ordering::Relaxed);
            if !fails {
                self.open();
            }
            let _ = self.reopened.send(id.to_owned());
            if fails { Err("no".to_owned()) } else { Ok(()) }
        })
    }
}

async fn call(calls: &mut mpsc::UnboundedReceiver<String>) -> String {
    tokio::time::timeout(PATIENCE, calls.recv()).await.expect("the runtime was not asked").unwrap()
}

/// The numbers in log records.
fn numbers(text: &str) -> Vec<u64> {
    text.lines().map(|l| l.rsplit(' ').next().unwrap().parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_grows_is_rotated_without_the_clock() {
    let (runtime, mut calls) = Runtime::new();
    runtime.open();
    let _rotation = runtime.start(100, 5, NEVER);
    for round in 0..3 {
        for i in 0..9 {
            runtime.line(&format!("{}", round * 10 + i));
        }
        assert_eq!(call(&mut calls).await, "id");
        runtime.line(&format!("{}", round * 10 + 9));
    }
    let (rotated, text) = runtime.all();
    assert!(rotated.len() >= 3, "{rotated:?}");
    assert_eq!(numbers(&text), (0..30).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_runtime_does_not_open_anew_is_put_back_and_tried_again() {
    let (runtime, mut calls) = Runtime::new();
    runtime.open();
    runtime.fails.store(true, Ordering::Relaxed);
    runtime.line(&"x".repeat(200));
    let _rotation = runtime.start(100, 5, Duration::from_millis(20));
    call(&mut calls).await;
    call(&mut calls).await;
    // It may be renamed right now; what it holds is what it held, in one file.
    runtime.fails.store(false, Ordering::Relaxed);
    call(&mut calls).await;
    while runtime.all().0.is_empty() {
        call(&mut calls).await;
    }
    let (rotated, text) = runtime.all();
    assert_eq!((rotated.len(), text.len()), (1, 200 + 31));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_that_was_cut_off_is_finished_by_the_next_agent() {
    let (runtime, mut calls) = Runtime::new();
    runtime.open();
    runtime.line("1");
    std::fs::rename(runtime.path(), runtime.path().with_file_name("0.log.20260101-000000")).unwrap();
    runtime.line("2");
    let _rotation = runtime.start(1000, 5, NEVER);
    call(&mut calls).await;
    runtime.line("3");
    let (rotated, text) = runtime.all();
    assert_eq!(
        (rotated.as_slice(), numbers(&text)),
        (&["0.log.20260101-000000".to_owned()][..], vec![1, 2, 3])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_somebody_removed_is_made_anew() {
    let (runtime, mut calls) = Runtime::new();
    runtime.open();
    runtime.line("1");
    let _rotation = runtime.start(1000, 5, Duration::from_millis(20));
    std::fs::remove_file(runtime.path()).unwrap();
    call(&mut calls).await;
    runtime.line("2");
    assert_eq!(numbers(&std::fs::read_to_string(runtime.path()).unwrap()), [2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_in_the_place_of_a_log_is_left_alone_and_harms_no_other() {
    let (runtime, mut calls) = Runtime::new();
    let target = runtime.dir.path().join("target");
    std::fs::write(&target, "x".repeat(5000)).unwrap();
    let link = runtime.path().with_file_name("1.log");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    runtime.open();
    let rotation = runtime.start(100, 5, Duration::from_millis(20));
    let mut logs = runtime.log();
    logs.insert(0, RunningLog { id: "link".into(), path: link.as_path().into() });
    rotation.running(&PodUid::new("uid"), logs);
    runtime.line(&"y".repeat(200));
    assert_eq!(call(&mut calls).await, "id");
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(std::fs::metadata(&target).unwrap().len(), 5000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_of_a_container_that_ended_is_left_alone() {
    let (runtime, mut calls) = Runtime::new();
    runtime.open();
    runtime.line(&"x".repeat(200));
    let rotation = runtime.start(100, 5, Duration::from_millis(20));
    call(&mut calls).await;
    rotation.running(&PodUid::new("uid"), Vec::new());
    let other = runtime.path().with_file_name("1.log");
    std::fs::write(&other, "x".repeat(200)).unwrap();
    runtime.line(&"x".repeat(200));
    // The next one shows that the task went on.
    rotation.running(&PodUid::new("2"), vec![RunningLog { id: "2".into(), path: other.as_path().into() }]);
    while call(&mut calls).await != "2" {}
    assert_eq!(runtime.all().0.iter().filter(|n| n.starts_with("0.log.")).count(), 1);
}

#[tokio::test]
async fn nothing_is_compressed_while_the_log_is_being_rotated() {
    let (runtime, _calls) = Runtime::new();
    runtime.open();
    let config = RotationConfig { max_size: Some(100), max_files: 5, workers: 1, interval: NEVER };
    let (mut task, _events) = Task::new(config, runtime.clone(), Clock::System).unwrap();
    task.running(&PodUid::new("uid"), runtime.log());
    let id: Arc<str> = "id".into();
    let log = task.logs.get_mut(&id).unwrap();
    // It was rotated while older files were compressed, and is being rotated again as that ends.
    (log.rotating, log.uncompressed) = (true, true);
    task.done(Done::Compressed(id.clone(), Ok(true)));
    assert!(task.jobs.is_empty(), "a compression meets the rotation");
    assert!(task.logs[&id].uncompressed, "what is left is forgotten");
    task.done(Done::Rotated(id.clone(), Ok(())));
    assert_eq!(task.jobs.len(), 1, "the rotation's end goes on with it");
    assert!(matches!(task.jobs.join_next().await.unwrap().unwrap(), Done::Compressed(_, Ok(true))));
}

/// Lines at full speed; nobody may see one twice, or miss one, or see two in the wrong order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_rotating_at_full_speed() {
    const LINES: u64 = 300_000;
    let (runtime, mut calls) = Runtime::new();
    runtime.open();
    let _rotation = runtime.start(64 << 10, 10_000, NEVER);
    let running = watch::Sender::new(true);
    let watcher = Watcher::new().unwrap();
    let path = runtime.path();
    let follow = Reader::open(&path, ReadOptions::default(), running.subscribe(), Some(&watcher));
    let mut reader = follow.await.unwrap();
    let following = tokio::spawn(async move {
        let mut text = Vec::new();
        while let Some(piece) = reader.next().await {
            text.extend_from_slice(&piece.unwrap());
        }
        String::from_utf8(text).unwrap()
    });
    let writer = runtime.clone();
    tokio::task::spawn_blocking(move || {
        for n in 0..LINES {
            writer.line(&n.to_string());
            if n % (LINES / 8) == LINES / 8 - 1 {
                // A rotation at least so often, however quick this machine is.
                calls.blocking_recv();
            }
        }
    })
    .await
    .unwrap();
    running.send_replace(false);
    let followed = tokio::time::timeout(PATIENCE, following).await.unwrap().unwrap();
    let want: Vec<u64> = (0..LINES).collect();
    assert!(numbers(&followed) == want, "the follower missed something");
}
