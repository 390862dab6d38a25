//! Probes and lifecycle hooks: one handler each, and its numbers.

use super::super::field::{Errors, Path};
use super::names;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// One probe. Only a readiness probe may need several successes, and it alone never kills.
pub fn probe(p: &core::Probe, readiness: bool, at: &Path<'_>, errors: &mut Errors) {
    let mut handlers = Handlers { at, found: 0, errors };
    handlers.exec(p.exec.as_ref());
    handlers.http_get(p.http_get.as_ref());
    handlers.tcp_socket(p.tcp_socket.as_ref());
    handlers.grpc(p.grpc.as_ref());
    handlers.finish();
    for (field, value) in [
        ("initialDelaySeconds", p.initial_delay_seconds),
        ("timeoutSeconds", p.timeout_seconds),
        ("periodSeconds", p.period_seconds),
        ("successThreshold", p.success_threshold),
        ("failureThreshold", p.failure_threshold),
    ] {
        errors.not_negative(&at.child(field), i64::from(value.unwrap_or(0)));
    }
    let grace_at = at.child("terminationGracePeriodSeconds");
    match p.termination_grace_period_seconds {
        Some(grace) if readiness => errors.invalid(&grace_at, grace, "must not be set for readinessProbes"),
        Some(grace) if grace < 1 => errors.invalid(&grace_at, grace, "must be greater than 0"),
        _ => {}
    }
    if let Some(threshold) = p.success_threshold.filter(|t| !readiness && *t != 1) {
        errors.invalid(&at.child("successThreshold"), threshold, "must be 1");
    }
}

/// One hook; `grace` is the pod's termination grace in seconds.
pub fn hook(h: &core::LifecycleHandler, grace: i64, at: &Path<'_>, errors: &mut Errors) {
    let mut handlers = Handlers { at, found: 0, errors };
    handlers.exec(h.exec.as_ref());
    handlers.http_get(h.http_get.as_ref());
    handlers.tcp_socket(h.tcp_socket.as_ref());
    if let Some(sleep) = h.sleep.as_ref()
        && handlers.first("sleep")
        && !(0..=grace).contains(&sleep.seconds)
    {
        let rule = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        handlers.errors.invalid(&at.child("sleep"), sleep.seconds, &rule);
    }
    handlers.finish();
}

/// Counts the handlers of one probe or hook while it checks them.
struct Handlers<'h, 'p> {
    at: &'h Path<'p>,
    found: usize,
    errors: &'h mut Errors,
}

impl Handlers<'_, '_> {
    /// Whether the handler `field`, which is set, is the only one so far.
    fn first(&mut self, field: &str) -> bool {
        self.found += 1;
        if self.found > 1 {
            self.errors.forbidden(&self.at.child(field), "may not specify more than 1 handler type");
        }
        self.found == 1
    }

    fn exec(&mut self, action: Option<&core::ExecAction>) {
        let Some(action) = action else { return };
        if self.first("exec") && action.command.as_ref().is_none_or(Vec::is_empty) {
            self.errors.required(&self.at.child("exec").child("command"), "");
        }
    }

    fn http_get(&mut self, action: Option<&core::HTTPGetAction>) {
        let Some(action) = action else { return };
        if !self.first("httpGet") {
            return;
        }
        let at = self.at.child("httpGet");
        if action.path.as_ref().is_none_or(String::is_empty) {
            self.errors.required(&at.child("path"), "");
        }
        port(&action.port, &at.child("port"), self.errors);
        let scheme = action.scheme.as_deref().unwrap_or_default();
        self.errors.one_of(&at.child("scheme"), scheme, &["HTTP", "HTTPS"]);
        let headers = at.child("httpHeaders");
        for (i, header) in action.http_headers.iter().flatten().enumerate() {
            let token = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            if header.name.is_empty() || !header.name.bytes().all(token) {
                self.errors.invalid(
                    &headers.index(i).child("name"),
                    &header.name,
                    "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex \
                     used for validation is '[-A-Za-z0-9]+')",
                );
            }
        }
    }

    fn tcp_socket(&mut self, action: Option<&core::TCPSocketAction>) {
        let Some(action) = action else { return };
        if self.first("tcpSocket") {
            port(&action.port, &self.at.child("tcpSocket").child("port"), self.errors);
        }
    }

    fn grpc(&mut self, action: Option<&core::GRPCAction>) {
        let Some(action) = action else { return };
        if self.first("grpc") {
            let at = self.at.child("grpc");
            self.errors.between(&at.child("port"), i64::from(action.port), 1, 65535);
        }
    }

    fn finish(self) {
        if self.found == 0 {
            self.errors.required(self.at, "must specify a handler type");
        }
    }
}

fn port(port: &IntOrString, at: &Path<'_>, errors: &mut Errors) {
    match port {
        IntOrString::Int(n) => errors.between(at, i64::from(*n), 1, 65535),
        IntOrString::String(name) => errors.syntax(at, name, names::port_name(name)),
    }
}
