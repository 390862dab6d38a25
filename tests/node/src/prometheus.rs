//! A Prometheus of Debian's, unpacked into a folder, that scrapes one agent on the loopback.

use crate::http;
use crate::node::{free_ports, tail};
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use xtask::{apt, tree};

/// The running server; killed and waited for at drop.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    /// Its own port.
    pub port: u16,
    log: PathBuf,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _already_dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Debian's package in the tree's cache.
fn binary() -> Result<PathBuf> {
    let suite = apt::codename()?;
    let dir = tree::cache("prometheus")?.join(&suite);
    let _alone = tree::lock("prometheus")?;
    let binary = dir.join("usr/bin/prometheus");
    if !binary.exists() {
        apt::unpack(&suite, &["prometheus"], &dir)?;
    }
    Ok(binary)
}

impl Prometheus {
    /// Starts one in `dir` that asks `port` for each of `paths` every second. `None`, said aloud, where the package cannot be
    /// had.
    ///
    /// # Panics
    /// It is there and does not start.
    pub async fn start(dir: &Path, port: u16, paths: &[&str]) -> Option<Self> {
        let binary = match tokio::task::spawn_blocking(binary).await.ok()? {
            Ok(binary) => binary,
            Err(e) => {
                crate::skip(format!("Debian's package prometheus cannot be had: {e:#}"));
                return None;
            }
        };
        let jobs = paths.iter().map(|path| {
            serde_json::json!({
                "job_name": path, "metrics_path": path, "honor_timestamps": true,
                "static_configs": [{ "targets": [format!("127.0.0.1:{port}")] }],
            })
        });
        let config = serde_json::json!({
            "global": { "scrape_interval": "1s", "scrape_timeout": "1s" },
            "scrape_configs": jobs.collect::<Vec<_>>(),
        });
        let started = Self::spawn(&binary, dir, &config);
        Some(started.unwrap_or_else(|e| panic!("prometheus: {e:#}")))
    }

    fn spawn(binary: &Path, dir: &Path, config: &Value) -> Result<Self> {
        let (file, log) = (dir.join("prometheus.yml"), dir.join("prometheus.log"));
        // JSON is YAML.
        std::fs::write(&file, config.to_string())?;
        let [port] = free_ports();
        let output = File::create(&log)?;
        let child = Command::new(binary)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("prometheus-data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        Ok(Self { child, port, log })
    }

    /// What its API answers to `path`, such as `/api/v1/targets`: the part `data`.
    ///
    /// # Errors
    /// It does not answer, or not well; with the end of its log.
    pub async fn api(&self, path: &str) -> Result<Value, String> {
        let failed = |why: String| format!("{why}\n{}", tail(&self.log, 5));
        let answer = http::get(self.port, path).await.map_err(|e| failed(format!("{e:#}")))?;
        let mut value: Value = serde_json::from_str(&answer.body).map_err(|e| failed(e.to_string()))?;
        if value["status"] != "success" {
            return Err(failed(answer.body));
        }
        Ok(value["data"].take())
    }

    /// The values that `query` gives now.
    ///
    /// # Errors
    /// As [`Prometheus::api`].
    pub async fn query(&self, query: &str) -> Result<Vec<f64>, String> {
        let encoded: String = query.bytes().map(|b| format!("%{b:02X}")).collect();
        let data = self.api(&format!("/api/v1/query?query={encoded}")).await?;
        let value = |r: &Value| r["value"][1].as_str().and_then(|v| v.parse().ok());
        Ok(data["result"].as_array().into_iter().flatten().filter_map(value).collect())
    }
}
