//! Whether a defaulted Pod is one the API would accept; every error names its field.
//!
//! `decode` and `file` call [`pod`]. Pure; it never changes the pod. Rules and messages are those of the API server
//! of 1.36 as observed; what only its admission plugins check (quotas, classes, service accounts) is not here.

mod container;
mod env;
pub mod names;
mod network;
mod probe;
mod resize;
mod resources;
mod scheduling;
mod security;
mod volume;

pub use resize::resize;
pub use volume::sources as volume_sources;

use super::field::{Errors, Path};
use crate::api::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// All that is wrong with `pod`.
pub fn pod(pod: &Pod) -> Errors {
    let mut errors = Errors::default();
    metadata(&pod.metadata, &mut errors);
    if let Some(uid) = pod.metadata.uid.as_deref().filter(|uid| !uid.is_empty()) {
        errors.syntax(&Path::root("metadata").child("uid"), uid, names::uid(uid));
    }
    match pod.spec.as_ref() {
        Some(s) => spec(s, &mut errors),
        None => errors.required(&Path::root("spec").child("containers"), ""),
    }
    errors
}

/// `metadata.annotations` may hold this much text in all.
const ANNOTATIONS_BYTES: usize = 256 << 10;

/// What every object has.
pub fn metadata(meta: &ObjectMeta, errors: &mut Errors) {
    let at = Path::root("metadata");
    match (meta.name.as_deref().unwrap_or_default(), meta.generate_name.as_deref().unwrap_or_default()) {
        ("", "") => errors.required(&at.child("name"), "name or generateName is required"),
        ("", _) => errors.required(&at.child("name"), "generateName makes no name without an API server"),
        (name, _) => errors.syntax(&at.child("name"), name, names::dns_subdomain(name)),
    }
    if let Some(namespace) = meta.namespace.as_deref().filter(|n| !n.is_empty()) {
        errors.syntax(&at.child("namespace"), namespace, names::dns_label(namespace));
    }
    labels(meta.labels.iter().flatten(), &at.child("labels"), errors);
    let annotations = at.child("annotations");
    let mut size = 0;
    for (key, value) in meta.annotations.iter().flatten() {
        // Prefixes of annotations may be in any case.
        errors.syntax(&annotations, key, names::qualified_name(&lowercase_prefix(key)));
        size += key.len() + value.len();
    }
    if size > ANNOTATIONS_BYTES {
        errors.too_long(&annotations, ANNOTATIONS_BYTES);
    }
}

fn lowercase_prefix(key: &str) -> String {
    match key.split_once('/') {
        Some((prefix, name)) => format!("{}/{name}", prefix.to_lowercase()),
        None => key.to_owned(),
    }
}

/// Keys and values of a label map; the errors name the map, as the API server's do.
fn labels<'a>(map: impl Iterator<Item = (&'a String, &'a String)>, at: &Path<'_>, errors: &mut Errors) {
    for (key, value) in map {
        errors.syntax(at, key, names::qualified_name(key));
        errors.syntax(at, value, names::label_value(value));
    }
}

fn spec(spec: &PodSpec, errors: &mut Errors) {
    let at = &Path::root("spec");
    volume::volumes(spec, at, errors);
    container::all(spec, at, errors);
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    errors.one_of(&at.child("restartPolicy"), &text(&spec.restart_policy), &["Always", "OnFailure", "Never"]);
    network::dns_policy(spec, at, errors);
    labels(spec.node_selector.iter().flatten(), &at.child("nodeSelector"), errors);
    security::pod(spec, at, errors);
    scheduling::pod(spec, at, errors);
    network::host_names(spec, at, errors);
    if let Some(seconds) = spec.active_deadline_seconds {
        errors.between(&at.child("activeDeadlineSeconds"), seconds, 1, i64::from(i32::MAX));
    }
    resources::pod(spec, at, errors);
    if let Some(os) = &spec.os {
        errors.one_of(&at.child("os").child("name"), &os.name, &["linux", "windows"]);
    }
}

#[cfg(test)]
#[path = "../validate_tests.rs"]
mod tests;
