//! The pod network of our own CNI plugins, as pods and the host see it.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use anyhow::{Context, Result};
use node_e2e::manifest::{pod, sh};
use node_e2e::node::free_ports;
use node_e2e::wait::eventually;
use node_e2e::{Node, status};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// Serves the demo image's page on port 8080 until it is told to end.
const SERVER: &str = "httpd -p 8080 -h /www; trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";

/// The page at `address`, or why there is none.
fn page(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).context("connect")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

async fn reachable(ip: &str, port: u16) {
    let address = SocketAddr::new(ip.parse().unwrap(), port);
    eventually(&format!("{address} serves the page"), async || match page(address) {
        Ok(text) if text.contains("It runs.") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// A script that prints the page. Debian's static busybox looks the service `http` up in its wget and crashes; its nc does
/// not.
fn fetch(ip: &str, port: u16) -> String {
    format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {ip} {port}")
}

/// The machine's own address on its way out, where it has one. Nothing is sent.
fn host_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|a| a.ip()).filter(|ip| !ip.is_loopback())
}

/// A node, and on it the pod `server` whose page is at a port of the host; `None` when there can be no such thing, which has
/// been said.
async fn host_port() -> Option<(Node, Value, u16)> {
    let mut node = Node::start().await?;
    if node.turn.as_ref().unwrap().private().is_none() {
        node_e2e::skip("the network of CRI_SOCKET's runtime may have no host ports");
        node.finish().await;
        return None;
    }
    let [port] = free_ports();
    let mut server = pod("server", [sh("c", SERVER)]);
    server["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 8080, "hostPort": port }]);
    node.put("server", &server);
    Some((node, server, port))
}

#[tokio::test]
async fn pods_reach_each_other_and_the_host_reaches_them() {
    let Some(mut node) = Node::start().await else { return };
    node.put("server", pod("server", [sh("c", SERVER)]));
    node.put("client", pod("client", [sh("c", node_e2e::manifest::FOREVER)]));
    let server = node.wait_ready("server").await;
    let client = node.wait_ready("client").await;
    let ip = status::ip(&server).unwrap().to_owned();
    assert_ne!(Some(ip.as_str()), status::ip(&client));
    reachable(&ip, 8080).await;
    let got = node.exec(&client, "c", &fetch(&ip, 8080)).await;
    assert!(got.contains("It runs."), "{got}");
    // Containers of one pod meet on its loopback.
    let got = node.exec(&server, "c", &fetch("127.0.0.1", 8080)).await;
    assert!(got.contains("It runs."), "{got}");
    node.finish().await;
}

#[tokio::test]
async fn a_host_port_leads_into_its_pod_from_everywhere_and_is_gone_with_it() {
    let Some((mut node, mut p, port)) = host_port().await else { return };
    node.put("client", pod("client", [sh("c", node_e2e::manifest::FOREVER)]));
    let server = node.wait_ready("server").await;
    reachable("127.0.0.1", port).await;
    if let Some(ip) = host_address() {
        reachable(&ip.to_string(), port).await;
    }
    // From a neighbour and from the pod itself, through the bridge's address on the host.
    let client = node.wait_ready("client").await;
    let gateway = node.exec(&client, "c", "ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p'").await;
    for (pod, who) in [(&client, "the neighbour"), (&server, "itself")] {
        let got = node.exec(pod, "c", &fetch(gateway.trim(), port)).await;
        assert!(got.contains("It runs."), "{who}: {got}");
    }
    // A second pod cannot have the port.
    p["metadata"]["name"] = "rival".into();
    node.put("rival", &p);
    let rival = node.wait_phase("rival", "Failed").await;
    assert_eq!(rival.status.unwrap().reason.as_deref(), Some("NodePorts"));
    node.remove("rival");
    node.wait_gone("rival").await;
    reachable("127.0.0.1", port).await;
    node.remove("server");
    node.wait_gone("server").await;
    assert!(page(SocketAddr::new("127.0.0.1".parse().unwrap(), port)).is_err(), "the port still answers");
    node.finish().await;
}

#[tokio::test]
async fn a_restarted_container_keeps_address_and_host_port() {
    let Some((node, _, port)) = host_port().await else { return };
    let before = node.wait_ready("server").await;
    reachable("127.0.0.1", port).await;
    let pid = node.container_pid(&before, "c").await;
    xtask::proc::ProcId::of(pid).unwrap().signal(rustix::process::Signal::KILL);
    let after =
        node.wait("server", "restarted", |p| status::restarts(p, "c") == 1 && status::is(p, "Ready")).await;
    assert_eq!(status::ip(&before), status::ip(&after));
    reachable("127.0.0.1", port).await;
    node.finish().await;
}

#[tokio::test]
async fn a_pod_waits_until_the_runtime_has_a_network_and_one_on_the_nodes_does_not() {
    let Some(mut node) = Node::start().await else { return };
    let conf =
        node.turn.as_ref().and_then(|t| t.private()).map(|p| p.base().join("cni/conf/10-test.conflist"));
    let Some((conf, text)) = conf.and_then(|conf| std::fs::read(&conf).ok().map(|text| (conf, text))) else {
        node_e2e::skip("the runtime's network is not ours to be taken away");
        return node.finish().await;
    };
    std::fs::remove_file(&conf).unwrap();
    eventually("the runtime has no network", async || {
        let status = node.cri.status(false).await.map_err(|e| e.to_string())?.status.unwrap_or_default();
        let network = status.conditions.iter().find(|c| c.r#type == "NetworkReady");
        if network.is_some_and(|c| !c.status) { Ok(()) } else { Err(format!("{network:?}")) }
    })
    .await;
    let mut on_host = pod("on-host", [sh("c", SERVER.trim_start_matches("httpd -p 8080 -h /www; "))]);
    on_host["spec"]["hostNetwork"] = true.into();
    node.put("waits", pod("waits", [sh("c", SERVER)]));
    node.put("on-host", on_host);
    node.wait_ready("on-host").await;
    let told = "network is not ready: container runtime network not ready: NetworkReady=false";
    eventually("it is told", async || {
        if node.log().contains(told) { Ok(()) } else { Err(node_e2e::node::tail(&node.log_file(), 5)) }
    })
    .await;
    let waits = node.pod("waits").await.unwrap();
    assert_eq!(status::waiting(&waits, "c"), Some("ContainerCreating"));
    std::fs::write(&conf, text).unwrap();
    node.wait_ready("waits").await;
    node.finish().await;
}
