//! What the replay of recorded cases and the tests of single rooms share: reading the recordings, and CRI messages as
//! the recorder wrote them.
//!
//! `golden` (the binary) and this crate's tests call it. It must not know any room of the agent.

pub mod protojson;
