//! The recorded answers of the API server, and the cases it was not asked about.

use super::*;
use crate::source::testing::golden;
use serde_json::{Value, json};

/// Takes away what admission, not defaulting, put into the recorded pod.
fn without_admission(mut spec: Value) -> Value {
    let injected = |v: &Value| v["name"].as_str().is_some_and(|n| n.starts_with("kube-api-access-"));
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let mounts = container["volumeMounts"].as_array_mut().unwrap();
            mounts.retain(|m| !injected(m));
            if mounts.is_empty() {
                container.as_object_mut().unwrap().remove("volumeMounts");
            }
        }
    }
    let spec_map = spec.as_object_mut().unwrap();
    for field in ["serviceAccount", "serviceAccountName", "tolerations", "priority", "preemptionPolicy"] {
        spec_map.remove(field);
    }
    if let Some(volumes) = spec_map.get_mut("volumes").and_then(Value::as_array_mut) {
        volumes.retain(|v| !injected(v));
        if volumes.is_empty() {
            spec_map.remove("volumes");
        }
    }
    spec
}

#[test]
fn the_api_servers_recorded_defaults_are_ours() {
    for name in ["Pod", "Pod-rich", "Pod-podresources", "Pod-priority"] {
        let Some(recorded) = golden(&format!("apiserver/defaults/{name}.json")) else { return };
        let mut pod: Pod = serde_json::from_value(recorded["request"]["body"].clone()).unwrap();
        apply(&mut pod);
        let want = without_admission(recorded["response"]["body"]["spec"].clone());
        let got = serde_json::to_value(pod.spec.as_ref().unwrap()).unwrap();
        assert_eq!(got, want, "{name}");
        let once = pod.clone();
        apply(&mut pod);
        assert_eq!(pod, once, "{name}: a second pass changes nothing");
    }
}

#[test]
fn the_pull_policy_follows_the_tag() {
    for (image, policy) in [
        ("busybox", "Always"),
        ("busybox:latest", "Always"),
        ("busybox:1", "IfNotPresent"),
        ("host:5000/busybox", "Always"),
        ("host:5000/busybox:1", "IfNotPresent"),
        ("busybox@sha256:abc", "IfNotPresent"),
        ("busybox:1@sha256:abc", "IfNotPresent"),
        ("busybox:latest@sha256:abc", "Always"),
    ] {
        assert_eq!(pull_policy(image), policy, "{image}");
    }
}

fn defaulted(spec: Value) -> Value {
    let mut pod: Pod = serde_json::from_value(json!({ "metadata": {"name": "p"}, "spec": spec })).unwrap();
    apply(&mut pod);
    serde_json::to_value(pod.spec.unwrap()).unwrap()
}

#[test]
fn pod_level_requests_come_from_the_containers_and_else_from_the_limits() {
    let c = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
    let side = json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}});
    let spec = defaulted(json!({
        "initContainers": [side, c("1")],
        "containers": [c("300m"), c("200m")],
        "resources": {"limits": {"cpu": "2", "memory": "1Gi", "hugepages-2Mi": "4Mi"}},
    }));
    assert_eq!(
        spec["resources"]["requests"],
        json!({"cpu": "1100m", "memory": "1Gi", "hugepages-2Mi": "4Mi"})
    );
    let none = defaulted(json!({"containers": [c("1")], "resources": {}}));
    assert_eq!(none["resources"], json!({}));
}

#[test]
fn a_negative_grace_is_the_shortest() {
    let spec = defaulted(json!({"containers": [], "terminationGracePeriodSeconds": -5}));
    assert_eq!(spec["terminationGracePeriodSeconds"], 1);
}

#[test]
fn a_host_network_pods_ports_are_the_hosts() {
    let ports = json!([{"containerPort": 80}, {"containerPort": 81, "hostPort": 81, "protocol": "UDP"}]);
    let spec = defaulted(json!({"hostNetwork": true, "containers": [{"name": "c", "ports": ports}]}));
    assert_eq!(
        spec["containers"][0]["ports"],
        json!([
            {"containerPort": 80, "hostPort": 80, "protocol": "TCP"},
            {"containerPort": 81, "hostPort": 81, "protocol": "UDP"},
        ])
    );
}

/// The mirror of the recorded static pod is the pod as the stock kubelet had it, with admission's priority.
#[test]
fn the_recorded_static_pod_is_ours() {
    let Some(recorded) = golden("cases/static-pod/extra.json") else { return };
    let mirror = &recorded["mirror_pod_v1"];
    let manifest = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "static-web", "namespace": "demo", "labels": {"app": "st"}},
        "spec": {
            "terminationGracePeriodSeconds": 2,
            "containers": [{
                "name": "c",
                "image": mirror["spec"]["containers"][0]["image"],
                "command": mirror["spec"]["containers"][0]["command"],
                "env": [{"name": "V", "value": "1"}],
            }],
        },
    });
    let (pod, _) = crate::source::static_pod(manifest.to_string().as_bytes(), "/m/a", "golden-node").unwrap();
    let mut want = mirror["spec"].clone();
    for field in ["priority", "preemptionPolicy"] {
        want.as_object_mut().unwrap().remove(field);
    }
    let got = serde_json::to_value(&pod).unwrap();
    assert_eq!(got["spec"], want);
    for field in ["name", "namespace", "labels"] {
        assert_eq!(got["metadata"][field], mirror["metadata"][field]);
    }
    let annotations = |pod: &Value| -> Vec<String> {
        pod["metadata"]["annotations"].as_object().unwrap().keys().cloned().collect()
    };
    let mut stamped = pod.clone();
    crate::source::identity::stamp(&mut stamped, jiff::Timestamp::now());
    let mut want = annotations(mirror);
    want.retain(|a| a != "kubernetes.io/config.mirror");
    assert_eq!(annotations(&serde_json::to_value(&stamped).unwrap()), want);
}
