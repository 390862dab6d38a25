//! The one task behind all probes: the agenda, the runs in flight, and what their answers amount to.
//!
//! ```text
//!   agenda (when, probe) ──due──▶ waiting (commands | network) ──a place is free──▶ job ──answer──▶ row of answers
//!      ▲                                                                                              │
//!      └───────────────── the next multiple of the period ◀──────────────────────────────────────────┘
//! ```
//!
//! A probe's runs are due at exact multiples of its period after its first; one that is still under way when it is due
//! again leaves that turn out. Commands are levelled once (`level`): after the first answer with which a command's result
//! stands its next run, and with it all that follow, may come earlier, where few others are; never later. Everything is
//! monotonic time; the wall clock is read once for each instance, for how long it has run. A panic costs one turn of the
//! loop (`repair`). Every arm of the loop is cancel-safe: a channel, a `JoinSet` and a timer.

mod answers;
mod repair;

use super::keep::Kept;
use super::prober::{Answer, Prober, Question};
use super::readiness::{ContainerReadiness, Kind, Readiness};
use super::spec::{KINDS, Row, Target, Targets, Timing, container, may_run_again, probe_of};
use crate::api::PodRef;
use crate::clock::Clock;
use crate::event::{ContainerList, Recorder};
use crate::metrics::Metrics;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;

/// Commands that begin or run on the node at once: each is a handful of processes for the runtime.
const COMMANDS: usize = 16;
/// Commands of one pod in flight.
const COMMANDS_OF_A_POD: usize = 4;
/// Connections at once.
const CONNECTIONS: usize = 128;
/// Connections of one pod in flight.
const CONNECTIONS_OF_A_POD: usize = 32;
/// A run that takes longer is only waited for, and gives its place on the node to another.
const LONG: Duration = Duration::from_secs(2);

/// What pods' actors say.
#[derive(Debug)]
pub enum Request {
    /// A pod to come.
    Open { id: u64, pod: PodRef, dir: PathBuf, adopted: bool, readiness: watch::Sender<Arc<Readiness>> },
    /// What of it is to be probed.
    Aim { id: u64, targets: Targets },
    /// Its actor is gone.
    Close { id: u64 },
}

/// A pod.
struct Slot {
    pod: PodRef,
    dir: PathBuf,
    readiness: watch::Sender<Arc<Readiness>>,
    /// What an earlier incarnation of the agent knew.
    restored: Arc<Readiness>,
    /// What ran before this agent began: first runs are spread over the period.
    spread: bool,
    targets: Option<Targets>,
    watched: Vec<Watched>,
    /// Containers whose metrics are shown.
    shown: Vec<String>,
    /// Runs in flight, by means.
    flying: [usize; 2],
    /// What the file has; `None` while that is unknown.
    kept: Option<Kept>,
    writing: bool,
}

/// An instance that is probed.
struct Watched {
    name: String,
    list: ContainerList,
    index: usize,
    known: ContainerReadiness,
    /// How long it had run when this was made, and when that was.
    ran: (Duration, Instant),
    /// By the order of [`KINDS`].
    probes: [Option<u64>; 3],
}

struct Probe {
    slot: u64,
    kind: Kind,
    instance: String,
    means: Means,
    timing: Timing,
    /// When the next run is due, or the one that waits or is under way was.
    due: Instant,
    /// Since when the run that is due waits for its place.
    waits_since: Instant,
    row: Row,
    state: At,
    /// Its place in the period has been chosen; until then it is where the container's start put it.
    placed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Rest,
    Waiting,
    Flying,
}

enum Done {
    Answer { took: Duration, answer: Answer },
    Kept { slot: u64, kept: Kept, result: io::Result<()> },
}

/// A run under way.
struct Flight {
    probe: u64,
    slot: u64,
    means: Means,
    /// It holds a place on the node.
    placed: bool,
    abort: AbortHandle,
}

/// How a container is asked: the index of what is kept for both.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Means {
    Connection,
    Command,
}

impl Means {
    const ALL: [Self; 2] = [Self::Connection, Self::Command];

    /// Places on the node, and runs in flight of one pod.
    fn limits(self) -> (usize, usize) {
        match self {
            Self::Connection => (CONNECTIONS, CONNECTIONS_OF_A_POD),
            Self::Command => (COMMANDS, COMMANDS_OF_A_POD),
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Command => "command",
        }
    }
}

pub struct Task {
    prober: Arc<dyn Prober>,
    recorder: Recorder,
    metrics: Metrics,
    clock: Clock,
    requests: mpsc::UnboundedReceiver<Request>,
    slots: HashMap<u64, Slot>,
    probes: HashMap<u64, Probe>,
    next_probe: u64,
    agenda: BTreeSet<(Instant, u64)>,
    /// What is due and has no place yet, by means.
    waiting: [VecDeque<u64>; 2],
    flights: HashMap<Id, Flight>,
    /// Places taken, by means.
    taken: [usize; 2],
    /// When each run in flight will have been long, in that order; those that ended meanwhile are passed over.
    long: VecDeque<(Instant, Id)>,
    jobs: JoinSet<Done>,
}

impl Task {
    pub fn new(
        prober: Arc<dyn Prober>,
        recorder: Recorder,
        metrics: Metrics,
        clock: Clock,
        requests: mpsc::UnboundedReceiver<Request>,
    ) -> Self {
        Self {
            prober,
            recorder,
            metrics,
            clock,
            requests,
            slots: HashMap::new(),
            probes: HashMap::new(),
            next_probe: 0,
            agenda: BTreeSet::new(),
            waiting: Default::default(),
            flights: HashMap::new(),
            taken: [0; 2],
            long: VecDeque::new(),
            jobs: JoinSet::new(),
        }
    }

    pub async fn run(mut self) {
        loop {
            let due = self.agenda.first().map(|(at, _)| *at);
            let place = self.long.front().filter(|_| self.waiting.iter().any(|w| !w.is_empty()));
            let next = due.into_iter().chain(place.map(|(at, _)| *at)).min();
            let timer = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // What a panic left undone is seen to by the repair.
            let _ = tokio::select! {
                request = self.requests.recv() => match request {
                    Some(request) => self.guarded(|task| task.request(request)),
                    // Every handle is gone: the agent has stopped.
                    None => return,
                },
                Some(done) = self.jobs.join_next_with_id() => self.guarded(|task| task.done(done)),
                () = timer => self.guarded(Self::due),
            };
            // Each that panics has left its queue.
            while !self.guarded(Self::dispatch) {}
        }
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Open { id, pod, dir, adopted, readiness } => {
                let restored = readiness.borrow().clone();
                let slot = Slot {
                    pod,
                    dir,
                    readiness,
                    restored,
                    spread: adopted,
                    targets: None,
                    watched: Vec::new(),
                    shown: Vec::new(),
                    flying: [0; 2],
                    // A pod that is new to the node has no file.
                    kept: (!adopted).then(Kept::default),
                    writing: false,
                };
                self.slots.insert(id, slot);
            }
            Request::Aim { id, targets } => {
                if let Some(slot) = self.slots.get_mut(&id) {
                    slot.targets = Some(targets);
                    self.take_aim(id);
                }
            }
            Request::Close { id } => {
                if let Some(slot) = self.slots.remove(&id) {
                    slot.watched.iter().for_each(|watched| self.let_go(watched));
                    slot.shown.iter().for_each(|name| forget(&self.metrics, &slot.pod, name));
                }
            }
        }
    }

    /// Takes on what runs now and lets go of what does not.
    fn take_aim(&mut self, id: u64) {
        self.on_slot(id, |task, slot| {
            let Some(targets) = slot.targets.clone() else { return };
            let aimed = |w: &Watched| targets.running.iter().any(|t| t.instance == w.known.instance);
            let (stay, gone): (Vec<_>, Vec<_>) =
                std::mem::take(&mut slot.watched).into_iter().partition(aimed);
            slot.watched = stay;
            gone.iter().for_each(|watched| task.let_go(watched));
            for target in &targets.running {
                if !slot.watched.iter().any(|w| w.known.instance == target.instance)
                    && let Some(watched) = task.watch(slot, &targets, target)
                {
                    if !slot.shown.contains(&watched.name) {
                        slot.shown.push(watched.name.clone());
                    }
                    slot.watched.push(watched);
                }
            }
            // Counters go on over restarts, and end with the last instance.
            slot.shown.retain(|name| {
                let more = slot.watched.iter().any(|w| w.name == *name)
                    || !targets.terminating && may_run_again(&targets.pod, name);
                if !more {
                    forget(&task.metrics, &slot.pod, name);
                }
                more
            });
            task.arm(id, slot);
            slot.spread = false;
            task.publish(id, slot);
        });
    }

    fn watch(&self, slot: &Slot, targets: &Targets, target: &Target) -> Option<Watched> {
        let c = container(&targets.pod, target.list, target.index)?;
        let instance = target.instance.clone();
        let known = match slot.restored.of(&c.name, &instance) {
            Some(known) => known.clone(),
            None => {
                let started = c.startup_probe.is_none();
                let ready = started && c.readiness_probe.is_none();
                ContainerReadiness { instance, started, ready, failed: None }
            }
        };
        let ran = self.clock.nanos().saturating_sub(target.started_at);
        let ran = Duration::from_nanos(u64::try_from(ran).unwrap_or(0));
        Some(Watched {
            name: c.name.clone(),
            list: target.list,
            index: target.index,
            known,
            ran: (ran, Instant::now()),
            probes: [None; 3],
        })
    }

    /// Every probe that should run has a place on the agenda, and no other has.
    fn arm(&mut self, id: u64, slot: &mut Slot) {
        let Some(targets) = &slot.targets else { return };
        for watched in &mut slot.watched {
            let Some(c) = container(&targets.pod, watched.list, watched.index) else { continue };
            let known = &watched.known;
            let live = known.failed.is_none() && !targets.terminating;
            for (at, kind) in KINDS.into_iter().enumerate() {
                let wanted = match kind {
                    Kind::Startup => live && !known.started,
                    Kind::Liveness => live && known.started,
                    Kind::Readiness => known.started,
                };
                match (probe_of(c, kind).filter(|_| wanted), watched.probes[at]) {
                    (Some(p), None) => {
                        let timing = Timing::of(p);
                        let (before, since) = watched.ran;
                        let mut wait = timing.initial_delay.saturating_sub(before + since.elapsed());
                        if slot.spread {
                            wait += share(&known.instance, kind, timing.period);
                        }
                        let key = self.next_probe;
                        self.next_probe += 1;
                        let due = Instant::now() + wait;
                        let probe = Probe {
                            slot: id,
                            kind,
                            instance: known.instance.clone(),
                            means: if p.exec.is_some() { Means::Command } else { Means::Connection },
                            timing,
                            due,
                            waits_since: due,
                            row: Row::default(),
                            state: At::Rest,
                            placed: false,
                        };
                        self.probes.insert(key, probe);
                        self.agenda.insert((due, key));
                        watched.probes[at] = Some(key);
                    }
                    (None, Some(key)) => {
                        self.drop_probe(key);
                        watched.probes[at] = None;
                    }
                    _ => {}
                }
            }
        }
    }

    fn let_go(&mut self, watched: &Watched) {
        watched.probes.into_iter().flatten().for_each(|key| self.drop_probe(key));
    }

    fn drop_probe(&mut self, key: u64) {
        let Some(probe) = self.probes.remove(&key) else { return };
        match probe.state {
            At::Rest => drop(self.agenda.remove(&(probe.due, key))),
            // The queues are cleared of it when its turn comes.
            At::Waiting => {}
            // A command is left to the runtime, which ends it in time; an open connection is of no use to anybody.
            At::Flying => self
                .flights
                .values()
                .filter(|f| f.probe == key && f.means == Means::Connection)
                .for_each(|flight| flight.abort.abort()),
        }
    }

    /// What is due waits for a place.
    fn due(&mut self) {
        let now = Instant::now();
        while let Some((at, key)) = self.agenda.first().copied().filter(|(at, _)| *at <= now) {
            self.agenda.remove(&(at, key));
            let Some(probe) = self.probes.get_mut(&key) else { continue };
            (probe.state, probe.waits_since) = (At::Waiting, now);
            self.waiting[probe.means as usize].push_back(key);
        }
    }

    /// Begins as many runs as there are places for, in the order in which they were due.
    fn dispatch(&mut self) {
        self.give_back();
        for means in Means::ALL {
            let (places, of_a_pod) = means.limits();
            let mut at = 0;
            while self.taken[means as usize] < places && at < self.waiting[means as usize].len() {
                let key = self.waiting[means as usize][at];
                let slot = self.probes.get(&key).and_then(|p| self.slots.get(&p.slot));
                if slot.is_some_and(|s| s.flying[means as usize] >= of_a_pod) {
                    at += 1;
                    continue;
                }
                self.waiting[means as usize].remove(at);
                self.begin(key);
            }
        }
    }

    /// Runs that take long give their places back: the hanging ones of a few pods must not keep others from being asked.
    fn give_back(&mut self) {
        let now = Instant::now();
        while let Some((at, id)) = self.long.front() {
            match self.flights.get_mut(id) {
                Some(_) if *at > now => break,
                Some(flight) if flight.placed => {
                    flight.placed = false;
                    self.taken[flight.means as usize] -= 1;
                }
                _ => {}
            }
            self.long.pop_front();
        }
    }

    fn begin(&mut self, key: u64) {
        let Some(probe) = self.probes.get_mut(&key) else { return };
        let Some(slot) = self.slots.get_mut(&probe.slot) else { return };
        let watched = slot.watched.iter().find(|w| w.known.instance == probe.instance);
        let (Some(targets), Some(watched)) = (&slot.targets, watched) else { return };
        let question = Question {
            pod: targets.pod.clone(),
            list: watched.list,
            index: watched.index,
            kind: probe.kind,
            instance: probe.instance.clone(),
            ip: targets.ip,
        };
        let (means, metrics) = (probe.means, &self.metrics.probes);
        metrics.place_wait.with([means.label()]).observe_duration(probe.waits_since.elapsed());
        let (due, lateness) = (probe.due, metrics.lateness.with([means.label()]));
        probe.state = At::Flying;
        let asked = self.prober.ask(question);
        let abort = self.jobs.spawn(async move {
            let began = Instant::now();
            lateness.observe_duration(began.saturating_duration_since(due));
            let answer = asked.await;
            Done::Answer { took: began.elapsed(), answer }
        });
        slot.flying[means as usize] += 1;
        self.taken[means as usize] += 1;
        self.long.push_back((Instant::now() + LONG, abort.id()));
        let id = abort.id();
        self.flights.insert(id, Flight { probe: key, slot: probe.slot, means, placed: true, abort });
    }

    fn done(&mut self, done: Result<(Id, Done), JoinError>) {
        let id = match &done {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let flight = self.flights.remove(&id);
        if let Some(flight) = &flight {
            self.taken[flight.means as usize] -= usize::from(flight.placed);
            if let Some(slot) = self.slots.get_mut(&flight.slot) {
                slot.flying[flight.means as usize] -= 1;
            }
        }
        match (flight, done) {
            (Some(flight), Ok((_, Done::Answer { took, answer }))) => self.answer(&flight, took, answer),
            (Some(flight), Err(error)) if error.is_panic() => {
                tracing::error!(%error, "a probe panicked");
                self.metrics.probes.panics.inc();
                self.answer(&flight, Duration::ZERO, Answer::Unknown("the probe panicked".to_owned()));
            }
            (None, Ok((_, Done::Kept { slot, kept, result }))) => self.kept(slot, kept, result),
            (None, Err(error)) => tracing::error!(%error, "writing probes' results panicked"),
            // A connection of a probe that is no more.
            _ => {}
        }
    }
}

/// The first turn after the one at `due` that has not passed.
fn next_turn(due: Instant, period: Duration, now: Instant) -> Instant {
    let next = due + period;
    let behind = now.saturating_duration_since(next).as_nanos();
    let turns = behind.div_ceil(period.as_nanos().max(1));
    next + period.saturating_mul(u32::try_from(turns).unwrap_or(u32::MAX))
}

/// Where in its period a probe of an instance that ran before the agent begins: anywhere, but always the same.
fn share(instance: &str, kind: Kind, period: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    (instance, kind).hash(&mut hasher);
    period.mul_f64((hasher.finish() >> 11) as f64 / (1u64 << 53) as f64)
}

fn forget(metrics: &Metrics, pod: &PodRef, container: &str) {
    KINDS.iter().for_each(|kind| metrics.probes.forget(pod, container, kind.title()));
}

#[cfg(test)]
mod tests;
