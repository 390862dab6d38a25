//! Lists of pods as JSON, one pod at a time.
//!
//! `k8s-openapi` writes `apiVersion` and `kind` into every object; upstream leaves them out of list items and always
//! writes `metadata`, `spec` and `status`.

use crate::api::{Pod, PodSpec, PodStatus};
use bytes::Bytes;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use std::borrow::Borrow;

#[derive(Serialize)]
struct Item<'a> {
    metadata: &'a ObjectMeta,
    spec: &'a PodSpec,
    status: &'a PodStatus,
}

/// The pieces of a `v1.PodList` of `pods`: about one for each pod, made when asked for.
pub fn pod_list<P: Borrow<Pod> + Send + 'static>(
    pods: Vec<P>,
) -> impl Iterator<Item = Bytes> + Send + 'static {
    let (open, close) = if pods.is_empty() { ("null", "}\n") } else { ("[", "]}\n") };
    let head = format!("{{\"kind\":\"PodList\",\"apiVersion\":\"v1\",\"metadata\":{{}},\"items\":{open}");
    let items = pods.into_iter().enumerate().map(|(at, pod)| {
        let mut json = if at == 0 { Vec::new() } else { vec![b','] };
        write(pod.borrow(), &mut json);
        json.into()
    });
    std::iter::once(Bytes::from(head))
        .chain(items)
        .chain(std::iter::once(Bytes::from_static(close.as_bytes())))
}

fn write(pod: &Pod, json: &mut Vec<u8>) {
    static NO_STATUS: std::sync::LazyLock<PodStatus> = std::sync::LazyLock::new(PodStatus::default);
    let status = pod.status.as_ref().unwrap_or(&NO_STATUS);
    let item = Item { metadata: &pod.metadata, spec: crate::api::spec(pod), status };
    let begin = json.len();
    if let Err(error) = serde_json::to_writer(&mut *json, &item) {
        // No map in a pod has keys that JSON cannot take, so this does not happen; the list stays valid all the same.
        tracing::error!(pod = pod.metadata.name, %error, "pod cannot be written as JSON");
        json.truncate(begin);
        json.extend_from_slice(b"{}");
    }
}
