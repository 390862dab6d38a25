//! From the bytes of a file to a ConfigMap or Secret that the API server would take.
//!
//! `file` calls [`object`]. Pure. Stricter than manifests of pods, which upstream's leniency binds: a field nobody knows
//! and a repeated key are errors, for a typing mistake in an object is data that a pod misses. Errors name the field and
//! never quote what a Secret holds.

use super::{Key, Kind, Object};
use crate::source::decode::{DecodeError, Decoded, Document};
use crate::source::field::{Errors, FieldError, Path};
use crate::source::validate::{self, names};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The largest object: 1 MiB of values, the API server's own bound.
pub const MAX_BYTES: usize = 1 << 20;

/// Decodes and validates the object of one file.
///
/// # Errors
/// Everything that is wrong with it.
pub fn object(bytes: &[u8]) -> Result<Object, DecodeError> {
    let document = Document::read(bytes, &["ConfigMap", "Secret"])?;
    match document.kind {
        "Secret" => secret(strict(document).map_err(without_values)?),
        _ => config_map(strict(document)?),
    }
}

/// The object, if nothing of its text was read over.
fn strict<T: DeserializeOwned + Serialize>(document: Document) -> Result<T, DecodeError> {
    let Decoded { object, warnings } = document.typed()?;
    if warnings.is_empty() {
        return Ok(object);
    }
    let mut errors = Errors::default();
    for FieldError { field, message } in warnings {
        let message = message.trim_end_matches(", ignored").replace("the last value wins: ", "");
        errors.add(FieldError { field, message });
    }
    Err(DecodeError::Invalid(errors))
}

/// A Secret's values do not belong into a log, not even wrong ones.
fn without_values(e: DecodeError) -> DecodeError {
    match e {
        DecodeError::Type(e) if e.field.starts_with("data") => DecodeError::Type(FieldError {
            message: "must be text, the value in base64".to_owned(),
            field: e.field,
        }),
        DecodeError::Type(e) if e.field.starts_with("stringData") => {
            DecodeError::Type(FieldError { message: "must be text".to_owned(), field: e.field })
        }
        other => other,
    }
}

fn config_map(map: ConfigMap) -> Result<Object, DecodeError> {
    let mut errors = Errors::default();
    let key = identity(Kind::ConfigMap, &map.metadata, &mut errors);
    let (data_at, binary_at) = (Path::root("data"), Path::root("binaryData"));
    let texts = map.data.unwrap_or_default();
    let data: BTreeMap<String, Arc<[u8]>> =
        texts.into_iter().map(|(k, v)| (k, v.into_bytes().into())).collect();
    let binary = bytes(map.binary_data.unwrap_or_default());
    keys(data.keys(), &data_at, &mut errors);
    keys(binary.keys(), &binary_at, &mut errors);
    for name in data.keys().filter(|k| binary.contains_key(*k)) {
        errors.invalid(&data_at.key(name), name, "duplicate of key present in binaryData");
    }
    size(data.values().chain(binary.values()), &data_at, &mut errors);
    let (immutable, uid) = (map.immutable == Some(true), map.metadata.uid.unwrap_or_default());
    finish(Object { key, data, binary, type_: String::new(), immutable, uid }, errors)
}

fn secret(secret: Secret) -> Result<Object, DecodeError> {
    let mut errors = Errors::default();
    let key = identity(Kind::Secret, &secret.metadata, &mut errors);
    let data_at = Path::root("data");
    let mut data = bytes(secret.data.unwrap_or_default());
    keys(data.keys(), &data_at, &mut errors);
    let texts = secret.string_data.unwrap_or_default();
    keys(texts.keys(), &Path::root("stringData"), &mut errors);
    data.extend(texts.into_iter().map(|(k, v)| (k, v.into_bytes().into())));
    size(data.values(), &data_at, &mut errors);
    let type_ = secret.type_.filter(|t| !t.is_empty()).unwrap_or_else(|| "Opaque".to_owned());
    typed(&type_, &data, &data_at, &mut errors);
    let (immutable, uid) = (secret.immutable == Some(true), secret.metadata.uid.unwrap_or_default());
    finish(Object { key, data, binary: BTreeMap::new(), type_, immutable, uid }, errors)
}

/// What Secrets of the known types must hold.
fn typed(type_: &str, data: &BTreeMap<String, Arc<[u8]>>, at: &Path<'_>, errors: &mut Errors) {
    let required: &[&str] = match type_ {
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        _ => &[],
    };
    for name in required.iter().filter(|name| !data.contains_key(**name)) {
        errors.required(&at.key(name), &format!("a Secret of type {type_} has it"));
    }
    let basic = ["username", "password"];
    if type_ == "kubernetes.io/basic-auth" && !basic.iter().any(|name| data.contains_key(*name)) {
        errors.required(&at.key("username"), "a Secret of type kubernetes.io/basic-auth has it or password");
    }
}

fn bytes(map: BTreeMap<String, ByteString>) -> BTreeMap<String, Arc<[u8]>> {
    map.into_iter().map(|(k, v)| (k, v.0.into())).collect()
}

fn identity(kind: Kind, meta: &ObjectMeta, errors: &mut Errors) -> Key {
    validate::metadata(meta, errors);
    let namespace = meta.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
    Key::new(kind, namespace, meta.name.as_deref().unwrap_or_default())
}

fn keys<'a>(keys: impl Iterator<Item = &'a String>, at: &Path<'_>, errors: &mut Errors) {
    for key in keys {
        errors.syntax(&at.key(key), key, names::config_key(key));
    }
}

fn size<'a>(values: impl Iterator<Item = &'a Arc<[u8]>>, at: &Path<'_>, errors: &mut Errors) {
    if values.map(|v| v.len()).sum::<usize>() > MAX_BYTES {
        errors.too_long(at, MAX_BYTES);
    }
}

fn finish(object: Object, errors: Errors) -> Result<Object, DecodeError> {
    if errors.is_empty() { Ok(object) } else { Err(DecodeError::Invalid(errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Object, String> {
        object(text.as_bytes()).map_err(|e| e.to_string())
    }

    fn map(more: &str) -> String {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m}}\n{more}")
    }

    fn secret(more: &str) -> String {
        format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: s, namespace: ns}}\n{more}")
    }

    #[test]
    fn an_object_has_its_identity_and_its_bytes() {
        let m = read(&map("data: {a: va, n: '1'}\nbinaryData: {b: AAEC}\nimmutable: true")).unwrap();
        assert_eq!(m.key, Key::new(Kind::ConfigMap, "default", "m"));
        assert_eq!(m.get("a").map(|v| &v[..]), Some(&b"va"[..]));
        assert_eq!(m.get("b").map(|v| &v[..]), Some(&[0, 1, 2][..]));
        assert!(m.immutable && !m.data.contains_key("b"));
        let s = read(&secret("data: {a: QUE=, b: QkI=}\nstringData: {b: over, c: '\\x'}")).unwrap();
        assert_eq!(s.key, Key::new(Kind::Secret, "ns", "s"));
        let text: Vec<_> =
            s.data.iter().map(|(k, v)| format!("{k}={}", String::from_utf8_lossy(v))).collect();
        assert_eq!(text, ["a=AA", "b=over", "c=\\x"]);
        assert!(!format!("{s:?}").contains("over"), "values are not printed");
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        let long = "k".repeat(300);
        for (text, want) in [
            (
                "apiVersion: v1\nkind: Pod\n".to_owned(),
                "kind: expected \"ConfigMap\" or \"Secret\", found \"Pod\"",
            ),
            (
                "apiVersion: v1\nkind: ServiceAccount\n".to_owned(),
                "kind: expected \"ConfigMap\" or \"Secret\", found \"ServiceAccount\"",
            ),
            ("apiVersion: v2\nkind: Secret\n".to_owned(), "apiVersion: expected \"v1\", found \"v2\""),
            (
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Not_A_Name}".to_owned(),
                "metadata.name: Invalid value: \"Not_A_Name\"",
            ),
            ("apiVersion: v1\nkind: ConfigMap\ndata: {}".to_owned(), "metadata.name: Required value"),
            (map("data: {'a/b': x}"), "data[a/b]: Invalid value: \"a/b\": a valid config key"),
            (map("data: {'..': x}"), "data[..]: Invalid value: \"..\": must not be '..'"),
            (map("data: {'..x': x}"), "data[..x]: Invalid value"),
            (map("data: {'.': x}"), "data[.]: Invalid value: \".\": must not be '.'"),
            (map("data: {\"a\\0b\": x}"), "data[a\0b]: Invalid value"),
            (map(&format!("data: {{{long}: x}}")), &format!("data[{long}]: Invalid value")),
            (map("data: {a: 1}"), "data.a: invalid type"),
            (map("data: {a: x}\nbinaryData: {a: AA==}"), "data[a]: Invalid value: \"a\": duplicate of key"),
            (map("data: {a: x, a: y}"), "a: "),
            (map("dta: {a: x}"), "dta: unknown field"),
            (map("binaryData: {a: '#'}"), "binaryData.a: "),
            (secret("type: kubernetes.io/tls\ndata: {tls.crt: QQ==}"), "data[tls.key]: Required value"),
            (secret("type: kubernetes.io/basic-auth"), "data[username]: Required value"),
        ] {
            let got = read(&text).unwrap_err();
            let got = got.trim_start_matches("invalid: ").trim_start_matches('[');
            assert!(got.starts_with(want), "{text:?}: {got}");
        }
    }

    #[test]
    fn a_secret_that_cannot_be_read_is_not_quoted() {
        for text in [
            "data: {a: 'hunter2!'}",
            "data: {a: 77007}",
            "stringData: {a: 77007}",
            "stringData: {a: [hunter2]}",
        ] {
            let got = read(&secret(text)).unwrap_err();
            assert!(got.contains("ata.a: must be text"), "{got}");
            assert!(!got.contains("hunter2") && !got.contains("77007"), "{got}");
        }
    }

    #[test]
    fn a_mebibyte_is_taken_and_one_byte_more_is_not() {
        let of = |n: usize| map(&format!("data: {{a: {}}}\nbinaryData: {{b: AA==}}", "x".repeat(n)));
        assert!(read(&of(MAX_BYTES - 1)).is_ok());
        let got = read(&of(MAX_BYTES)).unwrap_err();
        assert!(got.contains("data: Too long"), "{got}");
    }
}
