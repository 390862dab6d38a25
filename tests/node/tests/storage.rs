//! The root directory full, read-only, or holding rubbish; volumes that show objects.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use k8s_openapi::api::core::v1::Pod;
use nix::mount::{MsFlags, mount};
use node_e2e::manifest::{FOREVER, pod, sh};
use node_e2e::node::tail;
use node_e2e::wait::eventually;
use node_e2e::{Node, Options, http, status};
use serde_json::{Value, json};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// A small file system; the node that has it as its root directory unmounts it.
fn small(name: &str) -> Option<(PathBuf, tempfile::TempDir)> {
    let parent = tempfile::Builder::new().prefix(name).tempdir().unwrap();
    let dir = parent.path().join("root");
    fs::create_dir(&dir).unwrap();
    match mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), Some("size=256k")) {
        Ok(()) => Some((dir, parent)),
        Err(error) => {
            node_e2e::skip(format!("cannot mount a tmpfs: {error}"));
            None
        }
    }
}

fn read_only(dir: &Path, on: bool) {
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    flags.set(MsFlags::MS_RDONLY, on);
    mount(None::<&str>, dir, None::<&str>, flags, None::<&str>).unwrap();
}

fn with_volume(name: &str) -> Value {
    let mut p = pod(name, [sh("c", FOREVER)]);
    p["spec"]["volumes"] = json!([{ "name": "data", "emptyDir": {} }]);
    p["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
    p
}

async fn said(node: &Node, word: &str) {
    eventually(&format!("the agent says {word:?}"), async || {
        if node.log().contains(word) { Ok(()) } else { Err(tail(&node.log_file(), 5)) }
    })
    .await;
}

#[tokio::test]
async fn a_full_disk_keeps_new_pods_waiting_and_running_ones_running() {
    let Some((root, _parent)) = small("stevedore-full") else { return };
    let options = Options { root_dir: Some(root.clone()), ..Options::default() };
    let Some(mut node) = Node::start_with(options).await else { return };
    node.put("good", with_volume("good"));
    let before = node.wait_ready("good").await;
    let ballast = root.join("ballast");
    let mut file = fs::File::create(&ballast).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    drop(file);
    node.put("late", with_volume("late"));
    said(&node, "No space left on device").await;
    assert_eq!(http::get(node.healthz, "/healthz").await.unwrap().status, 200);
    // Neither a restart of the agent nor one of a container needs room for what is there already.
    node.kill9();
    node.launch().await;
    node.wait_healthy().await;
    let after = node.wait_ready("good").await;
    assert_eq!(status::container(&before, "c"), status::container(&after, "c"));
    let pid = node.container_pid(&after, "c").await;
    xtask::proc::ProcId::of(pid).unwrap().signal(rustix::process::Signal::KILL);
    let again =
        node.wait("good", "restarted", |p| status::restarts(p, "c") == 1 && status::is(p, "Ready")).await;
    assert!(node.exec(&again, "c", "cat /etc/hosts").await.contains(status::ip(&again).unwrap()));
    assert_eq!(status::phase(&node.pod("late").await.unwrap()), "Pending");
    fs::remove_file(ballast).unwrap();
    node.wait_ready("late").await;
    node.finish().await;
}

#[tokio::test]
async fn a_read_only_root_directory_keeps_new_pods_waiting_and_running_ones_running() {
    let Some((root, _parent)) = small("stevedore-ro") else { return };
    let options = Options { root_dir: Some(root.clone()), ..Options::default() };
    let Some(mut node) = Node::start_with(options).await else { return };
    node.put("good", with_volume("good"));
    let before = node.wait_ready("good").await;
    read_only(&root, true);
    node.put("late", with_volume("late"));
    said(&node, "Read-only file system").await;
    node.kill9();
    node.launch().await;
    node.wait_healthy().await;
    let after = node.wait_ready("good").await;
    assert_eq!(status::container(&before, "c"), status::container(&after, "c"));
    assert_eq!(http::get(node.healthz, "/healthz").await.unwrap().status, 200);
    read_only(&root, false);
    node.wait_ready("late").await;
    node.finish().await;
}

#[tokio::test]
async fn a_root_directory_that_cannot_be_used_is_refused_by_name() {
    let Some((root, _parent)) = small("stevedore-unusable") else { return };
    read_only(&root, true);
    let options = Options { root_dir: Some(root.clone()), stopped: true, ..Options::default() };
    let Some(mut node) = Node::start_with(options).await else { return };
    node.launch().await;
    let status = node.wait_exit().await;
    assert_eq!(status.code(), Some(1));
    let last = tail(&node.log_file(), 1);
    assert!(last.starts_with("error: ") && last.contains(root.to_str().unwrap()), "{last}");
    assert!(last.contains("Read-only file system"), "{last}");
    read_only(&root, false);
    node.launch().await;
    node.wait_healthy().await;
    node.finish().await;
}

#[tokio::test]
async fn rubbish_in_the_state_directories_costs_no_pod() {
    let Some(mut node) = Node::start().await else { return };
    node.put("a", with_volume("a"));
    node.put("b", with_volume("b"));
    let a = node.wait_ready("a").await;
    let b = node.wait_ready("b").await;
    assert!(node.stop().await.success());
    let pods = node.places.root_dir.join("pods");
    let of_a = pods.join(status::uid(&a));
    fs::write(of_a.join("etc-hosts"), [0xff; 100]).unwrap();
    fs::write(of_a.join("plugins/kubernetes.io~empty-dir/data/ready"), [0; 7]).unwrap();
    fs::write(of_a.join("unexpected"), "x").unwrap();
    fs::remove_dir_all(of_a.join("plugins/kubernetes.io~empty-dir")).unwrap();
    fs::write(pods.join("a-file"), "x").unwrap();
    fs::create_dir_all(pods.join("of a pod that never was/volumes/kubernetes.io~empty-dir/v/deep")).unwrap();
    fs::create_dir_all(pods.join("0badf00d-0000-0000-0000-000000000000/volumes/unknown~plugin/v")).unwrap();
    fs::write(node.dir.join("pki/kubelet.crt"), "-----BEGIN RUBBISH").unwrap();
    let private = node.places.private.clone();
    let rubbish = private.as_ref().map(|(base, bridge)| {
        let leases = base.join("cni/leases").join(bridge);
        let ip = status::ip(&a).unwrap();
        let (network, _) = ip.rsplit_once('.').unwrap();
        // The remains of a writer that was cut off, and what no writer of leases wrote.
        fs::write(leases.join(format!("{network}.200")), "").unwrap();
        fs::write(leases.join(format!("{network}.201")), [0xfe; 9]).unwrap();
        fs::write(leases.join("last_reserved_ip.0"), "nowhere").unwrap();
        leases.join(format!("{network}.201"))
    });
    node.launch().await;
    node.wait_healthy().await;
    for (name, before) in [("a", &a), ("b", &b)] {
        let after = node.wait_ready(name).await;
        assert_eq!(status::container(before, "c"), status::container(&after, "c"), "{name} was touched");
    }
    node.put("new", with_volume("new"));
    let new = node.wait_ready("new").await;
    assert_ne!(status::ip(&new), status::ip(&a));
    assert_ne!(status::ip(&new), status::ip(&b));
    let pid = node.container_pid(&a, "c").await;
    xtask::proc::ProcId::of(pid).unwrap().signal(rustix::process::Signal::KILL);
    let again =
        node.wait("a", "restarted", |p| status::restarts(p, "c") == 1 && status::is(p, "Ready")).await;
    assert!(node.exec(&again, "c", "cat /etc/hosts").await.contains(status::ip(&again).unwrap()));
    assert_eq!(node.https("/healthz").await.status, 200);
    // What is no pod's directory is not the agent's to remove, nor is a lease that it cannot read.
    fs::remove_file(pods.join("a-file")).unwrap();
    if let Some(path) = rubbish {
        assert_eq!(fs::read(&path).unwrap(), [0xfe; 9]);
        fs::remove_file(&path).unwrap();
        let _reclaimed_or_not = fs::remove_file(
            path.with_file_name(path.file_name().unwrap().to_str().unwrap().replace(".201", ".200")),
        );
    }
    node.finish().await;
}

/// A directory of objects and an agent that is told of it.
async fn node_with_objects() -> Option<(Node, tempfile::TempDir)> {
    let dir = tempfile::Builder::new().prefix("stevedore-objects").tempdir().unwrap();
    fs::create_dir(dir.path().join("o")).unwrap();
    let args = vec!["--standalone-objects".to_owned(), dir.path().join("o").to_str().unwrap().to_owned()];
    let node = Node::start_with(Options { args, ..Options::default() }).await?;
    Some((node, dir))
}

/// Writes the object by a rename.
fn put_object(dir: &tempfile::TempDir, kind: &str, name: &str, data: &Value) {
    let key = if kind == "Secret" { "stringData" } else { "data" };
    let object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, key: data});
    let new = dir.path().join("new");
    fs::write(&new, object.to_string()).unwrap();
    fs::rename(new, dir.path().join("o").join(format!("{kind}-{name}.json"))).unwrap();
}

/// A pod with a UID of its own, all four kinds of volumes that show objects, and variables.
fn with_objects(app: &str) -> Value {
    let mut p = pod("shows", [sh("c", FOREVER)]);
    p["metadata"]["uid"] = "5b1f7a52-0000-4000-8000-000000000005".into();
    p["metadata"]["labels"] = json!({ "app": app });
    p["spec"]["securityContext"] = json!({ "fsGroup": 2000 });
    let label = json!({"path": "labels", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.labels"}});
    p["spec"]["volumes"] = json!([
        {"name": "cm", "configMap": {"name": "m"}},
        {"name": "sec", "secret": {"secretName": "s", "defaultMode": 0o400}},
        {"name": "down", "downwardAPI": {"items": [label,
            {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}}]}},
        {"name": "proj", "projected": {"sources": [
            {"configMap": {"name": "m", "items": [{"key": "a", "path": "cm/a"}]}},
            {"secret": {"name": "s", "items": [{"key": "k", "path": "k", "mode": 0o440}]}},
            {"downwardAPI": {"items": [label]}}]}},
    ]);
    let c = &mut p["spec"]["containers"][0];
    c["resources"] = json!({"limits": {"cpu": "250m"}});
    c["env"] = json!([{"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]);
    c["envFrom"] = json!([{"prefix": "P_", "configMapRef": {"name": "m"}}]);
    let mounts = ["cm", "sec", "down", "proj"].map(|v| json!({"name": v, "mountPath": format!("/{v}")}));
    c["volumeMounts"] = json!(mounts);
    p
}

/// Waits until the command prints so in the container.
async fn until_shown(node: &Node, pod: &Pod, script: &str, want: &str) {
    eventually(&format!("{script} shows {want:?}"), async || {
        let got = node.exec(pod, "c", script).await;
        if got.trim_end() == want { Ok(()) } else { Err(got) }
    })
    .await;
}

#[tokio::test]
async fn a_pod_shows_its_objects_follows_them_and_kills_of_the_agent_disturb_neither() {
    let Some((mut node, objects)) = node_with_objects().await else { return };
    put_object(&objects, "ConfigMap", "m", &json!({"a": "1", "b": "1"}));
    put_object(&objects, "Secret", "s", &json!({"k": "vk"}));
    node.put("shows", with_objects("one"));
    let before = node.wait_ready("shows").await;
    let all =
        "cat /cm/a /sec/k /down/cpu /proj/cm/a /proj/k /down/labels /proj/labels; echo; echo $K $P_a $P_b";
    let want = "1vk2501vkapp=\"one\"app=\"one\"\nvk 1 1";
    assert_eq!(node.exec(&before, "c", all).await.trim_end(), want);
    let stat = node.exec(&before, "c", "stat -L -c '%a %g' /sec/k /proj/k /cm/a /sec").await;
    assert_eq!(stat, "440 2000\n440 2000\n644 2000\n3777 2000\n");
    let written = node
        .exec(&before, "c", "for v in cm sec down proj; do echo x 2>/dev/null >/$v/x || echo $v; done")
        .await;
    assert_eq!(written, "cm\nsec\ndown\nproj\n", "containers only read");
    let kinds =
        node.exec(&before, "c", "grep -E ' /(sec|down|proj) ' /proc/mounts | cut -d' ' -f3 | sort -u").await;
    assert_eq!(kinds, "tmpfs\n", "nothing of a secret is on a disk");

    // The objects change, and the pod's own fields.
    put_object(&objects, "ConfigMap", "m", &json!({"a": "2", "c": "2"}));
    put_object(&objects, "Secret", "s", &json!({"k": "vk2"}));
    node.put("shows", with_objects("two"));
    until_shown(&node, &before, "cat /cm/a /proj/cm/a /cm/c; test -e /cm/b || echo -n gone", "222gone").await;
    until_shown(&node, &before, "cat /sec/k /proj/k", "vk2vk2").await;
    until_shown(&node, &before, "cat /down/labels /proj/labels", "app=\"two\"app=\"two\"").await;

    // Killed in the midst of changes, the agent that follows shows the last of them.
    let mut last = 0;
    for round in 0..6 {
        for _ in 0..=round * 3 {
            last += 1;
            put_object(&objects, "ConfigMap", "m", &json!({"a": last.to_string()}));
            tokio::task::yield_now().await;
        }
        node.kill9();
        last += 1;
        put_object(&objects, "ConfigMap", "m", &json!({"a": last.to_string()}));
        node.launch().await;
        until_shown(&node, &before, "cat /cm/a /proj/cm/a", &format!("{last}{last}")).await;
    }
    node.wait_healthy().await;
    let after = node.wait_ready("shows").await;
    assert_eq!(status::container(&before, "c"), status::container(&after, "c"), "the container was touched");
    // Nothing is left of the writes that were cut off.
    let volumes = node.root_dir().join("pods").join(status::uid(&after)).join("volumes");
    for (plugin, volume, links) in
        [("configmap", "cm", vec!["a"]), ("projected", "proj", vec!["cm", "k", "labels"])]
    {
        eventually(&format!("{volume} is tidy"), async || {
            let dir = volumes.join(format!("kubernetes.io~{plugin}")).join(volume);
            let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            let (ours, mut shown): (Vec<_>, Vec<_>) = names.partition(|n| n.starts_with(".."));
            shown.sort();
            if ours.len() == 2 && shown == links { Ok(()) } else { Err(format!("{ours:?} {shown:?}")) }
        })
        .await;
    }
    node.finish().await;
}

#[tokio::test]
async fn a_pod_waits_for_the_objects_it_refers_to_and_goes_on_when_they_appear() {
    let Some((mut node, objects)) = node_with_objects().await else { return };
    put_object(&objects, "Secret", "s", &json!({"k": "vk"}));
    node.put("shows", with_objects("one"));
    said(&node, "MountVolume.SetUp failed for volume").await;
    let waits = node.wait("shows", "waiting", |p| status::waiting(p, "c").is_some()).await;
    assert_eq!(status::waiting(&waits, "c"), Some("ContainerCreating"));
    put_object(&objects, "ConfigMap", "m", &json!({"a": "1", "b": "1"}));
    let runs = node.wait_ready("shows").await;
    assert_eq!(node.exec(&runs, "c", "cat /cm/a; echo $P_a").await, "11\n");

    let mut p = pod("env", [sh("c", FOREVER)]);
    p["spec"]["containers"][0]["env"] =
        json!([{"name": "L", "valueFrom": {"configMapKeyRef": {"name": "later", "key": "l"}}}]);
    node.put("env", p);
    let waits = |p: &Pod| status::waiting(p, "c") == Some("CreateContainerConfigError");
    node.wait("env", "waiting for a ConfigMap", waits).await;
    put_object(&objects, "ConfigMap", "later", &json!({"l": "here"}));
    let runs = node.wait_ready("env").await;
    assert_eq!(node.exec(&runs, "c", "echo $L").await, "here\n");
    // What is wrong with an object is told, and takes nothing from the pods.
    fs::write(
        objects.path().join("o/bad.yaml"),
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {a/b: c}\n",
    )
    .unwrap();
    said(&node, "data[a/b]").await;
    node.finish().await;
}

#[tokio::test]
async fn without_a_directory_of_objects_a_reference_is_refused_by_field_and_flag() {
    let Some(mut node) = Node::start().await else { return };
    node.put("shows", with_objects("one"));
    said(&node, "spec.volumes[0].configMap").await;
    said(&node, "without --standalone-objects").await;
    assert!(node.pod("shows").await.is_err());
    node.finish().await;
}
