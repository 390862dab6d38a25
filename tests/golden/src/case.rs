//! One recorded case as data: its manifests, the runtime's calls, each pod's statuses, events and cgroup values.
//!
//! The replay reads it; nothing here knows the agent. Shapes are those of the recordings' README.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The node of the recordings.
pub const NODE: &str = "golden-node";

/// The recordings: `GOLDEN_DIR`, or `../shared/golden` beside the repository. The error says where they were looked for.
pub fn golden_dir() -> Result<PathBuf> {
    let dir = std::env::var_os("GOLDEN_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden"), PathBuf::from);
    if !dir.join("cases").is_dir() {
        bail!("no recorded cases at {}", dir.display());
    }
    Ok(dir)
}

/// The names of all cases, in order.
pub fn names(golden: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(golden.join("cases"))?;
    let mut names =
        entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// A case.
#[derive(Debug)]
pub struct Case {
    /// Its directory's name.
    pub name: String,
    /// The documents of `pod.yaml`.
    pub documents: Vec<Value>,
    /// The calls in order.
    pub calls: Vec<Call>,
    /// Its pods, in the order of their manifests.
    pub pods: Vec<PodRecord>,
    /// The API server refused the pod: there is nothing to replay.
    pub refused: bool,
    /// `notes.txt`: what was done to the pods, and the answers.
    pub notes: String,
    /// `extra.json`; null when there is none.
    pub extra: Value,
}

/// A call to the runtime.
#[derive(Clone, Debug)]
pub struct Call {
    /// Seconds since the case began.
    pub at: f64,
    /// How long it took, where that was recorded.
    pub took: Option<f64>,
    /// CRI's name.
    pub method: String,
    /// The request.
    pub request: Value,
    /// The answer; null for a failure.
    pub response: Value,
    /// Code and message of a failure.
    pub error: Option<(String, String)>,
}

impl Call {
    /// `request[field]` as text; empty when absent.
    pub fn text(&self, field: &str) -> &str {
        self.request[field].as_str().unwrap_or_default()
    }
}

/// What was recorded of one pod.
#[derive(Debug)]
pub struct PodRecord {
    /// `metadata.name`
    pub name: String,
    /// `UID`, `UID2`, …
    pub uid: String,
    /// `metadata.namespace`
    pub namespace: String,
    /// The manifest.
    pub manifest: Value,
    /// The states of the object that a watch showed.
    pub rows: Vec<Row>,
    /// Events.
    pub events: Vec<Value>,
    /// Values of its cgroup and its class's; null when none were recorded.
    pub cgroup: Value,
}

/// One state of a pod's object.
#[derive(Clone, Debug)]
pub struct Row {
    /// Seconds since the case began.
    pub at: f64,
    /// `DELETED`: the object is gone.
    pub deleted: bool,
    /// `metadata.generation`
    pub generation: i64,
    /// `metadata.deletionGracePeriodSeconds`, set while the object is being deleted.
    pub deletion_grace: Option<i64>,
    /// `status`
    pub status: Value,
}

impl Case {
    /// Reads the case `name`.
    pub fn read(golden: &Path, name: &str) -> Result<Self> {
        let dir = golden.join("cases").join(name);
        let yaml =
            std::fs::read_to_string(dir.join("pod.yaml")).with_context(|| format!("no case {name}"))?;
        // A container may be called `y`, which older YAML takes for a boolean.
        let documents: Vec<Value> =
            serde_saphyr::from_multiple_with_options(&yaml, serde_saphyr::options! { strict_booleans: true })
                .with_context(|| format!("{name}/pod.yaml"))?;
        let lines = std::fs::read_to_string(dir.join("cri.jsonl")).unwrap_or_default();
        let calls = lines.lines().map(call).collect::<Result<Vec<_>>>()?;
        let file = |file: &str| -> Result<Value> {
            match std::fs::read_to_string(dir.join(file)) {
                Ok(text) => serde_json::from_str(&text).with_context(|| format!("{name}/{file}")),
                Err(_) => Ok(Value::Null),
            }
        };
        let notes = std::fs::read_to_string(dir.join("notes.txt")).unwrap_or_default();
        let extra = file("extra.json")?;
        let (status, events, cgroup) = (file("status.json")?, file("events.json")?, file("cgroup.json")?);
        let manifests = documents.iter().filter(|d| d["kind"] == "Pod");
        let pods = manifests.enumerate().map(|(i, manifest)| {
            let name = manifest["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let rows = of_pod(&status, &name, "").as_array().cloned().unwrap_or_default();
            let meta = sandbox_of(&calls, &name);
            let fresh = if i == 0 { "UID".to_owned() } else { format!("UID{}", i + 1) };
            PodRecord {
                uid: meta["uid"].as_str().map_or(fresh, str::to_owned),
                namespace: meta["namespace"].as_str().unwrap_or("demo").to_owned(),
                rows: rows.iter().map(row).collect(),
                events: of_pod(&events, &name, "").as_array().cloned().unwrap_or_default(),
                cgroup: of_pod(&cgroup, &name, "pod").clone(),
                manifest: manifest.clone(),
                name,
            }
        });
        let pods = pods.collect();
        let refused = dir.join("api_rejected.json").exists();
        Ok(Self { name: name.to_owned(), documents, calls, pods, refused, notes, extra })
    }

    /// The calls of one method.
    pub fn calls_of<'a>(&'a self, method: &'a str) -> impl Iterator<Item = &'a Call> {
        self.calls.iter().filter(move |c| c.method == method)
    }
}

/// Files of a case of several pods are objects by pod name; of a case of one pod they are lists, or stand under `alone`.
fn of_pod<'a>(file: &'a Value, pod: &str, alone: &str) -> &'a Value {
    match file.get(pod).or_else(|| file.get(alone)) {
        Some(of_pod) => of_pod,
        None if file.is_array() => file,
        None => &Value::Null,
    }
}

/// The identity in the pod's sandbox, where it got as far as that.
fn sandbox_of(calls: &[Call], pod: &str) -> Value {
    let made = calls.iter().filter(|c| c.method == "RunPodSandbox").map(|c| &c.request["config"]["metadata"]);
    made.filter(|m| m["name"] == pod).map(Value::clone).next().unwrap_or_default()
}

fn call(line: &str) -> Result<Call> {
    let v: Value = serde_json::from_str(line)?;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    Ok(Call {
        at: v["t_s"].as_f64().unwrap_or_default(),
        took: v["dur_s"].as_f64(),
        method: text(&v["method"]),
        request: v["request"].clone(),
        response: v["response"].clone(),
        error: v.get("error").map(|e| (text(&e["code"]), text(&e["message"]))),
    })
}

fn row(v: &Value) -> Row {
    Row {
        at: v["t_s"].as_f64().unwrap_or_default(),
        deleted: v["watch"] == "DELETED",
        generation: v["generation"].as_i64().unwrap_or(1),
        deletion_grace: v["deletionTimestamp"].as_str().and(v["deletionGracePeriodSeconds"].as_i64()),
        status: v["status"].clone(),
    }
}
