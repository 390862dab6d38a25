//! Resizes of pods while they ran: what was asked for is in a case's notes, when it was is seen by the object's generation.
//! Pure.

use crate::case::{Case, PodRecord};
use serde_json::Value;

/// What the API server took: when, and what the manifest becomes.
pub fn taken(case: &Case, pod: &PodRecord) -> Vec<(f64, Value)> {
    let line = |line: &str| {
        let (patch, answer) = line.strip_prefix("PATCH resize ")?.rsplit_once(" -> ")?;
        answer.starts_with("200").then(|| serde_json::from_str::<Value>(patch).ok())?
    };
    let patches: Vec<Value> = case.notes.lines().filter_map(line).collect();
    let mut manifest = pod.manifest.clone();
    let mut generation = pod.rows.first().map_or(1, |r| r.generation);
    let mut taken = Vec::new();
    for row in pod.rows.iter().filter(|r| r.deletion_grace.is_none()) {
        if row.generation > generation
            && let Some(patch) = patches.get(taken.len())
        {
            generation = row.generation;
            apply(&mut manifest, patch);
            taken.push((row.at, manifest.clone()));
        }
    }
    taken
}

/// A strategic merge patch of containers' resources.
fn apply(manifest: &mut Value, patch: &Value) {
    for change in patch["spec"]["containers"].as_array().into_iter().flatten() {
        let containers = manifest["spec"]["containers"].as_array_mut();
        let Some(c) = containers.into_iter().flatten().find(|c| c["name"] == change["name"]) else {
            continue;
        };
        for (kind, amounts) in change["resources"].as_object().into_iter().flatten() {
            for (name, amount) in amounts.as_object().into_iter().flatten() {
                c["resources"][kind][name] = amount.clone();
            }
        }
    }
}

/// The values of the pod's cgroup after each resize, as they were recorded.
pub fn cgroups(case: &Case, pod: &PodRecord) -> Vec<Value> {
    let steps = case.extra["cgroups_after_step"].as_array();
    steps.into_iter().flatten().map(|step| step[&pod.uid]["pod"].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn patches_that_were_taken_change_the_manifest_one_after_the_other() {
        let row = |at, generation, deletion_grace| crate::case::Row {
            at,
            deleted: false,
            generation,
            deletion_grace,
            status: Value::Null,
        };
        let pod = PodRecord {
            name: "p".into(),
            uid: "u".into(),
            namespace: "n".into(),
            manifest: json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "1"}}}]}}),
            rows: vec![
                row(0.0, 1, None),
                row(1.5, 2, None),
                row(1.6, 2, None),
                row(9.0, 3, None),
                row(20.0, 4, Some(1)),
            ],
            events: vec![],
            cgroup: Value::Null,
        };
        let patch = |cpu: &str| json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
        let notes = format!(
            "PATCH resize {} -> 200 \nPATCH resize {} -> 403 pods \"x\" -> no\nPATCH resize {} -> 200 \n",
            patch("2"),
            patch("3"),
            patch("4")
        );
        let case = Case {
            name: "c".into(),
            documents: vec![],
            calls: vec![],
            pods: vec![],
            refused: false,
            notes,
            extra: Value::Null,
        };
        let taken = taken(&case, &pod);
        let cpus: Vec<(f64, &Value)> = taken
            .iter()
            .map(|(at, m)| (*at, &m["spec"]["containers"][0]["resources"]["requests"]["cpu"]))
            .collect();
        assert_eq!(cpus, [(1.5, &json!("2")), (9.0, &json!("4"))]);
        assert_eq!(taken[1].1["spec"]["containers"][0]["resources"]["requests"]["memory"], "1");
    }
}
