//! What the agent counts and measures, under the stock kubelet's names, as Prometheus text 0.0.4.
//!
//! Every room holds a [`Metrics`] (cloning is cheap) and feeds the fields that are its own; a room whose metrics are
//! not there adds its families through [`Metrics::registry`]. `server` serves what [`Registry::chunks`] yields.
//! Feeding a metric never blocks on I/O, never fails and never panics.
//!
//! A metric without labels is shown once somebody has fed it (`inc_by(0)` and `set(0)` count as feeding), so nothing
//! is exposed that nobody measures. A labelled family shows the label values that occurred.
//!
//! The exposition is written here rather than by `prometheus-client`, whose OpenMetrics output differs in the names
//! of counters, in its end marker and in its content type from what upstream serves.

mod kubelet;
mod probes;
mod process;
mod registry;
mod text;
mod value;

#[cfg(test)]
mod tests;

pub use kubelet::{BuildInfo, Metrics, buckets, image_size_bucket};
pub use probes::ProbeMetrics;
pub use process::Process;
pub use registry::{Family, Registry};
pub use text::{Kind, Writer, float};
pub use value::{Counter, Gauge, Histogram};

/// The `Content-Type` upstream sends with an exposition.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
