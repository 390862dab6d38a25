//! Where the time of a pod's start goes: a histogram of its phases, and, where `tracing` is configured, a trace of each
//! sampled pod from its source event to Ready, exported by OTLP over gRPC.
//!
//! ```text
//!   actor: PodStart ── carries ──▶ steps: phase("volumes", …), phase("sandbox", …) … ──▶ histogram
//!          │ root span "startPod"        └─ child span ─┬─ span of every CRI call in it (the client's observer)
//!          ▼                                            ▼
//!     Ready, or ended ──▶ bounded queue ──▶ export task ──▶ collector
//! ```
//!
//! The present phase travels with the task that works on it (a task-local value): steps name a phase, and whatever is
//! called below is its child, without being handed anything. Work that another task does for it is given
//! [`Carried`] along. Outside of a pod's start, and for pods that are not sampled, nothing is made or allocated. A queue
//! that is full drops spans and counts them; nobody ever waits for a collector.

mod export;
pub mod otlp;
mod pod;
mod span;

pub use export::{ExportConfig, Flush, Target, Tracer};
pub use pod::{End, PodStart};
pub use span::{Carried, Phase, carry, done, observe, phase, within};

#[cfg(test)]
mod tests;
