//! The root directory full, read-only, or holding rubbish.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

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
