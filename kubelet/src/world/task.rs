//! The task that keeps the world: one loop, one writer.
//!
//! Every arm of the select is cancel-safe: four channels, a `JoinSet`, and a timer that is kept until it was heard.

use super::Directory;
use super::admit::{self, Node, Rejection};
use super::books::Promised;
use super::deadlines::{self, Deadlines, Over};
use super::orphans::{self, FullPicture};
use super::resize;
use super::resizes::Trigger;
use crate::allocation::Allocation;
use crate::api::{Origin, Pod, PodRef, PodUid};
use crate::event::{Event, Kind};
use crate::evict::{self, Order, Pressure};
use crate::pleg::observed::Picture;
use crate::pod::desired::{MINIMUM_GRACE, grace_of};
use crate::pod::{self, Desired, Resize, Rooms, Stop, StopReason};
use crate::source::{SourceEvent, SourcePod};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinSet};

type Name = (Arc<str>, Arc<str>);

/// How long a pod whose actor panicked rests: the next one may run into the same bug.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// What the task is given at the start.
#[derive(Debug)]
pub struct Config {
    /// What the node has to give.
    pub node: Node,
    /// The sources that will tell when they have told all.
    pub sources: HashSet<Origin>,
    /// Pods to evict.
    pub evictions: mpsc::Receiver<Order>,
    /// What the node is short of.
    pub pressure: watch::Receiver<Pressure>,
}

/// The task's state.
#[derive(Debug)]
pub struct World {
    pub(super) rooms: Arc<Rooms>,
    pub(super) node: Node,
    pub(super) unsynced: HashSet<Origin>,
    pub(super) directory: Directory,
    pub(super) promised: Promised,
    pub(super) pods: HashMap<PodUid, Entry>,
    deadlines: Deadlines,
    /// Pods, by their names, that wait until nothing is left of an older one of their name or UID. The newest wins.
    queued: HashMap<Name, SourcePod>,
    actors: JoinSet<PodRef>,
    ids: HashMap<Id, PodUid>,
    /// Actors tell of pods of which nothing runs any more: they hold nothing of the node.
    ended: (mpsc::UnboundedSender<PodUid>, mpsc::UnboundedReceiver<PodUid>),
    evictions: mpsc::Receiver<Order>,
    pressure: watch::Receiver<Pressure>,
    /// Who waits for evicted pods to end.
    awaited: HashMap<PodUid, Vec<oneshot::Sender<()>>>,
    pub(super) picture: Option<Picture>,
    swept: bool,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) pod: PodRef,
    /// The object as its source has it: what it asks for may not be what the pod has.
    pub(super) source: Arc<Pod>,
    pub(super) desired: watch::Sender<Desired>,
    /// When the pod began (nanoseconds since the epoch): its deadline counts from here.
    began: i64,
}

impl World {
    /// A world without pods.
    pub fn new(rooms: Arc<Rooms>, config: Config, directory: Directory) -> Self {
        Self {
            rooms,
            node: config.node,
            unsynced: config.sources,
            directory,
            promised: Promised::default(),
            pods: HashMap::new(),
            deadlines: Deadlines::default(),
            queued: HashMap::new(),
            actors: JoinSet::new(),
            ids: HashMap::new(),
            ended: mpsc::unbounded_channel(),
            evictions: config.evictions,
            pressure: config.pressure,
            awaited: HashMap::new(),
            picture: None,
            swept: false,
        }
    }

    /// Runs until the sources are gone (the agent is stopping). Pods go on running without it. Nothing is admitted
    /// before `picture`: what already runs must not be refused for want of what it holds.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<SourceEvent>,
        picture: oneshot::Receiver<Picture>,
        mut strays: mpsc::Receiver<PodRef>,
    ) {
        let Ok(picture) = picture.await else { return };
        self.picture = Some(picture);
        self.sweep().await;
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.event(event).await,
                    None => return,
                },
                Some(stray) = strays.recv() => self.stray(stray),
                Some(uid) = self.ended.1.recv() => self.release(&uid),
                over = self.deadlines.next() => self.time_is_over(over),
                Some(order) = self.evictions.recv() => self.evict(order),
                Some(ended) = self.actors.join_next_with_id() => match ended {
                    Ok((id, pod)) => { self.ids.remove(&id); self.gone(&pod) }
                    Err(error) => self.panicked(error.id(), &error),
                },
            }
        }
    }

    async fn event(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Put(pod) => self.put(pod),
            SourceEvent::Gone { origin, uid } => self.source_gone(origin, &uid),
            SourceEvent::Synced(origin) => {
                self.unsynced.remove(&origin);
                self.sweep().await;
                self.resize(None, Trigger::Added);
            }
        }
    }

    fn put(&mut self, new: SourcePod) {
        let pod = PodRef::of(&new.pod);
        if let Some(entry) = self.pods.get(&pod.uid) {
            let removed = entry.desired.borrow().stop.as_ref().is_some_and(|s| s.remove);
            if !removed {
                return self.update(&pod.uid, new);
            }
        }
        if self.must_wait(&pod) {
            tracing::info!(%pod, "waits for the older pod of that name to end");
            self.queued.insert((pod.namespace, pod.name), new);
            return;
        }
        self.take_on(pod, new);
    }

    /// There is still an older pod with the name of `new` or (a manifest that came back while its pod was being removed) its
    /// UID.
    fn must_wait(&self, new: &PodRef) -> bool {
        let same = |pod: &PodRef| pod.namespace == new.namespace && pod.name == new.name;
        if self.pods.contains_key(&new.uid) || self.pods.values().any(|e| same(&e.pod)) {
            return true;
        }
        // One that was replaced while no agent ran still runs: the sweep will end it.
        let mut found = self.picture.iter().flat_map(|p| p.pods.values());
        !self.swept && found.any(|(pod, seen)| same(pod) && pod.uid != new.uid && seen.is_live())
    }

    /// A known pod's object changed: its spec, or it is to be deleted.
    fn update(&mut self, uid: &PodUid, new: SourcePod) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        let asked = std::mem::replace(&mut entry.source, new.pod.clone());
        for operation in resize::operations(&asked, &new.pod) {
            let [resource, requirement, operation] = operation;
            self.rooms.metrics.requested_resizes.with([operation, requirement, resource]).inc();
        }
        let Some(entry) = self.pods.get(uid) else { return };
        let with = self.with_allocated(uid, &entry.desired.borrow(), &new.pod);
        self.directory.put(uid.clone(), new.pod.clone(), with.clone());
        entry.desired.send_modify(|d| {
            if let Some(stop) = deletion(&new.pod) {
                merge_stop(&mut d.stop, stop);
            }
            d.pod = with.clone();
        });
        if entry.desired.borrow().stop.is_none() && self.promised.holds(uid) {
            let at = deadlines::of(&new.pod, entry.began);
            self.deadlines.set(uid, at, self.rooms.clock.nanos());
        }
        if self.promised.holds(uid) {
            self.promised.promise(uid.clone(), &with);
            self.rooms.allocated.put(uid, Allocation::of(&with));
            self.update_qos();
            self.resize(Some(uid), Trigger::Updated);
        }
    }

    fn take_on(&mut self, pod: PodRef, new: SourcePod) {
        let found = self.picture.as_ref().and_then(|p| p.pods.get(&pod.uid)).map(|(_, seen)| seen.clone());
        let runs = found.as_ref().is_some_and(|seen| !seen.is_empty());
        let evicted = evict::record::read(&self.rooms.volumes.pod_dir(&pod.uid), &pod.uid);
        let has = self.had(&new.pod, &pod.uid, new.origin, found.as_deref());
        let with = has.applied(&new.pod);
        let verdict = if runs || evicted.is_some() { Ok(()) } else { self.admit(&with) };
        let stop = deletion(&new.pod);
        let mut desired = Desired { stop, pod: with, origin: new.origin, resize: Resize::default() };
        let now = self.rooms.clock.nanos();
        let began = found.as_ref().and_then(|seen| seen.began()).unwrap_or(now);
        let deadline = deadlines::of(&desired.pod, began);
        // An eviction that was ordered is carried out, whoever ordered it, and one that was carried out stays.
        if let Some(record) = evicted
            && desired.stop.is_none()
        {
            let grace = Duration::from_secs(record.grace_seconds);
            desired.stop = Some(Stop { why: StopReason::Evicted(record.why), grace, remove: false });
        }
        // One whose time was over before this agent began was ended for that, or must be now.
        if let Some(at) = deadline.filter(|at| *at <= now && desired.stop.is_none()) {
            let live = found.as_ref().is_some_and(|seen| seen.is_live());
            desired.stop = Some(self.overdue(&pod, &desired.pod, at, live));
        }
        match verdict {
            // What ended before this agent began holds nothing, as what ends while it runs.
            Ok(()) if found.is_some_and(|seen| pod::plan::has_ended(&desired, &seen)) => {}
            Ok(()) if !runs && desired.stop.as_ref().is_some_and(|s| s.why.evicted().is_some()) => {}
            Ok(()) => {
                self.promised.promise(pod.uid.clone(), &desired.pod);
                self.rooms.allocated.put(&pod.uid, Allocation::of(&desired.pod));
                self.deadlines.set(&pod.uid, deadline.filter(|_| desired.stop.is_none()), now);
            }
            Err(rejection) => desired.stop = Some(self.reject(&pod, rejection)),
        }
        self.directory.put(pod.uid.clone(), new.pod.clone(), desired.pod.clone());
        let uid = pod.uid.clone();
        self.spawn(pod, new.pod, desired, began, new.arrived, Duration::ZERO);
        self.update_qos();
        self.resize(Some(&uid), Trigger::Added);
    }

    fn admit(&self, pod: &Pod) -> Result<(), Rejection> {
        admit::pressure(pod, &self.pressure.borrow())?;
        admit::admit(pod, &self.promised, &self.node)
    }

    /// A pod must go so that the others can stay. One that is going already has no longer for it than an evicted one.
    /// One that has ended by itself is not evicted any more.
    fn evict(&mut self, Order { uid, why, grace, accepted, ended }: Order) {
        while let Ok(uid) = self.ended.1.try_recv() {
            self.release(&uid);
        }
        let Some(entry) = self.pods.get(&uid).filter(|_| self.promised.holds(&uid)) else { return };
        let stop = Stop { why: StopReason::Evicted(why), grace, remove: false };
        entry.desired.send_modify(|d| merge_stop(&mut d.stop, stop));
        // Whoever asked may have gone.
        let _ = accepted.send(());
        self.awaited.entry(uid.clone()).or_default().push(ended);
        self.deadlines.set(&uid, None, 0);
        self.count();
    }

    /// A pod has run for as long as it may.
    fn time_is_over(&mut self, Over { uid, at }: Over) {
        let Some(entry) = self.pods.get(&uid) else { return };
        let (pod, spec) = (entry.pod.clone(), entry.desired.borrow().pod.clone());
        if entry.desired.borrow().stop.is_some() {
            return;
        }
        let stop = self.overdue(&pod, &spec, at, true);
        entry.desired.send_modify(|d| merge_stop(&mut d.stop, stop));
        self.count();
    }

    /// The order for a pod whose time is over, which is told unless that was done long ago.
    fn overdue(&self, pod: &PodRef, spec: &Pod, at: i64, tell: bool) -> Stop {
        let why = StopReason::DeadlineExceeded { at };
        if let Some((reason, message)) = why.verdict().filter(|_| tell) {
            self.rooms.recorder.record(Event {
                pod: Some(pod.clone()),
                field_path: None,
                kind: Kind::Normal,
                reason: reason.into(),
                message: message.to_owned(),
                annotations: Default::default(),
            });
        }
        Stop { why, grace: grace_of(spec), remove: false }
    }

    fn reject(&self, pod: &PodRef, Rejection { reason, message }: Rejection) -> Stop {
        self.rooms.metrics.admission_rejections.with([&reason]).inc();
        self.rooms.recorder.record(Event {
            pod: Some(pod.clone()),
            field_path: None,
            kind: Kind::Warning,
            reason: reason.clone().into(),
            message: message.clone(),
            annotations: Default::default(),
        });
        Stop { why: StopReason::Rejected { reason, message }, grace: MINIMUM_GRACE, remove: false }
    }

    fn spawn(
        &mut self,
        pod: PodRef,
        source: Arc<Pod>,
        desired: Desired,
        began: i64,
        arrived: Instant,
        pause: Duration,
    ) {
        let (tx, rx) = watch::channel(desired);
        let (rooms, ended) = (self.rooms.clone(), self.ended.0.clone());
        let task = self.actors.spawn(async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            pod::spawn(rooms, rx, arrived, ended).await
        });
        self.ids.insert(task.id(), pod.uid.clone());
        self.pods.insert(pod.uid.clone(), Entry { pod, source, desired: tx, began });
    }

    fn source_gone(&mut self, origin: Origin, uid: &PodUid) {
        self.queued.retain(|_, waiting| PodRef::of(&waiting.pod).uid != *uid);
        let Some(entry) = self.pods.get(uid) else { return };
        entry.desired.send_modify(|d| {
            if d.origin != origin {
                return;
            }
            let grace = d.stop.as_ref().map_or_else(|| grace_of(&d.pod), |s| s.grace);
            merge_stop(&mut d.stop, Stop { why: StopReason::Deleted, grace, remove: true });
        });
        self.count();
    }

    /// Nothing of `pod` is left: give back what it held, and let those begin that waited for it. What was left of a pod by an
    /// earlier incarnation may have no name: they wait for its UID.
    fn gone(&mut self, pod: &PodRef) {
        // What it told last must not be taken for something that a successor with its UID told.
        while let Ok(uid) = self.ended.1.try_recv() {
            self.release(&uid);
        }
        self.pods.remove(&pod.uid);
        self.directory.remove(&pod.uid);
        if let Some(picture) = &mut self.picture {
            picture.pods.remove(&pod.uid);
        }
        self.release(&pod.uid);
        self.rooms.allocated.remove(&pod.uid);
        self.rooms.actuated.remove(&pod.uid);
        let waited =
            |next: &PodRef| next.uid == pod.uid || (next.namespace == pod.namespace && next.name == pod.name);
        let next: Vec<SourcePod> =
            self.queued.extract_if(|_, next| waited(&PodRef::of(&next.pod))).map(|(_, next)| next).collect();
        next.into_iter().for_each(|next| self.put(next));
    }

    fn release(&mut self, uid: &PodUid) {
        self.promised.release(uid);
        // Dropping it tells those who wait.
        self.awaited.remove(uid);
        self.deadlines.set(uid, None, 0);
        self.update_qos();
        self.resize(None, Trigger::Removed);
    }

    /// A bug in one actor must not cost its pod: it begins anew from what is.
    fn panicked(&mut self, id: Id, error: &tokio::task::JoinError) {
        let Some(uid) = self.ids.remove(&id) else { return };
        tracing::error!(%uid, %error, "a pod's actor panicked; starting it again");
        if let Some(Entry { pod, source, desired, began }) = self.pods.remove(&uid) {
            let last = desired.borrow().clone();
            self.spawn(pod, source, last, began, Instant::now(), AFTER_PANIC);
        }
    }

    /// Once, when all sources have told all: end and remove what nobody wants.
    async fn sweep(&mut self) {
        if self.swept || !self.unsynced.is_empty() || self.picture.is_none() {
            return;
        }
        self.swept = true;
        self.update_qos();
        let token = FullPicture::new();
        let queued = self.queued.values().map(|p| PodRef::of(&p.pod).uid);
        let wanted: HashSet<PodUid> = self.pods.keys().cloned().chain(queued).collect();
        let mut orders = match &self.picture {
            Some(picture) => orphans::in_runtime(&token, picture, &wanted),
            None => Vec::new(),
        };
        let known: HashSet<PodUid> =
            wanted.into_iter().chain(orders.iter().map(|(p, _)| p.uid.clone())).collect();
        for kept in [&self.rooms.allocated, &self.rooms.actuated] {
            kept.retain(|uid| known.contains(&PodUid::new(uid)));
        }
        let rooms = self.rooms.clone();
        match tokio::task::spawn_blocking(move || orphans::on_disk(&token, &rooms, &known)).await {
            Ok(more) => orders.extend(more),
            Err(error) => tracing::error!(%error, "looking for leftovers panicked"),
        }
        for (pod, desired) in orders {
            tracing::info!(%pod, "no source has this pod: removing it");
            self.spawn(pod, desired.pod.clone(), desired, 0, Instant::now(), Duration::ZERO);
        }
        self.count();
    }

    /// A pod appeared in the runtime that no actor made: what a killed incarnation had asked for came late.
    fn stray(&mut self, pod: PodRef) {
        let known = self.pods.contains_key(&pod.uid)
            || self.queued.values().any(|waiting| PodRef::of(&waiting.pod).uid == pod.uid);
        if known {
            return;
        }
        if self.swept {
            tracing::info!(%pod, "no source has this pod: removing it");
            let desired = orphans::order(&pod, MINIMUM_GRACE);
            self.spawn(pod, desired.pod.clone(), desired, 0, Instant::now(), Duration::ZERO);
            self.count();
        } else if let Some(picture) = &mut self.picture {
            // A source may still tell of it; if none does, it is swept with the rest.
            picture.pods.entry(pod.uid.clone()).or_insert_with(|| (pod, Arc::default()));
        }
    }

    /// Static pods and others, as upstream tells them apart.
    pub(super) fn count(&self) {
        self.count_pending();
        let (mut desired_pods, mut active) = ([0_u32; 2], [0_u32; 2]);
        let mut working = [[[0_u32; 2]; 3]; 2];
        for (uid, entry) in &self.pods {
            let desired = entry.desired.borrow();
            let fixed = usize::from(desired.origin != Origin::Api);
            let orphan = desired.stop.as_ref().is_some_and(|s| s.remove || s.why == StopReason::Orphaned);
            desired_pods[fixed] += u32::from(!orphan);
            let holds = self.promised.holds(uid);
            active[fixed] += u32::from(holds);
            let lifecycle = match desired.stop {
                None if holds => 0,
                Some(_) if holds || orphan => 1,
                _ => 2,
            };
            working[usize::from(orphan)][lifecycle][fixed] += 1;
        }
        let metrics = &self.rooms.metrics;
        for (fixed, label) in ["", "true"].into_iter().enumerate() {
            metrics.desired_pods.with([label]).set(f64::from(desired_pods[fixed]));
            metrics.active_pods.with([label]).set(f64::from(active[fixed]));
            for (orphan, config) in ["desired", "orphan"].into_iter().enumerate() {
                for (at, lifecycle) in ["sync", "terminating", "terminated"].into_iter().enumerate() {
                    let count = f64::from(working[orphan][at][fixed]);
                    metrics.working_pods.with([config, lifecycle, label]).set(count);
                }
            }
        }
    }

    /// The QoS classes as wholes have what their pods request.
    pub(super) fn update_qos(&self) {
        self.count();
        let (cgroups, sums) = (&self.rooms.cgroups, self.promised.by_class());
        // Until all sources have told all, what others run is not in the sums.
        if self.swept { cgroups.update_qos(sums) } else { cgroups.raise_qos(sums) }
    }
}

/// The order in a pod object that is being deleted.
fn deletion(pod: &Pod) -> Option<Stop> {
    pod.metadata.deletion_timestamp.as_ref()?;
    Some(Stop { why: StopReason::Deleted, grace: grace_of(pod), remove: false })
}

/// Orders only get stronger: a shorter grace, a removal.
fn merge_stop(into: &mut Option<Stop>, new: Stop) {
    match into {
        Some(old) => {
            old.grace = old.grace.min(new.grace);
            old.remove |= new.remove;
        }
        None => *into = Some(new),
    }
}
