//! The handle on fake trees (tempdirs) and on the kernel's own hierarchies, under names nobody else uses.

use super::*;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicU32;
use std::time::Instant;

/// A cgroup root of this test's own, removed with all that is in it.
struct OwnRoot {
    cgroups: Cgroups,
    root: String,
}

impl OwnRoot {
    /// `None`, said aloud, where the machine cannot.
    fn new(test: &str, fs_root: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let root = format!("/stevedore-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let config = CgroupConfig { fs_root: fs_root.into(), ..CgroupConfig::host(&root, true) };
        match Cgroups::detect(config) {
            Ok(cgroups) => {
                let own = Self { cgroups, root };
                let probe = own.dir("cpu", "").unwrap_or_else(|| own.dirs("")[0].clone());
                if let Err(e) = std::fs::create_dir(&probe) {
                    eprintln!("SKIP {test}: cannot make {}: {e}", probe.display());
                    return None;
                }
                Some(own)
            }
            Err(e) => {
                eprintln!("SKIP {test}: {e}");
                None
            }
        }
    }

    fn v1(test: &str) -> Option<Self> {
        let own = Self::new(test, "/sys/fs/cgroup")?;
        if matches!(own.cgroups.version(), Version::V1 { .. }) && own.cgroups.missing_controllers().is_empty()
        {
            return Some(own);
        }
        eprintln!("SKIP {test}: this machine has no cgroup v1 with cpu, cpuacct, cpuset and memory");
        None
    }

    /// The v2 hierarchy: the machine's, or the hybrid layout's, which has no controllers but behaves alike.
    fn v2(test: &str) -> Option<Self> {
        let unified = Path::new("/sys/fs/cgroup/unified").exists();
        let own = Self::new(test, if unified { "/sys/fs/cgroup/unified" } else { "/sys/fs/cgroup" })?;
        if matches!(own.cgroups.version(), Version::V2 { .. }) {
            return Some(own);
        }
        eprintln!("SKIP {test}: this machine has no cgroup v2 mount");
        None
    }

    fn dirs(&self, path: &str) -> Vec<PathBuf> {
        self.cgroups.dirs(&format!("{}{path}", self.root))
    }

    fn dir(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let inner = &self.cgroups.inner;
        inner.version.root_of(&inner.fs_root, controller).map(|r| below(r, &format!("{}{path}", self.root)))
    }

    fn value(&self, controller: &str, path: &str, file: &str) -> String {
        files::read(self.dir(controller, path).unwrap().join(file)).unwrap()
    }
}

impl Drop for OwnRoot {
    fn drop(&mut self) {
        if let Err(e) = files::remove(&self.dirs("")) {
            eprintln!("left behind: {e}");
        }
    }
}

/// A child process that ends with the test.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        Self(Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap())
    }
    fn move_to(&self, dir: &Path) {
        std::fs::write(dir.join("cgroup.procs"), self.0.id().to_string()).unwrap();
    }
    fn killed(&mut self) -> bool {
        use std::os::unix::process::ExitStatusExt;
        self.0.wait().unwrap().signal() == Some(9)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where things stand below the root of a test's own.
fn fs_layout() -> Layout {
    Layout::new(Driver::Cgroupfs, "").unwrap()
}

fn uid(n: u32) -> PodUid {
    PodUid::new(&format!("00000000-0000-0000-0000-{n:012}"))
}

fn guaranteed() -> PodValues {
    PodValues {
        cpu_shares: Some(204),
        cpu_quota_us: Some(20_000),
        cpu_period_us: Some(100_000),
        memory_limit: Some(134_217_728),
        ..PodValues::default()
    }
}

fn best_effort() -> PodValues {
    PodValues { cpu_shares: Some(2), ..PodValues::default() }
}

#[tokio::test]
async fn on_v1_the_kernel_holds_the_recorded_values() {
    let Some(own) = OwnRoot::v1("on_v1_the_kernel_holds_the_recorded_values") else { return };
    let c = &own.cgroups;
    c.setup_node(&NodeValues {
        cpu_shares: Some(2048),
        memory_limit: Some(8 << 30),
        pids_limit: Some(32_768),
        ..NodeValues::default()
    })
    .await
    .unwrap();
    for _ in 0..2 {
        c.create_pod(Qos::Guaranteed, &uid(1), &guaranteed()).await.unwrap();
        c.create_pod(Qos::BestEffort, &uid(2), &best_effort()).await.unwrap();
    }
    c.update_qos(Requested { burstable_milli: 150, ..Requested::default() });
    c.mend_classes().await.unwrap();
    let pod = format!("/kubepods/pod{}", uid(1));
    let lone = format!("/kubepods/besteffort/pod{}", uid(2));
    // As golden cases qos-guaranteed, qos-burstable and qos-besteffort have them.
    for (controller, path, file, want) in [
        ("cpu", "/kubepods", "cpu.shares", "2048"),
        ("memory", "/kubepods", "memory.limit_in_bytes", "8589934592"),
        ("pids", "/kubepods", "pids.max", "32768"),
        ("cpu", "/kubepods/burstable", "cpu.shares", "153"),
        ("cpu", "/kubepods/besteffort", "cpu.shares", "2"),
        ("cpu", &pod, "cpu.shares", "204"),
        ("cpu", &pod, "cpu.cfs_quota_us", "20000"),
        ("cpu", &pod, "cpu.cfs_period_us", "100000"),
        ("memory", &pod, "memory.limit_in_bytes", "134217728"),
        ("pids", &pod, "pids.max", "max"),
        ("cpu", &lone, "cpu.shares", "2"),
        ("cpu", &lone, "cpu.cfs_quota_us", "-1"),
        ("memory", &lone, "memory.limit_in_bytes", "9223372036854771712"),
    ] {
        assert_eq!(own.value(controller, path, file), want, "{path}/{file}");
    }
    let cpus = files::read(c.inner.version.root_of(&c.inner.fs_root, "cpuset").unwrap().join("cpuset.cpus"))
        .unwrap();
    assert_eq!(own.value("cpuset", &lone, "cpuset.cpus"), cpus);
    assert!(own.dirs(&pod).iter().all(|d| d.is_dir()), "the pod stands in every hierarchy");

    assert_eq!(c.list_pods().unwrap(), [(Qos::Guaranteed, uid(1)), (Qos::BestEffort, uid(2))]);
    c.update_qos(Requested { burstable_milli: 0, ..Requested::default() });
    c.mend_classes().await.unwrap();
    assert_eq!(own.value("cpu", "/kubepods/burstable", "cpu.shares"), "2");
    for _ in 0..2 {
        c.remove_pod(Qos::Guaranteed, &uid(1)).await.unwrap();
        c.remove_pod(Qos::BestEffort, &uid(2)).await.unwrap();
    }
    assert_eq!(c.list_pods().unwrap(), []);
    assert!(own.dirs(&pod).iter().all(|d| !d.exists()));
}

/// Shared by both versions: a process in a nested cgroup of the pod and one in a neighbour pod.
async fn removal_kills_inside_and_spares_outside(own: &OwnRoot, qos: Qos) {
    let c = &own.cgroups;
    c.setup_node(&NodeValues::default())
        .await
        .unwrap_or_else(|e| assert!(matches!(e, Error::NoController { .. }), "{e}"));
    for n in [1, 2] {
        // Without controllers (the hybrid layout's v2) the values are refused, the directories are made.
        c.create_pod(qos, &uid(n), &PodValues::default()).await.unwrap();
    }
    let of = |n| fs_layout().pod(qos, &uid(n));
    let (mut inside, outside) = (Sleeper::start(), Sleeper::start());
    let cpuset = own.dir("cpuset", "");
    for dir in own.dirs(&format!("{}/container", of(1))) {
        std::fs::create_dir(&dir).unwrap();
        if cpuset.as_ref().is_some_and(|root| dir.starts_with(root)) && dir.join("cpuset.mems").exists() {
            files::inherit_cpuset(&dir, true).unwrap();
        }
        inside.move_to(&dir);
    }
    for dir in own.dirs(&of(2)) {
        outside.move_to(&dir);
    }
    // A killed child is gone from its cgroup only once its parent has waited for it.
    let reaper = std::thread::spawn(move || inside.killed());
    c.remove_pod(qos, &uid(1)).await.unwrap();
    assert!(reaper.join().unwrap(), "the process inside was killed");
    assert_eq!(c.list_pods().unwrap(), [(qos, uid(2))]);
    let mut outside = outside;
    assert!(outside.0.try_wait().unwrap().is_none(), "the neighbour lives");
    let _ = outside.0.kill();
    let _ = outside.0.wait();
    c.remove_pod(qos, &uid(2)).await.unwrap();
}

async fn what_is_left_of_one_container_goes(own: &OwnRoot) {
    let c = &own.cgroups;
    c.setup_node(&NodeValues::default()).await.unwrap();
    c.create_pod(Qos::BestEffort, &uid(1), &PodValues::default()).await.unwrap();
    let pod = fs_layout().pod(Qos::BestEffort, &uid(1));
    let there = |name: &str| own.dirs(&format!("{pod}/{name}")).into_iter().filter(|d| d.exists()).count();
    for name in ["gone", "crio-gone", "stays"] {
        own.dirs(&format!("{pod}/{name}")).iter().for_each(|d| std::fs::create_dir(d).unwrap());
    }
    c.remove_leftover(Qos::BestEffort, &uid(1), "gone").await.unwrap();
    assert_eq!((there("gone"), there("crio-gone")), (0, 0));
    assert_eq!(there("stays"), own.dirs("").len());
    // No id reaches out of the pod.
    c.remove_leftover(Qos::BestEffort, &uid(1), "../stays").await.unwrap();
    c.remove_leftover(Qos::BestEffort, &uid(1), "").await.unwrap();
    // Nor can a UID that names no cgroup have one.
    let impossible = PodUid::new("team/a");
    c.remove_leftover(Qos::BestEffort, &impossible, "gone").await.unwrap();
    c.remove_pod(Qos::BestEffort, &impossible).await.unwrap();
    assert_eq!(there("stays"), own.dirs("").len());
    c.remove_pod(Qos::BestEffort, &uid(1)).await.unwrap();
}

#[tokio::test]
async fn on_v1_removal_kills_what_is_inside_and_spares_the_neighbour() {
    let Some(own) = OwnRoot::v1("on_v1_removal_kills_what_is_inside_and_spares_the_neighbour") else {
        return;
    };
    removal_kills_inside_and_spares_outside(&own, Qos::Burstable).await;
}

#[tokio::test]
async fn on_v1_what_a_runtime_left_of_one_container_goes_and_the_others_stay() {
    let Some(own) = OwnRoot::v1("on_v1_what_a_runtime_left_of_one_container_goes_and_the_others_stay") else {
        return;
    };
    what_is_left_of_one_container_goes(&own).await;
}

#[tokio::test]
async fn on_v1_a_frozen_pod_is_thawed_so_that_it_can_die() {
    let Some(own) = OwnRoot::v1("on_v1_a_frozen_pod_is_thawed_so_that_it_can_die") else { return };
    let Some(freezer) = own.dir("freezer", "") else { return eprintln!("SKIP frozen: no freezer") };
    own.cgroups.create_pod(Qos::Guaranteed, &uid(1), &PodValues::default()).await.unwrap();
    let mut inside = Sleeper::start();
    let dir = freezer.join(format!("kubepods/pod{}", uid(1)));
    inside.move_to(&dir);
    std::fs::write(dir.join("freezer.state"), "FROZEN").unwrap();
    let reaper = std::thread::spawn(move || inside.killed());
    own.cgroups.remove_pod(Qos::Guaranteed, &uid(1)).await.unwrap();
    assert!(reaper.join().unwrap());
}

/// A plain directory that claims this very test as its member: it can be neither emptied nor removed.
#[test]
fn a_process_that_is_no_member_is_not_killed_and_one_that_stays_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let pod = dir.path().join("pod1");
    std::fs::create_dir(&pod).unwrap();
    std::fs::write(pod.join("cgroup.procs"), format!("{}\n0\n", std::process::id())).unwrap();
    let text = files::remove(std::slice::from_ref(&pod)).unwrap_err().to_string();
    assert_eq!(
        text,
        format!("cannot remove cgroup {}: busy, holds processes [{}]", pod.display(), std::process::id())
    );
}

#[tokio::test]
async fn a_value_the_kernel_refuses_is_named_with_its_file() {
    let Some(own) = OwnRoot::v1("a_value_the_kernel_refuses_is_named_with_its_file") else { return };
    let bad = PodValues { cpu_quota_us: Some(1), cpu_period_us: Some(100_000), ..PodValues::default() };
    let text = own.cgroups.create_pod(Qos::Guaranteed, &uid(1), &bad).await.unwrap_err().to_string();
    assert!(
        text.contains("\"1\"") && text.contains("cpu.cfs_quota_us") && text.contains("Invalid"),
        "{text}"
    );
}

#[tokio::test]
async fn on_v2_removal_kills_what_is_inside_and_spares_the_neighbour() {
    let Some(own) = OwnRoot::v2("on_v2_removal_kills_what_is_inside_and_spares_the_neighbour") else {
        return;
    };
    let c = &own.cgroups;
    for qos in layout::CLASSES {
        c.make_path(&c.inner.layout.class(qos), Walk::All).unwrap();
    }
    removal_kills_inside_and_spares_outside(&own, Qos::BestEffort).await;
}

#[tokio::test]
async fn on_v2_the_kernel_holds_the_recorded_values() {
    let test = "on_v2_the_kernel_holds_the_recorded_values";
    let Some(own) = OwnRoot::v2(test) else { return };
    let c = &own.cgroups;
    if !c.missing_controllers().is_empty() {
        return eprintln!("SKIP {test}: this machine's v2 has no {:?}", c.missing_controllers());
    }
    c.setup_node(&NodeValues {
        cpu_shares: Some(4096),
        memory_limit: Some(256 << 20),
        pids_limit: Some(4000),
        ..NodeValues::default()
    })
    .await
    .unwrap();
    let pod = PodValues {
        cpu_shares: Some(1536),
        cpu_quota_us: Some(200_000),
        cpu_period_us: Some(100_000),
        memory_limit: Some(128 << 20),
        pids_limit: Some(-1),
        ..PodValues::default()
    };
    for _ in 0..2 {
        c.create_pod(Qos::Burstable, &uid(1), &pod).await.unwrap();
        c.create_pod(Qos::BestEffort, &uid(2), &best_effort()).await.unwrap();
    }
    c.update_qos(Requested { burstable_milli: 1600, ..Requested::default() });
    c.mend_classes().await.unwrap();
    let (burst, lone) =
        (format!("/kubepods/burstable/pod{}", uid(1)), format!("/kubepods/besteffort/pod{}", uid(2)));
    let all = own.value("cpuset", "", "cpuset.cpus.effective");
    // As cgroupv2/cgroupfs.json has them.
    for (path, file, want) in [
        ("/kubepods", "cpu.weight", "157"),
        ("/kubepods", "memory.max", "268435456"),
        ("/kubepods", "pids.max", "4000"),
        ("/kubepods", "cpuset.cpus", all.as_str()),
        ("/kubepods/burstable", "cpu.weight", "63"),
        ("/kubepods/burstable", "cpuset.cpus", ""),
        ("/kubepods/besteffort", "cpu.weight", "1"),
        (&burst, "cpu.weight", "59"),
        (&burst, "cpu.max", "200000 100000"),
        (&burst, "memory.max", "134217728"),
        (&burst, "pids.max", "max"),
        (&lone, "cpu.weight", "1"),
        (&lone, "cpu.max", "max 100000"),
        (&lone, "memory.max", "max"),
    ] {
        assert_eq!(own.value("cpu", path, file), want, "{path}/{file}");
    }
    assert_eq!(c.list_pods().unwrap(), [(Qos::Burstable, uid(1)), (Qos::BestEffort, uid(2))]);
    c.remove_pod(Qos::Burstable, &uid(1)).await.unwrap();
    c.remove_pod(Qos::BestEffort, &uid(2)).await.unwrap();
}

#[tokio::test]
async fn a_controller_that_is_not_there_is_refused_by_name() {
    let Some(own) = OwnRoot::v2("a_controller_that_is_not_there_is_refused_by_name") else { return };
    if !own.cgroups.missing_controllers().contains(&"cpu") {
        return eprintln!("SKIP a_controller_that_is_not_there_is_refused_by_name: v2 has cpu here");
    }
    for qos in layout::CLASSES {
        own.cgroups.make_path(&own.cgroups.inner.layout.class(qos), Walk::All).unwrap();
    }
    let text = own.cgroups.create_pod(Qos::Guaranteed, &uid(1), &guaranteed()).await.unwrap_err().to_string();
    assert!(text.contains("memory") && text.contains("memory.max=134217728"), "{text}");
}

/// A v2 tree of plain files: what would be written where.
#[tokio::test]
async fn on_v2_the_files_get_the_recorded_values_and_controllers_are_delegated_on_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_str().unwrap();
    let table = dir.path().join("mountinfo");
    std::fs::write(&table, format!("1 0 0:1 / {root} rw - cgroup2 cgroup2 rw\n")).unwrap();
    std::fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu io memory hugetlb pids misc").unwrap();
    for d in ["", "kubepods", "kubepods/burstable", "kubepods/besteffort"] {
        std::fs::create_dir_all(dir.path().join(d)).unwrap();
        std::fs::write(dir.path().join(d).join("cgroup.subtree_control"), "").unwrap();
        std::fs::write(dir.path().join(d).join("cpuset.cpus.effective"), "0-3").unwrap();
    }
    std::fs::write(dir.path().join("kubepods/hugetlb.2MB.max"), "max").unwrap();
    std::fs::write(dir.path().join("kubepods/hugetlb.2MB.rsvd.max"), "max").unwrap();
    let c = Cgroups::detect(CgroupConfig {
        fs_root: dir.path().into(),
        mount_table: table,
        ..CgroupConfig::host("", true)
    })
    .unwrap();
    assert!(c.missing_controllers().is_empty());
    c.setup_node(&NodeValues {
        cpu_shares: Some(4096),
        memory_limit: Some(6_318_186_496),
        pids_limit: Some(48_284),
        ..NodeValues::default()
    })
    .await
    .unwrap();
    c.update_qos(Requested { burstable_milli: 1600, ..Requested::default() });
    c.mend_classes().await.unwrap();
    let pod = PodValues {
        cpu_shares: Some(1536),
        cpu_quota_us: Some(200_000),
        cpu_period_us: Some(100_000),
        memory_limit: Some(268_435_456),
        pids_limit: Some(-1),
        ..PodValues::default()
    };
    c.create_pod(Qos::Burstable, &PodUid::new("u"), &pod).await.unwrap();
    for (file, want) in [
        ("cgroup.subtree_control", "+cpuset +cpu +io +memory +hugetlb +pids"),
        ("kubepods/cgroup.subtree_control", "+cpuset +cpu +io +memory +hugetlb +pids"),
        ("kubepods/burstable/cgroup.subtree_control", "+cpuset +cpu +io +memory +hugetlb +pids"),
        ("kubepods/cpu.weight", "157"),
        ("kubepods/memory.max", "6318186496"),
        ("kubepods/pids.max", "48284"),
        ("kubepods/cpuset.cpus", "0-3"),
        ("kubepods/besteffort/cpu.weight", "1"),
        ("kubepods/burstable/cpu.weight", "63"),
        ("kubepods/burstable/podu/cpu.weight", "59"),
        ("kubepods/burstable/podu/cpu.max", "200000 100000"),
        ("kubepods/burstable/podu/memory.max", "268435456"),
        ("kubepods/burstable/podu/pids.max", "max"),
        ("kubepods/burstable/podu/hugetlb.2MB.max", "0"),
    ] {
        assert_eq!(files::read(dir.path().join(file)).unwrap(), want, "{file}");
    }
    assert_eq!(c.list_pods().unwrap(), [(Qos::Burstable, PodUid::new("u"))]);
    // What an earlier configuration protected and limited, and this one does not.
    let stale = [
        ("kubepods/memory.min", "4096", "0"),
        ("kubepods/burstable/memory.low", "4096", "0"),
        ("kubepods/burstable/memory.max", "8192", "max"),
        ("kubepods/burstable/podu/memory.low", "4096", "0"),
    ];
    for (file, earlier, _) in stale {
        std::fs::write(dir.path().join(file), earlier).unwrap();
    }
    c.mend_classes().await.unwrap();
    c.create_pod(Qos::Burstable, &PodUid::new("u"), &pod).await.unwrap();
    for (file, _, want) in stale {
        assert_eq!(files::read(dir.path().join(file)).unwrap(), want, "{file}");
    }
}

#[tokio::test]
async fn without_cgroups_per_qos_nothing_is_made() {
    let Some(own) = OwnRoot::v1("without_cgroups_per_qos_nothing_is_made") else { return };
    let config = CgroupConfig { per_qos: false, ..CgroupConfig::host(&own.root, false) };
    let c = Cgroups::detect(config).unwrap();
    c.setup_node(&NodeValues::default()).await.unwrap();
    c.create_pod(Qos::Burstable, &uid(1), &guaranteed()).await.unwrap();
    assert_eq!(c.pod_parent(Qos::Burstable, &uid(1)), "");
    assert!(own.dirs("/kubepods").iter().all(|d| !d.exists()));
    c.remove_pod(Qos::Burstable, &uid(1)).await.unwrap();
}

/// `cargo test -p kubelet --release -- --ignored --nocapture cgroup::tests::bench`
#[tokio::test]
#[ignore = "a measurement"]
async fn bench_create_and_remove_beside_bare_mkdir() {
    let Some(own) = OwnRoot::v1("bench") else { return };
    let c = &own.cgroups;
    c.setup_node(&NodeValues::default()).await.unwrap();
    let path = format!("{}/kubepods/pod{}", own.root, uid(9));
    for _ in 0..2 {
        let (mut bare, mut create, mut both) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..200 {
            let start = Instant::now();
            c.dirs(&path).iter().for_each(|d| std::fs::create_dir(d).unwrap());
            c.dirs(&path).iter().for_each(|d| std::fs::remove_dir(d).unwrap());
            bare.push(start.elapsed());
            let start = Instant::now();
            c.create_pod(Qos::Guaranteed, &uid(9), &guaranteed()).await.unwrap();
            create.push(start.elapsed());
            c.remove_pod(Qos::Guaranteed, &uid(9)).await.unwrap();
            both.push(start.elapsed());
        }
        let [bare, create, both] = [bare, create, both].map(median);
        eprintln!("bare mkdir+rmdir {bare:?}, create+remove {both:?}, create {create:?}");
    }
}

pub(super) fn median(mut all: Vec<std::time::Duration>) -> std::time::Duration {
    all.sort();
    all[all.len() / 2]
}
