//! One case through the real agent on the fake runtime, in paused time: the director plays what is not the agent's.
//!
//! It is the API server (creates, deletes and forgets the pods at the recorded moments), the containers (which end when
//! and as they did) and the audience (which takes down calls, statuses, events and cgroup values). It judges nothing.
//!
//! Time is tokio's, paused: it moves only when every task waits, so back-offs of minutes take no time, and the order of
//! what happens is the same in every run.

use crate::case::{Case, PodRecord};
use crate::deeds;
use crate::disks::Disks;
use crate::ephemeral;
use crate::node::{CgroupValues, Node};
use crate::probes::Recorded;
use crate::resizes;
use crate::script::{Exec, Instance, Script};
use anyhow::{Context as _, Result, bail};
use cri::fake::{Call, FakeImage, FakeRuntime, Fault, Pull};
use cri::v1;
use jiff::Timestamp;
use kubelet::api::{Origin, Pod, PodStatus};
use kubelet::assemble::Agent;
use kubelet::clock::Clock;
use kubelet::event::Event;
use kubelet::metrics::Metrics;
use kubelet::source::{SourceEvent, SourcePod, decode_pod};
use kubelet::status::Change;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::time::Instant;

/// How long runtime calls take here, about as long as on the recorded node: what containers do meanwhile shows.
const CALLS_TAKE: [(&str, u64); 3] =
    [("RunPodSandbox", 100), ("CreateContainer", 30), ("StartContainer", 80)];
/// The seconds by which an end precedes the moment it was first seen.
const BEFORE_SEEN: f64 = 0.1;
/// Seconds past the recording's end after which a pod that is still there is given up.
const PATIENCE: f64 = 600.0;
/// When the cases begin: any moment does, a whole second makes times readable.
const EPOCH: i64 = 1_790_000_000;

/// What the agent did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The calls that change something.
    pub calls: Vec<Call>,
    /// Ids of sandboxes and containers and what the recordings call them.
    pub ids: Vec<(String, String)>,
    /// By pod name.
    pub pods: BTreeMap<String, PodOutcome>,
}

/// What the agent did about one pod.
#[derive(Debug, Default)]
pub struct PodOutcome {
    /// Statuses in order.
    pub statuses: Vec<Arc<PodStatus>>,
    /// Events in order.
    pub events: Vec<Event>,
    /// Cgroup values when its sandbox was made.
    pub cgroup: Option<CgroupValues>,
    /// Those after each resize.
    pub resized: Vec<CgroupValues>,
    /// Nothing of it was left at the end.
    pub gone: bool,
}

/// Replays `case` on `node`. Must run on a runtime of one thread with paused time.
pub async fn replay(case: &Case, node: &Node) -> Result<Outcome> {
    let script = Script::of(case);
    let epoch = Timestamp::from_second(EPOCH)?;
    let since_1970 = Duration::from_secs(EPOCH.unsigned_abs());
    let fake = FakeRuntime::builder().epoch(since_1970).write_logs().build();
    prepare(&fake, &script, &case.name);
    put_objects(case, node)?;
    let client = fake.client();
    let capabilities = client.connected().await;
    let mut settings = node.settings(Clock::steady(epoch))?;
    settings.prober = Some(Arc::new(Recorded::new(case, &fake)));
    settings.measure = Some(Arc::new(Disks::new(case, &fake)));
    let agent = Agent::start(settings, client, &capabilities, Metrics::default()).await?;
    let (statuses, events) = (agent.statuses.subscribe(), agent.recorder.subscribe());
    agent.sources.send(SourceEvent::Synced(Origin::Api)).await.context("the agent has ended")?;
    let mut director = Director {
        node,
        script,
        fake,
        agent,
        statuses,
        events,
        began: Instant::now(),
        acts: acts(case),
        endings: Vec::new(),
        pods: case.pods.iter().map(|p| (p.uid.clone(), Live::new(p))).collect(),
        seen: Vec::new(),
        noticed_calls: 0,
        ids: BTreeMap::new(),
        case,
    };
    director.run().await
}

/// Images, failing calls, the time calls take, and what instances do when they are made and stopped.
fn prepare(fake: &FakeRuntime, script: &Script, case: &str) {
    for image in &script.images {
        let mut names = image.names.iter();
        let Some(first) = names.next() else { continue };
        let mut on_disk = FakeImage::new(first).id(&image.id).imported();
        for name in names {
            on_disk = on_disk.tag(name);
        }
        if image.id.starts_with(NONROOT_IMAGE) {
            on_disk = on_disk.uid(1234);
        }
        fake.add_image(on_disk);
    }
    for (reference, message) in &script.failing_pulls {
        fake.on_pull(reference, Pull::fails(message).takes(Duration::from_millis(50)));
    }
    for (call, takes) in CALLS_TAKE {
        fake.fault(Fault::delay(call, Duration::from_millis(takes)));
    }
    if let Some(message) = &script.sandbox_error {
        fake.fault(Fault::fail("RunPodSandbox", tonic::Code::Unknown, message));
    }
    for (name, execs) in &script.execs {
        let execs = execs.clone();
        // Those of one command differ in nothing that matters here.
        fake.exec(name, move |command| exec_answer(execs.iter().find(|e| e.command == command)));
    }
    let mut by_name: BTreeMap<&str, Vec<&Instance>> = BTreeMap::new();
    for ((name, _), instance) in &script.instances {
        by_name.entry(name).or_default().push(instance);
    }
    for (name, instances) in by_name {
        let printed = deeds::printed(case, name);
        let scripts = instances.into_iter().map(fake_script);
        fake.scripts(name, scripts.map(|s| printed.iter().fold(s, |s, line| s.prints(line))));
    }
}

/// The ConfigMaps and Secrets of the case, in the namespace of its pods, as the API server would hold them.
fn put_objects(case: &Case, node: &Node) -> Result<()> {
    let namespace = case.pods.first().map_or("demo", |p| p.namespace.as_str());
    let kinds = ["ConfigMap", "Secret"];
    let objects = case.documents.iter().filter(|d| kinds.iter().any(|k| d["kind"] == *k));
    for (i, document) in objects.enumerate() {
        let mut object = document.clone();
        object["metadata"]["namespace"] = namespace.into();
        node.put_object(&i.to_string(), &object)?;
    }
    Ok(())
}

fn exec_answer(recorded: Option<&Exec>) -> cri::fake::ExecAnswer {
    use cri::fake::ExecAnswer as A;
    match recorded {
        Some(e) => A::exits(e.code).stdout(e.stdout.clone()).stderr(e.stderr.clone()).takes(seconds(e.took)),
        None => A::exits(0),
    }
}

/// The only image of the recordings whose configuration names a user.
const NONROOT_IMAGE: &str = "sha256:b9721aa8";

fn fake_script(instance: &Instance) -> cri::fake::Script {
    use cri::fake::Script as S;
    let mut s = match (&instance.create_error, &instance.start_error, instance.on_term) {
        (Some(message), _, _) => S::create_error(message),
        (_, Some(message), _) => S::start_error(message),
        (_, _, Some((code, after))) => S::forever().on_term(code, seconds(after)),
        _ => S::forever().ignores_term(),
    };
    if instance.end.is_some_and(|e| e.out_of_memory) {
        s = s.out_of_memory();
    }
    match &instance.user {
        Some((uid, gid, groups)) => s.user(*uid, *gid, groups.clone()),
        None => s,
    }
}

fn seconds(s: f64) -> Duration {
    Duration::from_secs_f64(s.max(0.0))
}

/// Something the API server did by itself or at a user's wish.
#[derive(Debug)]
struct Act {
    at: f64,
    uid: String,
    what: What,
}

#[derive(Debug)]
enum What {
    Create,
    /// The object gained ephemeral containers.
    AddEphemeral,
    /// Its resources changed: the manifest is now that.
    Resize(Box<serde_json::Value>),
    /// Nothing: a resize has had its time.
    Resized,
    Delete {
        grace: i64,
    },
    /// The object is gone without the agent's doing: it had ended, or was deleted by force.
    Remove,
}

/// The acts of all pods in order.
fn acts(case: &Case) -> Vec<Act> {
    let mut acts: Vec<Act> = case.pods.iter().flat_map(|p| acts_of(case, p)).collect();
    acts.sort_by(|a, b| a.at.total_cmp(&b.at));
    acts
}

fn acts_of(case: &Case, pod: &PodRecord) -> Vec<Act> {
    let act = |at, what| Act { at, uid: pod.uid.clone(), what };
    let mut acts = vec![act(pod.rows.first().map_or(0.0, |r| r.at), What::Create)];
    let resizes = resizes::taken(case, pod);
    if resizes.is_empty() {
        acts.extend(ephemeral::added_at(pod).map(|at| act(at, What::AddEphemeral)));
    }
    for (at, manifest) in resizes {
        acts.extend([act(at, What::Resize(Box::new(manifest))), act(at + 3.0, What::Resized)]);
    }
    let mut last = None;
    for row in pod.rows.iter().filter(|r| r.deletion_grace.is_some()) {
        if row.deletion_grace == last {
            continue;
        }
        match (last, row.deletion_grace) {
            (None, Some(0)) => acts.push(act(row.at, What::Remove)),
            // The agent removed the object because the pod had ended.
            (Some(_), Some(0)) | (_, None) => {}
            (_, Some(grace)) => acts.push(act(row.at, What::Delete { grace })),
        }
        last = row.deletion_grace;
    }
    if last.is_none() {
        acts.push(act(pod.rows.last().map_or(1.0, |r| r.at + 1.0), What::Remove));
    }
    acts
}

/// A pod's object on the API server, and what the agent did about it.
#[derive(Debug)]
struct Live {
    name: String,
    object: Option<Pod>,
    deleting: bool,
    removed: bool,
    cgroup_parent: String,
    outcome: PodOutcome,
}

impl Live {
    fn new(record: &PodRecord) -> Self {
        let (name, outcome) = (record.name.clone(), PodOutcome::default());
        Self { name, object: None, deleting: false, removed: false, cgroup_parent: String::new(), outcome }
    }

    fn has_ended(&self) -> bool {
        let phase = self.outcome.statuses.last().and_then(|s| s.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }
}

struct Director<'a> {
    case: &'a Case,
    node: &'a Node,
    script: Script,
    fake: FakeRuntime,
    agent: Agent,
    statuses: broadcast::Receiver<Change>,
    events: broadcast::Receiver<Event>,
    began: Instant,
    acts: Vec<Act>,
    /// Ends that are due: when, which container, exit code.
    endings: Vec<(f64, String, i32)>,
    /// By UID.
    pods: BTreeMap<String, Live>,
    /// Ids and states of all containers when they were last looked at.
    seen: Vec<(String, i32)>,
    noticed_calls: usize,
    ids: BTreeMap<String, String>,
}

impl Director<'_> {
    async fn run(&mut self) -> Result<Outcome> {
        let last = self.acts.iter().map(|a| a.at).fold(0.0, f64::max);
        loop {
            self.notice_runtime();
            self.listen()?;
            self.end_containers();
            self.act().await?;
            self.forget_ended().await?;
            let all_gone = self.pods.values().all(|p| p.removed && p.outcome.gone);
            if all_gone || self.now() > last + PATIENCE {
                break;
            }
            let next = self.next_moment().unwrap_or(last + PATIENCE + 1.0);
            let (fake, seen, calls) = (self.fake.clone(), self.seen.clone(), self.noticed_calls);
            tokio::select! {
                () = fake.until(|f| f.calls().len() != calls || states(f) != seen) => {}
                change = self.statuses.recv() => self.take_status(change?),
                event = self.events.recv() => self.take_event(event?),
                () = tokio::time::sleep_until(self.began + seconds(next)) => {}
            }
        }
        self.notice_runtime();
        let pods = std::mem::take(&mut self.pods).into_values().map(|p| (p.name, p.outcome)).collect();
        Ok(Outcome {
            calls: self.fake.changes(),
            ids: std::mem::take(&mut self.ids).into_iter().collect(),
            pods,
        })
    }

    fn now(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    fn next_moment(&self) -> Option<f64> {
        let acts = self.acts.first().map(|a| a.at);
        let endings = self.endings.iter().map(|e| e.0);
        acts.into_iter().chain(endings).min_by(f64::total_cmp)
    }

    /// Takes everything that has been told by now.
    fn listen(&mut self) -> Result<()> {
        loop {
            match self.statuses.try_recv() {
                Ok(change) => self.take_status(change),
                Err(TryRecvError::Empty) => break,
                Err(e) => bail!("statuses: {e}"),
            }
        }
        loop {
            match self.events.try_recv() {
                Ok(event) => self.take_event(event),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(e) => bail!("events: {e}"),
            }
        }
    }

    fn take_status(&mut self, change: Change) {
        let Some(live) = self.pods.get_mut(change.pod.uid.as_str()) else { return };
        match change.status {
            // The object is gone: there is nothing to write a status to.
            Some(_) if live.removed => {}
            Some(status) => live.outcome.statuses.push(status),
            None => live.outcome.gone = true,
        }
    }

    fn take_event(&mut self, event: Event) {
        let uid = event.pod.as_ref().map(|p| p.uid.clone());
        if let Some(live) = uid.and_then(|uid| self.pods.get_mut(uid.as_str())) {
            live.outcome.events.push(event);
        }
    }

    /// Learns of new sandboxes and containers, and lets containers do what they did.
    fn notice_runtime(&mut self) {
        let calls = self.fake.calls();
        for call in &calls[self.noticed_calls.min(calls.len())..] {
            let Some(request) = call.request::<v1::RunPodSandboxRequest>() else { continue };
            let config = request.config.as_ref();
            let uid = config.and_then(|c| c.metadata.as_ref()).map(|m| m.uid.clone()).unwrap_or_default();
            let parent =
                config.and_then(|c| c.linux.as_ref()).map(|l| l.cgroup_parent.clone()).unwrap_or_default();
            if let Some(live) = self.pods.get_mut(&uid) {
                live.outcome.cgroup = self.node.cgroup_values(&parent);
                live.cgroup_parent = parent;
            }
        }
        self.noticed_calls = calls.len();
        for sandbox in self.fake.sandboxes() {
            let attempt = sandbox.metadata.map(|m| m.attempt).unwrap_or_default();
            // Recordings of several pods name them.
            let pod = sandbox.labels.get("io.kubernetes.pod.name").filter(|_| self.pods.len() > 1);
            let suffix = pod.map(|name| format!("-{name}")).unwrap_or_default();
            self.ids.insert(sandbox.id, format!("sandbox-{attempt}{suffix}"));
            let ip = sandbox.network.map(|n| n.ip).unwrap_or_default();
            if !ip.is_empty() {
                self.ids.insert(ip, "POD_IP".to_owned());
            }
        }
        for container in self.fake.containers() {
            let known = self.seen.iter().any(|(id, state)| (id, *state) == (&container.id, container.state));
            if !known {
                self.notice_container(&container);
            }
        }
        self.seen = states(&self.fake);
    }

    fn notice_container(&mut self, c: &v1::ContainerStatus) {
        let Some(meta) = &c.metadata else { return };
        self.ids.insert(c.id.clone(), format!("ctr-{}-{}", meta.name, meta.attempt));
        let Some(instance) = self.script.instances.get(&(meta.name.clone(), meta.attempt)) else { return };
        if c.state() == v1::ContainerState::ContainerRunning {
            let message = deeds::message(&self.case.name, &meta.name);
            write_message(c, message.as_deref().unwrap_or(&instance.message));
            deeds::perform(&self.case.name, &meta.name, c);
            if let Some(end) = &instance.end {
                let at = end.at.map_or(0.0, |at| at - BEFORE_SEEN);
                self.endings.push((at, c.id.clone(), end.code));
            }
        }
    }

    /// Ends the containers whose moment has come, all of a moment at once.
    fn end_containers(&mut self) {
        let now = self.now() + 1e-6;
        let (due, later) = std::mem::take(&mut self.endings).into_iter().partition(|e| e.0 <= now);
        self.endings = later;
        let due: Vec<(f64, String, i32)> = due;
        for (_, id, code) in due {
            self.fake.exit(&id, code);
        }
        self.seen = states(&self.fake);
    }

    /// Does what the API server did by now.
    async fn act(&mut self) -> Result<()> {
        let now = self.now() + 1e-6;
        while self.acts.first().is_some_and(|a| a.at <= now) {
            let act = self.acts.remove(0);
            match act.what {
                What::Create => self.create(&act.uid).await?,
                What::AddEphemeral => self.add_ephemeral(&act.uid).await?,
                What::Resize(manifest) => self.resize(&act.uid, &manifest).await?,
                What::Resized => self.take_resized(&act.uid),
                What::Delete { grace } => self.delete(&act.uid, grace).await?,
                What::Remove => {
                    // The watch's last event has the object as it was removed.
                    self.delete(&act.uid, 0).await?;
                    self.remove(&act.uid).await?;
                }
            }
        }
        Ok(())
    }

    async fn create(&mut self, uid: &str) -> Result<()> {
        let record =
            self.case.pods.iter().find(|p| p.uid == uid).context("an act of a pod that is not there")?;
        let manifest = self.node.here(&record.manifest.to_string());
        let mut pod = decode_pod(manifest.as_bytes())?;
        let now = Timestamp::from_second(EPOCH)?;
        admitted(&mut pod, record, now);
        self.put(uid, pod).await
    }

    async fn add_ephemeral(&mut self, uid: &str) -> Result<()> {
        let record =
            self.case.pods.iter().find(|p| p.uid == uid).context("an act of a pod that is not there")?;
        // Through the decoder again, for its defaults.
        let mut manifest = record.manifest.clone();
        manifest["spec"]["ephemeralContainers"] = ephemeral::containers(self.case, record).into();
        let mut pod = decode_pod(self.node.here(&manifest.to_string()).as_bytes())?;
        admitted(&mut pod, record, Timestamp::from_second(EPOCH)?);
        pod.metadata.generation = self.next_generation(uid);
        self.put(uid, pod).await
    }

    async fn resize(&mut self, uid: &str, manifest: &serde_json::Value) -> Result<()> {
        let record =
            self.case.pods.iter().find(|p| p.uid == uid).context("an act of a pod that is not there")?;
        let mut pod = decode_pod(self.node.here(&manifest.to_string()).as_bytes())?;
        admitted(&mut pod, record, Timestamp::from_second(EPOCH)?);
        pod.metadata.generation = self.next_generation(uid);
        self.put(uid, pod).await
    }

    fn take_resized(&mut self, uid: &str) {
        let Some(live) = self.pods.get_mut(uid) else { return };
        live.outcome.resized.extend(self.node.cgroup_values(&live.cgroup_parent));
    }

    fn next_generation(&self, uid: &str) -> Option<i64> {
        let before = self.pods.get(uid)?.object.as_ref()?.metadata.generation;
        before.map(|g| g + 1)
    }

    async fn delete(&mut self, uid: &str, grace: i64) -> Result<()> {
        let Some(mut pod) = self.pods.get(uid).and_then(|l| l.object.clone()) else { return Ok(()) };
        let at = Timestamp::from_second(EPOCH + grace)?;
        if pod.metadata.deletion_timestamp.is_none() {
            pod.metadata.generation = self.next_generation(uid);
        }
        pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at));
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        if let Some(live) = self.pods.get_mut(uid) {
            live.deleting = true;
        }
        self.put(uid, pod).await
    }

    async fn put(&mut self, uid: &str, pod: Pod) -> Result<()> {
        if let Some(live) = self.pods.get_mut(uid) {
            live.object = Some(pod.clone());
        }
        let put = SourceEvent::Put(SourcePod {
            origin: Origin::Api,
            pod: Arc::new(pod),
            seen: Timestamp::from_second(EPOCH)?,
            arrived: std::time::Instant::now(),
        });
        self.agent.sources.send(put).await.context("the agent has ended")
    }

    async fn remove(&mut self, uid: &str) -> Result<()> {
        let Some(live) = self.pods.get_mut(uid).filter(|l| !l.removed) else { return Ok(()) };
        live.removed = true;
        let gone = SourceEvent::Gone { origin: Origin::Api, uid: kubelet::api::PodUid::new(uid) };
        self.agent.sources.send(gone).await.context("the agent has ended")
    }

    /// A pod that is being deleted and has ended goes from the API server, as the stock agent would see to.
    async fn forget_ended(&mut self) -> Result<()> {
        let ended: Vec<_> = self
            .pods
            .iter()
            .filter(|(_, l)| l.deleting && !l.removed && l.has_ended())
            .map(|(u, _)| u.clone())
            .collect();
        for uid in ended {
            self.remove(&uid).await?;
        }
        Ok(())
    }
}

/// Ids and states of all containers.
fn states(fake: &FakeRuntime) -> Vec<(String, i32)> {
    fake.containers().into_iter().map(|c| (c.id, c.state)).collect()
}

/// What the API server gives to a pod that is created: identity, and what admission fills in.
fn admitted(pod: &mut Pod, record: &PodRecord, now: Timestamp) {
    let meta = &mut pod.metadata;
    meta.uid = Some(record.uid.clone());
    meta.namespace = Some(record.namespace.clone());
    meta.generation = Some(1);
    meta.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert("kubernetes.io/config.source".to_owned(), "api".to_owned());
    annotations.insert("kubernetes.io/config.seen".to_owned(), now.to_string());
    let Some(spec) = pod.spec.as_mut() else { return };
    spec.service_account_name.get_or_insert_with(|| "default".to_owned());
    spec.priority = match spec.priority_class_name.as_deref() {
        Some("system-node-critical") => Some(2_000_001_000),
        Some("system-cluster-critical") => Some(2_000_000_000),
        _ => Some(0),
    };
}

/// Writes a termination message where the container's process would. One that was taken from the log is not written.
fn write_message(c: &v1::ContainerStatus, message: &str) {
    let policy = c.annotations.get("io.kubernetes.container.terminationMessagePolicy");
    if policy.is_some_and(|p| p == "FallbackToLogsOnError") {
        return;
    }
    let path = c.annotations.get("io.kubernetes.container.terminationMessagePath");
    let mount = c.mounts.iter().find(|m| Some(&m.container_path) == path);
    if let Some(mount) = mount.filter(|_| !message.is_empty())
        && let Err(e) = std::fs::write(&mount.host_path, message)
    {
        eprintln!("cannot write {}: {e}", mount.host_path);
    }
}
