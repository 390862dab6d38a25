//! The result of ADD, and its conversion between the versions of the specification.
//!
//! The model is that of 1.1.0. Reading accepts every supported version; writing drops what the asked version
//! does not know and adds what it wants (`ips[].version`). It must never lose an address or a route.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::cidr::Cidr;
use crate::error::{CniError, code};
use crate::version::Version;

/// What ADD made: interfaces, addresses, routes, name service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CniResult {
    pub interfaces: Vec<Interface>,
    pub ips: Vec<IpConfig>,
    pub routes: Vec<Route>,
    pub dns: Dns,
}

/// A network interface, in the container (then `sandbox` is the path of its namespace) or on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Interface {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Since 1.1.0; 0 when not said.
    #[serde(skip_serializing_if = "is_zero")]
    pub mtu: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Since 1.1.0.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// Since 1.1.0.
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address that was given to the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Index into `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<u32>,
    pub address: Cidr,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route to install in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub dst: Cidr,
    /// Next hop; `None` means the gateway of the address of the same family.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub gw: Option<IpAddr>,
    /// This and the following exist since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A route with nothing but a destination and a next hop.
    pub fn new(dst: Cidr, gw: Option<IpAddr>) -> Self {
        Route { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// Name service settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// Some plugins write an absent gateway as an empty string.
fn empty_is_none<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(d)?.as_deref() {
        None | Some("") => Ok(None),
        Some(s) => {
            s.parse().map(Some).map_err(|_| serde::de::Error::custom(format!("{s:?} is not an IP address")))
        }
    }
}

impl CniResult {
    /// Reads a result of any supported version. `fallback` is the version of the network, used where the result
    /// carries none. `what` names the object in errors ("prevResult", "the result of plugin bridge").
    pub fn from_value(value: &Value, fallback: Version, what: &str) -> Result<Self, CniError> {
        let version = match value.get("cniVersion") {
            None => fallback,
            Some(Value::String(s)) if s.is_empty() => fallback,
            Some(Value::String(s)) => s.parse().map_err(|e: crate::version::UnknownVersion| {
                CniError::new(code::INCOMPATIBLE_VERSION, format!("{what}: {e}"))
            })?,
            Some(other) => {
                return Err(CniError::new(
                    code::DECODING_FAILURE,
                    format!("{what}: cniVersion is {other}, not a text"),
                ));
            }
        };
        let mut value = value.clone();
        if let Some(map) = value.as_object_mut() {
            // A Go program writes an empty list as null.
            map.retain(|_, v| !v.is_null());
        }
        let result: CniResult = serde_json::from_value(value).map_err(|e| {
            CniError::new(code::DECODING_FAILURE, format!("{what} (cniVersion {version}): {e}"))
        })?;
        result.check(what)?;
        Ok(result)
    }

    fn check(&self, what: &str) -> Result<(), CniError> {
        for (i, ip) in self.ips.iter().enumerate() {
            if let Some(index) = ip.interface
                && index as usize >= self.interfaces.len()
            {
                return Err(CniError::new(
                    code::DECODING_FAILURE,
                    format!(
                        "{what}: ips[{i}].interface is {index}, but there are {} interfaces",
                        self.interfaces.len()
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Writes the result in the form of `version`.
    pub fn to_value(&self, version: Version) -> Value {
        let mut out = Map::new();
        out.insert("cniVersion".into(), version.as_str().into());
        let list = |v: Result<Value, serde_json::Error>| v.expect("plain data always becomes JSON");
        if !self.interfaces.is_empty() {
            let mut interfaces = list(serde_json::to_value(&self.interfaces));
            if version < Version::V1_1_0 {
                strip(&mut interfaces, &["mtu", "socketPath", "pciID"]);
            }
            out.insert("interfaces".into(), interfaces);
        }
        if !self.ips.is_empty() {
            let mut ips = list(serde_json::to_value(&self.ips));
            if version.has_ip_version_field() {
                for (value, ip) in ips.as_array_mut().into_iter().flatten().zip(&self.ips) {
                    value["version"] = json!(if ip.address.is_ipv4() { "4" } else { "6" });
                }
            }
            out.insert("ips".into(), ips);
        }
        if !self.routes.is_empty() {
            let mut routes = list(serde_json::to_value(&self.routes));
            if version < Version::V1_1_0 {
                strip(&mut routes, &["mtu", "advmss", "priority", "table", "scope"]);
            }
            out.insert("routes".into(), routes);
        }
        out.insert("dns".into(), list(serde_json::to_value(&self.dns)));
        Value::Object(out)
    }

    /// The addresses that are in a container: those whose interface has a sandbox, or that name no interface.
    pub fn container_ips(&self) -> impl Iterator<Item = &IpConfig> {
        self.ips.iter().filter(|ip| match ip.interface {
            None => true,
            Some(i) => self.interfaces.get(i as usize).is_none_or(|i| !i.sandbox.is_empty()),
        })
    }
}

fn strip(list: &mut Value, fields: &[&str]) {
    for object in list.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        for field in fields {
            object.remove(*field);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> CniResult {
        CniResult {
            interfaces: vec![
                Interface { name: "stvd0".into(), mac: "02:00:00:00:00:01".into(), ..Default::default() },
                Interface {
                    name: "eth0".into(),
                    mtu: 1400,
                    sandbox: "/run/netns/a".into(),
                    pci_id: "0000:00:1f.6".into(),
                    ..Default::default()
                },
            ],
            ips: vec![
                IpConfig {
                    interface: Some(1),
                    address: "10.88.0.5/16".parse().unwrap(),
                    gateway: Some("10.88.0.1".parse().unwrap()),
                },
                IpConfig { interface: Some(1), address: "fd00::5/64".parse().unwrap(), gateway: None },
            ],
            routes: vec![Route {
                mtu: Some(1300),
                priority: Some(7),
                ..Route::new("0.0.0.0/0".parse().unwrap(), None)
            }],
            dns: Dns { nameservers: vec!["10.96.0.10".into()], ..Default::default() },
        }
    }

    #[test]
    fn the_newest_version_keeps_every_field() {
        let value = full().to_value(Version::V1_1_0);
        assert_eq!(CniResult::from_value(&value, Version::V1_0_0, "r").unwrap(), full());
    }

    #[test]
    fn older_versions_lose_only_what_they_cannot_say() {
        let mut expected = full();
        expected.interfaces[1].mtu = 0;
        expected.interfaces[1].pci_id.clear();
        expected.routes[0].mtu = None;
        expected.routes[0].priority = None;
        for v in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0, Version::V1_0_0] {
            let value = full().to_value(v);
            assert_eq!(value["cniVersion"], v.as_str());
            assert_eq!(CniResult::from_value(&value, v, "r").unwrap(), expected, "{v}");
            let families: Vec<_> =
                value["ips"].as_array().unwrap().iter().map(|ip| ip.get("version")).collect();
            if v < Version::V1_0_0 {
                assert_eq!(families, [Some(&json!("4")), Some(&json!("6"))]);
            } else {
                assert_eq!(families, [None, None]);
            }
        }
    }

    #[test]
    fn nulls_and_empty_gateways_of_other_programs_are_read() {
        let v = json!({"cniVersion": "0.4.0", "interfaces": null, "routes": null,
            "ips": [{"version": "4", "address": "10.1.2.3/24", "gateway": ""}], "dns": {}});
        let r = CniResult::from_value(&v, Version::V1_0_0, "prevResult").unwrap();
        assert_eq!(r.ips[0].gateway, None);
    }

    #[test]
    fn a_bad_result_names_the_object_and_the_field() {
        let v = json!({"ips": [{"address": "10.1.2.3/24", "interface": 3}]});
        let err = CniResult::from_value(&v, Version::V1_0_0, "prevResult").unwrap_err();
        assert!(err.msg.contains("prevResult") && err.msg.contains("ips[0].interface is 3"), "{err}");
        let v = json!({"ips": [{"address": "10.1.2.3"}]});
        let err = CniResult::from_value(&v, Version::V1_0_0, "prevResult").unwrap_err();
        assert!(err.msg.contains("10.1.2.3"), "{err}");
    }
}
