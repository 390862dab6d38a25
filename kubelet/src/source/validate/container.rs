//! Containers: the lists, names, images, ports, mounts, restart rules and hooks.

use super::super::field::{Errors, Path};
use super::{env, names, probe, resources, security, volume};
use crate::api::{Container, EphemeralContainer, PodSpec, as_container};
use k8s_openapi::api::core::v1::ResourceRequirements;
use std::collections::HashSet;

/// The three lists of containers of `spec`.
pub fn all(spec: &PodSpec, at: &Path<'_>, errors: &mut Errors) {
    let containers = at.child("containers");
    if spec.containers.is_empty() {
        errors.required(&containers, "");
    }
    let volumes = volume::by_name(spec);
    let mut seen = HashSet::new();
    let mut host_ports = HashSet::new();
    for (i, c) in spec.containers.iter().enumerate() {
        let item = containers.index(i);
        name(&c.name, &item, &mut seen, errors);
        container(c, spec, &volumes, &item, errors);
        host_port_conflicts(c, &item, &mut host_ports, errors);
        handlers(c, spec, &item, errors);
    }
    let init = at.child("initContainers");
    for (i, c) in spec.init_containers.iter().flatten().enumerate() {
        let item = init.index(i);
        name(&c.name, &item, &mut seen, errors);
        container(c, spec, &volumes, &item, errors);
        // Init containers run alone: their ports only clash with their own.
        host_port_conflicts(c, &item, &mut HashSet::new(), errors);
        match c.restart_policy.as_deref() {
            Some("Always") => handlers(c, spec, &item, errors),
            _ => no_handlers(c, &item, errors),
        }
    }
    let ephemeral = at.child("ephemeralContainers");
    let own: HashSet<&str> = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .map(|c| c.name.as_str())
        .collect();
    for (i, c) in spec.ephemeral_containers.iter().flatten().enumerate() {
        let item = ephemeral.index(i);
        name(&c.name, &item, &mut seen, errors);
        container(&as_container(c), spec, &volumes, &item, errors);
        ephemeral_only(c, &item, errors);
        if let Some(target) = c.target_container_name.as_deref().filter(|t| !t.is_empty() && !own.contains(t))
        {
            errors.not_found(&item.child("targetContainerName"), target);
        }
    }
}

/// What an ephemeral container may not have: nothing waits for it, nothing is reserved for it, and it is never restarted.
fn ephemeral_only(c: &EphemeralContainer, at: &Path<'_>, errors: &mut Errors) {
    let some_resources = c.resources.as_ref().is_some_and(|r| *r != ResourceRequirements::default());
    for (field, set) in [
        ("ports", c.ports.as_ref().is_some_and(|l| !l.is_empty())),
        ("livenessProbe", c.liveness_probe.is_some()),
        ("readinessProbe", c.readiness_probe.is_some()),
        ("startupProbe", c.startup_probe.is_some()),
        ("lifecycle", c.lifecycle.is_some()),
        ("resources", some_resources),
        ("resizePolicy", c.resize_policy.as_ref().is_some_and(|l| !l.is_empty())),
        ("restartPolicy", c.restart_policy.is_some()),
        ("restartPolicyRules", c.restart_policy_rules.as_ref().is_some_and(|l| !l.is_empty())),
    ] {
        if set {
            errors.forbidden(&at.child(field), "cannot be set for an Ephemeral Container");
        }
    }
    let mounts = at.child("volumeMounts");
    for (i, mount) in c.volume_mounts.iter().flatten().enumerate() {
        let item = mounts.index(i);
        for (field, path) in [("subPath", &mount.sub_path), ("subPathExpr", &mount.sub_path_expr)] {
            if path.as_ref().is_some_and(|p| !p.is_empty()) {
                errors.forbidden(&item.child(field), "cannot be set for an Ephemeral Container");
            }
        }
    }
}

fn name<'s>(name: &'s str, at: &Path<'_>, seen: &mut HashSet<&'s str>, errors: &mut Errors) {
    let at = &at.child("name");
    if name.is_empty() {
        return errors.required(at, "");
    }
    errors.syntax(at, name, names::dns_label(name));
    if !seen.insert(name) {
        errors.duplicate(at, name);
    }
}

fn image(image: Option<&str>, at: &Path<'_>, errors: &mut Errors) {
    let (at, image) = (&at.child("image"), image.unwrap_or_default());
    if image.is_empty() {
        errors.required(at, "");
    } else if image.trim() != image {
        errors.invalid(at, image, "must not have leading or trailing whitespace");
    }
}

/// What every container of the first two lists must satisfy.
fn container(
    c: &Container,
    spec: &PodSpec,
    volumes: &volume::ByName<'_>,
    at: &Path<'_>,
    errors: &mut Errors,
) {
    image(c.image.as_deref(), at, errors);
    ports(c, spec, at, errors);
    env::container(c, at, errors);
    volume::mounts(c, volumes, at, errors);
    if spec.host_users == Some(false) && c.volume_devices.as_ref().is_some_and(|d| !d.is_empty()) {
        errors.forbidden(&at.child("volumeDevices"), "when `hostUsers` is false");
    }
    let pull = c.image_pull_policy.as_deref().unwrap_or_default();
    errors.one_of(&at.child("imagePullPolicy"), pull, &["Always", "IfNotPresent", "Never"]);
    if let Some(r) = &c.resources {
        resources::container(r, spec, &at.child("resources"), errors);
    }
    resize(c, at, errors);
    let message_policy = c.termination_message_policy.as_deref().unwrap_or_default();
    errors.one_of(&at.child("terminationMessagePolicy"), message_policy, &["FallbackToLogsOnError", "File"]);
    if let Some(sc) = &c.security_context {
        security::container(sc, spec, &at.child("securityContext"), errors);
    }
    restart(c, at, errors);
}

fn ports(c: &Container, spec: &PodSpec, at: &Path<'_>, errors: &mut Errors) {
    let list = at.child("ports");
    let mut seen = HashSet::new();
    for (i, port) in c.ports.iter().flatten().enumerate() {
        let item = list.index(i);
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            let wrong = names::port_name(name);
            if wrong.is_empty() && !seen.insert(name) {
                errors.duplicate(&item.child("name"), name);
            }
            errors.syntax(&item.child("name"), name, wrong);
        }
        let (number, host) = (i64::from(port.container_port), i64::from(port.host_port.unwrap_or(0)));
        match number {
            0 => errors.required(&item.child("containerPort"), ""),
            _ => errors.between(&item.child("containerPort"), number, 1, 65535),
        }
        if host != 0 {
            errors.between(&item.child("hostPort"), host, 1, 65535);
        }
        match port.protocol.as_deref().unwrap_or_default() {
            "" => errors.required(&item.child("protocol"), ""),
            protocol => errors.one_of(&item.child("protocol"), protocol, &["SCTP", "TCP", "UDP"]),
        }
        if let Some(ip) = port.host_ip.as_deref().filter(|ip| !ip.is_empty())
            && let Err(wrong) = names::ip(ip)
        {
            errors.invalid(&item.child("hostIP"), ip, wrong);
        }
        if spec.host_network == Some(true) && host != number {
            errors.invalid(
                &item.child("containerPort"),
                number,
                "must match `hostPort` when `hostNetwork` is true",
            );
        }
    }
}

fn host_port_conflicts(c: &Container, at: &Path<'_>, seen: &mut HashSet<String>, errors: &mut Errors) {
    let list = at.child("ports");
    for (i, port) in c.ports.iter().flatten().enumerate() {
        let number = port.host_port.unwrap_or(0);
        if number == 0 {
            continue;
        }
        let protocol = port.protocol.as_deref().unwrap_or_default();
        let key = format!("{protocol}/{}/{number}", port.host_ip.as_deref().unwrap_or_default());
        if !seen.insert(key.clone()) {
            errors.duplicate(&list.index(i).child("hostPort"), &key);
        }
    }
}

fn resize(c: &Container, at: &Path<'_>, errors: &mut Errors) {
    let list = at.child("resizePolicy");
    let mut seen = HashSet::new();
    for (i, policy) in c.resize_policy.iter().flatten().enumerate() {
        let item = list.index(i);
        errors.one_of(&item.child("resourceName"), &policy.resource_name, &["cpu", "memory"]);
        errors.one_of(
            &item.child("restartPolicy"),
            &policy.restart_policy,
            &["NotRequired", "RestartContainer"],
        );
        if !seen.insert(policy.resource_name.as_str()) {
            errors.duplicate(&item.child("resourceName"), &policy.resource_name);
        }
    }
}

/// A container's own restart policy and rules (KEP-753, KEP-5307).
fn restart(c: &Container, at: &Path<'_>, errors: &mut Errors) {
    if let Some(policy) = c.restart_policy.as_deref() {
        errors.one_of(&at.child("restartPolicy"), policy, &["Always", "Never", "OnFailure"]);
    }
    let Some(rules) = c.restart_policy_rules.as_ref().filter(|r| !r.is_empty()) else { return };
    let list = at.child("restartPolicyRules");
    if c.restart_policy.is_none() {
        errors.required(&at.child("restartPolicy"), "must specify restartPolicy when restart rules are used");
    }
    if rules.len() > 20 {
        errors.invalid(&list, rules.len(), "must have at most 20 rules");
    }
    for (i, rule) in rules.iter().enumerate() {
        let item = list.index(i);
        errors.one_of(&item.child("action"), &rule.action, &["Restart", "RestartAllContainers"]);
        let codes_at = item.child("exitCodes");
        let Some(codes) = &rule.exit_codes else {
            errors.required(&codes_at, "must be specified");
            continue;
        };
        errors.one_of(&codes_at.child("operator"), &codes.operator, &["In", "NotIn"]);
        let values = codes.values.as_deref().unwrap_or_default();
        let values_at = codes_at.child("values");
        if values.is_empty() {
            errors.invalid(
                &values_at,
                values,
                "must specify at least one value when `operator` is In or NotIn",
            );
        }
        if values.len() > 255 {
            errors.invalid(&values_at, values.len(), "must have at most 255 values");
        }
        for (j, value) in values.iter().enumerate() {
            errors.between(&values_at.index(j), i64::from(*value), 0, 255);
        }
    }
}

/// Probes and hooks, of containers that may have them.
fn handlers(c: &Container, spec: &PodSpec, at: &Path<'_>, errors: &mut Errors) {
    if let Some(lifecycle) = &c.lifecycle {
        let at = at.child("lifecycle");
        let grace = spec.termination_grace_period_seconds.unwrap_or(30);
        for (field, handler) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
            if let Some(handler) = handler {
                probe::hook(handler, grace, &at.child(field), errors);
            }
        }
        if let Some(signal) = lifecycle.stop_signal.as_deref() {
            stop_signal(signal, spec, &at.child("stopSignal"), errors);
        }
    }
    for (field, p) in [
        ("livenessProbe", &c.liveness_probe),
        ("readinessProbe", &c.readiness_probe),
        ("startupProbe", &c.startup_probe),
    ] {
        if let Some(p) = p {
            probe::probe(p, field == "readinessProbe", &at.child(field), errors);
        }
    }
}

fn no_handlers(c: &Container, at: &Path<'_>, errors: &mut Errors) {
    for (field, set) in [
        ("lifecycle", c.lifecycle.is_some()),
        ("livenessProbe", c.liveness_probe.is_some()),
        ("readinessProbe", c.readiness_probe.is_some()),
        ("startupProbe", c.startup_probe.is_some()),
    ] {
        if set {
            errors.forbidden(
                &at.child(field),
                "may not be set for init containers without restartPolicy=Always",
            );
        }
    }
}

/// A stop signal (KEP-4960): `SIG…`, and only where the pod says which OS names it.
fn stop_signal(signal: &str, spec: &PodSpec, at: &Path<'_>, errors: &mut Errors) {
    match spec.os.as_ref().map(|os| os.name.as_str()) {
        None => errors.forbidden(at, "may not be set when `spec.os.name` is not set"),
        Some("windows") => errors.one_of(at, signal, &["SIGKILL", "SIGTERM"]),
        Some(_) if !is_signal(signal) => errors.invalid(at, signal, "must be the name of a Linux signal"),
        Some(_) => {}
    }
}

/// The names of Linux' signals, real-time ones as `SIGRTMIN+n` and `SIGRTMAX-n`.
fn is_signal(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
        "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
        "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
    ];
    let Some(rest) = name.strip_prefix("SIG") else { return false };
    let offset =
        |text: Option<&str>, most: u8| text.and_then(|t| t.parse::<u8>().ok()).is_some_and(|n| n <= most);
    NAMES.contains(&rest)
        || offset(rest.strip_prefix("RTMIN+"), 15)
        || offset(rest.strip_prefix("RTMAX-"), 14)
}
