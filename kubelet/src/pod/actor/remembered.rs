//! What an actor remembers between plans: failures and when to try again, what was removed, how often containers ran; and
//! what an agent that remembers nothing can find out of that.

use super::Actor;
use crate::api::{self, Pod, PodRef};
use crate::log;
use crate::pleg::observed::{Instance, Observed, State};
use crate::pod::backoff;
use crate::pod::desired::Desired;
use crate::pod::plan::{self, Memory};
use crate::pod::rooms::Rooms;
use crate::pod::steps::Failure;
use crate::pod::translate;
use crate::status::Removed;
use jiff::Timestamp;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Waits after a failed step: first and longest. Upstream's longest is the same.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

impl Actor {
    /// Where an earlier incarnation was killed while it ended and removed all containers to run them again, that goes on. For
    /// the back-off it counts as if this agent had begun it.
    pub(super) fn resume_reset(&mut self, pod: &Pod) {
        let Some(source) = plan::begun_reset(pod, &self.seen, &self.memory.restarts) else { return };
        let entry = backoff::restarted(source, self.rooms.clock.nanos(), self.rooms.backoff_cap);
        self.memory.resetting = Some(source.id.clone());
        self.memory.backoff.insert(source.name.clone(), entry);
    }

    /// The log that goes with the instance when it is removed: none that another one writes to as well, and none of what is
    /// removed only to be run again.
    pub(super) fn own_log(&self, id: &str) -> Option<PathBuf> {
        let gone = self.seen.containers.iter().find(|i| i.id == id)?;
        let shared = self.seen.containers.iter().any(|i| i.id != id && i.log_path == gone.log_path);
        let kept = shared || gone.log_path.is_empty() || self.memory.resetting.is_some();
        (!kept).then(|| gone.log_path.clone().into())
    }

    /// The end of what was removed is still told.
    pub(super) fn remember_removed(&mut self, id: &str, name: &str) {
        let Some(gone) = self.seen.containers.iter().find(|i| i.id == id) else { return };
        let newer =
            self.removed.get(name).is_none_or(|known| known.instance.restart_count <= gone.restart_count);
        if newer {
            let reset = self.memory.resetting.is_some();
            self.removed.insert(name.to_owned(), Removed { instance: gone.clone(), reset });
        }
    }

    /// Takes down how often each container was run, for when its instances are gone, and since when their ends are known.
    pub(super) fn count_restarts(&mut self) {
        for i in &self.seen.containers {
            if i.state == State::Exited && !self.memory.ends.contains_key(&i.id) {
                self.memory.ends.insert(i.id.clone(), Instant::now());
            }
            let next = i.restart_count.saturating_add(1);
            match self.memory.restarts.get_mut(&i.name) {
                Some(known) => *known = next.max(*known),
                None => drop(self.memory.restarts.insert(i.name.clone(), next)),
            }
        }
    }

    pub(super) fn remember_failure(&mut self, name: &str, failure: Failure) {
        if failure.interrupted {
            return;
        }
        self.wants.put(name, &failure);
        let failures = self.memory.failures.entry(name.to_owned()).or_default();
        let wait = RETRY.0.saturating_mul(1 << (*failures).min(8)).min(RETRY.1);
        *failures += 1;
        let at = Instant::now() + wait;
        if let Some(waiting) = failure.waiting {
            self.memory.waiting.insert(name.to_owned(), *waiting);
        }
        if let Some(id) = failure.not_started.as_ref().filter(|_| failure.still_runs) {
            self.memory.hook_failed.insert(id.clone());
        }
        match failure.not_started {
            // Once it is seen to have ended, restart policy and crash back-off decide when to try again.
            Some(id) => drop(self.memory.failed_starts.insert(id, at)),
            None => drop(self.memory.retry.insert(name.to_owned(), failure.retry_at.unwrap_or(at))),
        }
    }

    /// What was tried of a container says nothing about one of another definition.
    pub(super) fn forget_changed(&mut self, before: &Pod, now: &Pod) {
        let old: HashMap<&str, String> =
            containers(before).map(|c| (c.name.as_str(), translate::container_hash(c))).collect();
        for c in containers(now) {
            if old.get(c.name.as_str()).is_some_and(|hash| *hash != translate::container_hash(c)) {
                self.forget_failure(&c.name);
                self.memory.backoff.remove(&c.name);
                self.told.remove(&c.name);
            }
        }
    }

    pub(super) fn forget_failure(&mut self, name: &str) {
        self.wants.remove(name);
        self.memory.failures.remove(name);
        self.memory.retry.remove(name);
        self.memory.waiting.remove(name);
    }

    /// Lets go of what the look has overtaken: a sandbox that is seen needs no announcement, a container that runs (its
    /// start only seemed to fail) or ended for good is not waiting, and what is gone need not be remembered.
    pub(super) fn reconcile_memory(&mut self) {
        let seen = self.seen.clone();
        let pod = self.desired.borrow().pod.clone();
        self.steps.sandbox_made = false;
        self.memory.stopped.retain(|id| seen.sandboxes.iter().any(|s| s.id == *id));
        self.memory.failed_starts.retain(|id, _| seen.containers.iter().any(|c| c.id == *id));
        self.memory.ends.retain(|id, _| seen.containers.iter().any(|c| c.id == *id));
        self.memory.hook_failed.retain(|id| seen.containers.iter().any(|c| c.id == *id));
        self.memory.resetting.take_if(|source| !seen.containers.iter().any(|c| c.id == *source));
        let settled = |name: &str| {
            let runs = |i: &Instance| i.state == State::Running && !self.memory.hook_failed.contains(&i.id);
            seen.latest(name).is_some_and(|i| runs(i) || plan::ended_for_good(&pod, i))
        };
        let settled: Vec<String> = self.memory.waiting.keys().filter(|name| settled(name)).cloned().collect();
        for name in settled {
            self.forget_failure(&name);
        }
    }
}

/// Those that may be restarted.
fn containers(pod: &Pod) -> impl Iterator<Item = &api::Container> {
    let spec = api::spec(pod);
    spec.containers.iter().chain(spec.init_containers.iter().flatten())
}

/// When a pod that was found running had been taken on, to the second.
pub(super) fn adoption_time(seen: &Observed) -> Option<Timestamp> {
    Timestamp::from_second(seen.began()?.div_euclid(1_000_000_000)).ok()
}

/// How often the pod's containers were run, by the logs that an earlier incarnation may have left.
pub(super) async fn logged(rooms: &Rooms, pod: Arc<Pod>) -> HashMap<String, u32> {
    let (root, of) = (rooms.facts.pod_logs_dir.clone(), PodRef::of(&pod));
    if !log::has_logs(&root, &of) {
        return HashMap::new();
    }
    let counted = tokio::task::spawn_blocking(move || {
        let spec = api::spec(&pod);
        let inits = spec.init_containers.iter().flatten().map(|c| c.name.as_str());
        let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| c.name.as_str());
        let names = spec.containers.iter().map(|c| c.name.as_str()).chain(inits).chain(ephemeral);
        log::next_restarts(&root, &of, names)
    });
    counted.await.unwrap_or_else(|error| {
        tracing::error!(%error, "counting a pod's logs panicked");
        HashMap::new()
    })
}

/// What can be known of the past of a pod that was found in the runtime.
pub(super) fn adopt(desired: &Desired, seen: &Observed, cap: Duration) -> Memory {
    let mut memory = Memory::default();
    for c in containers(&desired.pod) {
        // The crashes of another definition say nothing about this one.
        let same = |i: &&Instance| i.hash == translate::container_hash(c);
        let Some(latest) = seen.latest(&c.name).filter(same) else { continue };
        if let Some(entry) = backoff::recover(latest, cap) {
            memory.backoff.insert(c.name.clone(), entry);
        }
    }
    memory
}
