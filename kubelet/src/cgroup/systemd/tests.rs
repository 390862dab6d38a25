//! Slices: with a stand-in for systemd that makes plain directories, everywhere; with systemd itself where PID 1 is it
//! and the machine has cgroup v2.

use super::fake::{Fake, State, plain_cgroup};
use super::*;
use crate::api::{PodUid, Qos};
use crate::cgroup::tests::median;
use crate::cgroup::{
    CgroupConfig, Cgroups, Driver, NodeValues, PodValues, Requested, Reserved, below, files, layout,
};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

const POD: &str = "kubepods-burstable-podu_1.slice";

fn uid() -> PodUid {
    PodUid::new("u-1")
}

fn limited() -> PodValues {
    PodValues {
        cpu_shares: Some(340),
        cpu_quota_us: Some(33_300),
        cpu_period_us: Some(100_000),
        memory_limit: Some(64 << 20),
        ..PodValues::default()
    }
}

fn node_values() -> NodeValues {
    NodeValues {
        cpu_shares: Some(4096),
        memory_limit: Some(256 << 20),
        pids_limit: Some(4000),
        ..NodeValues::default()
    }
}

/// A tree of plain files in the shape of cgroup v2, and a manager to make slices in it.
struct Stage {
    dir: tempfile::TempDir,
    fake: Option<Fake>,
    cgroups: Cgroups,
}

impl Stage {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("cgroup");
        plain_cgroup(&tree);
        std::fs::write(tree.join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        let table = dir.path().join("mountinfo");
        std::fs::write(&table, format!("1 0 0:1 / {} rw - cgroup2 cgroup2 rw\n", tree.display())).unwrap();
        let socket = dir.path().join("bus");
        let fake = Some(Fake::start(&socket, &tree, Arc::default()));
        let cgroups = Cgroups::detect(CgroupConfig {
            fs_root: tree,
            mount_table: table,
            driver: Some(Driver::Systemd),
            bus: format!("unix:path={}", socket.display()),
            ..CgroupConfig::host("", true)
        })
        .unwrap();
        cgroups.setup_node(&node_values()).await.unwrap();
        Self { dir, fake, cgroups }
    }

    fn fake(&self) -> &Fake {
        self.fake.as_ref().unwrap()
    }

    fn restart(&mut self, state: Arc<Mutex<State>>) {
        self.fake = None;
        self.fake = Some(Fake::start(&self.dir.path().join("bus"), &self.dir.path().join("cgroup"), state));
    }
}

fn resources(properties: Vec<String>) -> Vec<String> {
    let of_slice: Vec<_> = properties::of_slice("x").into_iter().map(|(name, _)| name).collect();
    properties.into_iter().filter(|p| !of_slice.contains(&p.as_str())).collect()
}

#[tokio::test]
async fn slices_get_the_recorded_properties_once_and_their_values_as_often_as_asked() {
    let stage = Stage::new().await;
    let (fake, c) = (stage.fake(), &stage.cgroups);
    // cgroupv2/systemd.json: properties_set. The last is the quota's, there in other units.
    assert_eq!(
        resources(fake.properties("kubepods.slice")),
        ["AllowedCPUs", "CPUWeight", "MemoryMax", "TasksMax"]
    );
    assert_eq!(resources(fake.properties("kubepods-burstable.slice")), ["CPUWeight"]);
    assert_eq!(resources(fake.properties("kubepods-besteffort.slice")), ["CPUWeight"]);
    fake.calls();
    for _ in 0..2 {
        c.create_pod(Qos::Burstable, &uid(), &limited()).await.unwrap();
    }
    assert_eq!(
        fake.calls(),
        [
            format!("StartTransientUnit {POD}"),
            format!("StartTransientUnit {POD}"),
            format!("SetUnitProperties {POD}")
        ]
    );
    let set = ["CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec", "CPUWeight", "MemoryMax"];
    assert_eq!(resources(fake.properties(POD)), set);
    assert_eq!(fake.property(POD, "Wants"), "[\"kubepods-burstable.slice\"]");
    assert_eq!(c.pod_parent(Qos::Burstable, &uid()), layout::slice_path(POD));
    let control = fake.dir("kubepods-burstable.slice").join("cgroup.subtree_control");
    assert_eq!(files::read(control).unwrap(), "+cpuset +cpu +io +memory +pids", "for the pod's containers");
    assert_eq!(c.list_pods().unwrap(), [(Qos::Burstable, uid())]);
    fake.calls();
    for _ in 0..2 {
        c.remove_pod(Qos::Burstable, &uid()).await.unwrap();
    }
    assert_eq!(fake.calls(), [format!("StopUnit {POD}")], "what is not there is not asked for");
    assert_eq!(c.list_pods().unwrap(), []);
}

#[tokio::test]
async fn a_manager_that_went_away_is_named_with_the_unit_and_asked_again_when_it_is_back() {
    let mut stage = Stage::new().await;
    let state = stage.fake().state.clone();
    stage.fake = None;
    std::fs::remove_file(stage.dir.path().join("bus")).unwrap();
    let text = stage.cgroups.create_pod(Qos::Burstable, &uid(), &limited()).await.unwrap_err().to_string();
    assert!(text.starts_with(&format!("cannot start systemd unit {POD}: D-Bus: ")), "{text}");
    stage.restart(state.clone());
    stage.cgroups.create_pod(Qos::Burstable, &uid(), &limited()).await.unwrap();
    // Gone and back between two calls: the broken connection is noticed and replaced.
    stage.restart(state);
    stage.cgroups.remove_pod(Qos::Burstable, &uid()).await.unwrap();
    assert_eq!(stage.cgroups.list_pods().unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_takes_connections_and_never_answers_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("bus");
    let _silent = tokio::net::UnixListener::bind(&socket).unwrap();
    let systemd = Systemd::new(format!("unix:path={}", socket.display()));
    let text = systemd.stop("x.slice").await.unwrap_err().to_string();
    assert!(text.starts_with("cannot stop systemd unit x.slice: "), "{text}");
    let text = systemd.link().await.err().map(|e| e.to_string());
    assert!(text.is_some_and(|t| t.contains("no answer within 10 s")));
}

#[tokio::test]
async fn a_job_that_fails_is_told_with_the_unit_and_how_it_ended() {
    let stage = Stage::new().await;
    stage.fake().state.lock().unwrap().jobs_end = Some("dependency".to_owned());
    let text = stage.cgroups.create_pod(Qos::Burstable, &uid(), &limited()).await.unwrap_err().to_string();
    assert_eq!(text, format!("cannot start systemd unit {POD}: its job ended with \"dependency\""));
}

#[tokio::test]
async fn a_slice_that_somebody_defined_is_given_its_values_and_started() {
    let stage = Stage::new().await;
    stage.fake().state.lock().unwrap().units.insert(POD.to_owned(), Default::default());
    stage.fake().calls();
    stage.cgroups.create_pod(Qos::Burstable, &uid(), &limited()).await.unwrap();
    let calls = ["StartTransientUnit", "SetUnitProperties", "StartUnit"].map(|m| format!("{m} {POD}"));
    assert_eq!(stage.fake().calls(), calls);
    assert!(stage.fake().dir(POD).is_dir());
    assert_eq!(stage.fake().property(POD, "MemoryMax"), (64 << 20).to_string());
}

#[tokio::test]
async fn a_tree_that_vanished_is_made_again_at_the_next_need_with_its_values() {
    let stage = Stage::new().await;
    stage.cgroups.update_qos(Requested { burstable_milli: 1600, ..Requested::default() });
    let mut state = std::mem::take(&mut *stage.fake().state.lock().unwrap());
    state.units.clear();
    *stage.fake().state.lock().unwrap() = state;
    std::fs::remove_dir_all(stage.fake().dir("kubepods.slice")).unwrap();
    stage.cgroups.create_pod(Qos::Burstable, &uid(), &limited()).await.unwrap();
    assert_eq!(stage.fake().property("kubepods.slice", "MemoryMax"), (256 << 20).to_string());
    assert_eq!(stage.fake().property("kubepods-burstable.slice", "CPUWeight"), "63");
    assert_eq!(stage.cgroups.list_pods().unwrap(), [(Qos::Burstable, uid())]);
}

#[tokio::test]
async fn no_pod_is_put_where_the_runtime_would_not_look_for_it() {
    let stage = Stage::new().await;
    stage.cgroups.runtime_uses(Driver::Cgroupfs);
    let text = stage.cgroups.create_pod(Qos::Burstable, &uid(), &limited()).await.unwrap_err().to_string();
    assert_eq!(
        text,
        "the runtime's cgroup driver is cgroupfs, the agent's is systemd: pods would be in two hierarchies"
    );
    stage.cgroups.runtime_uses(Driver::Systemd);
    stage.cgroups.create_pod(Qos::Burstable, &uid(), &limited()).await.unwrap();
}

/// A tree of plain files in the shape of cgroup v1, where systemd has a hierarchy of its own.
#[tokio::test]
async fn on_v1_a_slice_stands_in_every_hierarchy_with_files_and_properties() {
    let dir = tempfile::tempdir().unwrap();
    let mut table = String::new();
    for controllers in ["cpu,cpuacct", "cpuset", "memory", "pids", "name=systemd"] {
        let mount = dir.path().join(controllers.trim_start_matches("name="));
        std::fs::create_dir_all(&mount).unwrap();
        table += &format!("1 0 0:1 / {} rw - cgroup cgroup rw,{controllers}\n", mount.display());
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        std::fs::write(dir.path().join("cpuset").join(file), "0").unwrap();
    }
    let (mount_table, socket) = (dir.path().join("mountinfo"), dir.path().join("bus"));
    std::fs::write(&mount_table, table).unwrap();
    let fake = Fake::start(&socket, &dir.path().join("systemd"), Arc::default());
    let cgroups = Cgroups::detect(CgroupConfig {
        fs_root: dir.path().into(),
        mount_table,
        driver: Some(Driver::Systemd),
        bus: format!("unix:path={}", socket.display()),
        ..CgroupConfig::host("/a", true)
    })
    .unwrap();
    cgroups.setup_node(&node_values()).await.unwrap();
    for _ in 0..2 {
        cgroups.create_pod(Qos::Guaranteed, &uid(), &limited()).await.unwrap();
    }
    let pod = "a.slice/a-kubepods.slice/a-kubepods-podu_1.slice";
    for (file, want) in [
        ("cpu,cpuacct/a.slice/a-kubepods.slice/cpu.shares", "4096"),
        (&*format!("cpu,cpuacct/{pod}/cpu.shares"), "340"),
        (&*format!("cpu,cpuacct/{pod}/cpu.cfs_quota_us"), "33300"),
        (&*format!("memory/{pod}/memory.limit_in_bytes"), "67108864"),
        (&*format!("cpuset/{pod}/cpuset.cpus"), "0"),
    ] {
        assert_eq!(files::read(dir.path().join(file)).unwrap(), want, "{file}");
    }
    assert!(dir.path().join("systemd").join(pod).is_dir() && dir.path().join("pids").join(pod).is_dir());
    let set = ["CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec", "CPUShares", "MemoryLimit"];
    assert_eq!(resources(fake.properties("a-kubepods-podu_1.slice")), set);
    assert_eq!(cgroups.list_pods().unwrap(), [(Qos::Guaranteed, uid())]);
}

/// Slices of this test's own below one of systemd's, all gone in the end.
struct OwnSlices {
    cgroups: Cgroups,
    root: String,
}

impl OwnSlices {
    /// `None`, said aloud, where the machine cannot.
    fn new(test: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let why = if !Path::new("/run/systemd/system").is_dir() {
            "PID 1 is not systemd"
        } else if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            "this machine has no cgroup v2"
        } else {
            let root = format!("/stevedore{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let config = CgroupConfig { driver: Some(Driver::Systemd), ..CgroupConfig::host(&root, true) };
            return Some(Self { cgroups: Cgroups::detect(config).unwrap(), root });
        };
        eprintln!("SKIP {test}: {why}");
        None
    }

    async fn clean(self) {
        Systemd::new(system_bus()).stop(&format!("{}.slice", &self.root[1..])).await.unwrap();
        assert!(!Path::new("/sys/fs/cgroup").join(format!("{}.slice", &self.root[1..])).exists());
    }

    fn dir(&self, path: &str) -> std::path::PathBuf {
        below(Path::new("/sys/fs/cgroup"), path)
    }
}

fn sleeper(dir: &Path) -> Child {
    let child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
    std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
    child
}

#[tokio::test]
async fn systemd_itself_makes_the_recorded_values() {
    let Some(own) = OwnSlices::new("systemd_itself_makes_the_recorded_values") else { return };
    let c = &own.cgroups;
    c.setup_node(&node_values()).await.unwrap();
    c.update_qos(Requested { burstable_milli: 1600, ..Requested::default() });
    c.mend_classes().await.unwrap();
    for _ in 0..2 {
        c.create_pod(Qos::Burstable, &uid(), &limited()).await.unwrap();
    }
    let cpus = files::read(own.dir("/cpuset.cpus.effective")).unwrap();
    let (node, class, pod) = (
        c.inner.layout.class(Qos::Guaranteed),
        c.inner.layout.class(Qos::Burstable),
        c.pod_parent(Qos::Burstable, &uid()),
    );
    // As cgroupv2/systemd.json has them.
    for (path, file, want) in [
        (&node, "cpu.weight", "157"),
        (&node, "memory.max", "268435456"),
        (&node, "pids.max", "4000"),
        (&node, "cpuset.cpus", &cpus),
        (&class, "cpu.weight", "63"),
        (&c.inner.layout.class(Qos::BestEffort), "cpu.weight", "1"),
        (&pod, "cpu.weight", "13"),
        (&pod, "cpu.max", "34000 100000"),
        (&pod, "memory.max", "67108864"),
        (&pod, "pids.max", "max"),
    ] {
        assert_eq!(files::read(own.dir(path).join(file)).unwrap(), want, "{path}/{file}");
    }
    for path in [&node, &class] {
        let enabled = files::read(own.dir(path).join("cgroup.subtree_control")).unwrap();
        assert!(enabled.contains("cpuset") && enabled.contains("memory"), "{path}: {enabled}");
    }
    // Another incarnation finds it by its name.
    assert_eq!(c.list_pods().unwrap(), [(Qos::Burstable, uid())]);
    for _ in 0..2 {
        c.remove_pod(Qos::Burstable, &uid()).await.unwrap();
    }
    assert!(!own.dir(&pod).exists());
    own.clean().await;
}

#[tokio::test]
async fn with_systemd_removal_kills_what_is_inside_and_spares_the_neighbour() {
    let Some(own) = OwnSlices::new("with_systemd_removal_kills_what_is_inside_and_spares_the_neighbour")
    else {
        return;
    };
    let (c, other) = (&own.cgroups, PodUid::new("u-2"));
    c.setup_node(&NodeValues::default()).await.unwrap();
    for uid in [&uid(), &other] {
        c.create_pod(Qos::BestEffort, uid, &PodValues::default()).await.unwrap();
    }
    let container = |uid| {
        let dir = own.dir(&c.pod_parent(Qos::BestEffort, uid)).join("container");
        std::fs::create_dir(&dir).unwrap();
        sleeper(&dir)
    };
    let (mut inside, mut outside) = (container(&uid()), container(&other));
    let reaper = std::thread::spawn(move || inside.wait().unwrap());
    c.remove_pod(Qos::BestEffort, &uid()).await.unwrap();
    assert!(!reaper.join().unwrap().success());
    assert!(outside.try_wait().unwrap().is_none(), "the neighbour lives");
    assert_eq!(c.list_pods().unwrap(), [(Qos::BestEffort, other.clone())]);
    outside.kill().unwrap();
    outside.wait().unwrap();
    c.remove_pod(Qos::BestEffort, &other).await.unwrap();
    own.clean().await;
}

#[tokio::test]
async fn what_a_runtime_left_of_a_containers_scope_goes_with_its_process() {
    let Some(own) = OwnSlices::new("what_a_runtime_left_of_a_containers_scope_goes_with_its_process") else {
        return;
    };
    let c = &own.cgroups;
    c.create_pod(Qos::BestEffort, &uid(), &PodValues::default()).await.unwrap();
    let pod = c.pod_parent(Qos::BestEffort, &uid());
    let mut child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
    let id = format!("{}{}", &own.root[1..], "c0");
    let scope = format!("cri-containerd-{id}.scope");
    let systemd = Systemd::new(system_bus());
    let link = systemd.link().await.map_err(|e| e.to_string()).unwrap();
    let ends = link.ends_of(&scope);
    let values =
        [("PIDs", Value::from(vec![child.id()])), ("Slice", Value::from(layout::unit_of(&pod).to_owned()))];
    let others: Vec<(&str, Vec<(&str, Value<'_>)>)> = Vec::new();
    let job = link.call("StartTransientUnit", &(&scope, REPLACE, &values[..], &others)).await.unwrap();
    ended(ends, &job.body().deserialize().unwrap()).await.map_err(|e| e.to_string()).unwrap();
    assert!(own.dir(&pod).join(&scope).is_dir());
    let reaper = std::thread::spawn(move || child.wait().unwrap());
    c.remove_leftover(Qos::BestEffort, &uid(), &id).await.unwrap();
    assert!(!reaper.join().unwrap().success());
    assert!(!own.dir(&pod).join(&scope).exists());
    own.clean().await;
}

#[tokio::test]
async fn a_reservation_is_enforced_on_a_slice_that_is_there() {
    let Some(own) = OwnSlices::new("a_reservation_is_enforced_on_a_slice_that_is_there") else { return };
    let c = &own.cgroups;
    let values = PodValues {
        cpu_shares: Some(204),
        memory_limit: Some(200 << 20),
        memory_min: Some(200 << 20),
        ..PodValues::default()
    };
    let cgroup = format!("/stevedore.slice{}.slice", own.root);
    let reserved = Reserved { whom: "Kube", field: "kubeReservedCgroup", cgroup, values };
    assert!(matches!(c.enforce_reserved(&reserved).await.unwrap_err(), Error::NoReserved { .. }));
    c.setup_node(&NodeValues::default()).await.unwrap();
    for _ in 0..2 {
        c.enforce_reserved(&reserved).await.unwrap();
    }
    let slice = own.dir(&format!("{}.slice", own.root));
    for (file, want) in [("cpu.weight", "8"), ("memory.max", "209715200"), ("memory.min", "209715200")] {
        assert_eq!(files::read(slice.join(file)).unwrap(), want, "{file}");
    }
    own.clean().await;
}

/// `cargo test -p kubelet --lib -- --ignored --nocapture cgroup::systemd::tests::bench`, where systemd is.
#[tokio::test]
#[ignore = "a measurement"]
async fn bench_create_and_remove_beside_bare_calls() {
    let Some(own) = OwnSlices::new("bench") else { return };
    let c = &own.cgroups;
    c.setup_node(&NodeValues::default()).await.unwrap();
    let pod = c.pod_parent(Qos::Guaranteed, &uid());
    let unit = layout::unit_of(&pod);
    let bare = Systemd::new(system_bus());
    let none: Vec<(&str, Value<'_>)> = Vec::new();
    let others: Vec<(&str, Vec<(&str, Value<'_>)>)> = Vec::new();
    let (mut floor, mut create, mut both) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..100 {
        let start = Instant::now();
        let link = bare.link().await.map_err(|e| e.to_string()).unwrap();
        for call in ["StartTransientUnit", "StopUnit"] {
            let ends = link.ends_of(unit);
            let job = match call {
                "StopUnit" => link.call(call, &(unit, REPLACE)).await,
                _ => link.call(call, &(unit, REPLACE, &none, &others)).await,
            };
            ended(ends, &job.unwrap().body().deserialize().unwrap())
                .await
                .map_err(|e| e.to_string())
                .unwrap();
        }
        floor.push(start.elapsed());
        let start = Instant::now();
        c.create_pod(Qos::Guaranteed, &uid(), &limited()).await.unwrap();
        create.push(start.elapsed());
        c.remove_pod(Qos::Guaranteed, &uid()).await.unwrap();
        both.push(start.elapsed());
    }
    let [floor, create, both] = [floor, create, both].map(median);
    eprintln!("bare StartTransientUnit+StopUnit {floor:?}, create+remove {both:?}, create {create:?}");
    own.clean().await;
}
