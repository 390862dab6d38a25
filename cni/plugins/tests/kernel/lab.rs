//! A node, a host outside of it, and pods, as network namespaces that go when the test ends, also by a panic.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cni::netlink::Netlink;
use cni::netns::Netns;
use cni::nfnetlink::{Element, Socket};
use cni::runtime::Runtime;
use cni::{Attachment, CniResult, NetConfList};
use serde_json::{Map, Value, json};

pub const BINARY: &str = env!("CARGO_BIN_EXE_stevedore-cni");
/// Long enough for a slow machine, short enough for a test that expects no answer.
const PATIENCE: Duration = Duration::from_secs(3);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A named network namespace, removed on drop.
#[derive(Debug)]
pub struct Namespace {
    pub name: String,
    pub net: Netns,
}

impl Namespace {
    fn new(role: &str) -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("stvt-{}-{n}-{role}", std::process::id());
        ip(&["netns", "add", &name]);
        let net = Netns::open(&Path::new("/run/netns").join(&name)).unwrap();
        Namespace { name, net }
    }

    pub fn path(&self) -> PathBuf {
        self.net.path().to_path_buf()
    }

    /// `ip -n NAMESPACE …`, which must succeed.
    pub fn ip(&self, args: &str) -> String {
        let mut all = vec!["-n", &self.name];
        all.extend(args.split_whitespace());
        ip(&all)
    }

    /// Removes the namespace now; drop finds nothing then.
    pub fn remove(&self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }

    /// A TCP service that tells every client the address it sees.
    pub fn serve(&self, addr: &str) {
        let addr: SocketAddr = addr.parse().unwrap();
        let listener = self.net.run(|| TcpListener::bind(addr)).unwrap().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let peer = stream.peer_addr().map(|a| a.ip().to_string()).unwrap_or_default();
                let _ = stream.write_all(peer.as_bytes());
            }
        });
    }

    /// Connects from this namespace; the address the service saw, or why there was no answer.
    pub fn ask(&self, addr: &str) -> Result<IpAddr, String> {
        self.ask_within(addr, PATIENCE)
    }

    pub fn ask_within(&self, addr: &str, patience: Duration) -> Result<IpAddr, String> {
        let addr: SocketAddr = addr.parse().unwrap();
        self.net
            .run(|| {
                let mut stream = TcpStream::connect_timeout(&addr, patience).map_err(|e| e.to_string())?;
                stream.set_read_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
                let mut text = String::new();
                stream.read_to_string(&mut text).map_err(|e| e.to_string())?;
                text.parse().map_err(|e| format!("{text:?}: {e}"))
            })
            .unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.remove();
    }
}

fn ip(args: &[&str]) -> String {
    let out = Command::new("ip").args(args).output().unwrap();
    assert!(out.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The whole set-up.
#[derive(Debug)]
pub struct Lab {
    pub node: Namespace,
    pub outside: Namespace,
    pub dir: tempfile::TempDir,
    pub network: String,
    pub list: NetConfList,
}

pub const NODE4: &str = "192.0.2.1";
pub const NODE6: &str = "2001:db8::1";
pub const OUTSIDE4: &str = "192.0.2.2";
pub const OUTSIDE6: &str = "2001:db8::2";

/// A container: a namespace and what ADD answered.
#[derive(Debug)]
pub struct Pod {
    pub ns: Namespace,
    pub at: Attachment,
    pub result: CniResult,
    pub ip4: String,
    pub ip6: String,
}

impl Lab {
    /// `None`, said aloud, where the machine cannot run kernel tests.
    pub fn new(test: &str) -> Option<Self> {
        let root = std::fs::read_to_string("/proc/self/status")
            .unwrap()
            .lines()
            .any(|l| l.starts_with("Uid:") && l.split_whitespace().nth(2) == Some("0"));
        let missing = ["ip", "nft"].into_iter().find(|p| Command::new(p).arg("-V").output().is_err());
        let reason = match (root, missing) {
            (false, _) => "needs root".to_string(),
            (true, Some(program)) => format!("needs the program {program}"),
            (true, None) => return Some(Self::build()),
        };
        eprintln!("SKIPPED {test}: {reason}");
        None
    }

    fn build() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        let done = Command::new(BINARY).arg("install").arg(&bin).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        let network = format!("stvt{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let (node, outside) = (Namespace::new("node"), Namespace::new("out"));
        node.ip("link set lo up");
        outside.ip("link set lo up");
        node.ip(&format!("link add up0 type veth peer name up0 netns {}", outside.name));
        for (ns, a4, a6) in [(&node, NODE4, NODE6), (&outside, OUTSIDE4, OUTSIDE6)] {
            ns.ip("link set up0 up");
            ns.ip(&format!("addr add {a4}/24 dev up0"));
            ns.ip(&format!("addr add {a6}/64 dev up0 nodad"));
        }
        let params = cni::ConflistParams {
            name: network.clone(),
            subnets: vec!["10.88.0.0/24".parse().unwrap(), "fd00:88::/64".parse().unwrap()],
            data_dir: Some(dir.path().join("leases")),
            ..Default::default()
        };
        let text = cni::default_conflist(&params);
        std::fs::write(dir.path().join("net.conflist"), &text).unwrap();
        let list = NetConfList::parse(text.as_bytes()).unwrap();
        Lab { node, outside, dir, network, list }
    }

    pub fn runtime(&self) -> Runtime {
        Runtime::new(vec![self.dir.path().join("bin")])
    }

    /// Runs a call of the runtime side on the node.
    pub fn call<T: Send>(&self, f: impl AsyncFnOnce(&Runtime) -> T + Send) -> T {
        let runtime = self.runtime();
        self.node
            .net
            .run(|| {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap()
                    .block_on(f(&runtime))
            })
            .unwrap()
    }

    /// The attachment of a new container; nothing is called yet.
    pub fn attachment(&self, ns: &Namespace, ports: Value) -> Attachment {
        let mut capability_args = Map::new();
        if ports.as_array().is_some_and(|p| !p.is_empty()) {
            capability_args.insert("portMappings".into(), ports);
        }
        Attachment {
            container_id: format!("{:0>64}", ns.name.replace('-', "x")),
            netns: Some(ns.path()),
            ifname: "eth0".into(),
            capability_args,
            ..Attachment::default()
        }
    }

    pub fn try_pod(&self, ports: Value) -> Result<Pod, cni::runtime::RuntimeError> {
        let ns = Namespace::new("pod");
        ns.ip("link set lo up");
        let at = self.attachment(&ns, ports);
        let result = self.call(async |r| r.add(&self.list, &at).await)?;
        let ip = |v4: bool| {
            let ip = result.ips.iter().find(|ip| ip.address.is_ipv4() == v4);
            ip.map(|ip| ip.address.addr.to_string()).unwrap_or_default()
        };
        Ok(Pod { ip4: ip(true), ip6: ip(false), ns, at, result })
    }

    pub fn pod(&self, ports: Value) -> Pod {
        self.try_pod(ports).unwrap_or_else(|e| panic!("ADD: {e}"))
    }

    pub fn del(&self, pod: &Pod) {
        self.call(async |r| r.del(&self.list, &pod.at, Some(&pod.result)).await)
            .unwrap_or_else(|e| panic!("DEL: {e}"));
    }

    /// One plugin run by hand on the node.
    pub fn plugin(&self, name: &str, command: &str, at: &Attachment, stdin: &Value) -> Output {
        let mut child = self.spawn(name, command, at);
        child.stdin.take().unwrap().write_all(stdin.to_string().as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    pub fn spawn(&self, name: &str, command: &str, at: &Attachment) -> std::process::Child {
        let mut run = Command::new(self.dir.path().join("bin").join(name));
        run.env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &at.container_id)
            .env("CNI_IFNAME", &at.ifname)
            .env("CNI_PATH", self.dir.path().join("bin"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(netns) = &at.netns {
            run.env("CNI_NETNS", netns);
        }
        self.node.net.run(|| run.spawn()).unwrap().unwrap()
    }

    /// The stdin of the network's first plugin.
    pub fn bridge_stdin(&self) -> Value {
        self.list.plugins[0].stdin(&self.list, None, &Map::new())
    }

    /// Links of the node beside loopback, uplink and bridge.
    pub fn pod_links(&self) -> Vec<String> {
        let links = self.node.net.run(|| Netlink::open().unwrap().links().unwrap()).unwrap();
        links.into_iter().map(|l| l.name).filter(|n| !["lo", "up0", "stvd0"].contains(&n.as_str())).collect()
    }

    /// Lease files.
    pub fn leases(&self) -> Vec<String> {
        let dir = self.dir.path().join("leases").join(&self.network);
        let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
        let names = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        names.filter(|n| n.parse::<IpAddr>().is_ok()).collect()
    }

    /// Elements of every map of the table.
    pub fn elements(&self) -> Vec<(&'static str, Element)> {
        let maps = ["ports4", "ports6", "ports_ip4", "ports_ip6", "snat4", "snat6"];
        self.node
            .net
            .run(|| {
                let mut socket = Socket::open().unwrap();
                let mut all = Vec::new();
                for map in maps {
                    all.extend(socket.elements("stevedore_cni", map).unwrap().into_iter().map(|e| (map, e)));
                }
                all
            })
            .unwrap()
    }

    pub fn assert_nothing_is_left(&self) {
        assert_eq!(self.pod_links(), Vec::<String>::new(), "links");
        assert_eq!(self.leases(), Vec::<String>::new(), "leases");
        assert_eq!(self.elements(), [], "nftables elements");
    }
}

pub fn ports(list: &[(u16, u16, &str)]) -> Value {
    list.iter().map(|(h, c, p)| json!({"hostPort": h, "containerPort": c, "protocol": p})).collect()
}
