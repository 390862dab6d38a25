//! Kubernetes resource quantities (`500m`, `1Gi`, `1e3`): exact parsing, rounding up, canonical text.
//!
//! Source of the rules: the API conventions' serialization format of `resource.Quantity`. Arithmetic is in `i128`
//! nano-units so that nothing in the supported range is lost; results saturate at `i64` as upstream's do.

use std::fmt;

/// A parsed quantity in nano-units (10⁻⁹).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Nano(i128);

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Empty, or without a digit, or with stray characters.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// A suffix that is not one of the decimal, binary or exponent forms.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const NANO: i128 = 1_000_000_000;

/// Parses the text form. Values finer than nano are rounded up (away from zero), larger than `i64::MAX` are capped.
pub fn parse(text: &str) -> Result<Nano, ParseError> {
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (digits, suffix) = rest.split_at(end);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(ParseError::Format);
    }
    let (numerator, denominator) = scale(suffix)?;
    let limit = i128::from(i64::MAX) * NANO;
    let mut value: i128 = 0;
    for d in whole.bytes() {
        value = (value * 10 + i128::from(d - b'0')).min(limit);
    }
    // The whole part in units, then the fraction digit by digit, each scaled exactly; a remainder rounds up.
    let mut nano = value.saturating_mul(NANO).saturating_mul(numerator);
    let mut inexact = nano % denominator != 0;
    nano /= denominator;
    let mut place = denominator;
    for d in fraction.bytes() {
        place = place.saturating_mul(10);
        let part = i128::from(d - b'0') * NANO * numerator;
        inexact |= part % place != 0;
        nano += part / place;
    }
    if inexact {
        nano += 1;
    }
    nano = nano.min(limit);
    Ok(Nano(if negative { -nano } else { nano }))
}

/// `suffix` as a ratio.
fn scale(suffix: &str) -> Result<(i128, i128), ParseError> {
    let p = |e: u32| 10i128.pow(e);
    Ok(match suffix {
        "" => (1, 1),
        "n" => (1, p(9)),
        "u" => (1, p(6)),
        "m" => (1, p(3)),
        "k" => (p(3), 1),
        "M" => (p(6), 1),
        "G" => (p(9), 1),
        "T" => (p(12), 1),
        "P" => (p(15), 1),
        "E" => (p(18), 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E']).ok_or(ParseError::Suffix)?;
            let n: i32 = exponent.parse().map_err(|_| ParseError::Suffix)?;
            match n {
                0..=18 => (p(n.unsigned_abs()), 1),
                -18..=-1 => (1, p(n.unsigned_abs())),
                _ => return Err(ParseError::Suffix),
            }
        }
    })
}

impl Nano {
    /// Whole units, rounded up: bytes, pods, ids.
    pub fn value(self) -> i64 {
        self.div_ceil(NANO)
    }
    /// Thousandths, rounded up: milli-CPU.
    pub fn milli(self) -> i64 {
        self.div_ceil(NANO / 1000)
    }
    /// Of whole units.
    pub fn from_value(v: i64) -> Self {
        Self(i128::from(v) * NANO)
    }
    /// Of thousandths.
    pub fn from_milli(v: i64) -> Self {
        Self(i128::from(v) * (NANO / 1000))
    }
    /// Less than nothing.
    pub fn is_negative(self) -> bool {
        self.0 < 0
    }
    /// The sum, capped at `i64::MAX` units.
    pub fn plus(self, other: Self) -> Self {
        Self((self.0 + other.0).min(i128::from(i64::MAX) * NANO))
    }
    fn div_ceil(self, by: i128) -> i64 {
        let q = self.0.div_euclid(by) + i128::from(self.0.rem_euclid(by) != 0);
        i64::try_from(q).unwrap_or(if q > 0 { i64::MAX } else { i64::MIN })
    }
}

/// Canonical decimal form: the largest suffix that needs no fraction (`1500m`, `2`, `3k`).
impl fmt::Display for Nano {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0");
        }
        const STEPS: [(&str, i128); 10] = [
            ("E", NANO * 1_000_000_000_000_000_000),
            ("P", NANO * 1_000_000_000_000_000),
            ("T", NANO * 1_000_000_000_000),
            ("G", NANO * 1_000_000_000),
            ("M", NANO * 1_000_000),
            ("k", NANO * 1000),
            ("", NANO),
            ("m", 1_000_000),
            ("u", 1000),
            ("n", 1),
        ];
        for (suffix, unit) in STEPS {
            if self.0 % unit == 0 {
                return write!(f, "{}{suffix}", self.0 / unit);
            }
        }
        Ok(())
    }
}

/// Canonical binary form of a byte count: the largest binary suffix that needs no fraction (`64Mi`, `1000`).
pub fn binary(bytes: i64) -> String {
    const STEPS: [(&str, u32); 6] = [("Ei", 60), ("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    for (suffix, shift) in STEPS {
        if bytes != 0 && bytes % (1i64 << shift) == 0 {
            return format!("{}{suffix}", bytes >> shift);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_parse_to_their_value() {
        for (text, milli) in [
            ("0", 0),
            ("1", 1000),
            ("500m", 500),
            ("0.5", 500),
            ("1.5", 1500),
            (".5", 500),
            ("5.", 5000),
            ("1e3", 1_000_000),
            ("1E-3", 1),
            ("100u", 1),
            ("-1500m", -1500),
            ("+2", 2000),
            ("1Ki", 1_024_000),
            ("0.5Ki", 512_000),
        ] {
            assert_eq!(parse(text).map(Nano::milli), Ok(milli), "{text}");
        }
        assert_eq!(parse("1.5Gi").unwrap().value(), 1_610_612_736);
        assert_eq!(parse("100E").unwrap().value(), i64::MAX);
        assert_eq!(parse("0.0000000001").unwrap(), Nano(1), "finer than nano rounds up");
        assert_eq!(parse("0.1Ki").unwrap().value(), 103);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "-", "Ki", "1.2.3", "1 Gi", "1gi", "1KiB", "0x10", "1e", "1e99", "a"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn canonical_text() {
        for (text, want) in [
            ("1500m", "1500m"),
            ("2000m", "2"),
            ("1000", "1k"),
            ("0.1", "100m"),
            ("0", "0"),
            ("-3000", "-3k"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), want);
        }
        assert_eq!(binary(64 << 20), "64Mi");
        assert_eq!(binary(1000), "1000");
        assert_eq!(binary(0), "0");
    }
}
