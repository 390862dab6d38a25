//! Which user and group ids of the node the pods with a user namespace of their own get: one range per pod, never two
//! that overlap.
//!
//! Pod actors ask for the range of their pod ([`UserNamespaces::range`]) before its first sandbox and give it back when
//! nothing of the pod is left. What a pod holds stands in the file `userns` of its directory, as the stock kubelet
//! writes it, so that an agent that remembers nothing finds it again ([`UserNamespaces::open`]).
//!
//! The room never gives a range of the node's own ids (below the first range), and never takes a recorded range away,
//! even where the configuration has changed since.

use crate::api::PodUid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Upstream's name of the file in a pod's directory.
const FILE: &str = "userns";
/// Such a file is some hundred bytes long.
const FILE_LIMIT: u64 = 64 << 10;
/// `userNamespaces.idsPerPod` when it is not set, and what it must be a multiple of.
pub const IDS_PER_POD: u32 = 1 << 16;
/// In `/etc/subuid` and `/etc/subgid`.
const USER: &str = "kubelet";

/// Ids of the node, given to a pod's ids from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// The node's id for the pod's 0.
    pub first: u32,
    /// How many.
    pub length: u32,
}

impl Range {
    fn end(self) -> u64 {
        u64::from(self.first) + u64::from(self.length)
    }

    fn overlaps(self, other: Self) -> bool {
        u64::from(self.first) < other.end() && u64::from(other.first) < self.end()
    }
}

/// The ids there are to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    first: u32,
    /// At most 2^32 less the first.
    length: u64,
    per_pod: u32,
}

/// Ids that cannot be given out.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// A file cannot be read.
    #[error("userNamespaces: cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An entry that says something else than it must.
    #[error("userNamespaces: user {USER}: {0}")]
    Entry(String),
}

impl Default for Pool {
    fn default() -> Self {
        Self::all(IDS_PER_POD)
    }
}

impl Pool {
    /// Every id but the node's own.
    fn all(per_pod: u32) -> Self {
        let length = (1 << 32) / u64::from(per_pod) - 1;
        Self { first: per_pod, length: length * u64::from(per_pod), per_pod }
    }

    /// The ids that the files `subuid` and `subgid` have for the user `kubelet`, the same in both; every id but the node's
    /// own where they have none. `per_pod` is `userNamespaces.idsPerPod`, `pods` how many pods there may be.
    ///
    /// # Errors
    /// The files cannot be read, or their ids cannot be shared out; upstream's rules.
    pub fn read(per_pod: u32, pods: i64, subuid: &Path, subgid: &Path) -> Result<Self, PoolError> {
        let fail = |text: String| Err(PoolError::Entry(text));
        let (uids, gids) = (entries(subuid)?, entries(subgid)?);
        if uids != gids {
            return fail(format!("mismatched subuids and subgids: {uids:?} and {gids:?}"));
        }
        let (first, length) = match uids.as_slice() {
            [] => return Ok(Self::all(per_pod)),
            [one] => *one,
            more => {
                return fail(format!("has {} ranges of subordinate ids, only one can be used", more.len()));
            }
        };
        let unit = u64::from(per_pod);
        if first % unit != 0 {
            return fail(format!("assigned ID {first} is not a multiple of {unit}"));
        }
        if first < unit {
            return fail(format!("assigned ID {first} must be greater or equal to {unit}"));
        }
        if length % unit != 0 || first + length > 1 << 32 {
            return fail(format!("assigned IDs length {length} is not a multiple of {unit} below 2^32"));
        }
        if length / unit < pods.unsigned_abs() {
            return fail(format!("assigned IDs are not enough to support {pods} pods"));
        }
        let first = u32::try_from(first).unwrap_or(u32::MAX);
        Ok(Self { first, length, per_pod })
    }

    fn ranges(self) -> impl Iterator<Item = Range> {
        let end = u64::from(self.first) + self.length;
        let firsts = (u64::from(self.first)..end).step_by(self.per_pod as usize);
        firsts
            .filter_map(move |first| Some(Range { first: u32::try_from(first).ok()?, length: self.per_pod }))
    }
}

/// First id and number of each range of the user in a file such as `/etc/subuid`. No file, no ranges.
fn entries(path: &Path) -> Result<Vec<(u64, u64)>, PoolError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(PoolError::Read { path: path.to_owned(), source }),
    };
    let mut found = Vec::new();
    for line in text.lines() {
        let mut fields = line.trim().split(':');
        if fields.next() != Some(USER) {
            continue;
        }
        let mut number = || fields.next().and_then(|f| f.parse::<u32>().ok()).map(u64::from);
        let (Some(first), Some(length)) = (number(), number()) else {
            return Err(PoolError::Entry(format!("{}: invalid line {line:?}", path.display())));
        };
        found.push((first, length));
    }
    Ok(found)
}

/// A pod that gets no range.
#[derive(Debug, thiserror::Error)]
pub enum RangeError {
    /// All are taken.
    #[error("could not find an empty slot to allocate a user namespace")]
    Full,
    /// The pod's file cannot be read or written.
    #[error("user namespace mappings file {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The pod's file says something that this agent would never write.
    #[error("invalid user namespace mappings file {path}: {what}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The pod's file has ids that another pod has.
    #[error("range picked for pod {uid:?} already taken by pod {by:?}")]
    Taken {
        /// Whose file.
        uid: PodUid,
        /// Who has them.
        by: PodUid,
    },
}

/// The file's content, in the stock kubelet's words.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mappings {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

/// The handle. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct UserNamespaces {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pool: Pool,
    /// The pods' directories.
    pods: PathBuf,
    held: Mutex<BTreeMap<PodUid, Range>>,
}

impl UserNamespaces {
    /// Reads what the pods below `pods` hold. A file that makes no sense is told of and left: its pod will not start.
    pub fn open(pool: Pool, pods: &Path) -> Self {
        let mut held = BTreeMap::new();
        for entry in std::fs::read_dir(pods).into_iter().flatten().flatten() {
            let Some(uid) = entry.file_name().to_str().map(PodUid::new) else { continue };
            match read(&entry.path().join(FILE)) {
                Ok(None) => {}
                Ok(Some(range)) => drop(held.insert(uid, range)),
                Err(error) => tracing::warn!(%uid, %error, "cannot read which user ids a pod has"),
            }
        }
        Self { inner: Arc::new(Inner { pool, pods: pods.to_owned(), held: Mutex::new(held) }) }
    }

    /// The range of the pod `uid`, whose directory is there: the one it has, or a new one. Blocks: a new one is written to
    /// the disk.
    ///
    /// # Errors
    /// There is none left, or the pod's file cannot be read or written.
    pub fn range(&self, uid: &PodUid) -> Result<Range, RangeError> {
        let path = self.inner.pods.join(uid.as_str()).join(FILE);
        let recorded = read(&path)?;
        let mut held = self.lock();
        if let Some(range) = recorded {
            let taken = held.iter().find(|(other, r)| *other != uid && r.overlaps(range));
            if let Some((by, _)) = taken {
                return Err(RangeError::Taken { uid: uid.clone(), by: by.clone() });
            }
            held.insert(uid.clone(), range);
            return Ok(range);
        }
        let mut free =
            self.inner.pool.ranges().filter(|r| !held.iter().any(|(by, h)| by != uid && h.overlaps(*r)));
        let range = free.next().ok_or(RangeError::Full)?;
        held.insert(uid.clone(), range);
        drop(held);
        write(&path, range).map_err(|source| {
            self.release(uid);
            RangeError::File { path, source }
        })?;
        Ok(range)
    }

    /// Takes back what `uid` held: its directory is gone, and nothing of it runs.
    pub fn release(&self, uid: &PodUid) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<PodUid, Range>> {
        // Every entry is whole at all times, so a panic elsewhere spoils nothing.
        self.inner.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the file says; `None` when there is none.
fn read(path: &Path) -> Result<Option<Range>, RangeError> {
    let mut text = Vec::new();
    match std::fs::File::open(path).and_then(|f| f.take(FILE_LIMIT).read_to_end(&mut text)) {
        Ok(_) => {}
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(RangeError::File { path: path.to_owned(), source }),
    }
    let bad = |what: String| RangeError::Content { path: path.to_owned(), what };
    let all: Mappings = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    let ([uids], [gids]) = (all.uid_mappings.as_slice(), all.gid_mappings.as_slice()) else {
        return Err(bad("there must be one mapping of each kind".to_owned()));
    };
    if uids != gids {
        return Err(bad("GID and UID mappings should be identical".to_owned()));
    }
    let range = Range { first: uids.host_id, length: uids.length };
    if uids.container_id != 0 || range.length == 0 || range.first == 0 || range.end() > 1 << 32 {
        return Err(bad("the ids from 0 on must be mapped to ids of the node other than its own".to_owned()));
    }
    Ok(Some(range))
}

/// Whole or not at all, and on the disk before the ids are used.
fn write(path: &Path, range: Range) -> std::io::Result<()> {
    let one = Mapping { host_id: range.first, container_id: 0, length: range.length };
    let text = serde_json::to_vec(&Mappings { uid_mappings: vec![one], gid_mappings: vec![one] })?;
    let unfinished = path.with_extension("new");
    let mut file = std::fs::File::create(&unfinished)?;
    file.write_all(&text)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    match path.parent() {
        Some(dir) => std::fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn uid(name: &str) -> PodUid {
        PodUid::new(name)
    }

    fn pod(dir: &Path, name: &str) -> PodUid {
        std::fs::create_dir_all(dir.join(name)).unwrap();
        uid(name)
    }

    fn remove(dir: &Path, ids: &UserNamespaces, name: &str) {
        std::fs::remove_dir_all(dir.join(name)).unwrap();
        ids.release(&uid(name));
    }

    #[test]
    fn ranges_begin_above_the_nodes_own_ids_and_are_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let ids = UserNamespaces::open(Pool::default(), dir.path());
        let a = ids.range(&pod(dir.path(), "a")).unwrap();
        let b = ids.range(&pod(dir.path(), "b")).unwrap();
        assert_eq!((a, b), (Range { first: 65536, length: 65536 }, Range { first: 131_072, length: 65536 }));
        assert_eq!(ids.range(&uid("a")).unwrap(), a, "asking again changes nothing");
        assert_eq!(
            std::fs::read_to_string(dir.path().join("a/userns")).unwrap(),
            r#"{"uidMappings":[{"hostId":65536,"containerId":0,"length":65536}],"gidMappings":[{"hostId":65536,"containerId":0,"length":65536}]}"#
        );
        let next = UserNamespaces::open(Pool::default(), dir.path());
        let c = next.range(&pod(dir.path(), "c")).unwrap();
        assert_eq!((next.range(&uid("b")).unwrap(), c.first), (b, 196_608));
        remove(dir.path(), &next, "a");
        assert_eq!(next.range(&pod(dir.path(), "d")).unwrap(), a, "what was given back is given again");
    }

    #[test]
    fn a_pool_that_is_used_up_says_so_and_a_pool_that_shrank_takes_nothing_away() {
        let dir = tempfile::tempdir().unwrap();
        let wide = UserNamespaces::open(Pool::all(1 << 31), dir.path());
        let a = wide.range(&pod(dir.path(), "a")).unwrap();
        assert_eq!(a, Range { first: 1 << 31, length: 1 << 31 });
        assert!(matches!(wide.range(&pod(dir.path(), "b")), Err(RangeError::Full)));
        let narrow = Pool { first: 65536, length: 2 * 65536, per_pod: 65536 };
        let ids = UserNamespaces::open(narrow, dir.path());
        assert_eq!(ids.range(&uid("a")).unwrap(), a);
        assert_eq!(ids.range(&uid("b")).unwrap().first, 65536);
    }

    #[test]
    fn a_file_that_makes_no_sense_costs_its_pod_and_no_other() {
        let one = |host: u32, container: u32, length: u32| {
            format!("[{{\"hostId\":{host},\"containerId\":{container},\"length\":{length}}}]")
        };
        let both = |uids: String, gids: String| format!("{{\"uidMappings\":{uids},\"gidMappings\":{gids}}}");
        let fine = one(65536, 0, 65536);
        for text in [
            String::new(),
            "{}".to_owned(),
            both("[]".into(), "[]".into()),
            both(fine.clone(), one(131_072, 0, 65536)),
            both(one(0, 0, 65536), one(0, 0, 65536)),
            both(one(65536, 1, 65536), one(65536, 1, 65536)),
            both(one(u32::MAX, 0, 65536), one(u32::MAX, 0, 65536)),
            both(one(65536, 0, 0), one(65536, 0, 0)),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let a = pod(dir.path(), "a");
            std::fs::write(dir.path().join("a/userns"), &text).unwrap();
            let ids = UserNamespaces::open(Pool::default(), dir.path());
            assert!(matches!(ids.range(&a), Err(RangeError::Content { .. })), "{text}");
            assert!(ids.range(&pod(dir.path(), "b")).is_ok(), "{text}");
        }
        let dir = tempfile::tempdir().unwrap();
        let ids = UserNamespaces::open(Pool::default(), dir.path());
        ids.range(&pod(dir.path(), "a")).unwrap();
        let b = pod(dir.path(), "b");
        std::fs::copy(dir.path().join("a/userns"), dir.path().join("b/userns")).unwrap();
        assert!(matches!(ids.range(&b), Err(RangeError::Taken { .. })));
        assert!(matches!(ids.range(&uid("nowhere")), Err(RangeError::File { .. })), "it has no directory");
        assert!(!ids.lock().contains_key(&uid("nowhere")));
    }

    #[test]
    fn the_pool_is_the_kubelets_subordinate_ids_or_all_but_the_nodes_own() {
        let dir = tempfile::tempdir().unwrap();
        let (subuid, subgid) = (dir.path().join("subuid"), dir.path().join("subgid"));
        let read = |uids: &str, gids: &str, pods| {
            std::fs::write(&subuid, uids).unwrap();
            std::fs::write(&subgid, gids).unwrap();
            Pool::read(65536, pods, &subuid, &subgid).map_err(|e| e.to_string())
        };
        let other = "root:1:1\n# comment\n\nkubelet2:65536:65536\n";
        assert_eq!(read(other, other, 110), Ok(Pool::default()));
        assert_eq!(
            Pool::read(65536, 110, Path::new("/nowhere"), Path::new("/nowhere")).unwrap(),
            Pool::default()
        );
        assert_eq!(Pool::default(), Pool { first: 65536, length: (1 << 32) - 65536, per_pod: 65536 });
        let own = "kubelet:131072:7208960\n";
        assert_eq!(read(own, own, 110), Ok(Pool { first: 131_072, length: 7_208_960, per_pod: 65536 }));
        for (uids, gids, pods, why) in [
            (own, own, 111, "not enough to support 111 pods"),
            (own, "", 110, "mismatched subuids and subgids"),
            ("kubelet:65537:65536", "kubelet:65537:65536", 1, "65537 is not a multiple of 65536"),
            ("kubelet:0:65536", "kubelet:0:65536", 1, "0 must be greater or equal to 65536"),
            ("kubelet:65536:65535", "kubelet:65536:65535", 1, "length 65535 is not a multiple"),
            ("kubelet:4294901760:131072", "kubelet:4294901760:131072", 1, "below 2^32"),
            ("kubelet:x:65536", "kubelet:x:65536", 1, "invalid line"),
            ("kubelet:65536:-1", "kubelet:65536:-1", 1, "invalid line"),
            (
                "kubelet:65536:65536\nkubelet:131072:65536",
                "kubelet:65536:65536\nkubelet:131072:65536",
                1,
                "2 ranges",
            ),
        ] {
            let error = read(uids, gids, pods).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever pods come and go, and however often the agent restarts, no two pods share an id.
        #[test]
        fn no_two_pods_share_an_id(acts in prop::collection::vec((0..12_usize, 0..3_u8), 1..60)) {
            let dir = tempfile::tempdir().unwrap();
            let pool = Pool { first: 65536, length: 8 * 65536, per_pod: 65536 };
            let mut ids = UserNamespaces::open(pool, dir.path());
            let mut given: BTreeMap<usize, Range> = BTreeMap::new();
            for (n, act) in acts {
                let name = n.to_string();
                match act {
                    0 => match ids.range(&pod(dir.path(), &name)) {
                        Ok(range) => {
                            prop_assert!(given.get(&n).is_none_or(|before| *before == range));
                            given.insert(n, range);
                        }
                        Err(error) => {
                            prop_assert!(matches!(error, RangeError::Full) && given.len() == 8, "{error}");
                        }
                    },
                    1 if given.remove(&n).is_some() => remove(dir.path(), &ids, &name),
                    _ => ids = UserNamespaces::open(pool, dir.path()),
                }
                let all: Vec<_> = given.values().collect();
                for (i, a) in all.iter().enumerate() {
                    prop_assert!(all[..i].iter().all(|b| !a.overlaps(**b)));
                }
            }
        }
    }
}
