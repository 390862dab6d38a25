//! Security contexts of pods and containers, and the namespaces a pod shares with the host.

use super::super::field::{Errors, Path};
use super::names;
use crate::api::PodSpec;
use k8s_openapi::api::core::v1 as core;
use std::collections::HashSet;

/// The pod's security context and host namespaces.
pub fn pod(spec: &PodSpec, at: &Path<'_>, errors: &mut Errors) {
    let host = |flag: Option<bool>| flag == Some(true);
    if host(spec.host_pid) && spec.share_process_namespace == Some(true) {
        errors.invalid(
            &at.child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    if spec.host_users == Some(false) {
        for (field, set) in
            [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)]
        {
            if host(set) {
                errors.forbidden(&at.child(field), "when `hostUsers` is false");
            }
        }
    }
    let Some(sc) = &spec.security_context else { return };
    let at = &at.child("securityContext");
    ids(
        &[("fsGroup", sc.fs_group), ("runAsGroup", sc.run_as_group), ("runAsUser", sc.run_as_user)],
        at,
        errors,
    );
    let groups = at.child("supplementalGroups");
    for (i, group) in sc.supplemental_groups.iter().flatten().enumerate() {
        errors.between(&groups.index(i), *group, 0, i64::from(i32::MAX));
    }
    for (field, value, supported) in [
        ("fsGroupChangePolicy", &sc.fs_group_change_policy, &["Always", "OnRootMismatch"]),
        ("supplementalGroupsPolicy", &sc.supplemental_groups_policy, &["Merge", "Strict"]),
        ("seLinuxChangePolicy", &sc.se_linux_change_policy, &["MountOption", "Recursive"]),
    ] {
        if let Some(value) = value {
            errors.one_of(&at.child(field), value, supported);
        }
    }
    sysctls(sc, spec, at, errors);
    profiles(sc.seccomp_profile.as_ref(), sc.app_armor_profile.as_ref(), at, errors);
    windows(sc.windows_options.is_some(), at, errors);
}

/// A container's security context.
pub fn container(sc: &core::SecurityContext, spec: &PodSpec, at: &Path<'_>, errors: &mut Errors) {
    ids(&[("runAsUser", sc.run_as_user), ("runAsGroup", sc.run_as_group)], at, errors);
    if let Some(mount) = sc.proc_mount.as_deref() {
        let at = at.child("procMount");
        errors.one_of(&at, mount, &["Default", "Unmasked"]);
        if mount == "Unmasked" && spec.host_users != Some(false) {
            errors.invalid(&at, mount, "`hostUsers` must be false to use `Unmasked`");
        }
    }
    if sc.allow_privilege_escalation == Some(false) {
        if sc.privileged == Some(true) {
            errors.invalid(at, sc, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        let added = sc.capabilities.iter().flat_map(|c| c.add.iter().flatten());
        if added.clone().any(|c| c == "CAP_SYS_ADMIN") {
            errors.invalid(
                at,
                sc,
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            );
        }
    }
    if let Some(caps) = &sc.capabilities {
        let at = at.child("capabilities");
        for (field, list) in [("add", &caps.add), ("drop", &caps.drop)] {
            let at = at.child(field);
            for (i, cap) in list.iter().flatten().enumerate() {
                if cap.is_empty() || !cap.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                    errors.invalid(&at.index(i), cap, "must be the name of a capability, such as NET_ADMIN");
                }
            }
        }
    }
    profiles(sc.seccomp_profile.as_ref(), sc.app_armor_profile.as_ref(), at, errors);
    windows(sc.windows_options.is_some(), at, errors);
}

fn ids(fields: &[(&str, Option<i64>)], at: &Path<'_>, errors: &mut Errors) {
    for (field, id) in fields {
        if let Some(id) = id {
            errors.between(&at.child(field), *id, 0, i64::from(i32::MAX));
        }
    }
}

/// Windows' options mean nothing on a Linux node.
fn windows(set: bool, at: &Path<'_>, errors: &mut Errors) {
    if set {
        errors.forbidden(&at.child("windowsOptions"), "cannot be set for a linux pod");
    }
}

fn sysctls(sc: &core::PodSecurityContext, spec: &PodSpec, at: &Path<'_>, errors: &mut Errors) {
    const IPC: [&str; 3] = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    let list = at.child("sysctls");
    let mut seen = HashSet::new();
    for (i, sysctl) in sc.sysctls.iter().flatten().enumerate() {
        let item = list.index(i);
        let at = &item.child("name");
        let name = sysctl.name.as_str();
        if name.is_empty() {
            errors.required(at, "");
        } else if !names::is_sysctl(name) {
            errors.invalid(
                at,
                name,
                "must have at most 253 characters and match regex \
                 ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            );
        } else if !seen.insert(name) {
            errors.duplicate(at, name);
        }
        let dotted = dotted(name);
        if spec.host_network == Some(true) && dotted.starts_with("net.") {
            errors.invalid(at, name, "may not be specified when 'hostNetwork' is true");
        }
        if spec.host_ipc == Some(true)
            && (IPC.iter().any(|p| dotted.starts_with(p)) || dotted == "kernel.sem")
        {
            errors.invalid(at, name, "may not be specified when 'hostIPC' is true");
        }
    }
}

/// A sysctl's name with its first separator as the only one: `net/ipv4/conf/eth0.1` is `net.ipv4.conf.eth0/1`.
fn dotted(name: &str) -> String {
    match name.find(['.', '/']).map(|i| name.as_bytes()[i]) {
        Some(b'/') => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                c => c,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn profiles(
    seccomp: Option<&core::SeccompProfile>,
    app_armor: Option<&core::AppArmorProfile>,
    at: &Path<'_>,
    errors: &mut Errors,
) {
    const TYPES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];
    let both = [
        ("seccompProfile", seccomp.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref())), true),
        ("appArmorProfile", app_armor.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref())), false),
    ];
    for (field, profile, is_path) in both {
        let Some((kind, local)) = profile else { continue };
        let at = at.child(field);
        let local_at = at.child("localhostProfile");
        match kind {
            "" => errors.required(&at.child("type"), "type is required when the profile is set"),
            kind => errors.one_of(&at.child("type"), kind, TYPES),
        }
        match (kind, local) {
            ("Localhost", None | Some("")) => {
                errors.required(&local_at, "must be set when the profile's type is Localhost");
            }
            ("Localhost", Some(path)) if is_path => {
                errors.syntax(&local_at, path, names::relative_path(path))
            }
            ("Localhost", Some(name)) if name.trim() != name || name.len() > 4095 => {
                errors.invalid(&local_at, name, "must not be padded with whitespace nor exceed 4095 bytes");
            }
            ("Localhost", Some(_)) | (_, None) => {}
            (_, Some(path)) => {
                errors.invalid(&local_at, path, "can only be set when the profile's type is Localhost")
            }
        }
    }
}
