//! Forms of names: label keys and values, host names, CPU lists, sysctls.
//!
//! Used by the rules beside it. Forms are those of the Kubernetes API conventions.

/// Labels of kubernetes.io and k8s.io that a kubelet may put on its node.
const NODE_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

fn alphanumeric_ends(text: &str) -> bool {
    let ends = |c: Option<&u8>| c.is_some_and(u8::is_ascii_alphanumeric);
    ends(text.as_bytes().first()) && ends(text.as_bytes().last())
}

/// At most 63 letters, digits, `-`, `_` and `.`, the ends alphanumeric.
fn is_name(text: &str) -> bool {
    text.len() <= 63
        && alphanumeric_ends(text)
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
}

/// An RFC 1123 subdomain: lower case labels with dots between.
pub(super) fn is_subdomain(text: &str) -> bool {
    let label = |l: &str| {
        alphanumeric_ends(l) && l.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// A label or taint key: `name` or `prefix/name`.
pub(super) fn is_qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_name(name),
        None => is_name(text),
    }
}

/// A label or taint value.
pub(super) fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_name(text)
}

/// Whether a kubelet may put the label `key` on its node.
pub(super) fn may_label_node(key: &str) -> bool {
    let Some((prefix, _)) = key.split_once('/') else { return true };
    let within = |domain: &str| prefix == domain || prefix.ends_with(&format!(".{domain}"));
    if !within("kubernetes.io") && !within("k8s.io") {
        return true;
    }
    NODE_LABELS.contains(&key) || within("kubelet.kubernetes.io") || within("node.kubernetes.io")
}

/// A CPU list of the kernel: `0-3,7`.
pub(super) fn is_cpu_list(text: &str) -> bool {
    text.split(',').all(|part| {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        match (low.parse::<u32>(), high.parse::<u32>()) {
            (Ok(low), Ok(high)) => low <= high,
            _ => false,
        }
    })
}

/// A sysctl name, or a prefix of names that ends in `*`.
pub(super) fn is_sysctl_pattern(text: &str) -> bool {
    let name = text.strip_suffix('*').unwrap_or(text);
    let name = name.strip_suffix(['.', '/']).unwrap_or(name);
    let part = |p: &str| {
        alphanumeric_ends(p)
            && p.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_".contains(&c))
    };
    text.len() <= 253 && name.split(['.', '/']).all(part)
}

/// Whether the kernel keeps the sysctl apart by IPC or network namespace.
pub(super) fn is_namespaced_sysctl(text: &str) -> bool {
    let name = text.replace('/', ".");
    let name = name.strip_suffix('*').unwrap_or(&name);
    name == "kernel.sem"
        || ["kernel.shm", "kernel.msg", "fs.mqueue.", "net."].iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_what_is_none() {
        assert!(
            is_qualified_name("example.com/a_b.C")
                && !is_qualified_name("Example.com/a")
                && !is_qualified_name("-a")
        );
        assert!(is_label_value("") && is_label_value("a") && !is_label_value("a b"));
        assert!(
            may_label_node("a/b") && may_label_node("x.node.kubernetes.io/b") && !may_label_node("k8s.io/b")
        );
        assert!(is_cpu_list("0-3,7") && !is_cpu_list("3-1") && !is_cpu_list("") && !is_cpu_list("a"));
        assert!(
            is_sysctl_pattern("net.*") && is_sysctl_pattern("kernel.msg*") && !is_sysctl_pattern("net..x")
        );
        assert!(is_namespaced_sysctl("net/core/somaxconn") && !is_namespaced_sysctl("vm.swappiness"));
    }
}
