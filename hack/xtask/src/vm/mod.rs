//! Nodes with a kernel of their own: user-mode Linux (a kernel that runs as a process) with systemd and cgroup v2, whatever
//! the machine itself has.
//!
//! [`kernel`] finds the kernel, [`image`] the root file system, [`Node`] runs one node over both. Called by the lane of
//! `hack/test` that runs the end-to-end tests on cgroup v2, by tests, and by `hack/vm`. A node sees the source tree at the
//! tree's own path, so that paths mean the same inside and outside; what it writes there stays in the node. Nothing of a
//! node outlives the thread that started it.

pub mod image;
pub mod kernel;
mod node;
mod scratch;
pub mod suite;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;

use crate::runtime::{CgroupDriver, Flavour, Oci};
use crate::tree;
pub use node::{Node, Outcome, Spec};

/// `hack/vm`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Run a command as root in a node, from the root of the tree, and leave with its exit status
    Run {
        /// Kill the node after so many seconds
        #[arg(long, default_value_t = 600)]
        limit: u64,
        /// Its memory, in MiB
        #[arg(long, default_value_t = 1024)]
        memory: u32,
        /// Which of the machine's cores it keeps to
        #[arg(long, default_value_t = 0)]
        core: usize,
        /// A variable for the command, as NAME=VALUE
        #[arg(long = "env", value_name = "NAME=VALUE")]
        environment: Vec<String>,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Run the end-to-end tests in a node, or some of their programs
    Test {
        /// Of containerd and the agent: systemd or cgroupfs
        #[arg(long, default_value = "cgroupfs")]
        driver: CgroupDriver,
        /// debian (1.6), 1.7 or 2
        #[arg(long, default_value = "2")]
        flavour: Flavour,
        /// runc or crun
        #[arg(long, default_value = "runc")]
        oci: Oci,
        /// Kill the node after so many seconds
        #[arg(long, default_value_t = 3600)]
        limit: u64,
        /// Which of the machine's cores it keeps to
        #[arg(long, default_value_t = 0)]
        core: usize,
        /// Names of test programs, such as basic; kubelet for unit tests
        programs: Vec<String>,
    },
    /// Build the root file system, where it is not there yet, and print its path
    Image,
    /// Build the kernel from Debian's source (ten minutes and more) and print its path
    Kernel,
}

/// Does what `hack/vm` was asked for; the exit status is the command's own.
pub fn main(command: Command) -> Result<()> {
    let path = match command {
        Command::Run { limit, memory, core, environment, command } => {
            let mut spec = Spec::new("node");
            (spec.limit, spec.memory_mib, spec.core) = (Duration::from_secs(limit), memory, core);
            spec.environment = environment.iter().map(|e| split(e)).collect::<Result<_>>()?;
            spec.command = command;
            return leave_with(Node::boot(&spec, Stdio::inherit())?.wait()?);
        }
        Command::Test { driver, flavour, oci, limit, core, programs } => {
            let limit = Duration::from_secs(limit);
            let suite = suite::Suite { driver, flavour, oci, programs, core, limit };
            return leave_with(suite.run(&suite::prepare(flavour)?, Stdio::inherit())?);
        }
        Command::Image => image::find_or_build()?,
        Command::Kernel => kernel::build()?,
    };
    eprintln!("{}", path.display());
    Ok(())
}

fn split(variable: &str) -> Result<(String, String)> {
    match variable.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => anyhow::bail!("--env {variable:?}: expected NAME=VALUE"),
    }
}

fn leave_with(outcome: Outcome) -> Result<()> {
    match outcome {
        Outcome::Ended(0) => Ok(()),
        Outcome::Ended(status) => std::process::exit(status),
        failed => anyhow::bail!("{failed}"),
    }
}

/// Why there can be no node here: the reason of a skip. Builds the root file system where that is missing.
pub fn ready() -> Result<()> {
    kernel::find()?;
    image::find_or_build().map(drop)
}

/// `.stevedore/vm`.
fn cache() -> Result<PathBuf> {
    tree::cache("vm")
}
