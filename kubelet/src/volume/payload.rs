//! The files of a volume that shows objects and fields of the pod: `configMap`, `secret`, `downwardAPI`, `projected`.
//!
//! `setup` and the keeper call it with the objects as they are and write what comes out (`writer`). Pure; the texts of
//! errors are what follows `MountVolume.SetUp failed for volume "v" : `.

use crate::api::{Pod, Volume};
use crate::gotext;
use crate::objects::{Found, Key, Kind, Object};
use crate::source::validate::names;
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, ResourceFieldSelector, VolumeProjection};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Values of the pod that downward API files show; the room does not know how they come about.
pub trait Values: fmt::Debug + Send + Sync {
    /// Of `fieldRef.fieldPath`.
    ///
    /// # Errors
    /// The path is none that is offered.
    fn field(&self, pod: &Pod, path: &str) -> Result<String, String>;
    /// Of `resourceFieldRef`.
    ///
    /// # Errors
    /// The container or the resource is none.
    fn resource(&self, pod: &Pod, selector: &ResourceFieldSelector) -> Result<String, String>;
}

/// A file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// What it holds.
    pub bytes: Arc<[u8]>,
    /// Its permission bits.
    pub mode: u32,
}

/// The files by their path in the volume: relative, in its shortest form.
pub type Payload = BTreeMap<String, File>;

/// The plugin of a volume of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugin {
    /// `configMap`
    ConfigMap,
    /// `secret`
    Secret,
    /// `downwardAPI`
    DownwardApi,
    /// `projected`
    Projected,
}

impl Plugin {
    /// The plugin of `volume`, if it is one of these.
    pub fn of(volume: &Volume) -> Option<Self> {
        let known = [
            (volume.config_map.is_some(), Self::ConfigMap),
            (volume.secret.is_some(), Self::Secret),
            (volume.downward_api.is_some(), Self::DownwardApi),
            (volume.projected.is_some(), Self::Projected),
        ];
        known.into_iter().find(|(is, _)| *is).map(|(_, plugin)| plugin)
    }

    /// Its directory below `volumes`: the escaped name of the plugin.
    pub fn dir(self) -> &'static str {
        match self {
            Self::ConfigMap => "kubernetes.io~configmap",
            Self::Secret => "kubernetes.io~secret",
            Self::DownwardApi => "kubernetes.io~downward-api",
            Self::Projected => "kubernetes.io~projected",
        }
    }

    /// Whether its files are kept in memory, never on a disk.
    pub fn in_memory(self) -> bool {
        self != Self::ConfigMap
    }

    /// All of them.
    pub const ALL: [Self; 4] = [Self::ConfigMap, Self::Secret, Self::DownwardApi, Self::Projected];
}

/// A source of a projected volume that needs an API server, by its field.
pub fn unsupported(volume: &Volume) -> Option<String> {
    let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten()).enumerate();
    let needs = |s: &VolumeProjection| {
        let parts = [
            ("serviceAccountToken", s.service_account_token.is_some()),
            ("clusterTrustBundle", s.cluster_trust_bundle.is_some()),
            ("podCertificate", s.pod_certificate.is_some()),
        ];
        parts.into_iter().find(|(_, set)| *set).map(|(field, _)| field)
    };
    let mut found = sources.filter_map(|(i, s)| Some(format!("projected.sources[{i}].{}", needs(s)?)));
    found.next()
}

/// The objects `volume` of a pod in `namespace` is made from.
pub fn keys(namespace: &str, volume: &Volume) -> Vec<Key> {
    let map = |name: &str| Key::new(Kind::ConfigMap, namespace, name);
    let secret = |name: &str| Key::new(Kind::Secret, namespace, name);
    let mut keys = Vec::new();
    keys.extend(volume.config_map.iter().map(|s| map(&s.name)));
    keys.extend(volume.secret.iter().map(|s| secret(s.secret_name.as_deref().unwrap_or_default())));
    for s in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
        keys.extend(s.config_map.iter().map(|s| map(&s.name)));
        keys.extend(s.secret.iter().map(|s| secret(&s.name)));
    }
    keys
}

/// Whether `volume` shows fields of the pod, which may change.
pub fn shows_fields(volume: &Volume) -> bool {
    let mut sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    volume.downward_api.is_some() || sources.any(|s| s.downward_api.is_some())
}

/// The default of `defaultMode`.
const MODE: i32 = 0o644;

/// All that a payload is made from.
pub struct Inputs<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// What was found of the objects of [`keys`].
    pub found: &'a BTreeMap<Key, Found>,
    /// Values of the pod.
    pub values: &'a dyn Values,
}

/// The files of `volume`.
///
/// # Errors
/// Something that is not optional is not there, or the paths cannot be.
pub fn collect(volume: &Volume, inputs: &Inputs<'_>) -> Result<Payload, String> {
    let mut payload = Payload::new();
    if let Some(s) = &volume.config_map {
        let mode = s.default_mode.unwrap_or(MODE);
        inputs.object(Kind::ConfigMap, &s.name, s.optional, s.items.as_deref(), mode, &mut payload)?;
    }
    if let Some(s) = &volume.secret {
        let (name, mode) = (s.secret_name.as_deref().unwrap_or_default(), s.default_mode.unwrap_or(MODE));
        inputs.object(Kind::Secret, name, s.optional, s.items.as_deref(), mode, &mut payload)?;
    }
    if let Some(s) = &volume.downward_api {
        let mode = s.default_mode.unwrap_or(MODE);
        none_of(inputs.fields(s.items.as_deref().unwrap_or_default(), mode, &mut payload))?;
    }
    if let Some(projected) = &volume.projected {
        let mode = projected.default_mode.unwrap_or(MODE);
        let mut errors = Vec::new();
        for s in projected.sources.iter().flatten() {
            if let Some(s) = &s.config_map {
                let done = inputs.object(
                    Kind::ConfigMap,
                    &s.name,
                    s.optional,
                    s.items.as_deref(),
                    mode,
                    &mut payload,
                );
                errors.extend(done.err());
            }
            if let Some(s) = &s.secret {
                let done =
                    inputs.object(Kind::Secret, &s.name, s.optional, s.items.as_deref(), mode, &mut payload);
                errors.extend(done.err());
            }
            if let Some(s) = &s.downward_api {
                errors.extend(inputs.fields(s.items.as_deref().unwrap_or_default(), mode, &mut payload));
            }
        }
        none_of(errors)?;
    }
    collisions(&payload)?;
    Ok(payload)
}

impl Inputs<'_> {
    fn object(
        &self,
        kind: Kind,
        name: &str,
        optional: Option<bool>,
        items: Option<&[KeyToPath]>,
        mode: i32,
        payload: &mut Payload,
    ) -> Result<(), String> {
        let namespace = self.pod.metadata.namespace.as_deref().unwrap_or_default();
        let found = self.found.get(&Key::new(kind, namespace, name)).and_then(|f| f.object.as_ref());
        let optional = optional == Some(true);
        let Some(object) = found else {
            let missing = format!("{} \"{name}\" not found", kind.lower_case());
            return if optional { Ok(()) } else { Err(missing) };
        };
        match items {
            None | Some([]) => whole(object, mode, payload),
            Some(items) => picked(object, items, optional, mode, payload),
        }
    }

    /// What could be had is in the payload; the rest are the errors.
    fn fields(&self, items: &[DownwardAPIVolumeFile], mode: i32, payload: &mut Payload) -> Vec<String> {
        let mut errors = Vec::new();
        for item in items {
            let value = match (&item.field_ref, &item.resource_field_ref) {
                (Some(f), _) => self.values.field(self.pod, &f.field_path),
                (None, Some(r)) => self.values.resource(self.pod, r),
                (None, None) => Err(format!("item {:?} names neither a field nor a resource", item.path)),
            };
            let put = value.and_then(|value| {
                put(payload, &item.path, value.into_bytes().into(), item.mode.unwrap_or(mode))
            });
            errors.extend(put.err());
        }
        errors
    }
}

fn whole(object: &Object, mode: i32, payload: &mut Payload) -> Result<(), String> {
    object.entries().try_for_each(|(key, bytes)| put(payload, key, bytes.clone(), mode))
}

fn picked(
    object: &Object,
    items: &[KeyToPath],
    optional: bool,
    mode: i32,
    payload: &mut Payload,
) -> Result<(), String> {
    for item in items {
        match object.get(&item.key) {
            Some(bytes) => put(payload, &item.path, bytes.clone(), item.mode.unwrap_or(mode))?,
            None if optional => {}
            None => {
                let what = match object.key.kind {
                    Kind::ConfigMap => "configmap references non-existent config key",
                    Kind::Secret => "references non-existent secret key",
                };
                return Err(format!("{what}: {}", item.key));
            }
        }
    }
    Ok(())
}

/// The last of several files of one path wins, as upstream.
fn put(payload: &mut Payload, path: &str, bytes: Arc<[u8]>, mode: i32) -> Result<(), String> {
    let path = names::file_path(path).map_err(|why| format!("invalid path: {path:?}: {why}"))?;
    let mode = u32::try_from(mode).unwrap_or(MODE as u32) & 0o777;
    payload.insert(path, File { bytes, mode });
    Ok(())
}

/// A file cannot be a directory as well.
fn collisions(payload: &Payload) -> Result<(), String> {
    for path in payload.keys() {
        let mut above = path.as_str();
        while let Some((parent, _)) = above.rsplit_once('/') {
            if payload.contains_key(parent) {
                return Err(format!("conflicting paths: {path:?} lies below the file {parent:?}"));
            }
            above = parent;
        }
    }
    Ok(())
}

fn none_of(errors: Vec<String>) -> Result<(), String> {
    if errors.is_empty() { Ok(()) } else { Err(gotext::aggregate(errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Told;
    impl Values for Told {
        fn field(&self, _: &Pod, path: &str) -> Result<String, String> {
            match path {
                "status.phase" => Err(format!("unsupported fieldPath: {path}")),
                path => Ok(format!("<{path}>")),
            }
        }
        fn resource(&self, _: &Pod, selector: &ResourceFieldSelector) -> Result<String, String> {
            Ok(format!("<{}>", selector.resource))
        }
    }

    fn objects() -> BTreeMap<Key, Found> {
        let texts = |list: &[(&str, &str)]| -> BTreeMap<String, Arc<[u8]>> {
            list.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().into())).collect()
        };
        let mut all = BTreeMap::new();
        for (kind, name, data, binary) in [
            (Kind::ConfigMap, "m", texts(&[("a", "A"), ("b.txt", "B")]), texts(&[("bin", "\u{0}")])),
            (Kind::Secret, "s", texts(&[("a", "S"), ("k", "K")]), texts(&[])),
        ] {
            let key = Key::new(kind, "ns", name);
            let (type_, uid) = (String::new(), String::new());
            let object = Object { key: key.clone(), data, binary, type_, immutable: false, uid };
            all.insert(key, Found { object: Some(Arc::new(object)), version: 1 });
        }
        all
    }

    /// `path=text:mode` of each file, or the error.
    fn files(volume: &str) -> String {
        let volume: Volume = serde_saphyr::from_str(&format!("{{name: v, {volume}}}")).unwrap();
        let pod: Pod = serde_saphyr::from_str("{metadata: {name: p, namespace: ns}}").unwrap();
        match collect(&volume, &Inputs { pod: &pod, found: &objects(), values: &Told }) {
            Ok(files) => {
                let one = |(p, f): (&String, &File)| {
                    format!("{p}={}:{:o}", String::from_utf8_lossy(&f.bytes).escape_default(), f.mode)
                };
                files.iter().map(one).collect::<Vec<_>>().join(" ")
            }
            Err(e) => e,
        }
    }

    #[test]
    fn volumes_show_what_they_name_with_the_modes_asked_for() {
        for (volume, want) in [
            ("configMap: {name: m}", "a=A:644 b.txt=B:644 bin=\\u{0}:644"),
            (
                "configMap: {name: m, defaultMode: 256, items: [{key: a, path: x/y}, {key: bin, path: bin, mode: 493}]}",
                "bin=\\u{0}:755 x/y=A:400",
            ),
            ("configMap: {name: absent, optional: true}", ""),
            ("configMap: {name: m, optional: true, items: [{key: no, path: no}]}", ""),
            ("configMap: {name: m, items: [{key: a, path: p}, {key: b.txt, path: ./p//}]}", "p=B:644"),
            ("secret: {secretName: s}", "a=S:644 k=K:644"),
            (
                "downwardAPI: {items: [{path: l, fieldRef: {fieldPath: metadata.labels}}, {path: d/c, mode: 384, resourceFieldRef: {resource: limits.cpu, containerName: c}}]}",
                "d/c=<limits.cpu>:600 l=<metadata.labels>:644",
            ),
            (
                "projected: {defaultMode: 288, sources: [{configMap: {name: m, items: [{key: a, path: cm/a}]}}, {secret: {name: s}}, \
              {downwardAPI: {items: [{path: k, fieldRef: {fieldPath: metadata.name}}]}}, {secret: {name: absent, optional: true}}]}",
                "a=S:440 cm/a=A:440 k=<metadata.name>:440",
            ),
            // Upstream's words.
            ("configMap: {name: nosuchcm}", "configmap \"nosuchcm\" not found"),
            ("secret: {secretName: nosuchsec}", "secret \"nosuchsec\" not found"),
            (
                "configMap: {name: m, items: [{key: zz, path: zz}]}",
                "configmap references non-existent config key: zz",
            ),
            (
                "secret: {secretName: s, items: [{key: zz, path: zz}]}",
                "references non-existent secret key: zz",
            ),
            (
                "projected: {sources: [{configMap: {name: x}}, {secret: {name: y}}, {configMap: {name: x}}]}",
                "[configmap \"x\" not found, secret \"y\" not found]",
            ),
            (
                "downwardAPI: {items: [{path: l, fieldRef: {fieldPath: status.phase}}]}",
                "unsupported fieldPath: status.phase",
            ),
        ] {
            assert_eq!(files(volume), want, "{volume}");
        }
    }

    #[test]
    fn a_path_that_leads_anywhere_else_is_refused() {
        let long = "x".repeat(256);
        for path in [
            "/etc/passwd",
            "../x",
            "a/../../x",
            "..data/x",
            "..x",
            "a\\0b",
            "",
            ".",
            "./",
            "./..x",
            &long,
            &"x/".repeat(2100),
        ] {
            let got = files(&format!("configMap: {{name: m, items: [{{key: a, path: \"{path}\"}}]}}"));
            assert!(got.starts_with("invalid path: "), "{path:.40}: {got:.80}");
        }
        assert_eq!(files("configMap: {name: m, items: [{key: a, path: a/..x/..b}]}"), "a/..x/..b=A:644");
    }

    #[test]
    fn a_file_below_a_file_is_refused() {
        let items = "[{key: a, path: x}, {key: a, path: x/y/z}]";
        assert_eq!(
            files(&format!("configMap: {{name: m, items: {items}}}")),
            "conflicting paths: \"x/y/z\" lies below the file \"x\""
        );
    }

    #[test]
    fn what_only_an_api_server_can_give_is_named() {
        let v: Volume =
            serde_saphyr::from_str("{name: v, projected: {sources: [{secret: {name: s}}, {podCertificate: {keyType: x, signerName: y}}]}}").unwrap();
        assert_eq!(unsupported(&v).as_deref(), Some("projected.sources[1].podCertificate"));
    }
}
