//! What is to be done so that a pod that runs has the resources it was given (KEP-1287): which containers are updated, which
//! are run again, and in which order pod and containers are raised and lowered. Pure.
//!
//! ```text
//!   memory: pod's limit up ─▶ containers ─▶ pod's limit down
//!   CPU:    pod's quota up ─▶ pod's shares up ─▶ containers ─▶ pod's shares down ─▶ pod's quota down
//! ```
//!
//! So at no moment does the pod have less than its containers. Containers that shrink come before those that grow.

use crate::allocation::{self, same};
use crate::api::{Container, Pod};
use crate::cgroup::{Now, PodValues, values};
use crate::pleg::observed::{Given, Instance, Observed, State};
use crate::pod::translate::{NodeFacts, limits};
use cri::v1::LinuxContainerResources;
use k8s_openapi::api::core::v1::ResourceRequirements;
use std::collections::{BTreeMap, HashMap};

/// What is known of the resources that a pod's containers have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Actual {
    /// By instance: what the runtime was last got to take.
    pub actuated: HashMap<String, ResourceRequirements>,
    /// By instance: what its cgroup has, where the runtime does not tell.
    pub read: HashMap<String, Given>,
    /// `spec.resources` of the pod as it was last put into effect.
    pub pod: Option<ResourceRequirements>,
}

impl Actual {
    /// What that instance has, as far as anybody tells.
    pub fn given(&self, i: &Instance) -> Option<Given> {
        i.given.or_else(|| self.read.get(&i.id).copied())
    }
}

/// What is to be done about one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It runs on with other values.
    Update {
        /// Its memory changes, or what it requests of it.
        memory: bool,
        /// Its CPU.
        cpu: bool,
    },
    /// It is run again, as its resize policy has it.
    Restart,
}

/// What is to be done about a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// By container name.
    pub containers: BTreeMap<String, Need>,
    /// The pod's own cgroup has other values than it should.
    pub pod: bool,
}

impl Needs {
    /// All is as it should be.
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty() && !self.pod
    }
}

/// What the containers of `pod` need that run. What the runtime was got to take counts as so, whatever it makes of it; where
/// that is not known, what it tells decides.
pub fn needs(pod: &Pod, seen: &Observed, actual: &Actual, facts: &NodeFacts) -> BTreeMap<String, Need> {
    let sandbox = seen.sandbox().map(|s| s.id.as_str());
    let mut needs = BTreeMap::new();
    for c in allocation::sized(pod) {
        let running =
            seen.latest(&c.name).filter(|i| i.state == State::Running && sandbox == Some(&i.sandbox_id));
        let Some(i) = running else { continue };
        if let Some(need) = need(pod, c, i, actual, facts) {
            needs.insert(c.name.clone(), need);
        }
    }
    needs
}

fn need(pod: &Pod, c: &Container, i: &Instance, actual: &Actual, facts: &NodeFacts) -> Option<Need> {
    let nothing = ResourceRequirements::default();
    let wanted = c.resources.as_ref().unwrap_or(&nothing);
    let actuated = actual.actuated.get(&i.id);
    if actuated.is_some_and(|a| same(a, wanted)) {
        return None;
    }
    let target = Given::of(&limits::container_resources(pod, c, facts));
    let last = actuated.map(|last| {
        let mut then = c.clone();
        then.resources = Some(last.clone());
        Given::of(&limits::container_resources(pod, &then, facts))
    });
    let differ = |has: &Given| (!same_memory(&target, has), !same_cpu(&target, has, facts));
    // Where nobody tells, what was asked for last is the best that is known.
    let (memory, cpu) = differ(&actual.given(i).or(last)?);
    // A runtime that tells something else than it was asked for has nothing restarted.
    let (memory_asked, cpu_asked) = last.as_ref().map_or((false, false), differ);
    let restarts = |name: &str| {
        let policies = c.resize_policy.iter().flatten();
        policies.filter(|p| p.resource_name == name).any(|p| p.restart_policy == "RestartContainer")
    };
    if memory && memory_asked && restarts("memory") || cpu && cpu_asked && restarts("cpu") {
        return Some(Need::Restart);
    }
    // Only what it requests of memory: no limit of the kernel's, but the kernel's choice when there is none left.
    let request = !memory && !cpu && actuated.is_some();
    (memory || cpu || request).then_some(Need::Update { memory: memory || request, cpu })
}

/// The runtime has these values already.
pub fn is_so(pod: &Pod, c: &Container, given: &Given, facts: &NodeFacts) -> bool {
    let target = Given::of(&limits::container_resources(pod, c, facts));
    same_memory(&target, given) && same_cpu(&target, given, facts)
}

/// The kernel counts memory in pages.
const PAGE: i64 = 4096;

fn same_memory(a: &Given, b: &Given) -> bool {
    a.memory_limit.map(|m| m / PAGE) == b.memory_limit.map(|m| m / PAGE)
}

fn same_cpu(a: &Given, b: &Given, facts: &NodeFacts) -> bool {
    let weight = |shares: i64| values::weight_of_shares(u64::try_from(shares).unwrap_or(0));
    let shares =
        a.cpu_shares == b.cpu_shares || facts.cgroup_v2 && weight(a.cpu_shares) == weight(b.cpu_shares);
    let share_of = |g: &Given, other: &Given| g.cpu_quota_us.map(|q| q.saturating_mul(other.cpu_period_us));
    shares && share_of(a, b) == share_of(b, a)
}

/// The pod's cgroup has what it should have of CPU and memory.
pub fn pod_is_so(now: &Now, wanted: &PodValues, cgroup_v2: bool) -> bool {
    let changes = pod_changes(now, wanted, cgroup_v2);
    changes.is_empty()
}

/// One value of the pod's cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The memory limit.
    Memory,
    /// Quota and period.
    Quota,
    /// Shares.
    Shares,
}

/// Which values differ, and whether they grow. A limit that the pod should not have is left as it is: limits are not taken
/// away in place.
fn pod_changes(now: &Now, wanted: &PodValues, cgroup_v2: bool) -> Vec<(Part, bool)> {
    let mut changes = Vec::new();
    let endless = |limit: i64| if limit < 0 { i64::MAX } else { limit };
    if let Some(limit) = wanted.memory_limit
        && limit / PAGE != now.memory_limit / PAGE
    {
        changes.push((Part::Memory, limit > endless(now.memory_limit)));
    }
    if let (Some(quota), Some(period)) = (wanted.cpu_quota_us, wanted.cpu_period_us) {
        let per = |quota: i64, period: u64| i128::from(endless(quota)) * i128::from(period);
        let (is, should) = (per(now.cpu_quota_us, period), per(quota, now.cpu_period_us));
        if is != should {
            changes.push((Part::Quota, should > is));
        }
    }
    if let Some(shares) = wanted.cpu_shares {
        let equal = |of: &dyn Fn(u64) -> u64| of(shares) == of(now.cpu_shares);
        if !(equal(&|s| s) || cgroup_v2 && equal(&values::weight_of_shares)) {
            changes.push((Part::Shares, shares > now.cpu_shares));
        }
    }
    changes
}

/// What a pod's cgroup that has `has` can be given at any time on its way to `wanted`: what grows is in nobody's way, and
/// nothing may start in less than it needs. The rest stays.
pub fn raised(has: &PodValues, wanted: &PodValues, cgroup_v2: bool) -> PodValues {
    let now = Now {
        cpu_shares: has.cpu_shares.unwrap_or(0),
        cpu_quota_us: has.cpu_quota_us.unwrap_or(-1),
        cpu_period_us: has.cpu_period_us.or(wanted.cpu_period_us).unwrap_or(100_000),
        memory_limit: has.memory_limit.unwrap_or(-1),
        memory_usage: 0,
    };
    let mut raised = has.clone();
    for (part, _) in pod_changes(&now, wanted, cgroup_v2).into_iter().filter(|(_, up)| *up) {
        match part {
            Part::Memory => raised.memory_limit = wanted.memory_limit,
            Part::Quota => {
                (raised.cpu_quota_us, raised.cpu_period_us) = (wanted.cpu_quota_us, wanted.cpu_period_us);
            }
            Part::Shares => raised.cpu_shares = wanted.cpu_shares,
        }
    }
    raised
}

/// A container that runs on with other values.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// The runtime's id.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// What is to change.
    pub memory: bool,
    /// What is to change.
    pub cpu: bool,
    /// All that it should have.
    pub target: LinuxContainerResources,
    /// What it has, as far as that is known.
    pub given: Option<Given>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Deed {
    /// Write that value of the pod's cgroup.
    Pod(Part),
    /// Give the container of that index these values.
    Container(usize, LinuxContainerResources),
}

/// What to do, in order. `now` is the pod's cgroup, where it has one.
pub fn deeds(now: Option<&Now>, wanted: &PodValues, updates: &[Update], cgroup_v2: bool) -> Vec<Deed> {
    let changes = now.map(|now| pod_changes(now, wanted, cgroup_v2)).unwrap_or_default();
    let pod = |part: Part, up: bool| changes.contains(&(part, up)).then_some(Deed::Pod(part));
    let mut deeds = Vec::new();
    deeds.extend(pod(Part::Memory, true));
    deeds.extend(containers(
        updates,
        |u| u.memory,
        memory_first,
        |u| (u.target.memory_limit_in_bytes, u.given.and_then(|g| g.memory_limit)),
    ));
    deeds.extend(pod(Part::Memory, false));
    deeds.extend(pod(Part::Quota, true));
    deeds.extend(pod(Part::Shares, true));
    deeds.extend(containers(
        updates,
        |u| u.cpu,
        |u| u.target.clone(),
        |u| {
            let quota = (u.target.cpu_quota, u.given.and_then(|g| g.cpu_quota_us));
            if Some(quota.0).filter(|q| *q > 0) == quota.1 {
                (u.target.cpu_shares, u.given.map(|g| g.cpu_shares))
            } else {
                quota
            }
        },
    ));
    deeds.extend(pod(Part::Shares, false));
    deeds.extend(pod(Part::Quota, false));
    deeds
}

/// The deeds for those of which `concerned` is true; `amounts` are what one should have and has, with none or zero for no limit.
fn containers(
    updates: &[Update],
    concerned: impl Fn(&Update) -> bool,
    message: impl Fn(&Update) -> LinuxContainerResources,
    amounts: impl Fn(&Update) -> (i64, Option<i64>),
) -> Vec<Deed> {
    let endless = |n: i64| if n <= 0 { i64::MAX } else { n };
    let grows = |u: &Update| {
        let (target, given) = amounts(u);
        // Of whom nothing is known grows, for all that anybody knows.
        u.given.is_none() || endless(target) > endless(given.unwrap_or(0))
    };
    let mut all: Vec<(bool, usize)> =
        updates.iter().enumerate().filter(|(_, u)| concerned(u)).map(|(i, u)| (grows(u), i)).collect();
    all.sort();
    all.into_iter().map(|(_, i)| Deed::Container(i, message(&updates[i]))).collect()
}

/// The new memory with the old CPU, whose turn comes later.
fn memory_first(u: &Update) -> LinuxContainerResources {
    let mut message = u.target.clone();
    if let Some(given) = u.given.filter(|_| u.cpu) {
        message.cpu_shares = given.cpu_shares;
        message.cpu_quota = given.cpu_quota_us.unwrap_or(if u.target.cpu_quota > 0 { -1 } else { 0 });
        message.cpu_period = given.cpu_period_us;
    }
    message
}

#[cfg(test)]
mod tests;
