//! What the node and its pods use, of real pods, as users and a real Prometheus read it.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use node_e2e::http;
use node_e2e::manifest::{pod, sh, then_forever};
use node_e2e::prometheus::Prometheus;
use node_e2e::wait::eventually;
use node_e2e::{Node, status};
use serde_json::{Value, json};

/// A pod that has written two mebibytes to a volume and one to its own layer, and a line to its log.
async fn with_a_writer(node: &mut Node) {
    let write = "dd if=/dev/zero of=/data/two bs=1024k count=2; dd if=/dev/zero of=/one bs=1024k count=1; sync; echo up";
    let mut p = pod("writer", [sh("c", &then_forever(write))]);
    p["spec"]["volumes"] = json!([
        { "name": "data", "emptyDir": {} },
        { "name": "shm", "emptyDir": { "medium": "Memory", "sizeLimit": "8Mi" } },
    ]);
    let container = &mut p["spec"]["containers"][0];
    container["volumeMounts"] =
        json!([{ "name": "data", "mountPath": "/data" }, { "name": "shm", "mountPath": "/memory" }]);
    container["resources"] = json!({ "limits": { "cpu": "500m", "memory": "64Mi" } });
    node.put("writer", p);
    node.wait_ready("writer").await;
}

async fn summary(node: &Node, query: &str) -> Result<Value, String> {
    let answer =
        http::get(node.read_only, &format!("/stats/summary{query}")).await.map_err(|e| e.to_string())?;
    if answer.status != 200 {
        return Err(format!("{}: {}", answer.status, answer.body));
    }
    serde_json::from_str(&answer.body).map_err(|e| e.to_string())
}

#[tokio::test]
async fn the_summary_tells_what_a_pod_has_written_and_holds() {
    let Some(mut node) = Node::start().await else { return };
    with_a_writer(&mut node).await;
    // Counts and what the runtime tells are some seconds old.
    let whole = eventually("the pod's numbers", async || {
        let whole = summary(&node, "").await?;
        let pod = &whole["pods"][0];
        let layer = pod["containers"][0]["rootfs"]["usedBytes"].as_u64();
        let volume = pod["volume"].as_array().and_then(|v| v.iter().find(|v| v["name"] == "data"));
        let written = volume.and_then(|v| v["usedBytes"].as_u64());
        match (layer, written) {
            (Some(layer), Some(written)) if layer >= 1 << 20 && written >= 2 << 20 => Ok(whole),
            _ => Err(pod.to_string()),
        }
    })
    .await;
    let (pod, of_node) = (&whole["pods"][0], &whole["node"]);
    assert_eq!(pod["podRef"]["name"], node.full("writer").as_str());
    let n = |v: &Value| v.as_u64().unwrap_or_else(|| panic!("no number: {v} in {pod}"));
    let container = &pod["containers"][0];
    let memory = &container["memory"];
    assert!(n(&memory["workingSetBytes"]) > 0 && n(&memory["workingSetBytes"]) <= n(&memory["usageBytes"]));
    assert_eq!(n(&memory["availableBytes"]) + n(&memory["workingSetBytes"]), 64 << 20);
    assert!(n(&container["cpu"]["usageCoreNanoSeconds"]) > 0);
    assert!(n(&pod["cpu"]["usageCoreNanoSeconds"]) >= n(&container["cpu"]["usageCoreNanoSeconds"]));
    assert!(n(&container["logs"]["usedBytes"]) > 0 && n(&container["logs"]["inodesUsed"]) == 1);
    assert!(n(&pod["ephemeral-storage"]["usedBytes"]) >= 3 << 20);
    assert!(n(&pod["process_stats"]["process_count"]) >= 2, "the sandbox's and the container's");
    let memory_volume = pod["volume"].as_array().unwrap().iter().find(|v| v["name"] == "shm").unwrap();
    assert_eq!(n(&memory_volume["capacityBytes"]), 8 << 20);
    assert_eq!(pod["network"]["name"], "eth0", "{}", pod["network"]);
    for (part, fields) in [
        ("fs", ["availableBytes", "capacityBytes", "usedBytes", "inodesFree"]),
        ("memory", ["availableBytes", "usageBytes", "workingSetBytes", "rssBytes"]),
    ] {
        for field in fields {
            assert!(n(&of_node[part][field]) > 0, "{part} {field}");
        }
    }
    assert!(n(&of_node["runtime"]["imageFs"]["usedBytes"]) > 0);
    assert_eq!(of_node["systemContainers"][0]["name"], "pods");
    let lean = summary(&node, "?only_cpu_and_memory=true").await.unwrap();
    assert!(lean["pods"][0]["volume"].is_null() && lean["node"]["fs"].is_null());
    assert!(n(&lean["pods"][0]["containers"][0]["memory"]["workingSetBytes"]) > 0);
    node.finish().await;
}

#[tokio::test]
async fn a_pod_that_is_gone_is_gone_from_the_numbers() {
    let Some(mut node) = Node::start().await else { return };
    with_a_writer(&mut node).await;
    let name = node.full("writer");
    let there = async |wanted: bool| {
        let page = http::get(node.read_only, "/metrics/cadvisor").await.map_err(|e| e.to_string())?.body;
        if page.contains(&name) == wanted { Ok(()) } else { Err(format!("expected it there: {wanted}")) }
    };
    eventually("the pod's lines", async || there(true).await).await;
    node.remove("writer");
    node.wait_gone("writer").await;
    let there = async |wanted: bool| {
        let page = http::get(node.read_only, "/metrics/cadvisor").await.map_err(|e| e.to_string())?.body;
        if page.contains(&name) == wanted { Ok(()) } else { Err(format!("expected it there: {wanted}")) }
    };
    eventually("their end", async || there(false).await).await;
    node.finish().await;
}

#[tokio::test]
async fn a_real_prometheus_takes_every_page_without_a_complaint() {
    let Some(mut node) = Node::start().await else { return };
    let paths = ["/metrics", "/metrics/cadvisor", "/metrics/resource", "/metrics/probes"];
    let Some(prometheus) = Prometheus::start(&node.dir, node.read_only, &paths).await else {
        return node.finish().await;
    };
    with_a_writer(&mut node).await;
    let targets = eventually("all targets up", async || {
        let targets = prometheus.api("/api/v1/targets").await?;
        let active = targets["activeTargets"].as_array().cloned().unwrap_or_default();
        let up = active.iter().filter(|t| t["health"] == "up").count();
        if up == paths.len() { Ok(active) } else { Err(format!("{active:#?}")) }
    })
    .await;
    for target in &targets {
        assert_eq!(target["lastError"], "", "{target}");
    }
    let pod = node.full("writer");
    for (query, at_least) in [
        (
            format!(
                "container_memory_working_set_bytes{{job='/metrics/cadvisor',pod='{pod}',container='c'}}"
            ),
            1.0,
        ),
        (format!("container_spec_memory_limit_bytes{{pod='{pod}',container='c'}}"), 67_108_864.0),
        (format!("container_network_receive_bytes_total{{pod='{pod}',interface='eth0'}}"), 0.0),
        (
            format!("container_cpu_usage_seconds_total{{job='/metrics/resource',pod='{pod}',container='c'}}"),
            1e-9,
        ),
        ("machine_memory_bytes".to_owned(), 1e6),
        ("node_memory_working_set_bytes".to_owned(), 1e6),
        ("kubelet_running_pods".to_owned(), 1.0),
    ] {
        let values = eventually(&query, async || {
            let values = prometheus.query(&query).await?;
            if values.is_empty() { Err("no value yet".to_owned()) } else { Ok(values) }
        })
        .await;
        assert_eq!(values.len(), 1, "{query}: {values:?}");
        assert!(values[0] >= at_least, "{query}: {values:?}");
    }
    let own = http::get(prometheus.port, "/metrics").await.unwrap().body;
    for refused in [
        "prometheus_target_scrapes_sample_duplicate_timestamp_total",
        "prometheus_target_scrapes_sample_out_of_bounds_total",
        "prometheus_target_scrapes_sample_out_of_order_total",
        "prometheus_target_scrapes_exceeded_sample_limit_total",
    ] {
        assert!(own.lines().any(|l| l == format!("{refused} 0")), "{refused}: {own}");
    }
    drop(prometheus);
    assert_eq!(status::restarts(&node.pod("writer").await.unwrap(), "c"), 0);
    node.finish().await;
}
