//! Elements of nftables sets and maps: add, remove, list; and which chains there are. linux/netfilter/nf_tables.h.

use nix::errno::Errno;

use super::wire::{self, Answer, Message, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST};
use super::{NfError, Socket};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_GETSETELEM: u16 = 13;
const NFT_MSG_DELSETELEM: u16 = 14;
const NFPROTO_INET: u8 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_USERDATA: u16 = 6;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
/// The verdict NFT_JUMP is -3.
const NFT_JUMP: [u8; 4] = (-3i32).to_be_bytes();
/// Type of the comment in an element's user data, as the `nft` program writes and shows it.
const UDATA_COMMENT: u8 = 0;

/// Longest comment in bytes: user data holds 256, of which three frame the text.
pub const MAX_COMMENT: usize = 250;

/// What a map's element maps to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// Raw bytes; each part of a concatenation is padded to four.
    Value(Vec<u8>),
    /// The verdict "jump CHAIN".
    Jump(String),
}

/// An element of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Raw bytes in network order; each part of a concatenation is padded to four.
    pub key: Vec<u8>,
    /// `None` in a plain set, and where only the key counts.
    pub data: Option<Data>,
    /// At most [`MAX_COMMENT`] bytes; `nft list` shows it.
    pub comment: String,
}

/// One change of a transaction.
#[derive(Debug, Clone)]
pub enum ElementChange<'a> {
    /// Refused with EEXIST when the key is there, with ENOENT when table, map or jump target is not.
    Add { set: &'a str, element: Element },
    /// Refused with ENOENT when the key is not there.
    Delete { set: &'a str, key: Vec<u8> },
}

impl ElementChange<'_> {
    fn message(&self, table: &str, seq: u32) -> Vec<u8> {
        let (kind, flags, set) = match self {
            ElementChange::Add { set, .. } => (NFT_MSG_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, set),
            ElementChange::Delete { set, .. } => (NFT_MSG_DELSETELEM, 0, set),
        };
        let flags = flags | NLM_F_REQUEST | NLM_F_ACK;
        let mut m = Message::new(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, seq, NFPROTO_INET, 0);
        m.text(NFTA_SET_ELEM_LIST_TABLE, table).text(NFTA_SET_ELEM_LIST_SET, set);
        m.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |m| {
            m.nest(NFTA_LIST_ELEM, |m| match self {
                ElementChange::Add { element, .. } => write_element(m, element),
                ElementChange::Delete { key, .. } => write_key(m, key),
            });
        });
        m.finish()
    }
}

fn write_key(m: &mut Message, key: &[u8]) {
    m.nest(NFTA_SET_ELEM_KEY, |m| {
        m.attr(NFTA_DATA_VALUE, key);
    });
}

fn write_element(m: &mut Message, element: &Element) {
    write_key(m, &element.key);
    match &element.data {
        None => {}
        Some(Data::Value(value)) => {
            m.nest(NFTA_SET_ELEM_DATA, |m| {
                m.attr(NFTA_DATA_VALUE, value);
            });
        }
        Some(Data::Jump(chain)) => {
            m.nest(NFTA_SET_ELEM_DATA, |m| {
                m.nest(NFTA_DATA_VERDICT, |m| {
                    m.attr(NFTA_VERDICT_CODE, &NFT_JUMP).text(NFTA_VERDICT_CHAIN, chain);
                });
            });
        }
    }
    if !element.comment.is_empty() {
        let end = (0..=element.comment.len().min(MAX_COMMENT))
            .rev()
            .find(|i| element.comment.is_char_boundary(*i))
            .unwrap_or(0);
        let text = &element.comment.as_bytes()[..end];
        let len = u8::try_from(text.len() + 1).expect("MAX_COMMENT keeps it below 256");
        let mut udata = vec![UDATA_COMMENT, len];
        udata.extend_from_slice(text);
        udata.push(0);
        m.attr(NFTA_SET_ELEM_USERDATA, &udata);
    }
}

fn read_element(bytes: &[u8]) -> Option<Element> {
    let key = wire::attr(wire::attr(bytes, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?.to_vec();
    let data = wire::attr(bytes, NFTA_SET_ELEM_DATA).and_then(|data| {
        if let Some(value) = wire::attr(data, NFTA_DATA_VALUE) {
            return Some(Data::Value(value.to_vec()));
        }
        let chain = wire::attr(wire::attr(data, NFTA_DATA_VERDICT)?, NFTA_VERDICT_CHAIN)?;
        let text = chain.strip_suffix(&[0]).unwrap_or(chain);
        Some(Data::Jump(String::from_utf8_lossy(text).into_owned()))
    });
    let comment = wire::attr(bytes, NFTA_SET_ELEM_USERDATA).and_then(comment_of).unwrap_or_default();
    Some(Element { key, data, comment })
}

fn comment_of(mut udata: &[u8]) -> Option<String> {
    loop {
        let (kind, len) = (*udata.first()?, usize::from(*udata.get(1)?));
        let value = udata.get(2..2 + len)?;
        if kind == UDATA_COMMENT {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        udata = udata.get(2 + len..)?;
    }
}

impl Socket {
    /// Applies all changes to maps of `inet TABLE`, or none. Empty changes do nothing.
    pub fn change_elements(&mut self, table: &str, changes: &[ElementChange<'_>]) -> Result<(), NfError> {
        if changes.is_empty() {
            return Ok(());
        }
        let begin = self.next_seq();
        let mut bytes =
            Message::new(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, begin, 0, NFNL_SUBSYS_NFTABLES).finish();
        let first = self.seq.wrapping_add(1);
        for change in changes {
            let seq = self.next_seq();
            bytes.extend(change.message(table, seq));
        }
        let end = self.next_seq();
        bytes.extend(Message::new(NFNL_MSG_BATCH_END, NLM_F_REQUEST, end, 0, NFNL_SUBSYS_NFTABLES).finish());
        self.make_room(bytes.len(), changes.len())?;
        self.send(&bytes)?;

        // The kernel has worked through the batch when the send returns, so what it has to say is there.
        let (mut acks, mut refused) = (0, Vec::new());
        while let Some(bytes) = self.receive(false)? {
            for answer in wire::answers(&bytes) {
                let malformed = || NfError::Malformed { what: format!("change table {table}") };
                match answer.ok_or_else(malformed)? {
                    (seq, Answer::Status(errno)) if seq == begin && errno != 0 => {
                        let what = format!("change table {table}");
                        return Err(NfError::Kernel { what, errno: Errno::from_raw(errno) });
                    }
                    (_, Answer::Status(0)) => acks += 1,
                    (seq, Answer::Status(errno)) => {
                        refused.push((seq.wrapping_sub(first) as usize, Errno::from_raw(errno)));
                    }
                    _ => {}
                }
            }
        }
        if !refused.is_empty() {
            return Err(NfError::Refused { table: table.into(), refused });
        }
        if acks < changes.len() {
            return Err(NfError::Malformed { what: format!("change table {table}") });
        }
        Ok(())
    }

    /// Whether `inet TABLE` has this chain.
    pub fn has_chain(&mut self, table: &str, chain: &str) -> Result<bool, NfError> {
        let found = self.dump(
            &format!("look up chain {chain} of table {table}"),
            |seq| {
                let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN;
                let mut m = Message::new(kind, NLM_F_REQUEST | NLM_F_ACK, seq, NFPROTO_INET, 0);
                m.text(NFTA_CHAIN_TABLE, table).text(NFTA_CHAIN_NAME, chain);
                m.finish()
            },
            |_, items| {
                items.push(());
                Some(())
            },
        );
        match found {
            Err(e) if e.has(Errno::ENOENT) => Ok(false),
            found => Ok(!found?.is_empty()),
        }
    }

    /// The names of the chains of `inet TABLE`; none when it is not there.
    pub fn chains(&mut self, table: &str) -> Result<Vec<String>, NfError> {
        let text =
            |bytes: &[u8]| String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned();
        self.dump(
            &format!("list the chains of table {table}"),
            |seq| {
                let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN;
                Message::new(kind, NLM_F_REQUEST | NLM_F_DUMP, seq, NFPROTO_INET, 0).finish()
            },
            |payload, items| {
                if text(wire::attr(payload, NFTA_CHAIN_TABLE)?) == table {
                    items.push(text(wire::attr(payload, NFTA_CHAIN_NAME)?));
                }
                Some(())
            },
        )
    }

    /// The elements of a map of `inet TABLE`; an empty list when the table or the map is not there.
    pub fn elements(&mut self, table: &str, set: &str) -> Result<Vec<Element>, NfError> {
        let list = self.dump(
            &format!("list map {set} of table {table}"),
            |seq| {
                let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETSETELEM;
                let mut m = Message::new(kind, NLM_F_REQUEST | NLM_F_DUMP, seq, NFPROTO_INET, 0);
                m.text(NFTA_SET_ELEM_LIST_TABLE, table).text(NFTA_SET_ELEM_LIST_SET, set);
                m.finish()
            },
            |payload, items| {
                if let Some(list) = wire::attr(payload, NFTA_SET_ELEM_LIST_ELEMENTS) {
                    for (_, element) in wire::attrs(list).filter(|(kind, _)| *kind == NFTA_LIST_ELEM) {
                        items.push(read_element(element)?);
                    }
                }
                Some(())
            },
        );
        match list {
            Err(e) if e.has(Errno::ENOENT) => Ok(Vec::new()),
            other => other,
        }
    }
}
