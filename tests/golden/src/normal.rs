//! What differs between two runs for no reason of the agent's is made equal: ids, times, paths, and what the API server
//! or its controllers had added. Each rule is told, with its reason, in this crate's README.

use crate::case::{Case, PodRecord};
use crate::node::Node;
use crate::replay::{Outcome, PodOutcome};
use anyhow::{Context as _, Result, bail};
use cri::v1;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A call that changes something, ready to be compared.
#[derive(Clone, Debug, PartialEq)]
pub struct NormalCall {
    /// CRI's name.
    pub method: String,
    /// The request.
    pub request: Value,
    /// It failed.
    pub failed: bool,
}

impl NormalCall {
    /// The sandbox or container it is about, as the recordings name them.
    pub fn object(&self) -> &str {
        let r = &self.request;
        r["container_id"].as_str().or_else(|| r["pod_sandbox_id"].as_str()).unwrap_or_default()
    }
}

const CHANGES: [&str; 10] = [
    "RunPodSandbox",
    "StopPodSandbox",
    "RemovePodSandbox",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "PullImage",
    "UpdateContainerResources",
    "UpdatePodSandboxResources",
];

/// The recorded calls that change something.
pub fn recorded_calls(case: &Case) -> Vec<NormalCall> {
    let changes = case.calls.iter().filter(|c| CHANGES.contains(&c.method.as_str()));
    let mut sandbox_config = Value::Null;
    let calls = changes.map(|c| {
        let mut request = c.request.clone();
        if c.method == "RunPodSandbox" {
            sandbox_config = request["config"].clone();
        }
        if request["sandbox_config"] == "=RunPodSandbox.config" {
            request["sandbox_config"] = sandbox_config.clone();
        }
        NormalCall { method: c.method.clone(), request: normal(request), failed: c.error.is_some() }
    });
    calls.collect()
}

/// The agent's calls that change something.
pub fn our_calls(outcome: &Outcome, node: &Node) -> Result<Vec<NormalCall>> {
    let names = names(outcome, node);
    let mut calls = Vec::new();
    for call in outcome.calls.iter().filter(|c| CHANGES.contains(&c.method)) {
        let mut request = request_json(call)?;
        rename(&mut request, &names);
        let failed = call.answered.is_some_and(|(_, code)| code != tonic::Code::Ok);
        calls.push(NormalCall { method: call.method.to_owned(), request: normal(request), failed });
    }
    Ok(calls)
}

fn request_json(call: &cri::fake::Call) -> Result<Value> {
    macro_rules! of {
        ($($request:ident),*) => {
            $(if let Some(m) = call.request::<v1::$request>() {
                return crate::protojson::to_json(stringify!($request), m);
            })*
        };
    }
    of!(
        RunPodSandboxRequest,
        StopPodSandboxRequest,
        RemovePodSandboxRequest,
        CreateContainerRequest,
        StartContainerRequest,
        StopContainerRequest,
        RemoveContainerRequest,
        PullImageRequest,
        UpdateContainerResourcesRequest,
        UpdatePodSandboxResourcesRequest
    );
    bail!("the replay does not know the call {}", call.method)
}

/// A published status and how long it stood, in seconds; the last one stands for ever.
#[derive(Clone, Debug)]
pub struct NormalStatus {
    /// `status`
    pub status: Value,
    /// For how long; only recorded ones have it.
    pub stood: f64,
}

/// The statuses that the stock agent wrote: without the API server's own, and without repetitions.
pub fn recorded_statuses(pod: &PodRecord) -> Vec<NormalStatus> {
    let written = pod.rows.iter().filter(|r| !r.deleted && is_the_agents(&r.status));
    let mut out: Vec<(f64, Value)> = Vec::new();
    for row in written {
        let status = without_sums(normal(row.status.clone()));
        if out.last().is_none_or(|(_, last)| *last != status) {
            out.push((row.at, status));
        }
    }
    let ends: Vec<f64> = out.iter().skip(1).map(|(at, _)| *at).chain([f64::INFINITY]).collect();
    out.into_iter().zip(ends).map(|((at, status), end)| NormalStatus { status, stood: end - at }).collect()
}

/// The resources of the pod as a whole, of the first status: recorded and ours. Later the stock agent reads some of
/// them back from the pod's cgroup, which may be there or not.
pub fn first_sums(record: &PodRecord, pod: &PodOutcome) -> [Value; 2] {
    let recorded =
        record.rows.iter().find(|r| is_the_agents(&r.status)).map(|r| r.status["resources"].clone());
    let ours = pod.statuses.first().and_then(|s| serde_json::to_value(&s.resources).ok());
    [recorded, ours].map(Option::unwrap_or_default)
}

fn without_sums(mut status: Value) -> Value {
    if let Some(fields) = status.as_object_mut() {
        fields.remove("resources");
    }
    status
}

/// The status that a new object has from the API server is a phase and a class.
fn is_the_agents(status: &Value) -> bool {
    status.as_object().is_some_and(|s| s.keys().any(|k| k != "phase" && k != "qosClass"))
}

/// The statuses that the agent published, without repetitions.
pub fn our_statuses(pod: &PodOutcome, outcome: &Outcome, node: &Node) -> Result<Vec<NormalStatus>> {
    let names = names(outcome, node);
    let mut out: Vec<NormalStatus> = Vec::new();
    for status in &pod.statuses {
        let mut status = serde_json::to_value(&**status)?;
        rename(&mut status, &names);
        let status = without_sums(normal(status));
        if out.last().is_none_or(|last| last.status != status) {
            out.push(NormalStatus { status, stood: 0.0 });
        }
    }
    Ok(out)
}

/// Type, reason, field path and message of every event.
pub type Events = BTreeSet<(String, String, String, String)>;

/// The recorded events of a pod.
pub fn recorded_events(pod: &PodRecord) -> Events {
    let text = |e: &Value, field: &str| e[field].as_str().unwrap_or_default().to_owned();
    let event = |e: &Value| (text(e, "type"), text(e, "reason"), text(e, "fieldPath"), text(e, "message"));
    pod.events.iter().map(event).collect()
}

/// The agent's events about a pod.
pub fn our_events(pod: &PodOutcome, outcome: &Outcome, node: &Node) -> Events {
    let names = names(outcome, node);
    let event = |e: &kubelet::event::Event| {
        let path = e.field_path.clone().unwrap_or_default();
        (format!("{:?}", e.kind), e.reason.clone().into_owned(), path, renamed(&e.message, &names))
    };
    pod.events.iter().map(event).collect()
}

/// Values of a pod's cgroup and of its class, from the recording; `None` when there are none.
pub fn recorded_cgroup(pod: &PodRecord) -> Option<[BTreeMap<String, String>; 2]> {
    let values = |v: &Value| v.is_object().then(|| texts(v));
    Some([values(&pod.cgroup["pod"])?, values(&pod.cgroup["qos_parent"])?])
}

/// The fields of an object that are texts.
pub fn texts(v: &Value) -> BTreeMap<String, String> {
    let text = |(k, v): (&String, &Value)| Some((k.clone(), v.as_str()?.to_owned()));
    v.as_object().into_iter().flatten().filter_map(text).collect()
}

/// The API server's address as a variable, which only an agent with an API server can expand.
const SERVICE_HOST: (&str, &str) = ("$(KUBERNETES_SERVICE_HOST)", "10.96.0.1");

/// Texts of this replay and what the recordings have in their place, longest first.
fn names(outcome: &Outcome, node: &Node) -> Vec<(String, String)> {
    let mut names = node.names();
    names.push((SERVICE_HOST.0.to_owned(), SERVICE_HOST.1.to_owned()));
    names.extend(outcome.ids.iter().cloned());
    names.sort_by_key(|(ours, _)| std::cmp::Reverse(ours.len()));
    names
}

fn renamed(text: &str, names: &[(String, String)]) -> String {
    names.iter().fold(text.to_owned(), |text, (ours, theirs)| text.replace(ours.as_str(), theirs))
}

fn rename(value: &mut Value, names: &[(String, String)]) {
    match value {
        Value::String(text) => *text = renamed(text, names),
        Value::Array(items) => items.iter_mut().for_each(|i| rename(i, names)),
        Value::Object(fields) => fields.values_mut().for_each(|f| rename(f, names)),
        _ => {}
    }
}

/// `value` by the rules.
fn normal(mut value: Value) -> Value {
    walk(&mut value);
    value
}

fn walk(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.iter_mut().for_each(|(key, field)| {
                list(key, field);
                walk(field);
            });
            image_name(fields);
            fields.retain(|key, field| {
                let emptied = field == &json!([]) && LISTS.contains(&key.as_str());
                !(field.is_null() || emptied)
            });
        }
        Value::Array(items) => items.iter_mut().for_each(walk),
        Value::String(text) => {
            if let Some(normal) = time(text).or_else(|| termination_log(text)) {
                *text = normal;
            }
        }
        _ => {}
    }
}

/// Lists that are gone once nothing is left in them.
const LISTS: [&str; 3] = ["envs", "mounts", "volumeMounts"];

fn list(key: &str, value: &mut Value) {
    let Value::Array(items) = value else { return };
    match key {
        "envs" => {
            items.retain(|e| !e["key"].as_str().is_some_and(|k| k.starts_with("KUBERNETES_")));
            items.sort_by_key(Value::to_string);
        }
        "options" => items.sort_by_key(Value::to_string),
        "mounts" => {
            items.retain(|m| !m["host_path"].as_str().is_some_and(|p| p.contains("/kube-api-access-")))
        }
        "volumeMounts" => {
            items.retain(|m| !m["name"].as_str().is_some_and(|n| n.starts_with("kube-api-access-")));
        }
        _ => {}
    }
}

/// A container's image goes by any of its names once the runtime has it.
fn image_name(fields: &mut Map<String, Value>) {
    if fields.get("imageID").is_some_and(|id| id.as_str().is_some_and(|id| !id.is_empty())) {
        fields.remove("image");
    }
}

/// `T+3s`, `TS` and times of day are `T`; the epoch, which stands for "never", stays, however it is written.
fn time(text: &str) -> Option<String> {
    if text.starts_with("T+-") && text.len() > 12 {
        return Some("1970-01-01T00:00:00Z".to_owned());
    }
    let since_creation =
        text.strip_prefix("T+").is_some_and(|t| t.trim_end_matches('s').parse::<u64>().is_ok());
    let of_day = text.len() >= 20
        && text.as_bytes()[10] == b'T'
        && text.ends_with('Z')
        && !text.starts_with("1970-")
        && text[..4].bytes().all(|b| b.is_ascii_digit());
    (since_creation || of_day || text == "TS").then(|| "T".to_owned())
}

/// The random name of a termination log.
fn termination_log(text: &str) -> Option<String> {
    let (dir, name) = text.strip_prefix("/var/lib/kubelet/pods/")?.rsplit_once('/')?;
    let random = name.len() == 8 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let log = random && dir.rsplit('/').nth(1) == Some("containers");
    log.then(|| format!("/var/lib/kubelet/pods/{dir}/RAND"))
}

/// One line per place where two values differ, at most `most`.
pub fn differences(ours: &Value, recorded: &Value, most: usize) -> Vec<String> {
    let mut out = Vec::new();
    differ("", ours, recorded, &mut out);
    let more = out.len().saturating_sub(most);
    out.truncate(most);
    if more > 0 {
        out.push(format!("and {more} more"));
    }
    out
}

fn differ(at: &str, ours: &Value, recorded: &Value, out: &mut Vec<String>) {
    match (ours, recorded) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let get = |m: &Map<String, Value>| m.get(key).cloned().unwrap_or_default();
                differ(&format!("{at}.{key}"), &get(a), &get(b), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                differ(&format!("{at}[{i}]"), a, b, out);
            }
        }
        _ if ours != recorded => {
            out.push(format!("{}: ours {ours}, recorded {recorded}", at.trim_start_matches('.')))
        }
        _ => {}
    }
}

/// The pod of that name in an outcome.
pub fn of<'a>(outcome: &'a Outcome, pod: &PodRecord) -> Result<&'a PodOutcome> {
    outcome.pods.get(&pod.name).with_context(|| format!("pod {} was not replayed", pod.name))
}
