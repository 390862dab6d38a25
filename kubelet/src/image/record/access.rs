//! With whose credentials an image was pulled under one name, in the form of the records, and who fits that. Pure.

use super::super::credential::{Source, Tracked};
use serde::{Deserialize, Serialize};

/// Past so many secrets nothing is added that a pod only showed.
const LEARN_LIMIT: usize = 100;

/// `ImagePullCredentials`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Access {
    /// Secrets that it was pulled with, by namespace, name and UID.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kubernetes_secrets: Vec<Secret>,
    /// Service accounts whose tokens it was pulled with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kubernetes_service_accounts: Vec<ServiceAccount>,
    /// It was pulled with the node's credentials or none: every pod of the node may have it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub node_pods_accessible: bool,
}

/// `ImagePullSecret`: a secret, and a hash of what it said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Secret {
    /// `metadata.uid`
    pub uid: String,
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// Of the credential, in hexadecimal.
    pub credential_hash: String,
}

/// `ImagePullServiceAccount`
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ServiceAccount {
    /// `metadata.uid`
    pub uid: String,
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
}

impl Secret {
    fn of(source: &Source, hash: &str) -> Option<Self> {
        let Source::Secret(object) = source else { return None };
        let (uid, namespace, name) = (object.uid.clone(), object.namespace.clone(), object.name.clone());
        Some(Self { uid, namespace, name, credential_hash: hash.to_owned() })
    }

    fn same_object(&self, other: &Self) -> bool {
        (&self.uid, &self.namespace, &self.name) == (&other.uid, &other.namespace, &other.name)
    }
}

impl ServiceAccount {
    fn of(source: &Source) -> Option<Self> {
        let Source::ServiceAccount(object) = source else { return None };
        let (uid, namespace, name) = (object.uid.clone(), object.namespace.clone(), object.name.clone());
        Some(Self { uid, namespace, name })
    }
}

impl Access {
    /// What a pull with a credential of `source` gives.
    pub fn of(source: &Source, hash: &str) -> Self {
        Self {
            kubernetes_secrets: Secret::of(source, hash).into_iter().collect(),
            kubernetes_service_accounts: ServiceAccount::of(source).into_iter().collect(),
            node_pods_accessible: matches!(source, Source::Node),
        }
    }

    /// Nobody is known to have access.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// `old` and `new` together; `None` when that is what `old` says already.
    pub fn merged(old: Option<&Self>, new: &Self) -> Option<Self> {
        let Some(old) = old else { return Some(new.clone()).filter(|n| !n.is_empty()) };
        if old.node_pods_accessible {
            return None;
        }
        if new.node_pods_accessible {
            return Some(Self { node_pods_accessible: true, ..Self::default() });
        }
        let mut all = old.clone();
        for secret in &new.kubernetes_secrets {
            match all.kubernetes_secrets.iter_mut().find(|s| s.same_object(secret)) {
                // What it says has changed.
                Some(known) => known.credential_hash.clone_from(&secret.credential_hash),
                None => all.kubernetes_secrets.push(secret.clone()),
            }
        }
        for account in &new.kubernetes_service_accounts {
            if !all.kubernetes_service_accounts.contains(account) {
                all.kubernetes_service_accounts.push(account.clone());
            }
        }
        if all == *old {
            return None;
        }
        all.kubernetes_secrets
            .sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        all.kubernetes_service_accounts
            .sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        Some(all)
    }

    /// Whether one of the pod's own credentials is recorded: a secret that says the same, or the same secret even if it says
    /// something else by now, or its service account. Also what is to be recorded of it.
    pub fn fits(&self, pod: &[Tracked]) -> (bool, Option<Self>) {
        let room = self.kubernetes_secrets.len() < LEARN_LIMIT;
        for shown in pod.iter().filter_map(|t| Secret::of(&t.source, &t.credential.hash())) {
            for known in &self.kubernetes_secrets {
                let says =
                    !known.credential_hash.is_empty() && known.credential_hash == shown.credential_hash;
                let is = known.same_object(&shown);
                let learned = || Self { kubernetes_secrets: vec![shown.clone()], ..Self::default() };
                match (says, is) {
                    (true, true) => return (true, None),
                    (true, false) => return (true, room.then(learned)),
                    // Without a UID nothing tells it from another that took its name.
                    (false, true) if room && !shown.uid.is_empty() => return (true, Some(learned())),
                    _ => {}
                }
            }
        }
        let account = pod.iter().find_map(|t| ServiceAccount::of(&t.source));
        (account.is_some_and(|a| self.kubernetes_service_accounts.contains(&a)), None)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::credential::{Credential, Object};
    use super::*;

    fn object(name: &str) -> Object {
        Object { namespace: "demo".to_owned(), name: name.to_owned(), uid: format!("uid-{name}") }
    }

    fn secret(name: &str, password: &str) -> Tracked {
        Tracked { credential: Credential::basic("u", password), source: Source::Secret(object(name)) }
    }

    fn access(of: &[Tracked]) -> Access {
        let each = of.iter().map(|t| Access::of(&t.source, &t.credential.hash()));
        each.fold(Access::default(), |all, one| Access::merged(Some(&all), &one).unwrap_or(all))
    }

    fn names(access: &Access) -> Vec<&str> {
        access.kubernetes_secrets.iter().map(|s| s.name.as_str()).collect()
    }

    #[test]
    fn access_grows_until_the_whole_node_has_it() {
        let one = access(&[secret("b", "1")]);
        let two = access(&[secret("b", "1"), secret("a", "1")]);
        assert_eq!(names(&two), ["a", "b"], "in order");
        assert_eq!(Access::merged(Some(&two), &one), None, "known");
        assert_eq!(Access::merged(Some(&two), &Access::default()), None, "nothing new");
        let changed = Access::merged(Some(&two), &access(&[secret("b", "2")])).unwrap();
        assert_eq!(names(&changed), ["a", "b"]);
        assert_ne!(changed, two, "the secret says something else");
        let node = Access::merged(Some(&two), &Access::of(&Source::Node, "")).unwrap();
        assert_eq!(node, Access { node_pods_accessible: true, ..Access::default() });
        assert_eq!(Access::merged(Some(&node), &two), None, "there is nothing above it");
    }

    #[test]
    fn a_secret_fits_by_what_it_says_and_by_what_it_is() {
        let known = access(&[secret("a", "1")]);
        assert_eq!(known.fits(&[secret("a", "1")]), (true, None));
        let (fits, learned) = known.fits(&[secret("other", "1")]);
        assert!(fits);
        assert_eq!(names(&learned.unwrap()), ["other"], "it says the same");
        let (fits, learned) = known.fits(&[secret("a", "2")]);
        assert!(fits, "the same secret, rotated");
        assert_ne!(learned.unwrap(), known);
        assert_eq!(known.fits(&[secret("other", "2")]), (false, None));
        assert_eq!(known.fits(&[]), (false, None));
        let node = Tracked { credential: Credential::basic("u", "1"), source: Source::Node };
        assert_eq!(known.fits(&[node]), (false, None), "the node's credentials are nobody's own");
    }

    #[test]
    fn a_secret_without_a_uid_fits_only_by_what_it_says() {
        let nameless = |password: &str| {
            let object = Object { uid: String::new(), ..object("a") };
            Tracked { credential: Credential::basic("u", password), source: Source::Secret(object) }
        };
        let known = access(&[nameless("1")]);
        assert_eq!(known.fits(&[nameless("1")]), (true, None));
        assert_eq!(known.fits(&[nameless("2")]), (false, None));
    }

    #[test]
    fn a_secret_without_a_hash_fits_only_as_itself() {
        let mut known = access(&[secret("a", "1")]);
        known.kubernetes_secrets[0].credential_hash.clear();
        assert!(known.fits(&[secret("a", "1")]).0);
        assert!(!known.fits(&[secret("b", "1")]).0);
    }

    #[test]
    fn past_a_hundred_secrets_nothing_is_learned() {
        let many: Vec<_> = (0..100).map(|n| secret(&format!("s{n:03}"), &format!("p{n}"))).collect();
        let known = access(&many);
        assert_eq!(known.fits(&[secret("other", "p7")]), (true, None));
        assert_eq!(
            known.fits(&[secret("s007", "new")]),
            (false, None),
            "a changed one cannot be told from a guess"
        );
    }

    #[test]
    fn a_service_account_fits_as_itself() {
        let token = |name: &str| Tracked {
            credential: Credential::basic("t", "t"),
            source: Source::ServiceAccount(object(name)),
        };
        let known = access(&[token("a")]);
        assert!(known.fits(&[token("a")]).0);
        assert!(!known.fits(&[token("b")]).0);
        assert!(!known.fits(&[secret("a", "t")]).0);
    }
}
