//! What the runtime answered last to one question: an answer that comes late is not lost, and a runtime that hangs costs
//! whoever asks hardly any time. For `disks`; it never says how old an answer is, which is what the answer itself tells.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

/// How long an answer is waited for from a runtime that did not answer in time before.
const DISTRUST: Duration = Duration::from_millis(100);
/// A call that has not come back by now never will, and another is begun.
const LOST: Duration = Duration::from_secs(120);

/// One question, asked by one call at a time.
pub struct Answer<T> {
    deadline: Duration,
    known: Arc<watch::Sender<Option<Arc<T>>>>,
    /// The last call took longer than the deadline, or is still under way.
    slow: Arc<AtomicBool>,
    under_way: Mutex<Option<AbortHandle>>,
}

impl<T: Send + Sync + 'static> Answer<T> {
    /// No answer yet. Each is waited for until `deadline`.
    pub fn new(deadline: Duration) -> Self {
        let known = Arc::new(watch::Sender::new(None));
        Self { deadline, known, slow: Arc::default(), under_way: Mutex::default() }
    }

    /// What `call` says or, where that takes too long or fails, what was said last. A call goes on past the deadline, and
    /// what it says is for those who ask later. Must be called inside tokio.
    pub async fn get<F>(&self, call: impl FnOnce() -> F) -> Option<Arc<T>>
    where
        F: Future<Output = Result<T, String>> + Send + 'static,
    {
        let mut told = self.known.subscribe();
        self.begin(call);
        let patience = if self.slow.load(Ordering::Relaxed) { DISTRUST } else { self.deadline };
        if timeout(patience, told.changed()).await.is_err() && !self.slow.swap(true, Ordering::Relaxed) {
            tracing::warn!("the runtime does not tell in time what images and containers take");
        }
        self.known.borrow().clone()
    }

    /// Calls, unless a call is under way.
    fn begin<F>(&self, call: impl FnOnce() -> F)
    where
        F: Future<Output = Result<T, String>> + Send + 'static,
    {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if under_way.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let (call, known) = (call(), self.known.clone());
        let (slow, deadline) = (self.slow.clone(), self.deadline);
        let task = tokio::spawn(async move {
            let began = Instant::now();
            let answer = timeout(LOST, call).await.unwrap_or_else(|_| Err("it does not answer".to_owned()));
            slow.store(began.elapsed() > deadline, Ordering::Relaxed);
            // An error is told as well, to those who wait.
            known.send_modify(|known| match answer {
                Ok(answer) => *known = Some(Arc::new(answer)),
                Err(error) => tracing::debug!(error, "the runtime does not tell what disks are used"),
            });
        });
        *under_way = Some(task.abort_handle());
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        let task = self.under_way.get_mut().unwrap_or_else(PoisonError::into_inner);
        task.iter().for_each(AbortHandle::abort);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(2);

    async fn after(seconds: u64, says: Result<u32, &'static str>) -> Result<u32, String> {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        says.map_err(str::to_owned)
    }

    async fn ask(of: &Answer<u32>, takes: u64, says: Result<u32, &'static str>) -> (Option<u32>, Duration) {
        let began = Instant::now();
        (of.get(|| after(takes, says)).await.map(|n| *n), began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_comes_late_is_told_later_and_trust_comes_back() {
        let answer = Answer::new(DEADLINE);
        assert_eq!(ask(&answer, 5, Ok(1)).await, (None, DEADLINE), "it takes longer");
        let again = ask(&answer, 0, Ok(2)).await;
        assert_eq!(again, (None, DISTRUST), "one call at a time, and hardly any time is lost");
        tokio::time::sleep(LOST).await;
        assert_eq!(ask(&answer, 1, Ok(3)).await, (Some(1), DISTRUST), "what came late");
        tokio::time::sleep(DEADLINE).await;
        let took = Duration::from_secs(1);
        assert_eq!(ask(&answer, 1, Ok(4)).await, (Some(4), took), "it answers in time again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_or_never_ends_leaves_what_was_known() {
        let answer = Answer::new(DEADLINE);
        assert_eq!(ask(&answer, 0, Err("not yet")).await, (None, Duration::ZERO), "an error is no silence");
        assert_eq!(ask(&answer, 0, Ok(1)).await.0, Some(1));
        assert_eq!(ask(&answer, 0, Err("it is gone")).await.0, Some(1));
        assert_eq!(ask(&answer, 1 << 30, Ok(2)).await.0, Some(1));
        tokio::time::sleep(LOST).await;
        ask(&answer, 0, Ok(3)).await;
        tokio::time::sleep(DISTRUST).await;
        assert_eq!(ask(&answer, 0, Ok(4)).await.0, Some(4), "it was not waited for without end");
    }
}
