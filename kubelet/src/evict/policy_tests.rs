//! Tables and properties of the policy.

use super::super::threshold::Amount;
use super::*;
use proptest::prelude::*;

const TRANSITION: Duration = Duration::from_secs(300);

fn quantity(value: i64) -> Amount {
    Amount::Quantity { value, text: value.to_string() }
}

fn hard(signal: Signal, value: i64) -> Threshold {
    Threshold { signal, value: quantity(value), grace: None, min_reclaim: None }
}

fn soft(signal: Signal, value: i64, seconds: u64) -> Threshold {
    Threshold { grace: Some(Duration::from_secs(seconds)), ..hard(signal, value) }
}

fn seen(of: &[(Signal, i64)]) -> Observations {
    of.iter().map(|(s, available)| (*s, Left { available: *available, capacity: 1000 })).collect()
}

/// A policy on a clock of its own.
struct Desk {
    thresholds: Vec<Threshold>,
    state: State,
    began: Instant,
}

impl Desk {
    fn of(thresholds: Vec<Threshold>) -> Self {
        Self { thresholds, state: State::default(), began: Instant::now() }
    }

    fn at(&mut self, second: u64, of: &[(Signal, i64)]) -> Verdict {
        let now = self.began + Duration::from_secs(second);
        self.state.look(&self.thresholds, &seen(of), TRANSITION, now)
    }

    fn in_seconds(&self, at: Option<Instant>) -> Option<u64> {
        at.map(|at| at.duration_since(self.began).as_secs())
    }
}

fn conditions(of: &[Condition]) -> BTreeSet<Condition> {
    of.iter().copied().collect()
}

#[test]
fn a_hard_threshold_is_acted_on_at_once_and_only_below_it() {
    let mut desk = Desk::of(vec![hard(Signal::Memory, 100)]);
    assert_eq!(
        desk.at(0, &[(Signal::Memory, 100)]),
        Verdict::default(),
        "as much as the threshold is enough"
    );
    let verdict = desk.at(1, &[(Signal::Memory, 99)]);
    assert_eq!((verdict.act, verdict.conditions), (vec![0], conditions(&[Condition::MemoryPressure])));
}

#[test]
fn a_share_is_of_the_capacity() {
    let threshold = Threshold { value: Amount::Share(0.1), ..hard(Signal::NodeFs, 0) };
    let met = |available| is_met(&threshold, Some(&Left { available, capacity: 1000 }), false);
    assert_eq!((met(100), met(99)), (Some(false), Some(true)));
}

#[test]
fn a_soft_threshold_is_told_at_once_and_acted_on_after_its_grace() {
    let mut desk = Desk::of(vec![soft(Signal::Memory, 100, 90)]);
    let verdict = desk.at(0, &[(Signal::Memory, 50)]);
    assert_eq!(desk.in_seconds(verdict.next), Some(90), "nobody has to look every second");
    assert_eq!((verdict.act, verdict.conditions), (vec![], conditions(&[Condition::MemoryPressure])));
    assert_eq!(desk.at(89, &[(Signal::Memory, 50)]).act, [0; 0]);
    assert_eq!(desk.at(90, &[(Signal::Memory, 50)]).act, [0]);
    // Over in between: the grace begins anew.
    assert_eq!(desk.at(91, &[(Signal::Memory, 100)]).act, [0; 0]);
    assert_eq!(desk.at(92, &[(Signal::Memory, 50)]).act, [0; 0]);
    assert_eq!(desk.at(182, &[(Signal::Memory, 50)]).act, [0]);
}

#[test]
fn what_was_acted_on_is_over_only_with_the_minimum_reclaim() {
    let threshold = Threshold { min_reclaim: Some(quantity(50)), ..hard(Signal::NodeFs, 100) };
    let mut desk = Desk::of(vec![threshold]);
    assert_eq!(desk.at(0, &[(Signal::NodeFs, 120)]).act, [0; 0], "it was never met");
    assert_eq!(desk.at(1, &[(Signal::NodeFs, 99)]).act, [0]);
    assert_eq!(desk.at(2, &[(Signal::NodeFs, 149)]).act, [0]);
    assert_eq!(desk.at(3, &[(Signal::NodeFs, 150)]).act, [0; 0]);
    assert_eq!(desk.at(4, &[(Signal::NodeFs, 149)]).act, [0; 0]);
}

#[test]
fn a_condition_stays_for_the_transition_period_after_it_was_last_seen() {
    let mut desk = Desk::of(vec![hard(Signal::Pid, 100)]);
    let pressure = conditions(&[Condition::PidPressure]);
    assert_eq!(desk.at(0, &[(Signal::Pid, 0)]).conditions, pressure);
    assert_eq!(desk.at(100, &[(Signal::Pid, 0)]).conditions, pressure);
    let verdict = desk.at(101, &[(Signal::Pid, 500)]);
    assert_eq!((verdict.act.len(), desk.in_seconds(verdict.next)), (0, Some(400)));
    assert_eq!(desk.at(399, &[(Signal::Pid, 500)]).conditions, pressure);
    assert_eq!(desk.at(400, &[(Signal::Pid, 500)]).conditions, conditions(&[]));
}

#[test]
fn memory_is_dealt_with_first() {
    let signals = [Signal::Pid, Signal::NodeFs, Signal::AllocatableMemory, Signal::ImageFs, Signal::Memory];
    let mut desk = Desk::of(signals.map(|s| hard(s, 100)).to_vec());
    let act = desk.at(0, &signals.map(|s| (s, 0))).act;
    let order: Vec<Signal> = act.iter().map(|place| signals[*place]).collect();
    assert_eq!(
        order,
        [Signal::Memory, Signal::AllocatableMemory, Signal::NodeFs, Signal::ImageFs, Signal::Pid]
    );
}

#[test]
fn what_is_not_known_is_neither_met_nor_over() {
    let mut desk = Desk::of(vec![soft(Signal::Memory, 100, 60)]);
    assert_eq!(desk.at(0, &[]), Verdict::default());
    desk.at(1, &[(Signal::Memory, 0)]);
    let verdict = desk.at(30, &[]);
    assert_eq!(verdict.act, [0; 0]);
    assert_eq!(verdict.conditions, conditions(&[Condition::MemoryPressure]), "within the transition period");
    assert_eq!(desk.at(100, &[]).act, [0; 0], "the grace is over, but nobody knows");
    assert_eq!(desk.at(101, &[(Signal::Memory, 0)]).act, [0], "it did not begin anew");
}

#[test]
fn reclaim_is_enough_when_every_threshold_is_over_with_its_minimum() {
    let disk = Threshold { min_reclaim: Some(quantity(50)), ..hard(Signal::NodeFs, 100) };
    let all = [disk, hard(Signal::Memory, 100)];
    assert!(relieved(&all, &seen(&[(Signal::NodeFs, 150), (Signal::Memory, 100)])));
    assert!(!relieved(&all, &seen(&[(Signal::NodeFs, 149), (Signal::Memory, 100)])));
    assert!(!relieved(&all, &seen(&[(Signal::NodeFs, 150), (Signal::Memory, 99)])));
    assert!(relieved(&all, &seen(&[(Signal::NodeFs, 150)])));
}

#[test]
fn the_next_limit_for_memory_is_the_highest_that_is_not_met() {
    let all = [hard(Signal::Memory, 100), soft(Signal::Memory, 300, 60), hard(Signal::NodeFs, 900)];
    let limit = |available| next_limit(&all, Signal::Memory, &Left { available, capacity: 1000 });
    assert_eq!(limit(1000), Some(300), "the soft one comes first");
    assert_eq!(limit(250), Some(100), "it is met: the hard one is next");
    assert_eq!(limit(99), None);
    assert_eq!(next_limit(&all[2..], Signal::Memory, &Left { available: 5, capacity: 1000 }), None);
}

/// What a look sees of two signals: nothing, or so much.
fn looks() -> impl Strategy<Value = Vec<(u64, Option<i64>, Option<i64>)>> {
    let level = || proptest::option::weighted(0.8, 0..200i64);
    proptest::collection::vec((1..200u64, level(), level()), 1..40)
}

proptest! {
    #[test]
    fn nothing_is_acted_on_that_is_not_met_and_no_condition_is_shorter_than_its_transition(
        looks in looks(), grace in 0..120u64, reclaim in 0..60i64,
    ) {
        let thresholds = vec![
            Threshold { min_reclaim: Some(quantity(reclaim)), ..hard(Signal::Memory, 100) },
            soft(Signal::NodeFs, 100, grace),
        ];
        let mut desk = Desk::of(thresholds.clone());
        let mut now = 0;
        let mut last_met: BTreeMap<Condition, u64> = BTreeMap::new();
        let mut soft_since: Option<u64> = None;
        for (step, memory, disk) in looks {
            now += step;
            let levels = [(Signal::Memory, memory), (Signal::NodeFs, disk)];
            let of: Vec<_> = levels.into_iter().filter_map(|(s, l)| Some((s, l?))).collect();
            let verdict = desk.at(now, &of);
            for place in &verdict.act {
                let t = &thresholds[*place];
                let level = of.iter().find(|(s, _)| *s == t.signal).expect("what is acted on is known").1;
                let most = if *place == 0 { 100 + reclaim } else { 100 };
                prop_assert!(level < most, "{}: {} is left", t.signal, level);
            }
            match disk {
                Some(level) if level < 100 => { soft_since.get_or_insert(now); }
                Some(_) => soft_since = None,
                None => {}
            }
            if verdict.act.contains(&1) {
                prop_assert!(now - soft_since.unwrap() >= grace);
            }
            for (signal, level) in &of {
                if *level < 100 {
                    last_met.insert(signal.condition(), now);
                }
            }
            for (condition, at) in &last_met {
                if now - at < TRANSITION.as_secs() {
                    prop_assert!(verdict.conditions.contains(condition), "{} ended early", condition);
                }
            }
            if of.iter().all(|(_, level)| *level >= 100 + reclaim) {
                prop_assert!(verdict.act.is_empty(), "no threshold is met");
            }
            let next = desk.in_seconds(verdict.next);
            prop_assert!(next.is_none_or(|at| at > now), "a moment to come");
        }
    }
}
