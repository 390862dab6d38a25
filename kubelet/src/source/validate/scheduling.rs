//! What placement reads: tolerations, node affinity, gates, priority.

use super::super::field::{Errors, Path};
use super::names;
use crate::api::PodSpec;
use k8s_openapi::api::core::v1 as core;

/// The fields of `spec` that decide where a pod may run.
pub fn pod(spec: &PodSpec, at: &Path<'_>, errors: &mut Errors) {
    if let Some(node) = spec.node_name.as_deref().filter(|n| !n.is_empty()) {
        errors.syntax(&at.child("nodeName"), node, names::dns_subdomain(&node.to_lowercase()));
        if spec.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty()) {
            errors.forbidden(
                &at.child("nodeName"),
                "cannot be set until all schedulingGates have been cleared",
            );
        }
    }
    if let Some(affinity) = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref()) {
        node_affinity(affinity, &at.child("affinity").child("nodeAffinity"), errors);
    }
    let list = at.child("tolerations");
    for (i, t) in spec.tolerations.iter().flatten().enumerate() {
        toleration(t, &list.index(i), errors);
    }
    let gates = at.child("readinessGates");
    for (i, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        let at = gates.index(i);
        errors.syntax(
            &at.child("conditionType"),
            &gate.condition_type,
            names::qualified_name(&gate.condition_type),
        );
    }
    if let Some(policy) = spec.preemption_policy.as_deref() {
        errors.one_of(&at.child("preemptionPolicy"), policy, &["Never", "PreemptLowerPriority"]);
    }
    for (field, name) in
        [("priorityClassName", &spec.priority_class_name), ("runtimeClassName", &spec.runtime_class_name)]
    {
        if let Some(name) = name.as_deref().filter(|n| !n.is_empty()) {
            errors.syntax(&at.child(field), name, names::dns_subdomain(name));
        }
    }
}

fn toleration(t: &core::Toleration, at: &Path<'_>, errors: &mut Errors) {
    let key = t.key.as_deref().unwrap_or_default();
    let operator = t.operator.as_deref().unwrap_or_default();
    let value = t.value.as_deref().unwrap_or_default();
    let operator_at = at.child("operator");
    if !key.is_empty() {
        errors.syntax(&at.child("key"), key, names::qualified_name(key));
    } else if operator != "Exists" {
        errors.invalid(
            &operator_at,
            operator,
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        );
    }
    let effect = t.effect.as_deref().unwrap_or_default();
    if t.toleration_seconds.is_some() && effect != "NoExecute" {
        errors.invalid(
            &at.child("effect"),
            effect,
            "effect must be 'NoExecute' when `tolerationSeconds` is set",
        );
    }
    match operator {
        "" | "Equal" => errors.syntax(&operator_at, value, names::label_value(value)),
        "Exists" if !value.is_empty() => {
            errors.invalid(&operator_at, value, "value must be empty when `operator` is 'Exists'");
        }
        "Exists" => {}
        other => errors.unsupported(&operator_at, other, &["Equal", "Exists"]),
    }
    if !effect.is_empty() {
        errors.one_of(&at.child("effect"), effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
    }
}

fn node_affinity(affinity: &core::NodeAffinity, at: &Path<'_>, errors: &mut Errors) {
    if let Some(required) = &affinity.required_during_scheduling_ignored_during_execution {
        let at = at.child("requiredDuringSchedulingIgnoredDuringExecution");
        let terms = at.child("nodeSelectorTerms");
        if required.node_selector_terms.is_empty() {
            errors.required(&terms, "must have at least one node selector term");
        }
        for (i, term) in required.node_selector_terms.iter().enumerate() {
            node_term(term, &terms.index(i), errors);
        }
    }
    let preferred = at.child("preferredDuringSchedulingIgnoredDuringExecution");
    for (i, term) in
        affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten().enumerate()
    {
        let at = preferred.index(i);
        if !(1..=100).contains(&term.weight) {
            errors.invalid(&at.child("weight"), term.weight, "must be in the range 1-100");
        }
        node_term(&term.preference, &at.child("preference"), errors);
    }
}

fn node_term(term: &core::NodeSelectorTerm, at: &Path<'_>, errors: &mut Errors) {
    for (field, list) in [("matchExpressions", &term.match_expressions), ("matchFields", &term.match_fields)]
    {
        let at = at.child(field);
        for (i, r) in list.iter().flatten().enumerate() {
            let at = at.index(i);
            let values = r.values.as_deref().unwrap_or_default();
            let values_at = at.child("values");
            match r.operator.as_str() {
                "In" | "NotIn" if values.is_empty() => {
                    errors.required(&values_at, "must be specified when `operator` is 'In' or 'NotIn'");
                }
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    errors.forbidden(
                        &values_at,
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    );
                }
                "Gt" | "Lt" if values.len() != 1 => {
                    errors.required(
                        &values_at,
                        "must be specified single value when `operator` is 'Lt' or 'Gt'",
                    );
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
                other => errors.invalid(&at.child("operator"), other, "not a valid selector operator"),
            }
            if field == "matchExpressions" {
                errors.syntax(&at.child("key"), &r.key, names::qualified_name(&r.key));
            } else if r.key != "metadata.name" {
                errors.invalid(&at.child("key"), &r.key, "not a valid field selector key");
            }
        }
    }
}
