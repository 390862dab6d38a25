//! A pod's `imagePullSecrets`: found among the node's objects and read; those that cannot be had are told of.

use super::Steps;
use crate::api::{self, Pod};
use crate::event;
use crate::image::credential::{Object, PullSecret};
use crate::objects::{self, Key, Kind};

impl Steps {
    /// Those that can be had, in order. The others are told of when that is news; a pull is tried without them, as upstream
    /// does. Cancel-safe.
    pub(super) async fn pull_secrets(&mut self, pod: &Pod) -> Vec<PullSecret> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let names = api::spec(pod).image_pull_secrets.iter().flatten().map(|s| s.name.as_str());
        let keys: Vec<Key> =
            names.filter(|n| !n.is_empty()).map(|n| Key::new(Kind::Secret, namespace, n)).collect();
        let found = self.rooms.objects.find(keys.iter().cloned()).await;
        let (mut secrets, mut missing, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
        for key in &keys {
            let object = found.get(key).and_then(|f| f.object.as_ref());
            match object.ok_or_else(|| "it is not there".to_owned()).and_then(|o| read(o)) {
                Ok((secret, disorder)) => {
                    secrets.push(secret);
                    wrong.extend(disorder.into_iter().map(|why| format!("{key}: {why}")));
                }
                Err(why) => {
                    missing.push(&*key.name);
                    wrong.push(format!("{key}: {why}"));
                }
            }
        }
        if wrong != self.wrong_secrets {
            for why in &wrong {
                tracing::warn!(pod = %self.pod, "imagePullSecrets: {why}");
            }
            if !missing.is_empty() {
                let message = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    missing.join(", ")
                );
                self.event(event::Kind::Warning, None, "FailedToRetrieveImagePullSecret", message);
            }
            self.wrong_secrets = wrong;
        }
        secrets
    }
}

/// The secret, and what of it is in disorder and left out. Neither this nor an error tells what it holds.
fn read(object: &objects::Object) -> Result<(PullSecret, Vec<String>), String> {
    let Key { namespace, name, .. } = &object.key;
    let whose = Object { namespace: namespace.to_string(), name: name.to_string(), uid: object.uid.clone() };
    let of = |key: &str| object.get(key).ok_or_else(|| format!("it has no {key}"));
    match object.type_.as_str() {
        "kubernetes.io/dockerconfigjson" => PullSecret::docker_config_json(whose, of(".dockerconfigjson")?),
        "kubernetes.io/dockercfg" => PullSecret::docker_cfg(whose, of(".dockercfg")?),
        other => Err(format!("a Secret of type {other} is none for images")),
    }
}
