//! The task with a prober that is told what to answer, on paused time.

use super::super::{PodProbes, Probes, keep};
use super::*;
use crate::api::{Pod, PodUid};
use crate::event::Event;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use std::fmt;
use std::sync::Mutex;
use tokio::sync::broadcast;

const EPOCH: i64 = 1_767_225_600;

type Ask = dyn Fn(&Question, u32) -> (Duration, Answer) + Send + Sync;

/// Answers by the question and by how often it was asked; notes when (milliseconds since it was made) and what.
#[derive(Clone)]
struct Scripted {
    answer: Arc<Ask>,
    asked: Arc<Mutex<Vec<(u128, String)>>>,
    flying: Arc<Mutex<(usize, usize)>>,
    began: Instant,
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}

impl Scripted {
    fn new(answer: impl Fn(&Question, u32) -> (Duration, Answer) + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        Self { answer, asked: Arc::default(), flying: Arc::default(), began: Instant::now() }
    }

    fn asked(&self) -> Vec<(u128, String)> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// When the probe was asked, in seconds.
    fn seconds(&self, of: &str) -> Vec<u128> {
        let asked = self.asked();
        asked.into_iter().filter(|(_, what)| what == of).map(|(at, _)| at / 1000).collect()
    }
}

impl Prober for Scripted {
    fn ask(&self, question: Question) -> BoxFuture<'static, Answer> {
        let what = format!("{} {}", question.kind, question.instance);
        let before = {
            let mut asked = self.asked.lock().unwrap();
            let before = asked.iter().filter(|(_, w)| *w == what).count();
            asked.push((self.began.elapsed().as_millis(), what));
            before
        };
        let (takes, answer) = (self.answer)(&question, u32::try_from(before).unwrap());
        let flying = self.flying.clone();
        Box::pin(async move {
            {
                let mut flying = flying.lock().unwrap();
                flying.0 += 1;
                flying.1 = flying.1.max(flying.0);
            }
            tokio::time::sleep(takes).await;
            flying.lock().unwrap().0 -= 1;
            answer
        })
    }
}

fn well(_: &Question, _: u32) -> (Duration, Answer) {
    (Duration::ZERO, Answer::Success)
}

fn no() -> Answer {
    Answer::Failure("no".into())
}

struct Room {
    prober: Scripted,
    probes: Probes,
    events: broadcast::Receiver<Event>,
    metrics: Metrics,
    clock: Clock,
    dir: tempfile::TempDir,
}

impl Room {
    fn new(prober: Scripted) -> Self {
        let recorder = Recorder::new(1000);
        let (events, metrics) = (recorder.subscribe(), Metrics::default());
        let clock = Clock::steady(jiff::Timestamp::from_second(EPOCH).unwrap());
        let probes = Probes::spawn(Arc::new(prober.clone()), recorder, metrics.clone(), clock);
        Self { prober, probes, events, metrics, clock, dir: tempfile::tempdir().unwrap() }
    }

    fn open(&self, adopted: bool) -> PodProbes {
        let pod = PodRef { uid: PodUid::new("u"), namespace: "ns".into(), name: "p".into() };
        self.probes.open(&pod, self.dir.path(), adopted)
    }

    fn events(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.events.try_recv().ok())
            .map(|e| format!("{}: {}", e.reason, e.message))
            .collect()
    }

    /// The pod with one container of these probes, running since now as that instance.
    fn targets(&self, probes: Value, instance: &str) -> Targets {
        let mut c = json!({"name": "c", "image": "i"});
        c.as_object_mut().unwrap().extend(probes.as_object().unwrap().clone());
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [c]}})).unwrap();
        let target = Target {
            list: ContainerList::Regular,
            index: 0,
            instance: instance.into(),
            started_at: self.clock.nanos(),
        };
        Targets { pod: Arc::new(pod), terminating: false, ip: None, running: vec![target] }
    }
}

fn every(seconds: u32, more: Value) -> Value {
    let mut probe = json!({"tcpSocket": {"port": 1}, "periodSeconds": seconds});
    probe.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    probe
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// Past all that happens at this instant.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_container_is_probed_at_once_and_then_at_multiples_of_the_period() {
    let room = Room::new(Scripted::new(|_, n| (Duration::from_millis(300 * u64::from(n)), Answer::Success)));
    let mut pod = room.open(false);
    let plain = every(2, json!({}));
    let late = every(3, json!({"initialDelaySeconds": 5}));
    pod.aim(room.targets(json!({"readinessProbe": plain, "livenessProbe": late}), "a"));
    pass(20).await;
    let asked = room.prober.asked();
    let of = |what| asked.iter().filter(|(_, w)| w == what).map(|(at, _)| *at).collect::<Vec<_>>();
    // From 2.1 s on one turn is left out: the run before it is still under way.
    assert_eq!(of("readiness a"), [0, 2000, 4000, 6000, 8000, 10_000, 12_000, 14_000, 18_000]);
    assert_eq!(of("liveness a"), [5000, 8000, 11_000, 14_000, 17_000]);
}

#[tokio::test(start_paused = true)]
async fn liveness_and_readiness_wait_for_startup_and_begin_at_once_after_it() {
    let room = Room::new(Scripted::new(|q, n| {
        (Duration::ZERO, if q.kind == Kind::Startup && n < 3 { no() } else { Answer::Success })
    }));
    let mut pod = room.open(false);
    let probe = every(4, json!({"failureThreshold": 30}));
    let plain = every(10, json!({}));
    pod.aim(
        room.targets(json!({"startupProbe": probe, "readinessProbe": plain, "livenessProbe": plain}), "a"),
    );
    settle().await;
    assert_eq!(
        (pod.readiness().started("c", "a"), pod.readiness().ready("c", "a")),
        (Some(false), Some(false))
    );
    pass(12).await;
    assert_eq!(
        (pod.readiness().started("c", "a"), pod.readiness().ready("c", "a")),
        (Some(true), Some(true))
    );
    pass(12).await;
    let asked: Vec<_> =
        room.prober.asked().into_iter().map(|(at, what)| format!("{} {what}", at / 1000)).collect();
    let want = [
        "0 startup a",
        "4 startup a",
        "8 startup a",
        "12 startup a",
        "12 liveness a",
        "12 readiness a",
        "22 liveness a",
        "22 readiness a",
    ];
    assert_eq!(asked, want);
}

#[tokio::test(start_paused = true)]
async fn counters_go_on_over_restarts_and_end_with_the_last_instance() {
    let room = Room::new(Scripted::new(well));
    let count = || {
        let page = room.metrics.probes.registry().render();
        let line = page.lines().find(|l| l.starts_with("prober_probe_total{"))?;
        Some(line.rsplit(' ').next().unwrap().to_owned())
    };
    let mut pod = room.open(false);
    let probes = json!({"readinessProbe": every(1, json!({}))});
    let mut targets = room.targets(probes, "a");
    pod.aim(targets.clone());
    settle().await;
    assert_eq!(count().as_deref(), Some("1"));
    // Between two instances.
    pod.aim(Targets { running: Vec::new(), ..targets.clone() });
    settle().await;
    assert_eq!(count().as_deref(), Some("1"));
    targets.running[0].instance = "b".into();
    pod.aim(targets.clone());
    settle().await;
    assert_eq!(count().as_deref(), Some("2"));
    // None will follow: the pod ends, or its policy says so.
    let running = std::mem::take(&mut targets.running);
    pod.aim(Targets { terminating: true, ..targets.clone() });
    settle().await;
    assert_eq!(count(), None);
    let mut other = room.open(false);
    Arc::make_mut(&mut targets.pod).spec.as_mut().unwrap().restart_policy = Some("Never".into());
    other.aim(Targets { running, ..targets.clone() });
    settle().await;
    assert_eq!(count().as_deref(), Some("1"));
    other.aim(targets);
    settle().await;
    assert_eq!(count(), None);
}

#[tokio::test(start_paused = true)]
async fn readiness_follows_the_thresholds_and_each_failure_is_told() {
    let answers = [true, false, false, true, true, false, true];
    let mut room = Room::new(Scripted::new(move |_, n| {
        (Duration::ZERO, if answers[n as usize % 7] { Answer::Success } else { no() })
    }));
    let mut pod = room.open(false);
    let probe = every(1, json!({"failureThreshold": 2, "successThreshold": 2}));
    pod.aim(room.targets(json!({"readinessProbe": probe}), "a"));
    let mut seen = Vec::new();
    for _ in answers {
        settle().await;
        seen.push(pod.readiness().ready("c", "a").unwrap());
        tokio::time::sleep(Duration::from_millis(999)).await;
    }
    assert_eq!(seen, [false, false, false, false, true, true, true]);
    assert_eq!(room.events(), ["Unhealthy: Readiness probe failed: no"; 3]);
    let page = room.metrics.probes.registry().render();
    let labels = "container=\"c\",namespace=\"ns\",pod=\"p\",pod_uid=\"u\",probe_type=\"Readiness\"";
    assert!(page.contains(&format!("prober_probe_total{{{labels},result=\"failed\"}} 3")), "{page}");
    assert!(page.contains(&format!("prober_probe_total{{{labels},result=\"successful\"}} 4")), "{page}");
    drop(pod);
    settle().await;
    assert!(!room.metrics.probes.registry().render().contains("prober_probe_total{"));
}

#[tokio::test(start_paused = true)]
async fn a_failed_liveness_probe_is_told_once_and_stops_until_there_is_a_new_instance() {
    let room = Room::new(Scripted::new(|_, _| (Duration::ZERO, no())));
    let mut pod = room.open(false);
    let probes = json!({"livenessProbe": every(1, json!({"failureThreshold": 2, "terminationGracePeriodSeconds": 7}))});
    pod.aim(room.targets(probes.clone(), "a"));
    pass(10).await;
    let failed = pod.readiness().failed("c", "a").cloned().unwrap();
    assert_eq!(failed.message, "Container c failed liveness probe");
    assert_eq!((failed.kind, failed.grace), (Kind::Liveness, Some(Duration::from_secs(7))));
    assert_eq!(room.prober.seconds("liveness a"), [0, 1]);
    pod.aim(room.targets(probes, "b"));
    settle().await;
    assert_eq!(pod.readiness().failed("c", "b"), None);
    assert_eq!(room.prober.seconds("liveness b"), [10]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_says_nothing_counts_neither_way() {
    let mut room = Room::new(Scripted::new(|_, n| {
        (Duration::ZERO, if n % 2 == 0 { no() } else { Answer::Unknown("rpc error".into()) })
    }));
    let mut pod = room.open(false);
    pod.aim(room.targets(json!({"livenessProbe": every(1, json!({"failureThreshold": 3}))}), "a"));
    pass(3).await;
    assert_eq!(pod.readiness().failed("c", "a"), None);
    pass(2).await;
    assert!(pod.readiness().failed("c", "a").is_some());
    assert_eq!(
        room.events()[1],
        "Unhealthy: Liveness probe errored and resulted in unknown state: rpc error"
    );
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ends_is_asked_for_readiness_only_and_one_that_is_gone_for_nothing() {
    let room = Room::new(Scripted::new(well));
    let mut pod = room.open(false);
    let plain = every(1, json!({}));
    let mut targets = room.targets(json!({"readinessProbe": plain, "livenessProbe": plain}), "a");
    pod.aim(targets.clone());
    pass(2).await;
    targets.terminating = true;
    pod.aim(targets);
    settle().await;
    room.prober.asked();
    pass(3).await;
    assert!(room.prober.asked().iter().all(|(_, what)| what == "readiness a"));
    drop(pod);
    settle().await;
    room.prober.asked();
    pass(10).await;
    assert_eq!(room.prober.asked(), []);
}

#[tokio::test(start_paused = true)]
async fn runs_are_bounded_and_hanging_ones_leave_room_for_others() {
    let exec = json!({"exec": {"command": ["x"]}, "periodSeconds": 600});
    let connect = json!({"tcpSocket": {"port": 1}, "periodSeconds": 600});
    for (means, probe) in [(Means::Command, exec), (Means::Connection, connect)] {
        let (places, of_a_pod) = means.limits();
        let room = Room::new(Scripted::new(|q, _| {
            let hangs = q.instance.starts_with("hang");
            (Duration::from_secs(if hangs { 3600 } else { 1 }), Answer::Success)
        }));
        let open = |prefix: &str| {
            let containers: Vec<Value> = (0..of_a_pod + 1)
                .map(|n| json!({"name": format!("c{n}"), "image": "i", "livenessProbe": probe}))
                .collect();
            let object: Pod = serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap();
            let running = (0..=of_a_pod).map(|index| Target {
                list: ContainerList::Regular,
                index,
                instance: format!("{prefix}-{index}"),
                started_at: room.clock.nanos(),
            });
            let running = running.collect();
            let mut probes = room.open(false);
            probes.aim(Targets { pod: Arc::new(object), terminating: false, ip: None, running });
            probes
        };
        // More than there are places, before the others come.
        let hanging: Vec<PodProbes> = (0..6).map(|_| open("hang")).collect();
        let good: Vec<PodProbes> = (0..6).map(|_| open("good")).collect();
        settle().await;
        assert_eq!(room.prober.flying.lock().unwrap().0, places);
        pass(60).await;
        let asked = room.prober.asked();
        let count = |prefix: &str| asked.iter().filter(|(_, what)| what.contains(prefix)).count();
        assert_eq!(count("hang"), hanging.len() * of_a_pod, "of each pod as many as it may have");
        assert_eq!(count("good"), good.len() * (of_a_pod + 1), "all of those that answer");
        assert!(room.prober.flying.lock().unwrap().1 <= hanging.len() * of_a_pod + places);
    }
}

/// Pods of one container that is asked by a command, all since now.
fn commanded(room: &Room, pods: usize, more: Value) -> Vec<PodProbes> {
    let mut probe = json!({"exec": {"command": ["x"]}, "periodSeconds": 10});
    probe.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let one = |n| {
        let mut pod = room.open(false);
        pod.aim(room.targets(json!({"livenessProbe": probe}), &format!("{n}")));
        pod
    };
    (0..pods).map(one).collect()
}

/// When each instance was asked, in milliseconds.
fn times(room: &Room) -> std::collections::BTreeMap<String, Vec<u128>> {
    let mut times = std::collections::BTreeMap::<String, Vec<u128>>::new();
    for (at, what) in room.prober.asked() {
        times.entry(what).or_default().push(at);
    }
    times
}

#[tokio::test(start_paused = true)]
async fn commands_of_pods_that_started_together_are_soon_asked_apart_and_none_is_ever_late() {
    const PODS: usize = 80;
    let room = Room::new(Scripted::new(|_, _| (Duration::from_millis(60), Answer::Success)));
    let _pods = commanded(&room, PODS, json!({}));
    pass(20).await;
    assert_eq!(room.prober.flying.lock().unwrap().1, COMMANDS, "they began together");
    room.prober.flying.lock().unwrap().1 = 0;
    pass(41).await;
    assert_eq!(room.prober.flying.lock().unwrap().1, 1, "and are asked one at a time");
    let times = times(&room);
    assert_eq!(times.len(), PODS);
    for (what, times) in times {
        assert!(times[0] < 500, "{what}: the first run comes at once: {times:?}");
        assert!(times[1] <= 10_001, "{what}: {times:?}");
        for (n, pair) in times.windows(2).enumerate().skip(1) {
            // The timer goes in steps of a millisecond.
            assert!(pair[0].abs_diff(pair[1]).abs_diff(10_000) <= 1, "{what}, run {n}: {times:?}");
        }
        assert!(times.len() >= 6, "{what}: {times:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_command_is_moved_before_its_answers_came_to_a_result() {
    let room = Room::new(Scripted::new(|q, _| {
        (Duration::ZERO, if q.instance == "0" { no() } else { Answer::Success })
    }));
    let pods = commanded(&room, 2, json!({"failureThreshold": 3}));
    pass(45).await;
    assert!(pods[0].readiness.borrow().failed("c", "0").is_some());
    let times = times(&room);
    assert_eq!(times["liveness 0"], [0, 10_000, 20_000], "as long as its thresholds say");
    assert_eq!(times["liveness 1"], [0, 9_900, 19_900, 29_900, 39_900], "its first answer was one");
}

/// Panics for the container `bad` at every second time, when it is asked or when it should answer.
#[derive(Debug)]
struct Bomb {
    in_ask: bool,
    asked: Mutex<HashMap<String, Vec<Instant>>>,
}

impl Prober for Bomb {
    fn ask(&self, question: Question) -> BoxFuture<'static, Answer> {
        let times = {
            let mut asked = self.asked.lock().unwrap();
            let times = asked.entry(question.instance.clone()).or_default();
            times.push(Instant::now());
            times.len()
        };
        let goes_off = question.instance == "bad" && times % 2 == 1;
        assert!(!(goes_off && self.in_ask), "the bomb goes off, as it should");
        Box::pin(async move {
            assert!(!goes_off, "the bomb goes off, as it should");
            Answer::Success
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_costs_one_run_of_one_probe_and_nothing_else() {
    for in_ask in [false, true] {
        let bomb = Arc::new(Bomb { in_ask, asked: Mutex::default() });
        let mut room = Room::new(Scripted::new(well));
        let (recorder, metrics) = (Recorder::new(1000), Metrics::default());
        let probes = Probes::spawn(bomb.clone(), recorder, metrics.clone(), room.clock);
        room.probes = probes;
        let plain = every(1, json!({}));
        let mut pods: Vec<(&str, PodProbes)> = Vec::new();
        for instance in ["bad", "good"] {
            let mut pod = room.open(false);
            pod.aim(room.targets(json!({"readinessProbe": plain}), instance));
            pods.push((instance, pod));
        }
        tokio::time::sleep(Duration::from_millis(5500)).await;
        for (instance, pod) in &mut pods {
            assert_eq!(pod.readiness().ready("c", instance), Some(true), "{instance}, in ask: {in_ask}");
        }
        let asked = bomb.asked.lock().unwrap().clone();
        for (instance, times) in asked {
            assert_eq!(times.len(), 6, "{instance}, in ask: {in_ask}");
            let gaps: Vec<_> = times.windows(2).map(|w| (w[1] - w[0]).as_millis()).collect();
            assert!(gaps.iter().all(|gap| gap.abs_diff(1000) <= 1), "{instance}, in ask: {in_ask}: {gaps:?}");
        }
        let page = metrics.probes.registry().render();
        assert!(page.contains("stevedore_prober_panics_total 3"), "{page}");
        // And what comes later is taken on.
        let mut late = room.open(false);
        late.aim(room.targets(json!({"readinessProbe": plain}), "late"));
        settle().await;
        assert_eq!(late.readiness().ready("c", "late"), Some(true));
    }
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_knows_who_was_ready_and_asks_at_different_times() {
    let room = Room::new(Scripted::new(well));
    let plain = every(10, json!({}));
    let targets = room.targets(json!({"readinessProbe": plain, "startupProbe": plain}), "a");
    let mut pod = room.open(false);
    pod.aim(targets.clone());
    while !room.dir.path().join(keep::FILE).exists() || pod.readiness().ready("c", "a") != Some(true) {
        settle().await;
    }
    // Until the file has the last word.
    while keep::read(room.dir.path()).ready("c", "a") != Some(true) {
        settle().await;
    }
    drop(pod);

    let again = Room { dir: room.dir, ..Room::new(Scripted::new(|_, _| (Duration::ZERO, no()))) };
    let mut pod = again.open(true);
    assert_eq!(pod.readiness().ready("c", "a"), Some(true), "before anything was asked");
    let mut targets = targets;
    targets.running[0].started_at = again.clock.nanos() - 3600 * 1_000_000_000;
    pod.aim(targets);
    settle().await;
    assert_eq!(
        (pod.readiness().started("c", "a"), pod.readiness().ready("c", "a")),
        (Some(true), Some(true))
    );
    pass(10).await;
    assert_eq!(again.prober.asked.lock().unwrap().len(), 1, "once within the first period");
    pass(20).await;
    assert_eq!(pod.readiness().ready("c", "a"), Some(false), "until probes say otherwise");
}

#[test]
fn shares_of_a_period_are_spread_and_always_the_same() {
    let period = Duration::from_secs(10);
    let shares: Vec<_> = (0..100).map(|n| share(&format!("id{n}"), Kind::Liveness, period)).collect();
    assert_eq!(shares[7], share("id7", Kind::Liveness, period));
    for fifth in 0..5 {
        let within = shares.iter().filter(|s| s.as_secs() / 2 == fifth).count();
        assert!((8..=32).contains(&within), "{within} of 100 in fifth {fifth}");
    }
    assert!(shares.iter().all(|s| *s < period));
}

#[tokio::test(start_paused = true)]
async fn turns_are_exact_multiples_however_late_a_run_ends() {
    let (due, period) = (Instant::now(), Duration::from_secs(10));
    let after = |millis| (next_turn(due, period, due + Duration::from_millis(millis)) - due).as_secs();
    assert_eq!([0, 1, 9_999, 10_000, 10_001, 20_000, 35_000].map(after), [10, 10, 10, 10, 20, 20, 40]);
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_was_off_when_a_container_was_met_costs_one_initial_delay_at_most() {
    let room = Room::new(Scripted::new(well));
    let probe = every(10, json!({"initialDelaySeconds": 20}));
    for (instance, off, first) in [("back", 3600, 20), ("right", 0, 20), ("forth", -3600, 0)] {
        let began = room.prober.began.elapsed().as_secs();
        let mut pod = room.open(false);
        let mut targets = room.targets(json!({"livenessProbe": probe}), instance);
        targets.running[0].started_at += off * 1_000_000_000;
        pod.aim(targets);
        pass(25).await;
        let asked = room.prober.asked();
        assert_eq!(asked[0].0 / 1000, u128::from(began + first), "{instance}");
    }
}
