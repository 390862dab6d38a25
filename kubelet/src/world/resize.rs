//! May a pod have other resources than it was given (KEP-1287, KEP-5419)? Pure; reasons and messages are upstream's.
//!
//! The task asks when an object changes, and again for those that wait when something was given back, in [`order`].

use super::admit::{self, Node, not_enough};
use super::books::Promised;
use crate::allocation::{self, Allocation};
use crate::api::{Origin, Pod, PodUid, Qos, spec};
use crate::pleg::observed::{Given, Instance, Observed, State};
use crate::pod::translate::{self, NodeFacts, limits, resources};
use crate::pod::{PendingReason, plan};
use crate::quantity::{self, Nano};
use crate::source::validate;
use k8s_openapi::api::core::v1::{Container, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Why a pod does not get the resources it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whether waiting helps.
    pub reason: PendingReason,
    /// For the condition and the event.
    pub message: String,
    /// `reason_detail` of `kubelet_pod_infeasible_resizes_total`.
    pub detail: &'static str,
}

impl Refusal {
    fn infeasible(detail: &'static str, message: String) -> Self {
        Self { reason: PendingReason::Infeasible, message, detail }
    }
}

/// What a change of resources is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// Who.
    pub uid: &'a PodUid,
    /// Where the object came from.
    pub origin: Origin,
    /// The pod with the resources it has.
    pub has: &'a Pod,
    /// The pod with those it asks for.
    pub wants: &'a Pod,
    /// What runs of it.
    pub seen: &'a Observed,
    /// The node, by which containers may swap.
    pub facts: &'a NodeFacts,
}

/// May the change be made now, beside what is promised to others? A resource of which less or as much is asked for than
/// the pod has is not the node's to refuse.
pub fn judge(change: &Change<'_>, promised: &Promised, node: &Node) -> Result<(), Refusal> {
    if change.origin != Origin::Api {
        let message = "In-place resize of static-pods is not supported".to_owned();
        return Err(Refusal::infeasible("static_pod", message));
    }
    let qos = |pod: &Pod| translate::qos_class(pod).as_str();
    let has_run = |name: &str| {
        let through = |i: &Instance| plan::ended_for_good(change.wants, i);
        change.seen.latest(name).is_some_and(through)
    };
    let (has, wants) = (change.has, change.wants);
    let errors = validate::resize(has, wants, (qos(has), qos(wants)), has_run);
    if !errors.is_empty() {
        return Err(Refusal::infeasible("invalid", errors.to_string()));
    }
    if swaps(change) {
        let message = "In-place resize of containers with swap is not supported.".to_owned();
        return Err(Refusal::infeasible("swap_limitation", message));
    }
    let grows: Vec<(&str, i64, i64)> = [("memory", node.memory), ("cpu", node.cpu_milli)]
        .into_iter()
        .map(|(name, capacity)| (name, admit::requested(wants, name), capacity))
        .filter(|(name, requested, _)| *requested > admit::requested(has, name))
        .collect();
    for (name, requested, capacity) in &grows {
        if requested > capacity {
            let message = format!(
                "Node didn't have enough capacity: {name}, requested: {requested}, capacity: {capacity}"
            );
            return Err(Refusal::infeasible("insufficient_node_allocatable", message));
        }
    }
    for (name, requested, capacity) in grows.into_iter().rev() {
        let used = promised.requested_beside(change.uid, name);
        if requested.saturating_add(used) > capacity {
            let message = not_enough(name, requested, used, capacity);
            return Err(Refusal { reason: PendingReason::Deferred, message, detail: "" });
        }
    }
    Ok(())
}

/// Some container may swap, by what it requests of memory, and is to request other than it did.
fn swaps(change: &Change<'_>) -> bool {
    let may = |pod: &Pod, c: &Container| {
        let linux = limits::container_resources(pod, c, change.facts);
        linux.unified.get("memory.swap.max").is_some_and(|max| max != "0")
    };
    let restarts = |c: &Container| {
        let mut policies = c.resize_policy.iter().flatten();
        policies.any(|p| p.resource_name == "memory" && p.restart_policy == "RestartContainer")
    };
    allocation::sized(change.wants).any(|c| {
        let Some(was) = allocation::sized(change.has).find(|h| h.name == c.name) else { return false };
        requests_of(was, "memory") != requests_of(c, "memory")
            && !restarts(was)
            && (may(change.has, was) || may(change.wants, c))
    })
}

/// The place of a change among those that wait, least first: those that ask for no more than they have; then by priority;
/// Guaranteed pods first; then whoever has waited longest.
pub fn order(has: &Pod, wants: &Pod, since: i64) -> impl Ord + use<> {
    let grows = ["cpu", "memory"].into_iter().any(|n| admit::requested(wants, n) > admit::requested(has, n));
    let priority = spec(wants).priority.unwrap_or(0);
    (grows, Reverse(priority), translate::qos_class(wants) != Qos::Guaranteed, since)
}

/// What the resources of an object changed in, for `kubelet_container_requested_resizes_total`: resource, requirement,
/// operation, once for each container and amount.
pub fn operations(old: &Pod, new: &Pod) -> Vec<[&'static str; 3]> {
    let mut found = Vec::new();
    for c in allocation::sized(new) {
        let Some(was) = allocation::sized(old).find(|o| o.name == c.name) else { continue };
        for resource in ["cpu", "memory"] {
            for (requirement, of) in [("limits", limits_of as fn(_, _) -> _), ("requests", requests_of)] {
                found.extend(match (of(was, resource), of(c, resource)) {
                    (None, Some(_)) => Some([resource, requirement, "add"]),
                    (Some(_), None) => Some([resource, requirement, "remove"]),
                    (Some(a), Some(b)) if a < b => Some([resource, requirement, "increase"]),
                    (Some(a), Some(b)) if a > b => Some([resource, requirement, "decrease"]),
                    _ => None,
                });
            }
        }
    }
    found
}

fn amount(of: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<Nano> {
    quantity::parse(&of?.get(name)?.0).ok()
}

fn limits_of(c: &Container, name: &str) -> Option<Nano> {
    amount(c.resources.as_ref()?.limits.as_ref(), name)
}

fn requests_of(c: &Container, name: &str) -> Option<Nano> {
    amount(c.resources.as_ref()?.requests.as_ref(), name)
}

/// What was kept of the pod can be true of it: it knows its containers, and its amounts are amounts. Its class may be another
/// than the object's, which may ask for what was refused for just that.
pub fn plausible(kept: &Allocation, pod: &Pod) -> bool {
    let texts = |r: &ResourceRequirements| {
        let mut all = r.limits.iter().chain(&r.requests).flatten();
        all.all(|(_, q)| quantity::parse(&q.0).is_ok_and(|n| !n.is_negative()))
    };
    let known = allocation::sized(pod).all(|c| kept.containers.contains_key(&c.name));
    known && kept.containers.values().chain(&kept.pod).all(texts)
}

/// What was found out leaves the pod the class that its object has; else too little could be found out.
pub fn same_class(pod: &Pod, applied: &Pod) -> bool {
    translate::qos_class(applied) == translate::qos_class(pod)
}

/// What a pod that runs was given, found out from what runs, where nothing was kept of it: of each running container
/// whose limits or shares are not those it asks for, what the runtime says. Memory requests nobody but the agent knows.
pub fn found(pod: &Pod, seen: &Observed, facts: &NodeFacts) -> Allocation {
    let mut all = Allocation::of(pod);
    for c in allocation::sized(pod) {
        let running = seen.latest(&c.name).filter(|i| i.state == State::Running);
        let Some(given) = running.and_then(|i| i.given) else { continue };
        let asked = Given::of(&limits::container_resources(pod, c, facts));
        if let Some(own) = all.containers.get_mut(&c.name) {
            read_back(own, &asked, &given);
        }
    }
    all
}

/// Puts what the runtime says in the place of what is asked for, where they differ, name by name.
fn read_back(own: &mut ResourceRequirements, asked: &Given, given: &Given) {
    let equal = |name: &str| {
        let (request, limit) = (amount(own.requests.as_ref(), name), amount(own.limits.as_ref(), name));
        limit.is_some() && request == limit
    };
    let (same_cpu, same_memory) = (equal("cpu"), equal("memory"));
    let put = |of: &mut Option<BTreeMap<String, Quantity>>, name: &str, value: &Option<Quantity>| {
        if let (Some(slot), Some(value)) = (of.as_mut().and_then(|m| m.get_mut(name)), value) {
            slot.clone_from(value);
        }
    };
    let cpu = |milli: i64| Quantity(Nano::from_milli(milli).to_string());
    let quota = given.cpu_quota_us.filter(|_| given.cpu_quota_us != asked.cpu_quota_us);
    let limit = quota.map(|quota| cpu(quota.saturating_mul(1000) / given.cpu_period_us.max(1)));
    put(&mut own.limits, "cpu", &limit);
    if same_cpu {
        put(&mut own.requests, "cpu", &limit);
    } else if given.cpu_shares != asked.cpu_shares {
        put(&mut own.requests, "cpu", &Some(cpu(resources::milli_of_shares(given.cpu_shares))));
    }
    let bytes = given.memory_limit.filter(|_| given.memory_limit != asked.memory_limit);
    let limit = bytes.map(|bytes| Quantity(quantity::binary(bytes)));
    put(&mut own.limits, "memory", &limit);
    if same_memory || amount(own.requests.as_ref(), "memory") > amount(own.limits.as_ref(), "memory") {
        put(&mut own.requests, "memory", &limit);
    }
}

#[cfg(test)]
#[path = "resize_tests.rs"]
mod tests;
