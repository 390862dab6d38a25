//! What becomes of the agenda after a panic: a defect in one probe must not end the probing of all the others.
//!
//! The task catches what panics in a turn of its loop and puts everything back in its place. Nothing here is needed
//! while nothing panics.

use super::{At, Means, Slot, Task, next_turn};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use tokio::time::Instant;

impl Task {
    /// Works on a pod. It is in the table again afterwards, also when the work panicked.
    pub(super) fn on_slot(&mut self, id: u64, work: impl FnOnce(&mut Self, &mut Slot)) {
        let Some(mut slot) = self.slots.remove(&id) else { return };
        let done = catch_unwind(AssertUnwindSafe(|| work(self, &mut slot)));
        self.slots.insert(id, slot);
        if let Err(panic) = done {
            resume_unwind(panic);
        }
    }

    /// One turn of the loop; a panic in it is told and costs the turn. True when it came to its end.
    pub(super) fn guarded(&mut self, turn: impl FnOnce(&mut Self)) -> bool {
        if catch_unwind(AssertUnwindSafe(|| turn(self))).is_ok() {
            return true;
        }
        tracing::error!("the task of all probes panicked; it goes on");
        self.metrics.probes.panics.inc();
        self.repair();
        false
    }

    /// Counts what is under way anew, aims at what runs, and gives every probe that is nowhere its next turn.
    fn repair(&mut self) {
        self.taken = Means::ALL.map(|m| self.flights.values().filter(|f| f.placed && f.means == m).count());
        let ids: Vec<u64> = self.slots.keys().copied().collect();
        for id in ids {
            if let Some(slot) = self.slots.get_mut(&id) {
                let of = |m| self.flights.values().filter(|f| f.slot == id && f.means == m).count();
                slot.flying = Means::ALL.map(of);
            }
            // What panicked may do so again: that pod is left as it is.
            if catch_unwind(AssertUnwindSafe(|| self.take_aim(id))).is_err() {
                tracing::error!("a pod cannot be probed");
            }
        }
        let watched = self.slots.values().flat_map(|s| &s.watched);
        let wanted: HashSet<u64> = watched.flat_map(|w| w.probes).flatten().collect();
        let stray: Vec<u64> = self.probes.keys().copied().filter(|key| !wanted.contains(key)).collect();
        stray.into_iter().for_each(|key| self.drop_probe(key));
        let now = Instant::now();
        for (key, probe) in &mut self.probes {
            let waiting = &self.waiting[probe.means as usize];
            let there = match probe.state {
                At::Rest => self.agenda.contains(&(probe.due, *key)),
                At::Waiting => waiting.contains(key),
                At::Flying => self.flights.values().any(|f| f.probe == *key),
            };
            if !there {
                probe.state = At::Rest;
                probe.due = next_turn(probe.due, probe.timing.period, now);
                self.agenda.insert((probe.due, *key));
            }
        }
    }
}
