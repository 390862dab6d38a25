//! The wall clock, for rooms that compare it with times the runtime tells or show it in a status.
//!
//! Everything else uses tokio's time, which a test can pause. A test on paused time gives the clock an epoch, and then
//! both move together.

use jiff::Timestamp;
use std::sync::atomic::{AtomicI64, Ordering};
use tokio::time::Instant;

/// Tells the wall clock's time. Copying is cheap.
#[derive(Clone, Copy, Debug, Default)]
pub enum Clock {
    /// The machine's.
    #[default]
    System,
    /// A test's: so much since the epoch at that instant, moving with tokio's time.
    Steady {
        /// The time at `at`.
        epoch: Timestamp,
        /// The instant.
        at: Instant,
        /// By how many nanoseconds it was set since.
        jumped: &'static AtomicI64,
    },
}

impl Clock {
    /// A clock that says `epoch` now and moves with tokio's time. A few bytes of it stay for ever, so that copies are set
    /// together.
    pub fn steady(epoch: Timestamp) -> Self {
        Self::Steady { epoch, at: Instant::now(), jumped: Box::leak(Box::default()) }
    }

    /// Sets a test's clock and all copies of it: so many nanoseconds forward, or back. The machine's is not set.
    pub fn jump(self, nanos: i64) {
        if let Self::Steady { jumped, .. } = self {
            jumped.fetch_add(nanos, Ordering::Relaxed);
        }
    }

    /// Now.
    pub fn now(self) -> Timestamp {
        match self {
            Self::System => Timestamp::now(),
            Self::Steady { epoch, at, jumped } => {
                let jumped = jiff::SignedDuration::from_nanos(jumped.load(Ordering::Relaxed));
                let now = epoch.saturating_add(at.elapsed()).and_then(|now| now.saturating_add(jumped));
                now.unwrap_or(Timestamp::MAX)
            }
        }
    }

    /// Now, in nanoseconds since the epoch: CRI's form.
    pub fn nanos(self) -> i64 {
        i64::try_from(self.now().as_nanosecond()).unwrap_or(i64::MAX)
    }

    /// Now, in whole seconds: the API's form.
    pub fn seconds(self) -> Timestamp {
        Timestamp::from_second(self.now().as_second()).unwrap_or_default()
    }
}
