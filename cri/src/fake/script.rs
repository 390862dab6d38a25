//! What containers, commands, images and pulls of the fake do: the test's script.
//!
//! Plain data with builder methods; [`crate::fake::FakeRuntime`] acts on it. Nothing here keeps time.

use std::time::Duration;

use tonic::{Code, Status};

use crate::v1;

/// What a container does once started. [`Script::forever`] is what containers without a script do.
#[derive(Debug, Clone)]
pub struct Script {
    pub(super) exit: Option<(i32, Duration)>,
    pub(super) oom: bool,
    pub(super) on_term: OnTerm,
    pub(super) unkillable: bool,
    pub(super) create_error: Option<(Code, String)>,
    pub(super) start_error: Option<(Code, String)>,
    pub(super) lines: Vec<(&'static str, String)>,
    pub(super) user: (i64, i64, Vec<i64>),
}

/// What the stop signal does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnTerm {
    Exit(i32, Duration),
    Ignore,
}

impl Script {
    /// Runs until it is stopped; the stop signal ends it at once with exit code 143.
    #[must_use]
    pub fn forever() -> Self {
        Self {
            exit: None,
            oom: false,
            on_term: OnTerm::Exit(143, Duration::ZERO),
            unkillable: false,
            create_error: None,
            start_error: None,
            lines: Vec::new(),
            user: (0, 0, Vec::new()),
        }
    }

    /// Exits by itself with `code`, `after` its start.
    #[must_use]
    pub fn exits(code: i32, after: Duration) -> Self {
        Self { exit: Some((code, after)), ..Self::forever() }
    }

    /// Killed for want of memory `after` its start: exit code 137, reason `OOMKilled`.
    #[must_use]
    pub fn oom_killed(after: Duration) -> Self {
        Self { oom: true, ..Self::exits(137, after) }
    }

    /// CreateContainer fails with this text and the code `Unknown`, as nearly all failures of containerd.
    #[must_use]
    pub fn create_error(text: impl Into<String>) -> Self {
        Self { create_error: Some((Code::Unknown, text.into())), ..Self::forever() }
    }

    /// StartContainer fails with this text; the container is then `CONTAINER_EXITED`, code 128, reason `StartError`.
    #[must_use]
    pub fn start_error(text: impl Into<String>) -> Self {
        Self { start_error: Some((Code::Unknown, text.into())), ..Self::forever() }
    }

    /// The stop signal ends it with `code`, `after` the signal.
    #[must_use]
    pub fn on_term(mut self, code: i32, after: Duration) -> Self {
        self.on_term = OnTerm::Exit(code, after);
        self
    }

    /// The stop signal does nothing; only SIGKILL ends it, with exit code 137.
    #[must_use]
    pub fn ignores_term(mut self) -> Self {
        self.on_term = OnTerm::Ignore;
        self
    }

    /// Not even SIGKILL ends it (a process in uninterruptible sleep): StopContainer never returns. Only
    /// [`exit`](crate::fake::FakeRuntime::exit) does.
    #[must_use]
    pub fn unkillable(mut self) -> Self {
        self.unkillable = true;
        self.ignores_term()
    }

    /// However it ends by itself, the reason is `OOMKilled`: the kernel killed one of its processes for want of memory.
    #[must_use]
    pub fn out_of_memory(mut self) -> Self {
        self.oom = true;
        self
    }

    /// Its first process runs as this user and groups, which the container's status tells.
    #[must_use]
    pub fn user(mut self, uid: i64, gid: i64, supplemental_groups: Vec<i64>) -> Self {
        self.user = (uid, gid, supplemental_groups);
        self
    }

    /// A line on standard output at its start. Written to the log file when the fake
    /// [writes logs](crate::fake::Builder::write_logs).
    #[must_use]
    pub fn prints(mut self, line: impl Into<String>) -> Self {
        self.lines.push(("stdout", line.into()));
        self
    }

    /// A line on standard error at its start.
    #[must_use]
    pub fn complains(mut self, line: impl Into<String>) -> Self {
        self.lines.push(("stderr", line.into()));
        self
    }
}

/// What ExecSync answers.
#[derive(Debug, Clone)]
pub struct ExecAnswer {
    pub(super) response: v1::ExecSyncResponse,
    pub(super) error: Option<Status>,
    pub(super) takes: Duration,
}

impl ExecAnswer {
    /// The command exits with `code`, and prints nothing.
    #[must_use]
    pub fn exits(code: i32) -> Self {
        let response = v1::ExecSyncResponse { exit_code: code, ..Default::default() };
        Self { response, error: None, takes: Duration::ZERO }
    }

    /// The call fails.
    #[must_use]
    pub fn error(code: Code, text: impl Into<String>) -> Self {
        Self { error: Some(Status::new(code, text)), ..Self::exits(0) }
    }

    /// On standard output.
    #[must_use]
    pub fn stdout(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.response.stdout = bytes.into();
        self
    }

    /// On standard error.
    #[must_use]
    pub fn stderr(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.response.stderr = bytes.into();
        self
    }

    /// The command runs so long. Past the call's time-out it is killed and the call gives `DeadlineExceeded`.
    #[must_use]
    pub fn takes(mut self, duration: Duration) -> Self {
        self.takes = duration;
        self
    }
}

/// An image on the fake's disk, or in its registry.
#[derive(Debug, Clone)]
pub struct FakeImage(pub(super) v1::Image);

impl FakeImage {
    /// An image of that name, with an id and a digest that follow from the name, 1 MB, no user. A short name gets
    /// `docker.io/library/` and `:latest`, as containerd does it.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let name = full_name(name);
        let repository = name.split('@').next().unwrap_or(&name);
        let repository = match repository.rsplit_once(':') {
            Some((head, tag)) if !tag.contains('/') => head,
            _ => repository,
        };
        let digest = match name.split_once('@') {
            Some((_, digest)) => digest.to_owned(),
            None => digest_of(&format!("digest {name}")),
        };
        Self(v1::Image {
            id: digest_of(&name),
            repo_digests: vec![format!("{repository}@{digest}")],
            repo_tags: if name.contains('@') { vec![] } else { vec![name] },
            size: 1_000_000,
            ..Default::default()
        })
    }

    /// Another name for it.
    #[must_use]
    pub fn tag(mut self, name: &str) -> Self {
        self.0.repo_tags.push(full_name(name));
        self
    }

    /// The id, `sha256:` and 64 hexadecimal digits in real life.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.0.id = id.into();
        self
    }

    /// Runs as this numeric user.
    #[must_use]
    pub fn uid(mut self, uid: i64) -> Self {
        self.0.uid = Some(v1::Int64Value { value: uid });
        self
    }

    /// Runs as this named user.
    #[must_use]
    pub fn username(mut self, name: impl Into<String>) -> Self {
        self.0.username = name.into();
        self
    }

    /// Without a digest of a repository, as one that was imported and never pulled: its id stands for it in statuses.
    #[must_use]
    pub fn imported(mut self) -> Self {
        self.0.repo_digests.clear();
        self
    }

    /// Bytes on disk.
    #[must_use]
    pub fn size(mut self, bytes: u64) -> Self {
        self.0.size = bytes;
        self
    }

    /// Never to be garbage collected.
    #[must_use]
    pub fn pinned(mut self) -> Self {
        self.0.pinned = true;
        self
    }
}

/// What a pull of some reference does. References without one are not found.
#[derive(Debug, Clone)]
pub struct Pull {
    pub(super) result: Result<FakeImage, Status>,
    pub(super) takes: Duration,
}

impl Pull {
    /// The image is then on the disk.
    #[must_use]
    pub fn gives(image: FakeImage) -> Self {
        Self { result: Ok(image), takes: Duration::ZERO }
    }

    /// The pull fails with this text and the code `Unknown`.
    #[must_use]
    pub fn fails(text: impl Into<String>) -> Self {
        Self { result: Err(Status::unknown(text)), takes: Duration::ZERO }
    }

    /// So long.
    #[must_use]
    pub fn takes(mut self, duration: Duration) -> Self {
        self.takes = duration;
        self
    }
}

/// A reference with registry, repository and tag: `busybox` is `docker.io/library/busybox:latest`. Ids and digests stay.
pub(super) fn full_name(name: &str) -> String {
    if name.starts_with("sha256:") {
        return name.to_owned();
    }
    let with_registry = match name.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    };
    let last = with_registry.rsplit('/').next().unwrap_or_default();
    if last.contains([':', '@']) { with_registry } else { format!("{with_registry}:latest") }
}

/// `sha256:` and 64 digits that follow from `text`; not a real digest.
pub(super) fn digest_of(text: &str) -> String {
    format!("sha256:{}", hex_of(text))
}

/// 64 hexadecimal digits that follow from `text` (FNV-1a, four times over).
pub(super) fn hex_of(text: &str) -> String {
    (0_u8..4)
        .map(|lane| {
            let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
            for byte in [lane].iter().chain(text.as_bytes()).chain(&[lane]) {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
            format!("{hash:016x}")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("busybox", "docker.io/library/busybox:latest")]
    #[case("busybox:1", "docker.io/library/busybox:1")]
    #[case("a/b", "docker.io/a/b:latest")]
    #[case("localhost/a/b:1", "localhost/a/b:1")]
    #[case("reg.test:5000/a", "reg.test:5000/a:latest")]
    #[case("reg.test/a@sha256:00", "reg.test/a@sha256:00")]
    #[case("sha256:00", "sha256:00")]
    fn short_names_get_registry_and_tag(#[case] name: &str, #[case] want: &str) {
        assert_eq!(full_name(name), want);
    }

    #[test]
    fn an_image_has_a_digest_reference_without_the_tag() {
        let image = FakeImage::new("reg.test:5000/a:1").0;
        assert_eq!(image.repo_tags, ["reg.test:5000/a:1"]);
        assert!(image.repo_digests[0].starts_with("reg.test:5000/a@sha256:"));
    }
}
