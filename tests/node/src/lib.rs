//! What the end-to-end tests of the node agent stand on: the real `kubelet` binary on a real runtime.
//!
//! | module | for |
//! | --- | --- |
//! | [`node`] | one running agent: manifests in, pods out, killed and started again |
//! | [`runtime`] | the container runtime that the tests of one process take turns at |
//! | [`http`] | requests to the agent's ports |
//! | [`inside`] | an agent in this process, for pods of an API server |
//! | [`left`] | whatever lies on the host beside what the manifests want |
//! | [`manifest`], [`status`] | pods to write, statuses to read |
//! | [`marks`] | pods that notice when two of them run at once |
//! | [`acts`] | pods with init containers, sidecars and hooks that tell what they do, and what must hold of that |
//! | [`prometheus`] | Debian's Prometheus, scraping one agent |
//! | [`proxy`] | a socket before the runtime's whose connections can be cut |
//! | [`registry`] | an image registry on the loopback, with credentials, TLS and faults |
//! | [`wait`] | conditions that come true in bounded time |
//!
//! ```no_run
//! # async fn test() {
//! use node_e2e::{Node, manifest};
//!
//! let Some(mut node) = Node::start().await else { return };
//! node.put("web", manifest::pod("web", [manifest::sh("c", "sleep 1000")]));
//! node.wait_ready("web").await;
//! node.finish().await;
//! # }
//! ```
//!
//! A test that cannot run says `SKIP <name>: <reason>` on standard error and passes. A helper fails as a test does, by a
//! panic that shows what was last seen and the end of the agent's log.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as the tests do")]
#![allow(clippy::print_stdout, reason = "what a test skips is told to the person who runs it")]

pub mod acts;
pub mod http;
pub mod inside;
pub mod left;
pub mod manifest;
pub mod marks;
pub mod node;
pub mod prometheus;
pub mod proxy;
pub mod registry;
pub mod runtime;
pub mod status;
pub mod wait;

pub use node::{Node, Options};

/// Says that the running test is skipped, and why.
pub fn skip(reason: impl std::fmt::Display) {
    eprintln!("SKIP {}: {reason}", test_name());
}

/// The running test's name; libtest calls the thread of a test after it.
pub fn test_name() -> String {
    std::thread::current().name().unwrap_or("unnamed").to_owned()
}
