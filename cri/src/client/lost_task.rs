//! Deletes a task that containerd has lost sight of, so that its container can be removed.
//!
//! When the client of a StartContainer goes away in the middle of it (an agent that is killed), containerd now and then
//! keeps the task it had begun ("failed to get task pid: context canceled"), while its CRI service takes the container for
//! one that failed to start. From then on StopContainer does nothing and RemoveContainer fails, until containerd is
//! restarted. containerd's own API, served at the same socket, still knows the task. Called by
//! [`super::Client::remove_container`] after just that failure; no other use of that API is made here. Messages carry the
//! field numbers of `containerd.services.tasks.v1`.

use std::time::Duration;

use http::uri::PathAndQuery;
use tokio::time::timeout;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status, client::Grpc};
use tonic_prost::ProstCodec;

use crate::link::Link;

/// Everything that CRI makes in containerd is in this namespace.
const NAMESPACE: (&str, &str) = ("containerd-namespace", "k8s.io");
const SIGKILL: u32 = 9;

/// `KillRequest`; the field left out is the id of an exec.
#[derive(Clone, PartialEq, prost::Message)]
struct Kill {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(uint32, tag = "3")]
    signal: u32,
    #[prost(bool, tag = "4")]
    all: bool,
}

/// `WaitRequest` and `DeleteTaskRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct Task {
    #[prost(string, tag = "1")]
    container_id: String,
}

/// Answers of which nothing is used.
#[derive(Clone, PartialEq, prost::Message)]
struct Ignored {}

/// That is how RemoveContainer fails then.
pub(super) fn is_reason_of(error: &crate::Error) -> bool {
    error.message.contains("cannot delete running task")
}

/// Kills what the task runs, waits for its end and deletes it. A task that is gone is no error.
pub(super) async fn delete(link: Link, id: &str, deadline: Duration) -> Result<(), Status> {
    let mut tasks = Grpc::with_origin(link, http::Uri::from_static("http://localhost"));
    let task = || Task { container_id: id.to_owned() };
    let whole = async {
        let kill = Kill { container_id: id.to_owned(), signal: SIGKILL, all: true };
        // One that has ended already cannot be killed, only deleted.
        if let Err(status) = call(&mut tasks, "Kill", kill).await
            && !matches!(status.code(), Code::NotFound | Code::FailedPrecondition)
        {
            return Err(status);
        }
        gone_is_done(call(&mut tasks, "Wait", task()).await)?;
        gone_is_done(call(&mut tasks, "Delete", task()).await)
    };
    timeout(deadline, whole).await.map_err(|_| Status::deadline_exceeded("the task does not end"))?
}

async fn call<M: prost::Message + Send + Sync + 'static>(
    tasks: &mut Grpc<Link>,
    method: &'static str,
    message: M,
) -> Result<(), Status> {
    let path = format!("/containerd.services.tasks.v1.Tasks/{method}");
    let path = PathAndQuery::try_from(path).map_err(|e| Status::internal(e.to_string()))?;
    let mut request = Request::new(message);
    request.metadata_mut().insert(NAMESPACE.0, MetadataValue::from_static(NAMESPACE.1));
    tasks.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    tasks.unary(request, path, ProstCodec::<M, Ignored>::default()).await.map(drop)
}

fn gone_is_done(result: Result<(), Status>) -> Result<(), Status> {
    match result {
        Err(status) if status.code() == Code::NotFound => Ok(()),
        other => other,
    }
}
