//! The agent, its runtime or both killed in every phase of pods with init containers, sidecars and hooks.
//!
//! `STEVEDORE_KILLS` says how often (more of them for hours of it), `STEVEDORE_SEED` which.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use k8s_openapi::api::core::v1::Pod;
use node_e2e::acts::{Act, Acts, Kind, Line, hit, wrongs};
use node_e2e::marks::{Dice, number};
use node_e2e::wait::{eventually, limit, within};
use node_e2e::{Node, status};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// How many kills where nobody says otherwise: CI runs this beside other tests.
const KILLS: u64 = 12;
/// After so many kills everything must come to rest.
const REST: u64 = 4;
/// A phase that does not come is not waited for longer: the kill comes all the same.
const PATIENCE: Duration = Duration::from_secs(15);

/// Phases of a pod that begins, by what is told last before the kill.
const BEGINNING: [(&str, &str); 10] = [
    ("first", "begin"),
    ("first", "done"),
    ("side", "begin"),
    ("second", "begin"),
    ("second", "done"),
    ("slow", "begin"),
    ("slow", "started"),
    ("work", "begin"),
    ("work", "post-start"),
    ("more", "begin"),
];
/// Phases of one that ends.
const ENDING: [(&str, &str); 6] = [
    ("work", "pre-stop"),
    ("slow", "pre-stopped"),
    ("more", "end"),
    ("work", "end"),
    ("slow", "end"),
    ("side", "end"),
];

const PLACES: [(&str, Kind); 5] = [
    ("service-0", Kind::Service),
    ("job-0", Kind::Job),
    ("once-0", Kind::Once),
    ("service-1", Kind::Service),
    ("once-1", Kind::Once),
];

struct Play {
    node: Node,
    acts: Acts,
    dice: Dice,
    /// By name, the version whose manifest lies there.
    wanted: BTreeMap<String, u32>,
    kinds: BTreeMap<String, Kind>,
    /// Of which UID and container name, the instance that the runtime was seen to run.
    seen: HashMap<(String, String), String>,
    next: u32,
    own_runtime: bool,
}

impl Play {
    async fn new() -> Option<Self> {
        let mut node = Node::start().await?;
        let own_runtime = node.turn.as_ref()?.private().is_some();
        node.runtime_killed = own_runtime;
        let (acts, dice) = (Acts::new(&node.dir), Dice::from_env());
        let own = [("steady", Kind::Service), ("over", Kind::Once)];
        let kinds = PLACES.into_iter().chain(own).map(|(name, kind)| (name.to_owned(), kind)).collect();
        let (wanted, seen) = (BTreeMap::new(), HashMap::new());
        Some(Self { node, acts, dice, wanted, kinds, seen, next: 0, own_runtime })
    }

    fn put(&mut self, name: &str) {
        self.note_removal(name);
        self.next += 1;
        self.wanted.insert(name.to_owned(), self.next);
        let pod = self.acts.pod(name, self.next, self.kinds[name], &mut self.dice);
        self.node.put(name, pod);
    }

    fn remove(&mut self, name: &str) {
        if self.wanted.contains_key(name) {
            self.note_removal(name);
            self.node.remove(name);
        }
    }

    fn note_removal(&mut self, name: &str) {
        if let Some(version) = self.wanted.remove(name) {
            self.acts.note(&format!("remove {name} {version}"));
        }
    }

    /// Another pod of that name, or none.
    fn change(&mut self, name: &str) {
        if self.dice.roll(3) == 0 { self.remove(name) } else { self.put(name) }
    }

    fn any(&mut self) -> &'static str {
        PLACES[self.dice.roll(PLACES.len() as u64) as usize].0
    }

    /// Waits, for a while, until that pod has told of that.
    async fn until(&self, name: &str, version: u32, (container, what): (&str, &str)) {
        let told = |line: &Line| {
            let Line::Act(Act { pod, version: of, container: c, what: w, .. }) = line else { return false };
            (pod.as_str(), *of, c.as_str(), w.as_str()) == (name, version, container, what)
        };
        let end = Instant::now() + PATIENCE;
        while !self.acts.lines().iter().any(told) && Instant::now() < end {
            // The file's name is what one could watch; reading it is as cheap.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Has some pod change, and returns in some phase of that.
    async fn reach_a_phase(&mut self) {
        if self.dice.roll(4) > 0 {
            self.until_the_agent_knows().await;
        }
        let name = self.any();
        let phase = self.dice.roll((BEGINNING.len() + ENDING.len()) as u64) as usize;
        if let Some(beginning) = BEGINNING.get(phase) {
            self.put(name);
            self.until(name, self.next, *beginning).await;
        } else {
            if !self.wanted.contains_key(name) {
                self.put(name);
            }
            let version = self.wanted[name];
            self.until(name, version, ("more", "begin")).await;
            if self.kinds[name] == Kind::Service || self.dice.roll(2) == 0 {
                self.change(name);
            }
            self.until(name, version, ENDING[phase - BEGINNING.len()]).await;
        }
        if self.dice.roll(2) == 0 {
            let other = self.any();
            self.change(other);
        }
        // The instant is what is random.
        tokio::time::sleep(Duration::from_millis(self.dice.roll(150))).await;
    }

    /// What is removed from now on is removed by an agent that had its manifest.
    async fn until_the_agent_knows(&mut self) {
        eventually("the agent has read every manifest", async || {
            let pods = self.node.pods().await?;
            let mut unknown = self.wanted.iter().filter(|(name, version)| {
                let uid = Acts::uid(name, **version);
                !pods.iter().any(|p| status::uid(p) == uid)
            });
            unknown.next().map_or(Ok(()), |(name, version)| Err(format!("not {name} {version}")))
        })
        .await;
        self.acts.note("agent knows");
    }

    /// What runs and is wanted runs on in the same container. Not so where a container ends by itself: the runtime may die
    /// before it has told how, and then the container is run once more.
    async fn remember(&mut self) {
        let kinds: BTreeMap<String, Kind> =
            self.wanted.iter().map(|(name, v)| (Acts::uid(name, *v), self.kinds[name])).collect();
        let all = eventually("the runtime lists containers", async || {
            self.node.cri.list_containers(None).await.map_err(|e| e.to_string())
        })
        .await;
        for c in all.into_iter().filter(|c| c.state() == cri::v1::ContainerState::ContainerRunning) {
            let uid = c.labels.get("io.kubernetes.pod.uid").cloned().unwrap_or_default();
            let name = c.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default();
            if kinds.get(&uid).is_some_and(|kind| never_ends(*kind, &name)) {
                let before = self.seen.entry((uid, name)).or_insert_with(|| c.id.clone()).clone();
                assert_eq!(before, c.id, "runs in another container: {:?}", c.labels);
            }
        }
    }

    async fn kill_and_revive(&mut self) {
        let (agent, runtime) = match self.dice.roll(if self.own_runtime { 4 } else { 1 }) {
            0 => (true, false),
            1 => (false, true),
            _ => (true, true),
        };
        if agent {
            self.acts.note("kill agent");
            self.node.kill9();
        }
        if runtime {
            self.acts.note("kill runtime");
            self.runtime().kill9().unwrap();
        }
        for _ in 0..self.dice.roll(3) {
            let name = self.any();
            self.change(name);
        }
        tokio::time::sleep(Duration::from_millis(self.dice.roll(400))).await;
        let agent_first = self.dice.roll(2) == 0;
        if agent && agent_first {
            self.launch().await;
        }
        if runtime {
            self.runtime().restart().await.unwrap();
        }
        if agent && !agent_first {
            self.launch().await;
        }
    }

    async fn launch(&mut self) {
        self.acts.note("launch agent");
        self.node.launch().await;
    }

    fn runtime(&mut self) -> &mut xtask::runtime::PrivateContainerd {
        self.node.turn.as_mut().unwrap().private_mut().unwrap()
    }

    /// Waits until every pod is as its manifest wants it.
    async fn settle(&mut self) {
        self.node.wait_healthy().await;
        within(limit() * 2, "every pod is as it should be", async || {
            let pods = self.node.pods().await?;
            let strange: Vec<&str> = pods
                .iter()
                .map(status::uid)
                .filter(|uid| !self.wanted.iter().any(|(n, v)| Acts::uid(n, *v) == *uid))
                .collect();
            if !strange.is_empty() {
                return Err(format!("still there: {strange:?}"));
            }
            for (name, version) in &self.wanted {
                let uid = Acts::uid(name, *version);
                let pod =
                    pods.iter().find(|p| status::uid(p) == uid).ok_or_else(|| format!("no pod {uid}"))?;
                if !is_well(pod, self.kinds[name]) {
                    return Err(format!("{uid}: {}", serde_json::to_string(&pod.status).unwrap()));
                }
            }
            Ok(())
        })
        .await;
        self.acts.note("agent knows");
        for (name, version) in &self.wanted {
            self.acts.note(&format!("settled {name} {version}"));
        }
        self.remember().await;
        self.judge();
    }

    fn judge(&self) {
        let lines = self.acts.lines();
        let wrongs = wrongs(&lines, &self.kinds);
        if !wrongs.is_empty() {
            let told: Vec<String> = lines.iter().map(|l| format!("{l:?}")).collect();
            panic!("{wrongs:#?}\nin\n{}", told.join("\n"));
        }
    }

    /// Takes everything away in order.
    async fn end(mut self) {
        for name in self.wanted.keys().cloned().collect::<Vec<_>>() {
            self.remove(&name);
        }
        eventually("all pods are gone", async || match self.node.pods().await?.len() {
            0 => Ok(()),
            n => Err(format!("{n} are left")),
        })
        .await;
        self.node.wait_clean().await;
        self.judge();
        eprintln!("told last before a kill: {:?}", hit(&self.acts.lines()));
        self.node.finish().await;
    }
}

/// Whether that container of such a pod runs until it is stopped.
fn never_ends(kind: Kind, container: &str) -> bool {
    matches!(container, "side" | "slow") || kind == Kind::Service && matches!(container, "work" | "more")
}

fn is_well(pod: &Pod, kind: Kind) -> bool {
    match kind {
        Kind::Service => status::phase(pod) == "Running" && status::is(pod, "Ready"),
        Kind::Job => status::phase(pod) == "Succeeded",
        Kind::Once => match status::phase(pod) {
            "Succeeded" => true,
            "Failed" => was_cut_off(pod),
            _ => false,
        },
    }
}

/// The runtime or the agent died while a container that is never run twice was being started, or the runtime while it ended.
fn was_cut_off(pod: &Pod) -> bool {
    let status = pod.status.as_ref().unwrap();
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let mut ends = all.filter_map(|c| c.state.as_ref()?.terminated.as_ref());
    ends.any(|t| matches!(t.reason.as_deref(), Some("StartError" | "Unknown" | "ContainerStatusUnknown")))
}

#[tokio::test]
async fn whatever_is_killed_in_whatever_phase_every_pod_keeps_its_order_and_nothing_runs_twice() {
    let Some(mut play) = Play::new().await else { return };
    let kills = number("STEVEDORE_KILLS", KILLS);
    play.put("over");
    play.put("steady");
    play.settle().await;
    for kill in 1..=kills {
        play.reach_a_phase().await;
        play.remember().await;
        play.kill_and_revive().await;
        if kill % REST == 0 || kill == kills {
            play.settle().await;
            eprintln!("{kill} of {kills} kills");
        }
    }
    play.end().await;
}
