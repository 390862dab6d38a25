//! probe: startup, liveness and readiness probes of every container that runs, and what they make of it.
//!
//! A pod's actor reads the pod's [`Readiness`]: the plan ends containers by it and gates sidecars with it, the status
//! shows it. The room kills nothing and writes no status; it never calls back.

pub mod dial;
pub mod http;
mod readiness;
mod tls;

pub use readiness::{ContainerReadiness, Kind, ProbeFailure, Readiness};
