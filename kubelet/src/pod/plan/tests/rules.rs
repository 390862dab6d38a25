//! Restart policies and rules of containers (KEP-5307, KEP-5532), and restart counts that nothing can reset.

use super::*;

/// `a` of this policy and with these rules, beside `b`, in a pod that restarts everything.
fn ruled(policy: &str, rules: serde_json::Value) -> Pod {
    let mut p = pod("Always", &[], &["a", "b"]);
    let a = &mut p.spec.as_mut().unwrap().containers[0];
    a.restart_policy = Some(policy.into());
    a.restart_policy_rules = serde_json::from_value(rules).unwrap();
    p
}

fn rule(action: &str, operator: &str, values: &[i32]) -> serde_json::Value {
    json!({"action": action, "exitCodes": {"operator": operator, "values": values}})
}

fn both(a: State, code: i32) -> Observed {
    let (a, b) = (instance("a", 0, "s0", a, code), instance("b", 0, "s0", Running, 0));
    observed(vec![sandbox("s0", 0, true)], vec![a, b])
}

#[test]
fn the_first_rule_that_applies_decides_then_the_containers_policy_then_the_pods() {
    let restart = |op: &str, values: &[i32]| json!([rule("Restart", op, values)]);
    for (policy, rules, code, starts) in [
        ("Never", json!([]), 1, false),
        ("Never", restart("In", &[1, 42]), 42, true),
        ("Never", restart("In", &[1, 42]), 2, false),
        ("Never", restart("NotIn", &[0]), 2, true),
        ("Never", restart("NotIn", &[0]), 0, false),
        ("Never", restart("In", &[0]), 0, true),
        ("OnFailure", json!([]), 0, false),
        ("OnFailure", json!([]), 9, true),
        ("Always", json!([]), 0, true),
        ("Never", json!([rule("Restart", "Sometimes", &[7])]), 7, false),
    ] {
        let d = desired(ruled(policy, rules.clone()));
        let plan = plan_at(&d, &both(Exited, code), &Memory::default(), NOW);
        let want = if starts { vec!["start a 1"] } else { vec![] };
        assert_eq!(short(&plan, &d.pod), want, "{policy} {rules} {code}");
    }
}

#[test]
fn a_pod_ends_by_what_its_containers_policies_say() {
    let mut p = pod("Always", &["i"], &["a"]);
    let spec = p.spec.as_mut().unwrap();
    spec.containers[0].restart_policy = Some("Never".into());
    spec.init_containers.as_mut().unwrap()[0].restart_policy = Some("Never".into());
    let end_of = |instances| {
        let seen = observed(vec![sandbox("s0", 0, true)], instances);
        plan_at(&desired(p.clone()), &seen, &Memory::default(), NOW).outcome
    };
    let i = |code| instance("i", 0, "s0", Exited, code);
    assert_eq!(end_of(vec![i(1)]), Some(Outcome::Failed));
    assert_eq!(end_of(vec![i(0)]), None);
    assert_eq!(end_of(vec![i(0), instance("a", 0, "s0", Exited, 0)]), Some(Outcome::Succeeded));
    assert_eq!(end_of(vec![i(0), instance("a", 0, "s0", Exited, 4)]), Some(Outcome::Failed));
}

#[test]
fn restart_all_containers_ends_and_removes_everything_the_source_last() {
    let d = desired(ruled("Never", json!([rule("RestartAllContainers", "In", &[88])])));
    let seen = both(Exited, 88);
    let mut memory = Memory::default();
    let plan = plan_at(&d, &seen, &memory, NOW);
    assert_eq!(short(&plan, &d.pod), ["reset a-0", "kill b-0 0s", "remove b-0", "remove a-0"]);
    assert!(plan.resetting);
    let Step::Kill { targets, .. } = &plan.steps[1] else { panic!() };
    assert_eq!(targets[0].message.as_deref(), Some("killing"));
    // Once begun it goes on, without another wait.
    let Step::Reset { source, name, backoff } = &plan.steps[0] else { panic!() };
    memory.resetting = Some(source.clone());
    memory.backoff.insert(name.clone(), *backoff);
    let half = observed(seen.sandboxes.clone(), vec![seen.latest("a").unwrap().clone()]);
    check(&d, &half, &memory, Phase::Starting, &["remove a-0"]);
    // Nothing is left: everything begins anew, and counts on.
    memory.restarts = HashMap::from([("a".into(), 1), ("b".into(), 1)]);
    let empty = observed(seen.sandboxes.clone(), vec![]);
    check(&d, &empty, &memory, Phase::Starting, &["start a 1", "start b 1"]);
    // The next time it waits like a container that crashes.
    let plan = plan_at(&d, &seen, &Memory { resetting: None, ..memory }, NOW + S);
    assert_eq!((short(&plan, &d.pod), plan.wake), (vec![], Some(NOW + 10 * S)));
    assert_eq!(plan.waiting["a"].reason, "CrashLoopBackOff");
    assert!(!plan.resetting);
}

#[test]
fn an_end_in_an_older_sandbox_asks_for_nothing_but_its_own_restart() {
    let d = desired(ruled("Never", json!([rule("RestartAllContainers", "In", &[88])])));
    let seen = observed(
        vec![sandbox("s0", 0, false), sandbox("s1", 1, true)],
        vec![instance("a", 0, "s0", Exited, 88), instance("b", 1, "s1", Running, 0)],
    );
    check(&d, &seen, &stopped(&["s0"]), Phase::Running, &["start a 1"]);
}

#[test]
fn a_sandbox_is_not_made_for_what_will_never_run_again() {
    let d = desired(pod("Never", &[], &["a", "b"]));
    let seen = observed(
        vec![sandbox("s0", 0, false)],
        vec![instance("a", 0, "s0", Running, 0), instance("b", 0, "s0", Exited, 0)],
    );
    check(&d, &seen, &Memory::default(), Phase::Running, &["kill a-0 7s", "stop s0"]);
}

#[test]
fn restart_counts_go_on_from_what_logs_show() {
    let d = desired(pod("Always", &[], &["a", "b"]));
    let memory = Memory { restarts: HashMap::from([("a".into(), 5), ("b".into(), 1)]), ..Memory::default() };
    let seen = observed(vec![sandbox("s0", 0, true)], vec![instance("b", 3, "s0", Exited, 1)]);
    check(&d, &seen, &memory, Phase::Starting, &["start a 5", "start b 4"]);
}
