//! `CredentialProviderConfig` (`kubelet.config.k8s.io`): which plugins are asked for which images. A file, or a directory
//! of which every `*.json`, `*.yaml` and `*.yml` counts, in lexical order.
//!
//! Read once, when the agent starts; every mistake is told with its file and field, and none is passed over.

use super::super::keyring;
use crate::config::duration::GoDuration;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What to run for which images.
#[derive(Clone, Debug, Default)]
pub struct ProvidersConfig {
    /// In order of their configuration.
    pub providers: Vec<ProviderConfig>,
}

/// One plugin.
#[derive(Clone, Debug)]
pub struct ProviderConfig {
    /// Its name, for logs and metrics.
    pub name: String,
    /// The executable.
    pub program: PathBuf,
    /// Images it is asked for: places with globs.
    pub match_images: Vec<String>,
    /// How long an answer holds that does not say so itself; zero is not at all.
    pub default_cache_duration: Duration,
    /// `credentialprovider.kubelet.k8s.io/v1` and its precursors.
    pub api_version: String,
    /// Arguments.
    pub args: Vec<String>,
    /// Environment beside the agent's own.
    pub env: Vec<(String, String)>,
}

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
#[error("--image-credential-provider-config: {path}: {problem}")]
pub struct ProviderConfigError {
    /// Which file or directory.
    pub path: PathBuf,
    /// What, with the field.
    pub problem: String,
}

/// The longest file taken.
const MAX_BYTES: u64 = 1 << 20;
const GROUP: &str = "kubelet.config.k8s.io";
const API_VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    providers: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    name: String,
    #[serde(default)]
    match_images: Vec<String>,
    default_cache_duration: Option<String>,
    #[serde(default)]
    api_version: String,
    args: Option<Vec<String>>,
    env: Option<Vec<Variable>>,
    token_attributes: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    value: String,
}

impl ProvidersConfig {
    /// Reads what `path` says; the plugins lie in `bin_dir`.
    ///
    /// # Errors
    /// The first thing that is wrong, or that this agent cannot do.
    pub fn read(path: &Path, bin_dir: &Path) -> Result<Self, ProviderConfigError> {
        let wrong = |path: &Path, problem: String| ProviderConfigError { path: path.to_owned(), problem };
        if !bin_dir.is_dir() {
            let problem = format!("plugin binary directory {} did not exist", bin_dir.display());
            return Err(wrong(path, problem));
        }
        let (mut names, mut providers) = (BTreeSet::new(), Vec::new());
        for file in files(path).map_err(|problem| wrong(path, problem))? {
            let document = document(&file).map_err(|problem| wrong(&file, problem))?;
            for (i, entry) in document.providers.into_iter().enumerate() {
                let provider = provider(entry, bin_dir)
                    .map_err(|problem| wrong(&file, format!("providers[{i}].{problem}")))?;
                if !names.insert(provider.name.clone()) {
                    let problem = format!("providers[{i}].name: duplicate provider name {:?}", provider.name);
                    return Err(wrong(&file, problem));
                }
                providers.push(provider);
            }
        }
        if providers.is_empty() {
            return Err(wrong(path, "providers: at least one is required".to_owned()));
        }
        Ok(Self { providers })
    }
}

fn files(path: &Path) -> Result<Vec<PathBuf>, String> {
    let kind = std::fs::metadata(path).map_err(|e| e.to_string())?;
    if !kind.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| e.to_string())? {
        let file = entry.map_err(|e| e.to_string())?.path();
        let ending = file.extension().and_then(|e| e.to_str());
        if matches!(ending, Some("json" | "yaml" | "yml")) && !file.is_dir() {
            found.push(file);
        }
    }
    found.sort();
    if found.is_empty() { Err("no configuration files found in the directory".to_owned()) } else { Ok(found) }
}

fn document(file: &Path) -> Result<Document, String> {
    use std::io::Read;
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(|e| e.to_string())?;
    opened.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|e| e.to_string())?;
    if text.len() as u64 > MAX_BYTES {
        return Err(format!("it is longer than {MAX_BYTES} bytes"));
    }
    let document: Document = serde_saphyr::from_str(&text).map_err(|e| e.to_string())?;
    if document.kind != "CredentialProviderConfig" {
        return Err(format!("kind: {:?} is not CredentialProviderConfig", document.kind));
    }
    match document.api_version.split_once('/') {
        Some((GROUP, "v1" | "v1beta1" | "v1alpha1")) => Ok(document),
        _ => Err(format!("apiVersion: {:?} is not {GROUP}/v1, v1beta1 or v1alpha1", document.api_version)),
    }
}

fn provider(entry: Entry, bin_dir: &Path) -> Result<ProviderConfig, String> {
    let name = entry.name;
    if matches!(name.as_str(), "" | "." | "..") || name.contains(['/', ' ']) {
        return Err(format!("name: {name:?} must be a file name without '/' and spaces"));
    }
    if !API_VERSIONS.contains(&entry.api_version.as_str()) {
        return Err(format!("apiVersion: {:?} is none of {}", entry.api_version, API_VERSIONS.join(", ")));
    }
    if entry.match_images.is_empty() {
        return Err("matchImages: at least one item is required".to_owned());
    }
    for (i, place) in entry.match_images.iter().enumerate() {
        keyring::check(place)
            .map_err(|why| format!("matchImages[{i}]: match image {place:?} is invalid: {why}"))?;
        if place.contains("://") {
            return Err(format!("matchImages[{i}]: match image {place:?} is invalid: it has a scheme"));
        }
    }
    let field = "defaultCacheDuration";
    let held = entry.default_cache_duration.ok_or_else(|| format!("{field}: it is required"))?;
    let duration: GoDuration =
        held.parse().map_err(|_| format!("{field}: {held:?} is no duration such as 12h"))?;
    if duration.is_negative() {
        return Err(format!("{field}: {held} must be greater than or equal to 0"));
    }
    if entry.token_attributes.is_some() {
        return Err(
            "tokenAttributes: service account tokens need an API server: not supported yet".to_owned()
        );
    }
    let env: Vec<_> = entry.env.into_iter().flatten().map(|v| (v.name, v.value)).collect();
    if let Some((name, _)) =
        env.iter().find(|(n, v)| n.is_empty() || n.contains(['=', '\0']) || v.contains('\0'))
    {
        return Err(format!("env: {name:?} cannot be set"));
    }
    let args = entry.args.unwrap_or_default();
    if let Some(arg) = args.iter().find(|a| a.contains('\0')) {
        return Err(format!("args: {arg:?} cannot be passed"));
    }
    let program = bin_dir.join(&name);
    let executable =
        std::fs::metadata(&program).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if !executable {
        return Err(format!("name: plugin binary executable {} did not exist", program.display()));
    }
    Ok(ProviderConfig {
        name,
        program,
        match_images: entry.match_images,
        default_cache_duration: duration.to_std(),
        api_version: entry.api_version,
        args,
        env,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ProvidersConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        for name in ["ecr", "gcr"] {
            let path = dir.path().join(name);
            std::fs::write(&path, "#!/bin/sh\n").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::fs::write(dir.path().join("plain"), "").unwrap();
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, text).unwrap();
        ProvidersConfig::read(&file, dir.path()).map_err(|e| e.problem)
    }

    fn document(provider: &str) -> String {
        format!(
            "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders: [{provider}]\n"
        )
    }

    const GOOD: &str = "name: ecr, matchImages: ['*.ecr.test/a', 'b.test:5000'], defaultCacheDuration: 12h0m0s, \
                        apiVersion: credentialprovider.kubelet.k8s.io/v1";

    #[test]
    fn a_whole_configuration_is_read() {
        let text = document(&format!("{{{GOOD}, args: [get, x], env: [{{name: A, value: b}}]}}"));
        let config = read(&text).unwrap();
        let p = &config.providers[0];
        assert_eq!((p.name.as_str(), p.match_images.len()), ("ecr", 2));
        assert_eq!(p.default_cache_duration, Duration::from_secs(12 * 3600));
        assert_eq!((p.args.len(), p.env[0].0.as_str()), (2, "A"));
    }

    #[test]
    fn every_mistake_is_named() {
        let other = |from: &str, to: &str| document(&format!("{{{}}}", GOOD.replace(from, to)));
        for (text, want) in [
            (document(""), "providers: at least one"),
            (document(&format!("{{{GOOD}}}")).replace("kind: C", "kind: X"), "kind: \"Xred"),
            (
                document(&format!("{{{GOOD}}}")).replace("k8s.io/v1\nkind", "k8s.io/v7\nkind"),
                "apiVersion: \"kubelet",
            ),
            (other("name: ecr", "name: a/b"), "providers[0].name: \"a/b\""),
            (other("name: ecr", "name: .."), "providers[0].name"),
            (other("name: ecr", "name: absent"), "did not exist"),
            (other("name: ecr", "name: plain"), "did not exist"),
            (other("k8s.io/v1", "k8s.io/v2"), "providers[0].apiVersion"),
            (other("'b.test:5000'", "'b.test:x'"), "providers[0].matchImages[1]"),
            (other("'b.test:5000'", "'https://b.test'"), "providers[0].matchImages[1]"),
            (other("['*.ecr.test/a', 'b.test:5000']", "[]"), "providers[0].matchImages: at least"),
            (other("12h0m0s", "-1s"), "greater than or equal to 0"),
            (other("12h0m0s", "soon"), "providers[0].defaultCacheDuration: \"soon\""),
            (
                other("defaultCacheDuration: 12h0m0s,", ""),
                "providers[0].defaultCacheDuration: it is required",
            ),
            (other("name: ecr", "tokenAttributes: {a: b}, name: ecr"), "providers[0].tokenAttributes"),
            (other("name: ecr", "colour: blue, name: ecr"), "colour"),
            (document(&format!("{{{GOOD}}}, {{{GOOD}}}")), "duplicate provider name \"ecr\""),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(want), "{want}: {error}");
        }
        let error = ProvidersConfig::read(Path::new("/x"), Path::new("/nonexistent")).unwrap_err();
        assert!(error.problem.contains("plugin binary directory"), "{error}");
    }

    #[test]
    fn a_directory_of_files_is_one_configuration() {
        let dir = tempfile::tempdir().unwrap();
        for (name, provider) in [("b.yml", "ecr"), ("a.json", "gcr"), ("c.txt", "ignored")] {
            let path = dir.path().join(provider);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let text = document(&format!("{{{}}}", GOOD.replace("ecr,", &format!("{provider},"))));
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let config = ProvidersConfig::read(dir.path(), dir.path()).unwrap();
        let names: Vec<_> = config.providers.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["gcr", "ecr"]);
    }
}
