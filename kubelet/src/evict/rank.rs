//! In which order pods are evicted. Pure.
//!
//! Rules: upstream's rankings. Who uses more than it requests goes first, then who has the lower priority, then who uses
//! most above its request; for processes only priority and number count. Pods of which nothing is known go before those of
//! which something is: they may be what takes it all.

use super::measure::{DiskUse, PodUse};
use super::signal::{Resource, Signal};
use super::threshold::Layout;
use crate::api::{self, Pod, PodRef, PodUid, Volume};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

/// A pod that runs, or may.
#[derive(Clone, Debug)]
pub struct Active {
    /// Who.
    pub who: PodRef,
    /// Its object.
    pub pod: Arc<Pod>,
    /// Bytes of memory it requests.
    pub memory: i64,
    /// Bytes of local storage it requests.
    pub storage: i64,
    /// Bytes of local storage its containers may use together; `None`: no limit.
    pub storage_limit: Option<i64>,
}

/// Which of a pod's data is on the file system in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    layers: bool,
    logs_and_volumes: bool,
}

/// What pods have on the file system that `signal` looks at.
pub fn parts(signal: Signal, layout: Layout) -> Parts {
    let all = Parts { layers: true, logs_and_volumes: true };
    match (signal, layout) {
        (Signal::NodeFs | Signal::NodeFsInodes, Layout::OfRuntime) => Parts { layers: false, ..all },
        (_, Layout::OfRuntime) => Parts { logs_and_volumes: false, ..all },
        // Only images are there, and these are no pod's.
        (Signal::ImageFs | Signal::ImageFsInodes, Layout::OfImages) => {
            Parts { layers: false, logs_and_volumes: false }
        }
        _ => all,
    }
}

/// Layers count, and of no pod's it is known what is in them: the runtime does not tell, and whom it would cost is a guess.
pub fn nothing_told(used: &HashMap<PodUid, PodUse>, signal: Signal, layout: Layout) -> bool {
    let on_disk = matches!(signal.resource(), Resource::EphemeralStorage | Resource::Inodes);
    let mut containers = used.values().flat_map(|u| &u.containers).peekable();
    on_disk
        && parts(signal, layout).layers
        && containers.peek().is_some()
        && containers.all(|c| c.rootfs.is_none())
}

/// What the pod has of `parts`, as far as that is known; `None` if nothing is.
fn disk_use(pod: &Pod, used: &PodUse, parts: Parts) -> Option<DiskUse> {
    let mut sum = DiskUse::default();
    // Of what no pod has anything every pod has nothing.
    let mut known = !parts.layers && !parts.logs_and_volumes;
    let mut add = |more: &DiskUse| {
        known = true;
        sum.bytes = sum.bytes.saturating_add(more.bytes);
        sum.inodes = sum.inodes.saturating_add(more.inodes);
    };
    for c in &used.containers {
        c.rootfs.iter().filter(|_| parts.layers).for_each(&mut add);
        c.logs.iter().filter(|_| parts.logs_and_volumes).for_each(&mut add);
    }
    if parts.logs_and_volumes {
        let local = api::spec(pod).volumes.iter().flatten().filter(|v| is_local(v));
        local.filter_map(|v| used.volumes.get(&v.name)).for_each(&mut add);
    }
    known.then_some(sum)
}

/// What is in the volume is on the node's own disk.
fn is_local(v: &Volume) -> bool {
    let on_disk = v.empty_dir.as_ref().is_some_and(|e| e.medium.as_deref().unwrap_or_default().is_empty());
    v.host_path.is_some() || on_disk || v.config_map.is_some() || v.git_repo.is_some()
}

/// The place of one pod among the others: the smallest goes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    unknown: Reverse<bool>,
    exceeds: Reverse<bool>,
    priority: i32,
    above: Reverse<i128>,
    /// Of equals the first by name, so that the order does not hang on chance.
    name: (Arc<str>, Arc<str>),
}

/// Sorts `pods`: the first is evicted first when `signal` is low.
pub fn rank(pods: &mut [Active], used: &HashMap<PodUid, PodUse>, signal: Signal, layout: Layout) {
    let parts = parts(signal, layout);
    pods.sort_by_cached_key(|a| {
        let used = used.get(&a.who.uid);
        let (usage, request) = match signal.resource() {
            Resource::Memory => (used.and_then(|u| u.memory).map(i128::from), i128::from(a.memory)),
            Resource::EphemeralStorage => {
                (used.and_then(|u| disk_use(&a.pod, u, parts)).map(|d| d.bytes.into()), i128::from(a.storage))
            }
            Resource::Inodes => (used.and_then(|u| disk_use(&a.pod, u, parts)).map(|d| d.inodes.into()), 0),
            Resource::Pids => (used.and_then(|u| u.processes).map(i128::from), 0),
        };
        let counts_requests = signal.resource() != Resource::Pids;
        // Of processes nobody exceeds anything, known or not.
        Place {
            unknown: Reverse(counts_requests && usage.is_none()),
            exceeds: Reverse(counts_requests && usage.is_some_and(|u| u > request)),
            priority: api::spec(&a.pod).priority.unwrap_or(0),
            above: Reverse(usage.map_or(i128::MAX, |u| u - request)),
            name: (a.who.namespace.clone(), a.who.name.clone()),
        }
    });
}

#[cfg(test)]
#[path = "rank_tests.rs"]
mod tests;
