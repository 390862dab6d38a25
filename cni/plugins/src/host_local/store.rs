//! Leases as files: `<dataDir>/<network>/<address>`, holding "CONTAINER\r\nINTERFACE".
//!
//! The layout is the one operators' tools know: beside the leases `lock`, held with flock(2) by whoever changes
//! anything, and `last_reserved_ip.N` for range set N.
//!
//! A lease is written to a temporary file and renamed, under the lock, so that a kill at any instant leaves either
//! no lease or a whole one. It is not fsynced: after a power failure no container runs that could hold an address,
//! and an empty file that a file system may leave then is taken as what it is, nobody's.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cni::{CniError, code};
use rustix::fs::{FlockOperation, flock};

use super::range::{Range, RangeSet};
use crate::skel::note;

const LOCK: &str = "lock";
const TEMPORARY: &str = ".new-lease";
/// A lease is two short lines; a longer file is none.
const MAX_LEASE: u64 = 4096;

/// Who holds an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub container_id: String,
    /// Empty in leases written by very old versions of the layout.
    pub ifname: String,
}

impl Lease {
    pub fn is_of(&self, container_id: &str, ifname: &str) -> bool {
        self.container_id == container_id && (self.ifname == ifname || self.ifname.is_empty())
    }

    fn render(&self) -> String {
        format!("{}\r\n{}", self.container_id, self.ifname)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?.trim();
        let mut lines = text.lines().map(str::trim);
        let lease = Lease {
            container_id: lines.next().unwrap_or_default().to_string(),
            ifname: lines.next().unwrap_or_default().to_string(),
        };
        let good = |s: &str| s.chars().all(|c| c.is_ascii_graphic());
        (lines.next().is_none()
            && !lease.container_id.is_empty()
            && good(&lease.container_id)
            && good(&lease.ifname))
        .then_some(lease)
    }
}

/// What a file named like an address holds.
enum Content {
    Lease(Lease),
    /// Empty: the remains of a writer that was cut off.
    Torn,
    /// Anything else: left alone, named, and its address not given.
    Corrupt,
}

/// A network's leases, locked for as long as the value lives.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    /// The lock goes when the file is closed, also by a kill.
    _lock: File,
}

fn failed(verb: &str, path: &Path, e: &io::Error) -> CniError {
    CniError::caused(code::IO_FAILURE, format!("lease directory: cannot {verb} {}", path.display()), e)
}

impl Store {
    /// Opens and locks the directory of a network, making it where it is missing.
    pub fn open(data_dir: &Path, network: &str) -> Result<Self, CniError> {
        let dir = data_dir.join(network);
        loop {
            fs::create_dir_all(&dir).map_err(|e| failed("make", &dir, &e))?;
            if let Some(store) = Self::lock(&dir)? {
                return Ok(store);
            }
        }
    }

    /// Opens and locks the directory of a network; `None` when there is none, so nobody holds anything.
    pub fn open_existing(data_dir: &Path, network: &str) -> Result<Option<Self>, CniError> {
        Self::lock(&data_dir.join(network))
    }

    fn lock(dir: &Path) -> Result<Option<Self>, CniError> {
        let path = dir.join(LOCK);
        let lock = match File::options().create(true).append(true).open(&path) {
            Ok(f) => f,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(failed("open", &path, &e)),
        };
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| failed("lock", &path, &e.into()))?;
        // Whoever held the lock may have removed the directory; then this lock guards nothing.
        let same = |ours: &fs::Metadata, there: &fs::Metadata| {
            (ours.dev(), ours.ino()) == (there.dev(), there.ino())
        };
        if !matches!((&lock.metadata(), &fs::metadata(&path)), (Ok(ours), Ok(there)) if same(ours, there)) {
            return Ok(None);
        }
        Ok(Some(Store { dir: dir.to_path_buf(), _lock: lock }))
    }

    fn read(&self, addr: IpAddr) -> Result<Option<Content>, CniError> {
        let path = self.dir.join(addr.to_string());
        let mut text = Vec::new();
        match File::open(&path).and_then(|f| f.take(MAX_LEASE + 1).read_to_end(&mut text)) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) if e.kind() == ErrorKind::IsADirectory => return Ok(Some(Content::Corrupt)),
            Err(e) => return Err(failed("read", &path, &e)),
        }
        Ok(Some(match Lease::parse(&text) {
            Some(lease) => Content::Lease(lease),
            None if text.iter().all(|b| b.is_ascii_whitespace() || *b == 0) => Content::Torn,
            None => Content::Corrupt,
        }))
    }

    /// Every address that has a file, whatever is in it.
    fn addrs(&self) -> Result<HashSet<IpAddr>, CniError> {
        let fail = |e: io::Error| failed("list", &self.dir, &e);
        let mut addrs = HashSet::new();
        for entry in fs::read_dir(&self.dir).map_err(fail)? {
            if let Ok(addr) = entry.map_err(fail)?.file_name().to_string_lossy().parse() {
                addrs.insert(addr);
            }
        }
        Ok(addrs)
    }

    /// Every lease. Torn files are removed on the way, corrupt ones are named and left.
    fn leases(&self) -> Result<BTreeMap<IpAddr, Lease>, CniError> {
        let mut leases = BTreeMap::new();
        for addr in self.addrs()? {
            match self.read(addr)? {
                Some(Content::Lease(lease)) => {
                    leases.insert(addr, lease);
                }
                Some(Content::Torn) => self.remove(addr)?,
                Some(Content::Corrupt) => {
                    note(&format!("{}: not a lease, skipped", self.dir.join(addr.to_string()).display()));
                }
                None => {}
            }
        }
        Ok(leases)
    }

    fn remove(&self, addr: IpAddr) -> Result<(), CniError> {
        let path = self.dir.join(addr.to_string());
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(failed("remove", &path, &e)),
            _ => Ok(()),
        }
    }

    fn write(&self, addr: IpAddr, lease: &Lease) -> Result<(), CniError> {
        let (temporary, path) = (self.dir.join(TEMPORARY), self.dir.join(addr.to_string()));
        fs::write(&temporary, lease.render()).map_err(|e| failed("write", &temporary, &e))?;
        fs::rename(&temporary, &path).map_err(|e| failed("write", &path, &e))
    }

    /// Takes one address. One that the same container and interface hold already stays theirs.
    pub fn take(&self, addr: IpAddr, lease: &Lease) -> Result<(), CniError> {
        match self.read(addr)? {
            None | Some(Content::Torn) => self.write(addr, lease),
            Some(Content::Lease(old)) if old == *lease => Ok(()),
            Some(Content::Lease(old)) => Err(CniError::new(
                code::CONFLICT,
                format!("address {addr} is held by container {} interface {}", old.container_id, old.ifname),
            )),
            Some(Content::Corrupt) => Err(CniError::new(
                code::CONFLICT,
                format!("address {addr}: {} is not a lease", self.dir.join(addr.to_string()).display()),
            )),
        }
    }

    /// Takes the next free address of range set number `index`.
    pub fn take_next<'a>(
        &self,
        set: &'a RangeSet,
        index: usize,
        lease: &Lease,
    ) -> Result<(IpAddr, &'a Range), CniError> {
        let last_path = self.dir.join(format!("last_reserved_ip.{index}"));
        // Only a hint: missing or torn, the search begins at the range's start.
        let last = fs::read_to_string(&last_path).ok().and_then(|s| s.trim().parse().ok());
        let taken = self.addrs()?;
        let mut found = set.next(last, |addr| taken.contains(&addr));
        if found.is_none() {
            // Torn files are cleared only now: reading every lease on each ADD would cost more than the rest.
            self.leases()?;
            let taken = self.addrs()?;
            found = set.next(last, |addr| taken.contains(&addr));
        }
        let (addr, range) = found.ok_or_else(|| {
            CniError::new(
                code::TRY_AGAIN_LATER,
                format!(
                    "no address is free in {} ({} leases in {})",
                    set.describe(),
                    taken.len(),
                    self.dir.display()
                ),
            )
        })?;
        self.write(addr, lease)?;
        if let Err(e) = overwrite(&last_path, &addr.to_string()) {
            note(&format!("{}: {e}", last_path.display()));
        }
        Ok((addr, range))
    }

    /// Gives back every lease that `which` picks.
    pub fn release(&self, which: impl Fn(&Lease) -> bool) -> Result<(), CniError> {
        for (addr, lease) in self.leases()? {
            if which(&lease) {
                self.remove(addr)?;
            }
        }
        Ok(())
    }

    /// Gives back these addresses, whoever holds them.
    pub fn release_addrs(&self, addrs: &HashSet<IpAddr>) -> Result<(), CniError> {
        addrs.iter().try_for_each(|addr| self.remove(*addr))
    }

    /// The addresses a container's interface holds.
    pub fn held_by(&self, container_id: &str, ifname: &str) -> Result<Vec<IpAddr>, CniError> {
        let leases = self.leases()?;
        Ok(leases.into_iter().filter(|(_, l)| l.is_of(container_id, ifname)).map(|(addr, _)| addr).collect())
    }

    /// Removes the directory with everything in it.
    pub fn remove_all(self) -> Result<(), CniError> {
        fs::remove_dir_all(&self.dir).map_err(|e| failed("remove", &self.dir, &e))
    }
}

/// Writes a short text over a file's old one in place. A file that is cut to nothing first is written to the disk
/// on close by ext4 (`auto_da_alloc`), which takes milliseconds; this hint is not worth them.
fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::options().create(true).truncate(false).write(true).open(path)?;
    file.write_all(text.as_bytes())?;
    if file.metadata()?.len() > text.len() as u64 {
        file.set_len(text.len() as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(id: &str) -> Lease {
        Lease { container_id: id.into(), ifname: "eth0".into() }
    }

    fn set(subnet: &str) -> RangeSet {
        RangeSet(vec![Range::new(subnet.parse().unwrap(), None, None, None).unwrap()])
    }

    #[test]
    fn the_files_are_those_that_operators_know() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), "net").unwrap();
        let (addr, _) = store.take_next(&set("10.1.2.0/24"), 0, &lease("abc")).unwrap();
        assert_eq!(addr.to_string(), "10.1.2.2");
        assert_eq!(fs::read(dir.path().join("net/10.1.2.2")).unwrap(), b"abc\r\neth0");
        assert_eq!(fs::read(dir.path().join("net/last_reserved_ip.0")).unwrap(), b"10.1.2.2");
        assert!(dir.path().join("net/lock").exists() && !dir.path().join("net").join(TEMPORARY).exists());
    }

    #[test]
    fn a_full_range_says_try_again_and_a_release_frees_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), "net").unwrap();
        let set = set("10.1.2.0/30");
        store.take_next(&set, 0, &lease("a")).unwrap();
        let err = store.take_next(&set, 0, &lease("b")).unwrap_err();
        assert!(err.code == code::TRY_AGAIN_LATER && err.msg.contains("10.1.2.1-10.1.2.2"), "{err}");
        store.release(|l| l.is_of("a", "eth0")).unwrap();
        store.take_next(&set, 0, &lease("b")).unwrap();
        assert_eq!(store.held_by("b", "eth0").unwrap().len(), 1);
    }

    #[test]
    fn torn_leases_are_reclaimed_and_corrupt_ones_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), "net").unwrap();
        let put = |name: &str, text: &[u8]| fs::write(dir.path().join("net").join(name), text).unwrap();
        put("10.1.2.2", b"");
        put("10.1.2.3", b"\xff\xfe\x00binary");
        put("10.1.2.4", b"old-layout-without-interface\n");
        put(TEMPORARY, b"half a le");
        put("last_reserved_ip.0", b"10.1.");
        let set = set("10.1.2.0/29");
        let mut got: Vec<String> = Vec::new();
        while let Ok((addr, _)) = store.take_next(&set, 0, &lease("a")) {
            got.push(addr.to_string());
        }
        got.sort();
        assert_eq!(got, ["10.1.2.2", "10.1.2.5", "10.1.2.6"]);
        store.release(|l| l.is_of("old-layout-without-interface", "eth0")).unwrap();
        assert!(!dir.path().join("net/10.1.2.4").exists() && dir.path().join("net/10.1.2.3").exists());
        let err = store.take("10.1.2.3".parse().unwrap(), &lease("b")).unwrap_err();
        assert!(err.msg.contains("10.1.2.3") && err.msg.contains("not a lease"), "{err}");
    }

    #[test]
    fn an_address_of_anothers_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), "net").unwrap();
        let addr = "10.1.2.9".parse().unwrap();
        store.take(addr, &lease("a")).unwrap();
        store.take(addr, &lease("a")).unwrap();
        let err = store.take(addr, &lease("b")).unwrap_err();
        assert!(err.code == code::CONFLICT && err.msg.contains("container a"), "{err}");
    }

    #[test]
    fn what_is_not_there_is_released_without_making_it() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Store::open_existing(&dir.path().join("none"), "net").unwrap().is_none());
        assert!(Store::open_existing(dir.path(), "net").unwrap().is_none());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
