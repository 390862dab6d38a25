//! The page is read back by a parser of its own, and its families are compared with the recorded ones.

use super::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// A sample's name, its labels with their values, and its value.
type Sample = (String, Vec<(String, String)>, f64);

/// A family as a scraper would see it.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    kind: String,
    help: bool,
    samples: Vec<Sample>,
}

/// Reads the text format strictly: header before samples, one block per family, quoted and escaped label values.
fn parse(page: &str) -> BTreeMap<String, Seen> {
    assert!(page.is_empty() || page.ends_with('\n'), "a page ends with a line feed");
    let mut families: BTreeMap<String, Seen> = BTreeMap::new();
    let mut current = String::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let name = rest.split(' ').next().unwrap().to_string();
            assert!(!families.contains_key(&name), "{name} opened twice");
            families.insert(name.clone(), Seen { help: true, ..Seen::default() });
            current = name;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, current);
            families.get_mut(name).unwrap().kind = kind.to_string();
        } else {
            assert!(!line.starts_with('#'), "unexpected comment {line}");
            let (name, labels, value) = sample(line);
            let family = families.get_mut(&current).expect("a sample before any header");
            let suffixes: &[&str] =
                if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.iter().any(|s| name == format!("{current}{s}")), "{name} below {current}");
            family.samples.push((name, labels, value));
        }
    }
    families
}

fn sample(line: &str) -> Sample {
    let name_end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"").unwrap();
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next().unwrap() {
                    (_, '\\') => value.push(match chars.next().unwrap().1 {
                        'n' => '\n',
                        c => c,
                    }),
                    (at, '"') => break at,
                    (_, c) => value.push(c),
                }
            };
            labels.push((label.to_string(), value));
            rest = &after[end + 1..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break rest = rest.strip_prefix('}').unwrap(),
            }
        }
    }
    let value = rest.trim();
    let value = if value == "+Inf" { f64::INFINITY } else { value.parse().unwrap() };
    (name.to_string(), labels, value)
}

fn golden(file: &str) -> Option<serde_json::Value> {
    let root = std::env::var_os("GOLDEN_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden"), PathBuf::from);
    match std::fs::read(root.join(file)) {
        Ok(data) => Some(serde_json::from_slice(&data).unwrap()),
        Err(e) => {
            println!("SKIPPED: no recorded behaviour at {}: {e}", root.join(file).display());
            None
        }
    }
}

/// Feeds every family of the kubelet once.
fn fed() -> Metrics {
    let m = Metrics::new(std::path::Path::new("/proc"));
    for family in [&m.desired_pods, &m.active_pods, &m.running_containers] {
        family.with(["x"]).set(2.0);
    }
    m.working_pods.with(["desired", "sync", "true"]).set(1.0);
    for gauge in [&m.mirror_pods, &m.running_pods, &m.cgroup_version] {
        gauge.set(1.0);
    }
    m.pleg_last_seen.set_to_now();
    for counter in [
        &m.started_pods,
        &m.started_pods_errors,
        &m.pleg_discard_events,
        &m.evented_pleg_connection_errors,
        &m.evented_pleg_connections,
        &m.orphaned_runtime_pods,
        &m.image_volume_requested,
        &m.image_volume_mounted,
        &m.image_volume_errors,
    ] {
        counter.inc();
    }
    for family in
        [&m.restarted_pods, &m.admission_rejections, &m.started_containers, &m.run_podsandbox_errors]
    {
        family.with(["x"]).inc();
    }
    m.started_containers_errors.with(["x", "y"]).inc();
    m.terminated_containers.with(["container", "1", "Error"]).inc();
    m.ensure_image_requests.with(["true", "never", "false"]).inc();
    m.credential_provider_errors.with(["plugin"]).inc();
    m.image_garbage_collected.with(["age"]).inc();
    m.credential_provider_duration.with(["plugin"]).observe(0.3);
    for histogram in [
        &m.containers_per_pod,
        &m.pod_worker_start_duration,
        &m.pod_start_duration,
        &m.pod_start_sli_duration,
        &m.pod_start_total_duration,
        &m.pleg_relist_duration,
        &m.pleg_relist_interval,
        &m.pleg_pod_relist_duration,
        &m.evented_pleg_latency,
        &m.pod_status_sync_duration,
    ] {
        histogram.observe(0.3);
    }
    for family in [
        &m.pod_worker_duration,
        &m.run_podsandbox_duration,
        &m.cgroup_manager_duration,
        &m.image_pull_duration,
    ] {
        family.with(["x"]).observe(0.3);
    }
    m.runtime_operation("run_podsandbox", std::time::Duration::from_millis(120), true);
    let request = ["false", "GET", "pods", "readwrite"];
    m.http_requests.with(request).inc();
    m.http_inflight.with(request).add(1.0);
    m.http_duration.with(request).observe(0.001);
    m.set_node_name("node");
    m.set_build_info(&BuildInfo { major: "1".into(), ..BuildInfo::default() });
    m.set_feature("AllAlpha", "ALPHA", false);
    m
}

#[test]
fn every_family_has_the_recorded_name_type_and_labels() {
    let Some(golden) = golden("kubelet/metrics.json") else { return };
    let recorded: BTreeMap<&str, (&str, BTreeSet<&str>)> = golden["/metrics"]["metrics"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| {
            let labels = m["labels"].as_array().unwrap().iter().map(|l| l.as_str().unwrap()).collect();
            (m["name"].as_str().unwrap(), (m["type"].as_str().unwrap(), labels))
        })
        .collect();
    // Nothing was pulled or removed while recording and no plugin configured; the names are from upstream's metrics reference.
    let not_recorded = BTreeSet::from([
        "kubelet_image_pull_duration_seconds",
        "kubelet_image_garbage_collected_total",
        "kubelet_credential_provider_plugin_errors_total",
        "kubelet_credential_provider_plugin_duration",
    ]);
    let ours = parse(&fed().registry().render());
    assert!(ours.len() > 50, "only {} families", ours.len());
    for (name, family) in &ours {
        // `stevedore_` is what upstream does not measure.
        if not_recorded.contains(name.as_str()) || name.starts_with("stevedore_") {
            continue;
        }
        let (kind, labels) = recorded.get(name.as_str()).unwrap_or_else(|| panic!("upstream has no {name}"));
        assert_eq!(&family.kind, kind, "type of {name}");
        let have: BTreeSet<&str> = family.samples[0].1.iter().map(|(l, _)| l.as_str()).collect();
        let have: BTreeSet<&str> = have.into_iter().filter(|l| *l != "le").collect();
        assert_eq!(&have, labels, "labels of {name}");
        assert!(family.help);
    }
    assert_eq!(golden["/metrics"]["contentType"], CONTENT_TYPE);
}

#[test]
fn a_metric_that_nobody_feeds_is_not_shown() {
    let m = Metrics::default();
    assert_eq!(m.registry().render(), "");
    m.started_pods.inc_by(0);
    assert_eq!(parse(&m.registry().render())["kubelet_started_pods_total"].samples[0].2, 0.0);
}

#[test]
fn histogram_buckets_are_cumulative_and_bounds_inclusive() {
    let r = Registry::default();
    let h = r.histogram("h", "", &[1.0, 2.5]);
    for v in [0.5, 1.0, 2.0, 9.0, f64::NAN] {
        h.observe(v);
    }
    let page = parse(&r.render());
    let got: Vec<(&str, &str, f64)> = page["h"]
        .samples
        .iter()
        .map(|(name, labels, v)| (name.as_str(), labels.first().map_or("", |(_, v)| v.as_str()), *v))
        .collect();
    let want = [
        ("h_bucket", "1", 2.0),
        ("h_bucket", "2.5", 3.0),
        ("h_bucket", "+Inf", 4.0),
        ("h_sum", "", 12.5),
        ("h_count", "", 4.0),
    ];
    assert_eq!(got, want);
}

#[test]
fn label_values_are_escaped_and_series_are_in_order() {
    let r = Registry::default();
    let f = r.counters("c", "one \\ two\nthree", ["a", "b"]);
    f.with(["z", ""]).inc();
    f.with(["quote\" back\\ line\n", "é"]).inc_by(3);
    f.with(["z", ""]).inc();
    let page = r.render();
    assert!(page.starts_with("# HELP c one \\\\ two\\nthree\n# TYPE c counter\n"), "{page}");
    let seen = &parse(&page)["c"].samples;
    assert_eq!(seen[0].1[0].1, "quote\" back\\ line\n");
    assert_eq!((seen[0].2, seen[1].2), (3.0, 2.0));
}

#[test]
fn series_of_a_family_are_bounded() {
    let r = Registry::default();
    let f = r.counters("c", "", ["name"]);
    for i in 0..registry::MAX_SERIES + 10 {
        f.with([&i.to_string()]).inc();
    }
    assert_eq!(parse(&r.render())["c"].samples.len(), registry::MAX_SERIES);
}

#[rstest::rstest]
#[case(0.0, "0")]
#[case(1.0, "1")]
#[case(-4.5, "-4.5")]
#[case(393_216.0, "393216")]
#[case(1_032_192.0, "1.032192e+06")]
#[case(1_795_165_424.0, "1.795165424e+09")]
#[case(1.795_165_426_340_661e9, "1.795165426340661e+09")]
#[case(0.0001, "0.0001")]
#[case(0.00001, "1e-05")]
#[case(745.058_059_692_382_8, "745.0580596923828")]
#[case(1e100, "1e+100")]
#[case(f64::INFINITY, "+Inf")]
#[case(f64::NEG_INFINITY, "-Inf")]
#[case(f64::NAN, "NaN")]
fn numbers_print_as_upstream_prints_them(#[case] v: f64, #[case] want: &str) {
    assert_eq!(float(v), want);
}

#[test]
fn the_page_in_pieces_is_the_page() {
    let m = fed();
    // The process figures move between two readings.
    let still = |page: String| -> Vec<String> {
        page.lines().filter(|l| !l.starts_with("process_")).map(String::from).collect()
    };
    let pieces: Vec<String> = m.registry().chunks(2048).collect();
    assert!(pieces.len() > 5);
    assert_eq!(still(pieces.concat()), still(m.registry().render()));
}

#[test]
fn the_process_is_read_from_proc() {
    let m = Metrics::new(std::path::Path::new("/proc"));
    let page = parse(&m.registry().render());
    let value = |name: &str| page[name].samples[0].2;
    assert!(value("process_resident_memory_bytes") > 1e5);
    assert!(value("process_open_fds") >= 3.0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let age = now - value("process_start_time_seconds");
    assert!((-2.0..86_400.0).contains(&age), "started {age} s ago");
}

#[test]
fn a_process_that_cannot_be_read_leaves_the_page_whole() {
    let m = Metrics::new(std::path::Path::new("/nonexistent"));
    m.running_pods.set(1.0);
    assert_eq!(parse(&m.registry().render()).len(), 1);
}

#[rstest::rstest]
#[case(0, "N/A")]
#[case(1, "0-10MB")]
#[case(10 * 1024 * 1024, "0-10MB")]
#[case(10 * 1024 * 1024 + 1, "10MB-100MB")]
#[case(u64::MAX, "GT100GB")]
fn image_sizes_fall_into_upstreams_steps(#[case] size: u64, #[case] want: &str) {
    assert_eq!(image_size_bucket(size), want);
}
