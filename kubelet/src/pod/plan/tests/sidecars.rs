//! Sidecars: where they stand in the order of starts and of stops, and that they never decide how a pod ends.

use super::*;
use crate::probe::ContainerReadiness;

/// A pod with init containers `inits`, of which those named `s…` are sidecars, and one container `a`.
fn with(policy: &str, inits: &[&str]) -> Pod {
    let mut p = pod(policy, inits, &["a"]);
    for c in p.spec.as_mut().unwrap().init_containers.iter_mut().flatten() {
        c.restart_policy = c.name.starts_with('s').then(|| "Always".to_owned());
    }
    p
}

/// Instances written `name` (runs), `name:code` (ended), all of the sandbox `s0`.
fn seen(instances: &[&str]) -> Observed {
    let one = |text: &&str| match text.split_once(':') {
        Some((name, code)) => instance(name, 0, "s0", Exited, code.parse().unwrap()),
        None => instance(text, 0, "s0", Running, 0),
    };
    observed(vec![sandbox("s0", 0, true)], instances.iter().map(one).collect())
}

#[track_caller]
fn next(policy: &str, inits: &[&str], instances: &[&str], want: &[&str]) {
    let d = desired(with(policy, inits));
    let plan = plan_at(&d, &seen(instances), &Memory::default(), NOW);
    assert_eq!(short(&plan, &d.pod), want, "{policy} {inits:?} {instances:?}");
}

#[test]
fn a_sidecar_lets_the_next_one_go_once_it_runs_and_is_kept_running() {
    for policy in ["Always", "OnFailure", "Never"] {
        let inits = &["i", "s", "t", "j"][..];
        // A `t` is an ordinary one.
        next(policy, inits, &[], &["start i 0"]);
        next(policy, inits, &["i"], &[]);
        next(policy, inits, &["i:0"], &["start s 0"]);
        next(policy, inits, &["i:0", "s"], &["start t 0"]);
        next(policy, inits, &["i:0", "s", "t"], &[]);
        next(policy, inits, &["i:0", "s:1", "t"], &["start s 1"]);
        next(policy, inits, &["i:0", "s:0", "t:0"], &["start s 1", "start j 0"]);
        next(policy, inits, &["i:0", "s", "t:0", "j:0"], &["start a 0"]);
        next(policy, inits, &["i:0", "s:0", "t:0", "j:0", "a"], &["start s 1"]);
        // What is left of the last one reached tells that those before it are through.
        next(policy, inits, &["j:0", "a"], &["start s 0"]);
    }
}

#[test]
fn the_last_sidecar_gates_the_regular_containers() {
    next("Always", &["s"], &[], &["start s 0"]);
    next("Always", &["s"], &["s"], &["start a 0"]);
    next("Always", &["s"], &["s:1"], &["start s 1"]);
}

#[test]
fn a_startup_probe_holds_the_next_one_back_until_it_succeeds() {
    let mut d = desired(with("Always", &["s"]));
    let inits = Arc::make_mut(&mut d.pod).spec.as_mut().unwrap().init_containers.as_mut().unwrap();
    inits[0].startup_probe = Some(Default::default());
    let observed = seen(&["s"]);
    let memory = Memory::default();
    let plan_with = |readiness: &Readiness| {
        let plan = plan(&Input {
            desired: &d,
            observed: &observed,
            memory: &memory,
            readiness,
            cgroup: false,
            now: NOW,
            instant: instant(NOW),
            backoff_cap: backoff::DEFAULT_CAP,
            kept: &Kept::default(),
            needs: &Default::default(),
        });
        short(&plan, &d.pod)
    };
    let told = |instance: &str, started| {
        let of = ContainerReadiness { instance: instance.into(), started, ready: started, failed: None };
        Readiness { containers: BTreeMap::from([("s".to_owned(), of)]) }
    };
    assert_eq!(plan_with(&Readiness::default()), [""; 0], "nothing is known yet");
    assert_eq!(plan_with(&told("s-0", false)), [""; 0]);
    assert_eq!(plan_with(&told("s-7", true)), [""; 0], "that was another instance");
    assert_eq!(plan_with(&told("s-0", true)), ["start a 0"]);
}

#[test]
fn sidecars_have_no_say_in_how_a_pod_ends() {
    for (a, code, want) in [("a:0", 1, Outcome::Succeeded), ("a:3", 0, Outcome::Failed)] {
        let d = desired(with("Never", &["s"]));
        for s in ["s".to_owned(), format!("s:{code}")] {
            let plan = plan_at(&d, &seen(&[&s, a]), &Memory::default(), NOW);
            assert_eq!(plan.outcome, Some(want), "{s} {a}");
            let mut steps = vec!["stop s0"];
            if s == "s" {
                steps.insert(0, "kill s-0@1 7s");
            }
            assert_eq!(short(&plan, &d.pod), steps);
        }
    }
}

#[test]
fn a_failed_sidecar_does_not_fail_a_pod_that_has_yet_to_begin() {
    let plan = plan_at(&desired(with("Never", &["s"])), &seen(&["s:9"]), &Memory::default(), NOW);
    assert_eq!(plan.outcome, None);
}

#[test]
fn they_are_stopped_last_and_in_reverse_order_when_the_pod_must_go() {
    let d = stopping(with("Always", &["i", "s1", "j", "s2"]), false);
    let plan = plan_at(&d, &seen(&["s1", "s2", "a"]), &Memory::default(), NOW);
    let Some(Step::Kill { targets, .. }) = plan.steps.first() else { panic!("{plan:?}") };
    let mut turns: Vec<_> = targets.iter().map(|t| (t.turn, t.name.as_str())).collect();
    turns.sort_unstable();
    assert_eq!(turns, [(0, "a"), (1, "s2"), (2, "s1")]);
}

#[test]
fn a_crashing_sidecar_waits_like_any_container_and_holds_up_nothing_else() {
    let d = desired(with("Never", &["s", "i"]));
    let entry = backoff::Entry { wait: Duration::from_secs(10), updated: NOW };
    let memory = Memory { backoff: HashMap::from([("s".into(), entry)]), ..Memory::default() };
    let plan = plan_at(&d, &seen(&["s:1", "i:0"]), &memory, NOW + S);
    assert_eq!(short(&plan, &d.pod), ["start a 0"]);
    assert_eq!((plan.waiting["s"].reason.as_str(), plan.wake), ("CrashLoopBackOff", Some(NOW + 10 * S)));
}

#[test]
fn a_sidecar_whose_image_changed_is_replaced_and_nothing_else() {
    let mut d = desired(with("Always", &["s"]));
    let inits = Arc::make_mut(&mut d.pod).spec.as_mut().unwrap().init_containers.as_mut().unwrap();
    inits[0].image = Some("other".into());
    let plan = plan_at(&d, &seen(&["s", "a"]), &Memory::default(), NOW);
    assert_eq!(short(&plan, &d.pod), ["kill s-0 7s", "start s 1"]);
    let Step::Kill { targets, .. } = &plan.steps[0] else { panic!() };
    assert_eq!(targets[0].message.as_deref(), Some("Init container s definition changed"));
}

#[test]
fn a_new_sandbox_begins_with_the_first_init_container_and_old_sidecars_end_last() {
    let d = desired(with("Always", &["s", "i"]));
    let old = observed(
        vec![sandbox("s0", 0, false)],
        vec![
            instance("s", 0, "s0", Running, 0),
            instance("i", 0, "s0", Exited, 0),
            instance("a", 0, "s0", Running, 0),
        ],
    );
    check(
        &d,
        &old,
        &Memory::default(),
        Phase::Running,
        &["kill s-0@1,a-0 7s", "stop s0", "sandbox 1", "start s 1"],
    );
}
