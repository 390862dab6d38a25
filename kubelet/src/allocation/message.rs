//! What events say of a change of a pod's resources: upstream's words, and what the pod is to have as JSON.

use crate::api::{Pod, spec};
use k8s_openapi::api::core::v1::{Container, ResourceRequirements};
use serde::Serialize;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<Sized<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<Sized<'a>>,
    generation: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct Sized<'a> {
    name: &'a str,
    resources: ResourceRequirements,
}

/// `Pod resize WHAT: {…}`, of the pod with the resources that are meant. As upstream's, it has nothing of the pod level.
pub fn message<'a>(what: &str, pod: &'a Pod, generation: Option<i64>, error: Option<&'a str>) -> String {
    let sized = |all: &'a [Container]| -> Vec<Sized<'a>> {
        let own = |c: &'a Container| Sized {
            name: &c.name,
            resources: ResourceRequirements { claims: None, ..c.resources.clone().unwrap_or_default() },
        };
        all.iter().map(own).collect()
    };
    let summary = Summary {
        init_containers: sized(spec(pod).init_containers.as_deref().unwrap_or_default()),
        containers: sized(&spec(pod).containers),
        generation: generation.unwrap_or(0),
        error,
    };
    match serde_json::to_string(&summary) {
        Ok(text) => format!("Pod resize {what}: {text}"),
        Err(_) => format!("Pod resize {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_say_what_the_stock_agent_says() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "c", "resources": {"requests": {"memory": "64Mi", "cpu": "150m"},
                "limits": {"memory": "128Mi", "cpu": "300m"}}}]}}))
        .unwrap();
        assert_eq!(
            message("Deferred", &pod, Some(2), Some("no room")),
            "Pod resize Deferred: {\"initContainers\":[{\"name\":\"i\",\"resources\":{}}],\
             \"containers\":[{\"name\":\"c\",\"resources\":{\"limits\":{\"cpu\":\"300m\",\"memory\":\"128Mi\"},\
             \"requests\":{\"cpu\":\"150m\",\"memory\":\"64Mi\"}}}],\"generation\":2,\"error\":\"no room\"}"
        );
        let none: Pod = serde_json::from_value(json!({})).unwrap();
        assert_eq!(message("completed", &none, None, None), "Pod resize completed: {\"generation\":0}");
    }
}
