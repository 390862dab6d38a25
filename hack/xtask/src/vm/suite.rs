//! The end-to-end tests of the node agent, and those of its own that need cgroup v2, run inside a node.
//!
//! Test programs are compiled here and run there, one after the other, from the same paths. What they print is what
//! `cargo test` would, so that it is counted in the same way. Called by `hack/test` and by `hack/vm test`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::node::{Node, Outcome, Spec};
use crate::build::{self, Profile};
use crate::image::Image;
use crate::runtime::{self, CgroupDriver, Flavour, Oci};
use crate::tree;

/// Unit tests whose subject is the machine's own cgroups: they do less, or nothing, where those are not v2.
const ROOMS: &[&str] = &["cgroup::", "stats::", "evict::", "resource::"];
/// What the tests do less of, or wait longer for, because a node is several times slower than the machine: how long a
/// condition may take to come true, in seconds, and the lines of a log.
const SLOWER: [(&str, &str); 2] = [("STEVEDORE_WAIT", "180"), ("STEVEDORE_LOG_LINES", "200000")];
const MEMORY_MIB: u32 = 2048;

/// What to run, and on what.
#[derive(Debug, Clone)]
pub struct Suite {
    /// Of containerd and the agent.
    pub driver: CgroupDriver,
    /// Which containerd.
    pub flavour: Flavour,
    /// Which OCI runtime: the one of the node's own system.
    pub oci: Oci,
    /// Names of test programs, such as `basic`, or `kubelet` for unit tests; all when empty.
    pub programs: Vec<String>,
    /// Which of the cores that we may use.
    pub core: usize,
    /// When it is killed.
    pub limit: Duration,
}

/// Compiled, fetched and built: what a suite needs before its node boots.
#[derive(Debug, Clone)]
pub struct Prepared {
    programs: Vec<Program>,
    /// Holds the agent and the plugins.
    binaries: PathBuf,
}

#[derive(Debug, Clone)]
struct Program {
    name: String,
    path: PathBuf,
    /// Where cargo would run it.
    directory: PathBuf,
    arguments: Vec<String>,
}

/// Compiles and fetches all that any suite with this containerd needs. Blocking.
pub fn prepare(flavour: Flavour) -> Result<Prepared> {
    super::ready()?;
    runtime::find(flavour)?;
    for image in Image::ALL {
        image.build()?;
    }
    let agent = build::binary("kubelet", "kubelet", Profile::Dev)?;
    build::binary("cni-plugins", "stevedore-cni", Profile::Dev)?;
    let binaries = agent.parent().context("a program lies in a folder")?.to_path_buf();
    let program = |test: build::Test, arguments: &[&str]| Program {
        name: test.name,
        path: test.executable,
        directory: test.package,
        arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
    };
    let end_to_end = build::tests(&["--package", "node-e2e"])?;
    // The packages that `hack/test` compiles together for unit tests: others would have features that are compiled anew.
    let units = build::tests(&["--workspace", "--exclude", "node-e2e", "--lib"])?;
    let mut programs: Vec<Program> = end_to_end.into_iter().map(|test| program(test, &[])).collect();
    programs.extend(units.into_iter().filter(|test| test.name == "kubelet").map(|test| program(test, ROOMS)));
    Ok(Prepared { programs, binaries })
}

impl Suite {
    /// Runs it; what the tests print goes to `output`. Blocks until the node is gone.
    ///
    /// # Errors
    /// When a program is named that there is none of, or no node can be had.
    pub fn run(&self, prepared: &Prepared, output: Stdio) -> Result<Outcome> {
        let mut spec = Spec::new(&format!("node-{}", self.driver));
        (spec.core, spec.memory_mib, spec.limit) = (self.core, MEMORY_MIB, self.limit);
        let root = tree::root();
        if !prepared.binaries.starts_with(&root) {
            spec.folders.push(prepared.binaries.clone());
        }
        spec.environment = [
            ("STEVEDORE_TREE", root.display().to_string()),
            ("STEVEDORE_BIN_DIR", prepared.binaries.display().to_string()),
            ("STEVEDORE_CONTAINERD", self.flavour.to_string()),
            ("STEVEDORE_OCI", self.oci.to_string()),
            ("STEVEDORE_CGROUP_DRIVER", self.driver.to_string()),
        ]
        .into_iter()
        .chain(SLOWER.map(|(name, value)| (name, value.to_owned())))
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        spec.command = vec!["bash".to_owned(), "-c".to_owned(), script(&self.chosen(prepared)?)?];
        Node::boot(&spec, output)?.wait()
    }

    fn chosen<'a>(&self, prepared: &'a Prepared) -> Result<Vec<&'a Program>> {
        let names = || prepared.programs.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
        for name in &self.programs {
            let known = prepared.programs.iter().any(|p| p.name == *name);
            ensure!(known, "there is no test program {name:?}; there are {}", names());
        }
        let all = prepared.programs.iter();
        Ok(all.filter(|p| self.programs.is_empty() || self.programs.contains(&p.name)).collect())
    }
}

/// Runs every program, whatever became of those before it.
fn script(programs: &[&Program]) -> Result<String> {
    let text = |path: &Path| path.to_str().map(super::node::quote).context("a path that is no text");
    let mut script = "failed=0\n".to_owned();
    for p in programs {
        let arguments: Vec<String> = p.arguments.iter().map(|a| super::node::quote(a)).collect();
        script.push_str(&format!(
            "echo '     Running {name}'; cd {dir} && {path} --show-output {arguments} || failed=1\n\
             echo \"     Ended {name} after $SECONDS s\"\n",
            name = p.name,
            dir = text(&p.directory)?,
            path = text(&p.path)?,
            arguments = arguments.join(" "),
        ));
    }
    script.push_str("exit $failed\n");
    Ok(script)
}
