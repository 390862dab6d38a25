//! `stevedore-cni`: every CNI plugin of Stevedore in one binary; the name it is called by chooses the plugin.
//!
//! Called by container runtimes through links named `bridge`, `host-local`, `loopback`, `portmap`, and by people as
//! `stevedore-cni install DIR`. A plugin runs for milliseconds, keeps nothing in memory, and must leave nothing that
//! a later DEL or GC, knowing only a container id, could not find.

mod bridge;
mod fields;
mod host_local;
mod install;
mod ipam;
mod loopback;
mod nft;
mod owner;
mod portmap;
mod purge;
mod skel;

use std::path::Path;
use std::process::ExitCode;

use skel::Plugin;

/// The plugins by name.
pub const PLUGINS: [(&str, &dyn Plugin); 4] = [
    ("bridge", &bridge::Bridge),
    ("host-local", &host_local::HostLocal),
    ("loopback", &loopback::Loopback),
    ("portmap", &portmap::Portmap),
];

const USAGE: &str = "usage: stevedore-cni install [--force] DIR   copy this binary to DIR and link the plugins to it
       stevedore-cni uninstall DIR           remove what install made
       stevedore-cni purge CONFLIST          remove every trace of a network from this host
       stevedore-cni PLUGIN                  run a plugin, as its link does (bridge, host-local, loopback, portmap)
       stevedore-cni --version | --help";

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let called = args.next().unwrap_or_default();
    let called = Path::new(&called).file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Some((name, plugin)) = PLUGINS.iter().find(|(name, _)| *name == called) {
        return skel::run(name, *plugin);
    }
    let args: Vec<String> = args.map(|a| a.to_string_lossy().into_owned()).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["--version" | "-V"] => {
            say(&format!("stevedore-cni {}", env!("CARGO_PKG_VERSION")));
            return ExitCode::SUCCESS;
        }
        ["--help" | "-h"] => {
            say(USAGE);
            return ExitCode::SUCCESS;
        }
        ["install", dir] => install::install(Path::new(dir), false),
        ["install", "--force", dir] | ["install", dir, "--force"] => install::install(Path::new(dir), true),
        ["uninstall", dir] => install::uninstall(Path::new(dir)),
        ["purge", file] => purge::purge(Path::new(file)),
        [name] => match PLUGINS.iter().find(|(n, _)| *n == name) {
            Some((name, plugin)) => return skel::run(name, *plugin),
            None => Err(anyhow::anyhow!("unknown command {name:?}\n{USAGE}")),
        },
        _ => Err(anyhow::anyhow!("{USAGE}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            skel::note(&format!("{e:#}"));
            ExitCode::FAILURE
        }
    }
}

/// A line on standard output; a closed pipe is the reader's choice.
fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}
