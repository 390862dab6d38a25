//! `/checkpoint/NAMESPACE/POD/CONTAINER` (KEP-2008): what is asked for, and upstream's words when it cannot be had.
//!
//! The node does it ([`NodeView::checkpoint`]).

use super::NodeView;
use super::query::Query;
use crate::api::{self, Pod};
use http::StatusCode;

/// The body of the answer: where the archive is.
///
/// # Errors
/// Status and text of the refusal.
pub async fn take(
    node: &dyn NodeView,
    [namespace, name, container]: [&str; 3],
    query: &Query,
) -> Result<String, (StatusCode, String)> {
    let missing = |what: String| (StatusCode::NOT_FOUND, what);
    let pod = node.pod(namespace, name).ok_or_else(|| missing("pod does not exist".to_owned()))?;
    if !has(&pod, container) {
        return Err(missing(format!("container {container} does not exist")));
    }
    // Of several the last counts.
    let timeout = query.all("timeout").last().map_or(Ok(0), str::parse::<i64>);
    let timeout = timeout.map_err(|_| missing("cannot parse value of timeout parameter".to_owned()))?;
    match node.checkpoint(&pod, container, timeout).await {
        Ok(path) => Ok(serde_json::json!({ "items": [path.to_string_lossy()] }).to_string()),
        Err(why) => Err((
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("checkpointing of {namespace}/{name}/{container} failed ({why})"),
        )),
    }
}

fn has(pod: &Pod, container: &str) -> bool {
    let spec = api::spec(pod);
    let inits = spec.init_containers.iter().flatten();
    spec.containers.iter().chain(inits).any(|c| c.name == container)
        || spec.ephemeral_containers.iter().flatten().any(|c| c.name == container)
}
