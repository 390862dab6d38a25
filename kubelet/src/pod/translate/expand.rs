//! `$(VAR)` references in env values, commands, arguments and `subPathExpr`.
//!
//! The rule (API documentation of `EnvVar.value`): `$(NAME)` becomes NAME's value when it is known, `$$` becomes `$`,
//! and everything else, unknown and unclosed references included, stays as it is. Values are bytes because Secrets are.

/// `text` with its references replaced by what `lookup` knows.
pub fn expand<'a>(text: &[u8], mut lookup: impl FnMut(&[u8]) -> Option<&'a [u8]>) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.iter().position(|b| *b == b'$') {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at..];
        match reference(rest) {
            Some(name) => {
                let whole = &rest[..name.len() + 3];
                out.extend_from_slice(lookup(name).unwrap_or(whole));
                rest = &rest[whole.len()..];
            }
            None => {
                out.push(b'$');
                let skip = if rest.get(1) == Some(&b'$') { 2 } else { 1 };
                rest = &rest[skip..];
            }
        }
    }
    out.extend_from_slice(rest);
    out
}

/// NAME when `text` opens with `$(NAME)`.
fn reference(text: &[u8]) -> Option<&[u8]> {
    let inner = text.strip_prefix(b"$(")?;
    let end = inner.iter().position(|b| *b == b')')?;
    Some(&inner[..end])
}

/// A reference that must resolve and does not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("missing value for {0}")]
pub struct MissingValue(pub String);

/// As [`expand`], but a reference to an unknown name is an error: the rule of `subPathExpr`.
pub fn expand_strict<'a>(
    text: &str,
    mut lookup: impl FnMut(&[u8]) -> Option<&'a [u8]>,
) -> Result<Vec<u8>, MissingValue> {
    let mut missing = None;
    let out = expand(text.as_bytes(), |name| {
        let value = lookup(name);
        if value.is_none() && missing.is_none() {
            missing = Some(MissingValue(String::from_utf8_lossy(name).into_owned()));
        }
        value
    });
    missing.map_or(Ok(out), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &[u8]) -> Option<&'static [u8]> {
        match name {
            b"A" => Some(b"one"),
            b"EMPTY" => Some(b""),
            b"REF" => Some(b"$(A)"),
            _ => None,
        }
    }

    #[test]
    fn references_escapes_and_everything_else() {
        for (text, want) in [
            ("", ""),
            ("x", "x"),
            ("$(A)", "one"),
            ("-$(A)-$(A)", "-one-one"),
            ("$(EMPTY)", ""),
            ("$(REF)", "$(A)"),
            ("$(NOPE)", "$(NOPE)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$one"),
            ("$$$$(A)", "$$(A)"),
            ("a$b $ $$ $(", "a$b $ $ $("),
            ("$", "$"),
            ("$$", "$"),
            ("$(", "$("),
            ("$(A", "$(A"),
            ("$()", "$()"),
            ("$($(A))", "$($(A))"),
        ] {
            assert_eq!(String::from_utf8(expand(text.as_bytes(), known)).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn a_strict_expansion_names_the_first_unknown_reference() {
        assert_eq!(expand_strict("a/$(A)", known), Ok(b"a/one".to_vec()));
        let error = expand_strict("$(A)/$(NOVAR)/$(OTHER)", known).unwrap_err();
        assert_eq!(error.to_string(), "missing value for NOVAR");
    }

    proptest::proptest! {
        #[test]
        fn escaping_every_dollar_gives_the_text_back(text in "[$()A-C ]{0,40}") {
            let escaped = text.replace('$', "$$");
            proptest::prop_assert_eq!(expand(escaped.as_bytes(), known), text.into_bytes());
        }

        #[test]
        fn with_nothing_known_only_escapes_change(text in "[$()A-C ]{0,40}") {
            // Unknown references stay, so that only `$$` may have become `$`.
            let out = expand(text.as_bytes(), |_| None);
            proptest::prop_assert!(out.len() <= text.len());
            if !text.contains("$$") {
                proptest::prop_assert_eq!(out, text.into_bytes());
            }
        }
    }
}
