//! Sequences of looks and what they come to.

use super::super::file::event;
use super::super::manifest::static_pod;
use super::*;
use crate::api::{Pod, PodRef};
use crate::source::{SourceEvent, identity};
use std::fmt::Write as _;
use std::time::Instant;

/// The pod of a manifest in `file` with these names, an image to tell contents apart, and maybe a UID.
fn pod(file: &str, name: &str, image: &str, uid: Option<&str>) -> Look<Pod> {
    let uid = uid.map(|u| format!(", uid: {u}")).unwrap_or_default();
    let text = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}{uid}}}, \
         spec: {{containers: [{{name: c, image: {image}}}]}}}}"
    );
    Look::Item(Box::new(static_pod(text.as_bytes(), file, "n").unwrap().0), Vec::new())
}

fn bad() -> Look<Pod> {
    Look::Bad(vec![Problem { field: None, message: "bad".to_owned() }])
}

fn not_a_file() -> Look<Pod> {
    Look::NotAFile(Problem { field: None, message: "a directory".to_owned() })
}

struct Told {
    table: Table<Pod>,
    /// What `world` believes: UID to name and image.
    running: BTreeMap<String, String>,
}

impl Told {
    fn new() -> Self {
        Self { table: Table::default(), running: BTreeMap::new() }
    }

    /// Feeds a batch; gives the events as text, checked against what was told before.
    fn batch(&mut self, looks: Vec<(&str, Look<Pod>)>) -> (String, Vec<Report<PodRef>>) {
        let looks = looks.into_iter().map(|(f, l)| (OsString::from(f), l, None)).collect();
        let arrived = Instant::now();
        let out = self.table.update(looks, jiff::Timestamp::now());
        let mut text = String::new();
        for change in out.changes {
            match event(crate::api::Origin::File, change, arrived) {
                SourceEvent::Put(p) => {
                    let m = &p.pod.metadata;
                    let image = p.pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
                    let name = m.name.clone().unwrap();
                    let old = self.running.insert(m.uid.clone().unwrap(), format!("{name}={image}"));
                    let _ = write!(text, "{}{name}={image} ", if old.is_some() { "~" } else { "+" });
                    assert_eq!(m.annotations.as_ref().unwrap()[identity::SEEN], p.seen.to_string());
                    assert_eq!(p.arrived, arrived);
                }
                SourceEvent::Gone { uid, .. } => {
                    let was = self.running.remove(uid.as_str()).expect("only what runs can go");
                    let _ = write!(text, "-{was} ");
                }
                SourceEvent::Synced(_) => unreachable!("the table knows nothing of that"),
            }
        }
        let mut names: Vec<_> = self.running.values().map(|v| v.split('=').next().unwrap()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), self.running.len(), "one pod per name: {:?}", self.running);
        (text.trim().to_owned(), out.reports)
    }

    #[track_caller]
    fn expect(&mut self, looks: Vec<(&str, Look<Pod>)>, events: &str) -> Vec<Report<PodRef>> {
        let (got, reports) = self.batch(looks);
        assert_eq!(got, events);
        reports
    }
}

#[test]
fn a_changed_manifest_is_the_old_pods_end_and_a_new_pod() {
    let mut t = Told::new();
    t.expect(vec![("a", pod("a", "x", "i1", None))], "+x-n=i1");
    t.expect(vec![("a", pod("a", "x", "i1", None))], "");
    t.expect(vec![("a", pod("a", "x", "i2", None))], "-x-n=i1 +x-n=i2");
    t.expect(vec![("a", Look::Unchanged)], "");
    t.expect(vec![("a", Look::Absent)], "-x-n=i2");
    t.expect(vec![("a", Look::Absent)], "");
    t.expect(vec![("a", pod("a", "x", "i2", None))], "+x-n=i2");
}

#[test]
fn a_manifest_with_a_uid_of_its_own_is_updated() {
    let mut t = Told::new();
    t.expect(vec![("a", pod("a", "x", "i1", Some("u")))], "+x-n=i1");
    t.expect(vec![("a", pod("a", "x", "i2", Some("u")))], "~x-n=i2");
    let renamed = vec![("a", Look::Absent), ("b", pod("b", "x", "i2", Some("u")))];
    t.expect(renamed, "~x-n=i2");
}

#[test]
fn a_file_that_goes_bad_keeps_its_pod_and_is_reported_once() {
    let mut t = Told::new();
    t.expect(vec![("a", pod("a", "x", "i1", None))], "+x-n=i1");
    let reports = t.expect(vec![("a", bad())], "");
    assert!(
        matches!(&reports[..], [Report::Problem { keeps: Some(p), .. }] if &*p.name == "x-n"),
        "{reports:?}"
    );
    assert_eq!(t.expect(vec![("a", bad())], ""), []);
    assert_eq!(t.table.problems().len(), 1);
    t.expect(vec![("a", pod("a", "x", "i1", None))], "");
    assert_eq!(t.table.problems(), []);
    assert_eq!(t.expect(vec![("a", bad())], "").len(), 1, "a new problem is news again");
}

#[test]
fn a_file_that_becomes_a_directory_loses_its_pod() {
    let mut t = Told::new();
    t.expect(vec![("a", pod("a", "x", "i1", None))], "+x-n=i1");
    assert_eq!(t.expect(vec![("a", not_a_file())], "-x-n=i1").len(), 1);
}

#[test]
fn of_two_files_for_one_pod_the_first_runs_and_the_second_waits() {
    let mut t = Told::new();
    t.expect(vec![("b", pod("b", "x", "ib", None))], "+x-n=ib");
    let reports = t.expect(vec![("a", pod("a", "x", "ia", None))], "");
    assert!(matches!(&reports[..], [Report::Duplicate { holder, .. }] if holder == "b"), "{reports:?}");
    assert_eq!(t.expect(vec![("a", pod("a", "x", "ia", None))], ""), [], "reported once");
    t.expect(vec![("b", pod("b", "x", "ib2", None))], "-x-n=ib +x-n=ib2");
    t.expect(vec![("b", Look::Absent)], "-x-n=ib2 +x-n=ia");
    assert_eq!(t.table.problems(), []);
}

#[test]
fn a_taken_name_is_not_taken_over_by_an_older_file_that_changes_its_pods_name() {
    let mut t = Told::new();
    t.expect(vec![("a", pod("a", "x", "i", None))], "+x-n=i");
    t.expect(vec![("b", pod("b", "y", "i", None))], "+y-n=i");
    t.expect(vec![("a", pod("a", "y", "i2", None))], "-x-n=i");
    t.expect(vec![("b", Look::Absent)], "-y-n=i +y-n=i2");
}

#[test]
fn two_files_with_one_uid_run_once() {
    let mut t = Told::new();
    t.expect(vec![("a", pod("a", "x", "i", Some("u")))], "+x-n=i");
    assert_eq!(t.expect(vec![("b", pod("b", "y", "i", Some("u")))], "").len(), 1);
    t.expect(vec![("a", Look::Absent)], "~y-n=i");
}

#[test]
fn a_rename_inside_the_directory_is_one_step() {
    let mut t = Told::new();
    t.expect(vec![("a", pod("a", "x", "i", None))], "+x-n=i");
    let reports = t.expect(vec![("b", pod("b", "x", "i", None)), ("a", Look::Absent)], "-x-n=i +x-n=i");
    assert_eq!(reports, []);
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever order files come, change, break and go in: at the end the pods of the good files run, one per
        /// name, and every file that has none is reported.
        #[test]
        fn every_sequence_ends_in_the_pods_of_the_good_files(
            steps in prop::collection::vec((0..4usize, 0..5usize, 0..3usize, any::<bool>()), 1..60)
        ) {
            let mut t = Told::new();
            let mut good: BTreeMap<&str, (String, usize)> = BTreeMap::new();
            for (file, name, image, own_uid) in steps {
                let file = ["a", "b", "c", "d"][file];
                let look = match name {
                    3 => Look::Absent,
                    4 => bad(),
                    name => pod(file, ["x", "y", "z"][name], ["i", "j", "k"][image], own_uid.then_some(file)),
                };
                match name {
                    3 => drop(good.remove(file)),
                    4 => {}
                    name => drop(good.insert(file, (format!("{}-n", ["x", "y", "z"][name]), image))),
                }
                t.batch(vec![(file, look)]);
                let want: std::collections::BTreeSet<_> = good.values().map(|(n, _)| n.clone()).collect();
                let got: std::collections::BTreeSet<_> =
                    t.running.values().map(|v| v.split('=').next().unwrap().to_owned()).collect();
                prop_assert_eq!(&got, &want);
                let waiting = t.table.problems().iter().filter(|(_, p)| p.field.is_some()).count();
                prop_assert_eq!(waiting, good.len() - want.len());
            }
        }
    }
}
