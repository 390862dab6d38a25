//! What the node can give, and gets back.

use crate::support::{Node, Running, SECOND, container, custom, fake_cgroups, pass, pod};
use cri::fake::Script;
use kubelet::api::Pod;
use serde_json::{Value, json};
use std::time::Duration;

fn asking(uid: &str, cpu: &str) -> Pod {
    let mut c = container("main");
    c["resources"] = json!({"requests": {"cpu": cpu, "memory": "1Gi"}});
    custom(uid, uid, json!({"restartPolicy": "Never", "containers": [c]}))
}

fn with_port(uid: &str, ip: &str, port: u16) -> Pod {
    let mut c = container("main");
    c["ports"] = json!([{"containerPort": 80, "hostPort": port, "hostIP": ip, "protocol": "TCP"}]);
    custom(uid, uid, json!({"containers": [c]}))
}

/// The pod was refused with this reason and (a part of) this message.
async fn refused(agent: &Running, uid: &str, reason: &str, message: &str) {
    agent.until(&format!("{uid} is refused"), || agent.phase(uid) == "Failed").await;
    let status = agent.status(uid).unwrap();
    assert_eq!(status.reason.as_deref(), Some(reason), "{status:?}");
    let told = status.message.as_deref().unwrap();
    assert!(told.starts_with("Pod was rejected: ") && told.contains(message), "{told}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_asks_for_more_than_is_left_is_refused_and_holds_nothing() {
    let node = Node::new();
    let agent = node.start_synced(&[asking("u1", "3")]).await;
    agent.until_ready("u1").await;
    agent.put(&asking("u2", "1500m")).await;
    let message = "Node didn't have enough resource: cpu, requested: 1500, used: 3000, capacity: 4000";
    refused(&agent, "u2", "OutOfcpu", message).await;
    // The refused pod's share is still free.
    agent.put(&asking("u3", "1")).await;
    agent.until_ready("u3").await;
    assert_eq!(node.counts(), (2, 2));
    agent.gone("u2").await;
    agent.until_gone("u2").await;
    let mut big = asking("u4", "0");
    let requests = json!({"requests": {"memory": "7Gi"}});
    big.spec.as_mut().unwrap().containers[0].resources = serde_json::from_value(requests).unwrap();
    agent.put(&big).await;
    refused(
        &agent,
        "u4",
        "OutOfmemory",
        "memory, requested: 7516192768, used: 2147483648, capacity: 8589934592",
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_a_pod_held_is_free_when_it_has_ended_and_when_it_is_gone() {
    let node = Node::new();
    node.fake.script("job/main", Script::exits(0, 5 * SECOND));
    let agent = node.start_synced(&[asking("job", "4")]).await;
    agent.until("it succeeded", || agent.phase("job") == "Succeeded").await;
    // It is still there, with its logs, and holds nothing.
    agent.put(&asking("next", "4")).await;
    agent.until_ready("next").await;
    agent.put(&asking("late", "1")).await;
    refused(&agent, "late", "OutOfcpu", "used: 4000").await;
    agent.gone("next").await;
    agent.until_gone("next").await;
    agent.put(&asking("last", "4")).await;
    agent.until_ready("last").await;
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_pods_that_run_keep_their_share_and_ended_ones_hold_none() {
    let node = Node::new();
    node.fake.script("job/main", Script::exits(0, 5 * SECOND));
    let agent = node.start_synced(&[asking("job", "4")]).await;
    agent.until("it succeeded", || agent.phase("job") == "Succeeded").await;
    agent.put(&asking("runs", "3")).await;
    agent.until_ready("runs").await;
    agent.kill().await;
    // The newcomer comes first, and must not take what runs already holds; the job, known to be done, holds nothing.
    let agent = node.start_synced(&[asking("job", "4"), asking("runs", "3"), asking("new", "1")]).await;
    agent.until("both are ready", || agent.is_ready("runs") && agent.is_ready("new")).await;
    agent.put(&asking("more", "1")).await;
    refused(&agent, "more", "OutOfcpu", "used: 4000").await;
}

#[tokio::test(start_paused = true)]
async fn a_host_port_is_one_pods_until_that_has_ended() {
    let node = Node::new();
    let agent = node.start_synced(&[with_port("u1", "", 8080)]).await;
    agent.until_ready("u1").await;
    agent.put(&with_port("u2", "127.0.0.1", 8080)).await;
    refused(&agent, "u2", "NodePorts", "node(s) didn't have free ports for the requested pod ports").await;
    agent.put(&with_port("u3", "", 8081)).await;
    agent.until_ready("u3").await;
    agent.gone("u1").await;
    agent.until_gone("u1").await;
    agent.put(&with_port("u4", "", 8080)).await;
    agent.until_ready("u4").await;
}

#[tokio::test(start_paused = true)]
async fn sysctls_that_are_not_allowed_are_refused_by_name() {
    let mut node = Node::new();
    node.settings.node.unsafe_sysctls = vec!["kernel.msg*".into()];
    let agent = node.start_synced(&[]).await;
    let with = |uid: &str, name: &str, more: Value| {
        let mut spec = json!({"containers": [container("main")],
            "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        custom(uid, uid, spec)
    };
    agent.put(&with("u1", "kernel.shm_rmid_forced", json!({}))).await;
    agent.put(&with("u2", "kernel.msgmax", json!({}))).await;
    agent.until("both are ready", || agent.is_ready("u1") && agent.is_ready("u2")).await;
    agent.put(&with("u3", "kernel.panic", json!({}))).await;
    refused(&agent, "u3", "SysctlForbidden", "forbidden sysctl: \"kernel.panic\" not allowlisted").await;
    agent.put(&with("u4", "net.ipv4.tcp_syncookies", json!({"hostNetwork": true}))).await;
    refused(&agent, "u4", "SysctlForbidden", "\"net.ipv4.tcp_syncookies\" not allowed with host net enabled")
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_profile_that_the_kernel_does_not_enforce_is_refused_however_it_is_asked_for() {
    let node = Node::new();
    let agent = node.start_synced(&[]).await;
    let profile = json!({"appArmorProfile": {"type": "RuntimeDefault"}});
    let mut own = container("main");
    own["securityContext"] = profile.clone();
    let annotated = |uid: &str, profile: &str| {
        let mut p = custom(uid, uid, json!({"containers": [container("main")]}));
        let key = "container.apparmor.security.beta.kubernetes.io/main".to_owned();
        p.metadata.annotations.get_or_insert_default().insert(key, profile.to_owned());
        p
    };
    let why = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
    for (uid, p) in [
        ("u1", custom("u1", "u1", json!({"containers": [container("main")], "securityContext": profile}))),
        ("u2", custom("u2", "u2", json!({"containers": [own]}))),
        ("u3", annotated("u3", "localhost/strict")),
    ] {
        agent.put(&p).await;
        refused(&agent, uid, "AppArmor", why).await;
    }
    agent.put(&annotated("u4", "unconfined")).await;
    agent.until_ready("u4").await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_supported_is_refused_by_the_fields_name() {
    let node = Node::new();
    let agent = node.start_synced(&[]).await;
    let of_pod = [
        ("spec.runtimeClassName", json!({"runtimeClassName": "kata"})),
        ("spec.resourceClaims", json!({"resourceClaims": [{"name": "r"}]})),
    ];
    for (n, (field, more)) in of_pod.into_iter().enumerate() {
        let mut spec = json!({"containers": [container("main")]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let uid = format!("u{n}");
        agent.put(&custom(&uid, &uid, spec)).await;
        refused(&agent, &uid, "UnsupportedPodSpec", &format!("{field}: ")).await;
    }
    assert!(node.fake.changes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_burstable_class_has_the_shares_of_the_pods_that_run() {
    let mut node = Node::new();
    node.settings.cgroup = fake_cgroups(&node.path(""), true);
    node.fake.script("job/main", Script::exits(0, 5 * SECOND));
    let agent = node.start_synced(&[asking("job", "1"), asking("runs", "2"), pod("free", &["main"])]).await;
    let shares = || std::fs::read_to_string(node.path("cgroup/cpu,cpuacct/kubepods/burstable/cpu.shares"));
    agent.until("both count", || shares().is_ok_and(|s| s == "3072")).await;
    agent.until("the job is done", || shares().is_ok_and(|s| s == "2048")).await;
    pass(Duration::from_secs(60)).await;
    assert_eq!(shares().unwrap(), "2048");
}
