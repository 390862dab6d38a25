//! A YAML or JSON document as a tree that keeps what the strict checks need: order and repeated keys.
//!
//! Called by `file` and `flags`; the typed configuration is made from it by `schema`. Never interprets a field.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// One value of a document.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    List(Vec<Node>),
    /// In document order; a repeated key stands here repeatedly until [`Node::take_duplicates`].
    Map(Vec<(String, Node)>),
}

impl Node {
    /// Of text.
    pub(super) fn str(text: impl Into<String>) -> Self {
        Node::Str(text.into())
    }

    /// Parses one document. `Err` is the parser's message on one line.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        // Every pair must reach the visitor, so that repeated keys can be reported all at once and by path.
        let options = serde_saphyr::options! { duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins, with_snippet: false };
        serde_saphyr::from_str_with_options(text, options)
            .map_err(|e| e.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Drops all but the last of repeated keys, calling `found` with the dotted path of each.
    pub(super) fn take_duplicates(&mut self, path: &str, found: &mut impl FnMut(String)) {
        match self {
            Node::Map(entries) => {
                let mut kept: Vec<(String, Node)> = Vec::with_capacity(entries.len());
                for (key, mut value) in entries.drain(..) {
                    let at = join(path, &key);
                    value.take_duplicates(&at, found);
                    match kept.iter_mut().find(|(k, _)| *k == key) {
                        Some(earlier) => {
                            found(at);
                            earlier.1 = value;
                        }
                        None => kept.push((key, value)),
                    }
                }
                *entries = kept;
            }
            Node::List(items) => {
                for (i, item) in items.iter_mut().enumerate() {
                    item.take_duplicates(&format!("{path}[{i}]"), found);
                }
            }
            _ => {}
        }
    }

    /// Lays `patch` over this document by RFC 7396: mappings merge, `null` removes, everything else replaces.
    pub(super) fn merge(&mut self, patch: Node) {
        let Node::Map(changes) = patch else {
            *self = patch;
            return;
        };
        if !matches!(self, Node::Map(_)) {
            *self = Node::Map(Vec::new());
        }
        let Node::Map(entries) = self else { return };
        for (key, value) in changes {
            let at = entries.iter().position(|(k, _)| *k == key);
            match (value, at) {
                (Node::Null, Some(i)) => drop(entries.remove(i)),
                (Node::Null, None) => {}
                (value, Some(i)) => entries[i].1.merge(value),
                (value, None) => {
                    let mut fresh = Node::Null;
                    fresh.merge(value);
                    entries.push((key, fresh));
                }
            }
        }
    }

    /// Puts `value` at a dotted path, making the mappings on the way.
    pub(super) fn set(&mut self, path: &str, value: Node) {
        let (key, rest) = path.split_once('.').map_or((path, None), |(k, r)| (k, Some(r)));
        if !matches!(self, Node::Map(_)) {
            *self = Node::Map(Vec::new());
        }
        let Node::Map(entries) = self else { return };
        let i = entries.iter().position(|(k, _)| k == key).unwrap_or_else(|| {
            entries.push((key.to_owned(), Node::Null));
            entries.len() - 1
        });
        match rest {
            Some(rest) => entries[i].1.set(rest, value),
            None => entries[i].1 = value,
        }
    }

    /// Sets one key of a mapping; dots in it mean nothing.
    pub(super) fn set_key(&mut self, key: &str, value: Node) {
        if let Node::Map(entries) = self {
            match entries.iter_mut().find(|(k, _)| k == key) {
                Some(entry) => entry.1 = value,
                None => entries.push((key.to_owned(), value)),
            }
        }
    }

    /// Adds to the list under one key of a mapping.
    pub(super) fn push_key(&mut self, key: &str, value: Node) {
        if let Node::Map(entries) = self {
            match entries.iter_mut().find(|(k, _)| k == key) {
                Some((_, Node::List(items))) => items.push(value),
                _ => entries.push((key.to_owned(), Node::List(vec![value]))),
            }
        }
    }

    /// What stands at a dotted path, `None` where nothing or `null` does.
    pub(super) fn get(&self, path: &str) -> Option<&Node> {
        path.split('.').try_fold(self, |node, key| match node {
            Node::Map(entries) => entries.iter().find(|(k, v)| k == key && *v != Node::Null).map(|(_, v)| v),
            _ => None,
        })
    }
}

/// `path.key`, or `key` at the top.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// As JSON, cut after 80 characters: what error messages quote.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = json(self).to_string();
        match text.char_indices().nth(80) {
            Some((cut, _)) => write!(f, "{}…", &text[..cut]),
            None => f.write_str(&text),
        }
    }
}

/// The same value for `serde_json`.
pub(super) fn json(node: &Node) -> serde_json::Value {
    match node {
        Node::Null => serde_json::Value::Null,
        Node::Bool(b) => (*b).into(),
        Node::Int(n) => (*n).into(),
        Node::Float(n) => (*n).into(),
        Node::Str(s) => s.as_str().into(),
        Node::List(items) => items.iter().map(json).collect(),
        Node::Map(entries) => entries.iter().map(|(k, v)| (k.clone(), json(v))).collect(),
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }
    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Node, D::Error> {
        Node::deserialize(d)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Node, E> {
        Ok(Node::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Node, E> {
        Ok(Node::Int(v))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Node, E> {
        // Beyond 63 bits no field has room, so the exact value no longer matters.
        Ok(i64::try_from(v).map_or(Node::Float(v as f64), Node::Int))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Node, E> {
        Ok(Node::Float(v))
    }
    fn visit_str<E>(self, v: &str) -> Result<Node, E> {
        Ok(Node::Str(v.to_owned()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        // As text, whatever YAML would make of it: `on` and `1` are names here.
        while let Some((key, value)) = map.next_entry::<String, Node>()? {
            entries.push((key, value));
        }
        Ok(Node::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_keys_are_found_at_every_depth() {
        let mut doc = Node::parse("a: 1\nb:\n  c: 1\n  c: 2\na: 2\nl:\n- x: 1\n  x: 1\n").unwrap();
        let mut found = Vec::new();
        doc.take_duplicates("", &mut |p| found.push(p));
        assert_eq!(found, ["b.c", "a", "l[0].x"]);
        assert_eq!(doc.get("a"), Some(&Node::Int(2)));
    }

    #[test]
    fn merging_replaces_lists_and_scalars_and_removes_on_null() {
        let mut base = Node::parse("{a: {x: 1, y: 2}, l: [1, 2], n: 1}").unwrap();
        base.merge(Node::parse("{a: {y: 3, z: null}, l: [3], n: null, o: {p: null, q: 1}}").unwrap());
        assert_eq!(base.to_string(), r#"{"a":{"x":1,"y":3},"l":[3],"o":{"q":1}}"#);
    }

    #[test]
    fn json_and_yaml_read_the_same() {
        assert_eq!(
            Node::parse(r#"{"a": [true, "x", 1.5, null]}"#),
            Node::parse("a:\n- true\n- x\n- 1.5\n-\n")
        );
        assert!(Node::parse("a: [").is_err());
        assert!(!Node::parse("a: [").unwrap_err().contains('\n'));
    }
}
