//! Helpers of this room's unit tests: pods from YAML, a node like the one the recorded cases ran on.

use super::{Allocatable, NodeFacts, ResolvConf, RuntimeFeatures};
use crate::api::Pod;

/// A pod from (flow) YAML.
pub fn pod(yaml: &str) -> Pod {
    serde_saphyr::from_str(yaml).unwrap_or_else(|e| panic!("{e}: {yaml}"))
}

/// What it resolves names with.
pub fn resolv_conf() -> ResolvConf {
    ResolvConf::parse(
        "nameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch corp.example.test lab.example.test\n\
         options ndots:1 timeout:2\n",
    )
    .unwrap()
}

/// The node of the recorded cases: cgroup v1, 24684096 KiB, cluster DNS 10.96.0.10.
pub fn facts() -> NodeFacts {
    NodeFacts {
        node_name: "golden-node".into(),
        hostname: "golden-node".into(),
        node_ips: vec!["192.0.2.10".parse().unwrap()],
        cluster_domain: "cluster.local".into(),
        cluster_dns: vec!["10.96.0.10".parse().unwrap()],
        root_dir: "/var/lib/kubelet".into(),
        pod_logs_dir: "/var/log/pods".into(),
        cpu_cfs_quota: true,
        cfs_period_us: 100_000,
        pod_pids_limit: -1,
        allocatable: Allocatable {
            cpu_milli: 2000,
            memory_bytes: 25_171_656_704,
            ephemeral_bytes: 243_497_856_212,
        },
        capacity_memory: 24_684_096 << 10,
        hugepage_sizes: vec![2 << 20, 1 << 30],
        swap_accounting: true,
        runtime: RuntimeFeatures { supplemental_groups_policy: true, user_namespaces: false },
        ..NodeFacts::default()
    }
}
