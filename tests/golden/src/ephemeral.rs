//! Ephemeral containers that were added to a pod while it ran, read off what was made of them. Pure.

use crate::case::{Case, PodRecord};
use serde_json::{Value, json};

/// When they were added: the object had another generation, and was not being deleted.
pub fn added_at(pod: &PodRecord) -> Option<f64> {
    let first = pod.rows.first()?.generation;
    pod.rows.iter().find(|r| r.deletion_grace.is_none() && r.generation > first).map(|r| r.at)
}

/// `spec.ephemeralContainers` of the pod afterwards: the containers that were made and that its manifest does not have.
pub fn containers(case: &Case, pod: &PodRecord) -> Vec<Value> {
    let spec = &pod.manifest["spec"];
    let lists = ["containers", "initContainers"];
    let known =
        |name: &Value| lists.iter().filter_map(|l| spec[l].as_array()).flatten().any(|c| c["name"] == *name);
    let made = case.calls_of("CreateContainer").map(|c| &c.request["config"]);
    made.filter(|config| !known(&config["metadata"]["name"])).map(container).collect()
}

fn container(config: &Value) -> Value {
    let mut c = json!({
        "name": config["metadata"]["name"],
        "image": config["image"]["user_specified_image"],
        "command": config["command"],
        "args": config["args"],
        "stdin": config["stdin"],
        "tty": config["tty"],
    });
    let target = config["linux"]["security_context"]["namespace_options"]["target_id"].as_str();
    if let Some(name) = target.and_then(|id| id.strip_prefix("ctr-")?.rsplit_once('-')) {
        c["targetContainerName"] = json!(name.0);
    }
    c
}
