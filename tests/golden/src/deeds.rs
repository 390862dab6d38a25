//! What containers of the cases did to their volumes, where the agent's behaviour depends on it.

use cri::v1::ContainerStatus;
use std::path::Path;

/// A symbolic link that a container makes: case, container, its mount, the link's name in it, the target.
const LINKS: [(&str, &str, &str, &str, &str); 1] =
    [("vol-subpath-symlink-escape", "i", "/v", "link", "/etc")];

/// Does what the container of that case did once it ran.
pub fn perform(case: &str, container: &str, status: &ContainerStatus) {
    for (_, _, mount, link, target) in LINKS.iter().filter(|d| (d.0, d.1) == (case, container)) {
        let Some(mount) = status.mounts.iter().find(|m| m.container_path == *mount) else { continue };
        if let Err(e) = std::os::unix::fs::symlink(target, Path::new(&mount.host_path).join(link)) {
            eprintln!("{case}: {container}: {link}: {e}");
        }
    }
}
