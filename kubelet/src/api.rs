//! The vocabulary every room shares: Kubernetes' own types under short names, pod identity, and the few derived
//! facts (QoS class, phases) that several rooms must agree on. No I/O, no policy of a single room.

pub use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec, PodStatus, Volume};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A pod's UID as the source gave it. For static pods it is derived from content and node name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

impl PodUid {
    /// Wraps a UID. The text is not interpreted.
    pub fn new(uid: &str) -> Self {
        Self(uid.into())
    }
    /// The UID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a pod is: what names its sandbox, directories, cgroups and log lines.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodRef {
    /// `metadata.uid`
    pub uid: PodUid,
    /// `metadata.namespace`
    pub namespace: Arc<str>,
    /// `metadata.name`, for static pods with the node's name behind it
    pub name: Arc<str>,
}

impl PodRef {
    /// The identity of `pod`; absent fields become empty text.
    pub fn of(pod: &Pod) -> Self {
        let m = &pod.metadata;
        Self {
            uid: PodUid::new(m.uid.as_deref().unwrap_or_default()),
            namespace: m.namespace.as_deref().unwrap_or_default().into(),
            name: m.name.as_deref().unwrap_or_default().into(),
        }
    }
}

/// `name_namespace(uid)`, the form upstream uses in events and logs.
impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}({})", self.name, self.namespace, self.uid)
    }
}

/// Where a pod came from: the value of the annotation `kubernetes.io/config.source`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// The manifest directory (`staticPodPath`).
    File,
    /// The manifest URL (`staticPodURL`).
    Http,
    /// The API server.
    Api,
}

impl Origin {
    /// The annotation's text.
    pub fn as_str(self) -> &'static str {
        match self {
            Origin::File => "file",
            Origin::Http => "http",
            Origin::Api => "api",
        }
    }
}

/// `status.qosClass`: decides the pod's cgroup, its OOM score and the order of eviction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Qos {
    /// Every container has CPU and memory limits equal to its requests.
    Guaranteed,
    /// Some request or limit, but not all of the above.
    Burstable,
    /// No CPU or memory request or limit at all.
    BestEffort,
}

impl Qos {
    /// The API's text.
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

/// No grace is longer: clocks and calls cannot count what manifests may say.
const LONGEST_GRACE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What a `terminationGracePeriodSeconds` comes to: from nothing to ten years.
pub fn grace(seconds: i64) -> Duration {
    Duration::from_secs(seconds.try_into().unwrap_or(0)).min(LONGEST_GRACE)
}

/// The pod's spec; a pod without one reads as the empty spec.
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&EMPTY)
}

/// `kubernetes.io/config.source`: which source a pod came from.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// Marks the API's copy of a static pod.
const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";
/// Pods of this priority and above are critical: `system-cluster-critical` and `system-node-critical`.
const CRITICAL: i32 = 2_000_000_000;

/// The node or the cluster needs the pod: static pods (nobody would make them anew), mirror pods, and those of a critical
/// priority. They are admitted under pressure and never evicted; upstream's rule.
pub fn is_critical(pod: &Pod) -> bool {
    let annotation = |key: &str| pod.metadata.annotations.as_ref().and_then(|a| a.get(key));
    annotation(CONFIG_SOURCE).is_some_and(|source| source != Origin::Api.as_str())
        || annotation(CONFIG_MIRROR).is_some()
        || spec(pod).priority.is_some_and(|p| p >= CRITICAL)
}

/// An ephemeral container as the container it also is.
pub fn as_container(e: &EphemeralContainer) -> Container {
    let e = e.clone();
    Container {
        args: e.args,
        command: e.command,
        env: e.env,
        env_from: e.env_from,
        image: e.image,
        image_pull_policy: e.image_pull_policy,
        lifecycle: e.lifecycle,
        liveness_probe: e.liveness_probe,
        name: e.name,
        ports: e.ports,
        readiness_probe: e.readiness_probe,
        resize_policy: e.resize_policy,
        resources: e.resources,
        restart_policy: e.restart_policy,
        restart_policy_rules: e.restart_policy_rules,
        security_context: e.security_context,
        startup_probe: e.startup_probe,
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path,
        termination_message_policy: e.termination_message_policy,
        tty: e.tty,
        volume_devices: e.volume_devices,
        volume_mounts: e.volume_mounts,
        working_dir: e.working_dir,
    }
}
