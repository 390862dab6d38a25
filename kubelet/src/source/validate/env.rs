//! Environment variables and the fields and resources they, and downward API files, may name.

use super::super::field::{Errors, Path};
use super::names;
use crate::api::Container;
use crate::quantity;
use k8s_openapi::api::core::v1 as core;

/// Fields of the pod that an environment variable may show.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Fields of the pod that a downward API file may show.
const FILE_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// `env` and `envFrom` of `c`.
pub fn container(c: &Container, at: &Path<'_>, errors: &mut Errors) {
    let list = at.child("env");
    for (i, var) in c.env.iter().flatten().enumerate() {
        let item = list.index(i);
        match var.name.as_str() {
            "" => errors.required(&item.child("name"), ""),
            name => errors.syntax(&item.child("name"), name, names::env_name(name)),
        }
        if let Some(from) = &var.value_from {
            source(from, &item.child("valueFrom"), errors);
            if var.value.as_ref().is_some_and(|v| !v.is_empty()) {
                errors.invalid(
                    &item.child("valueFrom"),
                    "",
                    "may not be specified when `value` is not empty",
                );
            }
        }
    }
    let list = at.child("envFrom");
    for (i, from) in c.env_from.iter().flatten().enumerate() {
        let item = list.index(i);
        if let Some(prefix) = from.prefix.as_deref().filter(|p| !p.is_empty()) {
            errors.syntax(&item.child("prefix"), prefix, names::env_name(prefix));
        }
        match (&from.config_map_ref, &from.secret_ref) {
            (Some(_), Some(_)) => {
                errors.invalid(&item, "", "may not have more than one field specified at a time")
            }
            (None, None) => errors.invalid(&item, "", "must specify one of: `configMapRef` or `secretRef`"),
            (Some(r), None) => api_name(&r.name, &item.child("configMapRef").child("name"), errors),
            (None, Some(r)) => api_name(&r.name, &item.child("secretRef").child("name"), errors),
        }
    }
}

/// The name of a referenced object.
pub fn api_name(name: &str, at: &Path<'_>, errors: &mut Errors) {
    match name {
        "" => errors.required(at, ""),
        name => errors.syntax(at, name, names::dns_subdomain(name)),
    }
}

fn source(from: &core::EnvVarSource, at: &Path<'_>, errors: &mut Errors) {
    let mut sources = 0;
    if let Some(f) = &from.field_ref {
        sources += 1;
        field_ref(f, ENV_FIELDS, &at.child("fieldRef"), errors);
    }
    if let Some(r) = &from.resource_field_ref {
        sources += 1;
        resource_field_ref(r, false, &at.child("resourceFieldRef"), errors);
    }
    if let Some(r) = &from.config_map_key_ref {
        sources += 1;
        key_ref(&r.name, &r.key, &at.child("configMapKeyRef"), errors);
    }
    if let Some(r) = &from.secret_key_ref {
        sources += 1;
        key_ref(&r.name, &r.key, &at.child("secretKeyRef"), errors);
    }
    if let Some(f) = &from.file_key_ref {
        sources += 1;
        file_key_ref(f, &at.child("fileKeyRef"), errors);
    }
    match sources {
        0 => errors.invalid(
            at,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        ),
        1 => {}
        _ => errors.invalid(at, "", "may not have more than one field specified at a time"),
    }
}

fn key_ref(name: &str, key: &str, at: &Path<'_>, errors: &mut Errors) {
    api_name(name, &at.child("name"), errors);
    match key {
        "" => errors.required(&at.child("key"), ""),
        key => errors.syntax(&at.child("key"), key, names::config_key(key)),
    }
}

/// A variable from a file in a volume of the pod (KEP-3721).
fn file_key_ref(f: &core::FileKeySelector, at: &Path<'_>, errors: &mut Errors) {
    match f.key.as_str() {
        "" => errors.required(&at.child("key"), ""),
        key => errors.syntax(&at.child("key"), key, names::env_name(key)),
    }
    match f.volume_name.as_str() {
        "" => errors.required(&at.child("volumeName"), ""),
        name => errors.syntax(&at.child("volumeName"), name, names::dns_label(name)),
    }
    match f.path.as_str() {
        "" => errors.required(&at.child("path"), ""),
        path => errors.syntax(&at.child("path"), path, names::relative_path(path)),
    }
}

fn field_ref(f: &core::ObjectFieldSelector, allowed: &[&str], at: &Path<'_>, errors: &mut Errors) {
    match f.api_version.as_deref() {
        None | Some("") => errors.required(&at.child("apiVersion"), ""),
        Some("v1") => {}
        Some(other) => errors.unsupported(&at.child("apiVersion"), other, &["v1"]),
    }
    let (at, path) = (&at.child("fieldPath"), f.field_path.as_str());
    if path.is_empty() {
        return errors.required(at, "");
    }
    if let Some((map, rest)) = path.split_once("['") {
        let Some(key) = rest.strip_suffix("']") else {
            return errors.invalid(at, path, "invalid subscript: expected ['key']");
        };
        match map {
            "metadata.labels" => errors.syntax(at, key, names::qualified_name(key)),
            "metadata.annotations" => {
                errors.syntax(at, key, names::qualified_name(&super::lowercase_prefix(key)))
            }
            _ => errors.invalid(
                at,
                path,
                &format!("error converting fieldPath: field label does not support subscript: {map}"),
            ),
        }
        return;
    }
    let known = ENV_FIELDS.contains(&path) || FILE_FIELDS.contains(&path);
    match (known, allowed.contains(&path)) {
        (_, true) => {}
        (true, false) => errors.unsupported(at, path, allowed),
        (false, false) => {
            errors.invalid(
                at,
                path,
                &format!("error converting fieldPath: field label not supported: {path}"),
            );
        }
    }
}

/// The resources a variable or file may show.
const SHOWN: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

fn resource_field_ref(r: &core::ResourceFieldSelector, volume: bool, at: &Path<'_>, errors: &mut Errors) {
    if volume && r.container_name.as_ref().is_none_or(String::is_empty) {
        errors.required(&at.child("containerName"), "");
    }
    let resource_at = at.child("resource");
    let huge = |r: &str| r.starts_with("limits.hugepages-") || r.starts_with("requests.hugepages-");
    match r.resource.as_str() {
        "" => return errors.required(&resource_at, ""),
        known if SHOWN.contains(&known) || huge(known) => {}
        other => return errors.unsupported(&resource_at, other, SHOWN),
    }
    let Some(divisor) = r.divisor.as_ref().map(|q| q.0.as_str()) else { return };
    let divisor_at = at.child("divisor");
    let allowed: &[&str] = match r.resource.ends_with(".cpu") {
        true => &["1", "1m"],
        false => &["1", "1E", "1Ei", "1G", "1Gi", "1Ki", "1M", "1Mi", "1P", "1Pi", "1T", "1Ti", "1k"],
    };
    match quantity::parse(divisor) {
        Err(e) => errors.invalid(&divisor_at, divisor, &e.to_string()),
        // Zero is "not set".
        Ok(n) if n == quantity::Nano::default() || allowed.iter().any(|a| quantity::parse(a) == Ok(n)) => {}
        Ok(_) => errors.unsupported(&divisor_at, divisor, allowed),
    }
}

/// One file of a downward API volume.
pub fn downward_file(file: &core::DownwardAPIVolumeFile, at: &Path<'_>, errors: &mut Errors) {
    match file.path.as_str() {
        "" => errors.required(&at.child("path"), ""),
        path => errors.syntax(&at.child("path"), path, names::file_path(path).err()),
    }
    match (&file.field_ref, &file.resource_field_ref) {
        (Some(f), None) => field_ref(f, FILE_FIELDS, &at.child("fieldRef"), errors),
        (None, Some(r)) => resource_field_ref(r, true, &at.child("resourceFieldRef"), errors),
        (None, None) => errors.required(at, "one of fieldRef and resourceFieldRef is required"),
        (Some(_), Some(_)) => errors.invalid(
            at,
            "resource",
            "fieldRef and resourceFieldRef can not be specified simultaneously",
        ),
    }
    if let Some(mode) = file.mode {
        errors.mode(&at.child("mode"), mode);
    }
}
