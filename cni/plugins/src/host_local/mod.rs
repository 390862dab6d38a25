//! The IPAM plugin `host-local`: addresses from ranges, kept as files on this host.
//!
//! Called by runtimes' chains through other plugins' `ipam.type`, and in the same process by our `bridge`. It never
//! touches the network: only its data directory.

mod conf;
mod range;
mod store;

use std::collections::HashSet;
use std::net::IpAddr;

use cni::{Cidr, CniError, CniResult, IpConfig, code};

use crate::skel::{Plugin, Request};
use conf::{IpamConf, Requested};
use store::{Lease, Store};

/// The plugin.
#[derive(Debug)]
pub struct HostLocal;

impl Plugin for HostLocal {
    fn add(&self, request: &Request) -> Result<CniResult, CniError> {
        let conf = IpamConf::read(request)?;
        let store = Store::open(&conf.data_dir, &request.network)?;
        let lease = Lease { container_id: request.container_id.clone(), ifname: request.ifname.clone() };
        let dns = conf.dns()?;
        let mut requested = conf.requested.clone();
        let mut result = CniResult { routes: conf.routes.clone(), dns, ..CniResult::default() };
        for (index, set) in conf.ranges.iter().enumerate() {
            match allocate(&store, &lease, index, set, &mut requested) {
                Ok(ip) => result.ips.push(ip),
                Err(e) => {
                    give_back(&store, &result.ips);
                    return Err(e);
                }
            }
        }
        if let Some(left) = requested.first() {
            give_back(&store, &result.ips);
            return Err(CniError::new(
                code::INVALID_NETWORK_CONFIG,
                format!(
                    "{}: address {} is in no range of network {}",
                    left.source, left.addr, request.network
                ),
            ));
        }
        Ok(result)
    }

    fn del(&self, request: &Request) -> Result<(), CniError> {
        let Some(store) = Store::open_existing(&conf::data_dir(request)?, &request.network)? else {
            return Ok(());
        };
        store.release(|lease| lease.is_of(&request.container_id, &request.ifname))
    }

    fn check(&self, request: &Request) -> Result<(), CniError> {
        let held = match Store::open_existing(&conf::data_dir(request)?, &request.network)? {
            Some(store) => store.held_by(&request.container_id, &request.ifname)?,
            None => Vec::new(),
        };
        if held.is_empty() {
            return Err(CniError::new(
                code::CHECK_FAILED,
                format!("container {} holds no address of network {}", request.container_id, request.network),
            ));
        }
        Ok(())
    }

    fn gc(&self, request: &Request, valid: &HashSet<(String, String)>) -> Result<(), CniError> {
        let Some(store) = Store::open_existing(&conf::data_dir(request)?, &request.network)? else {
            return Ok(());
        };
        store.release(|lease| !valid.iter().any(|(id, ifname)| lease.is_of(id, ifname)))
    }

    fn status(&self, request: &Request) -> Result<(), CniError> {
        let conf = IpamConf::read(request)?;
        Store::open(&conf.data_dir, &request.network)
            .map(drop)
            .map_err(|e| CniError { code: code::PLUGIN_NOT_AVAILABLE, ..e })
    }
}

/// Removes the network's whole directory of leases.
pub fn purge(request: &Request) -> Result<(), CniError> {
    match Store::open_existing(&conf::data_dir(request)?, &request.network)? {
        Some(store) => store.remove_all(),
        None => Ok(()),
    }
}

/// The subnets of the ranges.
pub fn subnets(request: &Request) -> Result<Vec<Cidr>, CniError> {
    let conf = IpamConf::read(request)?;
    Ok(conf.ranges.iter().flat_map(|set| &set.0).map(|range| range.subnet).collect())
}

/// One address of one range set.
fn allocate(
    store: &Store,
    lease: &Lease,
    index: usize,
    set: &range::RangeSet,
    requested: &mut Vec<Requested>,
) -> Result<IpConfig, CniError> {
    let wanted = requested.iter().position(|r| set.find(r.addr).is_some());
    let (addr, range) = match wanted {
        Some(i) => {
            let wish = requested.remove(i);
            let range = set.find(wish.addr).expect("the position was found by it");
            if !range.usable(wish.addr) {
                return Err(CniError::new(
                    code::INVALID_NETWORK_CONFIG,
                    format!(
                        "{}: address {} is the gateway, network or broadcast address",
                        wish.source, wish.addr
                    ),
                ));
            }
            store.take(wish.addr, lease)?;
            (wish.addr, range)
        }
        None => store.take_next(set, index, lease)?,
    };
    Ok(IpConfig {
        interface: None,
        address: Cidr { addr, prefix: range.subnet.prefix },
        gateway: Some(range.gateway),
    })
}

/// Undoes the allocations of a call that fails; what stays is found by DEL.
fn give_back(store: &Store, ips: &[IpConfig]) {
    let addrs: HashSet<IpAddr> = ips.iter().map(|ip| ip.address.addr).collect();
    if let Err(e) = store.release_addrs(&addrs) {
        crate::skel::note(&format!("giving back addresses: {e}"));
    }
}
