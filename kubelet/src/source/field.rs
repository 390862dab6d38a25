//! Field errors in the form operators know from the API server: `spec.containers[0].image: Required value`.
//!
//! `decode`, `validate` and `identity` produce them. A path costs nothing until an error is made: a valid pod is
//! validated without allocating.

use std::fmt::{self, Display, Write as _};

/// Where in the object: a chain of borrowed steps, printed only when something is wrong.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Name(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    /// A top-level field, such as `spec`.
    pub const fn root(name: &'a str) -> Self {
        Self { parent: None, step: Step::Name(name) }
    }
    /// The field `name` of this one.
    pub const fn child(&'a self, name: &'a str) -> Self {
        Self { parent: Some(self), step: Step::Name(name) }
    }
    /// Element `i` of this list.
    pub const fn index(&'a self, i: usize) -> Self {
        Self { parent: Some(self), step: Step::Index(i) }
    }
    /// Entry `key` of this map.
    pub const fn key(&'a self, key: &'a str) -> Self {
        Self { parent: Some(self), step: Step::Key(key) }
    }
}

impl Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Name(name) if self.parent.is_some() => write!(f, ".{name}"),
            Step::Name(name) => f.write_str(name),
            Step::Index(i) => write!(f, "[{i}]"),
            Step::Key(key) => write!(f, "[{key}]"),
        }
    }
}

/// One thing wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// Such as `spec.containers[0].ports[1].containerPort`.
    pub field: String,
    /// Such as `Invalid value: 70000: must be between 1 and 65535, inclusive`.
    pub message: String,
}

/// The errors found so far; every check adds its own and goes on, so that one pass names them all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    listed: Vec<FieldError>,
    /// How many more there were.
    dropped: usize,
}

/// More than this many errors in one object are counted, not kept: a hostile manifest must not fill memory and log.
pub const LISTED: usize = 32;

impl Errors {
    /// Whether the object is fine.
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }
    /// The first [`LISTED`] of them, in the order of the checks.
    pub fn into_vec(self) -> Vec<FieldError> {
        self.listed
    }
    /// Adds all of `other`.
    pub fn append(&mut self, other: Self) {
        self.dropped += other.dropped;
        other.listed.into_iter().for_each(|e| self.keep(e));
    }
    /// One more.
    pub fn add(&mut self, error: FieldError) {
        self.keep(error);
    }
    fn push(&mut self, at: &Path<'_>, message: String) {
        self.keep(FieldError { field: at.to_string(), message });
    }
    fn keep(&mut self, error: FieldError) {
        match self.listed.len() < LISTED {
            true => self.listed.push(error),
            false => self.dropped += 1,
        }
    }
    /// The field is absent or empty. `detail` may be empty.
    pub fn required(&mut self, at: &Path<'_>, detail: &str) {
        self.push(at, with_detail("Required value", detail));
    }
    /// The field's value, printed as JSON, breaks a rule.
    pub fn invalid(&mut self, at: &Path<'_>, value: impl serde::Serialize, detail: &str) {
        self.push(at, with_detail(&format!("Invalid value: {}", json(&value)), detail));
    }
    /// The value is none of `supported`, which is in upstream's order.
    pub fn unsupported(&mut self, at: &Path<'_>, value: &str, supported: &[&str]) {
        let mut message = format!("Unsupported value: {}: supported values: ", json(&value));
        for (i, s) in supported.iter().enumerate() {
            // Writing to a String cannot fail.
            let _ = write!(message, "{}{}", if i == 0 { "" } else { ", " }, json(s));
        }
        self.push(at, message);
    }
    /// The value stands elsewhere already.
    pub fn duplicate(&mut self, at: &Path<'_>, value: &str) {
        self.push(at, format!("Duplicate value: {}", json(&value)));
    }
    /// The field must not be set here.
    pub fn forbidden(&mut self, at: &Path<'_>, detail: &str) {
        self.push(at, with_detail("Forbidden", detail));
    }
    /// The field names something that is not there.
    pub fn not_found(&mut self, at: &Path<'_>, value: &str) {
        self.push(at, format!("Not found: {}", json(&value)));
    }
    /// `value` must be one of `supported`.
    pub fn one_of(&mut self, at: &Path<'_>, value: &str, supported: &[&str]) {
        if !supported.contains(&value) {
            self.unsupported(at, value, supported);
        }
    }
    /// `value` must be at least zero.
    pub fn not_negative(&mut self, at: &Path<'_>, value: i64) {
        if value < 0 {
            self.invalid(at, value, "must be greater than or equal to 0");
        }
    }
    /// `value` must lie in `low..=high`.
    pub fn between(&mut self, at: &Path<'_>, value: i64, low: i64, high: i64) {
        if !(low..=high).contains(&value) {
            self.invalid(at, value, &format!("must be between {low} and {high}, inclusive"));
        }
    }
    /// `mode` must be permission bits.
    pub fn mode(&mut self, at: &Path<'_>, mode: i32) {
        if !(0..=0o777).contains(&mode) {
            self.invalid(at, mode, "must be a number between 0 and 0777 (octal), both inclusive");
        }
    }
    /// The text is longer than `limit` bytes.
    pub fn too_long(&mut self, at: &Path<'_>, limit: usize) {
        self.push(at, format!("Too long: may not be more than {limit} bytes"));
    }
    /// Adds one `Invalid value` per message of a syntax check.
    pub fn syntax(&mut self, at: &Path<'_>, value: &str, messages: impl IntoIterator<Item = String>) {
        for message in messages {
            self.invalid(at, value, &message);
        }
    }
}

/// A single error alone, several as `[a, b]`, as upstream prints an aggregate.
impl Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.listed.as_slice() {
            return only.fmt(f);
        }
        f.write_char('[')?;
        for (i, e) in self.listed.iter().enumerate() {
            write!(f, "{}{e}", if i == 0 { "" } else { ", " })?;
        }
        if self.dropped > 0 {
            write!(f, ", and {} more", self.dropped)?;
        }
        f.write_char(']')
    }
}

fn with_detail(what: &str, detail: &str) -> String {
    if detail.is_empty() { what.to_owned() } else { format!("{what}: {detail}") }
}

/// A value as an error shows it: JSON, cut where it would flood the log.
fn json(value: &impl serde::Serialize) -> String {
    const SHOWN: usize = 512;
    let mut text = serde_json::to_string(value).unwrap_or_else(|e| format!("<{e}>"));
    if text.len() > SHOWN {
        let cut = (0..=SHOWN).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        text.truncate(cut);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_print_as_upstreams() {
        let (spec, mut errors) = (Path::root("spec"), Errors::default());
        let containers = spec.child("containers");
        let first = containers.index(0);
        errors.required(&first.child("image"), "");
        assert_eq!(errors.to_string(), "spec.containers[0].image: Required value");
        errors.between(&first.child("n"), 70000, 1, 65535);
        let metadata = Path::root("metadata");
        let labels = metadata.child("labels");
        errors.invalid(&labels.key("a/b"), "x\"", "bad");
        assert_eq!(
            errors.to_string(),
            "[spec.containers[0].image: Required value, \
             spec.containers[0].n: Invalid value: 70000: must be between 1 and 65535, inclusive, \
             metadata.labels[a/b]: Invalid value: \"x\\\"\": bad]"
        );
    }

    #[test]
    fn errors_past_the_bound_are_counted() {
        let mut errors = Errors::default();
        (0..LISTED + 5).for_each(|_| errors.required(&Path::root("a"), ""));
        let mut all = errors.clone();
        all.append(errors);
        assert!(all.to_string().ends_with("and 42 more]"), "{all}");
        assert_eq!(all.into_vec().len(), LISTED);
    }

    #[test]
    fn a_huge_value_is_cut() {
        let mut errors = Errors::default();
        errors.invalid(&Path::root("x"), "é".repeat(10_000), "too long");
        assert!(errors.to_string().len() < 700);
    }
}
