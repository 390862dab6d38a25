//! Properties: a small world in which plans are carried out or fail, containers end, vanish and change, sandboxes die and the
//! agent forgets; whatever happens, in whatever pod, what is promised holds. `PROPTEST_CASES` raises the number of cases.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Happening {
    /// The nth running container ends with this code.
    End(usize, i32),
    /// The nth container is removed behind the agent's back.
    Vanish(usize),
    /// The sandbox dies.
    SandboxDies,
    /// Time passes.
    Later(u32),
    /// The next steps fail where a bit is set.
    Fail(u8),
    /// The agent is killed: it forgets everything.
    Forget,
    /// The same, in the middle of the next steps: behind so many.
    Die(u8),
    /// The nth container of the pod gets another image.
    Change(usize),
    /// The pod gains an ephemeral container.
    Debug,
    /// The pod must go.
    Stop,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        8 => (0usize..8, prop_oneof![Just(0), Just(1), Just(88), Just(42)])
            .prop_map(|(n, code)| Happening::End(n, code)),
        1 => (0usize..8).prop_map(Happening::Vanish),
        1 => Just(Happening::SandboxDies),
        4 => (1u32..700).prop_map(Happening::Later),
        2 => any::<u8>().prop_map(Happening::Fail),
        1 => Just(Happening::Forget),
        2 => (1u8..8).prop_map(Happening::Die),
        1 => (0usize..8).prop_map(Happening::Change),
        1 => Just(Happening::Debug),
        1 => Just(Happening::Stop),
    ]
}

/// `restartPolicy` and `restartPolicyRules` of a container.
fn of_container() -> impl Strategy<Value = serde_json::Value> {
    let rules = |action: &'static str, code: i32| {
        json!({"restartPolicy": "Never", "restartPolicyRules":
            [{"action": action, "exitCodes": {"operator": "In", "values": [code]}}]})
    };
    prop_oneof![
        4 => Just(json!({})),
        1 => Just(json!({"restartPolicy": "Never"})),
        1 => Just(json!({"restartPolicy": "OnFailure"})),
        1 => Just(rules("Restart", 42)),
        1 => Just(rules("RestartAllContainers", 88)),
    ]
}

fn any_pod() -> impl Strategy<Value = Pod> {
    let policy = prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")];
    let init = prop_oneof![2 => Just(json!({"restartPolicy": "Always"})), 3 => of_container()];
    let inits = proptest::collection::vec(init, 0..4);
    let regular = proptest::collection::vec(of_container(), 1..4);
    (policy, inits, regular).prop_map(|(policy, inits, regular)| {
        let named = |prefix: &str, list: Vec<serde_json::Value>| {
            let one = |(n, mut c): (usize, serde_json::Value)| {
                c["name"] = json!(format!("{prefix}{n}"));
                c["image"] = json!("i");
                c
            };
            list.into_iter().enumerate().map(one).collect::<Vec<_>>()
        };
        serde_json::from_value(json!({
            "metadata": {"uid": "u", "name": "p", "namespace": "n"},
            "spec": {"restartPolicy": policy, "initContainers": named("i", inits),
                     "containers": named("c", regular), "terminationGracePeriodSeconds": 7},
        }))
        .unwrap()
    })
}

struct Sim {
    desired: Desired,
    seen: Observed,
    memory: Memory,
    cgroup: bool,
    now: i64,
    births: i64,
    /// Bits of the steps to come: which fail.
    failing: u8,
    /// After so many steps the agent forgets everything.
    dies: Option<u8>,
    /// All are being ended and removed to be run again, because this instance asked for it, and some have been.
    half: Option<String>,
    /// It was said that the pod ends.
    ending: bool,
    /// Highest restart count by container name: what logs would show.
    counts: HashMap<String, u32>,
    kept: Kept,
    /// Init containers that were through in the sandbox, by its id and their name.
    through: HashSet<(String, String)>,
}

impl Sim {
    fn new(pod: Pod) -> Self {
        Self {
            desired: desired(pod),
            seen: Observed::default(),
            memory: Memory::default(),
            cgroup: true,
            now: NOW,
            births: 0,
            failing: 0,
            dies: None,
            half: None,
            ending: false,
            counts: HashMap::new(),
            kept: Kept::default(),
            through: HashSet::new(),
        }
    }

    /// A plan as the actor makes it: with what it takes down before and after.
    fn plan(&mut self) -> Plan {
        for i in &self.seen.containers {
            let known = self.memory.restarts.entry(i.name.clone()).or_default();
            *known = (*known).max(i.restart_count + 1);
        }
        let readiness = Readiness::default();
        let plan = plan(&Input {
            desired: &self.desired,
            observed: &self.seen,
            memory: &self.memory,
            readiness: &readiness,
            cgroup: self.cgroup,
            now: self.now,
            instant: instant(self.now),
            backoff_cap: backoff::DEFAULT_CAP,
            kept: &self.kept,
            needs: &Default::default(),
        });
        self.memory.outcome = self.memory.outcome.or(plan.outcome);
        if self.ending {
            assert!(plan.phase >= Phase::Terminating, "it goes on after its end began: {plan:?}");
        }
        self.ending |= plan.phase >= Phase::Terminating;
        plan
    }

    /// Plans and acts until nothing is left to do now.
    fn settle(&mut self) -> Plan {
        for _ in 0..60 {
            let plan = self.plan();
            if plan.steps.is_empty() || plan.phase == Phase::Gone {
                return plan;
            }
            self.carry_out(plan);
            let resetting = self.memory.resetting.take();
            self.memory.resetting = resetting.filter(|id| self.seen.containers.iter().any(|c| c.id == *id));
        }
        panic!("no fixed point: {:?}", self.plan());
    }

    fn carry_out(&mut self, plan: Plan) {
        for step in plan.steps {
            self.dies = match self.dies {
                Some(0) => {
                    self.dies = None;
                    return self.forget();
                }
                n => n.map(|n| n - 1),
            };
            let fails = self.failing & 1 == 1;
            self.failing >>= 1;
            match (&step, fails) {
                // Another container's start is tried all the same.
                (Step::Start { .. }, true) => {}
                (_, true) => return,
                (_, false) => self.act(step),
            }
        }
    }

    fn act(&mut self, step: Step) {
        self.births += 1;
        let born = NOW + self.births;
        if self.memory.resetting.is_some() && self.is_missed(&step) {
            self.half.clone_from(&self.memory.resetting);
        }
        match step {
            Step::Kill { targets, .. } => self.kill(&targets),
            Step::StopSandbox { id } => {
                self.memory.stopped.insert(id.clone());
                for s in self.seen.sandboxes.iter_mut().filter(|s| s.id == id) {
                    s.ready = false;
                }
                let live = self.seen.containers.iter().any(|c| c.sandbox_id == id && c.is_live());
                assert!(!live, "a sandbox is stopped under a running container");
            }
            Step::CreateSandbox { attempt } => {
                assert!(!self.ending, "a sandbox for a pod that must end");
                assert!(self.seen.sandboxes.iter().all(|s| !s.ready), "two sandboxes at once");
                let new = Sandbox { created_at: born, ..sandbox(&format!("s{attempt}"), attempt, true) };
                self.seen.sandboxes.insert(0, new);
            }
            Step::Start { list, index, restart_count, backoff } => {
                self.start(list, index, restart_count, backoff, born);
            }
            Step::Resume { .. } => panic!("nothing was left created"),
            Step::Resize => panic!("nothing was resized"),
            Step::Reset { source, name, backoff } => {
                self.check_backoff(&name, backoff);
                self.memory.resetting = Some(source);
                self.memory.backoff.insert(name, backoff);
            }
            Step::RemoveContainer { id, .. } => {
                let live = self.seen.containers.iter().any(|c| c.id == id && c.is_live());
                assert!(!live, "a live container is removed");
                self.seen.containers.retain(|c| c.id != id);
                // Everything begins again with the first init container.
                if self.memory.resetting.is_some() && self.seen.containers.is_empty() {
                    self.through.clear();
                }
            }
            Step::RemoveSandbox { id } => {
                self.seen.sandboxes.retain(|s| s.id != id);
                self.seen.containers.retain(|c| c.sandbox_id != id);
            }
            Step::ReleaseCgroup => {
                assert!(!self.seen.is_live(), "the cgroup goes before the processes");
                self.cgroup = false;
            }
            Step::ReleaseVolumes => {
                assert!(self.seen.containers.is_empty(), "volumes go before their containers");
                self.memory.volumes_released = true;
            }
            Step::CleanUp => assert!(self.seen.is_empty()),
        }
    }

    /// The step ends or removes what a pod that runs must have: the newest instance of a container, if not an ephemeral one.
    fn is_missed(&self, step: &Step) -> bool {
        let ephemeral = api::spec(&self.desired.pod).ephemeral_containers.iter().flatten();
        let ephemeral: Vec<&str> = ephemeral.map(|e| e.name.as_str()).collect();
        let missed = |id: &str, name: &str| {
            !ephemeral.contains(&name) && self.seen.latest(name).is_some_and(|i| i.id == id)
        };
        match step {
            Step::Kill { targets, .. } => targets.iter().any(|t| missed(&t.id, &t.name)),
            Step::RemoveContainer { id, name } => missed(id, name),
            _ => false,
        }
    }

    /// Turn by turn; whoever is told to go for the pod's sake must not leave before those who may need it.
    fn kill(&mut self, targets: &[Kill]) {
        let mut targets = targets.to_vec();
        targets.sort_by_key(|t| t.turn);
        let inits = api::spec(&self.desired.pod).init_containers.clone().unwrap_or_default();
        let place = |name: &str| {
            inits.iter().position(|c| c.name == name && c.restart_policy.as_deref() == Some("Always"))
        };
        for t in &targets {
            let for_itself = t.message.as_deref().is_some_and(|m| m != "killing");
            if let Some(own) = place(&t.name).filter(|_| !for_itself) {
                let sandbox = &self.seen.containers.iter().find(|i| i.id == t.id).unwrap().sandbox_id;
                for i in self.seen.containers.iter().filter(|i| i.is_live() && i.sandbox_id == *sandbox) {
                    let earlier = place(&i.name).is_some_and(|at| at <= own);
                    assert!(earlier, "sidecar {} ends before {}", t.name, i.name);
                }
            }
            for i in self.seen.containers.iter_mut().filter(|i| i.id == t.id) {
                (i.state, i.exit_code, i.finished_at) = (Exited, 137, self.now);
            }
        }
    }

    fn container(&self, list: ContainerList, index: usize) -> Container {
        let spec = api::spec(&self.desired.pod);
        match list {
            ContainerList::Init => spec.init_containers.as_ref().unwrap()[index].clone(),
            ContainerList::Regular => spec.containers[index].clone(),
            ContainerList::Ephemeral => {
                api::as_container(&spec.ephemeral_containers.as_ref().unwrap()[index])
            }
        }
    }

    fn start(
        &mut self,
        list: ContainerList,
        index: usize,
        restart_count: u32,
        backoff: Option<backoff::Entry>,
        born: i64,
    ) {
        let c = self.container(list, index);
        let name = c.name.clone();
        assert!(!self.ending, "{name} starts after the end began");
        let half = self.half.as_ref().is_some_and(|id| self.seen.containers.iter().any(|c| c.id == *id));
        assert!(!half, "{name} starts before all are removed to be run again");
        let current = self.seen.sandboxes[0].id.clone();
        assert!(self.seen.sandboxes[0].ready, "{name} starts in a dead sandbox");
        let spec = api::spec(&self.desired.pod).clone();
        let inits = spec.init_containers.unwrap_or_default();
        let before = match list {
            ContainerList::Init => &inits[..index],
            ContainerList::Regular => &inits[..],
            ContainerList::Ephemeral => &[],
        };
        for b in before {
            let done = self.through.contains(&(current.clone(), b.name.clone()));
            assert!(done, "{name} starts before {} is through", b.name);
        }
        let known = self.counts.get(&name).copied();
        assert!(known.is_none_or(|k| restart_count > k), "{name}: {restart_count} after {known:?}");
        assert!(list != ContainerList::Ephemeral || known.is_none(), "{name} is ephemeral and runs again");
        if let Some(last) = self.seen.latest(&name) {
            assert!(!last.is_live(), "{name} runs twice");
            let changed = last.hash != translate::container_hash(&c);
            let anew = list == ContainerList::Init && last.sandbox_id != current;
            assert!(changed || anew || self.runs_again(&c, last.exit_code), "{name} must not run again");
        }
        if let Some(entry) = backoff {
            self.check_backoff(&name, entry);
            self.memory.backoff.insert(name.clone(), entry);
        }
        self.counts.insert(name.clone(), restart_count);
        if c.restart_policy.as_deref() == Some("Always") {
            self.through.insert((current.clone(), name.clone()));
        }
        let hash = translate::container_hash(&c);
        let new = Instance { created_at: born, hash, ..instance(&name, restart_count, &current, Running, 0) };
        self.seen.containers.insert(0, new);
    }

    /// The rule in other words than the plan's.
    fn runs_again(&self, c: &Container, code: i32) -> bool {
        let listed = |values: &Option<Vec<i32>>| values.iter().flatten().any(|v| *v == code);
        let rules = c.restart_policy_rules.iter().flatten();
        let by_rule = rules.filter_map(|r| r.exit_codes.as_ref()).any(|e| listed(&e.values));
        let policy = c.restart_policy.clone().or(api::spec(&self.desired.pod).restart_policy.clone());
        by_rule
            || policy.as_deref() == Some("Always")
            || (policy.as_deref() == Some("OnFailure") && code != 0)
    }

    fn check_backoff(&self, name: &str, entry: backoff::Entry) {
        let Some(before) = self.memory.backoff.get(name) else { return };
        let rested = self.now - before.updated > 2 * 300 * S;
        assert!(entry.wait >= before.wait || rested, "{name}: the back-off shrinks: {before:?} {entry:?}");
    }

    /// An end is known again from what is left; where something vanished as well, it may be forgotten.
    fn forget(&mut self) {
        let mut memory = Memory { outcome: self.memory.outcome, ..Memory::default() };
        memory.restarts = self.counts.iter().map(|(name, n)| (name.clone(), n + 1)).collect();
        for i in self.seen.containers.iter().rev() {
            if let Some(entry) = backoff::recover(i, backoff::DEFAULT_CAP) {
                memory.backoff.insert(i.name.clone(), entry);
            }
        }
        let source = begun_reset(&self.desired.pod, &self.seen, &memory.restarts);
        memory.resetting = source.map(|s| s.id.clone());
        self.memory = memory;
    }

    fn happen(&mut self, h: &Happening) {
        let now = self.now;
        match *h {
            Happening::End(n, code) => {
                let mut running: Vec<&mut Instance> =
                    self.seen.containers.iter_mut().filter(|c| c.state == Running).collect();
                let count = running.len().max(1);
                if let Some(i) = running.get_mut(n % count) {
                    (i.state, i.exit_code, i.finished_at) = (Exited, code, now);
                    if code == 0 {
                        self.through.insert((i.sandbox_id.clone(), i.name.clone()));
                    }
                }
            }
            Happening::Vanish(n) if !self.seen.containers.is_empty() => {
                self.seen.containers.remove(n % self.seen.containers.len());
            }
            Happening::Vanish(_) => {}
            Happening::SandboxDies => {
                for s in &mut self.seen.sandboxes {
                    (s.ready, s.ips) = (false, Vec::new());
                }
                // All begins again anyway.
                self.half = None;
                for i in self.seen.containers.iter_mut().filter(|c| c.state == Running) {
                    (i.state, i.exit_code, i.finished_at) = (Exited, 137, now);
                }
            }
            Happening::Later(s) => self.now += i64::from(s) * S,
            Happening::Fail(bits) => self.failing = bits,
            Happening::Forget => self.forget(),
            Happening::Die(n) => self.dies = Some(n),
            Happening::Change(n) => {
                let spec = Arc::make_mut(&mut self.desired.pod).spec.as_mut().unwrap();
                let all = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
                let mut all: Vec<&mut Container> = all.collect();
                let at = n % all.len();
                all[at].image = Some(format!("i{}", self.births));
            }
            Happening::Debug => {
                let spec = Arc::make_mut(&mut self.desired.pod).spec.as_mut().unwrap();
                let list = spec.ephemeral_containers.get_or_insert_default();
                let name = format!("e{}", list.len());
                list.push(serde_json::from_value(json!({"name": name, "image": "i"})).unwrap());
            }
            Happening::Stop => self.desired.stop = stopping(pod("Always", &[], &[]), false).stop,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_order_policies_and_the_end_hold(
        pod in any_pod(),
        dead_kept in prop_oneof![Just(Some(0)), Just(Some(1)), Just(Some(3)), Just(None)],
        story in proptest::collection::vec(happening(), 0..40),
    ) {
        let mut sim = Sim::new(pod);
        sim.kept.config.per_container = dead_kept;
        for h in &story {
            sim.settle();
            sim.happen(h);
        }
        // Told to go, every pod reaches its end, and nothing is left.
        sim.desired.stop = stopping(super::pod("Always", &[], &[]), true).stop;
        let plan = sim.settle();
        prop_assert_eq!(plan.phase, Phase::Gone);
        prop_assert!(sim.seen.is_empty() && !sim.cgroup);
    }
}
