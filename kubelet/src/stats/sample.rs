//! One pass over the node's cgroups and the network counters of its pods: what every answer of this room is made of.
//!
//! [`Sampler::take`] blocks for as long as the files take, a few milliseconds for a full node, and runs on a blocking
//! thread. A cgroup that goes while it is read is left out; nothing here is an error.

use super::counters::Open;
use super::files::{Dir, Reader};
use super::machine::{self, DiskStats};
use super::network;
use super::processes;
use super::reading::{Limits, Reading};
use super::subject::{Population, Subject, Unit};
use super::summary::Network;
use crate::api::{Pod, Qos};
use crate::cgroup::Lookup;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What one pass saw.
#[derive(Debug, Default)]
pub struct Sample {
    /// `/`
    pub root: Option<Group>,
    /// Everything of pods.
    pub pods_group: Option<Group>,
    /// Burstable and best-effort pods.
    pub classes: Vec<Group>,
    /// The agent's own cgroup, where it has one to itself.
    pub agent: Option<Group>,
    /// The node's interfaces.
    pub network: Option<Network>,
    /// File systems on block devices.
    pub disks: Vec<DiskStats>,
    /// Names of block devices by number.
    pub devices: BTreeMap<(u32, u32), String>,
    /// Each pod.
    pub pods: Vec<PodSample>,
}

/// One cgroup.
#[derive(Debug)]
pub struct Group {
    /// Its path in the hierarchy.
    pub path: String,
    /// What it said.
    pub reading: Reading,
    /// CPU in use since the reading before, thousand millionths of a core.
    pub nano_cores: Option<u64>,
}

/// One pod.
#[derive(Debug)]
pub struct PodSample {
    /// Whose.
    pub subject: Subject,
    /// The pod's own cgroup.
    pub group: Option<Group>,
    /// The sandbox's.
    pub sandbox: Option<Group>,
    /// Those of its containers that are still there, by position in the subject.
    pub containers: Vec<(usize, Group)>,
    /// The interfaces it sees.
    pub network: Option<Network>,
}

/// Takes samples, and remembers of the one before what rates are made of.
pub struct Sampler {
    lookup: Lookup,
    population: Arc<dyn Population>,
    mount_table: PathBuf,
    proc: Option<Dir>,
    reader: Reader,
    rates: HashMap<String, Rate>,
    limits: HashMap<String, Known>,
    /// Grows with each sample: tells what is remembered of cgroups that are gone.
    round: u64,
    /// Which of the runtimes' ways to name a cgroup was met last.
    naming: usize,
}

impl std::fmt::Debug for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sampler").field("lookup", &self.lookup).finish_non_exhaustive()
    }
}

/// CPU use of one cgroup.
#[derive(Clone, Copy, Debug)]
struct Rate {
    /// By the steady clock: the other may be set.
    at: Instant,
    total: u64,
    nano_cores: Option<u64>,
    round: u64,
}

/// The limits of a container, a sandbox or a pod.
#[derive(Clone, Debug)]
struct Known {
    limits: Limits,
    read: Instant,
    /// The pod's object, and since when it is this one.
    pod: (Arc<Pod>, Instant),
    round: u64,
}

/// Limits change with the pod's object, some time after it; otherwise by strangers. Within this time of a change they are
/// read with everything else, later as often as this.
const LIMITS_AGE: Duration = Duration::from_secs(60);

/// A rate over less time says little, `cpuacct` counts in ticks.
const LEAST: Duration = Duration::from_secs(1);

/// How runtimes name the cgroup of a container in its pod's: containerd and CRI-O, with cgroupfs and with systemd.
const NAMINGS: [(&str, &str); 4] =
    [("", ""), ("cri-containerd-", ".scope"), ("crio-", ".scope"), ("crio-", "")];

impl Sampler {
    /// A sampler that has seen nothing yet.
    pub fn new(lookup: Lookup, population: Arc<dyn Population>, mount_table: PathBuf) -> Self {
        let proc = Dir::open(Path::new("/proc"));
        let reader = Reader::default();
        Self {
            lookup,
            population,
            mount_table,
            proc,
            reader,
            rates: HashMap::new(),
            limits: HashMap::new(),
            round: 0,
            naming: 0,
        }
    }

    /// Reads everything.
    pub fn take(&mut self) -> Sample {
        self.round += 1;
        let network = self.network(std::process::id());
        let root = self.group("/".to_owned());
        let agent = self.agent().and_then(|path| self.group(path));
        let pods_group = self.lookup.node().and_then(|path| self.group(path));
        let classes = [Qos::Burstable, Qos::BestEffort].into_iter().filter_map(|qos| self.lookup.class(qos));
        let classes = classes.collect::<Vec<_>>().into_iter().filter_map(|path| self.group(path)).collect();
        let subjects = self.population.subjects();
        let pods = subjects.into_iter().map(|subject| self.pod(subject, network.as_ref())).collect();
        let round = self.round;
        self.rates.retain(|_, rate| rate.round == round);
        self.limits.retain(|_, known| known.round == round);
        let disks = machine::disks(&mut self.reader, &self.mount_table);
        let devices = machine::device_names(&mut self.reader);
        Sample { root, pods_group, classes, agent, network, disks, devices, pods }
    }

    fn pod(&mut self, subject: Subject, node: Option<&Network>) -> PodSample {
        let path = self.lookup.pod(subject.qos, &subject.id.uid);
        let open = path.as_ref().and_then(|path| Open::new(&self.lookup, path));
        let (Some(path), Some(open)) = (path, open) else {
            return PodSample { subject, group: None, sandbox: None, containers: Vec::new(), network: None };
        };
        let object = &subject.pod.clone();
        let sandbox = self.unit(&open, &path, &subject.sandbox, object);
        let units = subject.containers.iter().enumerate();
        let containers = units.filter_map(|(at, unit)| Some((at, self.unit(&open, &path, unit, object)?)));
        let containers: Vec<(usize, (Group, Option<u32>))> = containers.collect();
        let first = sandbox.iter().chain(containers.iter().map(|(_, u)| u)).find_map(|u| u.1);
        let network = match first {
            _ if subject.host_network() => node.cloned(),
            first => first.and_then(|id| self.network(id)),
        };
        let group = self.read_of_pod(path, &open, object);
        let containers = containers.into_iter().map(|(at, unit)| (at, unit.0)).collect();
        PodSample { subject, group, sandbox: sandbox.map(|u| u.0), containers, network }
    }

    fn network(&mut self, id: u32) -> Option<Network> {
        network::read(&mut self.reader, self.proc.as_ref()?, id)
    }

    /// A container's cgroup with its processes, and the id of the first of them.
    fn unit(
        &mut self,
        pod: &Open,
        path: &str,
        unit: &Unit,
        object: &Arc<Pod>,
    ) -> Option<(Group, Option<u32>)> {
        let others = (0..NAMINGS.len()).filter(|n| *n != self.naming);
        for naming in std::iter::once(self.naming).chain(others) {
            let (before, behind) = NAMINGS[naming];
            let name = format!("{before}{}{behind}", unit.id);
            let Some(open) = pod.child(&name) else { continue };
            self.naming = naming;
            let mut group = self.read_of_pod(format!("{path}/{name}"), &open, object)?;
            let dirs = self.proc.as_ref().zip(open.dir());
            let found = dirs.and_then(|(proc, dir)| processes::read(&mut self.reader, proc, dir));
            let (processes, first) = found.map_or((None, None), |(found, first)| (Some(found), first));
            group.reading.processes = processes;
            return Some((group, first));
        }
        None
    }

    fn group(&mut self, path: String) -> Option<Group> {
        let open = Open::new(&self.lookup, &path)?;
        self.read(path, &open, None)
    }

    /// With limits that are known, as long as they cannot have changed.
    fn read_of_pod(&mut self, path: String, open: &Open, object: &Arc<Pod>) -> Option<Group> {
        let now = Instant::now();
        let known = self.limits.get(&path);
        let since = known.filter(|k| Arc::ptr_eq(&k.pod.0, object)).map_or(now, |k| k.pod.1);
        let held = known.filter(|k| since.elapsed() >= LIMITS_AGE && k.read.elapsed() < LIMITS_AGE);
        let (held, read) = (held.map(|k| k.limits), held.map_or(now, |k| k.read));
        let group = self.read(path, open, held)?;
        let limits = group.reading.limits;
        let pod = (object.clone(), since);
        self.limits.insert(group.path.clone(), Known { limits, read, pod, round: self.round });
        Some(group)
    }

    fn read(&mut self, path: String, open: &Open, limits: Option<Limits>) -> Option<Group> {
        let at = Instant::now();
        let reading = open.read(&mut self.reader, limits)?;
        let nano_cores = self.rate(&path, at, &reading);
        Some(Group { path, reading, nano_cores })
    }

    fn rate(&mut self, path: &str, at: Instant, reading: &Reading) -> Option<u64> {
        let (total, round) = (reading.cpu?.total, self.round);
        let Some(before) = self.rates.get_mut(path) else {
            self.rates.insert(path.to_owned(), Rate { at, total, nano_cores: None, round });
            return None;
        };
        before.round = round;
        let took = at.saturating_duration_since(before.at);
        // A cgroup that was made anew starts over.
        if took >= LEAST || total < before.total {
            let used = total.checked_sub(before.total).filter(|_| took >= LEAST);
            let nano_cores =
                used.and_then(|used| u64::try_from(u128::from(used) * 1_000_000_000 / took.as_nanos()).ok());
            *before = Rate { at, total, nano_cores, round };
        }
        before.nano_cores
    }

    /// The agent's cgroup, where CPU and memory agree on it and it is not the root: upstream's rule for showing it.
    fn agent(&mut self) -> Option<String> {
        let text = self.reader.read_path(std::path::Path::new("/proc/self/cgroup"))?;
        let text = String::from_utf8_lossy(text).into_owned();
        let of = |controller: &str| {
            text.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                let has = parts.next()?.split(',').any(|c| c == controller);
                parts.next().filter(|_| has).map(str::to_owned)
            })
        };
        let path = if self.lookup.is_v2() {
            of("")?
        } else {
            of("cpu").filter(|cpu| of("memory").as_ref() == Some(cpu))?
        };
        (path != "/").then_some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::super::reading::CpuCounters;
    use super::super::tests::{Pods, Tree, node_of_one_pod};
    use super::*;

    fn reading(total: u64) -> Reading {
        let cpu = Some(CpuCounters { total, ..CpuCounters::default() });
        Reading { cpu, ..Reading::default() }
    }

    #[test]
    fn rates_are_of_what_was_used_between_two_readings() {
        let tree = Tree::new(false);
        let mut sampler = Sampler::new(tree.lookup(), Arc::new(Pods::default()), PathBuf::new());
        let began = Instant::now();
        // No reading has a time of its own: the wall clock counts for nothing.
        let mut rate = |at, total| sampler.rate("/x", began + Duration::from_millis(at), &reading(total));
        assert_eq!(rate(0, 1_000_000_000), None, "the first");
        assert_eq!(rate(400, 1_200_000_000), None, "too soon to say");
        assert_eq!(rate(2000, 2_000_000_000), Some(500_000_000), "a second of CPU in two");
        assert_eq!(rate(2400, 9_000_000_000), Some(500_000_000), "as before: too soon");
        assert_eq!(rate(4000, 2_000_000_000), Some(0));
        assert_eq!(rate(6000, 1), None, "made anew");
        assert_eq!(rate(8000, 1), Some(0));
    }

    #[test]
    fn limits_are_read_with_everything_after_a_pod_changed_and_then_once_a_minute() {
        let (tree, pods) = node_of_one_pod(false);
        let mut sampler = Sampler::new(tree.lookup(), Arc::new(pods.clone()), PathBuf::new());
        let limit = |sampler: &mut Sampler, bytes: u64| {
            let path = "/kubepods/burstable/podu1/c1";
            tree.file("memory", path, "memory.limit_in_bytes", &bytes.to_string());
            sampler.take().pods[0].containers[0].1.reading.limits.memory.unwrap()
        };
        assert_eq!((limit(&mut sampler, 1000), limit(&mut sampler, 2000)), (1000, 2000), "it is new");
        let long_ago = Instant::now().checked_sub(LIMITS_AGE).unwrap();
        sampler.limits.values_mut().for_each(|known| known.pod.1 = long_ago);
        assert_eq!(limit(&mut sampler, 3000), 2000, "it did not change");
        sampler.limits.values_mut().for_each(|known| known.read = long_ago);
        assert_eq!(limit(&mut sampler, 4000), 4000, "a minute is over");
        assert_eq!(limit(&mut sampler, 5000), 4000);
        let pod = pods.0.lock().unwrap()[0].pod.clone();
        pods.0.lock().unwrap()[0].pod = Arc::new(crate::api::Pod::clone(&pod));
        assert_eq!(limit(&mut sampler, 6000), 6000, "the pod has changed");
    }
}
