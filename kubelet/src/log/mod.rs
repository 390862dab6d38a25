//! Container logs on the node: where they lie, the links that log collectors follow, and reading them back.
//!
//! The runtime writes the files (CRI log format); `pod` asks for paths and makes directories and links, garbage
//! collection asks for what lies around, `server` reads and follows through [`Reader`]. [`Rotation`] is a task that renames
//! logs that have grown too large and has the runtime open new ones.
//!
//! This room asks the runtime for nothing else and never decides whether a pod or container is still wanted. All directories
//! are parameters, so a test passes a tempdir.

mod count;
mod decode;
mod follow;
#[cfg(test)]
mod huge_tests;
mod path;
mod place;
mod rotated;
mod rotation;
mod source;
mod tail;
mod watch;

pub use count::{has_logs, next_restarts};
pub use decode::{Decoder, Filter, Stream};
pub use follow::{ReadError, ReadOptions, Reader};
pub use path::{
    CONTAINER_LOGS_DIR, LogPathError, PodLogDir, container_log_dir, container_log_path, create_link,
    find_pod_log_dirs, link_path, pod_log_dir, relative_log_path, remove_instance_logs, remove_links,
    remove_links_into, remove_pod_logs,
};
pub use rotation::{LATENCY, Reopen, Rotation, RotationConfig, RunningLog};
pub use tail::last_output;
pub use watch::Watcher;
