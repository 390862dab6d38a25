//! Builds the images of [`super::Image`] as OCI layouts, once per contents.
//!
//! Called by [`Image::build`]. A layout lies in a folder named by the hash of everything that went into
//! it, and appears there complete by a rename, so that parallel test processes share it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest as _, Sha256};

use super::Image;
use super::layer::Layer;
use super::layout::{Layout, hex};
use crate::{apt, cmd, tree};

const PAUSE_SOURCE: &str = include_str!("../../../images/pause.rs");
const STAMP_SOURCE: &str = include_str!("../../../images/stamp.rs");
/// The module that both of them have.
const SYS_SOURCE: &str = include_str!("../../../images/sys.rs");

/// Counts up when the recipe below changes in a way that its inputs do not show.
const RECIPE: u32 = 1;

impl Image {
    /// Builds the image, or finds it built. Blocking; the first build runs rustc and may fetch busybox.
    pub fn build(self) -> Result<Layout> {
        self.build_as(&self.reference())
    }

    /// As [`Image::build`] under another name, for tests that need given references.
    pub fn build_as(self, reference: &str) -> Result<Layout> {
        self.build_salted(reference, "")
    }

    /// As [`Image::build_as`] with `salt` in a file, so that neither image nor layer is another's: a runtime that has all
    /// others must fetch this one. For images with a shell.
    pub fn build_salted(self, reference: &str, salt: &str) -> Result<Layout> {
        let _alone = tree::lock("images")?;
        let program = match self {
            Self::Pause => compile("pause", PAUSE_SOURCE)?,
            Self::Stamp => compile("stamp", STAMP_SOURCE)?,
            _ => busybox()?,
        };
        let bytes = fs::read(&program).with_context(|| format!("read {}", program.display()))?;
        let config = self.config()?;
        let mut key = Sha256::new();
        key.update(format!("{RECIPE} {reference} {}", serde_json::to_string(&config)?));
        key.update(salt);
        key.update(&bytes);
        let name = format!("{}-{}", self.short_name(), &hex(&key.finalize())[..16]);
        let parent = tree::cache("images")?;
        let built = Layout { dir: parent.join(name), reference: reference.to_owned(), pinned: self.pinned() };
        if !built.dir.exists() {
            let layer = match self {
                Self::Pause | Self::Stamp => program_layer(self.short_name(), &bytes)?,
                _ => demo_layer(&program, &bytes, salt)?,
            };
            let fresh = tempfile::tempdir_in(&parent)?;
            Layout { dir: fresh.path().to_path_buf(), ..built.clone() }
                .write(config, &layer)
                .with_context(|| format!("build image {reference}"))?;
            fs::rename(fresh.keep(), &built.dir)?;
        }
        Ok(built)
    }
}

/// A static program without a C library, a few kilobytes.
fn compile(name: &str, source_text: &str) -> Result<PathBuf> {
    let key = &hex(&Sha256::digest(format!("{source_text}{SYS_SOURCE}")))[..16];
    let path = tree::cache("images")?.join(format!("{name}-program-{key}"));
    if path.exists() {
        return Ok(path);
    }
    let dir = tempfile::tempdir_in(tree::cache("images")?)?;
    let source = dir.path().join(format!("{name}.rs"));
    fs::write(&source, source_text)?;
    fs::write(dir.path().join("sys.rs"), SYS_SOURCE)?;
    let out = dir.path().join(name);
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.current_dir(tree::root()).args([
        "--edition",
        "2024",
        "-O",
        "-C",
        "panic=abort",
        "-C",
        "strip=symbols",
    ]);
    command.args(["-C", "relocation-model=static", "-C", "link-arg=-static", "-C", "link-arg=-nostartfiles"]);
    command.args(["-C", "link-arg=-nodefaultlibs", "-o"]).arg(&out).arg(&source);
    cmd::run(&mut command).with_context(|| format!("compile the program {name}"))?;
    fs::rename(&out, &path)?;
    Ok(path)
}

/// The static busybox of this machine, or that of Debian unpacked into the tree.
fn busybox() -> Result<PathBuf> {
    let installed = Path::new("/bin/busybox");
    if fs::read(installed).is_ok_and(|bytes| is_static(&bytes)) {
        return Ok(installed.to_path_buf());
    }
    let dir = tree::cache("runtimes")?.join("busybox");
    let candidates = [dir.join("bin/busybox"), dir.join("usr/bin/busybox")];
    if !candidates.iter().any(|path| path.exists()) {
        apt::unpack(&apt::codename()?, &["busybox-static"], &dir)
            .context("busybox-static is needed for the demo image")?;
    }
    let found = candidates.into_iter().find(|path| path.exists());
    let found = found.context("the package busybox-static holds no busybox")?;
    if !is_static(&fs::read(&found)?) {
        bail!("{} is not a static program", found.display());
    }
    Ok(found)
}

/// No program header asks for an interpreter (ELF64, `PT_INTERP` = 3).
fn is_static(elf: &[u8]) -> bool {
    let number = |at: usize, width: usize| -> Option<usize> {
        let bytes = elf.get(at..at.checked_add(width)?)?;
        Some(bytes.iter().rev().fold(0, |n, b| n << 8 | usize::from(*b)))
    };
    let scan = || -> Option<bool> {
        let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        for index in 0..count {
            if number(table.checked_add(index * size)?, 4)? == 3 {
                return Some(false);
            }
        }
        Some(true)
    };
    elf.starts_with(b"\x7fELF\x02\x01") && scan() == Some(true)
}

fn program_layer(name: &str, program: &[u8]) -> Result<Vec<u8>> {
    let mut layer = Layer::new();
    layer.file(name, 0o755, program)?;
    layer.finish()
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\ndemo:x:1000:1000:demo:/home/demo:/bin/sh\n\
                      nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
const GROUP: &str = "root:x:0:\ndemo:x:1000:\nextra:x:2000:demo\nnogroup:x:65534:\n";
const PAGE: &str = "<!doctype html><title>stevedore</title><h1>It runs.</h1>\n";

/// Busybox under every name it answers to, users, writable places, a page to serve.
fn demo_layer(program: &Path, bytes: &[u8], salt: &str) -> Result<Vec<u8>> {
    let applets = cmd::text(Command::new(program).arg("--list")).context("list busybox's applets")?;
    let mut layer = Layer::new();
    for dir in ["bin", "etc", "home", "usr", "usr/bin", "var", "var/run", "www"] {
        layer.dir(dir, 0o755)?;
    }
    layer.dir("root", 0o700)?;
    layer.dir("home/demo", 0o777)?;
    layer.dir("tmp", 0o1777)?;
    layer.file("bin/busybox", 0o755, bytes)?;
    for applet in applets.lines().filter(|name| *name != "busybox" && !name.contains('/')) {
        layer.symlink(&format!("bin/{applet}"), "/bin/busybox")?;
    }
    layer.file("etc/passwd", 0o644, PASSWD.as_bytes())?;
    layer.file("etc/group", 0o644, GROUP.as_bytes())?;
    layer.file("www/index.html", 0o644, PAGE.as_bytes())?;
    if !salt.is_empty() {
        layer.file("etc/salt", 0o644, salt.as_bytes())?;
    }
    layer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_and_rubbish_are_not_taken_for_static_ones() {
        assert!(!is_static(b""));
        assert!(!is_static(b"\x7fELF\x02\x01"));
        assert!(!is_static(&fs::read(std::env::current_exe().unwrap()).unwrap()));
    }

    #[test]
    fn the_pause_image_is_one_small_static_program() {
        let layout = Image::Pause.build().unwrap();
        let manifest = layout.manifest().unwrap();
        assert_eq!(manifest.layers().len(), 1);
        assert!(manifest.layers()[0].size() < 16 << 10, "{} bytes", manifest.layers()[0].size());
        assert_eq!(
            layout.configuration().unwrap().config().as_ref().unwrap().user().as_deref(),
            Some("65535:65535")
        );
        assert!(is_static(&fs::read(compile("pause", PAUSE_SOURCE).unwrap()).unwrap()));
    }

    #[test]
    fn the_same_contents_give_the_same_image_and_another_name_gives_another_layout() {
        let one = Image::Demo.build().unwrap();
        let again = Image::Demo.build().unwrap();
        assert_eq!(one.dir, again.dir);
        let alias = Image::Demo.build_as("registry.test/busybox:1").unwrap();
        assert_ne!(one.dir, alias.dir);
        assert_eq!(one.image_id().unwrap(), alias.image_id().unwrap());
    }

    #[test]
    fn an_archive_names_its_image_for_docker_and_for_oci_tools() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pause.tar");
        Image::Pause.build().unwrap().write_archive(&path).unwrap();
        let mut archive = tar::Archive::new(fs::File::open(&path).unwrap());
        let names: Vec<String> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names[..3], ["manifest.json", "oci-layout", "index.json"]);
        assert_eq!(names.len(), 6, "{names:?}");
    }
}
