//! [`api_status`]: a pod's status from what should be, what is, and where its actor stands. Pure.

use super::conditions::{self, FAILED, SUCCEEDED};
use super::container::container_status;
use super::is_final;
use super::phase::{end, held_back, phase};
use super::resources::{self, Resizing};
use crate::api::{self, Pod, PodStatus};
use crate::event::ContainerList;
use crate::evict::{self, Evicted};
use crate::pleg::observed::{Instance, Observed};
use crate::pod::plan::{Outcome, Phase, Waiting};
use crate::pod::translate::{self, ResourceList};
use crate::probe::Readiness;
use crate::quantity::{self, Nano};
use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, PodIP, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// What a status says of the node.
#[derive(Clone, Debug, Default)]
pub struct NodeIdentity {
    /// `hostIPs`, primary first.
    pub ips: Vec<IpAddr>,
    /// Prefix of container ids: the runtime's name.
    pub runtime_name: String,
    /// The runtime can make read-only mounts recursively so.
    pub recursive_read_only: bool,
    /// Feature gate `ContainerStopSignals`: containers' statuses tell their stop signals.
    pub stop_signals: bool,
}

/// An instance that the agent removed from the runtime.
#[derive(Clone, Debug)]
pub struct Removed {
    /// As it was last seen.
    pub instance: Instance,
    /// It was removed so that all containers could be run again.
    pub reset: bool,
}

/// Everything a status depends on.
#[derive(Debug)]
pub struct Input<'a> {
    /// The pod as its source gave it.
    pub pod: &'a Pod,
    /// What was last seen of it.
    pub observed: &'a Observed,
    /// Where its actor stands.
    pub phase: Phase,
    /// It was told to end, by whomever.
    pub stopping: bool,
    /// Its cgroup is gone: what has not run by now never will.
    pub released: bool,
    /// How its own work ended, if it did.
    pub outcome: Option<Outcome>,
    /// What probes made of its containers.
    pub readiness: &'a Readiness,
    /// Containers that wait, and why.
    pub waiting: &'a BTreeMap<String, Waiting>,
    /// All containers are being ended and removed, to be run again.
    pub resetting: bool,
    /// The restart count that the next instance of each container that ever ran will have at least.
    pub restarts: &'a HashMap<String, u32>,
    /// The newest instance of each container that was removed from the runtime: its end is still told.
    pub removed: &'a HashMap<String, Removed>,
    /// How far a change of its resources has come; `None` for a pod that has ended.
    pub resize: Option<Resizing<'a>>,
    /// The node refused the pod: reason and message.
    pub rejected: Option<(&'a str, &'a str)>,
    /// It is being ended, or was, and is Failed for that: reason and message.
    pub failed: Option<(&'a str, &'a str)>,
    /// It is being evicted, or was.
    pub evicted: Option<&'a Evicted>,
    /// It has a working sandbox.
    pub sandbox_up: bool,
    /// The status last published.
    pub previous: Option<&'a PodStatus>,
    /// When the agent took the pod on.
    pub start_time: jiff::Timestamp,
    /// Now.
    pub now: jiff::Timestamp,
    /// The node.
    pub node: &'a NodeIdentity,
}

/// The status to publish.
pub fn api_status(input: &Input<'_>) -> PodStatus {
    let mut status = PodStatus {
        observed_generation: input.pod.metadata.generation,
        qos_class: Some(translate::qos_class(input.pod).as_str().to_owned()),
        start_time: Some(Time(whole_seconds(input.start_time))),
        ..Default::default()
    };
    if let Some((reason, message)) = input.rejected {
        status.phase = Some(FAILED.to_owned());
        status.reason = Some(reason.to_owned());
        status.message = Some(format!("Pod was rejected: {message}"));
        return status;
    }
    containers(input, &mut status);
    let computed = match phase(input, &status) {
        _ if input.failed.is_some() => FAILED,
        // As upstream, an evicted pod that ended well when told to has succeeded.
        natural if natural != SUCCEEDED && input.evicted.is_some() && input.phase >= Phase::Terminated => {
            FAILED
        }
        natural => natural,
    };
    let mut all = resources::conditions(input);
    all.extend(conditions::conditions(input, computed, &status));
    status.conditions = Some(all);
    status.phase = Some(held_back(input, computed).to_owned());
    if input.phase >= Phase::Terminated && input.released {
        end(input, &mut status, computed);
    }
    if let Some(why) = input.evicted.filter(|why| why.disrupted && is_final(&status)) {
        let all = status.conditions.get_or_insert_default();
        all.insert(0, conditions::disruption_target(input, &why.message));
    }
    // As upstream, the reason comes with the final phase.
    let evicted = input.evicted.map(|why| (evict::REASON, why.message.as_str()));
    if let Some((reason, message)) = input.failed.or(evicted)
        && status.phase.as_deref() == Some(FAILED)
    {
        status.reason = Some(reason.to_owned());
        status.message = Some(message.to_owned());
    }
    addresses(input, &mut status);
    totals(input, &mut status);
    // Upstream's order; init containers, and names in messages, stay in the spec's.
    for all in
        [&mut status.container_statuses, &mut status.ephemeral_container_statuses].into_iter().flatten()
    {
        all.sort_by(|a, b| a.name.cmp(&b.name));
    }
    status
}

fn whole_seconds(t: jiff::Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_second(t.as_second()).unwrap_or(t)
}

fn containers(input: &Input<'_>, status: &mut PodStatus) {
    let spec = api::spec(input.pod);
    let list = |list: ContainerList, of: &[api::Container]| -> Option<Vec<ContainerStatus>> {
        let all: Vec<_> = of.iter().map(|c| container_status(input, list, c)).collect();
        (!all.is_empty()).then_some(all)
    };
    status.container_statuses = list(ContainerList::Regular, &spec.containers);
    status.init_container_statuses =
        list(ContainerList::Init, spec.init_containers.as_deref().unwrap_or_default());
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(translate::as_container);
    status.ephemeral_container_statuses = list(ContainerList::Ephemeral, &ephemeral.collect::<Vec<_>>());
    bound_messages(status);
}

/// Termination messages of a whole pod take no more than this, shared out evenly: upstream's bound.
const MESSAGES: usize = 12 << 10;

fn bound_messages(status: &mut PodStatus) {
    let lists = [
        &mut status.container_statuses,
        &mut status.init_container_statuses,
        &mut status.ephemeral_container_statuses,
    ];
    let each = MESSAGES / lists.iter().filter_map(|l| Some(l.as_ref()?.len())).sum::<usize>().max(1);
    for s in lists.into_iter().flatten().flatten() {
        let states = [&mut s.state, &mut s.last_state].into_iter().flatten();
        for message in states.filter_map(|s| s.terminated.as_mut()?.message.as_mut()) {
            let end = (0..=each.min(message.len())).rev().find(|at| message.is_char_boundary(*at));
            message.truncate(end.unwrap_or(0));
        }
    }
}

fn addresses(input: &Input<'_>, status: &mut PodStatus) {
    let text = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    let host = text(&input.node.ips);
    status.host_ip = host.first().cloned();
    status.host_ips = (!host.is_empty()).then(|| host.iter().map(|ip| HostIP { ip: ip.clone() }).collect());
    let on_host = api::spec(input.pod).host_network.unwrap_or(false);
    let seen = input.observed.sandbox().map(|s| text(&s.ips)).unwrap_or_default();
    let ips = match () {
        () if on_host => host,
        () if !seen.is_empty() => seen,
        // A stopped sandbox has lost its addresses; the pod's status keeps them.
        () => input
            .previous
            .and_then(|p| p.pod_ips.as_ref())
            .map(|ips| ips.iter().map(|i| i.ip.clone()).collect())
            .unwrap_or_default(),
    };
    status.pod_ip = ips.first().cloned();
    status.pod_ips = (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect());
}

/// What the pod as a whole was given, and what it has.
fn totals(input: &Input<'_>, status: &mut PodStatus) {
    let allocated = quantities(&translate::pod_resources(input.pod).requests);
    status.allocated_resources = (!allocated.is_empty()).then_some(allocated);
    let total = translate::pod_resources(&resources::pod_as_it_is(input));
    let (requests, limits) = (quantities(&total.requests), quantities(&total.limits));
    status.resources = Some(ResourceRequirements {
        claims: None,
        limits: (!limits.is_empty()).then_some(limits),
        requests: (!requests.is_empty()).then_some(requests),
    });
}

/// Sums as the API prints them: memory in binary units, all else in decimal ones.
fn quantities(list: &ResourceList) -> BTreeMap<String, Quantity> {
    let text = |name: &str, value: Nano| match name {
        "memory" | "ephemeral-storage" => quantity::binary(value.value()),
        _ => value.to_string(),
    };
    list.iter().map(|(name, value)| (name.clone(), Quantity(text(name, *value)))).collect()
}
