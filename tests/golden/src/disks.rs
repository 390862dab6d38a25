//! What the containers of the cases wrote, as far as pods are held to limits by it: taken from the commands in their
//! manifests, `dd … of=PATH bs=1M count=N`. Nothing else of the node is measured.

use crate::case::Case;
use cri::fake::FakeRuntime;
use futures::future::BoxFuture;
use kubelet::api::PodUid;
use kubelet::evict::{ContainerUse, Detail, DiskUse, Layout, Measure, Observations, PodUse};
use serde_json::Value;
use std::collections::HashMap;

/// A file that a container wrote.
#[derive(Debug)]
struct Written {
    uid: String,
    container: String,
    /// The volume it is in; otherwise it is in the container's layer.
    volume: Option<String>,
    bytes: u64,
}

/// Measures the disks of a case's pods.
#[derive(Debug)]
pub struct Disks {
    fake: FakeRuntime,
    written: Vec<Written>,
}

impl Disks {
    /// Of what `case` says its containers did; it counts while they are in `fake`.
    pub fn new(case: &Case, fake: &FakeRuntime) -> Self {
        let of_pod = |pod: &crate::case::PodRecord| {
            let containers = pod.manifest["spec"]["containers"].as_array().cloned().unwrap_or_default();
            containers.into_iter().filter_map(|c| written(&pod.uid, &c)).collect::<Vec<_>>()
        };
        Self { fake: fake.clone(), written: case.pods.iter().flat_map(of_pod).collect() }
    }

    fn uses(&self) -> HashMap<PodUid, PodUse> {
        let mut uses: HashMap<PodUid, PodUse> = HashMap::new();
        let there = self.fake.containers();
        for w in &self.written {
            let label =
                |c: &cri::v1::ContainerStatus, key: &str| c.labels.get(key).cloned().unwrap_or_default();
            let made = there.iter().any(|c| {
                label(c, "io.kubernetes.pod.uid") == w.uid
                    && c.metadata.as_ref().is_some_and(|m| m.name == w.container)
            });
            if !made {
                continue;
            }
            let (of, disk) =
                (uses.entry(PodUid::new(&w.uid)).or_default(), DiskUse { bytes: w.bytes, inodes: 1 });
            of.ephemeral = Some(of.ephemeral.unwrap_or(0) + w.bytes);
            let rootfs = match &w.volume {
                Some(volume) => {
                    of.volumes.insert(volume.clone(), disk);
                    None
                }
                None => Some(disk),
            };
            let name = w.container.clone();
            of.containers.push(ContainerUse { name, rootfs, ..ContainerUse::default() });
        }
        uses
    }
}

/// What the container's command writes.
fn written(uid: &str, container: &Value) -> Option<Written> {
    let command = container["command"].as_array()?.last()?.as_str()?;
    let (_, dd) = command.split_once("dd if=/dev/zero ")?;
    let argument = |key: &str| dd.split([' ', ';']).find_map(|word| word.strip_prefix(key));
    let path = argument("of=")?;
    let mib: u64 = argument("count=").filter(|_| argument("bs=") == Some("1M"))?.parse().ok()?;
    let mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
    let volume = mounts.iter().find(|m| {
        let place = m["mountPath"].as_str().unwrap_or_default();
        path.strip_prefix(place).is_some_and(|rest| rest.starts_with('/'))
    });
    Some(Written {
        uid: uid.to_owned(),
        container: container["name"].as_str()?.to_owned(),
        volume: volume.and_then(|m| Some(m["name"].as_str()?.to_owned())),
        bytes: mib << 20,
    })
}

impl Measure for Disks {
    fn memory(&self) -> BoxFuture<'_, Observations> {
        Box::pin(async { Observations::new() })
    }

    fn node(&self) -> BoxFuture<'_, Observations> {
        Box::pin(async { Observations::new() })
    }

    fn pods(&self, _: Detail) -> BoxFuture<'_, HashMap<PodUid, PodUse>> {
        let uses = self.uses();
        Box::pin(async move { uses })
    }

    fn layout(&self) -> BoxFuture<'_, Option<Layout>> {
        Box::pin(async { Some(Layout::One) })
    }
}
