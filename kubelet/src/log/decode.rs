//! The CRI log format, decoded as it streams by. Pure: bytes in, bytes out, no file, no clock.
//!
//! One record is `<RFC 3339 time> <stdout|stderr> <tags> <content>\n`; the first tag is `P` where the runtime split a
//! long line, `F` where the line ends (KEP-1029 and the CRI's own documentation of `log_path`). The decoder holds at
//! most a record's header: content is passed on as it comes, so a line may be of any size.

use jiff::Timestamp;

/// Which of a container's streams to show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stream {
    /// Both, as they were written.
    #[default]
    All,
    /// Standard output only.
    Stdout,
    /// Standard error only.
    Stderr,
}

/// What to show of the records that come by.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Nothing older than this.
    pub since: Option<Timestamp>,
    /// Put the record's time before each line.
    pub timestamps: bool,
    /// No more output than this many bytes.
    pub limit_bytes: Option<u64>,
    /// Which streams.
    pub stream: Stream,
}

/// The longest header taken for one: a time has up to 35 bytes, a stream 6, and tags are single letters so far.
const MAX_HEADER: usize = 256;

/// Where in a record the decoder stands.
#[derive(Debug, PartialEq)]
enum At {
    /// In the header, whose bytes are collected.
    Header,
    /// In the content. `show` it or drop it; `partial`: the line goes on in the next record.
    Content { show: bool, partial: bool },
    /// In a record that is none: skip to the next line feed.
    Invalid,
}

/// Turns a log file's bytes into what a reader of logs sees.
#[derive(Debug)]
pub struct Decoder {
    filter: Filter,
    at: At,
    header: Vec<u8>,
    /// Whether the next output starts a line, and so gets its time.
    line_start: bool,
    left: u64,
    invalid: u64,
}

impl Decoder {
    /// A decoder that stands at the start of a record.
    pub fn new(filter: Filter) -> Self {
        let left = filter.limit_bytes.unwrap_or(u64::MAX);
        Self { filter, at: At::Header, header: Vec::new(), line_start: true, left, invalid: 0 }
    }

    /// Decodes `input`, however it was cut, and appends what is to be shown to `out`.
    pub fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() && !self.is_full() {
            let line_end = memchr::memchr(b'\n', input);
            let (record, rest) = match line_end {
                Some(at) => (&input[..at], &input[at + 1..]),
                None => (input, &[][..]),
            };
            let content = if self.at == At::Header { self.take_header(record, out) } else { record };
            if let At::Content { show: true, .. } = self.at {
                self.emit(content, out);
            }
            if line_end.is_some() {
                self.end_record(out);
            }
            input = rest;
        }
    }

    /// Forgets a record that was begun: what follows comes from the start of another file.
    pub fn restart(&mut self) {
        self.at = At::Header;
        self.header.clear();
    }

    /// Whether the byte limit is reached: nothing more will be shown.
    pub fn is_full(&self) -> bool {
        self.left == 0
    }

    /// How many records were none and were skipped.
    pub fn invalid(&self) -> u64 {
        self.invalid
    }

    /// Collects the header from `record` and gives what of it is content already.
    fn take_header<'a>(&mut self, record: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
        let mut spaces = self.header.iter().filter(|b| **b == b' ').count();
        let mut used = 0;
        for byte in record {
            self.header.push(*byte);
            used += 1;
            spaces += usize::from(*byte == b' ');
            if spaces == 3 || self.header.len() > MAX_HEADER {
                break;
            }
        }
        if spaces == 3 {
            self.at = self.judge(out);
            self.header.clear();
        } else if self.header.len() > MAX_HEADER {
            self.at = At::Invalid;
            self.header.clear();
        }
        &record[used..]
    }

    /// What the complete header says of its record; writes the time where one is due.
    fn judge(&mut self, out: &mut Vec<u8>) -> At {
        let header = std::mem::take(&mut self.header);
        let parsed = parse_header(&header);
        let Some((time, stamp, stream, partial)) = parsed else { return At::Invalid };
        let show = (self.filter.stream == Stream::All || self.filter.stream == stream)
            && self.filter.since.is_none_or(|since| stamp >= since);
        if show && self.filter.timestamps && self.line_start {
            self.emit(fixed_width(time).as_bytes(), out);
            self.emit(b" ", out);
        }
        At::Content { show, partial }
    }

    fn end_record(&mut self, out: &mut Vec<u8>) {
        match self.at {
            At::Content { show: true, partial } => {
                if !partial {
                    self.emit(b"\n", out);
                }
                self.line_start = !partial;
            }
            At::Content { show: false, .. } => {}
            At::Header | At::Invalid => self.invalid += 1,
        }
        self.restart();
    }

    fn emit(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let fits = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        out.extend_from_slice(&bytes[..fits]);
        self.left -= fits as u64;
    }
}

/// Time as text and as a point in time, stream, and whether the line goes on.
fn parse_header(header: &[u8]) -> Option<(&str, Timestamp, Stream, bool)> {
    let mut fields = std::str::from_utf8(header).ok()?.split(' ');
    let (time, stream, tags) = (fields.next()?, fields.next()?, fields.next()?);
    let stamp = time.parse().ok()?;
    let stream = match stream {
        "stdout" => Stream::Stdout,
        "stderr" => Stream::Stderr,
        _ => return None,
    };
    Some((time, stamp, stream, tags.split(':').next() == Some("P")))
}

/// The time with nine digits of a second, as upstream prints it, in the offset it was written in.
fn fixed_width(time: &str) -> String {
    let zone = time.rfind(['Z', 'z', '+']).or_else(|| time.rfind('-')).unwrap_or(time.len());
    let (clock, zone) = time.split_at(zone);
    let (seconds, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    format!("{seconds}.{fraction:0<9}{zone}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOG: &str = "2024-01-02T03:04:05.5Z stdout F one\n\
        2024-01-02T03:04:06Z stderr P two, \n\
        2024-01-02T03:04:07.123456789Z stderr F continued\n\
        2024-01-02T03:04:08+02:00 stdout F:x three\n";

    fn decode(filter: Filter, input: &[u8]) -> (String, u64) {
        let (mut d, mut out) = (Decoder::new(filter), Vec::new());
        d.push(input, &mut out);
        (String::from_utf8_lossy(&out).into_owned(), d.invalid())
    }

    #[test]
    fn partial_records_join_into_one_line() {
        assert_eq!(decode(Filter::default(), LOG.as_bytes()).0, "one\ntwo, continued\nthree\n");
    }

    #[test]
    fn each_line_gets_its_time_once_with_nine_digits() {
        let (out, _) = decode(Filter { timestamps: true, ..Filter::default() }, LOG.as_bytes());
        let want = "2024-01-02T03:04:05.500000000Z one\n\
            2024-01-02T03:04:06.000000000Z two, continued\n\
            2024-01-02T03:04:08.000000000+02:00 three\n";
        assert_eq!(out, want);
    }

    #[test]
    fn older_records_and_other_streams_are_left_out() {
        let since = Some("2024-01-02T03:04:06Z".parse().unwrap());
        // The last record is older: its offset puts it two hours earlier.
        assert_eq!(decode(Filter { since, ..Filter::default() }, LOG.as_bytes()).0, "two, continued\n");
        let stream = Stream::Stdout;
        assert_eq!(decode(Filter { stream, ..Filter::default() }, LOG.as_bytes()).0, "one\nthree\n");
        let stream = Stream::Stderr;
        assert_eq!(decode(Filter { stream, ..Filter::default() }, LOG.as_bytes()).0, "two, continued\n");
    }

    #[test]
    fn output_ends_at_the_byte_limit() {
        let limited = |n| decode(Filter { limit_bytes: Some(n), ..Filter::default() }, LOG.as_bytes()).0;
        assert_eq!(limited(0), "");
        assert_eq!(limited(2), "on");
        assert_eq!(limited(4), "one\n");
        assert_eq!(limited(7), "one\ntwo");
    }

    #[test]
    fn records_that_are_none_are_skipped_and_counted() {
        let long = "x".repeat(10_000);
        let broken = [
            "",
            "no record",
            "2024-01-02T03:04:05Z stdout F",
            "2024-01-02T03:04:05Z nowhere F text",
            "yesterday stdout F text",
            "\u{fffd} \u{1} \u{2} text",
            &long,
        ];
        for bad in broken {
            let input = format!("{bad}\n2024-01-02T03:04:05Z stdout F good\n");
            assert_eq!(decode(Filter::default(), input.as_bytes()), ("good\n".into(), 1), "{bad:?}");
        }
        assert_eq!(decode(Filter::default(), b"\xff\xfe a b c\n").1, 1, "not UTF-8");
    }

    #[test]
    fn content_may_be_empty_binary_or_unfinished() {
        let content = b"2024-01-02T03:04:05Z stdout F \n2024-01-02T03:04:05Z stdout F \xff\x00 a b";
        let (mut d, mut out) = (Decoder::new(Filter::default()), Vec::new());
        d.push(content, &mut out);
        assert_eq!(out, b"\n\xff\x00 a b");
    }

    proptest! {
        #[test]
        fn how_the_input_is_cut_changes_nothing(cuts in prop::collection::vec(1usize..9, 1..80), junk in any::<bool>()) {
            let log = if junk { format!("{}\n{LOG}x\n{LOG}", "j".repeat(300)) } else { LOG.repeat(2) };
            let filter = Filter { timestamps: true, ..Filter::default() };
            let (mut d, mut out, mut rest) = (Decoder::new(filter.clone()), Vec::new(), log.as_bytes());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                d.push(now, &mut out);
                rest = later;
            }
            prop_assert_eq!((String::from_utf8(out).unwrap(), d.invalid()), decode(filter, log.as_bytes()));
        }

        #[test]
        fn no_input_panics_or_grows_the_decoder(input in prop::collection::vec(any::<u8>(), 0..2000)) {
            let (mut d, mut out) = (Decoder::new(Filter::default()), Vec::new());
            d.push(&input, &mut out);
            prop_assert!(d.header.len() <= MAX_HEADER && out.len() <= input.len());
        }
    }
}
