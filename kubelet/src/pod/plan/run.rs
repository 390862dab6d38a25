//! The plan of a pod that lives: its sandbox, its containers in their order, and what is not needed any more. Pure.

use super::end::{garbage, live_targets, spec_grace};
use super::policy::Policy;
use super::{CRASH_LOOP, GARBAGE, Input, Kill, POD, Phase, Plan, Step, Waiting, retry_at, usable};
use crate::api::{self, Container, PodRef};
use crate::event::ContainerList;
use crate::pleg::observed::{Instance, Sandbox, State};
use crate::pod::backoff::{self, Verdict};
use crate::pod::desired::MINIMUM_GRACE;
use crate::pod::translate;
use crate::probe::ProbeFailure;
use std::collections::BTreeMap;
use std::time::Duration;

/// The plan for a pod that must not end.
pub(super) fn run(input: &Input<'_>) -> Plan {
    let mut planner = Planner::new(input);
    planner.sandbox();
    planner.containers();
    planner.garbage();
    planner.finish()
}

struct Planner<'a> {
    input: &'a Input<'a>,
    policy: Policy,
    /// The sandbox that containers may be started in; `None` when it must be made first.
    current: Option<&'a Sandbox>,
    steps: Vec<Step>,
    waiting: BTreeMap<String, Waiting>,
    wake: Option<i64>,
}

impl<'a> Planner<'a> {
    fn new(input: &'a Input<'a>) -> Self {
        let host = api::spec(&input.desired.pod).host_network.unwrap_or(false);
        let current = input.observed.sandbox().filter(|s| usable(s, host));
        Self {
            input,
            policy: Policy::of(&input.desired.pod),
            current,
            steps: Vec::new(),
            waiting: BTreeMap::new(),
            wake: None,
        }
    }

    /// Ends what lives in sandboxes other than the current one; makes a new one when there is none.
    fn sandbox(&mut self) {
        let observed = self.input.observed;
        let current = self.current.map(|s| s.id.as_str());
        let stray = {
            let old = observed.containers.iter().filter(|c| Some(c.sandbox_id.as_str()) != current);
            live_targets(&self.input.desired.pod, old)
        };
        if !stray.is_empty() {
            self.steps.push(Step::Kill { targets: stray, grace: spec_grace(self.input) });
        }
        let unstopped = observed
            .sandboxes
            .iter()
            .filter(|s| Some(s.id.as_str()) != current && !self.input.memory.stopped.contains(&s.id));
        self.steps.extend(unstopped.map(|s| Step::StopSandbox { id: s.id.clone() }));
        if self.current.is_none() {
            let attempt = observed.sandboxes.iter().map(|s| s.attempt + 1).max().unwrap_or(0);
            self.steps.push(Step::CreateSandbox { attempt });
        }
    }

    fn containers(&mut self) {
        let spec = api::spec(&self.input.desired.pod);
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        if !self.initialized(inits, &spec.containers) {
            return;
        }
        for (index, c) in spec.containers.iter().enumerate() {
            self.container(ContainerList::Regular, index, c);
        }
    }

    /// Plans the next init container; true when all are done in this sandbox.
    fn initialized(&mut self, inits: &[Container], regular: &[Container]) -> bool {
        if regular.iter().any(|c| self.active(c).is_some()) {
            return true;
        }
        for (index, c) in inits.iter().enumerate() {
            if self.active(c).is_some_and(|i| i.state == State::Exited && i.exit_code == 0) {
                continue;
            }
            self.container(ContainerList::Init, index, c);
            return false;
        }
        true
    }

    /// The newest instance of `c`, if it is of the current sandbox.
    fn active(&self, c: &Container) -> Option<&'a Instance> {
        let current = self.current?;
        let newest = self.input.observed.containers.iter().find(|i| i.name == c.name);
        newest.filter(|i| i.sandbox_id == current.id)
    }

    fn container(&mut self, list: ContainerList, index: usize, c: &Container) {
        let Some(latest) = self.input.observed.latest(&c.name) else {
            return self.start(list, index, c, 0, None);
        };
        let next = latest.restart_count + 1;
        match latest.state {
            State::Running if Some(&latest.sandbox_id) == self.current.map(|s| &s.id) => {
                if list == ContainerList::Regular && latest.hash != translate::container_hash(c) {
                    let message = format!("Container {} definition changed, will be restarted", c.name);
                    let target =
                        Kill { id: latest.id.clone(), name: c.name.clone(), message: Some(message), turn: 0 };
                    self.steps.push(Step::Kill { targets: vec![target], grace: spec_grace(self.input) });
                    self.start(list, index, c, next, None);
                } else if let Some(failed) = self.input.readiness.failed(&c.name, &latest.id) {
                    self.unhealthy(list, index, c, latest, failed);
                }
            }
            State::Created
                if Some(&latest.sandbox_id) == self.current.map(|s| &s.id)
                    && latest.hash == translate::container_hash(c) =>
            {
                match self.input.memory.failed_starts.get(&latest.id) {
                    None => self.steps.push(Step::Resume { list, index, id: latest.id.clone() }),
                    // No end was seen from which the crash back-off could count.
                    Some(until) if *until > self.input.now => self.wake_at(*until),
                    Some(_) => self.start(list, index, c, next, None),
                }
            }
            State::Unknown => {
                let target = Kill {
                    id: latest.id.clone(),
                    name: c.name.clone(),
                    message: Some(format!(
                        "Container is in unknown state, try killing it before restart {}",
                        c.name
                    )),
                    turn: 0,
                };
                self.steps.push(Step::Kill { targets: vec![target], grace: spec_grace(self.input) });
                if self.policy != Policy::Never {
                    self.start(list, index, c, next, None);
                }
            }
            State::Created => self.start(list, index, c, next, None),
            // What lost its sandbox while running was ended above; its policy decides as if it had failed.
            State::Running if self.policy != Policy::Never => self.start(list, index, c, next, None),
            State::Running => {}
            State::Exited => self.restart(list, index, c, latest),
        }
    }

    /// Ends a container whose probe failed, and starts it again where the pod's policy restarts what failed. As
    /// upstream's, the back-off looks at the end before this one, so that the first two restarts are immediate.
    fn unhealthy(
        &mut self,
        list: ContainerList,
        index: usize,
        c: &Container,
        latest: &Instance,
        failed: &ProbeFailure,
    ) {
        let restarts = self.policy != Policy::Never;
        let end = if restarts { ", will be restarted" } else { "" };
        let message = Some(format!("{}{end}", failed.message));
        let target = Kill { id: latest.id.clone(), name: c.name.clone(), message, turn: 0 };
        let grace = failed.grace.unwrap_or_else(|| spec_grace(self.input)).max(MINIMUM_GRACE);
        self.steps.push(Step::Kill { targets: vec![target], grace });
        if !restarts {
            return;
        }
        let next = latest.restart_count + 1;
        let before = self.input.observed.instances(&c.name).find(|i| i.state == State::Exited);
        let entry = self.input.memory.backoff.get(&c.name).copied();
        let verdict =
            before.map(|b| backoff::decide(entry, b.finished_at, self.input.now, self.input.backoff_cap));
        match verdict {
            None => self.start(list, index, c, next, None),
            Some(Verdict::Start(entry)) => self.start(list, index, c, next, Some(entry)),
            // The plan that sees its end tells of the wait.
            Some(Verdict::Wait { .. }) => {}
        }
    }

    fn restart(&mut self, list: ContainerList, index: usize, c: &Container, ended: &Instance) {
        // An init container is run again in a new sandbox even if it had succeeded in the old one.
        let again = list == ContainerList::Init && self.active(c).is_none();
        if !again && !self.policy.restarts(ended) {
            return;
        }
        let next = ended.restart_count + 1;
        let entry = self.input.memory.backoff.get(&c.name).copied();
        match backoff::decide(entry, ended.finished_at, self.input.now, self.input.backoff_cap) {
            Verdict::Start(entry) => self.start(list, index, c, next, Some(entry)),
            Verdict::Wait { until, wait } => {
                let pod = PodRef::of(&self.input.desired.pod);
                let message = format!(
                    "back-off {} restarting failed container={} pod={pod}",
                    go_duration(wait),
                    c.name
                );
                self.waiting.insert(c.name.clone(), Waiting { reason: CRASH_LOOP.to_owned(), message });
                self.wake_at(until);
            }
        }
    }

    fn start(
        &mut self,
        list: ContainerList,
        index: usize,
        c: &Container,
        restart_count: u32,
        backoff: Option<backoff::Entry>,
    ) {
        if let Some(waiting) = self.input.memory.waiting.get(&c.name)
            && let Some(at) = retry_at(self.input, &c.name)
        {
            self.waiting.insert(c.name.clone(), waiting.clone());
            self.wake_at(at);
            return;
        }
        self.steps.push(Step::Start { list, index, restart_count, backoff });
    }

    fn garbage(&mut self) {
        let steps = garbage(self.input.observed, self.current, &self.input.memory.stopped);
        match retry_at(self.input, GARBAGE) {
            Some(at) if !steps.is_empty() => self.wake_at(at),
            _ => self.steps.extend(steps),
        }
    }

    fn wake_at(&mut self, at: i64) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }

    fn finish(mut self) -> Plan {
        let spec = api::spec(&self.input.desired.pod);
        let all_seen = spec.containers.iter().all(|c| self.input.observed.latest(&c.name).is_some());
        for (name, waiting) in &self.input.memory.waiting {
            self.waiting.entry(name.clone()).or_insert_with(|| waiting.clone());
        }
        // What failed for the pod as a whole keeps everything else waiting: each step relies on those before it.
        if !self.steps.is_empty()
            && let Some(at) = retry_at(self.input, POD)
        {
            self.steps.clear();
            self.wake_at(at);
        }
        let phase = if all_seen { Phase::Running } else { Phase::Starting };
        Plan { phase, steps: self.steps, waiting: self.waiting, wake: self.wake, outcome: None }
    }
}

/// Go's text of a duration of whole seconds: `10s`, `2m40s`, `5m0s`.
fn go_duration(d: Duration) -> String {
    let s = d.as_secs();
    if s < 60 { format!("{s}s") } else { format!("{}m{}s", s / 60, s % 60) }
}
