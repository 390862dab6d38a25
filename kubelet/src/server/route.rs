//! Which path leads where, on which of the servers, with which methods. Pure.
//!
//! The order of refusals is upstream's: a path nobody registered is 404 and a path that lacks its slash is redirected
//! before anybody is asked who they are; everything else is answered after authentication.

use super::query::{decode, encode};
use http::Method;

/// One of the servers, and what is switched on there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// 10248: health only.
    Healthz,
    /// 10250.
    Secure(Switches),
    /// 10255: without what acts on containers or shows their output.
    ReadOnly,
}

/// What KubeletConfiguration switches on 10250.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switches {
    /// `enableDebuggingHandlers`
    pub debugging: bool,
    /// `enableSystemLogHandler`
    pub system_logs: bool,
    /// `enableProfilingHandler`
    pub profiling: bool,
    /// `enableDebugFlagsHandler`
    pub debug_flags: bool,
    /// The feature gate `ContainerCheckpoint`
    pub checkpoints: bool,
}

/// What is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/healthz`
    Health,
    /// `/healthz/NAME`
    Check(&'static str),
    /// `/pods`
    Pods,
    /// `/runningpods/`
    RunningPods,
    /// `/metrics`
    Metrics,
    /// `/metrics/slis`
    Slis,
    /// `/metrics/probes`
    Probes,
    /// `/metrics/cadvisor`
    Cadvisor,
    /// `/metrics/resource`
    Resource,
    /// `/stats/summary`
    Summary,
    /// `/configz`
    Configz,
    /// `/containerLogs/NAMESPACE/POD/CONTAINER`
    ContainerLogs {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        pod: String,
        /// The container's name.
        container: String,
    },
    /// `/checkpoint/NAMESPACE/POD/CONTAINER`
    Checkpoint {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        pod: String,
        /// The container's name.
        container: String,
    },
}

/// What to do with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Nothing is registered there: 404, whoever asks.
    Unknown,
    /// The path is not clean, or lacks its slash: 307 to this one, whoever asks.
    Redirect(String),
    /// Within a registered tree, but nothing: 404.
    Nothing,
    /// 405 with the methods there are.
    Method(&'static str),
    /// 406: `/debug/flags/v` with anything but PUT.
    NotPut,
    /// Switched off: 405 with this text.
    Disabled(&'static str),
    /// Upstream serves it, this agent does not yet: 501 naming it.
    Missing(&'static str),
    /// Serve it.
    To(Endpoint),
}

impl Way {
    /// Whether the way is open to everybody.
    pub fn is_public(&self) -> bool {
        matches!(self, Way::Unknown | Way::Redirect(_))
    }
}

const DEBUG_DISABLED: &str = "Debug endpoints are disabled.";
const GET: &str = "GET";
const POST: &str = "POST";
const GET_POST: &str = "GET, POST";

/// Trees that answer at their bare path too.
const SERVICES: [&str; 8] =
    ["/pods", "/run", "/exec", "/attach", "/portForward", "/containerLogs", "/checkpoint", "/debug/pprof"];
/// Trees whose bare path is redirected to them.
const TREES: [&str; 3] = ["/stats", "/runningpods", "/logs"];
/// What acts on containers or shows what is inside the agent, where that is switched off.
const DEBUG_TREES: [&str; 8] =
    ["/run", "/exec", "/attach", "/portForward", "/containerLogs", "/runningpods", "/debug/pprof", "/logs"];

/// The way of a request for `path` (as sent, still encoded; `query` is only for redirects). `None` when the path is
/// not one at all.
pub fn way(site: Site, method: &Method, path: &str, query: Option<&str>) -> Option<Way> {
    let path = decode(path).filter(|path| path.starts_with('/'))?;
    let redirect = |to: &str| {
        let query = query.map(|q| format!("?{q}")).unwrap_or_default();
        Way::Redirect(encode(to) + &query)
    };
    let clean = clean(&path);
    if clean != path {
        return Some(redirect(&clean));
    }
    if site == Site::Healthz {
        return Some(match path.as_str() {
            "/healthz" => Way::To(Endpoint::Health),
            "/healthz/ping" => Way::To(Endpoint::Check("ping")),
            _ => Way::Unknown,
        });
    }
    if let Some(way) = exact(site, method, &path) {
        return Some(way);
    }
    let debugging = matches!(site, Site::Secure(Switches { debugging: true, .. }));
    if !debugging && let Some(tree) = DEBUG_TREES.iter().find(|tree| under(&path, tree).is_some()) {
        let bare = path.as_str() == *tree;
        return Some(if bare { redirect(&(path + "/")) } else { Way::Disabled(DEBUG_DISABLED) });
    }
    let checkpoints = matches!(site, Site::Secure(Switches { debugging: true, checkpoints: true, .. }));
    if !checkpoints && under(&path, "/checkpoint").is_some() {
        return Some(Way::Unknown);
    }
    for tree in TREES.iter().chain(&SERVICES) {
        match under(&path, tree) {
            Some(None) if TREES.contains(tree) => return Some(redirect(&(path + "/"))),
            Some(rest) => return Some(inside(site, method, tree, rest.unwrap_or(""))),
            None => {}
        }
    }
    Some(Way::Unknown)
}

/// The label `path` of the request metrics: the first segment of a path that is registered, otherwise `other`.
pub fn label(path: &str, way: &Way) -> &'static str {
    const KNOWN: [&str; 16] = [
        "healthz",
        "pods",
        "stats",
        "metrics",
        "run",
        "exec",
        "attach",
        "portForward",
        "containerLogs",
        "configz",
        "runningpods",
        "checkpoint",
        "logs",
        "debug",
        "flagz",
        "statusz",
    ];
    let first = path.split('/').nth(1).unwrap_or_default();
    match way {
        Way::Unknown => "other",
        _ => KNOWN.into_iter().find(|known| *known == first).unwrap_or("other"),
    }
}

/// Paths that are registered as they are, without anything below them.
fn exact(site: Site, method: &Method, path: &str) -> Option<Way> {
    use Endpoint::{Cadvisor, Check, Configz, Health, Metrics, Probes, Resource, Slis};
    let way = match path {
        "/healthz" => Way::To(Health),
        "/healthz/ping" => Way::To(Check("ping")),
        "/healthz/log" => Way::To(Check("log")),
        "/healthz/syncloop" => Way::To(Check("syncloop")),
        "/metrics" => Way::To(Metrics),
        "/metrics/slis" => Way::To(Slis),
        "/metrics/cadvisor" => Way::To(Cadvisor),
        "/metrics/resource" => Way::To(Resource),
        "/metrics/probes" => Way::To(Probes),
        _ => {
            let Site::Secure(on) = site else { return None };
            match path {
                _ if !on.debugging => return None,
                "/configz" => Way::To(Configz),
                "/flagz" => Way::Missing("the list of flags (/flagz)"),
                "/statusz" => Way::Missing("the status page (/statusz)"),
                "/debug/flags/v" if !on.debug_flags => Way::Disabled("flags endpoint is disabled."),
                "/debug/flags/v" if method == Method::PUT => {
                    Way::Missing("setting the verbosity (/debug/flags/v)")
                }
                "/debug/flags/v" => Way::NotPut,
                _ => return None,
            }
        }
    };
    Some(way)
}

/// What is inside a registered tree; `rest` is the path below it, without its first slash.
fn inside(site: Site, method: &Method, tree: &str, rest: &str) -> Way {
    if let Site::Secure(on) = site {
        match tree {
            "/logs" if !on.system_logs => return Way::Disabled("logs endpoint is disabled."),
            "/debug/pprof" if !on.profiling => return Way::Disabled("profiling endpoint is disabled."),
            _ => {}
        }
    }
    let segments: Vec<&str> =
        rest.strip_suffix('/').unwrap_or(rest).split('/').filter(|s| !s.is_empty()).collect();
    let (methods, way) = match (tree, segments.as_slice()) {
        ("/pods", []) => (GET, Way::To(Endpoint::Pods)),
        ("/runningpods", []) => (GET, Way::To(Endpoint::RunningPods)),
        ("/stats", ["summary"]) => (GET_POST, Way::To(Endpoint::Summary)),
        ("/logs", _) => (GET, Way::Missing("the node's log files (/logs/)")),
        ("/debug/pprof", [_, ..]) => (GET, Way::Missing("profiling (/debug/pprof)")),
        ("/containerLogs", [namespace, pod, container]) => {
            let [namespace, pod, container] = [namespace, pod, container].map(|s| (*s).to_string());
            (GET, Way::To(Endpoint::ContainerLogs { namespace, pod, container }))
        }
        ("/exec", [_, _, _] | [_, _, _, _]) => {
            (GET_POST, Way::Missing("running a command in a container (/exec)"))
        }
        ("/attach", [_, _, _] | [_, _, _, _]) => {
            (GET_POST, Way::Missing("attaching to a container (/attach)"))
        }
        ("/portForward", [_, _] | [_, _, _]) => (GET_POST, Way::Missing("port forwarding (/portForward)")),
        ("/run", [_, _, _] | [_, _, _, _]) => (POST, Way::Missing("running a command in a container (/run)")),
        ("/checkpoint", [namespace, pod, container]) => {
            let [namespace, pod, container] = [namespace, pod, container].map(|s| (*s).to_string());
            (POST, Way::To(Endpoint::Checkpoint { namespace, pod, container }))
        }
        _ => return Way::Nothing,
    };
    if methods.split(", ").any(|m| m == method.as_str()) { way } else { Way::Method(methods) }
}

/// Whether `path` is `tree` (`Some(None)`) or below it (`Some(rest)`).
fn under<'a>(path: &'a str, tree: &str) -> Option<Option<&'a str>> {
    let rest = path.strip_prefix(tree)?;
    if rest.is_empty() { Some(None) } else { rest.strip_prefix('/').map(Some) }
}

/// The path without empty, `.` and `..` segments; a slash at the end stays.
fn clean(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    let mut clean = format!("/{}", segments.join("/"));
    if path.ends_with('/') && clean != "/" {
        clean.push('/');
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: Switches = Switches {
        debugging: true,
        system_logs: true,
        profiling: true,
        debug_flags: true,
        checkpoints: true,
    };

    fn go(site: Site, method: &str, path: &str) -> Way {
        way(site, &method.parse().unwrap(), path, None).unwrap()
    }

    #[test]
    fn unclean_paths_are_redirected_with_their_query() {
        let go = |path: &str| way(Site::Secure(ON), &Method::GET, path, Some("a=b")).unwrap();
        for (path, to) in [
            ("//pods", "/pods?a=b"),
            ("/pods/../metrics", "/metrics?a=b"),
            ("/runningpods", "/runningpods/?a=b"),
            ("/logs//x/", "/logs/x/?a=b"),
            ("//evil.example/%0d%0aSet-Cookie:x", "/evil.example/%0D%0ASet-Cookie:x?a=b"),
        ] {
            assert_eq!(go(path), Way::Redirect(to.into()), "{path}");
        }
        assert_eq!(way(Site::Secure(ON), &Method::GET, "/%zz", None), None);
        assert_eq!(way(Site::Secure(ON), &Method::OPTIONS, "*", None), None);
    }

    #[test]
    fn encoded_names_are_decoded_once() {
        let Way::To(Endpoint::ContainerLogs { pod, .. }) =
            go(Site::Secure(ON), "GET", "/containerLogs/n/a%2540b/c")
        else {
            panic!("no logs")
        };
        assert_eq!(pod, "a%40b");
        // A slash in a name is a slash: there is nothing at five segments.
        assert_eq!(
            go(Site::Secure(ON), "GET", "/containerLogs/n/..%2f..%2fx/c"),
            Way::Redirect("/x/c".into())
        );
    }

    #[test]
    fn what_is_switched_off_says_so() {
        let off = |f: fn(&mut Switches)| {
            let mut on = ON;
            f(&mut on);
            Site::Secure(on)
        };
        let none = off(|s| s.debugging = false);
        for path in
            ["/exec/a/b/c", "/containerLogs/a/b/c", "/runningpods/", "/logs/", "/debug/pprof/heap", "/run/x"]
        {
            assert_eq!(go(none, "GET", path), Way::Disabled(DEBUG_DISABLED), "{path}");
        }
        for path in ["/configz", "/checkpoint/a/b/c", "/flagz", "/debug/flags/v"] {
            assert_eq!(go(none, "GET", path), Way::Unknown, "{path}");
        }
        assert_eq!(go(none, "GET", "/pods"), Way::To(Endpoint::Pods));
        assert_eq!(go(off(|s| s.checkpoints = false), "POST", "/checkpoint/a/b/c"), Way::Unknown);
        assert_eq!(
            go(off(|s| s.system_logs = false), "GET", "/logs/x"),
            Way::Disabled("logs endpoint is disabled.")
        );
        assert_eq!(
            go(off(|s| s.profiling = false), "GET", "/debug/pprof/heap"),
            Way::Disabled("profiling endpoint is disabled.")
        );
        assert_eq!(
            go(off(|s| s.debug_flags = false), "PUT", "/debug/flags/v"),
            Way::Disabled("flags endpoint is disabled.")
        );
    }

    #[test]
    fn names_that_only_begin_like_a_tree_are_unknown() {
        for path in ["/podsx", "/execute/a/b/c", "/metricsx", "/statsx", "/logs.txt"] {
            assert_eq!(go(Site::Secure(ON), "GET", path), Way::Unknown, "{path}");
        }
    }
}
