//! When memory is looked at: not at a slow poll, by which a pod can have taken a gigabyte, and not all the time.
//!
//! The kernel tells where it can (`kernel`). Where it does not, memory is polled, the sooner the less of it is left: by the
//! time that a fast allocator would need to use up the margin. With much of it free that is the slow net, so that an idle
//! node costs nothing; close to a threshold it is tens of milliseconds, as far as one look's own cost allows.

use super::kernel::Kernel;
use super::measure::{Left, Measure};
use super::policy;
use super::signal::Signal;
use super::threshold::Threshold;
use std::time::Duration;
use tokio::time::Instant;

/// Nothing is looked at more often.
const SOONEST: Duration = Duration::from_millis(20);

/// How fast memory is taken to go, in bytes a second, unless it has been seen to go faster.
const ASSUMED: u64 = 256 << 20;

/// Looking takes no more of a core than this part of it.
const COST: u32 = 100;

/// How long until memory must be looked at again when `margin` bytes may go, `rate` bytes a second did and a look takes
/// `cost`.
pub fn look_again(margin: u64, rate: u64, cost: Duration, net: Duration) -> Duration {
    // Twice the rate: it may be growing.
    let rate = rate.saturating_mul(2).max(ASSUMED);
    let wait = Duration::from_secs_f64(margin as f64 / rate as f64);
    wait.min(net).max(SOONEST).max(cost.saturating_mul(COST)).min(net.max(SOONEST))
}

/// Resolves when a threshold for memory that is not met by now is. Never, where there is none. Cancel-safe.
pub async fn falls_short(
    thresholds: &[Threshold],
    measure: &dyn Measure,
    kernel: &mut Kernel,
    net: Duration,
) {
    if !thresholds.iter().any(|t| t.signal == Signal::Memory) {
        return std::future::pending().await;
    }
    let left = measure.memory().await;
    let limit = left.as_ref().and_then(|left| policy::next_limit(thresholds, left));
    // Not known now, or all are met: the net looks again.
    let (Some(limit), Some(left)) = (limit, left) else { return std::future::pending().await };
    let margin_of = |left: &Left| left.available.saturating_sub(limit).unsigned_abs();
    let mut margin = margin_of(&left);
    let (mut rate, mut cost, mut at) = (0, Duration::ZERO, Instant::now());
    loop {
        let wait = if kernel.tells_growth() { net } else { look_again(margin, rate, cost, net) };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // What makes the kernel tell for nothing, such as files that are read, may do so again at once.
            () = kernel.told(margin) => tokio::time::sleep(SOONEST / 4).await,
        }
        let began = Instant::now();
        let Some(left) = measure.memory().await else { continue };
        cost = began.elapsed();
        if left.available < limit {
            return;
        }
        let now = margin_of(&left);
        let passed = began.saturating_duration_since(at).as_secs_f64().max(0.001);
        rate = (margin.saturating_sub(now) as f64 / passed) as u64;
        (margin, at) = (now, began);
    }
}

#[cfg(test)]
mod tests {
    use super::super::measure::{Detail, Observations, PodUse};
    use super::super::threshold::{Amount, Layout};
    use super::*;
    use crate::api::PodUid;
    use futures::future::BoxFuture;
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicU32, Ordering};

    const MIB: u64 = 1 << 20;
    const NET: Duration = Duration::from_secs(10);

    #[test]
    fn the_less_is_left_the_sooner_it_is_looked_at_again() {
        let wait =
            |margin, rate, cost| look_again(margin * MIB, rate * MIB, Duration::from_micros(cost), NET);
        assert_eq!(wait(1 << 20, 0, 50), NET, "with a terabyte left the net is enough");
        assert_eq!(wait(256, 0, 50), Duration::from_secs(1));
        assert_eq!(wait(16, 0, 50).as_micros(), 62_500);
        assert_eq!(wait(0, 0, 50), SOONEST);
        assert_eq!(wait(1024, 1024, 50).as_millis(), 500, "what goes fast is looked at more often");
        assert_eq!(wait(0, 0, 10_000), Duration::from_secs(1), "a look that costs much is taken seldom");
        assert_eq!(wait(0, 0, 10_000_000), NET);
    }

    /// Memory that goes at a rate from a moment on.
    #[derive(Debug)]
    struct Going {
        began: Instant,
        idle: Duration,
        mib_per_second: u64,
        looks: AtomicU32,
    }

    impl Measure for Going {
        fn memory(&self) -> BoxFuture<'_, Option<Left>> {
            self.looks.fetch_add(1, Ordering::Relaxed);
            let gone = self.began.elapsed().saturating_sub(self.idle).as_secs_f64();
            let gone = gone * (self.mib_per_second * MIB) as f64;
            let left = Left { available: (1 << 30) - gone as i64, capacity: 2 << 30 };
            Box::pin(async move { Some(left) })
        }
        fn node(&self) -> BoxFuture<'_, Observations> {
            Box::pin(async { Observations::new() })
        }
        fn pods(&self, _: Detail) -> BoxFuture<'_, HashMap<PodUid, PodUse>> {
            Box::pin(async { HashMap::new() })
        }
        fn layout(&self) -> BoxFuture<'_, Option<Layout>> {
            Box::pin(async { None })
        }
    }

    fn threshold(amount: &str) -> Threshold {
        let value = Amount::parse(amount).unwrap();
        Threshold { signal: Signal::Memory, value, grace: None, min_reclaim: None }
    }

    #[tokio::test(start_paused = true)]
    async fn memory_that_goes_fast_is_noticed_within_a_fifth_of_a_second() {
        for mib_per_second in [10, 100, 200] {
            let idle = Duration::from_secs(60);
            let going = Going { began: Instant::now(), idle, mib_per_second, looks: AtomicU32::new(0) };
            falls_short(&[threshold("100Mi")], &going, &mut Kernel::default(), NET).await;
            let crossed = idle + Duration::from_secs_f64(924.0 / mib_per_second as f64);
            let late = going.began.elapsed().checked_sub(crossed).expect("it was not met before");
            assert!(late < Duration::from_millis(200), "{mib_per_second} MiB/s: {late:?} late");
            let looks = going.looks.load(Ordering::Relaxed);
            assert!(looks < 250, "{mib_per_second} MiB/s: {looks} looks");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_threshold_nobody_looks() {
        let going = Going {
            began: Instant::now(),
            idle: Duration::ZERO,
            mib_per_second: 100,
            looks: AtomicU32::new(0),
        };
        let mut kernel = Kernel::default();
        let looked = falls_short(&[], &going, &mut kernel, NET);
        assert!(tokio::time::timeout(Duration::from_secs(3600), looked).await.is_err());
        assert_eq!(going.looks.load(Ordering::Relaxed), 0);
    }
}
