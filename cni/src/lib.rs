//! CNI (Container Network Interface): the words, the runtime side, and the kernel.
//!
//! Who uses what:
//!
//! | module | what it holds | who calls it |
//! | --- | --- | --- |
//! | [`version`], [`error`], [`result`], [`conf`], [`args`], [`cidr`] | the types of the CNI specification 0.3.0 to 1.1.0 | everyone |
//! | [`conflist`] | the network configuration a node gets by default | `hack/up`, the agent |
//! | [`runtime`] | what a runtime does: load a configuration directory, run a plugin chain | tests, tools; containerd and CRI-O bring their own |
//! | [`netns`], [`sysctl`], [`netlink`], [`nfnetlink`] | network namespaces, links, addresses, routes, nftables elements, conntrack | the plugins in `cni-plugins` |
//!
//! This crate knows nothing of pods, Kubernetes or CRI. Its kernel modules block: an async caller runs them
//! on a blocking thread.

pub mod args;
pub mod cidr;
pub mod conf;
pub mod conflist;
pub mod error;
pub mod netlink;
pub mod netns;
pub mod nfnetlink;
pub mod result;
pub mod runtime;
pub mod sysctl;
pub mod version;

pub use args::{Attachment, CniArgs};
pub use cidr::Cidr;
pub use conf::{ConfError, NetConf, NetConfList};
pub use conflist::{ConflistParams, default_conflist};
pub use error::{CniError, code};
pub use result::{CniResult, Dns, Interface, IpConfig, Route};
pub use version::Version;
