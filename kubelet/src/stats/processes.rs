//! The processes of a container: how many, what files they have open. A few system calls per process, bounded.

use super::files::{Dir, Reader, lines, number, words};
use super::reading::Processes;
use rustix::fs::{Mode, OFlags, RawDir};
use std::mem::MaybeUninit;

/// Of a container with more open files than this, which of them are sockets is not looked at.
const FILES: u64 = 2048;
/// Of a container with more processes than this, open files are not counted.
const PROCESSES: usize = 256;
/// Of a container with more cgroups than this below its own, processes in the others are not counted.
const CGROUPS: usize = 64;

/// Counts the processes of the cgroup `dir` or, where it has none itself, of those below (a container that makes cgroups, as
/// an init system does, leaves its own empty). `proc` is `/proc`. Also the id of the first, whose limit
/// of files is read.
pub fn read(reader: &mut Reader, proc: &Dir, dir: &Dir) -> Option<(Processes, Option<u32>)> {
    let mut ids = ids(reader, dir)?;
    if ids.is_empty() {
        let mut below = children(dir, CGROUPS);
        let mut seen = 0;
        while let Some(child) = below.pop() {
            seen += 1;
            ids.extend(self::ids(reader, &child).unwrap_or_default());
            below.extend(children(&child, CGROUPS.saturating_sub(seen + below.len())));
        }
    }
    let mut found = Processes { count: ids.len() as u64, ..Processes::default() };
    if ids.len() <= PROCESSES {
        let (mut files, mut sockets) = (0, Some(0));
        for id in &ids {
            // One that has ended meanwhile has no files.
            let Some((its_files, its_sockets)) = open_files(proc, *id, FILES.saturating_sub(files)) else {
                continue;
            };
            files += its_files;
            sockets = sockets.zip(its_sockets).map(|(a, b)| a + b);
        }
        (found.files, found.sockets) = (Some(files), sockets);
    }
    if let Some(first) = ids.first() {
        found.max_files = reader.read(proc, &format!("{first}/limits")).and_then(max_files);
    }
    Some((found, ids.first().copied()))
}

fn ids(reader: &mut Reader, dir: &Dir) -> Option<Vec<u32>> {
    let ids = lines(reader.read(dir, "cgroup.procs")?).filter_map(|line| u32::try_from(number(line)?).ok());
    // Processes of another pid namespace show as 0.
    Some(ids.filter(|id| *id != 0).collect())
}

/// The cgroups right below `dir`, `most` of them at most.
fn children(dir: &Dir, most: usize) -> Vec<Dir> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::openat(dir.fd(), ".", flags, Mode::empty()) else { return Vec::new() };
    let mut space = [MaybeUninit::<u8>::uninit(); 4096];
    let mut entries = RawDir::new(&fd, &mut space);
    let mut found = Vec::new();
    while found.len() < most {
        let Some(Ok(entry)) = entries.next() else { break };
        let directory = entry.file_type() == rustix::fs::FileType::Directory;
        let name = entry.file_name().to_str().ok().filter(|name| directory && !name.starts_with('.'));
        found.extend(name.and_then(|name| dir.open_in(name)));
    }
    found
}

/// How many files process `id` has open, and how many of them are sockets; these are not counted past `most` files.
fn open_files(proc: &Dir, id: u32, most: u64) -> Option<(u64, Option<u64>)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(proc.fd(), format!("{id}/fd"), flags, Mode::empty()).ok()?;
    // Since Linux 6.2 the directory's size is the number of files.
    let told = rustix::fs::fstat(&fd).ok().and_then(|s| u64::try_from(s.st_size).ok()).filter(|n| *n > 0);
    if told.is_some_and(|n| n > most) {
        return told.map(|n| (n, None));
    }
    let (mut files, mut sockets) = (0, 0);
    let mut space = [MaybeUninit::<u8>::uninit(); 4096];
    let mut entries = RawDir::new(&fd, &mut space);
    while let Some(entry) = entries.next() {
        let Ok(entry) = entry else { break };
        let name = entry.file_name();
        if name.to_bytes().starts_with(b".") {
            continue;
        }
        files += 1;
        if files <= most {
            let mut target = [MaybeUninit::<u8>::uninit(); 8];
            let read = rustix::fs::readlinkat_raw(&fd, name, &mut target);
            sockets += u64::from(read.is_ok_and(|(text, _)| text.starts_with(b"socket:")));
        }
    }
    Some((files, (files <= most).then_some(sockets)))
}

/// `Max open files            1024                 524288               files`: the first number. `unlimited` is none.
fn max_files(text: &[u8]) -> Option<u64> {
    let line = lines(text).find_map(|l| l.strip_prefix(b"Max open files"))?;
    number(words(line).next()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn this_process_has_files_of_which_some_are_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let id = std::process::id();
        std::fs::write(dir.path().join("cgroup.procs"), format!("{id}\n0\n")).unwrap();
        let (proc, cgroup) = (Dir::open(Path::new("/proc")).unwrap(), Dir::open(dir.path()).unwrap());
        let mut reader = Reader::default();
        let _pair = std::os::unix::net::UnixStream::pair().unwrap();
        let (found, first) = read(&mut reader, &proc, &cgroup).unwrap();
        assert_eq!((found.count, first), (1, Some(id)));
        assert!(found.sockets >= Some(2) && found.files > found.sockets, "{found:?}");
        assert!(found.max_files > Some(10), "{found:?}");
        let (files, sockets) = open_files(&proc, id, 1).unwrap();
        assert!(files > 1 && sockets.is_none(), "too many to look at");
    }

    #[test]
    fn a_process_that_is_gone_has_nothing_open() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        std::fs::write(dir.path().join("cgroup.procs"), format!("{}\n", child.id())).unwrap();
        let (proc, cgroup) = (Dir::open(Path::new("/proc")).unwrap(), Dir::open(dir.path()).unwrap());
        let (found, _) = read(&mut Reader::default(), &proc, &cgroup).unwrap();
        assert_eq!((found.count, found.files, found.max_files), (1, Some(0), None));
    }

    #[test]
    fn processes_in_cgroups_of_a_containers_own_are_counted_and_many_cgroups_are_cut() {
        let dir = tempfile::tempdir().unwrap();
        let id = std::process::id();
        let put = |below: &str, ids: &str| {
            std::fs::create_dir_all(dir.path().join(below)).unwrap();
            std::fs::write(dir.path().join(below).join("cgroup.procs"), ids).unwrap();
        };
        put("", "");
        put("init.scope", &format!("{id}\n"));
        put("system.slice", "");
        put("system.slice/a.service", &format!("{id}\n{id}\n"));
        let (proc, cgroup) = (Dir::open(Path::new("/proc")).unwrap(), Dir::open(dir.path()).unwrap());
        let counted = || read(&mut Reader::default(), &proc, &cgroup).unwrap().0.count;
        assert_eq!(counted(), 3);
        for n in 0..3 * CGROUPS {
            put(&format!("system.slice/{n}"), &format!("{id}\n"));
        }
        assert!((1..=CGROUPS as u64 + 3).contains(&counted()));
        put("", &format!("{id}\n"));
        assert_eq!(counted(), 1, "its own are all there are");
    }

    #[test]
    fn limits_are_read_and_no_limit_is_none() {
        let line = |n| format!("Max processes 1 1 processes\nMax open files            {n}   99   files\n");
        assert_eq!(max_files(line("1024").as_bytes()), Some(1024));
        assert_eq!(max_files(line("unlimited").as_bytes()), None);
    }
}
