//! The few API defaults that the translation reads.

use k8s_openapi::api::core::v1::{Container, Pod};

/// Fills them in.
pub fn apply(pod: &mut Pod) {
    let spec = pod.spec.get_or_insert_default();
    spec.termination_grace_period_seconds.get_or_insert(30);
    let host = spec.host_network == Some(true);
    for c in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        container(c, host);
    }
}

fn container(c: &mut Container, host_network: bool) {
    c.termination_message_path.get_or_insert_with(|| "/dev/termination-log".to_owned());
    c.termination_message_policy.get_or_insert_with(|| "File".to_owned());
    for port in c.ports.iter_mut().flatten() {
        port.protocol.get_or_insert_with(|| "TCP".to_owned());
        if host_network {
            port.host_port.get_or_insert(port.container_port);
        }
    }
    if let Some(get) =
        c.lifecycle.as_mut().and_then(|l| l.pre_stop.as_mut()).and_then(|h| h.http_get.as_mut())
    {
        get.scheme.get_or_insert_with(|| "HTTP".to_owned());
    }
}
