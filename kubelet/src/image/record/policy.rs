//! `imagePullCredentialsVerificationPolicy`: which images that are here need no proof. Pure.

use super::super::name;

/// Which images a pod may use without showing a credential.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// `NeverVerify`: all.
    NeverVerify,
    /// `NeverVerifyPreloadedImages`: those that no agent pulled.
    #[default]
    NeverVerifyPreloadedImages,
    /// `NeverVerifyAllowlistedImages`: those of `preloadedImagesVerificationAllowlist`.
    NeverVerifyAllowlistedImages(Allowlist),
    /// `AlwaysVerify`: none.
    AlwaysVerify,
}

impl Policy {
    /// Whether an image of `repository` (its full name without tag and digest) needs a proof; `pulled` by an agent.
    pub fn verifies(&self, repository: &str, pulled: bool) -> bool {
        match self {
            Self::NeverVerify => false,
            Self::NeverVerifyPreloadedImages => pulled,
            Self::NeverVerifyAllowlistedImages(list) => !list.has(repository),
            Self::AlwaysVerify => true,
        }
    }
}

/// `preloadedImagesVerificationAllowlist`: full names of repositories, and `…/*` for all below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowlist {
    repositories: Vec<String>,
    prefixes: Vec<String>,
}

impl Allowlist {
    /// Reads the list.
    ///
    /// # Errors
    /// An entry is no such name; the text names it.
    pub fn parse<S: AsRef<str>>(entries: &[S]) -> Result<Self, String> {
        let mut list = Self::default();
        for entry in entries {
            let entry = entry.as_ref();
            match check(entry).map_err(|why| format!("{entry:?} {why}"))? {
                Entry::Below(prefix) => list.prefixes.push(prefix.to_owned()),
                Entry::Exactly(repository) => list.repositories.push(repository.to_owned()),
            }
        }
        Ok(list)
    }

    fn has(&self, repository: &str) -> bool {
        self.repositories.iter().any(|r| r == repository)
            || self.prefixes.iter().any(|p| repository.starts_with(p))
    }
}

enum Entry<'a> {
    Exactly(&'a str),
    Below(&'a str),
}

fn check(entry: &str) -> Result<Entry<'_>, String> {
    if entry.trim() != entry {
        return Err("must not begin or end with white space".to_owned());
    }
    let (bare, below) = match entry.strip_suffix('*') {
        Some(prefix) if prefix.ends_with('/') => (prefix, true),
        _ => (entry, false),
    };
    if bare.contains('*') {
        return Err("may have a * only at its end, after a slash".to_owned());
    }
    match (bare, below) {
        ("", _) => Err("must not be empty".to_owned()),
        ("/", true) => Err("must name a registry".to_owned()),
        (prefix, true) => Ok(Entry::Below(prefix)),
        (name, false) => {
            let full = name::repository(name).map_err(|e| format!("is no image name: {e}"))?;
            if full != name {
                return Err(format!("must be a full name without tag and digest, such as {full}"));
            }
            Ok(Entry::Exactly(name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_asks_for_a_proof_where_upstream_does() {
        let list = Allowlist::parse(&["registry.test/a/b", "registry.test/c/*", "docker.io/library/busybox"]);
        let listed = Policy::NeverVerifyAllowlistedImages(list.unwrap());
        for (policy, repository, pulled, want) in [
            (&Policy::NeverVerify, "registry.test/a/b", true, false),
            (&Policy::NeverVerifyPreloadedImages, "registry.test/a/b", true, true),
            (&Policy::NeverVerifyPreloadedImages, "registry.test/a/b", false, false),
            (&listed, "registry.test/a/b", true, false),
            (&listed, "registry.test/a/b", false, false),
            (&listed, "registry.test/a/bc", false, true),
            (&listed, "registry.test/c/d", true, false),
            (&listed, "registry.test/cd", false, true),
            (&listed, "docker.io/library/busybox", false, false),
            (&Policy::AlwaysVerify, "registry.test/a/b", false, true),
        ] {
            assert_eq!(policy.verifies(repository, pulled), want, "{policy:?} {repository} {pulled}");
        }
    }

    #[test]
    fn entries_that_are_no_full_names_are_refused_by_name() {
        for entry in [
            "",
            "*",
            "/*",
            "registry.test/a*",
            "registry.test/*/a",
            "registry.test/",
            "registry.test/a:1",
            "registry.test/a ",
            "registry.test/a@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "busybox",
            "Registry.test/A",
        ] {
            let error = Allowlist::parse(&[entry]).unwrap_err();
            assert!(error.starts_with(&format!("{entry:?} ")), "{error}");
        }
        assert!(Allowlist::parse(&["registry.test/*", "registry.test/a/b"]).is_ok());
    }
}
