//! Values as Go prints them: texts of statuses and events are the stock agent's to the letter.

use std::time::Duration;

/// `text` in double quotes, as `%q` shows it. What is no UTF-8 is shown byte by byte.
pub fn quote(text: &[u8]) -> String {
    let mut out = String::from('"');
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\x07' => out.push_str("\\a"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x0b' => out.push_str("\\v"),
                c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
                c if is_printed(c) => out.push(c),
                c if u32::from(c) < 0x10000 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
                c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out.push('"');
    out
}

/// Letters, marks, numbers, punctuation, symbols and the space. Behind another character `escape_debug` leaves exactly
/// those alone.
fn is_printed(c: char) -> bool {
    let mut behind = String::from('a');
    behind.push(c);
    !behind.escape_debug().to_string().contains("\\u{")
}

/// A duration in whole milliseconds: `0s`, `512ms`, `1.5s`, `2m3.004s`.
pub fn duration(d: Duration) -> String {
    let ms = d.as_millis();
    if ms == 0 {
        return "0s".to_owned();
    }
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let (minutes, rest) = (ms / 60_000, ms % 60_000);
    let fraction = format!(".{:03}", rest % 1000);
    let seconds = format!("{}{}s", rest / 1000, fraction.trim_end_matches('0').trim_end_matches('.'));
    match (minutes / 60, minutes % 60) {
        (0, 0) => seconds,
        (0, m) => format!("{m}m{seconds}"),
        (h, m) => format!("{h}h{m}m{seconds}"),
    }
}

/// Several errors in one text, as an aggregate prints them: each once, one alone as it is, several as `[a, b]`.
pub fn aggregate(errors: impl IntoIterator<Item = impl Into<String>>) -> String {
    let mut distinct: Vec<String> = Vec::new();
    for error in errors.into_iter().map(Into::into) {
        if !distinct.contains(&error) {
            distinct.push(error);
        }
    }
    if distinct.len() == 1 { distinct.remove(0) } else { format!("[{}]", distinct.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_as_go_does_it() {
        for (text, want) in [
            (&b"bad\n"[..], r#""bad\n""#),
            (b"a\"b\\c\t\x00\x7f", r#""a\"b\\c\t\x00\x7f""#),
            ("grün\u{85}".as_bytes(), r#""grün\u0085""#),
            (b"\xff\xfe", r#""\xff\xfe""#),
            ("é\u{301}\u{1}\u{80}\u{200b}".as_bytes(), "\"é\u{301}\\x01\\u0080\\u200b\""),
            ("\u{2028}\u{e0001}".as_bytes(), r#""\u2028\U000e0001""#),
        ] {
            assert_eq!(quote(text), want);
        }
    }

    #[test]
    fn durations_print_as_go_prints_them() {
        for (ms, want) in [
            (0, "0s"),
            (7, "7ms"),
            (999, "999ms"),
            (1000, "1s"),
            (1500, "1.5s"),
            (61_000, "1m1s"),
            (123_004, "2m3.004s"),
            (160_000, "2m40s"),
            (300_000, "5m0s"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(duration(Duration::from_millis(ms)), want);
        }
    }

    #[test]
    fn an_aggregate_tells_each_error_once() {
        for (errors, want) in [
            (&["a"][..], "a"),
            (&["a", "a"], "a"),
            (&["a", "b", "a", "c"], "[a, b, c]"),
            (&["[a, b]"], "[a, b]"),
        ] {
            assert_eq!(aggregate(errors.iter().copied()), want);
        }
    }
}
