//! A containerd of our own: its own root, state, socket, configuration and network, beside whatever
//! else runs on the machine.
//!
//! Called by end-to-end tests, the benchmark and `up`. A test's one lives in a numbered folder below
//! [`TEST_BASE`], from which every name it uses on the machine is made, so that a later run can find
//! and remove what a crashed one left.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use containerd_client::Client;
use containerd_client::services::v1::PluginsRequest;
use cri::v1::runtime_service_client::RuntimeServiceClient;
use cri::v1::{ListPodSandboxRequest, StopPodSandboxRequest, VersionRequest};
use nix::fcntl::{Flock, FlockArg};

use super::sweep::{Traces, sweep_traces};
use super::{CgroupDriver, Flavour, Installed, Oci, config, find, find_oci};
use crate::image::{self, Image, Layout};
use crate::proc::ProcId;
use crate::tree;

/// Where the containerds of tests live, one numbered folder each.
pub const TEST_BASE: &str = "/var/lib/stevedore-test";
/// Holds the [`ProcId`] of the process that started the containerd of this folder.
pub(super) const OWNER_FILE: &str = "owner";
/// Holds the folder of the plugins that made this test's network.
const PLUGINS_FILE: &str = "plugins";
/// Holds the [`ProcId`] of the containerd itself.
const PID_FILE: &str = "containerd.pid";
/// Registries and how to reach them.
const REGISTRIES: &str = "certs.d";
/// How long a start may take on a slow and busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);

/// The pod network of a private containerd.
#[derive(Debug, Clone)]
pub enum Network {
    /// No CNI configuration: pods on the host network run, others wait for a network.
    None,
    /// A bridge of its own with addresses of its own, by the plugins in this folder (`bridge`,
    /// `host-local`, `portmap`, `loopback`): see [`crate::plugins`].
    Bridge {
        /// The folder with the plugins.
        plugins: PathBuf,
    },
    /// Folders that the caller fills.
    Given {
        /// Where the network configuration lies.
        conf: PathBuf,
        /// Where the plugins lie.
        bin: PathBuf,
    },
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which containerd.
    pub flavour: Flavour,
    /// The default handler. `runc` is always there as a handler too.
    pub oci: Oci,
    /// What is imported before the start returns.
    pub images: Vec<Image>,
    /// Images under other names than their own: `(what, reference)`.
    pub aliases: Vec<(Image, String)>,
    /// The pod network.
    pub network: Network,
    /// Who makes containers' cgroups.
    pub cgroup_driver: CgroupDriver,
}

impl Options {
    /// This flavour with this runtime, pause and demo images, no pod network, cgroups by the runtime itself.
    pub fn new(flavour: Flavour, oci: Oci) -> Self {
        Self {
            flavour,
            oci,
            images: vec![Image::Pause, Image::Demo],
            aliases: Vec::new(),
            network: Network::None,
            cgroup_driver: CgroupDriver::Cgroupfs,
        }
    }

    /// What `STEVEDORE_CONTAINERD` (default `debian`), `STEVEDORE_OCI` (default `runc`) and `STEVEDORE_CGROUP_DRIVER`
    /// (default `cgroupfs`) say.
    pub fn from_env() -> Result<Self> {
        let or = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        let flavour = or("STEVEDORE_CONTAINERD", "debian").parse().context("STEVEDORE_CONTAINERD")?;
        let mut options = Self::new(flavour, or("STEVEDORE_OCI", "runc").parse().context("STEVEDORE_OCI")?);
        options.cgroup_driver = CgroupDriver::from_env()?;
        Ok(options)
    }
}

/// Everything that one instance uses, on disk.
#[derive(Debug, Clone)]
pub struct Folders {
    /// Configuration, log, pid file, network configuration.
    pub base: PathBuf,
    /// containerd's own persistent folder.
    pub root: PathBuf,
    /// containerd's own volatile folder, with the socket.
    pub state: PathBuf,
}

impl Folders {
    /// The gRPC socket: CRI and containerd's own API.
    pub fn socket(&self) -> PathBuf {
        self.state.join("containerd.sock")
    }

    /// Registries and how to reach them.
    fn registries(&self) -> PathBuf {
        self.base.join(REGISTRIES)
    }

    /// What containerd prints.
    pub fn log(&self) -> PathBuf {
        self.base.join("containerd.log")
    }
}

/// A test's numbered folder and the names made from the number.
#[derive(Debug, Clone)]
pub(super) struct TestDir {
    number: u16,
    pub(super) base: PathBuf,
}

impl TestDir {
    /// Held while folders are given out or swept.
    pub(super) fn lock() -> Result<Flock<File>> {
        fs::create_dir_all(TEST_BASE).with_context(|| format!("create {TEST_BASE}: are you root?"))?;
        let file = File::create(Path::new(TEST_BASE).join(".lock"))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| errno)
            .context("lock the test folders")
    }

    /// The lowest free number.
    fn allocate() -> Result<Self> {
        let _alone = Self::lock()?;
        for number in 0..4096 {
            let base = Path::new(TEST_BASE).join(number.to_string());
            match fs::create_dir(&base) {
                Ok(()) => {
                    fs::write(base.join(OWNER_FILE), ProcId::current()?.to_string())?;
                    return Ok(Self { number, base });
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error).with_context(|| format!("create {}", base.display())),
            }
        }
        bail!("all 4096 folders below {TEST_BASE} are taken: run `cargo xtask clean`")
    }

    /// The folder at `base`, when its name is a number below [`TEST_BASE`].
    pub(super) fn at(base: &Path) -> Option<Self> {
        let number = base.strip_prefix(TEST_BASE).ok()?.to_str()?.parse().ok()?;
        Some(Self { number, base: base.to_path_buf() })
    }

    fn conflist(&self) -> PathBuf {
        self.base.join("cni/conf/10-test.conflist")
    }

    fn bridge(&self) -> String {
        format!("stvtest{}", self.number)
    }

    fn cgroup(&self) -> String {
        format!("/stevedore-test-{}", self.number)
    }

    /// What becomes of [`Self::cgroup`] under systemd.
    fn slice(&self) -> String {
        format!("/stevedore_test_{}.slice", self.number)
    }

    /// One /24 of 10.224.0.0/12 each.
    fn subnet(&self) -> String {
        let [high, low] = self.number.to_be_bytes();
        format!("10.{}.{low}.0/24", 224 + u16::from(high))
    }

    pub(super) fn traces(&self) -> Traces {
        // The reference plugins have no purge: their address translation rules go with their DEL only.
        let plugins = fs::read_to_string(self.base.join(PLUGINS_FILE)).map(PathBuf::from);
        Traces {
            folders: vec![self.base.clone()],
            cgroups: vec![self.cgroup(), self.slice()],
            links: vec![self.bridge()],
            network: plugins.ok().map(|dir| (dir.join("stevedore-cni"), self.conflist())),
        }
    }
}

/// A running private containerd. Dropped, it takes everything it made with it.
#[derive(Debug)]
pub struct PrivateContainerd {
    dir: TestDir,
    folders: Folders,
    installed: Installed,
    child: Child,
}

impl PrivateContainerd {
    /// Starts one for a test and returns when CRI answers and the images are there.
    ///
    /// # Errors
    /// Also when this flavour or OCI runtime cannot be had: the message is then the reason of a skip.
    pub async fn start(options: Options) -> Result<Self> {
        let (mut this, layouts) = tokio::task::spawn_blocking(move || Self::prepare(&options)).await??;
        this.ready().await?;
        let client = this.client().await?;
        image::import(&client, &layouts).await?;
        Ok(this)
    }

    fn prepare(options: &Options) -> Result<(Self, Vec<Layout>)> {
        let installed = find(options.flavour)?;
        let handlers = handlers(options.oci, options.flavour)?;
        let mut layouts = Vec::new();
        for image in &options.images {
            layouts.push(image.build()?);
        }
        for (image, reference) in &options.aliases {
            layouts.push(image.build_as(reference)?);
        }
        super::sweep_dead(false)?;
        let dir = TestDir::allocate()?;
        let base = dir.base.clone();
        let folders = Folders { root: base.join("root"), state: base.join("state"), base };
        let (cni_conf, cni_bin) = match &options.network {
            Network::Given { conf, bin } => (conf.clone(), bin.clone()),
            Network::None => (folders.base.join("cni/conf"), folders.base.join("cni/bin")),
            Network::Bridge { plugins } => {
                fs::write(dir.base.join(PLUGINS_FILE), plugins.as_os_str().as_encoded_bytes())?;
                tree::write_atomic(&dir.conflist(), conflist(&dir)?.as_bytes())?;
                (folders.base.join("cni/conf"), plugins.clone())
            }
        };
        let setup = Setup { handlers, cni_conf, cni_bin, cgroup_driver: options.cgroup_driver };
        configure(&folders, &installed, &setup)?;
        let child = respawn(&folders, &installed, false)?;
        Ok((Self { dir, folders, installed, child }, layouts))
    }

    /// CRI's and containerd's socket.
    pub fn socket(&self) -> PathBuf {
        self.folders.socket()
    }

    /// The endpoint as `containerRuntimeEndpoint` wants it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The folder that disappears with this instance: tests may keep their own things in it.
    pub fn base(&self) -> &Path {
        &self.dir.base
    }

    /// Where a registry is announced: a folder named `host:port` with a `hosts.toml` (containerd's `config_path`).
    pub fn registries(&self) -> PathBuf {
        self.dir.base.join(REGISTRIES)
    }

    /// A cgroup name (absolute within each hierarchy, not created) for the pods of this test, such as a
    /// kubelet's `cgroupRoot`: everything in and below it is killed and removed at the end, and so is what the systemd
    /// driver makes of it.
    pub fn cgroup_root(&self) -> String {
        self.dir.cgroup()
    }

    /// The bridge of [`Network::Bridge`].
    pub fn bridge(&self) -> String {
        self.dir.bridge()
    }

    /// The daemon's pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the daemon printed.
    pub fn log(&self) -> PathBuf {
        self.folders.log()
    }

    /// Which binaries run.
    pub fn installed(&self) -> &Installed {
        &self.installed
    }

    /// A client of containerd's own API.
    pub async fn client(&self) -> Result<Client> {
        Client::from_path(self.socket()).await.context("connect to the private containerd")
    }

    /// Imports more images.
    pub async fn import(&self, layouts: &[Layout]) -> Result<()> {
        image::import(&self.client().await?, layouts).await
    }

    /// Kills the daemon as a crash would: containers and shims stay.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill().context("kill the private containerd")?;
        self.child.wait().context("wait for the private containerd")?;
        Ok(())
    }

    /// Starts the daemon again over the same folders, after [`Self::kill9`] or instead of it; containers
    /// go on running meanwhile. Returns when CRI answers.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill9()?;
        self.child = respawn(&self.folders, &self.installed, false)?;
        self.ready().await
    }

    /// Sends a signal to the daemon, such as `SIGSTOP` to play a hung one.
    pub fn signal(&self, signal: rustix::process::Signal) {
        if let Some(process) = ProcId::of(self.pid() as i32) {
            process.signal(signal);
        }
    }

    /// Stops every pod through CRI (so that the network plugins take back what they gave) and removes
    /// everything. Dropping does the same; this returns what went wrong.
    pub async fn stop(self) -> Result<()> {
        tokio::task::spawn_blocking(move || {
            let mut this = self;
            let problems = this.tear_down();
            if problems.is_empty() { Ok(()) } else { bail!("leftovers: {}", problems.join("; ")) }
        })
        .await?
    }

    async fn ready(&mut self) -> Result<()> {
        wait_ready(&self.folders, Some(&mut self.child)).await
    }

    fn tear_down(&mut self) -> Vec<String> {
        if !self.dir.base.exists() {
            return Vec::new();
        }
        self.signal(rustix::process::Signal::CONT);
        let socket = self.socket();
        if self.child.try_wait().is_ok_and(|exited| exited.is_none()) {
            // A thread of its own: the caller's may be inside a tokio runtime, which must not block.
            let stopped = std::thread::spawn(move || blocking(stop_all_pods(&socket))).join();
            let _swept_anyway = stopped;
        }
        let _killed_below = self.child.kill();
        let _reaped = self.child.wait();
        sweep_traces(&self.dir.traces())
    }
}

impl Drop for PrivateContainerd {
    fn drop(&mut self) {
        for problem in self.tear_down() {
            eprintln!("private containerd in {}: {problem}", self.dir.base.display());
        }
    }
}

/// The runtime that an end-to-end test talks to.
#[derive(Debug)]
pub enum UnderTest {
    /// Ours, gone at drop.
    Private(Box<PrivateContainerd>),
    /// One that somebody else runs: `CRI_SOCKET`. Images must be in it already.
    Given(PathBuf),
}

impl UnderTest {
    /// The CRI socket.
    pub fn socket(&self) -> PathBuf {
        match self {
            Self::Private(ours) => ours.socket(),
            Self::Given(path) => path.clone(),
        }
    }
}

/// The runtime that the environment asks for: the one at `CRI_SOCKET`, else a private one.
pub async fn under_test(options: Options) -> Result<UnderTest> {
    if let Some(given) = std::env::var_os("CRI_SOCKET") {
        let text = given.to_string_lossy();
        return Ok(UnderTest::Given(PathBuf::from(text.strip_prefix("unix://").unwrap_or(&text))));
    }
    Ok(UnderTest::Private(Box::new(PrivateContainerd::start(options).await?)))
}

/// The default handler first; `runc` always.
pub(crate) fn handlers(oci: Oci, flavour: Flavour) -> Result<Vec<(String, PathBuf)>> {
    let mut handlers = vec![(oci.to_string(), find_oci(oci, flavour)?)];
    if oci != Oci::Runc {
        handlers.push((Oci::Runc.to_string(), find_oci(Oci::Runc, flavour)?));
    }
    Ok(handlers)
}

/// What a configuration says beside where things lie.
#[derive(Debug)]
pub(crate) struct Setup {
    /// Of [`handlers`].
    pub handlers: Vec<(String, PathBuf)>,
    /// Where CNI configurations are looked up.
    pub cni_conf: PathBuf,
    /// Where CNI plugins are looked up.
    pub cni_bin: PathBuf,
    /// Who makes containers' cgroups.
    pub cgroup_driver: CgroupDriver,
}

/// Makes the folders and writes the configuration; returns its text.
pub(crate) fn configure(folders: &Folders, installed: &Installed, setup: &Setup) -> Result<String> {
    for dir in [&folders.base, &folders.root, &folders.state] {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let socket = folders.socket();
    let text = config::render(&config::Inputs {
        root: &folders.root,
        state: &folders.state,
        socket: &socket,
        handlers: &setup.handlers,
        cni_conf: &setup.cni_conf,
        cni_bin: &setup.cni_bin,
        registries: &folders.registries(),
        pause: image::PAUSE,
        restrict_oom: !config::may_lower_oom_score(),
        version_3: !installed.version.starts_with("1."),
        cgroup_driver: setup.cgroup_driver,
    });
    tree::write_if_changed(&folders.base.join("config.toml"), text.as_bytes())?;
    Ok(text)
}

/// Starts the daemon over the configuration that is there. `detached` puts it into a session of its
/// own, so that it outlives this process and its terminal.
pub(crate) fn respawn(folders: &Folders, installed: &Installed, detached: bool) -> Result<Child> {
    let log = File::options().create(true).append(true).open(folders.log())?;
    let mut command = if detached {
        let mut setsid = Command::new("setsid");
        setsid.arg(&installed.containerd);
        setsid
    } else {
        Command::new(&installed.containerd)
    };
    // The shim is looked up by name: the one of the same release must come first.
    let path =
        format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", installed.bin.display());
    command
        .arg("--config")
        .arg(folders.base.join("config.toml"))
        .env("PATH", path)
        .env_remove("NOTIFY_SOCKET");
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    if !detached {
        // Ctrl-C at a test must reach the test first, which then stops containerd in order.
        command.process_group(0);
    }
    let child = command.spawn().with_context(|| format!("start {}", installed.containerd.display()))?;
    let id = ProcId::of(child.id() as i32).context("containerd ended at once")?;
    tree::write_atomic(&folders.base.join(PID_FILE), id.to_string().as_bytes())?;
    Ok(child)
}

/// Returns when CRI answers `Version`, or says why it will not.
pub(crate) async fn wait_ready(folders: &Folders, mut child: Option<&mut Child>) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    let log = || {
        let text = fs::read(folders.log()).unwrap_or_default();
        crate::cmd::tail(&text, 5)
    };
    loop {
        if let Some(child) = child.as_deref_mut()
            && let Some(status) = child.try_wait()?
        {
            bail!("containerd ended ({status}): {}", log());
        }
        let attempt = tokio::time::timeout(Duration::from_secs(5), cri_answers(&folders.socket())).await;
        let why = match attempt {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "no answer within 5 s".to_owned(),
        };
        if Instant::now() > deadline {
            let plugin = failed_cri_plugin(&folders.socket()).await.unwrap_or_default();
            bail!("containerd is not ready after {START_LIMIT:?}: {why} {plugin}; its log ends: {}", log());
        }
        // The socket has no event to wait on once it exists but refuses: short, bounded polls.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn cri_answers(socket: &Path) -> Result<()> {
    let channel = containerd_client::connect(socket).await?;
    let mut client = RuntimeServiceClient::new(channel);
    client.version(VersionRequest { version: "v1".into() }).await.map(drop).context("CRI Version")
}

/// Why the CRI plugin did not load, in containerd's words.
async fn failed_cri_plugin(socket: &Path) -> Result<String> {
    let client = Client::from_path(socket).await?;
    let all = client.introspection().plugins(PluginsRequest::default()).await?.into_inner();
    let failed = all.plugins.iter().filter(|p| p.id == "cri" || p.r#type.starts_with("io.containerd.cri"));
    Ok(failed.filter_map(|p| Some(format!("({}: {})", p.r#type, p.init_err.as_ref()?.message))).collect())
}

/// Stops all pods at once, which kills their containers without grace and runs the network plugins' DEL.
pub(crate) async fn stop_all_pods(socket: &Path) -> Result<()> {
    let work = async {
        let channel = containerd_client::connect(socket).await?;
        let client = RuntimeServiceClient::new(channel);
        let all = client.clone().list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner();
        let stops = all.items.into_iter().map(|sandbox| {
            let mut client = client.clone();
            async move { client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: sandbox.id }).await }
        });
        for result in futures::future::join_all(stops).await {
            result?;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(20), work).await.context("stop all pods")?
}

/// Runs a future to its end outside any runtime. For teardown code that must not be async.
pub(crate) fn blocking<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

/// Deletes a network link; fine when there is none.
pub(crate) fn delete_link(name: &str) -> Result<()> {
    let Ok(index) = fs::read_to_string(format!("/sys/class/net/{name}/ifindex")) else { return Ok(()) };
    let index: u32 = index.trim().parse()?;
    let work = move || {
        blocking(async move {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            let serving = tokio::spawn(connection);
            let result = handle.link().del(index).execute().await;
            serving.abort();
            Ok(result?)
        })
    };
    let joined = std::thread::spawn(work).join().unwrap_or_else(|_| bail!("the netlink thread panicked"));
    joined.with_context(|| format!("delete link {name}"))
}

/// The network of one test: a bridge, leases in the test's folder, host ports.
fn conflist(dir: &TestDir) -> Result<String> {
    Ok(cni::default_conflist(&cni::ConflistParams {
        name: dir.bridge(),
        bridge: dir.bridge(),
        subnets: vec![dir.subnet().parse()?],
        data_dir: Some(dir.base.join("cni/leases")),
        ..Default::default()
    }))
}
