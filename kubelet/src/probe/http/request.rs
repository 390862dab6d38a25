//! What is sent: from the API's `httpGet` to a request, by upstream's rules for ports, hosts, paths and headers. Pure.

use super::super::dial::host_port;
use crate::api::Container;
use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONNECTION, HOST, REFERER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::Full;
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
    /// A header that HTTP does not allow: upstream finds out as it sends the request.
    #[error("Get {url:?}: net/http: invalid header field value for {name:?}")]
    Header {
        /// What was to be asked for.
        url: String,
        /// The header.
        name: String,
    },
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
        let path = path(action.path.as_deref().unwrap_or("/"));
        let mut get = Self { scheme, host, port, path, headers: HeaderMap::new() };
        for h in action.http_headers.iter().flatten() {
            let bad = || BadAction::Header { url: get.url(), name: h.name.clone() };
            let name = HeaderName::from_bytes(h.name.as_bytes()).map_err(|_| bad())?;
            let value = HeaderValue::from_bytes(h.value.as_bytes()).map_err(|_| bad())?;
            get.headers.append(name, value);
        }
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

    /// The request as HTTP/1.1 has it.
    pub(super) fn message(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::default());
        *request.method_mut() = Method::GET;
        // What `path` made has only bytes that a URI may have; `redirected` parsed it.
        *request.uri_mut() = self.path.parse().unwrap_or_default();
        request.headers_mut().clone_from(&self.headers);
        request
    }

    /// The request as HTTP/2 has it: the host is in the URI, and there is nothing to say of the connection.
    pub(super) fn message2(&self) -> Result<Request<Full<Bytes>>, http::Error> {
        let mut request = self.message();
        let host = request.headers_mut().remove(HOST);
        request.headers_mut().remove(CONNECTION);
        let host = host.as_ref().map_or(&b""[..], HeaderValue::as_bytes);
        *request.uri_mut() = Uri::builder()
            .scheme(self.scheme.as_str())
            .authority(host)
            .path_and_query(&*self.path)
            .build()?;
        Ok(request)
    }

    /// The request that follows a redirect to `location`; `None` when that is not on this host.
    pub(super) fn redirected(&self, location: &str) -> Result<Option<Self>, String> {
        let mut next = self.clone();
        let location = location.split('#').next().unwrap_or_default();
        let (scheme, rest) = match scheme_of(location) {
            Some(scheme) => (scheme.to_ascii_lowercase(), &location[scheme.len() + 1..]),
            None => (self.scheme.as_str().to_owned(), location),
        };
        let reference = match rest.strip_prefix("//") {
            Some(rest) => {
                let (authority, reference) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
                let bad = |e: http::uri::InvalidUri| e.to_string();
                let host = match authority {
                    "" => return Ok(None),
                    authority => authority.parse::<http::uri::Authority>().map_err(bad)?,
                };
                if host.host().trim_start_matches('[').trim_end_matches(']') != self.host {
                    return Ok(None);
                }
                next.scheme = match scheme.as_str() {
                    "http" => Scheme::Http,
                    "https" => Scheme::Https,
                    other => return Err(format!("unsupported protocol scheme {other:?}")),
                };
                next.port = host.port_u16().unwrap_or(next.scheme.default_port());
                let own =
                    host.port_u16().map_or_else(|| host.host().into(), |p| format!("{}:{p}", host.host()));
                next.headers.insert(HOST, HeaderValue::from_str(&own).map_err(|e| e.to_string())?);
                reference
            }
            // A scheme and no host.
            None if scheme_of(location).is_some() => return Ok(None),
            None => rest,
        };
        let (to, query) = reference.split_at(reference.find('?').unwrap_or(reference.len()));
        let (base, base_query) = self.path.split_at(self.path.find('?').unwrap_or(self.path.len()));
        next.path = match to {
            "" if rest.starts_with("//") => path(&format!("/{query}")),
            "" => path(&format!("{base}{}", if query.is_empty() { base_query } else { query })),
            to if to.starts_with('/') => path(&format!("{}{query}", without_dots(to))),
            to => {
                let dir = base.rsplit_once('/').map_or("", |(dir, _)| dir);
                path(&format!("{}{query}", without_dots(&format!("{dir}/{to}"))))
            }
        };
        if !(self.scheme == Scheme::Https && next.scheme == Scheme::Http) {
            let referer = HeaderValue::from_str(&self.url()).map_err(|e| e.to_string())?;
            next.headers.insert(REFERER, referer);
        }
        Ok(Some(next))
    }
}

/// The scheme that makes a reference absolute (RFC 3986, section 3.1): a `:` further on belongs to path or query.
fn scheme_of(reference: &str) -> Option<&str> {
    let (scheme, _) = reference.split_once(':')?;
    let letter = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
    (scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.bytes().all(letter)).then_some(scheme)
}

/// A path that begins with `/`, its segments `.` and `..` carried out (RFC 3986, section 5.2.4).
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                // What it leads to is a directory.
                if segments.peek().is_none() {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
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
