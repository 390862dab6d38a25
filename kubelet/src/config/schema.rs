//! How one declaration of a configuration object becomes its Rust struct, its defaults, its strict decoder with every
//! mistake collected, its JSON form, and its list of fields.
//!
//! Used by `types` only. The semantics are those of the Go types behind KubeletConfiguration: a *value* field that is
//! given as its zero value in a file is as good as absent and takes the default, and is left out of JSON while it is
//! zero; a *pointer* field keeps what was given and is always written. Flags are laid on top afterwards, zero or not.

use super::duration::GoDuration;
use super::error::{ConfigError, Origin};
use super::node::{Node, join};
use serde::Serialize;
use std::collections::BTreeMap;

/// How a Go field behaves; see the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A plain value with `omitempty`.
    Value,
    /// A pointer, or a field without `omitempty`.
    Pointer,
}

/// One field of an object, for walks over all of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct FieldInfo {
    /// Its JSON name.
    pub name: &'static str,
    /// What it means, in a line.
    pub doc: &'static str,
    /// The fields of the object it holds; empty for everything else.
    pub fields: fn() -> &'static [FieldInfo],
}

/// Decodes one layer (a file's document or the flags) onto a configuration that already has values.
pub(super) struct Decoder<'a> {
    pub origin: Origin,
    /// In a file, a zero in a value field means "not given".
    pub zero_is_absent: bool,
    pub errors: &'a mut Vec<ConfigError>,
}

impl Decoder<'_> {
    pub(super) fn wrong(&mut self, path: &str, node: &Node, expected: &str) {
        self.errors.push(ConfigError::WrongType {
            origin: self.origin.clone(),
            field: path.to_owned(),
            value: node.to_string(),
            expected: expected.to_owned(),
        });
    }

    pub(super) fn unknown(&mut self, path: &str) {
        self.errors.push(ConfigError::UnknownField { origin: self.origin.clone(), field: path.to_owned() });
    }

    pub(super) fn field<T: Decode>(&mut self, slot: &mut T, kind: Kind, node: &Node, path: &str) {
        if *node == Node::Null {
            return;
        }
        let before = slot.clone();
        slot.decode(node, path, self);
        if kind == Kind::Value && self.zero_is_absent && slot.is_zero() {
            *slot = before;
        }
    }
}

/// A type that a configuration field can have.
pub(super) trait Decode: Clone + Serialize {
    /// Takes over `node`; on a mismatch reports it and leaves `self` as it was.
    fn decode(&mut self, node: &Node, path: &str, to: &mut Decoder<'_>);
    /// Go's zero value, where that stands for "not given". Empty lists and mappings do not: they are given.
    fn is_zero(&self) -> bool {
        false
    }
    /// Left out of JSON in a value field.
    fn is_empty(&self) -> bool {
        self.is_zero()
    }
    /// A pointer to nothing.
    fn is_absent(&self) -> bool {
        false
    }
    fn fields() -> &'static [FieldInfo] {
        &[]
    }
}

/// Whether JSON leaves the field out.
pub(super) fn omitted<T: Decode>(kind: Kind, value: &T) -> bool {
    value.is_absent() || (kind == Kind::Value && value.is_empty())
}

macro_rules! integer {
    ($t:ty, $expected:literal) => {
        impl Decode for $t {
            fn decode(&mut self, node: &Node, path: &str, to: &mut Decoder<'_>) {
                let n = match node {
                    Node::Int(n) => Some(*n),
                    // YAML's 5.0 is JSON's 5. The cast is exact for every float this guard lets through.
                    Node::Float(n) if n.fract() == 0.0 && n.abs() < 1e15 => Some(*n as i64),
                    _ => None,
                };
                match n.and_then(|n| <$t>::try_from(n).ok()) {
                    Some(n) => *self = n,
                    None => to.wrong(path, node, $expected),
                }
            }
            fn is_zero(&self) -> bool {
                *self == 0
            }
        }
    };
}
integer!(i32, "an integer of 32 bits");
integer!(i64, "an integer");
integer!(u32, "an integer of 32 bits, 0 or more");

impl Decode for bool {
    fn decode(&mut self, node: &Node, path: &str, to: &mut Decoder<'_>) {
        match node {
            Node::Bool(b) => *self = *b,
            _ => to.wrong(path, node, "true or false"),
        }
    }
    fn is_zero(&self) -> bool {
        !*self
    }
}

impl Decode for f64 {
    fn decode(&mut self, node: &Node, path: &str, to: &mut Decoder<'_>) {
        match node {
            Node::Float(n) => *self = *n,
            Node::Int(n) => *self = *n as f64,
            _ => to.wrong(path, node, "a number"),
        }
    }
}

impl Decode for String {
    fn decode(&mut self, node: &Node, path: &str, to: &mut Decoder<'_>) {
        match node {
            Node::Str(s) => s.clone_into(self),
            _ => to.wrong(path, node, "a string"),
        }
    }
    fn is_zero(&self) -> bool {
        self.is_empty()
    }
}

impl Decode for GoDuration {
    fn decode(&mut self, node: &Node, path: &str, to: &mut Decoder<'_>) {
        match node {
            Node::Str(s) => match s.parse() {
                Ok(d) => *self = d,
                Err(e) => to.wrong(path, node, &format!("a duration ({e})")),
            },
            _ => to.wrong(path, node, "a duration such as \"1m30s\""),
        }
    }
    fn is_zero(&self) -> bool {
        GoDuration::is_zero(*self)
    }
    // A struct in Go: `omitempty` has no effect on it.
    fn is_empty(&self) -> bool {
        false
    }
}

impl<T: Decode + Default> Decode for Option<T> {
    fn decode(&mut self, node: &Node, path: &str, to: &mut Decoder<'_>) {
        let failed = to.errors.len();
        let mut value = self.clone().unwrap_or_default();
        value.decode(node, path, to);
        if to.errors.len() == failed {
            *self = Some(value);
        }
    }
    fn is_absent(&self) -> bool {
        self.is_none()
    }
    fn fields() -> &'static [FieldInfo] {
        T::fields()
    }
}

impl<T: Decode + Default> Decode for Vec<T> {
    fn decode(&mut self, node: &Node, path: &str, to: &mut Decoder<'_>) {
        let Node::List(items) = node else {
            return to.wrong(path, node, "a list");
        };
        *self = items
            .iter()
            .enumerate()
            .map(|(i, item)| {
                let mut value = T::default();
                value.decode(item, &format!("{path}[{i}]"), to);
                value
            })
            .collect();
    }
    fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }
}

impl<T: Decode + Default> Decode for BTreeMap<String, T> {
    fn decode(&mut self, node: &Node, path: &str, to: &mut Decoder<'_>) {
        let Node::Map(entries) = node else {
            return to.wrong(path, node, "a mapping");
        };
        *self = entries
            .iter()
            .map(|(key, item)| {
                let mut value = T::default();
                value.decode(item, &join(path, key), to);
                (key.clone(), value)
            })
            .collect();
    }
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Declares configuration objects: `value` or `pointer`, the Rust name, the type, the default, the JSON name.
macro_rules! objects {
    ($( $(#[doc = $tdoc:literal])* pub struct $T:ident {
        $( $(#[doc = $doc:literal])+ $kind:ident $f:ident: $ty:ty = $default:expr => $name:literal, )*
    } )*) => { $(
        $(#[doc = $tdoc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $T { $( $(#[doc = $doc])+ pub $f: $ty, )* }

        impl Default for $T {
            fn default() -> Self {
                Self { $( $f: $default, )* }
            }
        }

        impl serde::Serialize for $T {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeMap;
                let mut map = s.serialize_map(None)?;
                $( if !$crate::config::schema::omitted($crate::config::schema::objects!(@kind $kind), &self.$f) {
                    map.serialize_entry($name, &self.$f)?;
                } )*
                map.end()
            }
        }

        impl $crate::config::schema::Decode for $T {
            fn decode(
                &mut self,
                node: &$crate::config::node::Node,
                path: &str,
                to: &mut $crate::config::schema::Decoder<'_>,
            ) {
                let $crate::config::node::Node::Map(entries) = node else {
                    return to.wrong(path, node, "a mapping");
                };
                for (key, child) in entries {
                    let at = $crate::config::node::join(path, key);
                    match key.as_str() {
                        $( $name => to.field(&mut self.$f, $crate::config::schema::objects!(@kind $kind), child, &at), )*
                        _ => to.unknown(&at),
                    }
                }
            }
            // An object is never left out, whatever is in it.
            fn is_zero(&self) -> bool {
                false
            }
            fn fields() -> &'static [$crate::config::schema::FieldInfo] {
                const FIELDS: &[$crate::config::schema::FieldInfo] = &[$(
                    $crate::config::schema::FieldInfo {
                        name: $name,
                        doc: concat!($($doc),+),
                        fields: <$ty as $crate::config::schema::Decode>::fields,
                    },
                )*];
                FIELDS
            }
        }
    )* };
    (@kind value) => { $crate::config::schema::Kind::Value };
    (@kind pointer) => { $crate::config::schema::Kind::Pointer };
}
pub(super) use objects;

/// Every leaf of an object (what holds no fields of its own) with its dotted path and description, in order.
pub(super) fn leaves(fields: &[FieldInfo], prefix: &str, found: &mut impl FnMut(String, &FieldInfo)) {
    for field in fields {
        let path = join(prefix, field.name);
        match (field.fields)() {
            [] => found(path, field),
            inner => leaves(inner, &path, found),
        }
    }
}
