//! Reads a cgroup's files into a [`Reading`], on v1 and v2. Blocks for a few microseconds per file.
//!
//! Upstream's rules for what is derived: working set is usage less inactive file cache; on v2 the root, which has no
//! `memory.current`, uses anonymous memory and file cache; its limits are what the machine has.

use super::files::{Dir, Reader, lines, number, pairs, words};
use super::reading::{CpuCounters, DeviceIo, Limits, MemoryCounters, Pressure, Reading, Throttling};
use super::summary::{Psi, PsiData};
use crate::cgroup::Lookup;
use jiff::Timestamp;
use std::path::Path;

/// Larger limits are none: v1 says "no limit" with a very large one.
const UNLIMITED: u64 = 1 << 62;

/// An open cgroup: its directory in each hierarchy.
#[derive(Debug)]
pub struct Open {
    v2: bool,
    root: bool,
    cpu: Option<Dir>,
    cpuacct: Option<Dir>,
    memory: Option<Dir>,
    pids: Option<Dir>,
    blkio: Option<Dir>,
}

impl Open {
    /// Opens the cgroup `path`; `None` once it is gone, or where it never was.
    pub fn new(lookup: &Lookup, path: &str) -> Option<Self> {
        let open = |controller: &str| Dir::open(&lookup.dir(controller, path)?);
        Self::with(lookup.is_v2(), path == "/", open)
    }

    /// Opens the child `name`; `None` once it is gone.
    pub fn child(&self, name: &str) -> Option<Self> {
        let dir = |controller: &str| match controller {
            "cpu" => self.cpu.as_ref(),
            "cpuacct" => self.cpuacct.as_ref(),
            "memory" => self.memory.as_ref(),
            "pids" => self.pids.as_ref(),
            _ => self.blkio.as_ref(),
        };
        Self::with(self.v2, false, |controller| dir(controller)?.open_in(name))
    }

    fn with(v2: bool, root: bool, open: impl Fn(&str) -> Option<Dir>) -> Option<Self> {
        if v2 {
            let memory = Some(open("memory")?);
            return Some(Self { v2, root, cpu: None, cpuacct: None, memory, pids: None, blkio: None });
        }
        let all = Self {
            v2,
            root,
            cpu: open("cpu"),
            cpuacct: open("cpuacct"),
            memory: open("memory"),
            pids: open("pids"),
            blkio: open("blkio"),
        };
        (all.cpuacct.is_some() || all.memory.is_some()).then_some(all)
    }

    /// A directory in which `cgroup.procs` and the cgroup's children are; that of the memory controller first, because
    /// every runtime sets it.
    pub fn dir(&self) -> Option<&Dir> {
        self.memory.as_ref().or(self.cpuacct.as_ref())
    }

    /// The directory of one controller.
    fn of(&self, v1: &'static str) -> Option<&Dir> {
        if self.v2 {
            return self.memory.as_ref();
        }
        match v1 {
            "cpu" => self.cpu.as_ref(),
            "cpuacct" => self.cpuacct.as_ref(),
            "pids" => self.pids.as_ref(),
            "blkio" => self.blkio.as_ref(),
            _ => self.memory.as_ref(),
        }
    }

    /// Everything but its processes. `None` if the cgroup went while it was being read. `limits` are taken as they are where
    /// the caller knows them: they are a third of the files.
    pub fn read(&self, reader: &mut Reader, limits: Option<Limits>) -> Option<Reading> {
        let reading = Reading {
            at: Timestamp::now(),
            cpu: self.cpu(reader),
            memory: self.memory(reader),
            tasks: self.of("pids").and_then(|d| reader.number(d, "pids.current")),
            io: self.io(reader),
            psi: self.pressure(reader),
            limits: limits.unwrap_or_else(|| self.limits(reader)),
            processes: None,
            changed: self.changed(),
        };
        (reading.cpu.is_some() || reading.memory.is_some()).then_some(reading)
    }

    /// CPU and memory, without limits and whatever else.
    pub fn memory(&self, reader: &mut Reader) -> Option<MemoryCounters> {
        let dir = self.memory.as_ref()?;
        if self.v2 { memory_v2(reader, dir, self.root) } else { memory_v1(reader, dir) }
    }

    fn cpu(&self, reader: &mut Reader) -> Option<CpuCounters> {
        if self.v2 {
            return self.memory.as_ref().and_then(|dir| cpu_v2(reader.read(dir, "cpu.stat")?));
        }
        let acct = self.cpuacct.as_ref()?;
        let mut cpu = CpuCounters { total: reader.number(acct, "cpuacct.usage")?, ..CpuCounters::default() };
        if let Some(text) = reader.read(acct, "cpuacct.stat") {
            for (key, ticks) in pairs(text) {
                match key {
                    b"user" => cpu.user = ticks.saturating_mul(TICK),
                    b"system" => cpu.system = ticks.saturating_mul(TICK),
                    _ => {}
                }
            }
        }
        let stat = self.cpu.as_ref().and_then(|dir| reader.read(dir, "cpu.stat"));
        cpu.throttling = stat.map(|text| throttling(text, 1));
        Some(cpu)
    }

    fn io(&self, reader: &mut Reader) -> Vec<DeviceIo> {
        if self.v2 {
            let text = self.memory.as_ref().and_then(|dir| reader.read(dir, "io.stat"));
            return text.map(io_v2).unwrap_or_default();
        }
        let mut devices = Vec::new();
        if let Some(dir) = &self.blkio {
            for (file, bytes) in [
                ("blkio.throttle.io_service_bytes_recursive", true),
                ("blkio.throttle.io_serviced_recursive", false),
            ] {
                if let Some(text) = reader.read(dir, file) {
                    io_v1(text, bytes, &mut devices);
                }
            }
        }
        devices
    }

    fn pressure(&self, reader: &mut Reader) -> Pressure {
        let (dir, files) = if self.root {
            (Dir::open(Path::new("/proc/pressure")), ["cpu", "memory", "io"])
        } else if self.v2 {
            (None, ["cpu.pressure", "memory.pressure", "io.pressure"])
        } else {
            return Pressure::default();
        };
        let Some(dir) = dir.as_ref().or(self.memory.as_ref()) else { return Pressure::default() };
        let mut of = |file| reader.read(dir, file).and_then(psi);
        Pressure { cpu: of(files[0]), memory: of(files[1]), io: of(files[2]) }
    }

    /// Its limits alone.
    pub fn limits(&self, reader: &mut Reader) -> Limits {
        if self.v2 { self.limits_v2(reader) } else { self.limits_v1(reader) }
    }

    fn limits_v1(&self, reader: &mut Reader) -> Limits {
        let mut limits = Limits::default();
        if let Some(dir) = &self.cpu {
            limits.cpu_shares = reader.number(dir, "cpu.shares");
            limits.cpu_period = reader.number(dir, "cpu.cfs_period_us");
            // Without a quota the file says -1, which is no number here.
            limits.cpu_quota = reader.number(dir, "cpu.cfs_quota_us");
        }
        if let Some(dir) = &self.memory {
            limits.memory = reader.number(dir, "memory.limit_in_bytes").filter(|n| *n < UNLIMITED);
            limits.swap_file = reader.number(dir, "memory.memsw.limit_in_bytes");
            limits.reservation = reader.number(dir, "memory.soft_limit_in_bytes");
            let both = limits.swap_file.filter(|n| *n < UNLIMITED);
            limits.swap = both.zip(limits.memory).map(|(both, memory)| both.saturating_sub(memory));
        }
        if let Some(dir) = &self.pids {
            limits.tasks = reader.number(dir, "pids.max").filter(|n| *n != u64::MAX);
        }
        limits
    }

    fn limits_v2(&self, reader: &mut Reader) -> Limits {
        let Some(dir) = &self.memory else { return Limits::default() };
        let (quota, period) = reader.read(dir, "cpu.max").map(quota_and_period).unwrap_or_default();
        let swap_file = reader.number(dir, "memory.swap.max");
        Limits {
            cpu_shares: reader.number(dir, "cpu.weight").map(shares_of_weight),
            cpu_quota: quota,
            cpu_period: period,
            memory: reader.number(dir, "memory.max").filter(|n| *n < UNLIMITED),
            swap: swap_file.filter(|n| *n < UNLIMITED),
            swap_file,
            reservation: reader.number(dir, "memory.min"),
            tasks: reader.number(dir, "pids.max").filter(|n| *n != u64::MAX),
        }
    }

    fn changed(&self) -> Option<i64> {
        let stat = rustix::fs::fstat(self.dir()?.fd()).ok()?;
        Some(stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec.cast_signed()))
    }
}

/// v1 counts the split of CPU time in hundredths of a second (`USER_HZ`), whatever the kernel's own tick is.
const TICK: u64 = 10_000_000;

/// `unit`: what `throttled_time` (v1, nanoseconds) or `throttled_usec` counts in.
fn throttling(text: &[u8], unit: u64) -> Throttling {
    let mut t = Throttling::default();
    for (key, n) in pairs(text) {
        match key {
            b"nr_periods" => t.periods = n,
            b"nr_throttled" => t.throttled_periods = n,
            b"throttled_time" | b"throttled_usec" => t.throttled = n.saturating_mul(unit),
            b"nr_bursts" => t.burst_periods = n,
            b"burst_time" | b"burst_usec" => t.burst = n.saturating_mul(unit),
            _ => {}
        }
    }
    t
}

fn cpu_v2(text: &[u8]) -> Option<CpuCounters> {
    let mut cpu = CpuCounters::default();
    let (mut known, mut limited) = (false, false);
    for (key, usec) in pairs(text) {
        match key {
            b"usage_usec" => (cpu.total, known) = (usec.saturating_mul(1000), true),
            b"user_usec" => cpu.user = usec.saturating_mul(1000),
            b"system_usec" => cpu.system = usec.saturating_mul(1000),
            b"nr_periods" => limited = true,
            _ => {}
        }
    }
    cpu.throttling = limited.then(|| throttling(text, 1000));
    known.then_some(cpu)
}

fn memory_v1(reader: &mut Reader, dir: &Dir) -> Option<MemoryCounters> {
    let mut m = MemoryCounters { usage: reader.number(dir, "memory.usage_in_bytes")?, ..Default::default() };
    for (key, n) in pairs(reader.read(dir, "memory.stat")?) {
        match key {
            b"total_cache" => m.cache = n,
            b"total_rss" => m.rss = n,
            b"total_mapped_file" => m.mapped_file = n,
            b"total_swap" => m.swap = n,
            b"total_inactive_file" => m.inactive_file = n,
            b"total_active_file" => m.active_file = n,
            b"pgfault" => m.faults = n,
            b"pgmajfault" => m.major_faults = n,
            b"total_pgfault" => m.total_faults = n,
            b"total_pgmajfault" => m.total_major_faults = n,
            _ => {}
        }
    }
    m.working_set = m.usage.saturating_sub(m.inactive_file);
    m.max_usage = reader.number(dir, "memory.max_usage_in_bytes");
    m.failures = reader.number(dir, "memory.failcnt");
    m.kernel = reader.number(dir, "memory.kmem.usage_in_bytes");
    m.oom_kills = reader.read(dir, "memory.oom_control").and_then(|text| value(text, b"oom_kill"));
    Some(m)
}

fn memory_v2(reader: &mut Reader, dir: &Dir, root: bool) -> Option<MemoryCounters> {
    let mut m = MemoryCounters::default();
    for (key, n) in pairs(reader.read(dir, "memory.stat")?) {
        match key {
            b"file" => m.cache = n,
            b"anon" => m.rss = n,
            b"file_mapped" => m.mapped_file = n,
            b"inactive_file" => m.inactive_file = n,
            b"active_file" => m.active_file = n,
            b"kernel" => m.kernel = Some(n),
            b"pgfault" => (m.faults, m.total_faults) = (n, n),
            b"pgmajfault" => (m.major_faults, m.total_major_faults) = (n, n),
            _ => {}
        }
    }
    if root {
        m.usage = m.rss.saturating_add(m.cache);
        let (total, free) = swap_of_machine(reader);
        m.swap = total.saturating_sub(free);
    } else {
        m.usage = reader.number(dir, "memory.current")?;
        m.swap = reader.number(dir, "memory.swap.current").unwrap_or(0);
        m.max_usage = reader.number(dir, "memory.peak");
        if let Some(text) = reader.read(dir, "memory.events") {
            m.failures = value(text, b"max");
            m.oom_kills = value(text, b"oom_kill");
        }
    }
    m.working_set = m.usage.saturating_sub(m.inactive_file);
    Some(m)
}

/// `SwapTotal` and `SwapFree`, bytes.
pub fn swap_of_machine(reader: &mut Reader) -> (u64, u64) {
    let text = reader.read_path(Path::new("/proc/meminfo")).unwrap_or_default();
    let kib = |key: &[u8]| value(text, key).unwrap_or(0).saturating_mul(1024);
    (kib(b"SwapTotal:"), kib(b"SwapFree:"))
}

fn value(text: &[u8], key: &[u8]) -> Option<u64> {
    pairs(text).find_map(|(k, n)| (k == key).then_some(n))
}

/// `8:0 Read 4096`; the line `Total` has no device. Devices that did nothing are left out by the kernel.
fn io_v1(text: &[u8], bytes: bool, devices: &mut Vec<DeviceIo>) {
    for line in lines(text) {
        let mut words = words(line);
        let (Some(id), Some(what), Some(n)) = (words.next().and_then(device), words.next(), words.next())
        else {
            continue;
        };
        let Some(n) = number(n) else { continue };
        let at = devices.iter().position(|d| d.device == id).unwrap_or_else(|| {
            devices.push(DeviceIo { device: id, ..DeviceIo::default() });
            devices.len() - 1
        });
        match (what, bytes) {
            (b"Read", true) => devices[at].read_bytes = n,
            (b"Write", true) => devices[at].written_bytes = n,
            (b"Read", false) => devices[at].reads = n,
            (b"Write", false) => devices[at].writes = n,
            _ => {}
        }
    }
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`
fn io_v2(text: &[u8]) -> Vec<DeviceIo> {
    let line = |line| {
        let mut words = words(line);
        let mut io = DeviceIo { device: device(words.next()?)?, ..DeviceIo::default() };
        for word in words {
            let at = word.iter().position(|b| *b == b'=')?;
            let n = number(&word[at + 1..]).unwrap_or(0);
            match &word[..at] {
                b"rbytes" => io.read_bytes = n,
                b"wbytes" => io.written_bytes = n,
                b"rios" => io.reads = n,
                b"wios" => io.writes = n,
                _ => {}
            }
        }
        Some(io)
    };
    lines(text).filter_map(line).collect()
}

/// `8:16`
fn device(word: &[u8]) -> Option<(u32, u32)> {
    let at = word.iter().position(|b| *b == b':')?;
    let part = |part| number(part).and_then(|n| u32::try_from(n).ok());
    Some((part(&word[..at])?, part(&word[at + 1..])?))
}

/// `max 100000` or `20000 100000`
fn quota_and_period(text: &[u8]) -> (Option<u64>, Option<u64>) {
    let mut numbers = words(text.trim_ascii()).map(number);
    let quota = numbers.next().flatten().filter(|n| *n != u64::MAX);
    (quota, numbers.next().flatten())
}

/// The inverse of what turns `cpu.shares` into `cpu.weight`, as upstream shows it.
fn shares_of_weight(weight: u64) -> u64 {
    2 + (weight.clamp(1, 10_000) - 1) * 262_142 / 9999
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and a line `full` likewise.
fn psi(text: &[u8]) -> Option<Psi> {
    let mut psi = Psi::default();
    let mut any = false;
    for line in lines(text) {
        let mut words = words(line);
        let to = match words.next()? {
            b"some" => &mut psi.some,
            b"full" => &mut psi.full,
            _ => continue,
        };
        *to = psi_line(words);
        any = true;
    }
    any.then_some(psi)
}

fn psi_line<'a>(words: impl Iterator<Item = &'a [u8]>) -> PsiData {
    let mut data = PsiData::default();
    for word in words {
        let Ok(word) = std::str::from_utf8(word) else { continue };
        let Some((key, text)) = word.split_once('=') else { continue };
        let percent = || text.parse().unwrap_or(0.0);
        match key {
            "avg10" => data.avg10 = percent(),
            "avg60" => data.avg60 = percent(),
            "avg300" => data.avg300 = percent(),
            "total" => data.total = text.parse().unwrap_or(0),
            _ => {}
        }
    }
    data
}
