//! The configuration file of a private containerd, as a pure function of what is wanted.
//!
//! Called by the private containerd only. It knows the two shapes of the file: version 2 (1.6, 1.7)
//! and version 3 (2.x), where the CRI plugin is three plugins.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::CgroupDriver;

/// What the file depends on.
#[derive(Debug, Clone)]
pub(super) struct Inputs<'a> {
    /// containerd's persistent folder.
    pub root: &'a Path,
    /// containerd's volatile folder; its socket lies in it.
    pub state: &'a Path,
    /// The gRPC socket.
    pub socket: &'a Path,
    /// Handler names and the OCI runtime binary of each; the first is the default.
    pub handlers: &'a [(String, PathBuf)],
    /// Where CNI configurations are looked up.
    pub cni_conf: &'a Path,
    /// Where CNI plugins are looked up.
    pub cni_bin: &'a Path,
    /// Where a folder for each registry tells how to reach it (containerd's `hosts.toml`); looked at with every pull.
    pub registries: &'a Path,
    /// The sandbox image.
    pub pause: &'a str,
    /// Whether the kernel forbids lowering a process's OOM score.
    pub restrict_oom: bool,
    /// 2.x and later.
    pub version_3: bool,
    /// Who makes containers' cgroups.
    pub cgroup_driver: CgroupDriver,
}

/// Plugins that a node agent never uses: each costs start-up time, memory or a path outside our folders.
const UNUSED: &[&str] = &[
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.ttrpc.v1.otelttrpc",
];

/// The text of `config.toml`.
pub(super) fn render(inputs: &Inputs<'_>) -> String {
    let mut text = String::new();
    let version = if inputs.version_3 { 3 } else { 2 };
    push(&mut text, &format!("version = {version}"));
    push(&mut text, &format!("root = {}", quote(inputs.root)));
    push(&mut text, &format!("state = {}", quote(inputs.state)));
    let unused: Vec<String> = UNUSED.iter().map(|p| format!("  \"{p}\",\n")).collect();
    push(&mut text, &format!("disabled_plugins = [\n{}]", unused.concat()));
    push(&mut text, "[grpc]");
    push(&mut text, &format!("  address = {}", quote(inputs.socket)));
    // Its socket is one fixed path for the whole machine: two containerds would fight for it.
    push(&mut text, "[plugins.\"io.containerd.nri.v1.nri\"]\n  disable = true");
    if inputs.version_3 {
        version_3(&mut text, inputs)
    } else {
        version_2(&mut text, inputs)
    }
    text
}

fn version_2(text: &mut String, inputs: &Inputs<'_>) {
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    push(text, &format!("[{cri}]"));
    push(text, &format!("  sandbox_image = {:?}", inputs.pause));
    push(
        text,
        "  disable_tcp_service = true\n  stream_server_address = \"127.0.0.1\"\n  stream_server_port = \"0\"",
    );
    runtime_settings(text, inputs);
    push(text, &format!("[{cri}.cni]"));
    cni(text, inputs);
    push(text, &format!("[{cri}.registry]\n  config_path = {}", quote(inputs.registries)));
    push(text, &format!("[{cri}.containerd]"));
    push(
        text,
        &format!("  snapshotter = \"overlayfs\"\n  default_runtime_name = {:?}", default_handler(inputs)),
    );
    handlers(text, inputs, cri);
}

fn version_3(text: &mut String, inputs: &Inputs<'_>) {
    let images = "plugins.\"io.containerd.cri.v1.images\"";
    push(text, &format!("[{images}]\n  snapshotter = \"overlayfs\""));
    push(text, &format!("[{images}.pinned_images]\n  sandbox = {:?}", inputs.pause));
    push(text, &format!("[{images}.registry]\n  config_path = {}", quote(inputs.registries)));
    push(text, "[plugins.\"io.containerd.grpc.v1.cri\"]");
    push(
        text,
        "  disable_tcp_service = true\n  stream_server_address = \"127.0.0.1\"\n  stream_server_port = \"0\"",
    );
    let cri = "plugins.\"io.containerd.cri.v1.runtime\"";
    push(text, &format!("[{cri}]"));
    runtime_settings(text, inputs);
    push(text, &format!("[{cri}.cni]"));
    cni(text, inputs);
    push(text, &format!("[{cri}.containerd]"));
    push(text, &format!("  default_runtime_name = {:?}", default_handler(inputs)));
    handlers(text, inputs, cri);
}

fn runtime_settings(text: &mut String, inputs: &Inputs<'_>) {
    push(text, &format!("  restrict_oom_score_adj = {}", inputs.restrict_oom));
    // So that a sweep of our own folder finds every namespace; the default is one folder for all.
    push(text, "  netns_mounts_under_state_dir = true");
}

fn cni(text: &mut String, inputs: &Inputs<'_>) {
    push(text, &format!("  bin_dir = {}", quote(inputs.cni_bin)));
    push(text, &format!("  conf_dir = {}", quote(inputs.cni_conf)));
}

fn handlers(text: &mut String, inputs: &Inputs<'_>, cri: &str) {
    for (name, binary) in inputs.handlers {
        push(
            text,
            &format!("[{cri}.containerd.runtimes.{name}]\n  runtime_type = \"io.containerd.runc.v2\""),
        );
        push(text, &format!("[{cri}.containerd.runtimes.{name}.options]"));
        let systemd = inputs.cgroup_driver == CgroupDriver::Systemd;
        push(text, &format!("  BinaryName = {}\n  SystemdCgroup = {systemd}", quote(binary)));
    }
}

fn default_handler<'a>(inputs: &'a Inputs<'_>) -> &'a str {
    inputs.handlers.first().map_or("runc", |(name, _)| name)
}

fn push(text: &mut String, line: &str) {
    let _infallible = writeln!(text, "{line}");
}

/// A TOML basic string. Paths here are ours or Debian's and hold no control characters.
fn quote(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

/// Whether this process, and so a containerd it starts, may lower `oom_score_adj`: `CAP_SYS_RESOURCE`
/// (bit 24, capabilities(7)) in the effective set of `/proc/self/status`.
pub fn may_lower_oom_score() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    has_sys_resource(&status)
}

fn has_sys_resource(status: &str) -> bool {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    set.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|bits| bits & (1 << 24) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(handlers: &[(String, PathBuf)], version_3: bool) -> String {
        render(&Inputs {
            root: Path::new("/b/root"),
            state: Path::new("/b/state"),
            socket: Path::new("/b/state/containerd.sock"),
            handlers,
            cni_conf: Path::new("/b/conf"),
            cni_bin: Path::new("/b/bin"),
            registries: Path::new("/b/certs.d"),
            pause: "localhost/p:latest",
            restrict_oom: true,
            version_3,
            cgroup_driver: CgroupDriver::Systemd,
        })
    }

    #[test]
    fn the_first_handler_is_the_default_and_every_handler_has_its_binary() {
        let two = [("crun".to_owned(), "/x/crun".into()), ("runc".to_owned(), "/x/runc".into())];
        for version_3 in [false, true] {
            let text = inputs(&two, version_3);
            assert!(text.contains("default_runtime_name = \"crun\""), "{text}");
            assert!(text.contains("BinaryName = \"/x/runc\""), "{text}");
            assert!(text.contains("restrict_oom_score_adj = true"), "{text}");
            assert_eq!(text.matches("SystemdCgroup = true").count(), 2, "{text}");
            assert!(text.contains("registry]\n  config_path = \"/b/certs.d\""), "{text}");
        }
    }

    #[test]
    fn version_3_names_the_pause_image_where_2_x_looks_for_it() {
        let one = [("runc".to_owned(), PathBuf::from("/x/runc"))];
        assert!(inputs(&one, false).contains("version = 2\n"));
        assert!(inputs(&one, false).contains("sandbox_image = \"localhost/p:latest\""));
        let three = inputs(&one, true);
        assert!(three.contains("version = 3\n") && !three.contains("sandbox_image"));
        assert!(three.contains("pinned_images]\n  sandbox = \"localhost/p:latest\""));
    }

    #[test]
    fn the_capability_is_read_from_the_effective_set() {
        assert!(!has_sys_resource("CapPrm:\t000001ffffffffff\nCapEff:\t000001fffeffffff\n"));
        assert!(has_sys_resource("CapEff:\t000001ffffffffff\n"));
        assert!(!has_sys_resource(""));
    }
}
