//! Running other programs with errors that say what was run and what it said.
//!
//! Called by everything in this crate that shells out (apt, dpkg, cargo, rustc). Never given
//! untrusted strings: arguments are passed as a list, no shell is involved.

use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `command` to its end with its output captured; a non-zero exit is an error that carries the
/// last lines of standard error.
pub fn run(command: &mut Command) -> Result<Output> {
    let line = line_of(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{line}`: is the program installed?"))?;
    if !output.status.success() {
        bail!("`{line}` failed ({}): {}", output.status, tail(&output.stderr, 6));
    }
    Ok(output)
}

/// Standard output of [`run`] as trimmed text.
pub fn text(command: &mut Command) -> Result<String> {
    let output = run(command)?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The command as a person would type it, for messages.
pub fn line_of(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// The last `lines` non-empty lines of some output, joined by `; `.
pub fn tail(bytes: &[u8], lines: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let all: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("; ")
}

/// The last `count` lines.
pub fn last_lines(text: &str, count: usize) -> Vec<&str> {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(count)..].to_vec()
}
