//! What a pod is promised of its life, on a real runtime: starting, restarting, ending, and nothing left afterwards.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use node_e2e::manifest::{FOREVER, pod, sh, then_forever};
use node_e2e::wait::eventually;
use node_e2e::{Node, status};
use serde_json::json;
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_pod_runs_and_is_ready_and_has_an_address() {
    let Some(mut node) = Node::start().await else { return };
    node.put("web", pod("web", [sh("c", &then_forever("echo up"))]));
    let web = node.wait_ready("web").await;
    assert!(status::ip(&web).unwrap().parse::<std::net::IpAddr>().is_ok());
    assert_eq!(node.exec(&web, "c", "echo $((6*7))").await, "42\n");
    assert_eq!(node.leftovers().await, [""; 0]);
    node.put("other", pod("other", [sh("c", FOREVER)]));
    node.wait_ready("other").await;
    node.remove("web");
    node.wait_gone("web").await;
    node.wait_clean().await;
    node.wait_ready("other").await;
    node.finish().await;
}

#[tokio::test]
async fn two_containers_share_an_empty_directory() {
    let Some(mut node) = Node::start().await else { return };
    let mut shared = pod(
        "shared",
        [
            sh("writer", &then_forever("mkfifo /data/pipe; echo from-writer > /data/pipe")),
            sh(
                "reader",
                &then_forever("until [ -p /data/pipe ]; do sleep 0.1; done; cat /data/pipe > /out/got"),
            ),
        ],
    );
    let spec = &mut shared["spec"];
    spec["volumes"] =
        json!([{ "name": "data", "emptyDir": {} }, { "name": "fast", "emptyDir": { "medium": "Memory" } }]);
    for (at, inner) in [(0, "/data"), (1, "/data")] {
        spec["containers"][at]["volumeMounts"] =
            json!([{ "name": "data", "mountPath": inner }, { "name": "fast", "mountPath": "/out" }]);
    }
    node.put("shared", &shared);
    let running = node.wait_ready("shared").await;
    eventually("the reader has read", async || {
        let got = node.exec(&running, "writer", "cat /out/got 2>/dev/null || true").await;
        if got == "from-writer\n" { Ok(()) } else { Err(got) }
    })
    .await;
    assert!(node.exec(&running, "reader", "grep ' /out ' /proc/mounts").await.starts_with("tmpfs "));
    node.finish().await;
}

#[tokio::test]
async fn init_containers_run_one_after_the_other_before_all_others() {
    let Some(mut node) = Node::start().await else { return };
    let mut ordered = pod("ordered", [sh("main", &then_forever("echo main >> /data/order"))]);
    ordered["spec"]["initContainers"] = json!([
        sh("first", "sleep 0.5; echo first >> /data/order"),
        sh("second", "echo second >> /data/order")
    ]);
    ordered["spec"]["volumes"] = json!([{ "name": "data", "emptyDir": {} }]);
    let mounts = json!([{ "name": "data", "mountPath": "/data" }]);
    ordered["spec"]["containers"][0]["volumeMounts"] = mounts.clone();
    for at in 0..2 {
        ordered["spec"]["initContainers"][at]["volumeMounts"] = mounts.clone();
    }
    node.put("ordered", &ordered);
    let ready = node.wait_ready("ordered").await;
    assert_eq!(node.exec(&ready, "main", "cat /data/order").await, "first\nsecond\nmain\n");
    assert_eq!(status::exit_code(&ready, "first"), Some(0));
    assert!(status::is(&ready, "Initialized"));

    // An init container that fails for good ends a pod that is never restarted.
    ordered["metadata"]["name"] = "spoilt".into();
    ordered["spec"]["restartPolicy"] = "Never".into();
    ordered["spec"]["initContainers"][0]["command"][2] = "exit 3".into();
    node.put("spoilt", &ordered);
    let failed = node.wait_phase("spoilt", "Failed").await;
    assert_eq!(status::exit_code(&failed, "first"), Some(3));
    assert!(status::container(&failed, "main").unwrap().container_id.is_none());
    node.finish().await;
}

#[tokio::test]
async fn a_pod_that_is_never_restarted_succeeds_or_fails_by_its_exit_codes() {
    let Some(mut node) = Node::start().await else { return };
    for (name, code) in [("good", 0), ("bad", 7)] {
        let mut once = pod(name, [sh("c", &format!("echo done; exit {code}")), sh("d", "exit 0")]);
        once["spec"]["restartPolicy"] = "Never".into();
        node.put(name, once);
    }
    let good = node.wait_phase("good", "Succeeded").await;
    assert_eq!((status::exit_code(&good, "c"), status::restarts(&good, "c")), (Some(0), 0));
    let bad = node.wait_phase("bad", "Failed").await;
    assert_eq!((status::exit_code(&bad, "c"), status::exit_code(&bad, "d")), (Some(7), Some(0)));
    // What has ended keeps neither sandbox nor address, and its logs can still be read.
    eventually("the sandboxes have been stopped", async || {
        let sandboxes = node.cri.list_pod_sandboxes(None).await.unwrap();
        let ready = sandboxes.iter().filter(|s| s.state() == cri::v1::PodSandboxState::SandboxReady).count();
        if ready == 0 { Ok(()) } else { Err(format!("{ready} are ready")) }
    })
    .await;
    assert_eq!(node.container_log("good", "c", "").await.body, "done\n");
    node.finish().await;
}

#[tokio::test]
async fn a_container_that_fails_is_restarted_until_it_succeeds() {
    let Some(mut node) = Node::start().await else { return };
    let mut job = pod("job", [sh("c", "echo x >> /data/tries; [ $(wc -l < /data/tries) -ge 2 ] || exit 1")]);
    job["spec"]["restartPolicy"] = "OnFailure".into();
    job["spec"]["volumes"] = json!([{ "name": "data", "emptyDir": {} }]);
    job["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
    node.put("job", job);
    let done = node.wait_phase("job", "Succeeded").await;
    assert_eq!((status::exit_code(&done, "c"), status::restarts(&done, "c")), (Some(0), 1));
    node.finish().await;
}

#[tokio::test]
async fn a_container_that_keeps_failing_waits_longer_and_longer() {
    let Some(mut node) = Node::start().await else { return };
    node.put("crash", pod("crash", [sh("c", "exit 9"), sh("steady", FOREVER)]));
    let seen = node
        .wait("crash", "in CrashLoopBackOff after a restart", |p| {
            status::waiting(p, "c") == Some("CrashLoopBackOff") && status::restarts(p, "c") >= 1
        })
        .await;
    let crashed = status::container(&seen, "c").unwrap();
    let last = crashed.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (9, Some("Error")));
    assert!(!status::is(&seen, "Ready") && status::phase(&seen) == "Running");
    assert_eq!(status::restarts(&seen, "steady"), 0);
    let again = node.wait("crash", "restarted again", |p| status::restarts(p, "c") >= 2).await;
    let log = node.log();
    assert!(log.contains("reason=BackOff"), "no BackOff event in the log");
    assert_eq!(status::id(&seen, "steady"), status::id(&again, "steady"));
    node.finish().await;
}

#[tokio::test]
async fn a_changed_manifest_is_another_pod_that_starts_when_the_old_one_is_gone() {
    let Some(mut node) = Node::start().await else { return };
    let path = node.dir.join("host");
    std::fs::create_dir(&path).unwrap();
    let version = |n: u32| {
        let script = format!(
            "echo start-{n} >> /host/order; trap 'sleep 1; echo stop-{n} >> /host/order; exit 0' TERM; \
             while :; do sleep 3600 & wait $!; done"
        );
        let mut p = pod("versioned", [sh("c", &script)]);
        p["spec"]["terminationGracePeriodSeconds"] = 20.into();
        p["spec"]["volumes"] = json!([{ "name": "host", "hostPath": { "path": path, "type": "Directory" } }]);
        p["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "host", "mountPath": "/host" }]);
        p
    };
    let order = || std::fs::read_to_string(path.join("order")).unwrap_or_default();
    node.put("versioned", version(1));
    let first = node.wait_ready("versioned").await;
    eventually("the first has started", async || if order() == "start-1\n" { Ok(()) } else { Err(order()) })
        .await;
    node.put("versioned", version(2));
    let old = status::uid(&first).to_owned();
    node.wait("versioned", "the new one", |p| status::uid(p) != old && status::is(p, "Ready")).await;
    eventually(
        "the second has started",
        async || if order().contains("start-2") { Ok(()) } else { Err(order()) },
    )
    .await;
    assert_eq!(order(), "start-1\nstop-1\nstart-2\n");
    node.wait_clean().await;
    // The same contents again are the same pod.
    let second = node.pod("versioned").await.unwrap();
    node.put("versioned", version(2));
    node.put("marker", pod("marker", [sh("c", FOREVER)]));
    node.wait_ready("marker").await;
    assert_eq!(status::id(&node.pod("versioned").await.unwrap(), "c"), status::id(&second, "c"));
    node.finish().await;
}

#[tokio::test]
async fn a_container_is_asked_to_end_and_killed_when_its_grace_is_over() {
    let Some(mut node) = Node::start().await else { return };
    let path = node.dir.join("host");
    std::fs::create_dir(&path).unwrap();
    let mut put = |name: &str, script: &str, grace: u32| {
        let mut p = pod(name, [sh("c", script)]);
        p["spec"]["terminationGracePeriodSeconds"] = grace.into();
        p["spec"]["volumes"] = json!([{ "name": "host", "hostPath": { "path": path } }]);
        p["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "host", "mountPath": "/host" }]);
        node.put(name, p);
    };
    put(
        "polite",
        "trap 'echo asked > /host/polite; exit 0' TERM; while :; do sleep 3600 & wait $!; done",
        60,
    );
    put("deaf", "trap 'echo asked > /host/deaf' TERM; while :; do sleep 3600 & wait $!; done", 3);
    node.wait_ready("polite").await;
    node.wait_ready("deaf").await;
    let began = Instant::now();
    node.remove("polite");
    node.wait_gone("polite").await;
    assert!(began.elapsed() < Duration::from_secs(30), "took {:?}", began.elapsed());
    let began = Instant::now();
    node.remove("deaf");
    node.wait_gone("deaf").await;
    assert!(began.elapsed() >= Duration::from_secs(3), "killed after {:?}", began.elapsed());
    for name in ["polite", "deaf"] {
        assert_eq!(std::fs::read_to_string(path.join(name)).unwrap(), "asked\n", "{name}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_container_that_is_killed_from_outside_is_restarted_alone() {
    let Some(mut node) = Node::start().await else { return };
    node.put("pair", pod("pair", [sh("victim", FOREVER), sh("bystander", FOREVER)]));
    let before = node.wait_ready("pair").await;
    let pid = node.container_pid(&before, "victim").await;
    xtask::proc::ProcId::of(pid).unwrap().signal(rustix::process::Signal::KILL);
    let after = node
        .wait("pair", "restarted", |p| status::restarts(p, "victim") == 1 && status::is(p, "Ready"))
        .await;
    assert_eq!(status::id(&before, "bystander"), status::id(&after, "bystander"));
    assert_eq!(status::ip(&before), status::ip(&after));
    let killed = status::container(&after, "victim").unwrap().last_state.as_ref().unwrap();
    assert_eq!(killed.terminated.as_ref().unwrap().exit_code, 137);
    node.finish().await;
}

#[tokio::test]
async fn a_sandbox_that_somebody_else_removes_is_made_again_with_all_in_it() {
    let Some(mut node) = Node::start().await else { return };
    node.put("robbed", pod("robbed", [sh("c", FOREVER)]));
    let before = node.wait_ready("robbed").await;
    let sandboxes = node.cri.list_pod_sandboxes(None).await.unwrap();
    let [sandbox] = &sandboxes[..] else { panic!("{sandboxes:?}") };
    node.cri.stop_pod_sandbox(&sandbox.id).await.unwrap();
    let old = status::id(&before, "c").unwrap().to_owned();
    let other = |old: String| {
        move |p: &k8s_openapi::api::core::v1::Pod| {
            status::is(p, "Ready") && status::running(p, "c") && status::id(p, "c") != Some(old.as_str())
        }
    };
    let stopped = node.wait("robbed", "running in another sandbox", other(old)).await;
    // Where the runtime tells of the container's end before that of its sandbox, it is restarted once more.
    assert!((1..=2).contains(&status::restarts(&stopped, "c")));
    let sandboxes = node.cri.list_pod_sandboxes(None).await.unwrap();
    let ready = sandboxes.iter().find(|s| s.state() == cri::v1::PodSandboxState::SandboxReady).unwrap();
    node.cri.stop_pod_sandbox(&ready.id).await.unwrap();
    node.cri.remove_pod_sandbox(&ready.id).await.unwrap();
    let old = status::id(&stopped, "c").unwrap().to_owned();
    node.wait("robbed", "running in yet another sandbox", other(old)).await;
    node.wait_clean().await;
    node.finish().await;
}

#[tokio::test]
async fn an_image_that_is_not_there_keeps_one_container_waiting_and_no_other() {
    let Some(mut node) = Node::start().await else { return };
    let mut absent = sh("absent", FOREVER);
    absent["image"] = "localhost/stevedore/never-built:1".into();
    let mut remote = sh("remote", FOREVER);
    // A port of the loopback where nobody listens: refused at once.
    remote["image"] = "127.0.0.1:9/nobody/there:1".into();
    remote["imagePullPolicy"] = "IfNotPresent".into();
    node.put("images", pod("images", [absent, remote, sh("present", FOREVER)]));
    node.wait("images", "backing off", |p| {
        status::waiting(p, "remote") == Some("ImagePullBackOff")
            && status::waiting(p, "absent") == Some("ErrImageNeverPull")
            && status::running(p, "present")
    })
    .await;
    let log = node.log();
    assert!(log.contains("reason=ErrImageNeverPull") && log.contains("ErrImagePull"), "events are missing");
    node.finish().await;
}
