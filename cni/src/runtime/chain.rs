//! Running a network's plugins in order: ADD forwards, DEL backwards, results handed on.

use serde_json::{Map, Value, json};

use super::{Runtime, RuntimeError, run_plugin};
use crate::args::Attachment;
use crate::conf::{NetConf, NetConfList};
use crate::result::CniResult;
use crate::version::Version;

/// An attachment that GC must keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidAttachment {
    pub container_id: String,
    pub ifname: String,
}

impl Runtime {
    async fn call(
        &self,
        list: &NetConfList,
        plugin: &NetConf,
        command: &'static str,
        at: Option<&Attachment>,
        stdin: &Value,
    ) -> Result<Value, RuntimeError> {
        let fail = |source| RuntimeError::Plugin {
            network: list.name.clone(),
            plugin: plugin.kind.clone(),
            command,
            source: Box::new(source),
        };
        let path = self.find(&plugin.kind).map_err(fail)?;
        run_plugin(self, &path, command, at, stdin).await.map_err(fail)
    }

    /// Attaches a container. On an error the caller calls [`Runtime::del`], as the specification wants.
    pub async fn add(&self, list: &NetConfList, at: &Attachment) -> Result<CniResult, RuntimeError> {
        let mut result = CniResult::default();
        let mut prev: Option<Value> = None;
        for plugin in &list.plugins {
            let stdin = plugin.stdin(list, prev, &at.capability_args);
            let answer = self.call(list, plugin, "ADD", Some(at), &stdin).await?;
            result = CniResult::from_value(&answer, list.version, "the result of ADD").map_err(|source| {
                RuntimeError::Result {
                    network: list.name.clone(),
                    plugin: plugin.kind.clone(),
                    command: "ADD",
                    source: Box::new(source),
                }
            })?;
            prev = Some(result.to_value(list.version));
        }
        Ok(result)
    }

    /// Detaches a container, last plugin first. A plugin that fails does not keep the others from cleaning up.
    pub async fn del(
        &self,
        list: &NetConfList,
        at: &Attachment,
        prev_result: Option<&CniResult>,
    ) -> Result<(), RuntimeError> {
        let mut failed = Vec::new();
        for plugin in list.plugins.iter().rev() {
            let prev = prev_result.filter(|_| list.version.has_check()).map(|r| r.to_value(list.version));
            let stdin = plugin.stdin(list, prev, &at.capability_args);
            failed.extend(self.call(list, plugin, "DEL", Some(at), &stdin).await.err());
        }
        several(failed)
    }

    /// Checks that an attachment is as ADD made it.
    pub async fn check(
        &self,
        list: &NetConfList,
        at: &Attachment,
        prev_result: Option<&CniResult>,
    ) -> Result<(), RuntimeError> {
        self.need(list, "CHECK", Version::V0_4_0)?;
        if list.disable_check {
            return Ok(());
        }
        let prev = prev_result.ok_or_else(|| RuntimeError::NoPrevResult { network: list.name.clone() })?;
        for plugin in &list.plugins {
            let stdin = plugin.stdin(list, Some(prev.to_value(list.version)), &at.capability_args);
            self.call(list, plugin, "CHECK", Some(at), &stdin).await?;
        }
        Ok(())
    }

    /// Has every plugin remove what belongs to this network and to none of the valid attachments.
    pub async fn gc(&self, list: &NetConfList, valid: &[ValidAttachment]) -> Result<(), RuntimeError> {
        self.need(list, "GC", Version::V1_1_0)?;
        if list.disable_gc {
            return Ok(());
        }
        let valid: Vec<Value> =
            valid.iter().map(|v| json!({"containerID": v.container_id, "ifname": v.ifname})).collect();
        let mut failed = Vec::new();
        for plugin in &list.plugins {
            let mut stdin = plugin.stdin(list, None, &Map::new());
            stdin["cni.dev/valid-attachments"] = valid.clone().into();
            failed.extend(self.call(list, plugin, "GC", None, &stdin).await.err());
        }
        several(failed)
    }

    /// Asks every plugin whether it could serve ADD.
    pub async fn status(&self, list: &NetConfList) -> Result<(), RuntimeError> {
        self.need(list, "STATUS", Version::V1_1_0)?;
        for plugin in &list.plugins {
            self.call(list, plugin, "STATUS", None, &plugin.stdin(list, None, &Map::new())).await?;
        }
        Ok(())
    }

    /// The versions a plugin says it speaks.
    pub async fn versions(&self, list: &NetConfList, plugin: &NetConf) -> Result<Vec<String>, RuntimeError> {
        let stdin = json!({ "cniVersion": Version::LATEST.as_str() });
        let answer = self.call(list, plugin, "VERSION", None, &stdin).await?;
        let names = answer["supportedVersions"].as_array().into_iter().flatten();
        Ok(names.filter_map(|v| v.as_str().map(str::to_string)).collect())
    }

    fn need(&self, list: &NetConfList, command: &'static str, needs: Version) -> Result<(), RuntimeError> {
        if list.version >= needs {
            return Ok(());
        }
        Err(RuntimeError::Version {
            network: list.name.clone(),
            command,
            needs: needs.as_str(),
            has: list.version.as_str(),
        })
    }
}

fn several(mut failed: Vec<RuntimeError>) -> Result<(), RuntimeError> {
    match failed.len() {
        0 => Ok(()),
        1 => Err(failed.remove(0)),
        _ => Err(RuntimeError::Several(failed)),
    }
}
