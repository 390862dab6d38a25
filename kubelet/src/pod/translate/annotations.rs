//! Annotations on containers: what a later incarnation of the agent, which remembers nothing, must know to restart,
//! stop and report a container whose pod may be gone.

use super::gojson::{self, Object};
use super::{container_hash, gojson::string};
use crate::api::{Container, Pod, spec};
use k8s_openapi::api::core::v1::{ContainerPort, LifecycleHandler};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::BTreeMap;

/// See [`container_hash`].
pub const HASH: &str = "io.kubernetes.container.hash";
/// How often the container was restarted before this one.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Where in the container the termination message is.
pub const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// `File` or `FallbackToLogsOnError`.
pub const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// JSON of `lifecycle.preStop`.
pub const PRE_STOP_HANDLER: &str = "io.kubernetes.container.preStopHandler";
/// JSON of the container's ports.
pub const PORTS: &str = "io.kubernetes.container.ports";
/// `metadata.deletionGracePeriodSeconds`
pub const DELETION_GRACE_PERIOD: &str = "io.kubernetes.pod.deletionGracePeriod";
/// `spec.terminationGracePeriodSeconds`
pub const TERMINATION_GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";

/// The annotations of `container`.
pub fn annotations(pod: &Pod, container: &Container, restart_count: u32) -> BTreeMap<String, String> {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let mut out = BTreeMap::from([
        (HASH.to_owned(), container_hash(container)),
        (RESTART_COUNT.to_owned(), restart_count.to_string()),
        (TERMINATION_MESSAGE_PATH.to_owned(), text(&container.termination_message_path)),
        (TERMINATION_MESSAGE_POLICY.to_owned(), text(&container.termination_message_policy)),
    ]);
    if let Some(seconds) = pod.metadata.deletion_grace_period_seconds {
        out.insert(DELETION_GRACE_PERIOD.to_owned(), seconds.to_string());
    }
    if let Some(seconds) = spec(pod).termination_grace_period_seconds {
        out.insert(TERMINATION_GRACE_PERIOD.to_owned(), seconds.to_string());
    }
    if let Some(handler) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) {
        out.insert(PRE_STOP_HANDLER.to_owned(), handler_json(handler));
    }
    let ports = container.ports.as_deref().unwrap_or_default();
    if !ports.is_empty() {
        out.insert(PORTS.to_owned(), gojson::list(ports.iter().map(port_json)));
    }
    out
}

fn port_json(port: &ContainerPort) -> String {
    let mut object = Object::default().text("name", port.name.as_deref());
    if let Some(host) = port.host_port.filter(|p| *p != 0) {
        object = object.raw("hostPort", host);
    }
    object
        .raw("containerPort", port.container_port)
        .text("protocol", port.protocol.as_deref())
        .text("hostIP", port.host_ip.as_deref())
        .end()
}

fn handler_json(handler: &LifecycleHandler) -> String {
    let mut out = Object::default();
    if let Some(exec) = &handler.exec {
        let mut object = Object::default();
        let command = exec.command.as_deref().unwrap_or_default();
        if !command.is_empty() {
            object = object.raw("command", gojson::list(command.iter().map(|c| string(c))));
        }
        out = out.raw("exec", object.end());
    }
    if let Some(get) = &handler.http_get {
        let mut object = Object::default()
            .text("path", get.path.as_deref())
            .raw("port", port_value(&get.port))
            .text("host", get.host.as_deref())
            .text("scheme", get.scheme.as_deref());
        let headers = get.http_headers.as_deref().unwrap_or_default();
        if !headers.is_empty() {
            let header = |name: &str, value: &str| {
                Object::default().raw("name", string(name)).raw("value", string(value)).end()
            };
            object =
                object.raw("httpHeaders", gojson::list(headers.iter().map(|h| header(&h.name, &h.value))));
        }
        out = out.raw("httpGet", object.end());
    }
    if let Some(tcp) = &handler.tcp_socket {
        let object =
            Object::default().raw("port", port_value(&tcp.port)).text("host", tcp.host.as_deref()).end();
        out = out.raw("tcpSocket", object);
    }
    if let Some(sleep) = &handler.sleep {
        out = out.raw("sleep", Object::default().raw("seconds", sleep.seconds).end());
    }
    out.end()
}

fn port_value(port: &IntOrString) -> String {
    match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => string(name),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::pod;
    use super::*;

    fn of(container: &str) -> BTreeMap<String, String> {
        let p = pod(&format!("{{spec: {{terminationGracePeriodSeconds: 7, containers: [{container}]}}}}"));
        annotations(&p, &spec(&p).containers[0], 2)
    }

    #[test]
    fn hooks_and_ports_are_written_as_the_api_machinery_does() {
        let a = of("{name: c, ports: [{name: web, containerPort: 80, protocol: TCP}, \
                    {containerPort: 81, hostPort: 82, hostIP: 127.0.0.1, protocol: UDP}], \
                    lifecycle: {preStop: {httpGet: {path: /x?a=1&b=2, port: 19000, host: h, scheme: HTTP, \
                    httpHeaders: [{name: X-A, value: b}]}}}}");
        assert_eq!(
            a[PORTS],
            r#"[{"name":"web","containerPort":80,"protocol":"TCP"},{"hostPort":82,"containerPort":81,"protocol":"UDP","hostIP":"127.0.0.1"}]"#
        );
        assert_eq!(
            a[PRE_STOP_HANDLER],
            r#"{"httpGet":{"path":"/x?a=1\u0026b=2","port":19000,"host":"h","scheme":"HTTP","httpHeaders":[{"name":"X-A","value":"b"}]}}"#
        );
        assert_eq!((a[RESTART_COUNT].as_str(), a[TERMINATION_GRACE_PERIOD].as_str()), ("2", "7"));
        for (hook, want) in [
            ("exec: {command: [sh, -c, a>b]}", r#"{"exec":{"command":["sh","-c","a\u003eb"]}}"#),
            ("tcpSocket: {port: web}", r#"{"tcpSocket":{"port":"web"}}"#),
            ("sleep: {seconds: 2}", r#"{"sleep":{"seconds":2}}"#),
        ] {
            assert_eq!(
                of(&format!("{{name: c, lifecycle: {{preStop: {{{hook}}}}}}}"))[PRE_STOP_HANDLER],
                want
            );
        }
    }
}
