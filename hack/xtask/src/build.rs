//! Builds binaries of this workspace for whoever needs to run them: tests, the benchmark, `up`.
//!
//! Blocking. cargo holds its own lock only while it compiles, so a running test may call this.

use std::path::{Path, PathBuf};
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
    let mut arguments = vec!["build", "--package", package, "--bin", binary];
    if profile == Profile::Release {
        arguments.push("--release");
    }
    let messages = cargo(&arguments).with_context(|| format!("build {binary} of {package}"))?;
    let executable = messages.iter().rev().find_map(|message| {
        let named = message.get("target")?.get("name")?.as_str()? == binary;
        named.then(|| message.get("executable")?.as_str().map(PathBuf::from))?
    });
    executable.with_context(|| format!("cargo built {binary} of {package} but names no executable"))
}

/// A compiled test program.
#[derive(Debug, Clone)]
pub struct Test {
    /// The name of its target, such as `basic` for `tests/basic.rs` and that of the crate for unit tests.
    pub name: String,
    /// The program.
    pub executable: PathBuf,
    /// The folder of its package, from which cargo would run it.
    pub package: PathBuf,
}

/// Compiles the test programs that `cargo test` with this `selection` would run, in its order.
pub fn tests(selection: &[&str]) -> Result<Vec<Test>> {
    let messages = cargo(&[&["test", "--no-run"], selection].concat())
        .with_context(|| format!("compile the tests of {}", selection.join(" ")))?;
    let test = |message: &serde_json::Value| {
        message.get("profile")?.get("test")?.as_bool()?.then_some(())?;
        Some(Test {
            name: message.get("target")?.get("name")?.as_str()?.to_owned(),
            executable: message.get("executable")?.as_str()?.into(),
            package: Path::new(message.get("manifest_path")?.as_str()?).parent()?.to_path_buf(),
        })
    };
    let mut found: Vec<Test> = messages.iter().filter_map(test).collect();
    // Messages come in the order of compiling.
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Runs cargo with its messages in JSON, and returns them.
fn cargo(arguments: &[&str]) -> Result<Vec<serde_json::Value>> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(tree::root()).args(arguments).arg("--message-format=json-render-diagnostics");
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
        bail!("cargo failed ({})", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}
