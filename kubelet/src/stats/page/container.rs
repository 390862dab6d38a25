//! The families of `/metrics/cadvisor` over cgroups, in order of their names.

use super::super::machine::DiskStats;
use super::super::reading::{CpuCounters, DeviceIo, MemoryCounters, Processes, Throttling};
use super::super::summary::{Interface, Network, Psi};
use super::line::Out;
use super::{Family, Kind, Row, Whose};

/// Larger limits are shown as 0, as upstream does.
const LARGEST: u64 = 1 << 62;

const NANOS: f64 = 1e9;

/// All of them.
pub fn families() -> &'static [Family] {
    &FAMILIES
}

const fn counter(name: &'static str, help: &'static str, lines: fn(&Row<'_>, &mut Out<'_>)) -> Family {
    Family { name, help, kind: Kind::Counter, lines }
}

const fn gauge(name: &'static str, help: &'static str, lines: fn(&Row<'_>, &mut Out<'_>)) -> Family {
    Family { name, help, kind: Kind::Gauge, lines }
}

static FAMILIES: [Family; 68] = [
    counter("container_blkio_device_usage_total", "Bytes read and written, by device.", blkio),
    counter(
        "container_cpu_cfs_burst_periods_total",
        "Periods in which more than the quota was used.",
        |r, o| {
            throttling(r, o, |t| t.burst_periods as f64);
        },
    ),
    counter("container_cpu_cfs_burst_seconds_total", "Time used beyond the quota.", |r, o| {
        throttling(r, o, |t| t.burst as f64 / NANOS);
    }),
    counter("container_cpu_cfs_periods_total", "Periods of the quota that ran.", |r, o| {
        throttling(r, o, |t| t.periods as f64);
    }),
    counter(
        "container_cpu_cfs_throttled_periods_total",
        "Periods in which the quota was used up.",
        |r, o| {
            throttling(r, o, |t| t.throttled_periods as f64);
        },
    ),
    counter("container_cpu_cfs_throttled_seconds_total", "Time spent waiting for quota.", |r, o| {
        throttling(r, o, |t| t.throttled as f64 / NANOS);
    }),
    counter("container_cpu_system_seconds_total", "CPU time in the kernel.", |r, o| {
        cpu(r, o, |c| c.system);
    }),
    counter("container_cpu_usage_seconds_total", "CPU time.", |r, o| {
        if let Some(cpu) = &r.group.reading.cpu {
            o.with(&[("cpu", "total")], cpu.total as f64 / NANOS);
        }
    }),
    counter("container_cpu_user_seconds_total", "CPU time in user mode.", |r, o| cpu(r, o, |c| c.user)),
    gauge("container_file_descriptors", "Open files.", |r, o| processes(r, o, |p| p.files)),
    gauge("container_fs_inodes_free", "Free inodes.", |r, o| disk(r, o, |d| d.inodes_free.map(float))),
    gauge("container_fs_inodes_total", "Inodes.", |r, o| disk(r, o, |d| d.inodes.map(float))),
    gauge("container_fs_io_current", "Reads and writes under way.", |r, o| counted(r, o, 8, 1.0)),
    counter("container_fs_io_time_seconds_total", "Time the device was busy.", |r, o| counted(r, o, 9, 1e3)),
    counter("container_fs_io_time_weighted_seconds_total", "Time of reads and writes, added up.", |r, o| {
        counted(r, o, 10, 1e3);
    }),
    gauge("container_fs_limit_bytes", "Bytes of the file system.", |r, o| {
        disk(r, o, |d| Some(float(d.capacity)))
    }),
    counter("container_fs_read_seconds_total", "Time spent reading.", |r, o| counted(r, o, 3, 1e3)),
    counter("container_fs_reads_bytes_total", "Bytes read.", |r, o| io(r, o, |d| d.read_bytes)),
    counter("container_fs_reads_merged_total", "Reads that were merged.", |r, o| counted(r, o, 1, 1.0)),
    counter("container_fs_reads_total", "Reads.", |r, o| {
        counted(r, o, 0, 1.0);
        not_root(r, o, |d| d.reads);
    }),
    counter("container_fs_sector_reads_total", "Sectors read.", |r, o| counted(r, o, 2, 1.0)),
    counter("container_fs_sector_writes_total", "Sectors written.", |r, o| counted(r, o, 6, 1.0)),
    gauge("container_fs_usage_bytes", "Bytes in use.", |r, o| disk(r, o, |d| Some(float(d.used)))),
    counter("container_fs_write_seconds_total", "Time spent writing.", |r, o| counted(r, o, 7, 1e3)),
    counter("container_fs_writes_bytes_total", "Bytes written.", |r, o| io(r, o, |d| d.written_bytes)),
    counter("container_fs_writes_merged_total", "Writes that were merged.", |r, o| counted(r, o, 5, 1.0)),
    counter("container_fs_writes_total", "Writes.", |r, o| {
        counted(r, o, 4, 1.0);
        not_root(r, o, |d| d.writes);
    }),
    gauge("container_last_seen", "When it was read last, seconds since the epoch.", |r, o| {
        o.at(r.group.reading.at.as_second() as f64);
    }),
    gauge("container_memory_cache", "File cache.", |r, o| memory(r, o, |m| Some(m.cache))),
    counter("container_memory_failcnt", "How often the memory limit was hit.", |r, o| {
        memory(r, o, |m| m.failures)
    }),
    counter("container_memory_failures_total", "Page faults.", failures),
    gauge("container_memory_kernel_usage", "Memory of the kernel's.", |r, o| memory(r, o, |m| m.kernel)),
    gauge("container_memory_mapped_file", "Mapped file cache.", |r, o| memory(r, o, |m| Some(m.mapped_file))),
    gauge("container_memory_max_usage_bytes", "The most that was ever charged.", |r, o| {
        memory(r, o, |m| m.max_usage);
    }),
    gauge("container_memory_rss", "Anonymous memory.", |r, o| memory(r, o, |m| Some(m.rss))),
    gauge("container_memory_swap", "Swap in use.", |r, o| memory(r, o, |m| Some(m.swap))),
    gauge("container_memory_total_active_file_bytes", "File cache in use.", |r, o| {
        memory(r, o, |m| Some(m.active_file));
    }),
    gauge("container_memory_total_inactive_file_bytes", "File cache that was not used lately.", |r, o| {
        memory(r, o, |m| Some(m.inactive_file));
    }),
    gauge("container_memory_usage_bytes", "All memory that is charged.", |r, o| {
        memory(r, o, |m| Some(m.usage))
    }),
    gauge("container_memory_working_set_bytes", "Usage less inactive file cache.", |r, o| {
        memory(r, o, |m| Some(m.working_set));
    }),
    counter("container_network_receive_bytes_total", "Bytes received.", |r, o| network(r, o, |i| i.rx_bytes)),
    counter("container_network_receive_errors_total", "Receive errors.", |r, o| {
        network(r, o, |i| i.rx_errors)
    }),
    counter("container_network_receive_packets_dropped_total", "Packets dropped on receipt.", |r, o| {
        network(r, o, |i| i.rx_dropped);
    }),
    counter("container_network_receive_packets_total", "Packets received.", |r, o| {
        network(r, o, |i| i.rx_packets)
    }),
    counter("container_network_transmit_bytes_total", "Bytes sent.", |r, o| network(r, o, |i| i.tx_bytes)),
    counter("container_network_transmit_errors_total", "Send errors.", |r, o| network(r, o, |i| i.tx_errors)),
    counter("container_network_transmit_packets_dropped_total", "Packets dropped when sending.", |r, o| {
        network(r, o, |i| i.tx_dropped);
    }),
    counter("container_network_transmit_packets_total", "Packets sent.", |r, o| {
        network(r, o, |i| i.tx_packets)
    }),
    counter("container_oom_events_total", "Processes killed for want of memory.", |r, o| {
        memory(r, o, |m| m.oom_kills)
    }),
    counter("container_pressure_cpu_stalled_seconds_total", "Time in which no task got a CPU.", |r, o| {
        pressure(o, r.group.reading.psi.cpu, |p| p.full.total);
    }),
    counter(
        "container_pressure_cpu_waiting_seconds_total",
        "Time in which a task waited for a CPU.",
        |r, o| {
            pressure(o, r.group.reading.psi.cpu, |p| p.some.total);
        },
    ),
    counter(
        "container_pressure_io_stalled_seconds_total",
        "Time in which all tasks waited for a disk.",
        |r, o| {
            pressure(o, r.group.reading.psi.io, |p| p.full.total);
        },
    ),
    counter(
        "container_pressure_io_waiting_seconds_total",
        "Time in which a task waited for a disk.",
        |r, o| {
            pressure(o, r.group.reading.psi.io, |p| p.some.total);
        },
    ),
    counter(
        "container_pressure_memory_stalled_seconds_total",
        "Time in which all tasks waited for memory.",
        |r, o| {
            pressure(o, r.group.reading.psi.memory, |p| p.full.total);
        },
    ),
    counter(
        "container_pressure_memory_waiting_seconds_total",
        "Time in which a task waited for memory.",
        |r, o| {
            pressure(o, r.group.reading.psi.memory, |p| p.some.total);
        },
    ),
    gauge("container_processes", "Processes.", |r, o| processes(r, o, |p| Some(p.count))),
    gauge("container_scrape_error", "1 if cgroups could not be read, otherwise 0.", |r, o| {
        if r.whose == Whose::Root {
            o.alone(0.0);
        }
    }),
    gauge("container_sockets", "Open sockets.", |r, o| processes(r, o, |p| p.sockets)),
    gauge("container_spec_cpu_period", "Microseconds of a period of the CPU quota.", |r, o| {
        limit(o, r.group.reading.limits.cpu_period);
    }),
    gauge("container_spec_cpu_quota", "Microseconds of CPU per period.", |r, o| {
        limit(o, r.group.reading.limits.cpu_quota);
    }),
    gauge("container_spec_cpu_shares", "Share of the CPU.", |r, o| {
        limit(o, r.group.reading.limits.cpu_shares)
    }),
    gauge("container_spec_memory_limit_bytes", "Memory limit, 0 for none.", |r, o| {
        let limit =
            if r.whose == Whose::Root { Some(r.machine.memory) } else { r.group.reading.limits.memory };
        if r.group.reading.memory.is_some() {
            o.bare(shown(limit.unwrap_or(u64::MAX)));
        }
    }),
    gauge("container_spec_memory_reservation_limit_bytes", "Memory kept back for it.", |r, o| {
        if r.group.reading.memory.is_some() {
            o.bare(shown(r.group.reading.limits.reservation.unwrap_or(0)));
        }
    }),
    gauge(
        "container_spec_memory_swap_limit_bytes",
        "Swap limit, 0 for none; on cgroup v1 with memory.",
        |r, o| {
            let limit =
                if r.whose == Whose::Root { Some(r.machine.swap) } else { r.group.reading.limits.swap_file };
            if r.group.reading.memory.is_some() {
                o.bare(shown(limit.unwrap_or(u64::MAX)));
            }
        },
    ),
    gauge("container_start_time_seconds", "When it was made, seconds since the epoch.", |r, o| {
        o.bare(started(r) as f64);
    }),
    gauge("container_threads", "Threads.", |r, o| {
        if let Some(tasks) = r.group.reading.tasks {
            o.at(tasks as f64);
        }
    }),
    gauge("container_threads_max", "Limit of threads, 0 for none.", |r, o| {
        if r.group.reading.tasks.is_some() {
            o.at(r.group.reading.limits.tasks.unwrap_or(0) as f64);
        }
    }),
    gauge("container_ulimits_soft", "Soft limits of the first process.", |r, o| {
        if let Some(files) = r.group.reading.processes.and_then(|p| p.max_files) {
            o.with(&[("ulimit", "max_open_files")], files as f64);
        }
    }),
];

fn float(n: u64) -> f64 {
    n as f64
}

fn shown(limit: u64) -> f64 {
    if limit > LARGEST { 0.0 } else { limit as f64 }
}

fn cpu(r: &Row<'_>, o: &mut Out<'_>, of: fn(&CpuCounters) -> u64) {
    if let Some(cpu) = &r.group.reading.cpu {
        o.at(of(cpu) as f64 / NANOS);
    }
}

/// Shown where there is a quota, as upstream does.
fn throttling(r: &Row<'_>, o: &mut Out<'_>, of: fn(&Throttling) -> f64) {
    let throttling = r.group.reading.cpu.as_ref().and_then(|c| c.throttling.as_ref());
    if let Some(throttling) = throttling.filter(|_| r.group.reading.limits.cpu_quota.is_some()) {
        o.at(of(throttling));
    }
}

fn memory(r: &Row<'_>, o: &mut Out<'_>, of: fn(&MemoryCounters) -> Option<u64>) {
    if let Some(value) = r.group.reading.memory.as_ref().and_then(of) {
        o.at(value as f64);
    }
}

fn failures(r: &Row<'_>, o: &mut Out<'_>) {
    let Some(m) = &r.group.reading.memory else { return };
    for (kind, scope, value) in [
        ("pgfault", "container", m.faults),
        ("pgfault", "hierarchy", m.total_faults),
        ("pgmajfault", "container", m.major_faults),
        ("pgmajfault", "hierarchy", m.total_major_faults),
    ] {
        o.with(&[("failure_type", kind), ("scope", scope)], value as f64);
    }
}

fn processes(r: &Row<'_>, o: &mut Out<'_>, of: fn(&Processes) -> Option<u64>) {
    if let Some(value) = r.group.reading.processes.as_ref().and_then(of) {
        o.at(value as f64);
    }
}

/// Microseconds, shown in seconds.
fn pressure(o: &mut Out<'_>, psi: Option<Psi>, of: fn(&Psi) -> u64) {
    if let Some(psi) = &psi {
        o.at(of(psi) as f64 / 1e6);
    }
}

fn limit(o: &mut Out<'_>, value: Option<u64>) {
    if let Some(value) = value {
        o.bare(value as f64);
    }
}

/// The node's interfaces are the root's, a pod's are its sandbox's.
fn network(r: &Row<'_>, o: &mut Out<'_>, of: fn(&Interface) -> u64) {
    let network: Option<&Network> = match r.whose {
        Whose::Root => r.sample.network.as_ref(),
        Whose::Sandbox(at) => r.sample.pods.get(at).and_then(|p| p.network.as_ref()),
        // A runtime that needs no sandbox process: the pod itself stands for it.
        Whose::Pod(at) => {
            r.sample.pods.get(at).filter(|p| p.sandbox.is_none()).and_then(|p| p.network.as_ref())
        }
        _ => None,
    };
    for interface in network.into_iter().flat_map(|n| &n.interfaces) {
        o.with(&[("interface", &interface.name)], of(interface) as f64);
    }
}

/// File systems are the root's.
fn disk(r: &Row<'_>, o: &mut Out<'_>, of: fn(&DiskStats) -> Option<f64>) {
    if r.whose == Whose::Root {
        for disk in &r.sample.disks {
            if let Some(value) = of(disk) {
                o.with(&[("device", &disk.device)], value);
            }
        }
    }
}

/// One of the counters of `/proc/diskstats`.
fn counted(r: &Row<'_>, o: &mut Out<'_>, nth: usize, unit: f64) {
    if r.whose == Whose::Root {
        for disk in &r.sample.disks {
            if let Some(counters) = &disk.counters {
                o.with(&[("device", &disk.device)], counters[nth] as f64 / unit);
            }
        }
    }
}

fn io(r: &Row<'_>, o: &mut Out<'_>, of: fn(&DeviceIo) -> u64) {
    for io in &r.group.reading.io {
        o.with(&[("device", device(r, io))], of(io) as f64);
    }
}

/// The root's file systems have lines of these names from the disks' own counters.
fn not_root(r: &Row<'_>, o: &mut Out<'_>, of: fn(&DeviceIo) -> u64) {
    if r.whose != Whose::Root {
        io(r, o, of);
    }
}

fn blkio(r: &Row<'_>, o: &mut Out<'_>) {
    for io in &r.group.reading.io {
        let (major, minor) = (io.device.0.to_string(), io.device.1.to_string());
        for (operation, bytes) in [("Read", io.read_bytes), ("Write", io.written_bytes)] {
            let labels = [
                ("device", device(r, io)),
                ("major", major.as_str()),
                ("minor", minor.as_str()),
                ("operation", operation),
            ];
            o.with(&labels, bytes as f64);
        }
    }
}

fn device<'a>(r: &Row<'a>, io: &DeviceIo) -> &'a str {
    r.sample.devices.get(&io.device).map_or("", String::as_str)
}

/// Seconds since the epoch: as the runtime tells of what it made, otherwise the cgroup's own time.
fn started(r: &Row<'_>) -> i64 {
    let nanos = match r.whose {
        Whose::Root => return r.machine.booted,
        Whose::Pod(at) | Whose::Sandbox(at) => Some(r.sample.pods[at].subject.sandbox.created_at),
        Whose::Container(at, n) => {
            let pod = &r.sample.pods[at];
            Some(pod.subject.containers[pod.containers[n].0].created_at)
        }
        Whose::Part(_) => r.group.reading.changed,
    };
    nanos.map_or(r.machine.booted, |n| n / 1_000_000_000)
}
