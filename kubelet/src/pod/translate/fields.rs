//! `fieldRef` and `resourceFieldRef`: values of the pod and its resources as environment variables and downward API
//! files show them.
//!
//! [`super::environment`] calls it, and the volume room through [`FileValues`] for downward API files.

use super::{NodeFacts, resources};
use crate::api::{Container, Pod, spec};
use crate::gotext;
use crate::quantity::{self, Nano};
use crate::volume;
use k8s_openapi::api::core::v1::ResourceFieldSelector;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// A reference that names nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// A field path that is not offered.
    #[error("unsupported fieldPath: {0}")]
    Path(String),
    /// A resource that is not offered.
    #[error("unsupported container resource : {0}")]
    Resource(String),
    /// `containerName` names no container of the pod.
    #[error("container {0} not found")]
    Container(String),
    /// A divisor that is no quantity.
    #[error("divisor {0:?} of resource {1}: {2}")]
    Divisor(String, String, quantity::ParseError),
}

/// The value at `path` as environment variables see it. `pod_ips` are the sandbox's addresses (the node's for pods on
/// the host network).
pub fn field_value(
    pod: &Pod,
    path: &str,
    pod_ips: &[IpAddr],
    facts: &NodeFacts,
) -> Result<String, FieldError> {
    let (meta, spec) = (&pod.metadata, spec(pod));
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    let all = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "spec.nodeName" => text(&spec.node_name),
        "spec.serviceAccountName" => text(&spec.service_account_name),
        "status.hostIP" => first(&facts.node_ips),
        "status.hostIPs" => all(&facts.node_ips),
        "status.podIP" => first(pod_ips),
        "status.podIPs" => all(pod_ips),
        _ => {
            let (map, key) = subscript(path).ok_or_else(|| FieldError::Path(path.to_owned()))?;
            let map: &Option<BTreeMap<String, String>> = match map {
                "metadata.labels" => &meta.labels,
                "metadata.annotations" => &meta.annotations,
                _ => return Err(FieldError::Path(path.to_owned())),
            };
            map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default()
        }
    })
}

/// Values as downward API files show them.
#[derive(Debug)]
pub struct FileValues(pub Arc<NodeFacts>);

impl volume::Values for FileValues {
    fn field(&self, pod: &Pod, path: &str) -> Result<String, String> {
        match path {
            "metadata.labels" => Ok(lines(pod.metadata.labels.as_ref())),
            "metadata.annotations" => Ok(lines(pod.metadata.annotations.as_ref())),
            // Fields of spec and status are for variables only.
            path if path.starts_with("metadata.") => {
                field_value(pod, path, &[], &self.0).map_err(|e| e.to_string())
            }
            path => Err(FieldError::Path(path.to_owned()).to_string()),
        }
    }

    fn resource(&self, pod: &Pod, selector: &ResourceFieldSelector) -> Result<String, String> {
        let name = selector.container_name.as_deref().unwrap_or_default();
        let container = find(pod, name).ok_or_else(|| FieldError::Container(name.to_owned()).to_string())?;
        resource_value(pod, container, selector, &self.0).map_err(|e| e.to_string())
    }
}

/// A map as `key="value"` lines, by key.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let each =
        map.into_iter().flatten().map(|(key, value)| format!("{key}={}", gotext::quote(value.as_bytes())));
    each.collect::<Vec<_>>().join("\n")
}

/// `map['key']` taken apart.
fn subscript(path: &str) -> Option<(&str, &str)> {
    path.strip_suffix("']")?.split_once("['")
}

/// The value `selector` asks for, in whole multiples of its divisor, rounded up. `container` is the one that asks;
/// limits that are not set are what the pod as a whole or else the node could give.
pub fn resource_value(
    pod: &Pod,
    container: &Container,
    selector: &ResourceFieldSelector,
    facts: &NodeFacts,
) -> Result<String, FieldError> {
    let container = match selector.container_name.as_deref() {
        Some(name) if !name.is_empty() && name != container.name => {
            find(pod, name).ok_or_else(|| FieldError::Container(name.to_owned()))?
        }
        _ => container,
    };
    let unsupported = || FieldError::Resource(selector.resource.clone());
    let (kind, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    if !(matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with(resources::HUGEPAGES)) {
        return Err(unsupported());
    }
    let amount = match kind {
        "requests" => resources::requests_of(container).get(name).copied().unwrap_or_default(),
        "limits" => resources::effective_limit(pod, container, name)
            .filter(|limit| *limit > Nano::default())
            .unwrap_or_else(|| allocatable(name, facts)),
        _ => return Err(unsupported()),
    };
    let divisor = divisor(selector)?;
    // CPU counts in thousandths, everything else in whole units; both round up before and after dividing.
    let (amount, divisor) = match name {
        "cpu" => (amount.milli(), divisor.milli()),
        _ => (amount.value(), divisor.value()),
    };
    let divisor = divisor.max(1);
    Ok((amount / divisor + i64::from(amount % divisor > 0)).to_string())
}

fn divisor(selector: &ResourceFieldSelector) -> Result<Nano, FieldError> {
    let one = Nano::from_value(1);
    let Some(text) = selector.divisor.as_ref().map(|q| q.0.as_str()).filter(|t| !t.is_empty()) else {
        return Ok(one);
    };
    let parsed = quantity::parse(text)
        .map_err(|e| FieldError::Divisor(text.to_owned(), selector.resource.clone(), e))?;
    Ok(if parsed == Nano::default() { one } else { parsed })
}

fn allocatable(name: &str, facts: &NodeFacts) -> Nano {
    match name {
        "cpu" => Nano::from_milli(facts.allocatable.cpu_milli),
        "memory" => Nano::from_value(facts.allocatable.memory_bytes),
        "ephemeral-storage" => Nano::from_value(facts.allocatable.ephemeral_bytes),
        _ => Nano::default(),
    }
}

fn find<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = spec(pod);
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{facts, pod};
    use super::*;

    #[test]
    fn every_offered_path_has_its_value() {
        let p = pod("{metadata: {name: n, namespace: ns, uid: u, labels: {app: x}, annotations: {a/b: y}}, \
             spec: {nodeName: node, serviceAccountName: sa}}");
        let ips = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        for (path, want) in [
            ("metadata.name", "n"),
            ("metadata.namespace", "ns"),
            ("metadata.uid", "u"),
            ("metadata.labels['app']", "x"),
            ("metadata.labels['none']", ""),
            ("metadata.annotations['a/b']", "y"),
            ("spec.nodeName", "node"),
            ("spec.serviceAccountName", "sa"),
            ("status.hostIP", "192.0.2.10"),
            ("status.hostIPs", "192.0.2.10"),
            ("status.podIP", "10.0.0.1"),
            ("status.podIPs", "10.0.0.1,fd00::1"),
        ] {
            assert_eq!(field_value(&p, path, &ips, &facts()).as_deref(), Ok(want), "{path}");
        }
        for bad in ["status.phase", "spec.labels['x']", "metadata.labels", "metadata.labels['x"] {
            assert_eq!(field_value(&p, bad, &ips, &facts()), Err(FieldError::Path(bad.to_owned())));
        }
    }

    #[test]
    fn resources_divide_and_round_up() {
        let p = pod(
            "{spec: {containers: [{name: a, resources: {requests: {cpu: 125m, memory: 33Mi}, limits: {cpu: 1250m, memory: 65Mi}}}, \
             {name: b}]}}",
        );
        let value = |container: usize, resource: &str, divisor: &str, name: &str| {
            let selector: ResourceFieldSelector = serde_saphyr::from_str(&format!(
                "{{resource: {resource}, divisor: {divisor:?}, containerName: {name:?}}}"
            ))
            .unwrap();
            resource_value(&p, &spec(&p).containers[container], &selector, &facts())
                .map_err(|e| e.to_string())
        };
        for (container, resource, divisor, want) in [
            (0, "limits.cpu", "", "2"),
            (0, "limits.cpu", "0", "2"),
            (0, "limits.cpu", "1m", "1250"),
            (0, "requests.cpu", "1", "1"),
            (0, "limits.memory", "1M", "69"),
            (0, "requests.memory", "1Gi", "1"),
            (1, "requests.memory", "", "0"),
            (1, "limits.cpu", "", "2"),
            (1, "limits.memory", "", "25171656704"),
            (1, "limits.ephemeral-storage", "", "243497856212"),
        ] {
            assert_eq!(value(container, resource, divisor, "").as_deref(), Ok(want), "{resource}/{divisor}");
        }
        assert_eq!(value(1, "limits.cpu", "1m", "a").as_deref(), Ok("1250"));
        assert_eq!(value(1, "limits.cpu", "1m", "z").unwrap_err(), "container z not found");
        for bad in ["cpu", "limits.pods", "wants.cpu"] {
            assert_eq!(value(0, bad, "", "").unwrap_err(), format!("unsupported container resource : {bad}"));
        }
    }

    #[test]
    fn files_show_maps_as_lines_in_gos_quotes() {
        // As golden case vol-downwardapi has them.
        let mut p = pod(
            "{metadata: {name: n, namespace: ns, uid: u, labels: {b: two, app: x}}, spec: {containers: [{name: c}]}}",
        );
        p.metadata.annotations =
            Some(BTreeMap::from([("multi".into(), "line1\nline2".into()), ("q".into(), "two \"q\"".into())]));
        let values: &dyn volume::Values = &FileValues(Arc::new(facts()));
        let field = |path: &str| values.field(&p, path);
        assert_eq!(field("metadata.labels").as_deref(), Ok("app=\"x\"\nb=\"two\""));
        assert_eq!(
            field("metadata.annotations").as_deref(),
            Ok("multi=\"line1\\nline2\"\nq=\"two \\\"q\\\"\"")
        );
        assert_eq!(field("metadata.labels['app']").as_deref(), Ok("x"));
        assert_eq!(field("metadata.uid").as_deref(), Ok("u"));
        assert_eq!(field("spec.nodeName"), Err("unsupported fieldPath: spec.nodeName".into()));
        let wants = |container: &str| ResourceFieldSelector {
            resource: "limits.cpu".into(),
            container_name: Some(container.into()),
            ..ResourceFieldSelector::default()
        };
        assert_eq!(values.resource(&p, &wants("c")).as_deref(), Ok("2"));
        assert_eq!(values.resource(&p, &wants("z")), Err("container z not found".into()));
    }

    #[test]
    fn a_pods_own_limit_comes_before_the_nodes() {
        let p = pod("{spec: {resources: {limits: {memory: 96Mi}}, containers: [{name: a}]}}");
        let selector =
            ResourceFieldSelector { resource: "limits.memory".into(), ..ResourceFieldSelector::default() };
        let got = resource_value(&p, &spec(&p).containers[0], &selector, &facts());
        assert_eq!(got.unwrap(), (96 << 20).to_string());
    }
}
