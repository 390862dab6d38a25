//! Flags and configuration files that are wrong: exit code 1, nothing started, one line for each mistake.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use node_e2e::node::binary;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// Runs the agent with a configuration file and flags; returns the lines it printed on standard error.
async fn refused(dir: &Path, config: Option<&str>, flags: &[&str]) -> Vec<String> {
    let mut command = Command::new(binary().await);
    if let Some(text) = config {
        let file = dir.join("config.yaml");
        std::fs::write(&file, text).unwrap();
        command.arg("--config").arg(file);
    }
    command.arg("--root-dir").arg(dir.join("root")).args(flags);
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{config:?} {flags:?}: {stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{config:?} {flags:?}");
    stderr.lines().map(str::to_owned).collect()
}

fn file(fields: Value) -> String {
    let mut config = json!({ "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "failCgroupV1": false });
    for (name, value) in fields.as_object().unwrap() {
        config[name] = value.clone();
    }
    config.to_string()
}

/// Each line must hold its words, and there must be no other line.
fn lines(found: &[String], expected: &[&[&str]]) {
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for words in expected {
        let holds = |line: &&String| words.iter().all(|w| line.contains(w));
        assert_eq!(found.iter().filter(holds).count(), 1, "{words:?} is not in exactly one of {found:#?}");
    }
}

#[tokio::test]
async fn every_mistake_in_a_configuration_file_is_one_line_with_field_and_value() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let text = file(json!({ "maxPods": "many", "syncFrequency": "often", "staticPodPath": 7 }));
    let found = refused(dir, Some(&text), &[]).await;
    lines(&found, &[&["maxPods", "many"], &["syncFrequency", "often"], &["staticPodPath", "7"]]);

    let text = file(json!({ "maxPods": 10, "maxPodz": 10, "authentication": { "anonymus": {} } }));
    let found = refused(dir, Some(&text), &[]).await;
    lines(&found, &[&["maxPodz"], &["authentication.anonymus"]]);

    let text =
        file(json!({ "port": -1, "imageGCHighThresholdPercent": 10, "imageGCLowThresholdPercent": 20 }));
    let found = refused(dir, Some(&text), &[]).await;
    lines(&found, &[&["port", "-1"], &["imageGCLowThresholdPercent"]]);

    let text = file(json!({ "cpuManagerPolicy": "static", "staticPodURL": "http://localhost/pods" }));
    let found = refused(dir, Some(&text), &[]).await;
    lines(&found, &[&["cpuManagerPolicy", "static", "not supported"], &["staticPodURL", "not supported"]]);

    lines(
        &refused(dir, Some(&file(json!({ "featureGates": { "NoSuchGate": true } }))), &[]).await,
        &[&["NoSuchGate"]],
    );
    lines(&refused(dir, Some("apiVersion: v1\nkind: Pod\n"), &[]).await[..1], &[&["config.yaml"]]);
    for (text, word) in [("", "config.yaml"), ("a: [b", "config.yaml"), ("- 1\n", "config.yaml")] {
        let found = refused(dir, Some(text), &[]).await;
        assert!(!found.is_empty() && found.iter().all(|l| l.contains(word)), "{text:?}: {found:#?}");
    }
    let twice = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nport: 1\nport: 2\n";
    lines(&refused(dir, Some(twice), &[]).await, &[&["port", "already set"]]);
}

#[tokio::test]
async fn every_mistake_in_the_flags_is_one_line_with_flag_and_value() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    lines(&refused(dir, None, &["--no-such-flag"]).await, &[&["--no-such-flag"]]);
    lines(&refused(dir, None, &["--max-pods=lots"]).await, &[&["max-pods", "lots"]]);
    lines(&refused(dir, None, &["stray"]).await, &[&["stray"]]);
    lines(&refused(dir, None, &["--v"]).await, &[&["--v"]]);
    let missing = dir.join("absent.yaml").display().to_string();
    lines(&refused(dir, None, &["--config", &missing]).await, &[&["absent.yaml"]]);
    let found = refused(dir, Some(&file(json!({}))), &["--node-ip=nowhere"]).await;
    lines(&found, &[&["node-ip", "nowhere"]]);
    let found = refused(dir, Some(&file(json!({}))), &["--hostname-override=Not A Name"]).await;
    lines(&found, &[&["Not A Name"]]);
    assert!(!dir.join("root").join("pods").exists(), "something was started");
}

#[tokio::test]
async fn what_the_machine_does_not_allow_is_one_line_too() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        let found = refused(dir, Some(&file(json!({ "failCgroupV1": true }))), &[]).await;
        assert!(found.last().unwrap().contains("failCgroupV1"), "{found:#?}");
    }
    let found = refused(dir, Some(&file(json!({ "resolvConf": "/nonexistent/resolv.conf" }))), &[]).await;
    assert!(found.last().unwrap().contains("/nonexistent/resolv.conf"), "{found:#?}");
}
