//! What `/metrics` says of pods: how many there are, where they stand, and how long the agent takes with them.

use crate::support::{Node, Running, SECOND, YEAR, container, custom, pass, pod};
use cri::fake::Script;
use serde_json::json;

/// The value of a sample, by its whole name; 0 where there is none.
fn value(agent: &Running, sample: &str) -> f64 {
    let text = agent.agent.metrics.registry().render();
    let line = text.lines().find_map(|l| l.strip_prefix(sample)?.strip_prefix(' '));
    line.map_or(0.0, |v| v.trim().parse().unwrap())
}

/// `kubelet_working_pods` of every combination that is not 0, in short.
fn working(agent: &Running) -> Vec<String> {
    let mut all = Vec::new();
    for config in ["desired", "orphan"] {
        for lifecycle in ["sync", "terminating", "terminated"] {
            for fixed in ["", "true"] {
                let labels = format!("config=\"{config}\",lifecycle=\"{lifecycle}\",static=\"{fixed}\"");
                let n = value(agent, &format!("kubelet_working_pods{{{labels}}}"));
                if n > 0.0 {
                    let kind = if fixed.is_empty() { "api" } else { "static" };
                    all.push(format!("{n} {config} {lifecycle} {kind}"));
                }
            }
        }
    }
    all
}

/// Desired and active pods: those of the API, and static ones.
fn counts(agent: &Running) -> [f64; 4] {
    let of = |name: &str, label: &str| value(agent, &format!("kubelet_{name}_pods{{static=\"{label}\"}}"));
    [of("desired", ""), of("desired", "true"), of("active", ""), of("active", "true")]
}

#[tokio::test(start_paused = true)]
async fn pods_are_counted_by_source_and_by_where_they_stand() {
    let mut node = Node::new();
    let dir = node.path("manifests");
    std::fs::create_dir(&dir).unwrap();
    node.settings.manifests = Some((dir.clone(), YEAR));
    node.fake.script("main", Script::forever().on_term(0, 5 * SECOND));
    let spec = json!({"containers": [container("main")]});
    let fixed =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "s", "uid": "s"}, "spec": spec});
    std::fs::write(dir.join("s.json"), fixed.to_string()).unwrap();

    let agent = node.start_synced(&[pod("a", &["main"]), pod("b", &["main"])]).await;
    for uid in ["a", "b", "s"] {
        agent.until_ready(uid).await;
    }
    assert_eq!(counts(&agent), [2.0, 1.0, 2.0, 1.0]);
    assert_eq!(working(&agent), ["2 desired sync api", "1 desired sync static"]);

    // One that is refused is wanted, and holds nothing.
    let mut huge = container("main");
    huge["resources"] = json!({"requests": {"cpu": "1000"}});
    agent.put(&custom("r", "r", json!({"containers": [huge]}))).await;
    agent.until("it is refused", || agent.phase("r") == "Failed").await;
    agent.until("it is counted", || counts(&agent) == [3.0, 1.0, 2.0, 1.0]).await;
    assert_eq!(working(&agent), ["2 desired sync api", "1 desired sync static", "1 desired terminated api"]);

    // One that its source has let go is wanted no more, and holds what it held until it has ended.
    agent.gone("b").await;
    agent.until("it is being stopped", || node.count("StopContainer") == 1).await;
    assert_eq!(counts(&agent), [2.0, 1.0, 2.0, 1.0]);
    assert!(working(&agent).contains(&"1 orphan terminating api".to_owned()), "{:?}", working(&agent));
    agent.until_gone("b").await;
    agent.gone("r").await;
    agent.until_gone("r").await;
    agent.until("they are forgotten", || counts(&agent) == [1.0, 1.0, 1.0, 1.0]).await;
    assert_eq!(working(&agent), ["1 desired sync api", "1 desired sync static"]);

    // What the next agent finds and no source has.
    agent.kill().await;
    let agent = node.start_synced(&[]).await;
    agent.until("it is being stopped", || node.count("StopContainer") == 2).await;
    assert_eq!(counts(&agent), [0.0, 1.0, 0.0, 1.0]);
    assert_eq!(working(&agent), ["1 desired sync static", "1 orphan terminating static"]);
    agent.until("it is gone", || working(&agent) == ["1 desired sync static"]).await;
    assert_eq!(value(&agent, "kubelet_mirror_pods"), 0.0, "there is no API to mirror to");
}

#[tokio::test(start_paused = true)]
async fn the_time_of_actors_and_starts_is_told_by_what_they_did() {
    let node = Node::new();
    let passes = |agent: &Running, what: &str| {
        value(agent, &format!("kubelet_pod_worker_duration_seconds_count{{operation_type=\"{what}\"}}"))
    };
    let agent = node.start_synced(&[pod("u", &["main"]), pod("v", &["main"])]).await;
    agent.until_ready("u").await;
    agent.until_ready("v").await;
    assert!(passes(&agent, "create") >= 2.0);
    for what in ["update", "sync", "kill"] {
        assert_eq!(passes(&agent, what), 0.0, "{what}");
    }
    assert_eq!(value(&agent, "kubelet_pod_worker_start_duration_seconds_count"), 2.0);
    assert_eq!(value(&agent, "kubelet_pod_start_duration_seconds_count"), 2.0);

    let running = node.instances("v", "main").pop().unwrap().id;
    node.fake.exit(&running, 1);
    agent.until("it was restarted", || passes(&agent, "sync") >= 1.0).await;
    let mut changed = pod("u", &["main"]);
    changed.spec.as_mut().unwrap().containers[0].image = Some("reg.test/app:2".into());
    agent.put(&changed).await;
    agent.until("it was replaced", || passes(&agent, "update") == 1.0).await;
    agent.gone("u").await;
    agent.until_gone("u").await;
    assert!(passes(&agent, "kill") >= 1.0);

    // A pod that was found running has not been started.
    agent.kill().await;
    let agent = node.start_synced(&[pod("v", &["main"])]).await;
    agent.until_ready("v").await;
    pass(SECOND).await;
    assert_eq!(value(&agent, "kubelet_pod_worker_start_duration_seconds_count"), 0.0);
    assert_eq!(value(&agent, "kubelet_pod_start_duration_seconds_count"), 0.0);
}
