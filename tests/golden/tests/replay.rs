//! The cases that agree are on a list in the repository, `agree.txt`: none may stop agreeing, and none may agree without
//! being on it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test: a panic is its failure, its output is the table"
)]

use golden::{Verdict, case, listed, no_cgroups, run_all};

#[test]
fn the_cases_on_the_list_agree_and_no_others() {
    let golden = match case::golden_dir() {
        Ok(dir) => dir,
        Err(e) => return println!("SKIPPED: {e}"),
    };
    if let Some(why) = no_cgroups().unwrap() {
        println!("SKIPPED: the comparison of cgroup values: {why}");
    }
    let listed = listed();
    let names = case::names(&golden).unwrap();
    let (mut agree, mut differ, mut skipped, mut wrong) = (0, 0, 0, Vec::new());
    for (name, verdict) in run_all(&golden, &names, false).unwrap() {
        let known = listed.contains(name.as_str());
        match verdict {
            Verdict::Agree => {
                agree += 1;
                if !known {
                    wrong.push(format!("{name} agrees now: add it to tests/golden/agree.txt"));
                }
            }
            Verdict::Differ(found) => {
                differ += 1;
                if known {
                    wrong.push(format!("{name} agreed and differs now:\n  {}", found.join("\n  ")));
                }
            }
            Verdict::Skip(want) => {
                skipped += 1;
                if known {
                    wrong.push(format!("{name} agreed and is skipped now, for want of {want}"));
                }
            }
        }
    }
    println!("golden: {agree} agree, {differ} differ, {skipped} skipped");
    let gone = listed.iter().filter(|l| !names.iter().any(|n| n == *l));
    wrong.extend(gone.map(|l| format!("{l} is on the list and was never recorded")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
