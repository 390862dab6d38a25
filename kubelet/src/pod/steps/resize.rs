//! Giving what runs of a pod the resources it was given: the pod's cgroup and the runtime, in the order that `plan::resize`
//! sets. Every part may be repeated; a part that fails ends the step, and a later plan goes on from what is so by then.

use super::{Failure, Steps};
use crate::allocation;
use crate::api::Pod;
use crate::cgroup::{self, Now, PodValues};
use crate::pleg::observed::Observed;
use crate::pod::plan::resize::{self, Actual, Deed, Need, Needs, Part, Update};
use crate::pod::translate::{self, limits};
use cri::v1;

/// What a resize came to.
#[derive(Debug, Default)]
pub struct Resized {
    /// Containers that the runtime has taken the new values for: name and id.
    pub done: Vec<(String, String)>,
    /// The ids of those that it was asked about, whatever came of it.
    pub begun: Vec<String>,
    /// Why the rest is still to be done.
    pub error: Option<String>,
}

impl Steps {
    /// What the pod's cgroup has is as it should be, or it has none that could be compared.
    pub fn cgroup_is_so(&self, pod: &Pod) -> bool {
        let wanted = translate::pod_cgroup_resources(pod, &self.rooms.facts);
        self.limits.as_ref().is_none_or(|has| *has == wanted)
    }

    /// Takes the values of the cgroup of a pod that was found running for what they are.
    pub fn adopt_limits(&mut self, pod: &Pod) {
        let wanted = translate::pod_cgroup_resources(pod, &self.rooms.facts);
        self.limits = match self.pod_now(pod) {
            Ok(Some(now)) if !resize::pod_is_so(&now, &wanted, self.rooms.facts.cgroup_v2) => {
                Some(PodValues {
                    cpu_shares: Some(now.cpu_shares),
                    memory_limit: Some(now.memory_limit),
                    ..wanted
                })
                .map(|has| PodValues { cpu_quota_us: Some(now.cpu_quota_us), ..has })
            }
            // One that has none gets it with its next container.
            Ok(None) => None,
            Ok(Some(_)) => Some(wanted),
            Err(error) => {
                tracing::warn!(pod = %self.pod, %error, "cannot read the pod's cgroup");
                None
            }
        };
    }

    /// What the container has by its cgroup; `None` where that cannot be told.
    pub fn container_now(&self, pod: &Pod, id: &str) -> Option<Now> {
        self.rooms.cgroups.container_now(translate::qos_class(pod), &self.pod.uid, id).unwrap_or_else(
            |error| {
                tracing::warn!(pod = %self.pod, id, %error, "cannot read the container's cgroup");
                None
            },
        )
    }

    fn pod_now(&self, pod: &Pod) -> Result<Option<Now>, cgroup::Error> {
        self.rooms.cgroups.pod_now(translate::qos_class(pod), &self.pod.uid)
    }

    /// Does what `needs` says for the containers that run on.
    pub async fn resize(&mut self, pod: &Pod, seen: &Observed, needs: &Needs, actual: &Actual) -> Resized {
        let mut resized = Resized::default();
        resized.error = self.resize_all(pod, seen, needs, actual, &mut resized).await.err();
        if resized.error.is_some() {
            // Some of it may have been done: what is so is read, not remembered. Of what protects memory nobody tells.
            let before = self.limits.take();
            self.adopt_limits(pod);
            if let (Some(has), Some(before)) = (self.limits.as_mut(), before) {
                (has.memory_min, has.memory_low) = (before.memory_min, before.memory_low);
            }
        }
        resized
    }

    async fn resize_all(
        &mut self,
        pod: &Pod,
        seen: &Observed,
        needs: &Needs,
        actual: &Actual,
        resized: &mut Resized,
    ) -> Result<(), String> {
        // An agent that is killed from here on must know what it had promised.
        self.rooms.allocated.flush().await?;
        let facts = self.rooms.facts.clone();
        let updates: Vec<Update> = allocation::sized(pod)
            .filter_map(|c| {
                let Some(Need::Update { memory, cpu }) = needs.containers.get(&c.name).copied() else {
                    return None;
                };
                let i = seen.latest(&c.name)?;
                let target = limits::container_resources(pod, c, &facts);
                let (id, name, given) = (i.id.clone(), c.name.clone(), actual.given(i));
                Some(Update { id, name, memory, cpu, target, given })
            })
            .collect();
        let now = self.pod_now(pod).map_err(|e| e.to_string())?;
        let wanted = translate::pod_cgroup_resources(pod, &facts);
        self.spare_memory(pod, now.as_ref(), &wanted, &updates)?;
        let mut has = now;
        let deeds = resize::deeds(now.as_ref(), &wanted, &updates, facts.cgroup_v2);
        let last =
            |index: usize| deeds.iter().rposition(|d| matches!(d, Deed::Container(i, _) if *i == index));
        for (n, deed) in deeds.iter().enumerate() {
            match deed {
                Deed::Pod(part) => {
                    let Some(has) = has.as_mut() else { continue };
                    self.write(pod, *part, &wanted, has).await?;
                    self.tell_sandbox(pod, seen, has).await?;
                }
                Deed::Container(index, linux) => {
                    let update = &updates[*index];
                    resized.begun.push(update.id.clone());
                    let taken = self.update(&update.id, linux.clone()).await?;
                    if taken && last(*index) == Some(n) {
                        resized.done.push((update.name.clone(), update.id.clone()));
                    }
                }
            }
        }
        // What protects memory follows its requests, in no order.
        if now.is_some() && (wanted.memory_min.is_some() || wanted.memory_low.is_some()) {
            self.put(pod, &wanted).await?;
        }
        self.limits = Some(wanted);
        Ok(())
    }

    /// A limit below what is in use would have the kernel end somebody: it is not even tried.
    fn spare_memory(
        &self,
        pod: &Pod,
        now: Option<&Now>,
        wanted: &PodValues,
        updates: &[Update],
    ) -> Result<(), String> {
        let mut wrong = Vec::new();
        let too_low = |limit: i64, usage: u64| u64::try_from(limit).is_ok_and(|limit| usage >= limit);
        if let (Some(now), Some(limit)) = (now, wanted.memory_limit)
            && (now.memory_limit < 0 || limit < now.memory_limit)
            && too_low(limit, now.memory_usage)
        {
            wrong.push(format!(
                "attempting to set pod memory limit ({limit}) below current usage ({})",
                now.memory_usage
            ));
        }
        for u in updates.iter().filter(|u| u.memory) {
            let limit = u.target.memory_limit_in_bytes;
            let before = u.given.and_then(|g| g.memory_limit);
            if limit <= 0 || before.is_some_and(|before| limit >= before) {
                continue;
            }
            let usage = self.container_now(pod, &u.id).map_or(0, |now| now.memory_usage);
            if too_low(limit, usage) {
                wrong.push(format!(
                    "attempting to set container \"{}\" memory limit ({limit}) below current usage ({usage})",
                    u.name
                ));
            }
        }
        match wrong.as_slice() {
            [] => Ok(()),
            [one] => Err(one.clone()),
            several => Err(format!("[{}]", several.join(", "))),
        }
    }

    /// Writes one value of the pod's cgroup, and notes in `has` that it is there.
    async fn write(&self, pod: &Pod, part: Part, wanted: &PodValues, has: &mut Now) -> Result<(), String> {
        let mut values = PodValues {
            pids_limit: wanted.pids_limit,
            hugetlb: wanted.hugetlb.clone(),
            ..PodValues::default()
        };
        match part {
            Part::Memory => {
                values.memory_limit = wanted.memory_limit;
                has.memory_limit = wanted.memory_limit.unwrap_or(has.memory_limit);
            }
            Part::Quota => {
                (values.cpu_quota_us, values.cpu_period_us) = (wanted.cpu_quota_us, wanted.cpu_period_us);
                has.cpu_quota_us = wanted.cpu_quota_us.unwrap_or(has.cpu_quota_us);
                has.cpu_period_us = wanted.cpu_period_us.unwrap_or(has.cpu_period_us);
            }
            Part::Shares => {
                values.cpu_shares = wanted.cpu_shares;
                has.cpu_shares = wanted.cpu_shares.unwrap_or(has.cpu_shares);
            }
        }
        self.put(pod, &values).await
    }

    async fn put(&self, pod: &Pod, values: &PodValues) -> Result<(), String> {
        let began = tokio::time::Instant::now();
        let put = self.rooms.cgroups.create_pod(translate::qos_class(pod), &self.pod.uid, values).await;
        self.rooms.metrics.cgroup_manager_duration.with(["update"]).observe_duration(began.elapsed());
        put.map_err(|e| e.to_string())
    }

    /// Tells the runtime what the pod as a whole has now. One that does not want to know is left alone.
    async fn tell_sandbox(&self, pod: &Pod, seen: &Observed, has: &Now) -> Result<(), String> {
        let Some(sandbox) = seen.sandbox() else { return Ok(()) };
        let request = v1::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: sandbox.id.clone(),
            overhead: Some(limits::sandbox_overhead(pod, &self.rooms.facts)),
            resources: Some(v1::LinuxContainerResources {
                cpu_shares: i64::try_from(has.cpu_shares).unwrap_or(i64::MAX),
                cpu_quota: has.cpu_quota_us,
                cpu_period: i64::try_from(has.cpu_period_us).unwrap_or(i64::MAX),
                memory_limit_in_bytes: has.memory_limit.max(0),
                ..v1::LinuxContainerResources::default()
            }),
        };
        match self.rooms.runtime.update_pod_sandbox_resources(request).await {
            Err(error) if error.kind != cri::Kind::Unimplemented => Err(error.rpc_text()),
            _ => Ok(()),
        }
    }

    /// False where the container has ended meanwhile: the next look at the pod tells what follows.
    async fn update(&self, id: &str, linux: v1::LinuxContainerResources) -> Result<bool, String> {
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(linux),
            ..v1::UpdateContainerResourcesRequest::default()
        };
        let runtime = &self.rooms.runtime;
        let Err(error) = runtime.update_container_resources(request).await else { return Ok(true) };
        let running = v1::ContainerState::ContainerRunning;
        let ended = match runtime.container_status(id, false).await {
            Ok(answer) => answer.status.is_some_and(|s| s.state() != running),
            Err(error) => error.kind == cri::Kind::NotFound,
        };
        if ended { Ok(false) } else { Err(error.rpc_text()) }
    }
}

impl Resized {
    /// For the actor's memory of what to try again.
    pub fn failure(&self) -> Result<(), Failure> {
        if self.error.is_some() { Err(Failure { of_container: true, ..Failure::default() }) } else { Ok(()) }
    }
}
