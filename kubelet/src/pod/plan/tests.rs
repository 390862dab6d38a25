//! Tables of the plan; properties are in [`sim`], what concerns sidecars, rules and ephemeral containers in modules of
//! their own.

mod ephemeral;
mod rules;
mod sidecars;
mod sim;

use super::*;
use crate::api::{self, Container, Origin, Pod};
use crate::pleg::observed::{Instance, State};
use crate::pod::dead::DeadConfig;
use crate::pod::desired::StopReason;
use crate::pod::translate;
use serde_json::json;
use std::sync::Arc;

const S: i64 = 1_000_000_000;
const NOW: i64 = 1_000 * S;

/// A pod of `policy` with init containers and containers of these names.
fn pod(policy: &str, inits: &[&str], regular: &[&str]) -> Pod {
    let list = |names: &[&str]| names.iter().map(|n| json!({"name": n, "image": "i"})).collect::<Vec<_>>();
    serde_json::from_value(json!({
        "metadata": {"uid": "u", "name": "p", "namespace": "n"},
        "spec": {"restartPolicy": policy, "initContainers": list(inits), "containers": list(regular),
                 "terminationGracePeriodSeconds": 7},
    }))
    .unwrap()
}

fn desired(pod: Pod) -> Desired {
    Desired { pod: Arc::new(pod), origin: Origin::File, stop: None, resize: Default::default() }
}

fn stopping(pod: Pod, remove: bool) -> Desired {
    let stop = Stop { why: StopReason::Deleted, grace: Duration::from_secs(5), remove };
    Desired { stop: Some(stop), ..desired(pod) }
}

use crate::pod::desired::Stop;

fn sandbox(id: &str, attempt: u32, ready: bool) -> Sandbox {
    let ips = if ready { vec!["10.0.0.1".parse().unwrap()] } else { Vec::new() };
    Sandbox { id: id.into(), attempt, created_at: NOW + i64::from(attempt), ready, ips }
}

fn instance(name: &str, n: u32, sandbox: &str, state: State, code: i32) -> Instance {
    let c: Container = serde_json::from_value(json!({"name": name, "image": "i"})).unwrap();
    Instance {
        id: format!("{name}-{n}"),
        sandbox_id: sandbox.into(),
        name: name.into(),
        restart_count: n,
        state,
        created_at: NOW + i64::from(n),
        started_at: NOW,
        finished_at: if state == State::Exited { NOW } else { 0 },
        exit_code: code,
        reason: String::new(),
        message: String::new(),
        image: String::new(),
        image_ref: String::new(),
        hash: translate::container_hash(&c),
        grace: None,
        user: None,
        log_path: String::new(),
        stop_signal: None,
        given: None,
    }
}

fn observed(sandboxes: Vec<Sandbox>, containers: Vec<Instance>) -> Observed {
    let mut seen = Observed { seq: 1, sandboxes, containers };
    seen.sort();
    seen
}

/// The steady clock when the other one, which nobody has set, says so.
fn instant(now: i64) -> Instant {
    static EPOCH: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    *EPOCH + Duration::from_nanos(now.unsigned_abs())
}

fn plan_at(desired: &Desired, observed: &Observed, memory: &Memory, now: i64) -> Plan {
    let readiness = Readiness::default();
    plan(&Input {
        desired,
        observed,
        memory,
        readiness: &readiness,
        cgroup: false,
        now,
        instant: instant(now),
        backoff_cap: backoff::DEFAULT_CAP,
        kept: &Kept::default(),
        needs: &Default::default(),
    })
}

/// The steps in short: `sandbox 0`, `start a 1`, `kill a-0`, …
fn short(plan: &Plan, pod: &Pod) -> Vec<String> {
    let spec = api::spec(pod);
    let name = |list: &ContainerList, i: &usize| match list {
        ContainerList::Init => spec.init_containers.as_ref().unwrap()[*i].name.clone(),
        ContainerList::Ephemeral => spec.ephemeral_containers.as_ref().unwrap()[*i].name.clone(),
        _ => spec.containers[*i].name.clone(),
    };
    plan.steps
        .iter()
        .map(|s| match s {
            Step::Kill { targets, grace } => {
                let id = |t: &Kill| match t.turn {
                    0 => t.id.clone(),
                    turn => format!("{}@{turn}", t.id),
                };
                let ids: Vec<String> = targets.iter().map(id).collect();
                format!("kill {} {}s", ids.join(","), grace.as_secs())
            }
            Step::StopSandbox { id } => format!("stop {id}"),
            Step::CreateSandbox { attempt } => format!("sandbox {attempt}"),
            Step::Start { list, index, restart_count, .. } => {
                format!("start {} {restart_count}", name(list, index))
            }
            Step::Resume { id, .. } => format!("resume {id}"),
            Step::Reset { source, .. } => format!("reset {source}"),
            Step::RemoveContainer { id, .. } => format!("remove {id}"),
            Step::RemoveSandbox { id } => format!("remove {id}"),
            Step::Resize => "resize".into(),
            Step::ReleaseCgroup => "cgroup".into(),
            Step::ReleaseVolumes => "volumes".into(),
            Step::CleanUp => "clean".into(),
        })
        .collect()
}

#[track_caller]
fn check(desired: &Desired, observed: &Observed, memory: &Memory, phase: Phase, want: &[&str]) {
    let plan = plan_at(desired, observed, memory, NOW);
    assert_eq!(short(&plan, &desired.pod), want);
    assert_eq!(plan.phase, phase);
}

fn stopped(ids: &[&str]) -> Memory {
    Memory { stopped: ids.iter().map(|s| (*s).to_owned()).collect(), ..Memory::default() }
}

use State::{Created, Exited, Running, Unknown};

#[test]
fn a_new_pod_gets_a_sandbox_and_all_its_containers_in_order() {
    let d = desired(pod("Always", &[], &["a", "b"]));
    check(
        &d,
        &observed(vec![], vec![]),
        &Memory::default(),
        Phase::Starting,
        &["sandbox 0", "start a 0", "start b 0"],
    );
}

#[test]
fn init_containers_run_one_after_the_other_before_the_rest() {
    let d = desired(pod("Always", &["i", "j"], &["a"]));
    let up = || vec![sandbox("s0", 0, true)];
    let none = Memory::default();
    check(&d, &observed(vec![], vec![]), &none, Phase::Starting, &["sandbox 0", "start i 0"]);
    check(&d, &observed(up(), vec![instance("i", 0, "s0", Running, 0)]), &none, Phase::Starting, &[]);
    let i_done = instance("i", 0, "s0", Exited, 0);
    check(&d, &observed(up(), vec![i_done.clone()]), &none, Phase::Starting, &["start j 0"]);
    let j_done = instance("j", 0, "s0", Exited, 0);
    check(&d, &observed(up(), vec![i_done, j_done]), &none, Phase::Starting, &["start a 0"]);
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let d = desired(pod("Never", &["i"], &["a"]));
    let seen = observed(vec![sandbox("s0", 0, true)], vec![instance("i", 0, "s0", Exited, 3)]);
    let plan = plan_at(&d, &seen, &Memory::default(), NOW);
    assert_eq!(plan.outcome, Some(Outcome::Failed));
    assert_eq!(short(&plan, &d.pod), ["stop s0"]);
}

#[test]
fn an_init_container_that_fails_for_good_in_a_new_sandbox_fails_the_pod() {
    let mut p = pod("Always", &["i"], &["a"]);
    p.spec.as_mut().unwrap().init_containers.as_mut().unwrap()[0].restart_policy = Some("Never".into());
    let old = || [instance("i", 0, "s0", Exited, 0), instance("a", 0, "s0", Exited, 137)];
    let sandboxes = || vec![sandbox("s0", 0, false), sandbox("s1", 1, true)];
    for (code, want, outcome) in [(3, vec!["stop s1"], Some(Outcome::Failed)), (0, vec!["start a 1"], None)] {
        let mut all = old().to_vec();
        all.push(instance("i", 1, "s1", Exited, code));
        let d = desired(p.clone());
        let plan = plan_at(&d, &observed(sandboxes(), all), &stopped(&["s0"]), NOW);
        let steps: Vec<String> =
            short(&plan, &d.pod).into_iter().filter(|s| !s.starts_with("remove")).collect();
        assert_eq!((steps, plan.outcome), (want.into_iter().map(str::to_owned).collect(), outcome), "{code}");
    }
}

#[test]
fn an_init_container_killed_for_want_of_memory_failed_whatever_its_exit_code() {
    for (policy, want, outcome) in [
        ("Always", "start i 1", None),
        ("OnFailure", "start i 1", None),
        ("Never", "stop s0", Some(Outcome::Failed)),
    ] {
        let d = desired(pod(policy, &["i"], &["a"]));
        let killed = Instance { reason: "OOMKilled".into(), ..instance("i", 0, "s0", Exited, 0) };
        let seen = observed(vec![sandbox("s0", 0, true)], vec![killed]);
        let plan = plan_at(&d, &seen, &Memory::default(), NOW);
        assert_eq!((short(&plan, &d.pod), plan.outcome), (vec![want.to_owned()], outcome), "{policy}");
    }
    // A regular one that ended with 0 all the same has done its work.
    let d = desired(pod("OnFailure", &[], &["a"]));
    let killed = Instance { reason: "OOMKilled".into(), ..instance("a", 0, "s0", Exited, 0) };
    let seen = observed(vec![sandbox("s0", 0, true)], vec![killed]);
    assert_eq!(plan_at(&d, &seen, &Memory::default(), NOW).outcome, Some(Outcome::Succeeded));
}

#[test]
fn a_new_sandbox_runs_the_init_containers_again() {
    let d = desired(pod("Always", &["i"], &["a"]));
    let seen = observed(
        vec![sandbox("s0", 0, false)],
        vec![instance("i", 0, "s0", Exited, 0), instance("a", 0, "s0", Exited, 137)],
    );
    check(&d, &seen, &Memory::default(), Phase::Running, &["stop s0", "sandbox 1", "start i 1"]);
}

#[test]
fn containers_that_outlived_their_sandbox_end_before_a_new_one_is_made() {
    let d = desired(pod("Always", &[], &["a"]));
    let seen = observed(vec![sandbox("s0", 0, false)], vec![instance("a", 0, "s0", Running, 0)]);
    check(
        &d,
        &seen,
        &Memory::default(),
        Phase::Running,
        &["kill a-0 7s", "stop s0", "sandbox 1", "start a 1"],
    );
}

#[test]
fn a_sandbox_without_an_address_is_replaced_unless_it_is_on_the_hosts_network() {
    let lost = || Sandbox { ips: vec![], ..sandbox("s0", 0, true) };
    let mut d = desired(pod("Always", &[], &["a"]));
    let none = Memory::default();
    check(
        &d,
        &observed(vec![lost()], vec![]),
        &none,
        Phase::Starting,
        &["stop s0", "sandbox 1", "start a 0"],
    );
    Arc::make_mut(&mut d.pod).spec.as_mut().unwrap().host_network = Some(true);
    check(&d, &observed(vec![lost()], vec![]), &none, Phase::Starting, &["start a 0"]);
}

#[test]
fn what_ended_restarts_as_its_policy_says() {
    let up = || vec![sandbox("s0", 0, true)];
    for (policy, code, want, outcome) in [
        ("Always", 0, vec!["start a 1"], None),
        ("Always", 1, vec!["start a 1"], None),
        ("OnFailure", 1, vec!["start a 1"], None),
        ("OnFailure", 0, vec!["stop s0"], Some(Outcome::Succeeded)),
        ("Never", 0, vec!["stop s0"], Some(Outcome::Succeeded)),
        ("Never", 1, vec!["stop s0"], Some(Outcome::Failed)),
    ] {
        let d = desired(pod(policy, &[], &["a"]));
        let seen = observed(up(), vec![instance("a", 0, "s0", Exited, code)]);
        let plan = plan_at(&d, &seen, &Memory::default(), NOW);
        assert_eq!(
            (short(&plan, &d.pod), plan.outcome),
            (want.iter().map(|s| (*s).to_owned()).collect(), outcome)
        );
    }
}

#[test]
fn the_second_crash_waits_and_says_so() {
    let d = desired(pod("Always", &[], &["a"]));
    let seen = observed(vec![sandbox("s0", 0, true)], vec![instance("a", 1, "s0", Exited, 1)]);
    let entry = backoff::Entry { wait: Duration::from_secs(10), updated: NOW };
    let memory = Memory { backoff: HashMap::from([("a".into(), entry)]), ..Memory::default() };
    let plan = plan_at(&d, &seen, &memory, NOW + S);
    assert!(plan.steps.is_empty());
    assert_eq!(plan.wake, Some(NOW + 10 * S));
    assert_eq!(
        plan.waiting["a"],
        Waiting {
            reason: "CrashLoopBackOff".into(),
            message: "back-off 10s restarting failed container=a pod=p_n(u)".into()
        }
    );
    let plan = plan_at(&d, &seen, &memory, NOW + 10 * S);
    assert_eq!(short(&plan, &d.pod), ["start a 2"]);
}

#[test]
fn a_clock_that_is_set_back_makes_nothing_wait_longer() {
    let d = desired(pod("Always", &[], &["a"]));
    let up = vec![sandbox("s0", 0, true)];
    let crashed = observed(up.clone(), vec![instance("a", 1, "s0", Exited, 1)]);
    let entry = backoff::Entry { wait: Duration::from_secs(10), updated: NOW };
    let crash = Memory {
        backoff: HashMap::from([("a".into(), entry)]),
        ends: HashMap::from([("a-1".into(), instant(NOW))]),
        ..Memory::default()
    };
    let waiting = Waiting { reason: "ErrImagePull".into(), message: "no".into() };
    let failure = Memory {
        waiting: BTreeMap::from([("a".into(), waiting)]),
        retry: HashMap::from([("a".into(), instant(NOW + 10 * S))]),
        ..Memory::default()
    };
    let made = observed(up.clone(), vec![instance("a", 1, "s0", Created, 0)]);
    let start =
        Memory { failed_starts: HashMap::from([("a-1".into(), instant(NOW + 10 * S))]), ..Memory::default() };
    for (seen, memory, want) in [
        (&crashed, &crash, "start a 2"),
        (&observed(up, vec![]), &failure, "start a 0"),
        (&made, &start, "start a 2"),
    ] {
        let readiness = Readiness::default();
        let hour = 3600 * S;
        let after = |seconds: i64| {
            plan(&Input {
                desired: &d,
                observed: seen,
                memory,
                readiness: &readiness,
                cgroup: false,
                now: NOW + seconds * S - hour,
                instant: instant(NOW + seconds * S),
                backoff_cap: backoff::DEFAULT_CAP,
                kept: &Kept::default(),
                needs: &Default::default(),
            })
        };
        let waits = after(4);
        assert_eq!((waits.steps.len(), waits.wake), (0, Some(NOW + 10 * S - hour)), "{want}");
        assert_eq!(short(&after(10), &d.pod), [want]);
    }
}

#[test]
fn one_container_that_cannot_start_does_not_hold_up_the_others() {
    let d = desired(pod("Always", &[], &["a", "b"]));
    let waiting = Waiting { reason: "ErrImagePull".into(), message: "no".into() };
    let memory = Memory {
        waiting: BTreeMap::from([("a".into(), waiting.clone())]),
        retry: HashMap::from([("a".into(), instant(NOW + S))]),
        ..Memory::default()
    };
    let plan = plan_at(&d, &observed(vec![sandbox("s0", 0, true)], vec![]), &memory, NOW);
    assert_eq!(short(&plan, &d.pod), ["start b 0"]);
    assert_eq!((plan.waiting.get("a"), plan.wake), (Some(&waiting), Some(NOW + S)));
}

#[test]
fn a_created_instance_is_resumed_once_and_replaced_when_that_fails() {
    let d = desired(pod("Always", &[], &["a"]));
    let seen = observed(vec![sandbox("s0", 0, true)], vec![instance("a", 0, "s0", Created, 0)]);
    check(&d, &seen, &Memory::default(), Phase::Running, &["resume a-0"]);
    let memory = Memory { failed_starts: HashMap::from([("a-0".into(), instant(NOW))]), ..Memory::default() };
    check(&d, &seen, &memory, Phase::Running, &["start a 1"]);
}

#[test]
fn an_instance_in_an_unknown_state_is_ended_before_another_is_made() {
    let d = desired(pod("Always", &[], &["a"]));
    let seen = observed(vec![sandbox("s0", 0, true)], vec![instance("a", 0, "s0", Unknown, 0)]);
    check(&d, &seen, &Memory::default(), Phase::Running, &["kill a-0 7s", "start a 1"]);
    let with_init = desired(pod("Always", &["i"], &["a"]));
    let init = observed(vec![sandbox("s0", 0, true)], vec![instance("i", 0, "s0", Unknown, 0)]);
    for (d, seen, want) in [
        (&d, &seen, "Container is in \"unknown\" state, try killing it before restart"),
        (&with_init, &init, "Init container is in \"unknown\" state, try killing it before restart"),
    ] {
        let plan = plan_at(d, seen, &Memory::default(), NOW);
        let Some(Step::Kill { targets, .. }) = plan.steps.first() else { panic!("{plan:?}") };
        assert_eq!(targets[0].message.as_deref(), Some(want));
    }
}

#[test]
fn dead_instances_are_kept_by_number_and_age_and_the_newest_in_any_case() {
    let d = desired(pod("Always", &[], &["a"]));
    let dead = |n| instance("a", n, "s0", Exited, 1);
    let seen = |state| {
        observed(
            vec![sandbox("s0", 0, true)],
            vec![dead(0), dead(1), dead(2), instance("a", 3, "s0", state, 0)],
        )
    };
    let steps = |seen: &Observed, now: i64, kept: &Kept| {
        let (memory, readiness) = (Memory::default(), Readiness::default());
        let input = Input {
            desired: &d,
            observed: seen,
            memory: &memory,
            readiness: &readiness,
            cgroup: true,
            now,
            instant: instant(now),
            backoff_cap: backoff::DEFAULT_CAP,
            kept,
            needs: &Default::default(),
        };
        let (steps, wake) = end::garbage(&input, None);
        let ids = steps.into_iter().map(|s| match s {
            Step::RemoveContainer { id, .. } => id,
            other => panic!("{other:?}"),
        });
        (ids.collect::<Vec<_>>(), wake)
    };
    let most = |per_container| {
        let config = DeadConfig { per_container, ..DeadConfig::default() };
        Kept { config, ..Kept::default() }
    };
    let now = NOW + 10;
    assert_eq!(steps(&seen(Running), now, &most(Some(0))).0, ["a-2", "a-1", "a-0"]);
    assert_eq!(steps(&seen(Running), now, &most(Some(2))).0, ["a-0"]);
    assert_eq!(steps(&seen(Running), now, &most(None)).0, [""; 0]);
    assert_eq!(steps(&seen(Exited), now, &most(Some(0))).0, ["a-2", "a-1", "a-0"]);
    assert_eq!(steps(&seen(Exited), now, &most(Some(2))).0, ["a-1", "a-0"]);
    // Instance n was created n nanoseconds after NOW: what is younger than the age is neither removed nor counted.
    let mut young = most(Some(1));
    young.config.min_age = Duration::from_nanos(9);
    assert_eq!(steps(&seen(Running), now, &young), (vec!["a-0".to_owned()], Some(NOW + 11)));
    assert_eq!(steps(&seen(Running), NOW + 9, &young), (vec![], Some(NOW + 10)));
    // The node has too many.
    let mut condemned = most(None);
    condemned.condemned = Arc::new(["a-1", "a-3"].map(str::to_owned).into());
    assert_eq!(steps(&seen(Exited), now, &condemned).0, ["a-1"]);
}

#[test]
fn one_dead_instance_is_kept_for_its_logs() {
    let d = desired(pod("Always", &[], &["a"]));
    let dead = |n| instance("a", n, "s0", Exited, 1);
    let seen =
        observed(vec![sandbox("s0", 0, true)], vec![dead(0), dead(1), instance("a", 2, "s0", Running, 0)]);
    check(&d, &seen, &Memory::default(), Phase::Running, &["remove a-0"]);
}

#[test]
fn a_stopped_sandbox_that_calls_itself_ready_is_not_stopped_again_but_removed() {
    let stubborn = || observed(vec![sandbox("s0", 0, true)], vec![instance("a", 0, "s0", Exited, 0)]);
    let d = || stopping(pod("Always", &[], &["a"]), true);
    check(&d(), &stubborn(), &stopped(&["s0"]), Phase::Terminated, &["remove a-0", "remove s0"]);
    let kept = stopping(pod("Always", &[], &["a"]), false);
    check(&kept, &stubborn(), &stopped(&["s0"]), Phase::Terminated, &[]);
}

#[test]
fn a_stop_ends_containers_then_the_sandbox_and_removes_only_when_told() {
    let p = || pod("Always", &[], &["a", "b"]);
    let up = vec![sandbox("s0", 0, true)];
    let run = vec![instance("a", 0, "s0", Running, 0), instance("b", 0, "s0", Exited, 0)];
    let none = Memory::default();
    check(&stopping(p(), false), &observed(up, run), &none, Phase::Terminating, &["kill a-0 5s", "stop s0"]);
    let dead = observed(vec![sandbox("s0", 0, false)], vec![instance("a", 0, "s0", Exited, 0)]);
    check(&stopping(p(), false), &dead, &stopped(&["s0"]), Phase::Terminated, &[]);
    check(&stopping(p(), true), &dead, &stopped(&["s0"]), Phase::Terminated, &["remove a-0", "remove s0"]);
    check(&stopping(p(), true), &observed(vec![], vec![]), &none, Phase::Gone, &["clean"]);
    // One that was evicted gives back what it has on the disk, while its source still has it.
    let mut evicted = stopping(p(), false);
    let why = crate::evict::Evicted { message: "m".into(), disrupted: true };
    evicted.stop.as_mut().unwrap().why = StopReason::Evicted(why);
    check(&evicted, &dead, &stopped(&["s0"]), Phase::Terminated, &["remove a-0", "volumes"]);
    let released = Memory { volumes_released: true, ..stopped(&["s0"]) };
    check(&evicted, &observed(vec![sandbox("s0", 0, false)], vec![]), &released, Phase::Terminated, &[]);
}

#[test]
fn a_sandbox_that_died_by_itself_still_has_its_network_released() {
    let d = stopping(pod("Always", &[], &["a"]), false);
    check(
        &d,
        &observed(vec![sandbox("s0", 0, false)], vec![]),
        &Memory::default(),
        Phase::Terminating,
        &["stop s0"],
    );
}
/// What probes say of the instance `id` of `c`.
fn failed_probe(id: &str, grace: Option<u64>) -> Readiness {
    let failed = crate::probe::ProbeFailure {
        kind: crate::probe::Kind::Liveness,
        message: "Container c failed liveness probe".into(),
        grace: grace.map(Duration::from_secs),
    };
    let known = crate::probe::ContainerReadiness {
        instance: id.into(),
        started: true,
        ready: true,
        failed: Some(failed),
    };
    Readiness { containers: BTreeMap::from([("c".to_owned(), known)]) }
}

#[test]
fn a_container_whose_probe_failed_is_ended_and_started_again_as_the_back_off_allows() {
    let cases = [
        // policy, probe's grace, an earlier end and the back-off then, what is killed how and started
        ("Always", None, None, (7, "Container c failed liveness probe, will be restarted"), true),
        ("OnFailure", Some(3), None, (3, "Container c failed liveness probe, will be restarted"), true),
        ("Never", Some(1), None, (2, "Container c failed liveness probe"), false),
        ("Always", None, Some((4, 10)), (7, "Container c failed liveness probe, will be restarted"), false),
        ("Always", None, Some((11, 10)), (7, "Container c failed liveness probe, will be restarted"), true),
    ];
    for (policy, grace, before, (seconds, message), starts) in cases {
        let desired = desired(pod(policy, &[], &["c"]));
        let n = u32::from(before.is_some());
        let mut containers = vec![instance("c", n, "s0", State::Running, 0)];
        let mut memory = Memory::default();
        if let Some((ago, wait)) = before {
            let mut ended = instance("c", 0, "s0", State::Exited, 137);
            ended.finished_at = NOW - ago * S;
            containers.push(ended);
            let entry = backoff::Entry { wait: Duration::from_secs(wait), updated: NOW - ago * S };
            memory.backoff.insert("c".into(), entry);
        }
        let seen = observed(vec![sandbox("s0", 0, true)], containers);
        let readiness = failed_probe(&format!("c-{n}"), grace);
        let input = Input {
            desired: &desired,
            observed: &seen,
            memory: &memory,
            readiness: &readiness,
            cgroup: true,
            now: NOW,
            instant: instant(NOW),
            backoff_cap: backoff::DEFAULT_CAP,
            kept: &Kept::default(),
            needs: &Default::default(),
        };
        let plan = plan(&input);
        let Some(Step::Kill { targets, grace }) = plan.steps.first() else { panic!("{plan:?}") };
        assert_eq!((grace.as_secs(), targets[0].message.as_deref()), (seconds, Some(message)), "{policy}");
        let started = plan
            .steps
            .iter()
            .any(|s| matches!(s, Step::Start { restart_count, .. } if *restart_count == n + 1));
        assert_eq!((started, plan.steps.len()), (starts, 1 + usize::from(starts)), "{policy} {before:?}");
        // What probes say of another instance is nothing.
        let other = failed_probe("c-9", None);
        let plan = super::plan(&Input { readiness: &other, ..input });
        assert_eq!(plan.steps, [], "{policy}");
    }
}
