//! `xtask bench`: what the agent costs, against the floor of the runtime it drives, in one run.
//!
//! The floor is a bare CRI client that makes the same pod from the same messages on the same runtime, with
//! everything outside of CRI (cgroup, directories) made beforehand. Floor and agent take turns, so that
//! whatever else the machine does hits both; the ratios are what counts. How it is measured and the results
//! are in `docs/performance.md`.
//!
//! | module | for |
//! | --- | --- |
//! | [`setting`] | the runtime, folders and names of one run, and their removal |
//! | [`agent`] | the kubelet process: start, health, processor time, memory |
//! | [`floor`] | the bare client |
//! | [`stamps`] | what the containers tell |
//! | [`measure`] | the order of work |
//! | [`release`] | how soon a pod that ended has given everything back (`--release`: nothing else) |
//! | [`probes`] | what probing costs, in a run of its own (`--probes`) |
//! | [`stats`] | what telling numbers costs, in a run of its own (`--stats`) |
//! | [`report`] | figures, the table, JSON |

mod agent;
mod floor;
mod measure;
mod pod;
mod probes;
mod release;
mod report;
mod setting;
mod stamps;
mod stats;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::build::{self, Profile};
use crate::runtime::{Flavour, Oci};
use crate::tree;

/// What is asked for on the command line.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// debian (1.6), 1.7 or 2; ignored with CRI_SOCKET
    #[arg(long, default_value = "2")]
    flavour: Flavour,
    /// runc or crun; ignored with CRI_SOCKET
    #[arg(long, default_value = "runc")]
    oci: Oci,
    /// Pods that run while the agent idles, at most 110
    #[arg(long, default_value_t = 110)]
    pods: usize,
    /// Pods in a burst
    #[arg(long, default_value_t = 30)]
    burst: usize,
    /// Bursts of the floor and of the agent each
    #[arg(long, default_value_t = 5)]
    bursts: usize,
    /// Pods started one by one by the floor and by the agent each
    #[arg(long, default_value_t = 30)]
    singles: usize,
    /// Seconds over which processor time of an idle agent is taken
    #[arg(long, default_value_t = 20)]
    idle: u64,
    /// Measure an agent that probes its pods every ten seconds, and nothing else
    #[arg(long)]
    probes: bool,
    /// Measure how soon pods that ended have given everything back, and nothing else
    #[arg(long, conflicts_with = "probes")]
    release: bool,
    /// Measure what it costs to tell what pods use, and nothing else
    #[arg(long, conflicts_with_all = ["probes", "release"])]
    stats: bool,
    /// Few of everything: does the benchmark itself work?
    #[arg(long)]
    quick: bool,
    /// The agent's log level (`-v`), for looking into its log
    #[arg(short = 'v', long, default_value_t = 2)]
    verbosity: u8,
    /// Keep the agent's log here
    #[arg(long)]
    log: Option<PathBuf>,
    /// Where the figures go, instead of .stevedore/bench/<time>.json
    #[arg(long)]
    json: Option<PathBuf>,
}

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
struct Amounts {
    singles: usize,
    burst: usize,
    bursts: usize,
    /// Pods of each size that end, of the floor and of the agent each.
    releases: usize,
    pods: usize,
    /// How often the agent is started to see when it is healthy.
    starts: usize,
    #[serde(skip)]
    idle: Duration,
    /// How long the node is left alone before the agent counts as idle.
    #[serde(skip)]
    settle: Duration,
}

impl Arguments {
    fn amounts(&self) -> Amounts {
        if self.quick {
            let (idle, settle) = (Duration::from_secs(2), Duration::from_secs(2));
            return Amounts {
                singles: 3,
                burst: 4,
                bursts: 1,
                releases: 2,
                pods: 6,
                starts: 2,
                idle,
                settle,
            };
        }
        Amounts {
            singles: self.singles.max(1),
            burst: self.burst.clamp(1, 110),
            bursts: self.bursts.max(1),
            releases: self.singles.div_ceil(2).max(1),
            pods: self.pods.clamp(1, 110),
            starts: 7,
            idle: Duration::from_secs(self.idle.max(1)),
            settle: Duration::from_secs(10),
        }
    }
}

/// Measures and reports; leaves nothing behind, also when it is ended by Ctrl-C.
///
/// # Errors
/// What could not be set up or measured. A missed target is no error.
pub async fn bench(arguments: Arguments) -> Result<()> {
    let amounts = arguments.amounts();
    let binary =
        tokio::task::spawn_blocking(|| build::binary("kubelet", "kubelet", Profile::Release)).await??;
    let mut setting = setting::Setting::make(&arguments, binary).await?;
    let work = async {
        if arguments.release {
            return release::alone(&mut setting, amounts).await;
        }
        if arguments.stats {
            let telling = stats::measure(&mut setting, amounts, arguments.quick).await?;
            return Ok(report::Measured { telling: Some(telling), ..Default::default() });
        }
        if !arguments.probes {
            return measure::measure(&mut setting, amounts).await;
        }
        let probing = probes::measure(&mut setting, amounts, arguments.quick).await?;
        Ok(report::Measured { probing: Some(probing), ..Default::default() })
    };
    let measured = tokio::select! {
        measured = work => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("ended by Ctrl-C")),
    };
    if let Some(keep) = &arguments.log {
        fs::copy(setting.agent_log(), keep).with_context(|| format!("copy the log to {}", keep.display()))?;
    }
    let runtime = setting.runtime().to_owned();
    let removed = setting.remove().await;
    let report = report::Report::new(runtime, amounts, measured?);
    removed.context("remove what the benchmark made")?;
    let json = match arguments.json {
        Some(path) => path,
        None => {
            tree::cache("bench")?.join(format!("{}.json", jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ")))
        }
    };
    tree::write_atomic(&json, format!("{}\n", serde_json::to_string_pretty(&report)?).as_bytes())?;
    #[expect(clippy::print_stdout, reason = "the table is what the command is for")]
    {
        print!("{report}");
    }
    eprintln!("figures: {}", json.display());
    Ok(())
}
