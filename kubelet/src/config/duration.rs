//! Go's duration text (`1m0s`, `100ms`, `-1.5h`), the form of every duration in KubeletConfiguration and in flags.
//!
//! Used by the configuration and by any room that reads or prints a duration the way Kubernetes does. Rules: the text
//! form of `time.Duration` in Go's standard library. A value is a signed count of nanoseconds and never anything else:
//! no calendar units, no arithmetic beyond what is needed here.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A signed duration in nanoseconds, about ±292 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoDuration(i64);

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Empty, without digits, or with stray characters.
    #[error("not a duration such as \"1m30s\"")]
    Format,
    /// A number without a unit.
    #[error("missing unit in duration, such as \"s\" or \"ms\"")]
    MissingUnit,
    /// A unit that is none of ns, us, µs, ms, s, m, h.
    #[error("unknown unit {0:?} in duration")]
    Unit(String),
    /// Outside of what 64 bits of nanoseconds hold.
    #[error("duration out of range")]
    Range,
}

const MICRO: i64 = 1_000;
const MILLI: i64 = 1_000_000;
const SECOND: i64 = 1_000_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;

impl GoDuration {
    /// No time at all: `0s`.
    pub const ZERO: Self = Self(0);

    /// Of nanoseconds.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }
    /// Of milliseconds; saturates.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(MILLI))
    }
    /// Of seconds; saturates.
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(SECOND))
    }
    /// Of minutes; saturates.
    pub const fn from_mins(mins: i64) -> Self {
        Self(mins.saturating_mul(MINUTE))
    }
    /// In nanoseconds.
    pub const fn as_nanos(self) -> i64 {
        self.0
    }
    /// Exactly zero.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
    /// Below zero.
    pub const fn is_negative(self) -> bool {
        self.0 < 0
    }
    /// As the standard library's duration; a negative value, which that cannot hold, becomes zero.
    pub fn to_std(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }
}

impl From<Duration> for GoDuration {
    /// Saturates at about 292 years.
    fn from(d: Duration) -> Self {
        Self(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
    }
}

impl FromStr for GoDuration {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (sign, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (-1, &text[1..]),
            Some(b'+') => (1, &text[1..]),
            _ => (1, text),
        };
        if rest == "0" {
            return Ok(Self::ZERO);
        }
        if rest.is_empty() {
            return Err(ParseError::Format);
        }
        let mut total: i128 = 0;
        while !rest.is_empty() {
            let (nanos, tail) = component(rest)?;
            total += nanos;
            if total > i128::from(i64::MAX) + 1 {
                return Err(ParseError::Range);
            }
            rest = tail;
        }
        i64::try_from(sign * total).map(Self).map_err(|_| ParseError::Range)
    }
}

/// One number with its unit from the front of `text`: its nanoseconds, truncated, and what follows it.
fn component(text: &str) -> Result<(i128, &str), ParseError> {
    let digits = |s: &str| s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
    let (whole, rest) = text.split_at(digits(text));
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(after) => after.split_at(digits(after)),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(ParseError::Format);
    }
    let (unit, tail) =
        rest.split_at(rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len()));
    let scale = i128::from(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => MICRO,
        "ms" => MILLI,
        "s" => SECOND,
        "m" => MINUTE,
        "h" => HOUR,
        "" => return Err(ParseError::MissingUnit),
        other => return Err(ParseError::Unit(other.into())),
    });
    // Nineteen digits is more than any representable value has.
    let significant = whole.trim_start_matches('0');
    if significant.len() > 19 {
        return Err(ParseError::Range);
    }
    let mut nanos = significant.bytes().fold(0i128, |n, d| n * 10 + i128::from(d - b'0')) * scale;
    let mut place = scale;
    for d in fraction.bytes().take(18) {
        nanos += i128::from(d - b'0') * place / 10;
        // The finest unit has no decimal place of its own, so what the division drops is below a nanosecond for it.
        if place % 10 != 0 {
            break;
        }
        place /= 10;
    }
    Ok((nanos, tail))
}

impl fmt::Display for GoDuration {
    /// As Go prints it: below a second in the largest of ns, µs, ms that keeps a digit before the point; otherwise
    /// hours, minutes and seconds down from the first that is not zero.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let unit = |n: i64| n.unsigned_abs();
        match nanos {
            0 => f.write_str("0s"),
            n if n < unit(MICRO) => write!(f, "{n}ns"),
            n if n < unit(MILLI) => write!(f, "{}µs", decimal(n, unit(MICRO))),
            n if n < unit(SECOND) => write!(f, "{}ms", decimal(n, unit(MILLI))),
            n => {
                let (hours, minutes) = (n / unit(HOUR), n % unit(HOUR) / unit(MINUTE));
                if hours > 0 {
                    write!(f, "{hours}h")?;
                }
                if hours > 0 || minutes > 0 {
                    write!(f, "{minutes}m")?;
                }
                write!(f, "{}s", decimal(n % unit(MINUTE), unit(SECOND)))
            }
        }
    }
}

/// `n / unit` as a decimal without trailing zeros; `unit` is a power of ten.
fn decimal(n: u64, unit: u64) -> String {
    let width = unit.ilog10() as usize;
    match n % unit {
        0 => (n / unit).to_string(),
        rest => format!("{}.{}", n / unit, format!("{rest:0width$}").trim_end_matches('0')),
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nanos(text: &str) -> Result<i64, ParseError> {
        text.parse::<GoDuration>().map(GoDuration::as_nanos)
    }

    #[test]
    fn texts_parse_as_in_go() {
        for (text, want) in [
            ("0", 0),
            ("0s", 0),
            ("-0", 0),
            ("1m0s", MINUTE),
            ("100ms", 100 * MILLI),
            ("1.5h", 90 * MINUTE),
            ("-1.5h", -90 * MINUTE),
            ("+5s", 5 * SECOND),
            ("2h45m", 165 * MINUTE),
            (".5s", SECOND / 2),
            ("1.s", SECOND),
            ("1µs", MICRO),
            ("1us2ns", MICRO + 2),
            ("0.3ns", 0),
            ("0.1m", 6 * SECOND),
            ("0.000000001h", 3600),
            ("0.0000000000001h", 0),
            ("9223372036854775807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
        ] {
            assert_eq!(nanos(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused_with_the_reason() {
        for (text, why) in [
            ("", ParseError::Format),
            ("-", ParseError::Format),
            ("s", ParseError::Format),
            (".s", ParseError::Format),
            ("5", ParseError::MissingUnit),
            ("1m5", ParseError::MissingUnit),
            ("5d", ParseError::Unit("d".into())),
            ("1 s", ParseError::Unit(" s".into())),
            ("9223372036854775808ns", ParseError::Range),
            ("99999999999999999999h", ParseError::Range),
        ] {
            assert_eq!(nanos(text), Err(why), "{text}");
        }
    }

    #[test]
    fn values_print_as_in_go() {
        for (value, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1100, "1.1µs"),
            (100 * MILLI, "100ms"),
            (MINUTE, "1m0s"),
            (4 * HOUR, "4h0m0s"),
            (HOUR + MILLI, "1h0m0.001s"),
            (-SECOND * 3 / 2, "-1.5s"),
        ] {
            assert_eq!(GoDuration(value).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_gives_the_same_value(n in any::<i64>()) {
            prop_assert_eq!(GoDuration(n).to_string().parse(), Ok(GoDuration(n)));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[-+]?[0-9.]{0,30}[a-zµ]{0,3}[0-9.]{0,5}[smh]?") {
            let _ = text.parse::<GoDuration>();
        }
    }
}
