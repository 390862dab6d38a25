//! Probes against real containers: what answers, what stops answering, what hangs, and an agent that is killed.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use node_e2e::manifest::{pod, sh, then_forever};
use node_e2e::wait::eventually;
use node_e2e::{Node, status};
use serde_json::json;

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
