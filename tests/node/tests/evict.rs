//! Eviction on a real runtime: pods that pass limits of local storage, a disk that fills, memory that goes fast.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use node_e2e::inside::Inside;
use node_e2e::wait::eventually;
use node_e2e::{Node, Options, manifest, skip};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

async fn start(config: Value, root_dir: Option<PathBuf>) -> Option<(Node, Inside)> {
    let options = Options { stopped: true, config: Some(config), root_dir, ..Options::default() };
    let node = Node::start_with(options).await?;
    let inside = Inside::start(&node).await;
    Some((node, inside))
}

/// No threshold of the machine's own.
fn no_thresholds() -> Value {
    json!({"evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
        "imagefs.available": "0%", "imagefs.inodesFree": "0%"}})
}

fn writes(name: &str, path: &str, mib: u32) -> Value {
    let script =
        format!("dd if=/dev/zero of={path} bs=1M count={mib} 2>/dev/null; while :; do sleep 1; done");
    manifest::pod(name, [manifest::sh("c", &script)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_has_more_in_its_volume_than_it_may_is_evicted_and_its_data_goes() {
    let Some((node, mut agent)) = start(no_thresholds(), None).await else { return };
    let limited = |name: &str, mib| {
        let mut pod = writes(name, "/v/f", mib);
        pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {"sizeLimit": "5Mi"}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        pod
    };
    agent.put(&limited("within", 4)).await;
    agent.put(&limited("above", 15)).await;
    let told = agent.until_failed("above").await;
    let want =
        ("Evicted".to_owned(), "Usage of EmptyDir volume \"v\" exceeds the limit \"5Mi\". ".to_owned());
    assert_eq!(told, want);
    let volumes = node.root_dir().join("pods/above/volumes");
    eventually("its data is gone", async || match volumes.exists() {
        true => Err(volumes.display().to_string()),
        false => Ok(()),
    })
    .await;
    agent.until_ready("within").await;
    agent.finish(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_writes_more_to_its_layer_than_it_may_is_evicted() {
    let Some((node, mut agent)) = start(no_thresholds(), None).await else { return };
    let mut pod = writes("above", "/f", 15);
    pod["spec"]["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "5Mi"}});
    agent.put(&pod).await;
    let message = "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. ";
    assert_eq!(agent.until_failed("above").await, ("Evicted".to_owned(), message.to_owned()));
    agent.finish(node).await;
}

/// A file system of its own for an agent's directory.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    /// ext4 of so many MiB; `None` where it cannot be had, which is said.
    fn of(mib: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let disk = Self { dir };
        std::fs::create_dir(disk.root()).unwrap();
        let made = run("mkfs.ext4", &[Path::new("-q"), Path::new("-m0"), &image])
            .and_then(|()| run("mount", &[Path::new("-oloop"), &image, &disk.root()]));
        match made {
            Ok(()) => Some(disk),
            Err(why) => {
                skip(why);
                None
            }
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A node that ended in order has unmounted all that lay below its directory, and that itself.
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounted = table.contains(&format!(" {} ", self.root().display()));
        if let Err(why) = if mounted { run("umount", &[&self.root()]) } else { Ok(()) } {
            eprintln!("{why}");
        }
    }
}

fn run(program: &str, arguments: &[&Path]) -> Result<(), String> {
    let done = Command::new(program).args(arguments).output().map_err(|e| format!("{program}: {e}"))?;
    match done.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&done.stderr))),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fills_the_agents_disk_goes_and_the_others_stay() {
    let Some(disk) = Disk::of(200) else { return };
    let mut config = no_thresholds();
    config["evictionHard"]["nodefs.available"] = json!("30%");
    config["evictionPressureTransitionPeriod"] = json!("1s");
    let Some((node, mut agent)) = start(config, Some(disk.root())).await else { return };
    let with_volume = |name: &str, mib| {
        let mut pod = writes(name, "/v/f", mib);
        pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        pod
    };
    agent.put(&with_volume("small", 1)).await;
    agent.until_ready("small").await;
    agent.put(&with_volume("full", 180)).await;
    let (reason, message) = agent.until_failed("full").await;
    assert_eq!(reason, "Evicted");
    assert!(message.starts_with("The node was low on resource: ephemeral-storage. "), "{message}");
    eventually("the node has room again", async || {
        let pressure = agent.agent.pressure.borrow().clone();
        if pressure.conditions.is_empty() { Ok(()) } else { Err(format!("{pressure:?}")) }
    })
    .await;
    agent.until_ready("small").await;
    agent.finish(node).await;
}

/// This kernel is user-mode Linux: what is killed in it is nobody else's.
fn whole_node_is_ours() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("User Mode Linux"))
}

fn oom_kills() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("oom_kill ")).expect("the kernel counts them");
    line.trim().parse().unwrap()
}

/// Takes 10 MiB of memory ten times a second, as processes that hold it; ends at no signal but the last.
const HOG: &str = "while :; do dd if=/dev/zero bs=10M count=1 2>/dev/null | sleep 1000 & usleep 95000; done";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_takes_a_hundred_mebibytes_a_second_goes_before_the_kernel_kills() {
    if !whole_node_is_ours() {
        return skip("needs a node with a kernel of its own: `hack/vm test evict`");
    }
    let runs: u32 = std::env::var("STEVEDORE_EVICT_RUNS").map_or(3, |text| text.parse().unwrap());
    let mut config = no_thresholds();
    config["evictionHard"]["memory.available"] = json!("400Mi");
    config["evictionPressureTransitionPeriod"] = json!("1s");
    let Some((node, mut agent)) = start(config, None).await else { return };
    agent.put(&manifest::pod("calm", [manifest::sh("c", manifest::FOREVER)])).await;
    agent.until_ready("calm").await;
    let mut killed = 0;
    for n in 0..runs {
        eventually("the node has memory again", async || {
            let pressure = agent.agent.pressure.borrow().clone();
            if pressure.conditions.is_empty() { Ok(()) } else { Err(format!("{pressure:?}")) }
        })
        .await;
        let (name, before, began) = (format!("hog{n}"), oom_kills(), Instant::now());
        let mut pod = manifest::pod(&name, [manifest::sh("c", HOG)]);
        // It asks for something, so that it may come in whatever the node is short of.
        pod["spec"]["containers"][0]["resources"] = json!({"requests": {"memory": "1Mi"}});
        agent.put(&pod).await;
        let (reason, message) = agent.until_failed(&name).await;
        let kills = oom_kills() - before;
        println!("run {n}: {reason} after {:?}, {kills} killed by the kernel: {message}", began.elapsed());
        killed += u32::from(kills > 0 || reason != "Evicted");
        agent.gone(&name).await;
        agent.until_ready("calm").await;
    }
    assert!(killed * 20 <= runs, "the kernel was first in {killed} of {runs} runs");
    agent.finish(node).await;
}
