//! Configuration files: read, checked by themselves with every mistake named, and merged with the drop-in directory.
//!
//! Called by `config::load`. Files are YAML or JSON, one document of [`API_VERSION`] [`KIND`]. Drop-ins are all `*.conf`
//! files below the directory in lexical order, each laid over what came before by RFC 7396 (mappings merge, lists and
//! scalars are replaced, null unsets). Relative paths in a file start at the file's directory.

use super::error::{ConfigError, Origin};
use super::node::Node;
use super::schema::{Decode, Decoder};
use super::types::{API_VERSION, KIND, KubeletConfiguration};
use std::path::{Path, PathBuf};

/// The longest file taken; the largest sensible configuration is a hundredth of it.
const MAX_BYTES: u64 = 1 << 20;

/// The fields that hold paths of the node's files.
const PATHS: [&str; 7] = [
    "staticPodPath",
    "authentication.x509.clientCAFile",
    "tlsCertFile",
    "tlsPrivateKeyFile",
    "resolvConf",
    "volumePluginDir",
    "podLogsDir",
];

/// The configuration file with the drop-ins over it, as one checked document; `None` where neither is given.
pub(super) fn read(
    file: Option<&Path>,
    drop_ins: Option<&Path>,
    errors: &mut Vec<ConfigError>,
) -> Option<Node> {
    let mut files: Vec<PathBuf> = file.into_iter().map(Path::to_owned).collect();
    if let Some(dir) = drop_ins {
        walk(dir, &mut files, errors);
    }
    let mut merged: Option<Node> = None;
    for path in &files {
        if let Some(document) = read_one(path, errors) {
            match &mut merged {
                Some(base) => base.merge(document),
                None => merged = Some(document),
            }
        }
    }
    merged
}

/// All `*.conf` files below `dir`, in lexical order of their paths.
fn walk(dir: &Path, files: &mut Vec<PathBuf>, errors: &mut Vec<ConfigError>) {
    let unreadable = |e: std::io::Error| ConfigError::Read { path: dir.to_owned(), problem: e.to_string() };
    let mut entries = match std::fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
        Ok(entries) => entries,
        Err(e) => return errors.push(unreadable(e)),
    };
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&path, files, errors),
            Ok(_) if path.extension().is_some_and(|e| e == "conf") => files.push(path),
            Ok(_) => {}
            Err(e) => errors.push(unreadable(e)),
        }
    }
}

/// One file's document, or `None` with at least one error.
fn read_one(path: &Path, errors: &mut Vec<ConfigError>) -> Option<Node> {
    let before = errors.len();
    let syntax = |problem: String| ConfigError::Syntax { path: path.to_owned(), problem };
    let text = match text_of(path) {
        Ok(text) => text,
        Err(e) => {
            errors.push(e);
            return None;
        }
    };
    if text.trim().is_empty() {
        errors.push(syntax("the kubelet configuration file is empty".into()));
        return None;
    }
    let mut document = match Node::parse(&text) {
        Ok(node @ Node::Map(_)) => node,
        Ok(other) => {
            errors.push(syntax(format!("{other} is not a mapping of KubeletConfiguration fields")));
            return None;
        }
        Err(problem) => {
            errors.push(syntax(problem));
            return None;
        }
    };
    let origin = Origin::File(path.to_owned());
    document.take_duplicates("", &mut |field| {
        errors.push(ConfigError::DuplicateKey { origin: origin.clone(), field });
    });
    check_kind(&document, &origin, errors);
    // What the fields hold is checked here, file by file, so that each mistake names its file.
    let mut scratch = KubeletConfiguration::default();
    scratch.decode(&document, "", &mut Decoder { origin, zero_is_absent: true, errors });
    resolve_paths(&mut document, path);
    (errors.len() == before).then_some(document)
}

fn text_of(path: &Path) -> Result<String, ConfigError> {
    use std::io::Read;
    let unreadable = |e: std::io::Error| ConfigError::Read { path: path.to_owned(), problem: e.to_string() };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|f| f.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        let problem = format!("the file is longer than {MAX_BYTES} bytes");
        return Err(ConfigError::Syntax { path: path.to_owned(), problem });
    }
    String::from_utf8(bytes)
        .map_err(|e| ConfigError::Syntax { path: path.to_owned(), problem: format!("not UTF-8: {e}") })
}

fn check_kind(document: &Node, origin: &Origin, errors: &mut Vec<ConfigError>) {
    for (field, want) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        let found = document.get(field).cloned().unwrap_or(Node::Null);
        // Another type than text is the decoder's to report.
        if matches!(&found, Node::Null) || matches!(&found, Node::Str(s) if s != want) {
            errors.push(ConfigError::WrongType {
                origin: origin.clone(),
                field: field.into(),
                value: found.to_string(),
                expected: format!("{want:?}"),
            });
        }
    }
}

fn resolve_paths(document: &mut Node, file: &Path) {
    let Some(dir) = std::path::absolute(file).ok().and_then(|f| f.parent().map(Path::to_owned)) else {
        return;
    };
    for field in PATHS {
        if let Some(Node::Str(path)) = document.get(field).cloned()
            && !path.is_empty()
            && !Path::new(&path).is_absolute()
        {
            document.set(field, Node::Str(dir.join(path).display().to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

    fn errors_of(text: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        fs::write(&path, text).unwrap();
        let mut errors = Vec::new();
        read(Some(&path), None, &mut errors);
        let prefix = format!("{}: ", path.display());
        errors.iter().map(|e| e.to_string().strip_prefix(&prefix).unwrap().to_owned()).collect()
    }

    #[test]
    fn bad_files_are_reported_line_by_line() {
        for (text, want) in [
            ("", &["the kubelet configuration file is empty"][..]),
            ("- a", &[r#"["a"] is not a mapping of KubeletConfiguration fields"#]),
            (
                "port: 1",
                &[
                    r#"apiVersion: null is not "kubelet.config.k8s.io/v1beta1""#,
                    r#"kind: null is not "KubeletConfiguration""#,
                ],
            ),
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {}",
                &[
                    r#"apiVersion: "v1" is not "kubelet.config.k8s.io/v1beta1""#,
                    r#"kind: "Pod" is not "KubeletConfiguration""#,
                    r#"unknown field "metadata""#,
                ],
            ),
            (
                &format!(
                    "{HEAD}port: http\nport: 80\nmaxPods: 1.5\nPort: 1\nfailSwapOn: 'no'\nclusterDNS: 10.0.0.1\n\
                     authentication: {{anonymous: {{enabled: maybe, on: true}}, x509: []}}\nsyncFrequency: 5\n\
                     fileCheckFrequency: 1 minute\nclusterDomain: 5\nreservedMemory: [{{numaNode: 0, limits: {{memory: x}}}}]\n\
                     featureGates: {{A: 1}}\noomScoreAdj: 99999999999"
                ),
                &[
                    r#"key "port" is already set in the same mapping"#,
                    "maxPods: 1.5 is not an integer of 32 bits",
                    r#"unknown field "Port""#,
                    r#"failSwapOn: "no" is not true or false"#,
                    r#"clusterDNS: "10.0.0.1" is not a list"#,
                    r#"authentication.anonymous.enabled: "maybe" is not true or false"#,
                    r#"unknown field "authentication.anonymous.on""#,
                    "authentication.x509: [] is not a mapping",
                    r#"syncFrequency: 5 is not a duration such as "1m30s""#,
                    r#"fileCheckFrequency: "1 minute" is not a duration (unknown unit " minute" in duration)"#,
                    "clusterDomain: 5 is not a string",
                    "reservedMemory[0].limits.memory: \"x\" is not a quantity (quantities must match the regular \
                     expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$')",
                    "featureGates.A: 1 is not true or false",
                    "oomScoreAdj: 99999999999 is not an integer of 32 bits",
                ],
            ),
        ] {
            assert_eq!(errors_of(text), want, "{text}");
        }
        assert_eq!(errors_of("a: [").len(), 1);
        assert_eq!(errors_of(&format!("{HEAD}---\n{HEAD}")).len(), 1);
        assert_eq!(errors_of(&"a".repeat(MAX_BYTES as usize + 1)), ["the file is longer than 1048576 bytes"]);
    }

    #[test]
    fn drop_ins_are_laid_over_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{HEAD}{text}")).unwrap();
        };
        put(
            "base",
            "port: 1\nclusterDNS: [10.0.0.1]\nevictionHard: {memory.available: 1Gi}\nstaticPodPath: pods",
        );
        put("d/20.conf", "port: 3\nevictionHard: {pid.available: 5%}");
        put("d/10.conf", "port: 2\nclusterDNS: [10.0.0.2]\nmaxPods: 5");
        put("d/30/a.conf", "maxPods: null");
        put("d/40.yaml", "port: 4");
        let mut errors = Vec::new();
        let merged = read(Some(&dir.path().join("base")), Some(&dir.path().join("d")), &mut errors).unwrap();
        assert_eq!(errors, []);
        assert_eq!(merged.get("port"), Some(&Node::Int(3)));
        assert_eq!(merged.get("clusterDNS").unwrap().to_string(), r#"["10.0.0.2"]"#);
        assert_eq!(
            merged.get("evictionHard").unwrap().to_string(),
            r#"{"memory.available":"1Gi","pid.available":"5%"}"#
        );
        assert_eq!(merged.get("maxPods"), None);
        assert_eq!(
            merged.get("staticPodPath"),
            Some(&Node::str(dir.path().join("pods").display().to_string())),
            "relative to the file"
        );
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let mut errors = Vec::new();
        read(Some(Path::new("/nonexistent/a")), Some(Path::new("/nonexistent/b")), &mut errors);
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].contains("/nonexistent/b") && lines[1].contains("/nonexistent/a"), "{lines:?}");
    }
}
