//! The node agent as a library: every room, and `assemble`, the only module that knows them all.
//!
//! ```text
//!  source/{file} ──SourceEvent──▶ world ──watch<Desired>──▶ pod actor ──▶ cri ──▶ containerd / CRI-O
//!                                   ▲  (admits, one writer)    │  ▲
//!                    Stop{why,grace}┘                          │  └──Observed{seq}── pleg ◀── runtime events,
//!                                                       Report ▼                           relist on demand
//!                                                         status ──▶ /pods; metrics; later the API server
//! ```
//!
//! The binary (`main.rs`) only parses the command line and hands over to [`assemble`].

pub mod allocation;
pub mod api;
pub mod assemble;
pub mod cgroup;
pub mod clock;
pub mod config;
pub mod event;
pub mod evict;
pub mod gotext;
pub mod image;
pub mod log;
pub mod metrics;
pub mod mountinfo;
pub mod network;
pub mod node;
pub mod objects;
pub mod pleg;
pub mod pod;
pub mod probe;
pub mod process;
pub mod quantity;
pub mod resolve;
pub mod server;
pub mod settings;
pub mod source;
pub mod stats;
pub mod status;
pub mod sys;
pub mod trace;
pub mod userns;
pub mod view;
pub mod volume;
pub mod world;
