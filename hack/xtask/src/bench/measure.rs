//! The order of work: an empty node, pods one by one, bursts, a full node, restarts.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use indicatif::{ProgressBar, ProgressStyle};

use super::Amounts;
use super::floor::Floor;
use super::release;
use super::report::{Idle, Measured};
use super::setting::Setting;
use super::stamps::{Moment, ms, now};

/// A container that has given no sign for so long never will.
pub(super) const SIGN_LIMIT: Duration = Duration::from_secs(120);
/// After a pod runs, until the agent has done all that its start made it do.
pub(super) const START_DONE: Duration = Duration::from_millis(400);

/// Takes all measurements. The agent runs at the end, with no pods.
pub(super) async fn measure(setting: &mut Setting, amounts: Amounts) -> Result<Measured> {
    let progress = Progress::new();
    let mut measured = Measured::default();
    let floor = Floor::new(&setting.settings, setting.cri.clone()).await.context("prepare the floor")?;

    for round in 0..amounts.starts {
        progress.say(format!("start of the agent on an empty node, {} of {}", round + 1, amounts.starts));
        setting.stop_agent().await?;
        measured.healthy_empty.push(setting.start_agent().await?);
    }
    progress.say("the agent idles with no pods".to_owned());
    measured.idle.push(idle(setting, amounts, 0).await?);

    // One of each is not counted: the first pod makes bridge, rules and caches.
    let mut warm_up = Measured::default();
    single_floor(setting, &floor, &mut warm_up, "warm-f").await?;
    single_agent(setting, &mut warm_up, "warm-a").await?;
    for round in 0..amounts.singles {
        progress.say(format!("one pod, {} of {}", round + 1, amounts.singles));
        let (f, a) = (format!("single-{round}-f"), format!("single-{round}-a"));
        if round % 2 == 0 {
            single_floor(setting, &floor, &mut measured, &f).await?;
            single_agent(setting, &mut measured, &a).await?;
        } else {
            single_agent(setting, &mut measured, &a).await?;
            single_floor(setting, &floor, &mut measured, &f).await?;
        }
    }
    measured.release = release::measure(setting, &floor, amounts, &progress).await?;
    let mut running = Vec::new();
    for round in 0..amounts.bursts {
        progress.say(format!("burst of {}, {} of {}", amounts.burst, round + 1, amounts.bursts));
        burst_floor(setting, &floor, &mut measured, round, amounts.burst).await?;
        retract_all(setting, &mut running).await?;
        running = burst_agent(setting, &mut measured, round, amounts.burst).await?;
        if round + 1 < amounts.bursts {
            retract_all(setting, &mut running).await?;
        }
    }
    progress.say(format!("the agent idles with {} pods", running.len()));
    measured.idle.push(idle(setting, amounts, running.len()).await?);

    progress.say(format!("{} pods", amounts.pods));
    fill(setting, &mut running, amounts.pods).await?;
    progress.say(format!("the agent idles with {} pods", running.len()));
    measured.idle.push(idle(setting, amounts, running.len()).await?);
    restarts(setting, &mut measured, amounts, &progress).await?;

    progress.say("remove all pods".to_owned());
    retract_all(setting, &mut running).await?;
    Ok(measured)
}

/// A pod by the bare client, stopped and removed again.
async fn single_floor(setting: &mut Setting, floor: &Floor, into: &mut Measured, name: &str) -> Result<()> {
    let prepared = floor.prepare(name, &setting.stamps_dir(), 1).await?;
    let running = floor.start(prepared).await?;
    let started = setting.stamps.wait(Moment::Start, name, SIGN_LIMIT).await?;
    into.single.floor.push(ms(running.began, started));
    into.floor_calls.push(running.calls);
    tokio::time::sleep(START_DONE).await;
    let ordered = floor.stop(&running).await?;
    let term = setting.stamps.wait(Moment::Term, name, SIGN_LIMIT).await?;
    into.stop.floor.push(ms(ordered, term));
    floor.remove(running).await?;
    Ok(())
}

/// The same pod by its manifest.
async fn single_agent(setting: &mut Setting, into: &mut Measured, name: &str) -> Result<()> {
    setting.stage(name)?;
    let cpu = setting.agent()?.cpu_ms()?;
    let began = now();
    setting.publish(name)?;
    let started = setting.stamps.wait(Moment::Start, name, SIGN_LIMIT).await?;
    into.single.agent.push(ms(began, started));
    tokio::time::sleep(START_DONE).await;
    into.cpu_single.push(setting.agent()?.cpu_ms()? - cpu);
    let ordered = now();
    setting.retract(name)?;
    let term = setting.stamps.wait(Moment::Term, name, SIGN_LIMIT).await?;
    into.stop.agent.push(ms(ordered, term));
    setting.wait_left(0).await
}

/// Until the last of many pods runs, all started at once by the bare client.
async fn burst_floor(
    setting: &mut Setting,
    floor: &Floor,
    into: &mut Measured,
    round: usize,
    size: usize,
) -> Result<()> {
    let names: Vec<String> = (0..size).map(|n| format!("burst-{round}-f-{n}")).collect();
    let mut prepared = Vec::new();
    for name in &names {
        prepared.push(floor.prepare(name, &setting.stamps_dir(), 1).await?);
    }
    let began = now();
    let running = try_join_all(prepared.into_iter().map(|one| floor.start(one))).await?;
    into.burst.floor.push(ms(began, last_start(setting, &names).await?));
    try_join_all(running.into_iter().map(|one| floor.remove(one))).await?;
    setting.wait_left(0).await
}

/// The same pods by their manifests; they stay.
async fn burst_agent(
    setting: &mut Setting,
    into: &mut Measured,
    round: usize,
    size: usize,
) -> Result<Vec<String>> {
    let names: Vec<String> = (0..size).map(|n| format!("burst-{round}-a-{n}")).collect();
    for name in &names {
        setting.stage(name)?;
    }
    let cpu = setting.agent()?.cpu_ms()?;
    let began = now();
    for name in &names {
        setting.publish(name)?;
    }
    into.burst.agent.push(ms(began, last_start(setting, &names).await?));
    tokio::time::sleep(START_DONE).await;
    into.cpu_burst.push((setting.agent()?.cpu_ms()? - cpu) / size as f64);
    Ok(names)
}

async fn last_start(setting: &mut Setting, names: &[String]) -> Result<u64> {
    let mut last = 0;
    for name in names {
        last = last.max(setting.stamps.wait(Moment::Start, name, SIGN_LIMIT).await?);
    }
    Ok(last)
}

async fn retract_all(setting: &mut Setting, names: &mut Vec<String>) -> Result<()> {
    for name in names.drain(..) {
        setting.retract(&name)?;
    }
    setting.wait_left(0).await
}

/// Starts pods until `wanted` run.
async fn fill(setting: &mut Setting, running: &mut Vec<String>, wanted: usize) -> Result<()> {
    let more: Vec<String> = (running.len()..wanted).map(|n| format!("fill-{n}")).collect();
    for name in &more {
        setting.stage(name)?;
        setting.publish(name)?;
    }
    last_start(setting, &more).await?;
    running.extend(more);
    Ok(())
}

/// Restarts of the agent on a full node, which must not touch a container.
async fn restarts(
    setting: &mut Setting,
    into: &mut Measured,
    amounts: Amounts,
    progress: &Progress,
) -> Result<()> {
    let (before, starts) = (containers(setting).await?, setting.stamps.starts());
    for round in 0..amounts.starts {
        progress.say(format!(
            "restart of the agent with {} pods, {} of {}",
            before.len(),
            round + 1,
            amounts.starts
        ));
        setting.stop_agent().await?;
        into.healthy_full.push(setting.start_agent().await?);
        tokio::time::sleep(START_DONE).await;
    }
    tokio::time::sleep(amounts.settle).await;
    let after = containers(setting).await?;
    ensure!(before == after, "a restart of the agent touched containers: {before:?} became {after:?}");
    ensure!(setting.stamps.starts() == starts, "a restart of the agent started a container");
    Ok(())
}

/// Every container of the runtime with its state, by id.
async fn containers(setting: &Setting) -> Result<Vec<(String, i32)>> {
    let list = setting.cri.list_containers(None).await?;
    let mut all: Vec<(String, i32)> = list.into_iter().map(|c| (c.id, c.state)).collect();
    all.sort();
    Ok(all)
}

/// What the agent costs while nothing happens.
async fn idle(setting: &Setting, amounts: Amounts, pods: usize) -> Result<Idle> {
    tokio::time::sleep(amounts.settle).await;
    let agent = setting.agent()?;
    let (cpu, began) = (agent.cpu_ms()?, now());
    tokio::time::sleep(amounts.idle).await;
    let cpu_percent = (agent.cpu_ms()? - cpu) / ms(began, now()) * 100.0;
    Ok(Idle { pods, cpu_percent, pss_mib: agent.pss_mib()? })
}

/// Says on standard error what is done now: one moving line on a terminal, plain lines elsewhere.
pub(super) struct Progress(Option<ProgressBar>);

impl Progress {
    pub(super) fn new() -> Self {
        Self(std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        }))
    }

    pub(super) fn say(&self, what: String) {
        match &self.0 {
            Some(bar) => bar.set_message(what),
            None => eprintln!("{what}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
