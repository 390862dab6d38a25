//! Rotates the logs of running containers when they have grown past `containerLogMaxSize`.
//!
//! `assemble` starts the task and tells it what runs, as pleg sees it; the task asks the runtime for nothing but to open
//! a log anew. It is woken by growth, not by the clock:
//!
//! ```text
//!   a container runs ─▶ look ──small──▶ armed ──first write──▶ due ──LATENCY──▶ look
//!                        │ ▲                                                     ▲
//!                     too large └── the net: all of them, each monitor interval ─┘
//!                        ▼
//!                 set aside (rename) ─▶ ReopenContainerLog ──failed──▶ put back; again with the net
//!                                              └──done──▶ look; compress all but the newest rotated
//! ```
//!
//! The watch on a log fires once and is gone, so writing at full speed costs one event per look and nothing in between, and
//! a log that nobody writes costs nothing. So a log is at most as much larger than the limit as its container writes within
//! [`LATENCY`] and the runtime's answer. Compressing has places of its own and delays no rotation: where it is too slow
//! for what is written, the oldest files are removed as they are.
//!
//! An agent that was killed between renaming and the runtime's answer left no log at the path, and the runtime writes to
//! the renamed file. The first look finds it so, and asks again: nothing is lost and nothing overwritten.

use super::place::Place;
use super::rotated::{self, Stamp};
use crate::api::PodUid;
use crate::clock::Clock;
use futures::StreamExt;
use futures::future::BoxFuture;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// From the first write to a log that was looked at until it is looked at again.
pub const LATENCY: Duration = Duration::from_millis(100);

/// Files compressed at once at most, however many workers there are: blocking threads are needed for pods, too.
const MAX_COMPRESSING: usize = 4;

/// `containerLog*`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotationConfig {
    /// `containerLogMaxSize` in bytes; `None` (a negative one) switches rotation off.
    pub max_size: Option<u64>,
    /// `containerLogMaxFiles`: files of one log, with the one being written.
    pub max_files: usize,
    /// `containerLogMaxWorkers`: rotations at once.
    pub workers: usize,
    /// `containerLogMonitorInterval`: of the net.
    pub interval: Duration,
}

impl Default for RotationConfig {
    /// The defaults of the configuration.
    fn default() -> Self {
        Self { max_size: Some(10 << 20), max_files: 5, workers: 1, interval: Duration::from_secs(10) }
    }
}

/// What is asked of the runtime.
pub trait Reopen: std::fmt::Debug + Send + Sync + 'static {
    /// Makes the runtime open the log of the container `id` anew, at its path.
    fn reopen<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), String>>;
}

impl Reopen for cri::Client {
    fn reopen<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move { self.reopen_container_log(id).await.map_err(|e| e.to_string()) })
    }
}

/// A container that runs: its id and its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningLog {
    /// The runtime's id.
    pub id: Arc<str>,
    /// The file the runtime writes.
    pub path: Arc<Path>,
}

/// Tells the task what runs. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Rotation(mpsc::UnboundedSender<(PodUid, Vec<RunningLog>)>);

impl Rotation {
    /// Starts the task, which lives as long as a handle does. Needs a tokio runtime.
    ///
    /// # Errors
    /// The kernel grants no inotify instance.
    pub fn spawn(
        config: RotationConfig,
        runtime: Arc<dyn Reopen>,
        clock: Clock,
    ) -> io::Result<(Self, JoinHandle<()>)> {
        let (tx, requests) = mpsc::unbounded_channel();
        let (task, events) = Task::new(config, runtime, clock)?;
        Ok((Self(tx), tokio::spawn(task.run(requests, events))))
    }

    /// From now on these are all the containers of the pod that run.
    pub fn running(&self, pod: &PodUid, logs: Vec<RunningLog>) {
        // Without the task nothing is rotated any more: the agent is stopping.
        let _ = self.0.send((pod.clone(), logs));
    }
}

/// What the jobs need.
#[derive(Debug)]
struct Shared {
    config: RotationConfig,
    runtime: Arc<dyn Reopen>,
    clock: Clock,
    watches: Arc<Mutex<Watches>>,
    rotating: Semaphore,
    compressing: Semaphore,
}

/// One running container's log.
#[derive(Debug)]
struct Log {
    pod: PodUid,
    path: Arc<Path>,
    watch: Option<WatchDescriptor>,
    /// It is being rotated: not to be looked at.
    rotating: bool,
    /// Shared with the job that compresses.
    state: Arc<State>,
    /// Its first look is to come.
    new: bool,
    /// Rotated files may be there that should be compressed: it was rotated during the last compression, or the runtime
    /// had not closed one. The end of that compression or the net comes back to it.
    uncompressed: bool,
    /// Somebody was told that it cannot be rotated.
    told: bool,
}

/// What a log's jobs must know of each other.
#[derive(Debug, Default)]
struct State {
    compressing: AtomicBool,
    /// The container has ended: no more work on its log.
    ended: AtomicBool,
}

/// What a look found at a log's path.
#[derive(Debug)]
enum Found {
    /// A file of that size.
    Size(u64),
    /// Nothing. `interrupted`: rotated files are there, so it was renamed and the runtime was not asked.
    Missing { interrupted: bool },
    /// No directory, or nothing that may be rotated, such as a link.
    Refused(io::Error),
}

enum Done {
    Looked(Vec<Looked>, bool),
    Rotated(Arc<str>, Result<(), String>),
    /// Whether all were compressed.
    Compressed(Arc<str>, Result<bool, String>),
}

struct Looked {
    id: Arc<str>,
    watch: Option<WatchDescriptor>,
    found: Found,
}

struct Task {
    shared: Arc<Shared>,
    logs: HashMap<Arc<str>, Log>,
    armed: HashMap<WatchDescriptor, Arc<str>>,
    /// Watches that fired before the look that set them was done.
    fired: HashSet<WatchDescriptor>,
    /// Logs to look at, and when.
    due: HashSet<Arc<str>>,
    due_at: Option<Instant>,
    looking: bool,
    jobs: JoinSet<Done>,
}

impl Task {
    fn new(
        config: RotationConfig,
        runtime: Arc<dyn Reopen>,
        clock: Clock,
    ) -> io::Result<(Self, EventStream<Vec<u8>>)> {
        let inotify = Inotify::init()?;
        let watches = Arc::new(Mutex::new(inotify.watches()));
        let events = inotify.into_event_stream(vec![0; 4096])?;
        let shared = Arc::new(Shared {
            config,
            runtime,
            clock,
            watches,
            rotating: Semaphore::new(config.workers.max(1)),
            compressing: Semaphore::new(config.workers.clamp(1, MAX_COMPRESSING)),
        });
        let task = Self {
            shared,
            logs: HashMap::new(),
            armed: HashMap::new(),
            fired: HashSet::new(),
            due: HashSet::new(),
            due_at: None,
            looking: false,
            jobs: JoinSet::new(),
        };
        Ok((task, events))
    }

    async fn run(
        mut self,
        mut requests: mpsc::UnboundedReceiver<(PodUid, Vec<RunningLog>)>,
        events: EventStream<Vec<u8>>,
    ) {
        let mut events = Some(events);
        let interval = self.shared.config.interval;
        let mut net = Instant::now() + interval;
        loop {
            // Cancel-safe: channels, streams and a `JoinSet` keep what they have not given.
            tokio::select! {
                request = requests.recv() => match request {
                    Some((pod, logs)) => self.running(&pod, logs),
                    None => return,
                },
                Some(event) = next_event(&mut events) => match event {
                    Ok(event) if event.mask.contains(EventMask::Q_OVERFLOW) => self.all_due(),
                    // What follows the one event of a watch.
                    Ok(event) if event.mask.contains(EventMask::IGNORED) => {}
                    Ok(event) => self.fired(event.wd),
                    Err(error) => {
                        tracing::error!(%error, "growing logs are no longer noticed; they are looked at each containerLogMonitorInterval");
                        events = None;
                    }
                },
                () = until(self.due_at), if !self.looking => self.look(false),
                () = tokio::time::sleep_until(net), if !self.looking && !self.logs.is_empty() => {
                    net = Instant::now() + interval;
                    self.all_due();
                    self.look(true);
                }
                Some(done) = self.jobs.join_next() => match done {
                    Ok(done) => self.done(done),
                    Err(error) => {
                        tracing::error!(%error, "a step of log rotation panicked");
                        self.looking = false;
                    }
                },
            }
        }
    }

    fn running(&mut self, pod: &PodUid, logs: Vec<RunningLog>) {
        let ended: Vec<_> =
            self.logs.iter().filter(|(id, l)| l.pod == *pod && !logs.iter().any(|r| r.id == **id)).collect();
        for id in ended.into_iter().map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.forget(&id);
        }
        for RunningLog { id, path } in logs {
            if self.logs.contains_key(&id) || path.as_os_str().is_empty() {
                continue;
            }
            let log = Log {
                pod: pod.clone(),
                path,
                watch: None,
                rotating: false,
                state: Arc::default(),
                new: true,
                uncompressed: false,
                told: false,
            };
            self.logs.insert(id.clone(), log);
            self.due(id);
        }
    }

    fn forget(&mut self, id: &str) {
        let Some(log) = self.logs.remove(id) else { return };
        log.state.ended.store(true, Ordering::Relaxed);
        self.due.remove(id);
        if let Some(watch) = log.watch {
            self.disarm(watch);
        }
    }

    fn disarm(&mut self, watch: WatchDescriptor) {
        self.armed.remove(&watch);
        // Fails when the watch has fired or its file is gone.
        let _ = self.shared.watches.lock().unwrap_or_else(PoisonError::into_inner).remove(watch);
    }

    fn due(&mut self, id: Arc<str>) {
        self.due.insert(id);
        self.due_at.get_or_insert_with(|| Instant::now() + LATENCY);
    }

    fn all_due(&mut self) {
        self.due = self.logs.keys().cloned().collect();
        self.due_at.get_or_insert_with(|| Instant::now() + LATENCY);
    }

    fn fired(&mut self, watch: WatchDescriptor) {
        match self.armed.remove(&watch) {
            Some(id) => {
                if let Some(log) = self.logs.get_mut(&id) {
                    log.watch = None;
                    self.due(id);
                }
            }
            None if self.looking => drop(self.fired.insert(watch)),
            None => {}
        }
    }

    /// Looks at all logs that are due, in one job.
    fn look(&mut self, net: bool) {
        self.due_at = None;
        let mut wanted = Vec::new();
        for id in std::mem::take(&mut self.due) {
            // A log that is being rotated is looked at when that is done.
            if let Some(log) = self.logs.get(&id).filter(|l| !l.rotating) {
                wanted.push((id, log.path.clone()));
            }
        }
        if wanted.is_empty() {
            return;
        }
        self.looking = true;
        let watches = self.shared.watches.clone();
        self.jobs.spawn(async move {
            let look = move || wanted.into_iter().map(|(id, path)| look_at(&watches, id, &path)).collect();
            // It only fails when the agent is stopping.
            Done::Looked(tokio::task::spawn_blocking(look).await.unwrap_or_default(), net)
        });
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Looked(found, net) => {
                self.looking = false;
                for looked in found {
                    self.looked(looked, net);
                }
                self.fired.clear();
            }
            Done::Rotated(id, result) => {
                let Some(log) = self.logs.get_mut(&id) else { return };
                log.rotating = false;
                match result {
                    Ok(()) => {
                        log.told = false;
                        self.due(id.clone());
                        self.compress(&id);
                    }
                    Err(error) => {
                        tracing::warn!(container = %id, error, "cannot rotate the container's log; trying again later");
                    }
                }
            }
            Done::Compressed(id, result) => {
                let Some(log) = self.logs.get_mut(&id) else { return };
                let rotated = std::mem::take(&mut log.uncompressed);
                match result {
                    Ok(true) if rotated => self.compress(&id),
                    Ok(true) => {}
                    Ok(false) => log.uncompressed = true,
                    Err(error) => {
                        log.uncompressed = true;
                        tracing::warn!(container = %id, error, "cannot compress rotated logs");
                    }
                }
            }
        }
    }

    fn looked(&mut self, looked: Looked, net: bool) {
        let Looked { id, watch, found } = looked;
        let max = self.shared.config.max_size.unwrap_or(u64::MAX).max(1);
        let Some(log) = self.logs.get_mut(&id) else {
            // The container has ended meanwhile.
            if let Some(watch) = watch {
                self.disarm(watch);
            }
            return;
        };
        let compress = std::mem::replace(&mut log.new, false) || net && log.uncompressed;
        if let Some(watch) = watch {
            log.watch = Some(watch.clone());
            if self.fired.remove(&watch) {
                log.watch = None;
                self.due(id.clone());
            } else {
                self.armed.insert(watch, id.clone());
            }
        }
        match found {
            Found::Size(size) if size >= max => self.rotate(id, true),
            Found::Size(_) if compress => self.compress(&id),
            Found::Size(_) => {}
            // The runtime still writes to a file that has no name, or another: it must make a new one. A log that is
            // merely missing may be about to be made; the net knows better.
            Found::Missing { interrupted } if interrupted || net => self.rotate(id, false),
            Found::Missing { .. } => {}
            Found::Refused(error) => {
                let Some(log) = self.logs.get_mut(&id) else { return };
                if !std::mem::replace(&mut log.told, true) {
                    let path = log.path.display();
                    tracing::warn!(container = %id, %path, %error, "this log cannot be rotated");
                }
            }
        }
    }

    /// Renames the log (unless there is none) and makes the runtime open a new one.
    fn rotate(&mut self, id: Arc<str>, rename: bool) {
        let Some(log) = self.logs.get_mut(&id) else { return };
        log.rotating = true;
        let (path, state, shared) = (log.path.clone(), log.state.clone(), self.shared.clone());
        if let Some(watch) = log.watch.take() {
            self.disarm(watch);
        }
        self.jobs.spawn(async move {
            let result = rotate(&shared, &id, &path, &state, rename).await;
            Done::Rotated(id, result)
        });
    }

    /// Compresses what should be, unless that is being done. Not while a rotation is under way: it would take what is half
    /// done for a leftover of a killed agent and remove it. Its end comes back here.
    fn compress(&mut self, id: &Arc<str>) {
        let Some(log) = self.logs.get_mut(id) else { return };
        if log.rotating || log.state.compressing.swap(true, Ordering::Relaxed) {
            log.uncompressed = true;
            return;
        }
        log.uncompressed = false;
        let (id, path, state, shared) =
            (id.clone(), log.path.clone(), log.state.clone(), self.shared.clone());
        self.jobs.spawn(async move {
            let place = shared.compressing.acquire().await;
            let of = state.clone();
            let work = move || {
                let place = Place::open(&path)?;
                rotated::clean(&place, false)?;
                rotated::compress(&place, || !of.ended.load(Ordering::Relaxed))
            };
            let result = blocking(work).await;
            drop(place);
            state.compressing.store(false, Ordering::Relaxed);
            Done::Compressed(id, result)
        });
    }
}

async fn rotate(
    shared: &Shared,
    id: &str,
    path: &Arc<Path>,
    state: &State,
    rename: bool,
) -> Result<(), String> {
    // Closed never.
    let _place = shared.rotating.acquire().await;
    let mut stamp: Option<Stamp> = None;
    if rename {
        let (path, files, now) = (path.clone(), shared.config.max_files, shared.clock.now());
        let compressing = state.compressing.load(Ordering::Relaxed);
        let set_aside = move || rotated::set_aside(&Place::open(&path)?, files, now, compressing);
        stamp = Some(blocking(set_aside).await?);
    }
    let Err(error) = shared.runtime.reopen(id).await else { return Ok(()) };
    let error = format!("the runtime does not open it anew: {error}");
    let Some(stamp) = stamp else { return Err(error) };
    let path = path.clone();
    match blocking(move || rotated::put_back(&Place::open(&path)?, stamp)).await {
        Ok(()) => Err(error),
        // Mostly because the runtime did open a new one after all; the renamed file is then as good as rotated.
        Err(back) => Err(format!("{error}; and what was renamed cannot be put back: {back}")),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

/// Sets a watch and looks, in this order: what is written after the look is noticed. Blocks on the disk.
fn look_at(watches: &Mutex<Watches>, id: Arc<str>, path: &Path) -> Looked {
    let mut watch = None;
    let mut look = || -> io::Result<Found> {
        let place = Place::open(path)?;
        let mask = WatchMask::MODIFY
            | WatchMask::ATTRIB
            | WatchMask::MOVE_SELF
            | WatchMask::ONESHOT
            | WatchMask::DONT_FOLLOW;
        let log: PathBuf = place.path_of(place.name());
        match watches.lock().unwrap_or_else(PoisonError::into_inner).add(log, mask) {
            Ok(set) => watch = Some(set),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            // The net still looks.
            Err(error) => tracing::debug!(path = %path.display(), %error, "cannot watch the log"),
        }
        match place.stat() {
            Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() => {
                Ok(Found::Size(u64::try_from(stat.st_size).unwrap_or(0)))
            }
            Ok(_) => Ok(Found::Refused(io::Error::other("not a regular file"))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Ok(Found::Missing { interrupted: !rotated::list(&place)?.is_empty() })
            }
            Err(e) => Err(e),
        }
    };
    let found = look().unwrap_or_else(Found::Refused);
    Looked { id, watch, found }
}

/// Does not resolve while there is no stream.
async fn next_event(events: &mut Option<EventStream<Vec<u8>>>) -> Option<io::Result<inotify::EventOwned>> {
    match events {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;
