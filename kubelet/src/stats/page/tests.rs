//! Pages of small samples, and the golden list of families.

use super::super::tests::{Pods, Tree, room, subject};
use super::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A page as a scraper reads it: type and label names by family; any line that is none is a failure.
pub fn parse(page: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut families: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    let mut last = String::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let before = families.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
            assert!(before.is_none(), "{name} has two headings");
            assert!(*name > *last, "{name} stands behind {last}");
            last = name.to_owned();
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        let end = line.find(['{', ' ']).unwrap();
        let family = families.get_mut(&line[..end]).unwrap_or_else(|| panic!("no heading: {line}"));
        assert_eq!(&line[..end], last, "lines of a family stand together");
        let (labels, value) = match line[end..].strip_prefix('{') {
            Some(rest) => rest.split_once("} ").unwrap(),
            None => ("", &line[end + 1..]),
        };
        family.1.extend(
            labels.split("\",").filter(|l| !l.is_empty()).map(|l| l.split_once('=').unwrap().0.to_owned()),
        );
        let mut words = value.split(' ');
        words.next().unwrap().parse::<f64>().unwrap_or_else(|_| panic!("no number: {line}"));
        assert!(
            words.next().is_none_or(|at| at.parse::<i64>().is_ok_and(|at| at > 1_600_000_000_000)),
            "{line}"
        );
        assert!(words.next().is_none(), "{line}");
    }
    families
}

/// A node with one pod, `uid`, that runs this process.
pub fn node_with_a_pod(v2: bool) -> (Tree, Pods) {
    let tree = Tree::new(v2);
    let pod = "/kubepods/burstable/podu1";
    for path in ["/", "/kubepods", "/kubepods/burstable", "/kubepods/besteffort", pod] {
        tree.group(path, 1_032_192, 48_160);
    }
    for unit in ["5a", "c1"] {
        let path = format!("{pod}/{unit}");
        tree.group(&path, 393_216, 12_524);
        tree.file("memory", &path, "cgroup.procs", &format!("{}\n", std::process::id()));
    }
    let pods = Pods::default();
    pods.0.lock().unwrap().push(subject("u1"));
    (tree, pods)
}

async fn whole(v2: bool) -> String {
    let (tree, pods) = node_with_a_pod(v2);
    let pieces: Vec<Bytes> = room(&tree, &pods, false).cadvisor(Duration::ZERO).await.collect();
    assert!(pieces.iter().all(|p| p.len() < 2 * PIECE), "no piece is large");
    String::from_utf8(pieces.concat()).unwrap()
}

#[tokio::test]
async fn every_number_of_a_container_has_upstreams_name_and_unit() {
    for v2 in [false, true] {
        let page = whole(v2).await;
        let labels = "id=\"/kubepods/burstable/podu1/c1\",image=\"docker.io/library/busybox:1\",name=\"c1\",\
            namespace=\"demo\",pod=\"facts-a\"";
        let value = |name: &str, more: &str| {
            let start =
                format!("{name}{{container=\"c\",{}", labels.replacen("id=", &format!("{more}id="), 1));
            let line = page.lines().find(|l| l.starts_with(&start)).unwrap_or_else(|| panic!("no {start}"));
            line[line.find("} ").unwrap() + 2..].split(' ').next().unwrap().to_owned()
        };
        for (name, more, want) in [
            ("container_cpu_usage_seconds_total", "cpu=\"total\",", "0.012524"),
            ("container_cpu_user_seconds_total", "", if v2 { "7e-06" } else { "0.07" }),
            ("container_cpu_cfs_periods_total", "", "4"),
            ("container_cpu_cfs_throttled_seconds_total", "", "2e-06"),
            ("container_cpu_cfs_burst_seconds_total", "", "6e-06"),
            ("container_memory_usage_bytes", "", "393216"),
            ("container_memory_working_set_bytes", "", "389120"),
            ("container_memory_rss", "", "126976"),
            ("container_memory_kernel_usage", "", "2048"),
            ("container_memory_failcnt", "", "3"),
            ("container_memory_max_usage_bytes", "", "500000"),
            ("container_oom_events_total", "", "1"),
            ("container_spec_cpu_shares", "", if v2 { "2046" } else { "2048" }),
            ("container_spec_cpu_quota", "", "20000"),
            ("container_spec_memory_limit_bytes", "", "6.7108864e+07"),
            ("container_spec_memory_swap_limit_bytes", "", "0"),
            ("container_start_time_seconds", "", "1.7e+09"),
            ("container_threads", "", "3"),
            ("container_threads_max", "", "0"),
            ("container_processes", "", "1"),
            ("container_fs_reads_bytes_total", "device=\"\",", "4096"),
        ] {
            assert_eq!(value(name, more), want, "{name}, v2: {v2}");
        }
        assert!(page.contains("container_pressure_cpu_waiting_seconds_total"), "the node's own at least");
        let psi = "container_pressure_cpu_waiting_seconds_total{container=\"c\"";
        assert_eq!(page.contains(psi), v2);
        let node = "container_memory_working_set_bytes{container=\"\",id=\"/\",image=\"\",name=\"\",namespace=\"\",pod=\"\"} ";
        assert!(page.contains(node));
        assert!(page.contains("container_spec_cpu_shares{container=\"\",id=\"/kubepods/burstable\","));
        assert!(
            page.contains("image=\"\",name=\"\",namespace=\"demo\",pod=\"facts-a\""),
            "the pod's own cgroup"
        );
    }
}

/// What upstream lists and this agent does not, with why.
const LEFT_OUT: [(&str, &str); 7] = [
    (
        "container_cpu_load_average_10s",
        "upstream measures it only with a switch the stock agent never sets, and shows 0",
    ),
    ("container_cpu_load_d_average_10s", "as container_cpu_load_average_10s"),
    ("container_tasks_state", "as container_cpu_load_average_10s"),
    (
        "container_health_state",
        "the runtimes have no health checks of their own; upstream shows what it never sets",
    ),
    (
        "machine_nvm_avg_power_budget_watts",
        "needs a library for Intel's persistent memory; upstream shows 0 without it",
    ),
    ("machine_nvm_capacity", "as machine_nvm_avg_power_budget_watts"),
    ("container_network_", "only where the machine that runs the test has an interface to show"),
];

#[tokio::test]
async fn every_family_of_the_stock_agent_is_there_with_its_type_and_labels() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/golden/kubelet/metrics.json");
    let Ok(text) = std::fs::read_to_string(golden) else {
        return eprintln!(
            "SKIP every_family_of_the_stock_agent_is_there_with_its_type_and_labels: no {golden}"
        );
    };
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    let (tree, pods) = node_with_a_pod(false);
    // As the stock agent's containers have it: no more with swap than without.
    tree.file("memory", "/kubepods/burstable/podu1/c1", "memory.memsw.limit_in_bytes", "67108864\n");
    let room = room(&tree, &pods, false);
    let cadvisor: Vec<Bytes> = room.cadvisor(Duration::ZERO).await.collect();
    let pages = [
        ("/metrics/cadvisor", String::from_utf8(cadvisor.concat()).unwrap()),
        ("/metrics/resource", String::from_utf8(room.resource(Duration::ZERO).await.to_vec()).unwrap()),
    ];
    let mut wrong = Vec::new();
    for (path, page) in pages {
        let ours = parse(&page);
        for family in golden[path]["metrics"].as_array().unwrap() {
            let (name, kind) = (family["name"].as_str().unwrap(), family["type"].as_str().unwrap());
            let labels: BTreeSet<String> =
                family["labels"].as_array().unwrap().iter().map(|l| l.as_str().unwrap().to_owned()).collect();
            let left_out = LEFT_OUT.iter().any(|(n, _)| name.starts_with(n));
            match ours.get(name) {
                Some((k, l)) if k == kind && *l == labels => {}
                Some(other) => wrong.push(format!("{path} {name}: {other:?} instead of {kind} {labels:?}")),
                None if left_out => {}
                None => wrong.push(format!("{path} {name}: not there")),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn the_pages_of_an_empty_node_are_in_order() {
    for v2 in [false, true] {
        let tree = Tree::new(v2);
        let room = room(&tree, &Pods::default(), false);
        let pieces: Vec<Bytes> = room.cadvisor(Duration::ZERO).await.collect();
        let families = parse(&String::from_utf8(pieces.concat()).unwrap());
        assert!(families.contains_key("machine_cpu_cores") && !families.contains_key("container_memory_rss"));
        let page = String::from_utf8(room.resource(Duration::ZERO).await.to_vec()).unwrap();
        assert!(
            parse(&page).contains_key("resource_scrape_error") && page.contains("resource_scrape_error 1")
        );
    }
}
