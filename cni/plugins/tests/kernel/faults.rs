//! Crowds, repetition and kills: whatever happens, DEL leaves nothing and no address is held twice.

use std::collections::HashSet;
use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::lab::{Lab, ports};

#[test]
fn fifty_pods_at_once_get_fifty_addresses() {
    let Some(lab) = Lab::new("fifty_pods_at_once_get_fifty_addresses") else { return };
    let mut pods = Vec::new();
    std::thread::scope(|scope| {
        let lab = &lab;
        let all: Vec<_> =
            (0..50u16).map(|i| scope.spawn(move || lab.pod(ports(&[(10_000 + i, 80, "tcp")])))).collect();
        pods.extend(all.into_iter().map(|t| t.join().unwrap()));
    });
    let v4: HashSet<_> = pods.iter().map(|p| p.ip4.clone()).collect();
    let v6: HashSet<_> = pods.iter().map(|p| p.ip6.clone()).collect();
    assert_eq!((v4.len(), v6.len(), lab.leases().len()), (50, 50, 100));
    // The table was made by whoever came first, once: every rule is there a single time.
    let rules = std::process::Command::new("ip")
        .args(["netns", "exec", &lab.node.name, "nft", "list", "table", "inet", "stevedore_cni"])
        .output()
        .unwrap();
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    assert_eq!(rules.matches("chain masq-").count(), 2, "{rules}");
    assert_eq!(rules.matches("ip saddr 10.88.0.0/24 ip daddr != 10.88.0.0/24").count(), 1, "{rules}");
    assert_eq!(rules.matches("ip saddr 10.88.0.0/24 masquerade").count(), 1, "{rules}");
    pods[7].ns.serve("0.0.0.0:80");
    lab.outside.ask(&format!("{}:10007", crate::lab::NODE4)).unwrap();
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| lab.del(pod));
        }
    });
    lab.assert_nothing_is_left();
}

#[test]
fn a_hundred_rounds_leave_nothing() {
    let Some(lab) = Lab::new("a_hundred_rounds_leave_nothing") else { return };
    let ns = lab.pod(json!([]));
    lab.del(&ns);
    for _ in 0..100 {
        let at = lab.attachment(&ns.ns, ports(&[(8080, 80, "tcp"), (8081, 81, "udp")]));
        let result = lab.call(async |r| r.add(&lab.list, &at).await).unwrap();
        lab.call(async |r| r.del(&lab.list, &at, Some(&result)).await).unwrap();
    }
    lab.assert_nothing_is_left();
    assert_eq!(ns.ns.ip("-o link show").lines().count(), 1, "only lo is left in the container");
}

#[test]
fn a_plugin_killed_at_any_moment_leaves_nothing_that_del_does_not_find() {
    let Some(lab) = Lab::new("a_plugin_killed_at_any_moment_leaves_nothing_that_del_does_not_find") else {
        return;
    };
    let ns = lab.pod(json!([]));
    lab.del(&ns);
    let stdin = lab.bridge_stdin().to_string();
    // How long a whole run takes here, so that the kills fall all over it.
    let begin = Instant::now();
    assert!(lab.plugin("bridge", "ADD", &ns.at, &lab.bridge_stdin()).status.success());
    let whole = begin.elapsed();
    lab.del(&ns);
    let (mut cut, mut traces) = (0, 0);
    const ROUNDS: u32 = 60;
    for round in 0..ROUNDS {
        let mut child = lab.spawn("bridge", "ADD", &ns.at);
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        // The moment itself is what is tested: nothing to await.
        std::thread::sleep(whole.mul_f64(1.2) * round / ROUNDS);
        child.kill().unwrap();
        cut += u32::from(!child.wait().unwrap().success());
        traces += u32::from(!lab.leases().is_empty() || !lab.pod_links().is_empty());
        if round % 2 == 0 {
            // Half of them with the namespace's interface removed first by a kernel that tore the container down.
            lab.call(async |r| r.del(&lab.list, &ns.at, None).await).unwrap();
        } else {
            let mut at = ns.at.clone();
            at.netns = None;
            lab.call(async |r| r.del(&lab.list, &at, None).await).unwrap();
        }
        lab.assert_nothing_is_left();
    }
    eprintln!("{cut} of {ROUNDS} runs were cut, {traces} had left traces; a whole run takes {whole:?}");
    assert!(cut > 5 && traces > 5, "the kills missed the interesting moments: {cut} {traces}");
    // And nothing stands in the way of a new beginning.
    assert!(lab.plugin("bridge", "ADD", &ns.at, &lab.bridge_stdin()).status.success());
}

#[test]
fn a_flushed_ruleset_is_rebuilt_by_the_next_pod() {
    let Some(lab) = Lab::new("a_flushed_ruleset_is_rebuilt_by_the_next_pod") else { return };
    let _first = lab.pod(json!([]));
    let flush = ["netns", "exec", &lab.node.name, "nft", "flush", "ruleset"];
    assert!(std::process::Command::new("ip").args(flush).status().unwrap().success());
    let second = lab.pod(ports(&[(8080, 80, "tcp")]));
    second.ns.serve("0.0.0.0:80");
    lab.outside.ask(&format!("{}:8080", crate::lab::NODE4)).unwrap();
}

/// Not a verdict: prints how long the calls take. `cargo test --test kernel -- --ignored --nocapture how_long`
#[test]
#[ignore = "a measurement, not a test"]
fn how_long_add_and_del_take() {
    let Some(lab) = Lab::new("how_long_add_and_del_take") else { return };
    for others in [0, 110] {
        let _crowd: Vec<_> = (0..others).map(|_| lab.pod(json!([]))).collect();
        let (mut adds, mut dels) = (Vec::new(), Vec::new());
        for _ in 0..30 {
            let begin = Instant::now();
            let pod = lab.pod(ports(&[(8080, 80, "tcp"), (8081, 81, "udp")]));
            adds.push(begin.elapsed());
            let begin = Instant::now();
            lab.del(&pod);
            dels.push(begin.elapsed());
        }
        let median = |times: &mut Vec<Duration>| {
            times.sort();
            times[times.len() / 2]
        };
        eprintln!(
            "with {others} other pods: ADD (netns, lo, bridge, portmap) {:?}, DEL {:?}",
            median(&mut adds),
            median(&mut dels)
        );
    }
}
