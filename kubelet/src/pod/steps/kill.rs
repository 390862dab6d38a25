//! Ending containers.

use super::{Failure, Steps};
use crate::api::Pod;
use crate::event::{Kind, container_path};
use crate::pod::desired::MINIMUM_GRACE;
use crate::pod::plan::Kill;
use futures::future::join_all;
use std::collections::BTreeSet;
use std::time::Duration;

impl Steps {
    /// Ends containers: all are told of it at once, those of a later turn are stopped when the earlier ones have ended, with
    /// what is left of the grace. As upstream's, a stop under way is not shortened by a later order.
    pub async fn kill(&self, pod: &Pod, targets: &[Kill], grace: Duration) -> Result<(), Failure> {
        for t in targets {
            let message = t.message.clone().unwrap_or_else(|| format!("Stopping container {}", t.name));
            let path = container_path(self.list_of(pod, &t.name), &t.name);
            self.event(Kind::Normal, Some(path), "Killing", message);
        }
        let began = tokio::time::Instant::now();
        let turns: BTreeSet<u32> = targets.iter().map(|t| t.turn).collect();
        for turn in turns {
            // Whole seconds, as upstream's: what was waited is rounded down.
            let waited = Duration::from_secs(began.elapsed().as_secs());
            let left = grace.saturating_sub(waited).max(MINIMUM_GRACE);
            let now = targets.iter().filter(|t| t.turn == turn);
            let all = join_all(now.map(|t| self.stop_container(t, left))).await;
            if all.iter().any(Result::is_err) {
                return Err(Failure::default());
            }
        }
        Ok(())
    }

    async fn stop_container(&self, target: &Kill, grace: Duration) -> Result<(), cri::Error> {
        let seconds = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        match self.rooms.runtime.stop_container(&target.id, seconds).await {
            Err(error) if error.kind != cri::Kind::NotFound => {
                tracing::warn!(pod = %self.pod, container = target.name, %error, "cannot stop the container");
                Err(error)
            }
            _ => Ok(()),
        }
    }
}
