//! The node of `hack/up`: where everything of it lies, and the files that configure it.
//!
//! Two folders, a log folder, one cgroup and one bridge hold all of it; `down` removes exactly those.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::daemon::Daemon;
use super::pki::Pki;
use crate::runtime::{Folders, Traces};

/// The agent's HTTPS port (upstream's).
pub(super) const PORT: u16 = 10250;
/// The agent's health port (upstream's).
pub(super) const HEALTHZ_PORT: u16 = 10248;
/// `cgroupRoot`: apart from any other agent's pods.
const CGROUP: &str = "/stevedore";
/// The bridge of the pod network.
const BRIDGE: &str = "stvd0";

/// Paths of one node.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// What survives a reboot.
    pub lib: PathBuf,
    /// What does not.
    pub run: PathBuf,
    /// What the daemons and the pods print.
    pub logs: PathBuf,
}

impl Node {
    /// The one node that a machine has.
    pub(super) fn new() -> Self {
        Self {
            lib: "/var/lib/stevedore".into(),
            run: "/run/stevedore".into(),
            logs: "/var/log/stevedore".into(),
        }
    }

    pub(super) fn bin(&self) -> PathBuf {
        self.lib.join("bin")
    }

    pub(super) fn cni_bin(&self) -> PathBuf {
        self.lib.join("cni/bin")
    }

    pub(super) fn cni_conf(&self) -> PathBuf {
        self.lib.join("cni/net.d")
    }

    pub(super) fn conflist_file(&self) -> PathBuf {
        self.cni_conf().join("10-stevedore.conflist")
    }

    pub(super) fn manifests(&self) -> PathBuf {
        self.lib.join("manifests")
    }

    pub(super) fn kubelet_root(&self) -> PathBuf {
        self.lib.join("kubelet")
    }

    pub(super) fn pki(&self) -> PathBuf {
        self.lib.join("pki")
    }

    pub(super) fn pod_logs(&self) -> PathBuf {
        self.logs.join("pods")
    }

    pub(super) fn containerd(&self) -> Folders {
        Folders {
            base: self.lib.join("containerd"),
            root: self.lib.join("containerd/root"),
            state: self.run.join("containerd"),
        }
    }

    pub(super) fn containerd_daemon(&self) -> Daemon {
        let folders = self.containerd();
        Daemon {
            program: "containerd",
            config: folders.base.join("config.toml"),
            run: self.run.clone(),
            log: folders.log(),
        }
    }

    pub(super) fn kubelet_daemon(&self) -> Daemon {
        Daemon {
            program: "kubelet",
            config: self.lib.join("kubelet.yaml"),
            run: self.run.clone(),
            log: self.logs.join("kubelet.log"),
        }
    }

    /// Everything that must be gone after `down`.
    pub(super) fn traces(&self) -> Traces {
        Traces {
            folders: vec![self.run.clone(), self.lib.clone(), self.logs.clone()],
            cgroups: vec![CGROUP.into()],
            links: vec![BRIDGE.into()],
            network: Some((self.cni_bin().join("stevedore-cni"), self.conflist_file())),
        }
    }

    /// The KubeletConfiguration. JSON is YAML; quoting is then never in doubt.
    pub(super) fn kubelet_config(&self, pki: &Pki) -> String {
        let config = serde_json::json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "staticPodPath": self.manifests(),
            "containerRuntimeEndpoint": format!("unix://{}", self.containerd().socket().display()),
            "podLogsDir": self.pod_logs(),
            "failCgroupV1": false,
            // Its images were built here: what went could not be pulled again, however full the disk is.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {
                "memory.available": "100Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
                "imagefs.available": "0%", "imagefs.inodesFree": "0%",
            },
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": CGROUP,
            // Only this machine's root gets in, with the certificate in the pki folder.
            "address": "127.0.0.1",
            "port": PORT,
            "healthzPort": HEALTHZ_PORT,
            "tlsCertFile": pki.server_cert(),
            "tlsPrivateKeyFile": pki.server_key(),
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": false },
                "x509": { "clientCAFile": pki.ca() },
            },
            "authorization": { "mode": "AlwaysAllow" },
        });
        format!("{config:#}\n")
    }

    /// The agent's arguments.
    pub(super) fn kubelet_arguments(&self, name: &str) -> Vec<String> {
        vec![
            format!("--config={}", self.kubelet_daemon().config.display()),
            format!("--root-dir={}", self.kubelet_root().display()),
            format!("--hostname-override={name}"),
        ]
    }

    /// The pod network: bridge, host-local, portmap, with leases in the node's own folder.
    pub(super) fn conflist(&self) -> String {
        cni::default_conflist(&cni::ConflistParams {
            bridge: BRIDGE.into(),
            data_dir: Some(self.lib.join("cni/leases")),
            ..Default::default()
        })
    }
}

/// The name of the node: the host's, in the letters that Kubernetes allows.
pub(super) fn node_name() -> Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/hostname").context("read the host's name")?;
    Ok(as_node_name(text.trim()))
}

fn as_node_name(host: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' };
    let name: String = host.chars().map(allowed).collect();
    let name = name.trim_matches(|c| c == '-' || c == '.');
    if name.is_empty() { "node".to_owned() } else { name.to_owned() }
}

/// The links in `/var/log/containers` that point into this node's logs.
pub(super) fn log_links(logs: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir("/var/log/containers").into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|link| fs::read_link(link).is_ok_and(|target| target.starts_with(logs)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_becomes_a_node_name() {
        assert_eq!(as_node_name("Build_Box.local"), "build-box.local");
        assert_eq!(as_node_name("(none)"), "none");
        assert_eq!(as_node_name("___"), "node");
    }

    #[test]
    fn the_configuration_lets_nobody_in_without_a_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::ensure(&dir.path().join("pki")).unwrap();
        let text = Node::new().kubelet_config(&pki);
        let config: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(config["authentication"]["anonymous"]["enabled"], false);
        assert_eq!(config["address"], "127.0.0.1");
        assert!(config.get("readOnlyPort").is_none());
    }
}
