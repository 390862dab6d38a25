//! Packages of another Debian suite, unpacked into a folder without installing them.
//!
//! Called by [`crate::runtime`] to find containerd releases that the machine's own suite lacks, and by
//! [`crate::vm`] for the nodes' system and kernel. It reads the machine's apt sources, keeps mirror and keyring, changes only the suite, and gives apt
//! private list and cache folders: the machine's own package state is never touched, and no mirror
//! address is written down in this tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{cmd, tree};

/// Where the machine gets its Debian from: what a private configuration copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Archive addresses, as in the sources file.
    pub uris: Vec<String>,
    /// The keyring named there, if any.
    pub signed_by: Option<String>,
}

/// Downloads `packages` from `suite` and unpacks all of them into `into`, which appears only when complete.
///
/// Blocking, seconds long. Errors name the suite and carry what apt said.
pub fn unpack(suite: &str, packages: &[&str], into: &Path) -> Result<()> {
    let mirror = machine_mirror()?;
    let private = Private::new(suite)?;
    private.update(suite, &mirror)?;
    let debs = tempfile::tempdir_in(tree::cache("apt")?)?;
    cmd::run(private.command("apt-get").current_dir(debs.path()).arg("download").args(packages))
        .with_context(|| format!("download {packages:?} of Debian {suite}"))?;
    let parent = into.parent().context("the target folder has a parent")?;
    fs::create_dir_all(parent)?;
    let fresh = tempfile::tempdir_in(parent)?;
    for deb in fs::read_dir(debs.path())? {
        let deb = deb?.path();
        if deb.extension().is_some_and(|e| e == "deb") {
            cmd::run(Command::new("dpkg").arg("-x").arg(&deb).arg(fresh.path()))?;
        }
    }
    fs::set_permissions(fresh.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    if into.exists() {
        fs::remove_dir_all(into)?;
    }
    fs::rename(fresh.keep(), into).with_context(|| format!("rename onto {}", into.display()))?;
    Ok(())
}

/// A sources file that names `suite` on the machine's own mirror, with a keyring that its lists were verified by.
pub fn sources(suite: &str) -> Result<PathBuf> {
    let private = Private::new(suite)?;
    private.update(suite, &machine_mirror()?)?;
    Ok(private.sources())
}

/// The package of `suite` with the highest version of those called `prefix` and then a version, such as
/// `linux-source-7.2`.
pub fn newest(suite: &str, prefix: &str) -> Result<String> {
    let private = Private::new(suite)?;
    private.update(suite, &machine_mirror()?)?;
    let names = cmd::text(private.command("apt-cache").args(["pkgnames", prefix]))?;
    highest(&names, prefix).with_context(|| format!("Debian {suite} has no package {prefix}*"))
}

/// The highest of some names, one a line, that are `prefix` and numbers with dots between them.
fn highest(names: &str, prefix: &str) -> Option<String> {
    let parts = |name: &str| -> Option<Vec<u32>> {
        let rest = name.strip_prefix(prefix)?.trim_start_matches('.');
        rest.split('.').filter(|part| !part.is_empty()).map(|part| part.parse().ok()).collect()
    };
    let found = names.lines().filter_map(|name| Some((parts(name)?, name)));
    found.max().map(|(_, name)| name.to_owned())
}

/// apt's private folders for one suite.
struct Private {
    dir: PathBuf,
    /// apt refuses to wait for another one in the same folders.
    _alone: tree::Lock,
}

impl Private {
    fn new(suite: &str) -> Result<Self> {
        let dir = tree::cache("apt")?.join(suite);
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part))?;
        }
        Ok(Self { dir, _alone: tree::lock(&format!("apt-{suite}"))? })
    }

    fn sources(&self) -> PathBuf {
        self.dir.join("suite.sources")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let (dir, sources) = (self.dir.display(), self.sources());
        command
            .env("LC_ALL", "C")
            .arg("-q")
            .args(["-o", &format!("Dir::Etc::sourcelist={}", sources.display())]);
        command.args(["-o", "Dir::Etc::sourceparts=-"]);
        command.args(["-o", &format!("Dir::State::Lists={dir}/lists")]);
        command.args(["-o", &format!("Dir::Cache={dir}/cache")]);
        // The tree may be readable by root alone; apt's sandbox user could not write there.
        command.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"]);
        command.args(["-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"]);
        command
    }

    /// Fetches the suite's lists. When the machine's keyring is older than the suite's key, the keyring
    /// package of the machine's own suite (verified by the keys it has) is unpacked and tried once.
    fn update(&self, suite: &str, mirror: &Mirror) -> Result<()> {
        self.write_sources(suite, mirror)?;
        let first = self.try_update();
        let Err(error) = first else { return Ok(()) };
        if !format!("{error:#}").contains("NO_PUBKEY") {
            return Err(error.context(format!("fetch the package list of Debian {suite}")));
        }
        let keyring = newest_keyring().context("the archive keyring of this machine is too old")?;
        let newer = Mirror { signed_by: Some(keyring.display().to_string()), ..mirror.clone() };
        self.write_sources(suite, &newer)?;
        self.try_update().with_context(|| format!("fetch the package list of Debian {suite}"))
    }

    fn try_update(&self) -> Result<()> {
        let output = cmd::run(self.command("apt-get").arg("update"))?;
        // apt-get update reports most failures as warnings with exit code 0.
        let said = String::from_utf8_lossy(&output.stderr);
        match said.lines().find(|line| line.starts_with("E:") || line.contains("Failed to fetch")) {
            Some(line) => bail!("apt-get update: {line}"),
            None => Ok(()),
        }
    }

    fn write_sources(&self, suite: &str, mirror: &Mirror) -> Result<()> {
        tree::write_atomic(&self.sources(), stanza(suite, mirror).as_bytes())
    }
}

fn newest_keyring() -> Result<PathBuf> {
    let dir = tempfile::tempdir_in(tree::cache("apt")?)?;
    cmd::run(Command::new("apt-get").current_dir(dir.path()).args([
        "-q",
        "-o",
        "APT::Sandbox::User=root",
        "download",
        "debian-archive-keyring",
    ]))?;
    let keys = tree::cache("apt")?.join("keyring");
    for deb in fs::read_dir(dir.path())? {
        cmd::run(Command::new("dpkg").arg("-x").arg(deb?.path()).arg(&keys))?;
    }
    for name in ["debian-archive-keyring.pgp", "debian-archive-keyring.gpg"] {
        let path = keys.join("usr/share/keyrings").join(name);
        if path.exists() {
            return Ok(path);
        }
    }
    bail!("the package debian-archive-keyring holds no keyring")
}

/// One deb822 stanza for `suite` on `mirror`.
fn stanza(suite: &str, mirror: &Mirror) -> String {
    let mut text =
        format!("Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n", mirror.uris.join(" "));
    if let Some(keyring) = &mirror.signed_by {
        text.push_str(&format!("Signed-By: {keyring}\n"));
    }
    text
}

/// The mirror in the machine's own sources that serves its own release.
fn machine_mirror() -> Result<Mirror> {
    let codename = codename()?;
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.sort();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let found = match file.extension().and_then(|e| e.to_str()) {
            Some("sources") => from_deb822(&text, &codename),
            Some("list") => from_one_line(&text, &codename),
            _ => None,
        };
        if let Some(mirror) = found {
            return Ok(mirror);
        }
    }
    bail!(
        "no apt source of this machine serves its suite {codename}: looked in /etc/apt/sources.list and sources.list.d"
    )
}

/// `VERSION_CODENAME` of this machine, such as `bookworm`.
pub fn codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("/etc/os-release has no VERSION_CODENAME")?.trim_matches('"').to_owned())
}

/// Finds the stanza of a deb822 file whose `Suites` hold exactly `codename`.
fn from_deb822(text: &str, codename: &str) -> Option<Mirror> {
    let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let joined = kept.join("\n");
    joined.split("\n\n").find_map(|stanza| {
        let field = |name: &str| {
            stanza.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.trim().eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let has = |value: String, word: &str| value.split_whitespace().any(|w| w == word);
        if field("Enabled").is_some_and(|v| v == "no") || !has(field("Types")?, "deb") {
            return None;
        }
        if !has(field("Suites")?, codename) {
            return None;
        }
        let uris = field("URIs")?.split_whitespace().map(str::to_owned).collect();
        // A key pasted into the stanza spans lines and starts empty here; apt's own trust then decides.
        let signed_by = field("Signed-By").filter(|v| v.starts_with('/'));
        Some(Mirror { uris, signed_by })
    })
}

/// Finds the `deb` line of a one-line-style file whose suite is exactly `codename`.
fn from_one_line(text: &str, codename: &str) -> Option<Mirror> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(inside) => inside.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let uri = words.next()?;
        if words.next()? != codename {
            return None;
        }
        let signed_by =
            options.split_whitespace().find_map(|o| o.strip_prefix("signed-by=")).map(str::to_owned);
        Some(Mirror { uris: vec![uri.to_owned()], signed_by })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stanza_of_the_own_suite_is_found_and_the_security_one_is_not() {
        let text = "Types: deb\n# a comment\nURIs: http://mirror.test/debian-security\nSuites: bookworm-security\n\
                    Components: main\n\nTypes: deb deb-src\nURIs: http://mirror.test/debian\n\
                    Suites: bookworm bookworm-updates\nSigned-By: /usr/share/keyrings/k.gpg\n";
        let mirror = from_deb822(text, "bookworm").unwrap();
        assert_eq!(mirror.uris, ["http://mirror.test/debian"]);
        assert_eq!(mirror.signed_by.as_deref(), Some("/usr/share/keyrings/k.gpg"));
        assert_eq!(from_deb822(text, "trixie"), None);
    }

    #[test]
    fn one_line_sources_are_read_with_and_without_options() {
        let text = "# deb http://no.test/ bookworm main\ndeb-src http://no.test/ bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://mirror.test/debian bookworm main contrib\n";
        let mirror = from_one_line(text, "bookworm").unwrap();
        assert_eq!(
            mirror,
            Mirror { uris: vec!["http://mirror.test/debian".into()], signed_by: Some("/k.gpg".into()) }
        );
        assert!(
            from_one_line("deb http://mirror.test/debian bookworm main", "bookworm")
                .unwrap()
                .signed_by
                .is_none()
        );
    }

    #[test]
    fn versions_in_names_are_compared_as_numbers() {
        let names =
            "linux-source-7.9\nlinux-source-7.10\nlinux-source-7.10-rt\nlinux-source\nlinux-source-70x\n";
        assert_eq!(highest(names, "linux-source-7").as_deref(), Some("linux-source-7.10"));
        assert_eq!(highest("linux-source-6.12\n", "linux-source-7"), None);
    }

    #[test]
    fn the_private_stanza_changes_nothing_but_the_suite() {
        let mirror =
            Mirror { uris: vec!["http://mirror.test/debian".into()], signed_by: Some("/k.gpg".into()) };
        assert_eq!(from_deb822(&stanza("sid", &mirror), "sid"), Some(mirror));
    }
}
