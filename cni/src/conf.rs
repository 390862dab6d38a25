//! Network configurations: a plugin's (`NetConf`), and the list a runtime loads (`NetConfList`).
//!
//! The runtime side reads lists from files; plugins get one `NetConf` on standard input. Both keep the raw JSON,
//! so that fields this crate does not know reach the plugin unchanged.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::args::check_name;
use crate::error::code;
use crate::version::{UnknownVersion, Version};

/// Why a configuration cannot be used. Every message names the field and the value.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("field {field}: {problem}")]
    Field { field: String, problem: String },
    #[error(transparent)]
    Version(#[from] UnknownVersion),
}

fn field(field: impl Into<String>, problem: impl Into<String>) -> ConfError {
    ConfError::Field { field: field.into(), problem: problem.into() }
}

/// The configuration of one plugin.
#[derive(Debug, Clone, PartialEq)]
pub struct NetConf {
    /// The plugin's name: the file name of its binary.
    pub kind: String,
    /// Names of the runtime arguments the plugin wants.
    pub capabilities: BTreeMap<String, bool>,
    /// Everything, as written.
    pub raw: Map<String, Value>,
}

impl NetConf {
    fn from_value(value: &Value, path: &str) -> Result<Self, ConfError> {
        let raw = value.as_object().ok_or_else(|| field(path, "is not an object"))?.clone();
        let at = |name: &str| if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
        let kind = match raw.get("type") {
            Some(Value::String(s)) if !s.is_empty() && !s.contains('/') && s != "." && s != ".." => s.clone(),
            Some(other) => return Err(field(at("type"), format!("{other} is not the name of a plugin"))),
            None => return Err(field(at("type"), "is missing")),
        };
        let mut capabilities = BTreeMap::new();
        match raw.get("capabilities") {
            None | Some(Value::Null) => {}
            Some(Value::Object(map)) => {
                for (name, on) in map {
                    let on = on.as_bool().ok_or_else(|| {
                        field(at("capabilities"), format!("{name:?} is {on}, not true or false"))
                    })?;
                    capabilities.insert(name.clone(), on);
                }
            }
            Some(other) => return Err(field(at("capabilities"), format!("{other} is not an object"))),
        }
        Ok(NetConf { kind, capabilities, raw })
    }

    /// What the plugin gets on standard input: its configuration with the list's name and version, the previous
    /// result, and of the capability arguments those it declared.
    pub fn stdin(
        &self,
        list: &NetConfList,
        prev_result: Option<Value>,
        capability_args: &Map<String, Value>,
    ) -> Value {
        let mut out = self.raw.clone();
        out.insert("name".into(), list.name.clone().into());
        out.insert("cniVersion".into(), list.version.as_str().into());
        let runtime: Map<String, Value> = capability_args
            .iter()
            .filter(|(name, _)| self.capabilities.get(*name) == Some(&true))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        if !runtime.is_empty() {
            out.insert("runtimeConfig".into(), Value::Object(runtime));
        }
        if let Some(prev) = prev_result {
            out.insert("prevResult".into(), prev);
        }
        Value::Object(out)
    }
}

/// A network: a name and the plugins that make it, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct NetConfList {
    pub version: Version,
    pub name: String,
    /// CHECK does nothing.
    pub disable_check: bool,
    /// GC does nothing (1.1.0).
    pub disable_gc: bool,
    pub plugins: Vec<NetConf>,
}

impl NetConfList {
    /// Reads a `.conflist`. Of `cniVersions` (1.1.0) the newest supported one is taken, else `cniVersion`.
    pub fn parse(text: &[u8]) -> Result<Self, ConfError> {
        let value: Value = serde_json::from_slice(text)?;
        let map = value.as_object().ok_or_else(|| field("(whole file)", "is not an object"))?;
        let (version, name) = (version_of(map)?, name_of(map)?);
        let flag = |name: &str| match map.get(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(b)) => Ok(*b),
            // Older files write these as texts; libcni accepts them.
            Some(Value::String(s)) if s == "true" || s == "false" => Ok(s == "true"),
            Some(other) => Err(field(name, format!("{other} is not true or false"))),
        };
        let list = match map.get("plugins") {
            Some(Value::Array(list)) if !list.is_empty() => list,
            Some(Value::Array(_)) | None => return Err(field("plugins", "lists no plugin")),
            Some(_) => return Err(field("plugins", "is not a list")),
        };
        let plugins = list
            .iter()
            .enumerate()
            .map(|(i, p)| NetConf::from_value(p, &format!("plugins[{i}]")))
            .collect::<Result<_, _>>()?;
        Ok(NetConfList {
            version,
            name,
            disable_check: flag("disableCheck")?,
            disable_gc: flag("disableGC")?,
            plugins,
        })
    }

    /// Reads a `.conf` or `.json`: one plugin, made a list of one.
    pub fn parse_single(text: &[u8]) -> Result<Self, ConfError> {
        let value: Value = serde_json::from_slice(text)?;
        let plugin = NetConf::from_value(&value, "")?;
        Ok(NetConfList {
            version: version_of(&plugin.raw)?,
            name: name_of(&plugin.raw)?,
            disable_check: false,
            disable_gc: false,
            plugins: vec![plugin],
        })
    }
}

fn version_of(map: &Map<String, Value>) -> Result<Version, ConfError> {
    if let Some(Value::Array(list)) = map.get("cniVersions") {
        let best = list.iter().filter_map(|v| v.as_str()?.parse::<Version>().ok()).max();
        if let Some(v) = best {
            return Ok(v);
        }
    }
    match map.get("cniVersion") {
        Some(Value::String(s)) => Ok(s.parse()?),
        Some(other) => Err(field("cniVersion", format!("{other} is not a text"))),
        None => Err(field("cniVersion", "is missing")),
    }
}

fn name_of(map: &Map<String, Value>) -> Result<String, ConfError> {
    match map.get("name") {
        Some(Value::String(s)) => {
            check_name("name", s, code::INVALID_NETWORK_CONFIG).map_err(|e| field("name", e.msg))?;
            Ok(s.clone())
        }
        Some(other) => Err(field("name", format!("{other} is not a text"))),
        None => Err(field("name", "is missing")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_plugin_sees_only_the_capabilities_it_declared() {
        let list = NetConfList::parse(
            br#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"portmap","x":1,"capabilities":{"portMappings":true,"ips":false}}]}"#,
        )
        .unwrap();
        let args = json!({"portMappings": [], "ips": [], "mac": "m"});
        let stdin = list.plugins[0].stdin(&list, Some(json!({"a": 1})), args.as_object().unwrap());
        assert_eq!(
            stdin,
            json!({"type":"portmap","x":1,"capabilities":{"portMappings":true,"ips":false},"name":"n",
                "cniVersion":"1.0.0","runtimeConfig":{"portMappings":[]},"prevResult":{"a":1}})
        );
    }

    #[test]
    fn a_bad_list_names_the_field_and_the_value() {
        for (text, words) in [
            ("", "not JSON"),
            ("[]", "not an object"),
            (r#"{"name":"n","plugins":[{"type":"a"}]}"#, "cniVersion"),
            (r#"{"cniVersion":"9.9.9","name":"n","plugins":[{"type":"a"}]}"#, "9.9.9"),
            (r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#, "name"),
            (r#"{"cniVersion":"1.0.0","name":"../n","plugins":[{"type":"a"}]}"#, "../n"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, "plugins"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"},{}]}"#, "plugins[1].type"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"../sh"}]}"#, "../sh"),
            (
                r#"{"cniVersion":"1.0.0","name":"n","disableCheck":7,"plugins":[{"type":"a"}]}"#,
                "disableCheck",
            ),
        ] {
            let err = NetConfList::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(err.contains(words), "{text}: {err}");
        }
    }

    #[test]
    fn the_newest_of_several_versions_is_taken() {
        let list = NetConfList::parse(
            br#"{"cniVersion":"0.4.0","cniVersions":["1.0.0","1.1.0","7.0.0"],"name":"n","plugins":[{"type":"a"}]}"#,
        )
        .unwrap();
        assert_eq!(list.version, Version::V1_1_0);
    }
}
