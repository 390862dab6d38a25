//! CRI messages as JSON, in the form the recordings have: proto field names, 64-bit numbers as text, enums by name,
//! zero values left out, maps as objects, environment values as text.
//!
//! It works from the descriptors of `cri/proto/cri.proto`, so that every message of the protocol is covered.

use anyhow::{Context as _, Result};
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use protox::file::{File, FileResolver};
use serde_json::Value;
use std::sync::LazyLock;

const PROTO: &str = include_str!("../../../cri/proto/cri.proto");

/// Answers the compiler from memory.
struct InMemory;

impl FileResolver for InMemory {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        match name {
            "cri.proto" => File::from_source(name, PROTO),
            _ => Err(protox::Error::file_not_found(name)),
        }
    }
}

static POOL: LazyLock<Result<DescriptorPool, String>> = LazyLock::new(|| {
    let mut compiler = protox::Compiler::with_file_resolver(InMemory);
    compiler.open_file("cri.proto").map_err(|e| e.to_string())?;
    Ok(compiler.descriptor_pool())
});

/// `message` as JSON. `name` is its name in package `runtime.v1`, such as `RunPodSandboxRequest`.
pub fn to_json(name: &str, message: &impl prost::Message) -> Result<Value> {
    let pool = POOL.as_ref().map_err(|e| anyhow::anyhow!("cri.proto: {e}"))?;
    let descriptor = pool
        .get_message_by_name(&format!("runtime.v1.{name}"))
        .with_context(|| format!("cri.proto has no message {name}"))?;
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())?;
    let options = SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(true);
    let mut value = dynamic.serialize_with_options(serde_json::value::Serializer, &options)?;
    texts(&mut value, false)?;
    Ok(value)
}

/// Replaces the base64 of `envs[].value` by the text, as the recorder did.
fn texts(value: &mut Value, in_envs: bool) -> Result<()> {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                if in_envs && key == "value" {
                    let text = field.as_str().context("an environment value that is no text")?;
                    *field = String::from_utf8_lossy(&base64_decode(text)?).into_owned().into();
                } else {
                    texts(field, key == "envs")?;
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                texts(item, in_envs)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn base64_decode(text: &str) -> Result<Vec<u8>> {
    use base64::Engine as _;
    Ok(base64::engine::general_purpose::STANDARD.decode(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri::v1::{
        ContainerConfig, KeyValue, LinuxContainerConfig, LinuxContainerResources, SecurityProfile,
    };
    use serde_json::json;

    #[test]
    fn messages_look_as_recorded() {
        let config = ContainerConfig {
            envs: vec![
                KeyValue { key: "A".into(), value: b"one".to_vec() },
                KeyValue { key: "E".into(), value: vec![] },
            ],
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources { cpu_shares: 2, ..Default::default() }),
                ..Default::default()
            }),
            log_path: "c/0.log".into(),
            ..Default::default()
        };
        let want = json!({
            "envs": [{"key": "A", "value": "one"}, {"key": "E"}],
            "linux": {"resources": {"cpu_shares": "2"}},
            "log_path": "c/0.log",
        });
        assert_eq!(to_json("ContainerConfig", &config).unwrap(), want);
        let profile = SecurityProfile { profile_type: 1, ..Default::default() };
        assert_eq!(to_json("SecurityProfile", &profile).unwrap(), json!({"profile_type": "Unconfined"}));
        assert!(to_json("NoSuchMessage", &profile).is_err());
    }
}
