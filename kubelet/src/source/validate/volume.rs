//! Volumes and how containers mount them.

use super::super::field::{Errors, Path};
use super::{env, names};
use crate::api::{Container, PodSpec, Volume};
use crate::quantity;
use k8s_openapi::api::core::v1 as core;
use std::collections::{HashMap, HashSet};

/// Every source a volume can have, by its field's name, and whether `v` has it.
pub fn sources(v: &Volume) -> impl Iterator<Item = (&'static str, bool)> {
    [
        ("emptyDir", v.empty_dir.is_some()),
        ("hostPath", v.host_path.is_some()),
        ("gitRepo", v.git_repo.is_some()),
        ("gcePersistentDisk", v.gce_persistent_disk.is_some()),
        ("awsElasticBlockStore", v.aws_elastic_block_store.is_some()),
        ("secret", v.secret.is_some()),
        ("nfs", v.nfs.is_some()),
        ("iscsi", v.iscsi.is_some()),
        ("glusterfs", v.glusterfs.is_some()),
        ("persistentVolumeClaim", v.persistent_volume_claim.is_some()),
        ("rbd", v.rbd.is_some()),
        ("cinder", v.cinder.is_some()),
        ("cephfs", v.cephfs.is_some()),
        ("flocker", v.flocker.is_some()),
        ("downwardAPI", v.downward_api.is_some()),
        ("fc", v.fc.is_some()),
        ("flexVolume", v.flex_volume.is_some()),
        ("configMap", v.config_map.is_some()),
        ("azureFile", v.azure_file.is_some()),
        ("vsphereVolume", v.vsphere_volume.is_some()),
        ("quobyte", v.quobyte.is_some()),
        ("azureDisk", v.azure_disk.is_some()),
        ("storageos", v.storageos.is_some()),
        ("photonPersistentDisk", v.photon_persistent_disk.is_some()),
        ("projected", v.projected.is_some()),
        ("portworxVolume", v.portworx_volume.is_some()),
        ("scaleIO", v.scale_io.is_some()),
        ("csi", v.csi.is_some()),
        ("ephemeral", v.ephemeral.is_some()),
        ("image", v.image.is_some()),
    ]
    .into_iter()
}

/// `spec.volumes`.
pub fn volumes(spec: &PodSpec, at: &Path<'_>, errors: &mut Errors) {
    let list = at.child("volumes");
    let mut seen = HashSet::new();
    for (i, v) in spec.volumes.iter().flatten().enumerate() {
        let item = list.index(i);
        let name_at = item.child("name");
        match v.name.as_str() {
            "" => errors.required(&name_at, ""),
            name => {
                errors.syntax(&name_at, name, names::dns_label(name));
                if !seen.insert(name) {
                    errors.duplicate(&name_at, name);
                }
            }
        }
        let mut found = sources(v).filter(|(_, set)| *set);
        if found.next().is_none() {
            errors.required(&item, "must specify a volume type");
        }
        for (field, _) in found {
            errors.forbidden(&item.child(field), "may not specify more than 1 volume type");
        }
        local_source(v, &item, errors);
        object_source(v, &item, errors);
        storage_source(v, &item, errors);
    }
}

fn need(at: &Path<'_>, field: &str, value: &str, errors: &mut Errors) {
    if value.is_empty() {
        errors.required(&at.child(field), "");
    }
}

/// Sources on the node itself.
fn local_source(v: &Volume, at: &Path<'_>, errors: &mut Errors) {
    if let Some(dir) = &v.empty_dir {
        let at = at.child("emptyDir");
        let medium = dir.medium.as_deref().unwrap_or_default();
        if !matches!(medium, "" | "Memory" | "HugePages") && !medium.starts_with("HugePages-") {
            errors.unsupported(&at.child("medium"), medium, &["", "Memory", "HugePages", "HugePages-<size>"]);
        }
        if let Some(limit) = &dir.size_limit {
            let at = at.child("sizeLimit");
            match quantity::parse(&limit.0) {
                Err(e) => errors.invalid(&at, &limit.0, &e.to_string()),
                Ok(n) if n.is_negative() => {
                    errors.forbidden(&at, "SizeLimit field must be a valid resource quantity");
                }
                Ok(_) => {}
            }
        }
    }
    if let Some(host_path) = &v.host_path {
        let at = at.child("hostPath");
        need(&at, "path", &host_path.path, errors);
        errors.syntax(&at.child("path"), &host_path.path, names::backsteps(&host_path.path));
        const TYPES: &[&str] = &[
            "",
            "BlockDevice",
            "CharDevice",
            "Directory",
            "DirectoryOrCreate",
            "File",
            "FileOrCreate",
            "Socket",
        ];
        errors.one_of(&at.child("type"), host_path.type_.as_deref().unwrap_or_default(), TYPES);
    }
    if let Some(image) = &v.image {
        let at = at.child("image");
        need(&at, "reference", image.reference.as_deref().unwrap_or_default(), errors);
        let policy = image.pull_policy.as_deref().unwrap_or_default();
        errors.one_of(&at.child("pullPolicy"), policy, &["Always", "IfNotPresent", "Never"]);
    }
}

/// Sources that show objects of the API and fields of the pod.
fn object_source(v: &Volume, at: &Path<'_>, errors: &mut Errors) {
    if let Some(secret) = &v.secret {
        let at = at.child("secret");
        need(&at, "secretName", secret.secret_name.as_deref().unwrap_or_default(), errors);
        default_mode(secret.default_mode, &at, errors);
        items(secret.items.as_deref(), &at, errors);
    }
    if let Some(config_map) = &v.config_map {
        let at = at.child("configMap");
        need(&at, "name", &config_map.name, errors);
        default_mode(config_map.default_mode, &at, errors);
        items(config_map.items.as_deref(), &at, errors);
    }
    if let Some(downward) = &v.downward_api {
        let at = at.child("downwardAPI");
        default_mode(downward.default_mode, &at, errors);
        downward_items(downward.items.as_deref(), &at, errors);
    }
    if let Some(projected) = &v.projected {
        let at = at.child("projected");
        default_mode(projected.default_mode, &at, errors);
        let list = at.child("sources");
        for (i, source) in projected.sources.iter().flatten().enumerate() {
            projection(source, &list.index(i), errors);
        }
        one_file_each(projected, &at, errors);
    }
    if let Some(claim) = &v.persistent_volume_claim {
        need(&at.child("persistentVolumeClaim"), "claimName", &claim.claim_name, errors);
    }
    if v.ephemeral.as_ref().is_some_and(|e| e.volume_claim_template.is_none()) {
        errors.required(&at.child("ephemeral").child("volumeClaimTemplate"), "");
    }
}

fn projection(s: &core::VolumeProjection, at: &Path<'_>, errors: &mut Errors) {
    let parts = [
        ("configMap", s.config_map.is_some()),
        ("secret", s.secret.is_some()),
        ("downwardAPI", s.downward_api.is_some()),
        ("serviceAccountToken", s.service_account_token.is_some()),
        ("clusterTrustBundle", s.cluster_trust_bundle.is_some()),
        ("podCertificate", s.pod_certificate.is_some()),
    ];
    let mut found = parts.into_iter().filter(|(_, set)| *set);
    if found.next().is_none() {
        errors.required(at, "must specify a volume source");
    }
    for (field, _) in found {
        errors.forbidden(&at.child(field), "may not specify more than 1 volume type");
    }
    if let Some(config_map) = &s.config_map {
        let at = at.child("configMap");
        need(&at, "name", &config_map.name, errors);
        items(config_map.items.as_deref(), &at, errors);
    }
    if let Some(secret) = &s.secret {
        let at = at.child("secret");
        need(&at, "name", &secret.name, errors);
        items(secret.items.as_deref(), &at, errors);
    }
    if let Some(downward) = &s.downward_api {
        downward_items(downward.items.as_deref(), &at.child("downwardAPI"), errors);
    }
    if let Some(token) = &s.service_account_token {
        let at = at.child("serviceAccountToken");
        need(&at, "path", &token.path, errors);
        errors.syntax(&at.child("path"), &token.path, names::relative_path(&token.path));
        let seconds = token.expiration_seconds.unwrap_or(3600);
        if seconds < 600 {
            errors.invalid(
                &at.child("expirationSeconds"),
                seconds,
                "may not specify a duration less than 10 minutes",
            );
        } else if seconds > 1 << 32 {
            errors.invalid(
                &at.child("expirationSeconds"),
                seconds,
                "may not specify a duration larger than 2^32 seconds",
            );
        }
    }
}

/// Paths that stand in the manifest are one file each; those that come of an object's keys are not known here.
fn one_file_each(projected: &core::ProjectedVolumeSource, at: &Path<'_>, errors: &mut Errors) {
    let mut seen = HashSet::new();
    let mut check = |path: &str, name: &str| {
        if !path.is_empty() && !seen.insert(path.to_owned()) {
            errors.invalid(at, name, "conflicting duplicate paths");
        }
    };
    for s in projected.sources.iter().flatten() {
        let secret = s.secret.as_ref().map(|s| (s.items.as_deref(), s.name.as_str()));
        let map = s.config_map.as_ref().map(|m| (m.items.as_deref(), m.name.as_str()));
        for (items, name) in secret.into_iter().chain(map) {
            items.unwrap_or_default().iter().for_each(|item| check(&item.path, name));
        }
        let files = s.downward_api.iter().flat_map(|d| d.items.iter().flatten());
        files.for_each(|file| check(&file.path, &file.path));
        s.service_account_token.iter().for_each(|token| check(&token.path, &token.path));
    }
}

fn default_mode(mode: Option<i32>, at: &Path<'_>, errors: &mut Errors) {
    if let Some(mode) = mode {
        errors.mode(&at.child("defaultMode"), mode);
    }
}

fn items(list: Option<&[core::KeyToPath]>, at: &Path<'_>, errors: &mut Errors) {
    let at = at.child("items");
    for (i, item) in list.unwrap_or_default().iter().enumerate() {
        let at = at.index(i);
        need(&at, "key", &item.key, errors);
        match item.path.as_str() {
            "" => errors.required(&at.child("path"), ""),
            path => errors.syntax(&at.child("path"), path, names::file_path(path).err()),
        }
        if let Some(mode) = item.mode {
            errors.mode(&at.child("mode"), mode);
        }
    }
}

fn downward_items(list: Option<&[core::DownwardAPIVolumeFile]>, at: &Path<'_>, errors: &mut Errors) {
    let at = at.child("items");
    for (i, file) in list.unwrap_or_default().iter().enumerate() {
        env::downward_file(file, &at.index(i), errors);
    }
}

/// Sources on other machines. The in-tree drivers no node has any more are left to the volume room to refuse.
fn storage_source(v: &Volume, at: &Path<'_>, errors: &mut Errors) {
    if let Some(nfs) = &v.nfs {
        let at = at.child("nfs");
        need(&at, "server", &nfs.server, errors);
        need(&at, "path", &nfs.path, errors);
        if !nfs.path.is_empty() && !nfs.path.starts_with('/') {
            errors.invalid(&at.child("path"), &nfs.path, "must be an absolute path");
        }
    }
    if let Some(iscsi) = &v.iscsi {
        let at = at.child("iscsi");
        need(&at, "targetPortal", &iscsi.target_portal, errors);
        need(&at, "iqn", &iscsi.iqn, errors);
        errors.between(&at.child("lun"), i64::from(iscsi.lun), 0, 255);
    }
    if let Some(csi) = &v.csi {
        need(&at.child("csi"), "driver", &csi.driver, errors);
    }
}

/// The pod's volumes by name.
pub type ByName<'v> = HashMap<&'v str, &'v Volume>;

/// The volumes of `spec` by name, for the mounts to be checked against.
pub fn by_name(spec: &PodSpec) -> ByName<'_> {
    spec.volumes.iter().flatten().map(|v| (v.name.as_str(), v)).collect()
}

/// `volumeMounts` and `volumeDevices` of `c`.
pub fn mounts(c: &Container, volumes: &ByName<'_>, at: &Path<'_>, errors: &mut Errors) {
    let list = at.child("volumeMounts");
    let mut paths = HashSet::new();
    for (i, mount) in c.volume_mounts.iter().flatten().enumerate() {
        let item = list.index(i);
        match mount.name.as_str() {
            "" => errors.required(&item.child("name"), ""),
            name if !volumes.contains_key(name) => errors.not_found(&item.child("name"), name),
            _ => {}
        }
        need(&item, "mountPath", &mount.mount_path, errors);
        if !paths.insert(mount.mount_path.as_str()) {
            errors.invalid(&item.child("mountPath"), &mount.mount_path, "must be unique");
        }
        sub_paths(mount, &list, &item, errors);
        propagation(mount, c, &item, errors);
    }
    devices(c, volumes, at, &paths, errors);
}

/// The API server names these errors without the mount's index.
fn sub_paths(mount: &core::VolumeMount, list: &Path<'_>, item: &Path<'_>, errors: &mut Errors) {
    let (sub, expr) =
        (mount.sub_path.as_deref().unwrap_or_default(), mount.sub_path_expr.as_deref().unwrap_or_default());
    errors.syntax(&list.child("subPath"), sub, names::relative_path(sub));
    errors.syntax(&list.child("subPathExpr"), expr, names::relative_path(expr));
    if !sub.is_empty() && !expr.is_empty() {
        errors.invalid(&item.child("subPathExpr"), expr, "subPathExpr and subPath are mutually exclusive");
    }
}

fn propagation(mount: &core::VolumeMount, c: &Container, at: &Path<'_>, errors: &mut Errors) {
    let mode = mount.mount_propagation.as_deref();
    if let Some(mode) = mode {
        let at = at.child("mountPropagation");
        errors.one_of(&at, mode, &["Bidirectional", "HostToContainer", "None"]);
        let privileged = c.security_context.as_ref().and_then(|s| s.privileged) == Some(true);
        if mode == "Bidirectional" && !privileged {
            errors
                .forbidden(&at, "Bidirectional mount propagation is available only to privileged containers");
        }
    }
    let Some(recursive) = mount.recursive_read_only.as_deref() else { return };
    let at = at.child("recursiveReadOnly");
    errors.one_of(&at, recursive, &["Disabled", "Enabled", "IfPossible"]);
    if matches!(recursive, "Enabled" | "IfPossible") {
        if mount.read_only != Some(true) {
            errors.forbidden(&at, "may only be specified when readOnly is true");
        }
        if !matches!(mode, None | Some("None")) {
            errors.forbidden(&at, "may only be specified when mountPropagation is None or not specified");
        }
    }
}

fn devices(c: &Container, volumes: &ByName<'_>, at: &Path<'_>, mounted: &HashSet<&str>, errors: &mut Errors) {
    let list = at.child("volumeDevices");
    let mut seen = HashSet::new();
    for (i, device) in c.volume_devices.iter().flatten().enumerate() {
        let item = list.index(i);
        let source = volumes.get(device.name.as_str());
        match (device.name.as_str(), source) {
            ("", _) => errors.required(&item.child("name"), ""),
            (name, None) => errors.not_found(&item.child("name"), name),
            (name, Some(v)) if v.persistent_volume_claim.is_none() && v.ephemeral.is_none() => errors
                .invalid(
                    &item.child("name"),
                    name,
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
                ),
            _ => {}
        }
        let path_at = item.child("devicePath");
        let path = device.device_path.as_str();
        need(&item, "devicePath", path, errors);
        errors.syntax(&path_at, path, names::backsteps(path));
        if !seen.insert(path) {
            errors.invalid(&path_at, path, "must be unique");
        }
        if mounted.contains(path) {
            errors.invalid(&path_at, path, "must not already exist as a path in volumeMounts");
        }
    }
}
