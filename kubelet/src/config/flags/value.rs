//! The types of flag values: how their text is read, into the node that a configuration file would have there.
//!
//! Used by `flags` only. Forms are those of pflag and of Kubernetes' component-base flag types.

use crate::config::duration::GoDuration;
use crate::config::node::Node;
use crate::quantity;
use std::net::IpAddr;

/// A flag's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum Type {
    Bool,
    Int,
    Int32,
    /// 0 and up.
    Level,
    Str,
    Duration,
    Ip,
    Quantity,
    /// Comma-separated, fields may be quoted, repeated flags add up.
    Strings,
    /// `k=v,k2=v2`
    Map,
    /// `k=v`, one pair a flag, so that values may hold commas.
    UnsplitMap,
    /// `k<v,k2<v2`
    LangleMap,
    /// `k=true,k2=false`
    BoolMap,
    /// `k:v,k:v2`
    ColonMultimap,
    /// `pattern=N,…`
    VModule,
    /// `key=value:effect,…`
    Taints,
    /// `node:resource=quantity,…;node:…`
    ReservedMemory,
    /// Nothing, `true`, `false` or `raw`.
    Version,
}

/// What the texts of a flag come to.
#[derive(Debug, PartialEq)]
pub(super) enum Outcome {
    Value(Node),
    Wrong { value: String, problem: String },
}

impl Type {
    /// pflag's name of the type.
    pub(in crate::config) fn name(self) -> &'static str {
        match self {
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Int32 => "int32",
            Type::Level => "Level",
            Type::Str => "string",
            Type::Duration => "duration",
            Type::Ip => "ip",
            Type::Quantity => "quantity",
            Type::Strings => "strings",
            Type::Map | Type::UnsplitMap | Type::LangleMap => "mapStringString",
            Type::BoolMap => "mapStringBool",
            Type::ColonMultimap => "colonSeparatedMultimapStringString",
            Type::VModule => "pattern=N,...",
            Type::Taints => "[]v1.Taint",
            Type::ReservedMemory => "reserved-memory",
            Type::Version => "version[=true]",
        }
    }

    /// The value of a flag that is given without one.
    pub(super) fn without_value(self) -> Option<&'static str> {
        matches!(self, Type::Bool | Type::Version).then_some("true")
    }

    /// Reads all occurrences of a flag, in order. Scalars: every text must be right and the last one counts.
    pub(super) fn read(self, texts: &[String]) -> Outcome {
        let mut sum = Sum::default();
        for text in texts {
            if let Err(problem) = self.read_one(text, &mut sum) {
                return Outcome::Wrong { value: text.clone(), problem };
            }
        }
        Outcome::Value(match self {
            Type::Strings | Type::VModule | Type::Taints | Type::ReservedMemory => Node::List(sum.list),
            Type::Map | Type::UnsplitMap | Type::LangleMap | Type::BoolMap | Type::ColonMultimap => sum.map,
            _ => sum.scalar,
        })
    }

    fn read_one(self, text: &str, sum: &mut Sum) -> Result<(), String> {
        match self {
            Type::Bool => sum.scalar = Node::Bool(boolean(text)?),
            Type::Int => sum.scalar = Node::Int(integer(text).ok_or("not an integer")?),
            Type::Int32 => {
                let n = integer(text).filter(|n| i32::try_from(*n).is_ok());
                sum.scalar = Node::Int(n.ok_or("not an integer of 32 bits")?);
            }
            Type::Level => {
                let n = text.parse().ok().filter(|n| (0..=i64::from(i32::MAX)).contains(n));
                sum.scalar = Node::Int(n.ok_or("not a verbosity, a number from 0")?);
            }
            Type::Str => sum.scalar = Node::str(text),
            Type::Duration => {
                text.parse::<GoDuration>().map_err(|e| e.to_string())?;
                sum.scalar = Node::str(text);
            }
            Type::Ip => {
                text.trim().parse::<IpAddr>().map_err(|_| "not an IP address")?;
                sum.scalar = Node::str(text.trim());
            }
            Type::Quantity => {
                quantity::parse(text).map_err(|e| e.to_string())?;
                sum.scalar = Node::str(text);
            }
            Type::Version => match text {
                "raw" => sum.scalar = Node::str(text),
                _ => {
                    sum.scalar = Node::str(boolean(text).map_err(|e| format!("{e} and not raw"))?.to_string())
                }
            },
            Type::Strings => sum.list.extend(fields(text)?.into_iter().map(Node::Str)),
            Type::UnsplitMap => sum.pair(text, '=', Node::str)?,
            Type::Map => pairs(text).try_for_each(|p| sum.pair(p, '=', Node::str))?,
            Type::LangleMap => pairs(text).try_for_each(|p| sum.pair(p, '<', Node::str))?,
            Type::BoolMap => {
                for pair in pairs(text) {
                    let (key, value) = split(pair, '=')?;
                    let value = boolean(value).map_err(|e| format!("{pair:?}: {e}"))?;
                    sum.map.set_key(key, Node::Bool(value));
                }
            }
            Type::ColonMultimap => {
                for pair in pairs(text) {
                    let (key, value) = split(pair, ':')?;
                    sum.map.push_key(key, Node::str(value));
                }
            }
            Type::VModule => {
                for pair in pairs(text) {
                    let (pattern, level) = split(pair, '=')?;
                    let level = level.parse().ok().filter(|n| (0..=i64::from(i32::MAX)).contains(n));
                    let level = level.ok_or_else(|| format!("{pair:?} has no verbosity, a number from 0"))?;
                    sum.list.push(object(&[
                        ("filePattern", Node::str(pattern)),
                        ("verbosity", Node::Int(level)),
                    ]));
                }
            }
            Type::Taints => pairs(text).try_for_each(|p| taint(p).map(|t| sum.list.push(t)))?,
            Type::ReservedMemory => {
                for node in text.split(';').map(str::trim).filter(|n| !n.is_empty()) {
                    sum.list.push(reserved_memory(node)?);
                }
            }
        }
        Ok(())
    }
}

/// What the occurrences of a flag have come to so far.
struct Sum {
    scalar: Node,
    list: Vec<Node>,
    map: Node,
}

impl Default for Sum {
    fn default() -> Self {
        Self { scalar: Node::Null, list: Vec::new(), map: Node::Map(Vec::new()) }
    }
}

impl Sum {
    fn pair(&mut self, text: &str, sign: char, value: impl Fn(String) -> Node) -> Result<(), String> {
        if !text.is_empty() {
            let (k, v) = split(text, sign)?;
            self.map.set_key(k, value(v.to_owned()));
        }
        Ok(())
    }
}

fn object(entries: &[(&str, Node)]) -> Node {
    Node::Map(entries.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect())
}

/// The spellings that Go takes for a bool.
fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("not true or false".into()),
    }
}

/// Decimal, or with Go's prefixes: 0x, 0o or 0, 0b.
fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let n = i128::from_str_radix(digits, radix).ok()?;
    i64::try_from(if negative { -n } else { n }).ok()
}

/// The parts between commas, blanks around them and empty ones dropped.
fn pairs(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|p| !p.is_empty())
}

fn split(pair: &str, sign: char) -> Result<(&str, &str), String> {
    let (key, value) =
        pair.split_once(sign).ok_or_else(|| format!("{pair:?} is not of the form key{sign}value"))?;
    Ok((key.trim(), value.trim()))
}

/// A line of comma-separated values; a field in double quotes may hold commas and doubled quotes.
fn fields(text: &str) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let mut rest = text;
    while !text.is_empty() {
        let (field, tail) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let end = closing_quote(quoted).ok_or("a quote is not closed")?;
                (quoted[..end].replace("\"\"", "\""), &quoted[end + 1..])
            }
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        found.push(field);
        match tail.strip_prefix(',') {
            Some(next) => rest = next,
            None if tail.is_empty() => break,
            None => return Err("text after a closing quote".into()),
        }
    }
    Ok(found)
}

fn closing_quote(quoted: &str) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + quoted[from..].find('"')?;
        if !quoted[at + 1..].starts_with('"') {
            return Some(at);
        }
        from = at + 2;
    }
}

/// `key=value:effect` or `key:effect`.
fn taint(text: &str) -> Result<Node, String> {
    let form = || format!("{text:?} is not of the form key=value:effect");
    let (pair, effect) = text.rsplit_once(':').ok_or_else(form)?;
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        return Err(format!("{text:?}: the effect is not NoSchedule, PreferNoSchedule or NoExecute"));
    }
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    if key.is_empty() || value.contains(['=', ':']) {
        return Err(form());
    }
    Ok(object(&[("key", Node::str(key)), ("value", Node::str(value)), ("effect", Node::str(effect))]))
}

/// `node:resource=quantity,resource=quantity`.
fn reserved_memory(text: &str) -> Result<Node, String> {
    let form = || format!("{text:?} is not of the form node:resource=quantity,…");
    let (node, resources) = text.split_once(':').ok_or_else(form)?;
    let node = node.trim().parse::<i32>().ok().filter(|n| *n >= 0).ok_or_else(form)?;
    let mut limits = Node::Map(Vec::new());
    for pair in pairs(resources) {
        let (resource, amount) = pair.split_once('=').ok_or_else(form)?;
        if resource != "memory" && !resource.starts_with("hugepages-") {
            return Err(format!("{pair:?}: only memory and hugepages-SIZE can be reserved"));
        }
        quantity::parse(amount).map_err(|e| format!("{pair:?}: {e}"))?;
        limits.set_key(resource, Node::str(amount));
    }
    if limits == Node::Map(Vec::new()) {
        return Err(form());
    }
    Ok(object(&[("numaNode", Node::Int(node.into())), ("limits", limits)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(ty: Type, texts: &[&str]) -> String {
        match ty.read(&texts.iter().map(ToString::to_string).collect::<Vec<_>>()) {
            Outcome::Value(node) => node.to_string(),
            Outcome::Wrong { value, problem } => format!("{value:?}: {problem}"),
        }
    }

    #[test]
    fn texts_of_every_type_are_read() {
        use Type::*;
        for (ty, texts, want) in [
            (Bool, &["True"][..], "true"),
            (Int32, &["0x10"], "16"),
            (Int32, &["-010"], "-8"),
            (Int, &["9223372036854775807"], "9223372036854775807"),
            (Strings, &["a,b", "\"c,\"\"d\"\"\",e"], r#"["a","b","c,\"d\"","e"]"#),
            (Strings, &[""], "[]"),
            (Map, &["cpu=100m, memory=1Gi", "cpu=200m"], r#"{"cpu":"200m","memory":"1Gi"}"#),
            (Map, &["a=b=c"], r#"{"a":"b=c"}"#),
            (UnsplitMap, &["a=b,c", "d=e"], r#"{"a":"b,c","d":"e"}"#),
            (LangleMap, &["memory.available<1Gi"], r#"{"memory.available":"1Gi"}"#),
            (BoolMap, &["A=true,B=0"], r#"{"A":true,"B":false}"#),
            (ColonMultimap, &["a:1,b:2", "a:3"], r#"{"a":["1","3"],"b":["2"]}"#),
            (
                VModule,
                &["a*=1,b=2"],
                r#"[{"filePattern":"a*","verbosity":1},{"filePattern":"b","verbosity":2}]"#,
            ),
            (Taints, &["k=v:NoExecute"], r#"[{"effect":"NoExecute","key":"k","value":"v"}]"#),
            (ReservedMemory, &["1:memory=1Gi"], r#"[{"limits":{"memory":"1Gi"},"numaNode":1}]"#),
            (Ip, &["::1"], r#""::1""#),
            (Version, &["raw"], r#""raw""#),
        ] {
            assert_eq!(read(ty, texts), want, "{ty:?} {texts:?}");
        }
    }

    #[test]
    fn wrong_texts_say_what_is_wrong() {
        use Type::*;
        for (ty, text, want) in [
            (Bool, "yes", r#""yes": not true or false"#),
            (Int32, "2147483648", r#""2147483648": not an integer of 32 bits"#),
            (Int, "0x", r#""0x": not an integer"#),
            (Level, "-1", r#""-1": not a verbosity, a number from 0"#),
            (Ip, "localhost", r#""localhost": not an IP address"#),
            (Map, "cpu", r#""cpu": "cpu" is not of the form key=value"#),
            (LangleMap, "a=b", r#""a=b": "a=b" is not of the form key<value"#),
            (Quantity, "1 Gi", r#""1 Gi": unable to parse quantity's suffix"#),
            (Strings, "\"a", r#""\"a": a quote is not closed"#),
            (
                Taints,
                "k=v:Never",
                "\"k=v:Never\": \"k=v:Never\": the effect is not NoSchedule, PreferNoSchedule or NoExecute",
            ),
            (
                ReservedMemory,
                "0:cpu=1",
                "\"0:cpu=1\": \"cpu=1\": only memory and hugepages-SIZE can be reserved",
            ),
        ] {
            assert_eq!(read(ty, &[text]), want, "{ty:?} {text}");
        }
    }
}
