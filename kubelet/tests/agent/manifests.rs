//! Static pods from their files on: changed, removed and restored in quick succession, renamed, defined twice.

use crate::support::{Node, Running, SECOND, YEAR, container, fake_cgroups, pass};
use cri::fake::Script;
use cri::v1;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs;
use std::time::Duration;

/// A node whose only source is a directory of manifests, with the net under inotify cut.
fn files() -> Node {
    let mut node = Node::new();
    fs::create_dir(node.path("manifests")).unwrap();
    node.settings.manifests = Some((node.path("manifests"), YEAR));
    node.settings.other_sources = HashSet::new();
    node
}

fn put(node: &Node, file: &str, manifest: &Value) {
    fs::write(node.path("new"), manifest.to_string()).unwrap();
    fs::rename(node.path("new"), node.path("manifests").join(file)).unwrap();
}

fn remove(node: &Node, file: &str) {
    fs::remove_file(node.path("manifests").join(file)).unwrap();
}

fn rename(node: &Node, from: &str, to: &str) {
    fs::rename(node.path("manifests").join(from), node.path("manifests").join(to)).unwrap();
}

/// The manifest of `name` with one container `main`; `version` tells contents apart.
fn manifest(name: &str, version: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "annotations": {"version": version.to_string()}},
        "spec": {"containers": [container("main")]}})
}

/// The same with a UID of its own.
fn own(uid: &str, name: &str, version: u32) -> Value {
    let mut manifest = manifest(name, version);
    manifest["metadata"]["uid"] = uid.into();
    manifest
}

/// The UID and version of the pod `name`.
fn known(agent: &Running, name: &str) -> Option<(String, String)> {
    let pod = agent.agent.directory.named("default", &format!("{name}-node"))?;
    let version = pod.metadata.annotations.as_ref()?.get("version")?.clone();
    Some((pod.metadata.uid.clone()?, version))
}

/// Waits until that version of the pod is ready; gives its UID.
async fn ready(agent: &Running, name: &str, version: u32) -> String {
    let uid = || known(agent, name).filter(|(_, v)| *v == version.to_string()).map(|(uid, _)| uid);
    let what = format!("version {version} of {name} is ready");
    agent.until(&what, || uid().is_some_and(|uid| agent.is_ready(&uid))).await;
    uid().unwrap()
}

/// Waits until everything written before was read: a manifest that comes last is acted on last.
async fn read(node: &Node, agent: &Running, version: u32) {
    put(node, "witness.yaml", &own("witness", "witness", version));
    ready(agent, "witness", version).await;
}

/// No sandbox of the only pod name there is was asked for before the one before it was removed.
fn assert_one_after_the_other(node: &Node) {
    let mut there = 0;
    for call in node.fake.changes() {
        match call.method {
            "RunPodSandbox" => {
                assert_eq!(there, 0, "{:?}", node.changes());
                there += 1;
            }
            "RemovePodSandbox" => there -= 1,
            _ => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn of_dozens_of_quick_changes_each_pod_is_gone_before_the_next_begins_and_the_last_one_stays() {
    let node = files();
    node.fake.script("main", Script::forever().on_term(0, 5 * SECOND));
    let agent = node.start().await;
    put(&node, "web.yaml", &manifest("web", 0));
    ready(&agent, "web", 0).await;
    for n in 1..=60 {
        if n % 4 == 0 {
            remove(&node, "web.yaml");
        } else {
            put(&node, "web.yaml", &manifest("web", n));
        }
        // Some come at once, some while the pod before is made, is stopping, or runs.
        let pause = [0, 0, 20, 2000, 9000][usize::try_from(n).unwrap() % 5];
        pass(Duration::from_millis(pause)).await;
    }
    put(&node, "web.yaml", &manifest("web", 61));
    let last = ready(&agent, "web", 61).await;
    pass(600 * SECOND).await;
    node.assert_whole(&last, &["main"]);
    assert_eq!(node.counts(), (1, 1), "nothing is left of the others");
    node.witness.assert_never_two();
    assert_one_after_the_other(&node);
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_flickers_while_its_pod_stops_slowly_runs_again_once_or_not_at_all() {
    for stays in [true, false] {
        let node = files();
        node.fake.script("main", Script::forever().on_term(0, 20 * SECOND));
        let agent = node.start().await;
        put(&node, "web.yaml", &manifest("web", 1));
        let uid = ready(&agent, "web", 1).await;
        for _ in 0..24 {
            remove(&node, "web.yaml");
            pass(SECOND / 4).await;
            put(&node, "web.yaml", &manifest("web", 1));
            pass(SECOND / 4).await;
        }
        if stays {
            agent.until("it was ended", || node.count("RemovePodSandbox") == 1).await;
            assert_eq!(
                ready(&agent, "web", 1).await,
                uid,
                "the same content in the same file is the same pod"
            );
            pass(600 * SECOND).await;
            assert_eq!(node.count("RunPodSandbox"), 2);
            node.assert_whole(&uid, &["main"]);
        } else {
            remove(&node, "web.yaml");
            agent.until_gone(&uid).await;
            pass(600 * SECOND).await;
            assert_eq!((node.count("RunPodSandbox"), node.counts()), (1, (0, 0)));
            node.assert_gone(&uid);
        }
        node.witness.assert_never_two();
        assert_one_after_the_other(&node);
    }
}

#[tokio::test(start_paused = true)]
async fn a_renamed_file_is_another_pod_unless_its_manifest_gives_the_uid() {
    let node = files();
    let agent = node.start().await;
    put(&node, "a.yaml", &manifest("derived", 1));
    put(&node, "b.yaml", &own("own", "given", 1));
    let derived = ready(&agent, "derived", 1).await;
    assert_eq!(ready(&agent, "given", 1).await, "own");
    let untouched = node.instances("own", "main").pop().unwrap().id;

    rename(&node, "a.yaml", "c.yaml");
    rename(&node, "b.yaml", "d.yaml");
    read(&node, &agent, 1).await;
    agent.until_gone(&derived).await;
    let renamed = ready(&agent, "derived", 1).await;
    assert_ne!(renamed, derived, "a UID that is not given follows from the file's name as well");
    node.assert_gone(&derived);
    node.witness.assert_never_two();
    assert_eq!(node.instances("own", "main").pop().unwrap().id, untouched);

    // The same while no agent looks.
    agent.kill().await;
    rename(&node, "d.yaml", "e.yaml");
    let agent = node.start().await;
    read(&node, &agent, 2).await;
    assert_eq!(ready(&agent, "given", 1).await, "own");
    assert_eq!(ready(&agent, "derived", 1).await, renamed);
    node.assert_whole("own", &["main"]);
    assert_eq!(node.instances("own", "main").pop().unwrap().id, untouched);
}

#[tokio::test(start_paused = true)]
async fn of_two_files_for_one_pod_the_first_runs_and_the_second_takes_over() {
    let node = files();
    node.fake.script("main", Script::forever().on_term(0, 5 * SECOND));
    let agent = node.start().await;
    put(&node, "a.yaml", &manifest("web", 1));
    let first = ready(&agent, "web", 1).await;
    put(&node, "b.yaml", &manifest("web", 2));
    read(&node, &agent, 1).await;
    let refused = "FailedValidation: Error validating pod web-node_default";
    assert!(agent.events().iter().any(|e| e.starts_with(refused)));
    pass(60 * SECOND).await;
    assert_eq!(known(&agent, "web"), Some((first.clone(), "1".to_owned())));
    remove(&node, "a.yaml");
    let second = ready(&agent, "web", 2).await;
    node.assert_gone(&first);
    node.assert_whole(&second, &["main"]);
    node.witness.assert_never_two();
}

#[tokio::test(start_paused = true)]
async fn a_pod_with_a_uid_of_its_own_goes_on_when_another_file_takes_it_over() {
    let node = files();
    let agent = node.start().await;
    put(&node, "a.yaml", &own("own", "web", 1));
    ready(&agent, "web", 1).await;
    let untouched = node.instances("own", "main").pop().unwrap().id;
    put(&node, "b.yaml", &own("own", "web", 2));
    // Another name with the same UID waits, too.
    put(&node, "c.yaml", &own("own", "other", 3));
    read(&node, &agent, 1).await;
    assert_eq!(known(&agent, "web").unwrap().1, "1");
    assert_eq!(known(&agent, "other"), None);
    remove(&node, "a.yaml");
    ready(&agent, "web", 2).await;
    pass(60 * SECOND).await;
    node.assert_whole("own", &["main"]);
    assert_eq!(node.instances("own", "main").pop().unwrap().id, untouched);
}

#[tokio::test(start_paused = true)]
async fn another_image_restarts_the_container_in_place_where_the_uid_is_given_and_is_another_pod_elsewhere() {
    let node = files();
    node.fake.script("main", Script::forever().on_term(0, 3 * SECOND));
    let agent = node.start().await;
    let two = |mut manifest: Value, image: &str| {
        let mut main = container("main");
        main["image"] = image.into();
        manifest["spec"]["containers"] = json!([main, container("beside")]);
        manifest
    };
    put(&node, "own.yaml", &two(own("own", "given", 1), "reg.test/app:1"));
    put(&node, "derived.yaml", &two(manifest("derived", 1), "reg.test/app:1"));
    ready(&agent, "given", 1).await;
    let before = ready(&agent, "derived", 1).await;
    let beside = node.instances("own", "beside").pop().unwrap().id;
    node.fake.forget_calls();

    put(&node, "own.yaml", &two(own("own", "given", 2), "reg.test/app:2"));
    put(&node, "derived.yaml", &two(manifest("derived", 2), "reg.test/app:2"));
    let restarted = || node.instances("own", "main").len() == 2 && agent.is_ready("own");
    agent.until("the container runs again", restarted).await;
    let after = ready(&agent, "derived", 2).await;
    assert_ne!(after, before);
    node.assert_gone(&before);

    let status = agent.status("own").unwrap();
    let of =
        |name: &str| status.container_statuses.iter().flatten().find(|c| c.name == name).unwrap().clone();
    assert_eq!((of("main").restart_count, of("beside").restart_count), (1, 0));
    assert_eq!(of("main").last_state.unwrap().terminated.unwrap().exit_code, 0);
    assert_eq!(node.instances("own", "beside").pop().unwrap().id, beside);
    let said = "Killing: Container main definition changed, will be restarted";
    assert_eq!(agent.events().iter().filter(|e| *e == said).count(), 1);
    let made = node.fake.requests::<v1::CreateContainerRequest>();
    let images = made.iter().map(|r| {
        let config = r.config.as_ref().unwrap();
        let uid = config.labels["io.kubernetes.pod.uid"].clone();
        (uid, config.image.as_ref().unwrap().user_specified_image.clone())
    });
    let mut images: Vec<_> = images.collect();
    images.sort();
    let mut want = vec![
        ("own".to_owned(), "reg.test/app:2".to_owned()),
        (after.clone(), "reg.test/app:1".to_owned()),
        (after, "reg.test/app:2".to_owned()),
    ];
    want.sort();
    assert_eq!(images, want);
    let sandboxes = node.fake.requests::<v1::RunPodSandboxRequest>();
    assert_eq!(sandboxes.len(), 1, "the pod with a UID of its own keeps its sandbox");
}

#[tokio::test(start_paused = true)]
async fn pods_as_an_api_server_would_have_them_keep_their_name_and_change_under_their_uid() {
    let mut node = Node::new();
    node.settings.cgroup = fake_cgroups(&node.path(""), true);
    node.settings.other_sources.clear();
    let dir = node.path("objects");
    fs::create_dir(&dir).unwrap();
    node.settings.pods = Some((dir.clone(), YEAR));
    let put = |uid: &str, memory: &str, generation: u32| {
        let mut object = manifest("web", 1);
        object["metadata"]["uid"] = uid.into();
        object["metadata"]["generation"] = generation.into();
        object["spec"]["containers"][0]["resources"] =
            json!({"requests": {"cpu": "100m"}, "limits": {"memory": memory, "cpu": "1"}});
        fs::write(node.path("new"), object.to_string()).unwrap();
        fs::rename(node.path("new"), dir.join("web.json")).unwrap();
    };
    put("own", "64Mi", 1);
    let agent = node.start().await;
    agent.until_ready("own").await;
    assert_eq!(agent.agent.directory.all()[0].metadata.name.as_deref(), Some("web"));
    let untouched = node.instances("own", "main").pop().unwrap().id;
    let limit = || {
        let path = "cgroup/memory/kubepods/burstable/podown/memory.limit_in_bytes";
        fs::read_to_string(node.path(path)).unwrap_or_default()
    };
    assert_eq!(limit(), "67108864");
    put("own", "128Mi", 2);
    agent.until("the new limits are in force", || limit() == "134217728").await;
    assert_eq!(node.running(), [untouched]);
    // Without a UID nothing could change: such a file is refused, and what runs stays.
    put("", "256Mi", 3);
    fs::write(dir.join("other.json"), manifest("other", 1).to_string()).unwrap();
    pass(10 * SECOND).await;
    assert_eq!((limit().as_str(), node.running().len()), ("134217728", 1));
    fs::remove_file(dir.join("web.json")).unwrap();
    agent.until("it ends", || node.running().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn of_manifests_that_are_there_together_those_of_higher_priority_are_admitted_first() {
    let mut node = files();
    node.settings.node.pods = 2;
    let class = |name: &str, class: &str| {
        let mut manifest = manifest(name, 1);
        manifest["spec"]["priorityClassName"] = class.into();
        manifest
    };
    let mut given = manifest("c", 1);
    given["spec"]["priority"] = 7.into();
    put(&node, "a.yaml", &manifest("a", 1));
    put(&node, "b.yaml", &class("b", "system-cluster-critical"));
    put(&node, "c.yaml", &given);
    put(&node, "d.yaml", &class("d", "system-node-critical"));
    let agent = node.start().await;
    ready(&agent, "b", 1).await;
    ready(&agent, "d", 1).await;
    let priority = |name: &str| {
        let pod = agent.agent.directory.named("default", &format!("{name}-node")).unwrap();
        pod.spec.as_ref().unwrap().priority
    };
    assert_eq!(["a", "b", "c", "d"].map(priority), [None, Some(2_000_000_000), Some(7), Some(2_000_001_000)]);
    for name in ["a", "c"] {
        let (uid, _) = known(&agent, name).unwrap();
        agent.until(&format!("{name} is refused"), || agent.phase(&uid) == "Failed").await;
        assert_eq!(agent.status(&uid).unwrap().reason.as_deref(), Some("OutOfpods"));
    }
    let made = node.fake.requests::<v1::RunPodSandboxRequest>();
    assert_eq!(made.len(), 2);
}
