//! The room `pod::translate` against the recordings: every RunPodSandbox and CreateContainer that can be derived from
//! a case's manifests alone, the texts of configuration errors, `/etc/hosts`, pod cgroups and QoS classes.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test: a panic is its failure, its output is the table"
)]

mod case;
mod defaults;
mod node;

use case::{Case, POD_IP, cases, differences, golden_dir, normalised};
use golden::protojson::to_json;
use k8s_openapi::api::core::v1::Pod;
use kubelet::api::{Qos, spec};
use kubelet::cgroup::{NodeValues, PodValues, Protection, Requested};
use kubelet::pod::translate::memory::MemoryQos;
use kubelet::pod::translate::{
    NodeFacts, etc_hosts, pod_cgroup_resources, pod_hostname, pod_resources, qos_class, sandbox_config,
};
use node::{Recorded, build_container, build_resources, cgroup_parent, facts, resolv_conf};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Cases whose requests differ, and why. One that agrees again must leave this list; all others must agree.
const DIFFER: [(&str, &str); 2] = [
    ("kubelet-alt-config", "recorded under another kubelet configuration, with exclusive CPUs"),
    ("resize-memory-restart", "the container was made again after an in-place resize"),
];

/// All differences of a case; `None` when it has no request to compare.
fn compare(case: &Case) -> Option<Vec<String>> {
    let mut out = Vec::new();
    let mut pods: BTreeMap<String, Pod> = BTreeMap::new();
    let number = |v: &Value| u32::try_from(v.as_u64().unwrap_or(0)).unwrap();
    for request in case.requests("RunPodSandbox") {
        let recorded = &request["config"];
        let pod = match case.pod_of_sandbox(recorded) {
            Ok(pod) => pod,
            Err(error) => {
                out.push(error);
                continue;
            }
        };
        let attempt = number(&recorded["metadata"]["attempt"]);
        let ours = sandbox_config(&pod, attempt, &cgroup_parent(&pod), Some(&resolv_conf()), &facts())
            .map_err(|e| e.to_string())
            .and_then(|s| to_json("PodSandboxConfig", &s.config).map_err(|e| e.to_string()));
        match ours {
            Ok(ours) => differences("sandbox", &normalised(ours), &normalised(recorded.clone()), &mut out),
            Err(error) => out.push(format!("sandbox: {error}")),
        }
        pods.insert(pod.metadata.uid.clone().unwrap_or_default(), pod);
    }
    for request in case.requests("CreateContainer") {
        let recorded = &request["config"];
        let uid = recorded["labels"]["io.kubernetes.pod.uid"].as_str().unwrap_or_default();
        let name = recorded["metadata"]["name"].as_str().unwrap_or_default();
        let attempt = number(&recorded["metadata"]["attempt"]);
        let Some(pod) = pods.get(uid) else {
            out.push(format!("container {name}: no sandbox of pod {uid} before it"));
            continue;
        };
        match build_container(case, pod, name, attempt, &Recorded::of(recorded)) {
            Ok(ours) => differences(name, &normalised(ours), &normalised(recorded.clone()), &mut out),
            Err(error) => out.push(format!("container {name}: {error}")),
        }
    }
    (!pods.is_empty()).then_some(out)
}

#[test]
fn requests_are_what_the_stock_kubelet_sent() {
    let Some(golden) = golden_dir() else { return };
    let (mut agree, mut differ, mut skipped, mut wrong) = (0, 0, 0, Vec::new());
    for case in cases(&golden) {
        let known = DIFFER.iter().find(|(name, _)| *name == case.name);
        match (compare(&case), known) {
            (None, _) => {
                println!("skipped {}: no sandbox was made", case.name);
                skipped += 1;
            }
            (Some(found), None) if found.is_empty() => {
                println!("agrees  {}", case.name);
                agree += 1;
            }
            (Some(found), Some((_, why))) if !found.is_empty() => {
                println!("differs {}: {why}", case.name);
                differ += 1;
            }
            (Some(_), Some(_)) => wrong.push(format!("{} agrees now: take it off the list", case.name)),
            (Some(found), None) => wrong.push(format!("{}:\n  {}", case.name, found.join("\n  "))),
        }
    }
    println!("translate: {agree} agree, {differ} differ, {skipped} skipped");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn configuration_errors_read_as_recorded() {
    let Some(golden) = golden_dir() else { return };
    let mut checked = 0;
    for case in cases(&golden) {
        let prefixes = match case.name.as_str() {
            "env-missing-configmap" | "env-missing-key" | "env-filekeyref-bad" | "sc-runasnonroot-fail" => {
                "Error: "
            }
            "hostname-fqdn-toolong" | "sc-userns" | "sc-userns-procmount" => "Failed to create pod sandbox: ",
            _ => continue,
        };
        let pod = case.only_pod().unwrap();
        let events = case.json("events.json").unwrap();
        let messages =
            events.as_array().unwrap().iter().filter_map(|e| e["message"].as_str()?.strip_prefix(prefixes));
        let mut recorded: Vec<String> = messages.map(str::to_owned).collect();
        let mut ours: Vec<String> = match sandbox_config(&pod, 0, "", Some(&resolv_conf()), &facts()) {
            Err(error) => vec![error.to_string()],
            Ok(_) => {
                let nothing = Recorded::of(&Value::Null);
                let names = spec(&pod).containers.iter().map(|c| c.name.clone());
                names.filter_map(|name| build_container(&case, &pod, &name, 0, &nothing).err()).collect()
            }
        };
        recorded.sort();
        recorded.dedup();
        ours.sort();
        ours.dedup();
        assert_eq!(ours, recorded, "{}", case.name);
        checked += 1;
    }
    assert_eq!(checked, 7);
}

#[test]
fn warnings_about_dns_read_as_recorded() {
    let Some(golden) = golden_dir() else { return };
    for case in cases(&golden) {
        let (Some(pod), Some(events)) = (case.only_pod(), case.json("events.json")) else { continue };
        let recorded: Vec<_> = events
            .as_array()
            .into_iter()
            .flatten()
            .filter(|e| e["reason"] == "DNSConfigForming")
            .map(|e| e["message"].as_str().unwrap_or_default().to_owned())
            .collect();
        let Ok(sandbox) = sandbox_config(&pod, 0, "", Some(&resolv_conf()), &facts()) else { continue };
        let ours: Vec<_> = sandbox.warnings.into_iter().map(|w| w.message).collect();
        // An event is recorded once the pod got as far as its sandbox.
        assert!(
            ours == recorded || !case.calls.iter().any(|c| c["method"] == "RunPodSandbox"),
            "{}: {ours:?}",
            case.name
        );
    }
}

#[test]
fn hosts_files_have_the_recorded_text() {
    let Some(golden) = golden_dir() else { return };
    let mut checked = 0;
    for case in cases(&golden) {
        let (Some(pod), Some(cgroup)) = (case.only_pod(), case.json("cgroup.json")) else { continue };
        let host_file = (spec(&pod).host_network == Some(true))
            .then_some(b"127.0.0.1 localhost\n192.0.2.10 golden-node\n".as_slice());
        let name = pod_hostname(&pod, "cluster.local").unwrap();
        let ours = etc_hosts(&pod, &[POD_IP.parse().unwrap()], &name, host_file);
        let ours = String::from_utf8(ours).unwrap().replace(POD_IP, "POD_IP");
        for (container, facts) in cgroup["pod"]["containers"].as_object().into_iter().flatten() {
            if let Some(recorded) = facts["process"]["/etc/hosts"].as_str() {
                assert_eq!(ours, recorded, "{} {container}", case.name);
                checked += 1;
            }
        }
    }
    assert!(checked > 50, "only {checked} files found");
}

#[test]
fn pod_cgroups_and_qos_classes_are_as_recorded() {
    let Some(golden) = golden_dir() else { return };
    let mut checked = 0;
    for case in cases(&golden) {
        let Some(pod) = case.only_pod() else { continue };
        if let Some(recorded) =
            case.json("status.json").and_then(|s| s[0]["status"]["qosClass"].as_str().map(str::to_owned))
        {
            assert_eq!(qos_class(&pod).as_str(), recorded, "{}", case.name);
        }
        let Some(cgroup) = case.json("cgroup.json").map(|c| c["pod"]["pod"].clone()) else { continue };
        let ours = pod_cgroup_resources(&pod, &facts());
        let text =
            |value: Option<i64>, unlimited: &str| value.map_or(unlimited.to_owned(), |v| v.to_string());
        for (file, ours) in [
            ("cpu.shares", text(ours.cpu_shares.and_then(|s| i64::try_from(s).ok()), "")),
            ("cpu.cfs_quota_us", text(ours.cpu_quota_us, "-1")),
            ("memory.limit_in_bytes", text(ours.memory_limit, "9223372036854771712")),
            ("pids.max", text(ours.pids_limit, "max")),
        ] {
            if let Some(recorded) = cgroup[file].as_str() {
                assert_eq!(ours, recorded, "{} {file}", case.name);
                checked += 1;
            }
        }
    }
    assert!(checked > 100, "only {checked} values found");
}

/// A cgroup v2 file's value where nothing is written.
fn v2_default(file: &str) -> &'static str {
    match file {
        "cpu.max" => "max 100000",
        "cpu.weight" => "100",
        "memory.min" | "memory.low" => "0",
        _ => "max",
    }
}

/// Every recording on cgroup v2, with the node's memory QoS.
fn recorded_v2(golden: &Path) -> Vec<(String, Value, Option<MemoryQos>)> {
    let read = |file: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(golden.join("cgroupv2").join(file)).unwrap()).unwrap()
    };
    let mut all: Vec<_> =
        ["cgroupfs.json", "systemd.json"].map(|f| (f.to_owned(), read(f), None)).into_iter().collect();
    for (key, recorded) in read("memoryqos.json").as_object().unwrap() {
        let tiered = key.ends_with("TieredReservation");
        // What is left of the memory after 200Mi and 150Mi.
        let qos =
            MemoryQos { tiered, throttling_factor: Some(0.9), allocatable: 6_318_186_496 - (350 << 20) };
        all.push((format!("memoryqos.json {key}"), recorded.clone(), Some(qos)));
    }
    all
}

/// The names of the properties of a slice with `values`, as drop-ins are named, sorted.
fn properties(values: &PodValues) -> Vec<String> {
    let (all, _) = kubelet::cgroup::systemd::properties::v2(values).unwrap();
    let mut names: Vec<String> = all
        .into_iter()
        .map(|(name, _)| name.replace("PerSecUSec", "").replace("PeriodUSec", "PeriodSec"))
        .collect();
    names.sort();
    names
}

#[test]
fn on_cgroup_v2_the_classes_are_as_recorded() {
    let Some(golden) = golden_dir() else { return };
    let mut checked = 0;
    for (file, recorded, memory_qos) in recorded_v2(&golden) {
        let node = NodeValues {
            cpu_shares: Some(if memory_qos.is_some() { 3788 } else { 4096 }),
            memory_limit: Some(memory_qos.map_or(6_318_186_496, |q| q.allocatable)),
            pids_limit: Some(48_284),
            protection: match memory_qos {
                None => Protection::Off,
                Some(MemoryQos { tiered: false, .. }) => Protection::Nothing,
                Some(_) => Protection::Requests,
            },
            ..NodeValues::default()
        };
        for (stage, seen) in recorded["stages"].as_object().unwrap() {
            let mut asked = Requested::default();
            for name in seen["pods"].as_object().unwrap().keys() {
                let pod = case::static_pod(&recorded["pods"][name]["spec"]);
                let requests = pod_resources(&pod).requests;
                let memory = requests.get("memory").map_or(0, |m| m.value());
                match qos_class(&pod) {
                    Qos::Guaranteed => asked.guaranteed_memory += memory,
                    Qos::Burstable => {
                        asked.burstable_memory += memory;
                        let milli = requests.get("cpu").map_or(0, |c| c.milli());
                        asked.burstable_milli += u64::try_from(milli).unwrap();
                    }
                    Qos::BestEffort => {}
                }
            }
            for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
                let end = match qos {
                    Qos::Guaranteed => ["/kubepods", "/kubepods.slice"],
                    Qos::Burstable => ["/kubepods/burstable", "/kubepods-burstable.slice"],
                    Qos::BestEffort => ["/kubepods/besteffort", "/kubepods-besteffort.slice"],
                };
                let groups = seen["node"].as_object().unwrap();
                let Some((path, group)) = groups.iter().find(|(p, _)| end.iter().any(|e| p.ends_with(e)))
                else {
                    continue;
                };
                let mut values = kubelet::cgroup::values::of_class(qos, &asked, &node);
                for w in kubelet::cgroup::values::v2(&values) {
                    assert_eq!(group[&w.file], w.value, "{file} {stage} {path} {}", w.file);
                    checked += 1;
                }
                if let Some(set) = group["systemd"]["properties_set"].as_array() {
                    values.cpus = (qos == Qos::Guaranteed).then(|| "0-3".to_owned());
                    assert_eq!(properties(&values), *set, "{file} {stage} {path}");
                }
            }
        }
    }
    assert!(checked > 60, "only {checked} values found");
}

#[test]
fn on_cgroup_v2_requests_and_pod_cgroups_are_as_recorded() {
    let Some(golden) = golden_dir() else { return };
    let facts =
        NodeFacts { cgroup_v2: true, capacity_memory: 6_318_186_496, hugepage_sizes: vec![], ..facts() };
    let mut checked = 0;
    for (file, recorded, memory_qos) in recorded_v2(&golden) {
        let facts = NodeFacts { memory_qos, ..facts.clone() };
        for (name, entry) in recorded["pods"].as_object().unwrap() {
            let pod = case::static_pod(&entry["spec"]);
            let at = format!("{file} {name}");
            assert_eq!(qos_class(&pod).as_str(), entry["qosClass"], "{at}");
            let linux =
                sandbox_config(&pod, 0, "", Some(&resolv_conf()), &facts).unwrap().config.linux.unwrap();
            for (field, ours) in [("resources", linux.resources), ("overhead", linux.overhead)] {
                let ours = to_json("LinuxContainerResources", &ours.unwrap()).unwrap();
                assert_eq!(ours, entry["cri_RunPodSandbox"][field], "{at} {field}");
            }
            for (container, request) in entry["cri_CreateContainer"].as_object().unwrap() {
                let ours = build_resources(&pod, container, &facts);
                assert_eq!(ours, request["resources"], "{at} {container}");
                checked += 1;
            }
            let values = pod_cgroup_resources(&pod, &facts);
            let writes = kubelet::cgroup::values::v2(&values);
            let stages = recorded["stages"].as_object().unwrap().values();
            let cgroup = stages.filter_map(|s| s["pods"].get(name)).next().map(|p| &p["pod"]);
            if let Some(set) = cgroup.and_then(|c| c["systemd"]["properties_set"].as_array()) {
                assert_eq!(properties(&values), *set, "{at}");
            }
            for file in ["cpu.weight", "cpu.max", "memory.max", "memory.min", "memory.low", "pids.max"] {
                if file == "cpu.max" && recorded["kubelet_config"]["cgroupDriver"] == "systemd" {
                    // It rounds quotas to its own grain: a test of the driver's.
                    continue;
                }
                let ours = writes.iter().find(|w| w.file == file).map_or(v2_default(file), |w| &w.value);
                if let Some(recorded) = cgroup.and_then(|c| c[file].as_str()) {
                    assert_eq!(ours, recorded, "{at} {file}");
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 200, "only {checked} values found");
}
