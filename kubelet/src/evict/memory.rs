//! When memory is looked at: not at a slow poll, by which a pod can have taken a gigabyte, and not all the time.
//!
//! Memory is polled, the sooner the less of it is left: by the time that a fast allocator would need to use up the margin.
//! What the kernel tells (`kernel`) only makes the next look come sooner: it does not tell of everything. With much of it free that is the slow net, so that an idle
//! node costs nothing; close to a threshold it is tens of milliseconds, as far as one look's own cost allows.

use super::kernel::Kernel;
use super::measure::{Measure, Observations};
use super::policy;
use super::signal::{Resource, Signal};
use super::threshold::Threshold;
use std::time::Duration;
use tokio::time::Instant;

/// Nothing is looked at more often.
const SOONEST: Duration = Duration::from_millis(20);

/// How fast memory is taken to go, in bytes a second, unless it has been seen to go faster.
const ASSUMED: u64 = 256 << 20;

/// Looking takes no more of a core than this part of it.
const COST: u32 = 100;

/// But what looking costs puts it off no longer than this.
const COST_WAIT: Duration = Duration::from_millis(200);

/// Of so many looks the cheapest says what one costs: wall time is measured, and on a busy machine a look waits its turn.
const LOOKS: usize = 4;

/// How long until memory must be looked at again when `margin` bytes may go, `rate` bytes a second did and a look takes
/// `cost`.
pub fn look_again(margin: u64, rate: u64, cost: Duration, net: Duration) -> Duration {
    // Twice the rate: it may be growing.
    let rate = rate.saturating_mul(2).max(ASSUMED);
    let wait = Duration::from_secs_f64(margin as f64 / rate as f64);
    let costs = cost.saturating_mul(COST).min(COST_WAIT);
    wait.min(net).max(SOONEST).max(costs).min(net.max(SOONEST))
}

/// A signal of memory, and what must stay of it.
struct Watched {
    signal: Signal,
    limit: i64,
    /// How many bytes may go.
    margin: u64,
}

/// Every signal of memory that has a threshold which is not met.
fn watched(thresholds: &[Threshold], left: &Observations) -> Vec<Watched> {
    let of_memory = left.iter().filter(|(signal, _)| signal.resource() == Resource::Memory);
    let watch = of_memory.filter_map(|(signal, left)| {
        let limit = policy::next_limit(thresholds, *signal, left)?;
        Some(Watched { signal: *signal, limit, margin: left.available.saturating_sub(limit).unsigned_abs() })
    });
    watch.collect()
}

/// Resolves when a threshold for memory (the node's or the pods') that is not met by now is. Never, where there is none.
/// Cancel-safe.
pub async fn falls_short(
    thresholds: &[Threshold],
    measure: &dyn Measure,
    kernel: &mut Kernel,
    net: Duration,
) {
    if !thresholds.iter().any(|t| t.signal.resource() == Resource::Memory) {
        return std::future::pending().await;
    }
    let mut at = Instant::now();
    let mut watched = watched(thresholds, &measure.memory().await);
    let mut costs = [at.elapsed(); LOOKS];
    let mut rate = 0;
    for look in 0_usize.. {
        // Not known now, or all are met: the net looks again.
        let Some(margin) = watched.iter().map(|w| w.margin).min() else { break };
        let cost = costs.into_iter().min().unwrap_or_default();
        tokio::select! {
            () = tokio::time::sleep(look_again(margin, rate, cost, net)) => {}
            // What makes the kernel tell for nothing, such as files that are read, may do so again at once.
            () = kernel.told(margin) => tokio::time::sleep(SOONEST / 4).await,
        }
        let began = Instant::now();
        let left = measure.memory().await;
        costs[look % LOOKS] = began.elapsed();
        let passed = began.saturating_duration_since(at).as_secs_f64().max(0.001);
        (rate, at) = (0, began);
        for w in &mut watched {
            let Some(left) = left.get(&w.signal) else { continue };
            if left.available < w.limit {
                return;
            }
            let now = left.available.saturating_sub(w.limit).unsigned_abs();
            rate = rate.max((w.margin.saturating_sub(now) as f64 / passed) as u64);
            w.margin = now;
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::super::kernel::MemoryCgroup;
    use super::super::measure::{Detail, Left, PodUse};
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
        assert_eq!(wait(0, 0, 1000).as_millis(), 100, "a look that costs much is taken seldom");
        assert_eq!(wait(0, 0, 10_000_000), COST_WAIT, "but not so seldom that it is of no use");
    }

    /// Memory that goes at a rate from a moment on.
    #[derive(Debug)]
    struct Going {
        began: Instant,
        idle: Duration,
        mib_per_second: u64,
        looks: AtomicU32,
        /// What goes; of the other there is always enough.
        signal: Signal,
        /// One look in so many takes a tenth of a second.
        slow: u32,
    }

    impl Going {
        fn after(idle: u64, mib_per_second: u64) -> Self {
            let idle = Duration::from_secs(idle);
            let (began, looks) = (Instant::now(), AtomicU32::new(0));
            Self { began, idle, mib_per_second, looks, signal: Signal::Memory, slow: u32::MAX }
        }

        /// Watches until the threshold of 100 MiB is met: how much later than that it was noticed, and after how many looks.
        async fn noticed(&self, kernel: &mut Kernel) -> (Duration, u32) {
            let both = [Signal::Memory, Signal::AllocatableMemory].map(|signal| threshold(signal, "100Mi"));
            falls_short(&both, self, kernel, NET).await;
            let crossed = self.idle + Duration::from_secs_f64(924.0 / self.mib_per_second as f64);
            let late = self.began.elapsed().checked_sub(crossed).expect("it was not met before");
            (late, self.looks.load(Ordering::Relaxed))
        }
    }

    impl Measure for Going {
        fn memory(&self) -> BoxFuture<'_, Observations> {
            let look = self.looks.fetch_add(1, Ordering::Relaxed);
            let gone = self.began.elapsed().saturating_sub(self.idle).as_secs_f64();
            let gone = gone * (self.mib_per_second * MIB) as f64;
            let left = |available| Left { available, capacity: 2 << 30 };
            let mut seen = Observations::from([
                (Signal::Memory, left(2 << 30)),
                (Signal::AllocatableMemory, left(2 << 30)),
            ]);
            seen.insert(self.signal, left((1 << 30) - gone as i64));
            let takes = Duration::from_millis(if look % self.slow == self.slow - 1 { 100 } else { 0 });
            Box::pin(async move {
                tokio::time::sleep(takes).await;
                seen
            })
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

    fn threshold(signal: Signal, amount: &str) -> Threshold {
        Threshold { signal, value: Amount::parse(amount).unwrap(), grace: None, min_reclaim: None }
    }

    const SOON: Duration = Duration::from_millis(200);

    #[tokio::test(start_paused = true)]
    async fn memory_that_goes_fast_is_noticed_within_a_fifth_of_a_second() {
        for signal in [Signal::Memory, Signal::AllocatableMemory] {
            for rate in [10, 100, 200] {
                let going = Going { signal, ..Going::after(60, rate) };
                let (late, looks) = going.noticed(&mut Kernel::default()).await;
                assert!(late < SOON && looks < 250, "{signal}, {rate} MiB/s: {late:?} late, {looks} looks");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_kernel_that_tells_nothing_though_asked_costs_no_time() {
        // As the kernel does where what goes is not the pods'.
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [("memory.usage_in_bytes", "1000\n"), ("cgroup.event_control", "")] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let mut kernel = Kernel::listen(Some(&MemoryCgroup::V1(dir.path().to_owned())));
        let (late, _) = Going::after(60, 100).noticed(&mut kernel).await;
        assert!(kernel.tells_growth(), "it was asked");
        assert!(late < SOON, "{late:?} late");
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_had_to_wait_does_not_put_off_the_next() {
        let going = Going { slow: 2, ..Going::after(0, 100) };
        let (late, _) = going.noticed(&mut Kernel::default()).await;
        assert!(late < 2 * SOON, "{late:?} late");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_threshold_nobody_looks() {
        let going = Going::after(0, 100);
        let mut kernel = Kernel::default();
        let looked = falls_short(&[], &going, &mut kernel, NET);
        assert!(tokio::time::timeout(Duration::from_secs(3600), looked).await.is_err());
        assert_eq!(going.looks.load(Ordering::Relaxed), 0);
    }
}
