//! Which file stands for which object: what was found on disk, reduced to changes.
//!
//! Owned by the task in `directory`; what the files hold is the business of the [`Item`]: a pod (`file`), or an object
//! of the room `objects`. Pure: looks go in, changes and reports come out, so every sequence can be tested without a
//! disk. Rules:
//!
//! - A file that goes bad keeps its object; a file that goes away, or becomes something that is no file, loses it.
//! - Two files for one object (one name, or one UID): the one that came first keeps it, the other waits and takes over
//!   when the first lets go. Nothing is there twice and nothing is forgotten.
//! - Changed content under another id (a pod without a UID of its own) is another object: the old one goes, then the
//!   new one comes.
//! - Every problem is reported once, not at every look.

use super::manifest::{Look, Problem, Stamp};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fmt::{Debug, Display};
use std::sync::Arc;

/// What a file stands for.
pub trait Item: PartialEq + Sized + Send + Sync + 'static {
    /// What tells one from another: content that changes under one id is an update.
    type Id: Clone + PartialEq + Debug + Send;
    /// How messages call it.
    type Shown: Clone + PartialEq + Eq + Debug + Display + Send;
    /// Its id.
    fn id(&self) -> Self::Id;
    /// For messages.
    fn shown(&self) -> Self::Shown;
    /// What only one file at a time may stand for; the first is its name.
    fn names(&self) -> Vec<String>;
    /// Of several that come together the highest is told first.
    fn priority(&self) -> i32 {
        0
    }
    /// Takes down when its content was first seen.
    fn stamp(&mut self, _seen: jiff::Timestamp) {}
    /// Why the same file may not turn this into `next`.
    fn forbids(&self, _next: &Self) -> Vec<Problem> {
        Vec::new()
    }
}

/// A change to tell.
#[derive(Debug)]
pub enum Change<T: Item> {
    /// It is no longer there.
    Gone(T::Id),
    /// It is there, or has other content under the same id; and when that was first seen.
    Put(Arc<T>, jiff::Timestamp),
}

/// What a batch of looks comes to.
#[derive(Debug)]
pub struct Outcome<T: Item> {
    /// For whoever uses the objects, in order.
    pub changes: Vec<Change<T>>,
    /// For the log.
    pub reports: Vec<Report<T::Shown>>,
}

/// Something to tell the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report<S> {
    /// The file is not what it should be.
    Problem {
        /// The file's name in the directory.
        file: OsString,
        /// What is wrong.
        problem: Problem,
        /// What the file stood for before, which stays.
        keeps: Option<S>,
    },
    /// The file is good, but something in it was read over.
    Warning {
        /// The file's name in the directory.
        file: OsString,
        /// What was read over.
        problem: Problem,
    },
    /// What the file stands for is already another file's, for which it waits.
    Duplicate {
        /// The file that waits.
        file: OsString,
        /// What both stand for.
        shown: S,
        /// The file that has it.
        holder: OsString,
    },
}

/// A file of the directory.
#[derive(Debug)]
struct Entry<T> {
    /// Order of appearance, for who waits longest.
    since: u64,
    stamp: Option<Stamp>,
    /// The last good content, with when it was seen.
    item: Option<(Arc<T>, jiff::Timestamp)>,
    /// What was told.
    sent: Option<Arc<T>>,
    /// What was last reported about it.
    problems: Vec<Problem>,
    holder: Option<OsString>,
}

/// All files of the directory.
#[derive(Debug)]
pub struct Table<T> {
    entries: BTreeMap<OsString, Entry<T>>,
    counter: u64,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), counter: 0 }
    }
}

impl<T: Item> Table<T> {
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
            message: format!("already defined by {}", holder.display()),
        };
        let own = |(name, e): (&OsString, &Entry<T>)| -> Vec<_> {
            let held = e.holder.as_ref().map(duplicate);
            e.problems.iter().cloned().chain(held).map(|p| (name.clone(), p)).collect()
        };
        self.entries.iter().flat_map(own).collect()
    }

    /// Takes in a batch of looks taken at `seen`, all at once: a rename inside the directory is one step, not two.
    pub fn update(
        &mut self,
        looks: Vec<(OsString, Look<T>, Option<Stamp>)>,
        seen: jiff::Timestamp,
    ) -> Outcome<T> {
        let mut out = Outcome { changes: Vec::new(), reports: Vec::new() };
        let mut gone = Vec::new();
        for (file, look, stamp) in looks {
            let look = match look {
                Look::Unchanged => continue,
                Look::Absent => {
                    gone.extend(self.entries.remove(&file).and_then(|e| e.sent));
                    continue;
                }
                other => other,
            };
            let entry = self.entries.entry(file.clone()).or_insert_with(|| {
                self.counter += 1;
                let since = self.counter;
                Entry { since, stamp: None, item: None, sent: None, problems: Vec::new(), holder: None }
            });
            entry.stamp = stamp;
            let problems = match look {
                Look::Item(mut item, warnings) => {
                    // The same content keeps the time it was first seen.
                    let known = entry.item.as_ref().is_some_and(|(old, before)| {
                        item.stamp(*before);
                        **old == *item
                    });
                    let forbidden = match &entry.item {
                        Some((old, _)) if !known && old.id() == item.id() => old.forbids(&item),
                        _ => Vec::new(),
                    };
                    if !known && forbidden.is_empty() {
                        item.stamp(seen);
                        entry.item = Some((Arc::new(*item), seen));
                        let warn = |problem| Report::Warning { file: file.clone(), problem };
                        out.reports.extend(warnings.into_iter().map(warn));
                    }
                    forbidden
                }
                Look::NotAFile(problem) => {
                    entry.item = None;
                    vec![problem]
                }
                Look::Bad(problems) => problems,
                Look::Unchanged | Look::Absent => continue,
            };
            if entry.problems != problems {
                let keeps = entry.item.as_ref().map(|(item, _)| item.shown());
                let report = |problem| Report::Problem { file: file.clone(), problem, keeps: keeps.clone() };
                out.reports.extend(problems.iter().cloned().map(report));
                entry.problems = problems;
            }
        }
        self.settle(gone, &mut out);
        out
    }

    /// Decides who has what and tells the difference to what was told: everything that goes, then what comes.
    fn settle(&mut self, gone: Vec<Arc<T>>, out: &mut Outcome<T>) {
        let owners = self.owners();
        let mut going: Vec<T::Id> = gone.iter().map(|item| item.id()).collect();
        let mut coming: Vec<(Arc<T>, jiff::Timestamp)> = Vec::new();
        for (file, entry) in &mut self.entries {
            let holder = entry.item.as_ref().and_then(|(item, _)| owners.holder(&**item, file));
            let wanted = entry.item.clone().filter(|_| holder.is_none());
            match (&entry.sent, &wanted) {
                (Some(sent), Some((item, _))) if Arc::ptr_eq(sent, item) => {}
                (None, None) => {}
                (sent, wanted) => {
                    let old = sent.as_ref().map(|item| item.id());
                    let new = wanted.as_ref().map(|(item, _)| item.id());
                    going.extend(old.filter(|old| Some(old) != new.as_ref()));
                    coming.extend(wanted.clone());
                }
            }
            entry.sent = wanted.map(|(item, _)| item);
            if entry.holder != holder {
                if let (Some(holder), Some((item, _))) = (&holder, &entry.item) {
                    let (file, holder) = (file.clone(), holder.clone());
                    out.reports.push(Report::Duplicate { file, shown: item.shown(), holder });
                }
                entry.holder = holder;
            }
        }
        // One file may hand what has an id of its own to another: that is an update, not an end.
        going.retain(|id| !coming.iter().any(|(item, _)| item.id() == *id));
        // Who comes first is admitted first.
        coming.sort_by_key(|(item, _)| std::cmp::Reverse(item.priority()));
        out.changes.extend(going.into_iter().map(Change::Gone));
        out.changes.extend(coming.into_iter().map(|(item, seen)| Change::Put(item, seen)));
    }

    /// Who may have which names: whoever has the name already, then who was there first.
    fn owners(&self) -> Owners {
        let mut candidates: Vec<_> =
            self.entries.iter().filter_map(|(file, e)| Some((file, e, e.item.as_ref()?.0.names()))).collect();
        candidates.sort_by_key(|(_, entry, names)| {
            let incumbent = entry.sent.as_ref().is_some_and(|sent| sent.names().first() == names.first());
            (!incumbent, entry.since)
        });
        let mut owners = Owners::default();
        for (file, _, names) in candidates {
            if !names.iter().any(|name| owners.0.contains_key(name)) {
                owners.0.extend(names.into_iter().map(|name| (name, file.clone())));
            }
        }
        owners
    }
}

/// Names, and the files that have them.
#[derive(Default)]
struct Owners(HashMap<String, OsString>);

impl Owners {
    /// The other file that has what `item` is called.
    fn holder<T: Item>(&self, item: &T, file: &OsStr) -> Option<OsString> {
        let names = item.names();
        let mut holders = names.iter().filter_map(|name| self.0.get(name));
        holders.find(|holder| holder.as_os_str() != file).cloned()
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
