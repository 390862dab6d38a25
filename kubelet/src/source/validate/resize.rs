//! What a change of a pod's resources may not do, whoever asks for it: the rules of the API server's `resize` subresource
//! (KEP-1287, KEP-5419), with its words.
//!
//! `world` asks before it gives a pod other resources; an API server has asked already. What is wrong with the new
//! resources by themselves is found by `resources`.

use super::super::field::{Errors, Path};
use crate::api::{Container, Pod, spec};
use crate::quantity;
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::{BTreeMap, BTreeSet};

/// The only resources that may change.
const MUTABLE: [&str; 2] = ["cpu", "memory"];

/// Everything that keeps `new` from taking the place of `old`, the pod with the resources it has. Containers are matched by
/// name; `has_run` tells init containers that will not run again. `qos` are the classes of both, in the API's words.
pub fn resize(old: &Pod, new: &Pod, qos: (&str, &str), has_run: impl Fn(&str) -> bool) -> Errors {
    let mut errors = Errors::default();
    let root = Path::root("spec");
    if qos.0 != qos.1 {
        errors.invalid(&root, qos.1, "Pod QOS Class may not change as a result of resizing");
    }
    let (before, after) = (spec(old), spec(new));
    change(before.resources.as_ref(), after.resources.as_ref(), &root.child("resources"), &mut errors);
    let inits = (
        before.init_containers.as_deref().unwrap_or_default(),
        after.init_containers.as_deref().unwrap_or_default(),
    );
    for (field, (before, after)) in
        [("initContainers", inits), ("containers", (&before.containers, &after.containers))]
    {
        let list = root.child(field);
        for (i, c) in after.iter().enumerate() {
            let Some(was) = before.iter().find(|b| b.name == c.name) else { continue };
            let item = list.index(i);
            let at = item.child("resources");
            if same(was.resources.as_ref(), c.resources.as_ref()) {
                continue;
            }
            if field == "initContainers" && c.restart_policy.as_deref() != Some("Always") && has_run(&c.name)
            {
                errors.forbidden(
                    &at,
                    "resources for non-sidecar init containers are immutable once they have run",
                );
            }
            change(was.resources.as_ref(), c.resources.as_ref(), &at, &mut errors);
            never_restarted(new, c, &item, &mut errors);
        }
    }
    errors
}

/// A container of a pod that is never restarted cannot be restarted for its new size.
fn never_restarted(pod: &Pod, c: &Container, at: &Path<'_>, errors: &mut Errors) {
    if spec(pod).restart_policy.as_deref() != Some("Never") || c.restart_policy.is_some() {
        return;
    }
    let list = at.child("resizePolicy");
    for (i, policy) in c.resize_policy.iter().flatten().enumerate() {
        if policy.restart_policy == "RestartContainer" {
            let item = list.index(i);
            let why = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            errors.invalid(&item.child("restartPolicy"), &policy.restart_policy, why);
        }
    }
}

type Amounts = BTreeMap<String, Quantity>;

fn change(
    old: Option<&ResourceRequirements>,
    new: Option<&ResourceRequirements>,
    at: &Path<'_>,
    errors: &mut Errors,
) {
    let both = |of: fn(&ResourceRequirements) -> Option<&Amounts>| (old.and_then(of), new.and_then(of));
    let mut fixed = false;
    for (field, (before, after)) in
        [("requests", both(|r| r.requests.as_ref())), ("limits", both(|r| r.limits.as_ref()))]
    {
        let get = |m: Option<&Amounts>, name: &str| {
            m.and_then(|m| m.get(name)).and_then(|q| quantity::parse(&q.0).ok())
        };
        let keys =
            |m: Option<&Amounts>| m.into_iter().flatten().map(|(k, _)| k.clone()).collect::<BTreeSet<_>>();
        let mut removed = false;
        for name in keys(before).union(&keys(after)) {
            let (was, is) = (get(before, name), get(after, name));
            fixed |= was != is && !MUTABLE.contains(&name.as_str());
            removed |= was.is_some() && is.is_none() && MUTABLE.contains(&name.as_str());
        }
        if removed {
            errors.forbidden(&at.child(field), &format!("resource {field} cannot be removed"));
        }
    }
    if fixed {
        errors.forbidden(at, "only cpu and memory resources are mutable");
    }
}

fn same(a: Option<&ResourceRequirements>, b: Option<&ResourceRequirements>) -> bool {
    let nothing = ResourceRequirements::default();
    crate::allocation::same(a.unwrap_or(&nothing), b.unwrap_or(&nothing))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": spec})).unwrap()
    }

    fn one(resources: Value) -> Pod {
        pod(json!({"containers": [{"name": "c", "resources": resources}]}))
    }

    fn check(old: &Pod, new: &Pod) -> Vec<String> {
        let errors = resize(old, new, ("Burstable", "Burstable"), |name| name == "done");
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn cpu_and_memory_may_grow_shrink_and_come() {
        let old = one(json!({"requests": {"cpu": "1"}}));
        for new in [
            json!({"requests": {"cpu": "2"}}),
            json!({"requests": {"cpu": "1m"}}),
            json!({"requests": {"cpu": "1", "memory": "1Gi"}}),
            json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2", "memory": "1Gi"}}),
        ] {
            assert_eq!(check(&old, &one(new.clone())), [""; 0], "{new}");
        }
    }

    #[test]
    fn what_a_resize_may_not_do_is_told_by_field() {
        let old = one(
            json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "2Gi", "x.io/gpu": "1"}}),
        );
        for (new, want) in [
            (
                json!({"requests": {"cpu": "1"}, "limits": {"memory": "2Gi", "x.io/gpu": "1"}}),
                "spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed",
            ),
            (
                json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"x.io/gpu": "1"}}),
                "spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed",
            ),
            (
                json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "2Gi", "x.io/gpu": "2"}}),
                "spec.containers[0].resources: Forbidden: only cpu and memory resources are mutable",
            ),
        ] {
            assert_eq!(check(&old, &one(new)), [want]);
        }
        let class = resize(&old, &old, ("Burstable", "Guaranteed"), |_| false).to_string();
        assert_eq!(
            class,
            "spec: Invalid value: \"Guaranteed\": Pod QOS Class may not change as a result of resizing"
        );
        let of_pod = |limits: Value| pod(json!({"containers": [], "resources": {"limits": limits}}));
        let removed = check(&of_pod(json!({"cpu": "1"})), &of_pod(json!({})));
        assert_eq!(removed, ["spec.resources.limits: Forbidden: resource limits cannot be removed"]);
    }

    #[test]
    fn an_init_container_that_is_through_stays_as_it_was() {
        let inits = |cpu: &str, policy: Option<&str>| {
            let c = |name: &str| json!({"name": name, "restartPolicy": policy, "resources": {"requests": {"cpu": cpu}}});
            pod(json!({"initContainers": [c("done"), c("next")], "containers": []}))
        };
        let why = "Forbidden: resources for non-sidecar init containers are immutable once they have run";
        let got = check(&inits("1", None), &inits("2", None));
        assert_eq!(got, [format!("spec.initContainers[0].resources: {why}")]);
        assert_eq!(check(&inits("1", Some("Always")), &inits("2", Some("Always"))), [""; 0]);
        assert_eq!(check(&inits("1", None), &inits("1000m", None)), [""; 0], "nothing changed");
    }

    #[test]
    fn a_pod_that_is_never_restarted_is_not_restarted_for_its_size() {
        let with = |cpu: &str| {
            pod(
                json!({"restartPolicy": "Never", "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}},
                "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]}]}),
            )
        };
        let want = "spec.containers[0].resizePolicy[0].restartPolicy: Invalid value: \"RestartContainer\": \
                    must be 'NotRequired' when `restartPolicy` is 'Never'";
        assert_eq!(check(&with("1"), &with("2")), [want]);
    }
}
