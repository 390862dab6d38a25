//! `hack/up` and `hack/down`: a node agent on this machine with the example pods, and its removal.
//!
//! `up` is level-driven: every step looks at what is there and changes only what differs, so running it
//! again converges, and a run that was cut short at any point is mended by the next. Files are replaced
//! by rename, daemons are found by what they are, not by what a pid file says.

mod api;
mod daemon;
mod down;
mod expect;
mod node;
mod pki;
mod progress;
mod wait;

use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use containerd_client::Client;
use nix::fcntl::{Flock, FlockArg};

use self::daemon::{fingerprint, install_program};
use self::node::{HEALTHZ_PORT, Node, PORT};
use self::pki::Pki;
use self::progress::Progress;
use crate::image::{self, Image};
use crate::runtime::{self, CgroupDriver, Flavour, Oci};
use crate::{build, plugins, tree};

pub use down::down;

/// What `up` is told.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// The containerd to run; `None` takes the installed one, whatever its release.
    pub flavour: Option<Flavour>,
    /// The default handler.
    pub oci: Oci,
    /// A folder of manifests to run instead of `examples/`.
    pub examples: Option<PathBuf>,
}

/// Brings the node up and returns when every example pod is as it should be.
pub async fn up(options: UpOptions) -> Result<()> {
    let node = Node::new();
    let _alone = lock(&node)?;
    let examples = options.examples.clone().unwrap_or_else(|| tree::root().join("examples"));
    let examples = wait::read_examples(&examples)?;
    let mut progress = Progress::new(7);

    progress.step("build the agent and the network plugins");
    let kubelet = build::binary("kubelet", "kubelet", build::Profile::Release)?;
    let network = build::binary("cni-plugins", "stevedore-cni", build::Profile::Release)?;
    install_program(&kubelet, &node.bin().join("kubelet"))?;

    progress.step("configure the pod network");
    plugins::install(&network, &node.cni_bin())?;
    tree::write_if_changed(&node.conflist_file(), node.conflist().as_bytes())?;

    progress.step("start a private containerd");
    start_containerd(&node, &options).await?;

    progress.step("build and import the images");
    import_images(&node).await?;

    progress.step("start the agent");
    let pki = Pki::ensure(&node.pki())?;
    start_kubelet(&node, &pki)?;

    progress.step("hand over the example pods");
    for example in &examples {
        let target = node.manifests().join(&example.file);
        tree::write_if_changed(&target, example.text.as_bytes())?;
    }

    progress.step("wait for the example pods");
    let api = api::Api::new(&pki, PORT)?;
    let name = node::node_name()?;
    let pods = wait::until_met(&node, &api, &examples, &name, &progress).await?;
    let table = wait::table(&node, &pods, &examples, &name).await;
    progress.finish();
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{table}\n{}", hints(&node, &pods))?;
    Ok(())
}

/// Beside the folder, not in it: `down` removes the folder while it holds the lock.
fn lock_file(node: &Node) -> PathBuf {
    node.run.with_extension("lock")
}

/// One `up` or `down` at a time.
fn lock(node: &Node) -> Result<Flock<File>> {
    if !nix::unistd::geteuid().is_root() {
        bail!("this needs root: it makes mounts, cgroups and network links");
    }
    let path = lock_file(node);
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("another up or down is at work (it holds {})", path.display()))
}

async fn start_containerd(node: &Node, options: &UpOptions) -> Result<()> {
    let (folders, daemon) = (node.containerd(), node.containerd_daemon());
    let (flavour, installed) = match options.flavour {
        Some(flavour) => (flavour, runtime::find(flavour)?),
        None => runtime::find_any()?,
    };
    let setup = runtime::Setup {
        handlers: runtime::handlers(options.oci, flavour)?,
        cni_conf: node.cni_conf(),
        cni_bin: node.cni_bin(),
        cgroup_driver: CgroupDriver::Cgroupfs,
    };
    let config = runtime::configure(&folders, &installed, &setup)?;
    let print = fingerprint(&[
        config.as_bytes(),
        installed.version.as_bytes(),
        installed.containerd.as_os_str().as_encoded_bytes(),
    ]);
    if daemon.is_current(&print) && runtime::wait_ready(&folders, None).await.is_ok() {
        return Ok(());
    }
    // Containers go on running while their containerd is replaced.
    if !daemon.stop(Duration::from_secs(10)) {
        bail!("the old containerd would not end: see {}", daemon.log.display());
    }
    let mut child = runtime::respawn(&folders, &installed, true)?;
    daemon.record(&child, &print)?;
    runtime::wait_ready(&folders, Some(&mut child)).await
}

async fn import_images(node: &Node) -> Result<()> {
    let mut layouts = Vec::new();
    for image in [Image::Pause, Image::Demo] {
        layouts.push(image.build()?);
    }
    let client = Client::from_path(node.containerd().socket()).await.context("connect to containerd")?;
    image::import(&client, &layouts).await
}

fn start_kubelet(node: &Node, pki: &Pki) -> Result<()> {
    let daemon = node.kubelet_daemon();
    let (program, config) = (node.bin().join("kubelet"), node.kubelet_config(pki));
    let arguments = node.kubelet_arguments(&node::node_name()?);
    fs::create_dir_all(node.manifests())?;
    fs::create_dir_all(node.pod_logs())?;
    tree::write_if_changed(&daemon.config, config.as_bytes())?;
    let print = fingerprint(&[&fs::read(&program)?, config.as_bytes(), arguments.concat().as_bytes()]);
    if daemon.is_current(&print) {
        return Ok(());
    }
    if !daemon.stop(Duration::from_secs(30)) {
        bail!("the old agent would not end: see {}", daemon.log.display());
    }
    for port in [PORT, HEALTHZ_PORT] {
        TcpListener::bind(("127.0.0.1", port))
            .with_context(|| format!("port {port} is taken: does another kubelet run on this machine?"))?;
    }
    daemon.start(&program, &arguments, &print).map(drop)
}

/// What a person can do next.
fn hints(node: &Node, pods: &[k8s_openapi::api::core::v1::Pod]) -> String {
    let pki = node.pki();
    let ask = format!(
        "curl -s --cacert {0}/ca.crt --cert {0}/client.crt --key {0}/client.key https://127.0.0.1:{PORT}",
        pki.display()
    );
    let mut text = String::from("Try next:\n");
    for pod in pods {
        let Some(spec) = &pod.spec else { continue };
        let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
        for port in ports.filter_map(|p| p.host_port) {
            text.push_str(&format!("  curl http://127.0.0.1:{port}/\n"));
        }
    }
    if let Some(pod) = pods.first()
        && let Some(container) = pod.spec.as_ref().and_then(|s| s.containers.first())
    {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        text.push_str(&format!("  {ask}/containerLogs/{namespace}/{name}/{}\n", container.name));
    }
    text.push_str(&format!("  {ask}/pods\n"));
    text.push_str(&format!(
        "  cp your-pod.yaml {}/     (and rm it there to stop the pod)\n",
        node.manifests().display()
    ));
    text.push_str(&format!(
        "Logs: pods in {}, agent {}, containerd {}\n",
        node.pod_logs().display(),
        node.kubelet_daemon().log.display(),
        node.containerd().log().display()
    ));
    text.push_str("hack/up again converges, hack/down removes everything.");
    text
}
