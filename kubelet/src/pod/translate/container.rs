//! `ContainerConfig` from a container of a pod.

use super::env::{self, EnvSources, SourceError};
use super::envfile::ParseError;
use super::fields::FieldError;
use super::sandbox::identity_labels;
use super::security;
use super::{NodeFacts, TranslateError, annotations, expand, limits};
use crate::api::{Container, Pod, PodRef};
use crate::event::ContainerList;
use crate::image::ImageUser;
use cri::v1::{ContainerConfig, ContainerMetadata, ImageSpec, KeyValue, LinuxContainerConfig, Mount, Signal};
use std::net::IpAddr;

/// Where the managed hosts file is mounted.
const ETC_HOSTS: &str = "/etc/hosts";

/// A container that cannot be configured: the waiting reason `CreateContainerConfigError`, with the text as message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContainerConfigError {
    /// A ConfigMap, Secret or file could not be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It is there, the key is not.
    #[error("couldn't find key {key} in {object}")]
    MissingKey {
        /// The key.
        key: String,
        /// `ConfigMap ns/name`, `Secret ns/name`, `file volume/path`.
        object: String,
    },
    /// An env file that is no env file.
    #[error(transparent)]
    EnvFile(#[from] ParseError),
    /// `fieldRef` or `resourceFieldRef`.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// `valueFrom: {}`
    #[error("env valueFrom names no source")]
    EmptySource,
    /// An expanded command, argument or working directory is no text.
    #[error("{field} is not UTF-8 after expansion")]
    NotText {
        /// `command` or `args`.
        field: &'static str,
    },
    /// `runAsNonRoot` with `runAsUser: 0`.
    #[error("container's runAsUser breaks non-root policy (pod: \"{pod}\", container: {container})")]
    NonRootPolicy {
        /// The pod.
        pod: PodRef,
        /// The container's name.
        container: String,
    },
    /// `runAsNonRoot` with an image of root's.
    #[error("container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})")]
    ImageIsRoot {
        /// The pod.
        pod: PodRef,
        /// The container's name.
        container: String,
    },
    /// `runAsNonRoot` with an image whose user is a name.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root \
         (pod: \"{pod}\", container: {container})"
    )]
    ImageUserByName {
        /// The image's user.
        user: String,
        /// The pod.
        pod: PodRef,
        /// The container's name.
        container: String,
    },
    /// A profile of type Localhost without a name.
    #[error("localhostProfile must be set if {field} type is Localhost.")]
    NoLocalhostProfile {
        /// `seccompProfile` or `appArmorProfile`.
        field: &'static str,
    },
    /// What is wrong with the pod itself.
    #[error(transparent)]
    Pod(#[from] TranslateError),
}

/// All that a container's configuration is made of.
#[derive(Clone, Copy)]
pub struct ContainerInput<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The list of the spec the container stands in.
    pub list: ContainerList,
    /// The container; ephemeral ones through [`as_container`](crate::api::as_container).
    pub container: &'a Container,
    /// How often it was restarted: CRI's attempt, and the log file's name.
    pub restart_count: u32,
    /// The image's id as the runtime resolved it.
    pub image_ref: &'a str,
    /// The image's user.
    pub image: &'a ImageUser,
    /// The sandbox's addresses; the node's on the host network.
    pub pod_ips: &'a [IpAddr],
    /// Mounts of the container's volumes, as the volume room prepared them.
    pub mounts: &'a [Mount],
    /// Host file for the termination message; `None`: no such mount.
    pub termination_log_host_path: Option<&'a str>,
    /// Host file of the managed `/etc/hosts`; `None`: the container keeps its image's.
    pub etc_hosts_host_path: Option<&'a str>,
    /// Variables of the cluster's services; empty without an API server.
    pub service_env: &'a [(String, String)],
    /// ConfigMaps, Secrets and env files.
    pub env_sources: &'a dyn EnvSources,
    /// For an ephemeral container with `targetContainerName`: that container's runtime id.
    pub target_id: Option<&'a str>,
    /// The node.
    pub facts: &'a NodeFacts,
}

impl std::fmt::Debug for ContainerInput<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContainerInput")
            .field("pod", &PodRef::of(self.pod))
            .field("container", &self.container.name)
            .field("restart_count", &self.restart_count)
            .finish_non_exhaustive()
    }
}

/// The configuration of a container.
pub fn container_config(input: &ContainerInput<'_>) -> Result<ContainerConfig, ContainerConfigError> {
    let ContainerInput { pod, container, facts, restart_count, .. } = *input;
    refuse_unsupported(container)?;
    let env = env::environment(input)?;
    let expanded = |field: &'static str, list: &Option<Vec<String>>| {
        let one = |text: &String| {
            let bytes = expand::expand(text.as_bytes(), |name| env::lookup(&env, name));
            String::from_utf8(bytes).map_err(|_| ContainerConfigError::NotText { field })
        };
        list.iter().flatten().map(one).collect::<Result<Vec<_>, _>>()
    };
    let (command, args) = (expanded("command", &container.command)?, expanded("args", &container.args)?);
    let mut labels = identity_labels(pod);
    labels.insert("io.kubernetes.container.name".to_owned(), container.name.clone());
    let security_context = security::container_security(input)?;
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone(), attempt: restart_count }),
        image: Some(ImageSpec {
            image: input.image_ref.to_owned(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..ImageSpec::default()
        }),
        command,
        args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: env.into_iter().map(|v| KeyValue { key: v.name, value: v.value }).collect(),
        mounts: mounts(input),
        labels,
        annotations: annotations::annotations(pod, container, restart_count),
        log_path: format!("{}/{restart_count}.log", container.name),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        linux: Some(LinuxContainerConfig {
            resources: Some(limits::container_resources(pod, container, facts)),
            security_context: Some(security_context),
        }),
        stop_signal: stop_signal(container, facts)?.into(),
        ..ContainerConfig::default()
    })
}

/// Volumes, then the hosts file unless a volume is mounted there, then the termination message. Labels are given only where
/// there is SELinux.
fn mounts(input: &ContainerInput<'_>) -> Vec<Mount> {
    let mut out = input.mounts.to_vec();
    out.iter_mut().for_each(|m| m.selinux_relabel &= input.facts.selinux);
    let file = |container_path: &str, host_path: &str| Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.to_owned(),
        selinux_relabel: input.facts.selinux,
        ..Mount::default()
    };
    let taken = out.iter().any(|m| m.container_path == ETC_HOSTS);
    if let Some(host_path) = input.etc_hosts_host_path.filter(|_| !taken) {
        out.push(file(ETC_HOSTS, host_path));
    }
    let message_path = input.container.termination_message_path.as_deref().filter(|p| !p.is_empty());
    if let (Some(path), Some(host_path)) = (message_path, input.termination_log_host_path) {
        out.push(file(path, host_path));
    }
    out
}

/// `lifecycle.stopSignal` where the gate is on; off, it is as if it were not set, as for the stock kubelet.
fn stop_signal(container: &Container, facts: &NodeFacts) -> Result<Signal, TranslateError> {
    let wanted = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref());
    match wanted.filter(|_| facts.container_stop_signals) {
        None | Some("") => Ok(Signal::RuntimeDefault),
        // The API writes real-time signals as SIGRTMIN+1, CRI as SIGRTMINPLUS1.
        Some(name) => Signal::from_str_name(&name.replace('+', "PLUS").replace('-', "MINUS"))
            .ok_or_else(|| TranslateError::Value { field: "lifecycle.stopSignal", value: name.to_owned() }),
    }
}

/// What is not there is refused, never dropped.
fn refuse_unsupported(container: &Container) -> Result<(), TranslateError> {
    let claims = container.resources.as_ref().and_then(|r| r.claims.as_ref());
    if claims.is_some_and(|c| !c.is_empty()) {
        return Err(TranslateError::Unsupported { field: "resources.claims" });
    }
    if container.volume_devices.as_ref().is_some_and(|d| !d.is_empty()) {
        return Err(TranslateError::Unsupported { field: "volumeDevices" });
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::env::NoSources;
    use super::super::testing::{facts, pod};
    use super::*;
    use crate::api::spec;

    /// Calls `f` with a plain input for the first container of `pod`.
    pub fn with_input<R>(pod: &Pod, facts: &NodeFacts, f: impl FnOnce(ContainerInput<'_>) -> R) -> R {
        f(ContainerInput {
            pod,
            list: ContainerList::Regular,
            container: &spec(pod).containers[0],
            restart_count: 0,
            image_ref: "sha256:1",
            image: &ImageUser::default(),
            pod_ips: &[],
            mounts: &[],
            termination_log_host_path: None,
            etc_hosts_host_path: None,
            service_env: &[],
            env_sources: &NoSources,
            target_id: None,
            facts,
        })
    }

    fn config(container: &str, change: impl FnOnce(&mut NodeFacts)) -> Result<ContainerConfig, String> {
        let p = pod(&format!("{{metadata: {{name: p}}, spec: {{containers: [{{name: c, {container}}}]}}}}"));
        let mut facts = facts();
        change(&mut facts);
        let volumes = [Mount { container_path: "/v".into(), ..Mount::default() }];
        with_input(&p, &facts, |input| {
            container_config(&ContainerInput {
                mounts: &volumes,
                restart_count: 3,
                termination_log_host_path: Some("/tl"),
                etc_hosts_host_path: Some("/eh"),
                ..input
            })
            .map_err(|e| e.to_string())
        })
    }

    #[test]
    fn commands_see_the_final_environment() {
        let c = config(
            "command: [$(A), $$(A), $(B)], args: [x-$(A)], env: [{name: A, value: one}, {name: A, value: two}]",
            |_| {},
        );
        let c = c.unwrap();
        assert_eq!(
            (c.command, c.args),
            (vec!["two".into(), "$(A)".into(), "$(B)".into()], vec!["x-two".into()])
        );
        assert_eq!((c.log_path.as_str(), c.metadata.unwrap().attempt), ("c/3.log", 3));
    }

    #[test]
    fn standard_input_and_a_terminal_are_there_when_asked_for() {
        let asked = |container: &str| {
            let c = config(container, |_| {}).unwrap();
            (c.stdin, c.stdin_once, c.tty)
        };
        assert_eq!(asked(""), (false, false, false));
        assert_eq!(asked("stdin: true"), (true, false, false));
        assert_eq!(asked("stdin: true, stdinOnce: true, tty: true"), (true, true, true));
    }

    #[test]
    fn the_agents_own_files_follow_the_volumes() {
        let paths = |container: &str| {
            let c = config(container, |_| {}).unwrap();
            c.mounts.into_iter().map(|m| format!("{}={}", m.container_path, m.host_path)).collect::<Vec<_>>()
        };
        assert_eq!(paths("terminationMessagePath: /tm"), ["/v=", "/etc/hosts=/eh", "/tm=/tl"]);
        assert_eq!(paths(""), ["/v=", "/etc/hosts=/eh"]);
    }

    #[test]
    fn mounts_are_labelled_where_there_is_selinux() {
        let p = pod("{spec: {containers: [{name: c, terminationMessagePath: /tm}]}}");
        let mount = |path: &str, selinux_relabel| Mount {
            container_path: path.into(),
            selinux_relabel,
            ..Mount::default()
        };
        let volumes = [mount("/managed", true), mount("/host", false)];
        let labelled = |selinux| {
            let facts = NodeFacts { selinux, ..facts() };
            let config = with_input(&p, &facts, |input| {
                container_config(&ContainerInput {
                    mounts: &volumes,
                    termination_log_host_path: Some("/tl"),
                    etc_hosts_host_path: Some("/eh"),
                    ..input
                })
            });
            let labelled = config.unwrap().mounts.into_iter().filter(|m| m.selinux_relabel);
            labelled.map(|m| m.container_path).collect::<Vec<_>>()
        };
        assert_eq!(labelled(true), ["/managed", "/etc/hosts", "/tm"]);
        assert_eq!(labelled(false), [""; 0]);
    }

    #[test]
    fn a_volume_on_etc_hosts_keeps_the_managed_file_away() {
        let p = pod("{spec: {containers: [{name: c}]}}");
        let volume =
            [Mount { container_path: "/etc/hosts".into(), host_path: "/mine".into(), ..Mount::default() }];
        let facts = facts();
        let c = with_input(&p, &facts, |input| {
            container_config(&ContainerInput { mounts: &volume, etc_hosts_host_path: Some("/eh"), ..input })
        });
        assert_eq!(c.unwrap().mounts, volume);
    }

    #[test]
    fn stop_signals_reach_the_runtime_behind_their_gate() {
        let signal = |name: &str, gate| {
            let container = format!("lifecycle: {{stopSignal: {name:?}}}");
            config(&container, |f| f.container_stop_signals = gate).map(|c| c.stop_signal())
        };
        assert_eq!(signal("SIGUSR1", false), Ok(Signal::RuntimeDefault));
        assert_eq!(signal("SIGUSR1", true), Ok(Signal::Sigusr1));
        assert_eq!(signal("SIGRTMIN+3", true), Ok(Signal::Sigrtminplus3));
        assert_eq!(signal("SIGRTMAX-3", true), Ok(Signal::Sigrtmaxminus3));
        assert!(signal("SIGNONE", true).unwrap_err().contains("SIGNONE"));
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        for (container, field) in [
            ("resources: {claims: [{name: x}]}", "resources.claims"),
            ("volumeDevices: [{name: d, devicePath: /dev/x}]", "volumeDevices"),
        ] {
            let error = config(container, |_| {}).unwrap_err();
            assert_eq!(error, format!("{field} is not supported by this agent yet"));
        }
    }
}
