//! A container's status from its instances. Pure.

use super::convert::Input;
use crate::api::Container;
use crate::event::ContainerList;
use crate::pleg::observed::{Instance, State};
use crate::pod::translate::resources::is_sidecar;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, LinuxContainerUser, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// The status of the container `c` of `list`.
pub fn container_status(input: &Input<'_>, list: ContainerList, c: &Container) -> ContainerStatus {
    let mut status = match input.observed.latest(&c.name) {
        Some(i) => of_instance(input, list, c, i),
        None => of_nothing(input, list, c),
    };
    // An ephemeral container is not started and not ready, whatever it does: nothing waits for it.
    if list == ContainerList::Ephemeral {
        status.ready = false;
        status.started = None;
    }
    status
}

fn of_instance(input: &Input<'_>, list: ContainerList, c: &Container, i: &Instance) -> ContainerStatus {
    let mut status = blank(input, c);
    fill(input, c, i, &mut status);
    let running = i.state == State::Running;
    let sidecar = list == ContainerList::Init && is_sidecar(c);
    let started = running && input.readiness.started(&c.name, &i.id).unwrap_or(c.startup_probe.is_none());
    status.started = Some(started);
    status.ready = match list {
        ContainerList::Init if !sidecar => i.state == State::Exited && i.exit_code == 0,
        _ => started && input.readiness.ready(&c.name, &i.id).unwrap_or(c.readiness_probe.is_none()),
    };
    let removed = input.removed.get(&c.name).filter(|removed| removed.instance.id != i.id);
    status.last_state = Some(match (input.observed.instances(&c.name).nth(1), removed) {
        (Some(before), _) => ended_state(input, before),
        (None, Some(removed)) if removed.reset => reset_state(),
        (None, Some(removed)) => ended_state(input, &removed.instance),
        (None, None) => ContainerState::default(),
    });
    if let Some(waiting) = input.waiting.get(&c.name).filter(|_| !running) {
        if i.state == State::Exited {
            status.last_state = Some(ended_state(input, i));
        }
        status.state = Some(waiting_state(&waiting.reason, Some(&waiting.message)));
        status.ready = false;
    }
    status
}

/// Of a container without an instance: it has yet to run, or what there was of it is gone.
fn of_nothing(input: &Input<'_>, list: ContainerList, c: &Container) -> ContainerStatus {
    let mut status = blank(input, c);
    // Of ephemeral containers logs tell only that they ran.
    let known = if list == ContainerList::Ephemeral { None } else { input.restarts.get(&c.name) };
    // What an evicted pod had is removed, and no other will follow.
    let known = known.map_or(0, |n| n.saturating_sub(u32::from(input.evicted.is_some())));
    status.restart_count = i32::try_from(known).unwrap_or(i32::MAX);
    if let Some(before) = previous(input, c) {
        let (volume_mounts, restarts) = (status.volume_mounts.take(), status.restart_count);
        let told = before.state.as_ref();
        // An end that was seen stays told, and so does what it was told with; one that was made up has no container.
        let ended = before.container_id.is_some() && told.is_some_and(|s| s.terminated.is_some());
        let is_reset =
            |s: &ContainerState| s.waiting.as_ref().is_some_and(|w| w.reason.as_deref() == Some(RESET));
        if ended || told.is_some_and(is_reset) {
            status = before.clone();
        } else {
            status.last_state.clone_from(&before.last_state);
            let untold = before.last_state.as_ref().is_none_or(|l| l.terminated.is_none());
            if untold && told.is_some_and(|s| s.running.is_some()) {
                status.last_state = Some(vanished());
            }
        }
        status.volume_mounts = volume_mounts;
        status.restart_count = restarts.max(before.restart_count);
    }
    status.ready = false;
    status.started = Some(false);
    if input.removed.get(&c.name).is_some_and(|removed| removed.reset) {
        status.last_state = Some(reset_state());
        status.state = Some(waiting_state(RESET, Some(RESET_MESSAGE)));
    }
    if let Some(waiting) = input.waiting.get(&c.name) {
        status.state = Some(waiting_state(&waiting.reason, Some(&waiting.message)));
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
    status.resources = Some(super::resources::of_container(input, c, i));
    status.allocated_resources = c.resources.as_ref().and_then(|r| r.requests.clone());
    status.stop_signal = i.stop_signal.clone().filter(|_| input.node.stop_signals);
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

/// Why a container waits, and how its last instance ended, when RestartAllContainers removed it.
const RESET: &str = "RestartingAllContainers";
const RESET_MESSAGE: &str = "The container is removed because RestartAllContainers in place";

fn reset_state() -> ContainerState {
    killed(RESET, RESET_MESSAGE)
}

/// The end of a container that ran when it was last told of and of which nothing is left.
fn vanished() -> ContainerState {
    killed(
        "ContainerStatusUnknown",
        "The container could not be located when the pod was deleted.  The container used to be Running",
    )
}

/// The state of a container that was never found when its pod ended.
pub fn lost() -> ContainerState {
    killed("ContainerStatusUnknown", "The container could not be located when the pod was terminated")
}

/// An end without an instance that could tell of it.
fn killed(reason: &str, message: &str) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: 137,
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            ..Default::default()
        }),
        ..Default::default()
    }
}
