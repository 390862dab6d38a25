//! Hooks, deadlines and what a killed agent must mend, on a real runtime.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use node_e2e::manifest::{pod, sh};
use node_e2e::wait::eventually;
use node_e2e::{Node, status};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

/// A file of the host in which containers and hooks write what they do.
struct Diary(PathBuf);

impl Diary {
    fn new(node: &Node) -> Self {
        let dir = node.dir.join("diary");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("log"), "").unwrap();
        Self(dir)
    }

    /// A container that writes `NAME start` and, when it is told to end, `NAME term`.
    fn container(&self, name: &str, lifecycle: &Value) -> Value {
        let script = format!(
            "trap 'echo {name} term >> /diary/log; exit 0' TERM\necho {name} start >> /diary/log\n\
             while :; do sleep 3600 & wait $!; done"
        );
        let mut c = sh(name, &script);
        c["volumeMounts"] = json!([{ "name": "diary", "mountPath": "/diary" }]);
        c["lifecycle"] = lifecycle.clone();
        c
    }

    fn pod(&self, name: &str, containers: impl IntoIterator<Item = Value>) -> Value {
        let mut p = pod(name, containers);
        p["spec"]["terminationGracePeriodSeconds"] = 10.into();
        p["spec"]["volumes"] =
            json!([{ "name": "diary", "hostPath": { "path": self.0, "type": "Directory" } }]);
        p
    }

    fn lines(&self) -> Vec<String> {
        fs::read_to_string(self.0.join("log")).unwrap().lines().map(str::to_owned).collect()
    }

    async fn has(&self, line: &str) {
        eventually(&format!("the diary says {line}"), async || {
            let lines = self.lines();
            if lines.iter().any(|l| l == line) { Ok(()) } else { Err(format!("{lines:?}")) }
        })
        .await;
    }
}

fn exec(script: &str) -> Value {
    json!({ "exec": { "command": ["/bin/sh", "-c", script] } })
}

/// Commands of the host's processes.
fn processes() -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let text = |path: &Path| fs::read(path.join("cmdline")).unwrap_or_default();
    all.map(|e| String::from_utf8_lossy(&text(&e.path())).replace('\0', " ")).collect()
}

#[tokio::test]
async fn hooks_run_after_the_start_and_before_the_stop() {
    let Some(mut node) = Node::start().await else { return };
    let diary = Diary::new(&node);
    let hooks = json!({
        "postStart": exec("until grep -q 'a start' /diary/log; do sleep 0.1; done; echo a postStart >> /diary/log"),
        "preStop": exec("echo a preStop >> /diary/log"),
    });
    node.put("p", diary.pod("p", [diary.container("a", &hooks), diary.container("b", &json!({}))]));
    node.wait_ready("p").await;
    diary.has("b start").await;
    assert_eq!(diary.lines(), ["a start", "a postStart", "b start"]);
    node.remove("p");
    node.wait_gone("p").await;
    node.wait_clean().await;
    let ends: Vec<String> = diary.lines()[3..].iter().filter(|l| l.starts_with('a')).cloned().collect();
    assert_eq!(ends, ["a preStop", "a term"]);
    node.finish().await;
}

#[tokio::test]
async fn a_hook_that_never_returns_is_cut_off_and_leaves_no_process() {
    let Some(mut node) = Node::start().await else { return };
    let diary = Diary::new(&node);
    // Another process may run the same test beside this one.
    let [end, begin] = [1, 2].map(|n| 100_000_000 + u64::from(std::process::id()) * 10 + n);
    let hang = |number: u64| exec(&format!("echo {number} >> /diary/log; sleep {number}"));
    let mut at_end = diary.pod("end", [diary.container("c", &json!({ "preStop": hang(end) }))]);
    at_end["spec"]["terminationGracePeriodSeconds"] = 2.into();
    node.put("end", at_end);
    node.put("begin", diary.pod("begin", [diary.container("d", &json!({ "postStart": hang(begin) }))]));
    node.wait_ready("end").await;
    diary.has(&begin.to_string()).await;
    node.remove("end");
    node.remove("begin");
    node.wait_gone("end").await;
    node.wait_gone("begin").await;
    node.wait_clean().await;
    let lines = diary.lines();
    for line in [end.to_string().as_str(), "c term", "d term"] {
        assert!(lines.iter().any(|l| l == line), "{line}: {lines:?}");
    }
    let asleep = [end, begin].map(|number| format!("sleep {number}"));
    let left: Vec<_> = processes().into_iter().filter(|p| asleep.iter().any(|a| p.contains(a))).collect();
    assert!(left.is_empty(), "{left:?}");
    node.finish().await;
}

#[tokio::test]
async fn a_failed_post_start_hook_is_told_and_ends_the_container() {
    let Some(mut node) = Node::start().await else { return };
    let diary = Diary::new(&node);
    let hooks = json!({ "postStart": exec("echo bad; exit 4") });
    node.put("p", diary.pod("p", [diary.container("c", &hooks)]));
    let failed =
        node.wait("p", "its hook failed", |p| status::waiting(p, "c") == Some("PostStartHookError")).await;
    let state = status::container(&failed, "c").unwrap().state.as_ref().unwrap();
    let why = state.waiting.as_ref().unwrap().message.clone().unwrap();
    let (begin, end) = (
        "Exec lifecycle hook ([/bin/sh -c echo bad; exit 4]) for Container \"c\" in Pod ",
        "failed - error: command '/bin/sh -c echo bad; exit 4' exited with 4: , message: \"bad\\n\"",
    );
    assert!(why.starts_with(begin) && why.ends_with(end), "{why}");
    node.finish().await;
}

#[tokio::test]
async fn an_http_hook_reaches_its_server() {
    let Some(mut node) = Node::start().await else { return };
    let diary = Diary::new(&node);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = vec![0; 4096];
        let n = stream.read(&mut request).unwrap();
        stream.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").unwrap();
        String::from_utf8_lossy(&request[..n]).into_owned()
    });
    let hook = json!({ "preStop": { "httpGet": { "host": "127.0.0.1", "port": port, "path": "/bye?x=1" } } });
    node.put("p", diary.pod("p", [diary.container("c", &hook)]));
    node.wait_ready("p").await;
    node.remove("p");
    node.wait_gone("p").await;
    node.wait_clean().await;
    let asked = tokio::task::spawn_blocking(|| asked.join()).await.unwrap().unwrap();
    assert!(asked.starts_with("GET /bye?x=1 HTTP/1.1\r\n"), "{asked}");
    assert_eq!(diary.lines(), ["c start", "c term"]);
    node.finish().await;
}

#[tokio::test]
async fn an_agent_killed_during_a_post_start_hook_does_not_run_it_again() {
    let Some(mut node) = Node::start().await else { return };
    let diary = Diary::new(&node);
    let hooks = json!({ "postStart": exec("echo hook >> /diary/log; sleep 3600") });
    node.put("p", diary.pod("p", [diary.container("c", &hooks)]));
    diary.has("hook").await;
    node.kill9();
    node.launch().await;
    let ready = node.wait_ready("p").await;
    assert_eq!(status::restarts(&ready, "c"), 0);
    node.remove("p");
    node.wait_gone("p").await;
    node.wait_clean().await;
    assert_eq!(diary.lines().iter().filter(|l| *l == "hook").count(), 1);
    node.finish().await;
}

#[tokio::test]
async fn a_pod_past_its_deadline_is_failed() {
    let Some(mut node) = Node::start().await else { return };
    let diary = Diary::new(&node);
    let mut p = diary.pod("p", [diary.container("c", &json!({}))]);
    p["spec"]["activeDeadlineSeconds"] = 3.into();
    node.put("p", p);
    let failed = node.wait_phase("p", "Failed").await;
    assert_eq!(failed.status.unwrap().reason.as_deref(), Some("DeadlineExceeded"));
    assert_eq!(diary.lines(), ["c start", "c term"]);
    node.kill9();
    node.launch().await;
    let failed = node.wait_phase("p", "Failed").await;
    assert_eq!(failed.status.unwrap().reason.as_deref(), Some("DeadlineExceeded"));
    assert_eq!(diary.lines(), ["c start", "c term"], "it was started again");
    node.finish().await;
}

#[tokio::test]
async fn a_link_to_a_log_that_was_never_made_is_made_by_the_next_agent() {
    let Some(mut node) = Node::start().await else { return };
    let diary = Diary::new(&node);
    node.put("p", diary.pod("p", [diary.container("c", &json!({}))]));
    let ready = node.wait_ready("p").await;
    let id = status::id(&ready, "c").unwrap().to_owned();
    let link = || {
        let all = fs::read_dir("/var/log/containers").unwrap().flatten();
        all.map(|e| e.path()).find(|p| p.to_string_lossy().ends_with(&format!("-{id}.log")))
    };
    let made = link().expect("the container has a link");
    node.kill9();
    fs::remove_file(&made).unwrap();
    node.launch().await;
    eventually("the link is there again", async || link().ok_or_else(|| "none".to_owned())).await;
    assert!(fs::read_link(&made).unwrap().ends_with("c/0.log"));
    node.finish().await;
}
