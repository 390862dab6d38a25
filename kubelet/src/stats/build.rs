//! From a sample to the Summary API. Pure.

use super::disk::{Disk, PodDisk};
use super::reading::Reading;
use super::sample::{Group, PodSample, Sample};
use super::subject::Unit;
use super::summary::{
    ContainerStats, Cpu, FsStats, Io, Memory, NodeStats, PodStats, ProcessStats, RlimitStats, RuntimeStats,
    Summary, Swap,
};
use jiff::Timestamp;

/// Facts of the machine that hold until it is booted again.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The node's name.
    pub node_name: String,
    /// When it was booted.
    pub booted: Timestamp,
    /// `MemTotal`, bytes.
    pub memory: Option<u64>,
}

/// The whole summary. `swap`: the machine's, bytes.
pub fn summary(machine: &Machine, swap: u64, rlimit: RlimitStats, sample: &Sample, disk: &Disk) -> Summary {
    let root = sample.root.as_ref();
    let parts = [("pods", &sample.pods_group), ("kubelet", &sample.agent)];
    let parts = parts.into_iter().filter_map(|(name, group)| Some(part(name, machine, group.as_ref()?)));
    let node = NodeStats {
        node_name: machine.node_name.clone(),
        system_containers: parts.collect(),
        start_time: machine.booted,
        cpu: root.and_then(cpu),
        memory: root.and_then(|g| memory(g, machine.memory)),
        io: root.map(|g| io(&g.reading)),
        network: sample.network.clone(),
        fs: disk.node,
        runtime: (disk.image.is_some() || disk.container.is_some())
            .then_some(RuntimeStats { image_fs: disk.image, container_fs: disk.container }),
        rlimit: Some(rlimit),
        swap: root.and_then(|g| swap_of(&g.reading, Some(swap))),
    };
    Summary { node, pods: pods(sample, disk) }
}

/// Of that, CPU, memory and swap: `?only_cpu_and_memory=true`.
pub fn only_cpu_and_memory(mut whole: Summary) -> Summary {
    let lean = |c: &mut ContainerStats| (c.io, c.rootfs, c.logs) = (None, None, None);
    let node = &mut whole.node;
    (node.io, node.network, node.fs, node.runtime, node.rlimit) = (None, None, None, None, None);
    node.system_containers.iter_mut().for_each(lean);
    for pod in &mut whole.pods {
        (pod.io, pod.network, pod.ephemeral_storage, pod.process_stats) = (None, None, None, None);
        pod.volume.clear();
        pod.containers.iter_mut().for_each(lean);
    }
    whole
}

/// Every pod that has a cgroup or a running container.
pub fn pods(sample: &Sample, disk: &Disk) -> Vec<PodStats> {
    let none = PodDisk::default();
    let of = |pod: &PodSample| self::pod(pod, disk.node, disk.pods.get(&pod.subject.id.uid).unwrap_or(&none));
    sample.pods.iter().map(of).collect()
}

fn pod(pod: &PodSample, node: Option<FsStats>, disk: &PodDisk) -> PodStats {
    let containers: Vec<ContainerStats> = pod
        .containers
        .iter()
        .map(|(at, group)| container(&pod.subject.containers[*at], group, disk))
        .collect();
    let group = pod.group.as_ref();
    let processes = pod.containers.iter().map(|(_, g)| g).chain(&pod.sandbox);
    let counts: Vec<u64> = processes.filter_map(|g| Some(g.reading.processes?.count)).collect();
    PodStats {
        pod: pod.subject.id.clone(),
        start_time: nanos(pod.subject.sandbox.created_at),
        cpu: group.and_then(cpu),
        memory: group.and_then(|g| memory(g, g.reading.limits.memory)),
        io: group.map(|g| io(&g.reading)),
        network: pod.network.clone(),
        volume: disk.volumes.clone(),
        ephemeral_storage: node.map(|node| ephemeral(node, &containers, disk)),
        process_stats: (!counts.is_empty()).then(|| ProcessStats { count: Some(counts.iter().sum()) }),
        swap: group.and_then(|g| swap_of(&g.reading, g.reading.limits.swap)),
        containers,
    }
}

fn container(unit: &Unit, group: &Group, disk: &PodDisk) -> ContainerStats {
    ContainerStats {
        name: unit.name.clone(),
        start_time: nanos(unit.created_at),
        cpu: cpu(group),
        memory: memory(group, group.reading.limits.memory),
        io: Some(io(&group.reading)),
        rootfs: disk.rootfs.get(&unit.id).copied(),
        logs: disk.logs.get(&unit.name).copied(),
        swap: swap_of(&group.reading, group.reading.limits.swap),
    }
}

/// A part of the node as a container.
fn part(name: &str, machine: &Machine, group: &Group) -> ContainerStats {
    ContainerStats {
        name: name.to_owned(),
        start_time: group.reading.changed.map_or(machine.booted, nanos),
        cpu: cpu(group),
        memory: memory(group, group.reading.limits.memory),
        io: Some(io(&group.reading)),
        rootfs: None,
        logs: None,
        swap: swap_of(&group.reading, group.reading.limits.swap),
    }
}

/// What the pod takes of the node's disk, and what is free there.
fn ephemeral(node: FsStats, containers: &[ContainerStats], disk: &PodDisk) -> FsStats {
    let layers = containers.iter().flat_map(|c| [c.rootfs, c.logs]).flatten();
    let volumes = disk.volumes.iter().filter(|v| v.ephemeral).map(|v| v.fs);
    let parts: Vec<FsStats> = layers.chain(volumes).chain(disk.other.iter().copied()).collect();
    let sum = |of: fn(&FsStats) -> Option<u64>| parts.iter().filter_map(of).reduce(u64::saturating_add);
    FsStats {
        time: parts.iter().map(|p| p.time).max().map_or(node.time, |newest| newest.max(node.time)),
        used_bytes: sum(|p| p.used_bytes),
        inodes_used: sum(|p| p.inodes_used),
        ..node
    }
}

fn cpu(group: &Group) -> Option<Cpu> {
    let counters = group.reading.cpu?;
    Some(Cpu {
        time: group.reading.at,
        usage_nano_cores: group.nano_cores,
        usage_core_nano_seconds: Some(counters.total),
        psi: group.reading.psi.cpu,
    })
}

fn memory(group: &Group, limit: Option<u64>) -> Option<Memory> {
    let m = group.reading.memory?;
    Some(Memory {
        time: group.reading.at,
        available_bytes: limit.map(|limit| limit.saturating_sub(m.working_set)),
        usage_bytes: Some(m.usage),
        working_set_bytes: Some(m.working_set),
        rss_bytes: Some(m.rss),
        page_faults: Some(m.faults),
        major_page_faults: Some(m.major_faults),
        psi: group.reading.psi.memory,
    })
}

fn swap_of(reading: &Reading, limit: Option<u64>) -> Option<Swap> {
    let used = reading.memory?.swap;
    Some(Swap {
        time: reading.at,
        swap_available_bytes: limit.map(|limit| limit.saturating_sub(used)),
        swap_usage_bytes: Some(used),
    })
}

fn io(reading: &Reading) -> Io {
    Io { time: reading.at, psi: reading.psi.io }
}

/// Nanoseconds since the epoch as a time; what lies outside of all calendars is the epoch.
pub fn nanos(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_default()
}
