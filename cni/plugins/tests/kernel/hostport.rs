//! Host ports: from outside, from the host itself, from pods; who may have one; what DEL takes away.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use cni::code;
use cni::netns::Netns;
use cni::runtime::{PluginFailure, RuntimeError};
use serde_json::json;

use crate::lab::{Lab, NODE4, NODE6, Namespace, OUTSIDE4, ports};

const SOON: Duration = Duration::from_millis(300);

#[test]
fn a_host_port_answers_outside_localhost_other_pods_and_the_pod_itself_until_del() {
    let Some(lab) = Lab::new("a_host_port_answers_outside_localhost_other_pods_and_the_pod_itself_until_del")
    else {
        return;
    };
    // Where frames between ports of the bridge pass no IP hooks, answers between pods must still come back.
    let _ = bridge_calls_netfilter(&lab, "0");
    answers_everywhere(&lab);
}

#[test]
fn a_host_port_answers_everywhere_when_the_bridge_calls_netfilter_too() {
    const NAME: &str = "a_host_port_answers_everywhere_when_the_bridge_calls_netfilter_too";
    let Some(lab) = Lab::new(NAME) else { return };
    // What a cluster installer sets.
    if let Err(e) = bridge_calls_netfilter(&lab, "1") {
        eprintln!("SKIPPED {NAME}: no br_netfilter: {e}");
        return;
    }
    answers_everywhere(&lab);
}

fn bridge_calls_netfilter(lab: &Lab, value: &str) -> std::io::Result<()> {
    let set = |name: &str| std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{name}"), value);
    lab.node.net.run(|| set("iptables").and_then(|()| set("ip6tables"))).unwrap()
}

fn answers_everywhere(lab: &Lab) {
    let pod = lab.pod(ports(&[(8080, 80, "tcp")]));
    pod.ns.serve("0.0.0.0:80");
    pod.ns.serve(&format!("[{}]:80", pod.ip6));
    let other = lab.pod(json!([]));
    let (v4, v6) = (format!("{NODE4}:8080"), format!("[{NODE6}]:8080"));

    assert_eq!(lab.outside.ask(&v4).unwrap().to_string(), OUTSIDE4, "the client's address is kept");
    assert_eq!(lab.outside.ask(&v6).unwrap().to_string(), crate::lab::OUTSIDE6);
    lab.node.ask("127.0.0.1:8080").expect("localhost");
    lab.node.ask(&v4).expect("the host by its own address");
    lab.node.ask(&v6).expect("the host by its own IPv6 address");
    other.ns.ask(&v4).expect("another pod");
    other.ns.ask(&v6).expect("another pod by IPv6");
    pod.ns.ask(&v4).expect("the pod itself");
    pod.ns.ask(&v6).expect("the pod itself by IPv6");

    lab.del(&pod);
    assert!(lab.outside.ask_within(&v4, SOON).is_err());
    assert!(lab.node.ask_within("127.0.0.1:8080", SOON).is_err());
    assert_eq!(lab.elements(), []);
}

#[test]
fn a_host_address_limits_a_port_to_it() {
    let Some(lab) = Lab::new("a_host_address_limits_a_port_to_it") else { return };
    lab.node.ip("addr add 192.0.2.9/24 dev up0");
    let map = |ip: &str, port: u16| json!({"hostPort": 8080, "containerPort": port, "protocol": "TCP", "hostIP": ip});
    let nine = lab.pod(json!([map("192.0.2.9", 81)]));
    nine.ns.serve("0.0.0.0:81");
    assert!(lab.outside.ask_within(&format!("{NODE4}:8080"), SOON).is_err());
    lab.outside.ask("192.0.2.9:8080").expect("its own address");
    // The same port on every other address is somebody else's.
    let any = lab.pod(json!([map("0.0.0.0", 82)]));
    any.ns.serve("0.0.0.0:82");
    assert_eq!(lab.outside.ask(&format!("{NODE4}:8080")).unwrap().to_string(), OUTSIDE4);
    lab.del(&any);
    lab.outside.ask("192.0.2.9:8080").expect("still there");
}

#[test]
fn a_taken_host_port_is_refused_by_its_holders_name_and_taken_over_when_the_holder_is_gone() {
    let Some(lab) =
        Lab::new("a_taken_host_port_is_refused_by_its_holders_name_and_taken_over_when_the_holder_is_gone")
    else {
        return;
    };
    let first = lab.pod(ports(&[(8080, 80, "tcp")]));
    match lab.try_pod(ports(&[(9090, 80, "tcp"), (8080, 80, "tcp")])).unwrap_err() {
        RuntimeError::Plugin { plugin, source, .. } => match *source {
            PluginFailure::Refused(e) => {
                assert_eq!((plugin.as_str(), e.code), ("portmap", code::CONFLICT), "{e}");
                assert!(e.msg.contains("8080") && e.msg.contains(&first.at.container_id), "{e}");
            }
            other => panic!("{other}"),
        },
        other => panic!("{other}"),
    }
    assert!(
        !lab.elements().iter().any(|(_, e)| e.key.ends_with(&[0x23, 0x82, 0, 0])),
        "9090 was not half made"
    );
    // Its namespace and so its links vanish without a DEL.
    lab.node.ip(&format!("link del {}", first.result.interfaces[1].name));
    let second = lab.pod(ports(&[(8080, 80, "tcp")]));
    second.ns.serve("0.0.0.0:80");
    lab.outside.ask(&format!("{NODE4}:8080")).unwrap();
    // The late DEL of the first takes nothing of the second.
    lab.del(&first);
    lab.outside.ask(&format!("{NODE4}:8080")).unwrap();
}

/// A UDP service that answers with its name.
fn echo(ns: &Namespace, addr: &str, name: &'static str) {
    let addr: SocketAddr = addr.parse().unwrap();
    let socket = ns.net.run(|| UdpSocket::bind(addr)).unwrap().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(name.as_bytes(), from);
        }
    });
}

#[test]
fn a_udp_flow_follows_its_host_port_from_one_pod_to_the_next() {
    let Some(lab) = Lab::new("a_udp_flow_follows_its_host_port_from_one_pod_to_the_next") else { return };
    // One client socket throughout: the same five-tuple, which conntrack remembers.
    let client = bind(&lab.outside.net, &format!("{OUTSIDE4}:5000"));
    client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let ask = || {
        let mut buffer = [0; 100];
        client.send_to(b"who", format!("{NODE4}:5353")).ok()?;
        client.recv(&mut buffer).ok().map(|n| String::from_utf8_lossy(&buffer[..n]).into_owned())
    };
    echo(&lab.node, "0.0.0.0:5353", "the host");
    assert_eq!(ask().as_deref(), Some("the host"));
    let one = lab.pod(ports(&[(5353, 53, "udp")]));
    echo(&one.ns, "0.0.0.0:53", "one");
    assert_eq!(ask().as_deref(), Some("one"));
    lab.del(&one);
    let two = lab.pod(ports(&[(5353, 53, "udp")]));
    echo(&two.ns, "0.0.0.0:53", "two");
    assert_eq!(ask().as_deref(), Some("two"));
    lab.del(&two);
    assert_eq!(ask().as_deref(), Some("the host"));
}

fn bind(ns: &Netns, addr: &str) -> UdpSocket {
    ns.run(|| UdpSocket::bind(addr)).unwrap().unwrap()
}

#[test]
fn localhost_access_does_not_open_the_hosts_loopback_to_pods() {
    let Some(lab) = Lab::new("localhost_access_does_not_open_the_hosts_loopback_to_pods") else { return };
    let pod = lab.pod(ports(&[(8080, 80, "tcp")]));
    let local = bind(&lab.node.net, "127.0.0.1:7777");
    local.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    assert_eq!(
        lab.node
            .net
            .run(|| std::fs::read_to_string("/proc/sys/net/ipv4/conf/stvd0/route_localnet"))
            .unwrap()
            .unwrap(),
        "1\n"
    );
    // A malicious pod routes 127.0.0.1 to the host.
    for args in [
        "route del local 127.0.0.1 table local",
        "route del local 127.0.0.0/8 table local",
        "route add 127.0.0.1/32 via 10.88.0.1 dev eth0",
    ] {
        pod.ns.ip(args);
    }
    pod.ns.net.run(|| std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1")).unwrap().unwrap();
    let evil = bind(&pod.ns.net, &format!("{}:6000", pod.ip4));
    let mut buffer = [0; 100];
    evil.send_to(b"x", "127.0.0.1:7777").unwrap();
    assert!(local.recv(&mut buffer).is_err(), "the packet came through");
    // The proof that it was the guard: without it, it does come through.
    let nft = ["netns", "exec", &lab.node.name, "nft", "flush", "chain", "inet", "stevedore_cni", "guard"];
    assert!(std::process::Command::new("ip").args(nft).status().unwrap().success());
    evil.send_to(b"x", "127.0.0.1:7777").unwrap();
    assert!(local.recv(&mut buffer).is_ok());
}

#[test]
fn a_thousand_host_ports_are_made_and_removed_at_once() {
    let Some(lab) = Lab::new("a_thousand_host_ports_are_made_and_removed_at_once") else { return };
    let many: Vec<(u16, u16, &str)> = (0..1000).map(|i| (20_000 + i, 80, "tcp")).collect();
    let pod = lab.pod(ports(&many));
    pod.ns.serve("0.0.0.0:80");
    for port in [20_000, 20_500, 20_999] {
        lab.outside.ask(&format!("{NODE4}:{port}")).unwrap();
    }
    lab.del(&pod);
    lab.assert_nothing_is_left();
}
