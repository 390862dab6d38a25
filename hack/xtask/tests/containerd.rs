//! A private containerd of every flavour, for real: it runs a pod of the images built here and leaves
//! nothing behind.

#![allow(clippy::unwrap_used, reason = "the helpers of a test fail by panicking, as the test does")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use cri::v1::runtime_service_client::RuntimeServiceClient;
use cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatusRequest, CreateContainerRequest,
    ImageSpec, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, RunPodSandboxRequest, StartContainerRequest,
};
use xtask::image::{DEMO, Image};
use xtask::runtime::{Flavour, Network, Oci, Options, PrivateContainerd};
use xtask::{build, plugins, proc};

type Client = RuntimeServiceClient<containerd_client::tonic::transport::Channel>;

async fn started(options: Options) -> Option<PrivateContainerd> {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP {name}: needs root");
        return None;
    }
    // What cannot be had is a skip; what can be had and does not start is a failure.
    let (flavour, oci) = (options.flavour, options.oci);
    let had = tokio::task::spawn_blocking(move || {
        xtask::runtime::find(flavour)?;
        xtask::runtime::find_oci(oci, flavour)
    });
    if let Err(error) = had.await.unwrap() {
        eprintln!("SKIP {name}: {error:#}");
        return None;
    }
    Some(PrivateContainerd::start(options).await.unwrap())
}

/// A sandbox in the host's network unless `network`, and a container that sleeps in it.
async fn run_pod(containerd: &PrivateContainerd, network: bool) -> (Client, String, String) {
    let channel = containerd.client().await.unwrap().channel();
    let mut client = RuntimeServiceClient::new(channel);
    let mode = if network { NamespaceMode::Pod } else { NamespaceMode::Node };
    let namespaces = NamespaceOption { network: mode.into(), ..Default::default() };
    let config = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "pod".into(),
            uid: "u1".into(),
            namespace: "ns".into(),
            attempt: 0,
        }),
        log_directory: containerd.base().join("logs").display().to_string(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: format!("{}/kubepods", containerd.cgroup_root()),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    fs::create_dir_all(containerd.base().join("logs")).unwrap();
    let run = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    let sandbox = client.run_pod_sandbox(run).await.unwrap().into_inner().pod_sandbox_id;
    let container = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "c".into(), attempt: 0 }),
        image: Some(ImageSpec { image: DEMO.into(), ..Default::default() }),
        command: ["/bin/sh", "-c", "echo hello; sleep 1000"].map(String::from).to_vec(),
        log_path: "c.log".into(),
        ..Default::default()
    };
    let create = CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(container),
        sandbox_config: Some(config),
    };
    let id = client.create_container(create).await.unwrap().into_inner().container_id;
    client.start_container(StartContainerRequest { container_id: id.clone() }).await.unwrap();
    (client, sandbox, id)
}

async fn state(client: &mut Client, id: &str) -> i32 {
    let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
    client.container_status(request).await.unwrap().into_inner().status.unwrap().state
}

/// Everything on this machine that names `base` or the cgroup.
fn traces(base: &Path, cgroup: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let text = base.display().to_string();
    for line in fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .filter(|l| l.contains(&format!("{text}/")))
    {
        found.insert(format!("mount {line}"));
    }
    for process in proc::all() {
        let arguments = proc::arguments(process);
        if arguments.iter().any(|a| a.contains(&format!("{text}/"))) {
            found.insert(format!("process {arguments:?}"));
        }
    }
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let dir = hierarchy.path().join(cgroup.trim_start_matches('/'));
        if dir.exists() {
            found.insert(format!("cgroup {}", dir.display()));
        }
    }
    if base.exists() {
        found.insert(format!("folder {text}"));
    }
    found
}

async fn runs_a_pod_and_leaves_nothing(flavour: Flavour, oci: Oci) {
    let Some(containerd) = started(Options::new(flavour, oci)).await else { return };
    let (base, cgroup) = (containerd.base().to_path_buf(), containerd.cgroup_root());
    let (mut client, _, id) = run_pod(&containerd, false).await;
    assert_eq!(state(&mut client, &id).await, ContainerState::ContainerRunning as i32);
    assert!(traces(&base, &cgroup).iter().any(|t| t.starts_with("cgroup")), "the pod has no cgroup of ours");
    containerd.stop().await.unwrap();
    assert_eq!(traces(&base, &cgroup), BTreeSet::new());
}

#[tokio::test]
async fn containerd_1_6_with_runc_runs_a_pod_and_leaves_nothing() {
    runs_a_pod_and_leaves_nothing(Flavour::Debian, Oci::Runc).await;
}

#[tokio::test]
async fn containerd_1_6_with_crun_runs_a_pod_and_leaves_nothing() {
    runs_a_pod_and_leaves_nothing(Flavour::Debian, Oci::Crun).await;
}

#[tokio::test]
async fn containerd_1_7_with_runc_runs_a_pod_and_leaves_nothing() {
    runs_a_pod_and_leaves_nothing(Flavour::V1_7, Oci::Runc).await;
}

#[tokio::test]
async fn containerd_2_with_runc_runs_a_pod_and_leaves_nothing() {
    runs_a_pod_and_leaves_nothing(Flavour::V2, Oci::Runc).await;
}

#[tokio::test]
async fn containerd_2_with_crun_runs_a_pod_and_leaves_nothing() {
    runs_a_pod_and_leaves_nothing(Flavour::V2, Oci::Crun).await;
}

#[tokio::test]
async fn a_container_outlives_a_kill_of_containerd_and_is_seen_again_after_the_restart() {
    let Some(mut containerd) = started(Options::new(Flavour::V2, Oci::Runc)).await else { return };
    let (_, _, id) = run_pod(&containerd, false).await;
    containerd.restart().await.unwrap();
    let mut client = RuntimeServiceClient::new(containerd.client().await.unwrap().channel());
    assert_eq!(state(&mut client, &id).await, ContainerState::ContainerRunning as i32);
}

#[tokio::test]
async fn a_dropped_containerd_that_crashed_with_a_pod_leaves_nothing() {
    let Some(mut containerd) = started(Options::new(Flavour::Debian, Oci::Runc)).await else { return };
    let (base, cgroup) = (containerd.base().to_path_buf(), containerd.cgroup_root());
    run_pod(&containerd, false).await;
    containerd.kill9().unwrap();
    tokio::task::spawn_blocking(move || drop(containerd)).await.unwrap();
    assert_eq!(traces(&base, &cgroup), BTreeSet::new());
}

#[tokio::test]
async fn a_pod_gets_an_address_on_the_bridge_of_the_test() {
    let ours = tokio::task::spawn_blocking(|| plugins::ours(build::Profile::Dev));
    let plugins = ours.await.unwrap().unwrap();
    let options = Options { network: Network::Bridge { plugins }, ..Options::new(Flavour::V2, Oci::Runc) };
    let Some(containerd) = started(options).await else { return };
    let link = Path::new("/sys/class/net").join(containerd.bridge());
    let (mut client, sandbox, _) = run_pod(&containerd, true).await;
    let request = cri::v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox, verbose: false };
    let status = client.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
    assert!(status.network.unwrap().ip.starts_with("10."), "the sandbox has no address of the test's subnet");
    assert!(link.exists());
    containerd.stop().await.unwrap();
    assert!(!link.exists(), "the bridge is still there");
}

#[tokio::test]
async fn every_image_is_known_to_cri_and_the_pause_image_is_pinned() {
    let options = Options { images: Image::ALL.to_vec(), ..Options::new(Flavour::V2, Oci::Runc) };
    let Some(containerd) = started(options).await else { return };
    let channel = containerd.client().await.unwrap().channel();
    let mut client = cri::v1::image_service_client::ImageServiceClient::new(channel);
    for image in Image::ALL {
        let spec = ImageSpec { image: image.reference(), ..Default::default() };
        let request = cri::v1::ImageStatusRequest { image: Some(spec), verbose: false };
        let known = client.image_status(request).await.unwrap().into_inner().image;
        let known = known.unwrap_or_else(|| panic!("{image} is unknown"));
        assert_eq!(known.id, image.build().unwrap().image_id().unwrap());
        assert_eq!(known.pinned, image == Image::Pause, "{image}");
    }
    tokio::time::timeout(Duration::from_secs(60), containerd.stop()).await.unwrap().unwrap();
}
