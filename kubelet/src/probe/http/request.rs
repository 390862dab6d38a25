//! What is sent: from the API's `httpGet` to a request, by upstream's rules for ports, hosts, paths and headers. Pure.

use super::super::dial::host_port;
use crate::api::Container;
use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONNECTION, HOST, REFERER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::Empty;
use k8s_openapi::api::core::v1::HTTPGetAction;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::fmt::Write as _;

/// `http` or `https`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain.
    Http,
    /// TLS, whoever answers.
    Https,
}

impl Scheme {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// On whose behalf is asked: it decides the headers that the action does not set itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    /// `kube-probe/1.36`, and the connection is closed.
    Probe,
    /// `kube-lifecycle/1.36`
    Lifecycle,
}

/// One request, before it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Get {
    /// Plain or TLS.
    pub scheme: Scheme,
    /// Name or address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Path and query, percent-encoded where the manifest's was not.
    pub path: String,
    /// Every header, `Host` included.
    pub headers: HeaderMap,
}

/// An action that makes no request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAction {
    /// The port is no number, and no port of the container has it for a name.
    #[error("strconv.Atoi: parsing {0:?}: invalid syntax")]
    PortName(String),
    /// Outside 1 to 65535.
    #[error("invalid port number: {0}")]
    PortNumber(i64),
    /// A header that HTTP does not allow.
    #[error("net/http: invalid header field {0:?}")]
    Header(String),
    /// Neither a name nor an address.
    #[error("invalid host {0:?}")]
    Host(String),
}

/// The port that `port` means for `c`: a number, the name of one of its ports, or a number written as text.
pub fn port(port: &IntOrString, c: &Container) -> Result<u16, BadAction> {
    let number = match port {
        IntOrString::Int(n) => i64::from(*n),
        IntOrString::String(name) => {
            let named = c.ports.iter().flatten().find(|p| p.name.as_ref() == Some(name));
            match named {
                Some(p) => i64::from(p.container_port),
                None => name.parse().map_err(|_| BadAction::PortName(name.clone()))?,
            }
        }
    };
    u16::try_from(number).ok().filter(|n| *n > 0).ok_or(BadAction::PortNumber(number))
}

impl Get {
    /// The request of `action` to the container `c` of the pod whose address is `pod_ip`.
    pub fn of(action: &HTTPGetAction, c: &Container, pod_ip: &str, agent: Agent) -> Result<Self, BadAction> {
        let scheme = match action.scheme.as_deref() {
            Some(s) if s.eq_ignore_ascii_case("https") => Scheme::Https,
            _ => Scheme::Http,
        };
        let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip);
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host).to_owned();
        let port = port(&action.port, c)?;
        let mut headers = HeaderMap::new();
        for h in action.http_headers.iter().flatten() {
            let bad = || BadAction::Header(h.name.clone());
            let name = HeaderName::from_bytes(h.name.as_bytes()).map_err(|_| bad())?;
            headers.append(name, HeaderValue::from_bytes(h.value.as_bytes()).map_err(|_| bad())?);
        }
        let get = Self { scheme, host, port, path: path(action.path.as_deref().unwrap_or("/")), headers };
        get.with_defaults(agent)
    }

    fn with_defaults(mut self, agent: Agent) -> Result<Self, BadAction> {
        let authority = host_port(&self.host, self.port);
        let own = HeaderValue::from_str(&authority).map_err(|_| BadAction::Host(self.host.clone()))?;
        if authority.parse::<http::uri::Authority>().is_err() {
            return Err(BadAction::Host(self.host));
        }
        let user_agent = match agent {
            Agent::Probe => "kube-probe/1.36",
            Agent::Lifecycle => "kube-lifecycle/1.36",
        };
        let mut all = HeaderMap::new();
        // The action's own `Host` names a virtual host; the connection goes to the container all the same.
        let given = self.headers.get(HOST).filter(|h| !h.is_empty()).cloned();
        all.insert(HOST, given.unwrap_or(own));
        for (name, default) in [(USER_AGENT, user_agent), (ACCEPT, "*/*")] {
            match self.headers.get(&name) {
                None => drop(all.insert(name, HeaderValue::from_static(default))),
                // Set to nothing: not sent at all.
                Some(empty) if empty.is_empty() => {}
                Some(given) => drop(all.insert(name, given.clone())),
            }
        }
        for (name, value) in &self.headers {
            if ![HOST, USER_AGENT, ACCEPT].contains(name) {
                all.append(name.clone(), value.clone());
            }
        }
        match agent {
            Agent::Probe => drop(all.insert(CONNECTION, HeaderValue::from_static("close"))),
            Agent::Lifecycle if !all.contains_key(ACCEPT_ENCODING) => {
                all.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
            }
            Agent::Lifecycle => {}
        }
        self.headers = all;
        Ok(self)
    }

    /// The whole of it, as errors name it.
    pub fn url(&self) -> String {
        format!("{}://{}{}", self.scheme.as_str(), host_port(&self.host, self.port), self.path)
    }

    /// Path and query alone.
    pub fn target(&self) -> String {
        self.path.clone()
    }

    pub(super) fn message(&self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = Method::GET;
        // What `path` made has only bytes that a URI may have; `redirected` parsed it.
        *request.uri_mut() = self.path.parse().unwrap_or_default();
        request.headers_mut().clone_from(&self.headers);
        request
    }

    /// The request that follows a redirect to `location`.
    pub(super) fn redirected(&self, location: &str) -> Result<Self, String> {
        let mut next = self.clone();
        let location = location.split('#').next().unwrap_or_default();
        let absolute = match location.strip_prefix("//") {
            Some(rest) => Some(format!("{}://{rest}", self.scheme.as_str())),
            None => location.contains("://").then(|| location.to_owned()),
        };
        if let Some(absolute) = absolute {
            let uri: Uri = absolute.parse().map_err(|e: http::uri::InvalidUri| e.to_string())?;
            next.scheme = match uri.scheme_str() {
                Some("http") => Scheme::Http,
                Some("https") => Scheme::Https,
                other => return Err(format!("unsupported protocol scheme {:?}", other.unwrap_or_default())),
            };
            let host = uri.host().unwrap_or_default();
            next.host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let given = uri.port_u16();
            next.port = given.unwrap_or(next.scheme.default_port());
            let authority = given.map_or_else(|| host.to_owned(), |p| format!("{host}:{p}"));
            next.headers.insert(HOST, HeaderValue::from_str(&authority).map_err(|e| e.to_string())?);
            next.path = path(uri.path_and_query().map_or("/", |p| p.as_str()));
        } else if location.starts_with('/') {
            next.path = path(location);
        } else if location.starts_with('?') {
            let before = self.path.split('?').next().unwrap_or("/");
            next.path = path(&format!("{before}{location}"));
        } else {
            let before = self.path.split('?').next().unwrap_or("/");
            let dir = before.rsplit_once('/').map_or("", |(dir, _)| dir);
            next.path = path(&format!("{dir}/{location}"));
        }
        if !(self.scheme == Scheme::Https && next.scheme == Scheme::Http) {
            let referer = HeaderValue::from_str(&self.url()).map_err(|e| e.to_string())?;
            next.headers.insert(REFERER, referer);
        }
        Ok(next)
    }
}

/// Path and query of a request from what a manifest has: without fragment, beginning with `/`, and with what a request
/// line cannot have percent-encoded.
fn path(given: &str) -> String {
    let given = given.split('#').next().unwrap_or_default();
    let mut out = String::with_capacity(given.len() + 1);
    if !given.starts_with('/') {
        out.push('/');
    }
    for b in given.bytes() {
        if b.is_ascii_graphic() && !matches!(b, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}')
        {
            out.push(char::from(b));
        } else {
            // Writing to a `String` cannot fail.
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}
