//! Running one plugin: environment, standard input, bounded time and output.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::Runtime;
use crate::args::Attachment;
use crate::error::CniError;

/// Why a plugin gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum PluginFailure {
    #[error("not found in {}", .searched.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
    NotFound { searched: Vec<PathBuf> },
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("did not finish within {seconds} s and was killed")]
    Timeout { seconds: u64 },
    #[error("wrote more than {max} bytes and was killed")]
    TooMuchOutput { max: usize },
    /// The plugin's own error object.
    #[error("{0} (code {code})", code = .0.code)]
    Refused(CniError),
    #[error("{status} without an error object; it said {said:?}")]
    Crashed { status: String, said: String },
    #[error("its output is not JSON: {problem}; it begins with {begin:?}")]
    NotJson { problem: String, begin: String },
}

impl Runtime {
    /// The binary of a plugin.
    pub fn find(&self, plugin: &str) -> Result<PathBuf, PluginFailure> {
        self.bin_dirs
            .iter()
            .map(|dir| dir.join(plugin))
            .find(|path| path.is_file())
            .ok_or_else(|| PluginFailure::NotFound { searched: self.bin_dirs.clone() })
    }
}

/// Runs the plugin `path` with `command` (ADD, DEL…) and returns its answer, `Null` when it wrote nothing.
pub async fn run_plugin(
    runtime: &Runtime,
    path: &Path,
    command: &str,
    attachment: Option<&Attachment>,
    stdin: &Value,
) -> Result<Value, PluginFailure> {
    let io = |source| PluginFailure::Io { path: path.to_path_buf(), source };
    let mut child = Command::new(path);
    child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"] {
        child.env_remove(name);
    }
    let bin_path = std::env::join_paths(&runtime.bin_dirs).map_err(|e| io(io::Error::other(e)))?;
    child.env("CNI_COMMAND", command).env("CNI_PATH", bin_path);
    if let Some(a) = attachment {
        child.env("CNI_CONTAINERID", &a.container_id).env("CNI_IFNAME", &a.ifname);
        child.env("CNI_NETNS", a.netns.as_deref().unwrap_or(Path::new("")));
        child.env("CNI_ARGS", a.args.render());
    }
    let mut child = child.spawn().map_err(io)?;
    let (mut to, out, err) = (
        child.stdin.take().expect("stdin is piped"),
        child.stdout.take().expect("stdout is piped"),
        child.stderr.take().expect("stderr is piped"),
    );
    let input = stdin.to_string();
    let talk = async {
        let write = async {
            // A plugin may answer without having read everything.
            match to.write_all(input.as_bytes()).await {
                Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(io(e)),
                _ => {
                    drop(to);
                    Ok(())
                }
            }
        };
        let (_, out, err) = tokio::try_join!(
            write,
            read_bounded(out, runtime.max_output, path),
            read_bounded(err, runtime.max_output, path)
        )?;
        let status = child.wait().await.map_err(io)?;
        Ok((status, out, err))
    };
    let (status, out, err) = match tokio::time::timeout(runtime.timeout, talk).await {
        Ok(done) => done?,
        // Dropping the child kills it.
        Err(_) => return Err(PluginFailure::Timeout { seconds: runtime.timeout.as_secs() }),
    };
    if !status.success() {
        if let Ok(error) = serde_json::from_slice::<CniError>(&out) {
            return Err(PluginFailure::Refused(error));
        }
        let said = if err.is_empty() { &out } else { &err };
        return Err(PluginFailure::Crashed { status: status.to_string(), said: begin(said) });
    }
    if out.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&out)
        .map_err(|e| PluginFailure::NotJson { problem: e.to_string(), begin: begin(&out) })
}

async fn read_bounded(
    mut from: impl tokio::io::AsyncRead + Unpin,
    max: usize,
    path: &Path,
) -> Result<Vec<u8>, PluginFailure> {
    let mut bytes = Vec::new();
    (&mut from)
        .take(max as u64 + 1)
        .read_to_end(&mut bytes)
        .await
        .map_err(|source| PluginFailure::Io { path: path.to_path_buf(), source })?;
    if bytes.len() > max { Err(PluginFailure::TooMuchOutput { max }) } else { Ok(bytes) }
}

fn begin(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]).trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    fn script(dir: &Path, body: &str) -> PathBuf {
        let path = dir.join("plugin");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    async fn run(body: &str) -> Result<Value, PluginFailure> {
        let dir = tempfile::tempdir().unwrap();
        let path = script(dir.path(), body);
        let runtime = Runtime {
            timeout: Duration::from_millis(1500),
            max_output: 1000,
            ..Runtime::new(vec![dir.path().into()])
        };
        run_plugin(&runtime, &path, "ADD", None, &serde_json::json!({"a": "b".repeat(200_000)})).await
    }

    #[tokio::test]
    async fn answers_are_read_even_when_the_input_is_not() {
        assert_eq!(run("echo '{\"x\": 1}'").await.unwrap()["x"], 1);
        assert_eq!(run("cat >/dev/null").await.unwrap(), Value::Null);
    }

    #[tokio::test]
    async fn errors_crashes_floods_and_hangs_are_told_apart() {
        let refused = run("echo '{\"code\": 11, \"msg\": \"later\"}'; exit 1").await.unwrap_err();
        assert!(matches!(&refused, PluginFailure::Refused(e) if e.code == 11), "{refused}");
        let crashed = run("echo oops >&2; kill -9 $$").await.unwrap_err().to_string();
        assert!(crashed.contains("oops") && crashed.contains("signal: 9"), "{crashed}");
        assert!(matches!(
            run("head -c 5000 /dev/zero").await,
            Err(PluginFailure::TooMuchOutput { max: 1000 })
        ));
        assert!(matches!(run("echo nonsense").await, Err(PluginFailure::NotJson { .. })));
        assert!(matches!(run("exec sleep 60").await, Err(PluginFailure::Timeout { .. })));
    }
}
