//! The rule sets of `validate`, by subject.

use super::Report;
use super::names::*;
use crate::config::duration::GoDuration;
use crate::config::flags::Flags;
use crate::config::gates::FeatureGates;
use crate::config::types::KubeletConfiguration;
use crate::quantity;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A duration that prints as Go prints it inside messages.
struct Shown(GoDuration);
impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.0, f)
    }
}

pub(super) fn ranges(c: &KubeletConfiguration, report: &mut Report) {
    const NONE: i64 = i64::MAX;
    let n = i64::from;
    let mut table = vec![
        ("eventBurst", n(c.event_burst), 0, NONE),
        ("eventRecordQPS", n(c.event_record_qps), 0, NONE),
        ("healthzPort", n(c.healthz_port), 0, 65535),
        ("port", n(c.port), 1, 65535),
        ("readOnlyPort", n(c.read_only_port), 0, 65535),
        ("imageGCHighThresholdPercent", n(c.image_gc_high_threshold_percent), 0, 100),
        ("imageGCLowThresholdPercent", n(c.image_gc_low_threshold_percent), 0, 100),
        ("iptablesDropBit", n(c.iptables_drop_bit), 0, 31),
        ("iptablesMasqueradeBit", n(c.iptables_masquerade_bit), 0, 31),
        ("kubeAPIBurst", n(c.kube_api_burst), 0, NONE),
        ("kubeAPIQPS", n(c.kube_api_qps), 0, NONE),
        ("nodeStatusMaxImages", n(c.node_status_max_images), -1, NONE),
        ("maxOpenFiles", c.max_open_files, 0, NONE),
        ("maxPods", n(c.max_pods), 0, NONE),
        ("oomScoreAdj", n(c.oom_score_adj), -1000, 1000),
        ("podsPerCore", n(c.pods_per_core), 0, NONE),
        ("registryBurst", n(c.registry_burst), 0, NONE),
        ("registryPullQPS", n(c.registry_pull_qps), 0, NONE),
        ("containerLogMaxWorkers", n(c.container_log_max_workers), 1, NONE),
        ("containerLogMaxFiles", n(c.container_log_max_files), 2, NONE),
    ];
    table.extend(c.max_parallel_image_pulls.map(|v| ("maxParallelImagePulls", n(v), 1, NONE)));
    for (path, value, low, high) in table {
        if value < low || value > high {
            let rule = match high {
                NONE => format!("must be {low} or more"),
                _ => format!("must be between {low} and {high}"),
            };
            report.fail(path, value, rule);
        }
    }
    if c.node_lease_duration_seconds <= 0 {
        report.fail("nodeLeaseDurationSeconds", c.node_lease_duration_seconds, "must be greater than 0");
    }
    let period = c.cpu_cfs_quota_period;
    if period < GoDuration::from_millis(1) || period > GoDuration::from_secs(1) {
        report.fail("cpuCFSQuotaPeriod", Shown(period), "must be between 1ms and 1s");
    }
    let interval = c.container_log_monitor_interval;
    if interval < GoDuration::from_secs(3) {
        report.fail("containerLogMonitorInterval", Shown(interval), "must be 3s or more");
    }
    if quantity::parse(&c.container_log_max_size).is_err() {
        report.fail("containerLogMaxSize", &c.container_log_max_size, "must be a quantity such as 10Mi");
    }
    let above_zero = [
        ("syncFrequency", c.sync_frequency),
        ("fileCheckFrequency", c.file_check_frequency),
        ("httpCheckFrequency", c.http_check_frequency),
        ("nodeStatusUpdateFrequency", c.node_status_update_frequency),
        ("nodeStatusReportFrequency", c.node_status_report_frequency),
        ("runtimeRequestTimeout", c.runtime_request_timeout),
    ];
    for (path, value) in above_zero.into_iter().filter(|(_, v)| *v <= GoDuration::ZERO) {
        report.fail(path, Shown(value), "must be greater than 0s");
    }
}

pub(super) fn enumerations(c: &KubeletConfiguration, report: &mut Report) {
    report.one_of("cgroupDriver", &c.cgroup_driver, &["cgroupfs", "systemd"]);
    report.one_of("authorization.mode", &c.authorization.mode, &["AlwaysAllow", "Webhook"]);
    report.one_of("hairpinMode", &c.hairpin_mode, &["promiscuous-bridge", "hairpin-veth", "none"]);
    report.one_of("cpuManagerPolicy", &c.cpu_manager_policy, &["none", "static"]);
    report.one_of("memoryManagerPolicy", &c.memory_manager_policy, &["None", "Static"]);
    let policies = ["none", "best-effort", "restricted", "single-numa-node"];
    report.one_of("topologyManagerPolicy", &c.topology_manager_policy, &policies);
    report.one_of("topologyManagerScope", &c.topology_manager_scope, &["container", "pod"]);
    report.one_of("memorySwap.swapBehavior", &c.memory_swap.swap_behavior, &["", "NoSwap", "LimitedSwap"]);
    let strategy = &c.config_map_and_secret_change_detection_strategy;
    report.one_of("configMapAndSecretChangeDetectionStrategy", strategy, &["Get", "Cache", "Watch"]);
    report.one_of("memoryReservationPolicy", &c.memory_reservation_policy, &["None", "TieredReservation"]);
    // Only the minor version before this one may have metrics shown again.
    report.one_of("showHiddenMetricsForVersion", &c.show_hidden_metrics_for_version, &["", "1.35"]);
    if c.run_once {
        report.fail("runOnce", true, "is a mode that was removed");
    }
}

pub(super) fn addresses_and_paths(c: &KubeletConfiguration, report: &mut Report) {
    let mut address = |path: &str, text: &str| {
        if text.parse::<IpAddr>().is_err() {
            report.fail(path, text, "must be an IP address");
        }
    };
    address("address", &c.address);
    address("healthzBindAddress", &c.healthz_bind_address);
    c.cluster_dns.iter().for_each(|server| address("clusterDNS", server));
    let dir = &c.pod_logs_dir;
    if !dir.starts_with('/') {
        report.fail("podLogsDir", dir, "must be an absolute path");
    } else if dir.len() > 1 && dir[1..].split('/').any(|part| matches!(part, "" | "." | "..")) {
        report.fail("podLogsDir", dir, "must be a normalised path");
    } else if !dir.is_ascii() {
        report.fail("podLogsDir", dir, "must consist of ASCII characters");
    }
    if c.container_runtime_endpoint.is_empty() {
        report.fail("containerRuntimeEndpoint", "", "must be given");
    }
}

pub(super) fn images(c: &KubeletConfiguration, gates: &FeatureGates, report: &mut Report) {
    let (low, high) = (c.image_gc_low_threshold_percent, c.image_gc_high_threshold_percent);
    if low >= high {
        let rule = format!("must be below imageGCHighThresholdPercent, {high}");
        report.fail("imageGCLowThresholdPercent", low, rule);
    }
    let (least, most) = (c.image_minimum_gc_age, c.image_maximum_gc_age);
    for (path, age) in [("imageMinimumGCAge", least), ("imageMaximumGCAge", most)] {
        if age.is_negative() {
            report.fail(path, Shown(age), "must be 0s or more");
        }
    }
    if most > GoDuration::ZERO && most <= least {
        report.fail(
            "imageMaximumGCAge",
            Shown(most),
            format!("must be greater than imageMinimumGCAge, {least}"),
        );
    }
    if let Some(pulls) = c.max_parallel_image_pulls.filter(|n| *n > 1 && c.serialize_image_pulls) {
        report.fail("maxParallelImagePulls", pulls, "needs serializeImagePulls: false");
    }
    let policy = &c.image_pull_credentials_verification_policy;
    let path = "imagePullCredentialsVerificationPolicy";
    let list = &c.preloaded_images_verification_allowlist;
    if gates.enabled("KubeletEnsureSecretPulledImages") {
        let known =
            ["NeverVerify", "NeverVerifyPreloadedImages", "NeverVerifyAllowlistedImages", "AlwaysVerify"];
        report.one_of(path, policy, &known);
    } else if !policy.is_empty() {
        report.fail(path, policy, "needs feature gate KubeletEnsureSecretPulledImages");
    }
    if !list.is_empty() && policy != "NeverVerifyAllowlistedImages" {
        let rule = format!("needs {path}: NeverVerifyAllowlistedImages");
        report.fail("preloadedImagesVerificationAllowlist", list, rule);
    }
}

pub(super) fn allocatable(c: &KubeletConfiguration, report: &mut Report) {
    let path = "enforceNodeAllocatable";
    let wanted = &c.enforce_node_allocatable;
    let mut seen = BTreeSet::new();
    for option in wanted {
        if !seen.insert(option) {
            report.fail(path, option, "is given twice");
            continue;
        }
        match option.as_str() {
            "none" => {
                if wanted.len() > 1 {
                    report.fail(path, option, "must stand alone");
                }
                continue;
            }
            "pods" => {}
            "system-reserved" | "system-reserved-compressible" if c.system_reserved_cgroup.is_empty() => {
                report.fail(path, option, "needs systemReservedCgroup");
            }
            "kube-reserved" | "kube-reserved-compressible" if c.kube_reserved_cgroup.is_empty() => {
                report.fail(path, option, "needs kubeReservedCgroup");
            }
            "system-reserved"
            | "system-reserved-compressible"
            | "kube-reserved"
            | "kube-reserved-compressible" => {}
            _ => {
                report.fail(
                    path,
                    option,
                    "must be one of pods, system-reserved, system-reserved-compressible, kube-reserved, \
                     kube-reserved-compressible, none",
                );
                continue;
            }
        }
        if !c.cgroups_per_qos {
            report.fail(path, option, "needs cgroupsPerQOS: true");
        }
    }
    for of in ["system-reserved", "kube-reserved"] {
        let compressible = format!("{of}-compressible");
        if wanted.iter().any(|o| o == of) && wanted.contains(&compressible) {
            report.fail(path, of, format!("cannot stand with {compressible}"));
        }
    }
    if !c.system_cgroups.is_empty() && c.cgroup_root.is_empty() {
        report.fail("systemCgroups", &c.system_cgroups, "needs cgroupRoot");
    }
}

pub(super) fn reserved(c: &KubeletConfiguration, report: &mut Report) {
    for (path, map) in [("systemReserved", &c.system_reserved), ("kubeReserved", &c.kube_reserved)] {
        for (resource, amount) in map {
            if !["cpu", "memory", "ephemeral-storage", "pid"].contains(&resource.as_str()) {
                report.fail(path, resource, "cannot be reserved; cpu, memory, ephemeral-storage and pid can");
            }
            if !quantity::parse(amount).is_ok_and(|q| !q.is_negative()) {
                report.fail(&format!("{path}[{resource}]"), amount, "must be a quantity of 0 or more");
            }
        }
    }
    for (resource, share) in &c.qos_reserved {
        if resource != "memory" {
            report.fail("qosReserved", resource, "cannot be reserved; only memory can");
        }
        let percent = share.strip_suffix('%').and_then(|p| p.parse::<i32>().ok());
        if !percent.is_some_and(|p| (0..=100).contains(&p)) {
            report.fail(&format!("qosReserved[{resource}]"), share, "must be a percentage from 0% to 100%");
        }
    }
    let cpus = &c.reserved_system_cpus;
    if !cpus.is_empty() {
        if !is_cpu_list(cpus) {
            report.fail("reservedSystemCPUs", cpus, "must be a CPU list such as 0-3,7");
        }
        if !c.system_reserved_cgroup.is_empty() || !c.kube_reserved_cgroup.is_empty() {
            let rule = "cannot stand with systemReservedCgroup or kubeReservedCgroup";
            report.fail("reservedSystemCPUs", cpus, rule);
        }
    }
    let mut seen = BTreeSet::new();
    for reservation in &c.reserved_memory {
        let node = reservation.numa_node;
        if node < 0 {
            report.fail("reservedMemory", node, "is no NUMA node");
        }
        if reservation.limits.is_empty() {
            report.fail("reservedMemory", node, "is a NUMA node for which nothing is reserved");
        }
        for (resource, amount) in &reservation.limits {
            if resource != "memory" && !resource.starts_with("hugepages-") {
                report.fail("reservedMemory", resource, "cannot be reserved; memory and hugepages-SIZE can");
            }
            if amount.amount().value() <= 0 {
                report.fail("reservedMemory", amount.as_str(), format!("must be above 0 for {resource}"));
            }
            if !seen.insert((node, resource)) {
                report.fail("reservedMemory", resource, format!("is reserved twice on NUMA node {node}"));
            }
        }
    }
}

pub(super) fn shutdown(c: &KubeletConfiguration, gates: &FeatureGates, report: &mut Report) {
    let (all, critical) = (c.shutdown_grace_period, c.shutdown_grace_period_critical_pods);
    let periods = [("shutdownGracePeriod", all), ("shutdownGracePeriodCriticalPods", critical)];
    let set = !all.is_zero() || !critical.is_zero();
    if critical > all {
        let rule = format!("must be at most shutdownGracePeriod, {all}");
        report.fail("shutdownGracePeriodCriticalPods", Shown(critical), rule);
    }
    for (path, period) in periods.into_iter().filter(|(_, p)| !p.is_zero()) {
        if period < GoDuration::from_secs(1) {
            report.fail(path, Shown(period), "must be 0s, or 1s or more");
        }
        if !gates.enabled("GracefulNodeShutdown") {
            report.fail(path, Shown(period), "needs feature gate GracefulNodeShutdown");
        }
    }
    let by_priority = c.shutdown_grace_period_by_pod_priority.len();
    if by_priority > 0 {
        let path = "shutdownGracePeriodByPodPriority";
        let shown = format_args!("{by_priority} entries").to_string();
        if set {
            report.fail(path, &shown, "cannot stand with shutdownGracePeriod");
        }
        if !gates.enabled("GracefulNodeShutdownBasedOnPodPriority") {
            report.fail(path, &shown, "needs feature gate GracefulNodeShutdownBasedOnPodPriority");
        }
    }
}

pub(super) fn memory(c: &KubeletConfiguration, gates: &FeatureGates, report: &mut Report) {
    if let Some(factor) = c.memory_throttling_factor.filter(|f| !(*f > 0.0 && *f <= 1.0)) {
        report.fail("memoryThrottlingFactor", factor, "must be above 0 and at most 1");
    }
    if c.memory_reservation_policy == "TieredReservation" && !gates.enabled("MemoryQoS") {
        report.fail("memoryReservationPolicy", "TieredReservation", "needs feature gate MemoryQoS");
    }
    if let Some(ids) = c.user_namespaces.as_ref().and_then(|u| u.ids_per_pod)
        && (ids < 65536 || ids % 65536 != 0 || ids >= 1 << 32)
    {
        let rule = "must be a multiple of 65536, at least that, and below 4294967296";
        report.fail("userNamespaces.idsPerPod", ids, rule);
    }
}

pub(super) fn back_off(c: &KubeletConfiguration, gates: &FeatureGates, report: &mut Report) {
    let path = "crashLoopBackOff.maxContainerRestartPeriod";
    let Some(period) = c.crash_loop_back_off.max_container_restart_period else { return };
    if !gates.enabled("KubeletCrashLoopBackOffMax") {
        report.fail(path, Shown(period), "needs feature gate KubeletCrashLoopBackOffMax");
    } else if period < GoDuration::from_secs(1) || period > GoDuration::from_secs(300) {
        report.fail(path, Shown(period), "must be between 1s and 5m0s");
    }
}

pub(super) fn logs(c: &KubeletConfiguration, gates: &FeatureGates, report: &mut Report) {
    let log = &c.logging;
    report.one_of("logging.format", &log.format, &["text", "json"]);
    if log.flush_frequency.0 <= GoDuration::ZERO {
        report.fail("logging.flushFrequency", Shown(log.flush_frequency.0), "must be greater than 0s");
    }
    let levels = std::iter::once(("logging.verbosity", log.verbosity))
        .chain(log.vmodule.iter().map(|item| ("logging.vmodule", item.verbosity)));
    for (path, level) in levels.filter(|(_, level)| *level > i32::MAX.unsigned_abs()) {
        report.fail(path, level, format!("must be at most {}", i32::MAX));
    }
    for item in &log.vmodule {
        if item.file_pattern.is_empty() || item.file_pattern.contains(['=', ',']) {
            report.fail("logging.vmodule", &item.file_pattern, "must be a file pattern without = and comma");
        }
    }
    if !log.vmodule.is_empty() && log.format != "text" {
        report.fail("logging.vmodule", log.vmodule.len(), "entries need logging.format: text");
    }
    if !gates.enabled("LoggingAlphaOptions") {
        let rule = "needs feature gate LoggingAlphaOptions";
        for (format, options) in [("text", &log.options.text), ("json", &log.options.json)] {
            if options.split_stream {
                report.fail(&format!("logging.options.{format}.splitStream"), true, rule);
            }
            if options.info_buffer_size.amount().value() != 0 {
                let size = options.info_buffer_size.as_str();
                report.fail(&format!("logging.options.{format}.infoBufferSize"), size, rule);
            }
        }
    }
    if c.enable_system_log_query && !c.enable_system_log_handler {
        report.fail("enableSystemLogQuery", true, "needs enableSystemLogHandler: true");
    }
}

/// The suites that Go's TLS library knows, without their common prefix.
const CIPHER_SUITES: [&str; 27] = [
    "AES_128_GCM_SHA256",
    "AES_256_GCM_SHA384",
    "CHACHA20_POLY1305_SHA256",
    "ECDHE_ECDSA_WITH_3DES_EDE_CBC_SHA",
    "ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
    "ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "ECDHE_ECDSA_WITH_RC4_128_SHA",
    "ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "ECDHE_RSA_WITH_CHACHA20_POLY1305",
    "ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    "ECDHE_RSA_WITH_RC4_128_SHA",
    "RSA_WITH_3DES_EDE_CBC_SHA",
    "RSA_WITH_AES_128_CBC_SHA",
    "RSA_WITH_AES_128_CBC_SHA256",
    "RSA_WITH_AES_128_GCM_SHA256",
    "RSA_WITH_AES_256_CBC_SHA",
    "RSA_WITH_AES_256_GCM_SHA384",
];

pub(super) fn tls_and_tracing(c: &KubeletConfiguration, gates: &FeatureGates, report: &mut Report) {
    for suite in &c.tls_cipher_suites {
        let known = suite
            .strip_prefix("TLS_")
            .is_some_and(|s| s == "RSA_WITH_RC4_128_SHA" || CIPHER_SUITES.contains(&s));
        if !known {
            report.fail("tlsCipherSuites", suite, "is no cipher suite");
        }
    }
    let versions = ["", "VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13"];
    report.one_of("tlsMinVersion", &c.tls_min_version, &versions);
    if c.tls_cert_file.is_empty() != c.tls_private_key_file.is_empty() {
        let (path, other, value) = match c.tls_cert_file.is_empty() {
            true => ("tlsPrivateKeyFile", "tlsCertFile", &c.tls_private_key_file),
            false => ("tlsCertFile", "tlsPrivateKeyFile", &c.tls_cert_file),
        };
        report.fail(path, value, format!("needs {other}"));
    }
    if c.server_tls_bootstrap && !gates.enabled("RotateKubeletServerCertificate") {
        report.fail("serverTLSBootstrap", true, "needs feature gate RotateKubeletServerCertificate");
    }
    let Some(tracing) = &c.tracing else { return };
    if let Some(rate) = tracing.sampling_rate_per_million.filter(|r| !(0..=1_000_000).contains(r)) {
        report.fail("tracing.samplingRatePerMillion", rate, "must be between 0 and 1000000");
    }
    if let Some(endpoint) = &tracing.endpoint
        && let Some((scheme, _)) = endpoint.split_once("//")
        && !["", "dns:", "unix:", "unix-abstract:"].contains(&scheme)
    {
        report.fail("tracing.endpoint", endpoint, "must have no scheme, or dns, unix or unix-abstract");
    }
}

pub(super) fn node(c: &KubeletConfiguration, report: &mut Report) {
    for taint in &c.register_with_taints {
        let path = "registerWithTaints";
        if !is_qualified_name(&taint.key) {
            report.fail(path, &taint.key, "is no taint key");
        }
        if !is_label_value(&taint.value) {
            report.fail(path, &taint.value, "is no taint value");
        }
        report.one_of(path, &taint.effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        if let Some(time) = &taint.time_added {
            report.fail(path, time, "is a timeAdded, which must not be given");
        }
    }
    for sysctl in &c.allowed_unsafe_sysctls {
        let path = "allowedUnsafeSysctls";
        if !is_sysctl_pattern(sysctl) {
            report.fail(path, sysctl, "is neither a sysctl nor a prefix that ends in *");
        } else if !is_namespaced_sysctl(sysctl) {
            let rule =
                "is not namespaced: only kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.* and net.* are";
            report.fail(path, sysctl, rule);
        }
    }
}

pub(super) fn flags(f: &Flags, report: &mut Report) {
    for (key, value) in &f.node_labels {
        if !is_qualified_name(key) {
            report.fail_flag("node-labels", key, "is no label key");
        } else if !may_label_node(key) {
            let rule = "is in the kubernetes.io or k8s.io namespace and not one that a node may set";
            report.fail_flag("node-labels", key, rule);
        }
        if !is_label_value(value) {
            report.fail_flag("node-labels", value, "is no label value");
        }
    }
    if !["", "external"].contains(&f.cloud_provider.as_str()) {
        report.fail_flag("cloud-provider", &f.cloud_provider, "must be empty or \"external\"");
    }
    let name = f.hostname_override.trim().to_ascii_lowercase();
    if !f.hostname_override.is_empty() && !is_subdomain(&name) {
        report.fail_flag("hostname-override", &f.hostname_override, "must be a DNS name");
    }
    if !f.node_ip.is_empty() {
        node_ip(&f.node_ip, report);
    }
    if f.root_dir.is_empty() {
        report.fail_flag("root-dir", "", "must be given");
    }
}

/// One address, or one of each family.
fn node_ip(text: &str, report: &mut Report) {
    let mut families = Vec::new();
    for part in text.split(',').map(str::trim) {
        match part.parse::<IpAddr>() {
            Ok(ip) => families.push(ip.is_ipv4()),
            Err(_) => report.fail_flag("node-ip", part, "must be an IP address"),
        }
    }
    if families.len() > 2 || (families.len() == 2 && families[0] == families[1]) {
        report.fail_flag("node-ip", text, "must be one address, or an IPv4 and an IPv6 address");
    }
}
