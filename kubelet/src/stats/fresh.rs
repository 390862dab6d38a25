//! A value that is made when somebody asks, by one at a time, and shared for as long as it is fresh enough.
//!
//! ```text
//!  ask(max_age) ─▶ queue ─▶ task: what is there began late enough? ─ yes ─▶ answer
//!                             └─ no ─▶ make it, once for all who wait by then ─▶ answer
//! ```
//!
//! The cost is bounded by the making, not by who asks or how often.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// The handle. Cloning is cheap; the task ends with the last one.
pub struct Fresh<T> {
    asks: mpsc::UnboundedSender<Ask<T>>,
}

struct Ask<T> {
    /// The making must not have begun before; `None` for any age.
    since: Option<Instant>,
    answer: oneshot::Sender<Arc<T>>,
}

impl<T> Clone for Fresh<T> {
    fn clone(&self) -> Self {
        Self { asks: self.asks.clone() }
    }
}

impl<T> fmt::Debug for Fresh<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fresh").finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Fresh<T> {
    /// Starts the task; nothing is made before somebody asks. `make` must end by itself.
    pub fn spawn(make: impl FnMut() -> BoxFuture<'static, T> + Send + 'static) -> Self {
        let (asks, queue) = mpsc::unbounded_channel();
        tokio::spawn(run(queue, make));
        Self { asks }
    }

    /// The value, whose making began at most `max_age` ago. With no age at all it begins now or later.
    pub async fn get(&self, max_age: Duration) -> Arc<T> {
        let since = Instant::now().checked_sub(max_age);
        loop {
            let (answer, answered) = oneshot::channel();
            let asked = self.asks.send(Ask { since, answer });
            match (asked, answered.await) {
                (Ok(()), Ok(value)) => return value,
                // The making panicked.
                (Ok(()), Err(_)) if !self.asks.is_closed() => {}
                // The task lives as long as this handle, so tokio is shutting down, and this future with it.
                _ => std::future::pending().await,
            }
        }
    }
}

/// A making that panicked may do so again.
const AFTER_PANIC: Duration = Duration::from_secs(1);

async fn run<T>(mut queue: mpsc::UnboundedReceiver<Ask<T>>, mut make: impl FnMut() -> BoxFuture<'static, T>) {
    let mut last: Option<(Instant, Arc<T>)> = None;
    while let Some(ask) = queue.recv().await {
        if ask.answer.is_closed() {
            continue;
        }
        let fresh = last.as_ref().filter(|(began, _)| ask.since.is_none_or(|since| *began >= since));
        let value = match fresh {
            Some((_, value)) => value.clone(),
            None => {
                let began = Instant::now();
                let made = AssertUnwindSafe(async { make().await }).catch_unwind().await;
                let Ok(value) = made.map(Arc::new) else {
                    tracing::error!("making what was asked for panicked; trying again");
                    tokio::time::sleep(AFTER_PANIC).await;
                    continue;
                };
                last = Some((began, value.clone()));
                value
            }
        };
        // Whoever asked may have gone.
        let _ = ask.answer.send(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts; each making takes a second.
    fn counting() -> Fresh<usize> {
        let made = Arc::new(AtomicUsize::new(0));
        Fresh::spawn(move || {
            let made = made.clone();
            async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                made.fetch_add(1, Ordering::Relaxed) + 1
            }
            .boxed()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_who_ask_at_once_cost_one_making() {
        let fresh = counting();
        let asks = (0..100).map(|_| fresh.get(Duration::from_secs(5)));
        assert!(futures::future::join_all(asks).await.iter().all(|n| **n == 1));
        assert_eq!(*fresh.get(Duration::from_secs(5)).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_making_that_panics_keeps_nobody_waiting_for_ever() {
        let mut made = 0;
        let fresh = Fresh::spawn(move || {
            made += 1;
            let made = made;
            async move { if made == 1 { panic!("the first") } else { made } }.boxed()
        });
        let (a, b) = tokio::join!(fresh.get(Duration::ZERO), fresh.get(Duration::ZERO));
        assert!(*a > 1 && *b > 1);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_older_than_asked_for_is_given() {
        let fresh = counting();
        assert_eq!(*fresh.get(Duration::from_secs(5)).await, 1);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(*fresh.get(Duration::from_secs(60)).await, 1);
        assert_eq!(*fresh.get(Duration::from_secs(5)).await, 2, "its making began six seconds ago");
    }

    #[tokio::test(start_paused = true)]
    async fn who_wants_it_new_does_not_get_what_was_begun_before_and_shares_what_begins_after() {
        let fresh = counting();
        let first = tokio::spawn({
            let fresh = fresh.clone();
            async move { *fresh.get(Duration::ZERO).await }
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (a, b) = tokio::join!(fresh.get(Duration::ZERO), fresh.get(Duration::ZERO));
        assert_eq!((first.await.unwrap(), *a, *b), (1, 2, 2));
    }
}
