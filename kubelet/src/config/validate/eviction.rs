//! Eviction thresholds: signals, quantities and percentages, grace periods.
//!
//! One of the rule sets of `validate`. Rules: upstream's threshold parser, which the eviction manager runs at start.

use super::Report;
use crate::config::duration::GoDuration;
use crate::config::types::KubeletConfiguration;
use crate::quantity;

const SIGNALS: [&str; 9] = [
    "memory.available",
    "nodefs.available",
    "nodefs.inodesFree",
    "imagefs.available",
    "imagefs.inodesFree",
    "containerfs.available",
    "containerfs.inodesFree",
    "allocatableMemory.available",
    "pid.available",
];

pub(super) fn check(c: &KubeletConfiguration, report: &mut Report) {
    let amounts = [
        ("evictionHard", &c.eviction_hard, true),
        ("evictionSoft", &c.eviction_soft, true),
        ("evictionMinimumReclaim", &c.eviction_minimum_reclaim, false),
    ];
    for (field, map, positive) in amounts {
        for (signal, amount) in map {
            known(field, signal, report);
            if let Err(rule) = is_amount(amount, positive) {
                report.fail(&format!("{field}[{signal}]"), amount, rule);
            }
        }
    }
    for (signal, grace) in &c.eviction_soft_grace_period {
        known("evictionSoftGracePeriod", signal, report);
        if !grace.parse::<GoDuration>().is_ok_and(|d| !d.is_negative()) {
            report.fail(
                &format!("evictionSoftGracePeriod[{signal}]"),
                grace,
                "must be a duration of 0s or more",
            );
        }
    }
    for signal in c.eviction_soft.keys().filter(|s| !c.eviction_soft_grace_period.contains_key(*s)) {
        report.fail("evictionSoft", signal, "needs a grace period in evictionSoftGracePeriod");
    }
    if c.eviction_max_pod_grace_period < 0 {
        report.fail("evictionMaxPodGracePeriod", c.eviction_max_pod_grace_period, "must be 0 or more");
    }
}

fn known(field: &str, signal: &str, report: &mut Report) {
    if !SIGNALS.contains(&signal) {
        report.fail(field, signal, format!("is no eviction signal; these are {}", SIGNALS.join(", ")));
    }
}

/// A percentage from 0% to 100%, or a quantity above 0 (`positive`) or from 0.
fn is_amount(text: &str, positive: bool) -> Result<(), &'static str> {
    if let Some(percent) = text.strip_suffix('%') {
        return match percent.parse::<f64>() {
            Ok(p) if (0.0..=100.0).contains(&p) => Ok(()),
            _ => Err("must be a percentage from 0% to 100%"),
        };
    }
    match quantity::parse(text) {
        Ok(q) if q.is_negative() || (positive && q.value() == 0) => {
            Err(if positive { "must be above 0" } else { "must be 0 or more" })
        }
        Ok(_) => Ok(()),
        Err(_) => Err("must be a quantity or a percentage"),
    }
}
