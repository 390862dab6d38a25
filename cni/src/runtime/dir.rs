//! Loading a configuration directory (/etc/cni/net.d).
//!
//! The file names decide the order, as runtimes do it: the first valid network is the default one. A bad file loses
//! nothing but itself.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::conf::{ConfError, NetConfList};

/// A larger file is no configuration.
const MAX_FILE: u64 = 1 << 20;

/// A file or directory could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {source}", path = path.display())]
    Conf { path: PathBuf, source: ConfError },
}

/// What a configuration directory holds.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The networks with their files, in order of file name.
    pub networks: Vec<(PathBuf, NetConfList)>,
    /// The files that could not be read, and why.
    pub failures: Vec<LoadError>,
}

/// Reads every `.conflist`, `.conf` and `.json`. An error only when the directory itself cannot be read.
pub fn load_dir(dir: &Path) -> Result<Loaded, LoadError> {
    let io = |source| LoadError::Io { path: dir.to_path_buf(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if matches!(path.extension().and_then(|e| e.to_str()), Some("conflist" | "conf" | "json")) {
            paths.push(path);
        }
    }
    paths.sort();
    let mut loaded = Loaded::default();
    for path in paths {
        match load_file(&path) {
            Ok(list) => loaded.networks.push((path, list)),
            Err(e) => loaded.failures.push(e),
        }
    }
    Ok(loaded)
}

/// The first network with this name.
pub fn find_network(dir: &Path, name: &str) -> Result<Option<NetConfList>, LoadError> {
    Ok(load_dir(dir)?.networks.into_iter().map(|(_, list)| list).find(|list| list.name == name))
}

fn load_file(path: &Path) -> Result<NetConfList, LoadError> {
    let io = |source| LoadError::Io { path: path.to_path_buf(), source };
    let mut text = Vec::new();
    fs::File::open(path).map_err(io)?.take(MAX_FILE + 1).read_to_end(&mut text).map_err(io)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("is longer than {MAX_FILE} bytes"),
        )));
    }
    let list = if path.extension().is_some_and(|e| e == "conflist") {
        NetConfList::parse(&text)
    } else {
        NetConfList::parse_single(&text)
    };
    list.map_err(|source| LoadError::Conf { path: path.to_path_buf(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_file_loses_nothing_but_itself_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &[u8]| fs::write(dir.path().join(name), text).unwrap();
        put("20-b.conflist", br#"{"cniVersion":"1.0.0","name":"b","plugins":[{"type":"x"}]}"#);
        put("10-a.conf", br#"{"cniVersion":"0.3.1","name":"a","type":"x"}"#);
        put("05-torn.conflist", br#"{"cniVersion":"1.0.0","na"#);
        put("06-huge.conflist", &vec![b' '; (MAX_FILE + 2) as usize]);
        put("README", b"no configuration");
        let loaded = load_dir(dir.path()).unwrap();
        let names: Vec<_> = loaded.networks.iter().map(|(_, n)| n.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        let failures: Vec<_> = loaded.failures.iter().map(|f| f.to_string()).collect();
        assert!(
            failures[0].contains("05-torn.conflist") && failures[1].contains("06-huge.conflist"),
            "{failures:?}"
        );
        assert_eq!(find_network(dir.path(), "b").unwrap().unwrap().name, "b");
        assert!(find_network(dir.path(), "c").unwrap().is_none());
    }
}
