//! What a CRI call that failed says: which call, about which object, what sort of failure, the runtime's bare words.
//!
//! Every method of [`crate::Client`] returns it. It must never rewrite the runtime's message: events and statuses that
//! people's tools read carry it verbatim.

use std::error::Error as _;

use tonic::{Code, Status};

/// A CRI call that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The call's name in CRI, such as `StartContainer`.
    pub call: &'static str,
    /// What the call was about: an id, an image reference, `namespace/name` of a sandbox to be; empty when there is
    /// no object.
    pub object: String,
    /// What a caller decides by.
    pub kind: Kind,
    /// The gRPC status code behind [`Error::kind`].
    pub code: Code,
    /// The runtime's own text, nothing added. Where no runtime answered, what the connection said.
    pub message: String,
}

/// The sorts of failure that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The runtime knows no such object.
    NotFound,
    /// An object of that name is there already.
    AlreadyExists,
    /// The deadline passed, here or in the runtime. Whether the effect happened is unknown.
    Timeout,
    /// No connection, or one that broke during the call, or a runtime that is still starting. When it broke during the
    /// call, whether the effect happened is unknown.
    Unavailable,
    /// The runtime does not have this call.
    Unimplemented,
    /// A limit was hit, most often a message above 16 MiB.
    ResourceExhausted,
    /// The request itself is at fault.
    InvalidArgument,
    /// Anything else; runtimes give nearly all their failures the code `Unknown`.
    Other,
}

/// Shorthand for what calls return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(
        call: &'static str,
        object: impl Into<String>,
        code: Code,
        message: impl Into<String>,
    ) -> Self {
        let (object, message) = (object.into(), message.into());
        Self { call, object, kind: Kind::of(code, &message), code, message }
    }

    pub(crate) fn from_status(call: &'static str, object: &str, status: &Status) -> Self {
        // A status with a source was made on this side, out of a connection that failed.
        match status.source() {
            Some(source) => Self::new(call, object, Code::Unavailable, chain(source)),
            None => Self::new(call, object, status.code(), status.message()),
        }
    }

    /// The deadline passed on this side. The text is the one that gRPC clients of other languages show.
    pub(crate) fn timeout(call: &'static str, object: &str) -> Self {
        Self::new(call, object, Code::DeadlineExceeded, "context deadline exceeded")
    }

    /// The message as the stock kubelet puts it into those events that show the gRPC code too:
    /// `rpc error: code = Unknown desc = …`.
    #[must_use]
    pub fn rpc_text(&self) -> String {
        format!("rpc error: code = {} desc = {}", code_name(self.code), self.message)
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.object.is_empty() {
            write!(f, "{}: {}", self.call, self.message)
        } else {
            write!(f, "{} {}: {}", self.call, self.object, self.message)
        }
    }
}

impl std::error::Error for Error {}

impl Kind {
    fn of(code: Code, message: &str) -> Self {
        match code {
            Code::NotFound => Self::NotFound,
            Code::AlreadyExists => Self::AlreadyExists,
            Code::DeadlineExceeded => Self::Timeout,
            Code::Unavailable => Self::Unavailable,
            Code::Unimplemented => Self::Unimplemented,
            Code::ResourceExhausted => Self::ResourceExhausted,
            // The decoder's own code for a message past the limit.
            Code::OutOfRange if message.contains("message length too large") => Self::ResourceExhausted,
            Code::InvalidArgument => Self::InvalidArgument,
            _ => Self::Other,
        }
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// The code's name as gRPC implementations print it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_call_and_object_and_keeps_the_runtimes_words() {
        let status = Status::not_found("an error occurred when try to find container \"x\": not found");
        let error = Error::from_status("ContainerStatus", "x", &status);
        assert_eq!(error.kind, Kind::NotFound);
        assert_eq!(error.message, status.message());
        assert_eq!(error.to_string(), format!("ContainerStatus x: {}", status.message()));
        assert_eq!(
            Error::from_status("Version", "", &status).to_string(),
            format!("Version: {}", status.message())
        );
        assert_eq!(error.rpc_text(), format!("rpc error: code = NotFound desc = {}", status.message()));
    }

    #[test]
    fn a_broken_connection_is_unavailable_whatever_code_it_was_given() {
        let status = Status::from_error(Box::new(std::io::Error::other("broken pipe")));
        assert_eq!(Error::from_status("Version", "", &status).kind, Kind::Unavailable);
    }
}
