//! What the agent did against what was recorded: calls, statuses, events, cgroup values. Pure.

use crate::case::{Case, PodRecord};
use crate::node::{CgroupValues, Node};
use crate::normal::{self, Events, NormalCall, NormalStatus, differences};
use crate::replay::Outcome;
use anyhow::Result;
use std::collections::BTreeMap;

/// Places named in one difference.
const PLACES: usize = 3;
/// A recorded status that stood at least so long (seconds) must be published.
const STOOD: f64 = 1.0;

/// One line for each difference; none when the case agrees.
pub fn compare(case: &Case, outcome: &Outcome, node: &Node) -> Result<Vec<String>> {
    let mut out = calls(case, &normal::recorded_calls(case), &normal::our_calls(outcome, node)?);
    for pod in &case.pods {
        let ours = normal::of(outcome, pod)?;
        let of_pod = |d: String| if case.pods.len() > 1 { format!("{}: {d}", pod.name) } else { d };
        let mut found = statuses(&normal::recorded_statuses(pod), &normal::our_statuses(ours, outcome, node)?);
        found.extend(events(&normal::recorded_events(pod), &normal::our_events(ours, outcome, node)));
        found.extend(cgroup(pod, ours.cgroup.as_ref()));
        if !ours.gone {
            found.push("the pod never went away".to_owned());
        }
        out.extend(found.into_iter().map(of_pod));
    }
    Ok(out)
}

fn calls(case: &Case, recorded: &[NormalCall], ours: &[NormalCall]) -> Vec<String> {
    let (recorded, ours) = (in_life(recorded), in_life(ours));
    for (i, (a, b)) in ours.iter().zip(&recorded).enumerate() {
        if a.method != b.method {
            return vec![format!("calls: number {i}: ours {}, recorded {}", name(a), name(b))];
        }
        let places = differences(&a.request, &b.request, PLACES);
        if !places.is_empty() {
            return vec![format!("calls: {} (number {i}): {}", name(b), places.join("; "))];
        }
        if a.failed != b.failed {
            return vec![format!("calls: {} (number {i}): failed: ours {}, recorded {}", name(b), a.failed, b.failed)];
        }
    }
    let more = |calls: &[NormalCall], n| calls[n..].iter().map(name).collect::<Vec<_>>().join(", ");
    match (ours.len(), recorded.len()) {
        (a, b) if a > b && !cut_short(case) => vec![format!("calls: ours go on: {}", more(&ours, b))],
        (a, b) if a < b => vec![format!("calls: ours lack: {}", more(&recorded, a))],
        _ => Vec::new(),
    }
}

fn name(call: &NormalCall) -> String {
    let meta = &call.request["config"]["metadata"];
    let made = meta["name"].as_str().map(|n| format!("{n}-{}", meta["attempt"].as_u64().unwrap_or(0)));
    let image = call.request["image"]["image"].as_str().map(str::to_owned);
    let object = made.or(image).unwrap_or_else(|| call.object().to_owned());
    format!("{} {object}", call.method)
}

/// The recording stops when the object is gone, and a forced deletion takes it away before the containers have ended.
fn cut_short(case: &Case) -> bool {
    case.pods.iter().any(|p| {
        let last = p.rows.last().map(|r| &r.status["phase"]);
        last.is_some_and(|phase| phase == "Running" || phase == "Pending")
    })
}

/// The calls without what is garbage collection, with repeated failures as one, and with the stops of one moment in an
/// order of their own.
fn in_life(calls: &[NormalCall]) -> Vec<NormalCall> {
    let mut out: Vec<NormalCall> = Vec::new();
    let mut stopped: Vec<&str> = Vec::new();
    let last_sandbox =
        calls.iter().rev().find(|c| c.method == "StopPodSandbox").map(|c| c.object().to_owned());
    let mut ended = false;
    for call in calls {
        let removal = matches!(call.method.as_str(), "RemoveContainer" | "RemovePodSandbox");
        let again = call.method == "StopPodSandbox" && stopped.contains(&call.object());
        if again || removal && (ended || call.failed) {
            continue;
        }
        if call.failed && out.last() == Some(call) {
            continue;
        }
        if call.method == "StopPodSandbox" {
            stopped.push(call.object());
            ended |= Some(call.object()) == last_sandbox.as_deref();
        }
        out.push(call.clone());
    }
    for stops in out.chunk_by_mut(|a, b| a.method == "StopContainer" && b.method == "StopContainer") {
        stops.sort_by(|a, b| a.object().cmp(b.object()));
    }
    out
}

/// Every status of ours is one of the recorded, in order; and those that stood a while, and the last, are ours.
fn statuses(recorded: &[NormalStatus], ours: &[NormalStatus]) -> Vec<String> {
    let mut at = 0;
    let mut published = vec![false; recorded.len()];
    for (i, status) in ours.iter().enumerate() {
        match recorded[at..].iter().position(|r| r.status == status.status) {
            Some(ahead) => {
                at += ahead;
                published[at] = true;
            }
            None => {
                // What it was most likely meant to be: the nearest from here on.
                let near = recorded[at..].iter().map(|r| differences(&status.status, &r.status, PLACES));
                let near = near.min_by_key(Vec::len).unwrap_or_default();
                return vec![format!("status {i} was never recorded: {}", near.join("; "))];
            }
        }
    }
    let last = recorded.len().wrapping_sub(1);
    let missing = recorded
        .iter()
        .enumerate()
        .filter(|(i, r)| !published[*i] && (*i == last || r.stood >= STOOD))
        .map(|(i, r)| {
            let before = if i == 0 { serde_json::Value::Null } else { recorded[i - 1].status.clone() };
            let places = differences(&r.status, &before, PLACES);
            let places = places.into_iter().map(|p| p.replace("ours ", "").replace("recorded ", "after "));
            format!("status {i} of the recording was not published: {}", places.collect::<Vec<_>>().join("; "))
        });
    missing.collect()
}

fn events(recorded: &Events, ours: &Events) -> Vec<String> {
    let show = |e: &(String, String, String, String)| format!("{} {} {} {:?}", e.0, e.1, e.2, e.3);
    let mut out: Vec<String> =
        recorded.difference(ours).map(|e| format!("event missing: {}", show(e))).collect();
    out.extend(ours.difference(recorded).map(|e| format!("event never recorded: {}", show(e))));
    out
}

fn cgroup(pod: &PodRecord, ours: Option<&CgroupValues>) -> Vec<String> {
    let (Some([recorded, class]), Some(ours)) = (normal::recorded_cgroup(pod), ours) else { return Vec::new() };
    let mut out = values("pod cgroup", &recorded, &ours.pod);
    // The burstable class has the shares of all its pods, and others ran when this one was recorded.
    let alone = !class.get("path").is_some_and(|p| p.ends_with("/burstable"));
    let class = class.into_iter().filter(|(file, _)| alone || file != "cpu.shares").collect();
    out.extend(values("class cgroup", &class, &ours.class));
    out
}

fn values(what: &str, recorded: &BTreeMap<String, String>, ours: &BTreeMap<String, String>) -> Vec<String> {
    let differ = ours.iter().filter(|(file, value)| recorded.get(*file).is_some_and(|r| r != *value));
    differ.map(|(file, value)| format!("{what}: {file}: ours {value}, recorded {}", recorded[file])).collect()
}
