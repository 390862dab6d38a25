//! The handle on tempdirs, with real mounts where the test may mount.

use super::*;
use crate::objects::shelf::Shelf;
use rustix::mount::{MountFlags, UnmountFlags};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A root directory of the test's own; whatever is mounted below it goes with it.
struct Root {
    volumes: Volumes,
    dir: tempfile::TempDir,
    /// Its objects; nothing is known of any before a test says so.
    shelf: Arc<Shelf>,
}

/// Shows labels, and itself for the rest.
#[derive(Debug)]
struct Shown;

impl Values for Shown {
    fn field(&self, pod: &Pod, path: &str) -> Result<String, String> {
        let label = |key: &str| pod.metadata.labels.as_ref()?.get(key).cloned();
        Ok(label(path).unwrap_or_else(|| path.to_owned()))
    }
    fn resource(
        &self,
        _: &Pod,
        selector: &k8s_openapi::api::core::v1::ResourceFieldSelector,
    ) -> Result<String, String> {
        Ok(selector.resource.clone())
    }
}

impl Root {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Arc::new(Shelf::default());
        let volumes = Volumes::new(VolumeConfig {
            root_dir: dir.path().join("kubelet"),
            mount_table: crate::mountinfo::SELF.into(),
            allocatable_memory: Some(1 << 30),
            objects: Objects::new(shelf.clone()),
            values: Arc::new(Shown),
        })
        .unwrap();
        Self { volumes, dir, shelf }
    }
    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }
    fn in_pod(&self, path: &str) -> PathBuf {
        self.at("kubelet/pods/uid-1").join(path)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let real = self.dir.path().canonicalize().unwrap();
        let table = crate::mountinfo::read(Path::new(crate::mountinfo::SELF)).unwrap();
        for m in table.iter().rev().filter(|m| m.point.starts_with(&real)) {
            let _ = rustix::mount::unmount(&m.point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
}

/// Says aloud why not, where the machine cannot.
fn can_mount(test: &str) -> bool {
    let dir = tempfile::tempdir().unwrap();
    match rustix::mount::mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), c"size=4096") {
        Ok(()) => {
            rustix::mount::unmount(dir.path(), UnmountFlags::DETACH).unwrap();
            true
        }
        Err(e) => {
            eprintln!("SKIP {test}: cannot mount: {e}");
            false
        }
    }
}

fn pod(spec: &str) -> Pod {
    let text = format!(r#"{{"metadata":{{"name":"p","namespace":"demo","uid":"uid-1"}},"spec":{spec}}}"#);
    serde_json::from_str(&text).unwrap()
}

fn container(p: &Pod) -> &Container {
    &spec(p).containers[0]
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn no_vars(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

#[tokio::test]
async fn directories_have_the_recorded_modes_and_setting_up_twice_changes_nothing() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIP directories_have_the_recorded_modes: fsGroup needs root");
    }
    let root = Root::new();
    let p =
        pod(r#"{"containers":[],"securityContext":{"fsGroup":3000},"volumes":[{"name":"d","emptyDir":{}}]}"#);
    let uid = PodUid::new("uid-1");
    for _ in 0..2 {
        root.volumes.prepare_pod_dirs(&uid).unwrap();
        let mounted = root.volumes.setup(&p, None).await.unwrap();
        assert_eq!(mounted.path("d"), Some(root.in_pod("volumes/kubernetes.io~empty-dir/d").as_path()));
        let log = root.volumes.termination_log(&uid, "c").unwrap();
        assert_eq!(mode(&log), 0o666);
        assert_eq!(log.file_name().unwrap().len(), 8);
        // As golden cases vol-emptydir and sc-pod (fsGroup) have them.
        for (path, want) in [
            ("", 0o750),
            ("containers", 0o750),
            ("containers/c", 0o750),
            ("plugins", 0o750),
            ("plugins/kubernetes.io~empty-dir", 0o750),
            ("plugins/kubernetes.io~empty-dir/d", 0o750),
            ("plugins/kubernetes.io~empty-dir/d/ready", 0o644),
            ("volumes", 0o750),
            ("volumes/kubernetes.io~empty-dir", 0o755),
            ("volumes/kubernetes.io~empty-dir/d", 0o2777),
        ] {
            assert_eq!(mode(&root.in_pod(path)), want, "{path}");
        }
        let group = std::fs::metadata(mounted.path("d").unwrap()).unwrap().gid();
        assert_eq!(group, 3000);
        std::fs::write(mounted.path("d").unwrap().join("kept"), "x").unwrap();
    }
    assert!(root.in_pod("volumes/kubernetes.io~empty-dir/d/kept").exists());
    assert_eq!(root.volumes.pods_on_disk().unwrap(), std::slice::from_ref(&uid));
    for _ in 0..2 {
        root.volumes.teardown(&uid).await.unwrap();
    }
    assert_eq!(root.volumes.pods_on_disk().unwrap(), []);
}

#[tokio::test]
async fn memory_volumes_are_as_large_as_the_tightest_bound_and_come_back_when_their_mount_is_lost() {
    if !can_mount("memory_volumes_are_as_large_as_the_tightest_bound") {
        return;
    }
    let root = Root::new();
    let p = pod(r#"{"containers":[],"volumes":[
        {"name":"m","emptyDir":{"medium":"Memory"}},
        {"name":"ml","emptyDir":{"medium":"Memory","sizeLimit":"10Mi"}}]}"#);
    let uid = PodUid::new("uid-1");
    root.volumes.prepare_pod_dirs(&uid).unwrap();
    let mounted = root.volumes.setup(&p, Some(128 << 20)).await.unwrap();
    let option = |volume: &str| {
        let point = mounted.path(volume).unwrap().canonicalize().unwrap();
        let table = crate::mountinfo::read(Path::new(crate::mountinfo::SELF)).unwrap();
        let mounts: Vec<_> = table.into_iter().filter(|m| m.point == point).collect();
        assert_eq!(mounts.len(), 1, "mounted once");
        assert_eq!(mounts[0].fs_type, "tmpfs");
        mounts[0].super_options.iter().find(|o| o.starts_with("size=")).unwrap().clone()
    };
    // As golden case vol-emptydir has them.
    assert_eq!(option("m"), "size=131072k");
    assert_eq!(option("ml"), "size=10240k");
    assert_eq!(mode(mounted.path("m").unwrap()), 0o1777);

    // As after a reboot: the marker is there, the mount is not.
    rustix::mount::unmount(mounted.path("m").unwrap(), UnmountFlags::empty()).unwrap();
    assert_eq!(root.volumes.setup(&p, Some(128 << 20)).await.unwrap(), mounted);
    assert_eq!(option("m"), "size=131072k");
    assert_eq!(option("ml"), "size=10240k");
    std::fs::write(mounted.path("m").unwrap().join("f"), "x").unwrap();
    root.volumes.teardown(&uid).await.unwrap();
    assert!(!root.in_pod("").exists());
}

#[tokio::test]
async fn a_volume_that_is_in_use_blocks_the_teardown_and_is_named() {
    if !can_mount("a_volume_that_is_in_use_blocks_the_teardown_and_is_named") {
        return;
    }
    let root = Root::new();
    let p = pod(r#"{"containers":[],"volumes":[{"name":"m","emptyDir":{"medium":"Memory"}}]}"#);
    let uid = PodUid::new("uid-1");
    root.volumes.prepare_pod_dirs(&uid).unwrap();
    let mounted = root.volumes.setup(&p, None).await.unwrap();
    let held = std::fs::File::create(mounted.path("m").unwrap().join("open")).unwrap();
    let text = root.volumes.teardown(&uid).await.unwrap_err().to_string();
    assert!(text.contains("kubernetes.io~empty-dir/m") && text.contains("busy"), "{text}");
    drop(held);
    root.volumes.teardown(&uid).await.unwrap();
}

#[tokio::test]
async fn a_mount_somebody_else_made_stops_the_teardown_before_it_touches_anything() {
    if !can_mount("a_mount_somebody_else_made_stops_the_teardown") {
        return;
    }
    let root = Root::new();
    let p = pod(r#"{"containers":[],"volumes":[{"name":"d","emptyDir":{}}]}"#);
    let uid = PodUid::new("uid-1");
    root.volumes.prepare_pod_dirs(&uid).unwrap();
    let mounted = root.volumes.setup(&p, None).await.unwrap();
    let precious = root.at("precious");
    std::fs::create_dir(&precious).unwrap();
    std::fs::write(precious.join("data"), "x").unwrap();
    let inside = mounted.path("d").unwrap().join("bound");
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(mounted.path("d").unwrap().join("mine"), "x").unwrap();
    // A bind mount within one file system: no other device gives it away.
    rustix::mount::mount_bind(&precious, &inside).unwrap();

    let text = root.volumes.teardown(&uid).await.unwrap_err().to_string();
    assert!(text.contains("/d/bound is a mount of") && text.contains("did not make"), "{text}");
    assert!(precious.join("data").exists() && mounted.path("d").unwrap().join("mine").exists());

    // Even when the mount table does not show it, the sweep does not enter.
    std::fs::write(root.at("empty-table"), "").unwrap();
    let blind = teardown::teardown(&root.in_pod("").canonicalize().unwrap(), &root.at("empty-table"));
    assert!(blind.unwrap_err().to_string().contains("/d/bound"), "named");
    assert!(precious.join("data").exists());

    rustix::mount::unmount(&inside, UnmountFlags::empty()).unwrap();
    root.volumes.teardown(&uid).await.unwrap();
    assert!(precious.join("data").exists());
}

#[tokio::test]
async fn a_teardown_follows_no_link_and_survives_any_depth() {
    let root = Root::new();
    let uid = PodUid::new("uid-1");
    let dir = root.volumes.prepare_pod_dirs(&uid).unwrap();
    std::fs::create_dir(root.at("precious")).unwrap();
    std::fs::write(root.at("precious/data"), "x").unwrap();
    symlink(root.at("precious"), dir.join("volumes/link")).unwrap();
    std::fs::create_dir(dir.join("volumes/wide")).unwrap();
    for n in 0..500 {
        std::fs::write(dir.join(format!("volumes/wide/{n}")), "").unwrap();
    }
    // Deeper than a path can be long, as a container can make it.
    let mut at = std::fs::File::open(dir.join("volumes")).unwrap().into();
    for _ in 0..400 {
        let mode = rustix::fs::Mode::from_raw_mode(0o700);
        rustix::fs::mkdirat(&at, "deeper-than-that", mode).unwrap();
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY;
        at = rustix::fs::openat(&at, "deeper-than-that", flags, rustix::fs::Mode::empty()).unwrap();
    }
    drop::<std::os::fd::OwnedFd>(at);
    root.volumes.teardown(&uid).await.unwrap();
    assert!(!dir.exists() && root.at("precious/data").exists());
}

#[tokio::test]
async fn volumes_that_are_not_supported_are_refused_by_pod_volume_and_plugin_all_in_one_pass() {
    let root = Root::new();
    let p = pod(r#"{"containers":[],"volumes":[
        {"name":"n","nfs":{"server":"x","path":"/"}},
        {"name":"d","emptyDir":{}},
        {"name":"h","emptyDir":{"medium":"HugePages-2Mi"}},
        {"name":"up","hostPath":{"path":"/a/../b"}},
        {"name":"s","hostPath":{"path":"/proc/self/absent","type":"Socket"}}]}"#);
    root.volumes.prepare_pod_dirs(&PodUid::new("uid-1")).unwrap();
    let e = root.volumes.setup(&p, None).await.unwrap_err();
    assert!(e.all().all(|e| e.reason == "FailedMount"));
    let texts: Vec<_> = e.all().map(|e| e.message.as_str()).collect();
    assert_eq!(
        texts,
        [
            r#"MountVolume.SetUp failed for volume "n" : pod demo/p: volume plugin kubernetes.io/nfs is not supported yet"#,
            r#"MountVolume.SetUp failed for volume "h" : pod demo/p: volume plugin kubernetes.io/empty-dir with medium "HugePages-2Mi" is not supported yet"#,
            r#"MountVolume.SetUp failed for volume "up" : hostPath.path "/a/../b" must not contain '..'"#,
            r#"MountVolume.SetUp failed for volume "s" : hostPath type check failed: /proc/self/absent is not a socket file"#,
        ]
    );
    assert!(root.in_pod("volumes/kubernetes.io~empty-dir/d").exists(), "the others are set up");
}

#[tokio::test]
async fn a_full_disk_is_named_with_the_path_and_the_next_try_goes_on() {
    if !can_mount("a_full_disk_is_named_with_the_path") {
        return;
    }
    let root = Root::new();
    let uid = PodUid::new("uid-1");
    let dir = root.volumes.prepare_pod_dirs(&uid).unwrap();
    // A file system with room for the first volume's inodes only.
    let volumes = dir.join("volumes");
    rustix::mount::mount("tmpfs", &volumes, "tmpfs", MountFlags::empty(), c"size=64k,nr_inodes=3").unwrap();
    let p = pod(r#"{"containers":[],"volumes":[{"name":"a","emptyDir":{}},{"name":"b","emptyDir":{}}]}"#);
    let e = root.volumes.setup(&p, None).await.unwrap_err();
    let want =
        format!("mkdir {}: No space left on device", volumes.join("kubernetes.io~empty-dir/b").display());
    assert!(e.message.contains(&want) && e.others.is_empty(), "{e}");
    rustix::mount::mount_remount(&volumes, MountFlags::empty(), c"size=64k,nr_inodes=30").unwrap();
    root.volumes.setup(&p, None).await.unwrap();

    rustix::mount::mount_remount(&volumes, MountFlags::RDONLY, c"").unwrap();
    let more = pod(r#"{"containers":[],"volumes":[{"name":"c","emptyDir":{}}]}"#);
    let e = root.volumes.setup(&more, None).await.unwrap_err();
    assert!(e.message.contains("empty-dir/c: Read-only file system"), "{e}");
    rustix::mount::unmount(&volumes, UnmountFlags::empty()).unwrap();
}

#[tokio::test]
async fn mounts_carry_read_only_propagation_and_recursion_as_recorded() {
    let root = Root::new();
    let mounted = Mounted { by_name: [("h".to_owned(), PathBuf::from("/dir"))].into(), ..Mounted::default() };
    for (fields, rro, want) in [
        (r#""mountPath":"/h""#, true, Ok((false, 0, false))),
        (r#""mountPath":"/h","readOnly":true"#, true, Ok((true, 0, false))),
        (r#""mountPath":"/h","readOnly":true,"recursiveReadOnly":"Enabled""#, true, Ok((true, 0, true))),
        (r#""mountPath":"/h","readOnly":true,"recursiveReadOnly":"IfPossible""#, true, Ok((true, 0, true))),
        (r#""mountPath":"/h","readOnly":true,"recursiveReadOnly":"IfPossible""#, false, Ok((true, 0, false))),
        (r#""mountPath":"/h","readOnly":true,"recursiveReadOnly":"Disabled""#, true, Ok((true, 0, false))),
        (r#""mountPath":"h","mountPropagation":"HostToContainer""#, true, Ok((false, 1, false))),
        (r#""mountPath":"/h","mountPropagation":"None""#, true, Ok((false, 0, false))),
        (
            r#""mountPath":"/h","readOnly":true,"recursiveReadOnly":"Enabled""#,
            false,
            Err("not supported by the runtime"),
        ),
        (r#""mountPath":"/h","recursiveReadOnly":"Enabled""#, true, Err("it is not read-only")),
        (
            r#""mountPath":"/h","mountPropagation":"Bidirectional""#,
            true,
            Err("only to privileged containers"),
        ),
        (
            r#""mountPath":"/h","subPath":"/abs""#,
            true,
            Err("error SubPath `/abs` must not be an absolute path"),
        ),
        (r#""mountPath":"/h","subPath":"a/../b""#, true, Err("must not contain '..'")),
        (r#""mountPath":"/h","subPathExpr":"$(NOVAR)""#, true, Err("missing value for NOVAR")),
    ] {
        let p = pod(&format!(
            r#"{{"containers":[{{"name":"c","volumeMounts":[{{"name":"h",{fields}}}]}}],"volumes":[]}}"#
        ));
        let expand = |_: &str| Err("missing value for NOVAR".to_owned());
        let got = root.volumes.mounts(&p, container(&p), &mounted, rro, &expand).await;
        match (got, want) {
            (Ok(m), Ok(want)) => {
                assert_eq!(
                    (m[0].host_path.as_str(), m[0].container_path.as_str()),
                    ("/dir", "/h"),
                    "{fields}"
                );
                assert_eq!((m[0].readonly, m[0].propagation, m[0].recursive_read_only), want, "{fields}");
            }
            (Err(e), Err(want)) => assert!(e.message.contains(want), "{fields}: {e}"),
            (got, want) => panic!("{fields}: {got:?}, not {want:?}"),
        }
    }
    let p = pod(r#"{"containers":[{"name":"c","volumeMounts":[{"name":"x","mountPath":"/x"}]}]}"#);
    let e = root.volumes.mounts(&p, container(&p), &mounted, true, &no_vars).await.unwrap_err();
    assert_eq!(e.message, r#"cannot find volume "x" to mount into container "c""#);
}

#[tokio::test]
async fn all_but_the_nodes_own_paths_may_be_labelled() {
    let root = Root::new();
    let p = pod(r#"{"containers":[{"name":"c","volumeMounts":[{"name":"e","mountPath":"/e"},
            {"name":"h","mountPath":"/h"}]}],"volumes":[{"name":"e","emptyDir":{}},{"name":"h","hostPath":{"path":"/"}}]}"#);
    root.volumes.prepare_pod_dirs(&PodUid::new("uid-1")).unwrap();
    let mounted = root.volumes.setup(&p, None).await.unwrap();
    let got = root.volumes.mounts(&p, container(&p), &mounted, true, &no_vars).await.unwrap();
    assert_eq!(got.iter().map(|m| m.selinux_relabel).collect::<Vec<_>>(), [true, false]);
}

#[tokio::test]
async fn an_image_volume_is_left_to_the_runtime_and_never_written_to() {
    let root = Root::new();
    let p = pod(r#"{"containers":[{"name":"c","volumeMounts":[{"name":"i","mountPath":"/i"},
            {"name":"i","mountPath":"/isub","subPath":"bin"}]}],"volumes":[{"name":"i","image":{"reference":"r.test/i:1"}}]}"#);
    root.volumes.prepare_pod_dirs(&PodUid::new("uid-1")).unwrap();
    let mounted = root.volumes.setup(&p, None).await.unwrap();
    let absent = root.volumes.mounts(&p, container(&p), &mounted, true, &no_vars).await.unwrap_err();
    assert_eq!(absent.message, r#"cannot find volume "i" to mount into container "c""#);
    let image = ImageSpec { image: "sha256:1".into(), ..ImageSpec::default() };
    let mounted = mounted.with_images([("i".to_owned(), image.clone())].into());
    let got = root.volumes.mounts(&p, container(&p), &mounted, true, &no_vars).await.unwrap();
    // Golden case vol-image.
    let whole = Mount {
        container_path: "/i".into(),
        image: Some(image),
        readonly: true,
        selinux_relabel: true,
        ..Mount::default()
    };
    let part = Mount { container_path: "/isub".into(), image_sub_path: "bin".into(), ..whole.clone() };
    assert_eq!(got, [whole, part]);
}

/// A pod with one disk volume `v` and a container that mounts `sub_path` of it.
async fn sub_path(root: &Root, sub_path: &str) -> (PathBuf, Result<PathBuf, String>) {
    let p = pod(&format!(
        r#"{{"containers":[{{"name":"c","volumeMounts":[{{"name":"v","mountPath":"/a","subPath":"{sub_path}"}}]}}],
            "volumes":[{{"name":"v","emptyDir":{{}}}}]}}"#
    ));
    root.volumes.prepare_pod_dirs(&PodUid::new("uid-1")).unwrap();
    let mounted = root.volumes.setup(&p, None).await.unwrap();
    let volume = mounted.path("v").unwrap().to_owned();
    let got = root.volumes.mounts(&p, container(&p), &mounted, true, &no_vars).await;
    (volume, got.map(|m| PathBuf::from(&m[0].host_path)).map_err(|e| e.message))
}

#[tokio::test]
async fn a_sub_path_is_bound_where_recorded_made_when_missing_and_rebound_when_it_changed() {
    if !can_mount("a_sub_path_is_bound_where_recorded") {
        return;
    }
    let root = Root::new();
    let (volume, host) = sub_path(&root, "logs/p").await;
    let host = host.unwrap();
    assert_eq!(host, root.in_pod("volume-subpaths/v/c/0"));
    assert_eq!((mode(&volume.join("logs")), mode(&volume.join("logs/p"))), (0o777, 0o777));
    assert_eq!(mode(&root.in_pod("volume-subpaths/v/c")), 0o750);
    std::fs::write(volume.join("logs/p/f"), "one").unwrap();
    assert_eq!(std::fs::read_to_string(host.join("f")).unwrap(), "one");

    // The same again: still one mount. Then another thing under that name: a file.
    sub_path(&root, "logs/p").await.1.unwrap();
    let count = || {
        let real = root.in_pod("").canonicalize().unwrap();
        let table = crate::mountinfo::read(Path::new(crate::mountinfo::SELF)).unwrap();
        table.iter().filter(|m| m.point.starts_with(&real)).count()
    };
    assert_eq!(count(), 1);
    std::fs::rename(volume.join("logs"), volume.join("old")).unwrap();
    std::fs::create_dir(volume.join("logs")).unwrap();
    std::fs::write(volume.join("logs/p"), "two").unwrap();
    sub_path(&root, "logs/p").await.1.unwrap();
    assert_eq!(std::fs::read_to_string(&host).unwrap(), "two");
    assert_eq!(count(), 1);
    // A link that stays inside is followed, a missing part behind it made.
    symlink("old", volume.join("in")).unwrap();
    sub_path(&root, "in/new").await.1.unwrap();
    assert!(volume.join("old/new").is_dir());
    // One with an absolute target that lies inside, too.
    symlink(volume.join("old"), volume.join("abs")).unwrap();
    sub_path(&root, "abs/newer").await.1.unwrap();
    assert!(volume.join("old/newer").is_dir());
    sub_path(&root, "abs/p").await.1.unwrap();
    assert_eq!(std::fs::read_to_string(host.join("f")).unwrap(), "one");

    root.volumes.teardown(&PodUid::new("uid-1")).await.unwrap();
    assert!(!root.in_pod("").exists());
}

#[tokio::test]
async fn a_sub_path_that_leads_out_is_refused_with_the_recorded_text() {
    let root = Root::new();
    let (volume, _) = sub_path(&root, "").await;
    symlink("/dev", volume.join("link")).unwrap();
    symlink("../../../../../..", volume.join("up")).unwrap();
    symlink("/nowhere/at/all", volume.join("dangling")).unwrap();
    std::fs::create_dir(root.at("outside")).unwrap();
    symlink(root.at("outside"), volume.join("out")).unwrap();
    for (path, what) in [
        ("link", "prepare subPath"),
        ("link/null", "prepare subPath"),
        ("up", "prepare subPath"),
        ("out/made", "create subPath directory"),
        ("dangling", "create subPath directory"),
    ] {
        let want = format!(r#"failed to {what} for volumeMount "v" of container "c""#);
        assert_eq!(sub_path(&root, path).await.1, Err(want), "{path}");
    }
    assert_eq!(std::fs::read_dir(root.at("outside")).unwrap().count(), 0, "nothing was made outside");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_swapped_in_while_the_sub_path_is_bound_never_leads_out() {
    if !can_mount("a_link_swapped_in_while_the_sub_path_is_bound") {
        return;
    }
    let root = Root::new();
    std::fs::create_dir(root.at("outside")).unwrap();
    std::fs::write(root.at("outside/secret"), "x").unwrap();
    let (volume, _) = sub_path(&root, "").await;
    std::fs::create_dir(volume.join("a")).unwrap();
    symlink(root.at("outside"), volume.join("b")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let attacker = std::thread::spawn({
        let (volume, stop) = (volume.clone(), stop.clone());
        move || {
            let mut swaps = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let cwd = rustix::fs::CWD;
                rustix::fs::renameat_with(cwd, volume.join("a"), cwd, volume.join("b"), flags).unwrap();
                swaps += 1;
            }
            swaps
        }
    });
    let (mut bound, mut refused) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(20);
    while (bound < 5 || refused < 5) && Instant::now() < deadline {
        for path in ["a", "a/x"] {
            match sub_path(&root, path).await.1 {
                Ok(host) => {
                    bound += 1;
                    assert!(!host.join("secret").exists() && !host.join("../outside/secret").exists());
                }
                Err(_) => refused += 1,
            }
            assert!(!root.at("outside/x").exists(), "nothing is made outside");
        }
    }
    stop.store(true, Ordering::Relaxed);
    let swaps = attacker.join().unwrap();
    assert!(bound > 0 && refused > 0, "both sides of the race were seen: {bound} {refused} of {swaps}");
    root.volumes.teardown(&PodUid::new("uid-1")).await.unwrap();
}

#[tokio::test]
async fn names_that_would_leave_their_directory_are_refused() {
    let root = Root::new();
    for uid in ["..", ".", "", "a/b", "../../x"] {
        let uid = PodUid::new(uid);
        assert!(root.volumes.prepare_pod_dirs(&uid).is_err(), "{uid:?}");
        // What cannot be there need not be removed, and nothing else is.
        root.volumes.teardown(&uid).await.unwrap();
    }
    assert!(root.at("kubelet/pods").is_dir());
    assert!(root.volumes.termination_log(&PodUid::new("uid-1"), "../x").is_err());
    let p = pod(r#"{"containers":[],"volumes":[{"name":"..","emptyDir":{}}]}"#);
    assert!(root.volumes.setup(&p, None).await.is_err());
}

/// `cargo test -p kubelet --lib -- --ignored --nocapture volume::tests::bench`
#[tokio::test]
#[ignore = "a measurement"]
async fn bench_set_up_and_tear_down() {
    let root = Root::new();
    let p = pod(r#"{"containers":[],"volumes":[{"name":"d","emptyDir":{}}]}"#);
    let uid = PodUid::new("uid-1");
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        let start = Instant::now();
        root.volumes.prepare_pod_dirs(&uid).unwrap();
        root.volumes.setup(&p, None).await.unwrap();
        root.volumes.termination_log(&uid, "c").unwrap();
        up.push(start.elapsed());
        let start = Instant::now();
        root.volumes.teardown(&uid).await.unwrap();
        down.push(start.elapsed());
    }
    up.sort();
    down.sort();
    eprintln!("directories and one emptyDir {:?}, teardown {:?}", up[100], down[100]);
}

#[test]
fn a_volumes_file_is_read_only_where_it_is_a_file_inside_and_small() {
    let dir = tempfile::tempdir().unwrap();
    let volume = dir.path().join("v");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(dir.path().join("secret"), "s").unwrap();
    std::fs::write(volume.join("f"), "text").unwrap();
    std::os::unix::fs::symlink("f", volume.join("inside")).unwrap();
    std::os::unix::fs::symlink("../secret", volume.join("outside")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", volume.join("absolute")).unwrap();
    let read = |path: &str, limit| subpath::read(&volume, path, limit);
    assert_eq!(read("f", 4).unwrap(), b"text");
    assert_eq!(read("inside", 4).unwrap(), b"text");
    assert!(read("f", 3).unwrap_err().to_string().contains("larger than 3 bytes"));
    assert_eq!(read("none", 4).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    for path in [".", "outside", "absolute", "../secret"] {
        assert!(read(path, 9).is_err(), "{path}");
    }
}

mod objects;
