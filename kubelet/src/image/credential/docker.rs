//! What docker configuration files say: `config.json` (`{"auths": {place: entry}}`) and `.dockercfg` (`{place: entry}`).
//! Pure.
//!
//! An entry has `auth` (base64 of `user:password`, which wins), `username` and `password`, or `identitytoken` or
//! `registrytoken`. Entries that say nothing are left out: they belong to credential helpers, which are not run. An entry
//! in disorder is named and skipped; the others count.

use super::Credential;
use super::keyring::Keyring;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde_json::Value;

/// Which of the two shapes a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `config.json`
    Config,
    /// `.dockercfg`
    Legacy,
}

/// The file's credentials, and what of it is in disorder.
///
/// # Errors
/// The file as a whole is no such configuration.
pub fn parse(bytes: &[u8], format: Format) -> Result<(Keyring, Vec<String>), String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let Value::Object(top) = value else { return Err("it is no JSON object".to_owned()) };
    let (entries, at) = match format {
        Format::Legacy => (top, String::new()),
        Format::Config => match top.get("auths") {
            None | Some(Value::Null) => Default::default(),
            Some(Value::Object(auths)) => (auths.clone(), "auths.".to_owned()),
            Some(_) => return Err("auths: it is no JSON object".to_owned()),
        },
    };
    let (mut ring, mut problems) = (Keyring::default(), Vec::new());
    for (place, entry) in entries {
        let added = credential(&entry).and_then(|c| c.map_or(Ok(()), |c| ring.add(&place, c)));
        problems.extend(added.err().map(|why| format!("{at}{place}: {why}")));
    }
    Ok((ring, problems))
}

/// `None` where the entry says nothing.
fn credential(entry: &Value) -> Result<Option<Credential>, String> {
    let Value::Object(fields) = entry else { return Err("it is no JSON object".to_owned()) };
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(_) => Err(format!("{name}: it is no string")),
    };
    let (identity, registry, auth) = (text("identitytoken")?, text("registrytoken")?, text("auth")?);
    let mut found = Credential::basic(text("username")?, text("password")?);
    if !auth.is_empty() {
        found = decode_auth(auth)?;
    }
    if !identity.is_empty() {
        // Docker files a token with a stand-in for the user's name.
        found = Credential { identity_token: identity.to_owned(), ..Credential::default() };
    }
    found.registry_token = registry.to_owned();
    Ok(Some(found).filter(|c| *c != Credential::default()))
}

/// Neither the text nor what is in it goes into the error.
fn decode_auth(auth: &str) -> Result<Credential, String> {
    let auth = auth.trim();
    let bytes = STANDARD
        .decode(auth)
        .or_else(|_| STANDARD_NO_PAD.decode(auth))
        .map_err(|_| "auth: it is no base64".to_owned())?;
    let text = String::from_utf8(bytes).map_err(|_| "auth: it is no text".to_owned())?;
    let (user, password) =
        text.split_once(':').ok_or("auth: it must be the base64 of username:password".to_owned())?;
    Ok(Credential::basic(user, password.trim_end_matches('\0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(text: &str, format: Format, image: &str) -> (Vec<Credential>, Vec<String>) {
        let (ring, problems) = parse(text.as_bytes(), format).unwrap();
        (ring.lookup(image), problems)
    }

    #[test]
    fn both_shapes_and_every_kind_of_entry_are_read() {
        // The secret of golden case image-pullsecrets.
        let config = r#"{"auths": {"registry.invalid.test": {"username": "u1", "password": "p1"},
            "registry.invalid.test/priv": {"auth": "dTI6cDI="}, "empty.test": {}, "bare.test": {"auth": "dTI6cDI"},
            "token.test": {"auth": "PHRva2VuPjo=", "identitytoken": "it"}, "reg.test": {"registrytoken": "rt"}},
            "credsStore": "x"}"#;
        let of = |image: &str| lookup(config, Format::Config, image).0;
        assert_eq!(
            of("registry.invalid.test/priv/x"),
            [Credential::basic("u2", "p2"), Credential::basic("u1", "p1")]
        );
        assert_eq!(of("bare.test/x"), [Credential::basic("u2", "p2")]);
        assert_eq!(of("empty.test/x"), []);
        assert_eq!(of("token.test/x"), [Credential { identity_token: "it".into(), ..Default::default() }]);
        assert_eq!(of("reg.test/x"), [Credential { registry_token: "rt".into(), ..Default::default() }]);
        let legacy = r#"{"old.test": {"username": "u", "password": "a:b", "email": "e"}}"#;
        assert_eq!(lookup(legacy, Format::Legacy, "old.test/x").0, [Credential::basic("u", "a:b")]);
        assert_eq!(lookup("{}", Format::Config, "old.test/x"), (vec![], vec![]));
    }

    #[test]
    fn an_entry_in_disorder_is_named_and_loses_no_other() {
        let config = r#"{"auths": {"a.test": {"auth": "%"}, "b.test": {"auth": "dTI="}, "c.test": 3, "d .test": {"username": "u"},
            "e.test": {"password": 1}, "f.test": {"username": "u", "password": "p"}}}"#;
        let (found, problems) = lookup(config, Format::Config, "f.test/x");
        assert_eq!(found, [Credential::basic("u", "p")]);
        let told = problems.join("\n");
        for want in [
            "auths.a.test: auth",
            "auths.b.test: auth",
            "auths.c.test",
            "auths.d .test",
            "auths.e.test: password",
        ] {
            assert!(told.contains(want), "{want}: {told}");
        }
        for text in ["", "[]", "{\"auths\": []}", "nonsense"] {
            assert!(parse(text.as_bytes(), Format::Config).is_err(), "{text}");
        }
    }
}
