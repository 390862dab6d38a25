//! The calls of RuntimeService.
//!
//! Each method sends one message and returns the useful part of the answer. They fail with [`crate::Error`]; what its
//! kinds mean is told there, and only what is peculiar to a call is told here.

use std::time::Duration;

use super::{Client, gone_is_done, lost_task, missing};
use crate::error::Result;
use crate::v1;

impl Client {
    // ---- the runtime itself ----

    /// Name and versions of the runtime.
    pub async fn version(&self) -> Result<v1::VersionResponse> {
        let mut service = self.inner.runtime.clone();
        let message = v1::VersionRequest { version: "v1".to_owned() };
        self.call("Version", "", self.plain(), message, |m| async move { service.version(m).await }).await
    }

    /// Conditions (`RuntimeReady`, `NetworkReady`…), handlers and features.
    pub async fn status(&self, verbose: bool) -> Result<v1::StatusResponse> {
        let mut service = self.inner.runtime.clone();
        let message = v1::StatusRequest { verbose };
        self.call("Status", "", self.plain(), message, |m| async move { service.status(m).await }).await
    }

    /// The cgroup driver. [`Kind::Unimplemented`](crate::Kind) before containerd 2.0.
    pub async fn runtime_config(&self) -> Result<v1::RuntimeConfigResponse> {
        let mut service = self.inner.runtime.clone();
        let message = v1::RuntimeConfigRequest {};
        self.call(
            "RuntimeConfig",
            "",
            self.plain(),
            message,
            |m| async move { service.runtime_config(m).await },
        )
        .await
    }

    /// Tells the runtime the node's pod address range.
    pub async fn update_runtime_config(&self, pod_cidr: &str) -> Result<()> {
        let mut service = self.inner.runtime.clone();
        let message = {
            let network_config = Some(v1::NetworkConfig { pod_cidr: pod_cidr.to_owned() });
            v1::UpdateRuntimeConfigRequest { runtime_config: Some(v1::RuntimeConfig { network_config }) }
        };
        self.call("UpdateRuntimeConfig", pod_cidr, self.plain(), message, |m| async move {
            service.update_runtime_config(m).await
        })
        .await?;
        Ok(())
    }

    // ---- sandboxes ----

    /// Makes a sandbox and starts it; gives its id. `runtime_handler` is empty for the default one. Deadline: twice the
    /// base.
    pub async fn run_pod_sandbox(
        &self,
        config: v1::PodSandboxConfig,
        runtime_handler: &str,
    ) -> Result<String> {
        let object = sandbox_name(&config);
        let mut service = self.inner.runtime.clone();
        let message =
            v1::RunPodSandboxRequest { config: Some(config), runtime_handler: runtime_handler.to_owned() };
        let answer = self
            .call(
                "RunPodSandbox",
                &object,
                Some(self.inner.deadlines.run_pod_sandbox()),
                message,
                |m| async move { service.run_pod_sandbox(m).await },
            )
            .await?;
        Ok(answer.pod_sandbox_id)
    }

    /// Stops what runs in the sandbox without grace and takes its network down. Idempotent: a sandbox that is stopped
    /// or gone is no error.
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        let mut service = self.inner.runtime.clone();
        let message = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let done = self
            .call("StopPodSandbox", id, self.plain(), message, |m| async move {
                service.stop_pod_sandbox(m).await
            })
            .await;
        gone_is_done(done.map(drop))
    }

    /// Removes the sandbox and all its containers, by force. Idempotent: a sandbox that is gone is no error.
    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        let mut service = self.inner.runtime.clone();
        let message = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let done = self
            .call("RemovePodSandbox", id, self.plain(), message, |m| async move {
                service.remove_pod_sandbox(m).await
            })
            .await;
        gone_is_done(done.map(drop))
    }

    /// State and addresses of one sandbox. In the answer `status` is always there.
    pub async fn pod_sandbox_status(&self, id: &str, verbose: bool) -> Result<v1::PodSandboxStatusResponse> {
        let mut service = self.inner.runtime.clone();
        let message = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose };
        let answer = self
            .call("PodSandboxStatus", id, self.plain(), message, |m| async move {
                service.pod_sandbox_status(m).await
            })
            .await?;
        if answer.status.is_none() {
            return Err(missing("PodSandboxStatus", id, "status"));
        }
        Ok(answer)
    }

    /// Sandboxes that match the filter; all without one.
    pub async fn list_pod_sandboxes(
        &self,
        filter: Option<v1::PodSandboxFilter>,
    ) -> Result<Vec<v1::PodSandbox>> {
        let mut service = self.inner.runtime.clone();
        if self.streams_lists() {
            let message = v1::StreamPodSandboxesRequest { filter };
            let send = |m| async move { service.stream_pod_sandboxes(m).await };
            return self
                .collect("StreamPodSandboxes", message, send, |p: v1::StreamPodSandboxesResponse| {
                    p.pod_sandboxes
                })
                .await;
        }
        let message = v1::ListPodSandboxRequest { filter };
        let answer = self
            .call("ListPodSandbox", "", self.plain(), message, |m| async move {
                service.list_pod_sandbox(m).await
            })
            .await?;
        Ok(answer.items)
    }

    /// Tells the runtime the pod's new resources after a resize. [`Kind::Unimplemented`](crate::Kind) up to containerd
    /// 2.2.
    pub async fn update_pod_sandbox_resources(
        &self,
        request: v1::UpdatePodSandboxResourcesRequest,
    ) -> Result<()> {
        let object = request.pod_sandbox_id.clone();
        let mut service = self.inner.runtime.clone();
        let message = request;
        self.call("UpdatePodSandboxResources", &object, self.plain(), message, |m| async move {
            service.update_pod_sandbox_resources(m).await
        })
        .await?;
        Ok(())
    }

    /// Prepares forwarding to ports of the sandbox; gives the URL at which the runtime serves it.
    pub async fn port_forward(&self, id: &str, ports: Vec<i32>) -> Result<String> {
        let mut service = self.inner.runtime.clone();
        let message = v1::PortForwardRequest { pod_sandbox_id: id.to_owned(), port: ports };
        let answer = self
            .call("PortForward", id, self.plain(), message, |m| async move { service.port_forward(m).await })
            .await?;
        Ok(answer.url)
    }

    // ---- containers ----

    /// Makes a container in a sandbox; gives its id. `sandbox_config` is the one the sandbox was made with.
    pub async fn create_container(
        &self,
        sandbox_id: &str,
        config: v1::ContainerConfig,
        sandbox_config: v1::PodSandboxConfig,
    ) -> Result<String> {
        let object = container_name(sandbox_id, &config);
        let mut service = self.inner.runtime.clone();
        let message = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let answer = self
            .call("CreateContainer", &object, self.plain(), message, |m| async move {
                service.create_container(m).await
            })
            .await?;
        Ok(answer.container_id)
    }

    /// Starts a created container.
    pub async fn start_container(&self, id: &str) -> Result<()> {
        let mut service = self.inner.runtime.clone();
        let message = v1::StartContainerRequest { container_id: id.to_owned() };
        self.call("StartContainer", id, self.plain(), message, |m| async move {
            service.start_container(m).await
        })
        .await?;
        Ok(())
    }

    /// Sends the stop signal, waits up to `grace_seconds`, then kills; 0 kills at once. Returns when the container has
    /// exited. Idempotent: a container that is gone or not running is no error. Deadline: the grace on top of the base.
    pub async fn stop_container(&self, id: &str, grace_seconds: i64) -> Result<()> {
        let mut service = self.inner.runtime.clone();
        let message = v1::StopContainerRequest { container_id: id.to_owned(), timeout: grace_seconds };
        let done = self
            .call(
                "StopContainer",
                id,
                Some(self.inner.deadlines.on_top(grace_seconds)),
                message,
                |m| async move { service.stop_container(m).await },
            )
            .await;
        gone_is_done(done.map(drop))
    }

    /// Removes the container, by force if it runs. Idempotent: a container that is gone is no error. A task that containerd
    /// has lost sight of, which would keep the container for ever, is ended by containerd's own API.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let removed = self.remove_container_once(id).await;
        let Some(error) = removed.as_ref().err().filter(|e| lost_task::is_reason_of(e)) else {
            return removed;
        };
        tracing::warn!(id, %error, "containerd has lost sight of the container's task: deleting it");
        if let Err(status) =
            lost_task::delete(self.inner.link.clone(), id, self.inner.deadlines.plain()).await
        {
            tracing::warn!(id, code = ?status.code(), message = status.message(), "cannot delete the task");
            return removed;
        }
        self.remove_container_once(id).await
    }

    async fn remove_container_once(&self, id: &str) -> Result<()> {
        let mut service = self.inner.runtime.clone();
        let message = v1::RemoveContainerRequest { container_id: id.to_owned() };
        let done = self
            .call("RemoveContainer", id, self.plain(), message, |m| async move {
                service.remove_container(m).await
            })
            .await;
        gone_is_done(done.map(drop))
    }

    /// State of one container. In the answer `status` is always there.
    pub async fn container_status(&self, id: &str, verbose: bool) -> Result<v1::ContainerStatusResponse> {
        let mut service = self.inner.runtime.clone();
        let message = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose };
        let answer = self
            .call("ContainerStatus", id, self.plain(), message, |m| async move {
                service.container_status(m).await
            })
            .await?;
        if answer.status.is_none() {
            return Err(missing("ContainerStatus", id, "status"));
        }
        Ok(answer)
    }

    /// Containers that match the filter; all without one.
    pub async fn list_containers(&self, filter: Option<v1::ContainerFilter>) -> Result<Vec<v1::Container>> {
        let mut service = self.inner.runtime.clone();
        if self.streams_lists() {
            let message = v1::StreamContainersRequest { filter };
            let send = |m| async move { service.stream_containers(m).await };
            return self
                .collect("StreamContainers", message, send, |p: v1::StreamContainersResponse| p.containers)
                .await;
        }
        let message = v1::ListContainersRequest { filter };
        let answer =
            self.call("ListContainers", "", self.plain(), message, |m| async move {
                service.list_containers(m).await
            })
            .await?;
        Ok(answer.containers)
    }

    /// Changes a container's cgroup limits in place.
    pub async fn update_container_resources(
        &self,
        request: v1::UpdateContainerResourcesRequest,
    ) -> Result<()> {
        let object = request.container_id.clone();
        let mut service = self.inner.runtime.clone();
        let message = request;
        self.call("UpdateContainerResources", &object, self.plain(), message, |m| async move {
            service.update_container_resources(m).await
        })
        .await?;
        Ok(())
    }

    /// Makes the runtime open the container's log file anew, after the old one was moved away. An error when the
    /// container does not run.
    pub async fn reopen_container_log(&self, id: &str) -> Result<()> {
        let mut service = self.inner.runtime.clone();
        let message = v1::ReopenContainerLogRequest { container_id: id.to_owned() };
        self.call("ReopenContainerLog", id, self.plain(), message, |m| async move {
            service.reopen_container_log(m).await
        })
        .await?;
        Ok(())
    }

    /// Writes a checkpoint archive of a running container to `location`. Deadline: the time-out on top of the base.
    pub async fn checkpoint_container(&self, id: &str, location: &str, timeout_seconds: i64) -> Result<()> {
        let mut service = self.inner.runtime.clone();
        let message = v1::CheckpointContainerRequest {
            container_id: id.to_owned(),
            location: location.to_owned(),
            timeout: timeout_seconds,
        };
        self.call(
            "CheckpointContainer",
            id,
            Some(self.inner.deadlines.on_top(timeout_seconds)),
            message,
            |m| async move { service.checkpoint_container(m).await },
        )
        .await?;
        Ok(())
    }

    /// Runs a command in the container and gives its exit code and output (16 MiB at most). After `timeout` the runtime
    /// kills it and gives [`Kind::Timeout`](crate::Kind); zero lets it run for ever, without a deadline here.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<v1::ExecSyncResponse> {
        let mut service = self.inner.runtime.clone();
        let message = {
            // Whole seconds on the wire: a fraction is rounded up, so that it does not become "for ever".
            let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
            let timeout = i64::try_from(seconds).unwrap_or(i64::MAX);
            v1::ExecSyncRequest { container_id: id.to_owned(), cmd: command, timeout }
        };
        self.call("ExecSync", id, self.inner.deadlines.exec_sync(timeout), message, |m| async move {
            service.exec_sync(m).await
        })
        .await
    }

    /// Prepares a command with streams; gives the URL at which the runtime serves them.
    pub async fn exec(&self, request: v1::ExecRequest) -> Result<String> {
        let object = request.container_id.clone();
        let mut service = self.inner.runtime.clone();
        let message = request;
        let answer = self
            .call("Exec", &object, self.plain(), message, |m| async move { service.exec(m).await })
            .await?;
        Ok(answer.url)
    }

    /// Prepares attaching to the container's streams; gives the URL at which the runtime serves them.
    pub async fn attach(&self, request: v1::AttachRequest) -> Result<String> {
        let object = request.container_id.clone();
        let mut service = self.inner.runtime.clone();
        let message = request;
        let answer = self
            .call("Attach", &object, self.plain(), message, |m| async move { service.attach(m).await })
            .await?;
        Ok(answer.url)
    }

    // ---- measurements ----

    /// What one container uses.
    pub async fn container_stats(&self, id: &str) -> Result<v1::ContainerStats> {
        let mut service = self.inner.runtime.clone();
        let message = v1::ContainerStatsRequest { container_id: id.to_owned() };
        let answer =
            self.call("ContainerStats", id, self.plain(), message, |m| async move {
                service.container_stats(m).await
            })
            .await?;
        answer.stats.ok_or_else(|| missing("ContainerStats", id, "stats"))
    }

    /// What the containers that match the filter use; all without one.
    pub async fn list_container_stats(
        &self,
        filter: Option<v1::ContainerStatsFilter>,
    ) -> Result<Vec<v1::ContainerStats>> {
        let mut service = self.inner.runtime.clone();
        if self.streams_lists() {
            let message = v1::StreamContainerStatsRequest { filter };
            let send = |m| async move { service.stream_container_stats(m).await };
            return self
                .collect("StreamContainerStats", message, send, |p: v1::StreamContainerStatsResponse| {
                    p.container_stats
                })
                .await;
        }
        let message = v1::ListContainerStatsRequest { filter };
        let answer = self
            .call("ListContainerStats", "", self.plain(), message, |m| async move {
                service.list_container_stats(m).await
            })
            .await?;
        Ok(answer.stats)
    }

    /// What one sandbox and its containers use.
    pub async fn pod_sandbox_stats(&self, id: &str) -> Result<v1::PodSandboxStats> {
        let mut service = self.inner.runtime.clone();
        let message = v1::PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() };
        let answer = self
            .call("PodSandboxStats", id, self.plain(), message, |m| async move {
                service.pod_sandbox_stats(m).await
            })
            .await?;
        answer.stats.ok_or_else(|| missing("PodSandboxStats", id, "stats"))
    }

    /// What the sandboxes that match the filter use; all without one.
    pub async fn list_pod_sandbox_stats(
        &self,
        filter: Option<v1::PodSandboxStatsFilter>,
    ) -> Result<Vec<v1::PodSandboxStats>> {
        let mut service = self.inner.runtime.clone();
        if self.streams_lists() {
            let message = v1::StreamPodSandboxStatsRequest { filter };
            let send = |m| async move { service.stream_pod_sandbox_stats(m).await };
            return self
                .collect("StreamPodSandboxStats", message, send, |p: v1::StreamPodSandboxStatsResponse| {
                    p.pod_sandbox_stats
                })
                .await;
        }
        let message = v1::ListPodSandboxStatsRequest { filter };
        let answer = self
            .call("ListPodSandboxStats", "", self.plain(), message, |m| async move {
                service.list_pod_sandbox_stats(m).await
            })
            .await?;
        Ok(answer.stats)
    }

    /// The metrics that [`Client::list_pod_sandbox_metrics`] gives.
    pub async fn list_metric_descriptors(&self) -> Result<Vec<v1::MetricDescriptor>> {
        let mut service = self.inner.runtime.clone();
        let message = v1::ListMetricDescriptorsRequest {};
        let answer = self
            .call("ListMetricDescriptors", "", self.plain(), message, |m| async move {
                service.list_metric_descriptors(m).await
            })
            .await?;
        Ok(answer.descriptors)
    }

    /// The runtime's own metrics of every sandbox.
    pub async fn list_pod_sandbox_metrics(&self) -> Result<Vec<v1::PodSandboxMetrics>> {
        let mut service = self.inner.runtime.clone();
        if self.streams_lists() {
            let message = v1::StreamPodSandboxMetricsRequest {};
            let send = |m| async move { service.stream_pod_sandbox_metrics(m).await };
            return self
                .collect(
                    "StreamPodSandboxMetrics",
                    message,
                    send,
                    |p: v1::StreamPodSandboxMetricsResponse| p.pod_sandbox_metrics,
                )
                .await;
        }
        let message = v1::ListPodSandboxMetricsRequest {};
        let answer = self
            .call("ListPodSandboxMetrics", "", self.plain(), message, |m| async move {
                service.list_pod_sandbox_metrics(m).await
            })
            .await?;
        Ok(answer.pod_metrics)
    }
}

/// `namespace/name` of the pod a sandbox is for: it has no id yet.
fn sandbox_name(config: &v1::PodSandboxConfig) -> String {
    config.metadata.as_ref().map(|m| format!("{}/{}", m.namespace, m.name)).unwrap_or_default()
}

/// `name in sandbox`: the container has no id yet.
fn container_name(sandbox_id: &str, config: &v1::ContainerConfig) -> String {
    let name = config.metadata.as_ref().map_or("", |m| m.name.as_str());
    format!("{name} in {sandbox_id}")
}
