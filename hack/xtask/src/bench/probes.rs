//! What probing costs: pods whose containers are asked by command, HTTP and TCP every ten seconds.
//!
//! How late probes begin is the agent's own figure (`stevedore_prober_lateness_seconds`: from when a probe was due to when
//! its command or connection was begun), over the same time as its processor time. How busy the machine was with
//! everything is told beside it: who must wait for a core is late whatever the agent does.

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
    /// The same of commands alone.
    pub command_late_p99_ms: f64,
    /// What of that was spent waiting for a place.
    pub command_place_p99_ms: f64,
    /// The same of connections alone.
    pub connection_late_p99_ms: f64,
    /// How busy all cores were, with everything that ran.
    pub machine_percent: f64,
    pub pss_mib: f64,
}

const LATENESS: &str = "stevedore_prober_lateness_seconds";
const PLACE_WAIT: &str = "stevedore_prober_place_wait_seconds";

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
    let port = setting.read_only_port();
    let (before, machine, cpu, began) = (page(port).await?, machine()?, agent.cpu_ms()?, now());
    tokio::time::sleep(if quick { amounts.idle } else { amounts.idle.max(AT_LEAST) }).await;
    let cpu_percent = (agent.cpu_ms()? - cpu) / ms(began, now()) * 100.0;
    let machine_percent = busy(machine, self::machine()?);
    let after = page(port).await?;
    let pss_mib = agent.pss_mib()?;
    let of = |family: &str, means: &str| {
        let all = buckets(&after, family, means).into_iter().zip(buckets(&before, family, means));
        all.map(|((bound, a), (_, b))| (bound, a.saturating_sub(b))).collect::<Vec<_>>()
    };
    let (command, connection) = (of(LATENESS, "command"), of(LATENESS, "connection"));
    if command.is_empty() || connection.is_empty() {
        bail!("/metrics/probes does not tell how late probes are")
    }
    let both: Vec<_> = command.iter().zip(&connection).map(|((at, a), (_, b))| (*at, a + b)).collect();
    for name in &names {
        setting.retract(name)?;
    }
    setting.wait_left(0).await?;
    let p99 = |buckets: &[(f64, u64)]| bound(buckets, 0.99) * 1e3;
    Ok(Probing {
        pods: names.len(),
        probes: both.last().map_or(0, |(_, n)| *n),
        cpu_percent,
        late_p99_ms: p99(&both),
        command_late_p99_ms: p99(&command),
        command_place_p99_ms: p99(&of(PLACE_WAIT, "command")),
        connection_late_p99_ms: p99(&connection),
        machine_percent,
        pss_mib,
    })
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

/// The page with the agent's histograms of probes.
async fn page(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = "GET /metrics/probes HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    Ok(page)
}

/// The buckets of a histogram on the page: bound in seconds and how many were no more.
fn buckets(page: &str, family: &str, means: &str) -> Vec<(f64, u64)> {
    let start = format!("{family}_bucket{{means=\"{means}\",le=\"");
    let lines = page.lines().filter_map(|l| l.strip_prefix(&start));
    let parsed = lines.filter_map(|line| {
        let (bound, count) = line.split_once("\"} ")?;
        Some((bound.parse().ok()?, count.trim().parse().ok()?))
    });
    parsed.collect()
}

/// Ticks of all cores since the machine began: in work, and in all.
fn machine() -> Result<(u64, u64)> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let all = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    // User to steal; guests are counted within.
    let ticks: Vec<u64> = all.take(8).filter_map(|n| n.parse().ok()).collect();
    let (sum, idle) = (ticks.iter().sum::<u64>(), ticks.iter().skip(3).take(2).sum::<u64>());
    Ok((sum - idle, sum))
}

fn busy(before: (u64, u64), after: (u64, u64)) -> f64 {
    let (work, all) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    work as f64 / all.max(1) as f64 * 100.0
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
        let page = "x 1\nlate_bucket{means=\"command\",le=\"0.001\"} 50\n\
                    late_bucket{means=\"command\",le=\"0.05\"} 99\n\
                    late_bucket{means=\"connection\",le=\"0.05\"} 7\n\
                    late_bucket{means=\"command\",le=\"+Inf\"} 100\n";
        let read = buckets(page, "late", "command");
        assert_eq!(read, [(0.001, 50), (0.05, 99), (f64::INFINITY, 100)]);
        assert_eq!((bound(&read, 0.5), bound(&read, 0.99)), (0.001, 0.05));
        assert_eq!(bound(&read, 0.995), f64::INFINITY);
    }

    #[test]
    fn the_machine_is_as_busy_as_its_ticks_tell() {
        assert!((busy((100, 1000), (130, 1100)) - 30.0).abs() < 1e-9);
        let (work, all) = machine().unwrap();
        assert!(0 < work && work <= all);
    }
}
