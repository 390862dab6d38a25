//! What probing costs: pods whose containers are asked by command, HTTP and TCP every ten seconds.
//!
//! How late probes begin is the agent's own figure (`stevedore_prober_lateness_seconds`), over the same time as its
//! processor time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Amounts;
use super::pod::NAMESPACE;
use super::setting::Setting;
use super::stamps::{ms, now};
use crate::image;

/// Containers of each pod.
const CONTAINERS: usize = 2;
/// How long all pods may take to run.
const RUN_LIMIT: Duration = Duration::from_secs(300);
/// Longer than a period, so that every probe counts alike.
const AT_LEAST: Duration = Duration::from_secs(30);

/// An agent that probes.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Probing {
    pub pods: usize,
    /// That began while it was looked at.
    pub probes: u64,
    /// Of one core.
    pub cpu_percent: f64,
    /// 99 of 100 probes were late by no more than this bound of the histogram, in milliseconds.
    pub late_p99_ms: f64,
    pub pss_mib: f64,
}

/// Runs the pods and looks at the agent; the pods are removed at the end.
pub(super) async fn measure(setting: &mut Setting, amounts: Amounts, quick: bool) -> Result<Probing> {
    setting.start_agent().await?;
    let names: Vec<String> = (0..amounts.pods).map(|n| format!("probed-{n}")).collect();
    for name in &names {
        setting.stage_as(name, &manifest(name))?;
        setting.publish(name)?;
    }
    let deadline = Instant::now() + RUN_LIMIT;
    while running(setting).await? < names.len() * CONTAINERS {
        if Instant::now() > deadline {
            bail!("not all of the {} pods run within {RUN_LIMIT:?}", names.len());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::time::sleep(amounts.settle).await;
    let agent = setting.agent()?;
    let (lateness, cpu, began) = (lateness(setting.read_only_port()).await?, agent.cpu_ms()?, now());
    tokio::time::sleep(if quick { amounts.idle } else { amounts.idle.max(AT_LEAST) }).await;
    let cpu_percent = (agent.cpu_ms()? - cpu) / ms(began, now()) * 100.0;
    let after = self::lateness(setting.read_only_port()).await?;
    let pss_mib = agent.pss_mib()?;
    let during: Vec<(f64, u64)> =
        after.iter().zip(&lateness).map(|((bound, a), (_, b))| (*bound, a - b)).collect();
    let probes = during.last().map_or(0, |(_, n)| *n);
    for name in &names {
        setting.retract(name)?;
    }
    setting.wait_left(0).await?;
    Ok(Probing { pods: names.len(), probes, cpu_percent, late_p99_ms: bound(&during, 0.99) * 1e3, pss_mib })
}

/// A pod that is asked in three ways; what it serves, it serves to the probes.
fn manifest(name: &str) -> Vec<u8> {
    let container = |name: &str, script: &str, probes: serde_json::Value| {
        let mut c = serde_json::json!({
            "name": name, "image": image::DEMO, "imagePullPolicy": "Never", "command": ["/bin/sh", "-c", script],
            "resources": { "requests": { "cpu": "1m", "memory": "1Mi" } },
        });
        if let (Some(c), Some(probes)) = (c.as_object_mut(), probes.as_object()) {
            c.extend(probes.clone());
        }
        c
    };
    let web = container(
        "web",
        "mkdir /www; echo fine > /www/index.html; exec httpd -f -p 8080 -h /www",
        serde_json::json!({
            "livenessProbe": { "exec": { "command": ["/bin/true"] }, "periodSeconds": 10, "timeoutSeconds": 5 },
            "readinessProbe": { "httpGet": { "port": 8080, "path": "/index.html" }, "periodSeconds": 10 },
        }),
    );
    let beside = container(
        "beside",
        "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done",
        serde_json::json!({ "readinessProbe": { "tcpSocket": { "port": 8080 }, "periodSeconds": 10 } }),
    );
    let pod = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": { "terminationGracePeriodSeconds": 1, "containers": [web, beside] },
    });
    pod.to_string().into_bytes()
}

async fn running(setting: &Setting) -> Result<usize> {
    let list = setting.cri.list_containers(None).await?;
    Ok(list.iter().filter(|c| c.state() == cri::v1::ContainerState::ContainerRunning).count())
}

/// The buckets of the agent's histogram: bound in seconds and how many were no later.
async fn lateness(port: u16) -> Result<Vec<(f64, u64)>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = "GET /metrics/probes HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    let buckets = buckets(&page);
    if buckets.is_empty() {
        bail!("/metrics/probes does not tell how late probes are")
    }
    Ok(buckets)
}

fn buckets(page: &str) -> Vec<(f64, u64)> {
    let lines = page.lines().filter_map(|l| l.strip_prefix("stevedore_prober_lateness_seconds_bucket{le=\""));
    let parsed = lines.filter_map(|line| {
        let (bound, count) = line.split_once("\"} ")?;
        Some((bound.parse().ok()?, count.trim().parse().ok()?))
    });
    parsed.collect()
}

/// The smallest bound that so large a share is no later than.
fn bound(buckets: &[(f64, u64)], share: f64) -> f64 {
    let all = buckets.last().map_or(0, |(_, n)| *n);
    let enough = buckets.iter().find(|(_, n)| *n as f64 >= all as f64 * share);
    enough.map_or(f64::INFINITY, |(bound, _)| *bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_the_bucket_in_which_the_share_is_reached() {
        let page = "x 1\nstevedore_prober_lateness_seconds_bucket{le=\"0.001\"} 50\n\
                    stevedore_prober_lateness_seconds_bucket{le=\"0.05\"} 99\n\
                    stevedore_prober_lateness_seconds_bucket{le=\"+Inf\"} 100\n";
        let read = buckets(page);
        assert_eq!(read, [(0.001, 50), (0.05, 99), (f64::INFINITY, 100)]);
        assert_eq!((bound(&read, 0.5), bound(&read, 0.99)), (0.001, 0.05));
        assert_eq!(bound(&read, 0.995), f64::INFINITY);
    }
}
