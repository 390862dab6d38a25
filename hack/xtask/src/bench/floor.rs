//! The floor: a bare CRI client that makes the agent's pod with the three calls that cannot be avoided.
//!
//! Its messages come from the agent's own translation of the same manifest with the same settings, and the
//! pod's cgroup and directories are made by the agent's own rooms, before the clock runs.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use cri::v1::{ContainerConfig, ImageSpec, PodSandboxConfig};
use futures::future::try_join_all;
use kubelet::api::{self, Pod, PodRef, PodUid, Qos};
use kubelet::assemble::Settings;
use kubelet::cgroup::Cgroups;
use kubelet::event::ContainerList;
use kubelet::objects::Objects;
use kubelet::pleg::observed::labels::POD_UID;
use kubelet::pod::translate::fields::FileValues;
use kubelet::pod::translate::{self, ContainerInput, ImageUser, NodeFacts, ResolvConf};
use kubelet::source;
use kubelet::volume::{VolumeConfig, Volumes};

use super::pod;
use super::stamps::{ms, now};
use crate::image::Image;

/// What the floor's pods have instead of [`POD_UID`].
const FLOOR_UID: &str = "stevedore.floor.pod.uid";

/// The client and what it needs to prepare pods.
#[derive(Debug, Clone)]
pub(super) struct Floor {
    runtime: cri::Client,
    facts: NodeFacts,
    cgroups: Cgroups,
    volumes: Volumes,
    image: String,
    image_user: ImageUser,
}

/// A pod that only CRI has still to make.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    uid: PodUid,
    qos: Qos,
    sandbox: PodSandboxConfig,
    containers: Vec<ContainerConfig>,
}

/// A pod that runs.
#[derive(Debug)]
pub(super) struct Running {
    prepared: Prepared,
    sandbox: String,
    containers: Vec<String>,
    /// When the first call was made.
    pub began: u64,
    /// Milliseconds of RunPodSandbox and, of the last container, CreateContainer and StartContainer.
    pub calls: [f64; 3],
}

impl Floor {
    /// `settings` are the agent's.
    pub(super) async fn new(settings: &Settings, runtime: cri::Client) -> Result<Self> {
        let capabilities = runtime.connected().await;
        let cgroups = Cgroups::detect(settings.cgroup.clone())?;
        cgroups.setup_node(&settings.node_cgroup).await?;
        let volumes = Volumes::new(VolumeConfig {
            root_dir: settings.root_dir.join("floor"),
            mount_table: settings.mount_table.clone(),
            allocatable_memory: Some(settings.facts.allocatable.memory_bytes),
            objects: Objects::none(),
            values: Arc::new(FileValues(Arc::new(settings.facts.clone()))),
        })?;
        let mut facts = settings.facts.clone();
        facts.runtime.supplemental_groups_policy = capabilities.features.supplemental_groups_policy;
        let spec = ImageSpec { image: Image::Stamp.reference(), ..Default::default() };
        let image = runtime.image_status(spec, false).await?.image;
        let image = image.with_context(|| format!("the runtime has no image {}", Image::Stamp))?;
        let image_user = ImageUser { uid: image.uid.map(|u| u.value), username: Some(image.username) };
        Ok(Self { runtime, facts, cgroups, volumes, image: image.id, image_user })
    }

    /// Makes everything of the pod that CRI does not make.
    pub(super) async fn prepare(&self, name: &str, stamps: &Path, containers: usize) -> Result<Prepared> {
        let path = format!("/floor/{name}.yaml");
        let (pod, _) = source::static_pod(&pod::manifest(name, stamps, containers), &path, pod::NODE)?;
        let (uid, qos) = (PodRef::of(&pod).uid, translate::qos_class(&pod));
        let values = translate::pod_cgroup_resources(&pod, &self.facts);
        self.cgroups.create_pod(qos, &uid, &values).await?;
        let dir = self.volumes.prepare_pod_dirs(&uid).map_err(|e| anyhow::anyhow!(e.message))?;
        let parent = self.cgroups.pod_parent(qos, &uid);
        let own = self.facts.resolv_conf.as_ref().map(std::fs::read_to_string).transpose()?;
        let own = own.as_deref().map(ResolvConf::parse).transpose()?;
        let mut sandbox = translate::sandbox_config(&pod, 0, &parent, own.as_ref(), &self.facts)?.config;
        let mut containers = Vec::new();
        for nth in 0..containers_of(&pod) {
            containers.push(self.container(&pod, nth, &uid, &dir, values.memory_limit).await?);
        }
        let labels = containers.iter_mut().map(|c| &mut c.labels);
        for labels in labels.chain([&mut sandbox.labels]) {
            // By this label the agent would know the pod for one that no source has, and end it.
            if let Some(uid) = labels.remove(POD_UID) {
                labels.insert(FLOOR_UID.to_owned(), uid);
            }
        }
        for container in &containers {
            let log = Path::new(&sandbox.log_directory).join(&container.log_path);
            std::fs::create_dir_all(log.parent().context("a log file lies in a folder")?)?;
        }
        Ok(Prepared { uid, qos, sandbox, containers })
    }

    async fn container(
        &self,
        pod: &Pod,
        nth: usize,
        uid: &PodUid,
        dir: &Path,
        memory: Option<i64>,
    ) -> Result<ContainerConfig> {
        let mounted = self.volumes.setup(pod, memory).await.context("set up the volumes")?;
        let container = api::spec(pod).containers.get(nth).context("the pod has a container")?;
        let hosts = dir.join("etc-hosts");
        let hostname = translate::pod_hostname(pod, &self.facts.cluster_domain)?;
        std::fs::write(&hosts, translate::etc_hosts(pod, &[], &hostname, None))?;
        let termination = self.volumes.termination_log(uid, &container.name)?;
        let same = |text: &str| Ok(text.to_owned());
        let mounts = self.volumes.mounts(pod, container, &mounted, false, &same).await;
        let mounts = mounts.map_err(|e| anyhow::anyhow!(e.message))?;
        Ok(translate::container_config(&ContainerInput {
            pod,
            list: ContainerList::Regular,
            container,
            restart_count: 0,
            image_ref: &self.image,
            image: &self.image_user,
            pod_ips: &[],
            mounts: &mounts,
            termination_log_host_path: Some(&termination.to_string_lossy()),
            etc_hosts_host_path: Some(&hosts.to_string_lossy()),
            service_env: &[],
            env_sources: &translate::NoSources,
            target_id: None,
            facts: &self.facts,
        })?)
    }

    /// The three calls.
    pub(super) async fn start(&self, prepared: Prepared) -> Result<Running> {
        let config = prepared.sandbox.clone();
        let began = now();
        let sandbox = self.runtime.run_pod_sandbox(config.clone(), "").await?;
        let mut calls = [ms(began, now()), 0.0, 0.0];
        let mut containers = Vec::new();
        for container in prepared.containers.clone() {
            let made = now();
            let container = self.runtime.create_container(&sandbox, container, config.clone()).await?;
            let created = now();
            self.runtime.start_container(&container).await?;
            (calls[1], calls[2]) = (ms(made, created), ms(created, now()));
            containers.push(container);
        }
        Ok(Running { prepared, sandbox, containers, began, calls })
    }

    /// The one call; returns when it was made. The container's end comes with a stamp.
    pub(super) async fn stop(&self, running: &Running) -> Result<u64> {
        let began = now();
        try_join_all(running.containers.iter().map(|id| self.runtime.stop_container(id, 30))).await?;
        Ok(began)
    }

    /// Takes everything of the pod away again; returns when the runtime had nothing of it any more.
    pub(super) async fn remove(&self, running: Running) -> Result<u64> {
        self.runtime.stop_pod_sandbox(&running.sandbox).await?;
        try_join_all(running.containers.iter().map(|id| self.runtime.remove_container(id))).await?;
        self.runtime.remove_pod_sandbox(&running.sandbox).await?;
        let gone = now();
        self.discard(running.prepared).await?;
        Ok(gone)
    }

    /// Whether the pod `uid` has a cgroup.
    pub(super) fn has_cgroup(&self, uid: &PodUid) -> Result<bool> {
        Ok(self.cgroups.list_pods()?.iter().any(|(_, of)| of == uid))
    }

    /// Takes away what [`Floor::prepare`] made.
    async fn discard(&self, prepared: Prepared) -> Result<()> {
        self.cgroups.remove_pod(prepared.qos, &prepared.uid).await?;
        self.volumes.teardown(&prepared.uid).await?;
        std::fs::remove_dir_all(&prepared.sandbox.log_directory)?;
        Ok(())
    }
}

fn containers_of(pod: &Pod) -> usize {
    api::spec(pod).containers.len()
}
