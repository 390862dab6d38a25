//! From bytes to a typed object: the text, its one document, the kind, the types of its fields.
//!
//! `file` calls it for manifests, the `objects` room for its own, the golden harness for recorded pods. Pure. Input is
//! bounded ([`MAX_BYTES`], and the YAML parser's own budget against alias bombs and deep nesting), so a hostile file costs
//! little.
//!
//! Leniency is upstream's: unknown fields and repeated keys are accepted (the last one wins) and come back as
//! warnings; a field of the wrong type is an error. JSON is YAML, and YAML's scalars are read as 1.1 has them, as
//! upstream does: `0644` is octal, `yes` is a boolean. But where a text is wanted, `yes` or `n` is that text, which
//! upstream refuses: nothing else can have been meant.

use super::field::{Errors, FieldError, LISTED};
use super::{defaults, validate};
use crate::api::Pod;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The largest manifest accepted: 10 MiB, upstream's own bound.
pub const MAX_BYTES: usize = 10 << 20;

/// Why bytes are no valid pod. The caller names the file.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Larger than [`MAX_BYTES`].
    #[error("larger than the limit of {MAX_BYTES} bytes")]
    TooLarge,
    /// No text at all.
    #[error("empty: expected an object in YAML or JSON")]
    Empty,
    /// Binary, or text in another encoding.
    #[error("not text: byte 0x{byte:02x} at offset {offset}")]
    NotText {
        /// The first byte that no UTF-8 text has.
        byte: u8,
        /// Where it stands.
        offset: usize,
    },
    /// Neither YAML nor JSON, or cut short.
    #[error("not YAML: {0}")]
    Syntax(String),
    /// More than one document.
    #[error("holds {0} documents: put each object into a file of its own")]
    Documents(usize),
    /// A document that is no mapping, such as plain text.
    #[error("not an object: expected a mapping, found {0}")]
    NotAnObject(&'static str),
    /// Another kind, or none.
    #[error("{field}: expected {}, found {found}", one_of(expected))]
    Kind {
        /// `kind` or `apiVersion`.
        field: &'static str,
        /// Such as `Pod` or `v1`.
        expected: &'static [&'static str],
        /// What stands there, as JSON.
        found: String,
    },
    /// A field's value has a type the field cannot have.
    #[error(transparent)]
    Type(FieldError),
    /// An object of the kind, but not a valid one.
    #[error("invalid: {0}")]
    Invalid(Errors),
}

impl DecodeError {
    /// The fields at fault with what is wrong with each; empty when the whole text is at fault.
    pub fn fields(self) -> Vec<FieldError> {
        match self {
            DecodeError::Type(e) => vec![e],
            DecodeError::Invalid(errors) => errors.into_vec(),
            DecodeError::Kind { field, .. } => {
                vec![FieldError { field: field.to_owned(), message: self.detail() }]
            }
            _ => Vec::new(),
        }
    }
    fn detail(&self) -> String {
        match self {
            DecodeError::Kind { expected, found, .. } => {
                format!("expected {}, found {found}", one_of(expected))
            }
            other => other.to_string(),
        }
    }
}

/// `"ConfigMap" or "Secret"`
fn one_of(expected: &[&str]) -> String {
    expected.iter().map(|e| format!("{e:?}")).collect::<Vec<_>>().join(" or ")
}

/// An object as its text has it: not defaulted, not validated.
#[derive(Debug)]
pub struct Decoded<T> {
    /// The object.
    pub object: T,
    /// What was read over: unknown fields, repeated keys.
    pub warnings: Vec<FieldError>,
}

/// Decodes, defaults and validates a pod as if it came from the API: no name suffix, no UID of ours, references to
/// API objects allowed, `kind` and `apiVersion` may be absent.
pub fn decode_pod(bytes: &[u8]) -> Result<Pod, DecodeError> {
    let mut pod: Pod = typed(document(bytes)?.0)?.object;
    defaults::apply(&mut pod);
    match validate::pod(&pod) {
        errors if errors.is_empty() => Ok(pod),
        errors => Err(DecodeError::Invalid(errors)),
    }
}

/// Decodes a manifest's text. `kind: Pod` and `apiVersion: v1` must be there.
pub fn manifest(bytes: &[u8]) -> Result<Decoded<Pod>, DecodeError> {
    Document::read(bytes, &["Pod"])?.typed()
}

/// One document of `apiVersion: v1` and a known kind, its fields still to be given their types.
#[derive(Debug)]
pub struct Document {
    /// One of the kinds that were asked for.
    pub kind: &'static str,
    value: Value,
    repeated: Option<FieldError>,
}

impl Document {
    /// The one document of `bytes`, which must be of one of `kinds`.
    pub fn read(bytes: &[u8], kinds: &'static [&'static str]) -> Result<Self, DecodeError> {
        let (value, repeated) = document(bytes)?;
        one_of_these(&value, "apiVersion", &["v1"])?;
        let kind = one_of_these(&value, "kind", kinds)?;
        Ok(Self { kind, value, repeated })
    }

    /// The object, with what was read over.
    pub fn typed<T: DeserializeOwned + Serialize>(self) -> Result<Decoded<T>, DecodeError> {
        let mut decoded = typed(self.value)?;
        decoded.warnings.splice(0..0, self.repeated);
        Ok(decoded)
    }
}

fn one_of_these(
    value: &Value,
    field: &'static str,
    expected: &'static [&'static str],
) -> Result<&'static str, DecodeError> {
    let found = value.get(field).unwrap_or(&Value::Null);
    expected.iter().find(|e| found == **e).copied().ok_or_else(|| {
        let found = if found.is_null() { "nothing".to_owned() } else { short(found) };
        DecodeError::Kind { field, expected, found }
    })
}

/// The one document of `bytes` and, as warnings, its repeated keys.
fn document(bytes: &[u8]) -> Result<(Value, Option<FieldError>), DecodeError> {
    if bytes.len() > MAX_BYTES {
        return Err(DecodeError::TooLarge);
    }
    let text = text(bytes)?;
    if text.trim().is_empty() {
        return Err(DecodeError::Empty);
    }
    let (value, repeated) = match text.trim_start().starts_with('{') {
        // JSON first: its tabs and escapes are not all YAML's.
        true => match serde_json::from_str(text) {
            Ok(value) => {
                (value, parse(text, serde_saphyr::DuplicateKeyPolicy::Error).err().and_then(repeated))
            }
            Err(_) => yaml(text)?,
        },
        false => yaml(text)?,
    };
    match value {
        Value::Object(_) => Ok((value, repeated)),
        Value::Null => Err(DecodeError::Empty),
        other => Err(DecodeError::NotAnObject(type_name(&other))),
    }
}

/// UTF-8 without control characters; a byte order mark is skipped.
fn text(bytes: &[u8]) -> Result<&str, DecodeError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let not_text =
        |offset: usize| DecodeError::NotText { byte: bytes.get(offset).copied().unwrap_or(0), offset };
    let text = std::str::from_utf8(bytes).map_err(|e| not_text(e.valid_up_to()))?;
    match text.bytes().position(|b| b < 0x20 && !matches!(b, b'\t' | b'\n' | b'\r')) {
        Some(offset) => Err(not_text(offset)),
        None => Ok(text),
    }
}

fn yaml(text: &str) -> Result<(Value, Option<FieldError>), DecodeError> {
    use serde_saphyr::DuplicateKeyPolicy as Keys;
    let (mut documents, repeated) = match parse(text, Keys::Error) {
        Ok(documents) => (documents, None),
        Err(e) => {
            let Some(warning) = repeated(e.clone()) else { return Err(DecodeError::Syntax(e.text)) };
            (parse(text, Keys::LastWins).map_err(|e| DecodeError::Syntax(e.text))?, Some(warning))
        }
    };
    match documents.len() {
        0 => Err(DecodeError::Empty),
        1 => Ok((documents.remove(0), repeated)),
        n => Err(DecodeError::Documents(n)),
    }
}

/// What the YAML parser said, without the excerpt of the source: a manifest may hold secrets.
#[derive(Clone)]
struct YamlError {
    text: String,
    repeated_key: Option<String>,
}

fn parse(text: &str, duplicate_keys: serde_saphyr::DuplicateKeyPolicy) -> Result<Vec<Value>, YamlError> {
    let options = serde_saphyr::options! {
        duplicate_keys: duplicate_keys,
        legacy_octal_numbers: true,
        strict_booleans: true,
    };
    serde_saphyr::from_slice_multiple_with_options(text.as_bytes(), options).map_err(|e| {
        let e = e.without_snippet();
        YamlError {
            text: e.to_string().lines().next().unwrap_or_default().to_owned(),
            repeated_key: match e {
                serde_saphyr::Error::DuplicateMappingKey { key, .. } => Some(key.clone().unwrap_or_default()),
                _ => None,
            },
        }
    })
}

fn repeated(error: YamlError) -> Option<FieldError> {
    error
        .repeated_key
        .map(|field| FieldError { field, message: format!("the last value wins: {}", error.text) })
}

/// So many booleans may be spelled as YAML 1.1 does: each costs a pass over the document.
const BOOLEANS: usize = 64;

/// Gives the document its types and lists what no field took.
fn typed<T: DeserializeOwned + Serialize>(mut value: Value) -> Result<Decoded<T>, DecodeError> {
    let mut booleans = 0..BOOLEANS;
    let object: T = loop {
        let e = match serde_path_to_error::deserialize(&value) {
            Ok(object) => break object,
            Err(e) => e,
        };
        // Each round turns one text into a boolean.
        let message = e.inner().to_string();
        let mended = message.ends_with("expected a boolean")
            && booleans.next().is_some()
            && to_boolean(&mut value, e.path());
        if !mended {
            return Err(DecodeError::Type(FieldError { field: e.path().to_string(), message }));
        }
    };
    let mut warnings = Vec::new();
    if let Ok(kept) = serde_json::to_value(&object) {
        unknown(&value, &kept, &mut String::new(), &mut warnings);
    }
    Ok(Decoded { object, warnings })
}

/// Replaces the text at `path` by the boolean that YAML 1.1 reads in it; `false` if there is none.
fn to_boolean(value: &mut Value, path: &serde_path_to_error::Path) -> bool {
    use serde_path_to_error::Segment;
    let mut at = value;
    for segment in path.iter() {
        let next = match segment {
            Segment::Seq { index } => at.get_mut(*index),
            Segment::Map { key } => at.get_mut(key.as_str()),
            Segment::Enum { .. } | Segment::Unknown => None,
        };
        let Some(next) = next else { return false };
        at = next;
    }
    *at = match at.as_str() {
        Some("y" | "Y" | "yes" | "Yes" | "YES" | "True" | "TRUE" | "on" | "On" | "ON") => Value::Bool(true),
        Some("n" | "N" | "no" | "No" | "NO" | "False" | "FALSE" | "off" | "Off" | "OFF") => {
            Value::Bool(false)
        }
        _ => return false,
    };
    true
}

/// Every key of `given` that is not in `kept`, the same object after a pass through its type.
fn unknown(given: &Value, kept: &Value, path: &mut String, out: &mut Vec<FieldError>) {
    let at = path.len();
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (key, value) in given.iter().filter(|(_, v)| !v.is_null()) {
                if at > 0 {
                    path.push('.');
                }
                path.push_str(key);
                match kept.get(key) {
                    Some(kept) => unknown(value, kept, path, out),
                    None if out.len() >= LISTED => {}
                    None => out.push(FieldError {
                        field: path.clone(),
                        message: "unknown field, ignored".to_owned(),
                    }),
                }
                path.truncate(at);
            }
        }
        (Value::Array(given), Value::Array(kept)) => {
            for (i, (given, kept)) in given.iter().zip(kept).enumerate() {
                path.push_str(&format!("[{i}]"));
                unknown(given, kept, path, out);
                path.truncate(at);
            }
        }
        _ => {}
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A found value for a message: scalars as they are, anything else by its type.
fn short(value: &Value) -> String {
    match value {
        Value::String(s) if s.len() > 100 => type_name(value).to_owned(),
        Value::Array(_) | Value::Object(_) => type_name(value).to_owned(),
        scalar => scalar.to_string(),
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
