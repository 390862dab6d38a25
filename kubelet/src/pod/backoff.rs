//! Crash back-off: how long a container that ended waits before it runs again. Pure.
//!
//! Upstream's rule: the first restart is immediate, then 10 s doubling to the configured cap, counted from the moment
//! the container ended; a container that ran for ten minutes starts over, whatever the cap.

use crate::pleg::observed::Instance;
use std::time::Duration;

/// Where the doubling starts.
pub const INITIAL: Duration = Duration::from_secs(10);
/// Upstream's default cap (`crashLoopBackOff.maxContainerRestartPeriod` may lower it).
pub const DEFAULT_CAP: Duration = Duration::from_secs(300);

/// A container that ran for longer than this is well: its next end counts as the first.
pub const WELL: Duration = Duration::from_secs(600);

/// Back-off state of one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The wait that follows the next end.
    pub wait: Duration,
    /// When it was last lengthened (a start was made), nanoseconds since the epoch.
    pub updated: i64,
}

/// What to do about a container that ended and should run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Start it; this is the state to keep.
    Start(Entry),
    /// Wait until `until` (nanoseconds since the epoch); `wait` is for the message.
    Wait {
        /// When it may start.
        until: i64,
        /// The whole wait.
        wait: Duration,
    },
}

/// Decides at `now` for a container that ended at `finished` (both nanoseconds since the epoch). Its end has been known for
/// `known_for`, whatever was done to the clock since.
pub fn decide(entry: Option<Entry>, finished: i64, known_for: Duration, now: i64, cap: Duration) -> Verdict {
    let initial = INITIAL.min(cap);
    let nanos = |d: Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
    let Some(e) = entry.filter(|e| finished.saturating_sub(e.updated) <= nanos(WELL)) else {
        return Verdict::Start(Entry { wait: initial, updated: now });
    };
    // A clock that was set back must not make the wait longer than the wait itself.
    let left = finished.saturating_add(nanos(e.wait)).saturating_sub(now);
    let left = left.min(nanos(e.wait.saturating_sub(known_for)));
    if left > 0 {
        return Verdict::Wait { until: now.saturating_add(left), wait: e.wait };
    }
    Verdict::Start(Entry { wait: e.wait.saturating_mul(2).min(cap), updated: now })
}

/// The state an agent that remembers nothing must assume, from the newest instance it finds: its restarts were all
/// quick, unless the last one ran for long.
pub fn recover(latest: &Instance, cap: Duration) -> Option<Entry> {
    let n = latest.restart_count.checked_sub(1)?;
    Some(Entry { wait: nth(n, cap), updated: latest.created_at })
}

/// The state to keep at `now` for a restart after `latest` that an agent of which nothing is known had decided.
pub fn restarted(latest: &Instance, now: i64, cap: Duration) -> Entry {
    Entry { wait: nth(latest.restart_count, cap), updated: now }
}

/// The wait after `n` doublings.
fn nth(n: u32, cap: Duration) -> Duration {
    INITIAL.saturating_mul(1u32.checked_shl(n.min(16)).unwrap_or(u32::MAX)).min(cap)
}

#[cfg(test)]
mod tests {
    use super::*;
    const S: i64 = 1_000_000_000;

    #[test]
    fn waits_are_0_10_20_40_up_to_the_cap() {
        let (mut entry, mut now, mut waits) = (None, 100 * S, Vec::new());
        for _ in 0..9 {
            let finished = now;
            if let Verdict::Wait { until, .. } = decide(entry, finished, Duration::ZERO, now, DEFAULT_CAP) {
                waits.push((until - finished) / S);
                now = until;
            } else {
                waits.push(0);
            }
            let Verdict::Start(e) = decide(entry, finished, Duration::ZERO, now, DEFAULT_CAP) else {
                panic!("must start at {now}")
            };
            entry = Some(e);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn a_long_healthy_run_starts_over() {
        let entry = Some(Entry { wait: Duration::from_secs(160), updated: 0 });
        assert_eq!(
            decide(entry, 601 * S, Duration::ZERO, 601 * S, DEFAULT_CAP),
            Verdict::Start(Entry { wait: INITIAL, updated: 601 * S })
        );
    }

    #[test]
    fn only_ten_minutes_of_running_start_over_not_the_wait_and_not_twice_a_lower_cap() {
        // Ran for six minutes, and has waited for the five that were to be waited.
        let entry = Some(Entry { wait: DEFAULT_CAP, updated: 0 });
        let again = Verdict::Start(Entry { wait: DEFAULT_CAP, updated: 661 * S });
        assert_eq!(decide(entry, 360 * S, Duration::ZERO, 661 * S, DEFAULT_CAP), again);
        let cap = Duration::from_secs(60);
        let entry = Some(Entry { wait: cap, updated: 0 });
        assert_eq!(
            decide(entry, 300 * S, Duration::ZERO, 300 * S, cap),
            Verdict::Wait { until: 360 * S, wait: cap }
        );
        let over = Verdict::Start(Entry { wait: INITIAL, updated: 601 * S });
        assert_eq!(decide(entry, 601 * S, Duration::ZERO, 601 * S, cap), over);
    }

    #[test]
    fn a_clock_set_back_never_lengthens_the_wait() {
        let entry = Some(Entry { wait: Duration::from_secs(20), updated: 5000 * S });
        let at = |seconds: u64, now| decide(entry, 5000 * S, Duration::from_secs(seconds), now, DEFAULT_CAP);
        let wait = Duration::from_secs(20);
        assert_eq!(at(0, 1400 * S), Verdict::Wait { until: 1420 * S, wait });
        assert_eq!(at(15, 1415 * S), Verdict::Wait { until: 1420 * S, wait });
        assert_eq!(at(20, 1420 * S), Verdict::Start(Entry { wait: 2 * wait, updated: 1420 * S }));
    }
}
