//! The rules of the table, and running `nft` to put them in.
//!
//! Called by the parent when it finds no table or no chain. Several plugins may do so at once: each transaction
//! begins with a `create` that only one of them wins, so no rule is ever there twice.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use cni::{Cidr, CniError, code};

use super::{Chain, TABLE};

/// A run of `nft` takes about ten milliseconds; one that takes longer than this hangs.
const LIMIT: Duration = Duration::from_secs(20);

/// `four` or `six`, by the family of the address.
pub fn by_family<T>(ip: IpAddr, four: T, six: T) -> T {
    if ip.is_ipv4() { four } else { six }
}

/// Table, maps and base chains. `create` refuses a table that exists.
fn base() -> String {
    let t = TABLE;
    format!(
        "create table inet {t}
add map inet {t} snat4 {{ type ipv4_addr : verdict; }}
add map inet {t} snat6 {{ type ipv6_addr : verdict; }}
add map inet {t} ports4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
add map inet {t} ports6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
add map inet {t} ports_ip4 {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
add map inet {t} ports_ip6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
add chain inet {t} guard {{ type filter hook prerouting priority -300; }}
add rule inet {t} guard iifname != \"lo\" ip daddr 127.0.0.0/8 drop comment \"route_localnet must not open the host's loopback to others\"
add chain inet {t} hostports
add rule inet {t} hostports dnat ip to ip daddr . meta l4proto . th dport map @ports_ip4
add rule inet {t} hostports dnat ip6 to ip6 daddr . meta l4proto . th dport map @ports_ip6
add rule inet {t} hostports dnat ip to meta l4proto . th dport map @ports4
add rule inet {t} hostports dnat ip6 to meta l4proto . th dport map @ports6
add chain inet {t} prerouting {{ type nat hook prerouting priority -100; }}
add rule inet {t} prerouting fib daddr type local jump hostports
add chain inet {t} output {{ type nat hook output priority -100; }}
add rule inet {t} output fib daddr type local jump hostports
add chain inet {t} postrouting {{ type nat hook postrouting priority 100; }}
add rule inet {t} postrouting ct status dnat ip daddr vmap @snat4
add rule inet {t} postrouting ct status dnat ip6 daddr vmap @snat6
"
    )
}

fn chain_rules(chain: &Chain) -> String {
    let name = chain.name();
    let words = |net: &Cidr| by_family(net.addr, ("ip", "224.0.0.0/4"), ("ip6", "ff00::/8"));
    let (kind, rules) = match chain {
        Chain::Masquerade(net) => {
            let ((ip, multicast), net) = (words(net), net.network());
            let rule = format!("{ip} saddr {net} {ip} daddr != {net} {ip} daddr != {multicast} masquerade");
            (" { type nat hook postrouting priority 100; }", vec![rule])
        }
        Chain::SourceNat(net) => {
            let ((ip, _), net) = (words(net), net.network());
            let mut rules = vec![format!("{ip} saddr {net} masquerade")];
            if net.is_ipv4() {
                rules.push("ip saddr 127.0.0.0/8 masquerade".into());
            }
            ("", rules)
        }
        Chain::SourceNatAll => ("", vec!["masquerade".to_string()]),
    };
    let mut out = format!("create chain inet {TABLE} {name}{kind}\n");
    for rule in rules {
        let _ = writeln!(out, "add rule inet {TABLE} {name} {rule}");
    }
    out
}

/// Makes the table and the chains where they are missing. What `nft` said comes back for the case that it was not
/// "exists already"; whether it worked is seen by trying the elements again.
pub fn install(chains: &HashSet<Chain>) -> Result<String, CniError> {
    let all: String = chains.iter().map(chain_rules).collect();
    let first = nft(&(base() + &all))?;
    if first.is_empty() {
        return Ok(first);
    }
    let mut said = first;
    for chain in chains {
        said.push_str(&nft(&chain_rules(chain))?);
    }
    Ok(said)
}

/// Removes a chain that is there and that nothing jumps to.
pub fn remove_chain(chain: &Chain) -> Result<(), CniError> {
    let name = chain.name();
    match nft(&format!("flush chain inet {TABLE} {name}\ndelete chain inet {TABLE} {name}\n"))? {
        said if said.is_empty() => Ok(()),
        said => Err(CniError::new(code::KERNEL, format!("nft: {said}"))),
    }
}

/// Removes the table with everything in it; one that is not there is no error.
pub fn remove_table() -> Result<(), CniError> {
    // `add` first, so that `delete` finds it.
    match nft(&format!("add table inet {TABLE}\ndelete table inet {TABLE}\n"))? {
        said if said.is_empty() => Ok(()),
        said => Err(CniError::new(code::KERNEL, format!("nft: {said}"))),
    }
}

fn find_nft() -> Result<PathBuf, CniError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A runtime's PATH may lack the administrator's directories.
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from));
    dirs.map(|d| d.join("nft")).find(|p| p.is_file()).ok_or_else(|| {
        CniError::new(
            code::INTERNAL,
            "the program nft is not installed; masquerading and host ports need it (package nftables)",
        )
    })
}

/// Whether `nft` can be found, for STATUS.
pub fn available() -> Result<(), CniError> {
    find_nft().map(drop)
}

/// Runs one transaction; returns what `nft` complained of, empty when it was applied.
fn nft(script: &str) -> Result<String, CniError> {
    let fail = |e: std::io::Error| CniError::caused(code::INTERNAL, "cannot run nft", &e);
    let mut child = Command::new(find_nft()?)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(fail)?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let stderr = child.stderr.take().expect("stderr is piped");
    // A broken pipe shows in nft's own complaint.
    let _ = stdin.write_all(script.as_bytes());
    drop(stdin);
    let (done, finished) = mpsc::channel();
    std::thread::spawn(move || {
        let mut said = Vec::new();
        let _ = stderr.take(64 << 10).read_to_end(&mut said);
        let _ = done.send(String::from_utf8_lossy(&said).trim().to_string());
    });
    let Ok(said) = finished.recv_timeout(LIMIT) else {
        let _ = child.kill();
        let _ = child.wait();
        return Err(CniError::new(
            code::INTERNAL,
            format!("nft did not finish within {} s", LIMIT.as_secs()),
        ));
    };
    let status = child.wait().map_err(fail)?;
    Ok(if status.success() {
        String::new()
    } else if said.is_empty() {
        status.to_string()
    } else {
        said
    })
}
