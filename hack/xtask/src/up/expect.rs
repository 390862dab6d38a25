//! What an example pod should become, and whether it has: pure.
//!
//! An example says what is expected of it in an annotation; `up` waits until every one is met and
//! prints the table made here.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// The annotation on an example.
pub(super) const ANNOTATION: &str = "stevedore.dev/expect";

/// The values of [`ANNOTATION`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expectation {
    /// Every container runs and is ready.
    Running,
    /// It ran to its end with exit code 0.
    Succeeded,
    /// It keeps failing and waits for its next start.
    CrashLoopBackOff,
}

impl FromStr for Expectation {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "Running" => Ok(Self::Running),
            "Succeeded" => Ok(Self::Succeeded),
            "CrashLoopBackOff" => Ok(Self::CrashLoopBackOff),
            _ => anyhow::bail!("{ANNOTATION}: {text:?}: expected Running, Succeeded or CrashLoopBackOff"),
        }
    }
}

impl Expectation {
    /// Whether this pod is as it should be.
    pub(super) fn met(self, pod: &Pod) -> bool {
        match self {
            Self::Running => {
                let statuses = containers(pod);
                phase(pod) == "Running" && !statuses.is_empty() && statuses.iter().all(|status| status.ready)
            }
            Self::Succeeded => phase(pod) == "Succeeded",
            Self::CrashLoopBackOff => {
                containers(pod).iter().any(|status| waiting(status) == Some("CrashLoopBackOff"))
            }
        }
    }
}

fn containers(pod: &Pod) -> &[ContainerStatus] {
    pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default()
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Unknown")
}

fn waiting(status: &ContainerStatus) -> Option<&str> {
    status.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

/// Why a pod is not as it should be, as far as its status tells.
pub(super) fn complaint(pod: &Pod) -> String {
    let mut text = format!("phase {}", phase(pod));
    let status = pod.status.as_ref();
    let said = [status.and_then(|s| s.reason.as_ref()), status.and_then(|s| s.message.as_ref())];
    for part in said.into_iter().flatten() {
        text.push_str(&format!(", {part}"));
    }
    let inits = status.and_then(|s| s.init_container_statuses.as_deref()).unwrap_or_default();
    for container in inits.iter().chain(containers(pod)) {
        let waiting = container.state.as_ref().and_then(|s| s.waiting.as_ref());
        if let Some(waiting) = waiting {
            let reason = waiting.reason.as_deref().unwrap_or("waiting");
            let message = waiting.message.as_deref().unwrap_or_default();
            text.push_str(&format!(", container {}: {reason} {message}", container.name));
        }
    }
    text.trim_end().to_owned()
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row([String; 6]);

/// The titles of the columns.
const TITLES: [&str; 6] = ["POD", "PHASE", "IP", "CONTAINERS", "RESTARTS", "STARTED AFTER"];

impl Row {
    /// `latency` is the time from the manifest's rename to its last container's first start.
    pub(super) fn new(pod: &Pod, latency: Option<Duration>) -> Self {
        let statuses = containers(pod);
        let ready = statuses.iter().filter(|status| status.ready).count();
        let waiting = statuses.iter().find_map(waiting);
        let restarts: i32 = statuses.iter().map(|status| status.restart_count).sum();
        Self([
            pod.metadata.name.clone().unwrap_or_default(),
            waiting.unwrap_or(phase(pod)).to_owned(),
            pod.status.as_ref().and_then(|s| s.pod_ip.clone()).unwrap_or_else(|| "-".into()),
            format!("{ready}/{}", statuses.len()),
            restarts.to_string(),
            latency.map_or_else(|| "-".into(), |l| format!("{} ms", l.as_millis())),
        ])
    }
}

/// The table of all rows.
#[derive(Debug)]
pub(super) struct Table(pub Vec<Row>);

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = TITLES.map(str::to_owned);
        let lines: Vec<&[String; 6]> = std::iter::once(&titles).chain(self.0.iter().map(|r| &r.0)).collect();
        for line in &lines {
            let mut text = String::new();
            for (column, cell) in line.iter().enumerate() {
                let width = lines.iter().map(|l| l[column].len()).max().unwrap_or(0);
                text.push_str(&format!("{cell:width$}  "));
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(phase: &str, statuses: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "p" },
            "status": { "phase": phase, "podIP": "10.0.0.2", "containerStatuses": statuses },
        }))
        .unwrap()
    }

    fn status(ready: bool, restarts: i32, state: serde_json::Value) -> serde_json::Value {
        json!({ "name": "c", "image": "i", "imageID": "", "ready": ready, "restartCount": restarts, "state": state })
    }

    #[test]
    fn running_means_every_container_is_ready() {
        let up = status(true, 0, json!({ "running": {} }));
        let down = status(false, 0, json!({ "running": {} }));
        assert!(Expectation::Running.met(&pod("Running", json!([up.clone(), up]))));
        assert!(!Expectation::Running.met(&pod("Running", json!([down]))));
        assert!(!Expectation::Running.met(&pod("Running", json!([]))));
        assert!(!Expectation::Running.met(&Pod::default()));
    }

    #[test]
    fn a_crash_loop_is_seen_in_the_pause_between_two_attempts() {
        let pause = status(false, 0, json!({ "waiting": { "reason": "CrashLoopBackOff" } }));
        let first = status(true, 0, json!({ "running": {} }));
        let again = status(true, 1, json!({ "running": {} }));
        assert!(Expectation::CrashLoopBackOff.met(&pod("Running", json!([pause]))));
        assert!(!Expectation::CrashLoopBackOff.met(&pod("Running", json!([first]))));
        assert!(!Expectation::CrashLoopBackOff.met(&pod("Running", json!([again]))));
    }

    #[test]
    fn the_table_is_aligned_and_shows_the_reason_for_waiting() {
        let waiting = status(false, 2, json!({ "waiting": { "reason": "CrashLoopBackOff" } }));
        let rows = vec![Row::new(&pod("Running", json!([waiting])), Some(Duration::from_millis(120)))];
        let text = Table(rows).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "POD  PHASE             IP        CONTAINERS  RESTARTS  STARTED AFTER");
        assert_eq!(lines[1], "p    CrashLoopBackOff  10.0.0.2  0/1         2         120 ms");
    }
}
