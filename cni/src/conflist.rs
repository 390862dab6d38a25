//! The network configuration a node gets by default: bridge with host-local addresses, then portmap.
//!
//! Rendered by `hack/up` and, where it owns the node's network, by the agent; read by containerd 1.6, 1.7, 2.x and
//! CRI-O, which is why it says `cniVersion` 1.0.0: the newest that all of them know.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::cidr::Cidr;

/// What differs from node to node. [`Default`] gives the network of a single machine.
#[derive(Debug, Clone)]
pub struct ConflistParams {
    /// The network's name; leases live in `<data_dir>/<name>`.
    pub name: String,
    /// The bridge's interface name, at most 15 bytes.
    pub bridge: String,
    /// Pod subnets, one or two, of distinct families.
    pub subnets: Vec<Cidr>,
    /// MTU of bridge and pods; `None` leaves the kernel's 1500.
    pub mtu: Option<u32>,
    /// Where host-local keeps leases; `None` is its default, `/var/lib/cni/networks`.
    pub data_dir: Option<PathBuf>,
}

impl Default for ConflistParams {
    fn default() -> Self {
        ConflistParams {
            name: "stevedore".into(),
            bridge: "stvd0".into(),
            subnets: vec!["10.88.0.0/16".parse().expect("a literal subnet")],
            mtu: None,
            data_dir: None,
        }
    }
}

/// The text of a `.conflist` file, with a newline at its end.
pub fn default_conflist(params: &ConflistParams) -> String {
    let ranges: Vec<Value> = params.subnets.iter().map(|s| json!([{ "subnet": s.network() }])).collect();
    let routes: Vec<Value> =
        params.subnets.iter().map(|s| json!({ "dst": Cidr::default_route(s.addr) })).collect();
    let mut ipam = json!({ "type": "host-local", "ranges": ranges, "routes": routes });
    if let Some(dir) = &params.data_dir {
        ipam["dataDir"] = json!(dir);
    }
    let mut bridge = json!({
        "type": "bridge",
        "bridge": params.bridge,
        "isGateway": true,
        "ipMasq": true,
        "ipMasqBackend": "nftables",
        "hairpinMode": true,
        "ipam": ipam,
    });
    if let Some(mtu) = params.mtu {
        bridge["mtu"] = json!(mtu);
    }
    let list = json!({
        "cniVersion": "1.0.0",
        "name": params.name,
        "plugins": [bridge, { "type": "portmap", "backend": "nftables", "capabilities": { "portMappings": true } }],
    });
    let mut text = serde_json::to_string_pretty(&list).expect("plain data always becomes JSON");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::NetConfList;

    #[test]
    fn the_default_network_is_a_valid_list_for_both_families() {
        let params = ConflistParams {
            subnets: vec!["10.88.0.0/16".parse().unwrap(), "fd00:88::/64".parse().unwrap()],
            mtu: Some(1400),
            ..Default::default()
        };
        let list = NetConfList::parse(default_conflist(&params).as_bytes()).unwrap();
        assert_eq!(list.name, "stevedore");
        assert_eq!(list.version, crate::Version::V1_0_0);
        let bridge = &list.plugins[0].raw;
        assert_eq!(bridge["ipam"]["ranges"][1][0]["subnet"], "fd00:88::/64");
        assert_eq!(bridge["ipam"]["routes"][1]["dst"], "::/0");
        assert_eq!(bridge["mtu"], 1400);
        assert_eq!(list.plugins[1].kind, "portmap");
        assert!(list.plugins[1].capabilities["portMappings"]);
    }
}
