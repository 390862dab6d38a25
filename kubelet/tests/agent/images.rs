//! Images: what is sent to the runtime, and what pods and events tell.

use crate::support::{Node, SECOND, container, custom, pass, pod};
use cri::fake::{FakeImage, FakeRuntime, Pull};
use cri::v1;
use kubelet::image::credential::SearchPlaces;
use kubelet::image::{CredentialConfig, GcConfig};
use serde_json::json;
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn pull_secrets_cannot_be_had_without_an_api_and_the_nodes_credentials_are_tried() {
    let mut node = Node::with(FakeRuntime::builder());
    std::fs::create_dir_all(node.path("root")).unwrap();
    let auths = json!({"auths": {"reg.test": {"username": "u", "password": "p"}}});
    std::fs::write(node.path("root/config.json"), auths.to_string()).unwrap();
    let places = SearchPlaces { config: vec![node.path("root")], legacy: Vec::new() };
    node.settings.images.credentials = CredentialConfig { places, ..CredentialConfig::default() };
    node.fake.on_pull("reg.test/app:1", Pull::fails("denied"));
    let agent = node.start_synced(&[]).await;
    let spec = json!({"containers": [container("main")], "imagePullSecrets": [{"name": "a"}, {"name": "b"}]});
    agent.put(&custom("u", "u", spec)).await;
    let waits = || agent.state("u", "main")["waiting"]["reason"] == "ErrImagePull";
    agent.until("the pull has failed", waits).await;
    let told = agent.events();
    let secrets = "FailedToRetrieveImagePullSecret: Unable to retrieve some image pull secrets (a, b); attempting to pull the \
                   image may not succeed.";
    assert!(told.iter().any(|e| e == secrets), "{told:#?}");
    let pulls = node.fake.requests::<v1::PullImageRequest>();
    let auth = pulls[0].auth.as_ref().unwrap();
    assert_eq!((auth.username.as_str(), auth.password.as_str()), ("u", "p"));
}

#[tokio::test(start_paused = true)]
async fn a_pods_own_secrets_are_shown_to_the_registry_and_those_that_cannot_be_had_are_told_of() {
    let mut node = Node::with(FakeRuntime::builder());
    node.settings.objects = Some((node.path("objects"), Duration::ZERO));
    std::fs::create_dir_all(node.path("objects")).unwrap();
    let put = |name: &str, type_: &str, data: serde_json::Value| {
        let metadata = json!({"name": name, "namespace": "ns"});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": type_, "stringData": data});
        std::fs::write(node.path("new"), secret.to_string()).unwrap();
        std::fs::rename(node.path("new"), node.path("objects").join(name)).unwrap();
    };
    let entry = |user: &str| json!({"reg.test": {"username": user, "password": "hidden"}, "bad.test": 7});
    put(
        "new-form",
        "kubernetes.io/dockerconfigjson",
        json!({".dockerconfigjson": json!({"auths": entry("a")}).to_string()}),
    );
    put("old-form", "kubernetes.io/dockercfg", json!({".dockercfg": entry("b").to_string()}));
    put("broken", "kubernetes.io/dockerconfigjson", json!({".dockerconfigjson": "nonsense"}));
    put("other", "Opaque", json!({".dockerconfigjson": json!({"auths": entry("c")}).to_string()}));
    node.fake.on_pull("reg.test/app:1", Pull::fails("denied"));
    let names = ["old-form", "absent", "broken", "other", "new-form"];
    let wanted: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
    let spec = json!({"containers": [container("main")], "imagePullSecrets": wanted});
    let agent = node.start_synced(&[custom("u", "u", spec)]).await;
    let users = || -> Vec<String> {
        let pulls = node.fake.requests::<v1::PullImageRequest>();
        pulls.into_iter().map(|p| p.auth.map(|a| a.username).unwrap_or_default()).collect()
    };
    agent.until("both were shown twice", || users().len() == 4).await;
    assert_eq!(users(), ["b", "a", "b", "a"]);
    let mut told = agent.events();
    let about = |told: &[String]| -> Vec<String> {
        told.iter().filter(|e| e.starts_with("FailedToRetrieveImagePullSecret")).cloned().collect()
    };
    let text = |names: &str| {
        format!(
            "FailedToRetrieveImagePullSecret: Unable to retrieve some image pull secrets ({names}); attempting to pull \
             the image may not succeed."
        )
    };
    assert_eq!(about(&told), [text("absent, broken, other")], "once, however often it is tried");
    put(
        "broken",
        "kubernetes.io/dockerconfigjson",
        json!({".dockerconfigjson": json!({"auths": entry("d")}).to_string()}),
    );
    agent.until("the mended one is shown", || users().contains(&"d".to_owned())).await;
    let more = agent.events();
    assert_eq!(about(&more), [text("absent, other")]);
    told.extend(more);
    assert!(!told.iter().any(|e| e.contains("hidden")));
}

/// Where images lie: any real filesystem with something on it.
fn image_fs() -> v1::ImageFsInfoResponse {
    let mountpoint = "/usr".to_owned();
    let fs_id = Some(v1::FilesystemIdentifier { mountpoint });
    let usage = v1::FilesystemUsage { fs_id, ..v1::FilesystemUsage::default() };
    v1::ImageFsInfoResponse { image_filesystems: vec![usage], ..v1::ImageFsInfoResponse::default() }
}

#[tokio::test(start_paused = true)]
async fn unused_images_go_and_those_of_containers_and_their_mounts_stay() {
    let mut node = Node::with(FakeRuntime::builder());
    node.settings.images.gc = Some(GcConfig { high_percent: 0, low_percent: 0, ..GcConfig::default() });
    node.fake.set_image_fs(image_fs());
    for name in ["reg.test/app:1", "reg.test/shown:1"] {
        node.fake.add_image(FakeImage::new(name));
    }
    node.fake.add_image(FakeImage::new("reg.test/unused:1").id("sha256:unused"));
    node.fake.add_image(FakeImage::new("reg.test/pinned:1").pinned());
    let mut with_volume = container("main");
    with_volume["volumeMounts"] = json!([{"name": "i", "mountPath": "/i"}]);
    let spec = json!({"containers": [with_volume], "volumes": [{"name": "i", "image": {"reference": "reg.test/shown:1"}}]});
    let agent = node.start_synced(&[custom("u", "u", spec)]).await;
    agent.until_ready("u").await;
    let names = || -> Vec<String> {
        let client = node.fake.requests::<v1::RemoveImageRequest>();
        client.into_iter().filter_map(|r| r.image).map(|i| i.image).collect()
    };
    agent.until("the unused image is removed", || !names().is_empty()).await;
    pass(700 * SECOND).await;
    assert_eq!(names(), ["sha256:unused"], "and no other, however often it looks");
    let told = agent.events();
    assert!(told.iter().any(|e| e.starts_with("FreeDiskSpaceFailed: ")), "{told:?}");
    // Nothing that was removed is missed: the pod's parts can be made again.
    agent.put(&pod("v", &["main"])).await;
    agent.until_ready("v").await;
}

#[tokio::test(start_paused = true)]
async fn an_image_volume_that_cannot_be_pulled_keeps_its_containers_waiting_and_no_others() {
    let node = Node::with(FakeRuntime::builder());
    node.fake.add_image(FakeImage::new("reg.test/app:1"));
    node.fake.on_pull("reg.test/shown:1", Pull::fails("no such host"));
    let mut with_volume = container("main");
    with_volume["volumeMounts"] = json!([{"name": "i", "mountPath": "/i", "subPath": "etc"}]);
    let spec = json!({"containers": [with_volume, container("other")],
        "volumes": [{"name": "i", "image": {"reference": "reg.test/shown:1"}}]});
    let agent = node.start_synced(&[custom("u", "u", spec)]).await;
    agent.until("the other runs", || node.instances("u", "other").len() == 1).await;
    let waits = || agent.state("u", "main")["waiting"]["reason"] == "ImagePullBackOff";
    agent.until("the first waits", waits).await;
    assert_eq!(node.instances("u", "main").len(), 0);
    node.fake.on_pull("reg.test/shown:1", Pull::gives(FakeImage::new("reg.test/shown:1")));
    agent.until_ready("u").await;
    let made = node.fake.requests::<v1::CreateContainerRequest>();
    let config = made
        .into_iter()
        .filter_map(|r| r.config)
        .find(|c| c.metadata.as_ref().unwrap().name == "main")
        .unwrap();
    let mount = config.mounts.iter().find(|m| m.container_path == "/i").unwrap();
    assert_eq!((mount.image_sub_path.as_str(), mount.host_path.as_str(), mount.readonly), ("etc", "", true));
    assert_eq!(mount.image.as_ref().unwrap().user_specified_image, "reg.test/shown:1");
}
