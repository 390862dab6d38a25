//! RuntimeService of the fake: each call's effect on the world, and the waiting that goes with it.

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::mpsc;
use tokio::time::{Duration, sleep, timeout};
use tonic::{Code, Request, Response, Status};

use super::fault::{Effect, Point};
use super::record::{of_container, of_sandbox};
use super::world::Stopping;
use super::{ExecAnswer, FakeRuntime, log};
use crate::v1;
use crate::v1::runtime_service_server::RuntimeService;

type Answer<T> = Result<Response<T>, Status>;
type Pieces<T> = BoxStream<'static, Result<T, Status>>;

/// One message for each item: as many pieces as can be.
fn pieces<I, P: Send + 'static>(items: Vec<I>, piece: impl Fn(Vec<I>) -> P) -> Pieces<P> {
    let pieces: Vec<_> = items.into_iter().map(|item| Ok(piece(vec![item]))).collect();
    Box::pin(stream::iter(pieces))
}

fn no_container(id: &str) -> Status {
    Status::not_found(format!("an error occurred when try to find container {id:?}: not found"))
}

/// Lists and statuses, falsified as ordered.
impl FakeRuntime {
    fn falsified(&self, call: &str, names: &[String]) -> (bool, bool) {
        let struck = self.state().faults.strike(call, names, Point::Answer);
        let any = |wanted: fn(&Effect) -> bool| struck.iter().any(|(effect, _)| wanted(effect));
        (any(|e| matches!(e, Effect::Hide)), any(|e| matches!(e, Effect::UnknownState)))
    }

    fn list_of_sandboxes(&self, filter: Option<&v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
        let listed: Vec<_> = {
            let world = &self.state().world;
            let matching = world.sandboxes.values().filter(|s| s.matches(filter));
            matching.map(|s| (of_sandbox(&s.id, world), s.listed())).collect()
        };
        let visible =
            |(names, item): (Vec<String>, _)| (!self.falsified("ListPodSandbox", &names).0).then_some(item);
        listed.into_iter().filter_map(visible).collect()
    }

    fn list_of_containers(&self, filter: Option<&v1::ContainerFilter>) -> Vec<v1::Container> {
        let listed: Vec<_> = {
            let world = &self.state().world;
            let matching = world.containers.values().filter(|c| c.matches(filter));
            matching.map(|c| (of_container(&c.id, world), c.listed())).collect()
        };
        let seen = |(names, mut item): (Vec<String>, v1::Container)| {
            let (hidden, unknown) = self.falsified("ListContainers", &names);
            if unknown {
                item.state = v1::ContainerState::ContainerUnknown.into();
            }
            (!hidden).then_some(item)
        };
        listed.into_iter().filter_map(seen).collect()
    }
}

/// Stopping, which waits.
impl FakeRuntime {
    /// The stop signal, up to so many seconds for the container to end, SIGKILL.
    async fn stop(&self, id: &str, grace: i64) {
        let seconds = u64::try_from(grace).unwrap_or(0);
        if seconds > 0 {
            match self.change(|world, now| world.signal(id, true, now)) {
                Stopping::Done => return,
                Stopping::Wait { exit, mut stopped } => {
                    match exit {
                        Some((code, Duration::ZERO)) => self.exit(id, code),
                        Some((code, after)) => self.exit_after(id, code, after),
                        None => {}
                    }
                    let stopping = stopped.wait_for(|stopped| *stopped);
                    if timeout(Duration::from_secs(seconds), stopping).await.is_ok() {
                        return;
                    }
                }
            }
        }
        if let Stopping::Wait { mut stopped, .. } = self.change(|world, now| world.signal(id, false, now)) {
            // An error means that the container was removed meanwhile.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        }
    }

    async fn stop_sandbox(&self, id: &str) {
        let containers = self.state().world.container_ids_in(id);
        for container in containers {
            self.stop(&container, 0).await;
        }
        self.change(|world, now| world.sandbox_dies(id, now));
    }

    fn streaming_url(&self, what: &str, container: &str) -> Result<String, Status> {
        let mut state = self.state();
        let missing =
            |_| Status::not_found(format!("failed to find container {container:?} in store: not found"));
        let state = state.world.container(container).map_err(missing)?.state;
        if state != v1::ContainerState::ContainerRunning {
            return Err(Status::unknown(format!("container is in {} state", state.as_str_name())));
        }
        Ok(format!("http://127.0.0.1:0/{what}/{container}"))
    }

    fn exec_answer(&self, request: &v1::ExecSyncRequest) -> Result<ExecAnswer, Status> {
        self.streaming_url("exec", &request.container_id)
            .map_err(|s| Status::new(s.code(), format!("failed to exec in container: {}", s.message())))?;
        let answer = {
            let state = self.state();
            let names = of_container(&request.container_id, &state.world);
            names.iter().find_map(|name| state.execs.get(name)).cloned()
        };
        Ok(answer.map_or_else(|| ExecAnswer::exits(0), |answer| answer(&request.cmd)))
    }
}

#[tonic::async_trait]
impl RuntimeService for FakeRuntime {
    async fn version(&self, request: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        self.handle(request.into_inner(), |fake, _| async move { Ok(fake.shared.profile.version()) }).await
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        self.handle(request.into_inner(), |fake, _| async move {
            let state = fake.state();
            let (handlers, features) = fake.shared.profile.tells_handlers();
            Ok(v1::StatusResponse {
                status: Some(v1::RuntimeStatus { conditions: state.conditions.clone() }),
                runtime_handlers: if handlers { state.handlers.clone() } else { vec![] },
                features: features.then_some(state.features),
                ..Default::default()
            })
        })
        .await
    }

    async fn runtime_config(
        &self,
        request: Request<v1::RuntimeConfigRequest>,
    ) -> Answer<v1::RuntimeConfigResponse> {
        self.handle(request.into_inner(), |fake, _| async move {
            let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: fake.state().cgroup_driver.into() };
            Ok(v1::RuntimeConfigResponse { linux: Some(linux) })
        })
        .await
    }

    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        self.handle(request.into_inner(), |_, _| async { Ok(v1::UpdateRuntimeConfigResponse {}) }).await
    }

    // ---- sandboxes ----

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Answer<v1::RunPodSandboxResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            let pod_sandbox_id = fake.change(|world, now| world.run_sandbox(m, now))?;
            Ok(v1::RunPodSandboxResponse { pod_sandbox_id })
        })
        .await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            let id = &m.pod_sandbox_id;
            if fake.shared.profile.misses_what_it_stops() && !fake.state().world.sandboxes.contains_key(id) {
                let text = format!("an error occurred when try to find sandbox {id:?}: not found");
                return Err(Status::not_found(text));
            }
            fake.stop_sandbox(id).await;
            Ok(v1::StopPodSandboxResponse {})
        })
        .await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            fake.stop_sandbox(&m.pod_sandbox_id).await;
            fake.change(|world, now| world.remove_sandbox(&m.pod_sandbox_id, now));
            Ok(v1::RemovePodSandboxResponse {})
        })
        .await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            let state = fake.state();
            let sandbox = state.world.sandboxes.get(&m.pod_sandbox_id);
            let missing = || Status::not_found("an error occurred when try to find sandbox: not found");
            let status = sandbox.ok_or_else(missing)?.status();
            let containers = state.world.containers.values().filter(|c| c.sandbox_id == m.pod_sandbox_id);
            let containers_statuses = containers.map(|c| state.world.container_status(c)).collect();
            // CRI-O fills these in where it sends events; containerd never does.
            let full = fake.shared.profile == super::Profile::Everything;
            Ok(v1::PodSandboxStatusResponse {
                status: Some(status),
                containers_statuses: if full { containers_statuses } else { vec![] },
                timestamp: if full { fake.now() } else { 0 },
                ..Default::default()
            })
        })
        .await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            Ok(v1::ListPodSandboxResponse { items: fake.list_of_sandboxes(m.filter.as_ref()) })
        })
        .await
    }

    type StreamPodSandboxesStream = Pieces<v1::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        self.handle(request.into_inner(), |fake, m| async move {
            let piece = |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes };
            Ok(pieces(fake.list_of_sandboxes(m.filter.as_ref()), piece))
        })
        .await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            let found = fake.state().world.sandboxes.contains_key(&m.pod_sandbox_id);
            let missing =
                || Status::not_found(format!("failed to find sandbox {:?}: not found", m.pod_sandbox_id));
            found.then_some(v1::UpdatePodSandboxResourcesResponse {}).ok_or_else(missing)
        })
        .await
    }

    async fn port_forward(
        &self,
        request: Request<v1::PortForwardRequest>,
    ) -> Answer<v1::PortForwardResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            let id = m.pod_sandbox_id;
            match fake.state().world.sandboxes.get(&id).map(|s| s.ready) {
                None => Err(Status::not_found(format!("failed to find sandbox {id:?}: not found"))),
                Some(false) => Err(Status::unknown("sandbox container is not running")),
                Some(true) => {
                    Ok(v1::PortForwardResponse { url: format!("http://127.0.0.1:0/portforward/{id}") })
                }
            }
        })
        .await
    }

    // ---- containers ----

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            let container_id = fake.change(|world, now| world.create_container(m, now))?;
            Ok(v1::CreateContainerResponse { container_id })
        })
        .await
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            let id = m.container_id;
            let (script, log_path) = fake.change(|world, now| {
                let script = world.start_container(&id, now)?;
                Ok::<_, Status>((script, world.container(&id)?.log_path.clone()))
            })?;
            if fake.shared.write_logs && !log_path.is_empty() {
                let failed = |e| Status::unknown(format!("failed to create and open log file: {e}"));
                log::append(&log_path, fake.now(), &script.lines).map_err(failed)?;
            }
            if let Some((code, after)) = script.exit {
                fake.exit_after(&id, code, after);
            }
            Ok(v1::StartContainerResponse {})
        })
        .await
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Answer<v1::StopContainerResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            if fake.shared.profile.misses_what_it_stops() {
                fake.state().world.container(&m.container_id)?;
            }
            fake.stop(&m.container_id, m.timeout).await;
            Ok(v1::StopContainerResponse {})
        })
        .await
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            fake.stop(&m.container_id, 0).await;
            fake.change(|world, now| world.forget_container(&m.container_id, now));
            Ok(v1::RemoveContainerResponse {})
        })
        .await
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            let (names, mut status) = {
                let world = &fake.state().world;
                let container =
                    world.containers.get(&m.container_id).ok_or_else(|| no_container(&m.container_id))?;
                (of_container(&m.container_id, world), world.container_status(container))
            };
            if fake.falsified("ContainerStatus", &names).1 {
                status.state = v1::ContainerState::ContainerUnknown.into();
            }
            Ok(v1::ContainerStatusResponse { status: Some(status), ..Default::default() })
        })
        .await
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Answer<v1::ListContainersResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            Ok(v1::ListContainersResponse { containers: fake.list_of_containers(m.filter.as_ref()) })
        })
        .await
    }

    type StreamContainersStream = Pieces<v1::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        self.handle(request.into_inner(), |fake, m| async move {
            let piece = |containers| v1::StreamContainersResponse { containers };
            Ok(pieces(fake.list_of_containers(m.filter.as_ref()), piece))
        })
        .await
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            let mut state = fake.state();
            let missing = |_| Status::not_found("failed to find container: not found");
            let container = state.world.container(&m.container_id).map_err(missing)?;
            if let Some(linux) = m.linux {
                update(container.resources.get_or_insert_default(), &linux);
            }
            Ok(v1::UpdateContainerResourcesResponse {})
        })
        .await
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            let (state, path) = {
                let mut state = fake.state();
                let container = state.world.container(&m.container_id)?;
                (container.state, container.log_path.clone())
            };
            if state != v1::ContainerState::ContainerRunning {
                return Err(Status::unknown("container is not running"));
            }
            if fake.shared.write_logs && !path.is_empty() {
                log::append(&path, fake.now(), &[]).map_err(|e| Status::unknown(e.to_string()))?;
            }
            Ok(v1::ReopenContainerLogResponse {})
        })
        .await
    }

    async fn checkpoint_container(
        &self,
        request: Request<v1::CheckpointContainerRequest>,
    ) -> Answer<v1::CheckpointContainerResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            let state = fake.state().world.container(&m.container_id)?.state;
            if state != v1::ContainerState::ContainerRunning {
                return Err(Status::unknown("container is not running"));
            }
            // An archive in name only: nothing runs here that could be kept.
            std::fs::write(&m.location, &m.container_id).map_err(|e| Status::unknown(e.to_string()))?;
            Ok(v1::CheckpointContainerResponse {})
        })
        .await
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            let answer = fake.exec_answer(&m)?;
            let limit = u64::try_from(m.timeout).unwrap_or(0);
            if limit > 0 && answer.takes > Duration::from_secs(limit) {
                sleep(Duration::from_secs(limit)).await;
                let text = format!(
                    "failed to exec in container: timeout {limit}s exceeded: context deadline exceeded"
                );
                return Err(Status::new(Code::DeadlineExceeded, text));
            }
            sleep(answer.takes).await;
            answer.error.map_or(Ok(answer.response), Err)
        })
        .await
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            Ok(v1::ExecResponse { url: fake.streaming_url("exec", &m.container_id)? })
        })
        .await
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            Ok(v1::AttachResponse { url: fake.streaming_url("attach", &m.container_id)? })
        })
        .await
    }

    // ---- events ----

    type GetContainerEventsStream = Pieces<v1::ContainerEventResponse>;

    async fn get_container_events(
        &self,
        request: Request<v1::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        self.handle(request.into_inner(), |fake, _| async move {
            let (sink, mut events) = mpsc::unbounded_channel();
            if !fake.shared.profile.sends_events() {
                return Ok(stream::empty().boxed());
            }
            fake.state().subscribers.push(sink);
            fake.changed();
            // As Go's servers do it: nothing is answered, not even headers, before there is a first event.
            let first = match events.recv().await {
                Some(Err(status)) => return Err(status),
                first => stream::iter(first),
            };
            Ok(first.chain(stream::poll_fn(move |cx| events.poll_recv(cx))).boxed())
        })
        .await
    }

    // ---- measurements ----

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Answer<v1::ContainerStatsResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            let stats = fake.stats_of_container(&m.container_id);
            let missing = || Status::not_found("failed to find container: not found");
            Ok(v1::ContainerStatsResponse { stats: Some(stats.ok_or_else(missing)?) })
        })
        .await
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            Ok(v1::ListContainerStatsResponse { stats: fake.stats_of_containers(m.filter.as_ref()) })
        })
        .await
    }

    type StreamContainerStatsStream = Pieces<v1::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        self.handle(request.into_inner(), |fake, m| async move {
            let piece = |container_stats| v1::StreamContainerStatsResponse { container_stats };
            Ok(pieces(fake.stats_of_containers(m.filter.as_ref()), piece))
        })
        .await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Answer<v1::PodSandboxStatsResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            let id = &m.pod_sandbox_id;
            let stats = fake.stats_of_sandbox(id);
            let missing = || {
                Status::not_found(format!("an error occurred when trying to find sandbox {id}: not found"))
            };
            Ok(v1::PodSandboxStatsResponse { stats: Some(stats.ok_or_else(missing)?) })
        })
        .await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        self.handle(request.into_inner(), |fake, m| async move {
            Ok(v1::ListPodSandboxStatsResponse { stats: fake.stats_of_sandboxes(m.filter.as_ref()) })
        })
        .await
    }

    type StreamPodSandboxStatsStream = Pieces<v1::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        self.handle(request.into_inner(), |fake, m| async move {
            let piece = |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats };
            Ok(pieces(fake.stats_of_sandboxes(m.filter.as_ref()), piece))
        })
        .await
    }

    async fn list_metric_descriptors(
        &self,
        request: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<v1::ListMetricDescriptorsResponse> {
        self.handle(request.into_inner(), |_, _| async { Ok(v1::ListMetricDescriptorsResponse::default()) })
            .await
    }

    async fn list_pod_sandbox_metrics(
        &self,
        request: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        self.handle(request.into_inner(), |_, _| async { Ok(v1::ListPodSandboxMetricsResponse::default()) })
            .await
    }

    type StreamPodSandboxMetricsStream = Pieces<v1::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        request: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        self.handle(request.into_inner(), |_, _| async { Ok(stream::empty().boxed()) }).await
    }
}

/// As runtimes do it: what is not zero or empty in the request replaces what was.
fn update(old: &mut v1::LinuxContainerResources, new: &v1::LinuxContainerResources) {
    let number = |old: &mut i64, new: i64| {
        if new != 0 {
            *old = new;
        }
    };
    number(&mut old.cpu_period, new.cpu_period);
    number(&mut old.cpu_quota, new.cpu_quota);
    number(&mut old.cpu_shares, new.cpu_shares);
    number(&mut old.memory_limit_in_bytes, new.memory_limit_in_bytes);
    number(&mut old.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes);
    number(&mut old.oom_score_adj, new.oom_score_adj);
    for (old, new) in [(&mut old.cpuset_cpus, &new.cpuset_cpus), (&mut old.cpuset_mems, &new.cpuset_mems)] {
        if !new.is_empty() {
            old.clone_from(new);
        }
    }
    if !new.hugepage_limits.is_empty() {
        old.hugepage_limits.clone_from(&new.hugepage_limits);
    }
    old.unified.extend(new.unified.iter().map(|(k, v)| (k.clone(), v.clone())));
}
