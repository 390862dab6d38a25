//! Writes that are cut off at every call, readers that never stop, and what the directory looks like afterwards.

use super::*;
use proptest::prelude::*;
use std::cell::Cell;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn payload(files: &[(&str, &str)]) -> Payload {
    let file = |text: &str| File { bytes: text.as_bytes().into(), mode: 0o644 };
    files.iter().map(|(path, text)| ((*path).to_owned(), file(text))).collect()
}

/// What a container sees: every path with its text, through the links it would use.
fn seen(volume: &Path) -> BTreeMap<String, String> {
    fn below(dir: &Path, path: &str, found: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if path.is_empty() && name.starts_with("..") {
                continue;
            }
            let (at, path) = (dir.join(&name), format!("{path}/{name}"));
            match std::fs::metadata(&at) {
                Ok(m) if m.is_dir() => below(&at, &path, found),
                Ok(_) => drop(found.insert(path, std::fs::read_to_string(&at).unwrap())),
                Err(e) => drop(found.insert(path, e.to_string())),
            }
        }
    }
    let mut found = BTreeMap::new();
    below(volume, "", &mut found);
    found.into_iter().map(|(p, t)| (p.trim_start_matches('/').to_owned(), t)).collect()
}

fn texts(payload: &Payload) -> BTreeMap<String, String> {
    let text = |f: &File| String::from_utf8_lossy(&f.bytes).into_owned();
    payload.iter().map(|(p, f)| (p.clone(), text(f))).collect()
}

/// What `..data` leads to, by path; `None` when it leads nowhere.
fn current(volume: &Path) -> Option<BTreeMap<String, String>> {
    let name = std::fs::read_link(volume.join(DATA)).ok()?;
    Some(seen(&volume.join(name)))
}

/// The volume holds what an undisturbed write leaves: `..data`, one directory, a link for each name, what is not ours.
fn assert_clean(volume: &Path, payload: &Payload, foreign: &[&str]) {
    let mut names: BTreeSet<String> =
        std::fs::read_dir(volume).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let data = std::fs::read_link(volume.join(DATA)).unwrap().into_os_string().into_string().unwrap();
    let mut want: BTreeSet<String> = payload.keys().map(|p| first(p).to_owned()).collect();
    want.extend([DATA.to_owned(), data]);
    want.extend(foreign.iter().map(|f| (*f).to_owned()));
    assert_eq!(names, want);
    names.clear();
    let mut shown = seen(volume);
    shown.retain(|path, _| !foreign.contains(&first(path)));
    assert_eq!(shown, texts(payload));
}

#[test]
fn a_volume_has_the_recorded_names_links_and_modes() {
    let dir = tempfile::tempdir().unwrap();
    let mut p = payload(&[("a", "AA"), ("x/y/a.txt", "AA")]);
    p.get_mut("x/y/a.txt").unwrap().mode = 0o400;
    assert!(write(dir.path(), &p, None).unwrap());
    assert_clean(dir.path(), &p, &[]);
    let link = |name: &str| std::fs::read_link(dir.path().join(name)).unwrap();
    assert_eq!((link("a"), link("x")), ("..data/a".into(), "..data/x".into()));
    let name = link(DATA).into_os_string().into_string().unwrap();
    // ..2006_01_02_15_04_05.123
    let (time, number) = name.strip_prefix("..").unwrap().split_once('.').unwrap();
    let parts: Vec<_> = time.split('_').map(str::len).collect();
    assert_eq!(parts, [4, 2, 2, 2, 2, 2], "{name}");
    assert!(number.parse::<u32>().is_ok(), "{name}");
    let mode = |path: &str| std::fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(DATA), mode("a"), mode("x/y"), mode("x/y/a.txt")), (0o755, 0o644, 0o755, 0o400));
}

#[test]
fn a_group_that_owns_the_volume_may_read_it() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIP a_group_that_owns_the_volume_may_read_it: changing owners needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    let mut p = payload(&[("k/a", "AA"), ("open", "x")]);
    p.get_mut("k/a").unwrap().mode = 0o400;
    assert!(write(dir.path(), &p, Some(1234)).unwrap());
    // As golden case vol-secret has them.
    for (path, mode) in [(DATA, 0o2755), ("k", 0o2755), ("k/a", 0o440), ("open", 0o644)] {
        let m = std::fs::metadata(dir.path().join(path)).unwrap();
        assert_eq!((m.gid(), m.mode() & 0o7777), (1234, mode), "{path}");
    }
    assert!(!write(dir.path(), &p, Some(1234)).unwrap());
    assert!(write(dir.path(), &p, Some(1235)).unwrap(), "another owner is another volume");
}

#[test]
fn nothing_is_written_when_nothing_changed_and_what_was_tampered_with_is_put_right() {
    let dir = tempfile::tempdir().unwrap();
    let p = payload(&[("a", "1"), ("d/b", "2")]);
    assert!(write(dir.path(), &p, None).unwrap());
    let data = std::fs::read_link(dir.path().join(DATA)).unwrap();
    assert!(!write(dir.path(), &p, None).unwrap());
    assert_eq!(std::fs::read_link(dir.path().join(DATA)).unwrap(), data);
    let at = |path: &str| dir.path().join(path);
    let damages: [&dyn Fn(); 10] = [
        &|| std::fs::write(at("..data/a"), "other").unwrap(),
        &|| std::fs::write(at("..data/a"), "12").unwrap(),
        &|| std::fs::write(at("..data/more"), "x").unwrap(),
        &|| std::fs::create_dir(at("..data/empty")).unwrap(),
        &|| std::fs::remove_file(at("..data/d/b")).unwrap(),
        &|| std::fs::set_permissions(at("..data/a"), std::fs::Permissions::from_mode(0o600)).unwrap(),
        &|| std::fs::remove_file(at("a")).unwrap(),
        &|| symlink("..data/gone", at("gone")).unwrap(),
        &|| std::fs::create_dir_all(at("..2001_01_01_00_00_00.1/deep/er")).unwrap(),
        &|| {
            std::fs::remove_file(at("..data/a")).unwrap();
            symlink("/etc/hostname", at("..data/a")).unwrap();
        },
    ];
    for (i, damage) in damages.iter().enumerate() {
        damage();
        assert!(write(dir.path(), &p, None).unwrap(), "damage {i} was seen");
        assert_clean(dir.path(), &p, &[]);
        assert!(!write(dir.path(), &p, None).unwrap(), "damage {i} is mended");
    }
}

#[test]
fn what_is_not_the_agents_is_left_alone_and_links_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let volume = dir.path().join("v");
    std::fs::create_dir(&volume).unwrap();
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("kept"), "kept").unwrap();
    // A sub path made by the room, a link of somebody else's, and links where directories of ours should be.
    std::fs::create_dir(volume.join("nokey")).unwrap();
    symlink(&outside, volume.join("elsewhere")).unwrap();
    symlink(&outside, volume.join("..2001_01_01_00_00_00.1")).unwrap();
    symlink("../outside", volume.join(DATA)).unwrap();
    let p = payload(&[("a", "1")]);
    write(&volume, &p, None).unwrap();
    assert_clean(&volume, &p, &["nokey", "elsewhere"]);
    assert_eq!(std::fs::read_to_string(outside.join("kept")).unwrap(), "kept");
    // A name that is taken is told of; the rest is there.
    let e = write(&volume, &payload(&[("a", "1"), ("nokey", "x"), ("z", "2")]), None).unwrap_err();
    assert!(e.to_string().starts_with("symlink ") && e.to_string().contains("/nokey: "), "{e}");
    assert_eq!(std::fs::read_to_string(volume.join("z")).unwrap(), "2");
    // The volume itself is no link either.
    symlink(&volume, dir.path().join("link")).unwrap();
    assert!(write(&dir.path().join("link"), &p, None).is_err());
}

/// From each of these to each of these: names come and go, files become directories, everything goes.
fn stages() -> Vec<Payload> {
    vec![
        payload(&[]),
        payload(&[("a", "1"), ("b", "1")]),
        payload(&[("a", "2"), ("b", "2"), ("c/d", "2"), ("c/e/f", "2")]),
        payload(&[("a/b", "3"), ("c", "3"), (".hidden", "3")]),
    ]
}

#[test]
fn killed_at_any_call_it_shows_the_old_or_the_new_and_the_next_write_ends_right() {
    let mut kills = 0;
    for (from, old) in stages().iter().enumerate() {
        for (to, new) in stages().iter().enumerate() {
            // From nothing at all as well, once.
            let from_nothing = from == to;
            for at in 0.. {
                let dir = tempfile::tempdir().unwrap();
                if !from_nothing {
                    write(dir.path(), old, None).unwrap();
                }
                let (calls, dead) = (Cell::new(0), Cell::new(false));
                // Whoever is killed makes no call any more, not even one that cleans up.
                let tap = |_: &'static str| {
                    dead.set(dead.get() || calls.get() == at);
                    calls.set(calls.get() + 1);
                    if dead.get() { Err(Errno::INTR) } else { Ok(()) }
                };
                let done = Writer { volume: dir.path(), group: None, tap: &tap }.write(new);
                if !dead.get() {
                    done.unwrap();
                    assert_clean(dir.path(), new, &[]);
                    break;
                }
                kills += 1;
                let shown = current(dir.path());
                let before = (!from_nothing).then(|| texts(old));
                assert!(
                    shown == before || shown.as_ref() == Some(&texts(new)),
                    "{from}->{to} killed at call {at} shows {shown:?}"
                );
                // Another write may want either of them, or a third.
                let third = payload(&[("a", "9"), ("q", "9")]);
                for wanted in [new, old, &third] {
                    let copy = tempfile::tempdir().unwrap();
                    copy_tree(dir.path(), copy.path());
                    write(copy.path(), wanted, None).unwrap();
                    assert_clean(copy.path(), wanted, &[]);
                    assert!(!write(copy.path(), wanted, None).unwrap());
                }
            }
        }
    }
    assert!(kills > 200, "only {kills} places to be killed at");
}

#[test]
fn a_call_that_fails_leaves_nothing_behind_that_the_next_write_does_not_remove() {
    let (old, new) = (payload(&[("a", "1")]), payload(&[("a", "2"), ("b/c", "2")]));
    for at in 0.. {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &old, None).unwrap();
        let (calls, failed) = (Cell::new(0), Cell::new(false));
        let tap = |_: &'static str| {
            let now = calls.get() == at;
            failed.set(failed.get() || now);
            calls.set(calls.get() + 1);
            if now { Err(Errno::NOSPC) } else { Ok(()) }
        };
        let done = Writer { volume: dir.path(), group: None, tap: &tap }.write(&new);
        if !failed.get() {
            break;
        }
        let e = done.unwrap_err();
        assert!(e.to_string().contains("No space left"), "{e}");
        let shown = current(dir.path()).unwrap();
        assert!(shown == texts(&old) || shown == texts(&new), "{shown:?}");
        if shown == texts(&old) {
            // The half-made directory would keep the disk full.
            let dirs = std::fs::read_dir(dir.path()).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir());
            let made = dirs.filter(|e| !e.as_ref().unwrap().path().is_symlink()).count();
            assert_eq!(made, 1, "call {at} left a directory behind");
        }
        write(dir.path(), &new, None).unwrap();
        assert_clean(dir.path(), &new, &[]);
    }
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_symlink() {
            symlink(std::fs::read_link(entry.path()).unwrap(), target).unwrap();
        } else if kind.is_dir() {
            std::fs::create_dir(&target).unwrap();
            std::fs::set_permissions(&target, entry.metadata().unwrap().permissions()).unwrap();
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_reader_at_full_speed_sees_a_thousand_changes_and_never_a_mixture() {
    const CHANGES: u64 = 1000;
    let dir = tempfile::tempdir().unwrap();
    let files = ["a", "b", "sub/c"];
    let generation = |n: u64| -> Payload {
        let text = format!("{n}\n").repeat(1 + n as usize % 7);
        payload(&files.map(|f| (f, text.as_str())))
    };
    write(dir.path(), &generation(0), None).unwrap();
    let (stop, read, newest) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let readers = [(); 2].map(|()| {
            scope.spawn(|| {
                let mut last = 0;
                while !stop.load(Ordering::Relaxed) {
                    // One look at where the files are, then all of them.
                    let place = std::fs::read_link(dir.path().join(DATA)).expect("..data is always there");
                    let place = dir.path().join(place);
                    let data = match rustix::fs::open(place, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
                    {
                        Ok(data) => data,
                        // Replaced and removed since it was looked up.
                        Err(Errno::NOENT) => continue,
                        Err(e) => panic!("{e}"),
                    };
                    let text = |path: &str| {
                        let fd = rustix::fs::openat(&data, path, OFlags::RDONLY, Mode::empty())?;
                        let mut text = String::new();
                        std::io::Read::read_to_string(&mut std::fs::File::from(fd), &mut text).unwrap();
                        Ok(text)
                    };
                    let all: Result<Vec<String>, Errno> = files.iter().map(|f| text(f)).collect();
                    match all {
                        Ok(all) => {
                            assert!(all.iter().all(|t| *t == all[0]), "a mixture: {all:?}");
                            let n: u64 = all[0].lines().next().unwrap().parse().unwrap();
                            assert_eq!(all[0], format!("{n}\n").repeat(1 + n as usize % 7), "half a file");
                            assert!(n >= last, "back from {last} to {n}");
                            last = n;
                            read.fetch_add(1, Ordering::Relaxed);
                            newest.fetch_max(n, Ordering::Relaxed);
                        }
                        Err(Errno::NOENT) => {}
                        Err(e) => panic!("{e}"),
                    }
                }
            })
        });
        for n in 1..=CHANGES {
            write(dir.path(), &generation(n), None).unwrap();
        }
        // The readers see the last one, too.
        while newest.load(Ordering::Relaxed) < CHANGES && !readers.iter().any(|r| r.is_finished()) {
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(read.load(Ordering::Relaxed) > 0);
    assert_clean(dir.path(), &generation(CHANGES), &[]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever payloads follow each other, and wherever the writes before the last are cut off, the last one shows.
    #[test]
    fn every_sequence_of_writes_ends_in_the_last(
        steps in prop::collection::vec(
            (prop::collection::btree_map("[a-c](/[a-c]){0,2}", "[0-9]{0,3}", 0..5), 0..60usize),
            1..6,
        )
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut last = Payload::new();
        for (files, kill) in steps {
            let mut p: Payload = Payload::new();
            for (path, text) in files {
                let taken = p.keys().any(|k| k.starts_with(&format!("{path}/")) || path.starts_with(&format!("{k}/")));
                if !taken {
                    p.insert(path, File { bytes: text.into_bytes().into(), mode: 0o640 });
                }
            }
            let calls = Cell::new(0);
            let tap = |_: &'static str| {
                calls.set(calls.get() + 1);
                if calls.get() > kill { Err(Errno::INTR) } else { Ok(()) }
            };
            let _cut_off = Writer { volume: dir.path(), group: None, tap: &tap }.write(&p);
            last = p;
        }
        write(dir.path(), &last, None).unwrap();
        assert_clean(dir.path(), &last, &[]);
    }
}
