//! `/healthz` and its checks: what is said, given what the checks found. Pure.

use super::answer::{go_error, plain};
use super::body::Body;
use super::query::Query;
use http::{Response, StatusCode};

/// A check's name and what it found.
pub type Check = (&'static str, Result<(), String>);

/// `/healthz`: all checks; `verbose` lists them, `exclude=NAME` leaves one out. Reasons are for the log only.
pub fn all(checks: &[Check], query: &Query) -> Response<Body> {
    let mut lines = String::new();
    let mut failed = false;
    for (name, found) in checks {
        let line = match found {
            _ if query.all("exclude").any(|excluded| excluded == *name) => {
                format!("[+]{name} excluded: ok\n")
            }
            Ok(()) => format!("[+]{name} ok\n"),
            Err(reason) => {
                tracing::warn!(check = name, reason, "health check failed");
                failed = true;
                format!("[-]{name} failed: reason withheld\n")
            }
        };
        lines.push_str(&line);
    }
    if failed {
        return go_error(StatusCode::INTERNAL_SERVER_ERROR, &format!("{lines}healthz check failed"));
    }
    let text =
        if query.get("verbose").is_some() { format!("{lines}healthz check passed\n") } else { "ok".into() };
    super::answer::nosniff(plain(StatusCode::OK, text))
}

/// `/healthz/NAME`: one check, with its reason.
pub fn one(found: &Result<(), String>) -> Response<Body> {
    match found {
        Ok(()) => plain(StatusCode::OK, "ok"),
        Err(reason) => {
            go_error(StatusCode::INTERNAL_SERVER_ERROR, &format!("internal server error: {reason}"))
        }
    }
}
