//! Netlink framing: writing messages with nested attributes, reading answers. Pure; bounds are checked here once.
//!
//! Layouts: linux/netlink.h, linux/netfilter/nfnetlink.h.

pub const NLM_F_REQUEST: u16 = 1;
pub const NLM_F_ACK: u16 = 4;
pub const NLM_F_EXCL: u16 = 0x200;
pub const NLM_F_CREATE: u16 = 0x400;
/// NLM_F_ROOT | NLM_F_MATCH.
pub const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 0x8000;
/// nlmsghdr and nfgenmsg.
const HEADERS: usize = 20;

/// A message being written.
#[derive(Debug)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// `family` is that of nfgenmsg, `res_id` its resource id in host order.
    pub fn new(kind: u16, flags: u16, seq: u32, family: u8, res_id: u16) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&seq.to_ne_bytes());
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&[family, 0]);
        bytes.extend_from_slice(&res_id.to_be_bytes());
        Message { bytes }
    }

    /// An attribute with a value; lengths beyond 64 KiB cannot occur, the callers' values are bounded.
    pub fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let len = u16::try_from(value.len() + 4).expect("attribute values are bounded by their makers");
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// A text with the zero byte the kernel expects.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// An attribute that holds what `inside` writes.
    pub fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        inside(self);
        let len =
            u16::try_from(self.bytes.len() - start).expect("attribute values are bounded by their makers");
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The bytes, with the length filled in.
    pub fn finish(mut self) -> Vec<u8> {
        let len = u32::try_from(self.bytes.len()).expect("messages are small");
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes
    }
}

/// One message of the kernel's.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// Errno, positive; 0 is an acknowledgement.
    Status(i32),
    /// The end of a list.
    Done { interrupted: bool },
    /// The attributes behind the headers.
    Item { payload: &'a [u8], interrupted: bool },
}

/// The messages of one read with their sequence numbers; a malformed one is `None` and the last.
pub fn answers(mut bytes: &[u8]) -> impl Iterator<Item = Option<(u32, Answer<'_>)>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let parsed = one(bytes);
        bytes = match &parsed {
            Some((_, _, rest)) => rest,
            None => &[],
        };
        Some(parsed.map(|(seq, answer, _)| (seq, answer)))
    })
}

fn one(bytes: &[u8]) -> Option<(u32, Answer<'_>, &[u8])> {
    let len = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let flags = u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?);
    let seq = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
    let message = bytes.get(16..len)?;
    let rest = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    let interrupted = flags & NLM_F_DUMP_INTR != 0;
    let answer = match kind {
        NLMSG_ERROR => Answer::Status(i32::from_ne_bytes(message.get(..4)?.try_into().ok()?).checked_neg()?),
        NLMSG_DONE => Answer::Done { interrupted },
        _ => Answer::Item { payload: bytes.get(HEADERS..len)?, interrupted },
    };
    Some((seq, answer, rest))
}

/// The attributes of a payload: type without flags, and value. Stops at the first malformed one.
pub fn attrs(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The value of the first attribute of a type.
pub fn attr(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attrs(bytes).find(|(k, _)| *k == kind).map(|(_, v)| v)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut m = Message::new(0xa0c, NLM_F_REQUEST, 7, 1, 0);
        m.text(1, "table").nest(3, |m| {
            m.attr(2, &[1, 2, 3]);
        });
        let bytes = m.finish();
        let (seq, Answer::Item { payload, .. }) = answers(&bytes).next().unwrap().unwrap() else { panic!() };
        assert_eq!(seq, 7);
        assert_eq!(attr(payload, 1).unwrap(), b"table\0");
        assert_eq!(attr(attr(payload, 3).unwrap(), 2).unwrap(), [1, 2, 3]);
        assert_eq!(attr(payload, 9), None);
    }

    #[test]
    fn torn_messages_end_the_reading_without_a_panic() {
        let mut m = Message::new(0xa0c, 0, 7, 1, 0);
        m.attr(1, &[9; 13]);
        let bytes = m.finish();
        for end in 1..bytes.len() {
            let seen: Vec<_> = answers(&bytes[..end]).collect();
            assert_eq!(seen, [None], "cut at {end}");
        }
        for end in 0..40 {
            let _ = attrs(&[0xff; 40][..end]).count();
            let _ = attrs(&[0; 40][..end]).count();
        }
    }
}
