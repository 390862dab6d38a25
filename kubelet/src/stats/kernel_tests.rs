//! The room on this machine's own cgroups, v1 or v2: a process that is put into one is measured.

use super::subject::{Population, Subject, Unit};
use super::tests::{FakeRuntime, Pods, subject};
use super::{Config, Stats};
use crate::cgroup::{CgroupConfig, Cgroups, Lookup, NodeValues, PodValues};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "blkio"];

/// Cgroups below a root of the test's own, removed at its end.
struct Own {
    root: String,
    cgroups: Cgroups,
}

impl Own {
    /// `None`, said aloud, where cgroups cannot be made.
    async fn make(test: &str) -> Option<Self> {
        let root = format!("/stevedore-stats-test-{}", std::process::id());
        let made = async {
            let cgroups = Cgroups::detect(CgroupConfig::host(&root, true))?;
            let own = Self { root: root.clone(), cgroups };
            own.cgroups.setup_node(&NodeValues::default()).await?;
            Ok::<_, crate::cgroup::Error>(own)
        };
        match made.await {
            Ok(own) => Some(own),
            Err(e) => {
                eprintln!("SKIP {test}: {e}");
                None
            }
        }
    }

    /// The cgroup of a container of the pod, in every hierarchy.
    fn container(&self, pod: &Subject, id: &str) -> Vec<PathBuf> {
        let lookup = self.cgroups.lookup();
        let path = lookup.pod(pod.qos, &pod.id.uid).unwrap();
        if lookup.is_v2() {
            let dir = lookup.dir("memory", &path).unwrap();
            std::fs::write(dir.join("cgroup.subtree_control"), "+cpu +memory +pids").unwrap();
        }
        let mut dirs: Vec<PathBuf> =
            CONTROLLERS.iter().filter_map(|c| lookup.dir(c, &format!("{path}/{id}"))).collect();
        dirs.dedup();
        for dir in &dirs {
            std::fs::create_dir(dir).unwrap();
        }
        dirs
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        fn remove(dir: &std::path::Path) {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    remove(&entry.path());
                }
            }
            if let Err(e) = std::fs::remove_dir(dir) {
                eprintln!("left behind: {}: {e}", dir.display());
            }
        }
        let lookup = self.cgroups.lookup();
        let every = [
            "cpu",
            "cpuacct",
            "memory",
            "pids",
            "blkio",
            "cpuset",
            "devices",
            "freezer",
            "name=systemd",
            "hugetlb",
        ];
        for dir in every.iter().filter_map(|c| lookup.dir(c, &self.root)) {
            if dir.exists() {
                remove(&dir);
            }
        }
        // The hybrid layout's own hierarchy has no controller to be found by.
        let unified = PathBuf::from(format!("/sys/fs/cgroup/unified{}", self.root));
        if unified.exists() {
            remove(&unified);
        }
    }
}

/// A shell that works when it is told to, and ends with the test.
struct Worker(Child);

impl Worker {
    fn start() -> Self {
        let script = "read go; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo done; read end";
        let shell =
            Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        Self(shell.unwrap())
    }

    fn work(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "done\n");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn room(lookup: Lookup, pods: &Pods) -> Stats {
    let config = Config {
        node_name: "node-1".to_owned(),
        root_dir: "/".into(),
        pod_logs_dir: "/nowhere".into(),
        mount_table: crate::mountinfo::SELF.into(),
        volume_period: None,
    };
    let population: Arc<dyn Population> = Arc::new(pods.clone());
    Stats::new(config, lookup, population, Arc::new(FakeRuntime { store: "/".into(), hangs: false }))
}

#[tokio::test]
async fn a_process_in_a_real_cgroup_is_measured_as_it_is() {
    let Some(own) = Own::make("a_process_in_a_real_cgroup_is_measured_as_it_is").await else { return };
    let mut pod = subject("real");
    pod.containers = vec![Unit { id: "c1".to_owned(), name: "c".to_owned(), ..Unit::default() }];
    let values = PodValues { memory_limit: Some(64 << 20), ..PodValues::default() };
    own.cgroups.create_pod(pod.qos, &pod.id.uid, &values).await.unwrap();
    let dirs = own.container(&pod, "c1");
    let pods = Pods::default();
    pods.0.lock().unwrap().push(pod);
    let room = room(own.cgroups.lookup(), &pods);

    let mut worker = Worker::start();
    for dir in &dirs {
        std::fs::write(dir.join("cgroup.procs"), worker.0.id().to_string()).unwrap();
    }
    let before = room.pods(Duration::ZERO).await;
    worker.work();
    let after = room.pods(Duration::ZERO).await;

    let cpu = |all: &[super::PodStats]| all[0].containers[0].cpu.unwrap().usage_core_nano_seconds.unwrap();
    assert!(cpu(&after) > cpu(&before), "it has worked");
    let (pod, container) = (&after[0], &after[0].containers[0]);
    let memory = container.memory.unwrap();
    assert!(
        memory.working_set_bytes <= memory.usage_bytes && memory.working_set_bytes > Some(0),
        "{memory:?}"
    );
    let of_pod = pod.memory.unwrap();
    assert_eq!(of_pod.available_bytes.map(|free| free + of_pod.working_set_bytes.unwrap()), Some(64 << 20));
    assert!(of_pod.usage_bytes >= memory.usage_bytes);
    assert_eq!(pod.process_stats.unwrap().count, Some(1));
    assert!(pod.network.is_some(), "of the namespace that the process is in");
    let node = room.node_memory().await.unwrap();
    assert!(node.working_set <= node.usage && node.available() > 0 && node.usage < node.capacity, "{node:?}");
    let page: Vec<bytes::Bytes> = room.cadvisor(Duration::from_secs(60)).await.collect();
    let page = String::from_utf8(page.concat()).unwrap();
    for line in [
        "container_threads{container=\"c\"",
        "container_processes{container=\"c\"",
        "container_sockets{container=\"c\"",
        "container_ulimits_soft{container=\"c\"",
        "container_memory_failures_total{container=\"c\"",
    ] {
        assert!(page.lines().any(|l| l.starts_with(line)), "no {line}");
    }
    drop(worker);
}
