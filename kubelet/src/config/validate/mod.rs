//! The rules that a complete configuration must keep: ranges, enumerations, texts of a form, fields that contradict
//! each other.
//!
//! `config::load` calls [`validate`] after everything is merged. Pure: no file, no kernel is asked; what depends on the
//! machine (swap is on, cgroup v1, a CA file that is not there) is checked by who uses it. Rules: upstream's
//! `ValidateKubeletConfiguration` and `ValidateKubeletFlags`, and those of the managers that parse a field at start.

mod eviction;
mod limits;
mod names;
mod outside;
mod resources;

use super::duration::GoDuration;
use super::error::{ConfigError, Field};
use super::flags::{Flags, flag_of};
use super::gates::FeatureGates;
use super::types::KubeletConfiguration;
use std::fmt::Debug;

/// A duration that prints as Go prints it inside messages.
struct Shown(GoDuration);
impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.0, f)
    }
}

/// Collects what breaks a rule.
struct Report {
    errors: Vec<ConfigError>,
}

impl Report {
    /// `path`: `value` `rule`, where the rule completes the sentence.
    fn fail(&mut self, path: &str, value: impl Debug, rule: impl Into<String>) {
        let flag = flag_of(path);
        self.errors.push(ConfigError::Invalid {
            field: Field { path: path.to_owned(), flag },
            value: format!("{value:?}"),
            rule: rule.into(),
        });
    }

    /// The same for what is only a flag.
    fn fail_flag(&mut self, flag: &'static str, value: impl Debug, rule: impl Into<String>) {
        self.errors.push(ConfigError::Invalid {
            field: Field { path: String::new(), flag: Some(flag) },
            value: format!("{value:?}"),
            rule: rule.into(),
        });
    }

    fn one_of(&mut self, path: &str, value: &str, allowed: &[&str]) {
        if !allowed.contains(&value) {
            self.fail(path, value, format!("must be one of {allowed:?}"));
        }
    }
}

/// Every rule that `config` and `flags` break.
pub(super) fn validate(
    config: &KubeletConfiguration,
    flags: &Flags,
    gates: &FeatureGates,
) -> Vec<ConfigError> {
    let mut report = Report { errors: Vec::new() };
    limits::ranges(config, &mut report);
    limits::enumerations(config, &mut report);
    limits::addresses_and_paths(config, &mut report);
    limits::images(config, gates, &mut report);
    resources::allocatable(config, &mut report);
    resources::reserved(config, gates, &mut report);
    resources::shutdown(config, gates, &mut report);
    resources::memory(config, gates, &mut report);
    resources::back_off(config, gates, &mut report);
    outside::logs(config, gates, &mut report);
    outside::tls_and_tracing(config, gates, &mut report);
    outside::node(config, &mut report);
    eviction::check(config, &mut report);
    outside::flags(flags, &mut report);
    report.errors
}

#[cfg(test)]
mod tests {
    use crate::config::{Command, load};

    /// The lines `load` answers for a configuration file with `text` and these flags.
    fn lines(text: &str, flags: &[&str]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        std::fs::write(&path, format!("{head}{text}")).unwrap();
        let args =
            [format!("--config={}", path.display())].into_iter().chain(flags.iter().map(ToString::to_string));
        match load(args) {
            Ok(Command::Run(_)) => Vec::new(),
            Ok(Command::Print(text)) => panic!("printed {text}"),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        }
    }

    fn check(text: &str, want: &str) {
        let lines = lines(text, &[]);
        let found = lines.iter().any(|l| l.strip_prefix("invalid configuration: ") == Some(want));
        assert!(found, "{text}\n  wanted {want}\n  got {lines:#?}");
    }

    #[test]
    fn values_outside_of_their_range_are_named() {
        for (text, want) in [
            ("nodeLeaseDurationSeconds: -1", "nodeLeaseDurationSeconds: -1 must be greater than 0"),
            ("eventBurst: -1", "eventBurst (--event-burst): -1 must be 0 or more"),
            ("eventRecordQPS: -1", "eventRecordQPS (--event-qps): -1 must be 0 or more"),
            ("healthzPort: 70000", "healthzPort (--healthz-port): 70000 must be between 0 and 65535"),
            ("port: -1", "port (--port): -1 must be between 1 and 65535"),
            ("readOnlyPort: 65536", "readOnlyPort (--read-only-port): 65536 must be between 0 and 65535"),
            ("oomScoreAdj: 1001", "oomScoreAdj (--oom-score-adj): 1001 must be between -1000 and 1000"),
            ("maxPods: -1", "maxPods (--max-pods): -1 must be 0 or more"),
            ("podsPerCore: -1", "podsPerCore (--pods-per-core): -1 must be 0 or more"),
            (
                "nodeStatusMaxImages: -2",
                "nodeStatusMaxImages (--node-status-max-images): -2 must be -1 or more",
            ),
            ("iptablesDropBit: 32", "iptablesDropBit: 32 must be between 0 and 31"),
            ("maxParallelImagePulls: 0", "maxParallelImagePulls: 0 must be 1 or more"),
            (
                "cpuCFSQuotaPeriod: 2s",
                "cpuCFSQuotaPeriod (--cpu-cfs-quota-period): 2s must be between 1ms and 1s",
            ),
            (
                "cpuCFSQuotaPeriod: 1us",
                "cpuCFSQuotaPeriod (--cpu-cfs-quota-period): 1µs must be between 1ms and 1s",
            ),
            (
                "containerLogMaxFiles: 1",
                "containerLogMaxFiles (--container-log-max-files): 1 must be 2 or more",
            ),
            ("containerLogMonitorInterval: 1s", "containerLogMonitorInterval: 1s must be 3s or more"),
            ("memoryThrottlingFactor: 1.1", "memoryThrottlingFactor: 1.1 must be above 0 and at most 1"),
            (
                "userNamespaces: {idsPerPod: 5}",
                "userNamespaces.idsPerPod: 5 must be a multiple of 65536, at least that, and below 4294967296",
            ),
            (
                "crashLoopBackOff: {maxContainerRestartPeriod: 6m}",
                "crashLoopBackOff.maxContainerRestartPeriod: 6m0s must be between 1s and 5m0s",
            ),
        ] {
            check(text, want);
        }
    }

    #[test]
    fn values_of_no_known_kind_are_named_with_the_known_ones() {
        for (text, want) in [
            (
                "cgroupDriver: fs",
                r#"cgroupDriver (--cgroup-driver): "fs" must be one of ["cgroupfs", "systemd"]"#,
            ),
            (
                "hairpinMode: x",
                r#"hairpinMode (--hairpin-mode): "x" must be one of ["promiscuous-bridge", "hairpin-veth", "none"]"#,
            ),
            (
                "cpuManagerPolicy: None",
                r#"cpuManagerPolicy (--cpu-manager-policy): "None" must be one of ["none", "static"]"#,
            ),
            (
                "memorySwap: {swapBehavior: Unlimited}",
                r#"memorySwap.swapBehavior: "Unlimited" must be one of ["", "NoSwap", "LimitedSwap"]"#,
            ),
            (
                "tlsMinVersion: TLS12",
                r#"tlsMinVersion (--tls-min-version): "TLS12" must be one of ["", "VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13"]"#,
            ),
            ("tlsCipherSuites: [RC4]", r#"tlsCipherSuites (--tls-cipher-suites): "RC4" is no cipher suite"#),
            (
                "logging: {format: xml}",
                r#"logging.format (--logging-format): "xml" must be one of ["text", "json"]"#,
            ),
            ("address: localhost", r#"address (--address): "localhost" must be an IP address"#),
            ("clusterDNS: [10.0.0.1, dns]", r#"clusterDNS (--cluster-dns): "dns" must be an IP address"#),
            ("podLogsDir: /var/../logs", r#"podLogsDir: "/var/../logs" must be a normalised path"#),
            (
                "systemReserved: {gpu: '1'}",
                r#"systemReserved (--system-reserved): "gpu" cannot be reserved; cpu, memory, ephemeral-storage and pid can"#,
            ),
            ("kubeReserved: {cpu: '-1'}", r#"kubeReserved[cpu]: "-1" must be a quantity of 0 or more"#),
            (
                "evictionHard: {memory: 1Gi}",
                r#"evictionHard (--eviction-hard): "memory" is no eviction signal; these are memory.available, nodefs.available, nodefs.inodesFree, imagefs.available, imagefs.inodesFree, containerfs.available, containerfs.inodesFree, allocatableMemory.available, pid.available"#,
            ),
            (
                "evictionHard: {memory.available: 101%}",
                r#"evictionHard[memory.available]: "101%" must be a percentage from 0% to 100%"#,
            ),
            (
                "evictionHard: {memory.available: '0'}",
                r#"evictionHard[memory.available]: "0" must be above 0"#,
            ),
            (
                "evictionSoft: {memory.available: 1Gi}",
                r#"evictionSoft (--eviction-soft): "memory.available" needs a grace period in evictionSoftGracePeriod"#,
            ),
            (
                "registerWithTaints: [{key: a, effect: Never}]",
                r#"registerWithTaints (--register-with-taints): "Never" must be one of ["NoSchedule", "PreferNoSchedule", "NoExecute"]"#,
            ),
            (
                "tracing: {endpoint: 'http://x'}",
                r#"tracing.endpoint: "http://x" must have no scheme, or dns, unix or unix-abstract"#,
            ),
            (
                "allowedUnsafeSysctls: [vm.swappiness]",
                r#"allowedUnsafeSysctls (--allowed-unsafe-sysctls): "vm.swappiness" is not namespaced: only kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.* and net.* are"#,
            ),
        ] {
            check(text, want);
        }
    }

    #[test]
    fn fields_that_contradict_each_other_are_named() {
        for (text, want) in [
            (
                "imageGCHighThresholdPercent: 70",
                "imageGCLowThresholdPercent (--image-gc-low-threshold): 80 must be below imageGCHighThresholdPercent, 70",
            ),
            ("imageMaximumGCAge: 1m", "imageMaximumGCAge: 1m0s must be greater than imageMinimumGCAge, 2m0s"),
            (
                "cgroupsPerQOS: false",
                r#"enforceNodeAllocatable (--enforce-node-allocatable): "pods" needs cgroupsPerQOS: true"#,
            ),
            (
                "enforceNodeAllocatable: [none, pods]",
                r#"enforceNodeAllocatable (--enforce-node-allocatable): "none" must stand alone"#,
            ),
            (
                "enforceNodeAllocatable: [pods, system-reserved]",
                r#"enforceNodeAllocatable (--enforce-node-allocatable): "system-reserved" needs systemReservedCgroup"#,
            ),
            ("systemCgroups: /sys", r#"systemCgroups (--system-cgroups): "/sys" needs cgroupRoot"#),
            (
                "serializeImagePulls: true\nmaxParallelImagePulls: 2",
                "maxParallelImagePulls: 2 needs serializeImagePulls: false",
            ),
            ("runOnce: true", "runOnce (--runonce): true is a mode that was removed"),
            (
                "shutdownGracePeriodCriticalPods: 5s",
                "shutdownGracePeriodCriticalPods: 5s must be at most shutdownGracePeriod, 0s",
            ),
            ("shutdownGracePeriod: 1ms", "shutdownGracePeriod: 1ms must be 0s, or 1s or more"),
            (
                "reservedSystemCPUs: 0-1\nkubeReservedCgroup: /k",
                r#"reservedSystemCPUs (--reserved-cpus): "0-1" cannot stand with systemReservedCgroup or kubeReservedCgroup"#,
            ),
            (
                "featureGates: {KubeletCrashLoopBackOffMax: false}\ncrashLoopBackOff: {maxContainerRestartPeriod: 5s}",
                "crashLoopBackOff.maxContainerRestartPeriod: 5s needs feature gate KubeletCrashLoopBackOffMax",
            ),
            (
                "logging: {options: {text: {splitStream: true}}}",
                "logging.options.text.splitStream (--log-text-split-stream): true needs feature gate LoggingAlphaOptions",
            ),
            (
                "preloadedImagesVerificationAllowlist: [a]",
                "preloadedImagesVerificationAllowlist: [\"a\"] needs imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages",
            ),
            (
                "imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages\npreloadedImagesVerificationAllowlist: [r.test/a/*, r.test/b:1]",
                "preloadedImagesVerificationAllowlist: [\"r.test/a/*\", \"r.test/b:1\"] \"r.test/b:1\" must be a full name without tag and digest, such as r.test/b",
            ),
        ] {
            check(text, want);
        }
    }

    #[test]
    fn flags_overrule_the_file_and_are_checked_too() {
        assert_eq!(lines("port: -1", &["--port=1234"]), [""; 0]);
        assert_eq!(
            lines("port: 1234", &["--port=0"]),
            ["invalid configuration: port (--port): 0 must be between 1 and 65535"]
        );
        assert_eq!(
            lines(
                "",
                &[
                    "--node-labels=kubernetes.io/x=y,node.kubernetes.io/z=1",
                    "--cloud-provider=aws",
                    "--node-ip=a"
                ]
            ),
            [
                "invalid configuration: --node-labels: \"kubernetes.io/x\" is in the kubernetes.io or k8s.io namespace and not one that a node may set",
                "invalid configuration: --cloud-provider: \"aws\" must be empty or \"external\"",
                "invalid configuration: --node-ip: \"a\" must be an IP address",
            ]
        );
    }
}
