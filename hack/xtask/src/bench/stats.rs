//! What it costs the agent to tell what its pods use: processor time of each page, and of all of them asked for every ten
//! seconds, which is as often as anything is read however many ask.
//!
//! Pages come over plain HTTP from the read-only port. What the agent costs while nobody asks is measured before, and
//! taken off.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Amounts;
use super::pod::NAMESPACE;
use super::setting::Setting;
use super::stamps::{ms, now};
use crate::image;

/// How long all pods may take to run.
const RUN_LIMIT: Duration = Duration::from_secs(300);
/// Numbers are read again when they are so old.
const FRESH: Duration = Duration::from_secs(10);
/// A little longer, so that each round reads anew.
const ROUND: Duration = Duration::from_millis(10_500);

/// An agent that is asked.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Telling {
    pub pods: usize,
    /// `/metrics/cadvisor`, everything read anew: processor time in milliseconds, one for each round.
    pub cadvisor_ms: Vec<f64>,
    /// The same page again at once: nothing is read.
    pub cadvisor_again_ms: Vec<f64>,
    /// Bytes of that page.
    pub cadvisor_bytes: usize,
    /// Its samples.
    pub cadvisor_samples: usize,
    /// `/stats/summary`, everything read anew.
    pub summary_ms: Vec<f64>,
    /// `/metrics/resource`, read anew.
    pub resource_ms: Vec<f64>,
    /// All three every ten seconds, of one core, idling taken off.
    pub refresh_percent: f64,
    /// While nobody asks, of one core.
    pub idle_percent: f64,
}

/// Runs the pods and asks; the pods are removed at the end.
pub(super) async fn measure(setting: &mut Setting, amounts: Amounts, quick: bool) -> Result<Telling> {
    setting.start_agent().await?;
    let names: Vec<String> = (0..amounts.pods).map(|n| format!("told-{n}")).collect();
    for name in &names {
        setting.stage_as(name, &manifest(name))?;
        setting.publish(name)?;
    }
    let deadline = Instant::now() + RUN_LIMIT;
    while running(setting).await? < names.len() {
        ensure!(Instant::now() < deadline, "not all of the {} pods run within {RUN_LIMIT:?}", names.len());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::time::sleep(amounts.settle).await;
    let rounds = if quick { 1 } else { 6 };
    let began = (setting.agent()?.cpu_ms()?, now());
    tokio::time::sleep(amounts.idle).await;
    let idle = (setting.agent()?.cpu_ms()? - began.0) / ms(began.1, now());

    let mut telling = Telling {
        pods: names.len(),
        cadvisor_ms: Vec::new(),
        cadvisor_again_ms: Vec::new(),
        cadvisor_bytes: 0,
        cadvisor_samples: 0,
        summary_ms: Vec::new(),
        resource_ms: Vec::new(),
        refresh_percent: 0.0,
        idle_percent: idle * 100.0,
    };
    let mut page = String::new();
    // The first of each is not counted: buffers are made and the runtime is asked where its images are.
    for round in 0..=rounds {
        let fresh = ask(setting, "/metrics/cadvisor", idle, &mut page).await?;
        telling.cadvisor_bytes = page.len();
        telling.cadvisor_samples = samples(&page);
        let again = ask(setting, "/metrics/cadvisor", idle, &mut page).await?;
        tokio::time::sleep(ROUND).await;
        let summary = ask(setting, "/stats/summary", idle, &mut page).await?;
        check_summary(&page, names.len())?;
        tokio::time::sleep(ROUND).await;
        let resource = ask(setting, "/metrics/resource", idle, &mut page).await?;
        tokio::time::sleep(ROUND).await;
        if round > 0 {
            telling.cadvisor_ms.push(fresh);
            telling.cadvisor_again_ms.push(again);
            telling.summary_ms.push(summary);
            telling.resource_ms.push(resource);
        }
    }
    telling.refresh_percent = refresh(setting, idle, rounds, &mut page).await?;
    for name in &names {
        setting.retract(name)?;
    }
    setting.wait_left(0).await?;
    Ok(telling)
}

/// Everything every ten seconds.
async fn refresh(setting: &Setting, idle: f64, rounds: usize, page: &mut String) -> Result<f64> {
    let (cpu, began) = (setting.agent()?.cpu_ms()?, now());
    for _ in 0..rounds {
        let next = tokio::time::Instant::now() + FRESH;
        for path in ["/metrics/cadvisor", "/stats/summary", "/metrics/resource"] {
            ask(setting, path, 0.0, page).await?;
        }
        tokio::time::sleep_until(next).await;
    }
    let share = (setting.agent()?.cpu_ms()? - cpu) / ms(began, now());
    Ok((share - idle) * 100.0)
}

/// Asks for a page; the processor time that it took, less what the agent would have used anyway.
async fn ask(setting: &Setting, path: &str, idle: f64, page: &mut String) -> Result<f64> {
    let (cpu, began) = (setting.agent()?.cpu_ms()?, now());
    let mut stream = TcpStream::connect(("127.0.0.1", setting.read_only_port())).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    page.clear();
    stream.read_to_string(page).await?;
    if !page.starts_with("HTTP/1.1 200") {
        bail!("{path}: {}", page.lines().next().unwrap_or_default());
    }
    Ok(setting.agent()?.cpu_ms()? - cpu - idle * ms(began, now()))
}

/// Lines that are samples; what frames the pieces of the body is none.
fn samples(page: &str) -> usize {
    let names = ["container_", "machine_", "cadvisor_"];
    page.lines().filter(|line| names.iter().any(|name| line.starts_with(name))).count()
}

/// The summary must tell of every pod.
fn check_summary(answer: &str, pods: usize) -> Result<()> {
    let told = answer.matches("\"podRef\"").count();
    ensure!(told == pods, "/stats/summary tells of {told} pods of {pods}");
    Ok(())
}

fn manifest(name: &str) -> Vec<u8> {
    let script = "echo up; echo x > /data/x; trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";
    let pod = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "volumes": [{ "name": "data", "emptyDir": {} }],
            "containers": [{
                "name": "c", "image": image::DEMO, "imagePullPolicy": "Never",
                "command": ["/bin/sh", "-c", script],
                "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
                "resources": { "requests": { "cpu": "1m", "memory": "1Mi" } },
            }],
        },
    });
    pod.to_string().into_bytes()
}

async fn running(setting: &Setting) -> Result<usize> {
    let list = setting.cri.list_containers(None).await.context("list containers")?;
    Ok(list.iter().filter(|c| c.state() == cri::v1::ContainerState::ContainerRunning).count())
}
