//! What the outside sees: logs, TLS, traces, the node object, and the flags that are no configuration fields.
//!
//! One of the rule sets of `validate`.

use super::names::*;
use super::{Report, Shown};
use crate::config::duration::GoDuration;
use crate::config::flags::Flags;
use crate::config::gates::FeatureGates;
use crate::config::types::KubeletConfiguration;
use std::net::IpAddr;

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
    if f.minimum_container_ttl_duration.as_nanos() < 0 {
        let value = Shown(f.minimum_container_ttl_duration);
        report.fail_flag("minimum-container-ttl-duration", value, "must be 0s or more");
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
