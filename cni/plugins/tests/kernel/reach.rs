//! Who reaches whom, with real connections.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::lab::{Lab, OUTSIDE4, OUTSIDE6};

#[test]
fn pods_reach_each_other_and_the_host_by_both_families_at_once() {
    let Some(lab) = Lab::new("pods_reach_each_other_and_the_host_by_both_families_at_once") else { return };
    let a = lab.pod(json!([]));
    // Served at once: no address is tentative, nothing waits for a neighbour.
    a.ns.serve(&format!("{}:8080", a.ip4));
    a.ns.serve(&format!("[{}]:8080", a.ip6));
    let b = lab.pod(json!([]));
    assert_ne!((&a.ip4, &a.ip6), (&b.ip4, &b.ip6));
    let begin = Instant::now();
    assert_eq!(b.ns.ask(&format!("{}:8080", a.ip4)).unwrap().to_string(), b.ip4);
    assert_eq!(b.ns.ask(&format!("[{}]:8080", a.ip6)).unwrap().to_string(), b.ip6);
    assert!(
        begin.elapsed() < Duration::from_millis(900),
        "duplicate address detection takes a second: {:?}",
        begin.elapsed()
    );

    assert_eq!(lab.node.ask(&format!("{}:8080", a.ip4)).unwrap().to_string(), "10.88.0.1");
    lab.node.serve("10.88.0.1:9090");
    lab.node.serve("[fd00:88::1]:9090");
    assert_eq!(a.ns.ask("10.88.0.1:9090").unwrap().to_string(), a.ip4);
    assert_eq!(a.ns.ask("[fd00:88::1]:9090").unwrap().to_string(), a.ip6);
}

#[test]
fn what_leaves_the_node_has_the_nodes_address() {
    let Some(lab) = Lab::new("what_leaves_the_node_has_the_nodes_address") else { return };
    lab.outside.serve(&format!("{OUTSIDE4}:80"));
    lab.outside.serve(&format!("[{OUTSIDE6}]:80"));
    let pod = lab.pod(json!([]));
    assert_eq!(pod.ns.ask(&format!("{OUTSIDE4}:80")).unwrap().to_string(), crate::lab::NODE4);
    assert_eq!(pod.ns.ask(&format!("[{OUTSIDE6}]:80")).unwrap().to_string(), crate::lab::NODE6);
}

#[test]
fn the_interface_has_the_name_mtu_and_hardware_address_asked_for() {
    let Some(mut lab) = Lab::new("the_interface_has_the_name_mtu_and_hardware_address_asked_for") else {
        return;
    };
    lab.list.plugins[0].raw.insert("mtu".into(), json!(1400));
    lab.list.plugins[0].raw.insert("args".into(), json!({"cni": {"mac": "02:11:22:33:44:55"}}));
    let pod = lab.pod(json!([]));
    let shown = pod.ns.ip("link show eth0");
    assert!(shown.contains("mtu 1400") && shown.contains("02:11:22:33:44:55"), "{shown}");
    let host = &pod.result.interfaces[1];
    let shown = lab.node.ip(&format!("-d link show {}", host.name));
    assert!(
        shown.contains("mtu 1400") && shown.contains(&host.mac) && shown.contains("hairpin on"),
        "{shown}"
    );
    assert!(shown.contains(&format!("alias {} eth0 {}", pod.at.container_id, lab.network)), "{shown}");
}

#[test]
fn the_bridge_keeps_its_hardware_address_when_pods_come_and_go() {
    let Some(lab) = Lab::new("the_bridge_keeps_its_hardware_address_when_pods_come_and_go") else { return };
    let first = lab.pod(json!([]));
    let mac = first.result.interfaces[0].mac.clone();
    for _ in 0..8 {
        assert_eq!(lab.pod(json!([])).result.interfaces[0].mac, mac);
    }
    lab.del(&first);
    assert!(lab.node.ip("link show stvd0").contains(&mac));
}

#[test]
fn loopback_is_up_and_answers_both_addresses() {
    let Some(mut lab) = Lab::new("loopback_is_up_and_answers_both_addresses") else { return };
    let text =
        format!(r#"{{"cniVersion":"0.3.1","name":"{}-lo","plugins":[{{"type":"loopback"}}]}}"#, lab.network);
    lab.list = cni::NetConfList::parse(text.as_bytes()).unwrap();
    let pod = lab.pod(json!([]));
    assert_eq!((pod.ip4.as_str(), pod.ip6.as_str()), ("127.0.0.1", "::1"));
    pod.ns.serve("127.0.0.1:80");
    assert!(pod.ns.ask("127.0.0.1:80").is_ok());
    lab.del(&pod);
}
