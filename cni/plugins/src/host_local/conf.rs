//! The `ipam` object of a configuration: ranges, routes, where leases live, which addresses are asked for.

use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;

use cni::{Cidr, CniError, Dns, Route, code};

use super::range::{Range, RangeSet};
use crate::fields::Fields;
use crate::skel::Request;

/// Where leases live when the configuration does not say.
pub const DATA_DIR: &str = "/var/lib/cni/networks";

/// An address that a caller wants and no other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requested {
    pub addr: IpAddr,
    /// Who asked, for errors: "CNI_ARGS IP", "field runtimeConfig.ips".
    pub source: &'static str,
}

/// What host-local needs to know.
#[derive(Debug, Clone)]
pub struct IpamConf {
    /// One address is given from each set.
    pub ranges: Vec<RangeSet>,
    pub routes: Vec<Route>,
    pub data_dir: PathBuf,
    resolv_conf: Option<PathBuf>,
    pub requested: Vec<Requested>,
}

impl IpamConf {
    pub fn read(request: &Request) -> Result<Self, CniError> {
        let conf = request.fields();
        let ipam = conf.object("ipam")?.ok_or_else(|| conf.invalid("ipam", "is missing"))?;
        let runtime = conf.object("runtimeConfig")?;
        let ranges = ranges(&ipam, runtime.as_ref())?;
        Ok(IpamConf {
            ranges,
            routes: routes(&ipam)?,
            data_dir: data_dir(request)?,
            resolv_conf: ipam.text("resolvConf")?.map(PathBuf::from),
            requested: requested(request, &conf, runtime.as_ref())?,
        })
    }

    /// Name service settings from the file the configuration names, in resolv.conf's format.
    pub fn dns(&self) -> Result<Dns, CniError> {
        let mut dns = Dns::default();
        let Some(path) = &self.resolv_conf else { return Ok(dns) };
        let mut text = String::new();
        std::fs::File::open(path).and_then(|f| f.take(1 << 20).read_to_string(&mut text)).map_err(|e| {
            CniError::caused(
                code::IO_FAILURE,
                format!("field ipam.resolvConf: cannot read {}", path.display()),
                &e,
            )
        })?;
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_string);
            match words.next().as_deref() {
                Some("nameserver") => dns.nameservers.extend(words.next()),
                Some("domain") => dns.domain = words.next().unwrap_or_default(),
                Some("search") => dns.search = words.collect(),
                Some("options") => dns.options.extend(words),
                _ => {}
            }
        }
        Ok(dns)
    }
}

/// Where the network's leases live: all that commands which only clean up need, so that they work even when the
/// rest of the configuration has become wrong.
pub fn data_dir(request: &Request) -> Result<PathBuf, CniError> {
    let ipam = request.fields().object("ipam")?;
    let dir = ipam.map(|ipam| ipam.text("dataDir")).transpose()?.flatten();
    Ok(dir.unwrap_or(DATA_DIR).into())
}

fn range(fields: &Fields<'_>) -> Result<Range, CniError> {
    let addr = |name| fields.parsed::<IpAddr>(name, "an IP address");
    let subnet: Cidr = fields
        .parsed("subnet", "a subnet such as 10.88.0.0/16")?
        .ok_or_else(|| fields.invalid("subnet", "is missing"))?;
    Range::new(subnet, addr("rangeStart")?, addr("rangeEnd")?, addr("gateway")?)
        .map_err(|(field, problem)| fields.invalid(field, problem))
}

/// `runtimeConfig.ipRanges` first, then the older form of one range directly in `ipam`, then `ipam.ranges`.
fn ranges(ipam: &Fields<'_>, runtime: Option<&Fields<'_>>) -> Result<Vec<RangeSet>, CniError> {
    let mut lists: Vec<Vec<Fields<'_>>> = Vec::new();
    if let Some(runtime) = runtime {
        lists.extend(runtime.object_lists("ipRanges")?);
    }
    if ipam.text("subnet")?.is_some() {
        lists.push(vec![ipam.clone()]);
    }
    lists.extend(ipam.object_lists("ranges")?);
    let mut sets: Vec<RangeSet> = Vec::new();
    for (i, list) in lists.iter().enumerate() {
        let mut set = RangeSet::default();
        for fields in list {
            let new = range(fields)?;
            if set.0.first().is_some_and(|r| r.subnet.is_ipv4() != new.subnet.is_ipv4()) {
                return Err(
                    fields.invalid("subnet", format!("{} mixes address families in one set", new.subnet))
                );
            }
            if let Some(old) = sets.iter().flat_map(|s| &s.0).chain(&set.0).find(|old| old.overlaps(&new)) {
                return Err(fields.invalid(
                    "subnet",
                    format!("{}-{} overlaps {}-{}", new.start, new.end, old.start, old.end),
                ));
            }
            set.0.push(new);
        }
        if set.0.is_empty() {
            return Err(ipam.invalid(&format!("ranges[{i}]"), "lists no range"));
        }
        sets.push(set);
    }
    if sets.is_empty() {
        return Err(ipam.invalid("ranges", "lists no range"));
    }
    Ok(sets)
}

fn routes(ipam: &Fields<'_>) -> Result<Vec<Route>, CniError> {
    let mut routes = Vec::new();
    for fields in ipam.objects("routes")? {
        let dst: Cidr = fields
            .parsed("dst", "a destination such as 0.0.0.0/0")?
            .ok_or_else(|| fields.invalid("dst", "is missing"))?;
        let gw: Option<IpAddr> = fields.parsed("gw", "an IP address")?;
        if gw.is_some_and(|gw| gw.is_ipv4() != dst.is_ipv4()) {
            return Err(fields.invalid("gw", format!("is of another family than dst {dst}")));
        }
        let number = |name| fields.number(name, 0..=u32::MAX);
        routes.push(Route {
            dst,
            gw,
            mtu: number("mtu")?,
            advmss: number("advmss")?,
            priority: number("priority")?,
            table: number("table")?,
            scope: fields.number("scope", 0..=255)?.map(|n| n as u8),
        });
    }
    Ok(routes)
}

fn requested(
    request: &Request,
    conf: &Fields<'_>,
    runtime: Option<&Fields<'_>>,
) -> Result<Vec<Requested>, CniError> {
    let mut texts: Vec<(&'static str, String)> = Vec::new();
    if let Some(ip) = request.args.get("IP").filter(|ip| !ip.is_empty()) {
        texts.extend(ip.split(',').map(|ip| ("CNI_ARGS IP", ip.to_string())));
    }
    if let Some(cni) = conf.object("args")?.map(|a| a.object("cni")).transpose()?.flatten() {
        texts.extend(cni.texts("ips")?.into_iter().map(|ip| ("field args.cni.ips", ip.to_string())));
    }
    if let Some(runtime) = runtime {
        texts.extend(runtime.texts("ips")?.into_iter().map(|ip| ("field runtimeConfig.ips", ip.to_string())));
    }
    let mut out: Vec<Requested> = Vec::new();
    for (source, text) in texts {
        let addr = text.split('/').next().unwrap_or_default().trim();
        let addr: IpAddr = addr.parse().map_err(|_| {
            CniError::new(code::INVALID_NETWORK_CONFIG, format!("{source}: {text:?} is not an IP address"))
        })?;
        if !out.iter().any(|r| r.addr == addr) {
            out.push(Requested { addr, source });
        }
    }
    Ok(out)
}
