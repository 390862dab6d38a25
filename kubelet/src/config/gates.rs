//! Feature gates: which exist, which are on, and which may be changed.
//!
//! `config::load` builds the one [`FeatureGates`] of the process from `featureGates` and `--feature-gates`; rooms ask
//! `enabled`. Rules: component-base `featuregate` (unknown gates and changes to locked ones are errors, `AllAlpha` and
//! `AllBeta` move what was not named, a gate cannot be on without those it depends on).

use super::error::{ConfigError, Field};
use super::gate_table::{DEPENDENCIES, GATES};
use std::collections::BTreeMap;

/// How far a feature is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Off unless asked for.
    Alpha,
    /// Usually on.
    Beta,
    /// On its way out, still switchable.
    Deprecated,
    /// Generally available or withdrawn for good: the default cannot be changed.
    Locked,
}

/// What switching a gate means for this agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Both values are honoured.
    Switch,
    /// The agent behaves as by default, whatever is asked: asking otherwise is refused.
    Fixed,
    /// No part of a node agent; accepted for configurations shared with other components.
    Elsewhere,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gate {
    pub name: &'static str,
    pub default: bool,
    pub stage: Stage,
    pub r#use: Use,
}

/// The state of every gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureGates {
    on: BTreeMap<&'static str, bool>,
}

impl Default for FeatureGates {
    /// Upstream's defaults.
    fn default() -> Self {
        Self { on: GATES.iter().map(|g| (g.name, g.default)).collect() }
    }
}

fn find(name: &str) -> Option<&'static Gate> {
    GATES.binary_search_by(|g| g.name.cmp(name)).ok().map(|i| &GATES[i])
}

impl FeatureGates {
    /// Whether `name` is on. A gate that does not exist is off; `config::load` has refused such names before.
    pub fn enabled(&self, name: &str) -> bool {
        debug_assert!(self.on.contains_key(name), "no feature gate {name}");
        self.on.get(name).copied().unwrap_or(false)
    }

    /// Name, stage and state of every gate, by name: for `/metrics` and `/flagz`.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Stage, bool)> + '_ {
        GATES.iter().map(|g| (g.name, g.stage, self.enabled(g.name)))
    }

    /// The defaults changed by `wanted`. All mistakes, or the gates.
    pub(super) fn from_map(wanted: &BTreeMap<String, bool>) -> Result<Self, Vec<ConfigError>> {
        let mut gates = Self::default();
        let mut errors = Vec::new();
        for (all, stage) in [("AllAlpha", Stage::Alpha), ("AllBeta", Stage::Beta)] {
            if let Some(value) = wanted.get(all) {
                for gate in GATES.iter().filter(|g| g.stage == stage && !g.name.starts_with("All")) {
                    gates.on.insert(gate.name, *value);
                }
            }
        }
        for (name, value) in wanted {
            match find(name) {
                None => errors.push(ConfigError::UnknownGate(name.clone())),
                Some(g) if g.stage == Stage::Locked && g.default != *value => {
                    errors.push(ConfigError::LockedGate { gate: g.name, value: *value, locked: g.default });
                }
                Some(g) => drop(gates.on.insert(g.name, *value)),
            }
        }
        for &(gate, needs) in DEPENDENCIES {
            if gates.enabled(gate) && !gates.enabled(needs) {
                errors.push(ConfigError::GateDependency { gate, needs });
            }
        }
        if errors.is_empty() { Ok(gates) } else { Err(errors) }
    }
}

/// The gates in `wanted` that this agent cannot switch.
pub(super) fn not_yet(wanted: &BTreeMap<String, bool>) -> Vec<ConfigError> {
    let refused = |(name, value): (&String, &bool)| {
        let gate = find(name)
            .filter(|g| g.r#use == Use::Fixed && g.default != *value && g.stage != Stage::Locked)?;
        Some(ConfigError::NotYet {
            field: Field { path: format!("featureGates.{name}"), flag: Some("feature-gates") },
            value: value.to_string(),
            reason: format!("the agent cannot switch this feature; only {} is accepted", gate.default),
        })
    };
    wanted.iter().filter_map(refused).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::golden;

    fn set(gates: &[(&str, bool)]) -> Result<FeatureGates, Vec<String>> {
        let map = gates.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
        FeatureGates::from_map(&map).map_err(|es| es.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_table_is_sorted_and_its_dependencies_exist() {
        assert!(GATES.windows(2).all(|w| w[0].name < w[1].name));
        assert!(DEPENDENCIES.iter().all(|(a, b)| find(a).is_some() && find(b).is_some()));
        assert_eq!(set(&[]), Ok(FeatureGates::default()), "the defaults contradict each other");
    }

    #[test]
    fn alpha_and_beta_gates_are_those_of_the_stock_kubelet() {
        let Some(golden) = golden("kubelet/featuregates.json") else { return };
        let mut golden = golden.as_object().unwrap().clone();
        for downstream in
            ["MinimumKubeletVersion", "RouteExternalCertificate", "StoragePerformantSecurityPolicy"]
        {
            assert!(golden.remove(downstream).is_some());
            assert!(find(downstream).is_none(), "{downstream} is not upstream's");
        }
        for gate in GATES.iter().filter(|g| matches!(g.stage, Stage::Alpha | Stage::Beta)) {
            let want = golden.remove(gate.name).unwrap_or_else(|| panic!("{} is not listed", gate.name));
            assert_eq!(want["default"], gate.default, "{}", gate.name);
            assert_eq!(want["stage"], format!("{:?}", gate.stage).to_uppercase(), "{}", gate.name);
        }
        assert!(golden.is_empty(), "missing: {golden:?}");
    }

    #[test]
    fn unknown_and_locked_gates_are_errors() {
        assert_eq!(
            set(&[("Nope", true), ("NodeSwap", false), ("SidecarContainers", true)]),
            Err(vec![
                "cannot set feature gate NodeSwap to false: it is locked to true".into(),
                "unrecognized feature gate: Nope".into(),
            ])
        );
    }

    #[test]
    fn a_gate_needs_those_it_depends_on() {
        assert_eq!(
            set(&[("GracefulNodeShutdown", false), ("WindowsGracefulNodeShutdown", false)]),
            Err(vec![
                "feature gate GracefulNodeShutdownBasedOnPodPriority is enabled, but it depends on \
                 GracefulNodeShutdown, which is disabled"
                    .into()
            ])
        );
    }

    #[test]
    fn all_alpha_moves_what_was_not_named() {
        let gates = set(&[("AllAlpha", true), ("EventedPLEG", false), ("ClusterTrustBundle", true)]).unwrap();
        assert!(gates.enabled("MemoryQoS"));
        assert!(!gates.enabled("EventedPLEG"));
        assert!(!gates.enabled("SELinuxMount"), "a beta gate moved with the alpha ones");
    }
}
