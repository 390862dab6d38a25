//! Volumes that show objects and the pod's own fields, from set-up to removal, with the real mounts.

use super::*;
use crate::event::Event;
use crate::objects::{Kind, Object};
use serde_json::json;
use tokio::sync::broadcast;

impl Root {
    /// The object is there, with these texts.
    fn put(&self, kind: Kind, name: &str, data: &[(&str, &str)]) {
        self.put_as(kind, name, data, false);
    }

    fn put_as(&self, kind: Kind, name: &str, data: &[(&str, &str)], immutable: bool) {
        let key = Key::new(kind, "demo", name);
        let data = data.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().into())).collect();
        let (binary, type_, uid) = (BTreeMap::new(), String::new(), String::new());
        let object = Object { key: key.clone(), data, binary, type_, immutable, uid };
        self.shelf.set([(key, Some(Arc::new(object)))]);
    }

    fn gone(&self, kind: Kind, name: &str) {
        self.shelf.set([(Key::new(kind, "demo", name), None)]);
    }

    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.in_pod(path)).ok()
    }

    /// Waits until the file says so. What it is told by is an event; here it is looked at.
    async fn until(&self, path: &str, want: Option<&str>) {
        let limit = Instant::now() + Duration::from_secs(60);
        while self.read(path).as_deref() != want {
            assert!(Instant::now() < limit, "{path} is {:?}, not {want:?}", self.read(path));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn all_four() -> Pod {
    let spec = json!({"containers": [], "securityContext": {"fsGroup": 1234}, "volumes": [
        {"name": "cm", "configMap": {"name": "m"}},
        {"name": "sec", "secret": {"secretName": "s", "defaultMode": 0o400}},
        {"name": "down", "downwardAPI": {"items": [{"path": "sub/l", "fieldRef": {"fieldPath": "app"}}]}},
        {"name": "proj", "projected": {"defaultMode": 0o440, "sources": [
            {"configMap": {"name": "m", "items": [{"key": "a", "path": "cm/a"}]}},
            {"secret": {"name": "s"}},
            {"downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "app"}}]}},
            {"configMap": {"name": "absent", "optional": true}}]}},
    ]});
    labelled(&pod(&spec.to_string()), "one")
}

fn labelled(pod: &Pod, app: &str) -> Pod {
    let mut pod = pod.clone();
    pod.metadata.labels = Some(BTreeMap::from([("app".to_owned(), app.to_owned())]));
    pod
}

const CM: &str = "volumes/kubernetes.io~configmap/cm";
const SEC: &str = "volumes/kubernetes.io~secret/sec";
const DOWN: &str = "volumes/kubernetes.io~downward-api/down";
const PROJ: &str = "volumes/kubernetes.io~projected/proj";

#[tokio::test]
async fn all_four_plugins_are_set_up_as_recorded_follow_their_sources_and_go() {
    if !can_mount("all_four_plugins_are_set_up_as_recorded") {
        return;
    }
    let root = Root::new();
    root.put(Kind::ConfigMap, "m", &[("a", "1"), ("b", "1")]);
    root.put(Kind::Secret, "s", &[("k", "1")]);
    root.shelf.synced();
    let (p, uid) = (all_four(), PodUid::new("uid-1"));
    root.volumes.prepare_pod_dirs(&uid).unwrap();
    let mounted = root.volumes.setup(&p, Some(64 << 20)).await.unwrap();
    // As golden cases vol-configmap and vol-secret have them.
    for (path, want) in [
        ("volumes/kubernetes.io~configmap", 0o755),
        (CM, 0o2777),
        (SEC, 0o3777),
        (DOWN, 0o3777),
        (PROJ, 0o3777),
        ("plugins/kubernetes.io~empty-dir/wrapped_cm", 0o750),
        ("plugins/kubernetes.io~empty-dir/wrapped_proj/ready", 0o644),
    ] {
        assert_eq!(mode(&root.in_pod(path)), want, "{path}");
    }
    let of = |path: String| {
        let m = std::fs::metadata(root.in_pod(&path)).unwrap();
        (m.gid(), m.mode() & 0o7777)
    };
    assert_eq!(of(format!("{SEC}/k")), (1234, 0o440), "the group may read what only the owner could");
    assert_eq!(of(format!("{PROJ}/cm/a")), (1234, 0o440));
    assert_eq!(of(format!("{PROJ}/..data")), (1234, 0o2755));
    assert!(!dirs::is_mount_point(&root.in_pod(CM)).unwrap());
    let table = crate::mountinfo::read(Path::new(crate::mountinfo::SELF)).unwrap();
    for place in [SEC, DOWN, PROJ] {
        let real = root.in_pod(place).canonicalize().unwrap();
        assert!(table.iter().any(|m| m.point == real && m.fs_type == "tmpfs"), "{place} is in memory");
    }
    // Containers only read, whatever they ask for.
    let c = serde_json::from_value(json!({"name": "c", "volumeMounts": [
        {"name": "cm", "mountPath": "/cm"}, {"name": "proj", "mountPath": "/l", "subPath": "l"}]}))
    .unwrap();
    let mounts = root.volumes.mounts(&p, &c, &mounted, false, &no_vars).await.unwrap();
    assert!(mounts.iter().all(|m| m.readonly));
    assert_eq!(std::fs::read_to_string(&mounts[1].host_path).unwrap(), "one");
    // Twice is once.
    let data = std::fs::read_link(root.in_pod(&format!("{CM}/..data"))).unwrap();
    assert_eq!(root.volumes.setup(&p, Some(64 << 20)).await.unwrap(), mounted);
    assert_eq!(std::fs::read_link(root.in_pod(&format!("{CM}/..data"))).unwrap(), data);

    let recorder = Recorder::new(16);
    let mut events = recorder.subscribe();
    let keeper = root.volumes.keep(&p, &recorder).unwrap();
    root.put(Kind::ConfigMap, "m", &[("a", "2"), ("c", "2")]);
    root.until(&format!("{CM}/a"), Some("2")).await;
    root.until(&format!("{CM}/b"), None).await;
    root.until(&format!("{PROJ}/cm/a"), Some("2")).await;
    root.put(Kind::Secret, "s", &[("k", "2")]);
    root.until(&format!("{SEC}/k"), Some("2")).await;
    root.until(&format!("{PROJ}/k"), Some("2")).await;
    keeper.update(Arc::new(labelled(&p, "two")));
    root.until(&format!("{DOWN}/sub/l"), Some("two")).await;
    root.until(&format!("{PROJ}/l"), Some("two")).await;
    // An object that goes takes nothing with it; it is told of, once for each volume.
    root.gone(Kind::ConfigMap, "m");
    let mut told = vec![next(&mut events).await, next(&mut events).await];
    told.sort();
    let want = |v: &str| {
        format!("FailedMount: MountVolume.SetUp failed for volume \"{v}\" : configmap \"m\" not found")
    };
    assert_eq!(told, [want("cm"), want("proj")]);
    assert_eq!(root.read(&format!("{CM}/a")).as_deref(), Some("2"));
    root.put(Kind::ConfigMap, "m", &[("a", "3")]);
    root.until(&format!("{CM}/a"), Some("3")).await;
    drop(keeper);
    root.volumes.teardown(&uid).await.unwrap();
    assert!(!root.in_pod("").exists());
}

async fn next(events: &mut broadcast::Receiver<Event>) -> String {
    let event = tokio::time::timeout(Duration::from_secs(60), events.recv()).await;
    let event = event.expect("an event within a minute").unwrap();
    format!("{}: {}", event.reason, event.message)
}

#[tokio::test]
async fn what_is_missing_is_said_for_each_volume_with_what_it_waits_for_and_nothing_is_made() {
    let root = Root::new();
    root.put(Kind::ConfigMap, "m", &[("a", "1")]);
    root.shelf.synced();
    let spec = json!({"containers": [], "volumes": [
        {"name": "v", "configMap": {"name": "nosuchcm"}},
        {"name": "w", "secret": {"secretName": "nosuchsec"}},
        {"name": "x", "configMap": {"name": "m", "items": [{"key": "zz", "path": "zz"}]}},
        {"name": "y", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}},
    ]});
    let p = pod(&spec.to_string());
    root.volumes.prepare_pod_dirs(&PodUid::new("uid-1")).unwrap();
    let e = root.volumes.setup(&p, None).await.unwrap_err();
    let messages: Vec<&str> = e.all().map(|e| e.message.as_str()).collect();
    let failed = |v: &str, why: &str| format!("MountVolume.SetUp failed for volume \"{v}\" : {why}");
    assert_eq!(
        messages,
        [
            failed("v", "configmap \"nosuchcm\" not found"),
            failed("w", "secret \"nosuchsec\" not found"),
            failed("x", "configmap references non-existent config key: zz"),
            failed("y", "pod demo/p: projected.sources[0].serviceAccountToken is not supported yet"),
        ]
    );
    assert!(!root.in_pod("volumes/kubernetes.io~configmap").exists());
    let waits: Vec<_> = e.all().flat_map(|e| e.waits_for.clone()).collect();
    let names: Vec<&str> = waits.iter().map(|(key, _)| &*key.name).collect();
    assert_eq!(names, ["nosuchcm", "nosuchsec", "m"]);
    let objects = Objects::new(root.shelf.clone());
    let changed = objects.changed(&waits);
    tokio::pin!(changed);
    assert!(futures::poll!(&mut changed).is_pending());
    root.put(Kind::Secret, "nosuchsec", &[]);
    changed.await;
}

#[tokio::test]
async fn nothing_is_not_found_before_it_is_known_what_there_is() {
    let root = Root::new();
    let p = pod(r#"{"containers":[],"volumes":[{"name":"v","configMap":{"name":"m"}}]}"#);
    root.volumes.prepare_pod_dirs(&PodUid::new("uid-1")).unwrap();
    let setup = root.volumes.setup(&p, None);
    tokio::pin!(setup);
    assert!(futures::poll!(&mut setup).is_pending());
    root.put(Kind::ConfigMap, "m", &[("a", "1")]);
    root.shelf.synced();
    let mounted = setup.await.unwrap();
    assert_eq!(std::fs::read_to_string(mounted.path("v").unwrap().join("a")).unwrap(), "1");
}

#[tokio::test]
async fn what_is_immutable_is_not_followed_and_what_is_optional_may_come_and_go() {
    let root = Root::new();
    root.put_as(Kind::ConfigMap, "fixed", &[("a", "1")], true);
    root.shelf.synced();
    let spec = json!({"containers": [], "volumes": [
        {"name": "cm", "configMap": {"name": "fixed"}},
        {"name": "opt", "configMap": {"name": "later", "optional": true}},
    ]});
    let p = pod(&spec.to_string());
    root.volumes.prepare_pod_dirs(&PodUid::new("uid-1")).unwrap();
    root.volumes.setup(&p, None).await.unwrap();
    let recorder = Recorder::new(16);
    let mut events = recorder.subscribe();
    let _keeper = root.volumes.keep(&p, &recorder).unwrap();
    let optional = "volumes/kubernetes.io~configmap/opt/a";
    root.put(Kind::ConfigMap, "later", &[("a", "1")]);
    root.until(optional, Some("1")).await;
    // It was removed, and another of its name was made.
    root.gone(Kind::ConfigMap, "fixed");
    root.put_as(Kind::ConfigMap, "fixed", &[("a", "2")], true);
    root.gone(Kind::ConfigMap, "later");
    root.until(optional, None).await;
    assert_eq!(root.read(&format!("{CM}/a")).as_deref(), Some("1"));
    assert!(events.try_recv().is_err(), "neither is a failure");
}

#[tokio::test]
async fn a_keeper_writes_only_into_volumes_that_are_set_up() {
    if !can_mount("a_keeper_writes_only_into_volumes_that_are_set_up") {
        return;
    }
    let root = Root::new();
    root.put(Kind::Secret, "s", &[("k", "1")]);
    root.put(Kind::ConfigMap, "m", &[("a", "1")]);
    root.shelf.synced();
    let spec = json!({"containers": [], "volumes": [
        {"name": "sec", "secret": {"secretName": "s"}},
        {"name": "cm", "configMap": {"name": "m"}},
    ]});
    let (p, uid) = (pod(&spec.to_string()), PodUid::new("uid-1"));
    root.volumes.prepare_pod_dirs(&uid).unwrap();
    root.volumes.setup(&p, None).await.unwrap();
    // As after a reboot: the directory is there, what was mounted on it is not.
    rustix::mount::unmount(root.in_pod(SEC), UnmountFlags::empty()).unwrap();
    root.put(Kind::Secret, "s", &[("k", "2")]);
    root.put(Kind::ConfigMap, "m", &[("a", "2")]);
    let keeper = root.volumes.keep(&p, &Recorder::new(16)).unwrap();
    root.until(&format!("{CM}/a"), Some("2")).await;
    assert_eq!(std::fs::read_dir(root.in_pod(SEC)).unwrap().count(), 0, "no secret on a disk");
    drop(keeper);
    root.volumes.setup(&p, None).await.unwrap();
    assert_eq!(root.read(&format!("{SEC}/k")).as_deref(), Some("2"));
    root.volumes.teardown(&uid).await.unwrap();
}

#[tokio::test]
async fn a_volume_that_could_not_be_written_is_written_later() {
    let root = Root::new();
    root.put(Kind::ConfigMap, "m", &[("a", "1")]);
    root.shelf.synced();
    let p = pod(r#"{"containers":[],"volumes":[{"name":"cm","configMap":{"name":"m"}}]}"#);
    root.volumes.prepare_pod_dirs(&PodUid::new("uid-1")).unwrap();
    root.volumes.setup(&p, None).await.unwrap();
    // A name that is taken: a sub path of a container that asked for a key that is not there.
    std::fs::create_dir(root.in_pod(&format!("{CM}/taken"))).unwrap();
    let recorder = Recorder::new(16);
    let mut events = recorder.subscribe();
    let _keeper = root.volumes.keep(&p, &recorder).unwrap();
    root.put(Kind::ConfigMap, "m", &[("a", "2"), ("taken", "2")]);
    let told = next(&mut events).await;
    assert!(told.contains("MountVolume.SetUp failed for volume \"cm\" : symlink "), "{told}");
    assert_eq!(root.read(&format!("{CM}/a")).as_deref(), Some("2"), "the rest is there");
    std::fs::remove_dir(root.in_pod(&format!("{CM}/taken"))).unwrap();
    root.until(&format!("{CM}/taken"), Some("2")).await;
}
