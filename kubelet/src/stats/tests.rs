//! The room on cgroup trees written into a tempdir, v1 and v2, with a runtime that answers or not.

use super::*;
use crate::api::{Pod, PodRef, PodUid, Qos};
use crate::cgroup::{CgroupConfig, Cgroups, Driver};
use cri::v1;
use futures::future::BoxFuture;
use std::path::Path;

/// A cgroup tree in a directory.
pub struct Tree {
    pub dir: tempfile::TempDir,
    v2: bool,
}

/// `memory.stat` of v1: what is not hierarchical differs from what is.
const STAT_V1: &str = "cache 1\nrss 2\npgfault 830\npgmajfault 1\nhierarchical_memory_limit 67108864\n\
    total_cache 8192\ntotal_rss 126976\ntotal_mapped_file 4096\ntotal_swap 512\ntotal_pgfault 900\n\
    total_pgmajfault 2\ntotal_inactive_file 4096\ntotal_active_file 12288\n";
const STAT_V2: &str = "anon 126976\nfile 8192\nkernel 2048\nfile_mapped 4096\ninactive_file 4096\nactive_file 12288\n\
    pgfault 900\npgmajfault 2\n";

impl Tree {
    pub fn new(v2: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("cg");
        let line = |point: &Path, rest: &str| format!("1 0 0:1 / {} rw - {rest}\n", point.display());
        let table = if v2 {
            std::fs::create_dir_all(&root).unwrap();
            std::fs::write(root.join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
            line(&root, "cgroup2 cgroup2 rw")
        } else {
            let mount = |c: &str| {
                std::fs::create_dir_all(root.join(c)).unwrap();
                line(&root.join(c), &format!("cgroup cgroup rw,{c}"))
            };
            ["cpu", "cpuacct", "cpuset", "memory", "pids", "blkio"].map(mount).concat()
        };
        std::fs::write(dir.path().join("mountinfo"), table).unwrap();
        Self { dir, v2 }
    }

    pub fn lookup(&self) -> Lookup {
        let config = CgroupConfig {
            fs_root: self.dir.path().join("cg"),
            mount_table: self.dir.path().join("mountinfo"),
            driver: Some(Driver::Cgroupfs),
            ..CgroupConfig::host("", true)
        };
        Cgroups::detect(config).unwrap().lookup()
    }

    pub fn file(&self, controller: &str, path: &str, file: &str, text: &str) {
        let dir = self.lookup().dir(controller, path).unwrap();
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(file), text).unwrap();
    }

    /// A cgroup with the usual files: `usage` bytes, of which 4096 are inactive, `cpu` microseconds.
    pub fn group(&self, path: &str, usage: u64, cpu: u64) {
        let files: &[(&str, &str, String)] = if self.v2 {
            &[
                ("memory", "memory.current", usage.to_string()),
                ("memory", "memory.stat", STAT_V2.to_owned()),
                ("memory", "memory.max", "67108864\n".to_owned()),
                ("memory", "memory.swap.max", "max\n".to_owned()),
                ("memory", "memory.swap.current", "512\n".to_owned()),
                ("memory", "memory.peak", "500000\n".to_owned()),
                ("memory", "memory.min", "0\n".to_owned()),
                ("memory", "memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n".to_owned()),
                ("cpu", "cpu.stat", format!("usage_usec {cpu}\nuser_usec 7\nsystem_usec 5\nnr_periods 4\nnr_throttled 3\nthrottled_usec 2\nnr_bursts 1\nburst_usec 6\n")),
                ("cpu", "cpu.weight", "79\n".to_owned()),
                ("cpu", "cpu.max", "20000 100000\n".to_owned()),
                ("cpu", "cpu.pressure", "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n".to_owned()),
                ("pids", "pids.current", "3\n".to_owned()),
                ("pids", "pids.max", "max\n".to_owned()),
                ("io", "io.stat", "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n".to_owned()),
            ]
        } else {
            &[
                ("memory", "memory.usage_in_bytes", usage.to_string()),
                ("memory", "memory.stat", STAT_V1.to_owned()),
                ("memory", "memory.limit_in_bytes", "67108864\n".to_owned()),
                ("memory", "memory.memsw.limit_in_bytes", "9223372036854771712\n".to_owned()),
                ("memory", "memory.soft_limit_in_bytes", "9223372036854771712\n".to_owned()),
                ("memory", "memory.max_usage_in_bytes", "500000\n".to_owned()),
                ("memory", "memory.failcnt", "3\n".to_owned()),
                ("memory", "memory.kmem.usage_in_bytes", "2048\n".to_owned()),
                ("memory", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n".to_owned()),
                ("cpuacct", "cpuacct.usage", format!("{cpu}000\n")),
                ("cpuacct", "cpuacct.stat", "user 7\nsystem 5\n".to_owned()),
                (
                    "cpu",
                    "cpu.stat",
                    "nr_periods 4\nnr_throttled 3\nthrottled_time 2000\nnr_bursts 1\nburst_time 6000\n"
                        .to_owned(),
                ),
                ("cpu", "cpu.shares", "2048\n".to_owned()),
                ("cpu", "cpu.cfs_quota_us", "20000\n".to_owned()),
                ("cpu", "cpu.cfs_period_us", "100000\n".to_owned()),
                ("pids", "pids.current", "3\n".to_owned()),
                ("pids", "pids.max", "max\n".to_owned()),
                (
                    "blkio",
                    "blkio.throttle.io_service_bytes_recursive",
                    "8:0 Read 4096\n8:0 Write 8192\n8:0 Total 12288\nTotal 12288\n".to_owned(),
                ),
                (
                    "blkio",
                    "blkio.throttle.io_serviced_recursive",
                    "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n".to_owned(),
                ),
            ]
        };
        for (controller, file, text) in files {
            self.file(controller, path, file, text);
        }
    }
}

/// The pods of a test.
#[derive(Clone, Default)]
pub struct Pods(pub Arc<Mutex<Vec<Subject>>>);

impl Population for Pods {
    fn subjects(&self) -> Vec<Subject> {
        self.0.lock().unwrap().clone()
    }
}

/// A pod with one container, `c` of id `c1`; its sandbox is `5a`.
pub fn subject(uid: &str) -> Subject {
    let unit = |id: &str, name: &str| Unit {
        id: id.to_owned(),
        name: name.to_owned(),
        image: "docker.io/library/busybox:1".to_owned(),
        created_at: 1_700_000_000_000_000_000,
    };
    Subject {
        id: PodRef { uid: PodUid::new(uid), namespace: "demo".into(), name: "facts-a".into() },
        pod: Arc::new(Pod::default()),
        qos: Qos::Burstable,
        sandbox: unit("5a", ""),
        containers: vec![unit("c1", "c")],
    }
}

/// A runtime with an image store at a path; it may hang.
pub struct FakeRuntime {
    pub store: PathBuf,
    pub hangs: bool,
}

impl Runtime for FakeRuntime {
    fn image_fs(&self) -> BoxFuture<'_, Result<v1::ImageFsInfoResponse, String>> {
        if self.hangs {
            return std::future::pending().boxed();
        }
        let usage = v1::FilesystemUsage {
            timestamp: 1_700_000_000_000_000_000,
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: self.store.display().to_string() }),
            used_bytes: Some(v1::UInt64Value { value: 289_996_800 }),
            inodes_used: Some(v1::UInt64Value { value: 8601 }),
        };
        let info =
            v1::ImageFsInfoResponse { image_filesystems: vec![usage], container_filesystems: Vec::new() };
        async { Ok(info) }.boxed()
    }

    fn container_stats(&self) -> BoxFuture<'_, Result<Vec<v1::ContainerStats>, String>> {
        if self.hangs {
            return std::future::pending().boxed();
        }
        let stats = v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes { id: "c1".to_owned(), ..Default::default() }),
            writable_layer: Some(v1::FilesystemUsage {
                timestamp: 1_700_000_000_000_000_000,
                fs_id: Some(v1::FilesystemIdentifier { mountpoint: self.store.display().to_string() }),
                used_bytes: Some(v1::UInt64Value { value: 28_672 }),
                inodes_used: Some(v1::UInt64Value { value: 10 }),
            }),
            ..Default::default()
        };
        async { Ok(vec![stats]) }.boxed()
    }
}

/// A room's configuration over `tree`.
pub fn config(tree: &Tree) -> Config {
    Config {
        node_name: "node-1".to_owned(),
        root_dir: tree.dir.path().to_owned(),
        pod_logs_dir: tree.dir.path().join("logs"),
        volume_period: Some(Duration::from_secs(60)),
        mount_table: crate::mountinfo::SELF.into(),
    }
}

/// The other parts of a room.
pub fn parts(tree: &Tree, pods: &Pods, hangs: bool) -> (Arc<dyn Population>, Arc<dyn Runtime>) {
    (Arc::new(pods.clone()), Arc::new(FakeRuntime { store: tree.dir.path().to_owned(), hangs }))
}

/// A room over `tree` with these pods.
pub fn room(tree: &Tree, pods: &Pods, hangs: bool) -> Stats {
    let (population, runtime) = parts(tree, pods, hangs);
    Stats::new(config(tree), tree.lookup(), population, runtime)
}

const POD: &str = "/kubepods/burstable/podu1";

/// One pod, `u1`, with a container.
pub fn node_of_one_pod(v2: bool) -> (Tree, Pods) {
    let tree = Tree::new(v2);
    for path in ["/", "/kubepods", "/kubepods/burstable", POD, "/kubepods/burstable/podu1/5a"] {
        tree.group(path, 1_032_192, 48_160);
    }
    tree.group("/kubepods/burstable/podu1/c1", 393_216, 12_524);
    let pods = Pods::default();
    pods.0.lock().unwrap().push(subject("u1"));
    (tree, pods)
}

#[tokio::test]
async fn both_versions_of_cgroups_tell_the_same_of_a_pod() {
    for v2 in [false, true] {
        let (tree, pods) = node_of_one_pod(v2);
        let summary = room(&tree, &pods, false).summary(Duration::ZERO).await;
        let pod = &summary.pods[0];
        let memory = pod.memory.unwrap();
        assert_eq!(memory.usage_bytes, Some(1_032_192), "v2: {v2}");
        assert_eq!(memory.working_set_bytes, Some(1_032_192 - 4096));
        assert_eq!(memory.available_bytes, Some(67_108_864 - (1_032_192 - 4096)));
        assert_eq!(
            (memory.rss_bytes, memory.major_page_faults),
            (Some(126_976), Some(if v2 { 2 } else { 1 }))
        );
        assert_eq!(pod.cpu.unwrap().usage_core_nano_seconds, Some(48_160_000));
        assert_eq!(pod.swap.unwrap().swap_usage_bytes, Some(512));
        assert_eq!(pod.swap.unwrap().swap_available_bytes, None, "no limit");
        let psi = pod.cpu.unwrap().psi;
        assert_eq!(psi.map(|p| (p.some.total, p.some.avg10, p.full.total)), v2.then_some((77, 1.5, 5)));
        let container = &pod.containers[0];
        assert_eq!((container.name.as_str(), container.memory.unwrap().usage_bytes), ("c", Some(393_216)));
        assert_eq!(summary.node.system_containers[0].name, "pods");
    }
}

#[tokio::test]
async fn the_root_of_v2_has_no_usage_file_and_is_reckoned_as_upstream_does() {
    let (tree, pods) = node_of_one_pod(true);
    std::fs::remove_file(tree.dir.path().join("cg/memory.current")).unwrap();
    let memory = room(&tree, &pods, false).node_memory().await.unwrap();
    assert_eq!((memory.usage, memory.inactive_file), (126_976 + 8192, 4096));
    assert_eq!(memory.working_set, 126_976 + 8192 - 4096);
    assert_eq!(memory.available(), memory.capacity - memory.working_set);
}

#[tokio::test]
async fn a_container_that_is_gone_is_left_out_and_nothing_else_with_it() {
    let (tree, pods) = node_of_one_pod(false);
    let room = room(&tree, &pods, false);
    for controller in ["memory", "cpuacct"] {
        let dir = tree.lookup().dir(controller, "/kubepods/burstable/podu1/c1").unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }
    let all = room.pods(Duration::ZERO).await;
    assert!(all[0].containers.is_empty() && all[0].memory.is_some());
    let dir = tree.lookup().dir("memory", "/kubepods").unwrap();
    std::fs::remove_dir_all(dir).unwrap();
    let all = room.pods(Duration::ZERO).await;
    assert!(all[0].memory.is_none() && all[0].cpu.is_some(), "the other hierarchies still tell");
}

#[tokio::test]
async fn more_inactive_cache_than_usage_is_a_working_set_of_nothing() {
    for v2 in [false, true] {
        let tree = Tree::new(v2);
        tree.group("/kubepods", 100, 1);
        let memory = room(&tree, &Pods::default(), false).allocatable_memory().await.unwrap();
        assert_eq!((memory.working_set, memory.available()), (0, 67_108_864));
    }
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_hangs_costs_only_what_it_would_have_told() {
    let (tree, pods) = node_of_one_pod(false);
    let room = room(&tree, &pods, true);
    assert!(room.image_fs().await.unwrap_err().to_string().contains("ImageFsInfo"));
    assert!(room.node_fs().await.unwrap().capacity_bytes > Some(0));
    let summary = room.summary(Duration::ZERO).await;
    assert!(summary.pods[0].memory.is_some() && summary.node.fs.is_some());
    assert!(summary.pods[0].ephemeral_storage.is_some() && summary.pods[0].containers[0].rootfs.is_none());
    let began = tokio::time::Instant::now();
    room.summary(Duration::ZERO).await;
    assert!(began.elapsed() < RUNTIME_DEADLINE, "it is trusted less from then on: {:?}", began.elapsed());
}

#[tokio::test]
async fn the_runtime_tells_where_its_store_is_and_is_asked_once() {
    let (tree, pods) = node_of_one_pod(false);
    let room = room(&tree, &pods, false);
    let (image, container) = (room.image_fs().await.unwrap(), room.container_fs().await.unwrap());
    assert_eq!(image.capacity_bytes, container.capacity_bytes);
}
