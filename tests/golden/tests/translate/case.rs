//! One recorded case: its manifests, its CRI calls, and the pods as the agent saw them: defaulted, with an identity,
//! and with what the API server's admission had added.

use k8s_openapi::api::core::v1::{EphemeralContainer, Pod};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The address pods get here; the recordings say `POD_IP`.
pub const POD_IP: &str = "10.89.0.77";
/// The node of the recordings.
pub const NODE: &str = "golden-node";

/// The recordings, or `None` (said aloud) where they are absent.
pub fn golden_dir() -> Option<PathBuf> {
    let dir = std::env::var_os("GOLDEN_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden"), PathBuf::from);
    if dir.join("cases").is_dir() {
        return Some(dir);
    }
    println!("SKIPPED: no recorded cases at {}", dir.display());
    None
}

/// A case's files.
pub struct Case {
    pub name: String,
    pub dir: PathBuf,
    pub documents: Vec<Value>,
    /// Lines of `cri.jsonl`; empty where the case has none.
    pub calls: Vec<Value>,
}

/// All cases in order of their names.
pub fn cases(golden: &Path) -> Vec<Case> {
    let mut dirs: Vec<_> =
        std::fs::read_dir(golden.join("cases")).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.sort();
    dirs.into_iter().map(Case::read).collect()
}

impl Case {
    fn read(dir: PathBuf) -> Self {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        // A container may be called `y`, which older YAML takes for a boolean.
        let yaml = std::fs::read_to_string(dir.join("pod.yaml")).unwrap();
        let documents =
            serde_saphyr::from_multiple_with_options(&yaml, serde_saphyr::options! { strict_booleans: true })
                .unwrap_or_else(|e| panic!("{name}/pod.yaml: {e}"));
        let lines = std::fs::read_to_string(dir.join("cri.jsonl")).unwrap_or_default();
        let calls = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        Self { name, dir, documents, calls }
    }

    /// A file of the case as JSON, if it is there.
    pub fn json(&self, file: &str) -> Option<Value> {
        let text = std::fs::read_to_string(self.dir.join(file)).ok()?;
        Some(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}/{file}: {e}", self.name)))
    }

    /// Recorded requests of `method`.
    pub fn requests<'a>(&'a self, method: &'a str) -> impl Iterator<Item = &'a Value> {
        self.calls.iter().filter(move |c| c["method"] == method).map(|c| &c["request"])
    }

    /// The documents of a kind.
    pub fn objects<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.documents.iter().filter(move |d| d["kind"] == kind)
    }

    /// The pod of a recorded sandbox, its identity and the source's annotations taken from the recording.
    pub fn pod_of_sandbox(&self, config: &Value) -> Result<Pod, String> {
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let name = text(&config["metadata"]["name"]).ok_or("a sandbox without a name")?;
        let document = self
            .objects("Pod")
            .find(|d| {
                d["metadata"]["name"] == *name
                    || name == format!("{}-{NODE}", d["metadata"]["name"].as_str().unwrap_or(""))
            })
            .ok_or_else(|| format!("no manifest of pod {name}"))?;
        let mut pod = self.pod(document);
        let meta = &mut pod.metadata;
        (meta.name, meta.namespace) = (Some(name), text(&config["metadata"]["namespace"]));
        meta.uid = text(&config["metadata"]["uid"]);
        let annotations = meta.annotations.get_or_insert_default();
        for (key, value) in config["annotations"].as_object().into_iter().flatten() {
            if key.starts_with("kubernetes.io/config.") {
                annotations.insert(key.clone(), text(value).unwrap_or_default());
            }
        }
        self.amend(&mut pod);
        Ok(pod)
    }

    /// The case's only pod, with the identity that all cases of one pod have.
    pub fn only_pod(&self) -> Option<Pod> {
        let mut documents = self.objects("Pod");
        let (document, None) = (documents.next()?, documents.next()) else { return None };
        let mut pod = self.pod(document);
        pod.metadata.namespace.get_or_insert_with(|| "demo".to_owned());
        pod.metadata.uid = Some("UID".to_owned());
        Some(pod)
    }

    /// A manifest defaulted, and as admission left it.
    fn pod(&self, document: &Value) -> Pod {
        let mut pod: Pod =
            serde_json::from_value(document.clone()).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        crate::defaults::apply(&mut pod);
        let spec = pod.spec.as_mut().unwrap();
        spec.service_account_name.get_or_insert_with(|| "default".to_owned());
        spec.priority = match spec.priority_class_name.as_deref() {
            Some("system-node-critical") => Some(2_000_001_000),
            Some("system-cluster-critical") => Some(2_000_000_000),
            _ => Some(0),
        };
        let class = self
            .objects("RuntimeClass")
            .find(|c| c["metadata"]["name"].as_str() == spec.runtime_class_name.as_deref());
        if let Some(overhead) = class.and_then(|c| c.get("overhead")) {
            spec.overhead = Some(serde_json::from_value(overhead["podFixed"].clone()).unwrap());
        }
        pod
    }

    /// What was done to a pod after its manifest was applied, where `notes.txt` tells it.
    fn amend(&self, pod: &mut Pod) {
        let second = pod.metadata.uid.as_deref() == Some("UID2");
        let spec = pod.spec.as_mut().unwrap();
        match self.name.as_str() {
            // PUT ephemeralcontainers: one with a target, one that fails.
            "ephemeral-container" => {
                let of = |yaml: &str| -> EphemeralContainer { serde_saphyr::from_str(yaml).unwrap() };
                let image = "image: 'registry.k8s.io/e2e-test-images/busybox:1.37.0-1', terminationMessagePath: /dev/termination-log, \
                             terminationMessagePolicy: File";
                spec.ephemeral_containers = Some(vec![
                    of(&format!(
                        "{{name: dbg, {image}, command: [sh, -c, \"trap 'exit 0' TERM; sleep 3600 & wait\"], stdin: true, tty: true, targetContainerName: c}}"
                    )),
                    of(&format!("{{name: dbg2, {image}, command: [sh, -c, exit 3]}}")),
                ]);
            }
            // The manifest changed: V became 2.
            "static-pod" if second => {
                spec.containers[0].env.as_mut().unwrap()[0].value = Some("2".to_owned());
            }
            _ => {}
        }
    }
}

/// A pod from a manifest directory, of which only the spec was recorded.
pub fn static_pod(spec: &Value) -> Pod {
    let annotations = serde_json::json!({"kubernetes.io/config.source": "file"});
    let object = serde_json::json!({"metadata": {"name": "p", "uid": "UID", "annotations": annotations}, "spec": spec});
    let mut pod = serde_json::from_value(object).unwrap();
    crate::defaults::apply(&mut pod);
    pod
}

/// `value` with what differs for no reason of the agent's made equal: lists that upstream keeps in maps are sorted,
/// mounts of the API server's tokens dropped, our address named as the recordings name theirs.
pub fn normalised(mut value: Value) -> Value {
    walk(&mut value);
    value
}

fn walk(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields.iter_mut() {
                match (key.as_str(), &mut *field) {
                    ("envs" | "options", Value::Array(items)) => items.sort_by_key(Value::to_string),
                    ("mounts", Value::Array(items)) => items
                        .retain(|m| m["container_path"] != "/var/run/secrets/kubernetes.io/serviceaccount"),
                    _ => {}
                }
                walk(field);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(walk),
        Value::String(text) if text.contains(POD_IP) => *text = text.replace(POD_IP, "POD_IP"),
        _ => {}
    }
}

/// Where two values differ, one line per place.
pub fn differences(at: &str, ours: &Value, recorded: &Value, out: &mut Vec<String>) {
    match (ours, recorded) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeMap<_, ()> = a.keys().chain(b.keys()).map(|k| (k, ())).collect();
            for key in keys.into_keys() {
                let get = |m: &serde_json::Map<String, Value>| m.get(key).cloned().unwrap_or_default();
                differences(&format!("{at}.{key}"), &get(a), &get(b), out);
            }
        }
        _ if ours != recorded => out.push(format!("{at}: ours {ours}, recorded {recorded}")),
        _ => {}
    }
}
