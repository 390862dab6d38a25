//! `/containerLogs/…`: which log, which part of it, and the stream to the client.

use super::NodeView;
use super::answer::plain;
use super::body::Body;
use super::query::Query;
use crate::api::Pod;
use crate::log::{Filter, ReadOptions, Reader, Stream, Watcher};
use bytes::Bytes;
use futures::stream;
use http::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// How many logs are read at once. Each holds a file and, while its client is slow, a piece of about 16 KiB.
const MAX_STREAMS: usize = 256;

/// Where a container's log is.
#[derive(Clone, Debug)]
pub struct LogTarget {
    /// The file the runtime writes.
    pub path: PathBuf,
    /// Whether the container still runs; a dropped sender reads as no.
    pub running: watch::Receiver<bool>,
}

/// There is no such log; the texts are upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogLookupError {
    /// 404
    #[error("pod {pod:?} does not exist")]
    NoPod {
        /// The pod's name.
        pod: String,
    },
    /// 404
    #[error("container {container:?} not found in pod {pod:?}")]
    NoContainer {
        /// The pod's name.
        pod: String,
        /// The container's name.
        container: String,
    },
    /// 400: there is no status of the container yet.
    #[error("container {container:?} in pod {pod:?} is not available")]
    NotAvailable {
        /// The pod's name.
        pod: String,
        /// The container's name.
        container: String,
    },
    /// 400: `previous` was asked for and there is none.
    #[error("previous terminated container {container:?} in pod {pod:?} not found")]
    NoPrevious {
        /// The pod's name.
        pod: String,
        /// The container's name.
        container: String,
    },
    /// 400: it ended without ever having been created.
    #[error("container {container:?} in pod {pod:?} is terminated")]
    Terminated {
        /// The pod's name.
        pod: String,
        /// The container's name.
        container: String,
    },
    /// 400: it has not started; `why` is the reason it waits, such as `ContainerCreating`.
    #[error("container {container:?} in pod {pod:?} is waiting to start{why}")]
    Waiting {
        /// The pod's name.
        pod: String,
        /// The container's name.
        container: String,
        /// With its separator: `: ContainerCreating`.
        why: String,
    },
    /// 400: the container is known and its log is not, such as after its removal. The text is the node's.
    #[error("{0}")]
    Other(String),
}

impl LogLookupError {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoPod { .. } | Self::NoContainer { .. } => StatusCode::NOT_FOUND,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// The id, without the runtime's name before it, of the container whose log is meant by `container` of `pod` (with its
/// current status): the running one, else the last that ended; with `previous` the one before. Pure.
pub fn log_container(pod: &Pod, container: &str, previous: bool) -> Result<String, LogLookupError> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let names = || (name.clone(), container.to_string());
    let spec = crate::api::spec(pod);
    let known = spec.containers.iter().any(|c| c.name == container)
        || spec.init_containers.iter().flatten().any(|c| c.name == container)
        || spec.ephemeral_containers.iter().flatten().any(|c| c.name == container);
    if !known {
        let (pod, container) = names();
        return Err(LogLookupError::NoContainer { pod, container });
    }
    let status = pod.status.as_ref().and_then(|s| {
        let lists = [&s.container_statuses, &s.init_container_statuses, &s.ephemeral_container_statuses];
        lists.into_iter().flatten().flatten().find(|c| c.name == container)
    });
    let Some(status) = status else {
        let (pod, container) = names();
        return Err(LogLookupError::NotAvailable { pod, container });
    };
    choose(status, previous).map_err(|why| {
        let (pod, container) = names();
        match why {
            Why::NoPrevious => LogLookupError::NoPrevious { pod, container },
            Why::Terminated => LogLookupError::Terminated { pod, container },
            Why::Waiting(why) => LogLookupError::Waiting { pod, container, why },
        }
    })
}

enum Why {
    NoPrevious,
    Terminated,
    Waiting(String),
}

fn choose(status: &ContainerStatus, previous: bool) -> Result<String, Why> {
    fn ended(state: &Option<ContainerState>) -> Option<Option<&str>> {
        // There and with an id, there and without, not there.
        let terminated = state.as_ref()?.terminated.as_ref()?;
        Some(terminated.container_id.as_deref().filter(|id| !id.is_empty()))
    }
    let bare = |id: &str| id.split_once("://").map_or(id, |(_, id)| id).to_string();
    let last = ended(&status.last_state);
    if previous {
        return last.flatten().map(bare).ok_or(Why::NoPrevious);
    }
    let state = status.state.as_ref();
    if state.is_some_and(|s| s.running.is_some()) {
        return Ok(bare(status.container_id.as_deref().unwrap_or_default()));
    }
    // A next run that could not even be created leaves the one before as the last word.
    match (ended(&status.state), last) {
        (Some(Some(id)), _) | (_, Some(Some(id))) => return Ok(bare(id)),
        (Some(None), _) | (_, Some(None)) => return Err(Why::Terminated),
        (None, None) => {}
    }
    let waiting =
        state.and_then(|s| s.waiting.as_ref()).ok_or_else(|| Why::Waiting(" - no logs yet".into()))?;
    Err(Why::Waiting(match waiting.reason.as_deref().unwrap_or_default() {
        "ErrImagePull" => ": image can't be pulled".into(),
        "ImagePullBackOff" => ": trying and failing to pull image".into(),
        reason => format!(": {reason}"),
    }))
}

/// A query that is refused.
#[derive(Debug, PartialEq)]
struct Refused {
    status: StatusCode,
    text: String,
}

/// What a client asks of a log.
#[derive(Debug)]
struct Wanted {
    previous: bool,
    follow: bool,
    options: ReadOptions,
}

/// Reads `PodLogOptions` out of a query, as upstream decodes and validates it. Pure.
fn wanted(query: &Query, split_streams: bool, now: Timestamp) -> Result<Wanted, Refused> {
    let refused = |status, text: &str| Refused { status, text: text.into() };
    let undecodable = || refused(StatusCode::BAD_REQUEST, r#"{"message": "Unable to decode query."}"#);
    let invalid = || refused(StatusCode::UNPROCESSABLE_ENTITY, r#"{"message": "Invalid request."}"#);
    let number =
        |name: &str| query.get(name).map(|v| v.parse::<i64>().map_err(|_| undecodable())).transpose();

    // The older name `tail`, which also takes `all`, goes before `tailLines`.
    let tail_lines = match query.get("tail").filter(|v| !v.is_empty()) {
        Some("all") => None,
        Some(tail) => Some(tail.parse::<i64>().map_err(|_| undecodable())?),
        None => number("tailLines")?,
    };
    let (since_seconds, limit_bytes) = (number("sinceSeconds")?, number("limitBytes")?);
    let since_time = match query.get("sinceTime") {
        None | Some("" | "null") => None,
        Some(time) => Some(time.parse::<Timestamp>().map_err(|_| undecodable())?),
    };
    let stream = match query.get("stream") {
        None | Some("All") => Stream::All,
        Some(other) if !split_streams => {
            let text = format!(
                "unable to return the given log stream: {other:?}. \
                 Please enable PodLogsQuerySplitStreams feature gate in kubelet"
            );
            return Err(refused(StatusCode::BAD_REQUEST, &text));
        }
        Some("Stdout") => Stream::Stdout,
        Some("Stderr") => Stream::Stderr,
        Some(_) => return Err(invalid()),
    };
    let out_of_range = tail_lines.is_some_and(|n| n < 0)
        || limit_bytes.is_some_and(|n| n < 1)
        || since_seconds.is_some_and(|n| n < 1)
        || (since_seconds.is_some() && since_time.is_some())
        || (stream != Stream::All && tail_lines.is_some());
    if out_of_range {
        return Err(invalid());
    }
    let ago = |seconds| now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN);
    let filter = Filter {
        since: since_time.or(since_seconds.map(ago)),
        timestamps: query.flag("timestamps"),
        limit_bytes: limit_bytes.map(i64::unsigned_abs),
        stream,
    };
    let options = ReadOptions { filter, tail_lines: tail_lines.map(i64::unsigned_abs) };
    Ok(Wanted { previous: query.flag("previous"), follow: query.flag("follow"), options })
}

/// Serves logs; shared by all servers.
pub struct Logs {
    split_streams: bool,
    places: Arc<Semaphore>,
    /// Made when the first log is followed.
    watcher: Mutex<Option<Watcher>>,
}

impl Logs {
    pub fn new(split_streams: bool) -> Self {
        Self { split_streams, places: Arc::new(Semaphore::new(MAX_STREAMS)), watcher: Mutex::default() }
    }

    /// Answers a request for the log of `[namespace, pod, container]`.
    pub async fn serve(&self, node: &dyn NodeView, of: [&str; 3], query: &Query) -> Response<Body> {
        let wanted = match wanted(query, self.split_streams, Timestamp::now()) {
            Ok(wanted) => wanted,
            Err(refused) => return plain(refused.status, refused.text),
        };
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            return plain(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("{MAX_STREAMS} logs are being read already"),
            );
        };
        let target = match node.container_log(of[0], of[1], of[2], wanted.previous) {
            Ok(target) => target,
            Err(e) if e.status() == StatusCode::NOT_FOUND => return plain(e.status(), e.to_string()),
            Err(e) => return late_error(e.status(), e.to_string()),
        };
        let watcher = match wanted.follow.then(|| self.watcher()).transpose() {
            Ok(watcher) => watcher,
            Err(e) => return late_error(StatusCode::BAD_REQUEST, format!("failed to follow the log: {e}")),
        };
        let reader = Reader::open(&target.path, wanted.options, target.running, watcher.as_ref()).await;
        match reader {
            Ok(reader) => {
                let stream = stream::unfold((reader, place), piece);
                Response::new(Body::stream(stream))
            }
            Err(e) => late_error(StatusCode::BAD_REQUEST, e.to_string()),
        }
    }

    /// For directories.
    pub fn watcher(&self) -> std::io::Result<Watcher> {
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        match &*watcher {
            Some(watcher) => Ok(watcher.clone()),
            None => Ok(watcher.insert(Watcher::new()?).clone()),
        }
    }
}

/// The next piece of the stream; an error's text is its last piece, as with upstream.
async fn piece(
    (mut reader, place): (Reader, OwnedSemaphorePermit),
) -> Option<(Bytes, (Reader, OwnedSemaphorePermit))> {
    let piece = reader.next().await?.unwrap_or_else(|e| e.to_string().into());
    Some((piece, (reader, place)))
}

/// Errors that upstream finds after it has begun to stream: chunked, and without a content type.
fn late_error(status: StatusCode, text: String) -> Response<Body> {
    let text = Bytes::from(text);
    let mut response = Response::new(Body::stream(stream::once(async { text })));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ask(query: &str, split: bool) -> Result<Wanted, (u16, String)> {
        let now = "2024-01-02T00:00:10Z".parse().unwrap();
        wanted(&Query::parse(query), split, now).map_err(|r| (r.status.as_u16(), r.text))
    }

    #[test]
    fn options_are_read_from_the_query() {
        let w =
            ask("follow=true&tailLines=7&timestamps=1&previous&limitBytes=9&sinceSeconds=10", false).unwrap();
        assert!(w.follow && w.previous && w.options.filter.timestamps);
        assert_eq!((w.options.tail_lines, w.options.filter.limit_bytes), (Some(7), Some(9)));
        assert_eq!(w.options.filter.since.unwrap().to_string(), "2024-01-02T00:00:00Z");
        let w = ask(
            "follow=false&timestamps=0&tail=all&tailLines=3&sinceTime=2024-01-01T00:00:00%2B01:00",
            false,
        );
        let w = w.unwrap();
        assert!(!w.follow && !w.previous && !w.options.filter.timestamps);
        assert_eq!(w.options.tail_lines, None);
        assert_eq!(w.options.filter.since.unwrap().to_string(), "2023-12-31T23:00:00Z");
        assert_eq!(ask("tail=4", false).unwrap().options.tail_lines, Some(4));
        assert_eq!(ask("stream=Stdout", true).unwrap().options.filter.stream, Stream::Stdout);
        assert_eq!(
            ask("sinceSeconds=9223372036854775807", false).unwrap().options.filter.since,
            Some(Timestamp::MIN)
        );
    }

    #[rstest::rstest]
    #[case("tailLines=abc", 400)]
    #[case("tailLines=", 400)]
    #[case("tail=x", 400)]
    #[case("sinceTime=yesterday", 400)]
    #[case("limitBytes=99999999999999999999", 400)]
    #[case("stream=Stderr", 400)]
    #[case("tailLines=-1", 422)]
    #[case("sinceSeconds=0", 422)]
    #[case("limitBytes=0", 422)]
    #[case("sinceSeconds=1&sinceTime=2024-01-01T00:00:00Z", 422)]
    fn bad_options_are_refused(#[case] query: &str, #[case] status: u16) {
        assert_eq!(ask(query, false).unwrap_err().0, status);
    }

    #[test]
    fn streams_are_checked_where_they_can_be_chosen() {
        assert_eq!(ask("stream=Both", true).unwrap_err().0, 422);
        assert_eq!(ask("stream=Stdout&tailLines=1", true).unwrap_err().0, 422);
        assert!(ask("stream=All&tailLines=1", true).is_ok());
    }

    fn pod(status: serde_json::Value) -> Pod {
        let mut status = status;
        status["name"] = "c".into();
        for (field, default) in [
            ("image", json!("")),
            ("imageID", json!("")),
            ("ready", json!(false)),
            ("restartCount", json!(0)),
        ] {
            status[field] = default;
        }
        serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c"}, {"name": "unseen"}]},
            "status": {"containerStatuses": [status]},
        }))
        .unwrap()
    }

    #[rstest::rstest]
    #[case(json!({"state": {"running": {}}, "containerID": "containerd://now"}), Ok("now"))]
    #[case(json!({"state": {"terminated": {"exitCode": 0, "containerID": "containerd://ended"}}}), Ok("ended"))]
    #[case(json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}},
                  "lastState": {"terminated": {"exitCode": 1, "containerID": "cri-o://before"}}}), Ok("before"))]
    #[case(json!({"state": {"terminated": {"exitCode": 128}},
                  "lastState": {"terminated": {"exitCode": 1, "containerID": "cri-o://before"}}}), Ok("before"))]
    #[case(json!({"state": {"terminated": {"exitCode": 128}}}), Err(r#"container "c" in pod "p" is terminated"#))]
    #[case(json!({"state": {"waiting": {"reason": "ContainerCreating"}}}),
           Err(r#"container "c" in pod "p" is waiting to start: ContainerCreating"#))]
    #[case(json!({"state": {"waiting": {"reason": "ErrImagePull"}}}),
           Err(r#"container "c" in pod "p" is waiting to start: image can't be pulled"#))]
    #[case(json!({"state": {"waiting": {"reason": "ImagePullBackOff"}}}),
           Err(r#"container "c" in pod "p" is waiting to start: trying and failing to pull image"#))]
    #[case(json!({}), Err(r#"container "c" in pod "p" is waiting to start - no logs yet"#))]
    fn the_container_is_chosen_by_its_status(
        #[case] status: serde_json::Value,
        #[case] want: Result<&str, &str>,
    ) {
        let got = log_container(&pod(status), "c", false).map_err(|e| e.to_string());
        assert_eq!(got.as_deref().map_err(String::as_str), want);
    }

    #[test]
    fn the_previous_run_is_the_last_state() {
        let both = json!({"state": {"running": {}}, "containerID": "x://2",
            "lastState": {"terminated": {"exitCode": 1, "containerID": "x://1"}}});
        assert_eq!(log_container(&pod(both), "c", true).unwrap(), "1");
        let error = log_container(&pod(json!({"state": {"running": {}}})), "c", true).unwrap_err();
        assert_eq!(error.to_string(), r#"previous terminated container "c" in pod "p" not found"#);
    }

    #[test]
    fn containers_that_are_not_there_are_named() {
        let p = pod(json!({}));
        let error = log_container(&p, "nope", false).unwrap_err();
        assert_eq!(
            (error.status().as_u16(), error.to_string().as_str()),
            (404, r#"container "nope" not found in pod "p""#)
        );
        let error = log_container(&p, "unseen", false).unwrap_err();
        assert_eq!(error.to_string(), r#"container "unseen" in pod "p" is not available"#);
    }
}
