//! When pods that may run only so long (`spec.activeDeadlineSeconds`) must end. Kept by the task alone; one timer for all.

use crate::api::{self, Pod, PodUid};
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use tokio::time::Instant;

/// A pod whose time is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Over {
    /// Which.
    pub uid: PodUid,
    /// Since when (nanoseconds since the epoch).
    pub at: i64,
}

/// Every deadline that has not come yet.
#[derive(Debug, Default)]
pub struct Deadlines {
    by_pod: HashMap<PodUid, (Instant, i64)>,
    in_order: BTreeSet<(Instant, PodUid)>,
}

/// When the time of `pod` is over, which began at `began` (both nanoseconds since the epoch).
pub fn of(pod: &Pod, began: i64) -> Option<i64> {
    let seconds = api::spec(pod).active_deadline_seconds?;
    Some(began.saturating_add(seconds.max(0).saturating_mul(1_000_000_000)))
}

impl Deadlines {
    /// Sets the deadline of `uid`, or takes it away. `now` is the wall clock's nanoseconds: from here on the deadline
    /// follows the steady clock, and a wall clock that is set does not move it.
    pub fn set(&mut self, uid: &PodUid, at: Option<i64>, now: i64) {
        if let Some((before, _)) = self.by_pod.remove(uid) {
            self.in_order.remove(&(before, uid.clone()));
        }
        let Some(at) = at else { return };
        let wait = Duration::from_nanos(u64::try_from(at.saturating_sub(now)).unwrap_or(0));
        // A deadline past the end of the clock never comes.
        let Some(when) = Instant::now().checked_add(wait) else { return };
        self.by_pod.insert(uid.clone(), (when, at));
        self.in_order.insert((when, uid.clone()));
    }

    /// Waits for the next deadline, for ever when there is none. Cancel-safe: it stays until it is given.
    pub async fn next(&mut self) -> Over {
        let Some((when, uid)) = self.in_order.first().cloned() else { return std::future::pending().await };
        tokio::time::sleep_until(when).await;
        self.in_order.remove(&(when, uid.clone()));
        let at = self.by_pod.remove(&uid).map_or(0, |(_, at)| at);
        Over { uid, at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn uid(n: u32) -> PodUid {
        PodUid::new(&n.to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_come_in_their_order_whatever_order_they_were_set_in() {
        let mut all = Deadlines::default();
        let second = 1_000_000_000;
        for (n, at) in [(1, 30), (2, 10), (3, 20), (4, -5)] {
            all.set(&uid(n), Some(at * second), 0);
        }
        all.set(&uid(3), None, 0);
        all.set(&uid(1), Some(5 * second), second);
        let began = Instant::now();
        let mut come = Vec::new();
        for _ in 0..3 {
            let over = all.next().await;
            come.push((over.uid.as_str().to_owned(), over.at / second, began.elapsed().as_secs()));
        }
        assert_eq!(come, [("4".to_owned(), -5, 0), ("1".to_owned(), 5, 4), ("2".to_owned(), 10, 10)]);
        assert!(all.next().now_or_never().is_none(), "none is left");
        assert!(all.by_pod.is_empty() && all.in_order.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_was_dropped_loses_nothing_and_no_number_overflows() {
        let mut all = Deadlines::default();
        all.set(&uid(1), Some(i64::MAX), i64::MIN);
        assert!(all.next().now_or_never().is_none());
        all.set(&uid(2), Some(0), 0);
        assert_eq!(all.next().await, Over { uid: uid(2), at: 0 });
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {"containers": [],
            "activeDeadlineSeconds": i64::MAX}}))
        .unwrap();
        assert_eq!(of(&pod, 5), Some(i64::MAX));
        assert_eq!(of(&Pod::default(), 5), None);
    }
}
