//! The manifest directory (`staticPodPath`) as a source of pods: [`SourceEvent`]s out.
//!
//! `assemble` starts it. How a directory is watched is `directory`'s business; here is what its files are, pods, and that
//! `world` is told of them.

use super::directory::{self, Closed, Reader, Watched};
use super::identity::{self, References};
use super::manifest::{Judge, judge_object, judge_pod};
use super::table::{Change, Item};
use super::{SourceEvent, SourcePod};
use crate::api::{Origin, Pod, PodRef, PodUid};
use crate::event::{Event, Kind, Recorder};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Starts watching `path`, a directory of manifests or a single one, which need not exist yet.
///
/// Static pods get the name of `node_name` and may refer to such API objects as `references` says. `net_interval` is
/// `fileCheckFrequency`; zero switches the slow pass off.
///
/// # Errors
/// When the process can have no inotify instance.
pub fn spawn(
    path: PathBuf,
    node_name: &str,
    references: References,
    net_interval: Duration,
    tx: mpsc::Sender<SourceEvent>,
    recorder: Recorder,
) -> io::Result<Watched> {
    let node_name = node_name.to_owned();
    let judge =
        move |bytes: &[u8], path: &Path| judge_pod(bytes, &path.to_string_lossy(), &node_name, references);
    directory::spawn(path, net_interval, Pods { origin: Origin::File, judge: Arc::new(judge), tx, recorder })
}

/// As [`spawn`], of pods as an API server would have them (`--standalone-pods`): each keeps its name and has a UID of its
/// own, under which its object may change.
///
/// # Errors
/// When the process can have no inotify instance.
pub fn spawn_objects(
    path: PathBuf,
    node_name: &str,
    references: References,
    net_interval: Duration,
    tx: mpsc::Sender<SourceEvent>,
    recorder: Recorder,
) -> io::Result<Watched> {
    let node_name = node_name.to_owned();
    let judge = move |bytes: &[u8], _: &Path| judge_object(bytes, &node_name, references);
    directory::spawn(path, net_interval, Pods { origin: Origin::Api, judge: Arc::new(judge), tx, recorder })
}

/// Reads pods, tells `world`.
struct Pods {
    origin: Origin,
    judge: Arc<Judge<Pod>>,
    tx: mpsc::Sender<SourceEvent>,
    recorder: Recorder,
}

impl Reader for Pods {
    type Item = Pod;
    const FILE: &'static str = "manifest";

    fn judge(&self) -> Arc<Judge<Pod>> {
        self.judge.clone()
    }

    async fn closed(&self) {
        self.tx.closed().await;
    }

    async fn changes(&mut self, changes: Vec<Change<Pod>>, arrived: Instant) -> Result<(), Closed> {
        for change in changes {
            self.tx.send(event(self.origin, change, arrived)).await.map_err(|_| Closed)?;
        }
        Ok(())
    }

    async fn synced(&mut self) -> Result<(), Closed> {
        self.tx.send(SourceEvent::Synced(self.origin)).await.map_err(|_| Closed)
    }

    fn duplicate(&self, pod: &PodRef) {
        self.recorder.record(Event {
            message: format!(
                "Error validating pod {pod} from {} due to duplicate pod name \"{}\", ignoring",
                self.origin.as_str(),
                pod.name
            ),
            pod: Some(pod.clone()),
            field_path: None,
            kind: Kind::Warning,
            reason: "FailedValidation".into(),
            annotations: Default::default(),
        });
    }
}

impl Item for Pod {
    type Id = PodUid;
    type Shown = PodRef;

    fn id(&self) -> PodUid {
        PodUid::new(self.metadata.uid.as_deref().unwrap_or_default())
    }

    fn shown(&self) -> PodRef {
        PodRef::of(self)
    }

    fn names(&self) -> Vec<String> {
        let PodRef { uid, namespace, name } = PodRef::of(self);
        // Neither a namespace nor a name has a slash in it.
        vec![format!("{namespace}/{name}"), format!("uid/{uid}/")]
    }

    fn priority(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.priority).unwrap_or_default()
    }

    fn stamp(&mut self, seen: jiff::Timestamp) {
        identity::stamp(self, seen);
    }
}

/// What `world` is told of a change that was noticed when it `arrived`.
pub(super) fn event(origin: Origin, change: Change<Pod>, arrived: Instant) -> SourceEvent {
    match change {
        Change::Gone(uid) => SourceEvent::Gone { origin, uid },
        Change::Put(pod, seen) => SourceEvent::Put(SourcePod { origin, pod, seen, arrived }),
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
