//! What security contexts mean to the processes of a container, on a real runtime.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use node_e2e::manifest::{FOREVER, pod, sh};
use node_e2e::node::Options;
use node_e2e::{Node, status};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt as _;

fn with(name: &str, security_context: &Value) -> Value {
    let mut c = sh(name, FOREVER);
    c["securityContext"] = security_context.clone();
    c
}

fn seccomp(kind: &str) -> Value {
    json!({ "seccompProfile": { "type": kind } })
}

/// What the kernel says of a container's first process: 0 is unconfined, 2 is a filter.
const MODE: &str = "grep '^Seccomp:' /proc/1/status | tr -dc 0-9";

#[tokio::test]
async fn seccomp_profiles_are_in_force_where_they_are_asked_for() {
    let Some(mut node) = Node::start().await else { return };
    node.put(
        "p",
        pod(
            "p",
            [
                with("plain", &json!({})),
                with("default", &seccomp("RuntimeDefault")),
                with("free", &seccomp("Unconfined")),
            ],
        ),
    );
    let missing = json!({ "seccompProfile": { "type": "Localhost", "localhostProfile": "none/such.json" } });
    node.put("q", pod("q", [with("c", &missing)]));
    let ready = node.wait_ready("p").await;
    for (name, mode) in [("plain", "0"), ("default", "2"), ("free", "0")] {
        assert_eq!(node.exec(&ready, name, MODE).await, mode, "{name}");
    }
    node.wait("q", "it is refused", |p| status::waiting(p, "c") == Some("CreateContainerError")).await;
    node.finish().await;
}

#[tokio::test]
async fn seccomp_default_confines_what_asks_for_nothing() {
    let options = Options { config: Some(json!({ "seccompDefault": true })), ..Options::default() };
    let Some(mut node) = Node::start_with(options).await else { return };
    node.put("p", pod("p", [with("plain", &json!({})), with("free", &seccomp("Unconfined"))]));
    let ready = node.wait_ready("p").await;
    for (name, mode) in [("plain", "2"), ("free", "0")] {
        assert_eq!(node.exec(&ready, name, MODE).await, mode, "{name}");
    }
    node.finish().await;
}

#[tokio::test]
async fn sysctls_are_set_in_the_pod_and_nowhere_else() {
    let Some(mut node) = Node::start().await else { return };
    let read = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start";
    let of_host = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    let mut p = pod("p", [sh("c", FOREVER)]);
    p["spec"]["securityContext"] =
        json!({ "sysctls": [{ "name": "net.ipv4.ip_unprivileged_port_start", "value": "77" }] });
    node.put("p", p);
    let ready = node.wait_ready("p").await;
    assert_eq!(node.exec(&ready, "c", read).await.trim(), "77");
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap(), of_host);
    node.finish().await;
}

#[tokio::test]
async fn kernel_files_are_masked_and_read_only_but_for_the_privileged() {
    let Some(mut node) = Node::start().await else { return };
    node.put("p", pod("p", [with("plain", &json!({})), with("privileged", &json!({ "privileged": true }))]));
    let ready = node.wait_ready("p").await;
    // Masked files are the null device; read-only ones are mounts of their own.
    let masked =
        "for f in /proc/kcore /proc/timer_list /proc/keys; do [ -c $f ] && echo masked; done | sort -u";
    let writable = "grep -q ' /proc/sys .*ro,' /proc/self/mountinfo && echo no || echo yes";
    let caps = "grep CapEff /proc/1/status | awk '{ print $2 }'";
    assert_eq!(node.exec(&ready, "plain", masked).await, "masked\n");
    assert_eq!(node.exec(&ready, "plain", writable).await, "no\n");
    assert_eq!(node.exec(&ready, "privileged", masked).await, "");
    assert_eq!(node.exec(&ready, "privileged", writable).await, "yes\n");
    let (few, all) = (node.exec(&ready, "plain", caps).await, node.exec(&ready, "privileged", caps).await);
    let number = |text: &str| u64::from_str_radix(text.trim(), 16).unwrap();
    assert!(number(&few).count_ones() < number(&all).count_ones(), "{few} {all}");
    node.finish().await;
}

#[tokio::test]
async fn groups_are_those_of_the_pod_and_no_escalation_means_none() {
    let Some(mut node) = Node::start().await else { return };
    let own = json!({ "runAsGroup": 77, "allowPrivilegeEscalation": false });
    let mut p = pod("p", [with("c", &own), with("d", &json!({ "allowPrivilegeEscalation": true }))]);
    p["spec"]["securityContext"] =
        json!({ "runAsUser": 1234, "runAsGroup": 2345, "fsGroup": 4567, "supplementalGroups": [3456] });
    p["spec"]["volumes"] = json!([{ "name": "v", "emptyDir": {} }]);
    p["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "v", "mountPath": "/v" }]);
    node.put("p", p);
    let ready = node.wait_ready("p").await;
    let id = "id -u; id -g; for g in $(id -G); do echo $g; done | sort -n | tr '\\n' ' '";
    assert_eq!(node.exec(&ready, "c", id).await.trim_end(), "1234\n77\n77 3456 4567");
    assert_eq!(node.exec(&ready, "d", id).await.trim_end(), "1234\n2345\n2345 3456 4567");
    let escalates = "grep NoNewPrivs /proc/1/status | tr -dc 01";
    assert_eq!(node.exec(&ready, "c", escalates).await, "1");
    assert_eq!(node.exec(&ready, "d", escalates).await, "0");
    assert_eq!(node.exec(&ready, "c", "touch /v/x && stat -c %g /v/x").await.trim(), "4567");
    node.finish().await;
}

/// Whether the runtime has user namespaces; where not, that is what the running test is skipped for.
async fn has_user_namespaces(node: &Node) -> bool {
    let capabilities = node.cri.connected().await;
    let has = capabilities.handlers.get("").is_some_and(|h| h.user_namespaces);
    if !has {
        let (name, version) = (&capabilities.runtime_name, &capabilities.runtime_version);
        node_e2e::skip(format!("{name} {version} and its OCI runtime announce no user namespaces"));
    }
    has
}

/// `inside outside length` of the first line of an id map.
fn id_map(text: &str) -> (u32, u32, u32) {
    let ids: Vec<u32> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
    (ids[0], ids[1], ids[2])
}

#[tokio::test]
async fn pods_with_users_of_their_own_are_nobody_on_the_node_and_own_their_files() {
    let Some(mut node) = Node::start().await else { return };
    if !has_user_namespaces(&node).await {
        node.finish().await;
        return;
    }
    let shared = node.dir.join("shared");
    std::fs::create_dir(&shared).unwrap();
    let own = |name: &str| {
        let mut p = pod(name, [sh("c", FOREVER)]);
        p["spec"]["hostUsers"] = false.into();
        p["spec"]["volumes"] = json!([
            { "name": "own", "emptyDir": {} },
            { "name": "memory", "emptyDir": { "medium": "Memory" } },
            { "name": "host", "hostPath": { "path": shared, "type": "Directory" } },
        ]);
        p["spec"]["containers"][0]["volumeMounts"] = json!([
            { "name": "own", "mountPath": "/own" },
            { "name": "memory", "mountPath": "/memory" },
            { "name": "host", "mountPath": "/host" },
        ]);
        p
    };
    node.put("one", own("one"));
    node.put("two", own("two"));
    let mut taken = Vec::new();
    for name in ["one", "two"] {
        let ready = node.wait_ready(name).await;
        let (inside, outside, length) = id_map(&node.exec(&ready, "c", "cat /proc/self/uid_map").await);
        assert_eq!((inside, length), (0, 65536));
        assert!(outside >= 65536, "{outside} is an id of the node's own");
        taken.push(outside);
        let groups = id_map(&node.exec(&ready, "c", "cat /proc/self/gid_map").await);
        assert_eq!(groups, (inside, outside, length));
        // On the node its root is an ordinary user.
        let pid = node.container_pid(&ready, "c").await;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains(&format!("Uid:\t{outside}\t{outside}")), "{status}");
        // Volumes are mapped: root's files are root's, within and without.
        let script = format!("for d in own memory host; do touch /$d/{name}; stat -c %u:%g /$d/{name}; done");
        assert_eq!(node.exec(&ready, "c", &script).await, "0:0\n0:0\n0:0\n", "{name}");
        let of_host = std::fs::metadata(shared.join(name)).unwrap();
        assert_eq!((of_host.uid(), of_host.gid()), (0, 0), "{name}");
        assert_eq!(
            node.exec(&ready, "c", "stat -c %u:%g /etc/hosts /dev/termination-log").await,
            "0:0\n0:0\n"
        );
    }
    assert_ne!(taken[0], taken[1], "two pods have the same ids");
    node.finish().await;
}

#[tokio::test]
async fn an_unmasked_proc_hides_nothing_from_a_pod_with_users_of_its_own() {
    let Some(mut node) = Node::start().await else { return };
    if !has_user_namespaces(&node).await {
        node.finish().await;
        return;
    }
    let mut p = pod("p", [with("plain", &json!({})), with("open", &json!({ "procMount": "Unmasked" }))]);
    p["spec"]["hostUsers"] = false.into();
    node.put("p", p);
    let ready = node.wait_ready("p").await;
    let covered = "grep -c ' /proc/[a-z]' /proc/self/mountinfo || true";
    assert_ne!(node.exec(&ready, "plain", covered).await, "0\n");
    assert_eq!(node.exec(&ready, "open", covered).await, "0\n");
    // Not that it could write what is the node's.
    let write = "echo 1 > /proc/sys/kernel/panic 2>/dev/null && echo wrote || echo refused";
    assert_eq!(node.exec(&ready, "open", write).await, "refused\n");
    node.finish().await;
}

#[tokio::test]
async fn what_the_runtime_cannot_do_is_refused_and_told() {
    let Some(mut node) = Node::start().await else { return };
    let capabilities = node.cri.connected().await;
    let handler = capabilities.handlers.get("").cloned().unwrap_or_default();
    let mut users = pod("users", [sh("c", FOREVER)]);
    users["spec"]["hostUsers"] = false.into();
    let mut strict = pod("strict", [sh("c", FOREVER)]);
    strict["spec"]["securityContext"] = json!({ "supplementalGroupsPolicy": "Strict" });
    if handler.user_namespaces {
        node.put("users", users);
        let ready = node.wait_ready("users").await;
        let map = node.exec(&ready, "c", "cat /proc/self/uid_map").await;
        let ids: Vec<u32> = map.split_whitespace().map(|n| n.parse().unwrap()).collect();
        assert!(ids[0] == 0 && ids[1] >= 65536 && ids[2] == 65536, "{map}");
    } else {
        node.put("users", users);
        node_e2e::wait::eventually("the refusal is told", async || {
            let log = node.log();
            let told = log.contains("runtime does not support user namespaces");
            if told { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
    }
    node.put("strict", strict);
    if capabilities.features.supplemental_groups_policy {
        node.wait_ready("strict").await;
    } else {
        node_e2e::wait::eventually("the refusal is told", async || {
            let told = node.log().contains("SupplementalGroupsPolicy=Strict is not supported in this node");
            if told { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
    }
    node.finish().await;
}
