//! The plugin `loopback`: sets `lo` up in the container.
//!
//! Called by containerd before the networks of its configuration directory. DEL does nothing: the interface is part
//! of the namespace and goes with it.

use std::collections::HashSet;

use cni::netlink::{LinkChange, Netlink, NetlinkError};
use cni::netns::{Netns, NetnsError};
use cni::{Cidr, CniError, CniResult, Interface, IpConfig, code};

use crate::skel::{Plugin, Request};

/// The plugin.
#[derive(Debug)]
pub struct Loopback;

const LO: &str = "lo";

fn kernel(e: NetlinkError) -> CniError {
    CniError::caused(code::KERNEL, "the kernel refused", &e)
}

fn no_namespace(e: NetnsError) -> CniError {
    let code = if e.is_gone() { code::UNKNOWN_CONTAINER } else { code::KERNEL };
    CniError::new(code, e.to_string())
}

/// Runs `f` with a netlink socket inside the container, on a thread of its own.
fn inside<T: Send>(
    request: &Request,
    f: impl FnOnce(&Netlink) -> Result<T, CniError> + Send,
) -> Result<T, CniError> {
    let netns = Netns::open(request.netns()?).map_err(no_namespace)?;
    netns.run(|| f(&Netlink::open().map_err(kernel)?)).map_err(no_namespace)?
}

impl Plugin for Loopback {
    fn add(&self, request: &Request) -> Result<CniResult, CniError> {
        let addresses: Vec<Cidr> = inside(request, |netlink| {
            let lo = netlink
                .link(LO)
                .map_err(kernel)?
                .ok_or_else(|| CniError::new(code::KERNEL, "the namespace has no link lo"))?;
            if !lo.up {
                netlink
                    .change_link(lo.index, &LinkChange { up: Some(true), ..LinkChange::default() })
                    .map_err(kernel)?;
            }
            netlink.addresses(lo.index).map_err(kernel)
        })?;
        if let Some(prev) = request.prev_result()? {
            return Ok(prev);
        }
        let interface = Interface {
            name: LO.into(),
            mac: "00:00:00:00:00:00".into(),
            sandbox: request.netns()?.display().to_string(),
            ..Interface::default()
        };
        let loopbacks = addresses.into_iter().filter(|a| a.addr.is_loopback());
        Ok(CniResult {
            interfaces: vec![interface],
            ips: loopbacks.map(|address| IpConfig { interface: Some(0), address, gateway: None }).collect(),
            ..CniResult::default()
        })
    }

    fn del(&self, _: &Request) -> Result<(), CniError> {
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), CniError> {
        match inside(request, |netlink| netlink.link(LO).map_err(kernel))? {
            Some(lo) if lo.up => Ok(()),
            _ => Err(CniError::new(code::CHECK_FAILED, "lo is not up in the container")),
        }
    }

    fn gc(&self, _: &Request, _: &HashSet<(String, String)>) -> Result<(), CniError> {
        Ok(())
    }

    fn status(&self, _: &Request) -> Result<(), CniError> {
        Ok(())
    }
}
