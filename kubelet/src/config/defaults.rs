//! Defaults that depend on other settings, and the defaults of a start without a configuration file.
//!
//! Called by `config::load` between the file's fields and the flags: a flag never moves another field's default.
//! Rules: upstream's `SetDefaults_KubeletConfiguration`, `applyLegacyDefaults` and config file loading.

use super::duration::GoDuration;
use super::gates::FeatureGates;
use super::node::Node;
use super::types::KubeletConfiguration;

/// Upstream's thresholds on Linux.
const EVICTION_HARD: [(&str, &str); 5] = [
    ("memory.available", "100Mi"),
    ("nodefs.available", "10%"),
    ("nodefs.inodesFree", "5%"),
    ("imagefs.available", "15%"),
    ("imagefs.inodesFree", "5%"),
];

/// Where no configuration file is given, these differ from the file format's defaults: a promise to those who started
/// kubelets before there was one.
pub(super) fn legacy_defaults() -> KubeletConfiguration {
    let mut config = KubeletConfiguration::default();
    config.authentication.anonymous.enabled = true;
    config.authentication.webhook.enabled = false;
    config.authorization.mode = "AlwaysAllow".into();
    config.read_only_port = 10255;
    config
}

/// Settles the fields that `document` left open.
pub(super) fn complete(config: &mut KubeletConfiguration, document: Option<&Node>, gates: &FeatureGates) {
    let given = |field: &str| document.is_some_and(|d| d.get(field).is_some());
    let empty = given("nodeStatusReportFrequency")
        && document.and_then(|d| d.get("nodeStatusReportFrequency")) == Some(&Node::str("0s"));
    if given("nodeStatusUpdateFrequency") && (!given("nodeStatusReportFrequency") || empty) {
        config.node_status_report_frequency = config.node_status_update_frequency;
    }
    if !given("serializeImagePulls") {
        config.serialize_image_pulls = config.max_parallel_image_pulls.is_none_or(|n| n < 2);
    }
    if config.pod_pids_limit < 0 {
        config.pod_pids_limit = -1;
    }
    if config.crash_loop_back_off.max_container_restart_period.is_none()
        && gates.enabled("KubeletCrashLoopBackOffMax")
    {
        config.crash_loop_back_off.max_container_restart_period = Some(GoDuration::from_secs(300));
    }
    if config.image_pull_credentials_verification_policy.is_empty()
        && gates.enabled("KubeletEnsureSecretPulledImages")
    {
        config.image_pull_credentials_verification_policy = "NeverVerifyPreloadedImages".into();
    }
    // Without a file upstream has no thresholds at all.
    if document.is_some() && (!given("evictionHard") || config.merge_default_eviction_settings) {
        for (signal, threshold) in EVICTION_HARD {
            config.eviction_hard.entry(signal.into()).or_insert_with(|| threshold.into());
        }
    }
}
