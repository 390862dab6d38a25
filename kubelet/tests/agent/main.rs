//! The whole agent in one process, on the fake runtime, on paused time: what it promises whatever goes wrong.
//!
//! | module | |
//! | --- | --- |
//! | `support` | the machine, and what is asserted of it |
//! | `scale` | many pods at once |
//! | `faults` | a runtime that fails, hangs, forgets or restarts |
//! | `images` | pulls and credentials |
//! | `lifecycle` | sidecars, ephemeral containers, restart rules |
//! | `objects` | ConfigMaps and Secrets |
//! | `logs` | rotation, and logs that go with their containers |
//! | `resize` | resources that change while pods run |
//! | `restarts` | an agent that is killed |
//! | `waits` | back-offs |
//! | `traces` | what a collector is told of starts |
//! | `manifests` | static pods from their files on |
//! | `dead` | how many ended containers are kept |
//! | `metrics` | what `/metrics` says of pods |
//! | `updates` | manifests that change, pods that end |
//! | `probes` | what probes make of pods |
//! | `admission` | what the node can give |
//! | `users` | user namespaces |
//! | `hooks` | postStart and preStop |
//! | `evict`, `evict_disk` | eviction for want of memory, of disk space, and for limits of a pod's own |
//! | `deadlines` | `activeDeadlineSeconds` |
//! | `clock` | a wall clock that is set |
//! | `cgroups` | cgroup drivers |
//! | `network` | a runtime without a network for pods |
//! | `checkpoints` | archives of containers |

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod admission;
mod cgroups;
mod checkpoints;
mod clock;
mod dead;
mod deadlines;
mod evict;
mod evict_disk;
mod faults;
mod hooks;
mod images;
mod lifecycle;
mod logs;
mod manifests;
mod metrics;
mod network;
mod objects;
mod probes;
mod resize;
mod restarts;
mod scale;
mod support;
mod traces;
mod updates;
mod users;
mod waits;
