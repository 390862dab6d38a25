//! What of CPU and memory each pod was given, which need not be what its object asks for (KEP-1287, in-place resize).
//!
//! An [`Allocation`] is a pod's resources apart from the pod: `world` decides it when it admits a pod or a resize, and
//! everything behind `world` sees the pod [with it](Allocation::applied). A [`Store`] keeps one for each pod over a
//! restart of the agent, in a file: one store for what was allocated, which only `world` writes, and one for what was
//! actuated, which is what pod actors last got the runtime to take.
//!
//! The files are a memory, not the truth: what they say is used only where it fits the pod, and a file that is lost or
//! spoiled costs nothing that could not be found out from what runs.

mod checkpoint;
mod message;
mod store;

pub use message::message;
pub use store::Store;

use crate::api::{Pod, spec};
use crate::quantity;
use k8s_openapi::api::core::v1::{Container, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The file of what was allocated, in `--root-dir`; upstream's name.
pub const ALLOCATED: &str = "allocated_pods_state";
/// The file of what was actuated, in `--root-dir`; upstream's name.
pub const ACTUATED: &str = "actuated_pods_state";

/// Resources of one pod. The form is that of upstream's files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    /// By container, init containers among them; ephemeral ones have none.
    #[serde(rename = "ContainerResources", default, deserialize_with = "null_is_empty")]
    pub containers: BTreeMap<String, ResourceRequirements>,
    /// `spec.resources` of the pod.
    #[serde(rename = "PodLevelResources", default)]
    pub pod: Option<ResourceRequirements>,
}

/// Go writes an empty map as `null`.
fn null_is_empty<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<String, ResourceRequirements>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// The containers that have resources of their own.
pub fn sized(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = spec(pod);
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

impl Allocation {
    /// What `pod` asks for.
    pub fn of(pod: &Pod) -> Self {
        let own = |c: &Container| (c.name.clone(), c.resources.clone().unwrap_or_default());
        Self { containers: sized(pod).map(own).collect(), pod: spec(pod).resources.clone() }
    }

    /// `pod` asks for exactly this. Containers that the allocation does not know ask for what they like.
    pub fn fits(&self, pod: &Pod) -> bool {
        let nothing = ResourceRequirements::default();
        let known = |c: &Container| {
            let asked = c.resources.as_ref().unwrap_or(&nothing);
            self.containers.get(&c.name).is_none_or(|given| same(asked, given))
        };
        let (asked, given) = (spec(pod).resources.as_ref(), self.pod.as_ref());
        sized(pod).all(known) && same(asked.unwrap_or(&nothing), given.unwrap_or(&nothing))
    }

    /// The pod with these resources in the place of those it asks for; the pod itself where they are the same.
    pub fn applied(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        if self.fits(pod) {
            return pod.clone();
        }
        let mut with = (**pod).clone();
        if let Some(spec) = with.spec.as_mut() {
            spec.resources.clone_from(&self.pod);
            let inits = spec.init_containers.iter_mut().flatten();
            for c in inits.chain(&mut spec.containers) {
                let asked = c.resources.clone().unwrap_or_default();
                if let Some(given) = self.containers.get(&c.name).filter(|given| !same(&asked, given)) {
                    c.resources = Some(ResourceRequirements { claims: asked.claims, ..given.clone() });
                }
            }
        }
        Arc::new(with)
    }
}

/// Both ask for the same amounts, however they are written. Claims are not compared.
pub fn same(a: &ResourceRequirements, b: &ResourceRequirements) -> bool {
    same_amounts(a.requests.as_ref(), b.requests.as_ref())
        && same_amounts(a.limits.as_ref(), b.limits.as_ref())
}

type Amounts = BTreeMap<String, Quantity>;

fn same_amounts(a: Option<&Amounts>, b: Option<&Amounts>) -> bool {
    let names = |m: Option<&Amounts>| m.map_or(0, BTreeMap::len);
    let equal = |(name, amount): (&String, &Quantity)| {
        b.and_then(|b| b.get(name)).is_some_and(|other| {
            match (quantity::parse(&amount.0), quantity::parse(&other.0)) {
                (Ok(a), Ok(b)) => a == b,
                _ => amount == other,
            }
        })
    };
    names(a) == names(b) && a.into_iter().flatten().all(equal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": spec})).unwrap())
    }

    fn cpu(amount: &str) -> Value {
        json!({"requests": {"cpu": amount}})
    }

    #[test]
    fn amounts_are_compared_and_not_their_texts() {
        let of = |v: Value| serde_json::from_value::<ResourceRequirements>(v).unwrap();
        assert!(same(&of(cpu("1")), &of(cpu("1000m"))));
        assert!(same(&of(json!({})), &of(json!({"limits": {}}))));
        assert!(!same(&of(cpu("1")), &of(cpu("1001m"))));
        assert!(!same(&of(cpu("1")), &of(json!({"limits": {"cpu": "1"}}))));
        assert!(!same(&of(cpu("1")), &of(json!({"requests": {"memory": "1"}}))));
        assert!(!same(&of(json!({})), &of(cpu("0"))), "a request of nothing is a request");
    }

    #[test]
    fn a_pod_is_seen_with_what_it_was_given() {
        let asked = |amount: &str| {
            pod(json!({"initContainers": [{"name": "i", "resources": cpu(amount)}],
                "containers": [{"name": "a", "resources": cpu(amount)}, {"name": "b"}],
                "resources": {"limits": {"cpu": amount}}}))
        };
        let given = Allocation::of(&asked("1"));
        let applied = given.applied(&asked("2"));
        assert_eq!(applied, asked("1"));
        assert!(Arc::ptr_eq(&given.applied(&applied), &applied), "nothing is copied that is so already");
        assert!(given.fits(&applied) && !given.fits(&asked("2")));
    }

    #[test]
    fn a_container_that_came_later_has_what_it_asks_for() {
        let given = Allocation::of(&pod(json!({"containers": [{"name": "a", "resources": cpu("1")}]})));
        let more = pod(json!({"containers": [{"name": "a", "resources": cpu("1")},
            {"name": "b", "resources": cpu("3")}]}));
        assert!(given.fits(&more));
        assert_eq!(given.applied(&more), more);
    }
}
