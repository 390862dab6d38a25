//! Ranges, enumerations, addresses and paths, and the settings of images.
//!
//! One of the rule sets of `validate`.

use super::{Report, Shown};
use crate::config::duration::GoDuration;
use crate::config::gates::FeatureGates;
use crate::config::types::KubeletConfiguration;
use crate::image::Allowlist;
use crate::quantity;
use std::net::IpAddr;

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
    } else if let Err(why) = Allowlist::parse(list) {
        report.fail("preloadedImagesVerificationAllowlist", list, why);
    }
}
