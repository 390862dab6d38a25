//! A node of 1000 MiB of memory, as much disk and a million inodes, of which pods use what a test says: memory as long as
//! their containers run, layers as long as those are there, volumes as long as their directories are.

use super::Node;
use cri::fake::FakeRuntime;
use futures::future::BoxFuture;
use kubelet::api::PodUid;
use kubelet::evict::{
    Amount, ContainerUse, Detail, DiskUse, Layout, Left, Measure, Observations, PodUse, Signal, Threshold,
};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

pub const MIB: u64 = 1 << 20;
const ALL: u64 = 1000 * MIB;
const INODES: u64 = 1_000_000;

pub fn hard(signal: Signal, amount: &str) -> Threshold {
    Threshold { signal, value: Amount::parse(amount).unwrap(), grace: None, min_reclaim: None }
}

pub fn soft(signal: Signal, amount: &str, seconds: u64) -> Threshold {
    Threshold { grace: Some(Duration::from_secs(seconds)), ..hard(signal, amount) }
}

/// What one pod uses.
#[derive(Clone, Debug, Default)]
pub struct Uses {
    memory: u64,
    layer: u64,
    volume: Option<(String, DiskUse)>,
}

impl Uses {
    pub fn memory(bytes: u64) -> Self {
        Self { memory: bytes, ..Self::default() }
    }

    pub fn layer(bytes: u64) -> Self {
        Self { layer: bytes, ..Self::default() }
    }

    pub fn volume(name: &str, bytes: u64) -> Self {
        Self { volume: Some((name.to_owned(), DiskUse { bytes, inodes: 1 })), ..Self::default() }
    }

    pub fn files(name: &str, inodes: u64) -> Self {
        Self { volume: Some((name.to_owned(), DiskUse { bytes: 1, inodes })), ..Self::default() }
    }
}

#[derive(Debug, Default)]
struct State {
    uses: BTreeMap<String, Uses>,
    /// Memory that grows since a moment, by so many bytes a second.
    grows: BTreeMap<String, (Instant, u64)>,
    low: Vec<Signal>,
    images: u64,
    fails: bool,
    asked: BTreeMap<&'static str, usize>,
}

/// Measures that node.
pub struct Meter {
    fake: FakeRuntime,
    pods: PathBuf,
    state: Mutex<State>,
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meter")
    }
}

impl Meter {
    pub fn of(node: &Node) -> Arc<Self> {
        Arc::new(Self { fake: node.fake.clone(), pods: node.path("root/pods"), state: Mutex::default() })
    }

    pub fn set(&self, uid: &str, uses: Uses) {
        let mut state = self.state.lock().unwrap();
        state.grows.remove(uid);
        state.uses.insert(uid.to_owned(), uses);
    }

    /// From now on the pod takes so many bytes of memory a second.
    pub fn grow(&self, uid: &str, bytes_per_second: u64) {
        self.state.lock().unwrap().grows.insert(uid.to_owned(), (Instant::now(), bytes_per_second));
    }

    pub fn low(&self, signal: Signal, is: bool) {
        let mut state = self.state.lock().unwrap();
        state.low.retain(|s| *s != signal);
        state.low.extend(is.then_some(signal));
    }

    /// Unused images take so much of the disk, until one is removed.
    pub fn images(&self, bytes: u64) {
        self.state.lock().unwrap().images = bytes;
    }

    pub fn fail(&self, fails: bool) {
        self.state.lock().unwrap().fails = fails;
    }

    pub fn asked(&self, what: &str) -> usize {
        self.state.lock().unwrap().asked.get(what).copied().unwrap_or(0)
    }

    fn ask(&self, what: &'static str) -> bool {
        let mut state = self.state.lock().unwrap();
        *state.asked.entry(what).or_default() += 1;
        !state.fails
    }

    /// What each pod uses now.
    fn uses(&self) -> BTreeMap<String, PodUse> {
        let state = self.state.lock().unwrap();
        let containers = self.fake.containers();
        let of = |uid: &str| {
            let mine = containers.iter().filter(|c| c.labels["io.kubernetes.pod.uid"] == uid);
            let live = mine.clone().any(super::runs);
            let uses = state.uses.get(uid).cloned().unwrap_or_default();
            let grown =
                state.grows.get(uid).map(|(since, rate)| since.elapsed().as_secs_f64() * *rate as f64);
            let memory = if live { uses.memory + grown.unwrap_or(0.0) as u64 } else { 0 };
            let mut sum = PodUse { memory: Some(memory), processes: Some(1), ..PodUse::default() };
            if let Some(c) = mine.clone().next() {
                let du = |bytes| Some(DiskUse { bytes, inodes: 1 });
                sum.containers.push(ContainerUse {
                    name: c.metadata.as_ref().unwrap().name.clone(),
                    memory: Some(memory),
                    rootfs: du(uses.layer),
                    logs: du(0),
                });
            }
            if let Some((name, disk)) = uses.volume.filter(|_| self.pods.join(uid).join("volumes").exists()) {
                sum.volumes.insert(name, disk);
            }
            let disk = sum.containers.iter().filter_map(|c| c.rootfs).chain(sum.volumes.values().copied());
            sum.ephemeral = Some(disk.map(|d| d.bytes).sum());
            sum
        };
        // Pods of which nothing was said use nothing.
        let others = containers.iter().map(|c| &c.labels["io.kubernetes.pod.uid"]);
        let uids = state.uses.keys().chain(state.grows.keys()).chain(others);
        uids.map(|uid| (uid.clone(), of(uid))).collect()
    }

    fn memory_left(&self) -> Left {
        let used: u64 = self.uses().values().filter_map(|u| u.memory).sum();
        Left { available: ALL as i64 - used as i64, capacity: ALL as i64 }
    }
}

impl Measure for Meter {
    fn memory(&self) -> BoxFuture<'_, Observations> {
        let known = self.ask("memory");
        Box::pin(async move { known.then(|| (Signal::Memory, self.memory_left())).into_iter().collect() })
    }

    fn node(&self) -> BoxFuture<'_, Observations> {
        if !self.ask("node") {
            return Box::pin(async { Observations::new() });
        }
        let uses = self.uses();
        let removed = self.fake.calls().iter().any(|c| c.method == "RemoveImage");
        let state = self.state.lock().unwrap();
        let images = if removed { 0 } else { state.images };
        let bytes: u64 = uses.values().filter_map(|u| u.ephemeral).sum();
        let inodes: u64 = uses.values().flat_map(|u| u.volumes.values()).map(|d| d.inodes).sum();
        let low = |signal| if state.low.contains(&signal) { i64::MAX / 2 } else { 0 };
        let left = |signal: Signal, all: u64, used: u64| {
            let available = (all as i64 - used as i64 - low(signal)).max(0);
            (signal, Left { available, capacity: all as i64 })
        };
        let mut seen = Observations::from([
            left(Signal::NodeFs, ALL, bytes + images),
            left(Signal::NodeFsInodes, INODES, inodes),
            left(Signal::ImageFs, ALL, bytes + images),
            left(Signal::Pid, 32_768, 0),
        ]);
        drop(state);
        seen.insert(Signal::Memory, self.memory_left());
        Box::pin(async move { seen })
    }

    fn pods(&self, _: Detail) -> BoxFuture<'_, HashMap<PodUid, PodUse>> {
        let known = self.ask("pods");
        let uses = if known { self.uses() } else { BTreeMap::new() };
        Box::pin(async move { uses.into_iter().map(|(uid, u)| (PodUid::new(&uid), u)).collect() })
    }

    fn layout(&self) -> BoxFuture<'_, Option<Layout>> {
        Box::pin(async { Some(Layout::One) })
    }
}
