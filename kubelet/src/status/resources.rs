//! What statuses say of resources: what containers have, not what they are to have (KEP-1287); and how far a change has
//! come. Pure.

use super::convert::Input;
use crate::allocation::{self, Allocation};
use crate::api::{Container, Pod};
use crate::pleg::observed::{Given, Instance, State};
use crate::pod::desired::Pending;
use crate::pod::plan::resize::{self, Actual};
use crate::pod::translate::{NodeFacts, limits, resources};
use crate::quantity::{self, Nano};
use k8s_openapi::api::core::v1::{PodCondition, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a status says of a change of resources depends on.
#[derive(Clone, Copy, Debug)]
pub struct Resizing<'a> {
    /// The source asks for other resources than the pod has.
    pub pending: Option<&'a Pending>,
    /// New resources are being put into effect: generation, and what went wrong.
    pub in_progress: Option<(Option<i64>, Option<&'a str>)>,
    /// What containers have.
    pub actual: &'a Actual,
    /// The node, by which amounts become the kernel's numbers.
    pub facts: &'a NodeFacts,
}

/// `resources` of a container's status: what it has while it runs, and what it is to have when it does not.
pub fn of_container(input: &Input<'_>, c: &Container, i: &Instance) -> ResourceRequirements {
    unsettled(input, c, i).unwrap_or_else(|| claimless(c))
}

fn claimless(c: &Container) -> ResourceRequirements {
    ResourceRequirements { claims: None, ..c.resources.clone().unwrap_or_default() }
}

/// What a container has that runs and has other than it is to have.
fn unsettled(input: &Input<'_>, c: &Container, i: &Instance) -> Option<ResourceRequirements> {
    let resizing = input.resize.as_ref().filter(|_| i.state == State::Running)?;
    let nothing = ResourceRequirements::default();
    let allocated = c.resources.as_ref().unwrap_or(&nothing);
    let actuated = resizing.actual.actuated.get(&i.id);
    let given = resizing.actual.given(i);
    let settled = actuated.is_none_or(|a| allocation::same(a, allocated))
        && given.is_none_or(|g| resize::is_so(input.pod, c, &g, resizing.facts));
    (!settled).then(|| actual(&claimless(c), actuated, given.as_ref(), resizing.facts))
}

type Amounts = BTreeMap<String, Quantity>;

fn find<'a>(
    r: Option<&'a ResourceRequirements>,
    of: fn(&ResourceRequirements) -> Option<&Amounts>,
    name: &str,
) -> Option<&'a Quantity> {
    of(r?)?.get(name)
}

/// What a container has that is to have `allocated`: limits and CPU by what the kernel has, in the words in which it was asked
/// for where those mean the same; memory requests, which no kernel knows, as they were last put into effect.
fn actual(
    allocated: &ResourceRequirements,
    actuated: Option<&ResourceRequirements>,
    given: Option<&Given>,
    facts: &NodeFacts,
) -> ResourceRequirements {
    let limits: fn(&ResourceRequirements) -> Option<&Amounts> = |r| r.limits.as_ref();
    let requests: fn(&ResourceRequirements) -> Option<&Amounts> = |r| r.requests.as_ref();
    // In the first words of which `means` gives the kernel's number; else in its own.
    let tell = |of, name: &str, means: &dyn Fn(Nano) -> bool, own: Option<Quantity>| {
        let words = [find(Some(allocated), of, name), find(actuated, of, name)];
        let is = |q: &&Quantity| quantity::parse(&q.0).is_ok_and(means);
        words.into_iter().flatten().find(is).cloned().or(own)
    };
    let mut out = allocated.clone();
    let mut put = |of_limits: bool, name: &str, value: Option<Quantity>| {
        let map = if of_limits { out.limits.as_mut() } else { out.requests.as_mut() };
        let Some(map) = map.filter(|m| m.contains_key(name)) else { return };
        match value {
            Some(value) => drop(map.insert(name.to_owned(), value)),
            None => drop(map.remove(name)),
        }
    };
    if let Some(given) = given {
        let quota = |n: Nano| limits::cpu_quota(n.milli(), given.cpu_period_us) == given.cpu_quota_us;
        let own = given.cpu_quota_us.map(|q| cpu(q.saturating_mul(1000) / given.cpu_period_us.max(1)));
        if facts.cpu_cfs_quota {
            put(true, "cpu", tell(limits, "cpu", &quota, own));
        }
        let bytes = |n: Nano| Some(n.value()) == given.memory_limit;
        let own = given.memory_limit.map(|m| Quantity(quantity::binary(m)));
        put(true, "memory", tell(limits, "memory", &bytes, own));
        let shares = |n: Nano| limits::cpu_shares(n.milli()) == given.cpu_shares;
        let own = Some(cpu(resources::milli_of_shares(given.cpu_shares)));
        put(false, "cpu", tell(requests, "cpu", &shares, own));
    } else if let Some(actuated) = actuated {
        for name in ["cpu", "memory"] {
            put(true, name, find(Some(actuated), limits, name).cloned());
            put(false, name, find(Some(actuated), requests, name).cloned());
        }
    }
    if let Some(actuated) = actuated {
        put(false, "memory", find(Some(actuated), requests, "memory").cloned());
    }
    out
}

fn cpu(milli: i64) -> Quantity {
    Quantity(Nano::from_milli(milli).to_string())
}

/// The pod with the resources that it has; the pod itself where those are what it is to have, as they nearly always are.
pub fn pod_as_it_is<'a>(input: &Input<'a>) -> Cow<'a, Pod> {
    let others: Vec<_> = allocation::sized(input.pod)
        .filter_map(|c| Some((&c.name, unsettled(input, c, input.observed.latest(&c.name)?)?)))
        .collect();
    let in_progress = input.resize.as_ref().filter(|r| r.in_progress.is_some());
    let whole = in_progress.and_then(|r| r.actual.pod.as_ref());
    if others.is_empty() && whole.is_none() {
        return Cow::Borrowed(input.pod);
    }
    let mut all = Allocation::of(input.pod);
    all.containers.extend(others.into_iter().map(|(name, has)| (name.clone(), has)));
    if let Some(whole) = whole {
        all.pod = Some(whole.clone());
    }
    Cow::Owned(Arc::unwrap_or_clone(all.applied(&Arc::new(input.pod.clone()))))
}

/// `PodResizePending` and `PodResizeInProgress`, as far as they hold; they come before all others.
pub fn conditions(input: &Input<'_>) -> Vec<PodCondition> {
    let Some(resizing) = &input.resize else { return Vec::new() };
    let pending = resizing.pending.map(|p| {
        condition(input, "PodResizePending", p.generation, Some(p.reason.as_str()), Some(&p.message))
    });
    let in_progress = resizing.in_progress.map(|(generation, error)| {
        condition(input, "PodResizeInProgress", generation, error.map(|_| "Error"), error)
    });
    pending.into_iter().chain(in_progress).collect()
}

fn condition(
    input: &Input<'_>,
    kind: &str,
    generation: Option<i64>,
    reason: Option<&str>,
    message: Option<&str>,
) -> PodCondition {
    let all = input.previous.and_then(|s| s.conditions.as_ref()).into_iter().flatten();
    let before = all.into_iter().find(|c| c.type_ == kind && c.reason.as_deref() == reason);
    let now = Some(Time(input.now));
    let same = before.filter(|c| c.message.as_deref() == message && c.observed_generation == generation);
    PodCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: reason.map(str::to_owned),
        message: message.map(str::to_owned),
        last_probe_time: same.map_or(now.clone(), |c| c.last_probe_time.clone()),
        last_transition_time: before.map_or(now, |c| c.last_transition_time.clone()),
        observed_generation: generation,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(v: Value) -> ResourceRequirements {
        serde_json::from_value(v).unwrap()
    }

    fn facts() -> NodeFacts {
        NodeFacts { cpu_cfs_quota: true, cfs_period_us: 100_000, ..NodeFacts::default() }
    }

    fn given(cpu_shares: i64, quota: Option<i64>, memory: Option<i64>) -> Given {
        Given { cpu_shares, cpu_quota_us: quota, cpu_period_us: 100_000, memory_limit: memory }
    }

    fn check(allocated: Value, actuated: Option<Value>, given: Option<Given>, want: Value) {
        let told = actual(&of(allocated), actuated.map(of).as_ref(), given.as_ref(), &facts());
        assert_eq!(serde_json::to_value(told).unwrap(), want);
    }

    #[test]
    fn until_it_is_so_the_old_amounts_are_told_in_the_old_words() {
        let r = |cpu: &str, memory: &str| json!({"limits": {"cpu": cpu, "memory": memory}, "requests": {"cpu": cpu, "memory": memory}});
        let old = given(1024, Some(100_000), Some(1 << 30));
        check(r("2", "2Gi"), Some(r("1000m", "1024Mi")), Some(old), r("1000m", "1024Mi"));
        check(r("2", "2Gi"), Some(r("1", "1Gi")), None, r("1", "1Gi"));
        let half = given(2048, Some(200_000), Some(1 << 30));
        check(
            r("2", "2Gi"),
            Some(r("1", "1Gi")),
            Some(half),
            json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "2", "memory": "1Gi"}}),
        );
    }

    #[test]
    fn what_nobody_asked_for_is_told_as_the_kernel_has_it() {
        let r = json!({"limits": {"cpu": "2", "memory": "2Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}});
        check(
            r,
            None,
            Some(given(307, Some(45_000), Some(100 << 20))),
            json!({"limits": {"cpu": "450m", "memory": "100Mi"}, "requests": {"cpu": "300m", "memory": "1Gi"}}),
        );
    }

    #[test]
    fn a_limit_that_is_still_to_come_is_not_told() {
        let new = json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1"}});
        check(
            new,
            Some(json!({"requests": {"cpu": "1"}})),
            Some(given(1024, None, None)),
            json!({"limits": {}, "requests": {"cpu": "1"}}),
        );
    }

    #[test]
    fn amounts_too_small_for_the_kernel_keep_their_words() {
        let r = |cpu: &str, memory: &str| json!({"limits": {"cpu": "1m"}, "requests": {"cpu": cpu, "memory": memory}});
        check(r("1m", "2Gi"), Some(r("1m", "1Gi")), Some(given(2, Some(1000), None)), r("1m", "1Gi"));
    }
}
