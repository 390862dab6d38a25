//! Figures, what they should be, the table and the JSON: pure.

use std::fmt;

use serde::Serialize;

use super::Amounts;
use super::probes::Probing;
use super::stats::Telling;

/// The same thing done by the bare client and by the agent, each time in milliseconds.
#[derive(Debug, Default, Clone, Serialize)]
pub(super) struct Pair {
    pub floor: Vec<f64>,
    pub agent: Vec<f64>,
}

/// The agent while nothing happens.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Idle {
    pub pods: usize,
    /// Of one core.
    pub cpu_percent: f64,
    pub pss_mib: f64,
}

/// The release of pods of one size.
#[derive(Debug, Default, Clone, Serialize)]
pub(super) struct Release {
    pub containers: usize,
    pub pair: Pair,
}

/// Everything measured, as it was measured.
#[derive(Debug, Default, Clone, Serialize)]
pub(super) struct Measured {
    /// Order to first instruction, one pod at a time.
    pub single: Pair,
    /// Milliseconds of RunPodSandbox, CreateContainer, StartContainer of the floor, one pod at a time.
    pub floor_calls: Vec<[f64; 3]>,
    /// First order to last first instruction.
    pub burst: Pair,
    /// Order to SIGTERM.
    pub stop: Pair,
    /// The last container's end to everything given back.
    pub release: Vec<Release>,
    /// Processor time of the agent for one pod, in milliseconds.
    pub cpu_single: Vec<f64>,
    /// The same in a burst, per pod.
    pub cpu_burst: Vec<f64>,
    pub idle: Vec<Idle>,
    /// Exec to healthy with no pods.
    pub healthy_empty: Vec<f64>,
    /// Exec to healthy with all pods running.
    pub healthy_full: Vec<f64>,
    /// Only in a run for probes, which has nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probing: Option<Probing>,
    /// Only in a run for numbers, which has nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub telling: Option<Telling>,
}

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
struct Row {
    figure: String,
    unit: &'static str,
    floor: Option<f64>,
    agent: f64,
    /// Agent by floor.
    ratio: Option<f64>,
    /// What the ratio, or else the agent's figure, may be at most.
    target: Option<f64>,
    /// What the agent may take beyond the floor.
    beyond: Option<f64>,
}

impl Row {
    fn pair(figure: &str, pair: &Pair, of: fn(&[f64]) -> f64, target: Option<f64>) -> Self {
        let (floor, agent) = (of(&pair.floor), of(&pair.agent));
        let ratio = (floor > 0.0).then_some(agent / floor);
        Self { figure: figure.to_owned(), unit: "ms", floor: Some(floor), agent, ratio, target, beyond: None }
    }

    fn agent(figure: String, unit: &'static str, agent: f64, target: Option<f64>) -> Self {
        Self { figure, unit, floor: None, agent, ratio: None, target, beyond: None }
    }

    fn met(&self) -> Option<bool> {
        if let (Some(beyond), Some(floor)) = (self.beyond, self.floor) {
            return Some(self.agent - floor <= beyond);
        }
        Some(self.ratio.unwrap_or(self.agent) <= self.target?)
    }

    fn cells(&self) -> [String; 6] {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let digits = if self.agent < 1.0 { 3 } else { 1 };
        let bound = self.target.map(|target| match self.ratio {
            Some(_) => format!("≤ {target:.2} x"),
            None => format!("≤ {target} {}", self.unit),
        });
        let bound = self.beyond.map(|beyond| format!("≤ floor + {beyond} {}", self.unit)).or(bound);
        [
            self.figure.clone(),
            or_dash(self.floor.map(|floor| format!("{floor:.1} {}", self.unit))),
            format!("{:.digits$} {}", self.agent, self.unit),
            or_dash(self.ratio.map(|ratio| format!("{ratio:.3}"))),
            or_dash(bound),
            or_dash(self.met().map(|met| if met { "yes" } else { "NO" }.to_owned())),
        ]
    }
}

/// What a run found.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    runtime: String,
    amounts: Amounts,
    rows: Vec<Row>,
    measured: Measured,
}

impl Report {
    pub(super) fn new(runtime: String, amounts: Amounts, measured: Measured) -> Self {
        Self { runtime, amounts, rows: rows(amounts, &measured), measured }
    }
}

/// What it costs to tell what pods use.
fn telling(t: &Telling) -> Vec<Row> {
    let page = format!("/metrics/cadvisor of {} pods ({} samples)", t.pods, t.cadvisor_samples);
    vec![
        Row::agent(format!("{page}, processor, median"), "ms", median(&t.cadvisor_ms), Some(30.0)),
        Row::agent("the same page again at once".to_owned(), "ms", median(&t.cadvisor_again_ms), None),
        Row::agent("its size".to_owned(), "MiB", t.cadvisor_bytes as f64 / f64::from(1 << 20), None),
        Row::agent("/stats/summary, processor, median".to_owned(), "ms", median(&t.summary_ms), None),
        Row::agent("/metrics/resource, processor, median".to_owned(), "ms", median(&t.resource_ms), None),
        Row::agent("all three every 10 s, of one core".to_owned(), "%", t.refresh_percent, Some(1.0)),
        Row::agent("while nobody asks, of one core".to_owned(), "%", t.idle_percent, None),
    ]
}

/// Targets are the project's own.
fn rows(amounts: Amounts, m: &Measured) -> Vec<Row> {
    if let Some(p) = &m.probing {
        let what = format!("{} pods probed by exec, httpGet and tcpSocket every 10 s", p.pods);
        return vec![
            Row::agent(format!("{what}: processor"), "%", p.cpu_percent, Some(2.0)),
            Row::agent(
                format!("late, 99th percentile of {} probes, at most", p.probes),
                "ms",
                p.late_p99_ms,
                Some(50.0),
            ),
            Row::agent("of these commands, at most".to_owned(), "ms", p.command_late_p99_ms, None),
            Row::agent(
                "commands' wait for a place, 99th percentile, at most".to_owned(),
                "ms",
                p.command_place_p99_ms,
                None,
            ),
            Row::agent("connections, at most".to_owned(), "ms", p.connection_late_p99_ms, None),
            Row::agent(
                "all cores meanwhile, with everything that ran".to_owned(),
                "%",
                p.machine_percent,
                None,
            ),
            Row::agent("memory (PSS)".to_owned(), "MiB", p.pss_mib, None),
        ];
    }
    if let Some(t) = &m.telling {
        return telling(t);
    }
    if m.single.agent.is_empty() {
        return releases(m);
    }
    let ratio = Some(1.10);
    let mut rows = vec![
        Row::pair("one pod starts, median", &m.single, median, ratio),
        Row::pair("one pod starts, 90th percentile", &m.single, p90, None),
        Row::pair(&format!("burst of {} runs, median", amounts.burst), &m.burst, median, ratio),
        Row::pair("stop order to SIGTERM, median", &m.stop, median, ratio),
        Row::pair("stop order to SIGTERM, 90th percentile", &m.stop, p90, None),
        Row::agent(
            "processor time of one pod's start, median".into(),
            "ms",
            median(&m.cpu_single),
            Some(5.0),
        ),
        Row::agent("the same in a burst, per pod".into(), "ms", median(&m.cpu_burst), Some(5.0)),
    ];
    for idle in &m.idle {
        let (cpu, memory) = match idle.pods {
            0 => (Some(0.05), Some(9.0)),
            n if n >= 100 => (Some(0.3), Some(15.0)),
            _ => (None, None),
        };
        rows.push(Row::agent(format!("idle with {} pods: processor", idle.pods), "%", idle.cpu_percent, cpu));
        rows.push(Row::agent(
            format!("idle with {} pods: memory (PSS)", idle.pods),
            "MiB",
            idle.pss_mib,
            memory,
        ));
    }
    rows.extend(releases(m));
    let full = format!("exec to healthy with {} pods running, median", amounts.pods);
    rows.push(Row::agent(
        "exec to healthy with no pods, median".into(),
        "ms",
        median(&m.healthy_empty),
        Some(150.0),
    ));
    rows.push(Row::agent(full, "ms", median(&m.healthy_full), Some(500.0)));
    rows
}

/// From the last container's end to everything given back.
fn releases(m: &Measured) -> Vec<Row> {
    let rows = m.release.iter().flat_map(|r| {
        let what = |of: &str| match r.containers {
            1 => format!("release of a pod of 1 container, {of}"),
            n => format!("release of a pod of {n} containers, {of}"),
        };
        let median = Row { beyond: Some(100.0), ..Row::pair(&what("median"), &r.pair, median, None) };
        [median, Row::pair(&what("90th percentile"), &r.pair, p90, None)]
    });
    rows.collect()
}

/// The middle one; the upper of the two middle ones of an even number. 0 of nothing.
fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

fn p90(values: &[f64]) -> f64 {
    quantile(values, 0.9)
}

fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// A Markdown table, aligned for reading as it is.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = ["figure", "floor", "agent", "ratio", "target", "met"].map(str::to_owned);
        let mut lines: Vec<[String; 6]> = vec![titles];
        lines.extend(self.rows.iter().map(Row::cells));
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 6] = std::array::from_fn(width);
        if self.measured.floor_calls.is_empty() {
            writeln!(f, "{}\n", self.runtime)?;
            return lines_of(f, &lines, widths);
        }
        let calls =
            |call: usize| median(&self.measured.floor_calls.iter().map(|c| c[call]).collect::<Vec<_>>());
        writeln!(
            f,
            "{}: RunPodSandbox {:.1} ms, CreateContainer {:.1} ms, StartContainer {:.1} ms (medians of the floor)\n",
            self.runtime,
            calls(0),
            calls(1),
            calls(2)
        )?;
        lines_of(f, &lines, widths)
    }
}

fn lines_of(f: &mut fmt::Formatter<'_>, lines: &[[String; 6]], widths: [usize; 6]) -> fmt::Result {
    for (number, line) in lines.iter().enumerate() {
        let cells = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(f, "| {} |", cells.collect::<Vec<_>>().join(" | "))?;
        if number == 0 {
            let rules = widths.map(|width| "-".repeat(width));
            writeln!(f, "| {} |", rules.join(" | "))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(p90(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]), 10.0);
        assert_eq!(p90(&[1.0]), 1.0);
    }

    #[test]
    fn a_ratio_is_held_against_its_target_and_a_figure_without_floor_against_its_own() {
        let pair = Pair { floor: vec![100.0], agent: vec![111.0] };
        let row = Row::pair("x", &pair, median, Some(1.10));
        assert_eq!(row.met(), Some(false));
        assert_eq!(row.cells()[3..], ["1.110", "≤ 1.10 x", "NO"]);
        assert_eq!(Row::pair("x", &pair, median, None).met(), None);
        let row = Row { beyond: Some(100.0), ..Row::pair("x", &pair, median, None) };
        assert_eq!(row.cells()[4..], ["≤ floor + 100 ms", "yes"]);
        let row = Row::agent("cpu".into(), "%", 0.04, Some(0.05));
        assert_eq!(row.cells(), ["cpu", "-", "0.040 %", "-", "≤ 0.05 %", "yes"]);
    }
}
