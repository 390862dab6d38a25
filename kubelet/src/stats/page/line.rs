//! Lines of a page: labels put together beforehand, numbers printed as upstream's library prints them.

use super::super::sample::Group;
use super::super::subject::Unit;
use super::{Family, Kind};
use crate::api::PodRef;
use std::io::Write as _;

/// The labels that every line of one cgroup has, in pieces between which others go by the alphabet.
#[derive(Debug)]
pub struct Labels {
    /// `container="c"`
    container: Vec<u8>,
    /// `,id="/…",image="…"`
    id: Vec<u8>,
    /// `,name="…",namespace="…",pod="…"`
    pod: Vec<u8>,
    /// ` 1763668000000`: when it was read, in milliseconds.
    at: Vec<u8>,
}

impl Labels {
    /// Of a part of the node.
    pub fn of_part(group: &Group) -> Self {
        Self::new(group, "", "", "", ["", ""])
    }

    /// Of a pod's own cgroup.
    pub fn of_pod(group: &Group, pod: &PodRef) -> Self {
        Self::new(group, "", "", "", [&pod.namespace, &pod.name])
    }

    /// Of a container's or a sandbox's, whose `container` is empty.
    pub fn of_unit(group: &Group, pod: &PodRef, unit: &Unit) -> Self {
        Self::new(group, &unit.name, &unit.image, &unit.id, [&pod.namespace, &pod.name])
    }

    fn new(group: &Group, container: &str, image: &str, name: &str, [namespace, pod]: [&str; 2]) -> Self {
        let mut labels = Self {
            container: Vec::new(),
            id: Vec::new(),
            pod: Vec::new(),
            at: format!(" {}", group.reading.at.as_millisecond()).into_bytes(),
        };
        push(&mut labels.container, "container", container);
        for (key, value) in [("id", group.path.as_str()), ("image", image)] {
            labels.id.push(b',');
            push(&mut labels.id, key, value);
        }
        for (key, value) in [("name", name), ("namespace", namespace), ("pod", pod)] {
            labels.pod.push(b',');
            push(&mut labels.pod, key, value);
        }
        labels
    }
}

/// `key="value"`, escaped.
fn push(to: &mut Vec<u8>, key: &str, value: &str) {
    to.extend_from_slice(key.as_bytes());
    to.extend_from_slice(b"=\"");
    for byte in value.bytes() {
        match byte {
            b'\\' => to.extend_from_slice(b"\\\\"),
            b'"' => to.extend_from_slice(b"\\\""),
            b'\n' => to.extend_from_slice(b"\\n"),
            byte => to.push(byte),
        }
    }
    to.push(b'"');
}

/// Where the lines of one family and one cgroup go.
pub struct Out<'a> {
    to: &'a mut Vec<u8>,
    family: &'a Family,
    labels: &'a Labels,
    /// The family's heading is written.
    opened: &'a mut bool,
}

impl<'a> Out<'a> {
    /// Appends to `to`; the heading is written before the first line, so that a family without lines leaves no trace.
    pub fn new(to: &'a mut Vec<u8>, family: &'a Family, labels: &'a Labels, opened: &'a mut bool) -> Self {
        Self { to, family, labels, opened }
    }

    /// A line with the time of the reading.
    pub fn at(&mut self, value: f64) {
        self.line(&[], value, true);
    }

    /// A line with further labels and the time of the reading.
    pub fn with(&mut self, more: &[(&str, &str)], value: f64) {
        self.line(more, value, true);
    }

    /// A line without a time: of limits, which hold until they are changed.
    pub fn bare(&mut self, value: f64) {
        self.line(&[], value, false);
    }

    /// A line without labels and time.
    pub fn alone(&mut self, value: f64) {
        self.heading();
        self.to.extend_from_slice(self.family.name.as_bytes());
        self.to.push(b' ');
        number(self.to, value);
        self.to.push(b'\n');
    }

    fn line(&mut self, more: &[(&str, &str)], value: f64, timed: bool) {
        self.heading();
        let labels = self.labels;
        self.to.extend_from_slice(self.family.name.as_bytes());
        self.to.push(b'{');
        self.to.extend_from_slice(&labels.container);
        self.between(more, |key| key < "id");
        self.to.extend_from_slice(&labels.id);
        self.between(more, |key| key > "id" && key < "name");
        self.to.extend_from_slice(&labels.pod);
        self.between(more, |key| key > "name");
        self.to.extend_from_slice(b"} ");
        number(self.to, value);
        if timed {
            self.to.extend_from_slice(&labels.at);
        }
        self.to.push(b'\n');
    }

    fn between(&mut self, more: &[(&str, &str)], here: fn(&str) -> bool) {
        for (key, value) in more.iter().filter(|(key, _)| here(key)) {
            self.to.push(b',');
            push(self.to, key, value);
        }
    }

    fn heading(&mut self) {
        if !std::mem::replace(self.opened, true) {
            heading(self.to, self.family.name, self.family.help, self.family.kind);
        }
    }
}

/// `# HELP` and `# TYPE`.
pub fn heading(to: &mut Vec<u8>, name: &str, help: &str, kind: Kind) {
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
    };
    // Writing into memory cannot fail.
    let _ = writeln!(to, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// `name{labels} value` of something that is no cgroup's.
pub fn other(to: &mut Vec<u8>, name: &str, labels: &[(&str, &str)], value: f64, at_ms: Option<i64>) {
    to.extend_from_slice(name.as_bytes());
    if !labels.is_empty() {
        for (nth, (key, value)) in labels.iter().enumerate() {
            to.push(if nth == 0 { b'{' } else { b',' });
            push(to, key, value);
        }
        to.push(b'}');
    }
    to.push(b' ');
    number(to, value);
    if let Some(at) = at_ms {
        let _ = write!(to, " {at}");
    }
    to.push(b'\n');
}

/// As [`crate::metrics::float`] prints it, without an allocation in the common cases.
pub fn number(to: &mut Vec<u8>, value: f64) {
    if (0.0..1e6).contains(&value) && value.fract() == 0.0 && !value.is_sign_negative() {
        // Small whole numbers, which is what most lines hold.
        let _ = write!(to, "{}", value as u32);
        return;
    }
    if !(1e6..f64::MAX).contains(&value) {
        to.extend_from_slice(crate::metrics::float(value).as_bytes());
        return;
    }
    let begin = to.len();
    let _ = write!(to, "{value:e}");
    // One digit of exponent becomes a sign and two.
    if let Some(e) = to[begin..].iter().position(|b| *b == b'e').map(|at| begin + at) {
        let short = to.len() - e == 2;
        let sign: &[u8] = if short { b"+0" } else { b"+" };
        to.splice(e + 1..e + 1, sign.iter().copied());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_printed_as_everywhere_else() {
        let powers = (0..25).flat_map(|n| {
            let p = 10f64.powi(n);
            [p, p - 1.0, p * 1.5, p / 3.0, -p]
        });
        for value in powers.chain([0.0, -0.0, 0.25, 1e-7, 123_456.789, f64::NAN, f64::INFINITY, f64::MAX]) {
            let mut text = Vec::new();
            number(&mut text, value);
            assert_eq!(String::from_utf8(text).unwrap(), crate::metrics::float(value), "{value}");
        }
    }

    #[test]
    fn labels_cannot_break_out_of_their_quotes() {
        let mut text = Vec::new();
        push(&mut text, "pod", "a\"b\\c\nd");
        assert_eq!(String::from_utf8(text).unwrap(), r#"pod="a\"b\\c\nd""#);
    }
}
