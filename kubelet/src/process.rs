//! The process around the agent: logging, limits, the wait for the runtime, signals, the end.
//!
//! Called by `main`. The agent may be ended at any instant: nothing here has to run for pods to stay as they are.

use crate::assemble::{Agent, Settings};
use crate::config::Loaded;
use crate::metrics::Metrics;
use crate::server::{CertSource, SecureConfig, Server, ServerConfig};
use crate::status::Change;
use crate::trace::{self, Tracer};
use crate::view::View;
use anyhow::{Context, bail};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast::{self, error::RecvError};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Logs go to standard error, as text or JSON (`logging.format`), as much as `logging.verbosity` says: from 4 on what
/// each step does, from 6 on what libraries do. `RUST_LOG` overrides: levels by module, such as `info,kubelet::pleg=trace`.
pub fn init_logging(loaded: &Loaded) {
    let logging = &loaded.config.logging;
    let default = match logging.verbosity {
        0..=3 => Targets::new().with_default(LevelFilter::INFO),
        4..=5 => Targets::new()
            .with_default(LevelFilter::INFO)
            .with_target("kubelet", LevelFilter::DEBUG)
            .with_target("cri", LevelFilter::DEBUG),
        6..=7 => Targets::new().with_default(LevelFilter::DEBUG),
        _ => Targets::new().with_default(LevelFilter::TRACE),
    };
    let asked = std::env::var("RUST_LOG").ok().and_then(|text| text.parse().ok());
    let filter: Targets = asked.unwrap_or(default);
    let to_stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = if logging.format == "json" {
        to_stderr.json().flatten_event(true).boxed()
    } else {
        to_stderr.with_ansi(false).boxed()
    };
    // A second initialisation can only come from a test in this process; its logs are as good.
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
}

/// Makes the table of open files large at once. Called before there is a second thread: once threads share the table,
/// the kernel waits for a grace period whenever it grows it, and whoever opens the file stands still for milliseconds,
/// such as in the middle of the first burst of pods.
pub fn grow_file_table() {
    // A process that may not have so many files needs no large table.
    let _ = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), FILE_TABLE - 1);
}

/// Entries of the table: well above what an agent with all pods has open.
const FILE_TABLE: i32 = 1024;

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// The machine or the configuration does not allow it to run; the message names what.
pub async fn run(loaded: &Loaded) -> anyhow::Result<()> {
    check_machine(loaded)?;
    limits(loaded);
    let mut settings = Settings::from_loaded(loaded)?;
    let metrics = Metrics::new(Path::new("/proc"));
    let (tracer, traces) = tracer(loaded, &settings.facts.node_name, &metrics).unzip();
    settings.tracer = tracer.unwrap_or_default();
    metrics.set_node_name(&settings.facts.node_name);
    let client = client(loaded, &metrics)?;
    let view = Arc::new(View::new(loaded, &settings, client.clone()));
    let server = Server::start(server_config(loaded, &settings)?, view.clone(), metrics.clone())
        .await
        .context("cannot serve the agent's API")?;
    let mut end = Ended::listen()?;
    let capabilities = tokio::select! {
        capabilities = connected(&client) => capabilities,
        () = end.wait() => return Ok(()),
    };
    tracing::info!(
        runtime = capabilities.runtime_name,
        version = capabilities.runtime_version,
        events = capabilities.container_events,
        "connected to the runtime"
    );
    let agent = Agent::start(settings, client, &capabilities, metrics).await?;
    let trim = tokio::spawn(trim_when_quiet(agent.statuses.subscribe()));
    view.agent_started(agent);
    end.wait().await;
    trim.abort();
    tracing::info!("ending; pods go on running");
    server.stop(SERVER_GRACE).await;
    if let Some(traces) = traces {
        traces.within(TRACE_GRACE).await;
    }
    Ok(())
}

/// A burst of pods leaves holes in the heap: once no status has changed for a while, they go back to the machine.
async fn trim_when_quiet(mut changes: broadcast::Receiver<Change>) {
    while !matches!(changes.recv().await, Err(RecvError::Closed)) {
        while tokio::time::timeout(QUIET, changes.recv())
            .await
            .is_ok_and(|c| !matches!(c, Err(RecvError::Closed)))
        {}
        // A panic in there would be the allocator's.
        let _ = tokio::task::spawn_blocking(crate::sys::trim_heap).await;
    }
}

/// How long nothing happens before the agent takes it for quiet.
const QUIET: Duration = Duration::from_secs(5);

/// How long spans that are queued may take when the agent ends.
const TRACE_GRACE: Duration = Duration::from_secs(1);

/// Starts exporting, where `tracing` asks for spans at all.
fn tracer(loaded: &Loaded, node: &str, metrics: &Metrics) -> Option<(Tracer, trace::Flush)> {
    let tracing = loaded.config.tracing.as_ref()?;
    let per_million =
        u32::try_from(tracing.sampling_rate_per_million.unwrap_or(0)).ok().filter(|n| *n > 0)?;
    let target = trace::Target::parse(tracing.endpoint.as_deref().unwrap_or_default());
    Some(Tracer::start(trace::ExportConfig { target, per_million, node: node.to_owned() }, metrics))
}

/// How long open requests may go on when the agent ends.
const SERVER_GRACE: Duration = Duration::from_millis(200);

fn server_config(loaded: &Loaded, settings: &Settings) -> anyhow::Result<ServerConfig> {
    let config = &loaded.config;
    let socket = |ip: &str, port: i32, field: &str| -> anyhow::Result<Option<SocketAddr>> {
        let ip: IpAddr = ip.parse().with_context(|| format!("{field}: {ip:?} is not an IP address"))?;
        let port = u16::try_from(port).with_context(|| format!("{field}: port {port} is out of range"))?;
        Ok((port != 0).then_some(SocketAddr::new(ip, port)))
    };
    let secure = match socket(&config.address, config.port, "address")? {
        Some(address) if config.enable_server => Some(SecureConfig {
            address,
            certificate: if config.tls_cert_file.is_empty() {
                CertSource::SelfMade {
                    dir: settings.cert_dir.clone(),
                    hostname: settings.facts.node_name.clone(),
                }
            } else {
                CertSource::Files {
                    cert: config.tls_cert_file.clone().into(),
                    key: config.tls_private_key_file.clone().into(),
                }
            },
            min_version: config.tls_min_version.clone(),
            cipher_suites: config.tls_cipher_suites.clone(),
            client_ca: loaded.access.client_ca_file.clone(),
            anonymous: loaded.access.anonymous,
            debugging: config.enable_debugging_handlers,
            system_logs: config.enable_system_log_handler,
            profiling: config.enable_profiling_handler,
            debug_flags: config.enable_debug_flags_handler,
            checkpoints: loaded.gates.enabled("ContainerCheckpoint"),
        }),
        _ => None,
    };
    let read_only = socket(&config.address, config.read_only_port, "address")?;
    Ok(ServerConfig {
        secure,
        healthz: socket(&config.healthz_bind_address, config.healthz_port, "healthzBindAddress")?,
        read_only: read_only.filter(|_| config.enable_server),
        split_log_streams: loaded.gates.enabled("PodLogsQuerySplitStreams"),
        stall_timeout: config.streaming_connection_idle_timeout.to_std(),
    })
}

fn client(loaded: &Loaded, metrics: &Metrics) -> anyhow::Result<cri::Client> {
    let config = &loaded.config;
    let connector =
        cri::Connector::parse(&config.container_runtime_endpoint).context("containerRuntimeEndpoint")?;
    let metrics = metrics.clone();
    let mut builder = cri::Client::builder(connector)
        .deadlines(cri::Deadlines { base: config.runtime_request_timeout.to_std(), ..Default::default() })
        .observe(move |call| {
            metrics.runtime_operation(operation(call.call), call.took, call.error.is_some());
            trace::observe(call);
        });
    if !config.image_service_endpoint.is_empty() {
        builder = builder
            .image(cri::Connector::parse(&config.image_service_endpoint).context("imageServiceEndpoint")?);
    }
    Ok(builder.build())
}

/// Upstream's name of a call in `kubelet_runtime_operations_total`.
fn operation(call: &'static str) -> &'static str {
    match call {
        "Version" => "version",
        "Status" => "status",
        "RunPodSandbox" => "run_podsandbox",
        "StopPodSandbox" => "stop_podsandbox",
        "RemovePodSandbox" => "remove_podsandbox",
        "PodSandboxStatus" => "podsandbox_status",
        "ListPodSandbox" => "list_podsandbox",
        "CreateContainer" => "create_container",
        "StartContainer" => "start_container",
        "StopContainer" => "stop_container",
        "RemoveContainer" => "remove_container",
        "ContainerStatus" => "container_status",
        "ListContainers" => "list_containers",
        "ReopenContainerLog" => "reopen_container_log",
        "CheckpointContainer" => "checkpoint_container",
        "ExecSync" => "exec_sync",
        "ImageStatus" => "image_status",
        "ListImages" => "list_images",
        "PullImage" => "pull_image",
        "RemoveImage" => "remove_image",
        "ImageFsInfo" => "image_fs_info",
        other => other,
    }
}

/// Waits for the runtime, saying so: a node whose runtime comes later is a node all the same.
async fn connected(client: &cri::Client) -> Arc<cri::Capabilities> {
    let wait = client.connected();
    tokio::pin!(wait);
    loop {
        tokio::select! {
            capabilities = &mut wait => return capabilities,
            () = tokio::time::sleep(Duration::from_secs(10)) => {
                if let cri::Connection::Disconnected { error, .. } = &*client.connection().borrow() {
                    tracing::warn!(error, "still waiting for the container runtime");
                }
            }
        }
    }
}

/// What makes upstream refuse to start.
fn check_machine(loaded: &Loaded) -> anyhow::Result<()> {
    let config = &loaded.config;
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if config.fail_cgroup_v1 && !v2 {
        bail!(
            "failCgroupV1: true, and this machine uses cgroup v1; set failCgroupV1: false in the configuration to run \
             on it"
        );
    }
    if !v2 && config.single_process_oom_kill == Some(false) {
        bail!("singleProcessOOMKill: false needs cgroup v2, and this machine uses cgroup v1");
    }
    if config.protect_kernel_defaults {
        let differences = crate::node::kernel_differences(Path::new("/proc/sys"));
        if !differences.is_empty() {
            bail!("protectKernelDefaults: true, and {}", differences.join("; "));
        }
    }
    if config.fail_swap_on {
        let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
        if let Some(device) = swaps.lines().nth(1) {
            bail!("failSwapOn: true, and swap is on: {device}; turn it off or set failSwapOn: false");
        }
    }
    Ok(())
}

/// Limits of this process. A machine that denies them is told of once; the agent runs all the same.
fn limits(loaded: &Loaded) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let wanted = loaded.config.max_open_files.unsigned_abs();
    let now = getrlimit(Resource::Nofile);
    let allowed = now.maximum.map_or(wanted, |max| max.min(wanted));
    for limit in
        [Rlimit { current: Some(wanted), maximum: Some(wanted) }, Rlimit { current: Some(allowed), ..now }]
    {
        match setrlimit(Resource::Nofile, limit) {
            Ok(()) => break,
            Err(error) => tracing::debug!(%error, wanted, "cannot raise the limit of open files"),
        }
    }
    let adj = loaded.config.oom_score_adj;
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", adj.to_string()) {
        tracing::warn!(%error, oom_score_adj = adj, "cannot set the agent's own OOM score");
    }
}

/// The signals that end the agent.
struct Ended {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl Ended {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}
