//! Names of rotated logs, and the steps of a rotation on the disk. The functions block.
//!
//! ```text
//!   0.log                          what the runtime writes
//!   0.log.20260102-030405          the newest rotated one, never compressed: somebody may be reading it
//!   0.log.20260102-030355.gz       older ones
//!   0.log.20260102-030345.tmp      one being compressed; what a killed agent left of it is removed
//! ```
//!
//! Names, and what is kept, are upstream's. A name's time is the node's local time, but never one that is taken or older
//! than what is there: names order the files, whatever the clock does, and several rotations in a second all keep what
//! they moved. Files whose names do not fit are nobody's business here.

use super::place::Place;
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::civil::DateTime;
use jiff::{Timestamp, ToSpan};
use std::collections::BTreeMap;
use std::io::{self, Read};

const COMPRESSED: &str = ".gz";
const TEMPORARY: &str = ".tmp";
/// How much is compressed at once.
const CHUNK: usize = 64 * 1024;

/// When a log was rotated, as its name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(DateTime);

impl Stamp {
    /// The node's local time at `now`.
    pub fn at(now: Timestamp) -> Self {
        let local = || {
            let [year, month, day, hour, minute, second] = crate::sys::local_time(now.as_second())?;
            let small = |n: i32| i8::try_from(n).ok();
            let (month, day) = (small(month)?, small(day)?);
            let time = (small(hour)?, small(minute)?, small(second)?);
            DateTime::new(i16::try_from(year).ok()?, month, day, time.0, time.1, time.2, 0).ok()
        };
        Self(local().unwrap_or_else(|| now.to_zoned(jiff::tz::TimeZone::UTC).datetime()))
    }

    /// `YYYYMMDD-HHMMSS`
    pub fn parse(text: &str) -> Option<Self> {
        let digits = |from: usize, to: usize| {
            let part = text.get(from..to)?;
            part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse::<i16>().ok())?
        };
        let small = |from| digits(from, from + 2).and_then(|n| i8::try_from(n).ok());
        if text.len() != 15 || text.as_bytes()[8] != b'-' {
            return None;
        }
        let time = DateTime::new(digits(0, 4)?, small(4)?, small(6)?, small(9)?, small(11)?, small(13)?, 0);
        time.ok().map(Self)
    }

    /// The next one that may be given.
    fn next(self) -> Self {
        Self(self.0.saturating_add(1.second()))
    }
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let t = self.0;
        let (date, time) = ((t.year(), t.month(), t.day()), (t.hour(), t.minute(), t.second()));
        write!(f, "{:04}{:02}{:02}-{:02}{:02}{:02}", date.0, date.1, date.2, time.0, time.1, time.2)
    }
}

/// What of one rotated log is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forms {
    /// As it was written.
    pub plain: bool,
    /// Compressed.
    pub compressed: bool,
    /// Being compressed, or left from that.
    pub temporary: bool,
}

/// The rotated files of the log `log`, among `names`. Pure.
pub fn among(log: &str, names: &[String]) -> BTreeMap<Stamp, Forms> {
    let mut found: BTreeMap<Stamp, Forms> = BTreeMap::new();
    for name in names {
        let Some(rest) = name.strip_prefix(log).and_then(|r| r.strip_prefix('.')) else { continue };
        let Some((stamp, suffix)) = rest.split_at_checked(15) else { continue };
        let Some(stamp) = Stamp::parse(stamp) else { continue };
        let forms = match suffix {
            "" => Forms { plain: true, ..Forms::default() },
            COMPRESSED => Forms { compressed: true, ..Forms::default() },
            TEMPORARY => Forms { temporary: true, ..Forms::default() },
            _ => continue,
        };
        let entry = found.entry(stamp).or_default();
        entry.plain |= forms.plain;
        entry.compressed |= forms.compressed;
        entry.temporary |= forms.temporary;
    }
    found
}

/// The stamp in the name of a rotated file of `log`.
pub fn stamp_of(log: &str, name: &str) -> Option<Stamp> {
    among(log, &[name.to_owned()]).into_keys().next()
}

/// The name of a rotated file as it was written.
pub fn plain_name(log: &str, stamp: Stamp) -> String {
    format!("{log}.{stamp}")
}

/// The name of a compressed one.
pub fn compressed_name(log: &str, stamp: Stamp) -> String {
    format!("{log}.{stamp}{COMPRESSED}")
}

fn temporary_name(log: &str, stamp: Stamp) -> String {
    format!("{log}.{stamp}{TEMPORARY}")
}

/// The rotated logs of `place`, oldest first.
pub fn list(place: &Place) -> io::Result<BTreeMap<Stamp, Forms>> {
    Ok(among(place.name(), &place.names()?))
}

/// Removes what a rotation that was cut off left: half-made compressed files (unless one is being made right now), and
/// originals of compressed ones. Gives what is to be kept.
pub fn clean(place: &Place, compressing: bool) -> io::Result<BTreeMap<Stamp, Forms>> {
    let mut all = list(place)?;
    if compressing {
        return Ok(all);
    }
    for (stamp, forms) in &mut all {
        if forms.temporary {
            place.remove(&temporary_name(place.name(), *stamp))?;
            forms.temporary = false;
        }
        if forms.plain && forms.compressed {
            place.remove(&plain_name(place.name(), *stamp))?;
            forms.plain = false;
        }
    }
    all.retain(|_, forms| forms.plain || forms.compressed);
    Ok(all)
}

/// Makes room and renames the log, so that the runtime can open a new one. At most `max_files` files remain once it has.
/// Gives the renamed file's stamp.
pub fn set_aside(place: &Place, max_files: usize, now: Timestamp, compressing: bool) -> io::Result<Stamp> {
    let there = clean(place, compressing)?;
    // Beside what stays, one is renamed now and one made anew.
    let excess = there.len().saturating_sub(max_files.saturating_sub(2));
    for stamp in there.keys().take(excess) {
        place.remove(&compressed_name(place.name(), *stamp))?;
        place.remove(&plain_name(place.name(), *stamp))?;
    }
    let last = there.keys().next_back();
    let stamp = last.map_or(Stamp::at(now), |last| Stamp::at(now).max(last.next()));
    place.rename_new(place.name(), &plain_name(place.name(), stamp))?;
    Ok(stamp)
}

/// Undoes [`set_aside`] where the runtime did not open a new file. What is at the log's name meanwhile stays.
pub fn put_back(place: &Place, stamp: Stamp) -> io::Result<()> {
    place.rename_new(&plain_name(place.name(), stamp), place.name())
}

/// Compresses every rotated log but the newest, oldest first. One that the runtime has not closed yet is left for the next
/// time, and so is everything when `go_on` says no. Tells whether all were compressed.
pub fn compress(place: &Place, go_on: impl Fn() -> bool) -> io::Result<bool> {
    let (all, mut whole) = (list(place)?, true);
    let Some(newest) = all.keys().next_back().copied() else { return Ok(true) };
    for (stamp, forms) in all {
        if stamp == newest || !forms.plain || !go_on() {
            continue;
        }
        match compress_one(place, stamp) {
            // Removed meanwhile: a newer rotation needed its place.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => whole &= other?,
        }
    }
    Ok(whole)
}

/// False for one that is still written.
fn compress_one(place: &Place, stamp: Stamp) -> io::Result<bool> {
    let log = place.name();
    let (plain, temporary) = (plain_name(log, stamp), temporary_name(log, stamp));
    let mut from = place.open_file(&plain)?;
    if crate::sys::is_open_for_writing(&from) {
        return Ok(false);
    }
    let mut made = || -> io::Result<()> {
        let to = place.create_file(&temporary)?;
        let mode = rustix::fs::fstat(&from)?.st_mode & 0o666;
        rustix::fs::fchmod(&to, rustix::fs::Mode::from_raw_mode(mode))?;
        // The agent's own time counts: the fastest level is within a fifth of the best for logs.
        let mut to = GzEncoder::new(to, Compression::fast());
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = from.read(&mut chunk)?;
            if read == 0 {
                break;
            }
            io::Write::write_all(&mut to, &chunk[..read])?;
        }
        to.finish()?.sync_all()
    };
    if let Err(error) = made() {
        let _ = place.remove(&temporary);
        return Err(error);
    }
    place.rename_over(&temporary, &compressed_name(log, stamp))?;
    place.sync()?;
    if !place.remove(&plain)? {
        // Somebody removed the log while it was being compressed: it must not come back.
        place.remove(&compressed_name(log, stamp))?;
    }
    Ok(true)
}

/// Removes a log with everything that was rotated of it. Nothing there is fine.
pub fn remove_all(place: &Place) -> io::Result<()> {
    let rotated = format!("{}.", place.name());
    for name in place.names()? {
        if name == place.name() || name.starts_with(&rotated) {
            place.remove(&name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    struct Dir(tempfile::TempDir);

    impl Dir {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(dir.path().join("pod/c")).unwrap();
            Self(dir)
        }
        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join("pod/c").join(name)
        }
        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.path(name), text).unwrap();
        }
        fn place(&self) -> Place {
            Place::open(&self.path("0.log")).unwrap()
        }
        fn names(&self) -> Vec<String> {
            let mut names = self.place().names().unwrap();
            names.retain(|n| !n.starts_with('.'));
            names.sort();
            names
        }
        fn read(&self, name: &str) -> String {
            let bytes = std::fs::read(self.path(name)).unwrap();
            if !name.ends_with(".gz") {
                return String::from_utf8(bytes).unwrap();
            }
            let mut text = String::new();
            flate2::read::GzDecoder::new(&*bytes).read_to_string(&mut text).unwrap();
            text
        }
    }

    fn at(text: &str) -> Stamp {
        Stamp::parse(text).unwrap()
    }

    #[test]
    fn names_are_read_and_written_as_upstream_does() {
        let stamp = at("20260102-030405");
        assert_eq!(plain_name("0.log", stamp), "0.log.20260102-030405");
        assert_eq!(compressed_name("0.log", stamp), "0.log.20260102-030405.gz");
        assert_eq!(stamp_of("0.log", "0.log.20260102-030405.gz"), Some(stamp));
        let foreign = [
            "0.log",
            "0.log.",
            "0.log.bak",
            "0.log.20260102-030405.bz2",
            "0.log.20260102_030405",
            "0.log.20261302-030405",
            "10.log.20260102-030405",
            "0.log.20260102-0304",
            "0.log.2026010é-03040",
            "0.log.+0260102-030405",
        ];
        for name in foreign {
            assert_eq!(stamp_of("0.log", name), None, "{name}");
        }
        assert_eq!(Stamp::at(Timestamp::UNIX_EPOCH).to_string().len(), 15);
    }

    #[test]
    fn no_clock_makes_a_rotation_overwrite_another_or_changes_their_order() {
        let dir = Dir::new();
        let hour = |h: i64| Timestamp::from_second(1_767_225_600 + h * 3600).unwrap();
        // Twice in a second, then an hour back, then two forward.
        for (i, now) in [hour(0), hour(0), hour(-1), hour(2)].into_iter().enumerate() {
            dir.write("0.log", &i.to_string());
            set_aside(&dir.place(), 9, now, false).unwrap();
        }
        let names = dir.names();
        assert_eq!(names.iter().map(|n| dir.read(n)).collect::<Vec<_>>(), ["0", "1", "2", "3"], "{names:?}");
    }

    #[test]
    fn at_most_max_files_are_kept_and_what_is_not_ours_stays() {
        let dir = Dir::new();
        dir.write("0.log.notes", "mine");
        for i in 0..9 {
            dir.write("0.log", &i.to_string());
            set_aside(&dir.place(), 3, Timestamp::UNIX_EPOCH, false).unwrap();
            compress(&dir.place(), || true).unwrap();
        }
        dir.write("0.log", "new");
        let names = dir.names();
        assert_eq!(names.len(), 4, "{names:?}");
        assert!(names[1].ends_with(".gz") && !names[2].ends_with(".gz"), "{names:?}");
        assert_eq!((dir.read(&names[1]), dir.read(&names[2])), ("7".into(), "8".into()));
        assert_eq!(dir.read("0.log.notes"), "mine");
    }

    #[test]
    fn what_a_killed_agent_left_half_done_is_mended() {
        let dir = Dir::new();
        dir.write("0.log.20260101-000000", "one");
        dir.write("0.log.20260101-000000.tmp", "half");
        dir.write("0.log.20260101-000001", "two");
        dir.write("0.log.20260101-000001.gz", "compressed whole, the original was to go");
        dir.write("0.log.20260101-000002", "three");
        dir.write("0.log.20260101-000003.tmp", "of nothing");
        clean(&dir.place(), true).unwrap();
        assert_eq!(dir.names().len(), 6, "while compressing nothing is touched");
        clean(&dir.place(), false).unwrap();
        compress(&dir.place(), || true).unwrap();
        let want = ["0.log.20260101-000000.gz", "0.log.20260101-000001.gz", "0.log.20260101-000002"];
        assert_eq!(dir.names(), want);
        assert_eq!(dir.read(want[0]), "one");
    }

    #[test]
    fn a_rotation_that_failed_is_undone_unless_there_is_a_new_log() {
        let dir = Dir::new();
        dir.write("0.log", "old");
        let stamp = set_aside(&dir.place(), 5, Timestamp::UNIX_EPOCH, false).unwrap();
        put_back(&dir.place(), stamp).unwrap();
        assert_eq!((dir.names(), dir.read("0.log")), (vec!["0.log".to_owned()], "old".to_owned()));
        let stamp = set_aside(&dir.place(), 5, Timestamp::UNIX_EPOCH, false).unwrap();
        dir.write("0.log", "new");
        put_back(&dir.place(), stamp).unwrap_err();
        assert_eq!((dir.read("0.log"), dir.read(&plain_name("0.log", stamp))), ("new".into(), "old".into()));
    }

    #[test]
    fn a_file_that_is_still_written_is_not_compressed() {
        let dir = Dir::new();
        dir.write("0.log.20260101-000001", "newest");
        dir.write("0.log.20260101-000000", "");
        let writer =
            std::fs::OpenOptions::new().append(true).open(dir.path("0.log.20260101-000000")).unwrap();
        assert!(!compress(&dir.place(), || true).unwrap());
        assert_eq!(dir.names(), ["0.log.20260101-000000", "0.log.20260101-000001"]);
        drop(writer);
        compress(&dir.place(), || true).unwrap();
        assert_eq!(dir.names(), ["0.log.20260101-000000.gz", "0.log.20260101-000001"]);
    }

    #[test]
    fn links_in_the_place_of_rotated_files_lead_nowhere() {
        let dir = Dir::new();
        let secret = dir.0.path().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        dir.write("0.log.20260101-000001", "newest");
        std::os::unix::fs::symlink(&secret, dir.path("0.log.20260101-000000")).unwrap();
        std::os::unix::fs::symlink(&secret, dir.path("0.log.20260101-000000.tmp")).unwrap();
        compress(&dir.place(), || true).unwrap_err();
        assert!(!dir.path("0.log.20260101-000000.gz").exists());
        remove_all(&dir.place()).unwrap();
        assert!(dir.names().is_empty());
        assert_eq!(std::fs::read_to_string(secret).unwrap(), "secret");
    }

    #[test]
    fn a_log_goes_with_all_that_was_rotated_of_it_and_no_other() {
        let dir = Dir::new();
        for name in ["1.log", "1.log.20260101-000000.gz", "1.log.20260101-000000.tmp", "11.log", "2.log"] {
            dir.write(name, "");
        }
        crate::log::remove_instance_logs(&dir.path("1.log")).unwrap();
        crate::log::remove_instance_logs(&dir.path("1.log")).unwrap();
        assert_eq!(dir.names(), ["11.log", "2.log"]);
        crate::log::remove_instance_logs(&dir.0.path().join("none/c/0.log")).unwrap();
    }
}
