//! The directory of objects (`--standalone-objects`) as a source: the current ones, and who is told of a change.
//!
//! `assemble` starts it. How a directory is watched, which file wins and what becomes of a file that goes bad are the
//! business of `source::directory` and `source::table`, as for manifests. The task is the only writer; it tells each
//! object's subscribers, and nobody else, of a change.

use super::shelf::Shelf;
use super::{Key, Object, Source, decode};
use crate::source::directory::{self, Closed, Reader, Watched};
use crate::source::manifest::{Judge, Problem};
use crate::source::table::{Change, Item};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Starts watching `path`, a directory of objects, one to a file, which need not exist yet. `net_interval` is
/// `fileCheckFrequency`; zero switches the slow pass off.
///
/// # Errors
/// When the process can have no inotify instance.
pub fn spawn(path: PathBuf, net_interval: Duration) -> io::Result<(Arc<dyn Source>, Watched)> {
    let shelf = Arc::new(Shelf::default());
    let watched = directory::spawn(path, net_interval, ObjectFiles(shelf.clone()))?;
    Ok((shelf, watched))
}

/// Reads objects into the shelf.
struct ObjectFiles(Arc<Shelf>);

impl Reader for ObjectFiles {
    type Item = Object;
    const FILE: &'static str = "object";

    fn judge(&self) -> Arc<Judge<Object>> {
        Arc::new(|bytes, _| Ok((decode::object(bytes)?, Vec::new())))
    }

    /// The node needs objects for as long as it runs.
    async fn closed(&self) {
        std::future::pending().await
    }

    async fn changes(&mut self, changes: Vec<Change<Object>>, _arrived: Instant) -> Result<(), Closed> {
        self.0.set(changes.into_iter().map(|change| match change {
            Change::Gone(key) => (key, None),
            Change::Put(object, _) => (object.key.clone(), Some(object)),
        }));
        Ok(())
    }

    async fn synced(&mut self) -> Result<(), Closed> {
        self.0.synced();
        Ok(())
    }

    fn duplicate(&self, _: &Key) {}
}

impl Item for Object {
    type Id = Key;
    type Shown = Key;

    fn id(&self) -> Key {
        self.key.clone()
    }

    fn shown(&self) -> Key {
        self.key.clone()
    }

    fn names(&self) -> Vec<String> {
        vec![self.key.to_string()]
    }

    /// The API server's rules of what may not be changed. The file has to go and come back.
    fn forbids(&self, next: &Self) -> Vec<Problem> {
        let problem =
            |field: &str, why: &str| Problem { field: Some(field.to_owned()), message: why.to_owned() };
        let mut found = Vec::new();
        if self.type_ != next.type_ {
            found.push(problem("type", "field is immutable"));
        }
        let immutable = "field is immutable when `immutable` is set";
        if self.immutable {
            for (field, same) in [
                ("immutable", next.immutable),
                ("data", self.data == next.data),
                ("binaryData", self.binary == next.binary),
            ] {
                if !same {
                    found.push(problem(field, immutable));
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Found, Kind, Objects};
    use super::*;

    struct Dir {
        dir: tempfile::TempDir,
        objects: Objects,
        watched: Watched,
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            self.watched.task.abort();
        }
    }

    fn text(name: &str, value: &str) -> String {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{k: '{value}'}}\n")
    }

    impl Dir {
        fn new(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("o")).unwrap();
            for (file, text) in files {
                std::fs::write(dir.path().join("o").join(file), text).unwrap();
            }
            let (source, watched) = spawn(dir.path().join("o"), Duration::ZERO).unwrap();
            Self { dir, objects: Objects::new(source), watched }
        }

        fn put(&self, file: &str, text: &str) {
            let outside = self.dir.path().join(file);
            std::fs::write(&outside, text).unwrap();
            std::fs::rename(outside, self.dir.path().join("o").join(file)).unwrap();
        }

        fn remove(&self, file: &str) {
            std::fs::remove_file(self.dir.path().join("o").join(file)).unwrap();
        }

        /// Waits for the object to be other than `known`.
        async fn next(&self, key: &Key, known: &Found) -> Found {
            let changed = [(key.clone(), known.version)];
            let waited = tokio::time::timeout(Duration::from_secs(60), self.objects.changed(&changed)).await;
            waited.expect("a change within a minute");
            self.objects.get(key).await
        }

        async fn problem(&mut self, want: &str) {
            let found =
                self.watched.problems.wait_for(|all| all.iter().any(|(_, p)| p.to_string().contains(want)));
            let found = tokio::time::timeout(Duration::from_secs(60), found).await;
            drop(found.unwrap_or_else(|_| panic!("no problem {want:?}")).unwrap());
        }
    }

    fn key(name: &str) -> Key {
        Key::new(Kind::ConfigMap, "default", name)
    }

    fn value(found: &Found) -> Option<String> {
        let object = found.object.as_ref()?;
        object.get("k").map(|v| String::from_utf8_lossy(v).into_owned())
    }

    #[tokio::test]
    async fn an_object_is_known_once_the_directory_was_read_and_its_changes_are_told() {
        let d = Dir::new(&[("a", &text("a", "1"))]);
        // Asked for before anything was read.
        let (key_a, key_b) = (key("a"), key("b"));
        let (a, b) = tokio::join!(d.objects.get(&key_a), d.objects.get(&key_b));
        assert_eq!((value(&a), value(&b)), (Some("1".into()), None));
        d.put("a", &text("a", "2"));
        let a = d.next(&key("a"), &a).await;
        assert_eq!(value(&a), Some("2".into()));
        d.put("b", &text("b", "3"));
        let b = d.next(&key("b"), &b).await;
        assert_eq!(value(&b), Some("3".into()));
        // Of all that nobody who shows `a` heard anything.
        assert_eq!(d.objects.get(&key("a")).await.version, a.version);
        d.remove("a");
        assert_eq!(value(&d.next(&key("a"), &a).await), None);
    }

    #[tokio::test]
    async fn a_file_that_goes_bad_keeps_its_object_and_the_rest_goes_on() {
        let mut d = Dir::new(&[("a", &text("a", "1"))]);
        d.objects.get(&key("a")).await;
        let b = d.objects.get(&key("b")).await;
        d.put("a", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {'x/y': z}\n");
        d.problem("data[x/y]").await;
        d.put("b", &text("b", "2"));
        assert_eq!(value(&d.next(&key("b"), &b).await), Some("2".into()));
        assert_eq!(value(&d.objects.get(&key("a")).await), Some("1".into()));
    }

    #[tokio::test]
    async fn an_immutable_object_changes_only_by_going_and_coming_back() {
        let immutable = |value| format!("{}immutable: true\n", text("a", value));
        let mut d = Dir::new(&[("a", &immutable("1"))]);
        let a = d.objects.get(&key("a")).await;
        d.put("a", &immutable("2"));
        d.problem("data: field is immutable").await;
        assert_eq!(value(&d.objects.get(&key("a")).await), Some("1".into()));
        d.remove("a");
        let gone = d.next(&key("a"), &a).await;
        assert_eq!(value(&gone), None);
        d.put("a", &immutable("2"));
        assert_eq!(value(&d.next(&key("a"), &gone).await), Some("2".into()));
    }

    #[tokio::test]
    async fn of_two_files_for_one_object_the_first_wins_until_it_goes() {
        let mut d = Dir::new(&[("a", &text("x", "1"))]);
        let x = d.objects.get(&key("x")).await;
        d.put("b", &text("x", "2"));
        d.problem("already defined by a").await;
        assert_eq!(value(&d.objects.get(&key("x")).await), Some("1".into()));
        d.remove("a");
        assert_eq!(value(&d.next(&key("x"), &x).await), Some("2".into()));
    }
}
