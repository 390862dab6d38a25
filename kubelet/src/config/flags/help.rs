//! What `--help` and `--version` print.
//!
//! Called by `config::load`; `main` prints the text to standard output and exits with code 0.

use super::{FLAGS, Flag, Flags, OURS, Target, Type};
use crate::config::schema::{Decode, FieldInfo, leaves};
use crate::config::{KubeletConfiguration, legacy_defaults};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;

/// The Kubernetes version whose behaviour this agent has.
pub(in crate::config) const KUBERNETES_VERSION: &str = "v1.36.2";

/// The text of `--version` or `--version=raw`. Tools parse the first form.
pub(in crate::config) fn version(how: &str) -> String {
    match how {
        "raw" => format!(
            "version.Info{{Major:\"1\", Minor:\"36\", GitVersion:\"{KUBERNETES_VERSION}\", Platform:\"linux/{}\"}}",
            std::env::consts::ARCH
        ),
        _ => format!("Kubernetes {KUBERNETES_VERSION}"),
    }
}

/// A flag's default as pflag prints it; empty for a zero value.
pub(in crate::config) fn default_text(flag: &Flag) -> String {
    let value = match flag.target {
        Target::Config(path) => at(&json(&legacy_defaults()), path),
        Target::Own => json(&Flags::default()).get(flag.name).cloned().unwrap_or(Value::Null),
        Target::Stats(text) => match flag.ty {
            Type::Str => text.into(),
            _ => return if text == "false" { String::new() } else { text.into() },
        },
        Target::Asks => Value::Null,
    };
    match value {
        Value::String(s) => match flag.ty {
            Type::Str if !s.is_empty() => format!("{s:?}"),
            Type::Duration if s == "0s" => String::new(),
            Type::Quantity if s == "0" => String::new(),
            _ => s,
        },
        Value::Array(items) => {
            format!("[{}]", items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","))
        }
        Value::Bool(true) => "true".into(),
        Value::Number(n) if n.as_i64() != Some(0) => n.to_string(),
        _ => String::new(),
    }
}

fn json(value: &impl serde::Serialize) -> Value {
    // Strings, numbers, lists and mappings with string keys: nothing that JSON could not hold.
    serde_json::to_value(value).unwrap_or(Value::Null)
}

fn at(value: &Value, path: &str) -> Value {
    path.split('.').try_fold(value, |v, key| v.get(key)).cloned().unwrap_or(Value::Null)
}

/// Descriptions of all fields, by dotted path or flag name.
fn descriptions() -> BTreeMap<String, &'static str> {
    let mut found = BTreeMap::new();
    let mut add = |path, field: &FieldInfo| {
        found.insert(path, field.doc.trim());
    };
    leaves(KubeletConfiguration::fields(), "", &mut add);
    leaves(Flags::fields(), "", &mut add);
    found
}

/// The text of `--help`: flags in groups by what they set.
pub(in crate::config) fn help() -> String {
    let mut text = String::from(
        "The kubelet is the node agent: it runs the pods of a node on its container runtime.\n\n\
         Usage:\n  kubelet [flags]\n",
    );
    let docs = descriptions();
    type Group = fn(&Flag) -> bool;
    let groups: [(&str, Group); 5] = [
        ("Flags", |f| matches!(f.target, Target::Own | Target::Asks) && !OURS.contains(&f.name)),
        ("Flags that the stock kubelet does not have", |f| OURS.contains(&f.name)),
        ("Flags for fields of the configuration file", |f| {
            matches!(f.target, Target::Config(_)) && !f.deprecated
        }),
        ("Deprecated flags for fields of the configuration file", |f| {
            matches!(f.target, Target::Config(_)) && f.deprecated
        }),
        ("Flags of the stock kubelet's statistics library, accepted at their defaults", |f| {
            matches!(f.target, Target::Stats(_))
        }),
    ];
    for (title, member) in groups {
        let _ = write!(text, "\n{title}:\n");
        for flag in FLAGS.iter().filter(|f| member(f)) {
            line(&mut text, flag, &docs);
        }
    }
    text
}

fn line(text: &mut String, flag: &Flag, docs: &BTreeMap<String, &'static str>) {
    let short = flag.shorthand().filter(|s| flag.name != s.to_string());
    let short = short.map_or("    ".to_owned(), |s| format!("-{s}, "));
    let ty = if flag.ty == Type::Bool { "" } else { flag.ty.name() };
    let doc = match flag.target {
        Target::Config(path) => docs.get(path).copied(),
        Target::Own => docs.get(flag.name).copied(),
        Target::Asks if flag.name == "help" => Some("Print this text and exit."),
        Target::Asks => Some("Print the version and exit; raw: with its parts."),
        Target::Stats(_) => None,
    };
    let default = match default_text(flag) {
        d if d.is_empty() => String::new(),
        d => format!(" (default {d})"),
    };
    let field = match flag.target {
        Target::Config(path) => format!(" [{path}]"),
        _ => String::new(),
    };
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "  {short}--{} {ty}\n        {}{default}{field}",
        flag.name,
        doc.unwrap_or("No effect.")
    );
}
