//! The pod that is measured: one container (or several of that kind), one host path, a pod network.

use std::path::Path;

use crate::image::Image;

/// The namespace of all of the benchmark's pods, by which what is left of them is found.
pub(super) const NAMESPACE: &str = "stevedore-bench";
/// The node's name.
pub(super) const NODE: &str = "bench";

/// What the `nth` container of the pod `name` calls itself.
pub(super) fn stamp_of(name: &str, nth: usize) -> String {
    if nth == 0 { name.to_owned() } else { format!("{name}.{nth}") }
}

/// The manifest of the pod `name`, whose containers report to the socket in `stamps`.
pub(super) fn manifest(name: &str, stamps: &Path, containers: usize) -> Vec<u8> {
    let container = |nth: usize| {
        serde_json::json!({
            "name": if nth == 0 { "stamp".to_owned() } else { format!("stamp-{nth}") },
            "image": Image::Stamp.reference(),
            "imagePullPolicy": "IfNotPresent",
            "args": [stamp_of(name, nth)],
            "resources": { "requests": { "cpu": "1m", "memory": "1Mi" }, "limits": { "memory": "64Mi" } },
            "volumeMounts": [{ "name": "stamps", "mountPath": "/stamps" }],
        })
    };
    let pod = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": NAMESPACE, "labels": { "app": "bench" } },
        "spec": {
            "containers": (0..containers).map(container).collect::<Vec<_>>(),
            "volumes": [{ "name": "stamps", "hostPath": { "path": stamps } }],
        },
    });
    pod.to_string().into_bytes()
}
