//! The Prometheus text format 0.0.4, as upstream's client library prints it. Pure.
//!
//! Rule: <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>. Numbers are printed the way
//! Go prints them (`1.795165424e+09`), because people diff and grep these pages.

use std::fmt::Write as _;

/// The `# TYPE` of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Cumulative buckets, sum and count.
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// Writes families one after the other into a text.
#[derive(Debug, Default)]
pub struct Writer {
    out: String,
    pending: Option<(&'static str, &'static str, Kind)>,
}

impl Writer {
    /// Opens the family `name`; its header is written with the first sample, so an empty family leaves no trace.
    pub fn family(&mut self, name: &'static str, help: &'static str, kind: Kind) {
        self.pending = Some((name, help, kind));
    }

    /// One sample line: `name` is the family's name with its suffix, `labels` are in the order to print.
    pub fn sample(&mut self, name: &str, suffix: &str, labels: &[(&str, &str)], value: f64) {
        self.line(name, suffix, labels.iter().copied(), value);
    }

    /// One bucket of a histogram: `le` is its upper bound as text and stands behind the other labels.
    pub fn bucket(&mut self, name: &str, labels: &[(&str, &str)], le: &str, value: f64) {
        self.line(name, "_bucket", labels.iter().copied().chain([("le", le)]), value);
    }

    fn line<'a>(
        &mut self,
        name: &str,
        suffix: &str,
        labels: impl Iterator<Item = (&'a str, &'a str)>,
        value: f64,
    ) {
        self.header();
        self.out.push_str(name);
        self.out.push_str(suffix);
        let mut labels = labels.peekable();
        if labels.peek().is_some() {
            self.out.push('{');
            for (i, (label, value)) in labels.enumerate() {
                if i > 0 {
                    self.out.push(',');
                }
                self.out.push_str(label);
                self.out.push_str("=\"");
                escape(&mut self.out, value, true);
                self.out.push('"');
            }
            self.out.push('}');
        }
        self.out.push(' ');
        self.out.push_str(&float(value));
        self.out.push('\n');
    }

    /// How much text there is.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Takes what was written so far.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.out)
    }

    fn header(&mut self) {
        let Some((name, help, kind)) = self.pending.take() else { return };
        self.out.push_str("# HELP ");
        self.out.push_str(name);
        self.out.push(' ');
        escape(&mut self.out, help, false);
        // Writing into a String cannot fail.
        let _ = write!(self.out, "\n# TYPE {name} {}\n", kind.as_str());
    }
}

/// Escapes backslash and line feed, and in label values the quote.
fn escape(out: &mut String, text: &str, quote: bool) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quote => out.push_str("\\\""),
            c => out.push(c),
        }
    }
}

/// `v` with the fewest digits that read back as the same number, as Go's `%g` prints it: plain for decimal exponents
/// from -4 to 5 (`393216`), otherwise with an exponent of at least two digits (`1.032192e+06`).
pub fn float(v: f64) -> String {
    if v.is_nan() {
        return "NaN".into();
    }
    if v.is_infinite() {
        return if v > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    if v == 0.0 {
        return if v.is_sign_negative() { "-0".into() } else { "0".into() };
    }
    // Rust's `{:e}` gives the shortest digits that read back as the same number, as Go's does.
    let scientific = format!("{v:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    let Ok(exponent) = exponent.parse::<i32>() else { return scientific };
    if (-4..6).contains(&exponent) {
        return v.to_string();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}
