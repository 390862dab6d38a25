//! Getting addresses for a plugin that makes interfaces: host-local in this process, anything else by its binary.
//!
//! Called by `bridge`. A call within the process saves the fork and exec of a plugin, about a millisecond.

use std::collections::HashSet;

use cni::runtime::{Runtime, run_plugin};
use cni::{Attachment, Cidr, CniError, CniResult, code};
use serde_json::Value;

use crate::host_local::{self, HostLocal};
use crate::skel::{Plugin, Request};

/// The address management a configuration names in `ipam.type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ipam {
    /// No `ipam`: an interface without addresses.
    None,
    HostLocal,
    Other(String),
}

impl Ipam {
    pub fn read(request: &Request) -> Result<Self, CniError> {
        let conf = request.fields();
        let Some(ipam) = conf.object("ipam")? else { return Ok(Ipam::None) };
        Ok(match ipam.text("type")? {
            None => Ipam::None,
            Some("host-local") => Ipam::HostLocal,
            Some(name) if name.contains('/') || name.starts_with('.') => {
                return Err(ipam.invalid("type", format!("{name:?} is not the name of a plugin")));
            }
            Some(name) => Ipam::Other(name.to_string()),
        })
    }

    pub fn add(&self, request: &Request) -> Result<CniResult, CniError> {
        match self {
            Ipam::None => Ok(CniResult::default()),
            Ipam::HostLocal => HostLocal.add(request),
            Ipam::Other(name) => CniResult::from_value(
                &exec(name, request)?,
                request.version,
                &format!("the result of ipam plugin {name}"),
            ),
        }
    }

    pub fn del(&self, request: &Request) -> Result<(), CniError> {
        match self {
            Ipam::None => Ok(()),
            Ipam::HostLocal => HostLocal.del(request),
            Ipam::Other(name) => exec(name, request).map(drop),
        }
    }

    pub fn check(&self, request: &Request) -> Result<(), CniError> {
        match self {
            Ipam::None => Ok(()),
            Ipam::HostLocal => HostLocal.check(request),
            Ipam::Other(name) => exec(name, request).map(drop),
        }
    }

    pub fn gc(&self, request: &Request, valid: &HashSet<(String, String)>) -> Result<(), CniError> {
        match self {
            Ipam::None => Ok(()),
            Ipam::HostLocal => HostLocal.gc(request, valid),
            Ipam::Other(name) => exec(name, request).map(drop),
        }
    }

    pub fn status(&self, request: &Request) -> Result<(), CniError> {
        match self {
            Ipam::None => Ok(()),
            Ipam::HostLocal => HostLocal.status(request),
            Ipam::Other(name) => exec(name, request).map(drop),
        }
    }

    /// The subnets addresses come from, where that can be told without asking for one.
    pub fn subnets(&self, request: &Request) -> Result<Vec<Cidr>, CniError> {
        match self {
            Ipam::HostLocal => host_local::subnets(request),
            _ => Ok(Vec::new()),
        }
    }

    /// Forgets every lease of the network; other plugins' leases are their own business.
    pub fn purge(&self, request: &Request) -> Result<(), CniError> {
        match self {
            Ipam::HostLocal => host_local::purge(request),
            _ => Ok(()),
        }
    }
}

/// Runs another plugin with the same command, environment and configuration.
fn exec(name: &str, request: &Request) -> Result<Value, CniError> {
    let fail = |e: &dyn std::error::Error| CniError::caused(code::INTERNAL, format!("ipam plugin {name}"), e);
    let runtime = Runtime::new(request.path.clone());
    let path = runtime.find(name).map_err(|e| fail(&e))?;
    let attachment = Attachment {
        container_id: request.container_id.clone(),
        netns: request.netns.clone(),
        ifname: request.ifname.clone(),
        args: request.args.clone(),
        ..Attachment::default()
    };
    let per_container = !request.container_id.is_empty();
    let executor =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| fail(&e))?;
    let stdin = Value::Object(request.conf.clone());
    let run = run_plugin(&runtime, &path, &request.command, per_container.then_some(&attachment), &stdin);
    executor.block_on(run).map_err(|e| match e {
        // The code of the plugin that knows: "try again later" must reach the runtime.
        cni::runtime::PluginFailure::Refused(e) => {
            CniError { msg: format!("ipam plugin {name}: {}", e.msg), ..e }
        }
        other => fail(&other),
    })
}
