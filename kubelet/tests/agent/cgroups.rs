//! Cgroup drivers: the runtime's and the agent's must be one.

use crate::support::{Node, SECOND, fake_cgroups, pod};
use cri::fake::FakeRuntime;
use cri::v1::CgroupDriver;
use kubelet::assemble::Agent;
use kubelet::cgroup::{CgroupConfig, Driver};
use kubelet::metrics::Metrics;
use serde_json::json;

#[tokio::test(start_paused = true)]
async fn a_driver_that_was_asked_for_and_is_not_the_runtimes_is_refused_by_name() {
    let mut node = Node::with(FakeRuntime::builder().any_image().cgroup_driver(CgroupDriver::Systemd));
    node.settings.cgroup.driver = Some(Driver::Cgroupfs);
    let client = node.fake.client();
    let capabilities = client.connected().await;
    let refused = Agent::start(node.settings.clone(), client, &capabilities, Metrics::default()).await;
    let text = refused.unwrap_err().to_string();
    assert!(
        text.starts_with("cgroupDriver: the runtime uses systemd, the agent is configured for cgroupfs: "),
        "{text}"
    );
    // Not asked for, it is the runtime's.
    node.settings.cgroup = CgroupConfig { driver: None, ..fake_cgroups(node.path("").as_path(), false) };
    let agent = node.start_synced(&[pod("u", &["a"])]).await;
    agent.until_ready("u").await;
}

#[tokio::test(start_paused = true)]
async fn no_pod_is_started_while_the_runtime_is_back_with_another_driver() {
    let mut node = Node::new();
    node.settings.cgroup = fake_cgroups(node.path("").as_path(), true);
    let agent = node.start_synced(&[]).await;
    node.fake.set_cgroup_driver(CgroupDriver::Systemd);
    node.fake.restart();
    agent.put(&pod("u", &["a"])).await;
    let told = "FailedToCreatePodContainer: unable to ensure pod container exists: the runtime's cgroup driver is \
                systemd, the agent's is cgroupfs: pods would be in two hierarchies";
    let mut seen = Vec::new();
    while !seen.iter().any(|e| e == told) {
        tokio::time::sleep(SECOND).await;
        seen.extend(agent.events());
        assert!(seen.len() < 100, "{seen:?}");
    }
    assert_eq!(node.counts(), (0, 0));
    node.fake.set_cgroup_driver(CgroupDriver::Cgroupfs);
    node.fake.restart();
    agent.until_ready("u").await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_cgroup_somebody_removed_has_its_limits_again_before_it_runs_again() {
    let mut node = Node::new();
    node.settings.cgroup = fake_cgroups(node.path("").as_path(), true);
    let mut limited = pod("u", &["a"]);
    let limits = json!({"limits": {"cpu": "1", "memory": "1Mi"}});
    limited.spec.as_mut().unwrap().containers[0].resources = Some(serde_json::from_value(limits).unwrap());
    let agent = node.start_synced(&[limited]).await;
    agent.until_ready("u").await;
    let limit = node.path("cgroup/memory/kubepods/podu/memory.limit_in_bytes");
    assert_eq!(std::fs::read_to_string(&limit).unwrap(), "1048576");
    for controllers in ["cpu,cpuacct", "cpuset", "memory"] {
        std::fs::remove_dir_all(node.path("cgroup").join(controllers).join("kubepods")).unwrap();
    }
    let old = node.fake.sandboxes()[0].id.clone();
    node.fake.kill_sandbox(&old);
    agent
        .until("it runs in another sandbox", || {
            let sandboxes = node.fake.sandboxes();
            agent.is_ready("u") && sandboxes.iter().any(|s| s.id != old)
        })
        .await;
    assert_eq!(std::fs::read_to_string(&limit).unwrap(), "1048576");
    assert_eq!(std::fs::read_to_string(node.path("cgroup/cpu,cpuacct/kubepods/cpu.shares")).unwrap(), "4096");
}
