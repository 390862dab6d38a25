//! The Container Runtime Interface (CRI v1, as of Kubernetes 1.36) for a node agent: the messages ([`v1`]).
//!
//! The kubelet, the end-to-end tests and the benchmarks call it. It knows nothing of pods' specs or of policy: it says
//! on the wire what it is told to say, and says back what the runtime answered.

pub mod v1;
