//! The one pod that is measured: one container, one host path, a pod network.

use std::path::Path;

use crate::image::Image;

/// The namespace of all of the benchmark's pods, by which what is left of them is found.
pub(super) const NAMESPACE: &str = "stevedore-bench";
/// The node's name.
pub(super) const NODE: &str = "bench";

/// The manifest of the pod `name`, whose container reports to the socket in `stamps`.
pub(super) fn manifest(name: &str, stamps: &Path) -> Vec<u8> {
    let pod = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": NAMESPACE, "labels": { "app": "bench" } },
        "spec": {
            "containers": [{
                "name": "stamp",
                "image": Image::Stamp.reference(),
                "imagePullPolicy": "IfNotPresent",
                "args": [name],
                "resources": { "requests": { "cpu": "1m", "memory": "1Mi" }, "limits": { "memory": "64Mi" } },
                "volumeMounts": [{ "name": "stamps", "mountPath": "/stamps" }],
            }],
            "volumes": [{ "name": "stamps", "hostPath": { "path": stamps } }],
        },
    });
    pod.to_string().into_bytes()
}
