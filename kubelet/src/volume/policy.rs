//! Decisions without I/O: which plugin serves a volume, how large a memory volume is, what a `volumeMount` becomes.

use super::error::{MountError, VolumeError};
use super::payload::{self, Plugin};
use crate::api::{Container, Pod, PodRef, Volume, spec};
use crate::quantity;
use cri::v1::{ImageSpec, Mount, MountPropagation};
use std::path::{Component, Path, PathBuf};

/// A volume this room can set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `emptyDir` on the disk of the root directory.
    EmptyDir,
    /// `emptyDir` with medium `Memory`: a tmpfs of that many bytes; `None` for the kernel's default.
    Memory {
        /// Bytes.
        size: Option<i64>,
    },
    /// `hostPath`.
    HostPath {
        /// The path on the node.
        path: PathBuf,
        /// `type`, empty for no check.
        type_: String,
    },
    /// `configMap`, `secret`, `downwardAPI`, `projected`: files made of objects and of the pod's own fields.
    Files {
        /// The plugin.
        plugin: Plugin,
        /// How large it may be where it is in memory, bytes.
        size: Option<i64>,
    },
    /// `image`: nothing on the node; the runtime mounts it into each container.
    Image,
}

/// Where a mount's contents come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// A path on the node.
    Path {
        /// Which.
        path: PathBuf,
        /// The volume is nobody's to write to.
        read_only: bool,
    },
    /// An image that is here.
    Image(ImageSpec),
}

/// What decides the size of a memory volume besides the volume itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryBounds {
    /// The memory limit of the pod's cgroup, bytes.
    pub pod: Option<i64>,
    /// The node's allocatable memory, bytes.
    pub node: Option<i64>,
}

/// The plugin of `volume`, or upstream's name of the one that is not there yet.
pub fn kind(pod: &PodRef, volume: &Volume, bounds: MemoryBounds) -> Result<Kind, VolumeError> {
    let name = &volume.name;
    let refuse = |what: &str| {
        Err(VolumeError::setup(
            name,
            format!("pod {}/{}: {what} is not supported yet", pod.namespace, pod.name),
        ))
    };
    if !is_file_name(name) {
        return Err(VolumeError::setup(name, "the volume's name cannot name a directory"));
    }
    if let Some(e) = &volume.empty_dir {
        return match e.medium.as_deref().unwrap_or_default() {
            "" => Ok(Kind::EmptyDir),
            "Memory" => {
                let limit = match &e.size_limit {
                    Some(q) => Some(quantity::parse(&q.0).map_err(|err| {
                        VolumeError::setup(name, format!("emptyDir.sizeLimit {:?}: {err}", q.0))
                    })?),
                    None => None,
                };
                Ok(Kind::Memory { size: tmpfs_size(limit.map(quantity::Nano::value), bounds) })
            }
            medium => refuse(&format!("volume plugin kubernetes.io/empty-dir with medium {medium:?}")),
        };
    }
    if let Some(h) = &volume.host_path {
        let path = PathBuf::from(&h.path);
        if path.components().any(|c| c == Component::ParentDir) {
            return Err(VolumeError::setup(
                name,
                format!("hostPath.path {:?} must not contain '..'", h.path),
            ));
        }
        return Ok(Kind::HostPath { path, type_: h.type_.clone().unwrap_or_default() });
    }
    if volume.image.is_some() {
        return Ok(Kind::Image);
    }
    if let Some(field) = payload::unsupported(volume) {
        return refuse(&field);
    }
    if let Some(plugin) = Plugin::of(volume) {
        return Ok(Kind::Files { plugin, size: tmpfs_size(None, bounds) });
    }
    refuse(&format!("volume plugin {}", plugin_name(volume)))
}

/// The smallest of what the volume says, what its pod may use and what the node has. A limit of nothing says nothing.
fn tmpfs_size(limit: Option<i64>, bounds: MemoryBounds) -> Option<i64> {
    [limit, bounds.pod, bounds.node].into_iter().flatten().filter(|bytes| *bytes > 0).min()
}

/// Upstream's plugin names, for errors.
fn plugin_name(v: &Volume) -> &'static str {
    let known = [
        (v.persistent_volume_claim.is_some(), "kubernetes.io/persistent-volume-claim"),
        (v.ephemeral.is_some(), "kubernetes.io/ephemeral"),
        (v.csi.is_some(), "kubernetes.io/csi"),
        (v.nfs.is_some(), "kubernetes.io/nfs"),
        (v.iscsi.is_some(), "kubernetes.io/iscsi"),
        (v.fc.is_some(), "kubernetes.io/fc"),
        (v.git_repo.is_some(), "kubernetes.io/git-repo"),
        (v.flex_volume.is_some(), "flexvolume"),
    ];
    known.into_iter().find(|(is, _)| *is).map_or("of no known kind", |(_, name)| name)
}

/// Whether `name` is one path component and not a special one.
pub fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= 255 && !name.contains(['/', '\0'])
}

/// A mount of a container, its `subPath` still to be resolved.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Final but for `host_path` where there is a `sub_path`.
    pub mount: Mount,
    /// The volume's name.
    pub volume: String,
    /// Where in the volume, relative.
    pub sub_path: Option<String>,
    /// Position among the container's `volumeMounts`.
    pub index: usize,
}

/// The `volumeMounts` of `container` in order. All but host paths may be given a label of SELinux. `place` answers where a
/// volume is; `expand` replaces `$(VAR)` in `subPathExpr` and answers the message of a failure; `rro` is whether the pod's
/// runtime handler has recursive read-only mounts.
pub fn plan(
    pod: &Pod,
    container: &Container,
    place: &dyn Fn(&str) -> Option<Place>,
    rro: bool,
    expand: &dyn Fn(&str) -> Result<String, String>,
) -> Result<Vec<Planned>, MountError> {
    if container.volume_devices.as_ref().is_some_and(|d| !d.is_empty()) {
        return Err(MountError::new(format!(
            "container {:?}: volumeDevices: block volumes are not supported yet",
            container.name
        )));
    }
    let mut planned = Vec::new();
    for (index, m) in container.volume_mounts.iter().flatten().enumerate() {
        let Some(place) = place(&m.name) else {
            return Err(MountError::new(format!(
                "cannot find volume {:?} to mount into container {:?}",
                m.name, container.name
            )));
        };
        let sub_path =
            match (m.sub_path.as_deref().unwrap_or_default(), m.sub_path_expr.as_deref().unwrap_or_default())
            {
                ("", "") => None,
                ("", expr) => Some(expand(expr).map_err(MountError::new)?),
                (path, _) => Some(path.to_owned()),
            };
        if let Some(path) = &sub_path {
            check_sub_path(path)?;
        }
        let readonly = m.read_only.unwrap_or(false);
        let propagation = propagation(pod, container, m.mount_propagation.as_deref())?;
        let recursive_read_only =
            recursive(&m.name, m.recursive_read_only.as_deref(), readonly, propagation, rro)?;
        let slash = if m.mount_path.starts_with('/') { "" } else { "/" };
        let container_path = format!("{slash}{}", m.mount_path);
        let sub_path = sub_path.filter(|p| !p.is_empty());
        let (mount, sub_path) = match place {
            // An image is never written to, and what of it is shown is the runtime's to find.
            Place::Image(image) => {
                let image_sub_path = sub_path.unwrap_or_default();
                let of_image = Mount {
                    container_path,
                    image: Some(image),
                    image_sub_path,
                    readonly: true,
                    selinux_relabel: true,
                    ..Mount::default()
                };
                (of_image, None)
            }
            Place::Path { path, read_only } => {
                let host_path = path.to_string_lossy().into_owned();
                let propagation = propagation.into();
                let of_host = Mount {
                    container_path,
                    host_path,
                    readonly: readonly || read_only,
                    selinux_relabel: !is_host_path(pod, &m.name),
                    propagation,
                    recursive_read_only,
                    ..Mount::default()
                };
                (of_host, sub_path)
            }
        };
        planned.push(Planned { mount, volume: m.name.clone(), sub_path, index });
    }
    Ok(planned)
}

/// What is the node's own is not labelled anew for a pod.
fn is_host_path(pod: &Pod, volume: &str) -> bool {
    spec(pod).volumes.iter().flatten().any(|v| v.name == volume && v.host_path.is_some())
}

/// Upstream's two rules on the text of a sub path.
fn check_sub_path(path: &str) -> Result<(), MountError> {
    if path.starts_with('/') {
        return Err(MountError::new(format!("error SubPath `{path}` must not be an absolute path")));
    }
    if Path::new(path).components().any(|c| c == Component::ParentDir) {
        return Err(MountError::new(format!("unable to provision SubPath `{path}`: must not contain '..'")));
    }
    Ok(())
}

fn propagation(pod: &Pod, container: &Container, mode: Option<&str>) -> Result<MountPropagation, MountError> {
    match mode.unwrap_or("None") {
        "" | "None" => Ok(MountPropagation::PropagationPrivate),
        "HostToContainer" => Ok(MountPropagation::PropagationHostToContainer),
        "Bidirectional" => {
            let privileged = container.security_context.as_ref().and_then(|s| s.privileged).unwrap_or(false);
            if privileged && spec(pod).host_users != Some(false) {
                Ok(MountPropagation::PropagationBidirectional)
            } else {
                Err(MountError::new(
                    "Bidirectional mount propagation is available only to privileged containers",
                ))
            }
        }
        other => Err(MountError::new(format!(
            "container {:?}: mountPropagation {other:?} is none of None, HostToContainer, Bidirectional",
            container.name
        ))),
    }
}

/// KEP-3857: `Enabled` insists, `IfPossible` does not; both only on a read-only mount without propagation.
fn recursive(
    volume: &str,
    mode: Option<&str>,
    readonly: bool,
    propagation: MountPropagation,
    rro: bool,
) -> Result<bool, MountError> {
    let insists = match mode.unwrap_or("Disabled") {
        "Disabled" => return Ok(false),
        "IfPossible" => false,
        "Enabled" => true,
        other => {
            return Err(MountError::new(format!(
                "volume {volume:?}: recursiveReadOnly {other:?} is none of Disabled, IfPossible, Enabled"
            )));
        }
    };
    let wrong = |what: &str| {
        Err(MountError::new(format!(
            "failed to resolve recursive read-only mode: volume {volume:?} requested recursive read-only mode, but {what}"
        )))
    };
    if !readonly {
        return wrong("it is not read-only");
    }
    if propagation != MountPropagation::PropagationPrivate {
        return wrong("its mount propagation is not None");
    }
    if insists && !rro {
        return wrong("it is not supported by the runtime");
    }
    Ok(rro)
}
