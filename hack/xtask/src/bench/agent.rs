//! The agent under measurement: the kubelet process of one run, from outside.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::time::TimeValLike as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::stamps::{ms, now};
use crate::cmd;
use crate::proc::ProcId;

/// How long a start may take before it counts as failed.
const HEALTHY_LIMIT: Duration = Duration::from_secs(60);
/// Between two questions for health: what a figure of health may be too large by.
const ASK_AGAIN: Duration = Duration::from_millis(2);

/// How to start the agent.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    pub binary: PathBuf,
    pub arguments: Vec<String>,
    pub healthz_port: u16,
    pub log: PathBuf,
}

/// The running agent; killed at drop. Its pods go on running.
#[derive(Debug)]
pub(super) struct Agent {
    child: Child,
    /// Milliseconds from before fork and exec until it was healthy.
    pub healthy_ms: f64,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _already_dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Agent {
    /// Starts the agent and waits until it is healthy.
    pub(super) async fn start(launch: &Launch) -> Result<Self> {
        let log = File::options().create(true).append(true).open(&launch.log)?;
        let mut command = Command::new(&launch.binary);
        command.args(&launch.arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let began = now();
        let child = command.spawn().with_context(|| format!("start {}", launch.binary.display()))?;
        let mut this = Self { child, healthy_ms: 0.0 };
        loop {
            if healthy(launch.healthz_port).await {
                this.healthy_ms = ms(began, now());
                return Ok(this);
            }
            let failed = this.child.try_wait()?.map(|status| format!("it ended ({status})"));
            let late =
                (ms(began, now()) > HEALTHY_LIMIT.as_secs_f64() * 1e3).then(|| "it is late".to_owned());
            if let Some(why) = failed.or(late) {
                bail!("the agent is not healthy: {why}: {}", log_end(&launch.log));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Ends the agent by SIGTERM and waits for its end.
    pub(super) async fn stop(mut self) -> Result<()> {
        let process = ProcId::of(self.pid()).context("the agent ended by itself")?;
        process.signal(rustix::process::Signal::TERM);
        let gone = tokio::task::spawn_blocking(move || process.wait_gone(Duration::from_secs(10))).await?;
        anyhow::ensure!(gone, "the agent does not end within 10 s of SIGTERM");
        self.child.wait()?;
        Ok(())
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Processor time of all its threads so far, user and system, in milliseconds.
    pub(super) fn cpu_ms(&self) -> Result<f64> {
        let clock = nix::time::clock_getcpuclockid(nix::unistd::Pid::from_raw(self.pid()))?;
        Ok(clock.now()?.num_nanoseconds() as f64 / 1e6)
    }

    /// Its proportional set size in MiB.
    pub(super) fn pss_mib(&self) -> Result<f64> {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line =
            text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss in smaps_rollup")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib / 1024.0)
    }
}

/// Whether `/healthz` answers 200.
async fn healthy(port: u16) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with(b"HTTP/1.1 200"))
    };
    tokio::time::timeout(Duration::from_secs(5), ask).await.is_ok_and(|answer| answer.unwrap_or(false))
}

fn log_end(log: &Path) -> String {
    cmd::tail(&fs::read(log).unwrap_or_default(), 3)
}
