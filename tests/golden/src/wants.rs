//! Which cases cannot be replayed yet, and for want of what.

use crate::case::Case;
use crate::replay::Outcome;
use serde_json::Value;

/// Cases by name whose script needs something that the replay or the agent does not have.
const BY_NAME: [(&str, &str); 6] = [
    ("exec-logs", "exec over the agent's API"),
    ("kubelet-alt-config", "CPU managers and a second configuration of the agent"),
    ("preempt-by-critical", "preemption"),
    ("static-pod", "mirror pods"),
    ("static-pod-api-reference", "mirror pods"),
    ("readiness-gates", "conditions that others set"),
];

/// What is missing to replay `case`, as its recording shows.
pub fn before(case: &Case) -> Option<String> {
    if let Some((_, want)) = BY_NAME.iter().find(|(name, _)| *name == case.name) {
        return Some((*want).to_owned());
    }
    if case.refused || case.pods.iter().all(|p| p.rows.is_empty()) {
        return Some("a pod: the API server refuses it".to_owned());
    }
    let here = ["Pod", "ConfigMap", "Secret"];
    let object = case.documents.iter().filter_map(|d| d["kind"].as_str()).find(|k| !here.contains(k));
    if let Some(kind) = object {
        return Some(format!("an API server that has the {kind}"));
    }
    case.pods.iter().find_map(|p| volumes(&p.manifest["spec"]))
}

/// Volumes whose content or place comes from elsewhere.
fn volumes(spec: &Value) -> Option<String> {
    let kinds =
        spec["volumes"].as_array()?.iter().filter_map(|v| v.as_object()?.keys().find(|k| *k != "name"));
    let here = ["emptyDir", "hostPath", "image", "configMap", "secret", "downwardAPI", "projected"];
    let mut foreign = kinds.into_iter().filter(|k| !here.contains(&k.as_str()));
    if let Some(kind) = foreign.next() {
        return Some(format!("volumes of kind {kind}"));
    }
    let sources = spec["volumes"].as_array()?.iter().filter_map(|v| v["projected"]["sources"].as_array());
    let mut fields = sources.flatten().filter_map(|s| s.as_object()).flat_map(|s| s.keys());
    let needs = ["serviceAccountToken", "clusterTrustBundle", "podCertificate"];
    fields.find(|f| needs.contains(&f.as_str())).map(|f| format!("an API server that gives a {f}"))
}

/// What the agent said it does not support yet.
pub fn after(outcome: &Outcome) -> Option<String> {
    let last = outcome.pods.values().filter_map(|p| p.statuses.last());
    let refused =
        last.filter(|s| s.reason.as_deref() == Some("UnsupportedPodSpec")).find_map(|s| s.message.clone())?;
    let what = refused.trim_start_matches("Pod was rejected: ").trim_end_matches(" not supported yet");
    let (field, what) = what.split_once(": ").unwrap_or(("", what));
    let what = what.trim_end_matches(" is").trim_end_matches(" are");
    Some(format!("{what} ({field})"))
}
