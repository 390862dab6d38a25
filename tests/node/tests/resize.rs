//! Resources that change while a pod runs, on a real runtime, seen in the kernel's own files.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use k8s_openapi::api::core::v1::Pod;
use node_e2e::manifest::{FOREVER, pod, sh};
use node_e2e::wait::{eventually, limit, within};
use node_e2e::{Node, Options, status};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An agent that takes pods from a directory as if an API server had them.
async fn node() -> Option<(Node, tempfile::TempDir)> {
    let dir = tempfile::Builder::new().prefix("stevedore-resize").tempdir().unwrap();
    fs::create_dir(dir.path().join("pods")).unwrap();
    let args = vec!["--standalone-pods".to_owned(), dir.path().join("pods").to_str().unwrap().to_owned()];
    let node = Node::start_with(Options { args, ..Options::default() }).await?;
    Some((node, dir))
}

/// Writes the object by a rename.
fn put(dir: &tempfile::TempDir, object: &Value) {
    let new = dir.path().join("new");
    fs::write(&new, object.to_string()).unwrap();
    fs::rename(new, dir.path().join("pods/p.json")).unwrap();
}

const UID: &str = "5b1f7a52-0000-4000-8000-0000000000e1";

/// A pod of two containers; the first has these requests, and limits of twice as much.
fn sized(generation: u32, cpu_milli: u32, memory_mib: u32, script: &str) -> Value {
    let amounts = |cpu: u32, memory: u32| json!({"cpu": format!("{cpu}m"), "memory": format!("{memory}Mi")});
    let mut p = pod("p", [sh("a", script), sh("b", FOREVER)]);
    p["metadata"]["uid"] = UID.into();
    p["metadata"]["generation"] = generation.into();
    let of = |cpu, memory| json!({"requests": amounts(cpu, memory), "limits": amounts(cpu * 2, memory * 2)});
    p["spec"]["containers"][0]["resources"] = of(cpu_milli, memory_mib);
    p["spec"]["containers"][1]["resources"] = of(20, 16);
    p
}

async fn the_pod(node: &Node) -> Result<Pod, String> {
    node.pods().await?.into_iter().find(|p| status::uid(p) == UID).ok_or_else(|| "no such pod".to_owned())
}

/// Waits until the container's status has these limits and no resize is under way.
async fn settled(node: &Node, within_time: Duration, cpu: &str, memory: &str) -> Pod {
    within(within_time, "the new resources are in effect", async || {
        let pod = the_pod(node).await?;
        let so = || {
            let r = status::container(&pod, "a")?.resources.as_ref()?.limits.as_ref()?;
            Some(r.get("cpu")?.0 == cpu && r.get("memory")?.0 == memory)
        };
        let running = status::is(&pod, "Ready") && !status::is(&pod, "PodResizeInProgress");
        if running && so() == Some(true) { Ok(pod) } else { Err(serde_json::to_string(&pod.status).unwrap()) }
    })
    .await
}

/// The file of the cgroup that a process is in, or of the one above it, by cgroup v1's or v2's name.
fn value(pid: i32, above: bool, v1: (&str, &str), v2: &str) -> String {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path_of = |wanted: &dyn Fn(&str) -> bool| {
        table.lines().find_map(|l| {
            let mut parts = l.splitn(3, ':').skip(1);
            parts.next().is_some_and(wanted).then(|| parts.next().unwrap().to_owned())
        })
    };
    let on_v1 = path_of(&|c| c.split(',').any(|c| c == v1.0)).map(|path| {
        let root = [v1.0, "cpu,cpuacct"]
            .map(|c| Path::new("/sys/fs/cgroup").join(c))
            .into_iter()
            .find(|p| p.is_dir());
        (root.unwrap(), path, v1.1)
    });
    let (root, path, file) =
        on_v1.or_else(|| path_of(&str::is_empty).map(|p| (PathBuf::from("/sys/fs/cgroup"), p, v2))).unwrap();
    let mut dir = root.join(path.trim_start_matches('/'));
    if above {
        dir.pop();
    }
    fs::read_to_string(dir.join(file)).unwrap().trim().to_owned()
}

/// Quota (of 100 ms, in microseconds) and memory limit (in MiB): of the container, and of its pod.
async fn in_the_kernel(node: &Node, pod: &Pod) -> [(u64, u64); 2] {
    let pid = node.container_pid(pod, "a").await;
    [false, true].map(|above| {
        let quota = value(pid, above, ("cpu", "cpu.cfs_quota_us"), "cpu.max");
        let memory = value(pid, above, ("memory", "memory.limit_in_bytes"), "memory.max");
        (quota.split(' ').next().unwrap().parse().unwrap(), memory.parse::<u64>().unwrap() >> 20)
    })
}

#[tokio::test]
async fn a_running_container_grows_and_shrinks_in_place() {
    let Some((node, dir)) = node().await else { return };
    put(&dir, &sized(1, 50, 32, FOREVER));
    let first = settled(&node, limit(), "100m", "64Mi").await;
    assert_eq!(in_the_kernel(&node, &first).await, [(10_000, 64), (14_000, 96)]);
    for (generation, cpu, memory, want) in [
        (2, 100, 64, [(20_000, 128), (24_000, 160)]),
        (3, 25, 32, [(5_000, 64), (9_000, 96)]),
        (4, 25, 48, [(5_000, 96), (9_000, 128)]),
    ] {
        put(&dir, &sized(generation, cpu, memory, FOREVER));
        let (limit_cpu, limit_memory) = (format!("{}m", cpu * 2), format!("{}Mi", memory * 2));
        let now = settled(&node, limit(), &limit_cpu, &limit_memory).await;
        assert_eq!(in_the_kernel(&node, &now).await, want, "generation {generation}");
        for c in ["a", "b"] {
            assert_eq!(status::id(&now, c), status::id(&first, c), "generation {generation}");
        }
        let shares = value(node.container_pid(&now, "a").await, false, ("cpu", "cpu.shares"), "cpu.weight");
        assert!(
            Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
                || shares == (cpu * 1024 / 1000).to_string(),
            "{shares}"
        );
    }
    fs::remove_file(dir.path().join("pods/p.json")).unwrap();
    node.finish().await;
}

#[tokio::test]
async fn memory_in_use_stays_and_what_was_refused_is_done_once_it_can_be() {
    let Some((node, dir)) = node().await else { return };
    // Holds 40 MiB until it is told to let go.
    let hungry = "dd if=/dev/zero of=/dev/shm/held bs=1M count=40 2>/dev/null; touch /tmp/holds\n\
                  trap 'exit 0' TERM; while :; do [ -e /tmp/free ] && rm -f /dev/shm/held; sleep 0.1 & wait $!; done";
    put(&dir, &sized(1, 50, 48, hungry));
    let first = settled(&node, limit(), "100m", "96Mi").await;
    eventually("it holds its memory", async || {
        let pid = node.container_pid(&first, "a").await;
        let usage: u64 =
            value(pid, false, ("memory", "memory.usage_in_bytes"), "memory.current").parse().unwrap();
        if usage > 40 << 20 { Ok(()) } else { Err(format!("{usage}")) }
    })
    .await;
    put(&dir, &sized(2, 50, 16, hungry));
    within(limit(), "it is refused", async || {
        let pod = the_pod(&node).await?;
        let all = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        let told =
            all.iter().find(|c| c.type_ == "PodResizeInProgress" && c.reason.as_deref() == Some("Error"));
        let told = told.and_then(|c| c.message.clone()).unwrap_or_default();
        if told.contains("memory limit (33554432) below current usage") {
            Ok(())
        } else {
            Err(format!("{all:?}"))
        }
    })
    .await;
    assert_eq!(in_the_kernel(&node, &first).await, [(10_000, 96), (14_000, 128)]);
    node.exec(&first, "a", "touch /tmp/free").await;
    let now = settled(&node, limit(), "100m", "32Mi").await;
    assert_eq!(status::id(&now, "a"), status::id(&first, "a"));
    assert_eq!(in_the_kernel(&node, &now).await, [(10_000, 32), (14_000, 64)]);
    fs::remove_file(dir.path().join("pods/p.json")).unwrap();
    node.finish().await;
}

#[tokio::test]
async fn an_agent_killed_while_it_resizes_goes_on_and_restarts_nothing() {
    let Some((mut node, dir)) = node().await else { return };
    put(&dir, &sized(1, 50, 32, FOREVER));
    let first = settled(&node, limit(), "100m", "64Mi").await;
    for n in 0..12_u32 {
        let (cpu, memory) = if n % 2 == 0 { (100, 64) } else { (50, 32) };
        put(&dir, &sized(2 + n, cpu, memory, FOREVER));
        // The instant of the kill is what is varied here; nothing is waited for.
        tokio::time::sleep(Duration::from_millis(u64::from(n) * 15)).await;
        node.kill9();
        node.launch().await;
        let (limit_cpu, limit_memory) = (format!("{}m", cpu * 2), format!("{}Mi", memory * 2));
        let now = settled(&node, limit() * 2, &limit_cpu, &limit_memory).await;
        let want = if n % 2 == 0 { [(20_000, 128), (24_000, 160)] } else { [(10_000, 64), (14_000, 96)] };
        assert_eq!(in_the_kernel(&node, &now).await, want, "kill {n}");
        for c in ["a", "b"] {
            assert_eq!(
                (status::id(&now, c), status::restarts(&now, c)),
                (status::id(&first, c), 0),
                "kill {n}"
            );
        }
    }
    node.wait_healthy().await;
    fs::remove_file(dir.path().join("pods/p.json")).unwrap();
    node.finish().await;
}
