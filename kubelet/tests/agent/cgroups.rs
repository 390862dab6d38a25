//! Cgroup drivers: the runtime's and the agent's must be one.

use crate::support::{Node, SECOND, fake_cgroups, pod};
use cri::fake::FakeRuntime;
use cri::v1::CgroupDriver;
use kubelet::assemble::Agent;
use kubelet::cgroup::{CgroupConfig, Driver};
use kubelet::metrics::Metrics;

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
