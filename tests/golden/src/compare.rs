//! What the agent did against what was recorded: calls, statuses, events, cgroup values. Pure.

use crate::case::{Case, PodRecord};
use crate::node::{CgroupValues, Node};
use crate::normal::{self, Events, NormalCall, NormalStatus, differences};
use crate::probes;
use crate::replay::Outcome;
use crate::resizes;
use anyhow::Result;
use serde_json::Value;
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
        let mut found =
            statuses(&normal::recorded_statuses(pod), &normal::our_statuses(ours, outcome, node)?);
        let [recorded, sums] = normal::first_sums(pod, ours);
        found.extend(differences(&sums, &recorded, PLACES).iter().map(|d| format!("status.resources{d}")));
        found.extend(events(case, &normal::recorded_events(pod), &normal::our_events(ours, outcome, node)));
        found.extend(cgroup(pod, ours.cgroup.as_ref()));
        for (n, (recorded, ours)) in resizes::cgroups(case, pod).iter().zip(&ours.resized).enumerate() {
            found.extend(values(
                &format!("pod cgroup after resize {n}"),
                &normal::texts(recorded),
                &ours.pod,
            ));
        }
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
            return vec![format!(
                "calls: {} (number {i}): failed: ours {}, recorded {}",
                name(b),
                a.failed,
                b.failed
            )];
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
        let forced = p.rows.iter().find_map(|r| r.deletion_grace) == Some(0);
        forced && p.rows.last().is_some_and(|r| r.status["phase"] == "Running")
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
        match recorded[at..].iter().position(|r| same(&status.status, &r.status)) {
            Some(ahead) => {
                at += ahead;
                published[at] = true;
            }
            None if overtaken(i, ours, recorded)
                || tells_a_reason_early(&status.status, &recorded[at].status) => {}
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
            let before = if i == 0 { Value::Null } else { recorded[i - 1].status.clone() };
            let places = differences(&r.status, &before, PLACES);
            let places = places.into_iter().map(|p| p.replace("ours ", "").replace("recorded ", "after "));
            format!(
                "status {i} of the recording was not published: {}",
                places.collect::<Vec<_>>().join("; ")
            )
        });
    missing.collect()
}

/// The stock agent may tell one end twice, as the state and as the one before it (after a back-off was told of and the
/// instance before was removed); then the one before is not compared.
fn same(ours: &Value, recorded: &Value) -> bool {
    if ours == recorded {
        return true;
    }
    let (mut ours, mut recorded) = (ours.clone(), recorded.clone());
    for list in LISTS {
        let (Some(a), Some(b)) = (ours[list].as_array_mut(), recorded[list].as_array_mut()) else { continue };
        for (a, b) in a.iter_mut().zip(b) {
            let id = &b["lastState"]["terminated"]["containerID"];
            if id.is_string() && *id == b["state"]["terminated"]["containerID"] {
                a["lastState"] = Value::Null;
                b["lastState"] = Value::Null;
            }
        }
    }
    ours == recorded
}

const LISTS: [&str; 2] = ["initContainerStatuses", "containerStatuses"];

/// The stock agent writes only the newest status: the very first may be overtaken by the one with the sandbox.
fn overtaken(index: usize, ours: &[NormalStatus], recorded: &[NormalStatus]) -> bool {
    index == 0
        && ours.get(1).zip(recorded.first()).is_some_and(|(second, first)| second.status == first.status)
}

/// The stock agent tells why a container waits when it next looks at the pod, ten seconds later or more; the pod may
/// be gone by then. `ours` is `recorded` but for that reason.
fn tells_a_reason_early(ours: &Value, recorded: &Value) -> bool {
    let states = |status: &Value| -> Vec<Value> {
        let lists = LISTS.map(|l| status[l].as_array().cloned());
        lists.into_iter().flatten().flatten().collect()
    };
    let (mut told, mut before) = (ours.clone(), recorded.clone());
    for status in [&mut told, &mut before] {
        for list in LISTS {
            status[list].as_array_mut().into_iter().flatten().for_each(|s| {
                s["state"] = Value::Null;
                s["lastState"] = Value::Null;
            });
        }
    }
    let early = states(ours).iter().zip(&states(recorded)).all(|(a, b)| {
        let waits = a["state"]["waiting"]["reason"].as_str().is_some_and(|r| REASONS.contains(&r));
        let ended = b["state"].get("terminated").map(|t| &a["lastState"]["terminated"] == t);
        let waited = b["state"].get("waiting").map(|_| a["lastState"] == b["lastState"]);
        (a["state"] == b["state"] && a["lastState"] == b["lastState"])
            || (waits && ended.or(waited) == Some(true))
    });
    told == before && early
}

/// Reasons that come and go while nothing else changes.
const REASONS: [&str; 3] = ["CrashLoopBackOff", "ErrImagePull", "ImagePullBackOff"];

fn events(case: &Case, recorded: &Events, ours: &Events) -> Vec<String> {
    let show = |e: &(String, String, String, String)| format!("{} {} {} {:?}", e.0, e.1, e.2, e.3);
    let told =
        |e: &&(String, String, String, String)| e.1 != "Unhealthy" || !probes::while_stopping(case, &e.3);
    let mut out: Vec<String> =
        recorded.difference(ours).filter(told).map(|e| format!("event missing: {}", show(e))).collect();
    out.extend(ours.difference(recorded).map(|e| format!("event never recorded: {}", show(e))));
    out
}

fn cgroup(pod: &PodRecord, ours: Option<&CgroupValues>) -> Vec<String> {
    let (Some([recorded, class]), Some(ours)) = (normal::recorded_cgroup(pod), ours) else {
        return Vec::new();
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn call(method: &str, object: &str) -> NormalCall {
        let field = if method.ends_with("Sandbox") { "pod_sandbox_id" } else { "container_id" };
        NormalCall { method: method.to_owned(), request: json!({field: object}), failed: false }
    }

    fn case() -> Case {
        Case {
            name: "c".into(),
            documents: vec![],
            calls: vec![],
            pods: vec![],
            refused: false,
            notes: String::new(),
            extra: Value::Null,
        }
    }

    fn life() -> Vec<NormalCall> {
        vec![
            call("StartContainer", "ctr-a-0"),
            call("StartContainer", "ctr-b-0"),
            call("RemoveContainer", "ctr-a-0"),
            call("StartContainer", "ctr-a-1"),
            call("StopContainer", "ctr-a-1"),
            call("StopContainer", "ctr-b-0"),
            call("StopPodSandbox", "sandbox-0"),
        ]
    }

    #[test]
    fn what_follows_the_last_sandboxs_stop_and_the_order_of_stops_do_not_matter() {
        let mut ours = life();
        ours.swap(4, 5);
        ours.push(call("RemoveContainer", "ctr-b-0"));
        ours.push(call("StopPodSandbox", "sandbox-0"));
        ours.push(call("RemovePodSandbox", "sandbox-0"));
        assert_eq!(calls(&case(), &life(), &ours), [""; 0]);
    }

    #[test]
    fn a_call_too_many_too_few_or_out_of_order_is_told() {
        for (at, what) in [(0, "start"), (2, "removal"), (5, "stop"), (6, "sandbox")] {
            let mut ours = life();
            ours.remove(at);
            assert_ne!(calls(&case(), &life(), &ours), [""; 0], "without the {what}");
            assert_ne!(calls(&case(), &ours, &life()), [""; 0], "with another {what}");
        }
        let mut ours = life();
        ours.swap(2, 3);
        assert_ne!(calls(&case(), &life(), &ours), [""; 0]);
        let mut ours = life();
        ours[4].request["timeout"] = json!("30");
        assert_eq!(
            calls(&case(), &life(), &ours),
            ["calls: StopContainer ctr-a-1 (number 4): timeout: ours \"30\", recorded null"]
        );
        let mut ours = life();
        ours[3].failed = true;
        assert_ne!(calls(&case(), &life(), &ours), [""; 0]);
    }

    fn status(phase: &str, state: Value, last: Value) -> NormalStatus {
        let containers = json!([{"name": "c", "state": state, "lastState": last}]);
        NormalStatus { status: json!({"phase": phase, "containerStatuses": containers}), stood: 2.0 }
    }

    fn ended(id: &str) -> Value {
        json!({"terminated": {"containerID": id, "exitCode": 1}})
    }

    fn rows() -> Vec<NormalStatus> {
        let waiting = json!({"waiting": {"reason": "ContainerCreating"}});
        vec![
            status("Pending", waiting, json!({})),
            status("Running", json!({"running": {}}), json!({})),
            status("Running", ended("c-0"), json!({})),
        ]
    }

    #[test]
    fn a_status_that_was_never_recorded_or_never_published_is_told() {
        assert_eq!(statuses(&rows(), &rows()), [""; 0]);
        for at in 0..3 {
            let mut fewer = rows();
            fewer.remove(at);
            assert_ne!(statuses(&rows(), &fewer), [""; 0], "without {at}");
        }
        let mut brief = rows();
        brief[1].stood = 0.9;
        let mut fewer = rows();
        fewer.remove(1);
        assert_eq!(statuses(&brief, &fewer), [""; 0], "it stood too briefly to matter");
        let mut other = rows();
        other[1].status["phase"] = json!("Failed");
        assert_ne!(statuses(&rows(), &other), [""; 0]);
        let mut swapped = rows();
        swapped.swap(1, 2);
        assert_ne!(statuses(&rows(), &swapped), [""; 0]);
    }

    #[test]
    fn only_a_back_off_may_be_told_early() {
        let with = |reason: &str, last: Value| {
            let mut ours = rows();
            ours.push(status("Running", json!({"waiting": {"reason": reason}}), last));
            ours
        };
        assert_eq!(statuses(&rows(), &with("CrashLoopBackOff", ended("c-0"))), [""; 0]);
        assert_ne!(statuses(&rows(), &with("CrashLoopBackOff", ended("c-1"))), [""; 0]);
        assert_ne!(statuses(&rows(), &with("CreateContainerError", ended("c-0"))), [""; 0]);
        let mut ours = with("CrashLoopBackOff", ended("c-0"));
        ours[3].status["phase"] = json!("Pending");
        assert_ne!(statuses(&rows(), &ours), [""; 0]);
    }

    #[test]
    fn events_differ_by_every_part() {
        let event = |parts: [&str; 4]| {
            let [kind, reason, path, message] = parts.map(str::to_owned);
            Events::from([(kind, reason, path, message)])
        };
        let recorded = event(["Normal", "Started", "p", "m"]);
        assert_eq!(events(&case(), &recorded, &recorded), [""; 0]);
        for other in [
            ["Warning", "Started", "p", "m"],
            ["Normal", "Started", "", "m"],
            ["Normal", "Started", "p", "n"],
        ] {
            assert_eq!(events(&case(), &recorded, &event(other)).len(), 2, "{other:?}");
        }
    }
}
