//! Reading fields of a configuration with errors that name the field and its value.
//!
//! Called by every plugin. A `null` counts as absent, as in the runtimes' own JSON.

use std::fmt::Display;
use std::str::FromStr;

use cni::{CniError, code};
use serde_json::{Map, Value};

/// A JSON object of the configuration and where it stands.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    at: String,
}

impl<'a> Fields<'a> {
    /// The whole configuration.
    pub fn new(map: &'a Map<String, Value>) -> Self {
        Fields { map, at: String::new() }
    }

    fn path(&self, name: &str) -> String {
        if self.at.is_empty() { name.to_string() } else { format!("{}.{name}", self.at) }
    }

    /// The field, in whatever case it is written when not in its own: the plugins of others read JSON so, and
    /// containerd relies on it (its port mappings say "HostPort").
    fn get(&self, name: &str) -> Option<&'a Value> {
        let other_case = || self.map.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v);
        self.map.get(name).or_else(other_case).filter(|v| !v.is_null())
    }

    /// An "invalid configuration" error about a field of this object.
    pub fn invalid(&self, name: &str, problem: impl Display) -> CniError {
        CniError::new(code::INVALID_NETWORK_CONFIG, format!("field {}: {problem}", self.path(name)))
    }

    fn wrong(&self, name: &str, value: &Value, wanted: &str) -> CniError {
        let mut shown = value.to_string();
        if shown.len() > 200 {
            shown = shown.chars().take(200).chain("…".chars()).collect();
        }
        self.invalid(name, format!("{shown} is not {wanted}"))
    }

    /// False when absent.
    pub fn flag(&self, name: &str) -> Result<bool, CniError> {
        Ok(self.maybe_flag(name)?.unwrap_or(false))
    }

    pub fn maybe_flag(&self, name: &str) -> Result<Option<bool>, CniError> {
        match self.get(name) {
            None => Ok(None),
            Some(v) => v.as_bool().map(Some).ok_or_else(|| self.wrong(name, v, "true or false")),
        }
    }

    pub fn number(&self, name: &str, range: std::ops::RangeInclusive<u32>) -> Result<Option<u32>, CniError> {
        let Some(v) = self.get(name) else { return Ok(None) };
        let wanted = || format!("a whole number from {} to {}", range.start(), range.end());
        v.as_u64()
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| range.contains(n))
            .map(Some)
            .ok_or_else(|| self.wrong(name, v, &wanted()))
    }

    /// `None` when absent or empty.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, CniError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s.as_str()).filter(|s| !s.is_empty())),
            Some(v) => Err(self.wrong(name, v, "a text")),
        }
    }

    /// A text that reads as `T`; `wanted` says what it should have been.
    pub fn parsed<T: FromStr>(&self, name: &str, wanted: &str) -> Result<Option<T>, CniError> {
        match self.text(name)? {
            None => Ok(None),
            Some(s) => s.parse().map(Some).map_err(|_| self.wrong(name, &Value::from(s), wanted)),
        }
    }

    pub fn object(&self, name: &str) -> Result<Option<Fields<'a>>, CniError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { map, at: self.path(name) })),
            Some(v) => Err(self.wrong(name, v, "an object")),
        }
    }

    fn list(&self, name: &str) -> Result<&'a [Value], CniError> {
        match self.get(name) {
            None => Ok(&[]),
            Some(Value::Array(list)) => Ok(list),
            Some(v) => Err(self.wrong(name, v, "a list")),
        }
    }

    /// A list of texts; empty when absent.
    pub fn texts(&self, name: &str) -> Result<Vec<&'a str>, CniError> {
        let item = |(i, v): (usize, &'a Value)| {
            v.as_str().ok_or_else(|| self.wrong(&format!("{name}[{i}]"), v, "a text"))
        };
        self.list(name)?.iter().enumerate().map(item).collect()
    }

    /// A list of objects; empty when absent.
    pub fn objects(&self, name: &str) -> Result<Vec<Fields<'a>>, CniError> {
        objects(self, name, self.list(name)?)
    }

    /// A list of lists of objects, as `ipam.ranges` is; empty when absent.
    pub fn object_lists(&self, name: &str) -> Result<Vec<Vec<Fields<'a>>>, CniError> {
        let item = |(i, v): (usize, &'a Value)| {
            let name = format!("{name}[{i}]");
            match v {
                Value::Array(list) => objects(self, &name, list),
                v => Err(self.wrong(&name, v, "a list of ranges")),
            }
        };
        self.list(name)?.iter().enumerate().map(item).collect()
    }

    /// Refuses a feature that is not there when it is asked for: any value but absent, false, 0 and empty.
    pub fn refuse(&self, name: &str, why: &str) -> Result<(), CniError> {
        let asked = match self.get(name) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Number(n)) => n.as_f64() != Some(0.0),
            Some(Value::String(s)) => !s.is_empty(),
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::Object(map)) => !map.is_empty(),
            Some(Value::Bool(true)) => true,
        };
        if !asked {
            return Ok(());
        }
        let value = self.get(name).map(Value::to_string).unwrap_or_default();
        Err(CniError::new(
            code::UNSUPPORTED_FIELD,
            format!(
                "field {}: {} is not supported: {why}",
                self.path(name),
                value.chars().take(200).collect::<String>()
            ),
        ))
    }
}

fn objects<'a>(fields: &Fields<'a>, name: &str, list: &'a [Value]) -> Result<Vec<Fields<'a>>, CniError> {
    let item = |(i, v): (usize, &'a Value)| {
        let name = format!("{name}[{i}]");
        match v {
            Value::Object(map) => Ok(Fields { map, at: fields.path(&name) }),
            v => Err(fields.wrong(&name, v, "an object")),
        }
    };
    list.iter().enumerate().map(item).collect()
}
