//! One pass over the node's cgroups and the network counters of its pods: what every answer of this room is made of.
//!
//! [`Sampler::take`] blocks for as long as the files take, a few milliseconds for a full node, and runs on a blocking
//! thread. A cgroup that goes while it is read is left out; nothing here is an error.

use super::counters::Open;
use super::files::{Dir, Reader};
use super::machine::{self, DiskStats};
use super::network;
use super::processes;
use super::reading::Reading;
use super::subject::{Population, Subject, Unit};
use super::summary::Network;
use crate::api::Qos;
use crate::cgroup::Lookup;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    /// Grows with each sample: tells rates of cgroups that are gone.
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
    /// Nanoseconds since the epoch.
    at: i128,
    total: u64,
    nano_cores: Option<u64>,
    round: u64,
}

/// A rate over less time says little, `cpuacct` counts in ticks.
const LEAST: i128 = 1_000_000_000;

/// How runtimes name the cgroup of a container in its pod's: containerd and CRI-O, with cgroupfs and with systemd.
const NAMINGS: [(&str, &str); 4] =
    [("", ""), ("cri-containerd-", ".scope"), ("crio-", ".scope"), ("crio-", "")];

impl Sampler {
    /// A sampler that has seen nothing yet.
    pub fn new(lookup: Lookup, population: Arc<dyn Population>, mount_table: PathBuf) -> Self {
        let proc = Dir::open(Path::new("/proc"));
        let reader = Reader::default();
        Self { lookup, population, mount_table, proc, reader, rates: HashMap::new(), round: 0, naming: 0 }
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
        let sandbox = self.unit(&open, &path, &subject.sandbox);
        let units = subject.containers.iter().enumerate();
        let containers = units.filter_map(|(at, unit)| Some((at, self.unit(&open, &path, unit)?)));
        let containers: Vec<(usize, (Group, Option<u32>))> = containers.collect();
        let first = sandbox.iter().chain(containers.iter().map(|(_, u)| u)).find_map(|u| u.1);
        let network = match first {
            _ if subject.host_network() => node.cloned(),
            first => first.and_then(|id| self.network(id)),
        };
        let group = self.read(path, &open);
        let containers = containers.into_iter().map(|(at, unit)| (at, unit.0)).collect();
        PodSample { subject, group, sandbox: sandbox.map(|u| u.0), containers, network }
    }

    fn network(&mut self, id: u32) -> Option<Network> {
        network::read(&mut self.reader, self.proc.as_ref()?, id)
    }

    /// A container's cgroup with its processes, and the id of the first of them.
    fn unit(&mut self, pod: &Open, path: &str, unit: &Unit) -> Option<(Group, Option<u32>)> {
        let others = (0..NAMINGS.len()).filter(|n| *n != self.naming);
        for naming in std::iter::once(self.naming).chain(others) {
            let (before, behind) = NAMINGS[naming];
            let name = format!("{before}{}{behind}", unit.id);
            let Some(open) = pod.child(&name) else { continue };
            self.naming = naming;
            let mut group = self.read(format!("{path}/{name}"), &open)?;
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
        self.read(path, &open)
    }

    fn read(&mut self, path: String, open: &Open) -> Option<Group> {
        let reading = open.read(&mut self.reader)?;
        let nano_cores = self.rate(&path, &reading);
        Some(Group { path, reading, nano_cores })
    }

    fn rate(&mut self, path: &str, reading: &Reading) -> Option<u64> {
        let (at, total, round) = (reading.at.as_nanosecond(), reading.cpu?.total, self.round);
        let Some(before) = self.rates.get_mut(path) else {
            self.rates.insert(path.to_owned(), Rate { at, total, nano_cores: None, round });
            return None;
        };
        before.round = round;
        let took = at - before.at;
        // A clock that was set back starts over, and so does a cgroup that was made anew.
        if took >= LEAST || took < 0 || total < before.total {
            let used = total.checked_sub(before.total).filter(|_| took >= LEAST);
            let nano_cores =
                used.and_then(|used| u64::try_from(i128::from(used) * 1_000_000_000 / took).ok());
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
