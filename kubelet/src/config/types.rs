//! KubeletConfiguration, `kubelet.config.k8s.io/v1beta1`, as of Kubernetes 1.36: every field with its default.
//!
//! Field names, types and defaults are upstream's (k8s.io/kubelet `config/v1beta1`, k8s.io/component-base for logging
//! and tracing). Every room reads its settings from here after `config::load` has checked them; nobody changes them
//! except at start (the TLS files, once a certificate was made). Serialising gives the object that `/configz` shows.
//! Defaults that depend on another field are in `defaults`.

use super::duration::GoDuration;
use super::quantity_text::QuantityText;
use super::schema::objects;
use std::collections::BTreeMap;

/// The only accepted `apiVersion`.
pub const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
/// The only accepted `kind`.
pub const KIND: &str = "KubeletConfiguration";

objects! {
    /// The node agent's configuration file.
    pub struct KubeletConfiguration {
        /// Version of the format.
        pointer api_version: String = API_VERSION.into() => "apiVersion",
        /// Kind of the object.
        pointer kind: String = KIND.into() => "kind",
        /// Serve the HTTPS API.
        pointer enable_server: bool = true => "enableServer",
        /// Directory of pod manifests, or one manifest; empty: none.
        value static_pod_path: String = String::new() => "staticPodPath",
        /// Root of the pods' log directories; absolute and normalised.
        value pod_logs_dir: String = "/var/log/pods".into() => "podLogsDir",
        /// Longest time between two syncs of a pod.
        value sync_frequency: GoDuration = GoDuration::from_mins(1) => "syncFrequency",
        /// Time between two full readings of the manifest directory.
        value file_check_frequency: GoDuration = GoDuration::from_secs(20) => "fileCheckFrequency",
        /// Time between two readings of the manifest URL.
        value http_check_frequency: GoDuration = GoDuration::from_secs(20) => "httpCheckFrequency",
        /// URL of pod manifests; empty: none.
        value static_pod_url: String = String::new() => "staticPodURL",
        /// Headers sent to the manifest URL.
        value static_pod_url_header: BTreeMap<String, Vec<String>> = BTreeMap::new() => "staticPodURLHeader",
        /// IP address of the HTTPS API and the read-only port.
        value address: String = "0.0.0.0".into() => "address",
        /// Port of the HTTPS API.
        value port: i32 = 10250 => "port",
        /// Port of the HTTP API without authentication; 0: off.
        value read_only_port: i32 = 0 => "readOnlyPort",
        /// Serving certificate; empty: a self-signed one is made.
        value tls_cert_file: String = String::new() => "tlsCertFile",
        /// Key of the serving certificate.
        value tls_private_key_file: String = String::new() => "tlsPrivateKeyFile",
        /// Cipher suites of the HTTPS API; empty: the TLS library's.
        value tls_cipher_suites: Vec<String> = Vec::new() => "tlsCipherSuites",
        /// Key exchange groups of the HTTPS API by TLS number; empty: the TLS library's.
        value tls_curve_preferences: Vec<i32> = Vec::new() => "tlsCurvePreferences",
        /// Lowest TLS version: VersionTLS10 to VersionTLS13; empty: VersionTLS12.
        value tls_min_version: String = String::new() => "tlsMinVersion",
        /// Renew the client certificate by CSR.
        value rotate_certificates: bool = false => "rotateCertificates",
        /// Obtain and renew the serving certificate by CSR.
        value server_tls_bootstrap: bool = false => "serverTLSBootstrap",
        /// Who is asking.
        pointer authentication: Authentication = Authentication::default() => "authentication",
        /// What they may do.
        pointer authorization: Authorization = Authorization::default() => "authorization",
        /// Image pulls started per second; 0: no limit.
        pointer registry_pull_qps: i32 = 5 => "registryPullQPS",
        /// Image pulls above that rate in a burst.
        value registry_burst: i32 = 10 => "registryBurst",
        /// When a pod must show that it may use an image that is already there.
        value image_pull_credentials_verification_policy: String = String::new()
            => "imagePullCredentialsVerificationPolicy",
        /// Images exempt from that, for NeverVerifyAllowlistedImages.
        value preloaded_images_verification_allowlist: Vec<String> = Vec::new()
            => "preloadedImagesVerificationAllowlist",
        /// Events written per second.
        pointer event_record_qps: i32 = 50 => "eventRecordQPS",
        /// Events above that rate in a burst.
        value event_burst: i32 = 100 => "eventBurst",
        /// Serve logs, exec and the like on the HTTPS API.
        pointer enable_debugging_handlers: bool = true => "enableDebuggingHandlers",
        /// Profile lock contention.
        value enable_contention_profiling: bool = false => "enableContentionProfiling",
        /// Port of /healthz; 0: off.
        pointer healthz_port: i32 = 10248 => "healthzPort",
        /// IP address of /healthz.
        value healthz_bind_address: String = "127.0.0.1".into() => "healthzBindAddress",
        /// The agent's own oom_score_adj, -1000 to 1000.
        pointer oom_score_adj: i32 = -999 => "oomScoreAdj",
        /// DNS domain of the cluster, searched by every container.
        value cluster_domain: String = String::new() => "clusterDomain",
        /// DNS servers of the cluster.
        value cluster_dns: Vec<String> = Vec::new() => "clusterDNS",
        /// Longest silence on a streaming connection.
        value streaming_connection_idle_timeout: GoDuration = GoDuration::from_mins(240)
            => "streamingConnectionIdleTimeout",
        /// How often the node's status is computed.
        value node_status_update_frequency: GoDuration = GoDuration::from_secs(10) => "nodeStatusUpdateFrequency",
        /// How often an unchanged status is written.
        value node_status_report_frequency: GoDuration = GoDuration::from_mins(5) => "nodeStatusReportFrequency",
        /// Duration of the node's lease in seconds.
        value node_lease_duration_seconds: i32 = 40 => "nodeLeaseDurationSeconds",
        /// Age below which an unused image is kept.
        value image_minimum_gc_age: GoDuration = GoDuration::from_mins(2) => "imageMinimumGCAge",
        /// Age above which an unused image is removed; 0s: never for age.
        value image_maximum_gc_age: GoDuration = GoDuration::ZERO => "imageMaximumGCAge",
        /// Disk usage in percent at which images are collected.
        pointer image_gc_high_threshold_percent: i32 = 85 => "imageGCHighThresholdPercent",
        /// Disk usage in percent down to which images are collected.
        pointer image_gc_low_threshold_percent: i32 = 80 => "imageGCLowThresholdPercent",
        /// Time between two measurements of the volumes; negative: none.
        value volume_stats_agg_period: GoDuration = GoDuration::from_mins(1) => "volumeStatsAggPeriod",
        /// Cgroup to move the agent into.
        value kubelet_cgroups: String = String::new() => "kubeletCgroups",
        /// Cgroup to move the system's processes into.
        value system_cgroups: String = String::new() => "systemCgroups",
        /// Cgroup above the pods' cgroups; empty: the root.
        value cgroup_root: String = String::new() => "cgroupRoot",
        /// Make cgroups for the QoS classes and the pods.
        pointer cgroups_per_qos: bool = true => "cgroupsPerQOS",
        /// How cgroups are made: cgroupfs or systemd. What the runtime reports wins.
        value cgroup_driver: String = "cgroupfs".into() => "cgroupDriver",
        /// CPU manager: none or static.
        value cpu_manager_policy: String = "none".into() => "cpuManagerPolicy",
        /// On OOM kill one process, not the container (cgroup v2).
        pointer single_process_oom_kill: Option<bool> = None => "singleProcessOOMKill",
        /// Options of the CPU manager's policy.
        value cpu_manager_policy_options: BTreeMap<String, String> = BTreeMap::new() => "cpuManagerPolicyOptions",
        /// Time between two reconciliations of CPU assignments.
        value cpu_manager_reconcile_period: GoDuration = GoDuration::from_secs(10) => "cpuManagerReconcilePeriod",
        /// Memory manager: None or Static.
        value memory_manager_policy: String = "None".into() => "memoryManagerPolicy",
        /// Topology manager: none, best-effort, restricted or single-numa-node.
        value topology_manager_policy: String = "none".into() => "topologyManagerPolicy",
        /// What the topology manager aligns: container or pod.
        value topology_manager_scope: String = "container".into() => "topologyManagerScope",
        /// Options of the topology manager's policy.
        value topology_manager_policy_options: BTreeMap<String, String> = BTreeMap::new()
            => "topologyManagerPolicyOptions",
        /// Percentage of requests kept from lower QoS classes, by resource.
        value qos_reserved: BTreeMap<String, String> = BTreeMap::new() => "qosReserved",
        /// Deadline of runtime calls other than pull, logs, exec and attach.
        value runtime_request_timeout: GoDuration = GoDuration::from_mins(2) => "runtimeRequestTimeout",
        /// Hairpin mode of the pod bridge: promiscuous-bridge, hairpin-veth or none.
        value hairpin_mode: String = "promiscuous-bridge".into() => "hairpinMode",
        /// Pods on this node at most.
        value max_pods: i32 = 110 => "maxPods",
        /// Pod network in stand-alone mode.
        value pod_cidr: String = String::new() => "podCIDR",
        /// Processes per pod at most; -1: the node's limit.
        pointer pod_pids_limit: i64 = -1 => "podPidsLimit",
        /// resolv.conf that pods' DNS settings start from; empty: none.
        pointer resolv_conf: String = "/etc/resolv.conf".into() => "resolvConf",
        /// Removed mode: start the manifests' pods and exit.
        value run_once: bool = false => "runOnce",
        /// Enforce CPU limits by CFS quota.
        pointer cpu_cfs_quota: bool = true => "cpuCFSQuota",
        /// Period of the CFS quota, 1ms to 1s.
        pointer cpu_cfs_quota_period: GoDuration = GoDuration::from_millis(100) => "cpuCFSQuotaPeriod",
        /// Images listed in the node's status at most; -1: all.
        pointer node_status_max_images: i32 = 50 => "nodeStatusMaxImages",
        /// The agent's limit of open files.
        value max_open_files: i64 = 1_000_000 => "maxOpenFiles",
        /// Content type of requests to the API server.
        value content_type: String = "application/vnd.kubernetes.protobuf".into() => "contentType",
        /// Requests to the API server per second.
        pointer kube_api_qps: i32 = 50 => "kubeAPIQPS",
        /// Requests above that rate in a burst.
        value kube_api_burst: i32 = 100 => "kubeAPIBurst",
        /// Pull one image at a time.
        pointer serialize_image_pulls: bool = true => "serializeImagePulls",
        /// Images pulled at once at most, when pulls are not serial.
        pointer max_parallel_image_pulls: Option<i32> = None => "maxParallelImagePulls",
        /// Signals and thresholds that evict at once.
        value eviction_hard: BTreeMap<String, String> = BTreeMap::new() => "evictionHard",
        /// Signals and thresholds that evict after their grace period.
        value eviction_soft: BTreeMap<String, String> = BTreeMap::new() => "evictionSoft",
        /// Grace period of each soft threshold.
        value eviction_soft_grace_period: BTreeMap<String, String> = BTreeMap::new() => "evictionSoftGracePeriod",
        /// How long a pressure condition outlives its signal.
        value eviction_pressure_transition_period: GoDuration = GoDuration::from_mins(5)
            => "evictionPressureTransitionPeriod",
        /// Grace of a pod that a soft threshold evicts, in seconds at most.
        value eviction_max_pod_grace_period: i32 = 0 => "evictionMaxPodGracePeriod",
        /// What an eviction reclaims at least, by signal.
        value eviction_minimum_reclaim: BTreeMap<String, String> = BTreeMap::new() => "evictionMinimumReclaim",
        /// Give signals missing from evictionHard their defaults.
        pointer merge_default_eviction_settings: bool = false => "mergeDefaultEvictionSettings",
        /// Pods per core at most; 0: no such limit.
        value pods_per_core: i32 = 0 => "podsPerCore",
        /// Leave attaching volumes to the cluster's controller.
        pointer enable_controller_attach_detach: bool = true => "enableControllerAttachDetach",
        /// Fail when a kernel setting is not as wanted, instead of changing it.
        value protect_kernel_defaults: bool = false => "protectKernelDefaults",
        /// Make the iptables chains that mark the node.
        pointer make_iptables_util_chains: bool = true => "makeIPTablesUtilChains",
        /// Bit of the packet mark for masquerading, 0 to 31.
        pointer iptables_masquerade_bit: i32 = 14 => "iptablesMasqueradeBit",
        /// Bit of the packet mark for dropping, 0 to 31.
        pointer iptables_drop_bit: i32 = 15 => "iptablesDropBit",
        /// Feature gates switched on or off.
        value feature_gates: BTreeMap<String, bool> = BTreeMap::new() => "featureGates",
        /// Refuse to start while swap is on.
        pointer fail_swap_on: bool = true => "failSwapOn",
        /// Swap for pods.
        pointer memory_swap: MemorySwap = MemorySwap::default() => "memorySwap",
        /// Size at which a container's log is rotated.
        value container_log_max_size: String = "10Mi".into() => "containerLogMaxSize",
        /// Log files kept per container.
        pointer container_log_max_files: i32 = 5 => "containerLogMaxFiles",
        /// Rotations at once at most.
        pointer container_log_max_workers: i32 = 1 => "containerLogMaxWorkers",
        /// Time between two looks at log sizes.
        pointer container_log_monitor_interval: GoDuration = GoDuration::from_secs(10)
            => "containerLogMonitorInterval",
        /// How changed ConfigMaps and Secrets are noticed: Get, Cache or Watch.
        value config_map_and_secret_change_detection_strategy: String = "Watch".into()
            => "configMapAndSecretChangeDetectionStrategy",
        /// Resources kept for the system.
        value system_reserved: BTreeMap<String, String> = BTreeMap::new() => "systemReserved",
        /// Resources kept for the agent and the runtime.
        value kube_reserved: BTreeMap<String, String> = BTreeMap::new() => "kubeReserved",
        /// CPUs kept for system and agent, as a CPU list.
        value reserved_system_cpus: String = String::new() => "reservedSystemCPUs",
        /// Show metrics that a version hid.
        value show_hidden_metrics_for_version: String = String::new() => "showHiddenMetricsForVersion",
        /// Cgroup on which systemReserved is enforced.
        value system_reserved_cgroup: String = String::new() => "systemReservedCgroup",
        /// Cgroup on which kubeReserved is enforced.
        value kube_reserved_cgroup: String = String::new() => "kubeReservedCgroup",
        /// Where allocatable is enforced.
        value enforce_node_allocatable: Vec<String> = vec!["pods".into()] => "enforceNodeAllocatable",
        /// Unsafe sysctls (or prefixes ending in `*`) that pods may set.
        value allowed_unsafe_sysctls: Vec<String> = Vec::new() => "allowedUnsafeSysctls",
        /// Directory of flexvolume drivers.
        value volume_plugin_dir: String = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec/".into()
            => "volumePluginDir",
        /// The node's id at its provider.
        value provider_id: String = String::new() => "providerID",
        /// Let the kernel announce memory thresholds.
        value kernel_memcg_notification: bool = false => "kernelMemcgNotification",
        /// Log output.
        pointer logging: Logging = Logging::default() => "logging",
        /// Serve the node's logs at /logs/.
        pointer enable_system_log_handler: bool = true => "enableSystemLogHandler",
        /// Answer queries of the node's logs.
        pointer enable_system_log_query: bool = false => "enableSystemLogQuery",
        /// Time for pods to end when the node shuts down.
        value shutdown_grace_period: GoDuration = GoDuration::ZERO => "shutdownGracePeriod",
        /// The part of it kept for critical pods.
        value shutdown_grace_period_critical_pods: GoDuration = GoDuration::ZERO
            => "shutdownGracePeriodCriticalPods",
        /// Time for pods to end by priority.
        value shutdown_grace_period_by_pod_priority: Vec<ShutdownGracePeriodByPodPriority> = Vec::new()
            => "shutdownGracePeriodByPodPriority",
        /// Restart back-off.
        pointer crash_loop_back_off: CrashLoopBackOff = CrashLoopBackOff::default() => "crashLoopBackOff",
        /// Memory kept per NUMA node.
        value reserved_memory: Vec<MemoryReservation> = Vec::new() => "reservedMemory",
        /// Serve profiles.
        pointer enable_profiling_handler: bool = true => "enableProfilingHandler",
        /// Serve the log verbosity for changing.
        pointer enable_debug_flags_handler: bool = true => "enableDebugFlagsHandler",
        /// Use the runtime's seccomp profile where a pod names none.
        pointer seccomp_default: bool = false => "seccompDefault",
        /// Share of the limit at which memory is throttled (MemoryQoS).
        pointer memory_throttling_factor: Option<f64> = Some(0.9) => "memoryThrottlingFactor",
        /// How memory is protected (MemoryQoS): None or TieredReservation.
        value memory_reservation_policy: String = "None".into() => "memoryReservationPolicy",
        /// Taints of a new node.
        value register_with_taints: Vec<Taint> = Vec::new() => "registerWithTaints",
        /// Register with the API server.
        pointer register_node: bool = true => "registerNode",
        /// Trace export.
        pointer tracing: Option<Tracing> = None => "tracing",
        /// Account for local ephemeral storage.
        pointer local_storage_capacity_isolation: bool = true => "localStorageCapacityIsolation",
        /// The runtime's socket.
        pointer container_runtime_endpoint: String = "unix:///run/containerd/containerd.sock".into()
            => "containerRuntimeEndpoint",
        /// The image service's socket; empty: the runtime's.
        value image_service_endpoint: String = String::new() => "imageServiceEndpoint",
        /// Refuse to start on cgroup v1.
        pointer fail_cgroup_v1: bool = true => "failCgroupV1",
        /// User namespaces.
        pointer user_namespaces: Option<UserNamespaces> = None => "userNamespaces",
    }

    /// How callers of the HTTPS API are identified.
    pub struct Authentication {
        /// By client certificate.
        pointer x509: X509Authentication = X509Authentication::default() => "x509",
        /// By bearer token, asked of the API server.
        pointer webhook: WebhookAuthentication = WebhookAuthentication::default() => "webhook",
        /// Not at all.
        pointer anonymous: AnonymousAuthentication = AnonymousAuthentication::default() => "anonymous",
    }

    /// Client certificates.
    pub struct X509Authentication {
        /// CA bundle that signs client certificates; empty: none are accepted.
        value client_ca_file: String = String::new() => "clientCAFile",
    }

    /// Bearer tokens.
    pub struct WebhookAuthentication {
        /// Ask the API server's TokenReview about bearer tokens.
        pointer enabled: bool = true => "enabled",
        /// How long an answer is remembered.
        value cache_ttl: GoDuration = GoDuration::from_mins(2) => "cacheTTL",
    }

    /// Callers without credentials.
    pub struct AnonymousAuthentication {
        /// Take callers without credentials as system:anonymous.
        pointer enabled: bool = false => "enabled",
    }

    /// What an identified caller may do.
    pub struct Authorization {
        /// AlwaysAllow or Webhook.
        value mode: String = "Webhook".into() => "mode",
        /// Answers of the API server's SubjectAccessReview.
        pointer webhook: WebhookAuthorization = WebhookAuthorization::default() => "webhook",
    }

    /// How long answers are remembered.
    pub struct WebhookAuthorization {
        /// How long a "yes" is remembered.
        value cache_authorized_ttl: GoDuration = GoDuration::from_mins(5) => "cacheAuthorizedTTL",
        /// How long a "no" is remembered.
        value cache_unauthorized_ttl: GoDuration = GoDuration::from_secs(30) => "cacheUnauthorizedTTL",
    }

    /// Swap for pods.
    pub struct MemorySwap {
        /// NoSwap or LimitedSwap; empty: NoSwap.
        value swap_behavior: String = String::new() => "swapBehavior",
    }

    /// Restart back-off.
    pub struct CrashLoopBackOff {
        /// Longest wait before a restart, 1s to 300s; 5m0s where the gate is on and nothing is given.
        pointer max_container_restart_period: Option<GoDuration> = None => "maxContainerRestartPeriod",
    }

    /// User namespaces.
    pub struct UserNamespaces {
        /// Ids per pod: a multiple of 65536.
        pointer ids_per_pod: Option<i64> = None => "idsPerPod",
    }

    /// Trace export by OTLP over gRPC.
    pub struct Tracing {
        /// The collector; empty: localhost:4317.
        pointer endpoint: Option<String> = None => "endpoint",
        /// Traces sampled of a million.
        pointer sampling_rate_per_million: Option<i32> = None => "samplingRatePerMillion",
    }

    /// Shutdown grace of one priority class.
    pub struct ShutdownGracePeriodByPodPriority {
        /// The pod priority from which it applies.
        pointer priority: i32 = 0 => "priority",
        /// Seconds to end in.
        pointer shutdown_grace_period_seconds: i64 = 0 => "shutdownGracePeriodSeconds",
    }

    /// Memory kept on a NUMA node.
    pub struct MemoryReservation {
        /// The NUMA node.
        pointer numa_node: i32 = 0 => "numaNode",
        /// Quantity by resource: memory or hugepages.
        pointer limits: BTreeMap<String, QuantityText> = BTreeMap::new() => "limits",
    }

    /// A taint of the node.
    pub struct Taint {
        /// The taint's key.
        pointer key: String = String::new() => "key",
        /// Its value.
        value value: String = String::new() => "value",
        /// NoSchedule, PreferNoSchedule or NoExecute.
        pointer effect: String = String::new() => "effect",
        /// When it was added; must not be given.
        pointer time_added: Option<String> = None => "timeAdded",
    }

    /// Log output.
    pub struct Logging {
        /// text or json.
        value format: String = "text".into() => "format",
        /// Time between two flushes.
        value flush_frequency: FlushFrequency = FlushFrequency::default() => "flushFrequency",
        /// Verbosity; 0 and up.
        pointer verbosity: u32 = 0 => "verbosity",
        /// Verbosity by source file, text format only.
        value vmodule: Vec<VModuleItem> = Vec::new() => "vmodule",
        /// Options of the formats.
        pointer options: FormatOptions = FormatOptions::default() => "options",
    }

    /// Verbosity of the source files that match.
    pub struct VModuleItem {
        /// File name without extension; `*` and `?` match.
        pointer file_pattern: String = String::new() => "filePattern",
        /// Verbosity; 0 and up.
        pointer verbosity: u32 = 0 => "verbosity",
    }

    /// Options of the log formats.
    pub struct FormatOptions {
        /// Of the text format.
        pointer text: OutputRouting = OutputRouting::default() => "text",
        /// Of the json format.
        pointer json: OutputRouting = OutputRouting::default() => "json",
    }

    /// Where log lines go.
    pub struct OutputRouting {
        /// Errors to stderr, everything else to stdout (LoggingAlphaOptions).
        value split_stream: bool = false => "splitStream",
        /// Bytes of messages held back (LoggingAlphaOptions).
        pointer info_buffer_size: QuantityText = QuantityText::default() => "infoBufferSize",
    }
}

/// `logging.flushFrequency`: Go duration text, or nanoseconds as a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlushFrequency(pub GoDuration);

impl Default for FlushFrequency {
    fn default() -> Self {
        Self(GoDuration::from_secs(5))
    }
}

impl serde::Serialize for FlushFrequency {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(s)
    }
}

impl super::schema::Decode for FlushFrequency {
    fn decode(&mut self, node: &super::node::Node, path: &str, to: &mut super::schema::Decoder<'_>) {
        match node {
            super::node::Node::Int(nanos) => self.0 = GoDuration::from_nanos(*nanos),
            _ => self.0.decode(node, path, to),
        }
    }
    fn is_zero(&self) -> bool {
        self.0.is_zero()
    }
    fn is_empty(&self) -> bool {
        false
    }
}
