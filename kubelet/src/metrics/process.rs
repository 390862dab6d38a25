//! The `process_*` families, read from `/proc` when the page is made.
//!
//! Source of the names and meanings: the Prometheus client libraries' process collector, which upstream exposes.

use super::{Kind, Registry, Writer};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `USER_HZ`, the unit of times in `/proc/PID/stat`: 100 on every Linux architecture a container runtime supports
/// (proc(5)); it is an ABI constant, not the kernel's own tick rate.
const USER_HZ: f64 = 100.0;

/// Reads the figures of one process.
#[derive(Clone, Debug)]
pub struct Process {
    proc: PathBuf,
}

/// What one reading gave; what could not be read is `None` and not shown.
#[derive(Debug, Default, PartialEq)]
struct Reading {
    cpu_seconds: Option<f64>,
    start_time: Option<f64>,
    virtual_bytes: Option<f64>,
    resident_bytes: Option<f64>,
    open_fds: Option<f64>,
    max_fds: Option<f64>,
    max_virtual_bytes: Option<f64>,
    received_bytes: Option<f64>,
    sent_bytes: Option<f64>,
}

impl Process {
    /// The agent itself, by way of `proc`, normally `/proc`.
    pub fn new(proc: impl Into<PathBuf>) -> Self {
        Self { proc: proc.into() }
    }

    /// Adds the `process_*` families to `registry`.
    pub fn register(self, registry: &Registry) {
        let this = Arc::new(self);
        registry.collector("process_cpu_seconds_total", move |w| this.read().write(w));
    }

    /// When the process started, in seconds since the epoch.
    pub fn start_time(&self) -> Option<f64> {
        self.read().start_time
    }

    fn read(&self) -> Reading {
        let own = self.proc.join("self");
        let mut r = Reading::default();
        self.read_stat(&own, &mut r);
        if let Ok(limits) = std::fs::read_to_string(own.join("limits")) {
            r.max_fds = limit(&limits, "Max open files");
            r.max_virtual_bytes = limit(&limits, "Max address space");
        }
        if let Ok(status) = std::fs::read_to_string(own.join("status")) {
            let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
            r.resident_bytes = line
                .and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok())
                .map(|kibibytes| kibibytes * 1024.0);
        }
        if let Ok(fds) = std::fs::read_dir(own.join("fd")) {
            #[expect(clippy::cast_precision_loss, reason = "a process cannot have 2^53 descriptors")]
            // The directory being read is one of the descriptors it lists.
            let open = fds.count().saturating_sub(1) as f64;
            r.open_fds = Some(open);
        }
        if let Ok(netstat) = std::fs::read_to_string(own.join("net/netstat")) {
            r.received_bytes = netstat_field(&netstat, "IpExt:", "InOctets");
            r.sent_bytes = netstat_field(&netstat, "IpExt:", "OutOctets");
        }
        r
    }

    fn read_stat(&self, own: &Path, r: &mut Reading) {
        let Ok(stat) = std::fs::read_to_string(own.join("stat")) else { return };
        // The command in parentheses may hold anything, so fields count from its last parenthesis: the first one
        // behind it is field 3 of proc(5).
        let Some((_, rest)) = stat.rsplit_once(')') else { return };
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).and_then(|v| v.parse::<f64>().ok());
        if let (Some(user), Some(system)) = (field(14), field(15)) {
            r.cpu_seconds = Some((user + system) / USER_HZ);
        }
        r.virtual_bytes = field(23);
        let boot = std::fs::read_to_string(self.proc.join("stat"))
            .ok()
            .and_then(|stat| stat.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse::<f64>().ok());
        if let (Some(boot), Some(after)) = (boot, field(22)) {
            r.start_time = Some(boot + after / USER_HZ);
        }
    }
}

impl Reading {
    fn write(&self, w: &mut Writer) {
        let mut one = |name, help, kind, value: Option<f64>| {
            if let Some(value) = value {
                w.family(name, help, kind);
                w.sample(name, "", &[], value);
            }
        };
        use Kind::{Counter, Gauge};
        one("process_cpu_seconds_total", "CPU time used by the agent.", Counter, self.cpu_seconds);
        one("process_max_fds", "Limit of open file descriptors.", Gauge, self.max_fds);
        let help = "Bytes received in the agent's network namespace.";
        one("process_network_receive_bytes_total", help, Counter, self.received_bytes);
        let help = "Bytes sent in the agent's network namespace.";
        one("process_network_transmit_bytes_total", help, Counter, self.sent_bytes);
        one("process_open_fds", "Open file descriptors.", Gauge, self.open_fds);
        one("process_resident_memory_bytes", "Resident memory.", Gauge, self.resident_bytes);
        let help = "Start of the agent, in seconds since the epoch.";
        one("process_start_time_seconds", help, Gauge, self.start_time);
        one("process_virtual_memory_bytes", "Virtual memory.", Gauge, self.virtual_bytes);
        let help = "Limit of virtual memory.";
        one("process_virtual_memory_max_bytes", help, Gauge, self.max_virtual_bytes);
    }
}

/// The soft limit named `name` of `/proc/PID/limits`; no limit reads as the largest 64-bit number, as upstream shows.
fn limit(limits: &str, name: &str) -> Option<f64> {
    let soft = limits.lines().find_map(|l| l.strip_prefix(name))?.split_whitespace().next()?;
    if soft == "unlimited" { Some(2f64.powi(64)) } else { soft.parse().ok() }
}

/// The value of column `name` in the pair of lines that start with `table` in `/proc/PID/net/netstat`.
fn netstat_field(netstat: &str, table: &str, name: &str) -> Option<f64> {
    let mut lines = netstat.lines().filter_map(|l| l.strip_prefix(table));
    let at = lines.next()?.split_whitespace().position(|column| column == name)?;
    lines.next()?.split_whitespace().nth(at)?.parse().ok()
}
