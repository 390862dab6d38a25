//! Where in their periods commands come, so that they do not come all at once. Pure.
//!
//! A command costs the runtime a handful of processes, tens of milliseconds of a core. Pods that were started together
//! would be asked together for ever: for a second the node does nothing else, every probe in it is late, and then it
//! rests. So each command is given a place of its own in its period, as far as there is one.

use std::time::Duration;
use tokio::time::Instant;

/// So far apart commands are begun where there is room.
const ROOM: Duration = Duration::from_millis(100);
/// Places are looked for at these distances.
const STEP: Duration = Duration::from_millis(25);
/// No turn is moved further than this.
const FURTHEST: Duration = Duration::from_secs(10);

/// The next turn of a command with that period: after `after`, at `latest` at the latest and there if it is alone, else
/// where it meets least of `others`, of which each has a turn at some moment and one every period before and after.
pub fn place(
    after: Instant,
    latest: Instant,
    period: Duration,
    others: impl Iterator<Item = (Instant, Duration)>,
) -> Instant {
    let width = latest.saturating_duration_since(after).min(period).min(FURTHEST);
    // The n-th place is n steps before the latest.
    let places = usize::try_from(width.as_nanos().saturating_sub(1) / STEP.as_nanos()).unwrap_or(0) + 1;
    let mut met = vec![0.0; places];
    for (turn, every) in others {
        meet(&mut met, latest, period, turn, every);
    }
    let mut best = 0;
    for (n, so_often) in met.iter().enumerate() {
        if *so_often < met[best] - 1e-6 {
            best = n;
        }
    }
    latest - STEP * u32::try_from(best).unwrap_or(0)
}

/// Adds to each place how much of another command it meets. Two rows of turns with periods P and Q come as near to each
/// other as they ever do every lcm(P, Q), and how near that is shows within gcd(P, Q).
fn meet(met: &mut [f64], latest: Instant, period: Duration, turn: Instant, every: Duration) {
    let common = gcd(period.as_millis(), every.as_millis());
    if common == 0 {
        return;
    }
    let (common, every, step, room) =
        (common as f64, every.as_millis() as f64, STEP.as_millis() as f64, ROOM.as_millis() as f64);
    let ahead = latest.saturating_duration_since(turn).as_secs_f64() * 1e3;
    let behind = turn.saturating_duration_since(latest).as_secs_f64() * 1e3;
    // How long before the latest place the other one's turn is, within what is common.
    let mut before = (ahead - behind).rem_euclid(common) - common;
    while before < met.len() as f64 * step + room {
        let first = ((before - room) / step).ceil().max(0.0) as usize;
        let behind_last = ((before + room) / step).floor().max(-1.0) + 1.0;
        let behind_last = (behind_last.max(0.0) as usize).min(met.len());
        for (n, here) in met.iter_mut().enumerate().take(behind_last).skip(first) {
            let distance = (n as f64 * step - before).abs();
            *here += (1.0 - distance / room).max(0.0) * common / every;
        }
        before += common;
    }
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: Duration = Duration::from_secs(1);

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn now() -> Instant {
        // So far from the clock's beginning that turns of the past can be told.
        Instant::now() + S * 1000
    }

    #[test]
    fn one_that_is_alone_stays_where_it_is() {
        let now = now();
        assert_eq!(place(now, now + S * 10, S * 10, [].into_iter()), now + S * 10);
        let far = [(now + ms(4900), S * 10), (now + ms(5100), S * 10)];
        assert_eq!(place(now, now + S * 5, S * 10, far.into_iter()), now + S * 5);
    }

    #[test]
    fn those_that_come_together_are_moved_apart_and_none_is_later() {
        let (now, period) = (now(), S * 10);
        let mut turns = vec![now + period; 90];
        for n in 0..turns.len() {
            let others: Vec<_> =
                turns.iter().enumerate().filter(|(m, _)| *m != n).map(|(_, at)| (*at, period)).collect();
            turns[n] = place(now, now + period, period, others.into_iter());
        }
        turns.sort();
        assert!(turns.iter().all(|at| *at > now && *at <= now + period));
        let gaps: Vec<_> = turns.windows(2).map(|w| w[1] - w[0]).collect();
        assert!(gaps.iter().all(|gap| *gap >= ROOM), "{gaps:?}");
    }

    #[test]
    fn more_than_there_is_room_for_share_it() {
        let (now, period) = (now(), S);
        let mut turns = vec![now + period; 40];
        for n in 0..turns.len() {
            let others: Vec<_> =
                turns.iter().enumerate().filter(|(m, _)| *m != n).map(|(_, at)| (*at, period)).collect();
            turns[n] = place(now, now + period, period, others.into_iter());
        }
        for tenth in 0..10 {
            let (from, to) = (now + ms(tenth * 100), now + ms(tenth * 100 + 100));
            let within = turns.iter().filter(|at| from < **at && **at <= to).count();
            assert!((2..=6).contains(&within), "{within} of 40 in tenth {tenth}");
        }
    }

    #[test]
    fn of_another_period_only_what_is_ever_met_counts() {
        let now = now();
        // Every two seconds: it is met at even seconds, and at no other.
        let other = [(now + S * 2, S * 2)];
        assert_eq!(place(now, now + S * 9, S * 4, other.into_iter()), now + S * 9);
        let moved = place(now, now + S * 8, S * 4, other.into_iter());
        assert_eq!(now + S * 8 - moved, ROOM);
        // It was last asked long ago, and is asked as often.
        let past = [(now - S * 600, S * 2)];
        assert_eq!(now + S * 8 - place(now, now + S * 8, S * 4, past.into_iter()), ROOM);
    }

    proptest! {
        #[test]
        fn no_turn_is_later_than_the_latest_nor_in_the_past(
            latest in 1u64..100_000,
            period in 1u64..4000,
            others in prop::collection::vec((0u64..100_000, 1u64..4000), 0..20),
        ) {
            let now = now();
            let others = others.into_iter().map(|(at, every)| (now + ms(at) - S * 50, S * u32::try_from(every).unwrap()));
            let (latest, period) = (now + ms(latest), S * u32::try_from(period).unwrap());
            let at = place(now, latest, period, others);
            prop_assert!(at > now && at <= latest && latest - at <= FURTHEST);
        }
    }
}
