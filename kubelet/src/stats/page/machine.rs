//! The families of `/metrics/cadvisor` that are the machine's and no cgroup's.

use super::line::{heading, other};
use super::{Kind, Machine};

/// What stands before the cgroups.
pub fn head(machine: &Machine) -> Vec<u8> {
    let mut out = Vec::new();
    let name = "cadvisor_version_info";
    heading(
        &mut out,
        name,
        "Kernel and operating system; there is no cAdvisor here, whose labels are empty.",
        Kind::Gauge,
    );
    let labels = [
        ("cadvisorRevision", ""),
        ("cadvisorVersion", ""),
        ("dockerVersion", ""),
        ("kernelVersion", machine.identity.kernel.as_str()),
        ("osVersion", machine.identity.os.as_str()),
    ];
    other(&mut out, name, &labels, 1.0, None);
    out
}

/// What stands behind them.
pub fn tail(machine: &Machine) -> Vec<u8> {
    let mut out = Vec::new();
    let id = &machine.identity;
    let labels = [
        ("boot_id", id.boot_id.as_str()),
        ("machine_id", id.machine_id.as_str()),
        ("system_uuid", id.system_uuid.as_str()),
    ];
    let mut one = |name, help, value: u64| {
        heading(&mut out, name, help, Kind::Gauge);
        other(&mut out, name, &labels, value as f64, None);
    };
    one("machine_cpu_books", "Books that CPUs stand in.", id.topology.books);
    one("machine_cpu_cores", "Logical CPUs.", id.cpus);
    one("machine_cpu_drawers", "Drawers that CPUs stand in.", id.topology.drawers);
    one("machine_cpu_physical_cores", "Cores, however many threads each has.", id.topology.cores);
    one("machine_cpu_sockets", "CPU sockets.", id.topology.sockets);
    one("machine_memory_bytes", "Memory of the machine.", machine.memory);
    let (name, help) = ("machine_scrape_error", "1 if the machine could not be read, otherwise 0.");
    heading(&mut out, name, help, Kind::Gauge);
    other(&mut out, name, &[], 0.0, None);
    heading(&mut out, "machine_swap_bytes", "Swap of the machine.", Kind::Gauge);
    other(&mut out, "machine_swap_bytes", &labels, machine.swap as f64, None);
    out
}
