//! Ephemeral containers: started once in a pod that has a sandbox, and never again.

use super::*;

/// `a`, and the ephemeral containers `x` and `y`, of which `y` joins the processes of `a`.
fn debugged(policy: &str) -> Desired {
    let mut p = pod(policy, &["i"], &["a"]);
    p.spec.as_mut().unwrap().ephemeral_containers = serde_json::from_value(json!([
        {"name": "x", "image": "i"}, {"name": "y", "image": "i", "targetContainerName": "a"}
    ]))
    .unwrap();
    desired(p)
}

fn in_s0(instances: Vec<Instance>) -> Observed {
    observed(vec![sandbox("s0", 0, true)], instances)
}

#[test]
fn they_start_as_soon_as_there_is_a_sandbox_and_their_target() {
    let d = debugged("Always");
    let none = Memory::default();
    check(&d, &observed(vec![], vec![]), &none, Phase::Starting, &["sandbox 0", "start x 0", "start i 0"]);
    let i = || instance("i", 0, "s0", Exited, 0);
    let all = in_s0(vec![i(), instance("a", 0, "s0", Running, 0), instance("x", 0, "s0", Running, 0)]);
    check(&d, &all, &none, Phase::Running, &["start y 0"]);
}

#[test]
fn one_that_ended_is_not_restarted_nor_when_its_logs_alone_tell_that_it_ran() {
    let d = debugged("Always");
    let (i, a) = (instance("i", 0, "s0", Exited, 0), instance("a", 0, "s0", Running, 0));
    let ended = [instance("x", 0, "s0", Exited, 3), instance("y", 0, "s0", Exited, 0)];
    let seen = in_s0([&ended[..], &[i.clone(), a.clone()]].concat());
    check(&d, &seen, &Memory::default(), Phase::Running, &[]);
    let memory = Memory { restarts: HashMap::from([("x".into(), 1), ("y".into(), 1)]), ..Memory::default() };
    check(&d, &in_s0(vec![i, a]), &memory, Phase::Running, &[]);
}

#[test]
fn they_neither_keep_a_pod_alive_nor_fail_it() {
    let d = debugged("Never");
    let i = || instance("i", 0, "s0", Exited, 0);
    let seen = in_s0(vec![i(), instance("a", 0, "s0", Exited, 0), instance("x", 0, "s0", Running, 0)]);
    let plan = plan_at(&d, &seen, &Memory::default(), NOW);
    assert_eq!(plan.outcome, Some(Outcome::Succeeded));
    assert_eq!(short(&plan, &d.pod), ["kill x-0 7s", "stop s0"]);
}
