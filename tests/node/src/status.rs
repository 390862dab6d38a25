//! Reading a pod's status without a ladder of options.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// `status.phase`, empty when there is none.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// The condition of that type is `True`.
pub fn is(pod: &Pod, condition: &str) -> bool {
    let all = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    all.into_iter().any(|c| c.type_ == condition && c.status == "True")
}

/// `status.podIP`
pub fn ip(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref().filter(|ip| !ip.is_empty())
}

/// The status of a container or init container.
pub fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    all.into_iter().find(|c| c.name == name)
}

/// The runtime's id of the container's present instance, without the runtime's name.
pub fn id<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let id = container(pod, name)?.container_id.as_deref()?;
    Some(id.rsplit_once("://").map_or(id, |(_, id)| id))
}

/// How often it has been restarted.
pub fn restarts(pod: &Pod, name: &str) -> i32 {
    container(pod, name).map_or(0, |c| c.restart_count)
}

/// `state.waiting.reason`
pub fn waiting<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    container(pod, name)?.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

/// The exit code of an instance that has ended and is not followed by another one yet.
pub fn exit_code(pod: &Pod, name: &str) -> Option<i32> {
    Some(container(pod, name)?.state.as_ref()?.terminated.as_ref()?.exit_code)
}

/// It runs now.
pub fn running(pod: &Pod, name: &str) -> bool {
    container(pod, name).and_then(|c| c.state.as_ref()).is_some_and(|s| s.running.is_some())
}

/// `metadata.uid`
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// `metadata.name`
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}
