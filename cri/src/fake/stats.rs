//! What the fake's containers and sandboxes use: what the test set, else zeros, with attributes and instants filled in.

use super::{FakeRuntime, State};
use crate::v1;

fn zero(timestamp: i64) -> v1::ContainerStats {
    let none = || Some(v1::UInt64Value { value: 0 });
    v1::ContainerStats {
        cpu: Some(v1::CpuUsage { timestamp, usage_core_nano_seconds: none(), ..Default::default() }),
        memory: Some(v1::MemoryUsage { timestamp, working_set_bytes: none(), ..Default::default() }),
        writable_layer: Some(v1::FilesystemUsage {
            timestamp,
            used_bytes: none(),
            inodes_used: none(),
            fs_id: None,
        }),
        ..Default::default()
    }
}

fn of_container(state: &State, id: &str, now: i64) -> Option<v1::ContainerStats> {
    let container = state.world.containers.get(id)?;
    let name = container.config.metadata.as_ref().map_or("", |m| m.name.as_str());
    let set = state.container_stats.get(id).or_else(|| state.container_stats.get(name));
    let mut stats = set.cloned().unwrap_or_else(|| zero(now));
    stats.attributes = Some(v1::ContainerAttributes {
        id: id.to_owned(),
        metadata: container.config.metadata.clone(),
        labels: container.config.labels.clone(),
        annotations: container.config.annotations.clone(),
    });
    Some(stats)
}

impl FakeRuntime {
    /// Of one container.
    pub(super) fn stats_of_container(&self, id: &str) -> Option<v1::ContainerStats> {
        of_container(&self.state(), id, self.now())
    }

    /// Of all running containers that match.
    pub(super) fn stats_of_containers(
        &self,
        filter: Option<&v1::ContainerStatsFilter>,
    ) -> Vec<v1::ContainerStats> {
        let (state, now) = (self.state(), self.now());
        let running = v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning.into() };
        let filter = filter.cloned().unwrap_or_default();
        let filter = v1::ContainerFilter {
            id: filter.id,
            pod_sandbox_id: filter.pod_sandbox_id,
            label_selector: filter.label_selector,
            state: Some(running),
        };
        let matching = state.world.containers.values().filter(|c| c.matches(Some(&filter)));
        matching.filter_map(|c| of_container(&state, &c.id, now)).collect()
    }

    /// Of one sandbox and its containers.
    pub(super) fn stats_of_sandbox(&self, id: &str) -> Option<v1::PodSandboxStats> {
        let in_it = v1::ContainerStatsFilter { pod_sandbox_id: id.to_owned(), ..Default::default() };
        let containers = self.stats_of_containers(Some(&in_it));
        let state = self.state();
        let sandbox = state.world.sandboxes.get(id)?;
        let pod = sandbox.config.metadata.as_ref().map_or("", |m| m.name.as_str());
        let set = state.sandbox_stats.get(id).or_else(|| state.sandbox_stats.get(pod));
        let mut stats = set.cloned().unwrap_or_default();
        stats.attributes = Some(v1::PodSandboxAttributes {
            id: id.to_owned(),
            metadata: sandbox.config.metadata.clone(),
            labels: sandbox.config.labels.clone(),
            annotations: sandbox.config.annotations.clone(),
        });
        stats.linux.get_or_insert_default().containers = containers;
        Some(stats)
    }

    /// Of all ready sandboxes that match.
    pub(super) fn stats_of_sandboxes(
        &self,
        filter: Option<&v1::PodSandboxStatsFilter>,
    ) -> Vec<v1::PodSandboxStats> {
        let filter = filter.cloned().unwrap_or_default();
        let ready = v1::PodSandboxStateValue { state: v1::PodSandboxState::SandboxReady.into() };
        let filter =
            v1::PodSandboxFilter { id: filter.id, label_selector: filter.label_selector, state: Some(ready) };
        let ids: Vec<String> = {
            let state = self.state();
            state
                .world
                .sandboxes
                .values()
                .filter(|s| s.matches(Some(&filter)))
                .map(|s| s.id.clone())
                .collect()
        };
        ids.iter().filter_map(|id| self.stats_of_sandbox(id)).collect()
    }
}
