//! Whatever lies on the host beside what the manifests want.
//!
//! Pods are told by their UID, what belongs to a sandbox by the sandbox's id: anything that bears another one, or more of
//! it than there should be, is left over. Reads only.

use cri::v1;
use kubelet::cgroup::layout::{self, Layout};
use kubelet::mountinfo;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use xtask::proc;

/// Where one node puts things.
#[derive(Debug, Clone)]
pub struct Places {
    /// `--root-dir`
    pub root_dir: PathBuf,
    /// `podLogsDir`
    pub logs: PathBuf,
    /// `cgroupRoot`
    pub cgroup_root: String,
    /// What stands where below it.
    pub cgroups: Layout,
    /// The private runtime's folder and bridge.
    pub private: Option<(PathBuf, String)>,
}

/// What belongs to none of the pods that are wanted, one line each.
#[derive(Debug, Clone, Default)]
pub struct Left {
    /// Of what the agent makes or orders.
    pub of_agent: Vec<String>,
    /// Of what the runtime makes: containers' cgroups in those of wanted pods, network namespaces, and through its plugins
    /// leases, links and host ports. A
    /// runtime that was killed while it made one may have forgotten it, which no agent can see or mend.
    pub of_runtime: Vec<String>,
}

/// What of the runtime and the host belongs to none of the pods `wanted` (UIDs).
pub async fn over(places: &Places, wanted: &HashSet<String>, runtime: &cri::Client) -> Left {
    let mut left = Left::default();
    let (sandboxes, containers) = match lists(runtime).await {
        Ok(lists) => lists,
        Err(error) => {
            left.of_agent.push(format!("the runtime cannot be asked: {error}"));
            return left;
        }
    };
    in_runtime(&sandboxes, &containers, wanted, &mut left.of_agent);
    let ids: HashSet<&str> =
        sandboxes.iter().map(|s| s.id.as_str()).chain(containers.iter().map(|c| c.id.as_str())).collect();
    mounts(places, wanted, &mut left.of_agent);
    cgroups(places, wanted, &ids, &mut left);
    directories(places, wanted, &mut left.of_agent);
    if let Some((base, bridge)) = &places.private {
        let ready: HashSet<&str> = sandboxes.iter().filter(|s| is_ready(s)).map(|s| s.id.as_str()).collect();
        namespaces(base, ready.len(), &mut left.of_runtime);
        network(base, bridge, &ready, &mut left.of_runtime);
    }
    left
}

async fn lists(runtime: &cri::Client) -> Result<(Vec<v1::PodSandbox>, Vec<v1::Container>), cri::Error> {
    Ok((runtime.list_pod_sandboxes(None).await?, runtime.list_containers(None).await?))
}

fn is_ready(s: &v1::PodSandbox) -> bool {
    s.state() == v1::PodSandboxState::SandboxReady
}

fn in_runtime(
    sandboxes: &[v1::PodSandbox],
    containers: &[v1::Container],
    wanted: &HashSet<String>,
    left: &mut Vec<String>,
) {
    let uid =
        |labels: &BTreeMap<String, String>| labels.get("io.kubernetes.pod.uid").cloned().unwrap_or_default();
    let mut ready: BTreeMap<String, usize> = BTreeMap::new();
    for s in sandboxes {
        if !wanted.contains(&uid(&s.labels)) {
            left.push(format!("sandbox {} of pod {:?}", s.id, s.metadata.as_ref().map(|m| &m.name)));
        } else if is_ready(s) {
            *ready.entry(uid(&s.labels)).or_default() += 1;
        }
    }
    left.extend(
        ready.iter().filter(|(_, n)| **n > 1).map(|(uid, n)| format!("{n} ready sandboxes of {uid}")),
    );
    let mut live: BTreeMap<(String, String), usize> = BTreeMap::new();
    for c in containers {
        let name = c.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default();
        if !wanted.contains(&uid(&c.labels)) {
            left.push(format!("container {} ({name})", c.id));
        } else if c.state() == v1::ContainerState::ContainerRunning {
            *live.entry((uid(&c.labels), name)).or_default() += 1;
        }
    }
    left.extend(live.iter().filter(|(_, n)| **n > 1).map(|(c, n)| format!("{n} running instances of {c:?}")));
}

/// Mounts of unwanted pods below the root directory.
fn mounts(places: &Places, wanted: &HashSet<String>, left: &mut Vec<String>) {
    let pods = places.root_dir.join("pods");
    for mount in mountinfo::read(Path::new(mountinfo::SELF)).expect("/proc is readable") {
        let Ok(inside) = mount.point.strip_prefix(&pods) else { continue };
        let uid = inside.components().next().map(|c| c.as_os_str().to_string_lossy().into_owned());
        if !uid.is_some_and(|uid| wanted.contains(&uid)) {
            left.push(format!("mount {}", mount.point.display()));
        }
    }
}

/// Network namespaces of no sandbox.
fn namespaces(base: &Path, sandboxes: usize, left: &mut Vec<String>) {
    let all = mountinfo::read(Path::new(mountinfo::SELF)).expect("/proc is readable");
    let ours = all.into_iter().filter(|m| m.fs_type == "nsfs" && m.point.starts_with(base));
    let namespaces: BTreeSet<PathBuf> = ours.map(|m| m.point).collect();
    if namespaces.len() > sandboxes {
        left.push(format!("{} network namespaces for {sandboxes} sandboxes", namespaces.len()));
    }
}

/// The directories in which cgroup hierarchies are mounted.
pub fn hierarchies() -> Vec<PathBuf> {
    let all = mountinfo::read(Path::new(mountinfo::SELF)).expect("/proc is readable");
    let cgroup = all.into_iter().filter(|m| m.fs_type == "cgroup" || m.fs_type == "cgroup2");
    cgroup.map(|m| m.point).collect()
}

/// A cgroup of [`Layout`] in a hierarchy.
pub fn below(hierarchy: &Path, cgroup: &str) -> PathBuf {
    hierarchy.join(cgroup.trim_start_matches('/'))
}

fn cgroups(places: &Places, wanted: &HashSet<String>, ids: &HashSet<&str>, left: &mut Left) {
    for (hierarchy, qos) in hierarchies().iter().flat_map(|h| layout::CLASSES.map(|qos| (h, qos))) {
        let class = below(hierarchy, &places.cgroups.class(qos));
        for pod in names(&class) {
            let Some(uid) = places.cgroups.uid_of(qos, &pod) else { continue };
            let dir = class.join(&pod);
            if !wanted.contains(uid.as_str()) {
                left.of_agent.push(format!("cgroup {}", dir.display()));
                continue;
            }
            for name in names(&dir) {
                let id = name.trim_end_matches(".scope").rsplit('-').next().unwrap_or_default();
                let is_id = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
                if is_id && !ids.contains(id) {
                    left.of_runtime.push(format!("cgroup {}", dir.join(name).display()));
                }
            }
        }
    }
}

fn directories(places: &Places, wanted: &HashSet<String>, left: &mut Vec<String>) {
    let pods = places.root_dir.join("pods");
    let unwanted = names(&pods).into_iter().filter(|uid| !wanted.contains(uid));
    left.extend(unwanted.map(|uid| format!("directory {}", pods.join(uid).display())));
    for name in names(&places.logs) {
        if !name.splitn(3, '_').nth(2).is_some_and(|uid| wanted.contains(uid)) {
            left.push(format!("directory {}", places.logs.join(name).display()));
        }
    }
    for (link, target) in log_links(&places.logs) {
        let pod = target.strip_prefix(&places.logs).ok().and_then(|inside| inside.components().next());
        let pod = pod.map(|c| c.as_os_str().to_string_lossy().into_owned()).unwrap_or_default();
        if !pod.splitn(3, '_').nth(2).is_some_and(|uid| wanted.contains(uid)) {
            left.push(format!("link {} to {}", link.display(), target.display()));
        }
    }
}

/// The links in the machine's one directory of them that lead into `logs`.
pub fn log_links(logs: &Path) -> Vec<(PathBuf, PathBuf)> {
    let dir = Path::new(kubelet::log::CONTAINER_LOGS_DIR);
    let links = names(dir).into_iter().filter_map(|name| {
        let link = dir.join(name);
        fs::read_link(&link).ok().map(|target| (link, target))
    });
    links.filter(|(_, target)| target.starts_with(logs)).collect()
}

/// Leases, links and nftables elements of sandboxes that are not there any more.
fn network(base: &Path, bridge: &str, ready: &HashSet<&str>, left: &mut Vec<String>) {
    let leases = base.join("cni/leases").join(bridge);
    for address in names(&leases).into_iter().filter(|n| n.parse::<std::net::IpAddr>().is_ok()) {
        let holder = fs::read_to_string(leases.join(&address)).unwrap_or_default();
        let holder = holder.lines().next().unwrap_or_default().trim();
        if !ready.contains(holder) {
            left.push(format!("lease {address} of {holder:?}"));
        }
    }
    let ports = names(&Path::new("/sys/class/net").join(bridge).join("brif"));
    if ports.len() > ready.len() {
        left.push(format!("{} links on {bridge} for {} sandboxes", ports.len(), ready.len()));
    }
    let table = Command::new("nft").args(["list", "table", "inet", "stevedore_cni"]).output();
    let table = table.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    // Each element's comment is "CONTAINER INTERFACE NETWORK LINK".
    for comment in table.split("comment \"").skip(1) {
        let words: Vec<&str> = comment.split('"').next().unwrap_or_default().split(' ').collect();
        if words.get(2) == Some(&bridge) && !ready.contains(words[0]) {
            left.push(format!("nftables element of {}", words[0]));
        }
    }
}

/// Shims of the private containerd at `base` whose sandbox is gone. They are the runtime's own affair, which no call of CRI
/// shows: containerd 1.6 forgets one when its client dies in the middle of a call.
pub async fn shims(base: &Path, runtime: &cri::Client) -> Vec<String> {
    let sandboxes = runtime.list_pod_sandboxes(None).await.unwrap_or_default();
    let ids: HashSet<&str> = sandboxes.iter().map(|s| s.id.as_str()).collect();
    let mut left = Vec::new();
    for process in proc::all() {
        let arguments = proc::arguments(process);
        let shim = arguments.first().is_some_and(|a| a.contains("containerd-shim"))
            && arguments.iter().any(|a| Path::new(a).starts_with(base));
        let id = arguments.iter().position(|a| a == "-id").and_then(|at| arguments.get(at + 1));
        if let (true, Some(id)) = (shim, id)
            && !ids.contains(id.as_str())
        {
            left.push(format!("shim of {id} (pid {})", process.pid));
        }
    }
    left
}

/// The names in a directory; none when there is none.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}
