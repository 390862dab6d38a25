//! Writes what a fake container prints into its log file, in the format that runtimes use: time in RFC 3339 with
//! nanoseconds, stream, `F` for a full line, text.

use std::io::{self, Write};
use std::path::Path;

/// Appends lines to the log file, which is made (with its directories) where it is missing.
pub(super) fn append(path: &str, now: i64, lines: &[(&'static str, String)]) -> io::Result<()> {
    if let Some(directory) = Path::new(path).parent() {
        std::fs::create_dir_all(directory)?;
    }
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    let time = rfc3339(now);
    let text: String = lines.iter().map(|(stream, line)| format!("{time} {stream} F {line}\n")).collect();
    file.write_all(text.as_bytes())
}

/// Nanoseconds since 1970 as `2026-01-02T03:04:05.000000006Z`.
fn rfc3339(nanos: i64) -> String {
    const DAY: i64 = 86_400;
    let (seconds, fraction) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    let (mut days, time) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let leap = |y: i64| y % 4 == 0 && (y % 100 != 0 || y % 400 == 0);
    let mut year = 1970;
    // Tests live in our days: a loop over years is quick, and plain.
    while days >= 365 + i64::from(leap(year)) {
        days -= 365 + i64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + i64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z", days + 1)
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn instants_are_written_as_rfc_3339_with_nanoseconds() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(951_782_400_000_000_001), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(rfc3339(1_798_761_599_999_999_999), "2026-12-31T23:59:59.999999999Z");
    }
}
