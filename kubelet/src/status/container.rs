//! A container's status from its instances. Pure.

use super::convert::Input;
use crate::api::Container;
use crate::event::ContainerList;
use crate::pleg::observed::{Instance, State};
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, LinuxContainerUser, ResourceRequirements, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// The status of the container `c` of `list`.
pub fn container_status(input: &Input<'_>, list: ContainerList, c: &Container) -> ContainerStatus {
    let mut instances = input.observed.instances(&c.name);
    let latest = instances.next();
    let before = instances.next();
    let mut status = blank(input, c);
    if let Some(i) = latest {
        fill(input, c, i, &mut status);
        let started = i.state == State::Running
            && input.readiness.started(&c.name, &i.id).unwrap_or(c.startup_probe.is_none());
        status.ready = match list {
            ContainerList::Init if c.restart_policy.as_deref() != Some("Always") => {
                i.state == State::Exited && i.exit_code == 0
            }
            _ => started && input.readiness.ready(&c.name, &i.id).unwrap_or(c.readiness_probe.is_none()),
        };
        status.started = Some(started);
        let before = before.or_else(|| input.removed.get(&c.name).filter(|removed| removed.id != i.id));
        status.last_state = Some(before.map(|b| ended_state(input, b)).unwrap_or_default());
    } else {
        status.restart_count = previous(input, c).map(|p| p.restart_count).unwrap_or_default();
    }
    if let Some(waiting) = input.waiting.get(&c.name)
        && !latest.is_some_and(|i| i.state == State::Running)
    {
        if let Some(i) = latest
            && i.state == State::Exited
        {
            status.last_state = Some(ended_state(input, i));
        }
        status.state = Some(waiting_state(&waiting.reason, Some(&waiting.message)));
        status.ready = false;
    }
    status
}

/// A status of a container of which nothing runs and nothing ran.
fn blank(input: &Input<'_>, c: &Container) -> ContainerStatus {
    let initializing = crate::api::spec(input.pod).init_containers.as_ref().is_some_and(|i| !i.is_empty());
    let reason = if initializing { "PodInitializing" } else { "ContainerCreating" };
    ContainerStatus {
        name: c.name.clone(),
        image: c.image.clone().unwrap_or_default(),
        image_id: String::new(),
        ready: false,
        started: Some(false),
        restart_count: 0,
        state: Some(waiting_state(reason, None)),
        last_state: Some(ContainerState::default()),
        volume_mounts: volume_mounts(c, input.node.recursive_read_only),
        ..Default::default()
    }
}

fn fill(input: &Input<'_>, c: &Container, i: &Instance, status: &mut ContainerStatus) {
    status.container_id = Some(id(input, i));
    status.image.clone_from(&i.image);
    status.image_id.clone_from(&i.image_ref);
    status.restart_count = i32::try_from(i.restart_count).unwrap_or(i32::MAX);
    status.resources = Some(resources(c));
    status.allocated_resources = c.resources.as_ref().and_then(|r| r.requests.clone());
    status.user = i.user.as_ref().map(|(uid, gid, groups)| ContainerUser {
        linux: Some(LinuxContainerUser { uid: *uid, gid: *gid, supplemental_groups: Some(groups.clone()) }),
    });
    match i.state {
        State::Running => {
            status.state = Some(ContainerState {
                running: Some(ContainerStateRunning { started_at: time(i.started_at) }),
                ..Default::default()
            });
        }
        State::Exited => status.state = Some(ended_state(input, i)),
        // Created or unknown: still "creating" to the reader.
        State::Created | State::Unknown => {}
    }
}

fn resources(c: &Container) -> ResourceRequirements {
    c.resources.clone().map(|r| ResourceRequirements { claims: None, ..r }).unwrap_or_default()
}

fn previous<'a>(input: &Input<'a>, c: &Container) -> Option<&'a ContainerStatus> {
    let all = input.previous?;
    let lists = [&all.container_statuses, &all.init_container_statuses, &all.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|s| s.name == c.name)
}

fn id(input: &Input<'_>, i: &Instance) -> String {
    format!("{}://{}", input.node.runtime_name, i.id)
}

fn ended_state(input: &Input<'_>, i: &Instance) -> ContainerState {
    if i.state != State::Exited {
        return ContainerState::default();
    }
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(id(input, i)),
            exit_code: i.exit_code,
            reason: (!i.reason.is_empty()).then(|| i.reason.clone()),
            message: (!i.message.is_empty()).then(|| i.message.clone()),
            started_at: time(i.started_at),
            finished_at: time(i.finished_at),
            signal: None,
        }),
        ..Default::default()
    }
}

fn waiting_state(reason: &str, message: Option<&str>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: message.filter(|m| !m.is_empty()).map(str::to_owned),
        }),
        ..Default::default()
    }
}

/// Upstream prints whole seconds; 0 is the epoch.
fn time(nanos: i64) -> Option<Time> {
    jiff::Timestamp::from_second(nanos.div_euclid(1_000_000_000)).ok().map(Time)
}

fn volume_mounts(c: &Container, recursive: bool) -> Option<Vec<VolumeMountStatus>> {
    let mounts = c.volume_mounts.as_deref().unwrap_or_default();
    let statuses = mounts.iter().map(|m| {
        let read_only = m.read_only.unwrap_or(false);
        let how = match m.recursive_read_only.as_deref() {
            Some("IfPossible") if recursive => "Enabled",
            None | Some("IfPossible") => "Disabled",
            Some(asked) => asked,
        };
        VolumeMountStatus {
            name: m.name.clone(),
            mount_path: m.mount_path.clone(),
            read_only: m.read_only.filter(|r| *r),
            recursive_read_only: read_only.then(|| how.to_owned()),
            ..Default::default()
        }
    });
    let statuses: Vec<_> = statuses.collect();
    (!statuses.is_empty()).then_some(statuses)
}

/// The state of a container that was never found when its pod ended.
pub fn lost() -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: 137,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some("The container could not be located when the pod was terminated".to_owned()),
            ..Default::default()
        }),
        ..Default::default()
    }
}
