//! The plugins against a real kernel: the built binary, called through the chain a runtime would run, in network
//! namespaces made for each test. The "node" is a namespace too, so links, nftables tables and settings of the
//! machine are never touched. Needs root and `ip`; what cannot run says so by name.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as the tests do")]

mod chain;
mod faults;
mod hostport;
mod lab;
mod reach;
