//! The configuration of `portmap`: the mappings a runtime hands over, and the plugin's own settings.

use std::net::IpAddr;

use cni::nfnetlink::Protocol;
use cni::{CniError, code};

use crate::fields::Fields;
use crate::skel::Request;

/// A port of the host that leads to one of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Protocol,
    /// Only on this address of the host; `None` is every address.
    pub host_ip: Option<IpAddr>,
    /// `Some(true)` for IPv4 only, `Some(false)` for IPv6 only.
    pub only_ipv4: Option<bool>,
}

/// What `portmap` needs to know.
#[derive(Debug)]
pub struct PortmapConf {
    pub mappings: Vec<Mapping>,
    /// Make the host's loopback and the container's own subnet reach its host ports.
    pub snat: bool,
    /// Masquerade every connection through a host port.
    pub masq_all: bool,
}

/// More mappings than this for one container are an error, not a wish.
const MAX_MAPPINGS: usize = 1024;

impl PortmapConf {
    pub fn read(request: &Request) -> Result<Self, CniError> {
        let conf = request.fields();
        conf.refuse("conditionsV4", "rules of one's own are not implemented")?;
        conf.refuse("conditionsV6", "rules of one's own are not implemented")?;
        conf.refuse("externalSetMarkChain", "packets are masqueraded without marks")?;
        match conf.text("backend")? {
            None | Some("nftables") => {}
            Some("iptables") => {
                let problem = "\"iptables\" is not supported: host ports are done by nftables";
                return Err(CniError { code: code::UNSUPPORTED_FIELD, ..conf.invalid("backend", problem) });
            }
            Some(other) => return Err(conf.invalid("backend", format!("{other:?} is not \"nftables\""))),
        }
        // 13 is the reference plugin's default: a file that spells it out wishes nothing special.
        if let Some(bit) = conf.number("markMasqBit", 0..=31)?.filter(|bit| *bit != 13) {
            let problem = format!("{bit} is not supported: packets are masqueraded without marks");
            return Err(CniError { code: code::UNSUPPORTED_FIELD, ..conf.invalid("markMasqBit", problem) });
        }
        let mappings = match conf.object("runtimeConfig")? {
            Some(runtime) => {
                runtime.objects("portMappings")?.iter().map(mapping).collect::<Result<Vec<_>, _>>()?
            }
            None => Vec::new(),
        };
        if mappings.len() > MAX_MAPPINGS {
            return Err(
                conf.invalid("runtimeConfig.portMappings", format!("has more than {MAX_MAPPINGS} entries"))
            );
        }
        Ok(PortmapConf {
            mappings,
            snat: conf.maybe_flag("snat")?.unwrap_or(true),
            masq_all: conf.flag("masqAll")?,
        })
    }
}

fn mapping(fields: &Fields<'_>) -> Result<Mapping, CniError> {
    let port = |name: &str| -> Result<u16, CniError> {
        let port = fields.number(name, 1..=65_535)?.ok_or_else(|| fields.invalid(name, "is missing"))?;
        Ok(u16::try_from(port).expect("the range was checked"))
    };
    let protocol = match fields.text("protocol")?.unwrap_or("tcp").to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => return Err(fields.invalid("protocol", format!("{other:?} is not tcp, udp or sctp"))),
    };
    let host_ip: Option<IpAddr> = fields.parsed("hostIP", "an IP address")?;
    Ok(Mapping {
        host_port: port("hostPort")?,
        container_port: port("containerPort")?,
        protocol,
        host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
        only_ipv4: host_ip.map(|ip| ip.is_ipv4()),
    })
}
