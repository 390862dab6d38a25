//! What the runtime and the containers of a case did, read off its recording: the script of the replay. Pure.
//!
//! Moments are seconds since the case began, to a tenth of a second; an end is placed a moment before it was first seen.

use crate::case::{Call, Case};
use base64::Engine as _;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// One instance of a container: `ctr-NAME-ATTEMPT` in the recording.
#[derive(Clone, Debug, Default)]
pub struct Instance {
    /// CreateContainer failed with this.
    pub create_error: Option<String>,
    /// StartContainer failed with this.
    pub start_error: Option<String>,
    /// How it ended.
    pub end: Option<End>,
    /// What the stop signal did: exit code, and how long after. `None`: it was never sent or had no effect.
    pub on_term: Option<(i32, f64)>,
    /// What its first process wrote to the termination log.
    pub message: String,
    /// User, group and supplementary groups of its first process.
    pub user: Option<(i64, i64, Vec<i64>)>,
}

/// An end without being asked.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// When; `None`: before it was ever seen to run.
    pub at: Option<f64>,
    /// Exit code.
    pub code: i32,
    /// The runtime said `OOMKilled`.
    pub out_of_memory: bool,
}

/// A command that was run in a container.
#[derive(Clone, Debug, PartialEq)]
pub struct Exec {
    /// Its arguments.
    pub command: Vec<String>,
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it complained of.
    pub stderr: Vec<u8>,
    /// Seconds it ran.
    pub took: f64,
}

/// An image of the node.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its id.
    pub id: String,
    /// Names by which the case asks for it.
    pub names: BTreeSet<String>,
}

/// The whole of it.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// By container name and attempt.
    pub instances: BTreeMap<(String, u32), Instance>,
    /// Images that are present.
    pub images: Vec<Image>,
    /// Pulls that fail: reference and message.
    pub failing_pulls: BTreeMap<String, String>,
    /// Commands run in containers, by the container's name, in order.
    pub execs: BTreeMap<String, Vec<Exec>>,
    /// RunPodSandbox fails with this.
    pub sandbox_error: Option<String>,
}

impl Script {
    /// Reads it off `case`.
    pub fn of(case: &Case) -> Self {
        let mut script = Self { images: images(case), ..Self::default() };
        for call in &case.calls {
            match (call.method.as_str(), &call.error) {
                ("PullImage", Some((_, message))) => {
                    let image = call.request["image"]["image"].as_str().unwrap_or_default();
                    script.failing_pulls.insert(image.to_owned(), message.clone());
                }
                ("ExecSync", None) => {
                    // `ctr-NAME-ATTEMPT`
                    let id = call.text("container_id").trim_start_matches("ctr-");
                    let name = id.rsplit_once('-').map_or(id, |(name, _)| name).to_owned();
                    script.execs.entry(name).or_default().push(exec(call));
                }
                ("RunPodSandbox", Some((_, message))) => script.sandbox_error = Some(message.clone()),
                ("CreateContainer", error) => {
                    let meta = &call.request["config"]["metadata"];
                    let name = meta["name"].as_str().unwrap_or_default().to_owned();
                    let attempt = meta["attempt"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
                    let mut instance = instance(case, &format!("ctr-{name}-{attempt}"));
                    instance.create_error = error.as_ref().map(|(_, message)| message.clone());
                    script.instances.insert((name, attempt), instance);
                }
                _ => {}
            }
        }
        script
    }
}

fn exec(call: &Call) -> Exec {
    let bytes = |field: &str| {
        let text = call.response[field].as_str().unwrap_or_default();
        base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default()
    };
    let command = call.request["cmd"].as_array().into_iter().flatten().filter_map(Value::as_str);
    Exec {
        command: command.map(str::to_owned).collect(),
        code: call.response["exit_code"].as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0),
        stdout: bytes("stdout"),
        stderr: bytes("stderr"),
        took: call.took.unwrap_or(0.0),
    }
}

/// Images by id from what was created, and names that were asked for and found.
fn images(case: &Case) -> Vec<Image> {
    let mut by_id: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for call in case.calls_of("CreateContainer") {
        let image = &call.request["config"]["image"];
        let text = |field: &str| image[field].as_str().unwrap_or_default().to_owned();
        by_id.entry(text("image")).or_default().insert(text("user_specified_image"));
    }
    let known: BTreeSet<String> = by_id.values().flatten().cloned().collect();
    for call in case.calls_of("ImageStatus").filter(|c| c.response["present"] == true) {
        let name = call.request["image"]["image"].as_str().unwrap_or_default();
        if !known.contains(name) && !by_id.contains_key(name) {
            // Nothing was created from it: its id is in no message.
            by_id.entry(format!("sha256:{:0>64}", by_id.len() + 1)).or_default().insert(name.to_owned());
        }
    }
    by_id.into_iter().map(|(id, names)| Image { id, names }).collect()
}

fn instance(case: &Case, id: &str) -> Instance {
    let of = |c: &&Call| c.text("container_id") == id;
    let mut out = Instance::default();
    let started = case.calls_of("StartContainer").find(of);
    out.start_error = started.and_then(|c| c.error.as_ref()).map(|(_, message)| message.clone());
    let stop = case.calls_of("StopContainer").find(of);
    let seen = sightings(case, id);
    out.user = seen.iter().find_map(|s| user(&s.status));
    let Some(ended) = seen.iter().find(|s| s.ended.is_some()) else {
        if let Some(stop) = stop {
            out.on_term = Some((0, stop.took.unwrap_or(0.0)));
        }
        return out;
    };
    let facts = ended.ended.clone().unwrap_or_default();
    let code = facts["exitCode"].as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0);
    let told = seen.iter().filter_map(|s| s.ended.as_ref()?["message"].as_str()).next();
    out.message = told.unwrap_or_default().to_owned();
    if let Some(stop) = stop.filter(|s| s.at <= ended.at) {
        let took = stop.took.unwrap_or(0.0);
        let grace = stop.text("timeout").parse::<f64>().unwrap_or(0.0);
        let killed = code == 137 && took >= grace - 0.1;
        out.on_term = (!killed).then_some((code, took));
    } else {
        let ran = seen.iter().any(|s| s.running);
        let at = ran.then_some(ended.at);
        out.end = Some(End { at, code, out_of_memory: facts["reason"] == "OOMKilled" });
    }
    out
}

/// A moment at which an instance was seen, by the agent or in the pod's status.
struct Sighting {
    at: f64,
    running: bool,
    /// `state.terminated` of the API.
    ended: Option<Value>,
    /// Its entry in the pod's status; null for what the agent saw.
    status: Value,
}

fn sightings(case: &Case, id: &str) -> Vec<Sighting> {
    let mut all = Vec::new();
    for call in case.calls_of("ContainerStatus").filter(|c| c.text("container_id") == id) {
        let r = &call.response;
        let ended = (r["state"] == "CONTAINER_EXITED")
            .then(|| serde_json::json!({"exitCode": r["exit_code"], "reason": r["reason"]}));
        all.push(Sighting {
            at: call.at,
            running: r["state"] == "CONTAINER_RUNNING",
            ended,
            status: Value::Null,
        });
    }
    let full = format!("containerd://{id}");
    for row in case.pods.iter().flat_map(|p| &p.rows) {
        let lists = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
        for status in lists.iter().filter_map(|l| row.status[l].as_array()).flatten() {
            let current = status["containerID"] == *full;
            let ended = [&status["state"], &status["lastState"]]
                .into_iter()
                .map(|s| &s["terminated"])
                .find(|t| t["containerID"] == *full);
            if current || ended.is_some() {
                let running = current && status["state"].get("running").is_some();
                let status = if current { status.clone() } else { Value::Null };
                all.push(Sighting { at: row.at, running, ended: ended.cloned(), status });
            }
        }
    }
    all.sort_by(|a, b| a.at.total_cmp(&b.at));
    all
}

fn user(status: &Value) -> Option<(i64, i64, Vec<i64>)> {
    let linux = status["user"].get("linux")?;
    let groups = linux["supplementalGroups"].as_array().into_iter().flatten().filter_map(Value::as_i64);
    Some((linux["uid"].as_i64()?, linux["gid"].as_i64()?, groups.collect()))
}
