//! The task behind the [`Pleg`](super::Pleg) handle: owns every pod's last observation and decides when to look.
//!
//! Per pod at most one look is in flight; what is asked meanwhile is answered by one further look. Every arm of the
//! loop is cancel-safe: channels, a `JoinSet` and streams keep what they have not yet given.

use super::look::{self, Listed};
use super::observed::{Observed, Picture, State, labels};
use super::{Config, Health, Index, OnChange, Request};
use crate::api::{PodRef, PodUid};
use crate::metrics::Metrics;
use crate::trace;
use cri::v1;
use futures::{FutureExt, StreamExt};
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

type Answer = oneshot::Sender<Arc<Observed>>;

/// Waits after a look that failed: first and longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

struct Slot {
    tx: watch::Sender<Arc<Observed>>,
    /// Whom the look in flight answers; `None` when none is in flight.
    flying: Option<Vec<Answer>>,
    /// Whom the next look answers; `Some` means that there must be one, at once or (after a failure) with the retry.
    next: Option<Vec<Answer>>,
    /// The start that the next look is part of.
    traced: Option<trace::Carried>,
    /// The next look asks for every status.
    afresh: bool,
    /// Looks in a row that failed; while there are any, what is published may be old.
    failures: u32,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            tx: watch::Sender::new(Arc::default()),
            flying: None,
            next: None,
            traced: None,
            afresh: false,
            failures: 0,
        }
    }
}

enum Done {
    /// Which, whether every status was asked for, and what was seen.
    Pod(PodUid, bool, Result<(Option<PodRef>, Observed), cri::Error>),
    All(Result<HashMap<PodUid, Listed>, cri::Error>),
    First(Result<Picture, cri::Error>),
    Retry(PodUid),
}

/// The task's ends of the channels to everybody else.
pub struct Ends {
    pub requests: mpsc::Receiver<Request>,
    pub index: Index,
    pub strays: mpsc::Sender<PodRef>,
    pub picture: oneshot::Sender<Picture>,
    pub health: watch::Sender<Health>,
    pub on_change: OnChange,
}

pub struct Task {
    runtime: cri::Client,
    config: Config,
    metrics: Metrics,
    requests: mpsc::Receiver<Request>,
    index: Index,
    strays: mpsc::Sender<PodRef>,
    picture: Option<oneshot::Sender<Picture>>,
    health: watch::Sender<Health>,
    on_change: OnChange,
    pods: HashMap<PodUid, Slot>,
    jobs: JoinSet<Done>,
    seq: u64,
    full_in_flight: bool,
    /// The runtime came back while it was: what it tells may be of before, and no events come.
    full_again: bool,
    full_began: Instant,
    next_full: Instant,
    full_failures: u32,
    /// Event streams in a row that ended before they gave anything.
    empty_streams: u32,
    events: Option<cri::Events>,
    /// The present stream has given something.
    proven: bool,
}

impl Task {
    pub fn new(runtime: cri::Client, config: Config, metrics: Metrics, ends: Ends) -> Self {
        Self {
            runtime,
            config,
            metrics,
            requests: ends.requests,
            index: ends.index,
            strays: ends.strays,
            picture: Some(ends.picture),
            health: ends.health,
            on_change: ends.on_change,
            pods: HashMap::new(),
            jobs: JoinSet::new(),
            seq: 0,
            full_in_flight: false,
            full_again: false,
            full_began: Instant::now(),
            next_full: Instant::now(),
            full_failures: 0,
            empty_streams: 0,
            events: None,
            proven: false,
        }
    }

    pub async fn run(mut self) {
        let mut connection = self.runtime.connection();
        // The first look is that of the present connection.
        connection.mark_unchanged();
        loop {
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(request) => self.request(request),
                    // Every handle is gone: the agent has stopped.
                    None => return,
                },
                Some(done) = self.jobs.join_next() => match done {
                    Ok(done) => self.done(done),
                    Err(error) => tracing::error!(%error, "a look at the runtime panicked"),
                },
                event = next_event(&mut self.events) => self.event(event),
                changed = connection.changed() => {
                    if changed.is_err() { return }
                    if connection.borrow_and_update().capabilities().is_some() { self.reconnected() }
                }
                () = tokio::time::sleep_until(self.next_full), if !self.full_in_flight => self.look_at_all(),
            }
        }
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Subscribe { uid, answer } => {
                let _ = answer.send(self.slot(uid).tx.subscribe());
            }
            Request::Look { uid, answer, afresh, traced } => {
                let slot = self.slot(uid.clone());
                slot.afresh |= afresh;
                slot.traced = slot.traced.take().or(traced);
                self.look(uid, Some(answer));
            }
            Request::Forget { uid } => {
                // A look that flies answers for itself, and drops the slot if it is of no use any more.
                if self.pods.get(&uid).is_some_and(|s| s.flying.is_none() && s.tx.borrow().is_empty()) {
                    self.drop_slot(&uid);
                }
            }
        }
    }

    fn slot(&mut self, uid: PodUid) -> &mut Slot {
        self.pods.entry(uid).or_insert_with_key(|uid| {
            let slot = Slot::default();
            let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
            index.insert(uid.clone(), slot.tx.subscribe());
            slot
        })
    }

    /// Looks at `uid` now, or once more when the look in flight is done.
    fn look(&mut self, uid: PodUid, answer: Option<Answer>) {
        self.slot(uid.clone());
        let Some(slot) = self.pods.get_mut(&uid) else { return };
        slot.next.get_or_insert_default().extend(answer);
        if slot.flying.is_some() {
            return;
        }
        slot.flying = slot.next.take();
        self.seq += 1;
        // What only the lists told must not pass for what the statuses tell.
        let afresh = std::mem::take(&mut slot.afresh);
        let known = Some(slot.tx.borrow().clone()).filter(|seen| !seen.is_rough() && !afresh);
        let before = known.unwrap_or_default();
        let (seq, runtime, traced) = (self.seq, self.runtime.clone(), slot.traced.take());
        self.jobs.spawn(trace::within(traced, async move {
            let seen = async {
                let listed = look::list_pod(&runtime, &uid).await?;
                let pod = listed.pod();
                Ok((pod, look::observe(&runtime, listed, &before, seq).await?))
            };
            // A bug in one look must not leave its pod unseen for good.
            let seen = AssertUnwindSafe(seen).catch_unwind().await.unwrap_or_else(|_| Err(panicked(&uid)));
            Done::Pod(uid, afresh, seen)
        }));
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Pod(uid, afresh, seen) => self.pod_done(uid, afresh, seen),
            Done::Retry(uid) => {
                // A look that began meanwhile tells as much, and a pod that was forgotten needs none.
                if self.pods.get(&uid).is_some_and(|s| s.flying.is_none() && s.failures > 0) {
                    self.look(uid, None);
                }
            }
            Done::First(picture) => {
                self.full_done(picture.as_ref().err());
                if let Ok(picture) = picture {
                    self.first_picture(picture);
                }
            }
            Done::All(listed) => {
                self.full_done(listed.as_ref().err());
                if let Ok(listed) = listed {
                    self.compare(&listed);
                }
            }
        }
        self.count();
    }

    fn pod_done(&mut self, uid: PodUid, afresh: bool, seen: Result<(Option<PodRef>, Observed), cri::Error>) {
        let Some(slot) = self.pods.get_mut(&uid) else { return };
        let answers = slot.flying.take().unwrap_or_default();
        match seen {
            Ok((pod, seen)) => {
                slot.failures = 0;
                let seen = Arc::new(seen);
                if publish(&slot.tx, &seen) {
                    (self.on_change)(&uid, &seen);
                }
                for answer in answers {
                    let _ = answer.send(seen.clone());
                }
                let again = slot.next.is_some();
                self.settle_unwatched(&uid, pod);
                if again {
                    self.look(uid, None);
                }
            }
            Err(error) => {
                tracing::warn!(%uid, %error, "cannot look at the pod");
                let wait = backoff(slot.failures);
                slot.failures += 1;
                slot.afresh |= afresh;
                slot.next.get_or_insert_default().extend(answers);
                if error.kind == cri::Kind::Unavailable {
                    // Nobody can be looked at: one full look for all, which looks again at what failed.
                    self.next_full = self.next_full.min(Instant::now() + wait);
                } else {
                    let uid = uid.clone();
                    self.jobs.spawn(async move {
                        tokio::time::sleep(wait).await;
                        Done::Retry(uid)
                    });
                }
            }
        }
    }

    /// A pod without an actor: gone, or made by a call that an earlier incarnation of the agent left under way.
    fn settle_unwatched(&mut self, uid: &PodUid, pod: Option<PodRef>) {
        let Some(slot) = self.pods.get(uid) else { return };
        // One receiver is the index's.
        if slot.tx.receiver_count() > 1 || slot.next.is_some() {
            return;
        }
        match pod {
            Some(pod) => {
                // A full channel means that world is busy; the next look at the pod tells it again.
                let _ = self.strays.try_send(pod);
            }
            None => self.drop_slot(uid),
        }
    }

    fn drop_slot(&mut self, uid: &PodUid) {
        self.pods.remove(uid);
        self.index.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Starts the full look, and before it the event stream, so that nothing falls between the two.
    fn look_at_all(&mut self) {
        self.full_in_flight = true;
        let before = std::mem::replace(&mut self.full_began, Instant::now());
        self.metrics.pleg_relist_interval.observe_duration(self.full_began - before);
        if self.events.is_none() && self.capable_of_events() {
            (self.events, self.proven) = (Some(self.runtime.container_events()), false);
            self.metrics.evented_pleg_connections.inc();
        }
        let (runtime, first) = (self.runtime.clone(), self.picture.is_some());
        self.seq += 1;
        let seq = self.seq;
        self.jobs.spawn(async move {
            if first {
                Done::First(first_look(&runtime, seq).await)
            } else {
                Done::All(look::list_all(&runtime).await)
            }
        });
    }

    fn capable_of_events(&self) -> bool {
        self.runtime.connection().borrow().capabilities().is_some_and(|c| c.container_events)
    }

    /// Whether what happens comes as an event. containerd 1.7 hands out events in turn to all who ever subscribed, those
    /// that are gone first, and each of those takes one with it: an agent's first events may be lost to its predecessors.
    fn events_come(&self) -> bool {
        let connection = self.runtime.connection();
        let astray = connection.borrow().capabilities().is_some_and(|c| c.events_may_go_astray);
        self.events.is_some() && (self.proven || !astray)
    }

    fn full_done(&mut self, error: Option<&cri::Error>) {
        self.full_in_flight = false;
        let events = self.events.is_some();
        let wait = match error {
            None => {
                self.full_failures = 0;
                self.metrics.pleg_relist_duration.observe_duration(self.full_began.elapsed());
                self.metrics.pleg_last_seen.set(jiff::Timestamp::now().as_second() as f64);
                match (std::mem::take(&mut self.full_again), self.events_come()) {
                    (true, _) => Duration::ZERO,
                    (false, true) => self.config.net,
                    (false, false) => self.config.poll,
                }
            }
            Some(error) => {
                tracing::warn!(%error, "cannot list what the runtime has");
                self.full_failures += 1;
                backoff(self.full_failures - 1)
            }
        };
        self.next_full = Instant::now() + wait;
        self.health.send_modify(|h| {
            h.events = events;
            h.error = error.map(ToString::to_string);
            if error.is_none() {
                h.last_full = Some(std::time::Instant::now());
            }
        });
    }

    /// What runs, as the last looks at each pod have it.
    fn count(&self) {
        let (mut pods, mut states) = (0, [0; 4]);
        for slot in self.pods.values() {
            let seen = slot.tx.borrow();
            pods += usize::from(seen.sandboxes.iter().any(|s| s.ready));
            for c in &seen.containers {
                states[c.state as usize] += 1;
            }
        }
        self.metrics.running_pods.set(pods as f64);
        for (state, name) in [
            (State::Created, "created"),
            (State::Running, "running"),
            (State::Exited, "exited"),
            (State::Unknown, "unknown"),
        ] {
            self.metrics.running_containers.with([name]).set(f64::from(states[state as usize]));
        }
    }

    fn first_picture(&mut self, picture: Picture) {
        for (uid, (_, seen)) in &picture.pods {
            if publish(&self.slot(uid.clone()).tx, seen) {
                (self.on_change)(uid, seen);
            }
            if seen.seq == 0 {
                self.look(uid.clone(), None);
            }
        }
        if let Some(tx) = self.picture.take() {
            let _ = tx.send(picture);
        }
    }

    /// Looks at every pod of which the lists tell something else than was last seen.
    fn compare(&mut self, listed: &HashMap<PodUid, Listed>) {
        let empty = Listed::default();
        let stale: Vec<PodUid> = self
            .pods
            .iter()
            .filter(|(uid, slot)| {
                let seen = slot.tx.borrow();
                slot.failures > 0 || seen.is_rough() || !listed.get(*uid).unwrap_or(&empty).matches(&seen)
            })
            .map(|(uid, _)| uid.clone())
            .chain(listed.keys().filter(|uid| !self.pods.contains_key(*uid)).cloned())
            .collect();
        for uid in stale {
            self.look(uid, None);
        }
    }

    fn event(&mut self, event: Option<Result<v1::ContainerEventResponse, cri::Error>>) {
        match event {
            Some(Ok(event)) => {
                (self.empty_streams, self.proven) = (0, true);
                // What was created or started was so by an actor that looks for itself when its step is done.
                let ours = matches!(
                    event.container_event_type(),
                    v1::ContainerEventType::ContainerCreatedEvent
                        | v1::ContainerEventType::ContainerStartedEvent
                );
                let gone = event.container_event_type() == v1::ContainerEventType::ContainerDeletedEvent;
                let uid = event.pod_sandbox_status.as_ref().and_then(|s| {
                    s.metadata.as_ref().map(|m| &m.uid).or_else(|| s.labels.get(labels::POD_UID))
                });
                match uid {
                    Some(uid) => {
                        let uid = PodUid::new(uid);
                        let known = self.pods.contains_key(&uid);
                        // Of a pod that nobody asked for, whatever comes into being is news.
                        if if known { !ours } else { !gone } {
                            self.look(uid, None);
                        }
                    }
                    // An event that names no pod: its sandbox is gone already. Find whose it was.
                    None => {
                        let owner = self.pods.iter().find(|(_, slot)| {
                            let seen = slot.tx.borrow();
                            seen.sandboxes.iter().any(|s| s.id == event.container_id)
                                || seen.containers.iter().any(|c| c.id == event.container_id)
                        });
                        if let Some(uid) = owner.map(|(uid, _)| uid.clone()) {
                            self.look(uid, None);
                        }
                    }
                }
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "the runtime's event stream broke");
                self.events_lost();
            }
            None => {
                tracing::warn!("the runtime's event stream ended");
                self.events_lost();
            }
        }
    }

    /// Events may have been missed: subscribe anew and compare everything, soon but not in a tight loop.
    fn events_lost(&mut self) {
        self.events = None;
        self.next_full = Instant::now() + backoff(self.empty_streams);
        self.empty_streams += 1;
        self.health.send_modify(|h| h.events = false);
    }

    fn reconnected(&mut self) {
        self.events = None;
        (self.full_failures, self.empty_streams) = (0, 0);
        if self.full_in_flight {
            self.full_again = true;
        } else {
            self.look_at_all();
        }
    }
}

/// Does not resolve while there is no stream.
async fn next_event(
    events: &mut Option<cri::Events>,
) -> Option<Result<v1::ContainerEventResponse, cri::Error>> {
    match events {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

/// Publishes what is newer than what is there; an equal picture wakes nobody, unless the one before was only rough.
/// Tells whether it woke anybody.
fn publish(tx: &watch::Sender<Arc<Observed>>, seen: &Arc<Observed>) -> bool {
    tx.send_if_modified(|last| {
        if seen.seq < last.seq {
            return false;
        }
        let changed =
            last.is_rough() || seen.sandboxes != last.sandboxes || seen.containers != last.containers;
        *last = seen.clone();
        changed
    })
}

/// How long the first full look waits for one pod's statuses.
const FIRST_LOOK: Duration = Duration::from_secs(2);

/// The whole runtime, with every status. A pod whose statuses do not come in time is in the picture as the lists
/// have it, so that nobody takes it for absent, and so that it delays no other.
async fn first_look(runtime: &cri::Client, seq: u64) -> Result<Picture, cri::Error> {
    let listed = look::list_all(runtime).await?;
    let looks = listed.into_iter().filter_map(|(uid, listed)| Some((uid, listed.pod()?, listed)));
    let looks = looks.map(|(uid, pod, listed)| async move {
        let rough = look::roughly(&listed);
        let nothing = Observed::default();
        let seen = match tokio::time::timeout(FIRST_LOOK, look::observe(runtime, listed, &nothing, seq)).await
        {
            Ok(Ok(seen)) => seen,
            Ok(Err(error)) => {
                tracing::warn!(%pod, %error, "the pod's state is not known yet");
                rough
            }
            Err(_) => {
                tracing::warn!(%pod, "the runtime does not tell the pod's state; going on without");
                rough
            }
        };
        (uid, (pod, Arc::new(seen)))
    });
    Ok(Picture { pods: futures::stream::iter(looks).buffer_unordered(FIRST_LOOKS_AT_ONCE).collect().await })
}

/// Pods looked at at once in the first look.
const FIRST_LOOKS_AT_ONCE: usize = 16;

fn panicked(uid: &PodUid) -> cri::Error {
    cri::Error {
        call: "ListPodSandbox",
        object: uid.to_string(),
        kind: cri::Kind::Other,
        code: cri::Code::Internal,
        message: "the look at the pod panicked".to_owned(),
    }
}

fn backoff(failures: u32) -> Duration {
    RETRY.0.saturating_mul(1 << failures.min(8)).min(RETRY.1)
}
