//! What a container is given: environment, files, limits, identity.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use kubelet::api::{PodUid, Qos};
use node_e2e::left::{below, hierarchies};
use node_e2e::manifest::{FOREVER, pod, sh, then_forever};
use node_e2e::wait::eventually;
use node_e2e::{Node, status};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

#[tokio::test]
async fn environment_and_command_are_expanded_with_fields_of_the_pod() {
    let Some(mut node) = Node::start().await else { return };
    let mut p = pod("env", [sh("c", "")]);
    let c = &mut p["spec"]["containers"][0];
    c["command"] = json!(["/bin/sh", "-c", "echo \"$@\"; env; trap 'exit 0' TERM; sleep 3600 & wait", "sh"]);
    c["args"] = json!(["$(GREETING)", "$$(GREETING)", "$(UNKNOWN)"]);
    let field = |path: &str| json!({ "fieldRef": { "fieldPath": path } });
    let limit = json!({ "resourceFieldRef": { "resource": "limits.memory", "divisor": "1Mi" } });
    c["resources"] = json!({ "limits": { "memory": "64Mi" } });
    c["env"] = json!([
        { "name": "WHO", "value": "world" },
        { "name": "GREETING", "value": "hello $(WHO)" },
        { "name": "IP", "valueFrom": field("status.podIP") },
        { "name": "NAME", "valueFrom": field("metadata.name") },
        { "name": "NODE", "valueFrom": field("spec.nodeName") },
        { "name": "COLOUR", "valueFrom": field("metadata.labels['colour']") },
        { "name": "MEMORY", "valueFrom": limit },
    ]);
    p["metadata"]["labels"] = json!({ "colour": "teal" });
    node.put("env", p);
    let ready = node.wait_ready("env").await;
    let log = eventually("the log holds the environment", async || {
        let log = node.container_log("env", "c", "").await.body;
        if log.contains("MEMORY=") { Ok(log) } else { Err(log) }
    })
    .await;
    assert_eq!(log.lines().next(), Some("hello world $(GREETING) $(UNKNOWN)"));
    let ip = status::ip(&ready).unwrap();
    let (name, host) = (node.full("env"), node.name.clone());
    for line in [
        "GREETING=hello world",
        &format!("IP={ip}"),
        &format!("NAME={name}"),
        &format!("NODE={host}"),
        "COLOUR=teal",
        "MEMORY=64",
    ] {
        assert!(log.lines().any(|l| l == line), "{line} is not in {log}");
    }
    node.finish().await;
}

#[tokio::test]
async fn the_image_tells_what_the_manifest_does_not() {
    let Some(mut node) = Node::start().await else { return };
    let image = xtask::image::Image::Entrypoint.reference();
    let container = |name: &str| json!({ "name": name, "image": image, "imagePullPolicy": "Never" });
    let mut with_args = container("args");
    with_args["args"] = json!(["given"]);
    let mut with_command = container("command");
    with_command["command"] = json!(["/bin/sh", "-c", "pwd; echo $IMAGE_ENV"]);
    let mut p = pod("image", [container("plain"), with_args, with_command]);
    p["spec"]["restartPolicy"] = "Never".into();
    node.put("image", p);
    node.wait_phase("image", "Succeeded").await;
    for (name, expected) in [
        ("plain", "from-entrypoint from-cmd\n"),
        ("args", "from-entrypoint given\n"),
        ("command", "/www\nset\n"),
    ] {
        assert_eq!(node.container_log("image", name, "").await.body, expected, "{name}");
    }
    node.finish().await;
}

/// The file of a pod's or container's cgroup: v1 has a hierarchy for each controller.
fn cgroup_file(dirs: &[PathBuf], file: &str) -> Option<String> {
    dirs.iter().find_map(|dir| fs::read_to_string(dir.join(file)).ok()).map(|text| text.trim().to_owned())
}

#[tokio::test]
async fn resources_are_what_the_cgroups_of_pod_and_container_enforce() {
    let Some(mut node) = Node::start().await else { return };
    let mut p = pod("sized", [sh("a", FOREVER), sh("b", FOREVER)]);
    for (at, cpu, memory) in [(0, "100m", "32Mi"), (1, "50m", "16Mi")] {
        p["spec"]["containers"][at]["resources"] =
            json!({ "requests": { "cpu": cpu }, "limits": { "cpu": "250m", "memory": memory } });
    }
    node.put("sized", p);
    let ready = node.wait_ready("sized").await;
    assert_eq!(ready.status.as_ref().unwrap().qos_class.as_deref(), Some("Burstable"));
    let its_cgroup = node.places.cgroups.pod(Qos::Burstable, &PodUid::new(status::uid(&ready)));
    let pod_dirs: Vec<PathBuf> = hierarchies().iter().map(|h| below(h, &its_cgroup)).collect();
    let names = node.places.cgroups.names_of(status::id(&ready, "a").unwrap());
    let own_dirs: Vec<PathBuf> = pod_dirs.iter().flat_map(|d| names.each_ref().map(|n| d.join(n))).collect();
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let expected: &[(&str, &str, &str)] = if v2 {
        &[("memory.max", "50331648", "33554432"), ("cpu.max", "50000 100000", "25000 100000")]
    } else {
        &[
            ("memory.limit_in_bytes", "50331648", "33554432"),
            ("cpu.cfs_quota_us", "50000", "25000"),
            ("cpu.shares", "153", "102"),
        ]
    };
    for (file, of_pod, of_container) in expected {
        assert_eq!(cgroup_file(&pod_dirs, file).as_deref(), Some(*of_pod), "the pod's {file}");
        assert_eq!(cgroup_file(&own_dirs, file).as_deref(), Some(*of_container), "the container's {file}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_container_that_takes_more_memory_than_its_limit_is_killed_and_told_so() {
    let Some(mut node) = Node::start().await else { return };
    let mut p = pod(
        "greedy",
        [sh("c", "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}"), sh("d", FOREVER)],
    );
    p["spec"]["containers"][0]["resources"] = json!({ "limits": { "memory": "16Mi" } });
    p["spec"]["restartPolicy"] = "Never".into();
    node.put("greedy", p);
    let seen = node.wait("greedy", "out of memory", |p| status::exit_code(p, "c").is_some()).await;
    let ended = status::container(&seen, "c").unwrap().state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!(ended.reason.as_deref(), Some("OOMKilled"), "{ended:?}");
    assert!(status::running(&seen, "d"));
    node.finish().await;
}

#[tokio::test]
async fn host_paths_are_the_hosts_files() {
    let Some(mut node) = Node::start().await else { return };
    let host = node.dir.join("host");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("question"), "what").unwrap();
    let script = "cat /host/question > /host/answer; touch /made/here; touch /ro/not 2>/dev/null || touch /host/refused";
    let mut p = pod("host", [sh("c", &then_forever(script))]);
    p["spec"]["volumes"] = json!([
        { "name": "host", "hostPath": { "path": host, "type": "Directory" } },
        { "name": "made", "hostPath": { "path": host.join("made"), "type": "DirectoryOrCreate" } },
    ]);
    p["spec"]["containers"][0]["volumeMounts"] = json!([
        { "name": "host", "mountPath": "/host" },
        { "name": "made", "mountPath": "/made" },
        { "name": "host", "mountPath": "/ro", "readOnly": true },
    ]);
    node.put("host", &p);
    p["metadata"]["name"] = "wrong".into();
    p["spec"]["volumes"][0]["hostPath"]["path"] = json!(host.join("question"));
    node.put("wrong", &p);
    node.wait_ready("host").await;
    eventually("the container has written", async || {
        if host.join("refused").exists() { Ok(()) } else { Err("no file".to_owned()) }
    })
    .await;
    assert_eq!(fs::read_to_string(host.join("answer")).unwrap(), "what");
    assert!(host.join("made/here").exists());
    // What is no directory is not mounted as one.
    eventually("the wrong type is reported", async || {
        let log = node.log();
        if log.contains("FailedMount") { Ok(()) } else { Err(node_e2e::node::tail(&node.log_file(), 5)) }
    })
    .await;
    assert_eq!(status::phase(&node.pod("wrong").await.unwrap()), "Pending");
    node.remove("host");
    node.wait_gone("host").await;
    assert_eq!(fs::read_to_string(host.join("question")).unwrap(), "what", "a host's file went with the pod");
    node.finish().await;
}

#[tokio::test]
async fn names_and_resolver_are_as_the_pod_asks() {
    let Some(mut node) = Node::start().await else { return };
    let mut p = pod("names", [sh("c", FOREVER)]);
    p["spec"]["hostname"] = "alpha".into();
    p["spec"]["subdomain"] = "beta".into();
    p["spec"]["hostAliases"] = json!([{ "ip": "192.0.2.7", "hostnames": ["oracle", "pythia"] }]);
    p["spec"]["dnsPolicy"] = "ClusterFirst".into();
    node.put("names", p);
    let mut own = pod("own-dns", [sh("c", FOREVER)]);
    own["spec"]["dnsPolicy"] = "None".into();
    own["spec"]["dnsConfig"] = json!({
        "nameservers": ["192.0.2.53"], "searches": ["example.test"], "options": [{ "name": "ndots", "value": "2" }],
    });
    node.put("own-dns", own);
    let mut on_host = pod("on-host", [sh("c", FOREVER)]);
    on_host["spec"]["hostNetwork"] = true.into();
    node.put("on-host", on_host);

    let names = node.wait_ready("names").await;
    let ip = status::ip(&names).unwrap();
    assert_eq!(node.exec(&names, "c", "hostname").await, "alpha\n");
    let hosts = node.exec(&names, "c", "cat /etc/hosts").await;
    assert!(hosts.contains(&format!("{ip}\talpha.beta.default.svc.cluster.local\talpha\n")), "{hosts}");
    assert!(hosts.contains("192.0.2.7\toracle\tpythia\n"), "{hosts}");
    let resolv = node.exec(&names, "c", "cat /etc/resolv.conf").await;
    assert!(resolv.contains("nameserver 10.96.0.10\n"), "{resolv}");
    assert!(resolv.contains("search default.svc.cluster.local svc.cluster.local cluster.local"), "{resolv}");
    assert!(resolv.contains("options ndots:5"), "{resolv}");

    let own = node.wait_ready("own-dns").await;
    let resolv = node.exec(&own, "c", "cat /etc/resolv.conf").await;
    assert_eq!(resolv, "search example.test\nnameserver 192.0.2.53\noptions ndots:2\n");
    let on_host = node.wait_ready("on-host").await;
    let real = fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(node.exec(&on_host, "c", "readlink /proc/self/ns/net").await.trim(), real.to_str().unwrap());
    node.finish().await;
}

#[tokio::test]
async fn a_security_context_limits_user_file_system_and_capabilities() {
    let Some(mut node) = Node::start().await else { return };
    let mut p = pod("secure", [sh("user", FOREVER), sh("locked", FOREVER), sh("plain", FOREVER)]);
    let all = &mut p["spec"]["containers"];
    all[0]["securityContext"] = json!({ "runAsUser": 1234, "runAsGroup": 2345, "runAsNonRoot": true });
    all[1]["securityContext"] = json!({
        "readOnlyRootFilesystem": true,
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] },
    });
    p["spec"]["securityContext"] = json!({ "supplementalGroups": [3456] });
    node.put("secure", p);
    let image = xtask::image::Image::UserNamed.reference();
    let mut named = sh("c", FOREVER);
    named["image"] = image.into();
    named["securityContext"] = json!({ "runAsNonRoot": true });
    let mut root = sh("root", FOREVER);
    root["securityContext"] = json!({ "runAsNonRoot": true });
    node.put("refused", pod("refused", [named, root]));

    let ready = node.wait_ready("secure").await;
    let id = node.exec(&ready, "user", "id -u; id -g; id -G").await;
    assert_eq!(id, "1234\n2345\n2345 3456\n");
    assert_eq!(
        node.exec(&ready, "locked", "touch /x 2>/dev/null && echo wrote || echo refused").await,
        "refused\n"
    );
    let caps = node.exec(&ready, "locked", "grep -E 'CapEff|NoNewPrivs' /proc/1/status").await;
    assert_eq!(caps, "CapEff:\t0000000000000400\nNoNewPrivs:\t1\n");
    assert_eq!(node.exec(&ready, "plain", "touch /x && echo wrote").await, "wrote\n");
    // A name is no proof of not being root, and root is not not root.
    let refused = node
        .wait("refused", "refused", |p| {
            ["c", "root"].iter().all(|c| status::waiting(p, c) == Some("CreateContainerConfigError"))
        })
        .await;
    let why = status::container(&refused, "c").unwrap().state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert!(why.message.as_ref().unwrap().contains("non-numeric"), "{why:?}");
    node.finish().await;
}
