//! Thresholds: what the configuration says of them, as values. Pure; the texts were checked by `config::validate`, and what
//! it would have refused is refused here as well, by field and key.
//!
//! Rules: upstream's `ParseThresholdConfig`; KEP-4191 for the file system of containers.

use super::signal::Signal;
use crate::quantity;
use std::collections::BTreeMap;
use std::time::Duration;

/// An amount: as such, or a share of what there is.
#[derive(Clone, Debug, PartialEq)]
pub enum Amount {
    /// Bytes, inodes or processes, and how a message spells them.
    Quantity {
        /// How many.
        value: i64,
        /// Canonical, such as `100Mi`.
        text: String,
    },
    /// From 0 to 1, of single precision as upstream's.
    Share(f32),
}

/// Why a text is no amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Neither form.
    #[error("must be a quantity or a percentage")]
    Syntax,
    /// Out of range.
    #[error("must be a percentage from 0% to 100%")]
    Percentage,
    /// Below zero.
    #[error("must be 0 or more")]
    Negative,
    /// A threshold of nothing could never be met.
    #[error("must be above 0")]
    Zero,
}

impl Amount {
    /// Reads `500Mi` or `5%`.
    ///
    /// # Errors
    /// It is neither, or out of range.
    pub fn parse(text: &str) -> Result<Self, AmountError> {
        if let Some(percent) = text.strip_suffix('%') {
            return match percent.parse::<f32>() {
                Ok(p) if (0.0..=100.0).contains(&p) => Ok(Self::Share(p / 100.0)),
                _ => Err(AmountError::Percentage),
            };
        }
        let parsed = quantity::parse(text).map_err(|_| AmountError::Syntax)?;
        if parsed.is_negative() {
            return Err(AmountError::Negative);
        }
        let value = parsed.value();
        let text = if text.ends_with('i') { quantity::binary(value) } else { parsed.to_string() };
        Ok(Self::Quantity { value, text })
    }

    /// So much of `capacity`.
    pub fn of(&self, capacity: i64) -> i64 {
        match self {
            Self::Quantity { value, .. } => *value,
            Self::Share(share) => (capacity as f64 * f64::from(*share)) as i64,
        }
    }

    /// As messages spell it.
    pub fn text(&self, capacity: i64) -> String {
        match self {
            Self::Quantity { text, .. } => text.clone(),
            Self::Share(_) => quantity::binary(self.of(capacity)),
        }
    }
}

/// A limit below which pods are evicted.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    /// What is looked at.
    pub signal: Signal,
    /// It is met when less than this is available.
    pub value: Amount,
    /// How long it must have been met; `None` for a hard threshold.
    pub grace: Option<Duration>,
    /// Once it was met, so much more must be available for it to be over (`evictionMinimumReclaim`).
    pub min_reclaim: Option<Amount>,
}

impl Threshold {
    /// It evicts at once, and without waiting for pods.
    pub fn is_hard(&self) -> bool {
        self.grace.is_none()
    }
}

/// What the configuration says, as it says it.
#[derive(Clone, Copy, Debug)]
pub struct Texts<'a> {
    /// `evictionHard`
    pub hard: &'a BTreeMap<String, String>,
    /// `evictionSoft`
    pub soft: &'a BTreeMap<String, String>,
    /// `evictionSoftGracePeriod`, read.
    pub grace: &'a BTreeMap<String, Duration>,
    /// `evictionMinimumReclaim`
    pub min_reclaim: &'a BTreeMap<String, String>,
    /// `enforceNodeAllocatable` has `pods`: the hard threshold for memory holds for the cgroup of all pods as well.
    pub pods_enforced: bool,
}

/// What is wrong with a threshold.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    /// There is no such signal.
    #[error("{field}: {signal:?} is no eviction signal")]
    Signal {
        /// Such as `evictionHard`.
        field: &'static str,
        /// The key.
        signal: String,
    },
    /// The amount.
    #[error("{field}[{signal}]: {amount:?} {why}")]
    Amount {
        /// Such as `evictionHard`.
        field: &'static str,
        /// The key.
        signal: String,
        /// The value.
        amount: String,
        /// What it must be.
        why: AmountError,
    },
    /// A soft threshold without a grace period.
    #[error("evictionSoft[{signal}] needs a grace period in evictionSoftGracePeriod")]
    Grace {
        /// The key.
        signal: String,
    },
}

/// All thresholds, hard ones first, each kind in the order of signals.
///
/// # Errors
/// Something that the validation of the configuration refuses, by field and key.
pub fn parse(texts: &Texts<'_>) -> Result<Vec<Threshold>, ThresholdError> {
    let reclaim = amounts("evictionMinimumReclaim", texts.min_reclaim)?;
    let min_reclaim = |signal: Signal| reclaim.iter().find(|(s, _)| *s == signal).map(|(_, a)| a.clone());
    let mut all = Vec::new();
    for (signal, value) in positive("evictionHard", texts.hard)? {
        all.push(Threshold { signal, value, grace: None, min_reclaim: min_reclaim(signal) });
    }
    if texts.pods_enforced
        && let Some(memory) = all.iter().find(|t| t.signal == Signal::Memory).cloned()
    {
        all.push(Threshold { signal: Signal::AllocatableMemory, ..memory });
    }
    all.sort_by_key(|t| t.signal);
    let hard = all.len();
    for (signal, value) in positive("evictionSoft", texts.soft)? {
        let grace = texts.grace.get(signal.as_str()).copied();
        let grace = grace.ok_or_else(|| ThresholdError::Grace { signal: signal.to_string() })?;
        all.push(Threshold { signal, value, grace: Some(grace), min_reclaim: min_reclaim(signal) });
    }
    all[hard..].sort_by_key(|t| t.signal);
    Ok(all)
}

fn amounts(
    field: &'static str,
    texts: &BTreeMap<String, String>,
) -> Result<Vec<(Signal, Amount)>, ThresholdError> {
    let one = |(key, text): (&String, &String)| {
        let signal =
            Signal::named(key).ok_or_else(|| ThresholdError::Signal { field, signal: key.clone() })?;
        let amount = Amount::parse(text).map_err(|why| ThresholdError::Amount {
            field,
            signal: key.clone(),
            amount: text.clone(),
            why,
        })?;
        Ok((signal, amount))
    };
    texts.iter().map(one).collect()
}

/// Amounts that can be met. As upstream's, a share of nothing and one of everything switch the threshold off.
fn positive(
    field: &'static str,
    texts: &BTreeMap<String, String>,
) -> Result<Vec<(Signal, Amount)>, ThresholdError> {
    let mut found = amounts(field, texts)?;
    found.retain(|(_, amount)| !matches!(amount, Amount::Share(s) if *s == 0.0 || *s == 1.0));
    match found.iter().find(|(_, amount)| matches!(amount, Amount::Quantity { value: 0, .. })) {
        Some((signal, _)) => Err(ThresholdError::Amount {
            field,
            signal: signal.to_string(),
            amount: texts.get(signal.as_str()).cloned().unwrap_or_default(),
            why: AmountError::Zero,
        }),
        None => Ok(found),
    }
}

/// How the node's file systems are laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Everything is on one.
    #[default]
    One,
    /// The runtime has one of its own, for images and what containers write.
    OfRuntime,
    /// Only images have one of their own: what containers write is beside the agent's directory.
    OfImages,
}

/// Thresholds for the file system that containers write to are not the user's to choose (KEP-4191): they are those of the
/// file system that it is. What was given for them is dropped; the answer says of which that is.
pub fn follow(thresholds: &mut Vec<Threshold>, layout: Layout) -> Vec<Signal> {
    let (space, inodes) = match layout {
        Layout::OfRuntime => (Signal::ImageFs, Signal::ImageFsInodes),
        Layout::One | Layout::OfImages => (Signal::NodeFs, Signal::NodeFsInodes),
    };
    let own = [Signal::ContainerFs, Signal::ContainerFsInodes];
    let dropped = thresholds.iter().map(|t| t.signal).filter(|s| own.contains(s)).collect();
    thresholds.retain(|t| !own.contains(&t.signal));
    let copied = |t: &Threshold| {
        let signal = match t.signal {
            s if s == space => Signal::ContainerFs,
            s if s == inodes => Signal::ContainerFsInodes,
            _ => return None,
        };
        Some(Threshold { signal, ..t.clone() })
    };
    let more: Vec<Threshold> = thresholds.iter().filter_map(copied).collect();
    thresholds.extend(more);
    dropped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn read(
        hard: &[(&str, &str)],
        soft: &[(&str, &str)],
        grace: &[(&str, u64)],
        reclaim: &[(&str, &str)],
        pods_enforced: bool,
    ) -> Result<Vec<Threshold>, String> {
        let grace = grace.iter().map(|(k, s)| ((*k).to_owned(), Duration::from_secs(*s))).collect();
        let texts = Texts {
            hard: &map(hard),
            soft: &map(soft),
            grace: &grace,
            min_reclaim: &map(reclaim),
            pods_enforced,
        };
        parse(&texts).map_err(|e| e.to_string())
    }

    #[test]
    fn amounts_are_quantities_or_shares_of_what_there_is() {
        let of = |text: &str| Amount::parse(text).map(|a| (a.of(1 << 30), a.text(1 << 30)));
        assert_eq!(of("100Mi"), Ok((100 << 20, "100Mi".into())));
        assert_eq!(of("1024Mi"), Ok((1 << 30, "1Gi".into())));
        assert_eq!(of("1G"), Ok((1_000_000_000, "1G".into())));
        assert_eq!(of("1500"), Ok((1500, "1500".into())));
        assert_eq!(of("50%"), Ok((1 << 29, "512Mi".into())));
        assert_eq!(of("0"), Ok((0, "0".into())));
        for (text, why) in [
            ("", AmountError::Syntax),
            ("ten", AmountError::Syntax),
            ("10 Mi", AmountError::Syntax),
            ("-1", AmountError::Negative),
            ("-1%", AmountError::Percentage),
            ("101%", AmountError::Percentage),
            ("%", AmountError::Percentage),
            ("NaN%", AmountError::Percentage),
        ] {
            assert_eq!(of(text), Err(why), "{text:?}");
        }
    }

    #[test]
    fn a_share_is_of_single_precision_as_the_stock_agents() {
        // Recorded: 10 % of this file system is kept from pods, and 243497856212 bytes are left to them.
        let capacity = 264_212_084 << 10;
        assert_eq!(capacity - Amount::parse("10%").unwrap().of(capacity), 243_497_856_212);
    }

    #[test]
    fn thresholds_come_in_order_with_grace_and_reclaim() {
        let all = read(
            &[("pid.available", "5%"), ("memory.available", "100Mi"), ("nodefs.available", "10%")],
            &[("memory.available", "1Gi")],
            &[("memory.available", 90), ("nodefs.available", 5)],
            &[("memory.available", "0"), ("nodefs.available", "500Mi")],
            true,
        )
        .unwrap();
        let signals: Vec<_> = all.iter().map(|t| (t.signal.as_str(), t.is_hard())).collect();
        assert_eq!(
            signals,
            [
                ("memory.available", true),
                ("allocatableMemory.available", true),
                ("nodefs.available", true),
                ("pid.available", true),
                ("memory.available", false)
            ]
        );
        assert_eq!(all[1].value.of(0), 100 << 20, "that of the node's memory");
        assert_eq!(all[2].min_reclaim.as_ref().unwrap().of(0), 500 << 20);
        assert_eq!(all[3].min_reclaim, None);
        assert_eq!(all[4].grace, Some(Duration::from_secs(90)));
    }

    #[test]
    fn shares_of_nothing_and_of_everything_switch_a_threshold_off() {
        let all = read(&[("memory.available", "0%"), ("pid.available", "100%")], &[], &[], &[], true);
        assert_eq!(all, Ok(vec![]));
    }

    #[test]
    fn what_is_wrong_is_named_by_field_and_key() {
        for (got, want) in [
            (read(&[("x", "1")], &[], &[], &[], false), r#"evictionHard: "x" is no eviction signal"#),
            (
                read(&[("memory.available", "0")], &[], &[], &[], false),
                r#"evictionHard[memory.available]: "0" must be above 0"#,
            ),
            (
                read(&[], &[("nodefs.available", "-5")], &[], &[], false),
                r#"evictionSoft[nodefs.available]: "-5" must be 0 or more"#,
            ),
            (
                read(&[], &[("nodefs.available", "5%")], &[], &[], false),
                "evictionSoft[nodefs.available] needs a grace period in evictionSoftGracePeriod",
            ),
            (
                read(&[], &[], &[], &[("pid.available", "200%")], false),
                r#"evictionMinimumReclaim[pid.available]: "200%" must be a percentage from 0% to 100%"#,
            ),
        ] {
            assert_eq!(got, Err(want.to_owned()));
        }
    }

    #[test]
    fn the_file_system_of_containers_has_the_thresholds_of_the_one_it_is() {
        let given = read(
            &[("nodefs.available", "10%"), ("imagefs.available", "15%"), ("containerfs.available", "1%")],
            &[],
            &[],
            &[],
            false,
        )
        .unwrap();
        for (layout, want) in [(Layout::One, 0.1), (Layout::OfImages, 0.1), (Layout::OfRuntime, 0.15)] {
            let mut all = given.clone();
            assert_eq!(follow(&mut all, layout), [Signal::ContainerFs], "the user's is told of");
            let of: Vec<_> = all.iter().filter(|t| t.signal == Signal::ContainerFs).collect();
            assert_eq!(of.len(), 1);
            assert_eq!(of[0].value, Amount::Share(want), "{layout:?}");
        }
    }
}
