//! The project's own tools as a library: what `cargo xtask`, the scripts in `hack/` and the end-to-end
//! tests share.
//!
//! | module | for |
//! | --- | --- |
//! | [`runtime`] | a private containerd of any supported release, and cleaning up after it |
//! | [`image`] | OCI images built locally and imported without a pull |
//! | [`plugins`] | folders with CNI plugins |
//! | [`build`] | binaries of this workspace |
//! | [`up`] | `hack/up` and `hack/down` |
//! | [`suite`] | `hack/test` |
//! | [`vm`] | nodes with a kernel of their own, systemd and cgroup v2 |
//! | [`bench`] | what the agent costs against the floor of its runtime |
//! | [`proc`], [`tree`] | process identities, paths of the source tree |
//!
//! A test that needs a runtime:
//!
//! ```no_run
//! # async fn test() -> anyhow::Result<()> {
//! use xtask::runtime::{Network, Options, PrivateContainerd};
//! use xtask::{build::Profile, plugins};
//!
//! let mut options = Options::from_env()?;
//! options.network = Network::Bridge { plugins: plugins::ours(Profile::Dev)? };
//! let containerd = PrivateContainerd::start(options).await?;
//! println!("CRI at {}", containerd.endpoint());
//! containerd.stop().await
//! # }
//! ```
//!
//! Production crates never depend on this one.

pub mod apt;
pub mod bench;
pub mod build;
mod cmd;
pub mod image;
pub mod plugins;
pub mod proc;
pub mod runtime;
pub mod suite;
pub mod tree;
pub mod up;
pub mod vm;
