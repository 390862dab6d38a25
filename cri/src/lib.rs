//! The Container Runtime Interface (CRI v1, as of Kubernetes 1.36) for a node agent.
//!
//! The kubelet, the end-to-end tests and the benchmarks call it. It knows nothing of pods' specs or of policy: it says on
//! the wire what it is told to say, and says back what the runtime answered.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`v1`] | the messages, as generated from `proto/cri.proto` |
//! | [`Client`] | a method for every call, with deadlines and errors that name call and object |
//! | [`Connection`], [`Capabilities`] | whether there is a runtime, and what it can do |
//! | [`Events`] | the container event stream |
//! | `conformance` (feature) | checks that hold for every runtime, real or fake |
//! | `fake` (feature) | a runtime in memory, for tests of whoever calls one |
//!
//! Tasks, for each client:
//!
//! | task | takes | gives | ends |
//! | --- | --- | --- | --- |
//! | `link` (one for each endpoint) | a [`Connector`] | the newest HTTP/2 connection, or why there is none | with its last user |
//! | `detect` | the link's changes | [`Connection`] by `watch`; the first event stream | with the last client |

mod capabilities;
mod client;
#[cfg(feature = "conformance")]
pub mod conformance;
mod connect;
mod deadline;
mod detect;
mod error;
mod events;
#[cfg(feature = "fake")]
pub mod fake;
mod link;
pub mod v1;

pub use capabilities::{Answers, Capabilities, EventStream, Stats};
pub use client::{Builder, Client, Finished, MAX_MESSAGE};
pub use connect::{Connector, EndpointError, Io};
pub use deadline::Deadlines;
pub use detect::Connection;
pub use error::{Error, Kind, Result};
pub use events::Events;
pub use link::Backoff;
pub use tonic::Code;
