//! `cargo xtask`: the commands behind the scripts in `hack/`. Thin: it reads arguments and calls the
//! library.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use xtask::image::Image;
use xtask::runtime::{self, Flavour, Network, Oci, Options, PrivateContainerd};
use xtask::{bench, build, plugins, suite, up, vm};

#[derive(Parser)]
#[command(name = "xtask", about = "Stevedore's own tools", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a private containerd in the foreground until Ctrl-C
    Containerd {
        /// debian (1.6), 1.7 or 2
        #[arg(long, default_value = "debian")]
        flavour: Flavour,
        /// runc or crun
        #[arg(long, default_value = "runc")]
        oci: Oci,
        /// Pod network: none, ours (this tree's plugins) or reference
        #[arg(long, default_value = "none")]
        network: String,
    },
    /// Bring up a node agent with the example pods; run again, it converges
    Up {
        /// debian (1.6), 1.7 or 2; without it whatever containerd is installed
        #[arg(long)]
        flavour: Option<Flavour>,
        /// runc or crun
        #[arg(long, default_value = "runc")]
        oci: Oci,
        /// A folder of pod manifests to run instead of examples/
        #[arg(long)]
        examples: Option<std::path::PathBuf>,
    },
    /// Remove everything that `up` made
    Down,
    /// Run everything that must hold before a change lands
    Test,
    /// Measure the agent against the floor of its runtime
    Bench(bench::Arguments),
    /// Nodes with a kernel of their own, systemd and cgroup v2
    #[command(subcommand)]
    Vm(vm::Command),
    /// Remove what crashed tests left on this machine
    Clean {
        /// Also what belongs to tests that still run
        #[arg(long)]
        all: bool,
    },
    /// Write every image as a tar for runtimes other than containerd
    Images {
        /// The folder for the archives
        dir: std::path::PathBuf,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Containerd { flavour, oci, network } => containerd(flavour, oci, &network).await,
        Command::Up { flavour, oci, examples } => up::up(up::UpOptions { flavour, oci, examples }).await,
        Command::Down => up::down().await,
        Command::Test => suite::test(),
        Command::Bench(arguments) => bench::bench(arguments).await,
        Command::Vm(command) => vm::main(command),
        Command::Clean { all } => clean(all),
        Command::Images { dir } => images(&dir),
    }
}

async fn containerd(flavour: Flavour, oci: Oci, network: &str) -> Result<()> {
    let mut options = Options::new(flavour, oci);
    options.images = Image::ALL.to_vec();
    options.network = match network {
        "none" => Network::None,
        "ours" => Network::Bridge { plugins: plugins::ours(build::Profile::Dev)? },
        "reference" => Network::Bridge { plugins: plugins::reference()? },
        other => anyhow::bail!("--network {other:?}: expected none, ours or reference"),
    };
    let containerd = PrivateContainerd::start(options).await?;
    eprintln!("containerd {} with {oci}: {}", containerd.installed().version, containerd.endpoint());
    eprintln!("log {}, ctr {}", containerd.log().display(), containerd.installed().ctr().display());
    tokio::signal::ctrl_c().await.context("wait for Ctrl-C")?;
    containerd.stop().await
}

fn clean(all: bool) -> Result<()> {
    let (swept, problems) = runtime::sweep_dead(all)?;
    for dir in &swept {
        eprintln!("removed {}", dir.display());
    }
    anyhow::ensure!(problems.is_empty(), "not everything went: {}", problems.join("; "));
    Ok(())
}

fn images(dir: &std::path::Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    for image in Image::ALL {
        let path = dir.join(format!("{}.tar", image.short_name()));
        image.build()?.write_archive(&path)?;
        eprintln!("{image} -> {}", path.display());
    }
    Ok(())
}
