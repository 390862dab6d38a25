//! A container's environment: `envFrom`, `env` in order, then the services' variables.
//!
//! Later entries see earlier ones in `$(VAR)` references and override them; a service variable is visible to references
//! but never overrides. Called for each container before its mounts (whose `subPathExpr` needs it) and its config.

use super::container::{ContainerConfigError, ContainerInput};
use super::{envfile, expand, fields};
use crate::api::{Container, Pod};
use crate::objects::{Key, Kind};
use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar as ApiVar, EnvVarSource};
use std::collections::BTreeMap;

/// One variable. Values are bytes because Secrets are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvVar {
    /// The name.
    pub name: String,
    /// The value, references replaced.
    pub value: Vec<u8>,
}

/// Why an object could not be had. The texts reach the pod's owner as the container's waiting message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// It does not exist: no error for optional references. `kind` is lower-case: `configmap`, `secret`, `file`.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// `configmap`, `secret` or `file`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It could not be fetched or read.
    #[error("{0}")]
    Other(String),
}

/// Where variables' values come from outside the pod's spec.
pub trait EnvSources: Sync {
    /// `data` of a ConfigMap.
    fn config_map(&self, namespace: &str, name: &str) -> Result<BTreeMap<String, Vec<u8>>, SourceError>;
    /// `data` of a Secret, decoded.
    fn secret(&self, namespace: &str, name: &str) -> Result<BTreeMap<String, Vec<u8>>, SourceError>;
    /// The file at `path` in the pod's volume `volume`. The answer is bounded in size by the implementation.
    fn file(&self, pod: &Pod, volume: &str, path: &str) -> Result<Vec<u8>, SourceError>;
}

/// No sources at all: nothing is there. For pods that refer to nothing, as those of tests and of the benchmark.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSources;

impl EnvSources for NoSources {
    fn config_map(&self, _: &str, name: &str) -> Result<BTreeMap<String, Vec<u8>>, SourceError> {
        Err(SourceError::NotFound { kind: "configmap", name: name.to_owned() })
    }
    fn secret(&self, _: &str, name: &str) -> Result<BTreeMap<String, Vec<u8>>, SourceError> {
        Err(SourceError::NotFound { kind: "secret", name: name.to_owned() })
    }
    fn file(&self, _: &Pod, volume: &str, path: &str) -> Result<Vec<u8>, SourceError> {
        Err(SourceError::NotFound { kind: "file", name: format!("{volume}/{path}") })
    }
}

/// Variables in order of first appearance; setting one again changes its value in place.
#[derive(Default)]
struct Set {
    order: Vec<EnvVar>,
    index: BTreeMap<String, usize>,
}

impl Set {
    fn set(&mut self, name: &str, value: Vec<u8>) {
        match self.index.get(name) {
            Some(at) => self.order[*at].value = value,
            None => {
                self.index.insert(name.to_owned(), self.order.len());
                self.order.push(EnvVar { name: name.to_owned(), value });
            }
        }
    }
    fn get(&self, name: &[u8]) -> Option<&[u8]> {
        let at = *self.index.get(std::str::from_utf8(name).ok()?)?;
        Some(&self.order[at].value)
    }
}

/// The environment of the container `input` describes.
pub fn environment(input: &ContainerInput<'_>) -> Result<Vec<EnvVar>, ContainerConfigError> {
    let mut set = Set::default();
    for from in input.container.env_from.iter().flatten() {
        for (name, value) in env_from(input, from)? {
            set.set(&name, value);
        }
    }
    for var in input.container.env.iter().flatten() {
        if let Some(value) = value_of(input, var, &set)? {
            set.set(&var.name, value);
        }
    }
    for (name, value) in input.service_env {
        if !set.index.contains_key(name) {
            set.set(name, value.clone().into_bytes());
        }
    }
    Ok(set.order)
}

/// The objects that variables of `container` are read from.
pub fn keys(pod: &Pod, container: &Container) -> Vec<Key> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let map = |name: &str| Key::new(Kind::ConfigMap, namespace, name);
    let secret = |name: &str| Key::new(Kind::Secret, namespace, name);
    let mut keys = Vec::new();
    for from in container.env_from.iter().flatten() {
        keys.extend(from.config_map_ref.iter().map(|r| map(&r.name)));
        keys.extend(from.secret_ref.iter().map(|r| secret(&r.name)));
    }
    for from in container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
        keys.extend(from.config_map_key_ref.iter().map(|r| map(&r.name)));
        keys.extend(from.secret_key_ref.iter().map(|r| secret(&r.name)));
    }
    keys
}

/// Looks `name` up in `env`: what commands, arguments and `subPathExpr` refer to.
pub fn lookup<'a>(env: &'a [EnvVar], name: &[u8]) -> Option<&'a [u8]> {
    env.iter().find(|v| v.name.as_bytes() == name).map(|v| v.value.as_slice())
}

fn env_from(
    input: &ContainerInput<'_>,
    from: &EnvFromSource,
) -> Result<Vec<(String, Vec<u8>)>, ContainerConfigError> {
    let namespace = input.pod.metadata.namespace.as_deref().unwrap_or_default();
    let (fetched, optional) = if let Some(map) = &from.config_map_ref {
        (input.env_sources.config_map(namespace, &map.name), map.optional)
    } else if let Some(secret) = &from.secret_ref {
        (input.env_sources.secret(namespace, &secret.name), secret.optional)
    } else {
        return Ok(Vec::new());
    };
    let data = match fetched {
        Err(SourceError::NotFound { .. }) if optional == Some(true) => return Ok(Vec::new()),
        other => other?,
    };
    let prefix = from.prefix.as_deref().unwrap_or_default();
    Ok(data.into_iter().map(|(key, value)| (format!("{prefix}{key}"), value)).collect())
}

/// The value of one `env` entry; `None` when its source is optional and absent.
fn value_of(
    input: &ContainerInput<'_>,
    var: &ApiVar,
    so_far: &Set,
) -> Result<Option<Vec<u8>>, ContainerConfigError> {
    if let Some(text) = var.value.as_deref().filter(|t| !t.is_empty()) {
        let service = |name: &[u8]| {
            let found = input.service_env.iter().find(|(n, _)| n.as_bytes() == name);
            found.map(|(_, value)| value.as_bytes())
        };
        let value = expand::expand(text.as_bytes(), |name| so_far.get(name).or_else(|| service(name)));
        return Ok(Some(value));
    }
    match &var.value_from {
        Some(source) => from_source(input, source),
        None => Ok(Some(Vec::new())),
    }
}

fn from_source(
    input: &ContainerInput<'_>,
    source: &EnvVarSource,
) -> Result<Option<Vec<u8>>, ContainerConfigError> {
    let ContainerInput { pod, container, facts, .. } = *input;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(field) = &source.field_ref {
        let value = fields::field_value(pod, &field.field_path, input.pod_ips, facts)?;
        return Ok(Some(value.into_bytes()));
    }
    if let Some(selector) = &source.resource_field_ref {
        return Ok(Some(fields::resource_value(pod, container, selector, facts)?.into_bytes()));
    }
    if let Some(key) = &source.config_map_key_ref {
        let data = input.env_sources.config_map(namespace, &key.name);
        return keyed(data, &key.key, key.optional, || format!("ConfigMap {namespace}/{}", key.name));
    }
    if let Some(key) = &source.secret_key_ref {
        let data = input.env_sources.secret(namespace, &key.name);
        return keyed(data, &key.key, key.optional, || format!("Secret {namespace}/{}", key.name));
    }
    if let Some(key) = &source.file_key_ref {
        let found = match input.env_sources.file(pod, &key.volume_name, &key.path) {
            Err(SourceError::NotFound { .. }) if key.optional == Some(true) => None,
            other => envfile::value_of(&other?, &key.key)?,
        };
        return match found {
            None if key.optional != Some(true) => Err(ContainerConfigError::MissingKey {
                key: key.key.clone(),
                object: format!("file {}/{}", key.volume_name, key.path),
            }),
            found => Ok(found),
        };
    }
    Err(ContainerConfigError::EmptySource)
}

/// One key of a fetched object; an optional reference forgives a missing object and a missing key.
fn keyed(
    data: Result<BTreeMap<String, Vec<u8>>, SourceError>,
    key: &str,
    optional: Option<bool>,
    object: impl FnOnce() -> String,
) -> Result<Option<Vec<u8>>, ContainerConfigError> {
    let optional = optional == Some(true);
    let mut data = match data {
        Err(SourceError::NotFound { .. }) if optional => return Ok(None),
        other => other?,
    };
    match data.remove(key) {
        None if !optional => Err(ContainerConfigError::MissingKey { key: key.to_owned(), object: object() }),
        found => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::super::container::tests::with_input;
    use super::super::testing::{facts, pod};
    use super::*;

    struct Objects;
    impl EnvSources for Objects {
        fn config_map(&self, _: &str, name: &str) -> Result<BTreeMap<String, Vec<u8>>, SourceError> {
            match name {
                "cm" => {
                    Ok(BTreeMap::from([("a".into(), b"va".to_vec()), ("b.dotted".into(), b"vb".to_vec())]))
                }
                _ => NoSources.config_map("", name),
            }
        }
        fn secret(&self, _: &str, name: &str) -> Result<BTreeMap<String, Vec<u8>>, SourceError> {
            match name {
                "s" => Ok(BTreeMap::from([("s1".into(), vec![0xff, 0])])),
                "broken" => Err(SourceError::Other("timed out".into())),
                _ => NoSources.secret("", name),
            }
        }
        fn file(&self, _: &Pod, _: &str, path: &str) -> Result<Vec<u8>, SourceError> {
            match path {
                "good" => Ok(b"K='v'".to_vec()),
                _ => Ok(b"K=v".to_vec()),
            }
        }
    }

    fn env(container: &str) -> Result<Vec<(String, Vec<u8>)>, String> {
        let p = pod(&format!(
            "{{metadata: {{name: p, namespace: demo}}, spec: {{containers: [{{name: c, {container}}}]}}}}"
        ));
        with_input(&p, &facts(), |input| {
            let input = ContainerInput {
                env_sources: &Objects,
                service_env: &[("SVC".into(), "10.0.0.1".into()), ("A".into(), "service".into())],
                ..input
            };
            let vars = environment(&input).map_err(|e| e.to_string())?;
            Ok(vars.into_iter().map(|v| (v.name, v.value)).collect())
        })
    }

    fn shown(container: &str) -> String {
        let vars = env(container).unwrap();
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        vars.iter().map(|(k, v)| format!("{k}={}", text(v))).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_last_of_several_wins_and_references_see_what_came_before() {
        assert_eq!(
            shown(
                "env: [{name: A, value: one}, {name: B, value: $(A)/$(C)/$(SVC)}, {name: C}, {name: A, value: two}]"
            ),
            "A=two B=one/$(C)/10.0.0.1 C= SVC=10.0.0.1"
        );
    }

    #[test]
    fn services_are_visible_and_never_override() {
        assert_eq!(shown("env: [{name: X, value: $(A)}]"), "X=service SVC=10.0.0.1 A=service");
        assert_eq!(shown("env: [{name: A, value: own}]"), "A=own SVC=10.0.0.1");
    }

    #[test]
    fn objects_come_first_with_their_prefix() {
        assert_eq!(
            shown(
                "envFrom: [{prefix: P_, configMapRef: {name: cm}}, {secretRef: {name: none, optional: true}}], \
                 env: [{name: U, value: $(P_a)}, {name: O, valueFrom: {configMapKeyRef: {name: cm, key: z, optional: true}}}, \
                 {name: F, valueFrom: {fileKeyRef: {volumeName: v, path: good, key: K}}}]"
            ),
            "P_a=va P_b.dotted=vb U=va F=v SVC=10.0.0.1 A=service"
        );
        let bytes = env("env: [{name: S, valueFrom: {secretKeyRef: {name: s, key: s1}}}]").unwrap();
        assert_eq!(bytes[0].1, [0xff, 0], "a secret's bytes arrive unchanged");
    }

    #[test]
    fn what_is_missing_is_said_in_upstreams_words() {
        for (source, message) in [
            ("configMapKeyRef: {name: nosuchcm, key: a}", "configmap \"nosuchcm\" not found"),
            ("secretKeyRef: {name: nosuchsecret, key: a}", "secret \"nosuchsecret\" not found"),
            ("configMapKeyRef: {name: cm, key: zz}", "couldn't find key zz in ConfigMap demo/cm"),
            ("secretKeyRef: {name: s, key: zz}", "couldn't find key zz in Secret demo/s"),
            ("secretKeyRef: {name: broken, key: zz, optional: true}", "timed out"),
            ("fileKeyRef: {volumeName: v, path: bad, key: K}", "couldn't parse env file"),
            ("fileKeyRef: {volumeName: v, path: good, key: zz}", "couldn't find key zz in file v/good"),
            ("fieldRef: {fieldPath: status.phase}", "unsupported fieldPath: status.phase"),
        ] {
            let got = env(&format!("env: [{{name: X, valueFrom: {{{source}}}}}]")).unwrap_err();
            assert_eq!(got, message, "{source}");
        }
        assert_eq!(env("envFrom: [{configMapRef: {name: x}}]").unwrap_err(), "configmap \"x\" not found");
    }
}
