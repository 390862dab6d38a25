//! `hostPath`: the check of the type, and making what `…OrCreate` asks for. Never removes anything.

use super::error::IoError;
use std::fs::{DirBuilder, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Checks that `path` is what `type_` says, making it first where the type says so. The text of an error is what
/// follows `MountVolume.SetUp failed for volume "v" : `.
pub fn check(path: &Path, type_: &str) -> Result<(), String> {
    type Is = fn(&FileType) -> bool;
    let (is, what): (Is, _) = match type_ {
        "" => return Ok(()),
        "Directory" | "DirectoryOrCreate" => (FileType::is_dir, "directory"),
        "File" | "FileOrCreate" => (FileType::is_file, "file"),
        "Socket" => (FileType::is_socket, "socket file"),
        "CharDevice" => (FileType::is_char_device, "character device"),
        "BlockDevice" => (FileType::is_block_device, "block device"),
        other => return Err(format!("hostPath type check failed: {other} is an invalid volume type")),
    };
    if type_.ends_with("OrCreate") {
        make(path, type_).map_err(|e| e.to_string())?;
    }
    // Links are followed, as the mount will follow them.
    match std::fs::metadata(path) {
        Ok(meta) if is(&meta.file_type()) => Ok(()),
        Ok(_) => Err(format!("hostPath type check failed: {} is not a {what}", path.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(format!("hostPath type check failed: {} is not a {what}", path.display()))
        }
        Err(e) => Err(IoError::at("stat", path)(e).to_string()),
    }
}

/// Makes a directory with its parents (0755) or an empty file (0644), unless something is there already.
fn make(path: &Path, type_: &str) -> Result<(), IoError> {
    if path.exists() {
        return Ok(());
    }
    if type_ == "DirectoryOrCreate" {
        DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(IoError::at("mkdir", path))
    } else {
        let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(path);
        made.map(drop).map_err(IoError::at("create", path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_accepts_its_own_and_names_what_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("dir")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("sock")).unwrap();
        std::os::unix::fs::symlink("dir", at("link")).unwrap();

        for (name, type_) in [
            ("dir", "Directory"),
            ("link", "Directory"),
            ("new/er", "DirectoryOrCreate"),
            ("dir", "DirectoryOrCreate"),
            ("file", "File"),
            ("newfile", "FileOrCreate"),
            ("sock", "Socket"),
            ("absent", ""),
        ] {
            assert_eq!(check(&at(name), type_), Ok(()), "{name} {type_}");
        }
        assert!(at("new/er").is_dir() && at("newfile").is_file() && !at("absent").exists());
        assert_eq!(check(Path::new("/dev/null"), "CharDevice"), Ok(()));

        // Texts as golden cases vol-hostpath-fail-* have them.
        for (name, type_, what) in [
            ("absent", "Directory", "directory"),
            ("file", "DirectoryOrCreate", "directory"),
            ("absent", "File", "file"),
            ("dir", "FileOrCreate", "file"),
            ("file", "Socket", "socket file"),
            ("absent", "CharDevice", "character device"),
            ("file", "BlockDevice", "block device"),
        ] {
            let want = format!("hostPath type check failed: {} is not a {what}", at(name).display());
            assert_eq!(check(&at(name), type_), Err(want), "{name} {type_}");
        }
        assert!(check(&at("dir"), "Foo").unwrap_err().contains("Foo is an invalid volume type"));
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named_with_the_reason() {
        let text = check(Path::new("/proc/stevedore/x"), "DirectoryOrCreate").unwrap_err();
        assert!(text.starts_with("mkdir /proc/stevedore/x: "), "{text}");
    }
}
