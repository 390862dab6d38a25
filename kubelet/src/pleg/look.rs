//! One look at the runtime: the lists, and the statuses of what changed since the last look. I/O only, no state.

use super::observed::{Instance, Observed, Sandbox, State, labels, state};
use crate::api::{PodRef, PodUid};
use cri::v1;
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::HashMap;
use std::io::{Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// How many statuses one look asks for at once.
const STATUSES_AT_ONCE: usize = 8;
/// Upstream's bound for termination messages read from a file.
const TERMINATION_MESSAGE_LIMIT: u64 = 4096;
/// Upstream's bounds for those taken from the log.
const FALLBACK_LINES: u64 = 80;
const FALLBACK_BYTES: usize = 2048;

/// What the lists say of one pod.
#[derive(Debug, Default)]
pub struct Listed {
    pub sandboxes: Vec<v1::PodSandbox>,
    pub containers: Vec<v1::Container>,
}

impl Listed {
    /// Whose it is, by its labels.
    pub fn pod(&self) -> Option<PodRef> {
        let map = self
            .sandboxes
            .first()
            .map(|s| &s.labels)
            .or_else(|| self.containers.first().map(|c| &c.labels))?;
        let text = |key: &str| map.get(key).map(String::as_str).unwrap_or_default();
        Some(PodRef {
            uid: PodUid::new(text(labels::POD_UID)),
            namespace: text(labels::POD_NAMESPACE).into(),
            name: text(labels::POD_NAME).into(),
        })
    }

    /// `seen` still tells the truth about every listed state.
    pub fn matches(&self, seen: &Observed) -> bool {
        self.sandboxes.len() == seen.sandboxes.len()
            && self.containers.len() == seen.containers.len()
            && self.sandboxes.iter().all(|s| known_sandbox(seen, s).is_some())
            && self.containers.iter().all(|c| known_container(seen, c).is_some())
    }
}

/// Lists everything, by pod. What carries no pod UID is not ours and is left out.
pub async fn list_all(runtime: &cri::Client) -> Result<HashMap<PodUid, Listed>, cri::Error> {
    let (sandboxes, containers) =
        tokio::try_join!(runtime.list_pod_sandboxes(None), runtime.list_containers(None))?;
    let mut pods: HashMap<PodUid, Listed> = HashMap::new();
    for s in sandboxes {
        if let Some(uid) = s.labels.get(labels::POD_UID) {
            pods.entry(PodUid::new(uid)).or_default().sandboxes.push(s);
        }
    }
    for c in containers {
        if let Some(uid) = c.labels.get(labels::POD_UID) {
            pods.entry(PodUid::new(uid)).or_default().containers.push(c);
        }
    }
    Ok(pods)
}

/// Lists one pod.
pub async fn list_pod(runtime: &cri::Client, uid: &PodUid) -> Result<Listed, cri::Error> {
    let selector = HashMap::from([(labels::POD_UID.to_owned(), uid.to_string())]);
    let sandboxes =
        v1::PodSandboxFilter { label_selector: selector.clone().into_iter().collect(), ..Default::default() };
    let containers =
        v1::ContainerFilter { label_selector: selector.into_iter().collect(), ..Default::default() };
    let (sandboxes, containers) = tokio::try_join!(
        runtime.list_pod_sandboxes(Some(sandboxes)),
        runtime.list_containers(Some(containers))
    )?;
    Ok(Listed { sandboxes, containers })
}

/// Turns lists into an observation: statuses are asked for only where `before` does not already tell them.
/// Something that vanished between list and status is left out.
pub async fn observe(
    runtime: &cri::Client,
    listed: Listed,
    before: &Observed,
    seq: u64,
) -> Result<Observed, cri::Error> {
    let sandboxes = stream::iter(listed.sandboxes)
        .map(|s| async move {
            if let Some(known) = known_sandbox(before, &s) {
                return Ok(Some(known.clone()));
            }
            match runtime.pod_sandbox_status(&s.id, false).await {
                Ok(answer) => Ok(answer.status.as_ref().map(Sandbox::from_status)),
                Err(e) if e.kind == cri::Kind::NotFound => Ok(None),
                Err(e) => Err(e),
            }
        })
        .buffer_unordered(STATUSES_AT_ONCE)
        .try_filter_map(|s| async move { Ok(s) })
        .try_collect::<Vec<_>>();
    let containers = stream::iter(listed.containers)
        .map(|c| async move {
            if let Some(known) = known_container(before, &c) {
                return Ok(Some(known.clone()));
            }
            match runtime.container_status(&c.id, false).await {
                Ok(v1::ContainerStatusResponse { status: Some(status), .. }) => {
                    Ok(Some(instance(&c.pod_sandbox_id, &status).await))
                }
                Ok(_) => Ok(None),
                Err(e) if e.kind == cri::Kind::NotFound => Ok(None),
                Err(e) => Err(e),
            }
        })
        .buffer_unordered(STATUSES_AT_ONCE)
        .try_filter_map(|c| async move { Ok(c) })
        .try_collect::<Vec<_>>();
    let (sandboxes, containers) = tokio::try_join!(sandboxes, containers)?;
    let mut seen = Observed { seq, sandboxes, containers };
    seen.sort();
    Ok(seen)
}

/// What the lists alone tell, for a pod whose statuses cannot be had now: ids, names and states, no times but the
/// creation's, no exit codes. A container that exited reads as unknown until its status is seen.
pub fn roughly(listed: &Listed) -> Observed {
    let sandboxes = listed.sandboxes.iter().map(|s| Sandbox {
        id: s.id.clone(),
        attempt: s.metadata.as_ref().map(|m| m.attempt).unwrap_or_default(),
        created_at: s.created_at,
        ready: s.state() == v1::PodSandboxState::SandboxReady,
        ips: Vec::new(),
    });
    let containers = listed.containers.iter().map(Instance::from_list);
    // Sequence 0: whatever is seen later is newer.
    let mut seen = Observed { seq: 0, sandboxes: sandboxes.collect(), containers: containers.collect() };
    seen.sort();
    seen
}

fn known_sandbox<'a>(before: &'a Observed, s: &v1::PodSandbox) -> Option<&'a Sandbox> {
    let ready = s.state() == v1::PodSandboxState::SandboxReady;
    before.sandboxes.iter().find(|k| k.id == s.id && k.ready == ready)
}

fn known_container<'a>(before: &'a Observed, c: &v1::Container) -> Option<&'a Instance> {
    let now = state(c.state());
    before.containers.iter().find(|k| k.id == c.id && k.state == now && now != State::Unknown)
}

async fn instance(sandbox_id: &str, status: &v1::ContainerStatus) -> Instance {
    let mut seen = Instance::from_status(sandbox_id, status);
    if seen.state == State::Exited {
        let (file, log) = (termination_message_file(status), fallback(status));
        if file.is_some() || log.is_some() {
            let text = tokio::task::spawn_blocking(move || termination_message(file, log)).await;
            add_message(&mut seen.message, &text.unwrap_or_default());
        }
    }
    seen
}

/// What the container told comes behind what the runtime told of it.
fn add_message(message: &mut String, of_container: &str) {
    if !message.is_empty() && !of_container.is_empty() {
        message.push_str(": ");
    }
    message.push_str(of_container);
}

/// The host's side of the mount that holds the termination message.
fn termination_message_file(status: &v1::ContainerStatus) -> Option<String> {
    let path = status.annotations.get(labels::TERMINATION_MESSAGE_PATH)?;
    status.mounts.iter().find(|m| m.container_path == *path).map(|m| m.host_path.clone())
}

/// The log whose end stands for a message that a failed container did not write, if it asks for that.
fn fallback(status: &v1::ContainerStatus) -> Option<String> {
    let policy = status.annotations.get(labels::TERMINATION_MESSAGE_POLICY)?;
    let failed = status.exit_code != 0 || status.reason == "ContainerCannotRun";
    let wanted = policy == "FallbackToLogsOnError" && failed && !status.log_path.is_empty();
    wanted.then(|| status.log_path.clone())
}

/// Blocks on the disk. What cannot be read is empty: a missing message is no reason to lose an exit code.
fn termination_message(file: Option<String>, log: Option<String>) -> String {
    let tell = |path: &str, error: std::io::Error| {
        if error.kind() != std::io::ErrorKind::NotFound {
            tracing::warn!(path, %error, "cannot read the termination message");
        }
        String::new()
    };
    let text = file.map(|path| read_end(&path).unwrap_or_else(|e| tell(&path, e))).unwrap_or_default();
    match log {
        Some(path) if text.is_empty() => {
            let end = crate::log::last_output(Path::new(&path), FALLBACK_LINES, FALLBACK_BYTES);
            end.unwrap_or_else(|e| tell(&path, e))
        }
        _ => text,
    }
}

/// The file's last bytes.
fn read_end(path: &str) -> std::io::Result<String> {
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags((rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW).bits().cast_signed())
        .open(path)?;
    let start = file.metadata()?.len().saturating_sub(TERMINATION_MESSAGE_LIMIT);
    if start > 0 {
        file.seek(std::io::SeekFrom::Start(start))?;
    }
    let mut bytes = Vec::new();
    file.take(TERMINATION_MESSAGE_LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtimes_message_and_the_containers_are_told_apart() {
        for (runtime, container, want) in
            [("", "", ""), ("killed", "", "killed"), ("", "bye", "bye"), ("killed", "bye", "killed: bye")]
        {
            let mut message = runtime.to_owned();
            add_message(&mut message, container);
            assert_eq!(message, want);
        }
    }

    #[test]
    fn the_log_stands_for_a_message_that_what_failed_did_not_write() {
        let status = |policy: &str, exit_code, reason: &str| v1::ContainerStatus {
            annotations: [(labels::TERMINATION_MESSAGE_POLICY.to_owned(), policy.to_owned())].into(),
            exit_code,
            reason: reason.into(),
            log_path: "/log".into(),
            ..v1::ContainerStatus::default()
        };
        let logs = "FallbackToLogsOnError";
        for (policy, code, reason, wanted) in [
            (logs, 1, "Error", true),
            (logs, 0, "ContainerCannotRun", true),
            (logs, 0, "Completed", false),
            ("File", 1, "Error", false),
        ] {
            assert_eq!(fallback(&status(policy, code, reason)).is_some(), wanted, "{policy} {code} {reason}");
        }
    }
}
