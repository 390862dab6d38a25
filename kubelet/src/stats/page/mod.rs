//! Samples as Prometheus pages: `/metrics/cadvisor` and `/metrics/resource`, made piece by piece as the client takes
//! them. Pure.
//!
//! Names, types, labels and units are upstream's, families are in order of their names as upstream's library prints
//! them. A page for a full node has megabytes, so lines are written into one buffer without a look at a registry: labels
//! of a cgroup are put together once and copied.

mod container;
mod line;
mod machine;
mod resource;

pub use resource::resource;

use super::machine::Identity;
use super::sample::{Group, Sample};
use bytes::Bytes;
use line::{Labels, Out};
use std::sync::Arc;

/// How large pieces are made.
const PIECE: usize = 16 * 1024;

/// The kind of a family.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Counter,
    Gauge,
}

/// One family over cgroups.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    /// Writes the family's lines of one cgroup.
    lines: fn(&Row<'_>, &mut Out<'_>),
}

/// One cgroup, as families see it.
struct Row<'a> {
    group: &'a Group,
    /// Whose it is.
    whose: Whose,
    sample: &'a Sample,
    /// What the machine has, for the root's limits.
    machine: &'a Machine,
}

/// Whose cgroup it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Root,
    Part(usize),
    Pod(usize),
    Sandbox(usize),
    Container(usize, usize),
}

/// What pages say of the machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Who it is.
    pub identity: Identity,
    /// `MemTotal`, bytes.
    pub memory: u64,
    /// `SwapTotal`, bytes.
    pub swap: u64,
    /// Seconds since the epoch.
    pub booted: i64,
}

/// The page of `/metrics/cadvisor` in pieces.
pub fn cadvisor(sample: Arc<Sample>, machine: Arc<Machine>) -> impl Iterator<Item = Bytes> + Send + 'static {
    let rows = rows(&sample);
    // Where the page is: the family, and the cgroup within it.
    let (mut family, mut at) = (0, 0);
    let mut head = Some(machine::head(&machine));
    let mut tail = Some(machine::tail(&machine));
    let families = container::families();
    std::iter::from_fn(move || {
        let mut out: Vec<u8> = head.take().unwrap_or_default();
        while out.len() < PIECE {
            let Some(of) = families.get(family) else {
                out.extend(tail.take().unwrap_or_default());
                break;
            };
            let mut opened = at > 0;
            while let Some((whose, labels)) = rows.get(at) {
                let Some(group) = group(&sample, *whose) else {
                    at += 1;
                    continue;
                };
                let row = Row { group, whose: *whose, sample: &sample, machine: &machine };
                (of.lines)(&row, &mut Out::new(&mut out, of, labels, &mut opened));
                at += 1;
                if out.len() >= PIECE {
                    break;
                }
            }
            if at >= rows.len() {
                (family, at) = (family + 1, 0);
            }
        }
        (!out.is_empty()).then(|| out.into())
    })
}

/// Every cgroup of the sample with its labels.
fn rows(sample: &Sample) -> Vec<(Whose, Labels)> {
    let mut rows: Vec<(Whose, Labels)> = Vec::new();
    rows.extend(sample.root.iter().map(|group| (Whose::Root, Labels::of_part(group))));
    rows.extend(parts(sample).enumerate().map(|(at, group)| (Whose::Part(at), Labels::of_part(group))));
    for (at, pod) in sample.pods.iter().enumerate() {
        let subject = &pod.subject;
        let own = pod.group.iter().map(|group| (Whose::Pod(at), Labels::of_pod(group, &subject.id)));
        let sandbox = pod.sandbox.iter();
        let sandbox =
            sandbox.map(|g| (Whose::Sandbox(at), Labels::of_unit(g, &subject.id, &subject.sandbox)));
        let container = |(n, (of, group)): (usize, &(usize, Group))| {
            (Whose::Container(at, n), Labels::of_unit(group, &subject.id, &subject.containers[*of]))
        };
        rows.extend(own.chain(sandbox).chain(pod.containers.iter().enumerate().map(container)));
    }
    rows
}

fn parts(sample: &Sample) -> impl Iterator<Item = &Group> {
    sample.pods_group.iter().chain(&sample.classes).chain(&sample.agent)
}

/// The cgroup that a row is about.
fn group(sample: &Sample, whose: Whose) -> Option<&Group> {
    match whose {
        Whose::Root => sample.root.as_ref(),
        Whose::Part(at) => parts(sample).nth(at),
        Whose::Pod(at) => sample.pods.get(at)?.group.as_ref(),
        Whose::Sandbox(at) => sample.pods.get(at)?.sandbox.as_ref(),
        Whose::Container(at, n) => sample.pods.get(at)?.containers.get(n).map(|(_, group)| group),
    }
}

#[cfg(test)]
mod tests;
