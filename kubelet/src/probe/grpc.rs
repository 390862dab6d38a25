//! The gRPC health check: `grpc.health.v1.Health/Check` on a connection of its own, without TLS.
//!
//! Both messages have one field each, so they are written and read here by hand. Texts are upstream's.

use super::dial::{Stream, dial, host_port};
use super::h2;
use super::prober::Answer;
use bytes::Bytes;
use http::{HeaderMap, Request, Uri};
use http_body_util::{BodyExt as _, Full};
use k8s_openapi::api::core::v1::GRPCAction;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

const PATH: &str = "/grpc.health.v1.Health/Check";
const USER_AGENT: &str = "kube-probe/1.36";
/// An answer is a few bytes; one that is larger is none.
const ANSWER_LIMIT: usize = 4 << 10;
/// A server that is not there yet is tried again so soon.
const RETRY: Duration = Duration::from_millis(200);

/// Why the call has no answer: gRPC's code and message.
struct Status {
    code: u32,
    message: String,
}

const UNAVAILABLE: u32 = 14;
const UNIMPLEMENTED: u32 = 12;
const INTERNAL: u32 = 13;

/// Asks the server at `ip` whether `action`'s service is well.
pub async fn check(ip: &str, action: &GRPCAction, timeout: Duration) -> Answer {
    let deadline = Instant::now() + timeout;
    let Ok(port) = u16::try_from(action.port) else {
        return Answer::Unknown(format!("invalid port number: {}", action.port));
    };
    let address = host_port(ip, port);
    let Ok(stream) = timeout_at(deadline, connect(ip, port)).await else {
        return Answer::Failure(format!(
            "timeout: failed to connect service {address:?} within {}s: context deadline exceeded",
            timeout.as_secs()
        ));
    };
    let service = action.service.as_deref().unwrap_or_default();
    match timeout_at(deadline, call(stream, &address, service)).await {
        Err(_) => {
            Answer::Failure(format!("timeout: health rpc did not complete within {}s", timeout.as_secs()))
        }
        Ok(Ok(1)) => Answer::Success,
        Ok(Ok(status)) => {
            Answer::Failure(format!("service unhealthy (responded with {:?})", serving_text(status)))
        }
        Ok(Err(Status { code: UNIMPLEMENTED, message })) => Answer::Failure(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
        )),
        Ok(Err(Status { code, message })) => Answer::Failure(format!(
            "error: health rpc probe failed: rpc error: code = {} desc = {message}",
            code_text(code)
        )),
    }
}

/// As gRPC does it: a server that refuses is tried again until time is up.
async fn connect(ip: &str, port: u16) -> Stream {
    loop {
        match dial(ip, port).await {
            Ok(stream) => return stream,
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

/// The answer's `status`.
async fn call(stream: Stream, address: &str, service: &str) -> Result<u64, Status> {
    let unavailable = |e: hyper::Error| Status { code: UNAVAILABLE, message: e.to_string() };
    let (mut sender, connection) = h2::handshake(stream).await.map_err(unavailable)?;
    let exchange = async {
        let answer = sender.send_request(request(address, service)?).await.map_err(unavailable)?;
        if answer.status() != http::StatusCode::OK {
            let message = format!("unexpected HTTP status code received from server: {}", answer.status());
            return Err(Status { code: UNAVAILABLE, message });
        }
        status_in(answer.headers())?;
        let mut body = answer.into_body();
        let mut read = Vec::new();
        let mut ended = false;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(unavailable)?;
            if let Some(data) = frame.data_ref() {
                read.extend_from_slice(data);
            }
            if let Some(trailers) = frame.trailers_ref() {
                status_in(trailers)?;
                ended = true;
            }
            if read.len() > ANSWER_LIMIT {
                let message = "the answer of the health check is too long".to_owned();
                return Err(Status { code: INTERNAL, message });
            }
        }
        if !ended {
            let message = "server closed the stream without sending trailers".to_owned();
            return Err(Status { code: INTERNAL, message });
        }
        decode(&read)
    };
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        answered = &mut exchange => answered,
        ended = connection => {
            let message = match ended {
                Ok(()) => "error reading from server: EOF".to_owned(),
                Err(e) => format!("error reading from server: {e}"),
            };
            Err(Status { code: UNAVAILABLE, message })
        }
    }
}

fn request(address: &str, service: &str) -> Result<Request<Full<Bytes>>, Status> {
    let internal = |message: String| Status { code: INTERNAL, message };
    let uri = Uri::builder().scheme("http").authority(address).path_and_query(PATH).build();
    let message = encode(service);
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(&message);
    Request::post(uri.map_err(|e| internal(e.to_string()))?)
        .header("content-type", "application/grpc")
        .header("user-agent", USER_AGENT)
        .header("te", "trailers")
        .body(Full::new(Bytes::from(framed)))
        .map_err(|e| internal(e.to_string()))
}

/// Field 1, a string.
fn encode(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length > 0x7f {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push((length & 0x7f) as u8);
        message.extend_from_slice(service.as_bytes());
    }
    message
}

/// Field 1, an enumeration; absent is 0. One frame, not compressed.
fn decode(framed: &[u8]) -> Result<u64, Status> {
    let broken =
        || Status { code: INTERNAL, message: "the answer of the health check cannot be read".to_owned() };
    let (head, message) = framed.split_at_checked(5).ok_or_else(broken)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    if head[0] != 0 || u32::try_from(message.len()).ok() != Some(length) {
        return Err(broken());
    }
    let mut rest = message;
    let mut status = 0;
    while !rest.is_empty() {
        let (tag, after) = varint(rest).ok_or_else(broken)?;
        rest = match tag & 7 {
            0 => {
                let (value, after) = varint(after).ok_or_else(broken)?;
                if tag >> 3 == 1 {
                    status = value;
                }
                after
            }
            1 => after.get(8..).ok_or_else(broken)?,
            2 => {
                let (length, after) = varint(after).ok_or_else(broken)?;
                after.get(usize::try_from(length).unwrap_or(usize::MAX)..).ok_or_else(broken)?
            }
            5 => after.get(4..).ok_or_else(broken)?,
            _ => return Err(broken()),
        };
    }
    Ok(status)
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (i, b) in bytes.iter().take(10).enumerate() {
        value |= u64::from(b & 0x7f).checked_shl(u32::try_from(i).ok()? * 7)?;
        if b & 0x80 == 0 {
            return Some((value, &bytes[i + 1..]));
        }
    }
    None
}

fn status_in(headers: &HeaderMap) -> Result<(), Status> {
    let Some(code) = headers.get("grpc-status") else { return Ok(()) };
    let code = code.to_str().ok().and_then(|c| c.parse().ok()).unwrap_or(2);
    if code == 0 {
        return Ok(());
    }
    let message = headers.get("grpc-message").map(|m| unescape(m.as_bytes())).unwrap_or_default();
    Err(Status { code, message })
}

/// `grpc-message` is percent-encoded.
fn unescape(text: &[u8]) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|_| *first == b'%').and_then(|h| std::str::from_utf8(h).ok());
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &after[2..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out.truncate(super::prober::OUTPUT_LIMIT);
    String::from_utf8_lossy(&out).into_owned()
}

fn serving_text(status: u64) -> String {
    match status {
        0 => "UNKNOWN".to_owned(),
        1 => "SERVING".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        n => n.to_string(),
    }
}

fn code_text(code: u32) -> String {
    const CODES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    let known = usize::try_from(code).ok().and_then(|c| CODES.get(c));
    known.map_or_else(|| format!("Code({code})"), ToString::to_string)
}

#[cfg(test)]
mod tests;
