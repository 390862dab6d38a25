//! What containers of the cases did beside running and ending, where the agent's behaviour depends on it: files and links
//! they made in volumes, long termination messages, what they printed. Taken from the commands in their manifests.

use cri::v1::ContainerStatus;
use std::io;
use std::path::Path;

/// Something a container made in a volume.
enum Made {
    File(&'static str),
    Link(&'static str),
}

/// Case, container, its mount, a name in it, what was made there.
const MADE: [(&str, &str, &str, &str, Made); 3] = [
    ("vol-subpath-symlink-escape", "i", "/v", "link", Made::Link("/etc")),
    ("env-filekeyref", "i", "/v", "f.env", Made::File("KEY1='val 1'\nKEY2='x'\n")),
    ("env-filekeyref-bad", "i", "/v", "f.env", Made::File("KEY1=plain value\n")),
];

/// Does in its volumes what the container of that case did.
pub fn perform(case: &str, container: &str, status: &ContainerStatus) {
    for (_, _, mount, name, made) in MADE.iter().filter(|d| (d.0, d.1) == (case, container)) {
        let Some(mount) = status.mounts.iter().find(|m| m.container_path == *mount) else { continue };
        let path = Path::new(&mount.host_path).join(name);
        let done: io::Result<()> = match made {
            Made::File(text) => std::fs::write(&path, text),
            Made::Link(target) => std::os::unix::fs::symlink(target, &path),
        };
        if let Err(e) = done {
            eprintln!("{case}: {container}: {name}: {e}");
        }
    }
}

/// What the container wrote to its termination log where the recording has only a part of it.
pub fn message(case: &str, container: &str) -> Option<String> {
    ((case, container) == ("termination-message", "long")).then(|| "0123456789".repeat(1000))
}

/// What the container printed where the agent reads it.
pub fn printed(case: &str, container: &str) -> Vec<String> {
    match (case, container) {
        ("termination-message", "fb") => vec!["from log".to_owned()],
        ("termination-message", "fbok") => vec!["from log ok".to_owned()],
        ("termination-message", "fblong") => (0..300).map(|i| format!("line-{i}-0123456789012345")).collect(),
        _ => Vec::new(),
    }
}
