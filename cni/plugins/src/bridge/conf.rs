//! The configuration of `bridge`: the reference plugin's fields, what of them is done and what is refused.

use cni::netlink::Mac;
use cni::{CniError, Dns, code};

use crate::ipam::Ipam;
use crate::skel::Request;

/// What `bridge` needs to know.
#[derive(Debug)]
pub struct BridgeConf {
    /// The bridge's interface name.
    pub bridge: String,
    /// The bridge gets the gateway's address, and the host forwards.
    pub is_gateway: bool,
    /// The container gets default routes through it.
    pub is_default_gateway: bool,
    /// Replace another address that the bridge has.
    pub force_address: bool,
    pub ip_masq: bool,
    pub mtu: Option<u32>,
    pub hairpin: bool,
    pub promisc: bool,
    /// Ports cannot reach one another, only the host.
    pub isolated: bool,
    /// IPv6 duplicate address detection in the container.
    pub enable_dad: bool,
    /// A hardware address asked for by the runtime, for the container's end.
    pub mac: Option<Mac>,
    pub dns: Option<Dns>,
    pub ipam: Ipam,
}

impl BridgeConf {
    pub fn read(request: &Request) -> Result<Self, CniError> {
        let conf = request.fields();
        conf.refuse("vlan", "VLAN filtering is not implemented")?;
        conf.refuse("vlanTrunk", "VLAN filtering is not implemented")?;
        conf.refuse("macspoofchk", "filtering of hardware addresses is not implemented")?;
        conf.refuse("disableContainerInterface", "the container's interface is always set up")?;
        if let Some(backend @ "iptables") = conf.text("ipMasqBackend")? {
            let problem = format!("{backend:?} is not supported: masquerading is done by nftables");
            return Err(CniError { code: code::UNSUPPORTED_FIELD, ..conf.invalid("ipMasqBackend", problem) });
        }
        match conf.text("ipMasqBackend")? {
            None | Some("nftables") => {}
            Some(other) => {
                return Err(conf.invalid("ipMasqBackend", format!("{other:?} is not \"nftables\"")));
            }
        }
        let bridge = conf.text("bridge")?.unwrap_or("cni0").to_string();
        cni::args::check_ifname("field bridge", &bridge, code::INVALID_NETWORK_CONFIG)?;
        let is_default_gateway = conf.flag("isDefaultGateway")?;
        let out = BridgeConf {
            bridge,
            is_gateway: conf.flag("isGateway")? || is_default_gateway,
            is_default_gateway,
            force_address: conf.flag("forceAddress")?,
            ip_masq: conf.flag("ipMasq")?,
            // 68 is the least an IPv4 link may have; 0 means the kernel's default.
            mtu: conf.number("mtu", 0..=65_535)?.filter(|mtu| *mtu != 0),
            hairpin: conf.flag("hairpinMode")?,
            promisc: conf.flag("promiscMode")?,
            isolated: conf.flag("portIsolation")?,
            enable_dad: conf.flag("enabledad")?,
            mac: mac(request)?,
            dns: dns(request)?,
            ipam: Ipam::read(request)?,
        };
        if let Some(mtu) = out.mtu
            && mtu < 68
        {
            return Err(conf.invalid("mtu", format!("{mtu} is below 68, the least of IPv4")));
        }
        if out.hairpin && out.promisc {
            return Err(conf.invalid("promiscMode", "excludes hairpinMode"));
        }
        Ok(out)
    }
}

/// `runtimeConfig.mac` before `args.cni.mac` before CNI_ARGS MAC.
fn mac(request: &Request) -> Result<Option<Mac>, CniError> {
    const WANTED: &str = "a unicast hardware address such as 02:00:00:00:00:01";
    let conf = request.fields();
    if let Some(runtime) = conf.object("runtimeConfig")?
        && let Some(mac) = runtime.parsed("mac", WANTED)?
    {
        return Ok(Some(mac));
    }
    if let Some(args) = conf.object("args")?.map(|a| a.object("cni")).transpose()?.flatten()
        && let Some(mac) = args.parsed("mac", WANTED)?
    {
        return Ok(Some(mac));
    }
    match request.args.get("MAC") {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|e| CniError::new(code::INVALID_ENVIRONMENT, format!("CNI_ARGS MAC: {e}"))),
    }
}

fn dns(request: &Request) -> Result<Option<Dns>, CniError> {
    let conf = request.fields();
    let Some(dns) = conf.object("dns")? else { return Ok(None) };
    let texts = |name| Ok::<_, CniError>(dns.texts(name)?.into_iter().map(str::to_string).collect());
    let dns = Dns {
        nameservers: texts("nameservers")?,
        domain: dns.text("domain")?.unwrap_or_default().to_string(),
        search: texts("search")?,
        options: texts("options")?,
    };
    Ok((!dns.is_empty()).then_some(dns))
}
