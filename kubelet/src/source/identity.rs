//! Who a static pod is: its UID, its name on this node, its annotations, and what it may not ask for.
//!
//! `file` calls it between decoding and validating. Pure.
//!
//! The UID of a manifest that gives none is the first 16 bytes of a SHA-256 over the pod as decoded (canonical JSON
//! before defaulting, so that comments, key order, unknown fields and a new default of a later version do not
//! matter), the node's name and the file's path, as 32 hex digits: the inputs and the look are upstream's, the
//! digest is ours. So the same content in the same file is the same pod, across restarts of the agent and after a
//! removal; a changed content, another file name or another node is another pod.

use super::field::{Errors, Path};
use crate::api::{Origin, Pod, as_container};
use k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVar, PodSpec, Toleration, Volume};
use sha2::{Digest, Sha256};

/// Where the pod came from.
pub use crate::api::CONFIG_SOURCE as SOURCE;
/// `kubernetes.io/config.seen`: when, in RFC 3339 with nanoseconds.
pub const SEEN: &str = "kubernetes.io/config.seen";
/// `kubernetes.io/config.mirror`: marks the API server's copy of a static pod, which no manifest is.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// `kubernetes.io/config.hash`: of what content; the UID.
pub const HASH: &str = "kubernetes.io/config.hash";

/// The classes that exist without an API server, with their values.
const BUILT_IN_CLASSES: [(&str, i32); 2] =
    [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

/// The UID of `pod`, which has none of its own, from the file at `path` on `node_name`.
pub fn derived_uid(pod: &Pod, path: &str, node_name: &str) -> String {
    let mut hasher = Sha256::new();
    // A pod that was just decoded from JSON values always encodes; the map of a `Value` is sorted by key.
    let canonical = serde_json::to_value(pod).map(|v| v.to_string()).unwrap_or_default();
    for part in [canonical.as_str(), "host:", node_name, "file:", path] {
        // Lengths keep the parts apart.
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect()
}

/// Makes the decoded `pod` of the file at `path` this node's static pod: UID, name, namespace, node, annotations,
/// tolerations. `seen` is not yet known here; [`stamp`] adds it.
pub fn adopt(pod: &mut Pod, path: &str, node_name: &str) {
    forget_server_fields(pod);
    let uid = match pod.metadata.uid.take().filter(|uid| !uid.is_empty()) {
        Some(uid) => uid,
        None => derived_uid(pod, path, node_name),
    };
    let meta = &mut pod.metadata;
    if let Some(name) = meta.name.as_mut().filter(|n| !n.is_empty()) {
        *name = format!("{name}-{}", node_name.to_lowercase());
    }
    meta.namespace.get_or_insert_default();
    if let Some(namespace) = meta.namespace.as_mut().filter(|n| n.is_empty()) {
        *namespace = "default".to_owned();
    }
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(HASH.to_owned(), uid.clone());
    annotations.insert(SOURCE.to_owned(), Origin::File.as_str().to_owned());
    meta.uid = Some(uid);
    let Some(spec) = pod.spec.as_mut() else { return };
    spec.node_name = Some(node_name.to_owned());
    tolerate_no_execute(spec);
    if let Some((_, value)) =
        BUILT_IN_CLASSES.iter().find(|(name, _)| spec.priority_class_name.as_deref() == Some(name))
    {
        spec.priority.get_or_insert(*value);
        spec.preemption_policy.get_or_insert_with(|| "PreemptLowerPriority".to_owned());
    }
    pod.status.get_or_insert_default().phase = Some("Pending".to_owned());
}

/// Makes the decoded `pod` one of an API server's for this node: what it says of itself stays, its generation among it.
pub fn assign(pod: &mut Pod, node_name: &str) {
    let (generation, created) = (pod.metadata.generation, pod.metadata.creation_timestamp.take());
    forget_server_fields(pod);
    let meta = &mut pod.metadata;
    (meta.generation, meta.creation_timestamp) = (generation, created);
    if meta.namespace.as_ref().is_none_or(String::is_empty) {
        meta.namespace = Some("default".to_owned());
    }
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(SOURCE.to_owned(), Origin::Api.as_str().to_owned());
    let Some(spec) = pod.spec.as_mut() else { return };
    spec.node_name = Some(node_name.to_owned());
    pod.status.get_or_insert_default().phase = Some("Pending".to_owned());
}

/// A manifest written by `kubectl get -o yaml` carries what an API server knew of another pod: its status, and
/// perhaps that it was being deleted.
fn forget_server_fields(pod: &mut Pod) {
    pod.status = None;
    let meta = &mut pod.metadata;
    meta.deletion_timestamp = None;
    meta.deletion_grace_period_seconds = None;
    meta.resource_version = None;
    meta.managed_fields = None;
    meta.self_link = None;
    meta.generation = None;
    meta.creation_timestamp = None;
    for ours in [SOURCE, SEEN, HASH] {
        meta.annotations.as_mut().and_then(|a| a.remove(ours));
    }
}

/// Writes `kubernetes.io/config.seen`.
pub fn stamp(pod: &mut Pod, seen: jiff::Timestamp) {
    pod.metadata.annotations.get_or_insert_default().insert(SEEN.to_owned(), seen.to_string());
}

/// A static pod stays when its node is tainted: whatever runs it (the node's own services) must not be evicted.
fn tolerate_no_execute(spec: &mut PodSpec) {
    let tolerations = spec.tolerations.get_or_insert_default();
    let every = Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    };
    if !tolerations.contains(&every) {
        tolerations.push(every);
    }
}

/// Which API objects a static pod may refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum References {
    /// None: there are none.
    None,
    /// ConfigMaps and Secrets, those of `--standalone-objects`.
    Objects,
}

/// What nothing but an API server could resolve: a static pod that names it is refused, never run without it. `own_uid`:
/// the manifest gives the pod its UID.
pub fn unresolvable(pod: &Pod, own_uid: bool, references: References, errors: &mut Errors) {
    if pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(MIRROR)) {
        let metadata = Path::root("metadata");
        errors
            .forbidden(&metadata.child("annotations").key(MIRROR), "a manifest is no mirror of a static pod");
    }
    let Some(spec) = pod.spec.as_ref() else { return };
    let at = Path::root("spec");
    let refuse = |errors: &mut Errors, at: &Path<'_>, what: &str| {
        errors.forbidden(at, &format!("a static pod may not reference an API object ({what})"));
    };
    // What a directory of objects provides.
    let resolve = |errors: &mut Errors, at: &Path<'_>, what: &str| match (what, references) {
        ("ConfigMap" | "Secret", References::Objects) => {}
        ("ConfigMap" | "Secret", References::None) => errors.forbidden(
            at,
            &format!("a static pod may not reference an API object ({what}) without --standalone-objects"),
        ),
        _ => refuse(errors, at, what),
    };
    for (field, name) in
        [("serviceAccountName", &spec.service_account_name), ("serviceAccount", &spec.service_account)]
    {
        if name.as_ref().is_some_and(|n| !n.is_empty()) {
            refuse(errors, &at.child(field), "ServiceAccount");
        }
    }
    if spec.image_pull_secrets.as_ref().is_some_and(|s| !s.is_empty()) {
        resolve(errors, &at.child("imagePullSecrets"), "Secret");
    }
    if spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty()) {
        refuse(errors, &at.child("resourceClaims"), "ResourceClaim");
    }
    for (list, containers) in [
        ("initContainers", spec.init_containers.as_deref().unwrap_or_default()),
        ("containers", &spec.containers),
    ] {
        let list = at.child(list);
        for (i, container) in containers.iter().enumerate() {
            container_references(container, &list.index(i), &mut |at, what| resolve(errors, at, what));
        }
    }
    let volumes = at.child("volumes");
    for (i, volume) in spec.volumes.iter().flatten().enumerate() {
        let at = volumes.index(i);
        object_references(volume, &at, &mut |at, what| resolve(errors, at, what));
        driver_references(volume, &at, &mut |at, what| refuse(errors, at, what));
    }
    let ephemeral = at.child("ephemeralContainers");
    for (i, container) in spec.ephemeral_containers.iter().flatten().enumerate() {
        container_references(&as_container(container), &ephemeral.index(i), &mut |at, what| {
            resolve(errors, at, what);
        });
    }
    // With a UID that follows from its content, the pod with the container would be another one than that without.
    if !own_uid && spec.ephemeral_containers.as_ref().is_some_and(|c| !c.is_empty()) {
        errors.forbidden(
            &ephemeral,
            "cannot be set on create; a manifest with a metadata.uid may gain it later",
        );
    }
    if let Some(class) = spec.priority_class_name.as_deref().filter(|c| !c.is_empty()) {
        let built_in = BUILT_IN_CLASSES.iter().find(|(name, _)| *name == class);
        match (built_in, spec.priority) {
            (Some((_, value)), Some(given)) if given != *value => errors.invalid(
                &at.child("priority"),
                given,
                &format!("must be {value}, the value of priorityClassName {class}"),
            ),
            (None, None) => errors.invalid(
                &at.child("priorityClassName"),
                class,
                "no PriorityClass of this name is known to a static pod: use system-node-critical or \
                 system-cluster-critical, or give spec.priority as well",
            ),
            _ => {}
        }
    }
}

type Refuse<'r> = dyn FnMut(&Path<'_>, &str) + 'r;

fn container_references(container: &Container, at: &Path<'_>, refuse: &mut Refuse<'_>) {
    let env = at.child("env");
    for (i, EnvVar { value_from, .. }) in container.env.iter().flatten().enumerate() {
        let (item, Some(from)) = (env.index(i), value_from) else { continue };
        let from_at = item.child("valueFrom");
        if from.config_map_key_ref.is_some() {
            refuse(&from_at.child("configMapKeyRef"), "ConfigMap");
        }
        if from.secret_key_ref.is_some() {
            refuse(&from_at.child("secretKeyRef"), "Secret");
        }
    }
    let env_from = at.child("envFrom");
    for (i, EnvFromSource { config_map_ref, secret_ref, .. }) in
        container.env_from.iter().flatten().enumerate()
    {
        let item = env_from.index(i);
        if config_map_ref.is_some() {
            refuse(&item.child("configMapRef"), "ConfigMap");
        }
        if secret_ref.is_some() {
            refuse(&item.child("secretRef"), "Secret");
        }
    }
}

fn driver_references(v: &Volume, at: &Path<'_>, refuse: &mut Refuse<'_>) {
    let secrets = [
        ("cephfs", v.cephfs.as_ref().is_some_and(|s| s.secret_ref.is_some())),
        ("cinder", v.cinder.as_ref().is_some_and(|s| s.secret_ref.is_some())),
        ("flexVolume", v.flex_volume.as_ref().is_some_and(|s| s.secret_ref.is_some())),
        ("iscsi", v.iscsi.as_ref().is_some_and(|s| s.secret_ref.is_some())),
        ("rbd", v.rbd.as_ref().is_some_and(|s| s.secret_ref.is_some())),
        ("scaleIO", v.scale_io.is_some()),
        ("storageos", v.storageos.as_ref().is_some_and(|s| s.secret_ref.is_some())),
    ];
    for (field, _) in secrets.into_iter().filter(|(_, set)| *set) {
        refuse(&at.child(field).child("secretRef"), "Secret");
    }
    if v.csi.as_ref().is_some_and(|s| s.node_publish_secret_ref.is_some()) {
        refuse(&at.child("csi").child("nodePublishSecretRef"), "Secret");
    }
    if v.azure_file.is_some() {
        refuse(&at.child("azureFile"), "Secret");
    }
}

fn object_references(v: &Volume, at: &Path<'_>, refuse: &mut Refuse<'_>) {
    let whole = [
        ("configMap", v.config_map.is_some(), "ConfigMap"),
        ("secret", v.secret.is_some(), "Secret"),
        ("persistentVolumeClaim", v.persistent_volume_claim.is_some(), "PersistentVolumeClaim"),
        ("ephemeral", v.ephemeral.is_some(), "PersistentVolumeClaim"),
        ("glusterfs", v.glusterfs.is_some(), "Endpoints"),
    ];
    for (field, _, what) in whole.into_iter().filter(|(_, set, _)| *set) {
        refuse(&at.child(field), what);
    }
    let projected = at.child("projected");
    let sources = projected.child("sources");
    for (i, s) in v.projected.iter().flat_map(|p| p.sources.iter().flatten()).enumerate() {
        let item = sources.index(i);
        let parts = [
            ("configMap", s.config_map.is_some(), "ConfigMap"),
            ("secret", s.secret.is_some(), "Secret"),
            ("serviceAccountToken", s.service_account_token.is_some(), "ServiceAccount"),
            ("clusterTrustBundle", s.cluster_trust_bundle.is_some(), "ClusterTrustBundle"),
            ("podCertificate", s.pod_certificate.is_some(), "PodCertificateRequest"),
        ];
        for (field, _, what) in parts.into_iter().filter(|(_, set, _)| *set) {
            refuse(&item.child(field), what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::decode;

    fn pod(yaml: &str) -> Pod {
        decode::manifest(format!("apiVersion: v1\nkind: Pod\n{yaml}").as_bytes()).unwrap().object
    }

    fn refused(yaml: &str) -> Vec<String> {
        let mut errors = Errors::default();
        let pod = pod(yaml);
        unresolvable(&pod, pod.metadata.uid.is_some(), References::None, &mut errors);
        errors.into_vec().into_iter().map(|e| e.field).collect()
    }

    #[test]
    fn the_uid_follows_content_node_and_path_and_nothing_else() {
        let a = pod("metadata: {name: a}\nspec: {containers: [{name: c, image: i}]}");
        let same =
            pod("# comment\nspec:\n  containers:\n  - image: i\n    name: c\nmetadata: {name: a}\nnope: 1");
        let uid = derived_uid(&a, "/m/a.yaml", "n1");
        assert_eq!(uid.len(), 32);
        assert!(uid.bytes().all(|b| b.is_ascii_hexdigit()));
        assert_eq!(uid, derived_uid(&same, "/m/a.yaml", "n1"));
        assert_ne!(uid, derived_uid(&a, "/m/b.yaml", "n1"));
        assert_ne!(uid, derived_uid(&a, "/m/a.yaml", "n2"));
        let changed = pod("metadata: {name: a}\nspec: {containers: [{name: c, image: j}]}");
        assert_ne!(uid, derived_uid(&changed, "/m/a.yaml", "n1"));
    }

    #[test]
    fn an_adopted_pod_is_this_nodes() {
        let mut p = pod("metadata: {name: web, uid: my-own}\nspec: {containers: []}");
        adopt(&mut p, "/m/a.yaml", "Node-A");
        let m = &p.metadata;
        assert_eq!((m.name.as_deref(), m.namespace.as_deref()), (Some("web-node-a"), Some("default")));
        assert_eq!(m.uid.as_deref(), Some("my-own"), "the manifest's own UID is kept");
        let annotations = m.annotations.as_ref().unwrap();
        assert_eq!(annotations[HASH], "my-own");
        assert_eq!(annotations[SOURCE], "file");
        let spec = p.spec.as_ref().unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("Node-A"));
        assert_eq!(spec.tolerations.as_ref().unwrap().len(), 1);
        assert_eq!(spec.priority, None);
    }

    #[test]
    fn a_manifest_copied_from_a_server_starts_afresh() {
        let mut p = pod(
            "metadata: {name: a, deletionTimestamp: '2020-01-01T00:00:00Z', resourceVersion: '5', \
            annotations: {kubernetes.io/config.hash: old, keep: me}}\nspec: {containers: []}\nstatus: {phase: Failed}",
        );
        let mut plain = pod("metadata: {name: a, annotations: {keep: me}}\nspec: {containers: []}");
        adopt(&mut p, "/m/a", "n");
        adopt(&mut plain, "/m/a", "n");
        assert_eq!(p, plain);
        let mirror =
            "metadata: {name: a, annotations: {kubernetes.io/config.mirror: x}}\nspec: {containers: []}";
        assert_eq!(refused(mirror), ["metadata.annotations[kubernetes.io/config.mirror]"]);
    }

    #[test]
    fn built_in_priority_classes_resolve_and_others_are_refused() {
        let mut p =
            pod("metadata: {name: a}\nspec: {containers: [], priorityClassName: system-node-critical}");
        adopt(&mut p, "/m/a", "n");
        assert_eq!(p.spec.as_ref().unwrap().priority, Some(2_000_001_000));
        let s = |class: &str| {
            format!("metadata: {{name: a}}\nspec: {{containers: [], priorityClassName: {class}}}")
        };
        assert_eq!(refused(&s("system-cluster-critical")), [""; 0]);
        assert_eq!(refused(&s("gold")), ["spec.priorityClassName"]);
        assert_eq!(refused(&s("gold, priority: 7")), [""; 0]);
        assert_eq!(refused(&s("system-node-critical, priority: 7")), ["spec.priority"]);
    }

    #[test]
    fn ephemeral_containers_need_a_pod_that_stays_the_same_without_them() {
        let with = |meta: &str| {
            format!(
                "metadata: {{{meta}}}\nspec: {{containers: [], ephemeralContainers: [{{name: e, envFrom: [{{secretRef: {{name: s}}}}]}}]}}"
            )
        };
        let reference = "spec.ephemeralContainers[0].envFrom[0].secretRef";
        assert_eq!(refused(&with("name: a")), [reference, "spec.ephemeralContainers"]);
        assert_eq!(refused(&with("name: a, uid: u")), [reference]);
    }

    #[test]
    fn every_reference_to_an_api_object_is_named() {
        let yaml = "
metadata: {name: a}
spec:
  serviceAccountName: sa
  imagePullSecrets: [{name: s}]
  resourceClaims: [{name: r}]
  initContainers:
  - {name: i, env: [{name: A, value: x}, {name: B, valueFrom: {secretKeyRef: {name: s, key: k}}}]}
  containers:
  - name: c
    env: [{name: A, valueFrom: {configMapKeyRef: {name: s, key: k}}}]
    envFrom: [{configMapRef: {name: c}}, {secretRef: {name: s}}]
  volumes:
  - {name: a, configMap: {name: c}}
  - {name: b, secret: {secretName: c}}
  - {name: c, persistentVolumeClaim: {claimName: c}}
  - {name: d, projected: {sources: [{downwardAPI: {}}, {serviceAccountToken: {path: t}}]}}
  - {name: e, emptyDir: {}}
";
        assert_eq!(
            refused(yaml),
            [
                "spec.serviceAccountName",
                "spec.imagePullSecrets",
                "spec.resourceClaims",
                "spec.initContainers[0].env[1].valueFrom.secretKeyRef",
                "spec.containers[0].env[0].valueFrom.configMapKeyRef",
                "spec.containers[0].envFrom[0].configMapRef",
                "spec.containers[0].envFrom[1].secretRef",
                "spec.volumes[0].configMap",
                "spec.volumes[1].secret",
                "spec.volumes[2].persistentVolumeClaim",
                "spec.volumes[3].projected.sources[1].serviceAccountToken",
            ]
        );
        // With a directory of objects only the rest is refused.
        let (pod, mut errors) = (pod(yaml), Errors::default());
        unresolvable(&pod, false, References::Objects, &mut errors);
        let rest: Vec<String> = errors.into_vec().into_iter().map(|e| e.field).collect();
        assert_eq!(
            rest,
            [
                "spec.serviceAccountName",
                "spec.resourceClaims",
                "spec.volumes[2].persistentVolumeClaim",
                "spec.volumes[3].projected.sources[1].serviceAccountToken",
            ]
        );
        let mut errors = Errors::default();
        unresolvable(&pod, false, References::None, &mut errors);
        let flag = "without --standalone-objects";
        let names_it = |field: &str| {
            errors.clone().into_vec().iter().any(|e| e.field == field && e.message.ends_with(flag))
        };
        assert!(names_it("spec.volumes[0].configMap") && names_it("spec.containers[0].envFrom[1].secretRef"));
        assert!(names_it("spec.imagePullSecrets"));
        assert!(!names_it("spec.serviceAccountName"), "a directory of objects does not help it");
    }
}
