//! How soon a pod that ended has given everything back: from the last container's SIGTERM, which is its end, until the runtime
//! has nothing of it (the floor), and until the agent has removed cgroup, volumes and directories as well.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Amounts;
use super::floor::Floor;
use super::measure::{Progress, SIGN_LIMIT, START_DONE};
use super::pod;
use super::report::{Measured, Release};
use super::setting::Setting;
use super::stamps::{Moment, ms, now};

/// The sizes of pods that are measured.
const CONTAINERS: [usize; 2] = [1, 5];
/// Between two looks for the pod's directory: what the agent's figure may be too large by.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Nothing but this, in a run of its own.
pub(super) async fn alone(setting: &mut Setting, amounts: Amounts) -> Result<Measured> {
    let progress = Progress::new();
    let floor = Floor::new(&setting.settings, setting.cri.clone()).await.context("prepare the floor")?;
    setting.start_agent().await?;
    let release = measure(setting, &floor, amounts, &progress).await?;
    Ok(Measured { release, ..Measured::default() })
}

/// The floor and the agent in turns; the agent runs.
pub(super) async fn measure(
    setting: &mut Setting,
    floor: &Floor,
    amounts: Amounts,
    progress: &Progress,
) -> Result<Vec<Release>> {
    let mut all = Vec::new();
    for containers in CONTAINERS {
        let mut into = Release { containers, ..Release::default() };
        // The first of each is not counted.
        for round in 0..=amounts.releases {
            progress.say(format!("release of {containers} containers, {round} of {}", amounts.releases));
            let name = format!("release-{containers}-{round}");
            let floor_took = by_floor(setting, floor, &format!("{name}-f"), containers).await?;
            let agent_took = by_agent(setting, floor, &format!("{name}-a"), containers).await?;
            if round > 0 {
                into.pair.floor.push(floor_took);
                into.pair.agent.push(agent_took);
            }
        }
        all.push(into);
    }
    Ok(all)
}

async fn by_floor(setting: &mut Setting, floor: &Floor, name: &str, containers: usize) -> Result<f64> {
    let prepared = floor.prepare(name, &setting.stamps_dir(), containers).await?;
    let running = floor.start(prepared).await?;
    last(setting, Moment::Start, name, containers).await?;
    tokio::time::sleep(START_DONE).await;
    floor.stop(&running).await?;
    let gone = floor.remove(running).await?;
    Ok(ms(last(setting, Moment::Term, name, containers).await?, gone))
}

async fn by_agent(setting: &mut Setting, floor: &Floor, name: &str, containers: usize) -> Result<f64> {
    let manifest = pod::manifest(name, &setting.stamps_dir(), containers);
    let (uid, dir) = setting.pod_dir(name, &manifest)?;
    setting.stage_as(name, &manifest)?;
    setting.publish(name)?;
    last(setting, Moment::Start, name, containers).await?;
    tokio::time::sleep(START_DONE).await;
    ensure!(dir.exists(), "{name} runs and has no directory {}", dir.display());
    setting.retract(name)?;
    let gone = async {
        while dir.exists() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        now()
    };
    let gone = tokio::time::timeout(SIGN_LIMIT, gone).await.context("the pod's directory stays")?;
    ensure!(!floor.has_cgroup(&uid)?, "the cgroup of {name} outlived its directory");
    ensure!(setting.is_empty().await?, "the sandbox of {name} outlived its directory");
    Ok(ms(last(setting, Moment::Term, name, containers).await?, gone))
}

/// When that happened to the last container of the pod.
async fn last(setting: &mut Setting, moment: Moment, name: &str, containers: usize) -> Result<u64> {
    let mut last = 0;
    for nth in 0..containers {
        last = last.max(setting.stamps.wait(moment, &pod::stamp_of(name, nth), SIGN_LIMIT).await?);
    }
    Ok(last)
}
