//! Where pods come from: turns a manifest directory into [`SourceEvent`]s, and nothing else. The room `objects` reads its
//! own directory with the same `directory`.
//!
//! `world` is the only reader of the events. This room decodes, defaults and validates, and gives a static pod its
//! identity; it never admits, starts or stops anything, and never imports `world` or `pod`. Whatever cannot become a
//! pod is reported with file and field, and the rest runs on.

pub mod decode;
mod defaults;
pub mod directory;
pub mod field;
pub mod file;
mod identity;
pub mod manifest;
pub mod table;
pub mod validate;
mod watch;

pub use decode::{DecodeError, decode_pod};
pub use identity::References;
pub use manifest::{Problem, static_pod};

use crate::api::{Origin, Pod, PodUid};
use std::sync::Arc;
use std::time::Instant;

/// A pod as a source wants it: defaulted, validated, with its UID.
///
/// A static pod's name ends in `-<node>`, its `spec.nodeName` is this node, it tolerates every `NoExecute` taint, and
/// the annotations `kubernetes.io/config.{source,seen,hash}` are set.
#[derive(Clone, Debug)]
pub struct SourcePod {
    /// Which source.
    pub origin: Origin,
    /// The pod.
    pub pod: Arc<Pod>,
    /// When the source first saw this content; the text of `kubernetes.io/config.seen`.
    pub seen: jiff::Timestamp,
    /// The moment the source learned of the change: where start latency is counted from.
    pub arrived: Instant,
}

/// What a source tells `world`. For one UID the events come in order.
#[derive(Clone, Debug)]
pub enum SourceEvent {
    /// This pod should run: new, or an update when the UID is known. A changed manifest without a UID of its own is
    /// a new UID: its [`SourceEvent::Gone`] comes first, and both pods have the same name.
    Put(SourcePod),
    /// This pod should no longer run.
    Gone {
        /// Which source.
        origin: Origin,
        /// Which pod.
        uid: PodUid,
    },
    /// The first full picture of this source has been delivered. Sent once.
    Synced(Origin),
}

#[cfg(test)]
mod testing {
    //! What the room's tests share.

    /// A recorded JSON file, or a note that it is not there.
    pub fn golden(path: &str) -> Option<serde_json::Value> {
        let root = std::env::var_os("GOLDEN_DIR").map_or_else(
            || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden"),
            std::path::PathBuf::from,
        );
        match std::fs::read(root.join(path)) {
            Ok(bytes) => Some(serde_json::from_slice(&bytes).expect("recorded files are JSON")),
            Err(e) => {
                println!("SKIPPED: {}: {e}", root.join(path).display());
                None
            }
        }
    }
}
