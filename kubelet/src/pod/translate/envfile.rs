//! The files that `fileKeyRef` reads (KEP-3721): a deliberately small subset of the shell's assignments, so that every
//! reader agrees. Each line is blank, a `#` comment, or `NAME='value'`; a value may span lines and is taken as it is.

/// The file is not made of such assignments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("couldn't parse env file")]
pub struct ParseError;

/// The value of `key` in `text`; the last assignment wins, `None` when there is none. The whole file must be well
/// formed, so that a mistake shows wherever it is.
pub fn value_of(text: &[u8], key: &str) -> Result<Option<Vec<u8>>, ParseError> {
    let mut found = None;
    let mut rest = text;
    while !rest.is_empty() {
        let line_end = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
        let line = rest[..line_end].trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            rest = rest.get(line_end + 1..).unwrap_or_default();
            continue;
        }
        let next = assignment(rest.trim_ascii_start())?;
        if next.name == key.as_bytes() {
            found = Some(next.value.to_vec());
        }
        rest = next.after;
    }
    Ok(found)
}

/// One assignment.
struct Assignment<'a> {
    name: &'a [u8],
    value: &'a [u8],
    /// What follows its last line.
    after: &'a [u8],
}

/// `NAME='value'` at the head of `text`.
fn assignment(text: &[u8]) -> Result<Assignment<'_>, ParseError> {
    let equals = text.iter().position(|b| *b == b'=').ok_or(ParseError)?;
    let name = &text[..equals];
    if name.is_empty() || name.iter().any(|b| b.is_ascii_whitespace() || *b == b'\'') {
        return Err(ParseError);
    }
    let quoted = text[equals + 1..].strip_prefix(b"'").ok_or(ParseError)?;
    let close = quoted.iter().position(|b| *b == b'\'').ok_or(ParseError)?;
    let tail = &quoted[close + 1..];
    let line_end = tail.iter().position(|b| *b == b'\n').unwrap_or(tail.len());
    let trailer = tail[..line_end].trim_ascii();
    if !trailer.is_empty() && !trailer.starts_with(b"#") {
        return Err(ParseError);
    }
    Ok(Assignment { name, value: &quoted[..close], after: tail.get(line_end + 1..).unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_values_comments_and_blank_lines_are_read() {
        let text =
            b"# head\n\nA='one'\n  B='two words # not a comment' # a comment\nC='l1\nl2'\nA='again'\nE=''";
        for (key, want) in [
            ("A", Some("again")),
            ("B", Some("two words # not a comment")),
            ("C", Some("l1\nl2")),
            ("E", Some("")),
            ("D", None),
        ] {
            assert_eq!(value_of(text, key), Ok(want.map(|w| w.as_bytes().to_vec())), "{key}");
        }
    }

    #[test]
    fn anything_else_is_an_error_wherever_it_stands() {
        for text in ["A=plain", "A=\"x\"", "A='open", "A='x'y", "just words", "='x'", "A B='x'", "A='x'\nB=y"]
        {
            assert_eq!(value_of(text.as_bytes(), "A"), Err(ParseError), "{text}");
        }
    }
}
