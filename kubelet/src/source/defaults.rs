//! The API's defaulting of a v1 Pod: what a field means when a manifest leaves it out.
//!
//! `decode` and `file` call [`apply`] between decoding and validating. Pure and idempotent. The values are those that
//! the API server of 1.36 was observed to fill in; what its admission plugins add (service account, default
//! tolerations, priority) is not defaulting and not here.

use crate::api::{Container, Pod, PodSpec, Volume};
use crate::quantity;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// A list of resources by name.
pub type ResourceList = BTreeMap<String, Quantity>;

/// Fills in every default of `pod`. A pod without a spec gets the empty one, for validation to complain about.
pub fn apply(pod: &mut Pod) {
    let spec = pod.spec.get_or_insert_default();
    pod_fields(spec);
    let host_network = spec.host_network == Some(true);
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        apply_container(container, host_network);
    }
    for c in spec.ephemeral_containers.iter_mut().flatten() {
        container_fields(&mut c.image_pull_policy, c.image.as_deref(), &mut c.termination_message_path);
        set(&mut c.termination_message_policy, "File");
        c.resources.get_or_insert_default();
        c.env.iter_mut().flatten().for_each(env);
    }
    for volume in spec.volumes.iter_mut().flatten() {
        apply_volume(volume);
    }
    pod_resources(spec);
}

fn set(field: &mut Option<String>, default: &str) {
    if field.as_ref().is_none_or(String::is_empty) {
        *field = Some(default.to_owned());
    }
}

fn pod_fields(spec: &mut PodSpec) {
    set(&mut spec.dns_policy, "ClusterFirst");
    set(&mut spec.restart_policy, "Always");
    set(&mut spec.scheduler_name, "default-scheduler");
    spec.enable_service_links.get_or_insert(true);
    spec.security_context.get_or_insert_default();
    let grace = spec.termination_grace_period_seconds.get_or_insert(30);
    // The API accepts a negative grace and every reader of it means the shortest one.
    if *grace < 0 {
        *grace = 1;
    }
}

fn apply_container(c: &mut Container, host_network: bool) {
    container_fields(&mut c.image_pull_policy, c.image.as_deref(), &mut c.termination_message_path);
    set(&mut c.termination_message_policy, "File");
    let resources = c.resources.get_or_insert_default();
    if let Some(limits) = resources.limits.as_ref().filter(|l| !l.is_empty()) {
        let requests = resources.requests.get_or_insert_default();
        for (name, limit) in limits {
            requests.entry(name.clone()).or_insert_with(|| limit.clone());
        }
    }
    for port in c.ports.iter_mut().flatten() {
        set(&mut port.protocol, "TCP");
        if host_network && port.host_port.unwrap_or(0) == 0 && port.container_port != 0 {
            port.host_port = Some(port.container_port);
        }
    }
    c.env.iter_mut().flatten().for_each(env);
    for p in [&mut c.liveness_probe, &mut c.readiness_probe, &mut c.startup_probe].into_iter().flatten() {
        probe(p);
    }
    if let Some(lifecycle) = c.lifecycle.as_mut() {
        for handler in [&mut lifecycle.post_start, &mut lifecycle.pre_stop].into_iter().flatten() {
            handler.http_get.iter_mut().for_each(http_get);
        }
    }
}

/// What all three kinds of containers share.
fn container_fields(pull: &mut Option<String>, image: Option<&str>, message_path: &mut Option<String>) {
    set(pull, pull_policy(image.unwrap_or_default()));
    set(message_path, "/dev/termination-log");
}

/// `Always` for the tag `latest`, given or implied; a digest implies none.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, false), |(name, _)| (name, true));
    let tag = name.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
    match tag {
        Some("latest") => "Always",
        None if !digest => "Always",
        _ => "IfNotPresent",
    }
}

fn env(var: &mut core::EnvVar) {
    let Some(from) = var.value_from.as_mut() else { return };
    from.field_ref.iter_mut().for_each(field_ref);
    from.resource_field_ref.iter_mut().for_each(resource_field_ref);
    if let Some(file) = from.file_key_ref.as_mut() {
        file.optional.get_or_insert(false);
    }
}

fn field_ref(selector: &mut core::ObjectFieldSelector) {
    set(&mut selector.api_version, "v1");
}

fn resource_field_ref(selector: &mut core::ResourceFieldSelector) {
    selector.divisor.get_or_insert_with(|| Quantity("0".to_owned()));
}

fn probe(p: &mut core::Probe) {
    for (field, default) in [
        (&mut p.timeout_seconds, 1),
        (&mut p.period_seconds, 10),
        (&mut p.success_threshold, 1),
        (&mut p.failure_threshold, 3),
    ] {
        if field.unwrap_or(0) == 0 {
            *field = Some(default);
        }
    }
    p.http_get.iter_mut().for_each(http_get);
    if let Some(grpc) = p.grpc.as_mut() {
        grpc.service.get_or_insert_default();
    }
}

fn http_get(action: &mut core::HTTPGetAction) {
    set(&mut action.path, "/");
    set(&mut action.scheme, "HTTP");
}

/// The mode of files made from an API object: 0644.
const FILE_MODE: i32 = 0o644;

fn apply_volume(v: &mut Volume) {
    if !super::validate::volume_sources(v).any(|(_, set)| set) {
        v.empty_dir = Some(core::EmptyDirVolumeSource::default());
    }
    if let Some(host_path) = v.host_path.as_mut() {
        host_path.type_.get_or_insert_default();
    }
    if let Some(secret) = v.secret.as_mut() {
        secret.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(config_map) = v.config_map.as_mut() {
        config_map.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(downward) = v.downward_api.as_mut() {
        downward.default_mode.get_or_insert(FILE_MODE);
        downward.items.iter_mut().flatten().for_each(downward_file);
    }
    if let Some(projected) = v.projected.as_mut() {
        projected.default_mode.get_or_insert(FILE_MODE);
        for source in projected.sources.iter_mut().flatten() {
            if let Some(token) = source.service_account_token.as_mut() {
                token.expiration_seconds.get_or_insert(3600);
            }
            let items = source.downward_api.iter_mut().flat_map(|d| d.items.iter_mut().flatten());
            items.for_each(downward_file);
        }
    }
    if let Some(image) = v.image.as_mut() {
        set(&mut image.pull_policy, pull_policy(image.reference.as_deref().unwrap_or_default()));
    }
    if let Some(claim) = v.ephemeral.as_mut().and_then(|e| e.volume_claim_template.as_mut()) {
        set(&mut claim.spec.volume_mode, "Filesystem");
        claim.metadata.get_or_insert_default();
    }
    legacy_volume(v);
}

fn downward_file(file: &mut core::DownwardAPIVolumeFile) {
    file.field_ref.iter_mut().for_each(field_ref);
    file.resource_field_ref.iter_mut().for_each(resource_field_ref);
}

/// Sources of the in-tree storage drivers.
fn legacy_volume(v: &mut Volume) {
    if let Some(iscsi) = v.iscsi.as_mut() {
        set(&mut iscsi.iscsi_interface, "default");
    }
    if let Some(rbd) = v.rbd.as_mut() {
        set(&mut rbd.pool, "rbd");
        set(&mut rbd.user, "admin");
        set(&mut rbd.keyring, "/etc/ceph/keyring");
    }
    if let Some(azure) = v.azure_disk.as_mut() {
        set(&mut azure.caching_mode, "ReadWrite");
        set(&mut azure.kind, "Shared");
        set(&mut azure.fs_type, "ext4");
        azure.read_only.get_or_insert(false);
    }
    if let Some(scale_io) = v.scale_io.as_mut() {
        set(&mut scale_io.storage_mode, "ThinProvisioned");
        set(&mut scale_io.fs_type, "xfs");
    }
}

/// Pod-level requests (KEP-2837): where the pod states resources of its own, a request it leaves out is the sum of
/// the containers' where they have one, and else the pod's limit.
fn pod_resources(spec: &mut PodSpec) {
    let containers = container_requests(spec);
    let Some(resources) = spec.resources.as_mut() else { return };
    let limits = resources.limits.clone().unwrap_or_default();
    let mut requests = resources.requests.clone().unwrap_or_default();
    if limits.is_empty() && requests.is_empty() {
        return;
    }
    for (name, sum) in containers {
        if matches!(name.as_str(), "cpu" | "memory") {
            requests.entry(name).or_insert(sum);
        }
    }
    for (name, limit) in limits {
        if pod_level_resource(&name) {
            requests.entry(name).or_insert(limit);
        }
    }
    if !requests.is_empty() {
        resources.requests = Some(requests);
    }
}

/// Whether `spec.resources` may name it.
pub(super) fn pod_level_resource(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// What the containers request together: containers and sidecars at once, or one init container with the sidecars
/// started before it, whichever is more.
pub(super) fn container_requests(spec: &PodSpec) -> ResourceList {
    let mut running: BTreeMap<&str, quantity::Nano> = BTreeMap::new();
    let mut initialising: BTreeMap<&str, quantity::Nano> = BTreeMap::new();
    // An unparsable quantity counts as nothing here and is an error in validation.
    let requests = |c: &'_ Container| -> Vec<(String, quantity::Nano)> {
        let list = c.resources.as_ref().and_then(|r| r.requests.clone()).unwrap_or_default();
        list.into_iter().filter_map(|(name, q)| Some((name, quantity::parse(&q.0).ok()?))).collect()
    };
    let all: Vec<_> = spec.init_containers.iter().flatten().map(|c| (c, true)).collect();
    let all = all.into_iter().chain(spec.containers.iter().map(|c| (c, false)));
    let lists: Vec<_> =
        all.map(|(c, init)| (requests(c), init && c.restart_policy.as_deref() != Some("Always"))).collect();
    for (list, once) in &lists {
        for (name, amount) in list {
            let so_far = running.get(name.as_str()).copied().unwrap_or_default();
            match once {
                true => {
                    let peak = initialising.entry(name).or_default();
                    *peak = (*peak).max(so_far.plus(*amount));
                }
                false => drop(running.insert(name, so_far.plus(*amount))),
            }
        }
    }
    for (name, peak) in initialising {
        let sum = running.entry(name).or_default();
        *sum = (*sum).max(peak);
    }
    let text = |name: &str, n: quantity::Nano| {
        if name == "cpu" { n.to_string() } else { quantity::binary(n.value()) }
    };
    running.into_iter().map(|(name, n)| (name.to_owned(), Quantity(text(name, n)))).collect()
}

#[cfg(test)]
#[path = "defaults_tests.rs"]
mod tests;
