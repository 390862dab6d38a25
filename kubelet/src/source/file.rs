//! The manifest directory (`staticPodPath`): inotify events in, [`SourceEvent`]s out.
//!
//! One task owns everything. A pass takes the names that events brought, looks at them on a blocking thread
//! (`manifest`), reduces the looks to events (`table`) and sends them; nothing on this path waits for a timer. Two
//! timers exist beside it: the slow pass at `fileCheckFrequency`, a net for what inotify cannot show (network file
//! systems, mounts over the directory, link chains), and [`VANISHED`], which keeps a directory that is replaced in two
//! renames from taking all its pods down.
//!
//! ```text
//!            inotify          looks                  events
//!  directory ───────▶ Watcher ─────▶ manifest::look ─────▶ Table ─────▶ world
//!                        ▲ everything: attach, list            └─────▶ log, problems
//! ```

use super::SourceEvent;
use super::manifest::{self, Look, Problem, Stamp, Why};
use super::table::{Outcome, Report, Table, When};
use super::watch::{Changes, Place, Watcher, identity, is_hidden};
use crate::api::Origin;
use crate::event::{Event, Kind, Recorder};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// How long a manifest directory may be away before its pods go: replacing it takes two renames.
pub const VANISHED: Duration = Duration::from_secs(1);

/// A running file source.
#[derive(Debug)]
pub struct FileSource {
    /// The task; it ends when the receiver of its events is dropped or it is aborted.
    pub task: JoinHandle<()>,
    /// Everything wrong with the manifests at the moment, by path.
    pub problems: watch::Receiver<Vec<(PathBuf, Problem)>>,
}

/// Starts watching `path`, a directory of manifests or a single one, which need not exist yet.
///
/// Static pods get the name of `node_name`. `net_interval` is `fileCheckFrequency`; zero switches the slow pass off.
/// A source whose directory is not there is synced, as upstream; one that cannot be read is not, for nobody knows
/// what it holds.
///
/// # Errors
/// When the process can have no inotify instance.
pub fn spawn(
    path: PathBuf,
    node_name: &str,
    net_interval: Duration,
    tx: mpsc::Sender<SourceEvent>,
    recorder: Recorder,
) -> io::Result<FileSource> {
    let (problems_tx, problems) = watch::channel(Vec::new());
    let source = Source {
        watcher: Watcher::new(std::path::absolute(path)?)?,
        table: Table::default(),
        node_name: node_name.to_owned(),
        tx,
        recorder,
        problems: problems_tx,
        synced: false,
        vanished: None,
        trouble: None,
    };
    Ok(FileSource { task: tokio::spawn(source.run(net_interval)), problems })
}

struct Source {
    watcher: Watcher,
    table: Table,
    node_name: String,
    tx: mpsc::Sender<SourceEvent>,
    recorder: Recorder,
    problems: watch::Sender<Vec<(PathBuf, Problem)>>,
    synced: bool,
    /// Until when the directory may come back.
    vanished: Option<tokio::time::Instant>,
    /// What is wrong with the path itself, as last reported.
    trouble: Option<String>,
}

/// `world` no longer listens.
struct Closed;

/// What was found under which names.
type Looks = Vec<(OsString, Look, Option<Stamp>)>;

impl Source {
    async fn run(mut self, net_interval: Duration) {
        let period =
            if net_interval.is_zero() { Duration::from_secs(u64::from(u32::MAX)) } else { net_interval };
        let mut net = tokio::time::interval(period);
        net.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first tick is at once and is the first pass.
        let mut why = Why::Complete;
        let mut watching = true;
        loop {
            let vanished = self.vanished;
            // Every arm is cancel-safe: reading inotify, two sleeps and the end of the channel.
            let done = tokio::select! {
                biased;
                () = self.tx.closed() => Err(Closed),
                changes = self.watcher.changes(), if watching => match changes {
                    Ok(changes) => self.changed(changes, Instant::now()).await,
                    Err(e) => {
                        watching = false;
                        tracing::error!(error = %e, "inotify failed: manifests are listed at fileCheckFrequency only");
                        Ok(())
                    }
                },
                _ = net.tick() => {
                    let why = std::mem::replace(&mut why, Why::Net);
                    self.everything(Instant::now(), why).await
                }
                () = sleep_until(vanished) => {
                    self.vanished = None;
                    self.clear(Instant::now()).await
                }
            };
            if let Err(Closed) = done {
                return;
            }
        }
    }

    /// A batch of inotify events.
    async fn changed(&mut self, changes: Changes, arrived: Instant) -> Result<(), Closed> {
        if changes.everything {
            return self.everything(arrived, Why::Complete).await;
        }
        let mut names = BTreeMap::new();
        let mut add = |name: OsString, why: Why| {
            let known = names.entry(name).or_insert(why);
            *known = why.max(*known);
        };
        changes.files.into_iter().for_each(|n| add(n, Why::Complete));
        changes.removed.into_iter().for_each(|n| add(n, Why::Removed));
        // What is not known yet tells itself when it is complete.
        changes.touched.into_iter().filter(|n| self.table.contains(n)).for_each(|n| add(n, Why::Touched));
        if changes.hidden {
            self.table.links().for_each(|n| add(n.clone(), Why::Moved));
        }
        self.look(names, arrived).await
    }

    /// Looks at the path itself and at every name in it.
    async fn everything(&mut self, arrived: Instant, why: Why) -> Result<(), Closed> {
        // Attaching anew forgets the events that wait: the slow pass only does it where there is need.
        let kept = if why == Why::Net { self.watcher.attached() } else { None };
        let (place, trouble) = match kept.map_or_else(|| self.watcher.attach(), Ok) {
            Ok(place) => (Some(place), None),
            Err(e) => (
                self.unwatched(),
                Some(format!("cannot be watched and is listed at fileCheckFrequency only: {e}")),
            ),
        };
        let Some(place) = place else {
            // What is there is unknown: what runs keeps running.
            self.report_trouble(trouble);
            return Ok(());
        };
        let names = match place {
            Place::Absent => return self.absent(arrived, trouble).await,
            Place::File => self.watcher.root().file_name().map(|n| vec![n.to_owned()]).unwrap_or_default(),
            Place::Directory => match self.list().await {
                Ok(names) => names,
                Err(e) => {
                    // What it holds is unknown: what runs keeps running.
                    self.report_trouble(Some(format!("cannot be listed: {e}")));
                    return Ok(());
                }
            },
        };
        self.vanished = None;
        self.report_trouble(trouble);
        let mut all: BTreeMap<OsString, Why> = self.table.files().map(|n| (n.clone(), why)).collect();
        all.extend(names.into_iter().map(|n| (n, why)));
        self.look(all, arrived).await?;
        self.sync().await
    }

    /// What the path is when it cannot be watched; `None` when that cannot be told either.
    fn unwatched(&mut self) -> Option<Place> {
        let place = match self.watcher.root().metadata() {
            Ok(m) if m.is_dir() => Place::Directory,
            Ok(m) if m.is_file() => Place::File,
            Ok(_) => Place::Absent,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Place::Absent,
            Err(_) => return None,
        };
        self.watcher.assume(place);
        Some(place)
    }

    /// The path is not there, or is something that cannot hold manifests.
    async fn absent(&mut self, arrived: Instant, trouble: Option<String>) -> Result<(), Closed> {
        let what = match self.watcher.root().exists() {
            true => "is neither a directory nor a file",
            false => "does not exist: waiting for it",
        };
        self.report_trouble(Some(trouble.unwrap_or_else(|| what.to_owned())));
        if self.table.is_empty() {
            return self.sync().await;
        }
        if self.vanished.is_none() {
            let since = tokio::time::Instant::from_std(arrived);
            self.vanished = Some(since + VANISHED);
        }
        Ok(())
    }

    /// The directory stayed away.
    async fn clear(&mut self, arrived: Instant) -> Result<(), Closed> {
        let looks = self.table.files().map(|n| (n.clone(), Look::Absent, None)).collect();
        self.settle(looks, arrived).await
    }

    async fn list(&self) -> io::Result<Vec<OsString>> {
        let root = self.watcher.root().to_path_buf();
        blocking(move || {
            let names: io::Result<Vec<OsString>> =
                std::fs::read_dir(root)?.map(|e| Ok(e?.file_name())).collect();
            Ok(names?.into_iter().filter(|n| !is_hidden(n)).collect())
        })
        .await?
    }

    /// Looks at `names`, each for its reason.
    async fn look(&mut self, names: BTreeMap<OsString, Why>, arrived: Instant) -> Result<(), Closed> {
        let names = names.into_iter().map(|(n, why)| (self.table.stamp(&n).copied(), n, why)).collect();
        let Some(mut looks) = self.look_once(names).await else { return Ok(()) };
        // A link is watched once it is known as one: what changed behind it in between is seen by a second look.
        let mut again = Vec::new();
        for (name, look, stamp) in &looks {
            let followed = matches!(look, Look::Pod(..) | Look::Bad(_)) && stamp.is_some_and(|s| s.link);
            if followed && self.watcher.follow(name) {
                again.push((*stamp, name.clone(), Why::Moved));
            }
        }
        looks.extend(self.look_once(again).await.into_iter().flatten());
        self.settle(looks, arrived).await
    }

    async fn look_once(&mut self, names: Vec<(Option<Stamp>, OsString, Why)>) -> Option<Looks> {
        if names.is_empty() {
            return None;
        }
        let jobs: Vec<_> =
            names.into_iter().map(|(known, n, why)| (self.watcher.path(&n), n, why, known)).collect();
        let node_name = self.node_name.clone();
        let (root, directory) = (self.watcher.root().to_path_buf(), self.watcher.identity());
        let looks = blocking(move || {
            let each = jobs.into_iter().map(|(path, name, why, known)| {
                let (look, stamp) = manifest::look(&path, &node_name, why, known.as_ref());
                (name, look, stamp)
            });
            let mut looks: Looks = each.collect();
            // Gone from the directory, or gone with it? The latter is an event of its own, with its own patience.
            if directory.is_none() || directory != identity(&root) {
                looks.retain(|(_, look, _)| !matches!(look, Look::Absent));
            }
            looks
        });
        match looks.await {
            Ok(looks) => Some(looks),
            Err(e) => {
                tracing::error!(error = %e, "manifests were not read");
                None
            }
        }
    }

    /// Takes in what was found: tells `world`, tells the operator.
    async fn settle(&mut self, looks: Looks, arrived: Instant) -> Result<(), Closed> {
        let outcome = self.table.update(looks, When { seen: jiff::Timestamp::now(), arrived });
        let Outcome { events, reports } = outcome;
        for event in events {
            self.tx.send(event).await.map_err(|_| Closed)?;
        }
        for report in reports {
            self.report(report);
        }
        let path = |(name, problem): (OsString, Problem)| (self.watcher.path(&name), problem);
        let problems: Vec<_> = self.table.problems().into_iter().map(path).collect();
        self.problems.send_if_modified(|known| {
            let changed = *known != problems;
            *known = problems;
            changed
        });
        Ok(())
    }

    async fn sync(&mut self) -> Result<(), Closed> {
        if !std::mem::replace(&mut self.synced, true) {
            self.tx.send(SourceEvent::Synced(Origin::File)).await.map_err(|_| Closed)?;
        }
        Ok(())
    }

    fn report_trouble(&mut self, trouble: Option<String>) {
        if self.trouble != trouble {
            if let Some(what) = &trouble {
                tracing::warn!(path = %self.watcher.root().display(), "manifest path {what}");
            }
            self.trouble = trouble;
        }
    }

    fn report(&self, report: Report) {
        let path = |file: &OsString| self.watcher.path(file).display().to_string();
        match report {
            Report::Problem { file, problem, keeps } => {
                let (file, field) = (path(&file), problem.field.as_deref());
                let keeps = keeps.as_ref().map(tracing::field::display);
                tracing::error!(file, field, still_running = keeps, "manifest refused: {}", problem.message);
            }
            Report::Warning { file, problem } => {
                let (file, field) = (path(&file), problem.field.as_deref());
                tracing::warn!(file, field, "manifest: {}", problem.message);
            }
            Report::Duplicate { file, pod, holder } => {
                let (file, holder) = (path(&file), path(&holder));
                tracing::error!(
                    file,
                    field = "metadata.name",
                    "manifest refused: {pod} is already defined by {holder}"
                );
                self.recorder.record(Event {
                    message: format!(
                        "Error validating pod {pod} from file due to duplicate pod name \"{}\", ignoring",
                        pod.name
                    ),
                    pod: Some(pod),
                    field_path: None,
                    kind: Kind::Warning,
                    reason: "FailedValidation".into(),
                });
            }
        }
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Runs `f` where it may block. It only fails when `f` panics or the runtime stops.
async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(f).await.map_err(|e| io::Error::other(format!("reading manifests: {e}")))
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
