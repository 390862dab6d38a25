//! Flags and KubeletConfiguration: read, defaulted, checked, and turned into one value that every room reads.
//!
//! ```text
//!  argv ─▶ flags ──┬───────────────────────────────▶ overlay ┐
//!                  └▶ --config, --config-dir ─▶ file ─▶ types ┴▶ gates ─▶ validate ─▶ supported ─▶ Loaded
//! ```
//!
//! `main` calls [`load`] once, before anything else runs. Flags win over drop-ins, drop-ins over the file, the file over
//! the defaults. All mistakes are collected; with one mistake or more nothing is started. What upstream knows and this
//! agent cannot do yet is refused by name as soon as it is asked for: nothing is silently ignored. The table of that is
//! `supported`.

mod access;
mod defaults;
pub mod duration;
mod error;
mod file;
mod flags;
mod gate_table;
mod gates;
mod node;
mod quantity_text;
mod schema;
mod supported;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod types;
mod validate;

pub use access::Access;
pub use error::{ConfigError, Field, Origin};
pub use flags::Flags;
pub use gates::{FeatureGates, Stage};
pub use quantity_text::QuantityText;
pub use types::*;

use defaults::legacy_defaults;
use node::{Node, json};
use schema::{Decode, Decoder};
use std::path::Path;

/// Everything the process was told.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What only flags set.
    pub flags: Flags,
    /// The effective configuration. Serialises to what `/configz` shows.
    pub config: KubeletConfiguration,
    /// Feature gates.
    pub gates: FeatureGates,
    /// Who may use the HTTPS API, in effect.
    pub access: Access,
    /// `cgroupDriver` was asked for: the runtime's has to be the same. Otherwise the runtime's is taken.
    pub cgroup_driver_given: bool,
    /// What the user should know and need not stop for (deprecated flags, settings without effect), for the log.
    pub warnings: Vec<String>,
}

/// What the command line asks for.
#[derive(Clone, Debug)]
pub enum Command {
    /// Print this to standard output and exit with code 0 (`--help`, `--version`).
    Print(String),
    /// Run the agent.
    Run(Box<Loaded>),
}

/// Reads the arguments (without the program's name) and the files they name. All mistakes, one value each, where there
/// are any; print each on a line and exit with code 1.
pub fn load(args: impl IntoIterator<Item = String>) -> Result<Command, Vec<ConfigError>> {
    let mut errors = Vec::new();
    let parsed = flags::parse(args, &mut errors);
    if parsed.help {
        return Ok(Command::Print(flags::help()));
    }
    if let (Some(how), true) = (&parsed.version, errors.is_empty()) {
        return Ok(Command::Print(format!("{}\n", flags::version(how))));
    }

    let mut own = Flags::default();
    if let Some(node) = &parsed.own {
        own.decode(
            node,
            "",
            &mut Decoder { origin: Origin::Flags, zero_is_absent: false, errors: &mut errors },
        );
    }
    for dir in [&mut own.root_dir, &mut own.cert_dir] {
        // Both are handed to the runtime or kept while directories change: a relative one would lose its meaning.
        if let Ok(absolute) = std::path::absolute(dir.as_str())
            && !dir.is_empty()
        {
            *dir = absolute.display().to_string();
        }
    }
    let path = |text: &str| (!text.is_empty()).then(|| Path::new(text).to_owned());
    let document = file::read(path(&own.config).as_deref(), path(&own.config_dir).as_deref(), &mut errors);
    if !errors.is_empty() {
        // Rules about the whole would only repeat what is wrong with the parts.
        return Err(errors);
    }

    let mut config = if own.config.is_empty() { legacy_defaults() } else { KubeletConfiguration::default() };
    let mut decode = |config: &mut KubeletConfiguration, node: &Node, zero_is_absent| {
        config.decode(node, "", &mut Decoder { origin: Origin::Flags, zero_is_absent, errors: &mut errors });
    };
    if let Some(document) = &document {
        decode(&mut config, document, true);
    }
    let gates = gates_of(&config, parsed.config.as_ref())?;
    defaults::complete(&mut config, document.as_ref(), &gates);
    if let Some(overlay) = &parsed.config {
        let from_files = config.feature_gates.clone();
        decode(&mut config, overlay, false);
        // The one mapping that a flag adds to instead of replacing it.
        for (gate, value) in from_files {
            config.feature_gates.entry(gate).or_insert(value);
        }
    }

    errors.extend(validate::validate(&config, &own, &gates));
    let given =
        |layer: Option<&Node>| layer.and_then(|l| l.get("cgroupDriver")).is_some_and(|v| json(v) != "");
    let cgroup_driver_given = given(document.as_ref()) || given(parsed.config.as_ref());
    let (access, refused) = access::resolve(&config, &own, document.as_ref(), parsed.config.as_ref());
    if errors.is_empty() {
        errors.extend(supported::refuse(&config, &parsed.given));
        errors.extend(refused);
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut warnings: Vec<String> = parsed.given.iter().filter_map(|(f, _)| flags::deprecation(f)).collect();
    warnings.extend(supported::notices(&config, &parsed.given));
    warnings.extend(access.warning(&config));
    Ok(Command::Run(Box::new(Loaded { flags: own, config, gates, access, cgroup_driver_given, warnings })))
}

/// The gates of the files with those of the flags over them.
fn gates_of(config: &KubeletConfiguration, overlay: Option<&Node>) -> Result<FeatureGates, Vec<ConfigError>> {
    let mut wanted = config.feature_gates.clone();
    if let Some(Node::Map(entries)) = overlay.and_then(|o| o.get("featureGates")) {
        for (gate, value) in entries {
            wanted.insert(gate.clone(), *value == Node::Bool(true));
        }
    }
    FeatureGates::from_map(&wanted)
}
