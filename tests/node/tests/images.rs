//! Images from a real registry, on the loopback: credentials, TLS, registries that stall, fail and lie, and what becomes of
//! images that nobody uses.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use node_e2e::manifest::{FOREVER, pod, sh};
use node_e2e::registry::{Access, Fault, Registry};
use node_e2e::wait::eventually;
use node_e2e::{Node, Options, status};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use xtask::image::{self, Image, Layout};

/// An image like the demo image and like no other.
async fn unique(salt: &'static str) -> Layout {
    let built = tokio::task::spawn_blocking(move || Image::Demo.build_salted(image::DEMO, salt));
    built.await.unwrap().expect("the image is built")
}

/// A pod of that image which runs until it is told to end.
fn of(name: &str, image: &str, policy: &str) -> Value {
    let mut p = pod(name, [sh("c", FOREVER)]);
    p["spec"]["containers"][0]["image"] = image.into();
    p["spec"]["containers"][0]["imagePullPolicy"] = policy.into();
    p
}

/// A node on a containerd of ours that knows `registry`; the agent is not started yet.
async fn node(registry: &Registry, options: Options) -> Option<Node> {
    let node = Node::start_with(Options { stopped: true, ..options }).await?;
    let Some(private) = node.turn.as_ref().and_then(|t| t.private()) else {
        node_e2e::skip("the runtime is not ours to be told of a registry");
        node.finish().await;
        return None;
    };
    registry.announce(&private.registries());
    Some(node)
}

async fn launch(node: &mut Node) {
    node.launch().await;
    node.wait_healthy().await;
}

fn write_credentials(node: &Node, registry: &Registry, user: &str, password: &str) {
    fs::create_dir_all(&node.places.root_dir).unwrap();
    let auths = json!({ "auths": { registry.host(): { "username": user, "password": password } } });
    fs::write(node.places.root_dir.join("config.json"), auths.to_string()).unwrap();
}

async fn wait_reason(node: &Node, name: &str, reason: &str) -> String {
    let pod = node.wait(name, reason, |p| status::waiting(p, "c") == Some(reason)).await;
    let state = status::container(&pod, "c").unwrap().state.clone().unwrap();
    state.waiting.unwrap().message.unwrap_or_default()
}

async fn said(node: &Node, word: &str) {
    eventually(&format!("the agent says {word:?}"), async || {
        if node.log().contains(word) { Ok(()) } else { Err(node_e2e::node::tail(&node.log_file(), 5)) }
    })
    .await;
}

#[tokio::test]
async fn pull_policies_decide_when_the_registry_is_asked() {
    let registry = Registry::start(Access::Open).await;
    let image = registry.offer("team/app", "1", &unique("policies").await);
    let Some(mut node) = node(&registry, Options::default()).await else { return };
    launch(&mut node).await;
    node.put("never", of("never", &image, "Never"));
    assert!(
        wait_reason(&node, "never", "ErrImageNeverPull")
            .await
            .contains("is not present with pull policy of Never")
    );
    assert!(registry.requests().is_empty(), "{:?}", registry.requests());
    node.put("first", of("first", &image, "IfNotPresent"));
    node.wait_ready("first").await;
    said(&node, "Successfully pulled image").await;
    let after_first = registry.requests().len();
    assert!(after_first > 0);
    node.put("second", of("second", &image, "IfNotPresent"));
    node.wait_ready("second").await;
    assert_eq!(registry.requests().len(), after_first, "it was here");
    node.put("always", of("always", &image, "Always"));
    node.wait_ready("always").await;
    assert!(registry.requests().len() > after_first);
    node.finish().await;
}

#[tokio::test]
async fn a_wrong_password_is_told_and_a_right_one_counts_without_a_restart() {
    let registry = Registry::start(Access::Basic("user".to_owned(), "right".to_owned())).await;
    let image = registry.offer("team/private", "1", &unique("basic").await);
    let Some(mut node) = node(&registry, Options::default()).await else { return };
    write_credentials(&node, &registry, "user", "wrong");
    launch(&mut node).await;
    node.put("denied", of("denied", &image, "IfNotPresent"));
    let message = wait_reason(&node, "denied", "ImagePullBackOff").await;
    assert!(message.contains("Back-off pulling image") && message.contains("ErrImagePull"), "{message}");
    said(&node, "Error: ErrImagePull").await;
    assert!(registry.requests().iter().any(|r| r.ends_with(" user")), "{:?}", registry.requests());
    assert!(!node.log().contains("wrong"), "a password is in the log");
    write_credentials(&node, &registry, "user", "right");
    // Another pod: the first one's back-off is its own.
    node.put("allowed", of("allowed", &image, "IfNotPresent"));
    node.wait_ready("allowed").await;
    node.finish().await;
}

#[tokio::test]
async fn a_pods_own_secret_opens_a_registry_for_it_and_for_nobody_else() {
    let registry = Registry::start(Access::Basic("user".to_owned(), "right".to_owned())).await;
    let image = registry.offer("team/secret", "1", &unique("pull-secret").await);
    let objects = tempfile::tempdir().unwrap();
    let auths = json!({ "auths": { registry.host(): { "username": "user", "password": "right" } } });
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": "registry" },
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": { ".dockerconfigjson": auths.to_string() },
    });
    fs::write(objects.path().join("registry.json"), secret.to_string()).unwrap();
    let args = vec![format!("--standalone-objects={}", objects.path().display())];
    let Some(mut node) = node(&registry, Options { args, ..Options::default() }).await else { return };
    launch(&mut node).await;
    let mut with = of("with", &image, "IfNotPresent");
    with["spec"]["imagePullSecrets"] = json!([{ "name": "absent" }, { "name": "registry" }]);
    node.put("with", with);
    node.wait_ready("with").await;
    said(&node, "Unable to retrieve some image pull secrets (absent); attempting to pull").await;
    // It is here by now, and the pod has nothing to show for it.
    node.put("without", of("without", &image, "IfNotPresent"));
    wait_reason(&node, "without", "ImagePullBackOff").await;
    node.finish().await;
}

#[tokio::test]
async fn a_token_is_fetched_over_tls_with_the_nodes_credentials() {
    let registry = Registry::start_tls(Access::Bearer("user".to_owned(), "right".to_owned())).await;
    let image = registry.offer("team/private", "1", &unique("bearer").await);
    let Some(mut node) = node(&registry, Options::default()).await else { return };
    write_credentials(&node, &registry, "user", "right");
    launch(&mut node).await;
    node.put("p", of("p", &image, "IfNotPresent"));
    node.wait_ready("p").await;
    let requests = registry.requests();
    assert!(requests.iter().any(|r| r == "GET /token user"), "{requests:?}");
    assert!(requests.iter().any(|r| r.contains("/blobs/") && r.ends_with(" token")), "{requests:?}");
    node.finish().await;
}

/// A plugin whose answer names `user`, and the flags that make the agent ask it.
fn plugin(dir: &Path, registry: &Registry, user: &str, password: &str) -> Vec<String> {
    let bin = dir.join("plugins");
    fs::create_dir_all(&bin).unwrap();
    let answer = json!({
        "kind": "CredentialProviderResponse",
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "cacheKeyType": "Registry",
        "cacheDuration": "1h",
        "auth": { registry.host(): { "username": user, "password": password } },
    });
    let program = bin.join("test-provider");
    let calls = dir.join("calls");
    let script = format!("#!/bin/sh\ncat >> '{}'\ncat <<'END'\n{answer}\nEND\n", calls.display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let config = json!({
        "kind": "CredentialProviderConfig",
        "apiVersion": "kubelet.config.k8s.io/v1",
        "providers": [{
            "name": "test-provider",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "matchImages": [registry.host()],
            "defaultCacheDuration": "0s",
        }],
    });
    let file = dir.join("providers.yaml");
    fs::write(&file, config.to_string()).unwrap();
    vec![
        format!("--image-credential-provider-config={}", file.display()),
        format!("--image-credential-provider-bin-dir={}", bin.display()),
    ]
}

#[tokio::test]
async fn a_credential_provider_is_asked_once_for_a_registry() {
    let registry = Registry::start(Access::Basic("plugin".to_owned(), "right".to_owned())).await;
    let one = registry.offer("team/one", "1", &unique("plugin-one").await);
    let two = registry.offer("team/two", "1", &unique("plugin-two").await);
    let dir = tempfile::tempdir().unwrap();
    let args = plugin(dir.path(), &registry, "plugin", "right");
    let Some(mut node) = node(&registry, Options { args, ..Options::default() }).await else { return };
    launch(&mut node).await;
    node.put("one", of("one", &one, "IfNotPresent"));
    node.wait_ready("one").await;
    node.put("two", of("two", &two, "IfNotPresent"));
    node.wait_ready("two").await;
    let asked = fs::read_to_string(dir.path().join("calls")).unwrap();
    assert_eq!(asked.matches("CredentialProviderRequest").count(), 1, "{asked}");
    assert!(asked.contains(&format!("{}/team/one\"", registry.host())), "{asked}");
    node.finish().await;
}

#[tokio::test]
async fn a_registry_that_stalls_holds_up_nobody_else_when_pulls_are_parallel() {
    let registry = Registry::start(Access::Open).await;
    let slow = registry.offer("team/slow", "1", &unique("slow").await);
    let quick = registry.offer("team/quick", "1", &unique("quick").await);
    registry.fault("team/slow", Some(Fault::Stalled));
    let config = Some(json!({ "serializeImagePulls": false, "maxParallelImagePulls": 3 }));
    let Some(mut node) = node(&registry, Options { config, ..Options::default() }).await else { return };
    launch(&mut node).await;
    node.put("slow", of("slow", &slow, "IfNotPresent"));
    registry.asked("team/slow").await;
    node.put("quick", of("quick", &quick, "IfNotPresent"));
    node.wait_ready("quick").await;
    let waits = node.pod("slow").await.unwrap();
    assert_eq!(status::phase(&waits), "Pending");
    registry.fault("team/slow", None);
    node.wait_ready("slow").await;
    node.finish().await;
}

#[tokio::test]
async fn registries_that_fail_and_lie_are_told_and_tried_again() {
    let registry = Registry::start(Access::Open).await;
    let Some(mut node) = node(&registry, Options::default()).await else { return };
    launch(&mut node).await;
    for (name, fault, salt) in [
        ("broken", Fault::Status(500), "broken"),
        ("gone", Fault::Status(404), "gone"),
        ("reset", Fault::Reset, "reset"),
        ("short", Fault::Truncated, "short"),
    ] {
        let repository = format!("faults/{name}");
        let image = registry.offer(&repository, "1", &unique(salt).await);
        registry.fault(&repository, Some(fault));
        node.put(name, of(name, &image, "IfNotPresent"));
        let message = wait_reason(&node, name, "ImagePullBackOff").await;
        assert!(message.contains(&image) && message.contains("ErrImagePull: "), "{name}: {message}");
        registry.fault(&repository, None);
    }
    // Ten seconds later they are tried again.
    for name in ["broken", "gone", "reset", "short"] {
        node.wait_ready(name).await;
    }
    let rubbish = registry.offer_rubbish("faults/rubbish", "1");
    node.put("rubbish", of("rubbish", &rubbish, "IfNotPresent"));
    let message = wait_reason(&node, "rubbish", "ImagePullBackOff").await;
    assert!(message.contains("ErrImagePull"), "{message}");
    node.finish().await;
}

#[tokio::test]
async fn an_unused_image_goes_when_the_disk_is_full_and_the_others_stay() {
    let registry = Registry::start(Access::Open).await;
    let unused = registry.offer("team/unused", "1", &unique("unused").await);
    let used = registry.offer("team/used", "1", &unique("used").await);
    let other = registry.offer("team/other", "1", &unique("other").await);
    let Some(mut node) = node(&registry, Options::default()).await else { return };
    launch(&mut node).await;
    node.put("unused", of("unused", &unused, "IfNotPresent"));
    node.put("used", of("used", &used, "IfNotPresent"));
    node.wait_ready("unused").await;
    node.wait_ready("used").await;
    node.remove("unused");
    node.wait_gone("unused").await;
    node.stop().await;
    // Every disk holds something: this one is full.
    node.reconfigure(&json!({ "imageGCHighThresholdPercent": 1, "imageGCLowThresholdPercent": 0 }));
    // Images of other tests go too.
    node.used_up = true;
    launch(&mut node).await;
    // The end of a pull makes the agent look.
    node.put("more", of("more", &other, "IfNotPresent"));
    node.wait_ready("more").await;
    let names = async || -> Vec<String> {
        let images = node.cri.list_images(None).await.unwrap();
        images.into_iter().flat_map(|i| i.repo_tags).collect()
    };
    eventually("the unused image is gone", async || {
        let names = names().await;
        if names.contains(&unused) || names.iter().any(|n| n == image::DEMO) {
            Err(format!("{names:?}"))
        } else {
            Ok(())
        }
    })
    .await;
    let left = names().await;
    assert!(left.contains(&used), "{left:?}");
    assert!(left.iter().any(|n| n == image::PAUSE), "{left:?}");
    said(&node, "FreeDiskSpaceFailed").await;
    // The sandbox image is still there to start others from.
    node.put("last", of("last", &used, "Never"));
    node.wait_ready("last").await;
    node.finish().await;
}

fn records(node: &Node, kind: &str) -> Vec<String> {
    let dir = node.places.root_dir.join("image_manager").join(kind);
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.map(|e| fs::read_to_string(e.unwrap().path()).unwrap()).collect()
}

/// The node's credentials do not open the registry at first: an image that is here already is nobody's until they do.
#[tokio::test]
async fn an_image_that_is_here_is_given_only_to_whom_the_registry_lets_in() {
    let registry = Registry::start(Access::Basic("user".to_owned(), "right".to_owned())).await;
    let layout = unique("verified").await;
    let image = registry.offer("team/verified", "1", &layout);
    let config = Some(json!({ "imagePullCredentialsVerificationPolicy": "AlwaysVerify" }));
    let Some(mut node) = node(&registry, Options { config, ..Options::default() }).await else { return };
    let private = node.turn.as_ref().and_then(|t| t.private()).unwrap();
    private.import(&[Layout { reference: image.clone(), ..layout }]).await.unwrap();
    write_credentials(&node, &registry, "user", "wrong");
    launch(&mut node).await;
    node.put("never", of("never", &image, "Never"));
    let message = wait_reason(&node, "never", "ErrImageNeverPull").await;
    assert_eq!(message, format!("Container image {image:?} is not present with pull policy of Never"));
    node.put("denied", of("denied", &image, "IfNotPresent"));
    wait_reason(&node, "denied", "ImagePullBackOff").await;
    assert!(registry.requests().iter().any(|r| r.ends_with(" user")), "{:?}", registry.requests());
    assert_eq!(records(&node, "pulled"), [""; 0]);
    // What it tries again is not to get between the other's requests.
    node.remove("denied");
    node.wait_gone("denied").await;
    write_credentials(&node, &registry, "user", "right");
    node.put("allowed", of("allowed", &image, "IfNotPresent"));
    node.wait_ready("allowed").await;
    let pulled = records(&node, "pulled").join("");
    let repository = image.trim_end_matches(":1");
    let known = format!("\"credentialMapping\":{{{repository:?}:{{\"nodePodsAccessible\":true}}}}");
    assert!(pulled.contains(&known) && pulled.contains("kubelet.config.k8s.io/v1beta1"), "{pulled}");
    assert_eq!(records(&node, "pulling"), [""; 0]);
    // Another agent knows it too, even if the registry does not answer any more.
    registry.fault("team/verified", Some(Fault::Status(500)));
    node.kill9();
    launch(&mut node).await;
    let asked = registry.requests().len();
    node.put("later", of("later", &image, "Never"));
    node.wait_ready("later").await;
    assert_eq!(registry.requests().len(), asked, "{:?}", registry.requests());
    node.finish().await;
}

/// A pod whose containers mount the image as a volume, each in its own way, and one that does not.
fn with_volume(name: &str, image: &str, policy: &str, mounts: &[Value]) -> Value {
    let container = |(n, mount): (usize, &Value)| {
        let mut c = sh(&format!("c{n}"), FOREVER);
        c["volumeMounts"] = json!([mount]);
        c
    };
    let mut containers: Vec<Value> = mounts.iter().enumerate().map(container).collect();
    containers.push(sh("plain", FOREVER));
    let mut p = pod(name, containers);
    p["spec"]["volumes"] = json!([{ "name": "v", "image": { "reference": image, "pullPolicy": policy } }]);
    p
}

/// Why the runtime does not mount images, or not parts of them: it announces nothing of that, so its release is asked.
fn no_image_mounts(runtime: &cri::Capabilities, parts: bool) -> Option<String> {
    let since = match (runtime.runtime_name.as_str(), parts) {
        ("containerd", false) => (2, 1),
        ("containerd", true) => (2, 2),
        (_, false) => (1, 31),
        (_, true) => (1, 33),
    };
    let what = if parts { "sub-paths of image volumes" } else { "image volumes" };
    let old = runtime.runtime_release().is_none_or(|release| release < since);
    old.then(|| format!("{} {} has no {what}", runtime.runtime_name, runtime.runtime_version))
}

#[tokio::test]
async fn an_image_volume_shows_the_images_files_read_only() {
    let registry = Registry::start(Access::Open).await;
    let image = registry.offer("team/files", "1", &unique("volume").await);
    let Some(mut node) = node(&registry, Options::default()).await else { return };
    launch(&mut node).await;
    let mount = [json!({ "name": "v", "mountPath": "/v" })];
    let runtime = node.cri.connected().await;
    if let Some(why) = no_image_mounts(&runtime, false) {
        // It is told, and costs the containers that do not mount it nothing.
        node.put("old", with_volume("old", &image, "IfNotPresent", &mount));
        node.wait("old", "refused", |p| {
            status::waiting(p, "c0") == Some("CreateContainerError") && status::running(p, "plain")
        })
        .await;
        node.finish().await;
        node_e2e::skip(why);
        return;
    }
    node.put("p", with_volume("p", &image, "IfNotPresent", &mount));
    let ready = node.wait_ready("p").await;
    assert_eq!(node.exec(&ready, "c0", "cat /v/etc/salt").await, "volume");
    assert_eq!(
        node.exec(&ready, "c0", "touch /v/x 2>/dev/null && echo wrote || echo refused").await,
        "refused\n"
    );
    let mounted = status::container(&ready, "c0").unwrap().volume_mounts.clone().unwrap_or_default();
    let names: Vec<_> = mounted.iter().map(|m| (m.name.as_str(), m.mount_path.as_str())).collect();
    assert_eq!(names, [("v", "/v")]);
    // It is here now, and the pull policies of a volume are those of a container.
    let asked = registry.requests().len();
    node.put("here", with_volume("here", &image, "Never", &mount));
    node.wait_ready("here").await;
    assert_eq!(registry.requests().len(), asked);
    node.put("again", with_volume("again", &image, "Always", &mount));
    node.wait_ready("again").await;
    assert!(registry.requests().len() > asked);
    node.finish().await;
}

#[tokio::test]
async fn a_sub_path_of_an_image_volume_shows_that_part_alone() {
    let registry = Registry::start(Access::Open).await;
    let image = registry.offer("team/part", "1", &unique("part").await);
    let Some(mut node) = node(&registry, Options::default()).await else { return };
    launch(&mut node).await;
    let runtime = node.cri.connected().await;
    if let Some(why) = no_image_mounts(&runtime, true) {
        node.finish().await;
        node_e2e::skip(why);
        return;
    }
    let part = |path: &str| [json!({ "name": "v", "mountPath": "/v", "subPath": path })];
    node.put("p", with_volume("p", &image, "IfNotPresent", &part("etc")));
    let ready = node.wait_ready("p").await;
    assert_eq!(node.exec(&ready, "c0", "cat /v/salt").await, "part");
    // What is not in the image cannot be mounted from it.
    node.put("absent", with_volume("absent", &image, "IfNotPresent", &part("no/such")));
    node.wait("absent", "refused", |p| status::waiting(p, "c0") == Some("CreateContainerError")).await;
    node.finish().await;
}

#[tokio::test]
async fn an_image_volume_whose_image_cannot_be_had_keeps_its_container_waiting_and_no_other() {
    let registry = Registry::start(Access::Open).await;
    let missing = registry.name("team/missing", "1");
    let Some(mut node) = node(&registry, Options::default()).await else { return };
    launch(&mut node).await;
    let mount = [json!({ "name": "v", "mountPath": "/v" })];
    for (name, policy, reason) in
        [("never", "Never", "ErrImageNeverPull"), ("absent", "IfNotPresent", "ImagePullBackOff")]
    {
        node.put(name, with_volume(name, &missing, policy, &mount));
        let seen = node.wait(name, reason, |p| status::waiting(p, "c0") == Some(reason)).await;
        let state = status::container(&seen, "c0").unwrap().state.clone().unwrap();
        let message = state.waiting.unwrap().message.unwrap_or_default();
        assert!(message.contains(&missing), "{message}");
        node.wait(name, "running but for one", |p| status::running(p, "plain")).await;
    }
    node.finish().await;
}
