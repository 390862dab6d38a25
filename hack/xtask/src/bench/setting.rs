//! The runtime, folders, names and agent of one run, and their removal.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cri::v1::PodSandboxFilter;
use kubelet::api::{PodRef, PodUid};
use kubelet::assemble::Settings;

use super::Arguments;
use super::agent::{Agent, Launch};
use super::pod::{self, NAMESPACE, NODE};
use super::stamps::Stamps;
use crate::build::Profile;
use crate::image::Image;
use crate::plugins;
use crate::runtime::{self, Network, Options, Traces, UnderTest, under_test};

/// How long the agent may take to remove what is left of its pods.
const GONE_LIMIT: Duration = Duration::from_secs(120);

/// Everything one run uses.
#[derive(Debug)]
pub(super) struct Setting {
    under: UnderTest,
    runtime_name: String,
    base: PathBuf,
    cgroup: String,
    launch: Launch,
    read_only_port: u16,
    /// What the containers tell.
    pub stamps: Stamps,
    /// The bench's own client of the runtime.
    pub cri: cri::Client,
    /// The agent's settings, for the floor.
    pub settings: Settings,
    /// The agent, while it runs.
    pub agent: Option<Agent>,
}

impl Setting {
    /// Starts the runtime (or takes that of `CRI_SOCKET`) and prepares everything but the agent.
    pub(super) async fn make(arguments: &Arguments, binary: PathBuf) -> Result<Self> {
        let mut options = Options::new(arguments.flavour, arguments.oci);
        options.images = vec![Image::Pause, Image::Stamp];
        if arguments.probes || arguments.stats {
            options.images.push(Image::Demo);
        }
        if std::env::var_os("CRI_SOCKET").is_none() {
            let plugins = tokio::task::spawn_blocking(|| plugins::ours(Profile::Release)).await??;
            options.network = Network::Bridge { plugins };
        }
        let under = under_test(options).await?;
        let (base, cgroup, default_runtime) = match &under {
            UnderTest::Private(ours) => (ours.base().join("bench"), ours.cgroup_root(), Some(arguments.oci)),
            UnderTest::Given(_) => {
                let id = format!("stevedore-bench-{}", std::process::id());
                (Path::new("/var/lib").join(&id), format!("/{id}"), None)
            }
        };
        for dir in ["manifests", "staging", "stamps"] {
            fs::create_dir_all(base.join(dir)).with_context(|| format!("create {}", base.display()))?;
        }
        let stamps = Stamps::listen(&base.join("stamps"))?;
        // It only makes calls; the agent is the one who reads events.
        let cri = cri::Client::builder(cri::Connector::unix(under.socket())).reads_events(false).build();
        let capabilities = cri.connected().await;
        let mut runtime_name = format!("{} {}", capabilities.runtime_name, capabilities.runtime_version);
        if let Some(oci) = default_runtime {
            runtime_name.push_str(&format!(" with {oci}"));
        }
        let [healthz_port, port, read_only_port] = free_ports()?;
        let config = base.join("kubelet.yaml");
        let mut told = kubelet_config(&base, &cgroup, &under.socket(), healthz_port, port);
        if arguments.probes || arguments.stats {
            told["readOnlyPort"] = read_only_port.into();
        }
        fs::write(&config, format!("{told:#}\n"))?;
        let arguments = vec![
            format!("--config={}", config.display()),
            format!("--root-dir={}", base.join("root").display()),
            format!("--cert-dir={}", base.join("pki").display()),
            format!("--hostname-override={NODE}"),
            format!("--v={}", arguments.verbosity),
        ];
        let settings = settings(&arguments)?;
        let launch = Launch { binary, arguments, healthz_port, log: base.join("kubelet.log") };
        Ok(Self {
            under,
            runtime_name,
            base,
            cgroup,
            launch,
            read_only_port,
            stamps,
            cri,
            settings,
            agent: None,
        })
    }

    /// Name and version of the runtime.
    pub(super) fn runtime(&self) -> &str {
        &self.runtime_name
    }

    pub(super) fn agent_log(&self) -> &Path {
        &self.launch.log
    }

    /// The folder that is mounted into containers.
    pub(super) fn stamps_dir(&self) -> PathBuf {
        self.base.join("stamps")
    }

    /// Starts the agent; milliseconds until it was healthy.
    pub(super) async fn start_agent(&mut self) -> Result<f64> {
        let agent = self.agent.insert(Agent::start(&self.launch).await?);
        Ok(agent.healthy_ms)
    }

    /// Ends the agent; pods go on running.
    pub(super) async fn stop_agent(&mut self) -> Result<()> {
        match self.agent.take() {
            Some(agent) => agent.stop().await,
            None => Ok(()),
        }
    }

    /// The running agent.
    pub(super) fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("the agent does not run")
    }

    /// Writes the manifest of a pod where the agent does not see it.
    pub(super) fn stage(&self, name: &str) -> Result<()> {
        self.stage_as(name, &pod::manifest(name, &self.stamps_dir(), 1))
    }

    /// The same for another manifest.
    pub(super) fn stage_as(&self, name: &str, manifest: &[u8]) -> Result<()> {
        let path = self.base.join("staging").join(file(name));
        fs::write(&path, manifest).with_context(|| format!("write {}", path.display()))
    }

    /// Where the agent tells without asking who wants to know; served in the run for probes only.
    pub(super) fn read_only_port(&self) -> u16 {
        self.read_only_port
    }

    /// Renames a staged manifest into the agent's directory.
    pub(super) fn publish(&self, name: &str) -> Result<()> {
        let (from, to) = (self.base.join("staging").join(file(name)), self.manifest(name));
        fs::rename(&from, &to).with_context(|| format!("rename {} to {}", from.display(), to.display()))
    }

    /// Takes a manifest away: the order to stop.
    pub(super) fn retract(&self, name: &str) -> Result<()> {
        let path = self.manifest(name);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// The agent's pod of the manifest that was staged for `name`, and the directory that goes last of it.
    pub(super) fn pod_dir(&self, name: &str, manifest: &[u8]) -> Result<(PodUid, PathBuf)> {
        let path = self.manifest(name).display().to_string();
        let (pod, _) = kubelet::source::static_pod(manifest, &path, NODE)?;
        let uid = PodRef::of(&pod).uid;
        let dir = self.base.join("root/pods").join(uid.as_str());
        Ok((uid, dir))
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.base.join("manifests").join(file(name))
    }

    /// Waits until no sandbox of ours is left in the runtime but `running` of them.
    pub(super) async fn wait_left(&self, running: usize) -> Result<()> {
        let deadline = Instant::now() + GONE_LIMIT;
        loop {
            let left = self.cri.list_pod_sandboxes(Some(ours())).await?.len();
            if left <= running {
                // The agent looks once more and removes the pod's directories.
                tokio::time::sleep(Duration::from_millis(100)).await;
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{left} sandboxes are left after {GONE_LIMIT:?}, {running} should be");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The runtime has no sandbox of ours.
    pub(super) async fn is_empty(&self) -> Result<bool> {
        Ok(self.cri.list_pod_sandboxes(Some(ours())).await?.is_empty())
    }

    /// Everything that this run made goes.
    pub(super) async fn remove(mut self) -> Result<()> {
        // At once: an agent that lives would start again what is stopped here.
        self.agent = None;
        let links = log_links(&self.base);
        let outcome = match self.under {
            UnderTest::Private(ours) => ours.stop().await,
            UnderTest::Given(_) => remove_from_given(&self.cri, self.base, self.cgroup).await,
        };
        for link in links {
            let _gone_already = fs::remove_file(link);
        }
        outcome
    }
}

fn file(name: &str) -> String {
    format!("{name}.json")
}

/// The sandboxes of the benchmark.
fn ours() -> PodSandboxFilter {
    let label = ("io.kubernetes.pod.namespace".to_owned(), NAMESPACE.to_owned());
    PodSandboxFilter { label_selector: [label].into_iter().collect(), ..Default::default() }
}

/// Ports of the loopback device that nobody uses.
fn free_ports() -> Result<[u16; 3]> {
    let bind = || TcpListener::bind("127.0.0.1:0");
    let listeners = [bind()?, bind()?, bind()?];
    let [a, b, c] = listeners.each_ref().map(TcpListener::local_addr);
    Ok([a?.port(), b?.port(), c?.port()])
}

fn kubelet_config(
    base: &Path,
    cgroup: &str,
    socket: &Path,
    healthz_port: u16,
    port: u16,
) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "staticPodPath": base.join("manifests"),
        "containerRuntimeEndpoint": format!("unix://{}", socket.display()),
        "podLogsDir": base.join("logs"),
        "failCgroupV1": false,
        "imageGCHighThresholdPercent": 100,
        // The machine's disk may well be full.
        "evictionHard": {
            "memory.available": "100Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
            "imagefs.available": "0%", "imagefs.inodesFree": "0%",
        },
        "failSwapOn": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "address": "127.0.0.1",
        "port": port,
        "healthzPort": healthz_port,
        "authentication": { "anonymous": { "enabled": false }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "maxPods": 200,
    })
}

/// What the agent makes of its arguments.
fn settings(arguments: &[String]) -> Result<Settings> {
    match kubelet::config::load(arguments.iter().cloned()) {
        Ok(kubelet::config::Command::Run(loaded)) => Ok(Settings::from_loaded(&loaded)?),
        Ok(kubelet::config::Command::Print(text)) => bail!("the agent only prints {text:?}"),
        Err(errors) => {
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            bail!("the agent refuses its configuration: {}", errors.join("; "))
        }
    }
}

/// The links in `/var/log/containers` that point below `base`.
fn log_links(base: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(kubelet::log::CONTAINER_LOGS_DIR).into_iter().flatten().flatten();
    let links = entries.map(|entry| entry.path());
    links.filter(|link| fs::read_link(link).is_ok_and(|target| target.starts_with(base))).collect()
}

/// A runtime of somebody else keeps nothing of ours either.
async fn remove_from_given(cri: &cri::Client, base: PathBuf, cgroup: String) -> Result<()> {
    let mut problems = Vec::new();
    for sandbox in cri.list_pod_sandboxes(Some(ours())).await? {
        if let Err(error) = cri.stop_pod_sandbox(&sandbox.id).await {
            problems.push(error.to_string());
        }
        if let Err(error) = cri.remove_pod_sandbox(&sandbox.id).await {
            problems.push(error.to_string());
        }
    }
    let traces = Traces { folders: vec![base], cgroups: vec![cgroup], ..Default::default() };
    problems.extend(tokio::task::spawn_blocking(move || runtime::sweep_traces(&traces)).await?);
    anyhow::ensure!(problems.is_empty(), "leftovers: {}", problems.join("; "));
    Ok(())
}
