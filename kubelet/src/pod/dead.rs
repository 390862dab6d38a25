//! How many ended containers are kept: `--maximum-dead-containers`, `--maximum-dead-containers-per-container` and
//! `--minimum-container-ttl-duration`.
//!
//! What one container may keep is a matter of its pod's plan. How many the whole node may keep no pod knows: where there is
//! such a limit, a task counts what pleg sees, and condemns the oldest; their pods' plans remove them. So it does with all of
//! them where the node's disk is full ([`Count::purge`]). The newest instance of
//! a container is never removed while its pod is there: by it the agent knows that the container ran, and how it ended.

use crate::api::PodUid;
use crate::clock::Clock;
use crate::pleg::observed::{Observed, State};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// What the flags say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadConfig {
    /// `--maximum-dead-containers`; `None`: no limit.
    pub on_node: Option<usize>,
    /// `--maximum-dead-containers-per-container`; `None`: no limit.
    pub per_container: Option<usize>,
    /// `--minimum-container-ttl-duration`: what was created less long ago is neither removed nor counted.
    pub min_age: Duration,
}

impl Default for DeadConfig {
    fn default() -> Self {
        Self { on_node: None, per_container: Some(1), min_age: Duration::ZERO }
    }
}

impl DeadConfig {
    /// When what was created then is old enough, if that is yet to come. Without an age no clock matters.
    pub fn young_until(&self, created_at: i64, now: i64) -> Option<i64> {
        let age = i64::try_from(self.min_age.as_nanos()).unwrap_or(i64::MAX);
        Some(created_at.saturating_add(age)).filter(|at| age > 0 && *at > now)
    }
}

/// What a plan goes by.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// The flags.
    pub config: DeadConfig,
    /// Ids of instances that must go because the node has too many.
    pub condemned: Arc<HashSet<String>>,
}

/// The newest set of condemned instances.
pub type Condemned = watch::Receiver<Arc<HashSet<String>>>;

/// An ended container.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Dead {
    id: String,
    container: String,
    created_at: i64,
    /// The newest instance of its container: it stays.
    newest: bool,
}

/// Where what is seen of pods is told. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Count(mpsc::UnboundedSender<Told>);

#[derive(Debug)]
enum Told {
    /// The ended containers of a pod.
    Seen(PodUid, Vec<Dead>),
    /// All must go that nobody needs; the sender goes when they have.
    Purge(oneshot::Sender<()>),
}

impl Count {
    /// What is now seen of `uid`; never blocks.
    pub fn seen(&self, uid: &PodUid, seen: &Observed) {
        // Without the task the agent is stopping.
        let _ = self.0.send(Told::Seen(uid.clone(), dead(seen)));
    }

    /// Has every ended container removed that nobody needs and that is old enough, and waits until they are gone.
    pub async fn purge(&self) {
        let (done, gone) = oneshot::channel();
        let _ = self.0.send(Told::Purge(done));
        // An error is how the task says that it is done.
        let _ = gone.await;
    }
}

fn dead(seen: &Observed) -> Vec<Dead> {
    let mut met = HashSet::new();
    let all = seen.containers.iter().map(|i| (i, met.insert(i.name.as_str())));
    let ended = all.filter(|(i, _)| i.state == State::Exited);
    ended
        .map(|(i, newest)| Dead {
            id: i.id.clone(),
            container: i.name.clone(),
            created_at: i.created_at,
            newest,
        })
        .collect()
}

/// Starts the task that holds the node to as many ended containers as it may keep, and that removes all when asked to.
pub fn spawn(config: DeadConfig, clock: Clock) -> (Count, Condemned, JoinHandle<()>) {
    let (tx, rx) = mpsc::unbounded_channel();
    let (condemned, seen) = watch::channel(Arc::default());
    (Count(tx), seen, tokio::spawn(run(rx, condemned, config, clock)))
}

async fn run(
    mut told: mpsc::UnboundedReceiver<Told>,
    condemned: watch::Sender<Arc<HashSet<String>>>,
    config: DeadConfig,
    clock: Clock,
) {
    let most = config.on_node.unwrap_or(usize::MAX);
    let mut all: HashMap<PodUid, Vec<Dead>> = HashMap::new();
    // What must go at somebody's wish, and who waits for that.
    let (mut purged, mut waiting) = (HashSet::new(), Vec::new());
    loop {
        let now = clock.nanos();
        let (mut ids, next) = condemn(&all, most, &config, now);
        purged.retain(|id| all.values().flatten().any(|d| d.id == *id));
        if purged.is_empty() {
            waiting.clear();
        }
        ids.extend(purged.iter().cloned());
        condemned.send_if_modified(|known| {
            let changed = **known != ids;
            if changed {
                *known = Arc::new(ids);
            }
            changed
        });
        let older = async {
            match next {
                Some(at) => {
                    tokio::time::sleep(Duration::from_nanos(at.saturating_sub(now).unsigned_abs())).await
                }
                None => std::future::pending().await,
            }
        };
        // Both arms are cancel-safe.
        tokio::select! {
            told = told.recv() => match told {
                Some(Told::Seen(uid, dead)) if dead.is_empty() => drop(all.remove(&uid)),
                Some(Told::Seen(uid, dead)) => drop(all.insert(uid, dead)),
                Some(Told::Purge(done)) => {
                    purged.extend(condemn(&all, 0, &config, now).0);
                    waiting.push(done);
                }
                None => return,
            },
            () = older => {}
        }
    }
}

/// Who must go so that no more than `most` of those that are old enough are left, and when the next one will be. As
/// upstream: first every container keeps as many as every other, at least one; then the oldest go, whosever they are.
fn condemn(
    all: &HashMap<PodUid, Vec<Dead>>,
    most: usize,
    config: &DeadConfig,
    now: i64,
) -> (HashSet<String>, Option<i64>) {
    let mut units: HashMap<(&PodUid, &str), Vec<&Dead>> = HashMap::new();
    let mut next = None;
    for (uid, dead) in all {
        for d in dead {
            match config.young_until(d.created_at, now) {
                Some(at) => next = Some(next.map_or(at, |n: i64| n.min(at))),
                None => units.entry((uid, &d.container)).or_default().push(d),
            }
        }
    }
    let mut left: usize = units.values().map(Vec::len).sum();
    let mut ids = HashSet::new();
    if left <= most {
        return (ids, next);
    }
    let each = (most / units.len()).max(1);
    let mut rest = Vec::new();
    for unit in units.values_mut() {
        unit.sort_by_key(|d| std::cmp::Reverse(d.created_at));
        for (n, d) in unit.iter().enumerate().filter(|(_, d)| !d.newest) {
            if n >= each {
                ids.insert(d.id.clone());
                left -= 1;
            } else {
                rest.push(*d);
            }
        }
    }
    rest.sort_by_key(|d| (d.created_at, &d.id));
    ids.extend(rest.into_iter().take(left.saturating_sub(most)).map(|d| d.id.clone()));
    (ids, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A container's name, the times its ended instances were created, and whether it runs again.
    type Given<'a> = (&'a str, &'a [i64], bool);

    /// These pods with their containers.
    fn node(pods: &[(&str, &[Given<'_>])]) -> HashMap<PodUid, Vec<Dead>> {
        let pod = |(uid, containers): &(&str, &[Given<'_>])| {
            let of = |(name, times, runs): &Given<'_>| {
                let last = times.iter().max().copied();
                let one = |at: &i64| Dead {
                    id: format!("{uid}/{name}@{at}"),
                    container: (*name).to_owned(),
                    created_at: *at,
                    newest: !runs && Some(*at) == last,
                };
                times.iter().map(one).collect::<Vec<_>>()
            };
            (PodUid::new(uid), containers.iter().flat_map(of).collect())
        };
        pods.iter().map(pod).collect()
    }

    fn condemned(all: &HashMap<PodUid, Vec<Dead>>, most: usize) -> Vec<String> {
        let mut ids: Vec<_> = condemn(all, most, &DeadConfig::default(), 1000).0.into_iter().collect();
        ids.sort();
        ids
    }

    #[test]
    fn within_the_limit_nothing_goes() {
        let all = node(&[("u", &[("a", &[1, 2], true)]), ("v", &[("b", &[3], false)])]);
        assert_eq!(condemned(&all, 3), [""; 0]);
    }

    #[test]
    fn each_container_keeps_as_many_as_the_others_and_then_the_oldest_go() {
        let all = node(&[("u", &[("a", &[1, 2, 3, 4], true)]), ("v", &[("b", &[5], true)])]);
        assert_eq!(condemned(&all, 4), ["u/a@1", "u/a@2"], "two each, though b has but one");
        let all = node(&[("u", &[("a", &[1, 2], true), ("b", &[3], true)]), ("v", &[("c", &[4], true)])]);
        assert_eq!(condemned(&all, 2), ["u/a@1", "u/a@2"], "one each is one too many");
        assert_eq!(condemned(&all, 0).len(), 4);
    }

    #[test]
    fn the_newest_instance_of_a_container_stays_whatever_the_limit() {
        let all = node(&[("u", &[("a", &[1, 2], false), ("b", &[3, 4], true)])]);
        assert_eq!(condemned(&all, 0), ["u/a@1", "u/b@3", "u/b@4"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_purge_condemns_all_but_the_newest_and_waits_until_they_are_gone() {
        let (count, mut condemned, task) = spawn(DeadConfig::default(), Clock::System);
        let told = |of: &[Given<'_>]| {
            for (uid, dead) in node(&[("u", of)]) {
                count.0.send(Told::Seen(uid, dead)).unwrap();
            }
        };
        told(&[("a", &[1, 2], false), ("b", &[3], true)]);
        let purge = count.purge();
        tokio::pin!(purge);
        tokio::select! {
            () = &mut purge => panic!("they are still there"),
            changed = condemned.changed() => changed.unwrap(),
        }
        let mut ids: Vec<_> = condemned.borrow().iter().cloned().collect();
        ids.sort();
        assert_eq!(ids, ["u/a@1", "u/b@3"]);
        told(&[("a", &[2], false)]);
        purge.await;
        assert!(condemned.borrow_and_update().is_empty());
        count.purge().await;
        task.abort();
    }

    #[test]
    fn what_is_young_is_not_counted_and_the_time_is_told_when_it_will_be() {
        let all = node(&[("u", &[("a", &[1, 5, 9], true)])]);
        let config = DeadConfig { min_age: Duration::from_nanos(10), ..DeadConfig::default() };
        let at = |now| condemn(&all, 1, &config, now);
        assert_eq!(at(12), (HashSet::new(), Some(15)));
        assert_eq!(at(15), (HashSet::from(["u/a@1".to_owned()]), Some(19)));
        assert_eq!(at(19), (HashSet::from(["u/a@1".to_owned(), "u/a@5".to_owned()]), None));
    }
}
