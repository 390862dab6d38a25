//! What this agent can do of what can be configured: a status for every field and flag, and the refusal of the rest.
//!
//! `config::load` asks this room last. Whoever makes a feature work moves its row; nothing else has to change. A test
//! proves that every field and every flag has a row. Feature gates keep theirs in `gate_table`.

use super::error::{ConfigError, Field};
use super::flags::{Flag, Flags, Target, flag_of};
use super::legacy_defaults;
use super::node::{Node, json};
use super::schema::{Decode, leaves};
use super::types::KubeletConfiguration;
use Status::*;
use serde_json::Value;

/// What can be asked of a setting.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Status {
    /// Everything valid.
    Supported,
    /// The default and these values, as JSON.
    Only(&'static [&'static str], &'static str),
    /// The default and nothing else. What is missing.
    NotYet(&'static str),
    /// Everything valid, but it has little or no effect yet; the log says so. Why.
    Noted(&'static str),
}

const API: &str = "joining a cluster is not supported yet";
const URL: &str = "pods from a URL are not supported yet";
const CPU: &str = "CPUs are not assigned to containers yet";
const NUMA: &str = "NUMA nodes are not managed yet";
const SHUTDOWN: &str = "node shutdown is not handled yet";
const CSR: &str = "certificates are not requested from a cluster yet";
const STATS: &str = "the agent has no such statistics library";
const LOG_STREAMS: &str = "log streams are not split or buffered yet";

/// By dotted path; a path of an object stands for all in it.
#[rustfmt::skip]
const FIELDS: &[(&str, Status)] = &[
    ("apiVersion", Supported),
    ("kind", Supported),
    ("enableServer", Supported),
    ("staticPodPath", Supported),
    ("podLogsDir", Supported),
    ("syncFrequency", Supported),
    ("fileCheckFrequency", Supported),
    ("httpCheckFrequency", NotYet(URL)),
    ("staticPodURL", NotYet(URL)),
    ("staticPodURLHeader", NotYet(URL)),
    ("address", Supported),
    ("port", Supported),
    ("readOnlyPort", Supported),
    ("tlsCertFile", Supported),
    ("tlsPrivateKeyFile", Supported),
    ("tlsCipherSuites", Supported),
    ("tlsCurvePreferences", NotYet("key exchange groups cannot be chosen yet")),
    ("tlsMinVersion", Only(&["\"VersionTLS12\"", "\"VersionTLS13\""], "TLS before 1.2 is not spoken")),
    ("rotateCertificates", NotYet(CSR)),
    ("serverTLSBootstrap", NotYet(CSR)),
    ("authentication.x509.clientCAFile", Supported),
    // The defaults of this and of the mode need an API server: `access` refuses them where they were asked for.
    ("authentication.webhook.enabled", Only(&["false"], API)),
    ("authentication.webhook.cacheTTL", NotYet(API)),
    ("authentication.anonymous.enabled", Supported),
    ("authorization.mode", Only(&["\"AlwaysAllow\""], API)),
    ("authorization.webhook", NotYet(API)),
    ("registryPullQPS", Supported),
    ("registryBurst", Supported),
    ("imagePullCredentialsVerificationPolicy", Supported),
    ("preloadedImagesVerificationAllowlist", Supported),
    ("eventRecordQPS", Noted(API)),
    ("eventBurst", Noted(API)),
    ("enableDebuggingHandlers", Supported),
    ("enableContentionProfiling", NotYet("profiles are not served yet")),
    ("healthzPort", Supported),
    ("healthzBindAddress", Supported),
    ("oomScoreAdj", Supported),
    ("clusterDomain", Supported),
    ("clusterDNS", Supported),
    ("streamingConnectionIdleTimeout", NotYet("streaming connections are not supported yet")),
    ("nodeStatusUpdateFrequency", Noted(API)),
    ("nodeStatusReportFrequency", Noted(API)),
    ("nodeLeaseDurationSeconds", Noted(API)),
    ("imageMinimumGCAge", Supported),
    ("imageMaximumGCAge", Supported),
    ("imageGCHighThresholdPercent", Supported),
    ("imageGCLowThresholdPercent", Supported),
    ("volumeStatsAggPeriod", Supported),
    ("kubeletCgroups", NotYet("the agent does not move itself into a cgroup yet")),
    ("systemCgroups", NotYet("system processes are not moved into a cgroup yet")),
    ("cgroupRoot", Supported),
    ("cgroupsPerQOS", Supported),
    ("cgroupDriver", Supported),
    ("singleProcessOOMKill", Supported),
    ("cpuManagerPolicy", NotYet(CPU)),
    ("cpuManagerPolicyOptions", NotYet(CPU)),
    ("cpuManagerReconcilePeriod", NotYet(CPU)),
    ("memoryManagerPolicy", NotYet(NUMA)),
    ("topologyManagerPolicy", NotYet(NUMA)),
    ("topologyManagerScope", NotYet(NUMA)),
    ("topologyManagerPolicyOptions", NotYet(NUMA)),
    ("qosReserved", Supported),
    ("runtimeRequestTimeout", Supported),
    ("hairpinMode", Noted("the pod network's plugins decide, as with the stock kubelet")),
    ("maxPods", Supported),
    ("podCIDR", NotYet("the agent does not write a pod network configuration yet")),
    ("podPidsLimit", Supported),
    ("resolvConf", Supported),
    ("runOnce", Supported),
    ("cpuCFSQuota", Supported),
    ("cpuCFSQuotaPeriod", Supported),
    ("nodeStatusMaxImages", Noted(API)),
    ("maxOpenFiles", Supported),
    ("contentType", Noted(API)),
    ("kubeAPIQPS", Noted(API)),
    ("kubeAPIBurst", Noted(API)),
    ("serializeImagePulls", Supported),
    ("maxParallelImagePulls", Supported),
    ("evictionHard", Supported),
    ("evictionSoft", Supported),
    ("evictionSoftGracePeriod", Supported),
    ("evictionPressureTransitionPeriod", Supported),
    ("evictionMaxPodGracePeriod", Supported),
    ("evictionMinimumReclaim", Supported),
    ("mergeDefaultEvictionSettings", Supported),
    ("podsPerCore", Supported),
    ("enableControllerAttachDetach", Noted(API)),
    ("protectKernelDefaults", Supported),
    ("makeIPTablesUtilChains", Only(&["false"], "the chains are not made")),
    ("iptablesMasqueradeBit", Noted("no packets are marked")),
    ("iptablesDropBit", Noted("no packets are marked")),
    ("featureGates", Supported),
    ("failSwapOn", Supported),
    ("memorySwap.swapBehavior", Supported),
    ("containerLogMaxSize", Supported),
    ("containerLogMaxFiles", Supported),
    ("containerLogMaxWorkers", Supported),
    ("containerLogMonitorInterval", Supported),
    ("configMapAndSecretChangeDetectionStrategy", Noted(API)),
    ("systemReserved", Supported),
    ("kubeReserved", Supported),
    ("reservedSystemCPUs", NotYet(CPU)),
    ("showHiddenMetricsForVersion", NotYet("there are no hidden metrics")),
    ("systemReservedCgroup", Supported),
    ("kubeReservedCgroup", Supported),
    ("enforceNodeAllocatable", Supported),
    ("allowedUnsafeSysctls", Supported),
    ("volumePluginDir", Noted("there are no flexvolume drivers")),
    ("providerID", Noted(API)),
    ("kernelMemcgNotification", Noted("the kernel is always listened to where it tells of memory")),
    ("logging.format", Supported),
    ("logging.flushFrequency", Noted("log lines are written as they come")),
    ("logging.verbosity", Supported),
    ("logging.vmodule", Supported),
    ("logging.options", NotYet(LOG_STREAMS)),
    ("enableSystemLogHandler", Only(&["false"], "the node's logs are not served yet")),
    ("enableSystemLogQuery", NotYet("the node's logs are not served yet")),
    ("shutdownGracePeriod", NotYet(SHUTDOWN)),
    ("shutdownGracePeriodCriticalPods", NotYet(SHUTDOWN)),
    ("shutdownGracePeriodByPodPriority", NotYet(SHUTDOWN)),
    ("crashLoopBackOff", Supported),
    ("reservedMemory", NotYet(NUMA)),
    ("enableProfilingHandler", Only(&["false"], "profiles are not served yet")),
    ("enableDebugFlagsHandler", Only(&["false"], "the log verbosity is not served yet")),
    ("seccompDefault", Supported),
    ("memoryThrottlingFactor", Supported),
    ("memoryReservationPolicy", Supported),
    ("registerWithTaints", Noted(API)),
    ("registerNode", Noted(API)),
    ("tracing", Supported),
    ("localStorageCapacityIsolation", Supported),
    ("containerRuntimeEndpoint", Supported),
    ("imageServiceEndpoint", Supported),
    ("failCgroupV1", Supported),
    ("userNamespaces", Supported),
];

/// Flags that set no configuration field, by name.
#[rustfmt::skip]
const FLAGS: &[(&str, Status)] = &[
    ("bootstrap-kubeconfig", NotYet(API)),
    ("cert-dir", Supported),
    ("cloud-provider", NotYet(API)),
    ("config", Supported),
    ("config-dir", Supported),
    ("exit-on-lock-contention", NotYet("the agent takes no lock file yet")),
    ("experimental-allocatable-ignore-eviction", Supported),
    ("experimental-mounter-path", NotYet("the agent mounts by itself")),
    ("hostname-override", Supported),
    ("image-credential-provider-bin-dir", Supported),
    ("image-credential-provider-config", Supported),
    ("kubeconfig", NotYet(API)),
    ("lock-file", NotYet("the agent takes no lock file yet")),
    ("maximum-dead-containers", Supported),
    ("maximum-dead-containers-per-container", Supported),
    ("minimum-container-ttl-duration", Supported),
    ("node-ip", Supported),
    ("node-labels", Noted(API)),
    ("root-dir", Supported),
    ("runtime-cgroups", NotYet("the runtime's cgroup is not measured yet")),
    ("standalone-objects", Supported),
    ("standalone-pods", Supported),
];

fn status_of(path: &str) -> Status {
    let covers =
        |row: &str| path.strip_prefix(row).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    // A test proves that there is a row; without one nothing but the default is accepted.
    FIELDS.iter().find(|(row, _)| covers(row)).map_or(NotYet("unknown to this version"), |(_, s)| *s)
}

/// A setting that is not at its default.
struct Change {
    field: Field,
    value: Value,
    default: Value,
    status: Status,
}

fn at<'v>(value: &'v Value, path: &str) -> &'v Value {
    path.split('.').try_fold(value, |v, key| v.get(key)).unwrap_or(&Value::Null)
}

/// A field left out of JSON is as good as an empty one.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

fn tree(value: &impl serde::Serialize) -> Value {
    // Strings, numbers, lists and mappings with string keys: nothing that JSON could not hold.
    serde_json::to_value(value).unwrap_or(Value::Null)
}

/// Every field and flag that differs from its default, whichever of the two defaults that is.
fn changes(config: &KubeletConfiguration, given: &[(&'static Flag, Node)]) -> Vec<Change> {
    let now = tree(config);
    let mut usual = KubeletConfiguration::default();
    super::defaults::complete(&mut usual, Some(&Node::Null), &super::gates::FeatureGates::default());
    let defaults = [tree(&usual), tree(&legacy_defaults())];
    let mut found = Vec::new();
    leaves(KubeletConfiguration::fields(), "", &mut |path, _| {
        let value = at(&now, &path);
        let same = |default: &Value| default == value || (is_empty(default) && is_empty(value));
        if !defaults.iter().any(|d| same(at(d, &path))) {
            found.push(Change {
                field: Field { flag: flag_of(&path), path: path.clone() },
                value: value.clone(),
                default: at(&defaults[0], &path).clone(),
                status: status_of(&path),
            });
        }
    });
    let own = tree(&Flags::default());
    for (flag, node) in given {
        let (default, status) = match flag.target {
            Target::Own => {
                let row = FLAGS.iter().find(|(name, _)| *name == flag.name);
                (
                    own.get(flag.name).cloned().unwrap_or(Value::Null),
                    row.map_or(NotYet("unknown"), |(_, s)| *s),
                )
            }
            Target::Stats(text) => (flag.default_of(text), NotYet(STATS)),
            Target::Config(_) | Target::Asks => continue,
        };
        let value = json(node);
        let zero = value == Value::Bool(false) || value == "0s" || is_empty(&value);
        if value != default && !(zero && default.is_null()) {
            let field = Field { path: String::new(), flag: Some(flag.name) };
            found.push(Change { field, value, default, status });
        }
    }
    found
}

/// What is asked for and cannot be had yet.
pub(super) fn refuse(config: &KubeletConfiguration, given: &[(&'static Flag, Node)]) -> Vec<ConfigError> {
    let refused = |change: Change| {
        let (also, why) = match change.status {
            Supported | Noted(_) => return None,
            NotYet(why) => (&[][..], why),
            Only(also, why) => (also, why),
        };
        // A list that is left out of JSON for being empty is still an empty list.
        let text = match (&change.default, &change.value) {
            (Value::Array(_), Value::Null) => "[]".into(),
            (_, value) => value.to_string(),
        };
        if also.contains(&text.as_str()) {
            return None;
        }
        let default = if is_empty(&change.default) { "nothing".into() } else { change.default.to_string() };
        let accepted = std::iter::once(default.as_str()).chain(also.iter().copied()).collect::<Vec<_>>();
        let verb = if accepted.len() > 1 { "are" } else { "is" };
        Some(ConfigError::NotYet {
            field: change.field,
            value: text,
            reason: format!("{why}; only {} {verb} accepted", accepted.join(" and ")),
        })
    };
    let mut errors: Vec<_> = changes(config, given).into_iter().filter_map(refused).collect();
    errors.extend(super::gates::not_yet(&config.feature_gates));
    errors
}

/// What is asked for and has no effect yet, for the log.
pub(super) fn notices(config: &KubeletConfiguration, given: &[(&'static Flag, Node)]) -> Vec<String> {
    let notice = |change: Change| match change.status {
        Noted(why) => Some(format!("{} = {} is accepted, but {why}", change.field, change.value)),
        _ => None,
    };
    changes(config, given).into_iter().filter_map(notice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::flags::FLAGS as ALL_FLAGS;

    #[test]
    fn every_field_has_exactly_one_row_and_every_row_a_field() {
        let mut rows: Vec<&str> = FIELDS.iter().map(|(row, _)| *row).collect();
        let mut used = std::collections::BTreeSet::new();
        leaves(KubeletConfiguration::fields(), "", &mut |path, _| {
            let mine: Vec<_> = FIELDS
                .iter()
                .filter(|(row, _)| path == *row || path.starts_with(&format!("{row}.")))
                .map(|(row, _)| *row)
                .collect();
            assert_eq!(mine.len(), 1, "{path}: {mine:?}");
            used.insert(mine[0]);
        });
        rows.retain(|row| !used.contains(row));
        assert_eq!(rows, [""; 0], "rows without a field");
    }

    /// The tables of `docs/configuration.md`.
    fn page() -> String {
        use std::fmt::Write;
        let usual = {
            let mut config = KubeletConfiguration::default();
            crate::config::defaults::complete(&mut config, Some(&Node::Null), &Default::default());
            tree(&config)
        };
        let status = |status: Status| match status {
            Supported => "yes".to_owned(),
            Only(values, why) => format!("default and `{}`: {why}", values.join("`, `")),
            NotYet(why) => format!("default only: {why}"),
            Noted(why) => format!("accepted: {why}"),
        };
        let shown = |value: &Value| if is_empty(value) { String::new() } else { format!("`{value}`") };
        let mut text = String::from("| field | flag | default | supported |\n| --- | --- | --- | --- |\n");
        leaves(KubeletConfiguration::fields(), "", &mut |path, field| {
            let flag = flag_of(&path).map(|f| format!("`--{f}`")).unwrap_or_default();
            let (doc, default) = (field.doc.trim(), shown(at(&usual, &path)));
            writeln!(text, "| `{path}`: {doc} | {flag} | {default} | {} |", status(status_of(&path)))
                .unwrap();
        });
        text.push_str("\n| flag without a field | default | supported |\n| --- | --- | --- |\n");
        let own = tree(&Flags::default());
        leaves(Flags::fields(), "", &mut |name, field| {
            let row = FLAGS.iter().find(|(row, _)| *row == name).unwrap();
            let default = shown(own.get(&name).unwrap_or(&Value::Null));
            writeln!(text, "| `--{name}`: {} | {default} | {} |", field.doc.trim(), status(row.1)).unwrap();
        });
        text
    }

    #[test]
    fn the_page_of_settings_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (begin, end) = ("<!-- tables: begin -->\n", "<!-- tables: end -->\n");
        let (before, rest) = text.split_once(begin).unwrap();
        let (_, after) = rest.split_once(end).unwrap();
        let wanted = format!("{before}{begin}{}{end}{after}", page());
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, wanted).unwrap();
        } else {
            assert!(text == wanted, "run this test once with UPDATE_DOCS=1 and commit docs/configuration.md");
        }
    }

    #[test]
    fn every_own_flag_has_a_row_and_every_row_a_flag() {
        let own: Vec<_> = ALL_FLAGS.iter().filter(|f| f.target == Target::Own).map(|f| f.name).collect();
        let rows: Vec<_> = FLAGS.iter().map(|(row, _)| *row).collect();
        assert_eq!(own, rows);
    }
}
