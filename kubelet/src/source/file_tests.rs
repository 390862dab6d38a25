//! A real directory, real inotify. The slow pass is off unless a test is about it: everything works with the net cut.

use super::*;
use crate::source::Problem;
use crate::source::SourcePod;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::path::Path;
use tempfile::TempDir;

struct World {
    dir: TempDir,
    rx: mpsc::Receiver<SourceEvent>,
    source: Watched,
    recorder: Recorder,
    /// UID to name and image.
    running: BTreeMap<String, String>,
    synced: usize,
    last: Option<SourcePod>,
}

fn text(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  containers:\n  - name: c\n    image: {image}\n"
    )
}

impl World {
    /// A source over `dir/m`; the directory is made when `make` says so.
    fn with(dir: TempDir, make: bool, net: Duration) -> Self {
        let path = dir.path().join("m");
        if make && !path.exists() {
            std::fs::create_dir(&path).unwrap();
        }
        let (tx, rx) = mpsc::channel(16);
        let recorder = Recorder::new(16);
        let source = spawn(path, "Node1", References::None, net, tx, recorder.clone()).unwrap();
        Self { dir, rx, source, recorder, running: BTreeMap::new(), synced: 0, last: None }
    }

    async fn new() -> Self {
        let mut w = Self::with(tempfile::tempdir().unwrap(), true, Duration::ZERO);
        w.until_synced().await;
        w
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("m").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Writes beside the directory and renames into it.
    fn rename_in(&self, name: &str, text: &str) {
        let outside = self.dir.path().join(format!("new-{name}"));
        std::fs::write(&outside, text).unwrap();
        std::fs::rename(outside, self.path(name)).unwrap();
    }

    async fn event(&mut self) {
        let event = tokio::time::timeout(Duration::from_secs(20), self.rx.recv()).await;
        match event.expect("an event within 20 s").expect("the source runs") {
            SourceEvent::Put(p) => {
                let image = p.pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
                let m = &p.pod.metadata;
                self.running.insert(m.uid.clone().unwrap(), format!("{}={image}", m.name.clone().unwrap()));
                self.last = Some(p);
            }
            SourceEvent::Gone { uid, .. } => {
                assert!(self.running.remove(uid.as_str()).is_some(), "{uid} was not running");
            }
            SourceEvent::Synced(_) => self.synced += 1,
        }
    }

    async fn until_synced(&mut self) {
        while self.synced == 0 {
            self.event().await;
        }
    }

    fn pods(&self) -> BTreeSet<String> {
        self.running.values().cloned().collect()
    }

    /// Takes events until exactly these pods (`name=image`) run.
    async fn until(&mut self, want: &[&str]) {
        let want: BTreeSet<String> = want.iter().map(|s| (*s).to_owned()).collect();
        while self.pods() != want {
            self.event().await;
        }
    }

    /// Waits until what is wrong is exactly this: path's last name and the beginning of the text.
    async fn until_problems(&mut self, want: &[(&str, &str)]) {
        let matches = |problems: &Vec<(PathBuf, Problem)>| {
            problems.len() == want.len()
                && problems.iter().zip(want).all(|((path, problem), (name, text))| {
                    path.file_name().is_some_and(|n| n == *name) && problem.to_string().starts_with(text)
                })
        };
        let mut rx = self.source.problems.clone();
        let reached = tokio::time::timeout(Duration::from_secs(20), rx.wait_for(matches)).await;
        assert!(reached.is_ok(), "wanted {want:?}, have {:?}", *self.source.problems.borrow());
    }

    /// That nothing more was said: a new manifest's event is the very next one.
    async fn nothing_else_said(&mut self) {
        let before = self.pods();
        self.rename_in("zz-probe", &text("probe", "p"));
        self.event().await;
        let mut with = before.clone();
        with.insert("probe-node1=p".to_owned());
        assert_eq!(self.pods(), with, "an event came that was not expected");
        std::fs::remove_file(self.path("zz-probe")).unwrap();
        self.event().await;
        assert_eq!(self.pods(), before);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.source.task.abort();
    }
}

#[tokio::test]
async fn manifests_that_are_there_come_first_and_then_synced() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("m")).unwrap();
    for i in 0..30 {
        std::fs::write(dir.path().join(format!("m/{i}.yaml")), text(&format!("p{i}"), "i")).unwrap();
    }
    std::fs::write(dir.path().join("m/.hidden.yaml"), text("hidden", "i")).unwrap();
    let mut w = World::with(dir, true, Duration::ZERO);
    w.until_synced().await;
    assert_eq!(w.running.len(), 30);
    assert_eq!(w.synced, 1);
}

#[tokio::test]
async fn a_pod_arrives_as_upstreams_static_pods_do() {
    let mut w = World::new().await;
    w.rename_in("a.yaml", &text("web", "nginx:1"));
    w.until(&["web-node1=nginx:1"]).await;
    let put = w.last.take().unwrap();
    let (m, spec) = (&put.pod.metadata, put.pod.spec.as_ref().unwrap());
    assert_eq!(put.origin, Origin::File);
    assert_eq!(m.namespace.as_deref(), Some("default"));
    assert_eq!(spec.node_name.as_deref(), Some("Node1"));
    assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
    let annotations = m.annotations.as_ref().unwrap();
    assert_eq!(annotations["kubernetes.io/config.source"], "file");
    assert_eq!(annotations["kubernetes.io/config.seen"], put.seen.to_string());
    assert_eq!(Some(&annotations["kubernetes.io/config.hash"]), m.uid.as_ref());
    let tolerations = serde_json::to_value(&spec.tolerations).unwrap();
    assert_eq!(tolerations, serde_json::json!([{"effect": "NoExecute", "operator": "Exists"}]));
}

#[tokio::test]
async fn the_same_content_again_is_the_same_pod() {
    let mut w = World::new().await;
    w.write("a.yaml", &text("a", "i"));
    w.until(&["a-node1=i"]).await;
    let uid = w.running.keys().next().unwrap().clone();
    std::fs::remove_file(w.path("a.yaml")).unwrap();
    w.until(&[]).await;
    w.write("a.yaml", &format!("# again\n{}", text("a", "i")));
    w.until(&["a-node1=i"]).await;
    assert_eq!(w.running.keys().next(), Some(&uid));
    w.write("a.yaml", &text("a", "j"));
    w.until(&["a-node1=j"]).await;
    assert_ne!(w.running.keys().next(), Some(&uid));
}

#[tokio::test]
async fn every_way_a_file_can_appear_and_go_is_seen() {
    let mut w = World::new().await;
    w.write("written", &text("a", "i"));
    w.until(&["a-node1=i"]).await;
    w.rename_in("renamed", &text("b", "i"));
    w.until(&["a-node1=i", "b-node1=i"]).await;
    std::fs::write(w.dir.path().join("outside"), text("c", "i")).unwrap();
    std::fs::hard_link(w.dir.path().join("outside"), w.path("linked")).unwrap();
    w.until(&["a-node1=i", "b-node1=i", "c-node1=i"]).await;
    std::fs::write(w.dir.path().join("target"), text("d", "i")).unwrap();
    symlink(w.dir.path().join("target"), w.path("symlink")).unwrap();
    w.until(&["a-node1=i", "b-node1=i", "c-node1=i", "d-node1=i"]).await;
    std::fs::rename(w.path("written"), w.dir.path().join("away")).unwrap();
    std::fs::remove_file(w.path("renamed")).unwrap();
    w.until(&["c-node1=i", "d-node1=i"]).await;
    std::fs::remove_file(w.path("linked")).unwrap();
    std::fs::rename(w.path("symlink"), w.path(".hidden")).unwrap();
    w.until(&[]).await;
}

#[tokio::test]
async fn a_file_is_read_when_it_is_closed_and_not_while_it_is_written() {
    use std::io::Write;
    let mut w = World::new().await;
    let whole = text("a", "image");
    let mut file = std::fs::File::create(w.path("a.yaml")).unwrap();
    // Everything but the image's last letters: valid, and not what is meant.
    file.write_all(&whole.as_bytes()[..whole.len() - 3]).unwrap();
    file.sync_all().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    file.set_permissions(mode).unwrap();
    w.nothing_else_said().await;
    file.write_all(&whole.as_bytes()[whole.len() - 3..]).unwrap();
    drop(file);
    w.until(&["a-node1=image"]).await;

    // Truncated and rewritten in place, slowly.
    let mut file = std::fs::File::create(w.path("a.yaml")).unwrap();
    w.nothing_else_said().await;
    file.write_all(text("a", "second").as_bytes()).unwrap();
    drop(file);
    w.until(&["a-node1=second"]).await;
}

#[tokio::test]
async fn each_bad_manifest_is_reported_with_file_and_field_and_the_rest_runs_on() {
    let mut w = World::new().await;
    w.write("good", &text("good", "i"));
    w.until(&["good-node1=i"]).await;
    let good = text("x", "i");
    std::fs::create_dir(w.path("a-directory")).unwrap();
    symlink("/nowhere/at/all", w.path("b-dangling")).unwrap();
    w.write("c-empty", "");
    w.write("d-truncated", &good[..good.len() / 2]);
    w.write("e-words", "this is no manifest\n");
    w.write("f-kind", "apiVersion: v1\nkind: Service\nmetadata: {name: x}\n");
    w.write("g-two", &format!("{good}---\n{good}"));
    std::fs::write(w.path("h-binary"), b"\x7fELF\x02\x01\x01\x00\xff\xfe").unwrap();
    std::fs::File::create(w.path("i-huge")).unwrap().set_len(64 << 30).unwrap();
    w.write("j-type", &good.replace("image: i", "image: i\n    ports: [{containerPort: http}]"));
    w.write("k-field", &good.replace("image: i", "image: i\n    ports: [{containerPort: 70000}]"));
    w.write(
        "l-secret",
        &good.replace("image: i", "image: i\n  volumes: [{name: v, secret: {secretName: s}}]"),
    );
    w.write("m-twin", &text("good", "other"));
    let fifo = w.path("n-fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("p-loop", w.path("o-loop")).unwrap();
    symlink("o-loop", w.path("p-loop")).unwrap();
    w.until_problems(&[
        ("a-directory", "a directory"),
        ("b-dangling", "a link to /nowhere/at/all, which is not there"),
        ("c-empty", "empty"),
        ("d-truncated", ""),
        ("e-words", "not an object"),
        ("f-kind", "kind: expected \"Pod\", found \"Service\""),
        ("g-two", "holds 2 documents"),
        ("h-binary", "not text"),
        ("i-huge", "larger than the limit"),
        ("j-type", "spec.containers[0].ports[0].containerPort: invalid type: string \"http\""),
        (
            "k-field",
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535",
        ),
        ("l-secret", "spec.volumes[0].secret: Forbidden: a static pod may not reference an API object"),
        ("m-twin", "metadata.name: already defined by good"),
        ("n-fifo", "a FIFO"),
        ("o-loop", "its link cannot be followed"),
        ("p-loop", "its link cannot be followed"),
    ])
    .await;
    assert_eq!(w.pods(), BTreeSet::from(["good-node1=i".to_owned()]));
    w.nothing_else_said().await;
    // Mended, each becomes a pod; unknown fields are no obstacle.
    std::fs::remove_file(w.path("c-empty")).unwrap();
    w.write("k-field", &good.replace("image: i", "image: i\n    notAField: 1"));
    w.until(&["good-node1=i", "x-node1=i"]).await;
}

#[tokio::test]
async fn an_unreadable_file_is_reported_and_read_once_it_can_be() {
    // Root reads everything, so what cannot be read is a link into a directory that is a file.
    let mut w = World::new().await;
    std::fs::write(w.dir.path().join("plain"), "x").unwrap();
    symlink(w.dir.path().join("plain/inside"), w.path("a")).unwrap();
    w.until_problems(&[("a", "its link cannot be followed")]).await;
    std::fs::remove_file(w.path("a")).unwrap();
    w.write("a", &text("a", "i"));
    w.until(&["a-node1=i"]).await;
    w.until_problems(&[]).await;
}

#[tokio::test]
async fn a_file_that_goes_bad_keeps_its_pod_until_it_is_removed() {
    let mut w = World::new().await;
    w.write("a", &text("a", "i"));
    w.until(&["a-node1=i"]).await;
    w.write("a", "");
    w.until_problems(&[("a", "empty")]).await;
    w.nothing_else_said().await;
    w.write("a", &text("a", "i"));
    w.until_problems(&[]).await;
    w.nothing_else_said().await;
    w.write("a", "kind: [");
    w.until_problems(&[("a", "not YAML")]).await;
    std::fs::remove_file(w.path("a")).unwrap();
    w.until(&[]).await;
}

#[tokio::test]
async fn a_second_file_for_a_running_pod_waits_and_is_an_event() {
    let mut w = World::new().await;
    let mut events = w.recorder.subscribe();
    w.write("b", &text("a", "first"));
    w.until(&["a-node1=first"]).await;
    w.write("a", &text("a", "second"));
    let event = events.recv().await.unwrap();
    assert_eq!((&*event.reason, &*event.pod.unwrap().name), ("FailedValidation", "a-node1"));
    std::fs::remove_file(w.path("b")).unwrap();
    w.until(&["a-node1=second"]).await;
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_waited_for() {
    let mut w = World::with(tempfile::tempdir().unwrap(), false, Duration::ZERO);
    w.until_synced().await;
    std::fs::create_dir(w.dir.path().join("m")).unwrap();
    w.write("a", &text("a", "i"));
    w.until(&["a-node1=i"]).await;
}

#[tokio::test]
async fn a_path_of_which_several_directories_are_missing_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let (tx, rx) = mpsc::channel(16);
    let recorder = Recorder::new(16);
    let deep = dir.path().join("x/y/z/m/");
    let source =
        spawn(deep.clone(), "Node1", References::None, Duration::ZERO, tx, recorder.clone()).unwrap();
    let mut w = World { dir, rx, source, recorder, running: BTreeMap::new(), synced: 0, last: None };
    w.until_synced().await;
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("a"), text("a", "i")).unwrap();
    w.until(&["a-node1=i"]).await;
}

#[tokio::test]
async fn a_directory_replaced_in_two_renames_takes_no_pod_down_that_stays() {
    let mut w = World::new().await;
    w.write("a", &text("a", "i"));
    w.write("b", &text("b", "i"));
    w.until(&["a-node1=i", "b-node1=i"]).await;
    let (m, old, new) = (w.dir.path().join("m"), w.dir.path().join("old"), w.dir.path().join("new"));
    std::fs::create_dir(&new).unwrap();
    std::fs::copy(m.join("a"), new.join("a")).unwrap();
    std::fs::write(new.join("c"), text("c", "i")).unwrap();
    std::fs::rename(&m, old).unwrap();
    // Seen as missing before it is back.
    tokio::task::yield_now().await;
    std::fs::rename(new, m).unwrap();
    let a = |w: &World| w.running.iter().find(|(_, v)| v.starts_with("a-")).map(|(uid, _)| uid.clone());
    let uid = a(&w);
    while w.pods() != BTreeSet::from(["a-node1=i".to_owned(), "c-node1=i".to_owned()]) {
        w.event().await;
        assert_eq!(a(&w), uid, "the pod that stays is not touched");
    }
    // The new directory is the one that is watched.
    w.rename_in("d", &text("d", "i"));
    w.until(&["a-node1=i", "c-node1=i", "d-node1=i"]).await;
}

#[tokio::test]
async fn a_directory_that_stays_away_takes_its_pods_with_it() {
    let mut w = World::new().await;
    w.write("a", &text("a", "i"));
    w.until(&["a-node1=i"]).await;
    std::fs::rename(w.dir.path().join("m"), w.dir.path().join("gone")).unwrap();
    w.until(&[]).await;
    std::fs::rename(w.dir.path().join("gone"), w.dir.path().join("m")).unwrap();
    w.until(&["a-node1=i"]).await;
    assert_eq!(w.synced, 1, "synced is said once");
}

#[tokio::test]
async fn a_directory_that_is_a_link_is_followed_and_its_retargeting_seen() {
    let dir = tempfile::tempdir().unwrap();
    for v in ["v1", "v2"] {
        std::fs::create_dir(dir.path().join(v)).unwrap();
        std::fs::write(dir.path().join(v).join("a"), text("a", v)).unwrap();
    }
    symlink("v1", dir.path().join("m")).unwrap();
    let mut w = World::with(dir, false, Duration::ZERO);
    w.until(&["a-node1=v1"]).await;
    symlink("v2", w.dir.path().join("next")).unwrap();
    std::fs::rename(w.dir.path().join("next"), w.dir.path().join("m")).unwrap();
    w.until(&["a-node1=v2"]).await;
}

#[tokio::test]
async fn a_linked_manifest_follows_its_target() {
    let mut w = World::new().await;
    let target = w.dir.path().join("target");
    std::fs::write(&target, text("a", "one")).unwrap();
    symlink(&target, w.path("a")).unwrap();
    w.until(&["a-node1=one"]).await;
    std::fs::write(&target, text("a", "two")).unwrap();
    w.until(&["a-node1=two"]).await;
    for image in ["three", "four", "five"] {
        std::fs::write(w.dir.path().join("next"), text("a", image)).unwrap();
        std::fs::rename(w.dir.path().join("next"), &target).unwrap();
        w.until(&[&format!("a-node1={image}")]).await;
    }
    std::fs::remove_file(&target).unwrap();
    w.until(&[]).await;
    w.until_problems(&[("a", "a link to")]).await;
}

#[tokio::test]
async fn manifests_behind_an_atomic_writers_links_change_with_its_data_directory() {
    let mut w = World::new().await;
    for (version, image) in [("..1", "one"), ("..2", "two")] {
        std::fs::create_dir(w.path(version)).unwrap();
        std::fs::write(w.path(version).join("a"), text("a", image)).unwrap();
    }
    symlink("..1", w.path("..data")).unwrap();
    symlink("..data/a", w.path("a")).unwrap();
    w.until(&["a-node1=one"]).await;
    symlink("..2", w.path("..data_tmp")).unwrap();
    std::fs::rename(w.path("..data_tmp"), w.path("..data")).unwrap();
    w.until(&["a-node1=two"]).await;
}

#[tokio::test]
async fn a_single_file_is_a_source_too() {
    let dir = tempfile::tempdir().unwrap();
    let m = dir.path().join("m");
    std::fs::write(&m, text("a", "one")).unwrap();
    let mut w = World::with(dir, false, Duration::ZERO);
    w.until_synced().await;
    w.until(&["a-node1=one"]).await;
    std::fs::write(&m, text("a", "two")).unwrap();
    w.until(&["a-node1=two"]).await;
    std::fs::write(w.dir.path().join("next"), text("a", "three")).unwrap();
    std::fs::rename(w.dir.path().join("next"), &m).unwrap();
    w.until(&["a-node1=three"]).await;
    std::fs::write(&m, "kind: [").unwrap();
    w.until_problems(&[("m", "not YAML")]).await;
    assert_eq!(w.source.problems.borrow()[0].0, m);
    std::fs::remove_file(&m).unwrap();
    w.until(&[]).await;
    std::fs::create_dir(&m).unwrap();
    w.write("b", &text("b", "i"));
    w.until(&["b-node1=i"]).await;
}

#[tokio::test]
async fn the_slow_pass_finds_what_inotify_does_not_tell() {
    let dir = tempfile::tempdir().unwrap();
    for v in ["v1", "v2"] {
        std::fs::create_dir(dir.path().join(v)).unwrap();
        std::fs::write(dir.path().join(v).join("a"), text("a", v)).unwrap();
    }
    // The link behind the link is not watched.
    symlink("v1", dir.path().join("current")).unwrap();
    symlink("current", dir.path().join("m")).unwrap();
    let mut w = World::with(dir, false, Duration::from_millis(20));
    w.until(&["a-node1=v1"]).await;
    symlink("v2", w.dir.path().join("next")).unwrap();
    std::fs::rename(w.dir.path().join("next"), w.dir.path().join("current")).unwrap();
    w.until(&["a-node1=v2"]).await;
}

#[tokio::test]
async fn the_slow_pass_sees_a_directory_moved_with_the_one_above_it() {
    let dir = tempfile::tempdir().unwrap();
    // Two levels above the manifests nothing is watched.
    let top = dir.path().join("top");
    for (version, image) in [("top", "one"), ("next", "two")] {
        let m = dir.path().join(version).join("etc/m");
        std::fs::create_dir_all(&m).unwrap();
        std::fs::write(m.join("a"), text("a", image)).unwrap();
    }
    let (tx, rx) = mpsc::channel(16);
    let recorder = Recorder::new(16);
    let path = top.join("etc/m");
    let source =
        spawn(path, "Node1", References::None, Duration::from_millis(20), tx, recorder.clone()).unwrap();
    let mut w = World { dir, rx, source, recorder, running: BTreeMap::new(), synced: 0, last: None };
    w.until(&["a-node1=one"]).await;
    std::fs::rename(&top, w.dir.path().join("old")).unwrap();
    std::fs::rename(w.dir.path().join("next"), &top).unwrap();
    w.until(&["a-node1=two"]).await;
    std::fs::remove_file(top.join("etc/m/a")).unwrap();
    w.until(&[]).await;
}

#[tokio::test]
async fn a_slow_pass_over_a_single_file_loses_no_event() {
    let dir = tempfile::tempdir().unwrap();
    let m = dir.path().join("m");
    std::fs::write(&m, text("a", "i")).unwrap();
    let mut w = World::with(dir, false, Duration::from_millis(1));
    w.until_synced().await;
    for i in 0..50 {
        std::fs::write(&m, text("a", &format!("i{i}"))).unwrap();
        w.until(&[&format!("a-node1=i{i}")]).await;
    }
}

#[tokio::test]
async fn the_slow_pass_does_not_read_what_is_being_written() {
    use std::io::Write;
    let mut w = World::with(tempfile::tempdir().unwrap(), true, Duration::from_millis(5));
    w.until_synced().await;
    let whole = text("a", "image");
    let mut file = std::fs::File::create(w.path("a")).unwrap();
    file.write_all(&whole.as_bytes()[..whole.len() - 3]).unwrap();
    for _ in 0..5 {
        w.nothing_else_said().await;
    }
    file.write_all(&whole.as_bytes()[whole.len() - 3..]).unwrap();
    drop(file);
    w.until(&["a-node1=image"]).await;
}

#[tokio::test]
async fn more_events_than_inotify_holds_lose_nothing() {
    let mut w = World::new().await;
    // The channel is small and nobody reads: the source stands still while the kernel's queue overflows.
    let limit: usize =
        std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    for i in 0..40 {
        w.rename_in(&format!("p{i}"), &text(&format!("p{i}"), "i"));
    }
    for i in 0..limit + 1000 {
        std::fs::write(w.path(&format!(".x{}", i % 7)), "").unwrap();
    }
    w.rename_in("last", &text("last", "i"));
    std::fs::remove_file(w.path("p0")).unwrap();
    let want: Vec<String> =
        (1..40).map(|i| format!("p{i}-node1=i")).chain(["last-node1=i".to_owned()]).collect();
    w.until(&want.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn the_task_ends_when_nobody_listens() {
    let mut w = World::new().await;
    w.rx.close();
    while w.rx.recv().await.is_some() {}
    let task = &mut w.source.task;
    tokio::time::timeout(Duration::from_secs(20), task).await.expect("it ends").unwrap();
}

/// A small generator, so that a failure's seed can be run again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn random_step(dice: &mut Dice, dir: &Path, step: u64, files: &mut BTreeMap<String, String>) {
    let m = dir.join("m");
    let name = format!("f{}", dice.roll(4));
    let (path, content) = (m.join(&name), (format!("pod-{name}"), format!("i{step}")));
    let good = text(&content.0, &content.1);
    let now = format!("pod-{name}-node1=i{step}");
    match dice.roll(8) {
        0 | 1 => {
            std::fs::write(dir.join("new"), &good).unwrap();
            std::fs::rename(dir.join("new"), path).unwrap();
            files.insert(name, now);
        }
        2 => {
            std::fs::write(path, &good).unwrap();
            files.insert(name, now);
        }
        3 => {
            let _ = std::fs::remove_file(path);
            files.remove(&name);
        }
        4 => {
            let _ = std::fs::remove_file(&path);
            let target = dir.join(format!("target-{step}"));
            std::fs::write(&target, &good).unwrap();
            symlink(target, path).unwrap();
            files.insert(name, now);
        }
        5 => {
            // A rename inside the directory over whatever is there; the content keeps its pod's name.
            let other = format!("f{}", dice.roll(4));
            if other != name && std::fs::rename(&path, m.join(&other)).is_ok() {
                let moved = files.remove(&name);
                match moved {
                    Some(moved) => drop(files.insert(other, moved)),
                    None => drop(files.remove(&other)),
                }
            }
        }
        6 => {
            std::fs::rename(&m, dir.join("old")).unwrap();
            std::fs::rename(dir.join("old"), &m).unwrap();
        }
        _ => {
            // The whole directory exchanged for a copy.
            let copy = dir.join("copy");
            std::fs::create_dir(&copy).unwrap();
            for entry in std::fs::read_dir(&m).unwrap() {
                let from = entry.unwrap().path();
                std::fs::write(copy.join(from.file_name().unwrap()), std::fs::read(&from).unwrap()).unwrap();
            }
            std::fs::rename(&m, dir.join("old")).unwrap();
            std::fs::rename(copy, &m).unwrap();
            std::fs::remove_dir_all(dir.join("old")).unwrap();
        }
    }
}

#[tokio::test]
async fn two_hundred_random_sequences_end_in_the_right_pods() {
    let started =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    for sequence in 0..200 {
        let seed = started.wrapping_add(sequence);
        let mut dice = Dice(seed);
        let mut w = World::with(tempfile::tempdir().unwrap(), true, Duration::ZERO);
        let mut files = BTreeMap::new();
        let steps = 1 + dice.roll(25);
        for step in 0..steps {
            random_step(&mut dice, w.dir.path(), step, &mut files);
            for _ in 0..dice.roll(3) {
                tokio::task::yield_now().await;
            }
            // Take what has come, so that the source need not wait.
            while let Ok(event) = w.rx.try_recv() {
                match event {
                    SourceEvent::Put(p) => {
                        let image = p.pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
                        let m = &p.pod.metadata;
                        w.running
                            .insert(m.uid.clone().unwrap(), format!("{}={image}", m.name.clone().unwrap()));
                    }
                    SourceEvent::Gone { uid, .. } => drop(w.running.remove(uid.as_str()).expect("it ran")),
                    SourceEvent::Synced(_) => w.synced += 1,
                }
            }
        }
        // Several files may hold one pod: any one of them may run it.
        let names: BTreeSet<String> =
            files.values().map(|v| v.split('=').next().unwrap().to_owned()).collect();
        let right = |w: &World| {
            let running = w.pods();
            let running_names: BTreeSet<String> =
                running.iter().map(|v| v.split('=').next().unwrap().to_owned()).collect();
            running_names == names
                && running.len() == names.len()
                && running.iter().all(|pod| files.values().any(|f| f == pod))
        };
        while w.synced == 0 || !right(&w) {
            let event = tokio::time::timeout(Duration::from_secs(10), w.event()).await;
            assert!(event.is_ok(), "seed {seed}: files {files:?}, running {:?}", w.running);
        }
    }
}

#[tokio::test]
async fn the_time_from_rename_to_event_is_printed() {
    let mut w = World::new().await;
    let mut took = Vec::new();
    for i in 0..50 {
        std::fs::write(w.dir.path().join("new"), text("a", &format!("i{i}"))).unwrap();
        let started = Instant::now();
        std::fs::rename(w.dir.path().join("new"), w.path("a")).unwrap();
        w.until(&[&format!("a-node1=i{i}")]).await;
        took.push(started.elapsed());
    }
    took.sort_unstable();
    println!("rename to event: median {:?}, worst {:?}", took[took.len() / 2], took[took.len() - 1]);
}
