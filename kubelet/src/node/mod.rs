//! The machine: what it is called, where it is reached, and what it has to give. Read once by `assemble`.
//!
//! Paths are parameters, so a test passes a tempdir for `/proc` and `/sys`.

mod address;
mod capacity;
mod kernel;

pub use address::{AddressError, node_addresses};
pub use capacity::{Capacity, CapacityError, HugePages};
pub use kernel::kernel_differences;

/// The name under which the machine is a node: the override, or the hostname; lower-cased and trimmed as upstream does.
pub fn node_name(hostname_override: Option<&str>, hostname: &str) -> Result<String, NameError> {
    let name = hostname_override.unwrap_or(hostname).trim().to_lowercase();
    if name.is_empty() { Err(NameError) } else { Ok(name) }
}

/// The machine has no name and none was given.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("empty node name: set the machine's hostname or --hostname-override")]
pub struct NameError;

/// The machine's hostname.
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
