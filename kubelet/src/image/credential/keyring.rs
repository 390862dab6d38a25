//! Which credentials fit an image: places with globs, matched as upstream matches them. Pure.
//!
//! A place is `host[:port][/path]`, with or without a scheme. It fits an image when the port is the same, the host has as
//! many labels and each matches (`*` stands for any text within a label), and the path is a beginning of the image's. All
//! places that fit count, the longer (later in the alphabet) first. Images of Docker's own registry, when nothing fits,
//! get what is filed under `index.docker.io`.

use super::Credential;
use std::collections::BTreeMap;

/// Docker's own registry in configuration files.
const DEFAULT_REGISTRY: &str = "index.docker.io";

/// Credentials by place.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    by_place: BTreeMap<String, Vec<Credential>>,
}

impl Keyring {
    /// Files `credential` under `place`.
    ///
    /// # Errors
    /// The place is none; the text says why.
    pub fn add(&mut self, place: &str, credential: Credential) -> Result<(), String> {
        let at = Place::parse(place)?;
        // What Docker's registry of the first and second version were called still stands for the host.
        let path = at.path.strip_prefix("/v1/").or_else(|| at.path.strip_prefix("/v2/"));
        let path = match path {
            Some(rest) => format!("/{rest}"),
            None => at.path.to_owned(),
        };
        let path = if path == "/" { "" } else { &path };
        self.by_place.entry(format!("{}{path}", at.authority)).or_default().push(credential);
        Ok(())
    }

    /// What fits `repository`, the most particular first.
    pub fn lookup(&self, repository: &str) -> Vec<Credential> {
        let fitting = self.by_place.iter().rev().filter(|(place, _)| matches(place, repository));
        let found: Vec<Credential> = fitting.flat_map(|(_, c)| c.iter().cloned()).collect();
        if found.is_empty() && repository.starts_with("docker.io/") {
            return self.by_place.get(DEFAULT_REGISTRY).cloned().unwrap_or_default();
        }
        found
    }
}

/// Whether the glob `place` fits `image`; both without a scheme.
pub fn matches(place: &str, image: &str) -> bool {
    let (Ok(place), Ok(image)) = (Place::parse(place), Place::parse(image)) else { return false };
    let ((host, port), (image_host, image_port)) = (place.host_and_port(), image.host_and_port());
    let labels = host.split('.').count() == image_host.split('.').count();
    port == image_port
        && labels
        && image.path.starts_with(place.path)
        && host.split('.').zip(image_host.split('.')).all(|(glob, label)| glob_fits(glob, label))
}

/// A parsed `[scheme://]host[:port][/path]`.
struct Place<'a> {
    authority: &'a str,
    /// Empty, or from the first slash on.
    path: &'a str,
}

impl<'a> Place<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        let bare = bare.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) = bare.find('/').map_or((bare, ""), |at| bare.split_at(at));
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        if text.contains("://") && bare.len() == text.len() {
            return Err("its scheme is neither http nor https".to_owned());
        }
        if authority.is_empty() {
            return Err("it names no host".to_owned());
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("it contains white space".to_owned());
        }
        let place = Self { authority, path };
        if let Some(port) = place.host_and_port().1
            && !port.bytes().all(|b| b.is_ascii_digit())
        {
            return Err(format!("invalid port {port:?}"));
        }
        Ok(place)
    }

    fn host_and_port(&self) -> (&'a str, Option<&'a str>) {
        match self.authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (self.authority, None),
        }
    }
}

/// Checks a place that is to be matched.
///
/// # Errors
/// It is none; the text says why.
pub fn check(place: &str) -> Result<(), String> {
    Place::parse(place).map(drop)
}

/// `*` stands for any text, everything else for itself.
fn glob_fits(glob: &str, label: &str) -> bool {
    let Some((head, mut rest)) = glob.split_once('*') else { return glob == label };
    let Some(mut left) = label.strip_prefix(head) else { return false };
    while let Some((middle, more)) = rest.split_once('*') {
        let Some(at) = left.find(middle) else { return false };
        left = &left[at + middle.len()..];
        rest = more;
    }
    left.ends_with(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_fit_by_port_labels_and_path() {
        for (place, image, fits) in [
            ("registry.example", "registry.example/a/b", true),
            ("https://registry.example", "registry.example/a", true),
            ("registry.example/a", "registry.example/a/b", true),
            ("registry.example/a/b", "registry.example/a", false),
            ("registry.example/ab", "registry.example/abc", true),
            ("*.example", "registry.example/a", true),
            ("*.example", "a.registry.example/a", false),
            ("*.*.example", "a.registry.example/a", true),
            ("reg*.example", "registry.example/a", true),
            ("r*g*y.example", "registry.example/a", true),
            ("r*z*y.example", "registry.example/a", false),
            ("*", "registry.example/a", false),
            ("*", "localhost/a", true),
            ("registry.example:5000", "registry.example/a", false),
            ("registry.example:5000", "registry.example:5000/a", true),
            ("*.example:5000", "registry.example:5000/a", true),
            ("[::1]:5000", "[::1]:5000/a", true),
            ("[::1]", "[::1]/a", true),
        ] {
            assert_eq!(matches(place, image), fits, "{place} {image}");
        }
    }

    #[test]
    fn all_that_fits_is_told_the_most_particular_first() {
        let mut ring = Keyring::default();
        for (place, user) in [
            ("registry.example", "host"),
            ("https://registry.example/priv", "path"),
            ("other.example", "other"),
            ("*.example", "glob"),
            ("https://index.docker.io/v1/", "hub"),
            ("http://old.example/v2/", "old"),
        ] {
            ring.add(place, Credential::basic(user, "p")).unwrap();
        }
        let users =
            |image: &str| ring.lookup(image).into_iter().map(|c| c.username).collect::<Vec<_>>().join(" ");
        assert_eq!(users("registry.example/priv/x"), "path host glob");
        assert_eq!(users("registry.example/pub"), "host glob");
        assert_eq!(users("docker.io/library/busybox"), "hub");
        assert_eq!(users("old.example/x"), "old glob");
        assert_eq!(users("quay.test/x"), "");
    }

    #[test]
    fn what_is_no_place_is_refused() {
        let mut ring = Keyring::default();
        for place in ["", "https://", "ftp://h/x", "a b", "h:port/x", "/path"] {
            assert!(ring.add(place, Credential::default()).is_err(), "{place:?}");
        }
    }
}
