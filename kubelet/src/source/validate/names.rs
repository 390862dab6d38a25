//! The syntax of names: DNS labels and subdomains, label keys and values, environment variables, port names, paths.
//!
//! Each check gives what is wrong with a text, worded as the API server words it, or nothing. Pure.

/// RFC 1123 label: at most 63 of `[a-z0-9-]`, no `-` at the ends.
pub fn dns_label(text: &str) -> Vec<String> {
    let mut wrong = longer(text, 63);
    if !is_label(text) {
        wrong.push(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
             and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
                .to_owned(),
        );
    }
    wrong
}

/// RFC 1123 subdomain: labels joined by dots, at most 253 characters.
pub fn dns_subdomain(text: &str) -> Vec<String> {
    let mut wrong = longer(text, 253);
    if !text.split('.').all(is_label) {
        wrong.push(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
             start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
                .to_owned(),
        );
    }
    wrong
}

/// The key of a label, annotation or taint: an optional subdomain and `/`, then a name.
pub fn qualified_name(text: &str) -> Vec<String> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let mut wrong = Vec::new();
    if let Some(prefix) = prefix {
        match prefix {
            "" => wrong.push("prefix part must be non-empty".to_owned()),
            _ => wrong.extend(dns_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}"))),
        }
    }
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    }
    wrong.extend(longer(name, 63).into_iter().map(|m| format!("name part {m}")));
    if !framed(name, |b| b.is_ascii_alphanumeric(), b"-_.") {
        wrong.push(
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
             alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
             '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
                .to_owned(),
        );
    }
    wrong
}

/// The value of a label; empty is fine.
pub fn label_value(text: &str) -> Vec<String> {
    let mut wrong = longer(text, 63);
    if !text.is_empty() && !framed(text, |b| b.is_ascii_alphanumeric(), b"-_.") {
        wrong.push(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
             start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used \
             for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
                .to_owned(),
        );
    }
    wrong
}

/// A UID, which names directories, cgroups and logs of the node: at most 128 of `[A-Za-z0-9.-]`, alphanumeric at the ends.
pub fn uid(text: &str) -> Vec<String> {
    let mut wrong = longer(text, 128);
    if !framed(text, |b| b.is_ascii_alphanumeric(), b"-.") {
        wrong.push(
            "a UID must consist of alphanumeric characters, '-' or '.', and must start and end with an alphanumeric \
             character"
                .to_owned(),
        );
    }
    wrong
}

/// The name of an environment variable: printable ASCII without `=`.
pub fn env_name(text: &str) -> Option<String> {
    let ok = text.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=');
    (!ok).then(|| {
        "a valid environment variable name must consist only of printable ASCII characters other than '='"
            .to_owned()
    })
}

/// The name of a port: an IANA service name (RFC 6335) in lower case.
pub fn port_name(text: &str) -> Vec<String> {
    let mut wrong = longer(text, 15);
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        wrong.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        wrong.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        wrong.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".to_owned());
    }
    wrong
}

/// The key of a ConfigMap or Secret: at most 253 of `[-._a-zA-Z0-9]`, not `.` nor `..`.
pub fn config_key(text: &str) -> Vec<String> {
    let mut wrong = longer(text, 253);
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
        wrong.push(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
             'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                .to_owned(),
        );
    }
    if text == "." || text.starts_with("..") {
        wrong.push(format!("must not be '{}'", if text == "." { "." } else { ".." }));
    }
    wrong
}

/// The name of a sysctl: segments joined by `.` or `/`.
pub fn is_sysctl(text: &str) -> bool {
    text.len() <= 253
        && text
            .split(['.', '/'])
            .all(|part| framed(part, |b| b.is_ascii_lowercase() || b.is_ascii_digit(), b"-_"))
}

/// A path below something: relative and without `..`.
pub fn relative_path(text: &str) -> Option<String> {
    if text.starts_with('/') {
        return Some("must be a relative path".to_owned());
    }
    backsteps(text)
}

/// The path of a file in a volume that shows objects, in its shortest form: below the volume, and not one of the names
/// the agent keeps there. What no file system takes is refused as well.
///
/// # Errors
/// What is wrong with it.
pub fn file_path(text: &str) -> Result<String, String> {
    if let Some(wrong) = relative_path(text) {
        return Err(wrong);
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let wrong = match parts.first() {
        None => "must name a file",
        Some(first) if first.starts_with("..") => "must not start with '..'",
        Some(_) if text.contains('\0') => "must not contain NUL",
        Some(_) if text.len() > 4096 || parts.iter().any(|part| part.len() > 255) => {
            "must have at most 4096 bytes, and 255 between slashes"
        }
        Some(_) => return Ok(parts.join("/")),
    };
    Err(wrong.to_owned())
}

/// A path without `..` among its elements.
pub fn backsteps(text: &str) -> Option<String> {
    text.split('/').any(|part| part == "..").then(|| "must not contain '..'".to_owned())
}

/// An IP address in canonical spelling; anything else says what is wrong.
pub fn ip(text: &str) -> Result<std::net::IpAddr, &'static str> {
    if let Ok(ip) = text.parse() {
        return Ok(ip);
    }
    let parts: Vec<&str> = text.split('.').collect();
    let numeric =
        parts.len() == 4 && parts.iter().all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
    if numeric && parts.iter().any(|p| p.len() > 1 && p.starts_with('0')) {
        return Err("must not have leading 0s");
    }
    Err("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")
}

fn is_label(text: &str) -> bool {
    framed(text, |b| b.is_ascii_lowercase() || b.is_ascii_digit(), b"-")
}

/// Not empty, only `edge` characters and those of `inside`, and `edge` ones at both ends.
fn framed(text: &str, edge: impl Fn(u8) -> bool, inside: &[u8]) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|b| edge(*b))
        && bytes.last().is_some_and(|b| edge(*b))
        && bytes.iter().all(|b| edge(*b) || inside.contains(b))
}

fn longer(text: &str, limit: usize) -> Vec<String> {
    match text.len() > limit {
        true => vec![format!("must be no more than {limit} characters")],
        false => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_what_is_none() {
        for (ok, bad, check) in [
            (
                &["a", "a-1", "0"][..],
                &["", "A", "-a", "a-", "a.b", "a_b"][..],
                &dns_label as &dyn Fn(&str) -> Vec<String>,
            ),
            (&["a.b", "a"], &["", ".a", "a..b", "a.", "a.B"], &dns_subdomain),
            (&["a", "a/b", "k8s.io/A_b.c"], &["", "/a", "a/", "a b", "A/b", "a/b/c", "-a"], &qualified_name),
            (&["", "a", "A.b_c-1"], &["a ", "-", "a/b"], &label_value),
            (&["a", "0-F.x"], &["", ".", "..", "team/a", "a_b", "a\0", "-a"], &uid),
            (&["a", "http-2"], &["", "A", "80", "a--b", "-a", "abcdefghijklmnop"], &port_name),
            (&["a", ".a", "A_b.c-d"], &["", "..", ".", "a/b", "..a"], &config_key),
        ] {
            ok.iter().for_each(|t| assert_eq!(check(t), Vec::<String>::new(), "{t}"));
            bad.iter().for_each(|t| assert!(!check(t).is_empty(), "{t}"));
        }
        assert!(!uid(&"a".repeat(129)).is_empty() && uid(&"a".repeat(128)).is_empty());
        assert!(!dns_label(&"a".repeat(64)).is_empty());
        assert!(dns_label(&"a".repeat(63)).is_empty());
        assert!(
            is_sysctl("net.ipv4.ip_forward") && is_sysctl("net/ipv4/conf/eth0.1/x") && !is_sysctl("BAD..x")
        );
        assert_eq!(env_name("A B.c-1"), None);
        assert!(env_name("a=b").is_some() && env_name("é").is_some());
        assert!(relative_path("a/../b").is_some() && relative_path("/a").is_some());
        assert!(relative_path("a..b/c").is_none() && backsteps("/a/..").is_some());
        for bad in ["", ".", "./", "./..x", "..x", "a/../b", "/a", "a\0b", &"a".repeat(256)] {
            assert!(file_path(bad).is_err(), "{bad}");
        }
        assert_eq!(file_path("./a//..x/./b/").as_deref(), Ok("a/..x/b"));
        assert_eq!(ip("010.0.0.1"), Err("must not have leading 0s"));
        assert!(ip("::1").is_ok() && ip("1.2.3").is_err());
    }
}
