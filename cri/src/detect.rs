//! Asks a runtime what it can do, once for each connection, and publishes the result.
//!
//! One task for each client ([`watch_link`]): it follows the runtime's link, asks when the link is up, publishes
//! [`Connection`], and parks the event stream it opened. It waits for answers only, never for a timer, except between
//! attempts at a runtime that is up but not ready. It ends with the last client.

use std::sync::Arc;

use futures::FutureExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::capabilities::{Answers, Capabilities, EventStream};
use crate::client::RuntimeService;
use crate::deadline::Deadlines;
use crate::error::{Error, Kind, Result};
use crate::events::{Events, Parked};
use crate::link::{Backoff, Link, State};
use crate::v1;

/// Whether there is a runtime that answers.
#[derive(Debug, Clone)]
pub enum Connection {
    /// Connected, and this is what the runtime can do.
    Connected(Arc<Capabilities>),
    /// Not connected (any more, or yet), or connected to something that does not answer as a CRI runtime. Attempts go
    /// on.
    Disconnected {
        /// When it became so; attempts that fail do not move it.
        since: Instant,
        /// Why the last attempt failed.
        error: String,
    },
}

impl Connection {
    /// The capabilities, when connected.
    #[must_use]
    pub fn capabilities(&self) -> Option<&Arc<Capabilities>> {
        match self {
            Self::Connected(capabilities) => Some(capabilities),
            Self::Disconnected { .. } => None,
        }
    }
}

/// What the task needs from the client that started it.
pub(crate) struct Watch {
    pub(crate) link: Link,
    pub(crate) service: RuntimeService,
    pub(crate) deadlines: Deadlines,
    pub(crate) backoff: Backoff,
    /// Where the event stream waits for its reader; `None` when there will be none.
    pub(crate) parked: Option<Parked>,
}

/// The task. Cancel safety: the receivers of `watch` lose nothing when a `changed` is dropped; a detection that is cut
/// short by the connection's end is of no use to anyone.
pub(crate) async fn watch_link(watch: Watch, publish: watch::Sender<Connection>) {
    let mut state = watch.link.watch();
    let mut failures = 0;
    // The connection that was asked last, and whether it answered.
    let mut asked = None;
    loop {
        let now = match &*state.borrow_and_update() {
            State::Connecting => Ok(None),
            State::Up(number, _) => Ok(Some(*number)),
            State::Down(error) => Err(error.clone()),
        };
        match now {
            Ok(Some(number)) if asked != Some(number) => {
                let detected = tokio::select! {
                    () = publish.closed() => return,
                    _ = state.changed() => continue,
                    detected = detect(&watch.service, &watch.deadlines) => detected,
                };
                match detected {
                    Ok((capabilities, events)) => {
                        (asked, failures) = (Some(number), 0);
                        if let Some(parked) = &watch.parked {
                            parked.put(events);
                        }
                        tracing::info!(
                            runtime = capabilities.runtime_name,
                            version = capabilities.runtime_version,
                            events = capabilities.container_events,
                            "runtime connected"
                        );
                        publish.send_replace(Connection::Connected(Arc::new(capabilities)));
                    }
                    Err(error) => {
                        failures += 1;
                        disconnected(&publish, error.to_string());
                        tokio::select! {
                            () = publish.closed() => return,
                            () = sleep(watch.backoff.pause(failures)) => {}
                        }
                        continue;
                    }
                }
            }
            Ok(_) => {}
            Err(error) => {
                if let Some(parked) = &watch.parked {
                    parked.put(None);
                }
                disconnected(&publish, error);
            }
        }
        tokio::select! {
            () = publish.closed() => return,
            changed = state.changed() => if changed.is_err() { return },
        }
    }
}

/// Publishes why there is no connection; of several attempts in a row the first tells since when.
fn disconnected(publish: &watch::Sender<Connection>, error: String) {
    publish.send_if_modified(|connection| {
        match connection {
            Connection::Disconnected { error: old, .. } if *old == error => return false,
            Connection::Disconnected { error: old, .. } => *old = error,
            Connection::Connected(_) => {
                tracing::warn!(error, "runtime disconnected");
                *connection = Connection::Disconnected { since: Instant::now(), error };
            }
        }
        true
    });
}

/// Asks everything. The event stream is opened first and looked at last: a runtime that refuses it has said so by the
/// time two more rounds of calls on the same connection are answered, and one that accepts it says nothing at all.
async fn detect(service: &RuntimeService, deadlines: &Deadlines) -> Result<(Capabilities, Option<Events>)> {
    let mut events = Events::open(service.clone());
    let mut first = None;
    let asking = async {
        timeout(deadlines.plain(), ask(service)).await.unwrap_or_else(|_| Err(Error::timeout("Version", "")))
    };
    tokio::pin!(asking);
    let mut answers = loop {
        tokio::select! {
            biased;
            event = events.next(), if first.is_none() => first = Some(event),
            answers = &mut asking => break answers?,
        }
    };
    answers.container_events = match first.or_else(|| events.next().now_or_never()) {
        None => EventStream::Open,
        Some(Some(Ok(event))) => {
            events.put_back(event);
            EventStream::Open
        }
        Some(None) => EventStream::Ended,
        Some(Some(Err(error))) => EventStream::Refused(error.kind),
    };
    let open = answers.container_events == EventStream::Open;
    Ok((Capabilities::from_answers(&answers), open.then_some(events)))
}

/// All but the events: Version, then the rest at once.
async fn ask(service: &RuntimeService) -> Result<Answers> {
    // An id that no runtime gives: the probes are answered without touching anything.
    let nothing = || "-".to_owned();
    let mut s: [RuntimeService; 7] = std::array::from_fn(|_| service.clone());
    let [version, status, config, containers, sandboxes, metrics, stream] = &mut s;

    let version = version.version(v1::VersionRequest { version: "v1".into() }).await;
    let version = version.map_err(|s| Error::from_status("Version", "", &s))?.into_inner();

    let containers_filter = v1::ContainerStatsFilter { id: nothing(), ..Default::default() };
    let sandboxes_filter = v1::PodSandboxStatsFilter { id: nothing(), ..Default::default() };
    let stream_filter = v1::ContainerFilter { id: nothing(), ..Default::default() };
    let (status, config, container_stats, sandbox_stats, metric_descriptors, stream_containers) = tokio::join!(
        status.status(v1::StatusRequest { verbose: false }),
        config.runtime_config(v1::RuntimeConfigRequest {}),
        containers.list_container_stats(v1::ListContainerStatsRequest { filter: Some(containers_filter) }),
        sandboxes.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest { filter: Some(sandboxes_filter) }),
        metrics.list_metric_descriptors(v1::ListMetricDescriptorsRequest {}),
        stream.stream_containers(v1::StreamContainersRequest { filter: Some(stream_filter) }),
    );
    let failed = |call| move |s: tonic::Status| Error::from_status(call, "", &s);
    // A probe that failed for want of a connection says nothing about the runtime.
    let probe = |call, result: std::result::Result<(), tonic::Status>| match result.map_err(failed(call)) {
        Err(e) if e.kind == Kind::Unavailable => Err(e),
        other => Ok(other.map_err(|e| e.kind)),
    };
    let runtime_config = match config.map_err(failed("RuntimeConfig")) {
        Err(e) if e.kind == Kind::Unavailable => return Err(e),
        other => other.map(tonic::Response::into_inner).map_err(|e| e.kind),
    };
    Ok(Answers {
        version,
        status: status.map_err(failed("Status"))?.into_inner(),
        runtime_config,
        container_events: EventStream::Ended,
        container_stats: probe("ListContainerStats", container_stats.map(drop))?,
        sandbox_stats: probe("ListPodSandboxStats", sandbox_stats.map(drop))?,
        metric_descriptors: probe("ListMetricDescriptors", metric_descriptors.map(drop))?,
        stream_containers: probe("StreamContainers", stream_containers.map(drop))?,
    })
}
