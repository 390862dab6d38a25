//! Manifests as JSON values, which are YAML too.
//!
//! Tests add what they are about by plain indexing: `pod["spec"]["hostNetwork"] = true.into()`.

use serde_json::{Value, json};
use xtask::image;

/// A pod of that name with these containers, in the default namespace, that is killed after a second at the latest.
pub fn pod(name: &str, containers: impl IntoIterator<Item = Value>) -> Value {
    let containers: Vec<Value> = containers.into_iter().collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": { "terminationGracePeriodSeconds": 1, "containers": containers },
    })
}

/// A container of the demo image that runs a shell script.
pub fn sh(name: &str, script: &str) -> Value {
    json!({
        "name": name,
        "image": image::DEMO,
        "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-c", script],
    })
}

/// A script that goes on until it is told to end, and ends at once then.
pub const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";

/// `script`, then [`FOREVER`].
pub fn then_forever(script: &str) -> String {
    format!("{script}\n{FOREVER}")
}
