//! A directory of manifests: inotify events in, changes of what its files stand for out.
//!
//! `file` runs it for pods, the room `objects` for ConfigMaps and Secrets; what the files hold, and who is told, is the
//! [`Reader`]'s business. One task owns everything. A pass takes the names that events brought, looks at them on a
//! blocking thread (`manifest`), reduces the looks to changes (`table`) and tells them; nothing on this path waits for a
//! timer. Two timers exist beside it: the slow pass at `fileCheckFrequency`, a net for what inotify cannot show (network
//! file systems, mounts over the directory, link chains), and [`VANISHED`], which keeps a directory that is replaced in
//! two renames from taking everything down.
//!
//! ```text
//!            inotify          looks                  changes
//!  directory ───────▶ Watcher ─────▶ manifest::look ─────▶ Table ─────▶ Reader
//!                        ▲ everything: attach, list            └─────▶ log, problems
//! ```

use super::manifest::{self, Judge, Look, Problem, Stamp, Why};
use super::table::{Change, Item, Outcome, Report, Table};
use super::watch::{Changes, Place, Watcher, identity, is_hidden};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long a directory may be away before what its files hold goes: replacing it takes two renames.
pub const VANISHED: Duration = Duration::from_secs(1);

/// What a directory's files hold, and who is told of it.
pub trait Reader: Send + Sync + 'static {
    /// What a file stands for.
    type Item: Item;
    /// What a file is called in messages, such as `manifest`.
    const FILE: &'static str;
    /// Makes something of a file's bytes.
    fn judge(&self) -> Arc<Judge<Self::Item>>;
    /// Resolves when nobody listens any more. Cancel-safe.
    fn closed(&self) -> impl Future<Output = ()> + Send;
    /// Takes changes in, in order; `arrived` is when they were noticed.
    fn changes(
        &mut self,
        changes: Vec<Change<Self::Item>>,
        arrived: Instant,
    ) -> impl Future<Output = Result<(), Closed>> + Send;
    /// Everything has been told once. Called once.
    fn synced(&mut self) -> impl Future<Output = Result<(), Closed>> + Send;
    /// Two files stand for this; the log has been told.
    fn duplicate(&self, shown: &<Self::Item as Item>::Shown);
}

/// A directory that is being watched.
#[derive(Debug)]
pub struct Watched {
    /// The task; it ends when the reader is closed or it is aborted.
    pub task: JoinHandle<()>,
    /// Everything wrong with the files at the moment, by path.
    pub problems: watch::Receiver<Vec<(PathBuf, Problem)>>,
}

/// Starts watching `path`, a directory of manifests or a single one, which need not exist yet.
///
/// `net_interval` is `fileCheckFrequency`; zero switches the slow pass off. A directory that is not there is synced, as
/// upstream; one that cannot be read is not, for nobody knows what it holds.
///
/// # Errors
/// When the process can have no inotify instance.
pub fn spawn<R: Reader>(path: PathBuf, net_interval: Duration, reader: R) -> io::Result<Watched> {
    let (problems_tx, problems) = watch::channel(Vec::new());
    let directory = Directory {
        watcher: Watcher::new(std::path::absolute(path)?)?,
        table: Table::default(),
        reader,
        problems: problems_tx,
        synced: false,
        vanished: None,
        trouble: None,
    };
    Ok(Watched { task: tokio::spawn(directory.run(net_interval)), problems })
}

struct Directory<R: Reader> {
    watcher: Watcher,
    table: Table<R::Item>,
    reader: R,
    problems: watch::Sender<Vec<(PathBuf, Problem)>>,
    synced: bool,
    /// Until when the directory may come back.
    vanished: Option<tokio::time::Instant>,
    /// What is wrong with the path itself, as last reported.
    trouble: Option<String>,
}

/// Nobody listens any more.
#[derive(Debug)]
pub struct Closed;

/// What was found under which names.
type Looks<T> = Vec<(OsString, Look<T>, Option<Stamp>)>;

impl<R: Reader> Directory<R> {
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
            // Every arm is cancel-safe: reading inotify, two sleeps and the end of who listens.
            let done = tokio::select! {
                biased;
                () = self.reader.closed() => Err(Closed),
                changes = self.watcher.changes(), if watching => match changes {
                    Ok(changes) => self.changed(changes, Instant::now()).await,
                    Err(e) => {
                        watching = false;
                        tracing::error!(error = %e, "inotify failed: {}s are listed at fileCheckFrequency only", R::FILE);
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
            let followed = matches!(look, Look::Item(..) | Look::Bad(_)) && stamp.is_some_and(|s| s.link);
            if followed && self.watcher.follow(name) {
                again.push((*stamp, name.clone(), Why::Moved));
            }
        }
        looks.extend(self.look_once(again).await.into_iter().flatten());
        self.settle(looks, arrived).await
    }

    async fn look_once(&mut self, names: Vec<(Option<Stamp>, OsString, Why)>) -> Option<Looks<R::Item>> {
        if names.is_empty() {
            return None;
        }
        let jobs: Vec<_> =
            names.into_iter().map(|(known, n, why)| (self.watcher.path(&n), n, why, known)).collect();
        let judge = self.reader.judge();
        let (root, directory) = (self.watcher.root().to_path_buf(), self.watcher.identity());
        let looks = blocking(move || {
            let each = jobs.into_iter().map(|(path, name, why, known)| {
                let (look, stamp) = manifest::look(&path, &*judge, why, known.as_ref());
                (name, look, stamp)
            });
            let mut looks: Looks<R::Item> = each.collect();
            // Gone from the directory, or gone with it? The latter is an event of its own, with its own patience.
            if directory.is_none() || directory != identity(&root) {
                looks.retain(|(_, look, _)| !matches!(look, Look::Absent));
            }
            looks
        });
        match looks.await {
            Ok(looks) => Some(looks),
            Err(e) => {
                tracing::error!(error = %e, "{}s were not read", R::FILE);
                None
            }
        }
    }

    /// Takes in what was found: tells the reader, tells the operator.
    async fn settle(&mut self, looks: Looks<R::Item>, arrived: Instant) -> Result<(), Closed> {
        let Outcome { changes, reports } = self.table.update(looks, jiff::Timestamp::now());
        if !changes.is_empty() {
            self.reader.changes(changes, arrived).await?;
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
            self.reader.synced().await?;
        }
        Ok(())
    }

    fn report_trouble(&mut self, trouble: Option<String>) {
        if self.trouble != trouble {
            if let Some(what) = &trouble {
                tracing::warn!(path = %self.watcher.root().display(), "{} path {what}", R::FILE);
            }
            self.trouble = trouble;
        }
    }

    fn report(&self, report: Report<<R::Item as Item>::Shown>) {
        let path = |file: &OsString| self.watcher.path(file).display().to_string();
        let what = R::FILE;
        match report {
            Report::Problem { file, problem, keeps } => {
                let (file, field) = (path(&file), problem.field.as_deref());
                let keeps = keeps.as_ref().map(tracing::field::display);
                tracing::error!(file, field, still_running = keeps, "{what} refused: {}", problem.message);
            }
            Report::Warning { file, problem } => {
                let (file, field) = (path(&file), problem.field.as_deref());
                tracing::warn!(file, field, "{what}: {}", problem.message);
            }
            Report::Duplicate { file, shown, holder } => {
                let (file, holder) = (path(&file), path(&holder));
                tracing::error!(
                    file,
                    field = "metadata.name",
                    "{what} refused: {shown} is already defined by {holder}"
                );
                self.reader.duplicate(&shown);
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
    tokio::task::spawn_blocking(f).await.map_err(|e| io::Error::other(format!("reading files: {e}")))
}
