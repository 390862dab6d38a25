//! `/metrics/resource`: CPU, memory and swap of containers, pods and the node, which is what autoscalers read.

use super::super::summary::{ContainerStats, PodStats, Summary, Swap};
use super::Kind;
use super::line::{heading, other};
use crate::api::PodRef;
use bytes::Bytes;
use jiff::Timestamp;

/// The page of `whole`; a few hundred bytes a pod.
pub fn resource(whole: &Summary) -> Bytes {
    let mut page = Page { out: Vec::with_capacity(1024 + 1024 * whole.pods.len()) };
    page.containers(whole);
    page.node(whole);
    page.pods(whole);
    heading(
        &mut page.out,
        "resource_scrape_error",
        "1 if something could not be read, otherwise 0.",
        Kind::Gauge,
    );
    let known = whole.node.cpu.is_some() && whole.node.memory.is_some();
    other(&mut page.out, "resource_scrape_error", &[], if known { 0.0 } else { 1.0 }, None);
    page.out.into()
}

struct Page {
    out: Vec<u8>,
}

type Value = Option<(f64, Timestamp)>;
/// Name, help and type of a family, and what it shows of one `T`.
type Family<'a, T> = (&'a str, &'a str, Kind, &'a dyn Fn(&T) -> Value);

impl Page {
    fn containers<'a>(&mut self, whole: &'a Summary) {
        let families: [Family<'_, ContainerStats>; 5] = [
            ("container_cpu_usage_seconds_total", "CPU time of the container.", Kind::Counter, &|c| {
                seconds(c.cpu?)
            }),
            ("container_memory_working_set_bytes", "Working set of the container.", Kind::Gauge, &|c| {
                working_set(c.memory?)
            }),
            (
                "container_start_time_seconds",
                "When it was made, seconds since the epoch.",
                Kind::Gauge,
                &|c| Some((c.start_time.as_nanosecond() as f64 / 1e9, Timestamp::MIN)),
            ),
            ("container_swap_limit_bytes", "Swap the container may use.", Kind::Gauge, &|c| {
                swap_limit(c.swap?)
            }),
            ("container_swap_usage_bytes", "Swap the container uses.", Kind::Gauge, &|c| swap(c.swap?)),
        ];
        for (name, help, kind, of) in families {
            let containers = whole.pods.iter().flat_map(|p| p.containers.iter().map(move |c| (&p.pod, c)));
            let line = |(pod, c): (&'a PodRef, &'a ContainerStats)| {
                (
                    vec![("container", c.name.as_str()), ("namespace", &*pod.namespace), ("pod", &*pod.name)],
                    of(c),
                )
            };
            self.family(name, help, kind, containers.map(line));
        }
    }

    fn node(&mut self, whole: &Summary) {
        let node = &whole.node;
        let cpu = node.cpu.and_then(seconds);
        self.family("node_cpu_usage_seconds_total", "CPU time of the node.", Kind::Counter, [(vec![], cpu)]);
        let memory = node.memory.and_then(working_set);
        self.family(
            "node_memory_working_set_bytes",
            "Working set of the node.",
            Kind::Gauge,
            [(vec![], memory)],
        );
        let swap = node.swap.and_then(swap);
        self.family("node_swap_usage_bytes", "Swap the node uses.", Kind::Gauge, [(vec![], swap)]);
    }

    fn pods<'a>(&mut self, whole: &'a Summary) {
        let families: [Family<'_, PodStats>; 3] = [
            ("pod_cpu_usage_seconds_total", "CPU time of the pod.", Kind::Counter, &|p| seconds(p.cpu?)),
            ("pod_memory_working_set_bytes", "Working set of the pod.", Kind::Gauge, &|p| {
                working_set(p.memory?)
            }),
            ("pod_swap_usage_bytes", "Swap the pod uses.", Kind::Gauge, &|p| swap(p.swap?)),
        ];
        for (name, help, kind, of) in families {
            let line =
                |p: &'a PodStats| (vec![("namespace", &*p.pod.namespace), ("pod", &*p.pod.name)], of(p));
            self.family(name, help, kind, whole.pods.iter().map(line));
        }
    }

    fn family<'a>(
        &mut self,
        name: &str,
        help: &str,
        kind: Kind,
        lines: impl IntoIterator<Item = (Vec<(&'a str, &'a str)>, Value)>,
    ) {
        let mut opened = false;
        for (labels, value) in lines {
            let Some((value, at)) = value else { continue };
            if !std::mem::replace(&mut opened, true) {
                heading(&mut self.out, name, help, kind);
            }
            // What never changes has no time.
            let at = (at != Timestamp::MIN).then(|| at.as_millisecond());
            other(&mut self.out, name, &labels, value, at);
        }
    }
}

fn seconds(cpu: super::super::summary::Cpu) -> Value {
    cpu.usage_core_nano_seconds.map(|n| (n as f64 / 1e9, cpu.time))
}

fn working_set(memory: super::super::summary::Memory) -> Value {
    memory.working_set_bytes.map(|n| (n as f64, memory.time))
}

fn swap(swap: Swap) -> Value {
    swap.swap_usage_bytes.map(|n| (n as f64, swap.time))
}

/// Nothing where there is no limit.
fn swap_limit(swap: Swap) -> Value {
    let limit = swap.swap_available_bytes?.saturating_add(swap.swap_usage_bytes?);
    Some((limit as f64, swap.time))
}
