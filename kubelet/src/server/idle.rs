//! How long an HTTP/2 connection has served nobody. Its peer answers pings without being asked, so they tell nothing.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// The requests that are open on one connection.
#[derive(Clone, Debug, Default)]
pub struct Requests(Arc<watch::Sender<usize>>);

/// An open request, until dropped.
#[derive(Debug)]
pub struct Open(Arc<watch::Sender<usize>>);

impl Requests {
    /// One more.
    pub fn open(&self) -> Open {
        self.0.send_modify(|open| *open += 1);
        Open(self.0.clone())
    }

    /// Waits until none was open for `long`.
    pub async fn idle(&self, long: Duration) {
        let mut open = self.0.subscribe();
        loop {
            // `self` is a sender, so there is always another change to wait for.
            if *open.borrow_and_update() > 0 {
                let _ = open.changed().await;
            } else if timeout(long, open.changed()).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, sleep};

    #[tokio::test(start_paused = true)]
    async fn time_counts_from_the_end_of_the_last_request() {
        let (requests, began) = (Requests::default(), Instant::now());
        let asked = requests.clone();
        let asking = tokio::spawn(async move {
            sleep(Duration::from_secs(80)).await;
            let long = asked.open();
            sleep(Duration::from_secs(1000)).await;
            // A short one beside it, and one after it.
            drop(asked.open());
            drop(long);
            sleep(Duration::from_secs(80)).await;
            drop(asked.open());
        });
        requests.idle(Duration::from_secs(90)).await;
        assert_eq!(began.elapsed().as_secs(), 80 + 1000 + 80 + 90);
        asking.await.unwrap();
    }
}
