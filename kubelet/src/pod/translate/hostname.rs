//! A pod's hostname and domain (API: `hostname`, `subdomain`, `setHostnameAsFQDN`, `hostnameOverride`). Called for the
//! sandbox's hostname and for the pod's own line in `/etc/hosts`.

use super::TranslateError;
use crate::api::{Pod, spec};

/// The longest name `sethostname(2)` takes.
const MAX_KERNEL_HOSTNAME: usize = 64;
/// The longest DNS label (RFC 1123).
const MAX_LABEL: usize = 63;

/// Who a pod is on the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodHostname {
    /// The first label, or the whole of `hostnameOverride`.
    pub hostname: String,
    /// `<subdomain>.<namespace>.svc.<cluster domain>`; empty without a subdomain.
    pub domain: String,
}

/// The hostname and domain of `pod`. Errors when `hostname` or `subdomain` is no DNS label.
pub fn pod_hostname(pod: &Pod, cluster_domain: &str) -> Result<PodHostname, TranslateError> {
    let spec = spec(pod);
    let set = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
    if let Some(hostname) = set(&spec.hostname_override) {
        return Ok(PodHostname { hostname, domain: String::new() });
    }
    let hostname = match set(&spec.hostname) {
        Some(hostname) => {
            if !is_label(&hostname) {
                return Err(TranslateError::NoLabel { field: "hostname", value: hostname });
            }
            hostname
        }
        None => truncated(pod.metadata.name.as_deref().unwrap_or_default())?,
    };
    let domain = match set(&spec.subdomain) {
        Some(subdomain) => {
            if !is_label(&subdomain) {
                return Err(TranslateError::NoLabel { field: "subdomain", value: subdomain });
            }
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            format!("{subdomain}.{namespace}.svc.{cluster_domain}")
        }
        None => String::new(),
    };
    Ok(PodHostname { hostname, domain })
}

impl PodHostname {
    /// What the kernel is told: the hostname, or with `as_fqdn` and a domain the full name, if it fits.
    pub fn for_kernel(&self, as_fqdn: bool) -> Result<String, TranslateError> {
        if !as_fqdn || self.domain.is_empty() {
            return Ok(self.hostname.clone());
        }
        let fqdn = format!("{}.{}", self.hostname, self.domain);
        if fqdn.len() > MAX_KERNEL_HOSTNAME {
            let requested = fqdn.len();
            return Err(TranslateError::FqdnTooLong { fqdn, max: MAX_KERNEL_HOSTNAME, requested });
        }
        Ok(fqdn)
    }
}

/// A pod's name cut to a label's length; what is left must not end in a dash or a dot.
fn truncated(name: &str) -> Result<String, TranslateError> {
    // Pod names are DNS subdomains, thus ASCII; `get` keeps a bad name from becoming a panic.
    let Some(head) = name.get(..MAX_LABEL).filter(|_| name.len() > MAX_LABEL) else {
        return Ok(name.to_owned());
    };
    let head = head.trim_end_matches(['-', '.']);
    if head.is_empty() {
        return Err(TranslateError::NoLabel { field: "name", value: name.to_owned() });
    }
    Ok(head.to_owned())
}

/// RFC 1123: lower-case letters, digits and inner dashes, at most 63.
fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(a), Some(z)) if inner(*a) && inner(*z))
        && bytes.len() <= MAX_LABEL
        && bytes.iter().all(|b| inner(*b) || *b == b'-')
}

#[cfg(test)]
mod tests {
    use super::super::testing::pod;
    use super::*;

    fn names(yaml: &str) -> Result<(String, String), String> {
        let p = pod(yaml);
        let h = pod_hostname(&p, "cluster.local").map_err(|e| e.to_string())?;
        let kernel = h.for_kernel(spec(&p).set_hostname_as_fqdn == Some(true)).map_err(|e| e.to_string())?;
        Ok((kernel, h.domain))
    }

    #[test]
    fn hostname_subdomain_and_override_decide_the_name() {
        for (spec, kernel, domain) in [
            ("{}", "p", ""),
            ("{hostname: h}", "h", ""),
            ("{hostname: h, subdomain: s}", "h", "s.ns.svc.cluster.local"),
            ("{subdomain: s, setHostnameAsFQDN: true}", "p.s.ns.svc.cluster.local", "s.ns.svc.cluster.local"),
            ("{setHostnameAsFQDN: true}", "p", ""),
            ("{hostnameOverride: a.b.test, hostname: h, subdomain: s}", "a.b.test", ""),
        ] {
            let yaml = format!("{{metadata: {{name: p, namespace: ns}}, spec: {spec}}}");
            assert_eq!(names(&yaml), Ok((kernel.to_owned(), domain.to_owned())), "{spec}");
        }
    }

    #[test]
    fn a_long_pod_name_is_cut_and_does_not_end_in_a_dash() {
        let name = format!("{}-{}", "x".repeat(62), "y".repeat(20));
        let yaml = format!("{{metadata: {{name: {name}, namespace: ns}}, spec: {{}}}}");
        assert_eq!(names(&yaml).unwrap().0, "x".repeat(62));
    }

    #[test]
    fn an_fqdn_longer_than_the_kernel_takes_is_refused_in_upstreams_words() {
        let yaml = format!(
            "{{metadata: {{name: p, namespace: demo}}, spec: {{hostname: {}, subdomain: subdomain, setHostnameAsFQDN: true}}}}",
            "h".repeat(60)
        );
        assert_eq!(
            names(&yaml).unwrap_err(),
            format!(
                "failed to construct FQDN from pod hostname and cluster domain, FQDN {}.subdomain.demo.svc.cluster.local \
                 is too long (64 characters is the max, 93 characters requested)",
                "h".repeat(60)
            )
        );
    }

    #[test]
    fn names_that_are_no_labels_are_refused() {
        for bad in ["A", "-a", "a-", "a.b", "ä"] {
            let yaml = format!("{{metadata: {{name: p, namespace: n}}, spec: {{hostname: {bad}}}}}");
            assert!(names(&yaml).unwrap_err().contains(bad), "{bad}");
        }
    }
}
