//! DNS settings, host aliases and the pod's host names.

use super::super::field::{Errors, Path};
use super::names;
use crate::api::PodSpec;

/// Limits of a resolver's configuration that Kubernetes sets: servers, search domains, their text.
const NAMESERVERS: usize = 3;
const SEARCHES: usize = 32;
const SEARCH_CHARS: usize = 2048;

/// `dnsPolicy` and `dnsConfig`.
pub fn dns_policy(spec: &PodSpec, at: &Path<'_>, errors: &mut Errors) {
    let policy = spec.dns_policy.as_deref().unwrap_or_default();
    errors.one_of(
        &at.child("dnsPolicy"),
        policy,
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    let at = at.child("dnsConfig");
    let config = spec.dns_config.as_ref();
    let servers = config.and_then(|c| c.nameservers.as_deref()).unwrap_or_default();
    if policy == "None" {
        if config.is_none() {
            errors.required(&at, "must provide `dnsConfig` when `dnsPolicy` is None");
        } else if servers.is_empty() {
            errors.required(
                &at.child("nameservers"),
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            );
        }
    }
    let Some(config) = config else { return };
    let servers_at = at.child("nameservers");
    if servers.len() > NAMESERVERS {
        errors.invalid(&servers_at, servers, &format!("must not have more than {NAMESERVERS} nameservers"));
    }
    for (i, server) in servers.iter().enumerate() {
        if let Err(wrong) = names::ip(server) {
            errors.invalid(&servers_at.index(i), server, wrong);
        }
    }
    let searches = config.searches.as_deref().unwrap_or_default();
    let searches_at = at.child("searches");
    if searches.len() > SEARCHES {
        errors.invalid(&searches_at, searches, &format!("must not have more than {SEARCHES} search paths"));
    }
    if searches.join(" ").len() > SEARCH_CHARS {
        errors.invalid(
            &searches_at,
            searches,
            &format!(
                "must not have more than {SEARCH_CHARS} characters (including spaces) in the search list"
            ),
        );
    }
    for (i, search) in searches.iter().enumerate() {
        // A trailing dot and underscores are fine in a search domain; "." alone stands for the root.
        let domain = search.strip_suffix('.').unwrap_or(search).replace('_', "-");
        if search != "." {
            let inner = domain.trim_start_matches('-');
            errors.syntax(&searches_at.index(i), search, names::dns_subdomain(inner));
        }
    }
    let options_at = at.child("options");
    for (i, option) in config.options.iter().flatten().enumerate() {
        if option.name.as_ref().is_none_or(String::is_empty) {
            errors.required(&options_at.index(i), "must not be empty");
        }
    }
}

/// `hostname`, `subdomain`, `hostnameOverride` and `hostAliases`.
pub fn host_names(spec: &PodSpec, at: &Path<'_>, errors: &mut Errors) {
    for (field, value) in [("hostname", &spec.hostname), ("subdomain", &spec.subdomain)] {
        if let Some(value) = value.as_deref().filter(|v| !v.is_empty()) {
            errors.syntax(&at.child(field), value, names::dns_label(value));
        }
    }
    if let Some(name) = spec.hostname_override.as_deref() {
        let at = at.child("hostnameOverride");
        // KEP-4762: the kernel's host name, so at most 64 bytes, and no second way to set it.
        errors.syntax(&at, name, names::dns_subdomain(name));
        if name.len() > 64 {
            errors.too_long(&at, 64);
        }
        if spec.set_hostname_as_fqdn == Some(true) {
            errors.forbidden(&at, "may not be set when `setHostnameAsFQDN` is true");
        }
        if spec.host_network == Some(true) {
            errors.forbidden(&at, "may not be set when `hostNetwork` is true");
        }
    }
    let list = at.child("hostAliases");
    for (i, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let item = list.index(i);
        if let Err(wrong) = names::ip(&alias.ip) {
            errors.invalid(&item.child("ip"), &alias.ip, wrong);
        }
        let hostnames = item.child("hostnames");
        for (j, name) in alias.hostnames.iter().flatten().enumerate() {
            errors.syntax(&hostnames.index(j), name, names::dns_subdomain(name));
        }
    }
}
