//! The stock kubelet's families that this agent measures, with upstream's names, labels and bucket bounds.
//!
//! Names, types and label names are compared with recorded pages of the stock kubelet in the tests; bucket bounds are
//! those of its published metrics reference. Help texts are ours.

use super::{Counter, Family, Gauge, Histogram, ProbeMetrics, Process, Registry};
use std::ops::Deref;
use std::sync::Arc;

/// Upstream's bucket bounds, in seconds unless said otherwise.
pub mod buckets {
    /// The Prometheus default.
    pub const DEFAULT: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    /// Pod start: `kubelet_pod_start_*duration_seconds`.
    pub const POD_START: &[f64] = &[
        0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0,
        360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
    ];
    /// Phases of a pod's start: `stevedore_pod_start_phase_duration_seconds`.
    pub const PHASE: &[f64] =
        &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
    /// Calls to the runtime: 5 ms, then 14 steps of 2.5 times the one before.
    pub const RUNTIME_OPERATION: &[f64] = &[
        0.005,
        0.0125,
        0.03125,
        0.078125,
        0.1953125,
        0.48828125,
        1.220703125,
        3.0517578125,
        7.62939453125,
        19.073486328125,
        47.6837158203125,
        119.20928955078125,
        298.0232238769531,
        745.0580596923828,
    ];
    /// Containers of a pod, a count.
    pub const CONTAINERS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0];
    /// Image pulls.
    pub const IMAGE_PULL: &[f64] =
        &[1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 180.0, 300.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0];
    /// Resizes of pods, in milliseconds: from 10, 19 steps of twice the one before.
    pub const RESIZE: &[f64] = &[
        10.0,
        20.0,
        40.0,
        80.0,
        160.0,
        320.0,
        640.0,
        1280.0,
        2560.0,
        5120.0,
        10_240.0,
        20_480.0,
        40_960.0,
        81_920.0,
        163_840.0,
        327_680.0,
        655_360.0,
        1_310_720.0,
        2_621_440.0,
    ];
    /// Writing a pod's status to the API.
    pub const STATUS_SYNC: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0];
}

/// The value of `image_size_in_bytes` in `kubelet_image_pull_duration_seconds` for an image of `size` bytes.
pub fn image_size_bucket(size: u64) -> &'static str {
    const MB: u64 = 1024 * 1024;
    const GB: u64 = 1024 * MB;
    let steps = [
        (0, "N/A"),
        (10 * MB, "0-10MB"),
        (100 * MB, "10MB-100MB"),
        (500 * MB, "100MB-500MB"),
        (GB, "500MB-1GB"),
        (5 * GB, "1GB-5GB"),
        (10 * GB, "5GB-10GB"),
        (20 * GB, "10GB-20GB"),
        (30 * GB, "20GB-30GB"),
        (40 * GB, "30GB-40GB"),
        (60 * GB, "40GB-60GB"),
        (100 * GB, "60GB-100GB"),
    ];
    steps.iter().find(|(upto, _)| size <= *upto).map_or("GT100GB", |(_, label)| label)
}

/// What `kubernetes_build_info` says of the binary.
#[derive(Clone, Debug, Default)]
pub struct BuildInfo {
    /// `YYYY-MM-DDThh:mm:ssZ`
    pub build_date: String,
    /// The compiler, such as `rustc`.
    pub compiler: String,
    /// The commit built from.
    pub git_commit: String,
    /// `clean` or `dirty`.
    pub git_tree_state: String,
    /// The Kubernetes version, such as `v1.36.2`.
    pub git_version: String,
    /// The language's version.
    pub go_version: String,
    /// Kubernetes' major version.
    pub major: String,
    /// Kubernetes' minor version.
    pub minor: String,
    /// Such as `linux/amd64`.
    pub platform: String,
}

/// The handle every room holds. Cloning is cheap; fields are reached directly: `metrics.running_pods.set(3.0)`.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Families>);

impl Deref for Metrics {
    type Target = Families;
    fn deref(&self) -> &Families {
        &self.0
    }
}

impl Default for Metrics {
    /// Families without the `process_*` ones: what a test of a room wants.
    fn default() -> Self {
        Self(Arc::new(Families::new(&Registry::default())))
    }
}

impl Metrics {
    /// All families, and the `process_*` ones read from `proc` (normally `/proc`).
    pub fn new(proc: &std::path::Path) -> Self {
        let metrics = Self::default();
        Process::new(proc).register(metrics.registry());
        metrics
    }

    /// For families that are not here.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Says what binary this is.
    pub fn set_build_info(&self, b: &BuildInfo) {
        let labels = [
            &*b.build_date,
            &b.compiler,
            &b.git_commit,
            &b.git_tree_state,
            &b.git_version,
            &b.go_version,
            &b.major,
            &b.minor,
            &b.platform,
        ];
        self.build_info.with(labels).set(1.0);
    }

    /// Says which node this is.
    pub fn set_node_name(&self, node: &str) {
        self.node_name.with([node]).set(1.0);
    }

    /// Says what a feature gate stands at; `stage` is `ALPHA`, `BETA`, `DEPRECATED` or empty for a stable one.
    pub fn set_feature(&self, name: &str, stage: &str, enabled: bool) {
        self.feature_enabled.with([name, stage]).set(f64::from(u8::from(enabled)));
    }

    /// Counts one call to the runtime; `operation` is upstream's name of it, such as `run_podsandbox`.
    pub fn runtime_operation(&self, operation: &str, took: std::time::Duration, failed: bool) {
        self.runtime_operations.with([operation]).inc();
        self.runtime_operations_duration.with([operation]).observe_duration(took);
        if failed {
            self.runtime_operations_errors.with([operation]).inc();
        }
    }
}

/// Declares the families once: field, constructor, name, help and shape stay on one line.
macro_rules! families {
    ($($(#[$doc:meta])* $field:ident: $ty:ty = $make:ident($name:literal, $help:literal $(, $shape:expr)*);)*) => {
        /// The families, each a field. See the module for when one is shown.
        #[derive(Debug)]
        pub struct Families {
            registry: Registry,
            /// What is shown on a page of its own, `/metrics/probes`.
            pub probes: ProbeMetrics,
            $(#[doc = concat!("`", $name, "`: ", $help)] $(#[$doc])* pub $field: $ty,)*
        }
        impl Families {
            fn new(registry: &Registry) -> Self {
                Self {
                    registry: registry.clone(),
                    probes: ProbeMetrics::default(),
                    $($field: registry.$make($name, $help $(, $shape)*),)*
                }
            }
        }
    };
}

use buckets::{CONTAINERS, DEFAULT, IMAGE_PULL, PHASE, POD_START, RESIZE, RUNTIME_OPERATION, STATUS_SYNC};

families! {
    // world
    desired_pods: Family<Gauge, 1> = gauges("kubelet_desired_pods", "Pods that should run, by whether they are static.", ["static"]);
    active_pods: Family<Gauge, 1> = gauges("kubelet_active_pods", "Pods considered when admitting new ones, by whether they are static.", ["static"]);
    working_pods: Family<Gauge, 3> = gauges("kubelet_working_pods", "Pods with an actor, by whether they are still configured, their lifecycle, and whether they are static.", ["config", "lifecycle", "static"]);
    mirror_pods: Gauge = gauge("kubelet_mirror_pods", "Static pods that have a mirror in the API.");
    restarted_pods: Family<Counter, 1> = counters("kubelet_restarted_pods_total", "Pods that were deleted and made again under the same UID.", ["static"]);
    admission_rejections: Family<Counter, 1> = counters("kubelet_admission_rejections_total", "Pods refused by the node, by reason.", ["reason"]);
    requested_resizes: Family<Counter, 3> = counters("kubelet_container_requested_resizes_total", "Amounts of containers that an update of their pod asked to change: add, remove, increase or decrease a request or limit.", ["operation", "requirement", "resource"]);
    pending_resizes: Family<Gauge, 1> = gauges("kubelet_pod_pending_resizes", "Pods that ask for other resources than they have, by why they do not have them: deferred, infeasible.", ["reason"]);
    infeasible_resizes: Family<Counter, 1> = counters("kubelet_pod_infeasible_resizes_total", "Resizes that can never be made, by why.", ["reason_detail"]);
    deferred_accepted_resizes: Family<Counter, 1> = counters("kubelet_pod_deferred_accepted_resizes_total", "Resizes that were made after they had been put off, by what gave them another chance.", ["retry_trigger"]);
    containers_per_pod: Histogram = histogram("kubelet_containers_per_pod_count", "Containers of each pod that was accepted.", CONTAINERS);

    // pod actors
    pod_worker_duration: Family<Histogram, 1> = histograms("kubelet_pod_worker_duration_seconds", "One pass of a pod's actor, by what it did: create, update, sync or kill.", ["operation_type"], DEFAULT);
    pod_worker_start_duration: Histogram = histogram("kubelet_pod_worker_start_duration_seconds", "From seeing a pod to starting its actor.", DEFAULT);
    pod_start_duration: Histogram = histogram("kubelet_pod_start_duration_seconds", "From seeing a pod to its containers running.", POD_START);
    pod_start_sli_duration: Histogram = histogram("kubelet_pod_start_sli_duration_seconds", "From a pod's creation to its containers seen running, without image pulls and init containers.", POD_START);
    pod_start_total_duration: Histogram = histogram("kubelet_pod_start_total_duration_seconds", "From a pod's creation to its containers seen running, with everything.", POD_START);
    started_pods: Counter = counter("kubelet_started_pods_total", "Pod sandboxes that were to be started.");
    started_pods_errors: Counter = counter("kubelet_started_pods_errors_total", "Pod sandboxes that failed to start.");
    started_containers: Family<Counter, 1> = counters("kubelet_started_containers_total", "Containers that were to be started, by kind: container, init_container, ephemeral_container, podsandbox.", ["container_type"]);
    started_containers_errors: Family<Counter, 2> = counters("kubelet_started_containers_errors_total", "Containers that failed to start, by error and kind.", ["code", "container_type"]);
    terminated_containers: Family<Counter, 3> = counters("kubelet_terminated_containers_total", "Containers that ended, by kind, exit code and reason.", ["container_type", "exit_code", "reason"]);
    lifecycle_handler_http_fallbacks: Counter = counter("kubelet_lifecycle_handler_http_fallbacks_total", "Hooks that were to ask over HTTPS and got their answer over HTTP.");

    pod_start_phase: Family<Histogram, 1> = histograms("stevedore_pod_start_phase_duration_seconds", "Where the time of pods' starts goes, by phase; see docs/tracing.md.", ["phase"], PHASE);

    // trace
    trace_spans_exported: Counter = counter("stevedore_trace_spans_exported_total", "Spans that a collector took.");
    trace_spans_dropped: Family<Counter, 1> = counters("stevedore_trace_spans_dropped_total", "Spans that never reached a collector, by reason: queue_full, export_failed, refused.", ["reason"]);

    in_progress_resizes: Gauge = gauge("kubelet_pod_in_progress_resizes", "Pods whose new resources are being put into effect.");
    resize_duration: Family<Histogram, 1> = histograms("kubelet_pod_resize_duration_milliseconds", "How long putting a pod's new resources into effect took, in milliseconds, by success.", ["success"], RESIZE);

    // the runtime
    runtime_operations: Family<Counter, 1> = counters("kubelet_runtime_operations_total", "Calls to the runtime.", ["operation_type"]);
    runtime_operations_errors: Family<Counter, 1> = counters("kubelet_runtime_operations_errors_total", "Calls to the runtime that failed.", ["operation_type"]);
    runtime_operations_duration: Family<Histogram, 1> = histograms("kubelet_runtime_operations_duration_seconds", "How long calls to the runtime took.", ["operation_type"], RUNTIME_OPERATION);
    run_podsandbox_duration: Family<Histogram, 1> = histograms("kubelet_run_podsandbox_duration_seconds", "How long starting a sandbox took, by runtime handler.", ["runtime_handler"], DEFAULT);
    run_podsandbox_errors: Family<Counter, 1> = counters("kubelet_run_podsandbox_errors_total", "Sandboxes that failed to start, by runtime handler.", ["runtime_handler"]);

    // pleg
    running_pods: Gauge = gauge("kubelet_running_pods", "Pods with a running sandbox.");
    running_containers: Family<Gauge, 1> = gauges("kubelet_running_containers", "Containers by state: created, running, exited, unknown.", ["container_state"]);
    pleg_relist_duration: Histogram = histogram("kubelet_pleg_relist_duration_seconds", "How long a relist of everything took.", DEFAULT);
    pleg_relist_interval: Histogram = histogram("kubelet_pleg_relist_interval_seconds", "Time between relists of everything.", DEFAULT);
    pleg_pod_relist_duration: Histogram = histogram("kubelet_pleg_pod_relist_duration_seconds", "How long a relist of one pod took.", DEFAULT);
    pleg_last_seen: Gauge = gauge("kubelet_pleg_last_seen_seconds", "When the last relist ended, in seconds since the epoch.");
    pleg_discard_events: Counter = counter("kubelet_pleg_discard_events", "Events that were dropped because nobody took them.");
    evented_pleg_connection_errors: Counter = counter("kubelet_evented_pleg_connection_error_count", "Failures to open the runtime's event stream.");
    evented_pleg_connections: Counter = counter("kubelet_evented_pleg_connection_success_count", "Times the runtime's event stream was opened.");
    evented_pleg_latency: Histogram = histogram("kubelet_evented_pleg_connection_latency_seconds", "From an event at the runtime to its arrival.", DEFAULT);
    orphaned_runtime_pods: Counter = counter("kubelet_orphaned_runtime_pods_total", "Pods found at the runtime that nobody wants.");

    // cgroup
    cgroup_version: Gauge = gauge("kubelet_cgroup_version", "The node's cgroup version, 1 or 2.");
    cgroup_manager_duration: Family<Histogram, 1> = histograms("kubelet_cgroup_manager_duration_seconds", "How long work on cgroups took: create, update, destroy.", ["operation_type"], DEFAULT);

    // image
    image_pull_duration: Family<Histogram, 1> = histograms("kubelet_image_pull_duration_seconds", "How long pulls took, by size of the image (see image_size_bucket).", ["image_size_in_bytes"], IMAGE_PULL);
    ensure_image_requests: Family<Counter, 3> = counters("kubelet_image_manager_ensure_image_requests_total", "Images asked for, by whether they were here, the pull policy, and whether a pull was needed.", ["present_locally", "pull_policy", "pull_required"]);
    image_must_pull_checks: Family<Counter, 1> = counters("kubelet_imagemanager_image_mustpull_checks_total", "Questions whether a pod may use an image that is here, by result: credentialPolicyAllowed, credentialRecordFound, mustAuthenticate, error.", ["result"]);
    pull_intents_on_disk: Gauge = gauge("kubelet_imagemanager_ondisk_pullintents", "Records of pulls under way.");
    pulled_records_on_disk: Gauge = gauge("kubelet_imagemanager_ondisk_pulledrecords", "Records of pulled images.");
    image_volume_requested: Counter = counter("kubelet_image_volume_requested_total", "Image volumes that containers asked for.");
    image_volume_mounted: Counter = counter("kubelet_image_volume_mounted_succeed_total", "Image volumes that the runtime mounted.");
    image_volume_errors: Counter = counter("kubelet_image_volume_mounted_errors_total", "Image volumes of containers that the runtime could not make.");
    image_garbage_collected: Family<Counter, 1> = counters("kubelet_image_garbage_collected_total", "Images that were removed because nobody used them, by reason: age, space.", ["reason"]);
    credential_provider_errors: Family<Counter, 1> = counters("kubelet_credential_provider_plugin_errors_total", "Calls of exec credential providers that failed, by plugin.", ["plugin_name"]);
    credential_provider_duration: Family<Histogram, 1> = histograms("kubelet_credential_provider_plugin_duration", "How long exec credential providers took, in seconds, by plugin.", ["plugin_name"], DEFAULT);

    // evict
    evictions: Family<Counter, 1> = counters("kubelet_evictions", "Pods that were evicted, by the signal that was low or the limit that was passed.", ["eviction_signal"]);
    eviction_stats_age: Family<Histogram, 1> = histograms("kubelet_eviction_stats_age_seconds", "How old the measurements were by which a pod was chosen, by signal.", ["eviction_signal"], DEFAULT);

    // status
    pod_status_sync_duration: Histogram = histogram("kubelet_pod_status_sync_duration_seconds", "From a change of a pod's status to the API having it.", STATUS_SYNC);

    // server
    http_requests: Family<Counter, 4> = counters("kubelet_http_requests_total", "Requests to the agent's own API.", ["long_running", "method", "path", "server_type"]);
    http_inflight: Family<Gauge, 4> = gauges("kubelet_http_inflight_requests", "Requests being served.", ["long_running", "method", "path", "server_type"]);
    http_duration: Family<Histogram, 4> = histograms("kubelet_http_requests_duration_seconds", "How long requests to the agent's own API took.", ["long_running", "method", "path", "server_type"], DEFAULT);

    // who this is
    node_name: Family<Gauge, 1> = gauges("kubelet_node_name", "The node's name; always 1.", ["node"]);
    build_info: Family<Gauge, 9> = gauges("kubernetes_build_info", "What was built, from what; always 1.", ["build_date", "compiler", "git_commit", "git_tree_state", "git_version", "go_version", "major", "minor", "platform"]);
    feature_enabled: Family<Gauge, 2> = gauges("kubernetes_feature_enabled", "What each feature gate stands at.", ["name", "stage"]);
}
