//! How much directories take: counted by one task with a bounded share of a processor, remembered with the time of the
//! count.
//!
//! ```text
//!  look(roots, max_age) ─▶ queue ─▶ task: due roots, a slice each ─▶ blocking thread
//!        │                            └─ used more than its share? ─▶ rest
//!        └──◀── what is known of each, once all are, or the patience of who asks is over
//! ```
//!
//! A root is counted only while somebody asks for it, again at the earliest when its last count is `max_age` old and
//! twenty times as long ago as it took. Trees of a few entries cost microseconds, and the first look waits for them;
//! trees of millions are told when they are counted.

mod walk;

pub use walk::{Used, What};

use jiff::Timestamp;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use walk::Walk;

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Root {
    /// Where.
    pub path: PathBuf,
    /// What of it.
    pub what: What,
}

/// A count that is done.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// What the root takes.
    pub used: Used,
    /// When the count ended.
    pub at: Timestamp,
    began: Instant,
    ended: Instant,
    /// Time spent counting.
    took: Duration,
}

/// The counts that are known.
type Known = Arc<Mutex<HashMap<Root, Counted>>>;

/// The handle. Cloning is cheap; the task ends with the last one.
#[derive(Clone, Debug)]
pub struct Usage {
    asks: mpsc::UnboundedSender<Ask>,
    known: Known,
}

struct Ask {
    roots: Vec<Root>,
    max_age: Duration,
    done: oneshot::Sender<()>,
}

/// Entries of one slice: about two milliseconds.
const SLICE: usize = 1000;
/// The task counts for a tenth of the time…
const SHARE: u32 = 10;
/// …once it has used up what it may use at once after a rest.
const BURST: Duration = Duration::from_millis(200);
/// A root is left alone for so many times as long as its count took.
const RESTS: u32 = 20;

impl Usage {
    /// Starts the task; nothing is counted before somebody asks.
    pub fn spawn() -> Self {
        let (asks, queue) = mpsc::unbounded_channel();
        let known = Known::default();
        tokio::spawn(run(queue, known.clone()));
        Self { asks, known }
    }

    /// What `roots` take, each counted at most `max_age` ago where it could be within `patience`; otherwise as it was
    /// before, and missing where it never was, or is not there. Roots not named here are forgotten.
    pub async fn look(
        &self,
        roots: Vec<Root>,
        max_age: Duration,
        patience: Duration,
    ) -> HashMap<Root, Counted> {
        let (done, finished) = oneshot::channel();
        let wanted = roots.clone();
        if self.asks.send(Ask { roots, max_age, done }).is_ok() {
            // Out of patience, or the task is gone with tokio: what is known is known.
            let _ = tokio::time::timeout(patience, finished).await;
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.into_iter().filter_map(|root| known.get(&root).map(|c| (root, *c))).collect()
    }
}

/// A root to be counted.
struct Job {
    root: Root,
    /// Set once it has begun.
    walk: Option<Walk>,
    began: Instant,
    took: Duration,
}

/// What one slice came to.
enum Slice {
    Done(Option<Used>, bool),
    More(Walk),
}

async fn run(mut queue: mpsc::UnboundedReceiver<Ask>, known: Known) {
    let mut jobs: Vec<Job> = Vec::new();
    let mut waiting: Vec<oneshot::Sender<()>> = Vec::new();
    let mut credit = BURST;
    let mut since = Instant::now();
    loop {
        if jobs.is_empty() {
            waiting.clear();
            let Some(ask) = queue.recv().await else { return };
            take(ask, &known, &mut jobs, &mut waiting);
            continue;
        }
        while let Ok(ask) = queue.try_recv() {
            take(ask, &known, &mut jobs, &mut waiting);
        }
        credit = credit.saturating_add(since.elapsed() / SHARE).min(BURST);
        since = Instant::now();
        if credit.is_zero() {
            // Enough for a few slices more.
            tokio::time::sleep(BURST / 2).await;
            continue;
        }
        if waiting.iter().all(oneshot::Sender::is_closed) && queue.is_closed() {
            return;
        }
        let mut job = jobs.remove(0);
        let (walk, root) = (job.walk.take(), job.root.clone());
        let started = std::time::Instant::now();
        let sliced = tokio::task::spawn_blocking(move || slice(walk, &root)).await;
        let took = started.elapsed();
        (job.took, credit) = (job.took + took, credit.saturating_sub(took));
        match sliced {
            // Others have their turn before its next slice.
            Ok(Slice::More(walk)) => {
                job.walk = Some(walk);
                jobs.push(job);
            }
            Ok(Slice::Done(used, cut)) => done(job, used, cut, &known),
            Err(error) => {
                tracing::error!(%error, path = %job.root.path.display(), "directory could not be counted")
            }
        }
    }
}

/// Adds what of `ask` is due, and forgets what nobody asks for any more.
fn take(ask: Ask, known: &Known, jobs: &mut Vec<Job>, waiting: &mut Vec<oneshot::Sender<()>>) {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted: std::collections::HashSet<&Root> = ask.roots.iter().collect();
    known.retain(|root, _| wanted.contains(root));
    jobs.retain(|job| wanted.contains(&job.root));
    for root in &ask.roots {
        let fresh = known.get(root).is_some_and(|c| {
            c.began.elapsed() <= ask.max_age || c.ended.elapsed() < c.took.saturating_mul(RESTS)
        });
        if !fresh && !jobs.iter().any(|job| job.root == *root) {
            jobs.push(Job { root: root.clone(), walk: None, began: Instant::now(), took: Duration::ZERO });
        }
    }
    waiting.push(ask.done);
}

fn slice(walk: Option<Walk>, root: &Root) -> Slice {
    let Some(mut walk) = walk.or_else(|| Walk::begin(&root.path, root.what)) else {
        return Slice::Done(None, false);
    };
    let mut entries = SLICE;
    match walk.slice(&mut entries) {
        Some(used) => Slice::Done(Some(used), walk.is_cut()),
        None => Slice::More(walk),
    }
}

fn done(job: Job, used: Option<Used>, cut: bool, known: &Known) {
    if cut {
        deep(&job.root.path);
    }
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    match used {
        Some(used) => {
            let (at, ended) = (Timestamp::now(), Instant::now());
            known.insert(job.root, Counted { used, at, began: job.began, ended, took: job.took });
        }
        None => {
            known.remove(&job.root);
        }
    }
}

fn deep(path: &Path) {
    tracing::warn!(path = %path.display(), "too many directories nest too deep to be counted; some are left out");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(path: &Path) -> Root {
        Root { path: path.to_owned(), what: What::Tree }
    }

    const PATIENT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn small_trees_are_known_at_once_and_missing_ones_are_missing() {
        let dir = tempfile::tempdir().unwrap();
        let roots = vec![tree(dir.path()), tree(&dir.path().join("none"))];
        let known = Usage::spawn().look(roots, Duration::ZERO, PATIENT).await;
        assert_eq!(known.len(), 1);
        assert_eq!(known[&tree(dir.path())].used.inodes, 1);
    }

    #[tokio::test]
    async fn a_count_is_kept_for_as_long_as_it_may_be_old() {
        let dir = tempfile::tempdir().unwrap();
        let usage = Usage::spawn();
        let look = async |max_age| {
            usage.look(vec![tree(dir.path())], max_age, PATIENT).await[&tree(dir.path())].used.inodes
        };
        assert_eq!(look(PATIENT).await, 1);
        std::fs::write(dir.path().join("new"), "x").unwrap();
        assert_eq!(look(PATIENT).await, 1);
        // An empty directory is counted so fast that its rest is over at once.
        let new = async { while look(Duration::ZERO).await != 2 {} };
        tokio::time::timeout(PATIENT, new).await.unwrap();
    }

    #[tokio::test]
    async fn many_files_take_only_a_share_of_the_time_and_keep_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let (many, few) = (dir.path().join("many"), dir.path().join("few"));
        std::fs::create_dir(&few).unwrap();
        for nth in 0..20 {
            let sub = many.join(nth.to_string());
            std::fs::create_dir_all(&sub).unwrap();
            for file in 0..1000 {
                std::fs::File::create(sub.join(file.to_string())).unwrap();
            }
        }
        let usage = Usage::spawn();
        let known = usage.look(vec![tree(&many), tree(&few)], Duration::ZERO, PATIENT).await;
        assert_eq!((known[&tree(&many)].used.inodes, known[&tree(&few)].used.inodes), (20_021, 1));
        // The small one got its turn after one slice of the large one.
        assert!(known[&tree(&few)].ended < known[&tree(&many)].ended);
        // Nobody's patience is needed for what is known, and the large one rests.
        let again = usage.look(vec![tree(&many)], Duration::ZERO, PATIENT).await;
        assert_eq!(
            again[&tree(&many)].at,
            known[&tree(&many)].at,
            "it rests twenty times as long as it took"
        );
        assert_eq!(usage.known.lock().unwrap().len(), 1, "what nobody asks for is forgotten");
    }
}
