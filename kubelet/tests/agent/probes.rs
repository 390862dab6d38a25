//! Probes of whole pods: what they make of statuses and of containers, over restarts, and in large numbers.

use crate::support::{Node, SECOND, YEAR, container, cpu_time, custom, pass};
use cri::fake::{ExecAnswer, FakeImage, FakeRuntime, Fault, Script};
use cri::v1;
use futures::future::BoxFuture;
use kubelet::api::Pod;
use kubelet::probe::{Answer, Prober, Question};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

fn probed(uid: &str, probes: &Value) -> Pod {
    let mut c = container("main");
    c.as_object_mut().unwrap().extend(probes.as_object().unwrap().clone());
    custom(uid, uid, json!({"containers": [c]}))
}

fn exec(more: Value) -> Value {
    let mut probe = json!({"exec": {"command": ["check"]}, "periodSeconds": 1});
    probe.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    probe
}

/// What every command in `main` says until it is changed.
fn answers(node: &Node) -> Arc<AtomicBool> {
    let well = Arc::new(AtomicBool::new(true));
    let says = well.clone();
    node.fake.exec("main", move |_| {
        if says.load(Ordering::Relaxed) { ExecAnswer::exits(0) } else { ExecAnswer::exits(1).stdout("why\n") }
    });
    well
}

#[tokio::test(start_paused = true)]
async fn a_pod_becomes_ready_and_unready_as_its_probe_says() {
    let node = Node::new();
    let well = answers(&node);
    well.store(false, Ordering::Relaxed);
    let agent = node.start_synced(&[probed("u1", &json!({"readinessProbe": exec(json!({}))}))]).await;
    agent.until("it runs", || agent.phase("u1") == "Running").await;
    pass(5 * SECOND).await;
    assert!(!agent.is_ready("u1"));
    well.store(true, Ordering::Relaxed);
    agent.until_ready("u1").await;
    well.store(false, Ordering::Relaxed);
    agent.until("it is not ready", || !agent.is_ready("u1")).await;
    assert_eq!(node.instances("u1", "main").len(), 1, "readiness ends nothing");
    assert!(agent.events().contains(&"Unhealthy: Readiness probe failed: why\n".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_container_that_fails_its_liveness_probe_is_ended_and_restarted_with_back_off() {
    let node = Node::new();
    let well = answers(&node);
    let probe = exec(json!({"failureThreshold": 2, "terminationGracePeriodSeconds": 5}));
    let agent = node.start_synced(&[probed("u1", &json!({"livenessProbe": probe}))]).await;
    agent.until_ready("u1").await;
    well.store(false, Ordering::Relaxed);
    let started = || node.count("StartContainer");
    agent.until("it was restarted twice", || started() == 3).await;
    agent.until("it waits", || agent.state("u1", "main")["waiting"]["reason"] == "CrashLoopBackOff").await;
    well.store(true, Ordering::Relaxed);
    agent.until("it runs again", || started() == 4 && agent.is_ready("u1")).await;
    let stops = node.fake.calls();
    let stop = stops.iter().find(|c| c.method == "StopContainer").unwrap();
    assert!(format!("{stop:?}").contains("timeout: 5"), "the probe's own grace: {stop:?}");
    let events = agent.events();
    assert!(events.contains(&"Killing: Container main failed liveness probe, will be restarted".to_owned()));
    node.witness.assert_never_two();
}

#[tokio::test(start_paused = true)]
async fn a_failed_startup_probe_ends_a_pod_that_never_restarts() {
    let node = Node::new();
    answers(&node).store(false, Ordering::Relaxed);
    let mut pod = probed("u1", &json!({"startupProbe": exec(json!({"failureThreshold": 1}))}));
    pod.spec.as_mut().unwrap().restart_policy = Some("Never".to_owned());
    let agent = node.start_synced(&[pod]).await;
    agent.until("it has failed", || agent.phase("u1") == "Failed" || agent.phase("u1") == "Succeeded").await;
    assert_eq!(node.count("StartContainer"), 1);
    assert!(agent.events().contains(&"Killing: Container main failed startup probe".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_takes_its_time_to_end_is_told_unready_as_soon_as_its_probe_says_so() {
    let node = Node::new();
    let well = answers(&node);
    node.fake.script("main", Script::forever().on_term(0, 20 * SECOND));
    let agent = node.start_synced(&[probed("u1", &json!({"readinessProbe": exec(json!({}))}))]).await;
    agent.until_ready("u1").await;
    agent.gone("u1").await;
    agent.until("it is being stopped", || node.count("StopContainer") == 1).await;
    pass(5 * SECOND).await;
    assert!(agent.is_ready("u1"), "it still answers");
    well.store(false, Ordering::Relaxed);
    agent.until("it is not ready", || !agent.is_ready("u1")).await;
    assert!(!agent.state("u1", "main")["running"].is_null(), "and still runs");
    agent.until_gone("u1").await;
}

#[tokio::test(start_paused = true)]
async fn readiness_is_told_while_another_container_waits_for_its_image_and_the_pods_end_does_not_wait() {
    let node = Node::with(FakeRuntime::builder());
    node.fake.add_image(FakeImage::new("reg.test/app:1"));
    let pull = node.fake.fault(Fault::hang("PullImage"));
    let well = answers(&node);
    let mut main = container("main");
    main["readinessProbe"] = exec(json!({}));
    let with = |image: &str| {
        let mut other = container("other");
        other["image"] = json!(image);
        custom("u1", "u1", json!({"containers": [main, other]}))
    };
    let agent = node.start_synced(&[with("reg.test/app:1")]).await;
    agent.until_ready("u1").await;
    agent.put(&with("reg.test/app:2")).await;
    agent.until("the pull hangs", || pull.hits() == 1).await;
    let ready = || {
        let all = agent.status("u1").and_then(|s| s.container_statuses.clone()).unwrap_or_default();
        all.iter().find(|c| c.name == "main").is_some_and(|c| c.ready)
    };
    for says in [false, true] {
        well.store(says, Ordering::Relaxed);
        agent.until("it is told", || ready() == says).await;
    }
    let began = Instant::now();
    agent.gone("u1").await;
    agent.until_gone("u1").await;
    assert!(began.elapsed() < 60 * SECOND, "{:?}", began.elapsed());
    assert_eq!((pull.hits(), node.count("PullImage")), (1, 1));
    node.assert_gone("u1");
}

#[tokio::test(start_paused = true)]
async fn a_ready_pod_stays_ready_over_a_restart_of_the_agent_until_a_probe_says_otherwise() {
    let node = Node::new();
    let well = answers(&node);
    let plain = exec(json!({}));
    let pod = probed("u1", &json!({"readinessProbe": plain, "startupProbe": plain}));
    let agent = node.start_synced(std::slice::from_ref(&pod)).await;
    agent.until_ready("u1").await;
    let since = agent.condition("u1", "Ready");
    let kept = node.path("root/pods/u1/probe-results");
    agent
        .until("it is kept", || {
            std::fs::read(&kept).is_ok_and(|t| String::from_utf8_lossy(&t).contains("\"ready\":true"))
        })
        .await;
    agent.kill().await;

    let agent = node.start().await;
    let mut statuses = agent.agent.statuses.subscribe();
    agent.put(&pod).await;
    agent.synced().await;
    agent.until_ready("u1").await;
    pass(30 * SECOND).await;
    let mut seen = 0;
    while let Ok(change) = statuses.try_recv() {
        let status = change.status.unwrap();
        let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!(ready.status, "True", "it was never not ready");
        seen += 1;
    }
    assert!(seen > 0 && since.is_some());
    assert_eq!(node.count("StartContainer"), 1);
    well.store(false, Ordering::Relaxed);
    agent.until("it is not ready", || !agent.is_ready("u1")).await;
    agent.gone("u1").await;
    agent.until_gone("u1").await;
    node.assert_gone("u1");
}

/// Says that all is well and notes when each probe was asked.
#[derive(Debug, Default)]
struct Diary(Mutex<HashMap<String, Vec<Instant>>>);

impl Prober for Diary {
    fn ask(&self, question: Question) -> BoxFuture<'static, Answer> {
        let key = format!("{} {}", question.instance, question.kind);
        self.0.lock().unwrap().entry(key).or_default().push(Instant::now());
        Box::pin(async { Answer::Success })
    }
}

#[tokio::test(start_paused = true)]
async fn five_hundred_pods_with_probes_every_second_do_not_drift() {
    const PODS: usize = 500;
    let mut node = Node::new();
    node.settings.node.pods = 1000;
    node.settings.pleg.net = YEAR;
    node.witness.stop();
    let diary = Arc::new(Diary::default());
    node.settings.prober = Some(diary.clone());
    let agent = node.start_synced(&[]).await;
    let probes = json!({"livenessProbe": {"tcpSocket": {"port": 1}, "periodSeconds": 1}});
    for n in 0..PODS {
        agent.put(&probed(&format!("u{n}"), &probes)).await;
    }
    agent.until("all are ready", || (0..PODS).all(|n| agent.is_ready(&format!("u{n}")))).await;
    let before = cpu_time();
    pass(300 * SECOND).await;
    let share = (cpu_time() - before).as_secs_f64() / 3.0;
    println!("{PODS} probes a second, built as this test is: {share:.1} % of a core");
    let asked = diary.0.lock().unwrap();
    assert_eq!(asked.len(), PODS);
    for (probe, times) in &*asked {
        assert!(times.len() >= 300, "{probe}: {}", times.len());
        for (k, at) in times.iter().enumerate() {
            let due = times[0] + SECOND * u32::try_from(k).unwrap();
            // Paused time goes in steps of a millisecond.
            let late = at.saturating_duration_since(due);
            assert!(*at >= due && late <= Duration::from_millis(1), "{probe}, run {k}: late by {late:?}");
        }
    }
}

/// With the whole way of a command, over the wire to the runtime in memory, whose own work is in the figure.
#[tokio::test(start_paused = true)]
#[ignore = "a measurement of half a minute: cargo test -p kubelet --test agent five_hundred_commands -- --ignored --nocapture"]
async fn five_hundred_commands_every_second_do_not_drift_and_take_little() {
    const PODS: usize = 500;
    const SECONDS: u32 = 60;
    let mut node = Node::new();
    node.settings.node.pods = 1000;
    node.settings.pleg.net = YEAR;
    node.witness.stop();
    answers(&node);
    let agent = node.start_synced(&[]).await;
    for n in 0..PODS {
        agent.put(&probed(&format!("u{n}"), &json!({"livenessProbe": exec(json!({}))}))).await;
    }
    agent.until("all are ready", || (0..PODS).all(|n| agent.is_ready(&format!("u{n}")))).await;
    // Until each has the place that it keeps.
    pass(5 * SECOND).await;
    node.fake.forget_calls();
    let before = cpu_time();
    pass(SECONDS * SECOND).await;
    let share = (cpu_time() - before).as_secs_f64() / f64::from(SECONDS) * 100.0;
    println!(
        "{PODS} commands a second, built as this test is, the fake runtime included: {share:.1} % of a core"
    );
    let mut asked: HashMap<String, Vec<Instant>> = HashMap::new();
    for call in node.fake.calls() {
        let Some(exec) = call.request::<v1::ExecSyncRequest>() else { continue };
        asked.entry(exec.container_id.clone()).or_default().push(call.at);
    }
    assert_eq!(asked.len(), PODS);
    for (instance, times) in &asked {
        assert!(times.len() >= SECONDS as usize - 1, "{instance}: {}", times.len());
        for (k, at) in times.iter().enumerate() {
            let due = times[0] + SECOND * u32::try_from(k).unwrap();
            let late = at.saturating_duration_since(due).max(due.saturating_duration_since(*at));
            assert!(late <= Duration::from_millis(2), "{instance}, run {k}: {late:?}");
        }
    }
}
