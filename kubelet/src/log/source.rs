//! One file of a log as it is read: as the runtime wrote it, or compressed by rotation.
//!
//! A reader asks for what stands at a position and may ask again: nothing is lost when an answer was not taken. The
//! functions block on the disk.

use super::place::Place;
use super::rotated::{self, Stamp};
use flate2::read::GzDecoder;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Mutex, PoisonError};

/// A file of a log.
#[derive(Debug)]
pub struct Source {
    content: Content,
    /// Its name's time, where it was opened as a rotated one.
    stamp: Option<Stamp>,
}

#[derive(Debug)]
enum Content {
    Plain(File),
    /// Read in order only.
    Compressed(Box<Mutex<Inflating>>),
}

#[derive(Debug)]
struct Inflating {
    decoder: GzDecoder<File>,
    /// The last piece, and where it begins.
    piece: Vec<u8>,
    at: u64,
}

impl Source {
    /// The log's present file.
    pub fn plain(file: File) -> Self {
        Self { content: Content::Plain(file), stamp: None }
    }

    /// At most `most` bytes from `pos` on; none at the end. Of a compressed file only where the last answer began or ended.
    pub fn read_at(&self, pos: u64, most: usize) -> io::Result<Vec<u8>> {
        match &self.content {
            Content::Plain(file) => {
                let mut piece = vec![0; most];
                let read = file.read_at(&mut piece, pos)?;
                piece.truncate(read);
                Ok(piece)
            }
            Content::Compressed(inflating) => {
                let mut inflating = inflating.lock().unwrap_or_else(PoisonError::into_inner);
                if pos != inflating.at {
                    let mut piece = vec![0; most];
                    let read = inflating.decoder.read(&mut piece)?;
                    piece.truncate(read);
                    (inflating.at, inflating.piece) = (pos, piece);
                }
                Ok(inflating.piece.clone())
            }
        }
    }

    /// It is shorter than `pos`: it was emptied.
    pub fn was_emptied(&self, pos: u64) -> io::Result<bool> {
        match &self.content {
            Content::Plain(file) => Ok(file.metadata()?.len() < pos),
            Content::Compressed(_) => Ok(false),
        }
    }

    /// The runtime has it open still.
    pub fn is_written(&self) -> bool {
        match &self.content {
            Content::Plain(file) => crate::sys::is_open_for_writing(file),
            Content::Compressed(_) => false,
        }
    }

    /// What follows this file: the oldest rotated one that is newer, else the file at the log's name. `None`: nothing yet,
    /// or this very file. The flag says whether what follows has content.
    pub fn successor(&self, place: &Place) -> io::Result<Option<(Self, bool)>> {
        let there = match place.stat() {
            Ok(stat) => Some((stat.st_dev, stat.st_ino)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        if let Content::Plain(file) = &self.content {
            let mine = file.metadata()?;
            if there == Some((mine.dev(), mine.ino())) {
                return Ok(None);
            }
        }
        if let Some(stamp) = self.stamp.or_else(|| self.present_stamp(place))
            && let Some(next) = Self::rotated_after(place, stamp)?
        {
            return Ok(Some((next, true)));
        }
        if there.is_none() {
            return Ok(None);
        }
        match place.open_file(place.name()) {
            Ok(file) => {
                let has_content = file.metadata()?.len() > 0;
                Ok(Some((Self::plain(file), has_content)))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// What rotation has called this file since it was opened. The kernel knows a file's name even after its removal.
    fn present_stamp(&self, place: &Place) -> Option<Stamp> {
        let Content::Plain(file) = &self.content else { return None };
        let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
        let name = link.file_name()?.to_str()?;
        rotated::stamp_of(place.name(), name.strip_suffix(" (deleted)").unwrap_or(name))
    }

    fn rotated_after(place: &Place, stamp: Stamp) -> io::Result<Option<Self>> {
        // A file that is being compressed or removed right now is looked for again.
        for _ in 0..8 {
            let all = rotated::list(place)?;
            let next = all.range(stamp..).find(|(s, forms)| **s > stamp && (forms.plain || forms.compressed));
            let Some((&stamp, forms)) = next else { return Ok(None) };
            let opened = if forms.plain {
                place.open_file(&rotated::plain_name(place.name(), stamp)).map(Content::Plain)
            } else {
                place.open_file(&rotated::compressed_name(place.name(), stamp)).map(|file| {
                    let decoder = GzDecoder::new(file);
                    Content::Compressed(Box::new(Mutex::new(Inflating {
                        decoder,
                        piece: Vec::new(),
                        at: u64::MAX,
                    })))
                })
            };
            match opened {
                Ok(content) => return Ok(Some(Self { content, stamp: Some(stamp) })),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }
}
