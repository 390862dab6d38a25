//! What answers amount to: the rows they stand in, what follows for the instance, whom it is told, and what is kept of it.

use super::super::keep::{self, Kept};
use super::super::level;
use super::super::prober::Answer;
use super::super::readiness::{Kind, ProbeFailure, Readiness};
use super::super::spec::{Targets, container, probe_of};
use super::{At, Done, Flight, Means, Slot, Task, Watched, next_turn};
use crate::api::{self, PodRef};
use crate::event::{ContainerList, Event, Kind as EventKind, Recorder, container_path};
use crate::metrics::Metrics;
use std::io;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

impl Task {
    pub(super) fn answer(&mut self, flight: &Flight, took: Duration, answer: Answer) {
        self.on_slot(flight.slot, |task, slot| task.answer_of(slot, flight, took, &answer));
    }

    fn answer_of(&mut self, slot: &mut Slot, flight: &Flight, took: Duration, answer: &Answer) {
        // One whose container has gone says nothing any more.
        let Some(probe) = self.probes.get_mut(&flight.probe) else { return };
        let kind = probe.kind;
        let verdict = match answer {
            Answer::Success | Answer::Warning(_) => probe.row.add(true, &probe.timing),
            Answer::Failure(_) => probe.row.add(false, &probe.timing),
            Answer::Unknown(_) => None,
        };
        let latest = next_turn(probe.due, probe.timing.period, Instant::now());
        // Only now: rows of answers are as long as they must be, and a moved turn would shorten one that has begun.
        let moves = probe.means == Means::Command && !probe.placed && verdict.is_some();
        let instance = probe.instance.clone();
        let due = if moves { self.place(flight.probe, latest) } else { latest };
        if let Some(probe) = self.probes.get_mut(&flight.probe) {
            (probe.state, probe.due) = (At::Rest, due);
            probe.placed |= moves;
            self.agenda.insert((due, flight.probe));
        }
        let watched = slot.watched.iter_mut().find(|w| w.known.instance == instance);
        if let (Some(watched), Some(targets)) = (watched, &slot.targets) {
            tell(&self.recorder, &slot.pod, watched, kind, answer);
            measure(&self.metrics, &slot.pod, &watched.name, kind, took, answer);
            if let Some(good) = verdict {
                conclude(watched, targets, kind, good);
            }
        }
        self.arm(flight.slot, slot);
        self.publish(flight.slot, slot);
    }

    /// Where among all commands the turns of this one come from now on: not after `latest`.
    fn place(&self, key: u64, latest: Instant) -> Instant {
        let Some(probe) = self.probes.get(&key) else { return latest };
        let others = self.probes.iter().filter(|(other, p)| **other != key && p.means == Means::Command);
        let others = others.map(|(_, p)| (p.due, p.timing.period));
        level::place(Instant::now(), latest, probe.timing.period, others)
    }

    /// Gives the pod's actor what changed, and the file what must outlive the agent.
    pub(super) fn publish(&mut self, id: u64, slot: &mut Slot) {
        let now = Readiness {
            containers: slot.watched.iter().map(|w| (w.name.clone(), w.known.clone())).collect(),
        };
        slot.readiness.send_if_modified(|last| {
            let changed = **last != now;
            if changed {
                *last = Arc::new(now);
            }
            changed
        });
        self.keep(id, slot);
    }

    /// Writes what is worth keeping unless the file has it or is being written.
    fn keep(&mut self, id: u64, slot: &mut Slot) {
        let Some(targets) = &slot.targets else { return };
        let mut worth = Kept::default();
        for watched in &slot.watched {
            let Some(c) = container(&targets.pod, watched.list, watched.index) else { continue };
            let known = &watched.known;
            if (known.started && c.startup_probe.is_some()) || (known.ready && c.readiness_probe.is_some()) {
                worth.add(&watched.name, known);
            }
        }
        // What runs no more needs no rewriting: instances have ids of their own, and the file goes with the pod.
        if slot.writing || targets.running.is_empty() || slot.kept.as_ref() == Some(&worth) {
            return;
        }
        slot.writing = true;
        let dir = slot.dir.clone();
        self.jobs.spawn_blocking(move || {
            let written = catch_unwind(|| keep::write(&dir, &worth));
            let result = written.unwrap_or_else(|_| Err(io::Error::other("writing panicked")));
            Done::Kept { slot: id, kept: worth, result }
        });
    }

    pub(super) fn kept(&mut self, id: u64, kept: Kept, result: io::Result<()>) {
        self.on_slot(id, |task, slot| {
            slot.writing = false;
            // What cannot be written is tried again when there is something new to write.
            slot.kept = Some(kept);
            match result {
                Ok(()) => task.keep(id, slot),
                Err(error) => {
                    tracing::warn!(pod = %slot.pod, dir = %slot.dir.display(), %error,
                        "cannot keep the probes' results: a restarted agent will not know them");
                }
            }
        });
    }
}

/// What the probe's result means for the instance.
fn conclude(watched: &mut Watched, targets: &Targets, kind: Kind, good: bool) {
    let Some(c) = container(&targets.pod, watched.list, watched.index) else { return };
    match (kind, good) {
        (Kind::Startup, true) => {
            watched.known.started = true;
            watched.known.ready = c.readiness_probe.is_none();
        }
        (Kind::Liveness, true) => {}
        (Kind::Readiness, ready) => watched.known.ready = ready,
        (Kind::Startup | Kind::Liveness, false) => {
            let of = if watched.list == ContainerList::Init { "Init container" } else { "Container" };
            let grace = probe_of(c, kind).and_then(|p| p.termination_grace_period_seconds);
            watched.known.failed = Some(ProbeFailure {
                kind,
                message: format!("{of} {} failed {kind} probe", watched.name),
                grace: grace.filter(|s| *s >= 0).map(api::grace),
            });
        }
    }
}

fn tell(recorder: &Recorder, pod: &PodRef, watched: &Watched, kind: Kind, answer: &Answer) {
    let title = kind.title();
    let (reason, message) = match answer {
        Answer::Success => return,
        Answer::Warning(text) => ("ProbeWarning", format!("{title} probe warning: {text}")),
        Answer::Failure(text) => ("Unhealthy", format!("{title} probe failed: {text}")),
        Answer::Unknown(text) => {
            ("Unhealthy", format!("{title} probe errored and resulted in unknown state: {text}"))
        }
    };
    recorder.record(Event {
        pod: Some(pod.clone()),
        field_path: Some(container_path(watched.list, &watched.name)),
        kind: EventKind::Warning,
        reason: reason.into(),
        message,
        annotations: Default::default(),
    });
}

fn measure(metrics: &Metrics, pod: &PodRef, name: &str, kind: Kind, took: Duration, answer: &Answer) {
    let title = kind.title();
    let result = match answer {
        Answer::Success | Answer::Warning(_) => "successful",
        Answer::Failure(_) => "failed",
        Answer::Unknown(_) => "unknown",
    };
    let labels = [name, &*pod.namespace, &*pod.name, pod.uid.as_str(), title, result];
    metrics.probes.total.with(labels).inc();
    if result == "successful" {
        metrics.probes.duration.with([name, &*pod.namespace, &*pod.name, title]).observe_duration(took);
    }
}
