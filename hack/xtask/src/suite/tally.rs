//! Counts what a run of `cargo test` did from what it printed: pure.
//!
//! A test that cannot be done on this machine passes and prints a line that begins with `SKIP`; here
//! it is counted as skipped, not as passed, and its reason is kept.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

/// What became of some tests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub passed: usize,
    /// Names.
    pub failed: Vec<String>,
    /// Names and reasons.
    pub skipped: Vec<(String, String)>,
}

impl Tally {
    /// One thing that went well.
    pub(super) fn one_passed() -> Self {
        Self { passed: 1, ..Self::default() }
    }

    /// One thing that failed.
    pub(super) fn one_failed(name: &str) -> Self {
        Self { failed: vec![name.to_owned()], ..Self::default() }
    }

    /// One thing that this machine cannot do.
    pub(super) fn one_skipped(name: &str, reason: &str) -> Self {
        Self { skipped: vec![(name.to_owned(), reason.to_owned())], ..Self::default() }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped.len())
    }
}

/// Reads what `cargo test --no-fail-fast -- --show-output` printed. `success` is its exit code's word: a
/// run that failed without naming a test (a crash, a compile error) counts as one failure of `lane`.
pub(super) fn of_cargo_test(lane: &str, output: &str, success: bool) -> Tally {
    let mut tally = Tally::default();
    // Within one test program names are unique; results come before the shown output.
    let mut passed: Vec<String> = Vec::new();
    let mut skipped: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut section: Option<String> = None;
    for line in output.lines().chain(["running 0 tests"]) {
        let line = line.trim();
        if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) {
            settle(&mut tally, &mut passed, &mut skipped);
            section = None;
        } else if let Some((name, result)) = result_of(line) {
            match result {
                "ok" => passed.push(name.to_owned()),
                "FAILED" => tally.failed.push(format!("{lane}: {name}")),
                ignored => tally.skipped.push((name.to_owned(), ignored.to_owned())),
            }
        } else if let Some(name) = line.strip_prefix("---- ").and_then(|l| l.strip_suffix(" stdout ----")) {
            section = Some(name.to_owned());
        } else if line == "successes:" || line == "failures:" || line.starts_with("test result:") {
            section = None;
        } else if let Some(text) = skip_text(line) {
            let (said, reason) = text.split_once(": ").unwrap_or(("", text));
            let name = section.clone().unwrap_or_else(|| said.to_owned());
            skipped.entry(name).or_default().push(reason.to_owned());
        }
    }
    if !success && tally.failed.is_empty() {
        tally.failed.push(format!("{lane}: ended with an error and no failed test"));
    }
    tally
}

/// The end of one test program: those who passed by skipping are moved over.
fn settle(tally: &mut Tally, passed: &mut Vec<String>, skipped: &mut BTreeMap<String, Vec<String>>) {
    for (name, reasons) in std::mem::take(skipped) {
        // Output of another thread or process has no section: its name may be the function's alone.
        let same = |full: &String| *full == name || full.rsplit("::").next() == Some(&name);
        if let Some(at) = passed.iter().position(same) {
            passed.remove(at);
        }
        tally.skipped.push((name, reasons.join("; ")));
    }
    tally.passed += std::mem::take(passed).len();
}

/// What the failed tests printed: the sections between `failures:` and the list of names after them.
pub(super) fn failures(output: &str) -> Vec<&str> {
    let mut inside = false;
    let mut shown = Vec::new();
    for line in output.lines() {
        match line.trim_end() {
            "failures:" => inside = true,
            end if end.starts_with("test result:") => inside = false,
            text if inside && !text.is_empty() => shown.push(text),
            _ => {}
        }
    }
    shown
}

/// `test NAME ... RESULT`
fn result_of(line: &str) -> Option<(&str, &str)> {
    let (name, result) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let known = result == "ok" || result == "FAILED" || result.starts_with("ignored");
    known.then_some((name.trim_end_matches(" - should panic"), result))
}

/// What follows `SKIP`, `SKIPPED` and a colon, if that is what the line begins with.
fn skip_text(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("SKIPPED").or_else(|| line.strip_prefix("SKIP"))?;
    rest.starts_with([' ', ':']).then(|| rest.trim_start_matches([' ', ':']))
}

/// Reads the last line of `golden`: `golden: A agree, D differ, S skipped`. Cases that differ and are not
/// expected to agree yet are no failure; one that stopped agreeing makes the program fail.
pub(super) fn of_golden(output: &str, success: bool) -> Tally {
    let last = output.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let numbers: Vec<usize> = last
        .strip_prefix("golden: ")
        .map(|rest| rest.split(", ").filter_map(|part| part.split(' ').next()?.parse().ok()).collect())
        .unwrap_or_default();
    let [agree, _, skipped] = numbers[..] else {
        return Tally::one_failed("golden: its last line is not `golden: A agree, D differ, S skipped`");
    };
    let mut tally = Tally { passed: agree, ..Tally::default() };
    let reasons = output.lines().filter_map(|line| skip_text(line.trim())).map(|text| ("golden", text));
    tally.skipped = reasons.map(|(name, text)| (name.to_owned(), text.to_owned())).take(skipped).collect();
    let unnamed = skipped - tally.skipped.len();
    tally.skipped.extend((0..unnamed).map(|_| ("golden".to_owned(), "not yet: see hack/golden".to_owned())));
    if !success {
        tally.failed.push("golden: a case that agreed differs".to_owned());
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\nrunning 4 tests\ntest a::one ... ok\ntest a::two ... ok\ntest three ... FAILED\n\
        test four ... ignored, too slow\n\nsuccesses:\n\n---- a::two stdout ----\nSKIP two: no root: really\n\n\
        successes:\n    a::one\n    a::two\n\nfailures:\n\n---- three stdout ----\npanicked\n\n\
        test result: FAILED. 2 passed; 1 failed\n\nrunning 1 test\ntest a::two ... ok\n\n\
        test result: ok. 1 passed\n";

    #[test]
    fn a_test_that_skips_itself_is_not_counted_as_passed() {
        let tally = of_cargo_test("unit", OUTPUT, false);
        assert_eq!(tally.passed, 2);
        assert_eq!(tally.failed, ["unit: three"]);
        let skipped = [("four", "ignored, too slow"), ("a::two", "no root: really")];
        assert_eq!(tally.skipped, skipped.map(|(n, r)| (n.to_owned(), r.to_owned())));
        assert_eq!(tally.to_string(), "2 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn what_failed_tests_printed_is_shown_and_nothing_else() {
        assert_eq!(failures(OUTPUT), ["---- three stdout ----", "panicked"]);
        assert!(failures("error: could not compile\n").is_empty());
    }

    #[test]
    fn a_skip_printed_outside_any_section_is_matched_by_the_function_name() {
        let output = "running 1 test\nSKIPPED one: no kernel\ntest a::one ... ok\n";
        assert_eq!(of_cargo_test("x", output, true).to_string(), "0 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn a_crash_is_a_failure_even_if_no_test_is_named() {
        let tally = of_cargo_test("unit", "running 3 tests\ntest a ... ok\n", false);
        assert_eq!((tally.passed, tally.failed.len()), (1, 1));
        assert_eq!(of_cargo_test("unit", "error: could not compile\n", false).failed.len(), 1);
    }

    #[test]
    fn goldens_last_line_is_believed_and_its_absence_is_a_failure() {
        let tally = of_golden("SKIP a: no API server\ngolden: 40 agree, 2 differ, 3 skipped\n", true);
        assert_eq!(tally.to_string(), "40 passed, 0 failed, 3 skipped");
        assert_eq!(of_golden("golden: 40 agree, 2 differ, 3 skipped", false).failed.len(), 1);
        assert_eq!(of_golden("", true).failed.len(), 1);
    }
}
