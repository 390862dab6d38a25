//! Pods with a user namespace of their own.

use crate::support::{Node, SECOND, container, custom, pass};
use cri::fake::{FakeRuntime, Script};
use cri::v1;
use kubelet::api::Pod;
use serde_json::json;

/// A node whose runtime has user namespaces.
fn able() -> Node {
    let features = v1::RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: true };
    Node::with(FakeRuntime::builder().any_image().handler("", features))
}

fn private(uid: &str) -> Pod {
    let mut c = container("c");
    c["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    let spec = json!({"hostUsers": false, "containers": [c], "volumes": [{"name": "v", "emptyDir": {}}]});
    custom(uid, uid, spec)
}

fn ids(options: Option<v1::NamespaceOption>) -> (v1::NamespaceMode, Vec<v1::IdMapping>) {
    let users = options.unwrap().userns_options.unwrap();
    assert_eq!(users.uids, users.gids);
    (users.mode(), users.uids)
}

/// The node's id for each sandbox's root, in order; and every container and mount of a sandbox has its ids.
fn roots(node: &Node) -> Vec<u32> {
    let first = |(mode, ids): (v1::NamespaceMode, Vec<v1::IdMapping>)| {
        assert_eq!((mode, ids.len()), (v1::NamespaceMode::Pod, 1));
        assert_eq!((ids[0].container_id, ids[0].length), (0, 65536));
        ids[0].host_id
    };
    let sandbox = |config: v1::PodSandboxConfig| {
        let uid = config.metadata.unwrap().uid;
        (uid, first(ids(config.linux.unwrap().security_context.unwrap().namespace_options)))
    };
    let asked = node.fake.requests::<v1::RunPodSandboxRequest>();
    let made: Vec<_> = asked.into_iter().map(|r| sandbox(r.config.unwrap())).collect();
    for request in node.fake.requests::<v1::CreateContainerRequest>() {
        let (uid, of_sandbox) = sandbox(request.sandbox_config.unwrap());
        let config = request.config.unwrap();
        assert_eq!(first(ids(config.linux.unwrap().security_context.unwrap().namespace_options)), of_sandbox);
        assert!(made.contains(&(uid, of_sandbox)));
        assert_eq!(config.mounts.len(), 3, "the volume, the hosts file, the termination message");
        for mount in config.mounts {
            assert_eq!(mount.uid_mappings[0].host_id, of_sandbox, "{}", mount.container_path);
            assert_eq!(mount.gid_mappings, mount.uid_mappings);
        }
    }
    made.into_iter().map(|(_, first)| first).collect()
}

#[tokio::test(start_paused = true)]
async fn every_pod_with_a_user_namespace_has_ids_of_its_own_and_keeps_them() {
    let node = able();
    node.fake.script("c", Script::forever().on_term(0, SECOND));
    let pods = [private("u1"), private("u2")];
    let agent = node.start_synced(&pods).await;
    agent.until("both are ready", || agent.is_ready("u1") && agent.is_ready("u2")).await;
    let mut given = roots(&node);
    given.sort_unstable();
    assert_eq!(given, [65536, 131_072]);
    // The next agent finds them again, for a container that is made anew and for a sandbox that is.
    agent.kill().await;
    let sandbox = node.fake.sandboxes()[0].id.clone();
    let lost = node.fake.sandboxes()[0].metadata.clone().unwrap().uid;
    node.fake.forget_calls();
    let agent = node.start_synced(&pods).await;
    agent.until("both are ready", || agent.is_ready("u1") && agent.is_ready("u2")).await;
    node.fake.kill_sandbox(&sandbox);
    agent.until("it has a new sandbox", || node.count("RunPodSandbox") == 1).await;
    agent.until_ready(&lost).await;
    let again = roots(&node);
    let before = std::fs::read_to_string(node.path(&format!("root/pods/{lost}/userns"))).unwrap();
    assert!(again.len() == 1 && before.contains(&format!("\"hostId\":{}", again[0])), "{again:?} {before}");
    // What a pod gave back is free for the next.
    agent.gone("u1").await;
    agent.gone("u2").await;
    agent.until_gone("u1").await;
    agent.until_gone("u2").await;
    node.assert_gone("u1");
    node.fake.forget_calls();
    agent.put(&private("u3")).await;
    agent.until_ready("u3").await;
    assert_eq!(roots(&node), [65536]);
}

#[tokio::test(start_paused = true)]
async fn a_runtime_without_user_namespaces_gets_no_such_pod() {
    let node = Node::new();
    let agent = node.start_synced(&[private("u1")]).await;
    pass(60 * SECOND).await;
    assert_eq!((agent.phase("u1"), node.count("RunPodSandbox")), ("Pending".to_owned(), 0));
    let told = "FailedCreatePodSandBox: Failed to create pod sandbox: can't set `spec.hostUsers: false`, runtime does \
                not support user namespaces";
    let events = agent.events();
    assert!(events.iter().any(|e| e == told), "{events:?}");
    assert!(!node.path("root/pods/u1/userns").exists());
    agent.gone("u1").await;
    agent.until_gone("u1").await;
    node.assert_gone("u1");
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_ids_cannot_be_read_says_so_and_starts_once_they_can() {
    let node = able();
    std::fs::create_dir_all(node.path("root/pods/u1")).unwrap();
    std::fs::write(node.path("root/pods/u1/userns"), "{").unwrap();
    let agent = node.start_synced(&[private("u1"), private("u2")]).await;
    agent.until_ready("u2").await;
    pass(30 * SECOND).await;
    assert_eq!(agent.phase("u1"), "Pending");
    let events = agent.events();
    assert!(events.iter().any(|e| e.contains("invalid user namespace mappings file")), "{events:?}");
    std::fs::remove_file(node.path("root/pods/u1/userns")).unwrap();
    agent.until_ready("u1").await;
}
