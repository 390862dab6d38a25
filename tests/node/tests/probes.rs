//! Probes against real containers: what answers, what stops answering, what hangs, and an agent that is killed.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use cri::fake::FakeRuntime;
use cri::v1;
use node_e2e::manifest::{pod, sh, then_forever};
use node_e2e::wait::{eventually, limit, within};
use node_e2e::{Node, Options, status};
use serde_json::json;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Serves `/www` on port 8080 while `/www/up` is there.
const SERVER: &str = "mkdir /www; echo fine > /www/index.html; touch /www/up; httpd -f -p 8080 -h /www & \
                      while [ -e /www/up ]; do sleep 0.1; done; kill $!; wait";

#[tokio::test]
async fn a_container_is_ready_while_it_answers_and_is_restarted_when_it_stops_listening() {
    let Some(mut node) = Node::start().await else { return };
    let mut web = pod("web", [sh("c", &then_forever(SERVER))]);
    let c = &mut web["spec"]["containers"][0];
    c["ports"] = json!([{"name": "http", "containerPort": 8080}]);
    c["startupProbe"] =
        json!({"exec": {"command": ["test", "-e", "/www/up"]}, "periodSeconds": 1, "failureThreshold": 60});
    c["readinessProbe"] = json!({"httpGet": {"port": "http", "path": "/index.html"}, "periodSeconds": 1, "failureThreshold": 1});
    c["livenessProbe"] = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 2});
    node.put("web", &web);
    let ready = node.wait_ready("web").await;
    assert_eq!(status::container(&ready, "c").unwrap().started, Some(true));
    node.exec(&ready, "c", "mv /www/index.html /www/away").await;
    let unready = node.wait("web", "not ready", |p| !status::is(p, "Ready")).await;
    assert!(status::running(&unready, "c") && !status::is(&unready, "ContainersReady"));
    node.exec(&ready, "c", "mv /www/away /www/index.html").await;
    node.wait_ready("web").await;
    assert_eq!(status::restarts(&ready, "c"), 0);
    node.exec(&ready, "c", "rm /www/up").await;
    let restarted = |p: &_| status::restarts(p, "c") == 1 && status::is(p, "Ready");
    node.wait("web", "restarted and ready again", restarted).await;
    let page = node.https("/metrics/probes").await.body;
    for kind in ["Startup", "Liveness", "Readiness"] {
        assert!(page.contains(&format!("probe_type=\"{kind}\",result=\"successful\"")), "{page}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_ready_pod_is_ready_all_the_while_its_agent_is_killed_and_started_again() {
    let Some(mut node) = Node::start().await else { return };
    let mut web = pod("kept", [sh("c", &then_forever("touch /tmp/well"))]);
    let probe = json!({"exec": {"command": ["test", "-e", "/tmp/well"]}, "periodSeconds": 3600});
    web["spec"]["containers"][0]["readinessProbe"] = json!({"exec": probe["exec"], "periodSeconds": 1});
    web["spec"]["containers"][0]["startupProbe"] =
        json!({"exec": probe["exec"], "periodSeconds": 1, "failureThreshold": 60});
    node.put("kept", &web);
    let before = node.wait_ready("kept").await;
    let results = node.root_dir().join("pods").join(status::uid(&before)).join("probe-results");
    eventually("the results are kept", async || {
        let text = std::fs::read_to_string(&results).unwrap_or_default();
        if text.contains("\"ready\":true") { Ok(()) } else { Err(text) }
    })
    .await;
    node.kill9();
    node.launch().await;
    // The first status it tells is one of a pod that is ready.
    let after = node
        .wait("kept", "in any condition", |p| p.status.as_ref().is_some_and(|s| s.conditions.is_some()))
        .await;
    assert!(status::is(&after, "Ready") && status::container(&after, "c").unwrap().ready);
    node.exec(&after, "c", "rm /tmp/well").await;
    node.wait("kept", "not ready", |p| !status::is(p, "Ready")).await;
    assert_eq!(status::restarts(&node.pod("kept").await.unwrap(), "c"), 0);
    node.finish().await;
}

#[tokio::test]
async fn commands_that_fork_and_ignore_signals_are_ended_with_their_children_at_the_timeout() {
    const HANG: &str = "trap '' TERM INT HUP; sleep 98765 & sleep 98766; wait";
    let Some(mut node) = Node::start().await else { return };
    let own = then_forever("(trap '' TERM; exec setsid sleep 98767) &");
    let mut hangs = pod("hangs", [sh("c", &own)]);
    hangs["spec"]["containers"][0]["readinessProbe"] = json!({
        "exec": {"command": ["/bin/sh", "-c", HANG]}, "periodSeconds": 1, "timeoutSeconds": 1});
    node.put("hangs", &hangs);
    let runs = node.wait("hangs", "running", |p| status::running(p, "c")).await;
    let timed_out = || node.log().matches("timed out after 1s").count();
    eventually("it timed out five times", async || match timed_out() {
        5.. => Ok(()),
        n => Err(format!("{n} times")),
    })
    .await;
    // Before the next run the family of the last one is gone, as are all before; at most one is under way.
    let id = status::id(&runs, "c").unwrap();
    eventually("one family at most is left", async || match sleeping(id, 98765) + sleeping(id, 98766) {
        0..=2 => Ok(()),
        n => Err(format!("{n} processes are left")),
    })
    .await;
    assert_eq!(sleeping(id, 98767), 1, "what the container runs itself is left alone");
    assert_eq!(status::restarts(&runs, "c"), 0);
    node.remove("hangs");
    node.wait_gone("hangs").await;
    node.finish().await;
}

/// Processes in the container's cgroup that sleep so many seconds.
fn sleeping(container: &str, seconds: u32) -> usize {
    let end = format!("sleep\0{seconds}\0");
    let read = |pid: &std::fs::DirEntry, file: &str| std::fs::read(pid.path().join(file)).unwrap_or_default();
    let all = std::fs::read_dir("/proc").unwrap().map(Result::unwrap);
    let asleep = all.filter(|pid| read(pid, "cmdline").ends_with(end.as_bytes()));
    asleep.filter(|pid| String::from_utf8_lossy(&read(pid, "cgroup")).contains(container)).count()
}

/// CPU time that the process has used, to hundredths of a second.
fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, after_name) = stat.rsplit_once(')').unwrap();
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).map(|t| t.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// Of the agent alone, which is a process: the runtime in memory is this one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of some minutes; docs/performance.md has the command"]
async fn what_five_hundred_commands_a_second_cost_the_agent() {
    const PODS: usize = 500;
    const SECONDS: usize = 60;
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeRuntime::builder().any_image().build();
    let served = fake.serve(dir.path().join("cri.sock")).await.unwrap();
    let options = Options {
        endpoint: Some(served.path().to_path_buf()),
        fake: true,
        config: Some(json!({"maxPods": 2 * PODS, "logging": {"verbosity": 2}})),
        ..Options::default()
    };
    let mut node = Node::start_with(options).await.unwrap();
    for n in 0..PODS {
        let mut one = pod(&format!("p{n}"), [sh("c", "true")]);
        one["spec"]["containers"][0]["livenessProbe"] =
            json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
        one["spec"]["containers"][0]["resources"] = json!({});
        node.put(&format!("p{n}"), one);
    }
    let asked = |fake: &FakeRuntime| {
        let mut by_container: HashMap<String, usize> = HashMap::new();
        for exec in fake.requests::<v1::ExecSyncRequest>() {
            *by_container.entry(exec.container_id).or_default() += 1;
        }
        by_container
    };
    within(limit() * 4, "all are asked", async || match asked(&fake).len() {
        PODS => Ok(()),
        n => Err(format!("{n} are")),
    })
    .await;
    // Until each has the place that it keeps, and the agent is quiet.
    tokio::time::sleep(Duration::from_secs(10)).await;
    fake.forget_calls();
    let (before, began) = (cpu_time(node.pid()), Instant::now());
    tokio::time::sleep(Duration::from_secs(SECONDS as u64)).await;
    let (used, took) = (cpu_time(node.pid()) - before, began.elapsed());
    let asked = asked(&fake);
    let share = used.as_secs_f64() / took.as_secs_f64() * 100.0;
    let times = asked.values().copied();
    let (least, most) = (times.clone().min().unwrap_or(0), times.max().unwrap_or(0));
    println!(
        "{PODS} commands a second: {share:.1} % of a core; each asked {least} to {most} times in {took:.1?}"
    );
    assert_eq!(asked.len(), PODS);
    assert!(least + 2 >= SECONDS, "probes drift: one was asked {least} times in {took:?}");
    node.finish_on_fake(&fake).await;
}
