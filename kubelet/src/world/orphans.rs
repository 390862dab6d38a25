//! What is left of pods that nobody wants any more: found once the first full picture of runtime and sources exists.
//!
//! The token [`FullPicture`] is what that moment hands out; nothing is cleaned without it, so a slow source or a
//! runtime that does not answer never costs a pod.

use crate::api::{Origin, Pod, PodRef, PodSpec, PodUid};
use crate::pleg::observed::Picture;
use crate::pod::{Desired, Resize, Rooms, Stop, StopReason};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// Proof that every source has told all its pods and the runtime has told all it has.
#[derive(Debug)]
pub struct FullPicture(());

impl FullPicture {
    /// Made in one place: where the task has seen both.
    pub(super) fn new() -> Self {
        Self(())
    }
}

/// Pods in the runtime that no source has, as orders to end and remove them.
pub fn in_runtime(_: &FullPicture, picture: &Picture, wanted: &HashSet<PodUid>) -> Vec<(PodRef, Desired)> {
    let orphans = picture.pods.iter().filter(|(uid, _)| !wanted.contains(*uid));
    let orders = orphans.map(|(_, (pod, seen))| {
        let grace = seen.containers.iter().find_map(|c| c.grace).unwrap_or(30);
        (pod.clone(), order(pod, Duration::from_secs(grace.try_into().unwrap_or(0))))
    });
    orders.collect()
}

/// Pods of which only directories or cgroups are left, as orders to remove them. Blocking: walks two directories.
pub fn on_disk(_: &FullPicture, rooms: &Rooms, known: &HashSet<PodUid>) -> Vec<(PodRef, Desired)> {
    let dirs = rooms.volumes.pods_on_disk().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot list the pods' directories");
        Vec::new()
    });
    let cgroups = rooms.cgroups.list_pods().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot list the pods' cgroups");
        Vec::new()
    });
    let left: HashSet<PodUid> = dirs
        .into_iter()
        .chain(cgroups.into_iter().map(|(_, uid)| uid))
        .filter(|uid| !known.contains(uid))
        .collect();
    let nameless = |uid| PodRef { uid, namespace: "".into(), name: "".into() };
    left.into_iter().map(nameless).map(|pod| (pod.clone(), order(&pod, Duration::ZERO))).collect()
}

/// A skeleton of the pod, with the order to end and remove it.
pub(super) fn order(pod: &PodRef, grace: Duration) -> Desired {
    let mut skeleton = Pod { spec: Some(PodSpec::default()), ..Pod::default() };
    skeleton.metadata.uid = Some(pod.uid.to_string());
    skeleton.metadata.namespace = Some(pod.namespace.to_string());
    skeleton.metadata.name = Some(pod.name.to_string());
    Desired {
        pod: Arc::new(skeleton),
        origin: Origin::File,
        stop: Some(Stop { why: StopReason::Orphaned, grace, remove: true }),
        resize: Resize::default(),
    }
}
