//! The steps of a plan, carried out: the only place that asks the runtime and the rooms to change something for a pod.
//!
//! `start` makes what a pod needs and starts its containers, `kill` ends them; here is what both need, and the removal of
//! what is left.
//!
//! Every step may be repeated: what is already so is success. A step's failure says what the pod's owner must read
//! (event, waiting reason) and when to try again; it never loses what other steps have done.

use super::plan::Waiting;
use super::rooms::Rooms;
use super::translate;
use crate::api::{self, Container, Pod, PodRef, PodUid, Qos, Volume};
use crate::cgroup::PodValues;
use crate::event::{ContainerList, Event, Kind, container_path};
use crate::log;
use crate::objects::Known;
use crate::pleg::observed::{Instance, Observed};
use crate::userns::Range;
use crate::volume::{Keeper, Mounted};
use cri::v1;
use std::borrow::Cow;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::time::Instant;

mod images;
mod kill;
mod resize;
mod secrets;
mod start;

/// Why a step failed.
#[derive(Debug, Default)]
pub struct Failure {
    /// It concerns one container; the others go on.
    pub of_container: bool,
    /// For the container's status.
    pub waiting: Option<Box<Waiting>>,
    /// When to try again, where a room knows better than the actor's own back-off.
    pub retry_at: Option<Instant>,
    /// The pod must end; this is no failure at all.
    pub interrupted: bool,
    /// The instance that was left behind, as a rule ended.
    pub not_started: Option<String>,
    /// It could not be ended, and must be.
    pub still_runs: bool,
    /// The objects as they were found: a change of one is worth another try.
    pub waits_for: Vec<Known>,
    /// The runtime has no network for pods yet: once it has, another try is worth while.
    pub waits_for_network: bool,
    /// What could not be ended, and why.
    pub not_ended: Option<String>,
}

impl Failure {
    fn interrupted() -> Self {
        Self { interrupted: true, ..Self::default() }
    }

    /// In words, for a trace.
    fn cause(&self) -> String {
        self.waiting.as_ref().map(|w| format!("{}: {}", w.reason, w.message)).unwrap_or_default()
    }

    fn waiting(reason: &str, message: impl Into<String>) -> Self {
        let waiting = Waiting { reason: reason.to_owned(), message: message.into() };
        Self { of_container: true, waiting: Some(Box::new(waiting)), ..Self::default() }
    }
}

/// What has been made for the pod, and the rooms to make more.
#[derive(Debug)]
pub struct Steps {
    rooms: Arc<Rooms>,
    pod: PodRef,
    /// The pod's cgroup exists, or may.
    pub cgroup_made: bool,
    /// A sandbox was made and has not been seen yet.
    pub sandbox_made: bool,
    /// What the pod's cgroup has, as far as that is known.
    limits: Option<PodValues>,
    made: Option<Made>,
    /// The ids of a pod with a user namespace of its own.
    users: Option<Range>,
    mounted: Option<Mounted>,
    /// For which volumes of the spec that was.
    mounted_for: Vec<Volume>,
    /// Keeps the files of its volumes what their sources are.
    keeper: Option<Keeper>,
    /// What is wrong with its `imagePullSecrets`, as it was last told.
    wrong_secrets: Vec<String>,
}

/// The sandbox that containers are started in.
#[derive(Debug)]
struct Made {
    id: String,
    config: v1::PodSandboxConfig,
    ips: Vec<IpAddr>,
}

impl Steps {
    /// An earlier incarnation may have made the cgroup of a pod that is new to this one, so it counts as there until
    /// it has been removed.
    pub fn new(rooms: Arc<Rooms>, pod: PodRef) -> Self {
        Self {
            rooms,
            pod,
            cgroup_made: true,
            sandbox_made: false,
            limits: None,
            made: None,
            users: None,
            mounted: None,
            mounted_for: Vec::new(),
            keeper: None,
            wrong_secrets: Vec::new(),
        }
    }

    /// From now on the files of the pod's volumes follow their sources.
    pub fn keep_volumes(&mut self, pod: &Pod) {
        self.keeper = self.rooms.volumes.keep(pod, &self.rooms.recorder);
    }

    /// The pod's object is another.
    pub fn pod_changed(&self, pod: &Arc<Pod>) {
        if let Some(keeper) = &self.keeper {
            keeper.update(pod.clone());
        }
    }

    /// What a status needs of these while they are at work elsewhere.
    pub fn stand_in(&self) -> Self {
        let (cgroup_made, sandbox_made) = (self.cgroup_made, self.sandbox_made);
        Self { cgroup_made, sandbox_made, ..Self::new(self.rooms.clone(), self.pod.clone()) }
    }

    pub fn container<'a>(
        &self,
        pod: &'a Pod,
        list: ContainerList,
        index: usize,
    ) -> Option<Cow<'a, Container>> {
        let spec = api::spec(pod);
        match list {
            ContainerList::Init => spec.init_containers.as_ref()?.get(index).map(Cow::Borrowed),
            ContainerList::Regular => spec.containers.get(index).map(Cow::Borrowed),
            ContainerList::Ephemeral => {
                let all = spec.ephemeral_containers.as_ref()?;
                all.get(index).map(|e| Cow::Owned(translate::as_container(e)))
            }
        }
    }

    fn event(&self, kind: Kind, field_path: Option<String>, reason: &'static str, message: String) {
        let (pod, reason) = (Some(self.pod.clone()), reason.into());
        self.rooms.recorder.record(Event {
            pod,
            field_path,
            kind,
            reason,
            message,
            annotations: Default::default(),
        });
    }

    /// Makes the links to the logs of what is there, where an earlier incarnation of the agent was killed before it had.
    pub async fn link_logs(&self, seen: &Observed) {
        let with_log = seen.containers.iter().filter(|c| !c.log_path.is_empty());
        let link = |c: &Instance| log::link_path(&self.rooms.log_links_dir, &self.pod, &c.name, &c.id);
        let wanted: Vec<_> = with_log.map(|c| (link(c), c.log_path.clone())).collect();
        if wanted.is_empty() {
            return;
        }
        let pod = self.pod.clone();
        let made = tokio::task::spawn_blocking(move || {
            for (link, target) in wanted {
                if let Err(error) = log::create_link(&link, Path::new(&target)) {
                    tracing::warn!(%pod, %error, "cannot link a container's log");
                }
            }
        });
        if let Err(error) = made.await {
            tracing::error!(pod = %self.pod, %error, "panicked: linking logs");
        }
    }

    /// Tells that another sandbox takes the place of the one that the pod has.
    pub fn tell_sandbox_changed(&self) {
        let message = "Pod sandbox changed, it will be killed and re-created.".to_owned();
        self.event(Kind::Normal, None, "SandboxChanged", message);
    }

    /// Tells how a change of the pod's resources goes.
    pub fn tell_resize(&self, kind: Kind, reason: &'static str, message: String) {
        self.event(kind, None, reason, message);
    }

    /// Tells that something of a pod that must end could not be ended.
    pub fn tell_failed_kill(&self, why: &str) {
        self.event(Kind::Warning, None, "FailedKillPod", format!("error killing pod: {why}"));
    }

    /// Tells that a container that ended waits before it runs again.
    pub fn tell_backoff(&self, pod: &Pod, container: &str) {
        let path = container_path(self.list_of(pod, container), container);
        let message = format!("Back-off restarting failed container {container} in pod {}", self.pod);
        self.event(Kind::Warning, Some(path), "BackOff", message);
    }

    fn list_of(&self, pod: &Pod, name: &str) -> ContainerList {
        let spec = api::spec(pod);
        if spec.init_containers.iter().flatten().any(|c| c.name == name) {
            ContainerList::Init
        } else if spec.ephemeral_containers.iter().flatten().any(|c| c.name == name) {
            ContainerList::Ephemeral
        } else {
            ContainerList::Regular
        }
    }

    pub async fn stop_sandbox(&mut self, id: &str) -> Result<(), Failure> {
        self.sandbox_made = false;
        if self.made.as_ref().is_some_and(|m| m.id == id) {
            self.made = None;
        }
        let stopped = self.rooms.runtime.stop_pod_sandbox(id).await;
        let why = stopped.as_ref().err().map(|error| {
            let (uid, error) = (&self.pod.uid, error.rpc_text());
            format!("failed to \"KillPodSandbox\" for \"{uid}\" with KillPodSandboxError: \"{error}\"")
        });
        self.runtime_gone(stopped, "stop the sandbox")
            .map_err(|failure| Failure { not_ended: why, ..failure })
    }

    /// `logs` is where the instance's log is, unless another instance writes there as well.
    pub async fn remove_container(
        &self,
        pod: &Pod,
        id: &str,
        name: &str,
        logs: Option<std::path::PathBuf>,
    ) -> Result<(), Failure> {
        if let Some(path) = logs {
            // Before the container: it is by the container that they are found.
            match tokio::task::spawn_blocking(move || log::remove_instance_logs(&path)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(pod = %self.pod, container = name, %error, "cannot remove the container's logs");
                }
                Err(error) => {
                    tracing::error!(pod = %self.pod, %error, "removing the container's logs panicked");
                }
            }
        }
        let removed = self.rooms.runtime.remove_container(id).await;
        self.runtime_gone(removed, "remove the container")?;
        self.remove_leftover(pod, id).await?;
        if let Err(error) = log::remove_links(&self.rooms.log_links_dir, &self.pod, name, id) {
            tracing::warn!(pod = %self.pod, container = name, %error, "cannot remove the link to the container's log");
        }
        Ok(())
    }

    pub async fn remove_sandbox(&self, pod: &Pod, id: &str) -> Result<(), Failure> {
        self.runtime_gone(self.rooms.runtime.remove_pod_sandbox(id).await, "remove the sandbox")?;
        self.remove_leftover(pod, id).await
    }

    /// What the runtime has removed must not go on in the pod's cgroup.
    async fn remove_leftover(&self, pod: &Pod, id: &str) -> Result<(), Failure> {
        let qos = translate::qos_class(pod);
        let removed = self.rooms.cgroups.remove_leftover(qos, &self.pod.uid, id).await;
        self.cgroup_gone(removed, "remove what is left of the container's cgroup")
    }

    fn cgroup_gone(&self, removed: Result<(), crate::cgroup::Error>, what: &str) -> Result<(), Failure> {
        removed.map_err(|error| {
            tracing::warn!(pod = %self.pod, %error, "cannot {what}");
            Failure::default()
        })
    }

    /// What is not there any more is as wanted.
    fn runtime_gone(&self, result: Result<(), cri::Error>, what: &str) -> Result<(), Failure> {
        match result {
            Err(error) if error.kind != cri::Kind::NotFound => {
                tracing::warn!(pod = %self.pod, %error, "cannot {what}");
                Err(Failure::default())
            }
            _ => Ok(()),
        }
    }

    pub async fn release_cgroup(&mut self, pod: &Pod) -> Result<(), Failure> {
        let began = Instant::now();
        let removed = remove_cgroup(&self.rooms.cgroups, translate::qos_class(pod), &self.pod.uid).await;
        self.rooms.metrics.cgroup_manager_duration.with(["destroy"]).observe_duration(began.elapsed());
        self.cgroup_gone(removed, "remove the pod's cgroup")?;
        self.cgroup_made = false;
        self.limits = None;
        Ok(())
    }

    /// The volumes of a pod that has ended for good. Its directory stays, and with it what must outlive the agent.
    pub async fn release_volumes(&mut self) -> Result<(), Failure> {
        self.keeper = None;
        if let Err(error) = self.rooms.volumes.release(&self.pod.uid).await {
            self.event(Kind::Warning, None, "FailedUnmount", error.to_string());
            return Err(Failure::default());
        }
        self.mounted = None;
        Ok(())
    }

    /// Everything on the host that bears the pod's name. The pod's directory goes last: while it is there, an agent that
    /// remembers nothing finds the rest by it.
    pub async fn clean_up(&mut self) -> Result<(), Failure> {
        let (root, links) = (self.rooms.facts.pod_logs_dir.clone(), self.rooms.log_links_dir.clone());
        let uid = self.pod.uid.clone();
        match tokio::task::spawn_blocking(move || remove_logs(&root, &links, &uid)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(pod = %self.pod, %error, "cannot remove the pod's logs");
                return Err(Failure::default());
            }
            Err(error) => {
                tracing::error!(pod = %self.pod, %error, "removing the pod's logs panicked");
                return Err(Failure::default());
            }
        }
        self.keeper = None;
        if let Err(error) = self.rooms.volumes.teardown(&self.pod.uid).await {
            self.event(Kind::Warning, None, "FailedUnmount", error.to_string());
            return Err(Failure::default());
        }
        self.mounted = None;
        self.rooms.user_namespaces.release(&self.pod.uid);
        self.rooms.images.forget(&self.pod.uid);
        Ok(())
    }
}

/// An orphan's name is not always known: its logs are found by its UID, and the links to them by where they lead.
/// Links are there still when somebody else removed the container, or the agent ended after it had.
fn remove_logs(root: &Path, links: &Path, uid: &PodUid) -> Result<(), log::LogPathError> {
    log::find_pod_log_dirs(root)?.into_iter().filter(|found| found.uid == *uid).try_for_each(|found| {
        log::remove_links_into(links, &found.path)?;
        log::remove_pod_logs(&found.path)
    })
}

/// An orphan's QoS class is not known: its cgroup is looked for under each.
async fn remove_cgroup(
    cgroups: &crate::cgroup::Cgroups,
    qos: Qos,
    uid: &PodUid,
) -> Result<(), crate::cgroup::Error> {
    for class in [qos, Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
        cgroups.remove_pod(class, uid).await?;
    }
    Ok(())
}
