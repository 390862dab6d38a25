//! Ending containers.

use super::{Failure, Steps};
use crate::api::Pod;
use crate::event::{Kind, container_path};
use crate::pod::plan::Kill;
use futures::future::join_all;
use std::time::Duration;

impl Steps {
    /// Ends containers, all at once. As upstream's, a stop under way is not shortened by a later order.
    pub async fn kill(&self, pod: &Pod, targets: &[Kill], grace: Duration) -> Result<(), Failure> {
        let stops = targets.iter().map(|t| async move {
            let message = t.message.clone().unwrap_or_else(|| format!("Stopping container {}", t.name));
            self.event(Kind::Normal, Some(container_path(self.list_of(pod, &t.name), &t.name)), "Killing", message);
            let seconds = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
            match self.rooms.runtime.stop_container(&t.id, seconds).await {
                Err(e) if e.kind != cri::Kind::NotFound => {
                    tracing::warn!(pod = %self.pod, container = t.name, error = %e, "cannot stop the container");
                    Err(())
                }
                _ => Ok(()),
            }
        });
        let all = join_all(stops).await;
        if all.iter().any(Result::is_err) { Err(Failure::default()) } else { Ok(()) }
    }
}
