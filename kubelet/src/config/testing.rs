//! What the tests of this room share.

use std::path::PathBuf;

/// A recorded file of the stock kubelet's behaviour, or `None`, said aloud, where there is no recording.
pub(super) fn golden(file: &str) -> Option<serde_json::Value> {
    let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/golden");
    let root = std::env::var_os("GOLDEN_DIR").map_or_else(|| PathBuf::from(workspace), PathBuf::from);
    let path = root.join(file);
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(serde_json::from_str(&text).expect("recorded files are JSON")),
        Err(e) => {
            println!("SKIPPED: no recorded behaviour to compare with: {}: {e}", path.display());
            None
        }
    }
}
