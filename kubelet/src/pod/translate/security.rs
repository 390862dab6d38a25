//! Security contexts: what a pod and a container ask for, merged, checked against the image's user, as CRI says it.
//!
//! A container's field takes the place of the pod's as a whole; nothing is merged inside a field.

use super::container::{ContainerConfigError, ContainerInput};
use super::{NodeFacts, TranslateError};
use crate::api::{Container, Pod, PodRef, spec};
use crate::event::ContainerList;
use crate::image::ImageUser;
use crate::userns::Range;
use cri::v1::security_profile::ProfileType;
use cri::v1::{
    Capability, ContainerConfig, IdMapping, Int64Value, LinuxContainerSecurityContext,
    LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig, SeLinuxOption,
    SecurityProfile, SupplementalGroupsPolicy, UserNamespace,
};
use k8s_openapi::api::core::v1::{
    AppArmorProfile, PodSecurityContext, SELinuxOptions, SeccompProfile, SecurityContext,
};

/// Parts of `/proc` and `/sys` that are hidden unless `procMount: Unmasked`.
const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// Parts of `/proc` that cannot be written unless `procMount: Unmasked`.
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Where AppArmor profiles stood before they were a field; static pods may still use it.
pub const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// `PodSandboxConfig.linux.security_context`.
pub fn sandbox_security(pod: &Pod, facts: &NodeFacts) -> Result<LinuxSandboxSecurityContext, TranslateError> {
    let sc = pod_context(pod);
    Ok(LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, facts)?),
        selinux_options: sc.se_linux_options.as_ref().map(selinux),
        run_as_user: sc.run_as_user.map(int64),
        run_as_group: sc.run_as_group.map(int64),
        supplemental_groups: groups(sc),
        supplemental_groups_policy: groups_policy(sc, facts)?.into(),
        privileged: all_contexts(pod).any(|c| c.privileged == Some(true)),
        seccomp: Some(profile(ProfileType::RuntimeDefault, String::new())),
        ..LinuxSandboxSecurityContext::default()
    })
}

/// `ContainerConfig.linux.security_context`; errors when `runAsNonRoot` cannot be kept.
pub fn container_security(
    input: &ContainerInput<'_>,
) -> Result<LinuxContainerSecurityContext, ContainerConfigError> {
    let ContainerInput { pod, container, facts, .. } = *input;
    let (pod_sc, sc) = (pod_context(pod), container.security_context.clone().unwrap_or_default());
    let run_as_user = sc.run_as_user.or(pod_sc.run_as_user);
    verify_non_root(input, run_as_user)?;
    let (user, username) = match run_as_user {
        Some(uid) => (Some(uid), String::new()),
        None => image_user(input.image),
    };
    let unmasked = sc.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| list.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
    let mut masked_paths = Vec::new();
    let mut readonly_paths = Vec::new();
    if !unmasked {
        masked_paths = paths(&MASKED_PATHS);
        masked_paths.extend_from_slice(&facts.thermal_throttle_paths);
        readonly_paths = paths(&READONLY_PATHS);
    }
    let mut out = LinuxContainerSecurityContext {
        capabilities: sc.capabilities.as_ref().map(|c| Capability {
            add_capabilities: c.add.clone().unwrap_or_default(),
            drop_capabilities: c.drop.clone().unwrap_or_default(),
            ..Capability::default()
        }),
        privileged: sc.privileged == Some(true),
        namespace_options: Some(container_namespaces(input)?),
        selinux_options: sc.se_linux_options.as_ref().or(pod_sc.se_linux_options.as_ref()).map(selinux),
        run_as_user: user.map(int64),
        run_as_username: username,
        run_as_group: sc.run_as_group.or(pod_sc.run_as_group).map(int64),
        readonly_rootfs: sc.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(pod_sc),
        supplemental_groups_policy: groups_policy(pod_sc, facts)?.into(),
        no_new_privs: sc.allow_privilege_escalation == Some(false),
        masked_paths,
        readonly_paths,
        seccomp: Some(seccomp(sc.seccomp_profile.as_ref().or(pod_sc.seccomp_profile.as_ref()), facts)?),
        ..LinuxContainerSecurityContext::default()
    };
    if let Some(apparmor) = apparmor(pod, container, &sc)? {
        set_apparmor(&mut out, apparmor);
    }
    Ok(out)
}

fn pod_context(pod: &Pod) -> &PodSecurityContext {
    static EMPTY: std::sync::LazyLock<PodSecurityContext> =
        std::sync::LazyLock::new(PodSecurityContext::default);
    spec(pod).security_context.as_ref().unwrap_or(&EMPTY)
}

/// The security contexts of all containers of all three lists.
fn all_contexts(pod: &Pod) -> impl Iterator<Item = &SecurityContext> {
    let spec = spec(pod);
    let regular = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    regular
        .filter_map(|c| c.security_context.as_ref())
        .chain(spec.ephemeral_containers.iter().flatten().filter_map(|c| c.security_context.as_ref()))
}

/// The pod's namespaces: its own network and IPC, and a process namespace per container, unless it says otherwise.
fn namespaces(pod: &Pod, facts: &NodeFacts) -> Result<NamespaceOption, TranslateError> {
    let spec = spec(pod);
    let own_users = spec.host_users == Some(false);
    if own_users && !facts.runtime.user_namespaces {
        return Err(TranslateError::NoUserNamespaces);
    }
    let host = |flag: Option<bool>| if flag == Some(true) { NamespaceMode::Node } else { NamespaceMode::Pod };
    let pid = match (host(spec.host_pid), spec.share_process_namespace) {
        (NamespaceMode::Node, _) => NamespaceMode::Node,
        (_, Some(true)) => NamespaceMode::Pod,
        _ => NamespaceMode::Container,
    };
    Ok(NamespaceOption {
        network: host(spec.host_network).into(),
        ipc: host(spec.host_ipc).into(),
        pid: pid.into(),
        target_id: String::new(),
        userns_options: Some(UserNamespace {
            mode: if own_users { NamespaceMode::Pod } else { NamespaceMode::Node }.into(),
            ..UserNamespace::default()
        }),
    })
}

/// As the sandbox's; an ephemeral container with a target joins the target's processes.
/// Puts the ids of the node that a pod with a user namespace of its own has into `options`.
fn map_users(options: Option<&mut NamespaceOption>, range: Range) -> Vec<IdMapping> {
    let ids = vec![IdMapping { host_id: range.first, container_id: 0, length: range.length }];
    if let Some(users) = options.and_then(|o| o.userns_options.as_mut()) {
        users.uids.clone_from(&ids);
        users.gids.clone_from(&ids);
    }
    ids
}

/// The pod's ids for its sandbox.
pub fn map_sandbox(config: &mut PodSandboxConfig, range: Range) {
    let context = config.linux.as_mut().and_then(|l| l.security_context.as_mut());
    map_users(context.and_then(|c| c.namespace_options.as_mut()), range);
}

/// The pod's ids for a container and for everything that is mounted into it.
pub fn map_container(config: &mut ContainerConfig, range: Range) {
    let context = config.linux.as_mut().and_then(|l| l.security_context.as_mut());
    let ids = map_users(context.and_then(|c| c.namespace_options.as_mut()), range);
    for mount in &mut config.mounts {
        mount.uid_mappings.clone_from(&ids);
        mount.gid_mappings.clone_from(&ids);
    }
}

fn container_namespaces(input: &ContainerInput<'_>) -> Result<NamespaceOption, ContainerConfigError> {
    let mut options = namespaces(input.pod, input.facts)?;
    if input.list == ContainerList::Ephemeral
        && let Some(target) = input.target_id
    {
        options.pid = NamespaceMode::Target.into();
        target.clone_into(&mut options.target_id);
    }
    Ok(options)
}

/// fsGroup is a supplemental group of every process, so that volumes owned by it can be used.
fn groups(sc: &PodSecurityContext) -> Vec<i64> {
    sc.fs_group.iter().chain(sc.supplemental_groups.iter().flatten()).copied().collect()
}

fn groups_policy(
    sc: &PodSecurityContext,
    facts: &NodeFacts,
) -> Result<SupplementalGroupsPolicy, TranslateError> {
    match sc.supplemental_groups_policy.as_deref() {
        None | Some("" | "Merge") => Ok(SupplementalGroupsPolicy::Merge),
        Some("Strict") if facts.runtime.supplemental_groups_policy => Ok(SupplementalGroupsPolicy::Strict),
        Some("Strict") => Err(TranslateError::StrictGroups),
        Some(other) => {
            Err(TranslateError::Value { field: "supplementalGroupsPolicy", value: other.to_owned() })
        }
    }
}

fn image_user(image: &ImageUser) -> (Option<i64>, String) {
    match (image.uid, image.username.as_deref().unwrap_or_default()) {
        (Some(uid), _) => (Some(uid), String::new()),
        (None, "") => (Some(0), String::new()),
        (None, name) => (None, name.to_owned()),
    }
}

fn verify_non_root(input: &ContainerInput<'_>, run_as_user: Option<i64>) -> Result<(), ContainerConfigError> {
    let ContainerInput { pod, container, .. } = *input;
    let sc = container.security_context.as_ref();
    let wanted = sc.and_then(|s| s.run_as_non_root).or(pod_context(pod).run_as_non_root) == Some(true);
    if !wanted {
        return Ok(());
    }
    let (pod, name) = (PodRef::of(pod), container.name.clone());
    match (run_as_user, image_user(input.image)) {
        (Some(0), _) => Err(ContainerConfigError::NonRootPolicy { pod, container: name }),
        (Some(_), _) => Ok(()),
        (None, (Some(0), _)) => Err(ContainerConfigError::ImageIsRoot { pod, container: name }),
        (None, (Some(_), _)) => Ok(()),
        (None, (None, user)) => Err(ContainerConfigError::ImageUserByName { user, pod, container: name }),
    }
}

fn seccomp(
    profile: Option<&SeccompProfile>,
    facts: &NodeFacts,
) -> Result<SecurityProfile, ContainerConfigError> {
    let Some(wanted) = profile else {
        let kind = if facts.seccomp_default { ProfileType::RuntimeDefault } else { ProfileType::Unconfined };
        return Ok(self::profile(kind, String::new()));
    };
    match wanted.type_.as_str() {
        "RuntimeDefault" => Ok(self::profile(ProfileType::RuntimeDefault, String::new())),
        "Unconfined" => Ok(self::profile(ProfileType::Unconfined, String::new())),
        "Localhost" => {
            let file = wanted.localhost_profile.as_deref().unwrap_or_default();
            if file.is_empty() {
                return Err(ContainerConfigError::NoLocalhostProfile { field: "seccompProfile" });
            }
            let path = facts.root_dir.join("seccomp").join(file);
            Ok(self::profile(ProfileType::Localhost, path.to_string_lossy().into_owned()))
        }
        other => Err(TranslateError::Value { field: "seccompProfile.type", value: other.to_owned() }.into()),
    }
}

/// The container's AppArmor profile: its field, else the pod's, else the old annotation's. Without any the runtime
/// decides.
fn apparmor(
    pod: &Pod,
    container: &Container,
    sc: &SecurityContext,
) -> Result<Option<SecurityProfile>, ContainerConfigError> {
    if let Some(AppArmorProfile { type_, localhost_profile }) =
        sc.app_armor_profile.as_ref().or(pod_context(pod).app_armor_profile.as_ref())
    {
        let name = localhost_profile.clone().unwrap_or_default();
        return match type_.as_str() {
            "RuntimeDefault" => Ok(Some(profile(ProfileType::RuntimeDefault, String::new()))),
            "Unconfined" => Ok(Some(profile(ProfileType::Unconfined, String::new()))),
            "Localhost" if name.is_empty() => {
                Err(ContainerConfigError::NoLocalhostProfile { field: "appArmorProfile" })
            }
            "Localhost" => Ok(Some(profile(ProfileType::Localhost, name))),
            other => {
                Err(TranslateError::Value { field: "appArmorProfile.type", value: other.to_owned() }.into())
            }
        };
    }
    let key = format!("{APPARMOR_ANNOTATION}{}", container.name);
    let annotation = pod.metadata.annotations.as_ref().and_then(|a| a.get(&key));
    match annotation.map(String::as_str) {
        None | Some("") => Ok(None),
        Some("runtime/default") => Ok(Some(profile(ProfileType::RuntimeDefault, String::new()))),
        Some("unconfined") => Ok(Some(profile(ProfileType::Unconfined, String::new()))),
        Some(other) => match other.strip_prefix("localhost/") {
            Some(name) => Ok(Some(profile(ProfileType::Localhost, name.to_owned()))),
            None => {
                Err(TranslateError::Value { field: "AppArmor annotation", value: other.to_owned() }.into())
            }
        },
    }
}

/// Sets the profile and the older field of the same meaning, which runtimes before 1.7 read.
fn set_apparmor(out: &mut LinuxContainerSecurityContext, wanted: SecurityProfile) {
    let old = match wanted.profile_type() {
        ProfileType::RuntimeDefault => "runtime/default".to_owned(),
        ProfileType::Unconfined => "unconfined".to_owned(),
        ProfileType::Localhost => format!("localhost/{}", wanted.localhost_ref),
    };
    #[expect(deprecated, reason = "runtimes of CRI before the SecurityProfile message read this field only")]
    {
        out.apparmor_profile = old;
    }
    out.apparmor = Some(wanted);
}

fn profile(kind: ProfileType, localhost_ref: String) -> SecurityProfile {
    SecurityProfile { profile_type: kind.into(), localhost_ref }
}

fn selinux(options: &SELinuxOptions) -> SeLinuxOption {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    SeLinuxOption {
        user: text(&options.user),
        role: text(&options.role),
        r#type: text(&options.type_),
        level: text(&options.level),
    }
}

fn int64(value: i64) -> Int64Value {
    Int64Value { value }
}

#[cfg(test)]
mod tests {
    use super::super::container::tests::with_input;
    use super::super::testing::{facts, pod};
    use super::*;

    fn context(
        spec: &str,
        change: impl FnOnce(&mut NodeFacts),
        image: &ImageUser,
    ) -> Result<LinuxContainerSecurityContext, String> {
        let p = pod(&format!(
            "{{metadata: {{name: p, namespace: n, uid: u, annotations: {{container.apparmor.security.beta.kubernetes.io/old: localhost/x}}}}, \
             spec: {spec}}}"
        ));
        let mut facts = facts();
        change(&mut facts);
        with_input(&p, &facts, |input| {
            container_security(&ContainerInput { image, ..input }).map_err(|e| e.to_string())
        })
    }

    #[test]
    fn non_root_is_kept_or_refused_in_upstreams_words() {
        let image = |uid, name: &str| ImageUser { uid, username: Some(name.to_owned()) };
        let cases = [
            (
                "{runAsUser: 0}",
                image(Some(5), ""),
                Err("container's runAsUser breaks non-root policy (pod: \"p_n(u)\", container: c)"),
            ),
            (
                "{}",
                image(None, ""),
                Err("container has runAsNonRoot and image will run as root (pod: \"p_n(u)\", container: c)"),
            ),
            (
                "{}",
                image(Some(0), ""),
                Err("container has runAsNonRoot and image will run as root (pod: \"p_n(u)\", container: c)"),
            ),
            (
                "{}",
                image(None, "www"),
                Err(
                    "container has runAsNonRoot and image has non-numeric user (www), cannot verify user is non-root (pod: \"p_n(u)\", container: c)",
                ),
            ),
            ("{}", image(Some(7), ""), Ok(Some(7))),
            ("{runAsUser: 8}", image(None, "www"), Ok(Some(8))),
            ("{runAsNonRoot: false}", image(None, "www"), Ok(None)),
        ];
        for (sc, image, want) in cases {
            let spec = format!(
                "{{securityContext: {{runAsNonRoot: true}}, containers: [{{name: c, securityContext: {sc}}}]}}"
            );
            let got = context(&spec, |_| {}, &image).map(|c| c.run_as_user.map(|u| u.value));
            assert_eq!(got, want.map_err(str::to_owned), "{sc} {image:?}");
        }
        let named = context("{containers: [{name: c}]}", |_| {}, &image(None, "www")).unwrap();
        assert_eq!((named.run_as_user, named.run_as_username.as_str()), (None, "www"));
    }

    #[test]
    fn seccomp_follows_container_pod_and_node_default() {
        let kind = |spec: &str, default| {
            let c = context(spec, |f| f.seccomp_default = default, &ImageUser::default()).unwrap();
            let s = c.seccomp.unwrap();
            (s.profile_type(), s.localhost_ref)
        };
        use ProfileType::{Localhost, RuntimeDefault, Unconfined};
        assert_eq!(kind("{containers: [{name: c}]}", false).0, Unconfined);
        assert_eq!(kind("{containers: [{name: c}]}", true).0, RuntimeDefault);
        let pod_level = "securityContext: {seccompProfile: {type: RuntimeDefault}}";
        assert_eq!(kind(&format!("{{{pod_level}, containers: [{{name: c}}]}}"), false).0, RuntimeDefault);
        let own =
            "[{name: c, securityContext: {seccompProfile: {type: Localhost, localhostProfile: p/a.json}}}]";
        assert_eq!(
            kind(&format!("{{{pod_level}, containers: {own}}}"), false),
            (Localhost, "/var/lib/kubelet/seccomp/p/a.json".to_owned())
        );
        let missing = "{containers: [{name: c, securityContext: {seccompProfile: {type: Localhost}}}]}";
        assert!(
            context(missing, |_| {}, &ImageUser::default())
                .unwrap_err()
                .contains("localhostProfile must be set")
        );
    }

    #[test]
    #[expect(deprecated, reason = "the old field is what is tested")]
    fn apparmor_comes_from_the_field_or_the_old_annotation() {
        let field = "{containers: [{name: c, securityContext: {appArmorProfile: {type: Localhost, localhostProfile: k8s-x}}}]}";
        for (spec, old) in [
            (field, "localhost/k8s-x"),
            ("{containers: [{name: old}]}", "localhost/x"),
            (
                "{securityContext: {appArmorProfile: {type: RuntimeDefault}}, containers: [{name: old}]}",
                "runtime/default",
            ),
            ("{containers: [{name: c}]}", ""),
        ] {
            let c = context(spec, |_| {}, &ImageUser::default()).unwrap();
            assert_eq!((c.apparmor_profile.as_str(), c.apparmor.is_some()), (old, !old.is_empty()), "{spec}");
        }
    }

    #[test]
    fn masked_paths_include_the_nodes_own_and_can_be_lifted() {
        let throttle = "/sys/devices/system/cpu/cpu0/thermal_throttle".to_owned();
        let add = |f: &mut NodeFacts| f.thermal_throttle_paths.push(throttle.clone());
        let c = context("{containers: [{name: c}]}", add, &ImageUser::default()).unwrap();
        assert_eq!((c.masked_paths.len(), c.masked_paths.last()), (13, Some(&throttle)));
        let spec = "{containers: [{name: c, securityContext: {procMount: Unmasked}}]}";
        let c = context(spec, add, &ImageUser::default()).unwrap();
        assert_eq!((c.masked_paths.len(), c.readonly_paths.len()), (0, 0));
    }

    #[test]
    fn what_the_runtime_cannot_do_is_refused() {
        let p = pod("{spec: {hostUsers: false, containers: []}}");
        let text = |facts: &NodeFacts| sandbox_security(&p, facts).unwrap_err().to_string();
        assert_eq!(
            text(&facts()),
            "can't set `spec.hostUsers: false`, runtime does not support user namespaces"
        );
        let mut able = facts();
        able.runtime.user_namespaces = true;
        let options = sandbox_security(&p, &able).unwrap().namespace_options.unwrap();
        assert_eq!(options.userns_options.unwrap().mode(), NamespaceMode::Pod);
        let strict = "{securityContext: {supplementalGroupsPolicy: Strict}, containers: [{name: c}]}";
        let unable = |f: &mut NodeFacts| f.runtime.supplemental_groups_policy = false;
        assert!(
            context(strict, unable, &ImageUser::default()).unwrap_err().contains("Strict is not supported")
        );
    }
}
