//! Builds binaries of this workspace for whoever needs to run them: tests, the benchmark, `up`.
//!
//! Blocking. cargo holds its own lock only while it compiles, so a running test may call this.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::tree;

/// How to compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Profile {
    /// Quick to build: tests.
    Dev,
    /// What users run, and what is measured.
    Release,
}

impl Profile {
    /// The folder below `target` (and below our own caches).
    pub fn dir(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

/// Builds `binary` of `package` and returns its path. `STEVEDORE_BIN_DIR` names a folder of finished
/// binaries to use instead.
pub fn binary(package: &str, binary: &str, profile: Profile) -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("STEVEDORE_BIN_DIR") {
        let path = PathBuf::from(dir).join(binary);
        if !path.exists() {
            bail!("STEVEDORE_BIN_DIR has no {binary}: {}", path.display());
        }
        return Ok(path);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(tree::root()).args(["build", "--message-format=json-render-diagnostics"]);
    command.args(["--package", package, "--bin", binary]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    // What cargo told a test about its own package would make build scripts (ring's) run and everything behind them
    // compile anew, here and in the next build of the person.
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(name);
        }
    }
    // cargo's progress bar and errors go to the person; the JSON on standard output is for us.
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("start cargo")?;
    if !output.status.success() {
        bail!("cargo could not build {binary} of {package} ({})", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let executable = text.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let named = message.get("target")?.get("name")?.as_str()? == binary;
        named.then(|| message.get("executable")?.as_str().map(PathBuf::from))?
    });
    executable.with_context(|| format!("cargo built {binary} of {package} but names no executable"))
}
