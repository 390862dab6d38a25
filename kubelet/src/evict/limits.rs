//! Limits of local storage: which pods have more on the node's disks than they may. Pure; the words are upstream's.
//!
//! In this order, as upstream: `sizeLimit` of an `emptyDir`, the limits of the pod's containers together, the limit of one
//! container.

use super::measure::{DiskUse, PodUse};
use super::rank::Active;
use super::threshold::Layout;
use crate::api::{self, Container};
use crate::quantity;

/// A limit that was passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// `eviction_signal` in `kubelet_evictions`.
    pub signal: &'static str,
    /// `status.message`
    pub message: String,
}

const STORAGE: &str = "ephemeral-storage";

fn limit_of(c: &Container) -> Option<&str> {
    let limits = c.resources.as_ref()?.limits.as_ref()?;
    limits.get(STORAGE).map(|q| q.0.as_str())
}

/// Whether the pod has any such limit: of those that have none nobody needs to know what they use.
pub fn has_any(pod: &Active) -> bool {
    let spec = api::spec(&pod.pod);
    let sized = |v: &api::Volume| v.empty_dir.as_ref().is_some_and(|e| e.size_limit.is_some());
    pod.storage_limit.is_some()
        || spec.volumes.iter().flatten().any(sized)
        || spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|c| limit_of(c).is_some())
}

/// The first limit of its own that the pod has passed.
pub fn passed(pod: &Active, used: &PodUse, layout: Layout) -> Option<Passed> {
    volume(pod, used).or_else(|| whole(pod, used)).or_else(|| container(pod, used, layout))
}

fn volume(pod: &Active, used: &PodUse) -> Option<Passed> {
    api::spec(&pod.pod).volumes.iter().flatten().find_map(|v| {
        let text = v.empty_dir.as_ref()?.size_limit.as_ref()?.0.as_str();
        let limit = quantity::parse(text).ok()?.value();
        let uses = used.volumes.get(&v.name)?.bytes;
        (limit > 0 && uses > limit.unsigned_abs()).then(|| Passed {
            signal: "emptydirfs.limit",
            message: format!(
                "Usage of EmptyDir volume {:?} exceeds the limit {:?}. ",
                v.name,
                canonical(text)
            ),
        })
    })
}

fn whole(pod: &Active, used: &PodUse) -> Option<Passed> {
    let limit = pod.storage_limit?;
    let uses = used.ephemeral?;
    (uses > limit.unsigned_abs()).then(|| Passed {
        signal: "ephemeralpodfs.limit",
        message: format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            quantity::binary(limit)
        ),
    })
}

fn container(pod: &Active, used: &PodUse, layout: Layout) -> Option<Passed> {
    let spec = api::spec(&pod.pod);
    used.containers.iter().find_map(|c| {
        let mut all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let text = limit_of(all.find(|of| of.name == c.name)?)?;
        let limit = quantity::parse(text).ok()?.value();
        let bytes = |part: &Option<DiskUse>| part.map_or(0, |p| p.bytes);
        // A layer on a file system of the runtime's own does not count against a limit of the node's storage.
        let layer = if layout == Layout::OfRuntime { 0 } else { bytes(&c.rootfs) };
        let uses = bytes(&c.logs).saturating_add(layer);
        (limit > 0 && uses > limit.unsigned_abs()).then(|| Passed {
            signal: "ephemeralcontainerfs.limit",
            message: format!(
                "Container {} exceeded its local ephemeral storage limit {:?}. ",
                c.name,
                canonical(text)
            ),
        })
    })
}

/// A quantity as the API prints it.
fn canonical(text: &str) -> String {
    match quantity::parse(text) {
        Ok(q) if text.ends_with('i') => quantity::binary(q.value()),
        Ok(q) => q.to_string(),
        Err(_) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::measure::ContainerUse;
    use super::*;
    use crate::api::{Pod, PodRef};
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn pod(spec: Value, storage_limit: Option<i64>) -> Active {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": spec})).unwrap();
        Active { who: PodRef::of(&pod), pod: Arc::new(pod), memory: 0, storage: 0, storage_limit }
    }

    fn limited(name: &str, limit: &str) -> Value {
        json!({"name": name, "resources": {"limits": {"ephemeral-storage": limit}}})
    }

    fn uses(containers: &[(&str, u64, u64)], volumes: &[(&str, u64)], ephemeral: Option<u64>) -> PodUse {
        let du = |bytes| Some(DiskUse { bytes, inodes: 1 });
        let of = |(name, layer, logs): &(&str, u64, u64)| ContainerUse {
            name: (*name).to_owned(),
            memory: None,
            rootfs: du(*layer),
            logs: du(*logs),
        };
        PodUse {
            containers: containers.iter().map(of).collect(),
            volumes: volumes
                .iter()
                .map(|(n, b)| ((*n).to_owned(), DiskUse { bytes: *b, inodes: 1 }))
                .collect(),
            ephemeral,
            ..PodUse::default()
        }
    }

    fn message(pod: &Active, used: &PodUse, layout: Layout) -> Option<String> {
        passed(pod, used, layout).map(|p| p.message)
    }

    #[test]
    fn a_volume_may_hold_as_much_as_its_limit_and_not_a_byte_more() {
        let spec = json!({"containers": [{"name": "c"}], "volumes": [
            {"name": "free", "emptyDir": {}}, {"name": "v", "emptyDir": {"sizeLimit": "5Mi"}}]});
        let pod = pod(spec, None);
        assert!(has_any(&pod));
        let of = |bytes| message(&pod, &uses(&[], &[("free", 1 << 40), ("v", bytes)], None), Layout::One);
        assert_eq!(of(5 << 20), None);
        assert_eq!(
            of((5 << 20) + 1).as_deref(),
            Some("Usage of EmptyDir volume \"v\" exceeds the limit \"5Mi\". ")
        );
        assert_eq!(
            message(&pod, &uses(&[], &[], None), Layout::One),
            None,
            "what is not known is not too much"
        );
    }

    #[test]
    fn a_limit_of_nothing_is_no_limit() {
        let spec = json!({"containers": [limited("c", "0")], "volumes": [
            {"name": "v", "emptyDir": {"sizeLimit": "0"}}]});
        assert_eq!(passed(&pod(spec, None), &uses(&[("c", 9, 9)], &[("v", 9)], Some(9)), Layout::One), None);
    }

    #[test]
    fn the_pod_as_a_whole_comes_before_its_containers() {
        let pod = pod(json!({"containers": [limited("c", "5Mi")]}), Some(5 << 20));
        let used = uses(&[("c", 15 << 20, 0)], &[], Some(15 << 20));
        let found = passed(&pod, &used, Layout::One).unwrap();
        assert_eq!(found.signal, "ephemeralpodfs.limit");
        assert_eq!(
            found.message,
            "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. "
        );
    }

    #[test]
    fn a_container_is_held_to_its_own_limit_by_layer_and_logs() {
        let pod = pod(json!({"containers": [limited("a", "5Mi"), limited("b", "50Mi")]}), Some(55 << 20));
        let used = uses(&[("b", 1, 1), ("a", 3 << 20, 3 << 20)], &[], Some((6 << 20) + 2));
        let found = passed(&pod, &used, Layout::One).unwrap();
        assert_eq!(found.signal, "ephemeralcontainerfs.limit");
        assert_eq!(found.message, "Container a exceeded its local ephemeral storage limit \"5Mi\". ");
        assert_eq!(passed(&pod, &used, Layout::OfRuntime), None, "only the logs are on the node's own");
        assert!(passed(&pod, &used, Layout::OfImages).is_some());
    }

    #[test]
    fn pods_without_limits_need_not_be_measured() {
        let spec = json!({"containers": [{"name": "c"}], "volumes": [{"name": "v", "emptyDir": {}}]});
        assert!(!has_any(&pod(spec, None)));
        assert!(has_any(&pod(json!({"containers": [limited("c", "1Gi")]}), None)));
    }
}
