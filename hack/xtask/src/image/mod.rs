//! Images built on this machine, so that nothing is ever pulled: the pause image, a demo image with a
//! shell, and variants of it that tests need.
//!
//! [`Image::build`] makes an OCI layout in the tree's cache, [`import`] puts layouts into a containerd
//! through its own API, [`Layout::write_archive`] makes a tar that any other runtime's tools load.

mod build;
mod import;
mod layer;
mod layout;

use std::fmt;

use oci_spec::image::{Config, ConfigBuilder};

pub use import::import;
pub use layout::Layout;
pub(crate) use layout::hex;

/// The sandbox image's name.
pub const PAUSE: &str = "localhost/stevedore/pause:latest";
/// The demo image's name: busybox with every applet, a shell, and a page under `/www`.
pub const DEMO: &str = "localhost/stevedore/demo:latest";

/// The search path inside the demo images.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The images that this crate can build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Image {
    /// [`PAUSE`]: one static program, user 65535 as upstream's.
    Pause,
    /// [`DEMO`]: busybox, root, no entry point, command `sh`.
    Demo,
    /// `localhost/stevedore/user-numeric:latest`: as the demo, user `1000:1000`.
    UserNumeric,
    /// `localhost/stevedore/user-named:latest`: as the demo, user `demo` (1000 in its `/etc/passwd`).
    UserNamed,
    /// `localhost/stevedore/entrypoint:latest`: as the demo, entry point `echo from-entrypoint`,
    /// command `from-cmd`, environment `IMAGE_ENV=set`, working directory `/www`.
    Entrypoint,
    /// `localhost/stevedore/stamp:latest`: one static program that tells when it began to run and when it
    /// was told to end, for the benchmark. Root, entry point `/stamp`.
    Stamp,
}

impl Image {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Pause, Self::Demo, Self::UserNumeric, Self::UserNamed, Self::Entrypoint, Self::Stamp];

    /// The last part of the name.
    pub fn short_name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Demo => "demo",
            Self::UserNumeric => "user-numeric",
            Self::UserNamed => "user-named",
            Self::Entrypoint => "entrypoint",
            Self::Stamp => "stamp",
        }
    }

    /// The full reference that pods name.
    pub fn reference(self) -> String {
        format!("localhost/stevedore/{}:latest", self.short_name())
    }

    /// Runtimes must not garbage-collect it.
    fn pinned(self) -> bool {
        self == Self::Pause
    }

    /// The `config` object of the image configuration.
    fn config(self) -> Result<Config, oci_spec::OciSpecError> {
        let strings = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        if self == Self::Pause {
            return ConfigBuilder::default().user("65535:65535").entrypoint(strings(&["/pause"])).build();
        }
        if self == Self::Stamp {
            return ConfigBuilder::default().entrypoint(strings(&["/stamp"])).build();
        }
        let config = ConfigBuilder::default().env(strings(&[PATH])).cmd(strings(&["/bin/sh"]));
        match self {
            Self::UserNumeric => config.user("1000:1000").build(),
            Self::UserNamed => config.user("demo").build(),
            Self::Entrypoint => config
                .env(strings(&[PATH, "IMAGE_ENV=set"]))
                .entrypoint(strings(&["/bin/echo", "from-entrypoint"]))
                .cmd(strings(&["from-cmd"]))
                .working_dir("/www")
                .build(),
            Self::Pause | Self::Stamp | Self::Demo => config.build(),
        }
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reference())
    }
}
