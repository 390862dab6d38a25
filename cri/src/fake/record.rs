//! The recorder: every call the fake got, in order, with its request.
//!
//! [`crate::fake::FakeRuntime::calls`] hands it out. It also knows by which names a request's object goes, which is what
//! faults are aimed by.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;
use tonic::Code;

use super::world::World;
use crate::v1;

/// One call to the fake.
#[derive(Clone)]
pub struct Call {
    /// Counts all calls, from 0.
    pub seq: u64,
    /// When it came in.
    pub at: Instant,
    /// Its name in CRI.
    pub method: &'static str,
    /// All names of what it is about: ids, container name, pod name and `namespace/name`, image reference.
    pub names: Vec<String>,
    /// When it was answered and with what code; none while it runs, or when the caller gave up.
    pub answered: Option<(Instant, Code)>,
    request: Arc<dyn Any + Send + Sync>,
    shown: Arc<dyn fmt::Debug + Send + Sync>,
}

impl Call {
    /// The request, if it is of that kind.
    #[must_use]
    pub fn request<M: 'static>(&self) -> Option<&M> {
        self.request.downcast_ref()
    }

    /// Whether the call only asks: statuses, lists, statistics, versions.
    #[must_use]
    pub fn is_read(&self) -> bool {
        !CHANGES.contains(&self.method)
    }

    /// Whether it is about the object of that name.
    #[must_use]
    pub fn is_about(&self, name: &str) -> bool {
        self.names.iter().any(|n| n == name)
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} {} {:?}", self.seq, self.method, self.shown)
    }
}

/// All calls so far.
#[derive(Debug, Default)]
pub(super) struct Records {
    calls: Vec<Call>,
    count: u64,
}

impl Records {
    pub(super) fn begin<M: fmt::Debug + Clone + Send + Sync + 'static>(
        &mut self,
        method: &'static str,
        names: Vec<String>,
        request: M,
    ) -> u64 {
        let seq = self.count;
        self.count += 1;
        let request = Arc::new(request);
        let call = Call {
            seq,
            at: Instant::now(),
            method,
            names,
            answered: None,
            request: request.clone(),
            shown: request,
        };
        self.calls.push(call);
        seq
    }

    pub(super) fn end(&mut self, seq: u64, code: Code) {
        if let Some(call) = self.calls.iter_mut().rev().find(|c| c.seq == seq) {
            call.answered = Some((Instant::now(), code));
        }
    }

    pub(super) fn all(&self) -> &[Call] {
        &self.calls
    }

    pub(super) fn clear(&mut self) {
        self.calls.clear();
    }
}

const CHANGES: &[&str] = &[
    "RunPodSandbox",
    "StopPodSandbox",
    "RemovePodSandbox",
    "UpdatePodSandboxResources",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "UpdateContainerResources",
    "ReopenContainerLog",
    "CheckpointContainer",
    "ExecSync",
    "Exec",
    "Attach",
    "PortForward",
    "PullImage",
    "RemoveImage",
    "UpdateRuntimeConfig",
];

pub(super) const IMAGE_CALLS: &[&str] =
    &["ListImages", "StreamImages", "ImageStatus", "PullImage", "RemoveImage", "ImageFsInfo"];

/// A request: whose call it is, and by which names its object goes.
pub(super) trait Named: fmt::Debug {
    const CALL: &'static str;
    fn names(&self, world: &World) -> Vec<String>;
}

macro_rules! named {
    ($($request:ident $call:literal $names:expr;)*) => {$(
        impl Named for v1::$request {
            const CALL: &'static str = $call;
            fn names(&self, world: &World) -> Vec<String> {
                let names: fn(&Self, &World) -> Vec<String> = $names;
                names(self, world)
            }
        }
    )*};
}

fn of_pod(metadata: Option<&v1::PodSandboxMetadata>) -> Vec<String> {
    metadata.map_or_else(Vec::new, |m| vec![m.name.clone(), format!("{}/{}", m.namespace, m.name)])
}

pub(super) fn of_sandbox(id: &str, world: &World) -> Vec<String> {
    let pod = world.sandboxes.get(id).and_then(|s| s.config.metadata.as_ref());
    [id.to_owned()].into_iter().chain(of_pod(pod)).collect()
}

pub(super) fn of_container(id: &str, world: &World) -> Vec<String> {
    let mut names = vec![id.to_owned()];
    if let Some(container) = world.containers.get(id) {
        names.extend(container.config.metadata.iter().map(|m| m.name.clone()));
        names.extend(of_sandbox(&container.sandbox_id, world));
    }
    names
}

fn of_image(image: Option<&v1::ImageSpec>) -> Vec<String> {
    image.iter().map(|i| i.image.clone()).collect()
}

named! {
    VersionRequest "Version" |_, _| vec![];
    StatusRequest "Status" |_, _| vec![];
    RuntimeConfigRequest "RuntimeConfig" |_, _| vec![];
    UpdateRuntimeConfigRequest "UpdateRuntimeConfig" |_, _| vec![];
    RunPodSandboxRequest "RunPodSandbox" |m, _| of_pod(m.config.as_ref().and_then(|c| c.metadata.as_ref()));
    StopPodSandboxRequest "StopPodSandbox" |m, w| of_sandbox(&m.pod_sandbox_id, w);
    RemovePodSandboxRequest "RemovePodSandbox" |m, w| of_sandbox(&m.pod_sandbox_id, w);
    PodSandboxStatusRequest "PodSandboxStatus" |m, w| of_sandbox(&m.pod_sandbox_id, w);
    ListPodSandboxRequest "ListPodSandbox" |_, _| vec![];
    StreamPodSandboxesRequest "StreamPodSandboxes" |_, _| vec![];
    UpdatePodSandboxResourcesRequest "UpdatePodSandboxResources" |m, w| of_sandbox(&m.pod_sandbox_id, w);
    PortForwardRequest "PortForward" |m, w| of_sandbox(&m.pod_sandbox_id, w);
    CreateContainerRequest "CreateContainer" |m, w| {
        let name = m.config.as_ref().and_then(|c| c.metadata.as_ref()).map(|c| c.name.clone());
        name.into_iter().chain(of_sandbox(&m.pod_sandbox_id, w)).collect()
    };
    StartContainerRequest "StartContainer" |m, w| of_container(&m.container_id, w);
    StopContainerRequest "StopContainer" |m, w| of_container(&m.container_id, w);
    RemoveContainerRequest "RemoveContainer" |m, w| of_container(&m.container_id, w);
    ContainerStatusRequest "ContainerStatus" |m, w| of_container(&m.container_id, w);
    ListContainersRequest "ListContainers" |_, _| vec![];
    StreamContainersRequest "StreamContainers" |_, _| vec![];
    UpdateContainerResourcesRequest "UpdateContainerResources" |m, w| of_container(&m.container_id, w);
    ReopenContainerLogRequest "ReopenContainerLog" |m, w| of_container(&m.container_id, w);
    CheckpointContainerRequest "CheckpointContainer" |m, w| of_container(&m.container_id, w);
    ExecSyncRequest "ExecSync" |m, w| of_container(&m.container_id, w);
    ExecRequest "Exec" |m, w| of_container(&m.container_id, w);
    AttachRequest "Attach" |m, w| of_container(&m.container_id, w);
    GetEventsRequest "GetContainerEvents" |_, _| vec![];
    ContainerStatsRequest "ContainerStats" |m, w| of_container(&m.container_id, w);
    ListContainerStatsRequest "ListContainerStats" |_, _| vec![];
    StreamContainerStatsRequest "StreamContainerStats" |_, _| vec![];
    PodSandboxStatsRequest "PodSandboxStats" |m, w| of_sandbox(&m.pod_sandbox_id, w);
    ListPodSandboxStatsRequest "ListPodSandboxStats" |_, _| vec![];
    StreamPodSandboxStatsRequest "StreamPodSandboxStats" |_, _| vec![];
    ListMetricDescriptorsRequest "ListMetricDescriptors" |_, _| vec![];
    ListPodSandboxMetricsRequest "ListPodSandboxMetrics" |_, _| vec![];
    StreamPodSandboxMetricsRequest "StreamPodSandboxMetrics" |_, _| vec![];
    ImageStatusRequest "ImageStatus" |m, _| of_image(m.image.as_ref());
    ListImagesRequest "ListImages" |_, _| vec![];
    StreamImagesRequest "StreamImages" |_, _| vec![];
    PullImageRequest "PullImage" |m, _| of_image(m.image.as_ref());
    RemoveImageRequest "RemoveImage" |m, _| of_image(m.image.as_ref());
    ImageFsInfoRequest "ImageFsInfo" |_, _| vec![];
}
