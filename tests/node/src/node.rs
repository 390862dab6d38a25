//! One running agent: the `kubelet` binary with directories, ports and a cgroup of its own.
//!
//! A test puts manifests in and waits for pods. At its end [`Node::finish`] takes the manifests away and demands that
//! nothing is left. A test that panics gets the same cleaning by force, from `Drop`.

use crate::http::{self, Answer};
use crate::left::{self, Places};
use crate::runtime::{self, Turn, blocking};
use crate::status;
use crate::wait::{eventually, limit, within};
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;
use kubelet::api::Qos;
use kubelet::cgroup::Driver;
use kubelet::cgroup::layout::{Layout, unit_of};
use nix::mount::{MntFlags, umount2};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use xtask::build::{self, Profile};
use xtask::proc::ProcId;
use xtask::runtime::CgroupDriver;

/// What a test wants differently.
#[derive(Default)]
pub struct Options {
    /// Laid over the configuration file.
    pub config: Option<Value>,
    /// The agent's runtime socket, such as that of a proxy; the real one otherwise.
    pub endpoint: Option<PathBuf>,
    /// `--root-dir`, where the test brings its own.
    pub root_dir: Option<PathBuf>,
    /// Flags beside those every agent gets.
    pub args: Vec<String>,
    /// Do not start the agent yet.
    pub stopped: bool,
    /// No real runtime is needed: `endpoint` is a fake.
    pub fake: bool,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("config", &self.config).finish_non_exhaustive()
    }
}

/// One agent on the runtime, alone on it.
#[derive(Debug)]
pub struct Node {
    /// The runtime, held by this test; `None` on a fake.
    pub turn: Option<Turn>,
    /// A client of that runtime, beside the agent.
    pub cri: cri::Client,
    /// What `--hostname-override` says.
    pub name: String,
    /// Where it puts things.
    pub places: Places,
    /// Holds everything of this node.
    pub dir: PathBuf,
    /// `port`
    pub port: u16,
    /// `healthzPort`
    pub healthz: u16,
    /// `readOnlyPort`
    pub read_only: u16,
    /// The runtime was killed: what it has forgotten on the host is told and not held against the agent.
    pub runtime_killed: bool,
    /// The runtime has lost what other tests need: the next test gets another one.
    pub used_up: bool,
    args: Vec<String>,
    manifests: BTreeSet<String>,
    child: Option<Child>,
    finished: bool,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Node {
    /// Starts an agent; `None` when the test is to be skipped, which has been said.
    pub async fn start() -> Option<Self> {
        Self::start_with(Options::default()).await
    }

    /// As [`Node::start`], with `options`.
    ///
    /// # Panics
    /// When runtime or agent can be had and do not start.
    pub async fn start_with(options: Options) -> Option<Self> {
        let turn = if options.fake {
            None
        } else {
            match runtime::turn().await {
                Ok(turn) => Some(turn),
                Err(reason) => {
                    crate::skip(reason);
                    return None;
                }
            }
        };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let unique = format!("{}x{number}", std::process::id());
        let private = turn.as_ref().and_then(Turn::private);
        let base =
            private.map_or_else(|| Path::new("/var/lib/stevedore-test").into(), |p| p.base().to_path_buf());
        let dir = base.join(format!("node-{unique}"));
        fs::create_dir_all(dir.join("manifests")).unwrap();
        let cgroup_root = match private {
            Some(private) => format!("{}/{unique}", private.cgroup_root()),
            None => format!("/stevedore-test-{unique}"),
        };
        // A fake runtime makes no cgroups, and the agent those of its default.
        let driver = if options.fake { CgroupDriver::Cgroupfs } else { CgroupDriver::from_env().unwrap() };
        let places = Places {
            root_dir: options.root_dir.clone().unwrap_or_else(|| dir.join("root")),
            logs: dir.join("logs"),
            cgroups: Layout::new(driver_of(driver), &cgroup_root).unwrap(),
            cgroup_root,
            private: private.map(|p| (p.base().to_path_buf(), p.bridge())),
        };
        let socket = turn.as_ref().map(Turn::socket);
        let endpoint =
            options.endpoint.clone().or_else(|| socket.clone()).expect("a fake comes with its socket");
        let direct = socket.unwrap_or_else(|| endpoint.clone());
        let cri = cri::Client::builder(cri::Connector::unix(&direct)).reads_events(false).build();
        let [port, healthz, read_only] = free_ports();
        let mut node = Self {
            turn,
            cri,
            name: format!("n{unique}"),
            places,
            dir,
            port,
            healthz,
            read_only,
            runtime_killed: false,
            used_up: false,
            args: options.args,
            manifests: BTreeSet::new(),
            child: None,
            finished: false,
        };
        let mut config = node.configuration(&endpoint);
        merge(&mut config, options.config.unwrap_or(Value::Null));
        fs::write(node.config_file(), serde_json::to_vec_pretty(&config).unwrap()).unwrap();
        if !options.stopped {
            node.launch().await;
            node.wait_healthy().await;
        }
        Some(node)
    }

    fn configuration(&self, endpoint: &Path) -> Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": false,
            // Images are imported once for all tests, and the machine's disk may well be full.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {
                "memory.available": "100Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
                "imagefs.available": "0%", "imagefs.inodesFree": "0%",
            },
            "cgroupRoot": self.places.cgroup_root,
            "cgroupDriver": self.places.cgroups.driver().as_str(),
            "staticPodPath": self.dir.join("manifests"),
            "containerRuntimeEndpoint": format!("unix://{}", endpoint.display()),
            "address": "127.0.0.1",
            "port": self.port,
            "healthzPort": self.healthz,
            "readOnlyPort": self.read_only,
            "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
            "authorization": { "mode": "AlwaysAllow" },
            "podLogsDir": self.places.logs,
            "clusterDNS": ["10.96.0.10"],
            "clusterDomain": "cluster.local",
            "logging": { "verbosity": 4 },
        })
    }

    /// Lays `over` on the configuration file; the agent reads it when it is launched next.
    pub fn reconfigure(&self, over: &Value) {
        let mut config: Value = serde_json::from_slice(&fs::read(self.config_file()).unwrap()).unwrap();
        merge(&mut config, over.clone());
        fs::write(self.config_file(), serde_json::to_vec_pretty(&config).unwrap()).unwrap();
    }

    /// The agent's configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    /// The agent's root directory.
    pub fn root_dir(&self) -> &Path {
        &self.places.root_dir
    }

    /// The agent's standard error, of all its incarnations.
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("kubelet.log")
    }

    /// Everything the agent has said so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    /// Starts the binary; does not wait for it.
    ///
    /// # Panics
    /// When it runs already.
    pub async fn launch(&mut self) {
        assert!(self.child.is_none(), "the agent runs already");
        let binary = binary().await;
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        // It must not outlive a test process that is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(binary);
        command.arg("--config").arg(self.config_file()).arg("--root-dir").arg(&self.places.root_dir);
        command.arg("--cert-dir").arg(self.dir.join("pki")).arg(format!("--hostname-override={}", self.name));
        command.args(&self.args);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        command.env_remove("RUST_LOG");
        self.child = Some(command.spawn().expect("the agent starts"));
    }

    /// The agent's process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the agent runs").id()
    }

    /// Waits until `/healthz` says so.
    pub async fn wait_healthy(&mut self) {
        let port = self.healthz;
        let log = self.log_file();
        let child = self.child.as_mut().expect("the agent runs");
        eventually("the agent is healthy", async || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the agent ended ({status}): {}", tail(&log, 20));
            }
            let answer = http::get(port, "/healthz").await.map_err(|e| format!("{e:#}"))?;
            if answer.status == 200 { Ok(()) } else { Err(answer.body) }
        })
        .await;
    }

    /// Kills the agent as a crash would.
    ///
    /// # Panics
    /// When it has ended by itself.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("the agent runs");
        if let Some(status) = child.try_wait().unwrap() {
            panic!("the agent had ended by itself ({status}): {}", tail(&self.log_file(), 30));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Ends the agent in order and returns how it ended.
    pub async fn stop(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the agent runs");
        if let Some(process) = ProcId::of(child.id() as i32) {
            process.signal(rustix::process::Signal::TERM);
        }
        let waited = blocking(move || {
            let ended = ProcId::of(child.id() as i32).is_none_or(|p| p.wait_gone(Duration::from_secs(20)));
            if !ended {
                let _gone_meanwhile = child.kill();
            }
            (ended, child.wait().unwrap())
        });
        let (ended, status) = waited.await;
        assert!(ended, "the agent did not end within 20 s of SIGTERM: {}", tail(&self.log_file(), 30));
        status
    }

    /// Waits until the agent has ended by itself.
    pub async fn wait_exit(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the agent runs");
        eventually("the agent ends", async || match child.try_wait().unwrap() {
            Some(status) => Ok(status),
            None => Err("it runs".to_owned()),
        })
        .await
    }

    /// Writes or replaces a manifest, by a rename.
    pub fn put(&mut self, file: &str, manifest: impl std::borrow::Borrow<Value>) {
        self.put_bytes(file, &serde_json::to_vec_pretty(manifest.borrow()).unwrap());
    }

    /// As [`Node::put`], whatever the bytes are.
    pub fn put_bytes(&mut self, file: &str, bytes: &[u8]) {
        let temporary = self.dir.join(format!("{file}.new"));
        fs::write(&temporary, bytes).unwrap();
        fs::rename(&temporary, self.manifest(file)).unwrap();
        self.manifests.insert(file.to_owned());
    }

    /// Where the manifest called `file` lies.
    pub fn manifest(&self, file: &str) -> PathBuf {
        self.dir.join("manifests").join(format!("{file}.yaml"))
    }

    /// Removes a manifest.
    pub fn remove(&mut self, file: &str) {
        self.manifests.remove(file);
        fs::remove_file(self.manifest(file)).unwrap();
    }

    /// The name that a static pod gets on this node.
    pub fn full(&self, name: &str) -> String {
        format!("{name}-{}", self.name)
    }

    /// All pods of the agent with their statuses, from the read-only port.
    ///
    /// # Errors
    /// The agent does not answer.
    pub async fn pods(&self) -> Result<Vec<Pod>, String> {
        let answer = http::get(self.read_only, "/pods").await.map_err(|e| format!("{e:#}"))?;
        let list: List<Pod> =
            serde_json::from_str(&answer.body).map_err(|e| format!("{e}: {}", answer.body))?;
        Ok(list.items)
    }

    /// One pod, by the name in its manifest.
    ///
    /// # Errors
    /// There is none, or the agent does not answer.
    pub async fn pod(&self, name: &str) -> Result<Pod, String> {
        let full = self.full(name);
        let pods = self.pods().await?;
        pods.into_iter().find(|p| status::name(p) == full).ok_or_else(|| format!("no pod {full}"))
    }

    /// Waits until the pod is so.
    pub async fn wait(&self, name: &str, what: &str, so: impl Fn(&Pod) -> bool) -> Pod {
        self.wait_within(limit(), name, what, so).await
    }

    /// [`Node::wait`] with a limit of its own.
    pub async fn wait_within(
        &self,
        limit: Duration,
        name: &str,
        what: &str,
        so: impl Fn(&Pod) -> bool,
    ) -> Pod {
        within(limit, &format!("pod {name} is {what}"), async || {
            let pod = self.pod(name).await?;
            if so(&pod) { Ok(pod) } else { Err(serde_json::to_string(&pod.status).unwrap()) }
        })
        .await
    }

    /// Waits until the pod is Ready.
    pub async fn wait_ready(&self, name: &str) -> Pod {
        self.wait(name, "Ready", |p| status::phase(p) == "Running" && status::is(p, "Ready")).await
    }

    /// Waits until the pod's phase is that.
    pub async fn wait_phase(&self, name: &str, phase: &str) -> Pod {
        self.wait(name, phase, |p| status::phase(p) == phase).await
    }

    /// Waits until the agent does not know the pod any more.
    pub async fn wait_gone(&self, name: &str) {
        let full = self.full(name);
        eventually(&format!("pod {name} is gone"), async || {
            match self.pods().await?.into_iter().find(|p| status::name(p) == full) {
                None => Ok(()),
                Some(pod) => Err(serde_json::to_string(&pod.status).unwrap()),
            }
        })
        .await;
    }

    /// Runs a command in a running container and returns its standard output.
    ///
    /// # Panics
    /// When it fails.
    pub async fn exec(&self, pod: &Pod, container: &str, script: &str) -> String {
        let id = status::id(pod, container).expect("the container has run");
        let command = vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()];
        let answer =
            self.cri.exec_sync(id, command, Duration::from_secs(20)).await.expect("exec in the container");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(answer.exit_code, 0, "{script}: {} {}", text(&answer.stdout), text(&answer.stderr));
        text(&answer.stdout)
    }

    /// The container's first process.
    pub async fn container_pid(&self, pod: &Pod, container: &str) -> i32 {
        let id = status::id(pod, container).expect("the container has run");
        let status = self.cri.container_status(id, true).await.expect("the container's status");
        let info = status.info.get("info").expect("verbose information");
        let info: Value = serde_json::from_str(info).unwrap();
        info["pid"].as_i64().expect("a pid").try_into().unwrap()
    }

    /// GET over HTTPS.
    ///
    /// # Panics
    /// When there is no answer at all.
    pub async fn https(&self, path: &str) -> Answer {
        http::get_tls(self.port, &self.dir.join("pki"), &self.name, path).await.expect("an answer over HTTPS")
    }

    /// The log of a container, as `/containerLogs` gives it; `query` without a question mark.
    pub async fn container_log(&self, pod: &str, container: &str, query: &str) -> Answer {
        self.https(&self.log_path(pod, container, query)).await
    }

    /// The path of [`Node::container_log`].
    pub fn log_path(&self, pod: &str, container: &str, query: &str) -> String {
        format!("/containerLogs/default/{}/{container}?{query}", self.full(pod))
    }

    /// What is on the host beside the pods that the agent has.
    pub async fn leftovers(&self) -> Vec<String> {
        match self.pods().await {
            Ok(pods) => {
                self.leftovers_beside(&pods.iter().map(|p| status::uid(p).to_owned()).collect()).await
            }
            Err(error) => vec![error],
        }
    }

    /// What is on the host beside the pods with these UIDs.
    pub async fn leftovers_beside(&self, wanted: &HashSet<String>) -> Vec<String> {
        let mut left = left::over(&self.places, wanted, &self.cri).await;
        if !self.runtime_killed {
            left.of_agent.append(&mut left.of_runtime);
        }
        left.of_agent
    }

    /// Tells what the runtime has forgotten on the host, which nobody can ask it to remove.
    async fn tell_what_the_runtime_forgot(&self) {
        let Some((base, _)) = &self.places.private else { return };
        let mut forgotten = left::shims(base, &self.cri).await;
        if self.runtime_killed {
            forgotten.extend(left::over(&self.places, &HashSet::new(), &self.cri).await.of_runtime);
        }
        for what in forgotten {
            eprintln!("NOTE: forgotten by the runtime: {what}");
        }
    }

    /// Waits until there are no leftovers. Cgroups and namespaces go a moment after the processes in them.
    pub async fn wait_clean(&self) {
        eventually("nothing is left over", async || none(self.leftovers().await)).await;
    }

    /// Takes all manifests away, waits until nothing is left of any pod, and ends the agent.
    ///
    /// # Panics
    /// When something is left, or the agent does not end in order.
    pub async fn finish(mut self) {
        for file in std::mem::take(&mut self.manifests) {
            let path = self.manifest(&file);
            match fs::symlink_metadata(&path).map(|m| m.is_dir()) {
                Ok(true) => fs::remove_dir_all(path).unwrap(),
                Ok(false) => fs::remove_file(path).unwrap(),
                Err(_) => {}
            }
        }
        eventually("all pods are gone", async || {
            let pods = self.pods().await?;
            if pods.is_empty() { Ok(()) } else { Err(serde_json::to_string(&pods).unwrap()) }
        })
        .await;
        // Beside no pod at all: one that an agent just started has yet to take on is not told of among the pods.
        eventually("nothing is left over", async || none(self.leftovers_beside(&HashSet::new()).await)).await;
        self.tell_what_the_runtime_forgot().await;
        let status = self.stop().await;
        assert!(status.success(), "the agent ended with {status}: {}", tail(&self.log_file(), 20));
        self.finished = true;
    }

    /// As [`Node::finish`], on a runtime in memory.
    pub async fn finish_on_fake(self, fake: &cri::fake::FakeRuntime) {
        let fake = fake.clone();
        self.finish().await;
        let (containers, sandboxes) = (fake.containers(), fake.sandboxes());
        assert!(containers.is_empty() && sandboxes.is_empty(), "left: {containers:?}, {sandboxes:?}");
    }

    /// Removes what is this node's on the host, whether or not the agent did. The runtime's part is the runtime's.
    fn sweep(&self) {
        for (link, _) in left::log_links(&self.places.logs) {
            let _gone = fs::remove_file(link);
        }
        let mounts = kubelet::mountinfo::read(Path::new(kubelet::mountinfo::SELF)).unwrap_or_default();
        let below = |p: &Path| p.starts_with(&self.dir) || p.starts_with(&self.places.root_dir);
        for mount in mounts.iter().rev().filter(|m| below(&m.point)) {
            let flags = MntFlags::UMOUNT_NOFOLLOW;
            let _tried =
                umount2(&mount.point, flags).or_else(|_| umount2(&mount.point, flags | MntFlags::MNT_DETACH));
        }
        self.remove_cgroups();
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("{}: {error}", self.dir.display());
        }
    }

    /// Removes the cgroups of the node and its classes, which an agent leaves. They are empty of processes.
    fn remove_cgroups(&self) {
        let pods = self.places.cgroups.class(Qos::Guaranteed);
        let root =
            Path::new(&pods).parent().and_then(Path::to_str).expect("pods stand below the node's own root");
        if self.places.cgroups.driver() == Driver::Systemd {
            let _none = Command::new("systemctl").args(["--quiet", "stop", unit_of(root)]).status();
        }
        for hierarchy in left::hierarchies() {
            remove_cgroups(&left::below(&hierarchy, root));
        }
    }

    /// Stops and removes this node's pods in a runtime that is not ours.
    fn remove_pods(&self) {
        let socket = self.turn.as_ref().map(Turn::socket);
        let suffix = format!("-{}", self.name);
        let work = async move {
            let Some(socket) = socket else { return };
            let client = cri::Client::builder(cri::Connector::unix(&socket)).reads_events(false).build();
            for s in client.list_pod_sandboxes(None).await.unwrap_or_default() {
                if s.metadata.as_ref().is_some_and(|m| m.name.ends_with(&suffix)) {
                    let _stopped = client.stop_pod_sandbox(&s.id).await;
                    let _removed = client.remove_pod_sandbox(&s.id).await;
                }
            }
        };
        // A thread of its own: this one may be inside a runtime, which must not block.
        let _done = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map(|r| r.block_on(async { tokio::time::timeout(Duration::from_secs(60), work).await }))
        })
        .join();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _gone = child.kill();
            let _reaped = child.wait();
        }
        if !self.finished {
            eprintln!("the end of the agent's log:\n{}", tail(&self.log_file(), 60));
            self.remove_pods();
        }
        self.sweep();
        if (!self.finished || self.runtime_killed || self.used_up)
            && let Some(turn) = &mut self.turn
        {
            turn.discard();
        }
    }
}

fn driver_of(driver: CgroupDriver) -> Driver {
    match driver {
        CgroupDriver::Cgroupfs => Driver::Cgroupfs,
        CgroupDriver::Systemd => Driver::Systemd,
    }
}

/// The binary under test, built once by each test process.
pub async fn binary() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    blocking(|| {
        BUILT
            .get_or_init(|| build::binary("kubelet", "kubelet", Profile::Dev).expect("the agent is built"))
            .clone()
    })
    .await
}

/// Ports of the loopback that nobody uses now.
pub fn free_ports<const N: usize>() -> [u16; N] {
    // All are bound before any is let go, so that they differ.
    let held: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

/// The last lines of a file.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Lays `over` on `base`: mappings merge, everything else is replaced.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (_, Value::Null) => {}
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

/// That nothing is left, or what is.
fn none(left: Vec<String>) -> Result<(), String> {
    if left.is_empty() { Ok(()) } else { Err(left.join("\n  ")) }
}

/// Removes empty cgroups, the deepest first.
fn remove_cgroups(dir: &Path) {
    for name in left::names(dir) {
        let below = dir.join(name);
        if below.is_dir() {
            remove_cgroups(&below);
        }
    }
    let _busy_or_gone = fs::remove_dir(dir);
}
