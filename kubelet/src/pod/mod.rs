//! Pods: each has one actor, a task that makes a plan of what should be and what is, carries it out, and looks again.
//!
//! ```text
//!   world ──watch<Desired>──▶ actor ◀──watch<Arc<Observed>>── pleg
//!                               │ plan (pure) ─▶ steps: volumes, cgroup, sandbox, images, containers (cri)
//!                               ├──▶ status   (what became of it)
//!                               └──▶ world    (its task ends when nothing of the pod is left)
//! ```
//!
//! `plan` and `backoff` are pure, `translate` turns a pod into CRI messages, `steps` does the I/O and runs
//! the `hooks`, `actor` is the loop. An actor knows only its own pod; it never admits, and never writes what should be.

pub mod actor;
pub mod backoff;
pub mod dead;
pub mod desired;
mod hooks;
pub mod plan;
mod rooms;
mod steps;
pub mod translate;
mod wants;

pub use actor::spawn;
pub use desired::{Desired, Pending, PendingReason, Resize, Stop, StopReason};
pub use rooms::Rooms;
