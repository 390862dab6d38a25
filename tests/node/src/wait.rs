//! Conditions that come true in bounded time.
//!
//! The agent's API has no watch, and cgroups, mounts and links tell nobody when they go: short polls with a back-off and an end
//! are what is left. Whatever has an event is waited for by that event instead.

use std::time::{Duration, Instant};

/// How long anything may take on a slow machine that does other things as well; nothing here takes so long when it works.
/// `STEVEDORE_WAIT` in seconds, 90 by default.
pub fn limit() -> Duration {
    let given = std::env::var("STEVEDORE_WAIT").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(given.unwrap_or(90))
}

/// Calls `check` until it gives a value; panics with its last complaint after `limit`.
///
/// # Panics
/// When the time is over.
pub async fn within<T>(limit: Duration, what: &str, mut check: impl AsyncFnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(10);
    loop {
        match check().await {
            Ok(value) => return value,
            Err(complaint) if Instant::now() > end => {
                panic!("{what}: not within {limit:?}; last seen: {complaint}")
            }
            Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// [`within`] the usual [`limit`].
pub async fn eventually<T>(what: &str, check: impl AsyncFnMut() -> Result<T, String>) -> T {
    within(limit(), what, check).await
}
