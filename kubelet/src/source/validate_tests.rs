//! The recorded refusals and acceptances of the API server, and one table of our own.

use crate::source::testing::golden;
use crate::source::{DecodeError, decode_pod};
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn errors(pod: &Value) -> BTreeSet<String> {
    match decode_pod(pod.to_string().as_bytes()) {
        Ok(_) => BTreeSet::new(),
        Err(DecodeError::Invalid(errors)) => {
            errors.into_vec().into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
        }
        Err(e) => BTreeSet::from([e.to_string()]),
    }
}

/// The API server's 422 answers, whose fields and texts are ours too.
#[test]
fn the_api_servers_recorded_refusals_are_ours() {
    let Some(recorded) = golden("apiserver/errors.json") else { return };
    let mut compared = 0;
    for (name, case) in recorded.as_object().unwrap() {
        let pod = &case["request"]["body"];
        let pods = case["request"]["path"].as_str().is_some_and(|p| p == "/api/v1/namespaces/gdef/pods");
        if !(name.ends_with("--422") && pods && case["request"]["method"] == "POST")
            || name.contains("bad-") && !name.starts_with("pod-")
        {
            continue;
        }
        let causes = case["response"]["body"]["details"]["causes"].as_array().unwrap();
        let want: BTreeSet<String> = causes
            .iter()
            .map(|c| format!("{}: {}", c["field"].as_str().unwrap(), c["message"].as_str().unwrap()))
            .collect();
        let got = errors(pod);
        compared += 1;
        if name == "pod-privileged-ape--422" {
            // The API server prints its internal form of the object here.
            let cut = |e: &String| e.split_once('{').unwrap().0.to_owned();
            assert_eq!(got.iter().map(cut).collect::<Vec<_>>(), want.iter().map(cut).collect::<Vec<_>>());
            continue;
        }
        assert_eq!(got, want, "{name}");
    }
    assert!(compared >= 20, "only {compared} recorded refusals compared");
}

/// Every recorded case's pods were accepted, or refused with a recorded text.
#[test]
fn the_recorded_cases_are_accepted_and_refused_as_recorded() {
    let Some(_) = golden("apiserver/errors.json") else { return };
    let root = std::env::var_os("GOLDEN_DIR").map_or_else(
        || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden"),
        std::path::PathBuf::from,
    );
    let mut pods = 0;
    for case in std::fs::read_dir(root.join("cases")).unwrap() {
        let dir = case.unwrap().path();
        let text = std::fs::read_to_string(dir.join("pod.yaml")).unwrap();
        let refused: Option<Value> =
            std::fs::read(dir.join("api_rejected.json")).ok().map(|b| serde_json::from_slice(&b).unwrap());
        let options = serde_saphyr::options! { strict_booleans: true };
        for document in serde_saphyr::from_multiple_with_options::<Value>(&text, options).unwrap() {
            if document["kind"] != "Pod" {
                continue;
            }
            pods += 1;
            let got = errors(&document);
            let recorded = refused.as_ref().map(|r| &r[0]).filter(|r| r["httpCode"] == 422);
            let want: BTreeSet<String> = recorded
                .into_iter()
                .flat_map(|r| r["status"]["details"]["causes"].as_array().unwrap())
                .map(|c| format!("{}: {}", c["field"].as_str().unwrap(), c["message"].as_str().unwrap()))
                .collect();
            assert_eq!(got, want, "{}", dir.display());
        }
    }
    assert!(pods > 100, "only {pods} pods");
}

fn merged(spec: Value) -> Value {
    let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

#[track_caller]
fn refused(spec: Value, wants: &[&str]) {
    let got = errors(&merged(spec));
    assert_eq!(got.len(), wants.len(), "{got:#?}");
    for want in wants {
        assert!(got.iter().any(|e| e.starts_with(want)), "{want}: {got:#?}");
    }
}

fn container(fields: Value) -> Value {
    let mut c = json!({"name": "c", "image": "i"});
    for (key, value) in fields.as_object().unwrap() {
        c[key] = value.clone();
    }
    json!({ "containers": [c] })
}

#[test]
fn a_uid_that_could_name_nothing_on_the_node_is_refused() {
    for uid in ["team/a", ".", "..", "a\nb", &"a".repeat(250)] {
        let mut pod = merged(json!({}));
        pod["metadata"]["uid"] = json!(uid);
        let errors = errors(&pod);
        assert!(errors.iter().any(|e| e.starts_with("metadata.uid: Invalid value")), "{uid:?}: {errors:?}");
    }
}

#[test]
fn pod_level_rules() {
    refused(json!({"restartPolicy": "Sometimes"}), &["spec.restartPolicy: Unsupported value: \"Sometimes\""]);
    refused(
        json!({"hostPID": true, "shareProcessNamespace": true}),
        &["spec.shareProcessNamespace: Invalid value"],
    );
    refused(json!({"hostUsers": false, "hostNetwork": true}), &["spec.hostNetwork: Forbidden"]);
    refused(json!({"os": {"name": "plan9"}}), &["spec.os.name: Unsupported value"]);
    refused(json!({"subdomain": "a.b"}), &["spec.subdomain: Invalid value"]);
    refused(
        json!({"hostnameOverride": "a", "setHostnameAsFQDN": true}),
        &["spec.hostnameOverride: Forbidden"],
    );
    refused(
        json!({"dnsConfig": {"nameservers": ["1.1.1.1", "x", "1.1.1.1", "::1"], "options": [{}], "searches": ["a b"]}}),
        &[
            "spec.dnsConfig.nameservers: Invalid value",
            "spec.dnsConfig.nameservers[1]: Invalid value: \"x\"",
            "spec.dnsConfig.options[0]: Required value",
            "spec.dnsConfig.searches[0]: Invalid value",
        ],
    );
    refused(
        json!({"securityContext": {"runAsGroup": -1, "supplementalGroups": [1, -1], "fsGroupChangePolicy": "Never",
            "seccompProfile": {"type": "Localhost"}, "appArmorProfile": {"type": "RuntimeDefault", "localhostProfile": "x"}}}),
        &[
            "spec.securityContext.runAsGroup",
            "spec.securityContext.supplementalGroups[1]",
            "spec.securityContext.fsGroupChangePolicy: Unsupported value",
            "spec.securityContext.seccompProfile.localhostProfile: Required value",
            "spec.securityContext.appArmorProfile.localhostProfile: Invalid value",
        ],
    );
    refused(
        json!({"tolerations": [{"operator": "Equal"}, {"key": "a", "operator": "In"}, {"key": "a", "tolerationSeconds": 1}]}),
        &[
            "spec.tolerations[0].operator",
            "spec.tolerations[1].operator: Unsupported",
            "spec.tolerations[2].effect",
        ],
    );
    refused(
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In"}]}]}}}}),
        &["spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]\
           .matchExpressions[0].values: Required value"],
    );
    refused(
        json!({"resources": {"limits": {"ephemeral-storage": "1"}}}),
        &["spec.resources.limits[ephemeral-storage]: Unsupported value"],
    );
}

#[test]
fn the_pods_own_resources_bound_its_containers() {
    let mut spec = container(json!({"resources": {"limits": {"cpu": "3"}, "claims": [{"name": "gpu"}]}}));
    spec["resources"] = json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}});
    refused(
        spec,
        &[
            "spec.containers[0].resources.limits[cpu]: Invalid value: \"3\": must be less than or equal to pod",
            "spec.containers[0].resources.claims[0]: Not found: \"gpu\"",
            "spec.resources.requests[cpu]: Invalid value: \"1\": must be greater than or equal to aggregate",
        ],
    );
}

#[test]
fn container_rules() {
    refused(container(json!({"image": " i"})), &["spec.containers[0].image: Invalid value"]);
    refused(
        container(
            json!({"ports": [{"containerPort": 1, "name": "a"}, {"containerPort": 2, "name": "a", "hostIP": "x"}]}),
        ),
        &[
            "spec.containers[0].ports[1].name: Duplicate value",
            "spec.containers[0].ports[1].hostIP: Invalid value",
        ],
    );
    refused(
        container(
            json!({"resources": {"limits": {"cpu": "-1", "gpu": "1", "x.io/g": "500m", "hugepages-2Mi": "2Mi"},
            "requests": {"memory": "x", "y.io/d": "1"}}}),
        ),
        &[
            "spec.containers[0].resources.limits[cpu]: Invalid value: \"-1\"",
            "spec.containers[0].resources.limits[gpu]: Invalid value: \"gpu\": must be a standard resource",
            "spec.containers[0].resources.limits[x.io/g]: Invalid value: \"500m\": must be an integer",
            "spec.containers[0].resources.requests[cpu]: Invalid value: \"-1\"",
            "spec.containers[0].resources.requests[gpu]: Invalid value",
            "spec.containers[0].resources.requests[x.io/g]: Invalid value",
            "spec.containers[0].resources.requests[memory]: Invalid value: \"x\"",
            "spec.containers[0].resources.limits: Required value: Limit must be set",
            "spec.containers[0].resources: Forbidden: HugePages require cpu or memory",
        ],
    );
    refused(
        container(
            json!({"lifecycle": {"preStop": {"sleep": {"seconds": 31}}, "postStart": {"exec": {"command": ["a"]},
            "httpGet": {"port": 80}}, "stopSignal": "SIGTERM"}}),
        ),
        &[
            "spec.containers[0].lifecycle.preStop.sleep: Invalid value: 31",
            "spec.containers[0].lifecycle.postStart.httpGet: Forbidden: may not specify more than 1 handler type",
            "spec.containers[0].lifecycle.stopSignal: Forbidden",
        ],
    );
    refused(
        container(
            json!({"readinessProbe": {"httpGet": {"port": 0, "scheme": "FTP", "httpHeaders": [{"name": "a b", "value": ""}]},
            "terminationGracePeriodSeconds": 5}, "startupProbe": {"tcpSocket": {"port": "UP"}}}),
        ),
        &[
            "spec.containers[0].readinessProbe.httpGet.port: Invalid value: 0",
            "spec.containers[0].readinessProbe.httpGet.scheme: Unsupported value",
            "spec.containers[0].readinessProbe.httpGet.httpHeaders[0].name: Invalid value",
            "spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 5",
            "spec.containers[0].startupProbe.tcpSocket.port: Invalid value: \"UP\": must contain only",
            "spec.containers[0].startupProbe.tcpSocket.port: Invalid value: \"UP\": must contain at least",
        ],
    );
    refused(
        container(
            json!({"restartPolicyRules": [{"action": "Sleep", "exitCodes": {"operator": "In", "values": []}}]}),
        ),
        &[
            "spec.containers[0].restartPolicy: Required value",
            "spec.containers[0].restartPolicyRules[0].action: Unsupported value",
            "spec.containers[0].restartPolicyRules[0].exitCodes.values: Invalid value",
        ],
    );
    let ephemeral = json!({"name": "e", "image": "i", "restartPolicy": "Always", "targetContainerName": "nope",
        "lifecycle": {}, "ports": [{"containerPort": 1, "protocol": "TCP"}],
        "resources": {"limits": {"cpu": "1"}}, "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "x"}]});
    refused(
        json!({"ephemeralContainers": [ephemeral, {"name": "e", "image": " "}], "volumes": [{"name": "v", "emptyDir": {}}]}),
        &[
            "spec.ephemeralContainers[0].ports: Forbidden: cannot be set for an Ephemeral Container",
            "spec.ephemeralContainers[0].lifecycle: Forbidden: cannot be set for an Ephemeral Container",
            "spec.ephemeralContainers[0].resources: Forbidden: cannot be set for an Ephemeral Container",
            "spec.ephemeralContainers[0].restartPolicy: Forbidden: cannot be set for an Ephemeral Container",
            "spec.ephemeralContainers[0].volumeMounts[0].subPath: Forbidden: cannot be set for an Ephemeral Container",
            "spec.ephemeralContainers[0].targetContainerName: Not found: \"nope\"",
            "spec.ephemeralContainers[1].name: Duplicate value: \"e\"",
            "spec.ephemeralContainers[1].image: Invalid value",
        ],
    );
    let init = json!({"name": "i", "image": "i", "livenessProbe": {"exec": {"command": ["x"]}}});
    refused(json!({ "initContainers": [init] }), &["spec.initContainers[0].livenessProbe: Forbidden"]);
    refused(
        container(json!({"env": [{"name": "A", "valueFrom": {}},
            {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels"}}},
            {"name": "C", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "3"}}}],
            "envFrom": [{}]})),
        &[
            "spec.containers[0].env[0].valueFrom: Invalid value",
            "spec.containers[0].env[1].valueFrom.fieldRef.fieldPath: Unsupported value",
            "spec.containers[0].env[2].valueFrom.resourceFieldRef.divisor: Unsupported value",
            "spec.containers[0].envFrom[0]: Invalid value",
        ],
    );
}

#[test]
fn volume_rules() {
    refused(
        json!({"volumes": [
            {"name": "a", "hostPath": {"path": "/a/../b", "type": "Pipe"}},
            {"name": "a", "emptyDir": {"medium": "Tape", "sizeLimit": "-1"}},
            {"name": "B", "configMap": {"name": "", "defaultMode": 512, "items": [{"key": "", "path": "/x"}]}},
            {"name": "p", "projected": {"sources": [{}, {"serviceAccountToken": {"path": "..", "expirationSeconds": 5}}]}},
            {"name": "d", "downwardAPI": {"items": [{"path": "a"}]}},
        ]}),
        &[
            "spec.volumes[0].hostPath.path: Invalid value",
            "spec.volumes[0].hostPath.type: Unsupported value: \"Pipe\"",
            "spec.volumes[1].name: Duplicate value",
            "spec.volumes[1].emptyDir.medium: Unsupported value",
            "spec.volumes[1].emptyDir.sizeLimit: Forbidden",
            "spec.volumes[2].name: Invalid value",
            "spec.volumes[2].configMap.name: Required value",
            "spec.volumes[2].configMap.defaultMode: Invalid value: 512",
            "spec.volumes[2].configMap.items[0].key: Required value",
            "spec.volumes[2].configMap.items[0].path: Invalid value: \"/x\"",
            "spec.volumes[3].projected.sources[0]: Required value",
            "spec.volumes[3].projected.sources[1].serviceAccountToken.path: Invalid value",
            "spec.volumes[3].projected.sources[1].serviceAccountToken.expirationSeconds: Invalid value",
            "spec.volumes[4].downwardAPI.items[0]: Required value",
        ],
    );
    let mut spec = container(json!({"volumeMounts": [
        {"name": "v", "mountPath": "/a", "mountPropagation": "Bidirectional"},
        {"name": "v", "mountPath": "/b", "subPath": "x", "subPathExpr": "$(Y)"},
        {"name": "v", "mountPath": "/c", "recursiveReadOnly": "Enabled"},
    ], "volumeDevices": [{"name": "v", "devicePath": "/a"}]}));
    spec["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    refused(
        spec,
        &[
            "spec.containers[0].volumeMounts[0].mountPropagation: Forbidden",
            "spec.containers[0].volumeMounts[1].subPathExpr: Invalid value",
            "spec.containers[0].volumeMounts[2].recursiveReadOnly: Forbidden",
            "spec.containers[0].volumeDevices[0].name: Invalid value",
            "spec.containers[0].volumeDevices[0].devicePath: Invalid value",
        ],
    );
}
