//! Keeps the files of a pod's `configMap`, `secret`, `downwardAPI` and `projected` volumes what their sources are.
//!
//! One task per pod that has such volumes, started by [`Volumes::keep`] and ended with its handle. It sleeps until one of
//! the objects its volumes show changes, or the pod does; only what is made from that is made again, and only what differs
//! on disk is written. It sets nothing up: a volume that is not (a reboot took its mount) is left to `setup`. An object
//! that is gone takes nothing away: what the volume showed stays, and an event tells.

use super::payload::{self, Inputs, Plugin};
use super::{VolumeError, Volumes, files};
use crate::api::{Pod, PodRef, Volume, spec};
use crate::event::{Event, Kind, Recorder};
use crate::objects::{self, Found, Key, Known};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Waits after a write that failed: first and longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));

/// The task's handle: it ends when this is dropped, but for a write under way.
#[derive(Debug)]
pub struct Keeper {
    pod: watch::Sender<Arc<Pod>>,
    task: JoinHandle<()>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Keeper {
    /// Begins to keep the volumes of `pod`; `None` when it has none of the kinds.
    pub fn start(volumes: &Volumes, pod: &Pod, recorder: &Recorder) -> Option<Self> {
        spec(pod).volumes.iter().flatten().find(|v| Plugin::of(v).is_some())?;
        let (tx, rx) = watch::channel(Arc::new(pod.clone()));
        let task = Task {
            volumes: volumes.clone(),
            pod: rx,
            recorder: recorder.clone(),
            shown: HashMap::new(),
            told: HashMap::new(),
            fixed: HashMap::new(),
        };
        Some(Self { pod: tx, task: tokio::spawn(task.run()) })
    }

    /// The pod's object changed.
    pub fn update(&self, pod: Arc<Pod>) {
        self.pod.send_replace(pod);
    }
}

struct Task {
    volumes: Volumes,
    pod: watch::Receiver<Arc<Pod>>,
    recorder: Recorder,
    /// What each volume was last made from.
    shown: HashMap<String, Sources>,
    /// The failure of each volume that was last told of.
    told: HashMap<String, String>,
    /// Objects that were found immutable: they stay what they are to this pod, whatever comes after them.
    fixed: HashMap<Key, Found>,
}

/// What the files of a volume are made from.
#[derive(Clone, Debug)]
struct Sources {
    objects: Vec<Known>,
    /// The pod, where its fields are shown.
    pod: Option<Arc<Pod>>,
}

impl Sources {
    fn same(&self, other: &Self) -> bool {
        let pods = match (&self.pod, &other.pod) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        pods && self.objects == other.objects
    }
}

impl Task {
    async fn run(mut self) {
        let mut wait = RETRY.0;
        loop {
            let pod = self.pod.borrow_and_update().clone();
            let (watched, failed) = self.refresh(&pod).await;
            let retry = async {
                if !failed {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(wait).await;
            };
            // Every arm is cancel-safe: two kinds of channels, and a timer that only runs after a failed write.
            tokio::select! {
                changed = self.pod.changed() => if changed.is_err() { return },
                () = self.volumes.inner.objects.changed(&watched) => {}
                () = retry => {}
            }
            wait = if failed { (wait * 2).min(RETRY.1) } else { RETRY.0 };
        }
    }

    /// Writes what changed. Answers the objects whose change is to be waited for, and whether a write failed.
    async fn refresh(&mut self, pod: &Arc<Pod>) -> (Vec<Known>, bool) {
        let mut watched = Vec::new();
        let mut jobs = Vec::new();
        for volume in spec(pod).volumes.iter().flatten() {
            let Some(plugin) = Plugin::of(volume) else { continue };
            let mut found = self.volumes.find(pod, volume).await;
            self.hold_fixed(&mut found);
            // What is immutable need not be waited for.
            let may_change = |f: &Found| f.object.as_ref().is_none_or(|o| !o.immutable);
            watched.extend(objects::known(found.iter().filter(|(_, f)| may_change(f))));
            let sources = Sources {
                objects: objects::known(&found),
                pod: payload::shows_fields(volume).then(|| pod.clone()),
            };
            if self.shown.get(&volume.name).is_some_and(|shown| shown.same(&sources)) {
                continue;
            }
            match self.collect(pod, volume, &found) {
                Ok(payload) => jobs.push((volume.name.clone(), plugin, payload, sources)),
                Err(why) => {
                    self.tell(pod, &volume.name, &why);
                    self.shown.insert(volume.name.clone(), sources);
                }
            }
        }
        let failed = self.write(pod, jobs).await;
        (watched, failed)
    }

    fn hold_fixed(&mut self, found: &mut BTreeMap<Key, Found>) {
        for (key, f) in found {
            if let Some(fixed) = self.fixed.get(key) {
                *f = fixed.clone();
            } else if f.object.as_ref().is_some_and(|o| o.immutable) {
                self.fixed.insert(key.clone(), f.clone());
            }
        }
    }

    fn collect(
        &self,
        pod: &Pod,
        volume: &Volume,
        found: &BTreeMap<Key, Found>,
    ) -> Result<payload::Payload, String> {
        payload::collect(volume, &Inputs { pod, found, values: &*self.volumes.inner.values })
    }

    async fn write(
        &mut self,
        pod: &Arc<Pod>,
        jobs: Vec<(String, Plugin, payload::Payload, Sources)>,
    ) -> bool {
        if jobs.is_empty() {
            return false;
        }
        let group = spec(pod).security_context.as_ref().and_then(|s| s.fs_group);
        let work = self.volumes.blocking(&PodRef::of(pod).uid, move |pod_dir| {
            let each = jobs.into_iter().map(|(name, plugin, payload, sources)| {
                let done = files::refresh(pod_dir, &name, plugin, &payload, group);
                (name, sources, done)
            });
            each.collect::<Vec<_>>()
        });
        let done = match work.await {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(pod = %PodRef::of(pod), %error, "writing a pod's volumes panicked");
                return true;
            }
        };
        let mut failed = false;
        for (name, sources, done) in done {
            match done {
                Ok(()) => {
                    self.told.remove(&name);
                    self.shown.insert(name, sources);
                }
                Err(e) => {
                    failed = true;
                    self.tell(pod, &name, &e.to_string());
                }
            }
        }
        failed
    }

    /// An event for each failure that is news.
    fn tell(&mut self, pod: &Pod, volume: &str, why: &str) {
        let VolumeError { reason, message, .. } = VolumeError::setup(volume, why);
        if self.told.insert(volume.to_owned(), message.clone()).as_ref() == Some(&message) {
            return;
        }
        let (pod, reason) = (Some(PodRef::of(pod)), reason.into());
        self.recorder.record(Event {
            pod,
            field_path: None,
            kind: Kind::Warning,
            reason,
            message,
            annotations: Default::default(),
        });
    }
}
