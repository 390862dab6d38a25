//! The pod's conditions, in upstream's order with upstream's reasons and messages. Pure.

use super::convert::Input;
use crate::api::{self, Pod};
use crate::pod::plan;
use crate::pod::translate::resources::is_sidecar;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Phases as upstream computes them, before a pod that has not ended yet is held back from a final one.
pub const PENDING: &str = "Pending";
pub const RUNNING: &str = "Running";
pub const SUCCEEDED: &str = "Succeeded";
pub const FAILED: &str = "Failed";

struct Verdict {
    ok: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn yes() -> Self {
        Self { ok: true, reason: None, message: None }
    }
    fn completed(ok: bool) -> Self {
        Self { ok, reason: Some("PodCompleted"), message: None }
    }
    fn no(reason: &'static str, message: Option<String>) -> Self {
        Self { ok: false, reason: Some(reason), message }
    }
}

/// All conditions of a pod whose phase computes to `phase`.
pub fn conditions(input: &Input<'_>, phase: &str, status: &PodStatus) -> Vec<PodCondition> {
    let regular = status.container_statuses.as_deref().unwrap_or_default();
    let inits = status.init_container_statuses.as_deref().unwrap_or_default();
    let sidecars = sidecars(input.pod, inits);
    let counted: Vec<&ContainerStatus> = sidecars.into_iter().chain(regular).collect();
    let containers = containers_ready(phase, &counted);
    let ready = pod_ready(input, phase, &counted);
    let sandbox =
        if input.sandbox_up { Verdict::yes() } else { Verdict { ok: false, reason: None, message: None } };
    [
        ("PodReadyToStartContainers", sandbox),
        ("Initialized", initialized(input.pod, phase, inits, regular)),
        ("Ready", ready),
        ("ContainersReady", containers),
        ("PodScheduled", Verdict::yes()),
    ]
    .into_iter()
    .map(|(kind, verdict)| condition(input, kind, verdict))
    .chain(plan::may_restart_all(input.pod).then(|| all_restarting(input, phase)))
    .collect()
}

/// `AllContainersRestarting`, which only pods with such a rule have. Upstream gives it no generation.
fn all_restarting(input: &Input<'_>, phase: &str) -> PodCondition {
    let verdict = match phase {
        SUCCEEDED => Verdict::completed(false),
        FAILED => Verdict::no("PodFailed", None),
        _ if input.resetting => Verdict {
            ok: true,
            reason: Some("RestartAllContainersStarted"),
            message: Some("container exited with restart policy rule".to_owned()),
        },
        _ => Verdict { ok: false, reason: None, message: None },
    };
    PodCondition { observed_generation: None, ..condition(input, "AllContainersRestarting", verdict) }
}

/// `DisruptionTarget`: the pod went for the node's sake. It comes with the final phase, before all other conditions.
pub fn disruption_target(input: &Input<'_>, message: &str) -> PodCondition {
    let reason = Some("TerminationByKubelet");
    condition(input, "DisruptionTarget", Verdict { ok: true, reason, message: Some(message.to_owned()) })
}

/// The statuses of the sidecars among those of init containers.
pub fn sidecars<'a>(pod: &Pod, inits: &'a [ContainerStatus]) -> Vec<&'a ContainerStatus> {
    let spec = api::spec(pod);
    let is = |s: &&ContainerStatus| {
        spec.init_containers.iter().flatten().any(|c| c.name == s.name && is_sidecar(c))
    };
    inits.iter().filter(is).collect()
}

/// Some regular container has run, so the pod had been initialized, whatever its sidecars do now.
pub fn has_run(regular: &[ContainerStatus]) -> bool {
    let ended = |state: &Option<ContainerState>| state.as_ref().is_some_and(|s| s.terminated.is_some());
    let running = |s: &ContainerStatus| s.state.as_ref().is_some_and(|s| s.running.is_some());
    regular.iter().any(|s| running(s) || ended(&s.state) || ended(&s.last_state))
}

fn condition(input: &Input<'_>, kind: &str, verdict: Verdict) -> PodCondition {
    let status = if verdict.ok { "True" } else { "False" };
    let before = input
        .previous
        .and_then(|s| s.conditions.as_ref())
        .and_then(|all| all.iter().find(|c| c.type_ == kind && c.status == status));
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_transition_time: before.map_or(Some(Time(input.now)), |c| c.last_transition_time.clone()),
        last_probe_time: None,
        observed_generation: input.pod.metadata.generation,
    }
}

fn names<'a>(of: impl Iterator<Item = &'a ContainerStatus>) -> String {
    of.map(|s| s.name.as_str()).collect::<Vec<_>>().join(" ")
}

fn initialized(pod: &Pod, phase: &str, inits: &[ContainerStatus], regular: &[ContainerStatus]) -> Verdict {
    if phase == SUCCEEDED {
        return Verdict::completed(true);
    }
    if has_run(regular) {
        return Verdict::yes();
    }
    let sidecars = sidecars(pod, inits);
    let done = |s: &ContainerStatus| match sidecars.iter().any(|sidecar| sidecar.name == s.name) {
        true => s.started == Some(true),
        false => s.ready,
    };
    let open = names(inits.iter().filter(|s| !done(s)));
    if open.is_empty() {
        return Verdict::yes();
    }
    Verdict::no("ContainersNotInitialized", Some(format!("containers with incomplete status: [{open}]")))
}

fn containers_ready(phase: &str, counted: &[&ContainerStatus]) -> Verdict {
    match phase {
        SUCCEEDED => return Verdict::completed(false),
        FAILED => return Verdict::no("PodFailed", None),
        _ => {}
    }
    let unready = names(counted.iter().copied().filter(|s| !s.ready));
    if unready.is_empty() {
        return Verdict::yes();
    }
    Verdict::no("ContainersNotReady", Some(format!("containers with unready status: [{unready}]")))
}

fn pod_ready(input: &Input<'_>, phase: &str, counted: &[&ContainerStatus]) -> Verdict {
    let containers = containers_ready(phase, counted);
    let gates = api::spec(input.pod).readiness_gates.as_deref().unwrap_or_default();
    if !containers.ok || gates.is_empty() {
        return containers;
    }
    let given = input.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let open: Vec<String> = gates
        .iter()
        .filter_map(|g| match given.iter().find(|c| c.type_ == g.condition_type) {
            None => Some(format!(
                "corresponding condition of pod readiness gate \"{}\" does not exist.",
                g.condition_type
            )),
            Some(c) if c.status != "True" => Some(format!(
                "the status of pod readiness gate \"{}\" is not \"True\", but {}",
                g.condition_type, c.status
            )),
            Some(_) => None,
        })
        .collect();
    if open.is_empty() { containers } else { Verdict::no("ReadinessGatesNotReady", Some(open.join(", "))) }
}
