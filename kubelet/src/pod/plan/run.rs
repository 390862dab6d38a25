//! The plan of a pod that lives: its sandbox, its containers in their order, and what is not needed any more. Pure.
//!
//! Order of starts: ephemeral containers as soon as there is a sandbox; init containers one after the other, where a
//! sidecar lets the next one go once it has started; regular containers when all of those are through. Sidecars that were
//! reached are kept running from then on.

use super::end::{garbage, live_targets, spec_grace};
use super::policy::{self, Next};
use super::resize::Need;
use super::{CRASH_LOOP, GARBAGE, Input, Kill, POD, Phase, Plan, RESIZE, Step, Waiting, retry_at, usable};
use crate::api::{self, Container, PodRef};
use crate::event::ContainerList;
use crate::gotext;
use crate::pleg::observed::{Instance, Sandbox, State};
use crate::pod::backoff::{self, Verdict};
use crate::pod::desired::MINIMUM_GRACE;
use crate::pod::translate::{self, resources::is_sidecar};
use crate::probe::ProbeFailure;
use std::collections::BTreeMap;
use std::time::Duration;

/// The plan for a pod that must not end.
pub(super) fn run(input: &Input<'_>) -> Plan {
    let mut planner = Planner::new(input);
    if planner.reset() {
        return planner.finish();
    }
    planner.sandbox();
    planner.containers();
    planner.resize();
    planner.garbage();
    planner.finish()
}

struct Planner<'a> {
    input: &'a Input<'a>,
    /// The sandbox that containers may be started in; `None` when it must be made first.
    current: Option<&'a Sandbox>,
    steps: Vec<Step>,
    waiting: BTreeMap<String, Waiting>,
    wake: Option<i64>,
    resetting: bool,
}

impl<'a> Planner<'a> {
    fn new(input: &'a Input<'a>) -> Self {
        let host = api::spec(&input.desired.pod).host_network.unwrap_or(false);
        let current = input.observed.sandbox().filter(|s| usable(s, host));
        Self { input, current, steps: Vec::new(), waiting: BTreeMap::new(), wake: None, resetting: false }
    }

    /// All containers are to be run again in the sandbox they have (RestartAllContainers): ends and removes every one, the one
    /// that asked for it last, so that whoever sees half of it goes on with the rest. Hooks do not run. A pod that asks
    /// again and again waits like a container that crashes; meanwhile nothing changes. True when that is all there is to do.
    fn reset(&mut self) -> bool {
        let observed = self.input.observed;
        let sources = policy::sources(&self.input.desired.pod, observed);
        let under_way = sources.iter().find(|s| self.input.memory.resetting.as_ref() == Some(&s.id));
        let Some(lead) = under_way.or(sources.first()) else { return false };
        if under_way.is_none() {
            let Some(entry) = self.may_restart(lead) else { return false };
            self.steps.push(Step::Reset { source: lead.id.clone(), name: lead.name.clone(), backoff: entry });
        }
        self.resetting = true;
        let mut live = live_targets(&self.input.desired.pod, observed.containers.iter());
        live.iter_mut().for_each(|t| t.message = Some("killing".to_owned()));
        if !live.is_empty() {
            self.steps.push(Step::Kill { targets: live, grace: Duration::ZERO });
        }
        let asked = |i: &Instance| sources.iter().any(|s| s.id == i.id);
        // Of each container the newest last: an older one must not pass for it.
        let mut removed: Vec<&Instance> = observed.containers.iter().rev().collect();
        removed.sort_by_key(|i| (i.id == lead.id, asked(i)));
        self.steps
            .extend(removed.iter().map(|i| Step::RemoveContainer { id: i.id.clone(), name: i.name.clone() }));
        true
    }

    /// Ends what lives in sandboxes other than the current one; makes a new one when there is none and something is to run.
    fn sandbox(&mut self) {
        let observed = self.input.observed;
        let current = self.current.map(|s| s.id.as_str());
        let stray = observed.containers.iter().filter(|c| Some(c.sandbox_id.as_str()) != current);
        let stray = live_targets(&self.input.desired.pod, stray);
        if !stray.is_empty() {
            self.steps.push(Step::Kill { targets: stray, grace: spec_grace(self.input) });
        }
        let unstopped = observed
            .sandboxes
            .iter()
            .filter(|s| Some(s.id.as_str()) != current && !self.input.memory.stopped.contains(&s.id));
        self.steps.extend(unstopped.map(|s| Step::StopSandbox { id: s.id.clone() }));
        if self.current.is_none() && self.is_needed() {
            let attempt = observed.sandboxes.iter().map(|s| s.attempt + 1).max().unwrap_or(0);
            self.steps.push(Step::CreateSandbox { attempt });
        }
    }

    /// Some regular container has yet to run, or will run again.
    fn is_needed(&self) -> bool {
        let spec = api::spec(&self.input.desired.pod);
        spec.containers.iter().any(|c| match self.input.observed.latest(&c.name) {
            Some(i) if i.state == State::Created => true,
            Some(i) => self.next(ContainerList::Regular, c, i) != Next::Stays,
            None => true,
        })
    }

    /// What follows the end of `i`.
    fn next(&self, list: ContainerList, c: &Container, i: &Instance) -> Next {
        policy::next(&self.input.desired.pod, list, c, i)
    }

    fn containers(&mut self) {
        if self.current.is_none() && !self.is_needed() {
            return;
        }
        let spec = api::spec(&self.input.desired.pod);
        self.ephemeral();
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        if !self.initialized(inits, &spec.containers) {
            return;
        }
        for (index, c) in spec.containers.iter().enumerate() {
            self.container(ContainerList::Regular, index, c);
        }
    }

    /// Each is started once and never again, whatever became of it.
    fn ephemeral(&mut self) {
        let all = api::spec(&self.input.desired.pod).ephemeral_containers.as_deref().unwrap_or_default();
        for (index, e) in all.iter().enumerate() {
            let list = ContainerList::Ephemeral;
            match self.input.observed.latest(&e.name) {
                None if !self.input.memory.restarts.contains_key(&e.name) => {
                    // One that joins the processes of another waits for that one to be there.
                    let target = e.target_container_name.as_deref().filter(|t| !t.is_empty());
                    if target
                        .is_none_or(|t| self.input.observed.latest(t).is_some_and(|i| self.is_current(i)))
                    {
                        self.start(list, index, &e.name, 0, None);
                    }
                }
                // One that was made and could not be started is not tried again.
                Some(i)
                    if i.state == State::Created
                        && self.is_current(i)
                        && !self.input.memory.failed_starts.contains_key(&i.id) =>
                {
                    self.steps.push(Step::Resume { list, index, id: i.id.clone() });
                }
                _ => {}
            }
        }
    }

    /// Plans what init containers need; true when the regular ones may run. The last init container that was ever run in
    /// this sandbox tells how far it came: those before it are through, even if nothing of them is left.
    fn initialized(&mut self, inits: &[Container], regular: &[Container]) -> bool {
        let all_through = regular.iter().any(|c| self.active(c).is_some());
        let reached = if all_through { None } else { inits.iter().rposition(|c| self.active(c).is_some()) };
        let through = if all_through { inits.len() } else { reached.unwrap_or(0) };
        for (index, c) in inits[..through].iter().enumerate().filter(|(_, c)| is_sidecar(c)) {
            self.container(ContainerList::Init, index, c);
        }
        for (index, c) in inits.iter().enumerate().skip(through) {
            let done = |i: &Instance| policy::succeeded(ContainerList::Init, c, i);
            if !is_sidecar(c) && self.active(c).is_some_and(done) {
                continue;
            }
            self.container(ContainerList::Init, index, c);
            if !self.has_started(c) {
                return false;
            }
        }
        true
    }

    /// A sidecar that lets the next init container go.
    fn has_started(&self, c: &Container) -> bool {
        let running = self.active(c).filter(|i| is_sidecar(c) && i.state == State::Running);
        let running = running.filter(|i| !self.input.memory.hook_failed.contains(&i.id));
        running.is_some_and(|i| {
            let probed = self.input.readiness.started(&c.name, &i.id);
            probed.unwrap_or(c.startup_probe.is_none())
        })
    }

    /// The newest instance of `c`, if it is of the current sandbox.
    fn active(&self, c: &Container) -> Option<&'a Instance> {
        let newest = self.input.observed.containers.iter().find(|i| i.name == c.name);
        newest.filter(|i| self.is_current(i))
    }

    fn is_current(&self, i: &Instance) -> bool {
        self.current.is_some_and(|s| s.id == i.sandbox_id)
    }

    /// The next instance's restart count: never less than what logs or earlier instances show.
    fn count(&self, name: &str, latest: Option<&Instance>) -> u32 {
        let known = self.input.memory.restarts.get(name).copied().unwrap_or(0);
        known.max(latest.map_or(0, |i| i.restart_count + 1))
    }

    fn container(&mut self, list: ContainerList, index: usize, c: &Container) {
        let Some(latest) = self.input.observed.latest(&c.name) else {
            return self.start(list, index, &c.name, self.count(&c.name, None), None);
        };
        let next = self.count(&c.name, Some(latest));
        match latest.state {
            State::Running
                if self.is_current(latest) && self.input.memory.hook_failed.contains(&latest.id) =>
            {
                let until = self.input.memory.failed_starts.get(&latest.id);
                match until.and_then(|until| self.input.yet_to_come(*until)) {
                    Some(at) => self.wake_at(at),
                    None => self.kill(latest, "FailedPostStartHook".to_owned()),
                }
            }
            State::Running if self.is_current(latest) => {
                let kept_running = list == ContainerList::Regular || is_sidecar(c);
                if kept_running && latest.hash != translate::container_hash(c) {
                    let message = match list {
                        ContainerList::Init => format!("Init container {} definition changed", c.name),
                        _ => format!("Container {} definition changed, will be restarted", c.name),
                    };
                    self.kill(latest, message);
                    self.start(list, index, &c.name, next, None);
                } else if let Some(failed) = self.input.readiness.failed(&c.name, &latest.id) {
                    self.unhealthy(list, index, c, latest, failed);
                } else if self.input.needs.containers.get(&c.name) == Some(&Need::Restart) {
                    self.kill(latest, format!("Container {} resize requires restart", c.name));
                    self.start(list, index, &c.name, next, None);
                }
            }
            State::Created if self.is_current(latest) && latest.hash == translate::container_hash(c) => {
                let failed = self.input.memory.failed_starts.get(&latest.id);
                match failed.map(|until| self.input.yet_to_come(*until)) {
                    None => self.steps.push(Step::Resume { list, index, id: latest.id.clone() }),
                    // No end was seen from which the crash back-off could count.
                    Some(Some(at)) => self.wake_at(at),
                    Some(None) => self.start(list, index, &c.name, next, None),
                }
            }
            State::Unknown => {
                let what = if list == ContainerList::Init { "Init container" } else { "Container" };
                let message = format!("{what} is in \"unknown\" state, try killing it before restart");
                self.kill(latest, message);
                if self.next(list, c, latest) != Next::Stays {
                    self.start(list, index, &c.name, next, None);
                }
            }
            State::Created => self.start(list, index, &c.name, next, None),
            // What lost its sandbox while running was ended above; what follows is decided as if it had failed.
            State::Running if self.next(list, c, latest) != Next::Stays => {
                self.start(list, index, &c.name, next, None);
            }
            State::Running => {}
            State::Exited => self.restart(list, index, c, latest),
        }
    }

    fn kill(&mut self, i: &Instance, message: String) {
        let target = Kill { id: i.id.clone(), name: i.name.clone(), message: Some(message), turn: 0 };
        self.steps.push(Step::Kill { targets: vec![target], grace: spec_grace(self.input) });
    }

    /// Ends a container whose probe failed, and starts it again where its policy restarts what failed. As upstream's, the
    /// back-off looks at the end before this one, so that the first two restarts are immediate.
    fn unhealthy(
        &mut self,
        list: ContainerList,
        index: usize,
        c: &Container,
        latest: &Instance,
        failed: &ProbeFailure,
    ) {
        let restarts = self.next(list, c, latest) != Next::Stays;
        let end = if restarts && list == ContainerList::Regular { ", will be restarted" } else { "" };
        let message = Some(format!("{}{end}", failed.message));
        let target = Kill { id: latest.id.clone(), name: c.name.clone(), message, turn: 0 };
        let grace = failed.grace.unwrap_or_else(|| spec_grace(self.input)).max(MINIMUM_GRACE);
        self.steps.push(Step::Kill { targets: vec![target], grace });
        if !restarts {
            return;
        }
        let next = self.count(&c.name, Some(latest));
        let before = self.input.observed.instances(&c.name).find(|i| i.state == State::Exited);
        match before.map(|b| self.input.backoff(b)) {
            None => self.start(list, index, &c.name, next, None),
            Some(Verdict::Start(entry)) => self.start(list, index, &c.name, next, Some(entry)),
            // The plan that sees its end tells of the wait.
            Some(Verdict::Wait { .. }) => {}
        }
    }

    fn restart(&mut self, list: ContainerList, index: usize, c: &Container, ended: &Instance) {
        // An init container is run again in a new sandbox even if it had succeeded in the old one.
        let again = list == ContainerList::Init && !self.is_current(ended);
        if !again && self.next(list, c, ended) == Next::Stays {
            return;
        }
        if let Some(entry) = self.may_restart(ended) {
            self.start(list, index, &c.name, self.count(&c.name, Some(ended)), Some(entry));
        }
    }

    /// The crash back-off allows another run now; otherwise it is said that, and until when, the container waits.
    fn may_restart(&mut self, ended: &Instance) -> Option<backoff::Entry> {
        match self.input.backoff(ended) {
            Verdict::Start(entry) => Some(entry),
            Verdict::Wait { until, wait } => {
                let (name, pod) = (&ended.name, PodRef::of(&self.input.desired.pod));
                let message = format!(
                    "back-off {} restarting failed container={name} pod={pod}",
                    gotext::duration(wait)
                );
                self.waiting.insert(name.clone(), Waiting { reason: CRASH_LOOP.to_owned(), message });
                self.wake_at(until);
                None
            }
        }
    }

    fn start(
        &mut self,
        list: ContainerList,
        index: usize,
        name: &str,
        restart_count: u32,
        backoff: Option<backoff::Entry>,
    ) {
        if let Some(waiting) = self.input.memory.waiting.get(name)
            && let Some(at) = retry_at(self.input, name)
        {
            self.waiting.insert(name.to_owned(), waiting.clone());
            self.wake_at(at);
            return;
        }
        self.steps.push(Step::Start { list, index, restart_count, backoff });
    }

    /// What runs on gets its new resources when what must be ended for them has ended, and before anything is started.
    fn resize(&mut self) {
        let needs = self.input.needs;
        let update = |need: &Need| matches!(need, Need::Update { .. });
        if self.current.is_none() || !(needs.pod || needs.containers.values().any(update)) {
            return;
        }
        if let Some(at) = retry_at(self.input, RESIZE) {
            self.wake_at(at);
            return;
        }
        let starts = |s: &Step| matches!(s, Step::Start { .. } | Step::Resume { .. });
        let at = self.steps.iter().position(starts).unwrap_or(self.steps.len());
        self.steps.insert(at, Step::Resize);
    }

    fn garbage(&mut self) {
        let (steps, later) = garbage(self.input, self.current);
        if let Some(at) = later {
            self.wake_at(at);
        }
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
        Plan {
            phase: if all_seen { Phase::Running } else { Phase::Starting },
            steps: self.steps,
            waiting: self.waiting,
            wake: self.wake,
            outcome: None,
            resetting: self.resetting,
        }
    }
}
