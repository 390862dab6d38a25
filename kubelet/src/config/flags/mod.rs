//! The command line: which flags there are, how they are read, and what they set.
//!
//! Called by `config::load`. Syntax is pflag's (`--name=value`, `--name value`, `-v=2`, a bool without a value is true,
//! lists and mappings may be repeated), underscores in names read as dashes. Every mistake is reported, not only the
//! first. Nothing here knows what a setting does.

mod help;
mod table;
mod value;

#[cfg(test)]
pub(super) use help::default_text;
pub(super) use help::{help, version};
pub(super) use table::{FLAGS, OURS};
pub(super) use value::Type;

use super::duration::GoDuration;
use super::error::ConfigError;
use super::node::Node;
use super::schema::objects;
use std::collections::BTreeMap;
use value::Outcome;

/// One flag.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag {
    /// Without dashes.
    pub name: &'static str,
    pub ty: Type,
    pub target: Target,
    /// Using it prints a warning.
    pub deprecated: bool,
}

/// What a flag sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A field of KubeletConfiguration, by dotted path.
    Config(&'static str),
    /// A field of [`Flags`].
    Own,
    /// A setting of the stock kubelet's statistics library, which this agent does not have. Its default.
    Stats(&'static str),
    /// Prints something and ends.
    Asks,
}

impl Flag {
    /// The one-letter form.
    pub(super) fn shorthand(&self) -> Option<char> {
        match self.name {
            "help" => Some('h'),
            "v" => Some('v'),
            _ => None,
        }
    }
}

impl Flag {
    /// What `text`, a default of the table, is as a JSON value of this flag's type.
    pub(super) fn default_of(&self, text: &str) -> serde_json::Value {
        match self.ty.read(&[text.to_owned()]) {
            Outcome::Value(node) => super::node::json(&node),
            Outcome::Wrong { .. } => serde_json::Value::Null,
        }
    }
}

/// The flag that sets a configuration field.
pub(super) fn flag_of(path: &str) -> Option<&'static str> {
    FLAGS.iter().find(|f| matches!(f.target, Target::Config(p) if p == path)).map(|f| f.name)
}

objects! {
    /// What is set by flags alone and is no part of KubeletConfiguration.
    pub struct Flags {
        /// Kubeconfig used once, to obtain a client certificate.
        value bootstrap_kubeconfig: String = String::new() => "bootstrap-kubeconfig",
        /// Directory of the certificates the agent makes or obtains.
        value cert_dir: String = "/var/lib/kubelet/pki".into() => "cert-dir",
        /// Empty, or "external" where a cloud controller completes the node.
        value cloud_provider: String = String::new() => "cloud-provider",
        /// The configuration file; empty: none.
        value config: String = String::new() => "config",
        /// Directory of *.conf files laid over the configuration file; empty: none.
        value config_dir: String = String::new() => "config-dir",
        /// End when another process wants the lock file.
        value exit_on_lock_contention: bool = false => "exit-on-lock-contention",
        /// Leave eviction thresholds out of allocatable.
        value experimental_allocatable_ignore_eviction: bool = false => "experimental-allocatable-ignore-eviction",
        /// Removed switch: a wrapper for mount.
        value experimental_mounter_path: String = String::new() => "experimental-mounter-path",
        /// The node's name; empty: the host's name.
        value hostname_override: String = String::new() => "hostname-override",
        /// Directory of the image credential plugins.
        value image_credential_provider_bin_dir: String = String::new() => "image-credential-provider-bin-dir",
        /// Configuration of the image credential plugins.
        value image_credential_provider_config: String = String::new() => "image-credential-provider-config",
        /// How to reach the API server; empty: stand-alone.
        value kubeconfig: String = String::new() => "kubeconfig",
        /// File locked while the agent runs.
        value lock_file: String = String::new() => "lock-file",
        /// Ended containers kept on the node; negative: no limit.
        value maximum_dead_containers: i32 = -1 => "maximum-dead-containers",
        /// Ended instances kept of each container; negative: no limit.
        value maximum_dead_containers_per_container: i32 = 1 => "maximum-dead-containers-per-container",
        /// Age, from its creation, below which an ended container is kept.
        value minimum_container_ttl_duration: GoDuration = GoDuration::ZERO => "minimum-container-ttl-duration",
        /// The node's address, or its IPv4 and IPv6 address with a comma between; empty: found out.
        value node_ip: String = String::new() => "node-ip",
        /// Labels of a new node.
        value node_labels: BTreeMap<String, String> = BTreeMap::new() => "node-labels",
        /// Where pods' directories and the agent's state are kept.
        value root_dir: String = "/var/lib/kubelet".into() => "root-dir",
        /// Cgroup of the runtime, for its statistics.
        value runtime_cgroups: String = String::new() => "runtime-cgroups",
        /// Directory of the ConfigMaps and Secrets that static pods may refer to; empty: none.
        value standalone_objects: String = String::new() => "standalone-objects",
        /// Directory of pods as an API server would have them, which may change while they run; empty: none.
        value standalone_pods: String = String::new() => "standalone-pods",
    }
}

/// A command line taken apart.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// KubeletConfiguration fields that flags set.
    pub config: Option<Node>,
    /// [`Flags`] fields that flags set.
    pub own: Option<Node>,
    /// Every flag given, once each, with its final value.
    pub given: Vec<(&'static Flag, Node)>,
    /// `--help` was given.
    pub help: bool,
    /// `--version` was given, and how.
    pub version: Option<String>,
}

/// Reads the arguments (without the program's name). Mistakes go to `errors`; what is right is kept all the same.
pub(super) fn parse(args: impl IntoIterator<Item = String>, errors: &mut Vec<ConfigError>) -> Parsed {
    let mut texts: BTreeMap<&'static str, (&'static Flag, Vec<String>)> = BTreeMap::new();
    let mut rest = args.into_iter();
    while let Some(arg) = rest.next() {
        if arg == "--" {
            errors.extend(rest.by_ref().map(ConfigError::Positional));
            break;
        }
        let Some((flag, inline)) = recognise(&arg, errors) else { continue };
        let text = match inline.or_else(|| flag.ty.without_value().map(str::to_owned)).or_else(|| rest.next())
        {
            Some(text) => text,
            None => {
                errors.push(ConfigError::MissingArgument(flag.name));
                continue;
            }
        };
        texts.entry(flag.name).or_insert_with(|| (flag, Vec::new())).1.push(text);
    }
    let mut parsed = Parsed::default();
    for (flag, texts) in texts.into_values() {
        match flag.ty.read(&texts) {
            Outcome::Value(node) => take(&mut parsed, flag, node),
            Outcome::Wrong { value, problem } => {
                errors.push(ConfigError::FlagValue { flag: flag.name, value, problem });
            }
        }
    }
    parsed
}

/// The flag that `arg` names and the value written together with it; reports what is neither.
fn recognise(arg: &str, errors: &mut Vec<ConfigError>) -> Option<(&'static Flag, Option<String>)> {
    let Some(long) = arg.strip_prefix("--") else {
        let mut short = arg.strip_prefix('-').unwrap_or_default().chars();
        let Some(letter) = short.next() else {
            errors.push(ConfigError::Positional(arg.to_owned()));
            return None;
        };
        let Some(flag) = FLAGS.iter().find(|f| f.shorthand() == Some(letter)) else {
            errors.push(ConfigError::UnknownFlag(arg.to_owned()));
            return None;
        };
        let value = short.as_str();
        let value = value.strip_prefix('=').unwrap_or(value);
        return Some((flag, (short.as_str() != "").then(|| value.to_owned())));
    };
    let (name, value) = long.split_once('=').map_or((long, None), |(n, v)| (n, Some(v.to_owned())));
    let dashed = name.replace('_', "-");
    match FLAGS.binary_search_by(|f| f.name.cmp(dashed.as_str())) {
        Ok(i) => Some((&FLAGS[i], value)),
        Err(_) => {
            errors.push(ConfigError::UnknownFlag(format!("--{name}")));
            None
        }
    }
}

/// Puts a flag's value where it belongs.
fn take(parsed: &mut Parsed, flag: &'static Flag, node: Node) {
    match flag.target {
        Target::Config(path) => parsed.config.get_or_insert(Node::Null).set(path, node.clone()),
        Target::Own => parsed.own.get_or_insert(Node::Null).set(flag.name, node.clone()),
        Target::Stats(_) => {}
        Target::Asks => match (flag.name, &node) {
            ("help", Node::Bool(asked)) => parsed.help = *asked,
            (_, Node::Str(how)) if how != "false" => parsed.version = Some(how.clone()),
            _ => {}
        },
    }
    parsed.given.push((flag, node));
}

/// The warning a deprecated flag deserves.
pub(super) fn deprecation(flag: &Flag) -> Option<String> {
    flag.deprecated.then(|| match flag.target {
        Target::Config(path) => format!(
            "Flag --{} has been deprecated, set {path} in the file given by --config instead",
            flag.name
        ),
        _ => format!("Flag --{} has been deprecated, it will be removed in a future release", flag.name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::golden;

    fn errors(args: &[&str]) -> Vec<String> {
        let mut errors = Vec::new();
        parse(args.iter().map(ToString::to_string), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    fn config(args: &[&str]) -> String {
        let mut errors = Vec::new();
        let parsed = parse(args.iter().map(ToString::to_string), &mut errors);
        assert_eq!(errors, [], "{args:?}");
        parsed.config.unwrap().to_string()
    }

    #[test]
    fn every_flag_is_the_stock_kubelets_in_name_type_default_and_deprecation() {
        let Some(golden) = golden("kubelet/flags.json") else { return };
        let golden = golden.as_array().unwrap();
        let stock: Vec<_> = FLAGS.iter().filter(|f| !OURS.contains(&f.name)).collect();
        assert_eq!(stock.len(), golden.len());
        assert_eq!(FLAGS.len() - stock.len(), OURS.len());
        for (flag, want) in stock.into_iter().zip(golden) {
            assert_eq!(want["name"], flag.name);
            assert_eq!(want["type"], flag.ty.name(), "{}", flag.name);
            assert_eq!(want["deprecated"], flag.deprecated, "{}", flag.name);
            assert_eq!(want["default"].as_str().unwrap_or_default(), default_text(flag), "{}", flag.name);
            let shorthand = want.get("shorthand").and_then(|s| s.as_str()).and_then(|s| s.chars().next());
            assert_eq!(shorthand, flag.shorthand(), "{}", flag.name);
        }
    }

    #[test]
    fn values_follow_an_equals_sign_or_stand_alone() {
        assert_eq!(config(&["--port=1", "--max-pods", "2"]), r#"{"maxPods":2,"port":1}"#);
        assert_eq!(config(&["-v=3"]), config(&["-v", "3"]));
        assert_eq!(config(&["-v3"]), config(&["--v", "3"]));
        assert_eq!(config(&["--port=1", "--port=2"]), r#"{"port":2}"#, "the last one wins");
        assert_eq!(config(&["--max_pods=3"]), r#"{"maxPods":3}"#, "underscores are dashes");
        assert_eq!(config(&["--cluster-domain", "--port"]), r#"{"clusterDomain":"--port"}"#);
    }

    #[test]
    fn a_bool_needs_no_value_and_takes_none_that_stands_apart() {
        assert_eq!(config(&["--seccomp-default"]), r#"{"seccompDefault":true}"#);
        assert_eq!(config(&["--seccomp-default=F"]), r#"{"seccompDefault":false}"#);
        assert_eq!(
            errors(&["--seccomp-default", "false"]),
            ["unexpected argument \"false\": the kubelet takes flags only"]
        );
    }

    #[test]
    fn every_mistake_on_the_line_is_reported() {
        assert_eq!(
            errors(&[
                "--nope=1",
                "-x",
                "run",
                "--port=http",
                "--sync-frequency=5",
                "--",
                "--v=1",
                "--max-pods"
            ]),
            [
                "unknown flag: --nope",
                "unknown flag: -x",
                "unexpected argument \"run\": the kubelet takes flags only",
                "unexpected argument \"--v=1\": the kubelet takes flags only",
                "unexpected argument \"--max-pods\": the kubelet takes flags only",
                "invalid argument \"http\" for \"--port\" flag: not an integer of 32 bits",
                "invalid argument \"5\" for \"--sync-frequency\" flag: missing unit in duration, such as \"s\" or \"ms\"",
            ]
        );
        assert_eq!(errors(&["--max-pods"]), ["flag needs an argument: --max-pods"]);
    }

    #[test]
    fn help_lists_every_flag_and_version_reads_as_the_stock_one() {
        let text = help();
        for flag in FLAGS {
            assert!(text.contains(&format!("--{}", flag.name)), "{}", flag.name);
        }
        assert!(version("true").starts_with("Kubernetes v1.36."));
        assert!(version("raw").contains("GitVersion"));
    }
}
