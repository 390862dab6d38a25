//! What others do to the tree: taken away, changed, filled, made unwritable. On plain files in the shape of cgroup v1.

use super::*;
use std::time::Duration;

struct Tree {
    dir: tempfile::TempDir,
    cgroups: Cgroups,
}

impl Tree {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut table = String::new();
        for controllers in ["cpu,cpuacct", "cpuset", "memory"] {
            let mount = dir.path().join(controllers);
            std::fs::create_dir_all(&mount).unwrap();
            table += &format!("1 0 0:1 / {} rw - cgroup cgroup rw,{controllers}\n", mount.display());
        }
        for file in ["cpuset.cpus", "cpuset.mems"] {
            std::fs::write(dir.path().join("cpuset").join(file), "0").unwrap();
        }
        let mount_table = dir.path().join("mountinfo");
        std::fs::write(&mount_table, table).unwrap();
        let config =
            CgroupConfig { fs_root: dir.path().into(), mount_table, ..CgroupConfig::host("/root", true) };
        let cgroups = Cgroups::detect(config).unwrap();
        Self { dir, cgroups }
    }

    /// Another incarnation.
    fn again(&self) -> Cgroups {
        let mount_table = self.dir.path().join("mountinfo");
        let fs_root = self.dir.path().into();
        Cgroups::detect(CgroupConfig { fs_root, mount_table, ..CgroupConfig::host("/root", true) }).unwrap()
    }

    fn file(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn value(&self, path: &str) -> String {
        files::read(self.file(path)).unwrap()
    }
}

fn milli(burstable_milli: u64) -> Requested {
    Requested { burstable_milli, ..Requested::default() }
}

const CLASS: &str = "cpu,cpuacct/root/kubepods/burstable/cpu.shares";

#[tokio::test]
async fn a_tree_that_vanished_is_made_again_at_the_next_need_with_its_values() {
    let tree = Tree::new();
    let c = &tree.cgroups;
    let node = NodeValues { cpu_shares: Some(2048), memory_limit: Some(8 << 30), ..NodeValues::default() };
    c.setup_node(&node).await.unwrap();
    c.update_qos(milli(150));
    c.mend_classes().await.unwrap();
    assert_eq!(tree.value(CLASS), "153");
    // All of it, and then one hierarchy only.
    for gone in [&["cpu,cpuacct", "cpuset", "memory"][..], &["memory"]] {
        for controllers in gone {
            std::fs::remove_dir_all(tree.file(controllers).join("root")).unwrap();
        }
        let values = PodValues { memory_limit: Some(1 << 20), ..PodValues::default() };
        c.create_pod(Qos::Burstable, &PodUid::new("u"), &values).await.unwrap();
        assert_eq!(tree.value(CLASS), "153");
        assert_eq!(tree.value("cpu,cpuacct/root/kubepods/cpu.shares"), "2048");
        assert_eq!(tree.value("memory/root/kubepods/memory.limit_in_bytes"), (8_u64 << 30).to_string());
        assert_eq!(tree.value("memory/root/kubepods/burstable/podu/memory.limit_in_bytes"), "1048576");
        assert_eq!(tree.value("cpuset/root/kubepods/burstable/podu/cpuset.cpus"), "0");
    }
}

#[tokio::test]
async fn what_somebody_changed_is_put_right_and_the_rest_is_left_alone() {
    let tree = Tree::new();
    let c = &tree.cgroups;
    c.setup_node(&NodeValues { cpu_shares: Some(2048), ..NodeValues::default() }).await.unwrap();
    std::fs::write(tree.file("cpu,cpuacct/root/kubepods/cpu.shares"), "3\n").unwrap();
    let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let class = std::fs::File::options().write(true).open(tree.file(CLASS)).unwrap();
    class.set_modified(long_ago).unwrap();
    c.mend_classes().await.unwrap();
    assert_eq!(tree.value("cpu,cpuacct/root/kubepods/cpu.shares"), "2048");
    assert_eq!(std::fs::metadata(tree.file(CLASS)).unwrap().modified().unwrap(), long_ago);
}

#[tokio::test]
async fn a_restart_takes_nothing_from_classes_before_all_pods_are_known() {
    let tree = Tree::new();
    let node = NodeValues { cpu_shares: Some(2048), ..NodeValues::default() };
    tree.cgroups.setup_node(&node).await.unwrap();
    assert_eq!(tree.value(CLASS), "2", "a new one has the least");
    tree.cgroups.update_qos(milli(1000));
    tree.cgroups.mend_classes().await.unwrap();
    assert_eq!(tree.value(CLASS), "1024");
    let next = tree.again();
    next.setup_node(&node).await.unwrap();
    next.mend_classes().await.unwrap();
    assert_eq!(tree.value(CLASS), "1024");
    for (sums, shares) in [(milli(500), "1024"), (milli(2000), "2048")] {
        next.raise_qos(sums);
        next.mend_classes().await.unwrap();
        assert_eq!(tree.value(CLASS), shares);
    }
    next.update_qos(milli(500));
    next.mend_classes().await.unwrap();
    assert_eq!(tree.value(CLASS), "512");
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_a_loaded_node_refuses_keeps_neither_the_agent_nor_other_values_from_it() {
    const LIMIT: &str = "memory/root/kubepods/memory.limit_in_bytes";
    let tree = Tree::new();
    tree.cgroups.setup_node(&NodeValues::default()).await.unwrap();
    // No value can be written to it.
    std::fs::create_dir(tree.file(LIMIT)).unwrap();
    let node = NodeValues { cpu_shares: Some(2048), memory_limit: Some(8 << 30), ..NodeValues::default() };
    let next = tree.again();
    next.setup_node(&node).await.unwrap();
    assert_eq!(tree.value("cpu,cpuacct/root/kubepods/cpu.shares"), "2048");
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let keeper = tokio::spawn(next.clone().keep_classes(move |limited| {
        tell.send(limited.map_err(ToString::to_string)).unwrap();
    }));
    next.update_qos(milli(1000));
    let refused = told.recv().await.unwrap().unwrap_err();
    assert!(refused.contains("memory.limit_in_bytes"), "{refused}");
    std::fs::remove_dir(tree.file(LIMIT)).unwrap();
    assert_eq!(told.recv().await.unwrap(), Ok(()));
    assert_eq!(tree.value(LIMIT), (8_u64 << 30).to_string());
    assert_eq!(tree.value(CLASS), "1024");
    keeper.abort();
}

#[tokio::test]
async fn tasks_are_left_unlimited_where_the_kernel_cannot_count_them() {
    let tree = Tree::new();
    let node = NodeValues { cpu_shares: Some(2048), pids_limit: Some(1000), ..NodeValues::default() };
    tree.cgroups.setup_node(&node).await.unwrap();
    assert_eq!(tree.value("cpu,cpuacct/root/kubepods/cpu.shares"), "2048");
}

#[test]
fn memory_that_the_kernel_rounded_to_pages_is_as_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let page = u64::try_from(rustix::param::page_size()).unwrap();
    let path = dir.path().join("memory.max");
    let write = |controller, value: u64| values::Write {
        controller,
        file: "memory.max".into(),
        value: value.to_string(),
    };
    std::fs::write(&path, format!("{}\n", 3 * page)).unwrap();
    assert!(!files::differs(path.clone(), &write("memory", 3 * page)));
    assert!(!files::differs(path.clone(), &write("memory", 4 * page - 1)));
    assert!(files::differs(path.clone(), &write("memory", 4 * page)));
    assert!(files::differs(path.clone(), &write("memory", 2 * page)));
    assert!(files::differs(path, &write("cpu", 3 * page + 1)));
}

#[tokio::test]
async fn children_that_are_no_pods_are_neither_listed_nor_touched() {
    let tree = Tree::new();
    let c = &tree.cgroups;
    c.setup_node(&NodeValues::default()).await.unwrap();
    c.create_pod(Qos::BestEffort, &PodUid::new("u"), &PodValues::default()).await.unwrap();
    let others: Vec<PathBuf> = (0..200)
        .map(|n| tree.file(&format!("memory/root/kubepods/besteffort/other{n}")))
        .chain([tree.file("cpuset/root/kubepods/pod"), tree.file("cpuset/root/elsewhere/podx")])
        .collect();
    others.iter().for_each(|dir| std::fs::create_dir_all(dir).unwrap());
    assert_eq!(c.list_pods().unwrap(), [(Qos::BestEffort, PodUid::new("u"))]);
    c.make_classes().await.unwrap();
    assert!(others.iter().all(|dir| dir.is_dir()));
}

#[tokio::test]
async fn a_tree_that_takes_nothing_is_named_with_what_was_to_be_made() {
    let tree = Tree::new();
    // No directory can be made below a file, whoever asks.
    std::fs::write(tree.file("memory/root"), "").unwrap();
    let text = tree.cgroups.setup_node(&NodeValues::default()).await.unwrap_err().to_string();
    assert!(text.contains("memory/root") && text.contains("Not a directory"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn the_classes_follow_what_is_requested_and_are_tried_again() {
    let tree = Tree::new();
    let c = tree.cgroups.clone();
    c.setup_node(&NodeValues::default()).await.unwrap();
    let keeper = tokio::spawn(c.clone().keep_classes(|_| {}));
    let becomes = async |want: &str| {
        let waited = tokio::time::timeout(Duration::from_secs(300), async {
            while files::read(tree.file(CLASS)).ok().as_deref() != Some(want) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("never {want}"));
    };
    c.update_qos(milli(1000));
    becomes("1024").await;
    // Unwritable for a while.
    std::fs::remove_file(tree.file(CLASS)).unwrap();
    std::fs::create_dir(tree.file(CLASS)).unwrap();
    c.update_qos(milli(2000));
    tokio::time::sleep(Duration::from_secs(30)).await;
    std::fs::remove_dir(tree.file(CLASS)).unwrap();
    becomes("2048").await;
    // Somebody else's value, found by the net alone.
    std::fs::write(tree.file(CLASS), "5").unwrap();
    becomes("2048").await;
    keeper.abort();
}

#[tokio::test]
async fn a_reserve_does_not_go_below_what_is_used() {
    let tree = Tree::new();
    let c = &tree.cgroups;
    let reserve_memory = Some(MemoryReserve { percent: 100, allocatable: 1000 });
    c.setup_node(&NodeValues { reserve_memory, ..NodeValues::default() }).await.unwrap();
    std::fs::write(tree.file("memory/root/kubepods/besteffort/memory.usage_in_bytes"), "950\n").unwrap();
    c.update_qos(Requested { guaranteed_memory: 100, ..Requested::default() });
    c.mend_classes().await.unwrap();
    assert_eq!(tree.value("memory/root/kubepods/burstable/memory.limit_in_bytes"), "900");
    assert_eq!(tree.value("memory/root/kubepods/besteffort/memory.limit_in_bytes"), "950");
}
