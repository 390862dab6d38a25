//! Which file stands for which pod: what was found on disk, reduced to events.
//!
//! Owned by the task in `file`. Pure: looks go in, events and reports come out, so every sequence can be tested
//! without a disk. Rules:
//!
//! - A file that goes bad keeps its pod; a file that goes away, or becomes something that is no file, loses it.
//! - Two files for one pod (namespace and name, or UID): the one that runs keeps it, the other waits and takes over
//!   when the first lets go. Nothing runs twice and nothing is forgotten.
//! - Changed content without a UID of its own is another pod: the old one's `Gone`, then the new one's `Put`.
//! - Every problem is reported once, not at every look.

use super::manifest::{Look, Problem, Stamp};
use super::{SourceEvent, SourcePod, identity};
use crate::api::{Origin, Pod, PodRef, PodUid};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::Instant;

/// When a batch of looks was taken.
#[derive(Clone, Copy, Debug)]
pub struct When {
    /// By the clock.
    pub seen: jiff::Timestamp,
    /// When the change that led to it was noticed.
    pub arrived: Instant,
}

/// What a batch of looks comes to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// For `world`, in order.
    pub events: Vec<SourceEvent>,
    /// For the log.
    pub reports: Vec<Report>,
}

/// Something to tell the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The file is not what it should be.
    Problem {
        /// The file's name in the directory.
        file: OsString,
        /// What is wrong.
        problem: Problem,
        /// The pod of the file's earlier content, which keeps running.
        keeps: Option<PodRef>,
    },
    /// The file is a pod, but something in it was read over.
    Warning {
        /// The file's name in the directory.
        file: OsString,
        /// What was read over.
        problem: Problem,
    },
    /// The file's pod is already another file's, and waits for it.
    Duplicate {
        /// The file that waits.
        file: OsString,
        /// The pod both stand for.
        pod: PodRef,
        /// The file that has it.
        holder: OsString,
    },
}

/// A file of the directory.
#[derive(Debug, Default)]
struct Entry {
    /// Order of appearance, for who waits longest.
    since: u64,
    stamp: Option<Stamp>,
    /// The last good content, with when it was seen.
    pod: Option<(Arc<Pod>, jiff::Timestamp)>,
    /// What `world` was told.
    sent: Option<Arc<Pod>>,
    /// What was last reported about it.
    problems: Vec<Problem>,
    holder: Option<OsString>,
}

/// All files of the directory.
#[derive(Debug, Default)]
pub struct Table {
    entries: BTreeMap<OsString, Entry>,
    counter: u64,
}

impl Table {
    /// The stamp of `file`, if it has been looked at.
    pub fn stamp(&self, file: &OsStr) -> Option<&Stamp> {
        self.entries.get(file)?.stamp.as_ref()
    }
    /// Whether `file` has been looked at.
    pub fn contains(&self, file: &OsStr) -> bool {
        self.entries.contains_key(file)
    }
    /// The files known.
    pub fn files(&self) -> impl Iterator<Item = &OsString> {
        self.entries.keys()
    }
    /// The files that are symbolic links, or were not readable as anything.
    pub fn links(&self) -> impl Iterator<Item = &OsString> {
        self.entries.iter().filter(|(_, e)| e.stamp.is_none_or(|s| s.link)).map(|(name, _)| name)
    }
    /// Whether there is nothing to lose.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
    /// Everything wrong at the moment, by file.
    pub fn problems(&self) -> Vec<(OsString, Problem)> {
        let duplicate = |holder: &OsString| Problem {
            field: Some("metadata.name".to_owned()),
            message: format!("the pod is already defined by {}", holder.display()),
        };
        let own = |(name, e): (&OsString, &Entry)| -> Vec<_> {
            let held = e.holder.as_ref().map(duplicate);
            e.problems.iter().cloned().chain(held).map(|p| (name.clone(), p)).collect()
        };
        self.entries.iter().flat_map(own).collect()
    }

    /// Takes in a batch of looks, all at once: a rename inside the directory is one step, not two.
    pub fn update(&mut self, looks: Vec<(OsString, Look, Option<Stamp>)>, when: When) -> Outcome {
        let mut out = Outcome::default();
        let mut gone = Vec::new();
        for (file, look, stamp) in looks {
            let bad = match look {
                Look::Unchanged => continue,
                Look::Absent => {
                    gone.extend(self.entries.remove(&file).and_then(|e| e.sent));
                    continue;
                }
                other => other,
            };
            let entry = self.entries.entry(file.clone()).or_insert_with(|| {
                self.counter += 1;
                Entry { since: self.counter, ..Entry::default() }
            });
            entry.stamp = stamp;
            let problems = match bad {
                Look::Pod(mut pod, warnings) => {
                    // The same content keeps the time it was first seen.
                    let known = entry.pod.as_ref().is_some_and(|(old, seen)| {
                        identity::stamp(&mut pod, *seen);
                        **old == *pod
                    });
                    if !known {
                        identity::stamp(&mut pod, when.seen);
                        entry.pod = Some((Arc::new(*pod), when.seen));
                        let warn = |problem| Report::Warning { file: file.clone(), problem };
                        out.reports.extend(warnings.into_iter().map(warn));
                    }
                    Vec::new()
                }
                Look::NotAFile(problem) => {
                    entry.pod = None;
                    vec![problem]
                }
                Look::Bad(problems) => problems,
                Look::Unchanged | Look::Absent => continue,
            };
            if entry.problems != problems {
                let keeps = entry.pod.as_ref().map(|(pod, _)| PodRef::of(pod));
                let report = |problem| Report::Problem { file: file.clone(), problem, keeps: keeps.clone() };
                out.reports.extend(problems.iter().cloned().map(report));
                entry.problems = problems;
            }
        }
        self.settle(gone, when.arrived, &mut out);
        out
    }

    /// Decides who has which pod and tells the difference to what was told: everything that goes, then what comes.
    fn settle(&mut self, gone: Vec<Arc<Pod>>, arrived: Instant, out: &mut Outcome) {
        let owners = self.owners();
        let mut going: Vec<PodUid> = gone.iter().map(|p| uid(p)).collect();
        let mut coming = Vec::new();
        for (file, entry) in &mut self.entries {
            let holder = entry.pod.as_ref().and_then(|(pod, _)| owners.holder(pod, file));
            let wanted = entry.pod.clone().filter(|_| holder.is_none());
            match (&entry.sent, &wanted) {
                (Some(sent), Some((pod, _))) if Arc::ptr_eq(sent, pod) => {}
                (None, None) => {}
                (sent, wanted) => {
                    let old = sent.as_ref().map(|p| uid(p));
                    let new = wanted.as_ref().map(|(p, _)| uid(p));
                    going.extend(old.filter(|old| Some(old) != new.as_ref()));
                    // A pod that had to wait arrives now, though it was seen before.
                    coming.extend(wanted.clone().map(|(pod, seen)| SourcePod {
                        origin: Origin::File,
                        pod,
                        seen,
                        arrived,
                    }));
                }
            }
            entry.sent = wanted.map(|(pod, _)| pod);
            if entry.holder != holder {
                if let (Some(holder), Some((pod, _))) = (&holder, &entry.pod) {
                    let (file, holder) = (file.clone(), holder.clone());
                    out.reports.push(Report::Duplicate { file, pod: PodRef::of(pod), holder });
                }
                entry.holder = holder;
            }
        }
        // One file may hand a pod with a UID of its own to another: that is an update, not an end.
        let handed_on = |u: &PodUid| coming.iter().any(|p: &SourcePod| uid(&p.pod) == *u);
        going.retain(|u| !handed_on(u));
        // Who comes first is admitted first.
        coming.sort_by_key(|p: &SourcePod| std::cmp::Reverse(priority(&p.pod)));
        let origin = Origin::File;
        out.events.extend(going.into_iter().map(|uid| SourceEvent::Gone { origin, uid }));
        out.events.extend(coming.into_iter().map(SourceEvent::Put));
    }

    /// Who may have which name and UID: whoever runs under it already, then who was there first.
    fn owners(&self) -> Owners {
        let mut candidates: Vec<_> =
            self.entries.iter().filter_map(|(file, e)| Some((file, e, &e.pod.as_ref()?.0))).collect();
        candidates.sort_by_key(|(_, entry, pod)| {
            let incumbent = entry.sent.as_ref().is_some_and(|sent| full_name(sent) == full_name(pod));
            (!incumbent, entry.since)
        });
        let mut owners = Owners::default();
        for (file, _, pod) in candidates {
            let (name, uid) = (full_name(pod), uid(pod));
            if !owners.names.contains_key(&name) && !owners.uids.contains_key(&uid) {
                owners.names.insert(name, file.clone());
                owners.uids.insert(uid, file.clone());
            }
        }
        owners
    }
}

#[derive(Default)]
struct Owners {
    names: HashMap<(String, String), OsString>,
    uids: HashMap<PodUid, OsString>,
}

impl Owners {
    /// The other file that has `pod`.
    fn holder(&self, pod: &Pod, file: &OsStr) -> Option<OsString> {
        let holders = [self.names.get(&full_name(pod)), self.uids.get(&uid(pod))];
        holders.into_iter().flatten().find(|holder| holder.as_os_str() != file).cloned()
    }
}

fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|s| s.priority).unwrap_or_default()
}

fn full_name(pod: &Pod) -> (String, String) {
    let m = &pod.metadata;
    (m.namespace.clone().unwrap_or_default(), m.name.clone().unwrap_or_default())
}

fn uid(pod: &Pod) -> PodUid {
    PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default())
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
