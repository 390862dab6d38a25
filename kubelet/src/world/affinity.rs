//! Does the node have the labels a pod asks for? Pure; the rules of the API's node selectors.
//!
//! `admit` asks. A pod that was placed here by hand is held to its `nodeSelector` and required node affinity all the
//! same; what is merely preferred is the scheduler's affair.

use crate::api::{self, Pod};
use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};
use std::collections::BTreeMap;

/// The node as selectors see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeLabels {
    /// `metadata.name`, the only field that `matchFields` knows.
    pub name: String,
    /// `metadata.labels`
    pub labels: BTreeMap<String, String>,
}

impl NodeLabels {
    /// The labels every node gives itself, for a node of that name on a machine of that hostname.
    pub fn own(name: &str, hostname: &str) -> Self {
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let labels = [
            ("beta.kubernetes.io/arch", arch),
            ("beta.kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", arch),
            ("kubernetes.io/hostname", hostname),
            ("kubernetes.io/os", "linux"),
        ];
        let labels = labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        Self { name: name.to_owned(), labels }
    }
}

/// Whether `node` is one that `pod` may run on.
pub fn matches(pod: &Pod, node: &NodeLabels) -> bool {
    let spec = api::spec(pod);
    let selected =
        spec.node_selector.iter().flatten().all(|(key, value)| node.labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|r| r.node_selector_terms.iter().any(|t| term(t, node)))
}

/// All of a term's requirements hold; a term without any matches nothing.
fn term(term: &NodeSelectorTerm, node: &NodeLabels) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if labels.is_empty() && fields.is_empty() {
        return false;
    }
    let name = |r: &NodeSelectorRequirement| (r.key == "metadata.name").then_some(node.name.as_str());
    labels.iter().all(|r| holds(r, node.labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| holds(r, name(r)))
}

fn holds(r: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = r.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|v| values.iter().any(|x| x == v));
    let number = |text: Option<&str>| text.and_then(|t| t.parse::<i64>().ok());
    let both = number(value).zip(number(values.first().map(String::as_str)));
    match r.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => both.is_some_and(|(a, b)| a > b),
        "Lt" => both.is_some_and(|(a, b)| a < b),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node() -> NodeLabels {
        let mut node = NodeLabels::own("n1", "host");
        node.labels.insert("cores".to_owned(), "8".to_owned());
        node
    }

    fn check(spec: Value) -> bool {
        matches(&serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap(), &node())
    }

    fn affinity(terms: Value) -> bool {
        check(json!({"containers": [], "affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}))
    }

    #[test]
    fn a_node_selector_wants_every_label() {
        assert!(check(json!({"containers": []})));
        assert!(check(
            json!({"containers": [], "nodeSelector": {"kubernetes.io/os": "linux", "cores": "8"}})
        ));
        assert!(!check(json!({"containers": [], "nodeSelector": {"kubernetes.io/os": "windows"}})));
        assert!(!check(
            json!({"containers": [], "nodeSelector": {"kubernetes.io/os": "linux", "zone": "a"}})
        ));
    }

    #[test]
    fn one_term_is_enough_and_all_of_its_requirements_must_hold() {
        let of = |key: &str, operator: &str, values: &[&str]| json!({"key": key, "operator": operator, "values": values});
        for (requirement, want) in [
            (of("cores", "In", &["4", "8"]), true),
            (of("zone", "In", &["z"]), false),
            (of("zone", "NotIn", &["z"]), true),
            (of("cores", "Exists", &[]), true),
            (of("zone", "DoesNotExist", &[]), true),
            (of("cores", "Gt", &["7"]), true),
            (of("cores", "Lt", &["8"]), false),
            (of("zone", "Gt", &["1"]), false),
        ] {
            assert_eq!(affinity(json!([{"matchExpressions": [requirement.clone()]}])), want, "{requirement}");
        }
        let (yes, no) = (of("cores", "Exists", &[]), of("zone", "Exists", &[]));
        assert!(!affinity(json!([{"matchExpressions": [yes, no]}])));
        assert!(affinity(json!([{"matchExpressions": [no]}, {"matchExpressions": [yes]}])));
        assert!(!affinity(json!([{}])), "an empty term matches nothing");
        let name = |n: &str| json!([{"matchFields": [of("metadata.name", "In", &[n])]}]);
        assert!(affinity(name("n1")) && !affinity(name("n2")));
    }
}
