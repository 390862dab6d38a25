//! What every plugin shares: reading the environment and standard input, choosing the command, writing the answer.
//!
//! Called by `main` with one plugin. Input is bounded and checked here; plugins see a [`Request`] with nothing
//! missing that their command needs (CNI specification, section 2, "Execution Protocol").

use std::collections::HashSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cni::args::{check_ifname, check_name};
use cni::{CniArgs, CniError, CniResult, Version, code};
use serde_json::{Map, Value, json};

use crate::fields::Fields;
use crate::owner::Owner;

/// Longest configuration read from standard input.
const MAX_STDIN: u64 = 4 << 20;

/// A plugin's answers to the commands.
pub trait Plugin: Sync {
    fn add(&self, request: &Request) -> Result<CniResult, CniError>;
    /// Must succeed when there is nothing left to remove.
    fn del(&self, request: &Request) -> Result<(), CniError>;
    fn check(&self, request: &Request) -> Result<(), CniError>;
    /// Removes what belongs to the network and to none of `valid`.
    fn gc(&self, request: &Request, valid: &HashSet<(String, String)>) -> Result<(), CniError>;
    fn status(&self, request: &Request) -> Result<(), CniError>;
}

/// One call of a plugin.
#[derive(Debug)]
pub struct Request {
    pub version: Version,
    /// The network's name.
    pub network: String,
    /// Empty for GC and STATUS.
    pub container_id: String,
    /// Empty for GC and STATUS.
    pub ifname: String,
    /// Set for ADD and CHECK; on DEL `None` when the runtime no longer knows it.
    pub netns: Option<PathBuf>,
    pub args: CniArgs,
    /// CNI_PATH, for plugins that call others.
    pub path: Vec<PathBuf>,
    /// The configuration as it came.
    pub conf: Map<String, Value>,
    /// The command, for calling other plugins with the same.
    pub command: String,
}

impl Request {
    pub fn fields(&self) -> Fields<'_> {
        Fields::new(&self.conf)
    }

    pub fn owner(&self) -> Owner {
        Owner::new(&self.container_id, &self.ifname, &self.network)
    }

    /// The namespace's path, which ADD and CHECK always have.
    pub fn netns(&self) -> Result<&Path, CniError> {
        self.netns.as_deref().ok_or_else(|| missing("CNI_NETNS", &self.command))
    }

    /// The result of the plugins before this one, `None` when there is none.
    pub fn prev_result(&self) -> Result<Option<CniResult>, CniError> {
        match self.conf.get("prevResult") {
            None | Some(Value::Null) => Ok(None),
            Some(v) => CniResult::from_value(v, self.version, "prevResult").map(Some),
        }
    }
}

/// A line for people on standard error; runtimes log it.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "stevedore-cni: {text}");
}

fn missing(name: &str, command: &str) -> CniError {
    CniError::new(code::INVALID_ENVIRONMENT, format!("{name} is not set, and {command} needs it"))
}

/// Runs one plugin for one command and writes its answer.
pub fn run(name: &str, plugin: &dyn Plugin) -> ExitCode {
    let Some(command) = env("CNI_COMMAND") else {
        note(&format!(
            "{name} plugin {}; CNI versions {}; it is run by a container runtime, which sets CNI_COMMAND",
            env!("CARGO_PKG_VERSION"),
            Version::names().join(", ")
        ));
        return ExitCode::FAILURE;
    };
    let mut version = String::new();
    match answer(plugin, &command, &mut version) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(value)) => match writeln!(std::io::stdout(), "{value}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(mut error) => {
            error.cni_version = if version.is_empty() { Version::LATEST.to_string() } else { version };
            error.msg = format!("plugin {name}: {}", error.msg);
            let _ = writeln!(std::io::stdout(), "{}", json!(error));
            ExitCode::FAILURE
        }
    }
}

fn env(name: &str) -> Option<String> {
    std::env::var_os(name).map(|v| v.to_string_lossy().into_owned()).filter(|v| !v.is_empty())
}

fn answer(plugin: &dyn Plugin, command: &str, seen_version: &mut String) -> Result<Option<Value>, CniError> {
    let mut text = Vec::new();
    std::io::stdin().take(MAX_STDIN + 1).read_to_end(&mut text).map_err(|e| {
        CniError::caused(code::IO_FAILURE, "cannot read the configuration from standard input", &e)
    })?;
    if text.len() as u64 > MAX_STDIN {
        return Err(CniError::new(
            code::DECODING_FAILURE,
            format!("the configuration is longer than {MAX_STDIN} bytes"),
        ));
    }
    let conf = match serde_json::from_slice(&text) {
        Ok(Value::Object(map)) => map,
        Ok(_) => return Err(CniError::new(code::DECODING_FAILURE, "the configuration is not a JSON object")),
        // VERSION came without a configuration before 0.4.0.
        Err(_) if command == "VERSION" && text.is_empty() => Map::new(),
        Err(e) => {
            return Err(CniError::caused(code::DECODING_FAILURE, "the configuration is not JSON", &e));
        }
    };
    *seen_version = conf.get("cniVersion").and_then(Value::as_str).unwrap_or("").chars().take(20).collect();
    if command == "VERSION" {
        let said = if seen_version.is_empty() { Version::LATEST.as_str() } else { seen_version };
        return Ok(Some(json!({ "cniVersion": said, "supportedVersions": Version::names() })));
    }
    let request = request(command, conf)?;
    match command {
        "ADD" => plugin.add(&request).map(|r| Some(r.to_value(request.version))),
        "DEL" => plugin.del(&request).map(|()| None),
        "CHECK" => plugin.check(&request).map(|()| None),
        "GC" => plugin.gc(&request, &valid_attachments(&request)?).map(|()| None),
        _ => plugin.status(&request).map(|()| None),
    }
}

fn request(command: &str, conf: Map<String, Value>) -> Result<Request, CniError> {
    let fields = Fields::new(&conf);
    let version: Version = match fields.text("cniVersion")? {
        Some(text) => text.parse().map_err(|e: cni::version::UnknownVersion| {
            CniError::new(code::INCOMPATIBLE_VERSION, e.to_string())
        })?,
        None => {
            return Err(CniError::new(code::INVALID_NETWORK_CONFIG, "field cniVersion: is missing"));
        }
    };
    let known = match command {
        "ADD" | "DEL" => true,
        "CHECK" => version.has_check(),
        "GC" | "STATUS" => version.has_gc_and_status(),
        _ => {
            return Err(CniError::new(
                code::INVALID_ENVIRONMENT,
                format!("CNI_COMMAND is {command:?}: it must be ADD, DEL, CHECK, GC, STATUS or VERSION"),
            ));
        }
    };
    if !known {
        return Err(CniError::new(
            code::INCOMPATIBLE_VERSION,
            format!("field cniVersion: {command} does not exist in {version}"),
        ));
    }
    let network = fields.text("name")?.unwrap_or_default().to_string();
    check_name("field name", &network, code::INVALID_NETWORK_CONFIG)?;

    let per_container = matches!(command, "ADD" | "DEL" | "CHECK");
    let (mut container_id, mut ifname) = (String::new(), String::new());
    if per_container {
        container_id = env("CNI_CONTAINERID").ok_or_else(|| missing("CNI_CONTAINERID", command))?;
        check_name("CNI_CONTAINERID", &container_id, code::INVALID_ENVIRONMENT)?;
        ifname = env("CNI_IFNAME").ok_or_else(|| missing("CNI_IFNAME", command))?;
        check_ifname("CNI_IFNAME", &ifname, code::INVALID_ENVIRONMENT)?;
    }
    let netns = env("CNI_NETNS").map(PathBuf::from);
    if netns.is_none() && matches!(command, "ADD" | "CHECK") {
        return Err(missing("CNI_NETNS", command));
    }
    Ok(Request {
        version,
        network,
        container_id,
        ifname,
        netns,
        args: CniArgs::parse(&env("CNI_ARGS").unwrap_or_default())?,
        path: env("CNI_PATH").map(|p| std::env::split_paths(&p).collect()).unwrap_or_default(),
        conf,
        command: command.to_string(),
    })
}

/// `cni.dev/valid-attachments`; a missing list would mean "remove everything", so it is an error.
fn valid_attachments(request: &Request) -> Result<HashSet<(String, String)>, CniError> {
    const FIELD: &str = "cni.dev/valid-attachments";
    if !request.conf.contains_key(FIELD) {
        return Err(CniError::new(code::INVALID_NETWORK_CONFIG, format!("field {FIELD}: is missing")));
    }
    let fields = request.fields();
    let mut valid = HashSet::new();
    for entry in fields.objects(FIELD)? {
        let get = |name: &str| -> Result<String, CniError> {
            entry.text(name)?.map(str::to_string).ok_or_else(|| entry.invalid(name, "is missing"))
        };
        valid.insert((get("containerID")?, get("ifname")?));
    }
    Ok(valid)
}
