//! A resource quantity that a configuration keeps as it was written (`"0"`, `1Gi`).
//!
//! Used by the configuration types only; the arithmetic is [`crate::quantity`]'s.

use super::node::Node;
use super::schema::{Decode, Decoder};
use crate::quantity::{Nano, parse};
use serde::{Serialize, Serializer};

/// A quantity known to parse, and its text.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantityText {
    text: String,
    amount: Nano,
}

impl Default for QuantityText {
    /// `"0"`.
    fn default() -> Self {
        Self { text: "0".into(), amount: Nano::default() }
    }
}

impl QuantityText {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
    /// How much it is.
    pub fn amount(&self) -> Nano {
        self.amount
    }
}

impl Serialize for QuantityText {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}

impl Decode for QuantityText {
    fn decode(&mut self, node: &Node, path: &str, to: &mut Decoder<'_>) {
        let text = match node {
            Node::Str(s) => s.clone(),
            Node::Int(n) => n.to_string(),
            Node::Float(n) => n.to_string(),
            _ => return to.wrong(path, node, "a quantity such as 1Gi"),
        };
        match parse(&text) {
            Ok(amount) => *self = Self { text, amount },
            Err(e) => to.wrong(path, node, &format!("a quantity ({e})")),
        }
    }
}
