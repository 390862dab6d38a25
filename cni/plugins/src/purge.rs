//! `purge`: removes every trace of a network from this host.
//!
//! Called by people and by `hack/down` when the network's containers are gone. What belongs to other networks stays.

use std::path::Path;

use anyhow::{Context, bail};
use cni::{CniArgs, CniError, NetConfList};
use serde_json::Map;

use crate::skel::Request;
use crate::{bridge, nft, portmap};

pub fn purge(file: &Path) -> anyhow::Result<()> {
    let text = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let list = NetConfList::parse(&text).with_context(|| format!("{}", file.display()))?;
    let mut failures: Vec<String> = Vec::new();
    for plugin in &list.plugins {
        let stdin = plugin.stdin(&list, None, &Map::new());
        let request = Request {
            version: list.version,
            network: list.name.clone(),
            container_id: String::new(),
            ifname: String::new(),
            netns: None,
            args: CniArgs::default(),
            path: Vec::new(),
            conf: stdin.as_object().cloned().unwrap_or_default(),
            command: "GC".into(),
        };
        let done: Result<(), CniError> = match plugin.kind.as_str() {
            "bridge" => bridge::purge(&request),
            "portmap" => portmap::purge(&request),
            _ => Ok(()),
        };
        failures.extend(done.err().map(|e| format!("{}: {e}", plugin.kind)));
    }
    if nft::available().is_ok() {
        // The rules are shared; the last network takes them along.
        failures.extend(nft::remove_table_if_unused().err().map(|e| e.to_string()));
    }
    if !failures.is_empty() {
        bail!("network {}: {}", list.name, failures.join("; "));
    }
    Ok(())
}
