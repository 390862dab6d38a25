//! JSON text exactly as the API machinery's encoder writes it, for annotations and hashes that other programs compare:
//! no spaces, fields in declaration order, `<`, `>`, `&` and the two line separators escaped.

use std::fmt::Write as _;

/// `text` as a JSON string.
pub fn string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            _ => out.push(c),
        }
    }
    out.push('"');
    out
}

/// An object of fields in the order they were added.
#[derive(Default)]
pub struct Object(Vec<String>);

impl Object {
    /// Adds `name` with a value that is JSON already.
    pub fn raw(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.0.push(format!("{}:{value}", string(name)));
        self
    }
    /// Adds a string field unless it is absent or empty (`omitempty`).
    pub fn text(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(v) if !v.is_empty() => self.raw(name, string(v)),
            _ => self,
        }
    }
    /// The text.
    pub fn end(self) -> String {
        format!("{{{}}}", self.0.join(","))
    }
}

/// A list of values that are JSON already.
pub fn list(items: impl IntoIterator<Item = String>) -> String {
    format!("[{}]", items.into_iter().collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_and_control_characters_are_escaped() {
        assert_eq!(string("a<b>&\"\\\n\u{1}ä"), "\"a\\u003cb\\u003e\\u0026\\\"\\\\\\n\\u0001ä\"");
    }
}
