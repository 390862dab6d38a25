//! Resource requests and limits, of containers and of the pod.

use super::super::defaults::{ResourceList, container_requests, pod_level_resource};
use super::super::field::{Errors, Path};
use super::names;
use crate::api::PodSpec;
use crate::quantity::{self, Nano};
use k8s_openapi::api::core::v1::ResourceRequirements;
use std::collections::BTreeMap;

/// A container's resources.
pub fn container(r: &ResourceRequirements, spec: &PodSpec, at: &Path<'_>, errors: &mut Errors) {
    let claims = at.child("claims");
    for (i, claim) in r.claims.iter().flatten().enumerate() {
        if !spec.resource_claims.iter().flatten().any(|c| c.name == claim.name) {
            errors.not_found(&claims.index(i), &claim.name);
        }
    }
    let pod_limits = spec.resources.as_ref().and_then(|r| r.limits.as_ref());
    for (name, limit) in r.limits.iter().flatten() {
        let Some(pod_limit) = pod_limits.and_then(|l| l.get(name)) else { continue };
        if let (Ok(own), Ok(pods)) = (quantity::parse(&limit.0), quantity::parse(&pod_limit.0))
            && own > pods
        {
            let limits = at.child("limits");
            let rule = format!("must be less than or equal to pod limits of {}", pod_limit.0);
            errors.invalid(&limits.key(name), &limit.0, &rule);
        }
    }
    requirements(r, at, errors, &|name, at, errors| {
        if !is_standard(name) && !is_extended(name) {
            errors.invalid(at, name, "must be a standard resource for containers");
        }
    });
}

/// The pod's own resources (KEP-2837) and its overhead.
pub fn pod(spec: &PodSpec, at: &Path<'_>, errors: &mut Errors) {
    if let Some(r) = &spec.resources {
        let at = at.child("resources");
        if r.claims.as_ref().is_some_and(|c| !c.is_empty()) {
            errors.forbidden(&at.child("claims"), "may not be set for pod-level resources");
        }
        requirements(r, &at, errors, &|name, at, errors| {
            if !pod_level_resource(name) {
                errors.unsupported(at, name, &["cpu", "hugepages-", "memory"]);
            }
        });
    }
    if let Some(requests) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let at = at.child("resources");
        let at = at.child("requests");
        for (name, sum) in container_requests(spec) {
            let Some(own) = requests.get(&name) else { continue };
            if let (Ok(pods), Ok(total)) = (quantity::parse(&own.0), quantity::parse(&sum.0))
                && pods < total
            {
                let rule =
                    format!("must be greater than or equal to aggregate container requests of {}", sum.0);
                errors.invalid(&at.key(&name), &own.0, &rule);
            }
        }
    }
    if let Some(overhead) = &spec.overhead {
        amounts(overhead, &at.child("overhead"), errors, &|_, _, _| {});
    }
}

type NameRule<'r> = dyn Fn(&str, &Path<'_>, &mut Errors) + 'r;

fn requirements(r: &ResourceRequirements, at: &Path<'_>, errors: &mut Errors, name_rule: &NameRule<'_>) {
    let empty = ResourceList::new();
    let limits_at = at.child("limits");
    let requests_at = at.child("requests");
    let limits = amounts(r.limits.as_ref().unwrap_or(&empty), &limits_at, errors, name_rule);
    let requests = amounts(r.requests.as_ref().unwrap_or(&empty), &requests_at, errors, name_rule);
    for (name, (request, text)) in &requests {
        let Some((limit, limit_text)) = limits.get(name) else {
            if !overcommits(name) {
                errors.required(&limits_at, "Limit must be set for non overcommitable resources");
            }
            continue;
        };
        if !overcommits(name) && request != limit {
            errors.invalid(&requests_at, text, &format!("must be equal to {name} limit of {limit_text}"));
        } else if request > limit {
            errors.invalid(
                &requests_at,
                text,
                &format!("must be less than or equal to {name} limit of {limit_text}"),
            );
        }
    }
    let all = || limits.keys().chain(requests.keys());
    if all().any(|n| n.starts_with("hugepages-")) && !all().any(|n| matches!(*n, "cpu" | "memory")) {
        errors.forbidden(at, "HugePages require cpu or memory");
    }
}

/// The parsed amounts of `list` by name, each with its text; those that are none are errors.
fn amounts<'l>(
    list: &'l ResourceList,
    at: &Path<'_>,
    errors: &mut Errors,
    name_rule: &NameRule<'_>,
) -> BTreeMap<&'l str, (Nano, &'l str)> {
    let mut parsed = BTreeMap::new();
    for (name, q) in list {
        let item = at.key(name);
        let wrong = names::qualified_name(name);
        if wrong.is_empty() {
            name_rule(name, &item, errors);
        }
        errors.syntax(&item, name, wrong);
        match quantity::parse(&q.0) {
            Err(e) => errors.invalid(&item, &q.0, &e.to_string()),
            Ok(n) if n.is_negative() => errors.invalid(&item, &q.0, "must be greater than or equal to 0"),
            Ok(n) if !is_fractional(name) && n != Nano::from_value(n.value()) => {
                errors.invalid(&item, &q.0, "must be an integer");
            }
            Ok(n) => drop(parsed.insert(name.as_str(), (n, q.0.as_str()))),
        }
    }
    parsed
}

fn is_standard(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
}

/// A resource of a device plugin or the like: has a domain, which is not Kubernetes' own.
fn is_extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, _)| {
        domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io") && !domain.starts_with("requests.")
    })
}

/// Whether parts of one unit can be asked for. Fractional bytes are accepted and rounded up, as upstream does.
fn is_fractional(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage")
}

/// Whether a request may lie below the limit.
fn overcommits(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage")
        || !(is_extended(name) || name.starts_with("hugepages-"))
}
