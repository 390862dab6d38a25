//! What the runtime was seen to run for one pod: the agent's own compact form of sandbox and container statuses.
//!
//! Made only by `pleg`; read by pod actors, `status` and the server. Lists are newest first.

use crate::api::PodUid;
use cri::v1;
use std::net::IpAddr;
use std::sync::Arc;

/// Labels and annotations by which sandboxes and containers are found again; upstream's names.
pub mod labels {
    /// Pod name.
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    /// Pod namespace.
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    /// Pod UID.
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    /// Container name.
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    /// Hash of the container's spec.
    pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
    /// How many times the container had been restarted when this instance was made.
    pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    /// Path of the termination message inside the container.
    pub const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    /// Where else to look for one.
    pub const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    /// The pod's `terminationGracePeriodSeconds`.
    pub const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
}

/// One pod as last seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Grows with every look at this pod; a larger number was seen later.
    pub seq: u64,
    /// Newest first.
    pub sandboxes: Vec<Sandbox>,
    /// Every instance of every container, newest first.
    pub containers: Vec<Instance>,
}

/// One sandbox.
#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    /// The runtime's id.
    pub id: String,
    /// `metadata.attempt`
    pub attempt: u32,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// `SANDBOX_READY`
    pub ready: bool,
    /// The pod's addresses, primary first; empty on the host's network or when the sandbox is gone.
    pub ips: Vec<IpAddr>,
}

/// State of a container instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Created, never started.
    Created,
    /// Running.
    Running,
    /// Exited.
    Exited,
    /// The runtime cannot tell.
    Unknown,
}

/// One instance of a container.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// The runtime's id.
    pub id: String,
    /// The sandbox it runs in.
    pub sandbox_id: String,
    /// The container's name in the pod's spec.
    pub name: String,
    /// From the annotation; `metadata.attempt` where there is none.
    pub restart_count: u32,
    /// What it is doing.
    pub state: State,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Nanoseconds since the epoch; 0 if never.
    pub started_at: i64,
    /// Nanoseconds since the epoch; 0 if still running.
    pub finished_at: i64,
    /// Meaningful once exited.
    pub exit_code: i32,
    /// The runtime's: `Completed`, `Error`, `OOMKilled`, `StartError`…
    pub reason: String,
    /// The runtime's message, and behind it the termination message.
    pub message: String,
    /// Name of the image as the runtime tells it.
    pub image: String,
    /// The image's digest or id as the runtime tells it.
    pub image_ref: String,
    /// The annotation `io.kubernetes.container.hash`.
    pub hash: String,
    /// The annotation `io.kubernetes.pod.terminationGracePeriod`, seconds.
    pub grace: Option<i64>,
    /// Credentials of the first process: uid, gid, supplementary groups.
    pub user: Option<(i64, i64, Vec<i64>)>,
    /// Path of the log file on the host.
    pub log_path: String,
    /// The signal that asks it to end, in the API's words; `None` where the runtime does not tell.
    pub stop_signal: Option<String>,
    /// What it has of CPU and memory; `None` where the runtime does not tell.
    pub given: Option<Given>,
}

/// What a container has of CPU and memory, in the kernel's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// `cpu.shares`, at least 2.
    pub cpu_shares: i64,
    /// Microseconds a period; `None` for no limit.
    pub cpu_quota_us: Option<i64>,
    /// Microseconds.
    pub cpu_period_us: i64,
    /// Bytes; `None` for no limit.
    pub memory_limit: Option<i64>,
}

impl Given {
    /// From CRI's message, in which zero is no value.
    pub fn of(linux: &v1::LinuxContainerResources) -> Self {
        Self {
            cpu_shares: linux.cpu_shares.max(2),
            cpu_quota_us: Some(linux.cpu_quota).filter(|q| *q > 0),
            cpu_period_us: Some(linux.cpu_period).filter(|p| *p > 0).unwrap_or(100_000),
            memory_limit: Some(linux.memory_limit_in_bytes).filter(|m| *m > 0 && *m < 1 << 62),
        }
    }
}

impl Observed {
    /// The newest sandbox.
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first()
    }

    /// Instances of the container `name`, newest first.
    pub fn instances<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Instance> {
        self.containers.iter().filter(move |c| c.name == name)
    }

    /// The newest instance of the container `name`.
    pub fn latest<'a>(&'a self, name: &'a str) -> Option<&'a Instance> {
        self.instances(name).next()
    }

    /// Something of this pod runs or could.
    pub fn is_live(&self) -> bool {
        self.sandboxes.iter().any(|s| s.ready) || self.containers.iter().any(Instance::is_live)
    }

    /// Only what the lists told at the start, because the statuses did not come: see [`super::look::roughly`].
    pub fn is_rough(&self) -> bool {
        self.seq == 0 && !self.is_empty()
    }

    /// When the pod began (nanoseconds since the epoch), as far as the runtime still knows: its oldest sandbox's birth.
    pub fn began(&self) -> Option<i64> {
        self.sandboxes.iter().map(|s| s.created_at).min()
    }

    /// Nothing of this pod exists in the runtime.
    pub fn is_empty(&self) -> bool {
        self.sandboxes.is_empty() && self.containers.is_empty()
    }

    /// Puts lists into their order: newest first, by what the agent counted. The clock decides only between equals: it may
    /// have been set back since.
    pub(crate) fn sort(&mut self) {
        self.sandboxes.sort_by_key(|s| std::cmp::Reverse((s.attempt, s.created_at)));
        self.containers.sort_by_key(|c| std::cmp::Reverse((c.restart_count, c.created_at)));
    }
}

impl Instance {
    /// It ended, and the kernel killed one of its processes for want of memory.
    pub fn oom_killed(&self) -> bool {
        self.state == State::Exited && self.reason == "OOMKilled"
    }

    /// Running, or in a state in which a process may exist.
    pub fn is_live(&self) -> bool {
        matches!(self.state, State::Running | State::Unknown)
    }

    /// From the list alone; see [`super::look::roughly`].
    pub(super) fn from_list(c: &v1::Container) -> Self {
        let status = v1::ContainerStatus {
            id: c.id.clone(),
            metadata: c.metadata.clone(),
            image: c.image.clone(),
            image_ref: c.image_ref.clone(),
            created_at: c.created_at,
            annotations: c.annotations.clone(),
            state: c.state,
            ..Default::default()
        };
        let mut seen = Self::from_status(&c.pod_sandbox_id, &status);
        if seen.state == State::Exited {
            seen.state = State::Unknown;
        }
        seen
    }

    /// An instance for tests of other modules.
    #[cfg(test)]
    pub fn from_status_for_tests(sandbox_id: &str, s: &v1::ContainerStatus) -> Self {
        Self::from_status(sandbox_id, s)
    }

    /// From a container's status as the runtime gave it.
    pub(super) fn from_status(sandbox_id: &str, s: &v1::ContainerStatus) -> Self {
        let meta = s.metadata.as_ref();
        let annotation = |key: &str| s.annotations.get(key);
        Self {
            id: s.id.clone(),
            sandbox_id: sandbox_id.to_owned(),
            name: meta.map(|m| m.name.clone()).unwrap_or_default(),
            restart_count: annotation(labels::RESTART_COUNT)
                .and_then(|t| t.parse().ok())
                .unwrap_or_else(|| meta.map(|m| m.attempt).unwrap_or_default()),
            state: state(s.state()),
            created_at: s.created_at,
            started_at: s.started_at,
            finished_at: s.finished_at,
            exit_code: s.exit_code,
            reason: s.reason.clone(),
            message: s.message.clone(),
            image: s.image.as_ref().map(|i| i.image.clone()).unwrap_or_default(),
            image_ref: if s.image_id.is_empty() { s.image_ref.clone() } else { s.image_id.clone() },
            hash: annotation(labels::CONTAINER_HASH).cloned().unwrap_or_default(),
            grace: annotation(labels::GRACE_PERIOD).and_then(|t| t.parse().ok()),
            user: s
                .user
                .as_ref()
                .and_then(|u| u.linux.as_ref())
                .map(|l| (l.uid, l.gid, l.supplemental_groups.clone())),
            log_path: s.log_path.clone(),
            stop_signal: stop_signal(s.stop_signal()),
            given: s.resources.as_ref().and_then(|r| r.linux.as_ref()).map(Given::of),
        }
    }
}

/// CRI writes real-time signals as SIGRTMINPLUS1, the API as SIGRTMIN+1.
fn stop_signal(s: v1::Signal) -> Option<String> {
    let named = s != v1::Signal::RuntimeDefault;
    named.then(|| s.as_str_name().replace("PLUS", "+").replace("MINUS", "-"))
}

pub(super) fn state(s: v1::ContainerState) -> State {
    match s {
        v1::ContainerState::ContainerCreated => State::Created,
        v1::ContainerState::ContainerRunning => State::Running,
        v1::ContainerState::ContainerExited => State::Exited,
        v1::ContainerState::ContainerUnknown => State::Unknown,
    }
}

impl Sandbox {
    /// From a sandbox's status as the runtime gave it. Addresses that do not parse are left out.
    pub(super) fn from_status(s: &v1::PodSandboxStatus) -> Self {
        Self {
            id: s.id.clone(),
            attempt: s.metadata.as_ref().map(|m| m.attempt).unwrap_or_default(),
            created_at: s.created_at,
            ready: s.state() == v1::PodSandboxState::SandboxReady,
            ips: sandbox_ips(s),
        }
    }
}

/// The sandbox's addresses, primary first.
pub fn sandbox_ips(s: &v1::PodSandboxStatus) -> Vec<IpAddr> {
    let texts =
        s.network.iter().flat_map(|n| std::iter::once(&n.ip).chain(n.additional_ips.iter().map(|i| &i.ip)));
    texts.filter_map(|text| text.parse().ok()).collect()
}

/// Everything the runtime had when it was asked for all.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// One entry per pod that has a sandbox or a container.
    pub pods: std::collections::HashMap<PodUid, (crate::api::PodRef, Arc<Observed>)>,
}
