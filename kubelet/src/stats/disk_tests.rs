//! What pods take of disks, and the whole summary against the recorded one.

use super::summary::FsStats;
use super::tests::{Pods, Tree, node_of_one_pod, room};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Gives the pod of `pods` these volumes, and makes its directory.
fn with_volumes(tree: &Tree, pods: &Pods, volumes: serde_json::Value) -> PathBuf {
    let pod = json!({"spec": {"containers": [], "volumes": volumes}});
    pods.0.lock().unwrap()[0].pod = Arc::new(serde_json::from_value(pod).unwrap());
    let dir = tree.dir.path().join("pods/u1");
    std::fs::create_dir_all(dir.join("volumes")).unwrap();
    dir
}

#[tokio::test]
async fn ephemeral_storage_is_layers_logs_volumes_on_disk_and_the_hosts_file() {
    let (tree, pods) = node_of_one_pod(false);
    let volumes = json!([
        {"name": "v", "emptyDir": {}},
        {"name": "cm", "configMap": {"name": "x"}},
        {"name": "s", "secret": {"secretName": "x"}},
        {"name": "h", "hostPath": {"path": "/"}},
    ]);
    let dir = with_volumes(&tree, &pods, volumes);
    for (plugin, name, bytes) in [("empty-dir", "v", 10_000), ("configmap", "cm", 1), ("secret", "s", 1)] {
        let at = dir.join(format!("volumes/kubernetes.io~{plugin}/{name}"));
        std::fs::create_dir_all(&at).unwrap();
        std::fs::write(at.join("file"), vec![1; bytes]).unwrap();
    }
    std::fs::write(dir.join("etc-hosts"), "127.0.0.1 localhost").unwrap();
    let logs = tree.dir.path().join("logs/demo_facts-a_u1/c");
    std::fs::create_dir_all(&logs).unwrap();
    std::fs::write(logs.join("0.log"), vec![1; 5000]).unwrap();

    let all = room(&tree, &pods, false).pods(Duration::ZERO).await;
    let pod = &all[0];
    let names: Vec<(&str, bool)> = pod.volume.iter().map(|v| (v.name.as_str(), v.ephemeral)).collect();
    assert_eq!(names, [("v", true), ("cm", true), ("s", false)], "a host's directory is not the pod's");
    let used = |fs: FsStats| (fs.used_bytes.unwrap(), fs.inodes_used.unwrap());
    let (v, cm, s) = (used(pod.volume[0].fs), used(pod.volume[1].fs), used(pod.volume[2].fs));
    assert!(v.0 > 10_000 && v.1 == 2 && s.1 == 2, "{v:?} {s:?}");
    let container = &pod.containers[0];
    let (layer, logs) = (used(container.rootfs.unwrap()), used(container.logs.unwrap()));
    assert_eq!(layer, (28_672, 10), "as the runtime tells");
    assert!(logs.0 >= 5000 && logs.1 == 1);
    let hosts = std::fs::metadata(dir.join("etc-hosts")).unwrap();
    let hosts = std::os::unix::fs::MetadataExt::blocks(&hosts) * 512;
    let whole = pod.ephemeral_storage.unwrap();
    assert_eq!(used(whole), (layer.0 + logs.0 + v.0 + cm.0 + hosts, layer.1 + logs.1 + v.1 + cm.1 + 1));
    assert!(whole.capacity_bytes > whole.used_bytes && whole.inodes_free > Some(0));
}

#[tokio::test]
async fn a_volume_in_memory_is_told_by_its_file_system_and_is_no_ephemeral_storage() {
    let (tree, pods) = node_of_one_pod(false);
    let volumes = json!([{"name": "m", "emptyDir": {"medium": "Memory"}}]);
    let dir = with_volumes(&tree, &pods, volumes).join("volumes/kubernetes.io~empty-dir/m");
    std::fs::create_dir_all(&dir).unwrap();
    let none = rustix::mount::MountFlags::empty();
    if let Err(e) = rustix::mount::mount("tmpfs", &dir, "tmpfs", none, Some(c"size=1m")) {
        return eprintln!("SKIP a_volume_in_memory_is_told_by_its_file_system: cannot mount: {e}");
    }
    let full = std::fs::write(dir.join("file"), vec![1; 2 << 20]).is_err();
    let all = room(&tree, &pods, false).pods(Duration::ZERO).await;
    rustix::mount::unmount(&dir, rustix::mount::UnmountFlags::empty()).unwrap();
    let volume = &all[0].volume[0];
    assert!(full && !volume.ephemeral);
    let (used, capacity) = (volume.fs.used_bytes.unwrap(), volume.fs.capacity_bytes.unwrap());
    assert_eq!((capacity, volume.fs.available_bytes), (1 << 20, Some(0)), "it is full");
    assert_eq!(used, capacity);
    assert_eq!(all[0].ephemeral_storage.unwrap().used_bytes, Some(28_672), "the layer alone");
}

#[tokio::test]
async fn volumes_are_not_measured_where_that_is_switched_off() {
    let (tree, pods) = node_of_one_pod(false);
    let dir = with_volumes(&tree, &pods, json!([{"name": "v", "emptyDir": {}}]));
    std::fs::create_dir_all(dir.join("volumes/kubernetes.io~empty-dir/v")).unwrap();
    let (population, runtime) = super::tests::parts(&tree, &pods, false);
    let config = super::Config { volume_period: None, ..super::tests::config(&tree) };
    let room = super::Stats::new(config, tree.lookup(), population, runtime);
    let all = room.pods(Duration::ZERO).await;
    assert!(all[0].volume.is_empty() && all[0].containers[0].rootfs.is_some());
}

/// The shape of the Summary API's answer: every path to a value, with lists as one.
fn shape(value: &serde_json::Value, at: &str, to: &mut std::collections::BTreeSet<String>) {
    match value {
        serde_json::Value::Object(map) => map.iter().for_each(|(k, v)| shape(v, &format!("{at}/{k}"), to)),
        serde_json::Value::Array(list) => list.iter().for_each(|v| shape(v, &format!("{at}[]"), to)),
        _ => {
            to.insert(at.to_owned());
        }
    }
}

/// What of the recorded summary a node like the recorded one does not show here, with why.
const NOT_SHOWN: [(&str, &str); 5] = [
    (
        "/psi/",
        "cgroup v1 has no pressure files; upstream shows zeros. The node's own comes from /proc/pressure",
    ),
    ("/swapAvailableBytes", "known where swap has a limit; the recording shows zero without"),
    ("/containers[]/memory/availableBytes", "likewise of memory"),
    ("/network/", "as the machine has interfaces"),
    (
        "/usageNanoCores",
        "the first reading has no rate; see `rates_are_of_what_was_used_between_two_readings`",
    ),
];

/// What is shown and not in the recording: its agent knew containers by the runtime's word alone.
const MORE: [&str; 2] = ["/pods[]/process_stats/process_count", "/pods[]/memory/availableBytes"];

#[tokio::test]
async fn the_summary_has_every_field_of_the_recorded_one_and_no_other() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden/kubelet");
    let read = |file: &str| -> Option<serde_json::Value> {
        serde_json::from_slice(&std::fs::read(golden.join(file)).ok()?).ok()
    };
    let recorded = read("summary.json").zip(read("summary_only_cpu_and_memory.json"));
    let Some((whole, only)) = recorded else {
        return eprintln!(
            "SKIP the_summary_has_every_field_of_the_recorded_one: nothing at {}",
            golden.display()
        );
    };
    let (tree, pods) = node_of_one_pod(false);
    let dir = with_volumes(&tree, &pods, json!([{"name": "v", "emptyDir": {}}]));
    std::fs::create_dir_all(dir.join("volumes/kubernetes.io~empty-dir/v")).unwrap();
    std::fs::create_dir_all(tree.dir.path().join("logs/demo_facts-a_u1/c")).unwrap();
    std::fs::write(tree.dir.path().join("logs/demo_facts-a_u1/c/0.log"), "x").unwrap();
    let path = "/kubepods/burstable/podu1/c1";
    tree.file("memory", path, "cgroup.procs", &format!("{}\n", std::process::id()));
    let room = room(&tree, &pods, false);
    let summary = room.summary(Duration::ZERO).await;
    let only_ours = room.cpu_and_memory(Duration::ZERO).await;
    for (want, got) in [(whole, &summary), (only, &only_ours)] {
        let (mut wanted, mut have) = (Default::default(), Default::default());
        shape(&want, "", &mut wanted);
        shape(&serde_json::to_value(&**got).unwrap(), "", &mut have);
        let judged = |path: &&String| !NOT_SHOWN.iter().any(|(part, _)| path.contains(part));
        let missing: Vec<&String> = wanted.difference(&have).filter(judged).collect();
        assert!(missing.is_empty(), "not there: {missing:#?}");
        let more = have.difference(&wanted).filter(judged).filter(|path| !MORE.contains(&path.as_str()));
        let more: Vec<&String> = more.collect();
        assert!(more.is_empty(), "upstream has no {more:#?}");
    }
    let text = serde_json::to_string(&*summary).unwrap();
    assert!(text.contains(r#""podRef":{"name":"facts-a","namespace":"demo","uid":"u1"}"#), "{text}");
    assert!(text.contains(r#""startTime":"2023-11-14T22:13:20Z""#), "whole seconds: {text}");
}
