//! Image names: the grammar of container image references and the default tag. Pure.
//!
//! Source: the reference grammar of the OCI distribution project (`[domain/]path[:tag][@digest]`, names without a
//! domain belong to `docker.io`, those without a path to its `library`). Texts of errors are those that reach a pod's
//! status with the stock agent.

/// Why a text is no image name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The path has capitals.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// It would read as an image's id.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    Identifier(String),
    /// Longer than the 255 characters a name may have, domain included.
    #[error("repository name must not be more than 255 characters")]
    TooLong,
    /// `@name:…` with a name that is none of the known digests.
    #[error("unsupported digest algorithm")]
    DigestAlgorithm,
    /// Too few or too many digits for its algorithm.
    #[error("invalid checksum digest length")]
    DigestLength,
    /// Capitals among the digest's digits.
    #[error("invalid checksum digest format")]
    DigestFormat,
    /// Anything else.
    #[error("invalid reference format")]
    Format,
}

/// What an image name says about its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed<'a> {
    /// After the last colon of the path.
    pub tag: Option<&'a str>,
    /// After the `@`.
    pub digest: Option<&'a str>,
}

/// Checks `image` and finds its tag and digest.
pub fn parse(image: &str) -> Result<Parsed<'_>, NameError> {
    if image.len() == 64 && image.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(NameError::Identifier(image.to_owned()));
    }
    let (domain, remainder) = split_domain(image);
    let library = domain == DEFAULT_DOMAIN && !remainder.contains('/');
    let prefix = if library { "library/" } else { "" };
    // Up to the first colon, as the stock agent looks at it, whatever that colon means.
    let repository = remainder.split(':').next().unwrap_or_default();
    if repository.chars().any(char::is_uppercase) {
        return Err(NameError::Uppercase(format!("{prefix}{repository}")));
    }
    let (name, digest) = match remainder.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (remainder, None),
    };
    let after_path = name.rfind('/').map_or(0, |i| i + 1);
    let (path, tag) = match name[after_path..].split_once(':') {
        Some((last, tag)) => (&name[..after_path + last.len()], Some(tag)),
        None => (name, None),
    };
    if !is_domain(domain) || !path.split('/').all(is_path_component) || !tag.is_none_or(is_tag) {
        return Err(NameError::Format);
    }
    if let Some(digest) = digest {
        check_digest(digest)?;
    }
    if domain.len() + 1 + prefix.len() + path.len() > 255 {
        return Err(NameError::TooLong);
    }
    Ok(Parsed { tag, digest })
}

/// The full name of the repository that `image` is of, without tag and digest: what credentials are looked up by.
pub fn repository(image: &str) -> Result<String, NameError> {
    let parsed = parse(image)?;
    let (domain, remainder) = split_domain(image);
    let cut = [parsed.digest.map(|d| d.len() + 1), parsed.tag.map(|t| t.len() + 1)];
    let path = &remainder[..remainder.len() - cut.into_iter().flatten().sum::<usize>()];
    let library = if domain == DEFAULT_DOMAIN && !path.contains('/') { "library/" } else { "" };
    Ok(format!("{domain}/{library}{path}"))
}

/// The full name of `image`, with its tag and digest, or `latest` where it has neither.
pub fn full(image: &str) -> Result<String, NameError> {
    let tagged = with_default_tag(image)?;
    let (repository, parsed) = (repository(&tagged)?, parse(&tagged)?);
    let tag = parsed.tag.map(|t| format!(":{t}")).unwrap_or_default();
    let digest = parsed.digest.map(|d| format!("@{d}")).unwrap_or_default();
    Ok(format!("{repository}{tag}{digest}"))
}

/// `image` with `:latest` where it names neither tag nor digest; otherwise as written.
pub fn with_default_tag(image: &str) -> Result<String, NameError> {
    let parsed = parse(image)?;
    let bare = parsed.tag.is_none() && parsed.digest.is_none();
    Ok(if bare { format!("{image}:latest") } else { image.to_owned() })
}

const DEFAULT_DOMAIN: &str = "docker.io";

/// The first part is a domain when it looks like one: a dot, a colon, `localhost`, or capitals.
fn split_domain(image: &str) -> (&str, &str) {
    let (domain, remainder) = match image.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.chars().any(char::is_uppercase) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, image),
    };
    (if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain }, remainder)
}

/// Host name, IPv4 or bracketed IPv6 address, with or without a port.
fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else { return false };
            if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
                return false;
            }
            return match port.strip_prefix(':') {
                Some(port) => is_port(port),
                None => port.is_empty(),
            };
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
}

/// Lower-case letters and digits, parted by one dot, one or two underscores, or any number of dashes.
fn is_path_component(part: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    alnum(*first)
        && alnum(*last)
        && bytes
            .split(|b| alnum(*b))
            .all(|sep| matches!(sep, b"" | b"." | b"_" | b"__") || sep.iter().all(|b| *b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn check_digest(digest: &str) -> Result<(), NameError> {
    let (algorithm, hex) = digest.split_once(':').ok_or(NameError::Format)?;
    let is_word = |w: &str| {
        w.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
            && w.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    if !algorithm.split(['-', '_', '+', '.']).all(is_word)
        || hex.len() < 32
        || !hex.bytes().all(|b| b.is_ascii_hexdigit())
    {
        return Err(NameError::Format);
    }
    let digits = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err(NameError::DigestAlgorithm),
    };
    if hex.len() != digits {
        return Err(NameError::DigestLength);
    }
    if hex.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(NameError::DigestFormat);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_without_tag_and_digest_get_latest_and_stay_short() {
        for (image, want) in [
            ("busybox", "busybox:latest"),
            ("docker.io/library/nosuch", "docker.io/library/nosuch:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("a/b:v1", "a/b:v1"),
            ("host:5000/a:v1", "host:5000/a:v1"),
            ("x/a.b__c-d---e/f", "x/a.b__c-d---e/f:latest"),
        ] {
            assert_eq!(with_default_tag(image).as_deref(), Ok(want));
        }
        for image in [format!("busybox@sha256:{SHA}"), format!("r.example/a:v1@sha256:{SHA}")] {
            assert_eq!(with_default_tag(&image), Ok(image.clone()));
        }
        assert_eq!(parse("a:5000").map(|p| p.tag), Ok(Some("5000")), "without a slash a colon parts the tag");
    }

    #[test]
    fn the_repository_is_the_full_name_without_tag_and_digest() {
        for (image, want) in [
            ("busybox", "docker.io/library/busybox"),
            ("busybox:1", "docker.io/library/busybox"),
            ("index.docker.io/a/b:1", "docker.io/a/b"),
            ("[::1]:5000/a:v1", "[::1]:5000/a"),
            (&format!("r.example:5000/a/b:v1@sha256:{SHA}"), "r.example:5000/a/b"),
        ] {
            assert_eq!(repository(image).as_deref(), Ok(want));
        }
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_recorded_text() {
        // Golden case image-invalid-name.
        assert_eq!(
            with_default_tag("Bad@@Name").unwrap_err().to_string(),
            "invalid reference format: repository name (library/Bad@@Name) must be lowercase"
        );
        assert_eq!(
            with_default_tag("r.example/Bad:v1").unwrap_err(),
            NameError::Uppercase("Bad".into()),
            "without library on another registry"
        );
        assert_eq!(with_default_tag(SHA).unwrap_err(), NameError::Identifier(SHA.into()));
        for image in [
            "",
            " ",
            "a b",
            "a:",
            ":v1",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a-",
            "a___b",
            "a..b",
            "a:-v",
            "a@",
            "a@sha256:12",
            "host:port/a",
            "ho_st.x/a",
            "[::1/a",
            "a:v1:v2",
            "a\n",
        ] {
            assert_eq!(with_default_tag(image), Err(NameError::Format), "{image:?}");
        }
        assert_eq!(with_default_tag(&format!("a:{}", "v".repeat(129))), Err(NameError::Format));
        assert_eq!(with_default_tag(&"a".repeat(255)), Err(NameError::TooLong), "with docker.io/library/");
        assert!(with_default_tag(&"a".repeat(200)).is_ok());
        assert_eq!(with_default_tag(&format!("a@md5:{SHA}")), Err(NameError::DigestAlgorithm));
        assert_eq!(with_default_tag(&format!("a@sha256:{SHA}00")), Err(NameError::DigestLength));
        assert_eq!(
            with_default_tag(&format!("a@sha256:{}", SHA.to_uppercase())),
            Err(NameError::DigestFormat)
        );
    }

    #[test]
    fn a_full_name_is_the_same_however_it_is_written() {
        for (image, want) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("docker.io/library/busybox:latest", "docker.io/library/busybox:latest".to_owned()),
            ("r.test:5000/a:1", "r.test:5000/a:1".to_owned()),
            (&format!("r.test/a:1@sha256:{SHA}"), format!("r.test/a:1@sha256:{SHA}")),
        ] {
            assert_eq!(full(image), Ok(want), "{image}");
        }
    }
}
