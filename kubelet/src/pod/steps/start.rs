//! From a pod's arrival to its processes: directories, cgroup, volumes, sandbox, images, containers.

use super::{Failure, Made, Steps};
use crate::api::{self, Container, Pod};
use crate::event::{ContainerList, Kind, container_path};
use crate::log;
use crate::objects::{self, Found, Key, Objects};
use crate::pleg::observed::Observed;
use crate::pod::desired::grace_of;
use crate::pod::hooks;
use crate::pod::plan::{self, Kill};
use crate::pod::translate::{self, ContainerInput, EnvSources, ResolvConf, SourceError};
use crate::trace::{self, Phase};
use crate::volume::Mounted;
use cri::v1;
use futures::future::join;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

impl Steps {
    /// The pod's cgroup, made with the limits of the pod as it is now; gives the limit of its memory. One that is there is
    /// raised where it has less, for no container starts with more than its pod. What runs in it may be in the way of lower
    /// limits, which are [`Steps::resize`]'s.
    async fn limit(&mut self, pod: &Pod) -> Result<Option<i64>, Failure> {
        let values = translate::pod_cgroup_resources(pod, &self.rooms.facts);
        let memory_limit = values.memory_limit;
        let (cgroups, qos) = (&self.rooms.cgroups, translate::qos_class(pod));
        // Somebody may have removed it, and the runtime would make it again without limits.
        let there = self.limits.as_ref().filter(|_| cgroups.has_pod(qos, &self.pod.uid));
        let raised = there.map(|has| plan::resize::raised(has, &values, self.rooms.facts.cgroup_v2));
        let made = if raised.is_some() && raised.as_ref() == there {
            cgroups.check_runtime()
        } else {
            self.cgroup_made = true;
            let what = if there.is_some() { "update" } else { "create" };
            let began = tokio::time::Instant::now();
            let made = cgroups.create_pod(qos, &self.pod.uid, raised.as_ref().unwrap_or(&values)).await;
            trace::done(Phase::Cgroup, began, made.as_ref().err().map(ToString::to_string));
            self.rooms.metrics.cgroup_manager_duration.with([what]).observe_duration(began.elapsed());
            made
        };
        if let Err(error) = made {
            let message = format!("unable to ensure pod container exists: {error}");
            self.event(Kind::Warning, None, "FailedToCreatePodContainer", message);
            return Err(Failure::default());
        }
        self.limits = Some(raised.unwrap_or(values));
        Ok(memory_limit)
    }

    /// Directories, cgroup and volumes: what must be there before anything of the pod runs.
    async fn prepare(&mut self, pod: &Pod) -> Result<(), Failure> {
        let memory_limit = self.limit(pod).await?;
        let volumes = api::spec(pod).volumes.as_deref().unwrap_or_default();
        if self.mounted.is_some() && self.mounted_for == volumes {
            return Ok(());
        }
        if let Err(error) = self.rooms.volumes.prepare_pod_dirs(&self.pod.uid) {
            self.event(Kind::Warning, None, error.reason, error.message);
            return Err(Failure::default());
        }
        self.map_users(pod).await?;
        let set_up = self.rooms.volumes.setup(pod, memory_limit);
        match trace::phase(Phase::Volumes, "", set_up, |e| e.message.clone()).await {
            Ok(mounted) => {
                self.mounted = Some(mounted);
                self.mounted_for = volumes.to_vec();
                self.keep_volumes(pod);
                Ok(())
            }
            Err(error) => {
                for e in error.all() {
                    self.event(Kind::Warning, None, e.reason, e.message.clone());
                }
                let waits_for = error.all().flat_map(|e| e.waits_for.clone()).collect();
                Err(Failure { waits_for, ..Failure::default() })
            }
        }
    }

    pub async fn create_sandbox(
        &mut self,
        pod: &Pod,
        attempt: u32,
        stop: impl Future<Output = ()>,
    ) -> Result<(), Failure> {
        // Whatever comes of this, what was known of an earlier sandbox is void.
        self.made = None;
        let network = self.rooms.network.clone();
        let on_host = api::spec(pod).host_network.unwrap_or(false);
        let network = async { if on_host { Ok(()) } else { network.ready().await } };
        let network = tokio::select! {
            // The question first: its answer is on the way while directories are made.
            (network, prepared) = join(network, self.prepare(pod)) => prepared.map(|()| network)?,
            () = stop => return Err(Failure::interrupted()),
        };
        if let Err(why) = network {
            let message = format!("network is not ready: {why}");
            self.event(Kind::Warning, None, "NetworkNotReady", message);
            return Err(Failure { waits_for_network: true, ..Failure::default() });
        }
        let config = self.sandbox_config(pod, attempt)?;
        let made = async {
            self.make_log_dir(&config.log_directory)?;
            let handler = String::new();
            let id = self
                .rooms
                .runtime
                .run_pod_sandbox(config.clone(), &handler)
                .await
                .map_err(|e| e.rpc_text())?;
            Ok::<_, String>(id)
        };
        match trace::phase(Phase::Sandbox, "", made, String::clone).await {
            Ok(id) => {
                self.sandbox_made = true;
                self.made = Some(self.known(pod, id, config).await?);
                Ok(())
            }
            Err(message) => {
                let message = format!("Failed to create pod sandbox: {message}");
                self.event(Kind::Warning, None, "FailedCreatePodSandBox", message);
                Err(Failure::default())
            }
        }
    }

    fn sandbox_config(&self, pod: &Pod, attempt: u32) -> Result<v1::PodSandboxConfig, Failure> {
        let qos = translate::qos_class(pod);
        let parent = self.rooms.cgroups.pod_parent(qos, &self.pod.uid);
        let facts = &self.rooms.facts;
        let config = self.resolv_conf().and_then(|own| {
            translate::sandbox_config(pod, attempt, &parent, own.as_ref(), facts).map_err(|e| e.to_string())
        });
        match config {
            Ok(mut sandbox) => {
                if let Some(range) = self.users {
                    translate::security::map_sandbox(&mut sandbox.config, range);
                }
                for w in sandbox.warnings {
                    self.event(Kind::Warning, None, w.reason, w.message);
                }
                Ok(sandbox.config)
            }
            Err(error) => {
                let message = format!("Failed to create pod sandbox: {error}");
                self.event(Kind::Warning, None, "FailedCreatePodSandBox", message);
                Err(Failure::default())
            }
        }
    }

    /// What the node resolves names with now.
    fn resolv_conf(&self) -> Result<Option<ResolvConf>, String> {
        let Some(path) = &self.rooms.facts.resolv_conf else { return Ok(None) };
        let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let text = std::fs::read(path).map_err(|e| failed(&e))?;
        ResolvConf::parse(&String::from_utf8_lossy(&text)).map(Some).map_err(|e| failed(&e))
    }

    /// The ids of a pod with a user namespace of its own, new ones or those it has. On a runtime that cannot have them
    /// the sandbox is refused.
    async fn map_users(&mut self, pod: &Pod) -> Result<(), Failure> {
        let wanted = api::spec(pod).host_users == Some(false) && self.rooms.facts.runtime.user_namespaces;
        if !wanted || self.users.is_some() {
            return Ok(());
        }
        let (room, uid) = (self.rooms.user_namespaces.clone(), self.pod.uid.clone());
        let range = tokio::task::spawn_blocking(move || room.range(&uid).map_err(|e| e.to_string())).await;
        match range.map_err(|e| e.to_string()).and_then(|r| r) {
            Ok(range) => {
                self.users = Some(range);
                Ok(())
            }
            Err(error) => {
                let message = format!("Failed to create pod sandbox: {error}");
                self.event(Kind::Warning, None, "FailedCreatePodSandBox", message);
                Err(Failure::default())
            }
        }
    }

    fn make_log_dir(&self, dir: &str) -> Result<(), String> {
        std::fs::create_dir_all(dir).map_err(|e| format!("mkdir {dir}: {e}"))
    }

    /// The sandbox with the addresses the runtime gave it.
    async fn known(&self, pod: &Pod, id: String, config: v1::PodSandboxConfig) -> Result<Made, Failure> {
        if api::spec(pod).host_network.unwrap_or(false) {
            return Ok(Made { id, config, ips: self.rooms.facts.node_ips.clone() });
        }
        let status = self.rooms.runtime.pod_sandbox_status(&id, false).await.map_err(|error| {
            tracing::warn!(pod = %self.pod, %error, "cannot see the sandbox that was just made");
            Failure::default()
        })?;
        let ips = status.status.as_ref().map(crate::pleg::observed::sandbox_ips).unwrap_or_default();
        Ok(Made { id, config, ips })
    }

    pub async fn start(
        &mut self,
        pod: &Pod,
        seen: &Observed,
        list: ContainerList,
        index: usize,
        restart_count: u32,
        stop: impl Future<Output = ()>,
    ) -> Result<(), Failure> {
        let Some(c) = self.container(pod, list, index) else { return Ok(()) };
        let c = &*c;
        tokio::pin!(stop);
        let secrets = tokio::select! {
            ready = async {
                self.ready_to_start(pod, seen).await?;
                Ok(self.pull_secrets(pod).await)
            } => ready?,
            () = &mut stop => return Err(Failure::interrupted()),
        };
        let Some((made, mounted)) = self.made.as_ref().zip(self.mounted.as_ref()) else {
            return Err(Failure::default());
        };
        let path = container_path(list, &c.name);
        let (image, volumes) = tokio::select! {
            biased;
            () = &mut stop => return Err(Failure::interrupted()),
            images = trace::phase(Phase::Image, &c.name, self.images(pod, c, &path, made, &secrets), Failure::cause) => images?,
        };
        let mounted = &mounted.clone().with_images(volumes.specs());
        let target = self.target(pod, seen, list, index, &made.id);
        let target = target.map_err(|e| self.failed(&path, "CreateContainerConfigError", &e))?;
        let sources = tokio::select! {
            biased;
            () = &mut stop => return Err(Failure::interrupted()),
            sources = Sources::find(&self.rooms.objects, pod, c, mounted) => sources,
        };
        let config = self.container_config(pod, list, c, restart_count, &image, made, &sources, target).await;
        let config = config.map_err(|e| Failure {
            waits_for: objects::known(&sources.objects),
            ..self.failed(&path, "CreateContainerConfigError", &e)
        })?;
        let log_path = format!("{}/{}", made.config.log_directory, config.log_path);
        if let Some((dir, _)) = log_path.rsplit_once('/') {
            self.make_log_dir(dir).map_err(|e| self.failed(&path, "CreateContainerError", &e))?;
        }
        let created = self.rooms.runtime.create_container(&made.id, config, made.config.clone());
        let created = trace::phase(Phase::Create, &c.name, created, |e| e.message.clone()).await;
        self.count_image_volumes(&volumes, created.is_ok());
        let id = created.map_err(|e| self.failed(&path, "CreateContainerError", &e.message))?;
        self.event(Kind::Normal, Some(path.clone()), "Created", "Container created".to_owned());
        self.run(pod, list, c, &id, &log_path, stop).await
    }

    /// Starts an instance that an earlier incarnation of the agent created.
    pub async fn resume(
        &self,
        pod: &Pod,
        list: ContainerList,
        index: usize,
        id: &str,
        stop: impl Future<Output = ()>,
    ) -> Result<(), Failure> {
        let Some(c) = self.container(pod, list, index) else { return Ok(()) };
        let c = &*c;
        let status = self.rooms.runtime.container_status(id, false).await;
        let log_path = status.ok().and_then(|s| s.status).map(|s| s.log_path).unwrap_or_default();
        self.run(pod, list, c, id, &log_path, stop).await
    }

    async fn run(
        &self,
        pod: &Pod,
        list: ContainerList,
        c: &Container,
        id: &str,
        log_path: &str,
        stop: impl Future<Output = ()>,
    ) -> Result<(), Failure> {
        let path = &container_path(list, &c.name);
        tokio::pin!(stop);
        let started = async {
            let started = self.rooms.runtime.start_container(id).await;
            match &started {
                Err(e) if e.kind == cri::Kind::Unavailable => tokio::select! {
                    runs = self.runs(id) => if runs { Ok(()) } else { started },
                    () = &mut stop => started,
                },
                _ => started,
            }
        };
        if let Err(error) = trace::phase(Phase::Start, &c.name, started, |e| e.message.clone()).await {
            let mut failure = self.failed(path, "RunContainerError", &error.message);
            failure.not_started = Some(id.to_owned());
            return Err(failure);
        }
        self.event(Kind::Normal, Some(path.to_owned()), "Started", "Container started".to_owned());
        let kind = match list {
            ContainerList::Init => "init_container",
            ContainerList::Regular => "container",
            ContainerList::Ephemeral => "ephemeral_container",
        };
        self.rooms.metrics.started_containers.with([kind]).inc();
        let link = log::link_path(&self.rooms.log_links_dir, &self.pod, &c.name, id);
        if let Err(error) = log::create_link(&link, Path::new(log_path)) {
            tracing::warn!(pod = %self.pod, container = c.name, %error, "cannot link the container's log");
        }
        tokio::select! {
            biased;
            () = stop => Err(Failure::interrupted()),
            done = self.post_start(pod, c, path, id) => done,
        }
    }

    /// Once the runtime is back that went away while it started the instance: it runs, and its hook has yet to.
    async fn runs(&self, id: &str) -> bool {
        let runtime = &self.rooms.runtime;
        let seen = runtime.through_outages(|| runtime.container_status(id, false)).await;
        let running = cri::v1::ContainerState::ContainerRunning;
        seen.is_ok_and(|answer| answer.status.is_some_and(|s| s.state() == running))
    }

    /// Runs the postStart hook. A container whose hook failed is ended before anything else of the pod is started; one that
    /// cannot be ended is ended by a later plan. A hook that was cut off, by the pod's end or the agent's, is not run again.
    async fn post_start(&self, pod: &Pod, c: &Container, path: &str, id: &str) -> Result<(), Failure> {
        let Some(hook) = c.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else { return Ok(()) };
        let ip = self.pod_ip(pod).await;
        let target = self.hook_target(c, id, ip);
        let Err(error) = hooks::run(&target, hook).await else { return Ok(()) };
        // Not the error: a command's output may hold secrets.
        self.event(
            Kind::Warning,
            Some(path.to_owned()),
            "FailedPostStartHook",
            "PostStartHook failed".to_owned(),
        );
        let target = Kill {
            id: id.to_owned(),
            name: c.name.clone(),
            message: Some("FailedPostStartHook".to_owned()),
            turn: 0,
        };
        let still_runs = self.kill(pod, &[target], grace_of(pod)).await.is_err();
        let failure = Failure::waiting("PostStartHookError", error);
        Err(Failure { not_started: Some(id.to_owned()), still_runs, ..failure })
    }

    fn failed(&self, path: &str, reason: &str, message: &str) -> Failure {
        self.event(Kind::Warning, Some(path.to_owned()), "Failed", format!("Error: {message}"));
        Failure::waiting(reason, message)
    }

    /// After a restart of the agent the sandbox was made by an earlier incarnation: rebuild what is known of it.
    async fn ready_to_start(&mut self, pod: &Pod, seen: &Observed) -> Result<(), Failure> {
        self.prepare(pod).await?;
        if let Some(made) = &mut self.made {
            // They may have changed since the sandbox was made.
            if let Some(linux) = &mut made.config.linux {
                linux.resources = Some(translate::limits::sandbox_resources(pod, &self.rooms.facts));
            }
            return Ok(());
        }
        let Some(sandbox) = seen.sandbox() else { return Err(Failure::default()) };
        let config = self.sandbox_config(pod, sandbox.attempt)?;
        let on_host = api::spec(pod).host_network.unwrap_or(false);
        let ips = if on_host { self.rooms.facts.node_ips.clone() } else { sandbox.ips.clone() };
        self.made = Some(Made { id: sandbox.id.clone(), config, ips });
        Ok(())
    }

    /// The instance whose processes an ephemeral container joins; `None` for one that has processes of its own.
    fn target<'a>(
        &self,
        pod: &Pod,
        seen: &'a Observed,
        list: ContainerList,
        index: usize,
        sandbox_id: &str,
    ) -> Result<Option<&'a str>, String> {
        if list != ContainerList::Ephemeral {
            return Ok(None);
        }
        let e = api::spec(pod).ephemeral_containers.as_ref().and_then(|all| all.get(index));
        let Some(name) = e.and_then(|e| e.target_container_name.as_ref()).filter(|n| !n.is_empty()) else {
            return Ok(None);
        };
        let target = seen.containers.iter().find(|i| i.name == *name && i.sandbox_id == sandbox_id);
        target.map(|i| Some(i.id.as_str())).ok_or_else(|| format!("unable to find target container {name}"))
    }

    #[expect(clippy::too_many_arguments, reason = "each is a different source of the configuration")]
    async fn container_config(
        &self,
        pod: &Pod,
        list: ContainerList,
        c: &Container,
        restart_count: u32,
        image: &crate::image::ImageRef,
        made: &Made,
        sources: &Sources<'_>,
        target_id: Option<&str>,
    ) -> Result<v1::ContainerConfig, String> {
        let rooms = &self.rooms;
        let hosts = self.hosts_file(pod, &made.ips)?;
        let log = rooms.volumes.termination_log(&self.pod.uid, &c.name).map_err(|e| e.to_string())?;
        let log = log.to_string_lossy();
        let mut input = ContainerInput {
            pod,
            list,
            container: c,
            restart_count,
            image_ref: &image.id,
            image: &image.user,
            pod_ips: &made.ips,
            mounts: &[],
            termination_log_host_path: Some(&log),
            etc_hosts_host_path: hosts.as_deref(),
            service_env: &[],
            env_sources: sources,
            target_id,
            facts: &rooms.facts,
        };
        let env = translate::environment(&input).map_err(|e| e.to_string())?;
        let expand = |text: &str| {
            let expanded = translate::expand::expand_strict(text, |name| translate::env::lookup(&env, name));
            expanded
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .map_err(|missing| format!("missing value for {}", missing.0))
        };
        let rro = rooms.recursive_read_only;
        let mounts =
            rooms.volumes.mounts(pod, c, sources.mounted, rro, &expand).await.map_err(|e| e.message)?;
        input.mounts = &mounts;
        let mut config = translate::container_config(&input).map_err(|e| e.to_string())?;
        if let Some(range) = self.users {
            translate::security::map_container(&mut config, range);
        }
        Ok(config)
    }

    /// What an earlier incarnation was killed writing is made whole, for the containers that have it mounted.
    pub fn mend_hosts_file(&self, pod: &Pod, seen: &Observed) {
        let on_host = api::spec(pod).host_network.unwrap_or(false);
        let Some(sandbox) = seen.sandbox().filter(|s| plan::usable(s, on_host)) else { return };
        let ips = if on_host { &self.rooms.facts.node_ips } else { &sandbox.ips };
        let there = self.rooms.volumes.pod_dir(&self.pod.uid).join("etc-hosts").exists();
        if let Some(Err(error)) = there.then(|| self.hosts_file(pod, ips)) {
            tracing::warn!(pod = %self.pod, error, "cannot write the pod's hosts file");
        }
    }

    /// Writes the pod's managed `/etc/hosts`; none for a pod whose containers bring their own.
    fn hosts_file(&self, pod: &Pod, ips: &[IpAddr]) -> Result<Option<String>, String> {
        let on_host = api::spec(pod).host_network.unwrap_or(false);
        let name =
            translate::pod_hostname(pod, &self.rooms.facts.cluster_domain).map_err(|e| e.to_string())?;
        let host_file = on_host
            .then(|| std::fs::read(&self.rooms.host_hosts_file))
            .transpose()
            .map_err(|e| format!("{}: {e}", self.rooms.host_hosts_file.display()))?;
        let text = translate::etc_hosts(pod, ips, &name, host_file.as_deref());
        let path: PathBuf = self.rooms.volumes.pod_dir(&self.pod.uid).join("etc-hosts");
        // What is right already is left alone, so that a full disk does not harm it.
        if !std::fs::read(&path).is_ok_and(|there| there == text) {
            write_over(&path, &text).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        Ok(Some(path.to_string_lossy().into_owned()))
    }
}

/// Writes a file that containers have mounted: in place, and so that it is at no moment empty.
fn write_over(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all_at(bytes, 0)?;
    file.set_len(bytes.len() as u64)
}

/// What variables are read from: the objects as they were when the container was to start, and files of the pod's own
/// volumes.
struct Sources<'a> {
    objects: BTreeMap<Key, Found>,
    mounted: &'a Mounted,
}

/// Upstream's bound for such a file.
const ENV_FILE_LIMIT: u64 = 64 << 10;

impl<'a> Sources<'a> {
    /// Waits until it is known which of the objects there are. Cancel-safe.
    async fn find(objects: &Objects, pod: &Pod, c: &Container, mounted: &'a Mounted) -> Self {
        Self { objects: objects.find(translate::env::keys(pod, c)).await, mounted }
    }

    /// What variables may have of an object: of a ConfigMap not what is binary.
    fn data(
        &self,
        kind: objects::Kind,
        namespace: &str,
        name: &str,
    ) -> Result<BTreeMap<String, Vec<u8>>, SourceError> {
        let found = self.objects.get(&Key::new(kind, namespace, name)).and_then(|f| f.object.as_ref());
        let object =
            found.ok_or_else(|| SourceError::NotFound { kind: kind.lower_case(), name: name.to_owned() })?;
        Ok(object.data.iter().map(|(key, value)| (key.clone(), value.to_vec())).collect())
    }
}

impl EnvSources for Sources<'_> {
    fn config_map(&self, namespace: &str, name: &str) -> Result<BTreeMap<String, Vec<u8>>, SourceError> {
        self.data(objects::Kind::ConfigMap, namespace, name)
    }
    fn secret(&self, namespace: &str, name: &str) -> Result<BTreeMap<String, Vec<u8>>, SourceError> {
        self.data(objects::Kind::Secret, namespace, name)
    }
    fn file(&self, _: &Pod, volume: &str, path: &str) -> Result<Vec<u8>, SourceError> {
        match self.mounted.read(volume, path, ENV_FILE_LIMIT) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(SourceError::NotFound { kind: "file", name: format!("{volume}/{path}") })
            }
            other => other.map_err(|e| SourceError::Other(format!("file {volume}/{path}: {e}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_file_that_containers_have_mounted_is_written_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc-hosts");
        write_over(&path, b"127.0.0.1\tlocalhost\n10.0.0.1\ta\n").unwrap();
        let before = std::fs::metadata(&path).unwrap().ino();
        write_over(&path, b"127.0.0.1\tlocalhost\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"127.0.0.1\tlocalhost\n");
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), before);
    }
}
