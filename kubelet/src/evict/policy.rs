//! Which thresholds are met, since when, what the node's conditions are, and what is to be done. Pure: moments are parameters,
//! by the steady clock, so that a wall clock that is set moves no grace period.
//!
//! ```text
//!  observations ──▶ met now (less than the threshold is left)
//!                   + met before and not yet over (less than threshold + minimum reclaim)
//!                   ──▶ conditions: as long as the transition period after they were last seen
//!                   ──▶ to act on: met for as long as the grace period, memory first
//! ```
//!
//! Rules: upstream's eviction manager. One thing is stricter: what cannot be measured just now is neither met nor over, so
//! that a measurement that fails does not begin a grace period anew.

use super::measure::{Left, Observations};
use super::signal::{Condition, Signal};
use super::threshold::Threshold;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// What the policy remembers between looks. All of it begins anew when the agent does, as upstream's.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// By the threshold's place: since when it is met.
    met_since: BTreeMap<usize, Instant>,
    /// Of these, those that were acted on (or could have been): they are over only with the minimum reclaim.
    acted_on: BTreeSet<usize>,
    /// When each condition was last seen.
    last_seen: BTreeMap<Condition, Instant>,
}

/// What one look comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Conditions the node has.
    pub conditions: BTreeSet<Condition>,
    /// Thresholds (by place) whose grace is over, in the order in which they are dealt with.
    pub act: Vec<usize>,
    /// When the answer may change though nothing is measured anew: a grace period or a condition's time is over.
    pub next: Option<Instant>,
}

/// Less than the threshold is left; with `reclaim` less than that and the minimum reclaim. `None`: not known.
pub fn is_met(threshold: &Threshold, observed: Option<&Left>, reclaim: bool) -> Option<bool> {
    let left = observed?;
    let more = threshold.min_reclaim.as_ref().filter(|_| reclaim).map_or(0, |m| m.of(left.capacity));
    Some(left.available < threshold.value.of(left.capacity).saturating_add(more))
}

/// Whether none of `thresholds` is met any more, minimum reclaim included. As upstream asks after each step of reclaim:
/// what is not known is not met.
pub fn relieved(thresholds: &[Threshold], observed: &Observations) -> bool {
    !thresholds.iter().any(|t| is_met(t, observed.get(&t.signal), true) == Some(true))
}

impl State {
    /// Takes in what was observed at `now`.
    pub fn look(
        &mut self,
        thresholds: &[Threshold],
        observed: &Observations,
        transition: Duration,
        now: Instant,
    ) -> Verdict {
        let mut met = BTreeMap::new();
        let mut known = BTreeSet::new();
        for (place, t) in thresholds.iter().enumerate() {
            let since = self.met_since.get(&place).copied();
            match is_met(t, observed.get(&t.signal), self.acted_on.contains(&place)) {
                Some(true) => {
                    met.insert(place, since.unwrap_or(now));
                    known.insert(place);
                    self.last_seen.insert(t.signal.condition(), now);
                }
                Some(false) => {}
                None => met.extend(since.map(|since| (place, since))),
            }
        }
        self.met_since = met;
        self.last_seen.retain(|_, seen| *seen == now || now.saturating_duration_since(*seen) < transition);
        let over = |place: usize, since: Instant| since + thresholds[place].grace.unwrap_or_default();
        let (due, waiting): (Vec<_>, Vec<_>) =
            self.met_since.iter().map(|(p, since)| (*p, over(*p, *since))).partition(|(_, at)| *at <= now);
        let due: BTreeSet<usize> = due.into_iter().map(|(place, _)| place).collect();
        // One that is not known just now is still not over.
        let unknown = |place: &usize| self.met_since.contains_key(place) && !known.contains(place);
        let still: Vec<usize> = self.acted_on.iter().copied().filter(unknown).collect();
        self.acted_on = due.iter().copied().chain(still).collect();
        let mut act: Vec<usize> = due.into_iter().filter(|place| known.contains(place)).collect();
        act.sort_by_key(|place| (thresholds[*place].signal, *place));
        let conditions = self.last_seen.iter().filter(|(_, seen)| **seen != now);
        let next = conditions
            .map(|(_, seen)| *seen + transition)
            .chain(waiting.into_iter().map(|(_, at)| at))
            .filter(|at| *at > now)
            .min();
        Verdict { conditions: self.last_seen.keys().copied().collect(), act, next }
    }
}

/// The next limit for what `signal` looks at: the highest threshold that is not met with what is left, as an amount. `None`:
/// there is none.
pub fn next_limit(thresholds: &[Threshold], signal: Signal, left: &Left) -> Option<i64> {
    let of_it = thresholds.iter().filter(|t| t.signal == signal);
    of_it.map(|t| t.value.of(left.capacity)).filter(|limit| *limit <= left.available).max()
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
