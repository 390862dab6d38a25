//! Images: what is sent to the runtime, and what pods and events tell.

use crate::support::{Node, container, custom};
use cri::fake::{FakeRuntime, Pull};
use cri::v1;
use kubelet::image::CredentialConfig;
use kubelet::image::credential::SearchPlaces;
use serde_json::json;

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
